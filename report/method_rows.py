"""The figures of a method over its seeds: one row of the page."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from engine.kept import COLLAPSED, KEPT
from engine.measures import Measure
from engine.places import ANCHORS
from engine.result_table import Column, ModelResult
from engine.seeds import is_shared, seed_groups
from report.words import P_VALUES, p_text

FIRST = ("gold", "base", "start")  # what methods are compared with stands above them


class SeedFigure(NamedTuple):
    """A figure over seeds."""

    values: tuple[float, ...]  # of the seeds that have one
    low: float | None  # ends of the 95 % interval; None: there is none, or there are several seeds
    high: float | None
    why: str | None  # why there is no value, or what it rests on

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Standard deviation over the seeds; None: under two of them have a value."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass
class MethodRow:
    """One method, base, gold or the start."""

    name: str
    of_seeds: list[ModelResult]

    def figure(self, key: str, task: str = "") -> SeedFigure:
        """A measure over the seeds; its reason is said once where all seeds have the same."""
        figures = [result.figure(key, task) for result in self.of_seeds]
        values = tuple(figure.value for figure in figures if figure.value is not None)
        reasons = {result.seed: figure.why for result, figure in zip(self.of_seeds, figures, strict=True)}
        said = set(reasons.values())
        if len(said) == 1:
            why = said.pop()
        else:
            why = "; ".join(f"seed {seed}: {reason}" for seed, reason in reasons.items() if reason)
        ends = figures[0][1:3] if len(figures) == 1 else (None, None)
        return SeedFigure(values, *ends, why)

    def mean(self, key: str, task: str = "") -> float | None:
        return self.figure(key, task).mean

    @property
    def method(self) -> str:
        """What made the row: base, gold, start, or a benchmark's row."""
        return self.of_seeds[0].method

    @property
    def is_method(self) -> bool:
        return self.method not in ANCHORS

    @property
    def failed(self) -> bool:
        """Whether no seed was trained."""
        return all(result.value("failed") for result in self.of_seeds)

    @property
    def lost(self) -> bool:
        """Whether some seed lost what it should have kept."""
        return COLLAPSED in self.figure("flag").values

    @property
    def counts(self) -> bool:
        """Whether the method kept what it should, left nobody out and changes no question: it may be the nearest."""
        if not self.is_method or self.failed:
            return False
        kept = set(self.figure("flag").values) == {KEPT}
        return kept and not any(self.figure("hook").values) and not any(self.figure("skipped").values)

    @property
    def place_on_page(self) -> tuple:
        """What the rows are ordered by: anchors, then by verdict, then by distance; what does not count is last."""
        if not self.is_method:
            return (0, FIRST.index(self.method))
        verdict, distance = self.mean("verdict"), nearness(self)
        nearest_first = (distance is None, distance or 0.0)
        return (1, self.failed, self.lost, verdict is None, -(verdict or 0.0), *nearest_first, self.name)


def nearness(row: MethodRow) -> float | None:
    """How far a method is from gold: in its worst way of asking, else over all measures."""
    worst = row.mean("distance_worst_way")
    return row.mean("distance_to_gold") if worst is None else worst


def method_rows(results: list[ModelResult]) -> list[MethodRow]:
    """One row for the models that differ in the seed alone, in the page's order."""
    rows = [MethodRow(group.label, group.results) for group in seed_groups(results)]
    return sorted(rows, key=lambda row: row.place_on_page)


# ---- a figure as text


class Shown(NamedTuple):
    """A figure as the page shows it."""

    text: str
    spread: str = ""  # standard deviation over seeds
    count: str = ""  # how many seeds, where not all have a value


def shown(row: MethodRow, column: Column) -> Shown:
    """A method's figure in a column: one seed's value, or mean, standard deviation and number of seeds."""
    figure = row.figure(column.measure.key, column.task)
    if not figure.values or is_shared(column):
        return Shown(column.text(row.of_seeds[0]))
    count = f"n = {len(figure.values)}" if len(figure.values) < len(row.of_seeds) else ""
    if column.measure.words:
        return Shown(words_text(column.measure, figure.values), count=count)
    text = p_text if column.measure.key in P_VALUES else number_text(column.measure)
    if column.measure.key in P_VALUES:  # a mean of p-values says nothing
        ends = dict.fromkeys(text(end) for end in (min(figure.values), max(figure.values)))
        return Shown(" to ".join(ends), count=count)
    assert figure.mean is not None
    return Shown(text(figure.mean), "" if figure.sd is None else f"± {text(figure.sd)}", count)


def number_text(measure: Measure) -> Callable[[float], str]:
    return lambda value: format(value, measure.format)


def words_text(measure: Measure, values: tuple[float, ...]) -> str:
    """The word that all seeds have, else each with how many have it."""
    words = [measure.words[value] for value in values]
    if len(set(words)) == 1:
        return words[0]
    return ", ".join(f"{words.count(word)} × {word}" for word in dict.fromkeys(words))
