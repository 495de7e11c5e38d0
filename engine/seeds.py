"""Rows of one method that differ in the seed alone, as one: mean, standard deviation and number of seeds."""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.measures import P_VALUES, Measure
from engine.result_table import Column, ModelResult

MOST_DIFFERENCES = 3  # settings that a label names
SHOWN = 24  # characters of a setting's value in a label
OF_THE_METHOD = ("place", "distance_spread")  # measures that say one thing of all seeds together
# in place of a seed, in a table with a row per model; the last counts the seeds of which a figure is known
SUMMARIES = MEAN, DEVIATION, COUNT = "mean", "sd", "n"


class SeedFigure(NamedTuple):
    """A figure over seeds."""

    key: str  # of the measure
    values: tuple[float, ...]  # of the seeds of which it is known
    low: float | None  # ends of the 95 % interval; None: there is none, or there are several seeds
    high: float | None
    why: str | None  # why there is no value, or what it rests on

    @property
    def mean(self) -> float | None:
        """The mean over the seeds of which the figure is known; None: there is none, or several p-values."""
        is_told = self.values and (len(self.values) == 1 or self.key not in P_VALUES)
        return statistics.fmean(self.values) if is_told else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds, with n - 1; None: fewer than two seeds, or p-values."""
        is_told = len(self.values) > 1 and self.key not in P_VALUES
        return statistics.stdev(self.values) if is_told else None


@dataclass(frozen=True)
class SeedGroup:
    """The rows of one method, one for each seed: a line of the short tables and of the page."""

    label: str
    results: list[ModelResult]

    @property
    def method(self) -> str:
        return self.results[0].method

    def __len__(self) -> int:
        return len(self.results)

    def figure(self, measure: str, task: str = "") -> SeedFigure:
        """A measure over the seeds; its reason is said once where all seeds have the same."""
        figures = [result.figure(measure, task) for result in self.results]
        values = tuple(figure.value for figure in figures if figure.value is not None)
        reasons = {result.seed: figure.why for result, figure in zip(self.results, figures, strict=True)}
        said = set(reasons.values())
        if len(said) == 1:
            why = said.pop()
        else:
            why = "; ".join(f"seed {seed}: {reason}" for seed, reason in reasons.items() if reason)
        ends = figures[0][1:3] if len(figures) == 1 else (None, None)
        return SeedFigure(measure, values, *ends, why)

    def mean(self, measure: str, task: str = "") -> float | None:
        return self.figure(measure, task).mean


def seed_groups(results: Sequence[ModelResult]) -> list[SeedGroup]:
    """The rows that differ in the seed alone, together, in the order in which each group comes first.

    Rows of own runs belong together where their records say the same settings, their bases were taught alike, and they
    were measured against the same. A row whose records say no settings, or no seed, stands alone. Rows of a benchmark
    belong together by their name.
    """
    groups: dict[tuple, list[ModelResult]] = {}
    for number, result in enumerate(results):
        groups.setdefault(group_key(result, number), []).append(result)
    parted = [part for group in groups.values() for part in without_seeds_twice(group)]
    labels = group_labels(parted)
    return [SeedGroup(label, part) for label, part in zip(labels, parted, strict=True)]


def group_key(result: ModelResult, number: int) -> tuple:
    """What rows have in common that differ in the seed alone; `number` makes a row that stands alone its own."""
    if result.origin is None:
        return (result.method,)
    submitted = result.about.get("Submitted By") or ""  # which a table that is read again has empty
    known = bool(result.origin.settings) and result.seed is not None
    made = (result.origin.settings, result.origin.taught, result.origin.against)
    return (result.method, submitted, *made, None if known else number)


def without_seeds_twice(group: list[ModelResult]) -> list[list[ModelResult]]:
    """A group, parted where one seed stands there twice, made from several models.

    A row joins those that were made from the same model, else the first that lack its seed: a row that is added to
    several seeds with bases of their own stands alone.
    """
    if group[0].origin is None:
        return [group]
    parts: list[list[ModelResult]] = []
    for result in group:
        free = [part for part in parts if not has_seed(part, result.seed)]
        alike = [part for part in free if began_of(result) in map(began_of, part)]
        if free:
            (alike or free)[0].append(result)
        else:
            parts.append([result])
    return parts


def has_seed(part: list[ModelResult], seed: int | None) -> bool:
    return any(result.seed == seed for result in part)


def began_of(result: ModelResult) -> str:
    """The model that a row of own runs was made from."""
    assert result.origin is not None  # a group has one kind of rows
    return result.origin.began_with


def parted_notes(groups: Sequence[SeedGroup]) -> list[str]:
    """Which lines are one method with the same settings, because a seed of it was made from several models."""
    alike: dict[tuple, list[SeedGroup]] = {}
    for number, group in enumerate(groups):
        alike.setdefault(group_key(group.results[0], number), []).append(group)
    notes = []
    for parts in alike.values():
        if len(parts) > 1:
            names = ", ".join(part.label for part in parts)
            notes.append(f"one seed was made from several models, so that these are lines of their own: {names}")
    return notes


# ---- labels


def group_labels(groups: list[list[ModelResult]]) -> list[str]:
    """A name for each group: the method, in what its settings differ from the others of that method, and where that
    does not tell them apart, whose it is, its seeds, and what it was made from.
    """
    of_method: dict[str, list[dict[str, Any]]] = {}
    for first, *_ in groups:
        of_method.setdefault(first.method, []).append(settings_of(first))
    labels = [first.method + difference(settings_of(first), of_method[first.method]) for first, *_ in groups]
    alike: dict[str, list[dict[str, str]]] = {}
    for label, group in zip(labels, groups, strict=True):
        alike.setdefault(label, []).append(marks_of(group))
    return [label + marks_text(marks_of(group), alike[label]) for label, group in zip(labels, groups, strict=True)]


def marks_of(group: list[ModelResult]) -> dict[str, str]:
    """What may tell a group from another of the same method and settings, in words."""
    first = group[0]
    seeds = [str(each.seed) for each in group if each.seed is not None]
    marks = {"by": str(first.about.get("Submitted By") or ""), "seeds": ", ".join(seeds)}
    if first.origin:
        against = "-".join(first.origin.against)
        marks |= {"from": first.origin.began_with[:8], "log": first.origin.log, "against": against}
    return marks


def marks_text(own: dict[str, str], alike: list[dict[str, str]]) -> str:
    """The marks in which groups of one label differ, as few as tell this one from all others, in brackets."""
    others = [marks for marks in alike if marks is not own and marks != own]
    shown = []
    for name, mark in own.items():
        if not others:
            break
        if any(marks.get(name) != mark for marks in others):
            shown.append(f"{name} {mark or 'unknown'}")
            others = [marks for marks in others if marks.get(name) == mark]
    return f" [{', '.join(shown)}]" if shown else ""


def settings_of(result: ModelResult) -> dict[str, Any]:
    """Name -> value of what decided a row's training; empty: not known."""
    told = json.loads(result.origin.settings) if result.origin and result.origin.settings else {}
    return told if isinstance(told, dict) else {}


