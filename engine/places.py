"""Which place each method has, and why some have none."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from engine.kept import KEPT
from engine.measures import MEASURES
from engine.result_table import Figure, ModelResult
from engine.seeds import SeedGroup
from engine.verdicts import Judged, places

ANCHORS = ("base", "gold", "start")  # what methods are compared with
RANKED_BY = "distance_worst_way"
ONE_SEED = "one seed: a place needs the spread over several"
ALSO_NEEDED = ("worst_person", "distance_held_out_worst_way")  # they come with the distance


def add_places(groups: Sequence[SeedGroup], spreads: Mapping[str, float], unmeasured: str) -> None:
    """Give each method its place, the same for all of its seeds, and the spread of its distance.

    Places are among the methods that forget the same: words, pictures or both. A method has none that lost, with any
    seed, what it should have kept, that left people out, or of which nothing says how far its distance moves: neither
    several seeds nor repeated runs.

    Args:
        groups: The methods, all measured against the same; their figures are changed.
        spreads: Method -> standard deviation of its distance over repeated runs.
        unmeasured: Why a method of one seed without repeated runs has no place.
    """
    ranked: dict[str, list[tuple[SeedGroup, Judged]]] = {}
    for group in groups:
        if group.method in ANCHORS or all(each.value("failed") for each in group.results):
            continue
        spread = spread_of(group, spreads)
        set_all(group, "distance_spread", Figure(spread, why=unmeasured if spread is None else None))
        if why := why_group_unranked(group) or (unmeasured if spread is None else None):
            set_all(group, "place", Figure(None, why=why))
            continue
        forgets = group.results[0].forgets
        ranked.setdefault(forgets, []).append((group, judged_over_seeds(group, spreads.get(group.method, 0.0))))
    for methods in ranked.values():
        found = places([judged_by for _, judged_by in methods])
        for (group, _), place in zip(methods, found, strict=True):
            set_all(group, "place", Figure(float(place)))


def set_all(group: SeedGroup, measure: str, figure: Figure) -> None:
    """Give every seed of a method one figure."""
    for result in group.results:
        result.figures[measure, ""] = figure


def spread_of(group: SeedGroup, spreads: Mapping[str, float]) -> float | None:
    """How far a method's distance moves: over its seeds or over repeated runs, whichever is more; None: not known."""
    known = [spreads.get(group.method), group.figure(RANKED_BY).deviation]
    return max((spread for spread in known if spread is not None), default=None)


def why_group_unranked(group: SeedGroup) -> str | None:
    """Why a method has no place, by the first seed that is in its way; None: it has one."""
    for result in group.results:
        if why := why_unranked(result):
            return why if len(group) == 1 else f"seed {result.seed}: {why}"
    return None


def why_unranked(result: ModelResult) -> str | None:
    """Why a model cannot be ranked; None: it can."""
    if not result.value("failed"):
        if result.value(RANKED_BY) is None:
            return result.figure("verdict").why or "its distance is not known"
        lacking = [MEASURES[key].heading for key in ALSO_NEEDED if result.value(key) is None]
        lacking += [MEASURES["skipped"].heading] if ("skipped", "") not in result.figures else []
        if lacking or result.figure("worst_person").low is None:
            return f"its table lacks {', '.join(lacking) or 'the lower end of the worst person'}"
    return why_not_counted(result)


def why_not_counted(result: ModelResult) -> str | None:
    """Why a model cannot be called near to gold, however near it is; None: it can."""
    failed, flag, skipped = (result.figure(key) for key in ("failed", "flag", "skipped"))
    if failed.value:
        return f"failed: {failed.why}"
    if flag.value is None:
        return f"what was kept is not known: {flag.why}"
    if flag.value != KEPT:
        return flag.why or MEASURES["flag"].words[flag.value]
    if (hook := result.figure("hook")).value:
        return f"a hook: {hook.why or 'it asks otherwise than base'}"
    return f"left out: {skipped.why or 'people'}" if skipped.value else None


def judged(result: ModelResult, spread: float) -> Judged:
    """What the place of a model is decided by; `spread` of its distance over repeated runs."""
    worst, held_out = result.figure("worst_person"), result.value("distance_held_out_worst_way")
    assert worst.value is not None and worst.low is not None and held_out is not None  # else it is unranked
    return Judged(result.figure(RANKED_BY), held_out, worst.value, worst.value - worst.low, spread)


def judged_over_seeds(group: SeedGroup, spread: float) -> Judged:
    """What the place of a method is decided by, over its seeds."""
    each = [judged(result, spread) for result in group.results]
    distances = [one.distance for one in each]
    middle = Figure(mean_of([one.value for one in distances]), *ends_of(distances))
    held_out = fmean(one.held_out for one in each)
    leak, noise = fmean(one.leak for one in each), fmean(one.noise for one in each)
    by_seed = {
        result.seed: one for result, one in zip(group.results, distances, strict=True) if result.seed is not None
    }
    return Judged(middle, held_out, leak, noise, spread, by_seed)


def ends_of(distances: Sequence[Figure]) -> tuple[float | None, float | None]:
    """The mean ends of the intervals of several distances."""
    return mean_of([one.low for one in distances]), mean_of([one.high for one in distances])


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of values; None where one is not known."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
