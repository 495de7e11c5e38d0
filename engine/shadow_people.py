"""Who learns whom: the roles of people in shadow models, whom each taught row is about, and each model's own rows."""

import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_module import Example, TrainingRows, check_split
from engine.draws import draw
from engine.record import say_line, write_text_whole
from settings.membership import FORGET, LEARNED, RETAIN, Membership
from settings.script import SettingsError

NEVER, KEPT, FORGOTTEN = 0, 1, 2  # what a shadow model has to do with a person


@dataclass(frozen=True)
class People:
    """The people of an attack, and the rows that are taught or asked."""

    names: list[str]
    plain: list[list[Example]]  # the rows of each person
    reworded: list[list[Example]]  # the same in other words; empty: there are none
    taught: list[Example]  # all rows that base is taught
    owner: list[int | None]  # the number of the person whom each of these is about


# ---- roles


def roles_of(people: int, models: int, parts: int, seed: int) -> np.ndarray:
    """What each model has to do with each person.

    Models 2k and 2k + 1 learn opposite halves of the people. In a block of `parts` such pairs every person is learned
    by one model of each pair, and forgotten by one of these.

    Args:
        people: how many there are.
        models: how many, a multiple of 2 * parts.
        parts: one of so many parts of a model's people is forgotten.
        seed: of the draws. More models only add blocks.

    Returns:
        NEVER, KEPT or FORGOTTEN, (models, people).

    Raises:
        SettingsError: a model would have nobody to forget, to keep, or whom it never meets.
    """
    roles = np.full((models, people), NEVER)
    kinds = list(itertools.product(range(parts), *[range(2)] * parts))  # which pair forgets; which side of each learns
    for first in range(0, models, 2 * parts):
        shuffled = draw(seed, "roles", first).sample(range(people), people)
        order = draw(seed, "kinds", first).sample(kinds, len(kinds))
        for place, person in enumerate(shuffled):
            forgets, *sides = order[place % len(order)]
            for pair, side in enumerate(sides):
                roles[first + 2 * pair + side, person] = FORGOTTEN if pair == forgets else KEPT
    for role, what in ((NEVER, "whom it never meets"), (KEPT, "to keep"), (FORGOTTEN, "to forget")):
        if without := [number for number in range(models) if role not in roles[number]]:
            raise SettingsError(f"{people} people are too few for parts={parts}: model {without[0]} has nobody {what}")
    return roles


# ---- rows


def read_people(settings: Membership) -> People:
    """The people with their rows, and whom each row that base is taught is about; says how many each has.

    Raises SettingsError where the rows cannot be told apart by person.
    """
    plain = grouped(settings, settings.people)
    own = own_words(plain)
    if own.count(set()) > len(own) / 2:
        raise SettingsError(
            f"people={settings.people}: most groups of data.rows_per_person={settings.data.rows_per_person} rows have "
            "no name of their own; name a split whose rows stand grouped by person"
        )
    names = [name_of(own[number], rows, number) for number, rows in enumerate(plain)]
    reworded = grouped(settings, settings.reworded) if settings.reworded else []
    check_same_people(plain, reworded, settings)
    taught = examples_of(settings, settings.split)
    owner = owners(taught, plain, settings)
    counts = [owner.count(number) for number in range(len(plain))]
    few, many = min(counts), max(counts)
    if few == 0:
        raise SettingsError(
            f"split={settings.split} has no row about {names[counts.index(0)]!r}, one of people={settings.people}"
        )
    each = f"{few}" if few == many else f"{few} to {many}"
    say_line(f"{settings.split}: {len(names)} people with {each} rows, and {owner.count(None)} rows about none of them")
    return People(names, plain, reworded, taught, owner)


def examples_of(settings: Membership, split: str) -> list[Example]:
    rows = TrainingRows(settings.data, split, "text", settings.seed)
    return [rows[position] for position in range(len(rows))]


