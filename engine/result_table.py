"""The figures of models, and two views of them: all of a model in one row, and those that a reader looks at first."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from engine.evaluated import Origin, as_columns
from engine.measures import ARROWS, MEASURES, Measure
from settings.results import Scoring
from settings.script import one_of


class Figure(NamedTuple):
    """A measure of one model on one task."""

    value: float | None  # None: it cannot be known
    low: float | None = None  # ends of the 95 % interval; None: there is none
    high: float | None = None
    why: str | None = None  # why there is no value, or what the value rests on


Figures = dict[tuple[str, str], Figure]  # (key of a measure, task or "" over all tasks) -> figure
NOTHING = Figure(None)


@dataclass
class ModelResult:
    """All figures of one model."""

    method: str
    seed: int | None  # None: no record says it
    figures: Figures
    about: dict[str, Any] = field(default_factory=dict)  # what the wide table says besides: heading -> text
    origin: Origin | None = (
        None  # None: the row is one of a benchmark's, which says itself what it was measured against
    )
    forgets: str = "both"  # what it was made to forget: both, text or visual
    log: Path | None = None  # the log that the figures are of

    def figure(self, measure: str, task: str = "") -> Figure:
        """One figure; without a value where the model has none of this kind."""
        assert measure in MEASURES, measure
        return self.figures.get((measure, task), NOTHING)

    def value(self, measure: str, task: str = "") -> float | None:
        return self.figure(measure, task).value

    def tasks_of(self, measure: str) -> Iterator[tuple[str, Figure]]:
        """Task and figure, for every task on which the model has this measure."""
        assert measure in MEASURES, measure
        return ((task, figure) for (key, task), figure in self.figures.items() if key == measure)


# ---- the wide view: all figures of a model in one row


def column_name(measure: Measure, task: str) -> str:
    """The heading of a figure in the wide table."""
    return measure.heading if task in ("", measure.unnamed_task) else f"{measure.heading} {task}"


def wide_row(result: ModelResult) -> dict[str, Any]:
    """Heading -> number, text, or None where it cannot be known."""
    row: dict[str, Any] = {"Method": result.method, "Seed": result.seed}
    for (key, task), figure in result.figures.items():
        measure = MEASURES[key]
        column = column_name(measure, task)
        row[column] = figure.value if figure.value is None else measure.words.get(figure.value, figure.value)
        if measure.has_interval:
            row |= {f"{column} low": figure.low, f"{column} high": figure.high}
        if measure.has_why:
            row[f"{column} why"] = figure.why
    return row | result.about | (as_columns(result.origin) if result.origin else {})


# ---- the short view: the figures that a reader looks at first


class Column(NamedTuple):
    """A figure that the short tables show of every model."""

    measure: Measure
    task: str
    heading: str

    def figure(self, result: ModelResult) -> Figure:
        return result.figure(self.measure.key, self.task)

    def text(self, result: ModelResult) -> str:
        """The value as the short tables show it."""
        value = self.figure(result).value
        if value is None:
            return self.measure.missing if (self.measure.key, self.task) in result.figures else "–"
        return self.measure.words.get(value) or format(value, self.measure.format)


def short_columns(results: list[ModelResult], scoring: dict[str, Scoring]) -> list[Column]:
    """The columns of the short tables: those that some model has, or says why it has none.

    Args:
        results: The models.
        scoring: Task -> how it is scored, which says what the short tables show of it.

    Raises:
        SettingsError: `scoring.<task>.short` names no measure.
    """
    for task, of_task in scoring.items():
        for key in of_task.short:
            one_of(f"scoring.{task}.short", key, tuple(MEASURES))
    columns = []
    for key, measure in MEASURES.items():
        headings = measure.short | {task: each.short[key] for task, each in scoring.items() if key in each.short}
        arrow = ARROWS.get(measure.better, "")
        columns += [Column(measure, task, heading + arrow) for task, heading in headings.items()]
    known = []
    for column in columns:
        if any(is_known(column.figure(result)) for result in results):
            known.append(column)
    return known


def is_known(figure: Figure) -> bool:
    """Whether there is a value, or a reason why there is none."""
    return figure.value is not None or bool(figure.why)
