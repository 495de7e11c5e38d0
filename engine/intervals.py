"""Intervals over people: how far a figure would move if other people of the same kind had been asked."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 1000
MIN_PEOPLE = 10  # fewer give no interval
STEP = 1e-6  # of a mean, for the figure's derivative
LEAST_SPREAD = 0.25  # of a draw's standard error, as a share of the figure's own


class Rows(NamedTuple):
    """The rows of one mean that a figure is made of."""

    values: np.ndarray  # (n,)
    people: Sequence[str]  # whom each row is about, n entries


Statistic = Callable[[np.ndarray], np.ndarray]  # means (..., K) -> figure (...)


def bootstrap_t(
    rows: Sequence[Rows], statistic: Statistic, *, bounds: tuple[float, float], level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Studentised bootstrap interval of a figure that is a function of means over rows.

    People are drawn with replacement, and a person brings all of their rows to every mean. The figure of each draw is
    measured in its own standard error, which the delta method gives: each person's share in the means, times the
    figure's derivative. A draw of people who are nearly alike has nearly no standard error; it counts with a quarter of
    the figure's own.

    Args:
        rows: The rows of each of the K means; the people of all of them together are drawn.
        statistic: K means (..., K) -> the figure (...), differentiable almost everywhere.
        bounds: Smallest and largest possible value of the figure.
        level: Share of intervals that should hold the true figure, in (0, 1).
        seed: Of the draws. The result depends on the set of names, not on their order.

    Returns:
        Lower and upper end, within `bounds`. None with fewer than 10 people, and where all people are alike: then
            nothing says how others would differ.

    Source: Efron (1982), The Jackknife, the Bootstrap and Other Resampling Plans, chapter 10; Hall (1988),
    https://doi.org/10.1214/aos/1176350933.
    """
    sums, counts = person_sums(rows)
    people = len(sums)
    if people < MIN_PEOPLE:
        return None
    drawn = draws_of_people(people, seed)
    drawn = drawn[(drawn @ counts > 0).all(axis=1)]  # a draw may hold nobody of a task
    (value,), (spread,) = estimate(np.ones((1, people)), sums, counts, statistic)
    if not spread > 0:
        return None
    values, spreads = estimate(drawn, sums, counts, statistic)
    standardised = (values - value) / np.maximum(spreads, LEAST_SPREAD * spread)
    standardised = standardised[np.isfinite(standardised)]
    low, high = np.quantile(standardised, [(1 - level) / 2, (1 + level) / 2])
    ends = np.clip([value - high * spread, value - low * spread], *bounds)
    return float(ends[0]), float(ends[1])


@functools.lru_cache(maxsize=8)
def draws_of_people(people: int, seed: int) -> np.ndarray:
    """How often each of `people` is drawn with replacement, (DRAWS, people); kept for the next figure."""
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=DRAWS).astype(float)
    drawn.flags.writeable = False
    return drawn


def person_sums(rows: Sequence[Rows]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of the rows of each person in each mean, both (P, K); people in order of names."""
    names = np.unique(np.concatenate([np.asarray(each.people, dtype=str) for each in rows]))
    sums = np.zeros((len(names), len(rows)))
    counts = np.zeros_like(sums)
    for number, each in enumerate(rows):
        who = np.searchsorted(names, np.asarray(each.people, dtype=str))
        np.add.at(sums[:, number], who, each.values)
        np.add.at(counts[:, number], who, 1)
    return sums, counts


def estimate(
    drawn: np.ndarray, sums: np.ndarray, counts: np.ndarray, statistic: Statistic
) -> tuple[np.ndarray, np.ndarray]:
    """The figure and its standard error for each draw.

    Args:
        drawn: How often each person counts, (D, P).
        sums: From `person_sums`, (P, K).
        counts: From `person_sums`, (P, K).
        statistic: As for `bootstrap_t`.

    Returns:
        Two arrays (D,).
    """
    people = len(sums)
    totals = drawn @ counts  # (D, K) rows
    means = (drawn @ sums) / totals
    values = statistic(means)
    slopes = np.empty_like(means)
    for k in range(means.shape[1]):
        moved = means.copy()
        moved[:, k] += STEP
        slopes[:, k] = (statistic(moved) - values) / STEP
    slopes *= people / totals
    influences = slopes @ sums.T - (slopes * means) @ counts.T  # (D, P) of each person; they sum to 0 over a draw
    variances = (drawn * influences**2).sum(axis=1) / (people * (people - 1))
    return values, np.sqrt(variances)


# ---- for figures that are no function of means


def bootstrap_counts(people: Sequence | np.ndarray, draws: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """How often each person is drawn when as many people as there are get drawn with replacement.

    Args:
        people: names, in any order and any number of times; P of them differ.
        draws: number of bootstrap draws.
        seed: of the draws. The result depends on the set of names, not on their order.

    Returns:
        Name -> (draws,) whole numbers. They sum to P in each draw.
    """
    names = np.unique(np.asarray(people, dtype=str))
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return {str(name): counts[:, i] for i, name in enumerate(names)}


def bootstrap_weights(people: np.ndarray, pairs: np.ndarray, draws: int) -> Iterator[np.ndarray]:
    """How often each row counts when people, and pairs of attacked models, are drawn with replacement.

    Args:
        people: each row's person, (n,).
        pairs: each row's pair of attacked models, (n,).
        draws: number of bootstrap draws.

    Yields:
        Of each draw how often each row counts, (n,): as often as its person times as often as its pair.
    """
    names, person = np.unique(people, return_inverse=True)
    counts = bootstrap_counts(people, draws)
    people_counts = np.stack([counts[str(name)] for name in names])  # (people, draws)
    pair = np.unique(pairs, return_inverse=True)[1]
    total = pair.max() + 1
    pair_counts = np.random.default_rng(1).multinomial(total, np.full(total, 1 / total), size=draws)  # (draws, pairs)
    for i in range(draws):
        yield people_counts[person, i] * pair_counts[i, pair].astype(float)


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a figure's bootstrap draws.

    Args:
        draws: (draws,); NaN does not count.
        level: share of the draws inside, in (0, 1).

    Returns:
        Lower and upper end.
    """
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