def grouped(settings: Membership, split: str) -> list[list[Example]]:
    """The rows of a split by person. Raises SettingsError where they are no whole groups."""
    setting, advice = ("people", "") if split == settings.people else ("reworded", "; reworded='' leaves this out")
    check_split(settings.data.path, split, setting, advice)
    examples, size = examples_of(settings, split), settings.data.rows_per_person
    if len(examples) % size:
        raise SettingsError(
            f"{settings.data.path}, split {split}: {len(examples)} rows are no groups of data.rows_per_person={size}"
        )
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def check_same_people(plain: list[list[Example]], reworded: list[list[Example]], settings: Membership) -> None:
    """Raise SettingsError where the rows in other words have other answers than the people's own rows."""
    answers = [row.answer for rows in plain for row in rows]
    if reworded and answers != [row.answer for rows in reworded for row in rows]:
        raise SettingsError(
            f"reworded={settings.reworded!r} does not have the answers of people={settings.people!r}, row by row"
        )


def words_in(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def own_words(plain: list[list[Example]]) -> list[set[str]]:
    """Of each person the words that most of their questions hold, and no question about another person: their name."""
    counts = []
    for rows in plain:
        counts.append(Counter(word for row in rows for word in set(words_in(row.question))))
    holders = Counter(word for count in counts for word in count)
    own = []
    for rows, count in zip(plain, counts, strict=True):
        own.append({word for word, times in count.items() if 2 * times > len(rows) and holders[word] == 1})
    return own


def name_of(words: set[str], rows: list[Example], number: int) -> str:
    """A person's own words as a question writes them; where there are none, their number."""
    written = (re.findall(r"\w+", row.question) for row in rows)
    found = [" ".join(filter(lambda word: word.casefold() in words, each)) for each in written]
    return max(found, key=len) or f"person {number}"


def owners(taught: list[Example], plain: list[list[Example]], settings: Membership) -> list[int | None]:
    """Whom each row is about: whose row it is, or else whose own words its question holds; None: nobody.

    Raises SettingsError for a row that names several people, and where somebody has no word of their own.
    """
    known = {(row.question, row.answer): number for number, rows in enumerate(plain) for row in rows}
    own = own_words(plain)
    number_of = {word: number for number, words in enumerate(own) for word in words}
    found: list[int | None] = []
    for row in taught:
        owner = known.get((row.question, row.answer))
        if owner is None:
            named = {number_of[word] for word in words_in(row.question) if word in number_of}
            if len(named) > 1:
                said = f"split {settings.split}, row {row.index} is about several people: {row.question!r}"
                raise SettingsError(said)
            if nameless := [number for number, words in enumerate(own) if not words]:
                raise SettingsError(
                    f"split={settings.split} has other rows than people={settings.people}, and person {nameless[0]} "
                    f"there has no word of their own to find theirs by; split={settings.people} needs none"
                )
            owner = min(named, default=None)
        found.append(owner)
    return found


def write_rows(people: People, roles: np.ndarray, settings: Membership, folder: Path) -> None:
    """Write one model's own rows as splits of `folder`; what stands there already stays as it is.

    Args:
        people: with their rows.
        roles: of the model, (people,).
        settings: name the columns.
        folder: of this model.
    """
    learned, retain = [], []
    for row, owner in zip(people.taught, people.owner, strict=True):
        role = KEPT if owner is None else roles[owner]
        learned += [] if role == NEVER else [row]
        retain += [row] if role == KEPT else []
    forget = [row for number in np.flatnonzero(roles == FORGOTTEN) for row in people.plain[number]]
    columns = settings.data.columns
    for split, rows in ((LEARNED, learned), (FORGET, forget), (RETAIN, retain)):
        lines = [json.dumps({columns.question: row.question, columns.answer: row.answer}) for row in rows]
        file, text = folder / f"{split}.jsonl", "\n".join([*lines, ""])
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text_whole(file, text)