def difference(own: dict[str, Any], all_of_method: list[dict[str, Any]]) -> str:
    """The settings in which groups of one method differ, with this one's values, in brackets; empty: none."""
    known = [settings for settings in all_of_method if settings]
    names = sorted({name for settings in known for name in settings})
    differing = [name for name in names if has_several(known, name)]
    if not own or not differing:
        return ""
    # what a person set says more than a hash
    differing.sort(key=lambda name: name.startswith("fingerprint"))
    shown = [f"{name}={short_value(own.get(name))}" for name in differing[:MOST_DIFFERENCES]]
    more = f", {len(differing) - len(shown)} more" if len(differing) > len(shown) else ""
    return f" ({', '.join(shown)}{more})"


def has_several(known: list[dict[str, Any]], name: str) -> bool:
    """Whether a setting has several values."""
    return len({json.dumps(settings.get(name)) for settings in known}) > 1


def short_value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


# ---- cells


class Shown(NamedTuple):
    """A figure as a table shows it."""

    text: str
    spread: str = ""  # standard deviation over seeds
    known: int = 0  # of how many seeds the figure is known, where that is not all; 0: of all or of none


def shown(group: SeedGroup, column: Column, text: Callable[[float], str] | None = None) -> Shown:
    """A method's figure: one seed's value, of several mean and standard deviation; of p-values the smallest and the
    largest; of a verdict the word, or how many seeds have which.

    Args:
        group: The method.
        column: The figure.
        text: How its numbers are written; None: as the short tables do.
    """
    figure = group.figure(column.measure.key, column.task)
    if not figure.values or (is_shared(column) and len(set(figure.values)) == 1):
        return Shown(column.text(group.results[0]))
    known = len(figure.values) if len(figure.values) < len(group) else 0
    text = text or number_text(column.measure)
    if column.measure.words:
        return Shown(words_text(column.measure, figure.values), known=known)
    if figure.mean is None:
        ends = dict.fromkeys(text(end) for end in (min(figure.values), max(figure.values)))
        return Shown(" to ".join(ends), known=known)
    return Shown(text(figure.mean), "" if figure.deviation is None else text(figure.deviation), known)


def number_text(measure: Measure) -> Callable[[float], str]:
    return lambda value: format(value, measure.format)


def words_text(measure: Measure, values: tuple[float, ...]) -> str:
    """The word that all seeds have, else each with how many have it."""
    words = Counter(measure.words[value] for value in values)
    return ", ".join(f"{count} × {word}" for word, count in words.items()) if len(words) > 1 else next(iter(words))


def cell_text(column: Column, group: SeedGroup) -> str:
    """A figure as the short tables show it."""
    said = shown(group, column)
    text = f"{said.text} ± {said.spread}" if said.spread else said.text
    return f"{text} ({said.known} of {len(group)})" if said.known else text


def is_shared(column: Column) -> bool:
    """Whether all seeds of a method have one value."""
    return column.measure.key in OF_THE_METHOD
