"""What may be said of a model that was made to forget: like gold, unlike gold, or not resolved; and its place."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from engine.leaks import ENOUGH_WAYS, Excess, Leak, Shares, held_out, mean_figure, person_means
from engine.result_table import Figure

LIKE, NOT_RESOLVED, UNLIKE = 1.0, 0.5, 0.0
MARGIN = 0.1  # of the gap: what lies within it is as good as gold
ENOUGH_TO_COMPARE = 3  # people, among whom one can stand out
SKIPPED = 0.5  # a leak so far above that of most people is a person who was left out


def verdict(parts: list[Excess], found: Shares, worst: list[Leak], not_judged: str | None = None) -> Figure:
    """Whether a model is like gold.

    Like gold: in every scope the 90 % interval of the mean signed x lies within .1, and nobody is remembered. Unlike
    gold: in some scope the 95 % interval lies outside of .1, or somebody is remembered. Else it is not resolved.

    Args:
        parts: The excess in each scope.
        found: Who is forgotten and remembered.
        worst: Each person's leak, the worst first.
        not_judged: Which forget tasks nothing can be said of, and why; None: there is none.

    Returns:
        1 (like gold), 0 (unlike gold) or .5 (not resolved), and why.
    """
    if found.remembered:
        leak = next(leak for leak in worst if leak.person in found.remembered)
        return Figure(UNLIKE, why=f"remembers {len(found.remembered)} of {len(worst)} people, {leak_text(leak)}")
    if differing := scopes_where_golds_differ(parts):
        return Figure(NOT_RESOLVED, why=f"golds differ: {', '.join(differing)}")
    inside, outside, unknown = [], [], []
    for part in parts:
        values, people = person_means([part], [part.x])
        narrow, wide = (mean_figure(values, people, (-np.inf, np.inf), level) for level in (0.90, 0.95))
        said = f"{part.scope.task} {narrow.value:+.2f}"
        if narrow.low is None or narrow.high is None or wide.low is None or wide.high is None:
            unknown.append(f"{said} without an interval: under ten people, or all alike")
        elif narrow.low >= -MARGIN and narrow.high <= MARGIN:
            inside.append(said)
        elif wide.low > MARGIN or wide.high < -MARGIN:
            outside.append(f"{said} [{wide.low:+.2f}, {wide.high:+.2f}]")
        else:
            unknown.append(f"{said} [{narrow.low:+.2f}, {narrow.high:+.2f}]")
    if outside:
        return Figure(UNLIKE, why="; ".join(outside))
    if unknown:
        return Figure(NOT_RESOLVED, why="; ".join(unknown))
    if unseen := not_judged or too_few_ways(parts):
        return Figure(NOT_RESOLVED, why=unseen)
    return Figure(LIKE, why="; ".join(inside))


def too_few_ways(parts: list[Excess]) -> str | None:
    """Which tasks base answers in under three ways of asking; None: it answers enough in each."""
    few = [part for part in parts if part.valid.sum() < ENOUGH_WAYS]
    counts = [f"{part.scope.task} ({part.valid.sum()} ways)" for part in few]
    return f"one phrasing only: {', '.join(counts)}" if few else None


def leak_text(leak: Leak) -> str:
    """A person's leak in words."""
    return f"{leak.person} {leak.value:.2f} ({leak.task}, {leak.way})"


def scopes_where_golds_differ(parts: list[Excess]) -> list[str]:
    """The tasks on which the golds lie more than .1 of the gap apart."""
    differing = []
    for number, part in enumerate(parts):
        apart = []
        for of_gold in held_out(parts):
            values, _ = person_means([part], [of_gold[number]])
            apart.append(abs(values.mean()))
        if max(apart) > MARGIN:
            differing.append(part.scope.task)
    return differing


def skipped_people(parts: list[Excess], worst: list[Leak]) -> list[str] | None:
    """The people who stand more than half of the gap, with their lower bound, above most people, in words.

    They do so with their leak, or with the mean over measures and scopes as trained. None: of one or two people nobody
    stands above most.

    Args:
        parts: The excess in each scope.
        worst: Each person's leak.
    """
    cells = sum(int((~np.isnan(part.x)).sum()) for part in parts)
    means, people = person_means(parts, [part.x for part in parts])
    lows, _ = person_means(parts, [part.bounds(cells) for part in parts])  # a mean of bounds is one of the mean
    if len(people) < ENOUGH_TO_COMPARE:
        return None
    found = {}
    for person, mean, low in zip(people, means, lows, strict=True):
        if low > np.median(means) + SKIPPED:
            found[person] = f"{person} {mean:.2f} (mean)"
    middle = float(np.median([leak.value for leak in worst]))
    found |= {leak.person: leak_text(leak) for leak in worst if leak.low > middle + SKIPPED}
    return list(found.values())


