"""Draws that are functions of a key alone: the random source of all of them, and which rows of a task they take."""

import itertools
import random
from collections.abc import Collection
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


def some_of_each(people: list[str | None], count: int, seed: int) -> list[int]:
    """Row numbers, ascending: at most `count` of each person, drawn for each by name."""
    of_each: dict[str, list[int]] = {}
    for i, person in enumerate(people):  # a row about nobody stands for itself
        of_each.setdefault(person or f"row {i}", []).append(i)
    drawn = [draw(seed, "asked", person).sample(own, min(count, len(own))) for person, own in of_each.items()]
    return sorted(itertools.chain.from_iterable(drawn))


def sample_by_person(
    people: list[str | None], limit: int, seed: int, among: Collection[int] | None = None
) -> list[int]:
    """Row numbers, ascending: all, or `limit` of them taken person by person so that every person keeps an equal
    share.

    Args:
        people: the person of each row.
        limit: how many rows are kept; 0: all.
        seed: of the draws.
        among: the row numbers that may be kept, of each person at least one; None: all. The order of the people is
            drawn from all rows, so that a task asking some rows of each keeps the people of one asking all.
    """
    allowed = frozenset(range(len(people)) if among is None else among)
    if not limit or limit >= len(allowed):
        return sorted(allowed)
    shuffled = draw(seed, "limit").sample(range(len(people)), len(people))
    by_person: dict[str | None, list[int]] = {people[i]: [] for i in shuffled}
    for i in shuffled:
        if i in allowed:
            by_person[people[i]].append(i)
    turns = [
        rows[turn]
        for turn in range(max(map(len, by_person.values())))
        for rows in by_person.values()
        if turn < len(rows)
    ]
    return sorted(turns[:limit])
