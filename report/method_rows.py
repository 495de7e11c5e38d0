"""The figures of a method over its seeds: one row of the page."""

from dataclasses import dataclass

from engine.kept import COLLAPSED
from engine.places import ANCHORS, why_not_counted
from engine.result_table import ModelResult
from engine.seeds import SeedGroup, seed_groups

FIRST = ("gold", "base", "start")  # what methods are compared with stands above them


@dataclass(frozen=True)
class MethodRow(SeedGroup):
    """One method, base, gold or the start."""

    @property
    def is_method(self) -> bool:
        return self.method not in ANCHORS

    @property
    def failed(self) -> bool:
        """Whether no seed was trained."""
        return all(result.value("failed") for result in self.results)

    @property
    def lost(self) -> bool:
        """Whether some seed lost what it should have kept."""
        return COLLAPSED in self.figure("flag").values

    @property
    def why_not_counted(self) -> list[str]:
        """Why the method cannot be called the nearest, by each seed that is in its way; none: it can."""
        return [why for result in self.results if (why := why_not_counted(result))]

    @property
    def counts(self) -> bool:
        """Whether every seed was trained, kept what it should, left nobody out and changes no question."""
        return self.is_method and not self.why_not_counted

    @property
    def place_on_page(self) -> tuple:
        """What the rows are ordered by: anchors, then by verdict, then by distance; what does not count is last."""
        if not self.is_method:
            return (0, FIRST.index(self.method))
        verdict, distance = self.mean("verdict"), nearness(self)
        nearest_first = (distance is None, distance or 0.0)
        return (1, self.failed, self.lost, verdict is None, -(verdict or 0.0), *nearest_first, self.label)


def nearness(row: MethodRow) -> float | None:
    """How far a method is from gold: in its worst way of asking, else over all measures."""
    worst = row.mean("distance_worst_way")
    return row.mean("distance_to_gold") if worst is None else worst


def method_rows(results: list[ModelResult]) -> list[MethodRow]:
    """One row for the models that differ in the seed alone, in the page's order."""
    rows = [MethodRow(group.label, group.results) for group in seed_groups(results)]
    return sorted(rows, key=lambda row: row.place_on_page)
