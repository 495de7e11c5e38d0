"""Verification and membership attacks as numbers in, number out.

Shapes: M shadow models, T target models, Q queries. A membership score is larger for what looks learned; `member` says what was.
Sources: U-LiRA and U-MIA (Hayes et al., arXiv 2403.01218; Carlini et al., arXiv 2112.03570; Kurmanji et al., arXiv 2302.09880; CLEAR, arXiv 2410.18057).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from engine.metrics import MIN_PEOPLE, bootstrap_counts, interval, membership_auc, membership_tpr

CLIP = 1e-6  # of (1 + cos) / 2
LEAST_SCALE = 1e-3  # of a score's distribution, in logits: with no spread at all any difference would be certainty
LEAST_SHADOWS = 2  # models on each side of a query
NORMAL_MAD = 1.4826  # the median absolute deviation of a normal distribution is its standard deviation divided by this
TREE_DEPTH, TREE_LEAF = 3, 0.02  # the attack's decision tree: questions in a row, least share of the rows in a leaf
RIDGE = 1e-3  # of the logistic regression, so that separable rows have a finite answer


# ---- verification


def equal_error_rate(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Share of errors at the threshold where as large a share of genuine scores is refused as of impostors let in, between which it is interpolated."""
    thresholds = np.unique(np.concatenate([genuine, impostor]))
    refused = np.searchsorted(np.sort(genuine), thresholds, side="left") / len(genuine)  # below the threshold
    let_in = 1 - np.searchsorted(np.sort(impostor), thresholds, side="left") / len(impostor)
    refused, let_in = np.append(refused, 1.0), np.append(let_in, 0.0)
    i = int(np.argmax(refused >= let_in))
    if i == 0 or refused[i] == let_in[i]:
        return float(refused[i] + let_in[i]) / 2
    # the two lines between the last threshold with too few refusals and the first with too many cross at share t
    rise, fall = refused[i] - refused[i - 1], let_in[i - 1] - let_in[i]
    t = (let_in[i - 1] - refused[i - 1]) / (rise + fall)
    return float(refused[i - 1] + t * rise)


def verification_logit(cosines: np.ndarray) -> np.ndarray:
    """logit((1 + cos) / 2), clipped: a verification score on a line, near to normal (PROTOCOL)."""
    share = np.clip((1 + cosines) / 2, CLIP, 1 - CLIP)
    return np.log(share) - np.log1p(-share)


# ---- attacks