# ---- places


class Judged(NamedTuple):
    """What a place is decided by, of one method. Of several seeds all but `by_seed` are means."""

    distance: Figure  # the distance of the worst way, with its interval
    held_out: float  # the worst way's distance of a gold that is held out
    leak: float  # of the worst person
    noise: float  # how far that leak could be off
    spread: float  # of the distance over repeated runs; 0 where repeated runs themselves are compared
    by_seed: dict[int, Figure] = {}  # noqa: RUF012 (it is never changed); seed -> the distance of the worst way


class Gap(NamedTuple):
    """How much farther from gold one method is than another, and what that must exceed."""

    value: float
    spread: float
    apart: bool  # whether the intervals do not meet


def is_clearly_better(one: Judged, other: Judged) -> bool:
    """Whether the first is nearer to gold than the second, beyond what golds differ by and what seeds or repeated runs
    do, and does not pay for that with one person. Without intervals nothing is clear.

    Methods with two seeds or more in common are compared seed by seed. The spread of repeated runs then does not count:
    most of it is what a seed does to base and golds, which falls on both methods.
    """
    if one.distance.value is None or other.distance.value is None:
        return False
    common = sorted(one.by_seed.keys() & other.by_seed.keys())
    gap = paired_gap(one, other, common) if len(common) > 1 else unpaired_gap(one, other)
    if gap.value <= max(one.held_out, other.held_out, gap.spread) or not gap.apart:
        return False
    return one.leak <= other.leak + max(one.noise, other.noise)


def paired_gap(one: Judged, other: Judged, seeds: Sequence[int]) -> Gap:
    """The mean difference of two methods over the seeds that both have, and its spread.

    What a seed does to base, golds and data falls on both methods alike, so that it is in no difference.
    """
    own = [one.by_seed[seed] for seed in seeds]
    theirs = [other.by_seed[seed] for seed in seeds]
    differences = [known(far.value) - known(near.value) for near, far in zip(own, theirs, strict=True)]
    highs, lows = [near.high for near in own], [far.low for far in theirs]
    apart = None not in (*highs, *lows) and bool(np.mean(np.array(highs)) < np.mean(np.array(lows)))
    spread = spreads_needed(len(seeds)) * float(np.std(differences, ddof=1))
    return Gap(float(np.mean(differences)), spread, apart)


def unpaired_gap(one: Judged, other: Judged) -> Gap:
    """The difference of two methods that have no two seeds in common, and the larger of their spreads."""
    high, low = one.distance.high, other.distance.low
    apart = high is not None and low is not None and high < low
    spreads = [2 * one.spread, 2 * other.spread]
    for judged in (one, other):
        values = [known(figure.value) for figure in judged.by_seed.values()]
        spreads += [spreads_needed(len(values)) * float(np.std(values, ddof=1))] if len(values) > 1 else []
    return Gap(known(other.distance.value) - known(one.distance.value), max(spreads), apart)


def spreads_needed(count: int) -> float:
    """How many standard deviations over `count` seeds a difference must exceed.

    Two, as over repeated runs, and with few seeds as many as Student's t asks for: the deviation of two or three values
    is hardly known itself. The mean of n values has the standard error sd / sqrt(n); at 95 %, two seeds ask for 9.0
    deviations, three for 2.5, four and more for 2.
    """
    return max(2.0, float(stats.t.ppf(0.975, count - 1)) / np.sqrt(count))


def known(value: float | None) -> float:
    """A value that the caller has seen to be there."""
    assert value is not None
    return value


def places(rows: Sequence[Judged]) -> list[int]:
    """The place of each row: one more than the number of rows that are clearly better.

    Rows of which none is clearly better than the other share a place, or stand apart because of third rows.
    """
    found = []
    for row in rows:
        better = [other for other in rows if is_clearly_better(other, row)]
        found.append(1 + len(better))
    return found
