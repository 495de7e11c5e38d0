"""Draws that are functions of a key alone: the random source of all of them, and which rows of a task they take."""

import itertools
import random
from typing import Any


def draw(*key: Any) -> random.Random:
    """A random source that is a function of `key` (seed, row, ...) alone, so that no draw depends on what was drawn
    before it.
    """
    return random.Random("/".join(map(str, key)))


def rows_of_fold(people: list[str | None], fold: str, validation_share: float, seed: int) -> list[int]:
    """Row numbers of a fold, ascending: `validation` has the share of the people, at least one; `test` the others.

    People are taken in an order drawn for each by name, so that tasks about the same people divide them alike; rows
    without one stand for themselves.
    """
    who = [str(i) if person is None else person for i, person in enumerate(people)]
    ordered = sorted(set(who), key=lambda name: draw(seed, "fold", name).random())
    validation = set(ordered[: max(1, round(validation_share * len(ordered)))])
    return [i for i, name in enumerate(who) if fold == "all" or (name in validation) == (fold == "validation")]


def some_of_each(rows: list[int], people: list[str | None], count: int, seed: int) -> list[int]:
    """Of the row numbers at most `count` of each person, drawn for each by name; ascending."""
    of_each: dict[str, list[int]] = {}
    for i in rows:  # a row about nobody stands for itself
        of_each.setdefault(people[i] or f"row {i}", []).append(i)
    drawn = [draw(seed, "asked", person).sample(own, min(count, len(own))) for person, own in of_each.items()]
    return sorted(itertools.chain.from_iterable(drawn))


def sample_by_person(people: list[str | None], limit: int, seed: int) -> list[int]:
    """Row numbers, ascending: all, or `limit` of them taken person by person so that every person keeps an equal
    share.
    """
    if not limit or limit >= len(people):
        return list(range(len(people)))
    by_person: dict[str | None, list[int]] = {}
    for i in draw(seed, "limit").sample(range(len(people)), len(people)):
        by_person.setdefault(people[i], []).append(i)
    turns = [
        rows[turn]
        for turn in range(max(map(len, by_person.values())))
        for rows in by_person.values()
        if turn < len(rows)
    ]
    return sorted(turns[:limit])
