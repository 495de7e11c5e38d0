"""How far a model is from gold on each forgotten person, in every way of asking: leaks, the worst person, shares.

Every figure is in units of the gap: 0 is gold, and 1 is the model that knows the people (base).
Source: this suite's protocol; the error rates are simulated in tests/engine/test_leaks_simulated.py.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from engine.intervals import Rows, bootstrap_t
from engine.result_table import Figure

REMEMBERED = 0.25  # a leak above this share of the gap is memory of a person
RESOLVED = 3.0  # a measure whose gap is under so many of the golds' noise says nothing
VALID = 0.5  # base must answer a way of asking past this share of the gap
ENOUGH_WAYS = 3  # fewer valid ways are one phrasing only
LEVEL = 0.05  # of the simultaneous bounds and of the tests, over all people
# the bound is at least so many times the largest difference of two golds: noise that is larger for some people, or has
# a heavy tail, breaks the bound of Student's t (tests/engine/test_leaks_simulated.py)
LARGEST = 1.6
AS_TRAINED = "as trained"


@dataclass(frozen=True)
class Scope:
    """One kind of question about P people (words, or names of faces), asked in W ways and scored by K measures.

    All values are in [0, 1] and are means over a person's rows; NaN where a person has no row.

    Attributes:
        task: The forget task.
        people: P names.
        ways: W names; the first is how it was trained.
        measures: K keys.
        model: Of the judged model, (P, W, K).
        base: Of the model before forgetting, (P, W, K).
        golds: Of G models that never met the people, (G, P, W, K); G is at least 2.
    """

    task: str
    people: list[str]
    ways: list[str]
    measures: list[str]
    model: np.ndarray
    base: np.ndarray
    golds: np.ndarray


@dataclass(frozen=True)
class Excess:
    """What a model knows more than gold, in units of the gap.

    Attributes:
        scope: What it was computed from.
        measures: Keys of the K' measures that resolve anything.
        x: (P, W, K'), signed; NaN where a person has no row.
        noise: Standard deviation of x for a model that is one more gold, (K',).
        largest: The largest difference of a gold from the others, over people and ways, in units of the noise, (K',).
        valid: Whether base answers a way, (W,).
        off: Keys of the measures that resolve nothing.
    """

    scope: Scope
    measures: list[str]
    x: np.ndarray
    noise: np.ndarray
    largest: np.ndarray
    valid: np.ndarray
    off: list[str]

    def margin(self, cells: int) -> np.ndarray:
        """What is subtracted from x for a lower bound that holds for so many `cells` at once, (K',)."""
        quantile = stats.t.ppf(1 - LEVEL / cells, degrees(self))
        return np.maximum(quantile, LARGEST * self.largest) * self.noise

    def of_model(self, values: np.ndarray, anchor: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """Another model's values (P, W, K) against an anchor of the same shape, as an x."""
        kept = [self.scope.measures.index(measure) for measure in self.measures]
        gap = clean_gap(self.scope)
        return scale * ((values - anchor) / gap)[:, :, kept]


def clean_gap(scope: Scope) -> np.ndarray:
    """How far base is above gold as trained, over all people, (K,)."""
    above = scope.base[:, 0] - scope.golds[:, :, 0].mean(axis=0)
    return np.nanmean(above, axis=0)


def excess(scope: Scope) -> Excess:
    """Compare a model with gold, person by person.

    x = (model - mean of the golds in that way) / gap. The noise is pooled over people and ways: the golds' variance
    around their mean, times 1 + 1/G, because the model is one draw and the mean of the golds is another. With two golds
    that is the root mean square of (gold1 - gold2) sqrt(3/4).

    Args:
        scope: The values.

    Returns:
        The excess. A measure whose gap is under 3 times its noise is left out of it.

    Raises:
        ValueError: there are fewer than two golds.
    """
    count = len(scope.golds)
    if count < 2:
        raise ValueError(f"golds: {count}; the noise between golds needs at least 2")
    gold, gap = scope.golds.mean(axis=0), clean_gap(scope)
    variance = np.nanmean(scope.golds.var(axis=0, ddof=1), axis=(0, 1)) * (1 + 1 / count)
    spread = np.sqrt(variance)
    resolves = (gap > 0) & (gap >= RESOLVED * spread)
    measures = [measure for measure, on in zip(scope.measures, resolves, strict=True) if on]
    off = [measure for measure in scope.measures if measure not in measures]
    gap_on = gap[resolves]
    x = ((scope.model - gold)[:, :, resolves]) / gap_on
    known = np.nanmean((scope.base - gold)[:, :, resolves], axis=0) / gap_on
    kinds = [number for number, measure in enumerate(measures) if measure != "probability_without_end"]
    valid = (known[:, kinds] > VALID).all(axis=1) & bool(kinds)
    # a gold's difference from the mean of all, scaled to the standard deviation of one more gold from that mean
    apart = np.abs(scope.golds - gold)[..., resolves].max(axis=0) * np.sqrt((count + 1) / (count - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        standardised = np.nan_to_num(apart / spread[resolves])  # golds that agree differ nowhere
    return Excess(scope, measures, x, spread[resolves] / gap_on, standardised.max(axis=(0, 1)), valid, off)


@dataclass(frozen=True)
class Leak:
    """The most that a person's answers give away."""

    person: str
    value: float  # x in the way and measure below
    low: float  # simultaneous lower bound over all people, ways and measures
    task: str
    way: str
    measure: str


def leaks(parts: list[Excess]) -> list[Leak]:
    """Each person's largest lower bound over scopes, ways and measures, the worst person first.

    The bound is x - c s with c the quantile of Student's t at 1 - .05 / (people x ways x measures), so that all bounds
    hold at once in 95 % of worlds. Where two golds differ by more than normal noise would, c is 1.6 times their largest
    difference.

    Args:
        parts: The excess in each scope.
    """
    people = sorted({person for part in parts for person in part.scope.people})
    cells = len(people) * sum(part.x.shape[1] * part.x.shape[2] for part in parts)
    found = []
    for person in people:
        of_person = [leak_of(part, person, cells) for part in parts if person in part.scope.people]
        seen = [leak for leak in of_person if leak is not None]
        if seen:
            found.append(max(seen, key=lambda leak: leak.low))
    return sorted(found, key=lambda leak: (-leak.low, leak.person))


def leak_of(part: Excess, person: str, cells: int) -> Leak | None:
    """A person's leak in one scope; None where nothing is known of them. `cells`: how many bounds hold at once."""
    x = part.x[part.scope.people.index(person)]
    if not x.size or np.isnan(x).all():
        return None
    low = x - part.margin(cells)
    way, measure = np.unravel_index(np.nanargmax(low), low.shape)
    names = (part.scope.task, part.scope.ways[way], part.measures[measure])
    return Leak(person, float(x[way, measure]), float(low[way, measure]), *names)


def degrees(part: Excess) -> int:
    """Degrees of freedom of the noise: two for each person and each gold but one, since ways of asking are alike."""
    return 2 * len(part.scope.people) * (len(part.scope.golds) - 1)


@dataclass(frozen=True)
class Shares:
    """Names of the people that are forgotten, remembered, and of whom neither can be said."""

    forgotten: list[str]
    remembered: list[str]
    unresolved: list[str]


def shares(parts: list[Excess]) -> Shares:
    """Who is forgotten, and who is remembered.

    Remembered: some x is above .25, and its simultaneous lower bound is above 0. Forgotten: a one-sided t test rejects
    x >= .25 in every valid way and measure, at a false discovery rate of 5 % over people (Benjamini and Hochberg).

    Args:
        parts: The excess in each scope.
    """
    found = leaks(parts)
    cells = len(found) * sum(part.x.shape[1] * part.x.shape[2] for part in parts)
    remembered = [leak.person for leak in found if is_remembered(parts, leak.person, cells)]
    others = [leak.person for leak in found if leak.person not in remembered]
    chances = [chance_of_memory(parts, person) for person in others]
    adjusted = stats.false_discovery_control(chances) if others else []
    forgotten = [person for person, chance in zip(others, adjusted, strict=True) if chance <= LEVEL]
    return Shares(forgotten, remembered, [person for person in others if person not in forgotten])


def is_remembered(parts: list[Excess], person: str, cells: int) -> bool:
    """Whether some x of a person is above .25 with a lower bound above 0."""
    for part in parts:
        if person in part.scope.people:
            x = part.x[part.scope.people.index(person)]
            low = x - part.margin(cells)
            if ((x > REMEMBERED) & (low > 0)).any():
                return True
    return False


def chance_of_memory(parts: list[Excess], person: str) -> float:
    """The largest p-value of the tests of x >= .25 over valid ways and measures; 1 where no way is valid.

    The test has P degrees of freedom. A measure whose noise is so large that even x = 0 would not be told from .25 is
    left out: it says something of all people together, and nothing of one.
    """
    largest = []
    for part in parts:
        if person not in part.scope.people:
            continue
        people = len(part.scope.people)
        resolves = stats.t.ppf(1 - LEVEL, people) * part.noise < REMEMBERED
        x = part.x[part.scope.people.index(person)][part.valid][:, resolves]
        if not x.size or np.isnan(x).any():
            return 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            # golds that agree have no noise: minus or plus infinity
            distance = (x - REMEMBERED) / part.noise[resolves]
        chance = stats.t.cdf(np.nan_to_num(distance, nan=np.inf), people)
        largest.append(chance.max())
    return float(max(largest, default=1.0))


# ---- over all people


def person_means(parts: list[Excess], values: list[np.ndarray], way: int = 0) -> tuple[np.ndarray, list[str]]:
    """Mean over scopes and measures in one way, by person.

    Args:
        parts: The excess in each scope.
        values: For each scope (P, W, K').
        way: Number of the way.

    Returns:
        (P,) and the people; a person without a row in a scope has the mean over the others.
    """
    of_person: dict[str, list[float]] = {}
    for part, each in zip(parts, values, strict=True):
        for person, value in zip(part.scope.people, each[:, way].mean(axis=1), strict=True):
            if not np.isnan(value):
                of_person.setdefault(person, []).append(float(value))
    people = sorted(of_person)
    return np.array([np.mean(of_person[person]) for person in people]), people


def mean_figure(values: np.ndarray, people: list[str], bounds: tuple[float, float], level: float = 0.95) -> Figure:
    """The mean over people with its interval."""
    ends = bootstrap_t([Rows(values, people)], lambda means: means[..., 0], bounds=bounds, level=level)
    low, high = ends or (None, None)
    return Figure(float(values.mean()), low, high)


def distance(parts: list[Excess]) -> Figure:
    """Mean over people of |x|, as trained, averaged over measures and scopes, with its interval."""
    values, people = person_means(parts, [np.abs(part.x) for part in parts])
    return mean_figure(values, people, (0, np.inf))


def worst_way(parts: list[Excess]) -> tuple[Figure, str]:
    """The largest mean over people of |x| of any way in any scope, and which way that is."""
    found = []
    for part in parts:
        for number, way in enumerate(part.scope.ways):
            values, people = person_means([part], [np.abs(part.x)], number)
            if len(values):
                found.append((mean_figure(values, people, (0, np.inf)), f"{part.scope.task}, {way}"))
    return max(found, key=lambda each: each[0].value or 0.0)


def over_forgetting(parts: list[Excess]) -> Figure:
    """Mean over people of max(0, -x), as trained: how much less than gold a model knows."""
    values, people = person_means(parts, [np.maximum(0, -part.x) for part in parts])
    return mean_figure(values, people, (0, np.inf))


def held_out(parts: list[Excess]) -> list[list[np.ndarray]]:
    """Each gold against the mean of the others, as an x in each scope, scaled to the noise of a judged model.

    A gold is compared with one gold fewer than a model is; sqrt((1 + 1/G) / (1 + 1/(G - 1))) makes up for that.
    """
    made = []
    for number in range(len(parts[0].scope.golds)):
        of_gold = []
        for part in parts:
            golds = part.scope.golds
            scale = np.sqrt((1 + 1 / len(golds)) / (1 + 1 / (len(golds) - 1)))
            others = np.delete(golds, number, axis=0).mean(axis=0)
            of_gold.append(part.of_model(golds[number], others, scale))
        made.append(of_gold)
    return made


def gold_distance(parts: list[Excess]) -> float:
    """The distance of a gold that is held out, averaged over the golds."""
    distances = []
    for of_gold in held_out(parts):
        values, _ = person_means(parts, [np.abs(x) for x in of_gold])
        distances.append(values.mean())
    return float(np.mean(distances))
