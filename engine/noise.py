"""How far golds are from one another, answer by answer: the noise that a judged model is measured in."""

from typing import NamedTuple

import numpy as np

ROUNDING = 1e-9  # of the gap; golds that are nearer agree


class Noise(NamedTuple):
    """How far a model that is like the golds would be from their mean, in units of the gap.

    A scale of 0 says that the golds agree exactly in a measure.
    """

    of_measure: np.ndarray  # (K,) root mean square over people and ways
    scale: np.ndarray  # (P, W, K) of each answer
    dof: np.ndarray  # (P, W, K) degrees of freedom that the scale is known with


def golds_noise(golds: np.ndarray) -> Noise:
    """How far another gold would be from the mean of these, estimated from their differences.

    s of a measure is the root mean square over people and ways of (gold1 - gold2) * sqrt(3/4): a difference of two
    golds has twice the variance of a gold, and a third gold's difference from the mean of both 3/2 of it. For G golds
    it is their sample variance times 1 + 1/G.

    Some ways and some people may be noisier than others, and single answers may have heavy tails. Three times, the
    mean squares of groups (of ways, of people, of single answers) are set against what equal noise would give; the
    excess is their prior's degrees of freedom, and each group's variance is squeezed towards the common one by it. One
    pooled s for all called a third gold remembered in up to half of the simulated worlds with such noise.

    Args:
        golds: In units of the gap, (G, P, W, K), G at least 2; NaN where there is no answer.

    Source: the protocol for s; Smyth (2004), https://doi.org/10.2202/1544-6115.1027, for the squeezed variances, here
    by moments of the mean squares. Simulated in tests/engine/test_leaks_simulated.py.
    """
    each = len(golds) - 1  # degrees of freedom of an answer
    squares = golds.var(axis=0, ddof=1) * (1 + 1 / len(golds))
    of_measure = np.sqrt(known_mean(squares, axis=(0, 1)))
    of_measure = np.where(of_measure < ROUNDING, 0, of_measure)
    ratios = squares / np.where(of_measure > 0, of_measure, np.nan) ** 2  # of variances, 1 on average
    of_ways, dof_ways = squeezed(ratios, axis=0, each=each)
    left = ratios / of_ways
    of_people, dof_people = squeezed(left, axis=1, each=each)
    known = ~np.isnan(squares)
    people, cells = known.any(axis=(1, 2)).sum(), known.sum(axis=(0, 1))
    dof = np.minimum(dof_ways, dof_people)
    dof = np.minimum(dof, prior_dof(left, np.full_like(left, each)))
    dof = np.minimum(dof, each * np.minimum(2 * people, cells))  # ways are correlated
    scale = np.where(of_measure > 0, of_measure * np.sqrt(of_ways * of_people), of_measure)
    return Noise(of_measure, scale, np.broadcast_to(dof, scale.shape))


def squeezed(ratios: np.ndarray, *, axis: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Variance ratios of groups, squeezed towards their mean, and the degrees of freedom that they are known with.

    Args:
        ratios: Of answers, (P, W, K).
        axis: Which a group runs over: 0 for groups of ways, 1 for groups of people.
        each: Degrees of freedom of an answer.

    Returns:
        Two arrays like `ratios` with length 1 along `axis`.
    """
    own_dof = each * (~np.isnan(ratios)).sum(axis=axis, keepdims=True).astype(float)
    own = known_mean(ratios, axis=axis, keepdims=True)
    prior = prior_dof(own, own_dof)
    common = known_mean(own, axis=None)
    share = own_dof / (prior + own_dof)  # 0 where the prior is sure
    return common + share * (own - common), prior + own_dof


def prior_dof(squares: np.ndarray, dof: np.ndarray) -> float:
    """How alike the variances of groups are, as the degrees of freedom of their common prior.

    With variances from a scaled inverse chi-square of d degrees of freedom, whose squared coefficient of variation is
    2 / (d - 4), a mean square of n degrees of freedom has 1 + v = (1 + 2/n) (1 + 2/(d - 4)). v is taken one standard
    error above its estimate: few groups say little, and noise that is taken for even accuses honest golds.

    Args:
        squares: Mean squares of groups, any shape; NaN does not count.
        dof: Degrees of freedom of each, of the same shape.

    Returns:
        d, above 4; infinity where the groups differ no more than by chance.
    """
    known = ~np.isnan(squares)
    values = squares[known]
    if len(values) < 2 or not values.mean() > 0:
        return np.inf
    distances = (values / values.mean() - 1) ** 2
    spread = distances.sum() / (len(values) - 1) + distances.std() / np.sqrt(len(values))
    by_chance = (2 / dof[known]).mean()
    excess = (spread - by_chance) / (1 + by_chance)
    return float(4 + 2 / excess) if excess > 0 else np.inf


def known_mean(values: np.ndarray, axis: int | tuple[int, ...] | None, *, keepdims: bool = False) -> np.ndarray:
    """Mean of the values that are no NaN; NaN where there is none."""
    known = ~np.isnan(values)
    counts = known.sum(axis=axis, keepdims=keepdims)
    sums = np.where(known, values, 0).sum(axis=axis, keepdims=keepdims)
    return np.asarray(sums / np.where(counts > 0, counts, np.nan))
