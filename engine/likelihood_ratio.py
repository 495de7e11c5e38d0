"""Membership by a likelihood ratio over shadow models, and how well such an attack does: numbers in, number out.

Shapes: M shadow models, T target models, Q queries (of faces, or people). A membership score is what an attack says: it
is larger for what looks learned. `member` says what was learned.
Sources: U-LiRA (Hayes et al., arXiv 2403.01218; Carlini et al., arXiv 2112.03570).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.intervals import MIN_PEOPLE, bootstrap_weights, percentile_interval
from engine.metrics import membership_auc, membership_tpr

LEAST_SPREAD = 1e-3  # of a query over models: with no spread at all any difference would be certainty
LEAST_SHADOWS = 2  # models on each side of a query
NORMAL_MAD = 1.4826  # the standard deviation of a normal distribution over its median absolute deviation


def robust_normal(logits: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Location and spread of each query's values over some of the models.

    Args:
        logits: the values, logits or losses, (M, Q).
        chosen: which models count for which query, bool (M, Q).

    Returns:
        The median and the scaled median absolute deviation, each (Q,).

    Raises:
        ValueError: fewer than LEAST_SHADOWS models are chosen for a query.
    """
    if (few := chosen.sum(0)).min() < LEAST_SHADOWS:
        raise ValueError(f"a query has {few.min()} shadow models on one side; at least {LEAST_SHADOWS} are needed")
    picked = np.where(chosen, logits, np.nan)
    location = median(picked)
    return location, np.maximum(NORMAL_MAD * median(np.abs(picked - location)), LEAST_SPREAD)


def median(values: np.ndarray) -> np.ndarray:
    """Median over the first axis without NaN, (Q,), as NumPy's nanmedian gives it and ten times as fast."""
    ordered, last = np.sort(values, axis=0), (~np.isnan(values)).sum(0) - 1  # NaN comes last
    middle = np.take_along_axis(ordered, np.stack([last // 2, (last + 1) // 2]), axis=0)
    return (middle[0] + middle[1]) / 2


def likelihood_ratio(
    shadow: np.ndarray,
    learned: np.ndarray,
    target: np.ndarray,
    never: np.ndarray | None = None,
    *,
    one_spread: bool = False,
) -> np.ndarray:
    """U-LiRA: how much likelier a target's value is of a model that met the query's person than of one that did not.

    Args:
        shadow: values of the shadow models, (M, Q): logits, or losses.
        learned: which of them learned (and forgot) the query's person, bool (M, Q).
        target: values of the targets, (T, Q).
        never: which shadow models never met the query's person, bool (M, Q); None: all that did not learn them.
        one_spread: whether all queries share the median of their spreads, on each side. With few shadow models the
            spread of each is noise (Carlini et al., section VI-A).

    Returns:
        Logarithms of the ratio, (T, Q); above 0: learned.
    """
    location_in, spread_in = robust_normal(shadow, learned)
    location_out, spread_out = robust_normal(shadow, ~learned if never is None else never)
    if one_spread:
        spread_in, spread_out = np.median(spread_in), np.median(spread_out)
    return log_normal(target, location_in, spread_in) - log_normal(target, location_out, spread_out)


def log_normal(x: np.ndarray, location: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Logarithm of the normal density without its constant."""
    return -np.log(spread) - ((x - location) / spread) ** 2 / 2


# ---- how well an attack does


def attack_auc(membership_score: np.ndarray, member: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Share of (member, other) pairs whose member has the larger score, ties by half; .5: the attack knows nothing.

    `membership_score` (n,), `member` bool (n,), `weights` (n,): how often each row counts; None: once.
    """
    parts = None if weights is None else (weights[member], weights[~member])
    return membership_auc(membership_score[member], membership_score[~member], parts)


def attack_tpr(
    membership_score: np.ndarray, member: np.ndarray, rate: float, weights: np.ndarray | None = None
) -> float | None:
    """Share of the members that score above all but a share `rate` of the others; arguments as those of `attack_auc`.

    None: fewer than 10 / rate others cannot resolve it.
    """
    parts = None if weights is None else (weights[member], weights[~member])
    return membership_tpr(membership_score[member], membership_score[~member], rate, parts)


@dataclass(frozen=True)
class Figure:
    """One figure of an attack with its 95 % interval over people and pairs of attacked models.

    None where one cannot be known; `why` says so.
    """

    value: float | None
    low: float | None
    high: float | None
    why: str = ""


def with_interval(
    figure: Callable[..., float | None],
    membership_score: np.ndarray,
    member: np.ndarray,
    people: np.ndarray,
    pairs: np.ndarray,
    *,
    draws: int = 400,
) -> Figure:
    """A figure and its interval when as many people, and as many pairs of attacked models, are drawn with replacement.

    A row counts as often as its person times as often as its pair: the pigeonhole bootstrap (Owen, arXiv 0712.1111),
    whose intervals are too wide rather than too narrow. Pairs, since two models that met opposite halves of the people
    belong together. Fewer than MIN_PEOPLE people have no interval.

    Args:
        figure: `figure(membership_score, member, weights)`.
        membership_score: (n,).
        member: bool (n,).
        people: each row's person, (n,).
        pairs: each row's pair of attacked models, (n,).
        draws: number of draws.
    """
    value = figure(membership_score, member)
    if value is None:
        others = (~member).sum()
        return Figure(None, None, None, f"not resolvable with {others} scores of people who were not met")
    count = len(np.unique(people))
    if count < MIN_PEOPLE:
        return Figure(value, None, None, f"no interval with {count} people")
    values = []
    for weights in bootstrap_weights(people, pairs, draws):
        if weights[member].any() and weights[~member].any():
            values.append(figure(membership_score, member, weights))
    return Figure(value, *percentile_interval(np.array(values)))
