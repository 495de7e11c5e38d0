"""Many models made to forget against many that were retrained without the forgotten: numbers in, number out.

Shapes: N models that forgot, G retrained models, M models of an attack in pairs (2k and 2k + 1 met opposite halves of
the people), Q queries, P people.
Sources: KLOM (Georgiev et al., arXiv 2410.23232, with the bins of EasyDUB's released code); per-example epsilon of
unlearning (Triantafillou et al., arXiv 2406.09073) with the bounds of Jagielski et al. (arXiv 2006.07709).
"""

import numpy as np
from scipy.special import logsumexp, xlogy
from scipy.stats import beta

from engine.likelihood_ratio import likelihood_ratio

KLOM_BINS = 20
KLOM_MOST = 100.0  # margins are clipped to as much on either side
KLOM_LEAST = 1e-5  # what an empty bin of the retrained models counts
DELTA = 1e-5  # of (epsilon, delta)


# ---- KLOM


def margin(logits: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """How far the right answer's logit is above the others': z_c - log sum of exp(z_j) over j != c.

    Args:
        logits: (..., Q, C).
        answer: the place of each query's right answer, (Q,).

    Returns:
        Log odds of the right answer, (..., Q).
    """
    queries = np.arange(len(answer))
    others = logits.copy()
    others[..., queries, answer] = -np.inf
    return logits[..., queries, answer] - logsumexp(others, axis=-1)


def klom(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """KL divergence of a query's margins over models that forgot from those over retrained models.

    Both are counted in KLOM_BINS equal bins between the smallest and the largest of all margins. A bin that holds no
    retrained model counts KLOM_LEAST. Released code leaves the largest margin of all out, which lies on the last bin's
    edge; here it counts.

    Args:
        unlearned: margins (N, Q); NaN: the model does not count for the query.
        retrained: margins (G, Q); so does NaN here.

    Returns:
        Nats, 0 or more, (Q,).
    """
    p, q = bin_shares(*(np.clip(margins, -KLOM_MOST, KLOM_MOST) for margins in (unlearned, retrained)))
    q = np.where(p > 0, np.maximum(q, KLOM_LEAST), q)
    q /= q.sum(1, keepdims=True)
    return (xlogy(p, p) - xlogy(p, np.where(p > 0, q, 1.0))).sum(1)


def bin_shares(one: np.ndarray, two: np.ndarray) -> list[np.ndarray]:
    """Of each query the shares of `one` (N, Q) and of `two` (G, Q) in equal bins over both, each (Q, KLOM_BINS)."""
    low = np.fmin(np.nanmin(one, axis=0), np.nanmin(two, axis=0))
    width = np.fmax(np.nanmax(one, axis=0), np.nanmax(two, axis=0)) - low
    queries, shares = one.shape[1], []
    for margins in (one, two):
        counted = ~np.isnan(margins)
        places = (margins - low) / np.where(width > 0, width, 1.0) * KLOM_BINS
        bins = np.minimum(np.where(counted, places, 0.0).astype(int), KLOM_BINS - 1) + np.arange(queries) * KLOM_BINS
        counts = np.bincount(bins[counted], minlength=queries * KLOM_BINS).reshape(queries, KLOM_BINS)
        shares.append(counts / counted.sum(0)[:, None])
    return shares


# ---- epsilon


def errors_of_telling(scores: np.ndarray, forgot: np.ndarray, targets: int) -> tuple[np.ndarray, np.ndarray]:
    """How often an attacker errs who tells models that forgot a person from retrained ones by one score.

    The attacker decides by `likelihood_ratio`, fitted on all models but the `targets` that are judged.

    Args:
        scores: of each model and person, (M, P).
        forgot: which models learned and forgot the person, bool (M, P); the others are retrained.
        targets: models judged at a time, even, so that no pair is on both sides.

    Returns:
        Of each person the models that forgot and are taken for retrained, and the retrained that are taken for models
        that forgot, each (P,). A ratio of exactly 1 is an error.
    """
    ratio = np.empty_like(scores)
    for first in range(0, len(scores), targets):
        judged = np.s_[first : first + targets]
        fitted, fitted_forgot = np.delete(scores, judged, axis=0), np.delete(forgot, judged, axis=0)
        ratio[judged] = likelihood_ratio(fitted, fitted_forgot, scores[judged])
    return ((ratio <= 0) & forgot).sum(0), ((ratio >= 0) & ~forgot).sum(0)


def largest_rate(errors: np.ndarray, count: np.ndarray, alpha: float) -> np.ndarray:
    """Clopper-Pearson: the upper bound of a rate of which `errors` of `count` were seen, at confidence 1 - alpha."""
    return np.where(errors < count, beta.ppf(1 - alpha, errors + 1, np.maximum(count - errors, 1)), 1.0)


def epsilon_bound(
    missed: np.ndarray, forgot: np.ndarray, mistaken: np.ndarray, retrained: np.ndarray, *, alpha: float
) -> np.ndarray:
    """Lower bound of the epsilon that would make models that forgot (epsilon, DELTA)-like retrained ones.

    For any attacker, (epsilon, delta) demands log((1 - delta - FPR) / FNR) <= epsilon, and the same with both rates
    exchanged. Both rates take their upper bounds, each at 1 - alpha / 2, so that both hold at once.

    Args:
        missed: of each person the models that forgot and are taken for retrained, (P,).
        forgot: models that forgot, (P,).
        mistaken: retrained models that are taken for models that forgot, (P,).
        retrained: retrained models, (P,).
        alpha: chance that the bound is too large.

    Returns:
        0 or more, (P,). No error at all gives the largest value, which the numbers of models bound.
    """
    fnr, fpr = largest_rate(missed, forgot, alpha / 2), largest_rate(mistaken, retrained, alpha / 2)
    ratios = [np.maximum(1 - DELTA - one, 0) / other for one, other in ((fpr, fnr), (fnr, fpr))]
    return np.log(np.maximum(np.maximum(*ratios), 1.0))