def robust_normal(scores: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and scaled median absolute deviation over the models (M, Q) that `chosen` names, each (Q,).

    Raises ValueError where fewer than LEAST_SHADOWS are chosen.
    """
    if (few := chosen.sum(0)).min() < LEAST_SHADOWS:
        raise ValueError(f"a query has {few.min()} shadow models on one side; at least {LEAST_SHADOWS} are needed")
    picked = np.where(chosen, scores, np.nan)
    location = np.nanmedian(picked, axis=0)
    return location, np.maximum(NORMAL_MAD * np.nanmedian(np.abs(picked - location), axis=0), LEAST_SCALE)


def likelihood_ratio(shadow: np.ndarray, learned: np.ndarray, never: np.ndarray, target: np.ndarray) -> np.ndarray:
    """U-LiRA: log of the likelihood that the model learned (and forgot) the query's person over that it never met them, (T, Q).

    `shadow` (M, Q) and `target` (T, Q) are verification logits; `learned` and `never` (M, Q) say what each shadow model did. Above 0: learned.
    """
    (mean_in, scale_in), (mean_out, scale_out) = robust_normal(shadow, learned), robust_normal(shadow, never)
    return log_normal(target, mean_in, scale_in) - log_normal(target, mean_out, scale_out)


def log_normal(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Logarithm of the normal density without its constant."""
    return -np.log(scale) - ((x - mean) / scale) ** 2 / 2


def logistic_attack(features: np.ndarray, member: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """U-MIA by logistic regression: fitted on `features` (n, f) and `member` (n,), log odds of `attacked` (k, f)."""
    location, scale = features.mean(0), np.maximum(features.std(0), 1e-9)
    x = np.column_stack([(features - location) / scale, np.ones(len(features))])
    sign = np.where(member, 1.0, -1.0)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ w)
        return np.logaddexp(0, -margin).mean() + RIDGE * w @ w / 2, -(x * (sign * expit(-margin))[:, None]).mean(
            0
        ) + RIDGE * w

    weights = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
    return np.column_stack([(attacked - location) / scale, np.ones(len(attacked))]) @ weights


def tree_attack(features: np.ndarray, member: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """U-MIA by a decision tree (Gini impurity): log odds, with one member and one other added, in the leaf of each of `attacked` (k, f)."""
    return grown(features, member.astype(float), attacked, TREE_DEPTH, max(1, round(TREE_LEAF * len(member))))


def grown(features: np.ndarray, member: np.ndarray, attacked: np.ndarray, depth: int, least: int) -> np.ndarray:
    """The tree's log odds for `attacked`, grown where they are asked for."""
    best = best_question(features, member, least) if depth else None
    if best is None:
        return np.full(len(attacked), np.log((member.sum() + 1) / (len(member) - member.sum() + 1)))
    column, threshold = best
    told, below, asked = np.empty(len(attacked)), features[:, column] <= threshold, attacked[:, column] <= threshold
    for rows, those in ((below, asked), (~below, ~asked)):
        told[those] = grown(features[rows], member[rows], attacked[those], depth - 1, least)
    return told


def best_question(features: np.ndarray, member: np.ndarray, least: int) -> tuple[int, float] | None:
    """Column and threshold that lower the Gini impurity most, with `least` rows on each side; None where no question lowers it."""
    n, total = len(member), member.sum()
    best, question = total * (n - total) / n - 1e-12, None  # impurity times rows, over 2
    for column in range(features.shape[1]):
        order = np.argsort(features[:, column], kind="stable")
        values, ones = features[order, column], np.cumsum(member[order])[:-1]
        left = np.arange(1, n)
        impurity = ones * (left - ones) / left + (total - ones) * (n - left - (total - ones)) / (n - left)
        impurity[(values[1:] == values[:-1]) | (left < least) | (n - left < least)] = np.inf
        if n > 1 and impurity.min() < best:
            place = int(impurity.argmin())
            best, question = float(impurity[place]), (column, float(values[place] + values[place + 1]) / 2)
    return question


# ---- how well an attack does


def attack_auc(scores: np.ndarray, member: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Share of (member, other) pairs whose member has the larger score, ties by half; .5: nothing was told."""
    return membership_auc(
        scores[member], scores[~member], None if weights is None else (weights[member], weights[~member])
    )


def attack_accuracy(scores: np.ndarray, member: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Accuracy at 1/2: the mean over members and others of the share whose sign of `scores` (log odds) is right; a score of 0 is right by half."""
    weights = np.ones(len(scores)) if weights is None else weights
    right = np.where(scores == 0, 0.5, (scores > 0) == member)
    return float(
        (np.average(right[member], weights=weights[member]) + np.average(right[~member], weights=weights[~member])) / 2
    )


def attack_tpr(scores: np.ndarray, member: np.ndarray, rate: float, weights: np.ndarray | None = None) -> float | None:
    """Share of the members that score above all but a share `rate` of the others; None: fewer than 10 / rate others cannot resolve it."""
    return membership_tpr(
        scores[member], scores[~member], rate, None if weights is None else (weights[member], weights[~member])
    )


def roc_curve(scores: np.ndarray, member: np.ndarray, points: int = 101) -> list[list[float]]:
    """[false positive rate, true positive rate] at `points` thresholds from none to all."""
    thresholds = np.concatenate([[np.inf], np.quantile(scores, np.linspace(1, 0, points - 1))])
    return [[float((scores[~member] >= t).mean()), float((scores[member] >= t).mean())] for t in thresholds]


@dataclass(frozen=True)
class Figure:
    """One figure of an attack with its 95 % interval over people and pairs of attacked models; None where one cannot be known, and `why`."""

    value: float | None
    low: float | None
    high: float | None
    why: str = ""


def with_interval(
    figure: Callable[..., float | None],
    scores: np.ndarray,
    member: np.ndarray,
    people: np.ndarray,
    pairs: np.ndarray,
    draws: int = 400,
) -> Figure:
    """`figure(scores, member, weights)` of rows (n,) and its interval when as many people, and as many pairs of attacked models, get drawn with replacement.

    A row counts as often as its person times as often as its pair: the pigeonhole bootstrap (Owen, arXiv 0712.1111), whose intervals are too wide rather
    than too narrow. Pairs, since two models that met opposite halves of the people belong together. Fewer than 10 people have no interval.
    """
    value = figure(scores, member)
    if value is None:
        return Figure(None, None, None, f"not resolvable with {(~member).sum()} scores of people who were not met")
    names, who = np.unique(people, return_inverse=True)
    if len(names) < MIN_PEOPLE:
        return Figure(value, None, None, f"no interval with {len(names)} people")
    counts, whose = bootstrap_counts(people, draws), np.unique(pairs, return_inverse=True)[1]
    table = np.stack([counts[str(name)] for name in names])  # (people, draws)
    models = whose.max() + 1
    of_pairs = np.random.default_rng(1).multinomial(models, np.full(models, 1 / models), size=draws)  # (draws, pairs)
    weights = (table[who, i] * of_pairs[i, whose].astype(float) for i in range(draws))
    drawn = [figure(scores, member, each) for each in weights if each[member].any() and each[~member].any()]
    return Figure(value, *interval(np.array(drawn)))
