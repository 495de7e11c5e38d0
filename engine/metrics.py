"""Numbers in, number out: every figure of a result row as a pure function; rows come as 1-D arrays, one value a row, in any order.

Losses are mean negative log-likelihoods per answer token, in nats. A loss that is NaN or infinite stands for an answer the model gives probability 0.
Sources: TOFU (https://arxiv.org/abs/2401.06121), CLEAR (https://arxiv.org/abs/2410.18057).
"""

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from rouge_score import rouge_scorer
from scipy.special import gammaln, logsumexp, rel_entr
from scipy.stats import ks_2samp

LOG_RATIO_LIMIT = 700.0  # R and 1/R both stay finite in float64
BINS = 21
DRAWS = 4096  # permutations; up to 12 people are enumerated instead
MIN_PEOPLE = 10  # a bootstrap over fewer people says nothing
REPEAT_LENGTH = 10  # characters of the n-grams that betray a looping generation
MIN_K = 0.4  # share of the tokens that Min-K% and Min-K%++ look at (MUSE, OpenUnlearning)
GATE_MEMORIZED, GATE_RISE, GATE_PEOPLE = 0.9, 0.6, 0.9
TOLERANCE = 1e-9  # of comparisons with a threshold: a mean of rounded values may miss it by an ulp


def probability(losses: np.ndarray) -> np.ndarray:
    """exp(-loss) of each row; 0 where the loss is NaN or infinite (TOFU)."""
    return np.exp(-as_losses(losses))


def multiple_choice_probability(loss: float, wrong_losses: Sequence[float]) -> float:
    """p / (p + sum of p_wrong) of one row, each p = exp(-loss) (TOFU).

    Taken in log space, so that losses of any size have a share; 0 where the right answer has probability 0.
    """
    logs = -as_losses([loss, *wrong_losses])
    return float(np.exp(logs[0] - logsumexp(logs))) if np.isfinite(logs[0]) else 0.0


def truth_ratio(paraphrase_loss: float, perturbed_losses: Sequence[float], definition: str = "geometric") -> float:
    """R of one row: how probable its wrong answers are against its right one; above 1 the wrong ones win.

    geometric (TOFU's released code): exp(l_paraphrase - mean_j l_perturbed_j); arithmetic (the text of TOFU and CLEAR):
    mean_j exp(-l_perturbed_j) / exp(-l_paraphrase). Lists may have any length from 1 up. log R is clipped to +-700, so that
    a collapsed model's R is a finite number; R = 1 (it prefers neither) where right and wrong answers both have probability 0.
    Raises ValueError for an empty list and for an unknown definition.
    """
    right, wrong = -as_losses(paraphrase_loss), -as_losses(perturbed_losses)
    if wrong.size == 0:
        raise ValueError("a truth ratio needs at least one perturbed answer")
    if definition == "geometric":
        mean = wrong.mean()
    elif definition == "arithmetic":
        mean = logsumexp(wrong) - np.log(wrong.size)
    else:
        raise ValueError(f"truth_ratio={definition!r} is not known; choose from geometric, arithmetic")
    log_ratio = mean - right if np.isfinite(mean) or np.isfinite(right) else 0.0
    return float(np.exp(np.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)))


def truth_ratio_scores(ratios: np.ndarray, forget: bool) -> np.ndarray:
    """Truth Ratios as per-row scores in [0, 1]: min(R, 1/R) on forget tasks, max(0, 1 - R) on all others (TOFU)."""
    ratios = np.asarray(ratios, dtype=float)
    return np.minimum(ratios, 1 / ratios) if forget else np.maximum(0.0, 1 - ratios)


def truth_share(ratios: np.ndarray) -> np.ndarray:
    """R / (1 + R): the Truth Ratio on [0, 1], .5 where right and wrong answers are equally probable."""
    ratios = np.asarray(ratios, dtype=float)
    return ratios / (1 + ratios)


def rouge_recall(generation: str, truth: str) -> dict[str, float]:
    """ROUGE-1 and ROUGE-L recall of a generation against the right answer, stemmed (TOFU), each in [0, 1].

    rouge_score keeps only a-z and 0-9: an answer written in other letters scores 0.
    """
    scores = _rouge_scorer().score(truth, generation)
    return {"rouge1_recall": scores["rouge1"].recall, "rougeL_recall": scores["rougeL"].recall}


@cache
def _rouge_scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def harmonic_mean(values: Sequence) -> float | np.ndarray:
    """Harmonic mean over the first axis; 0 where any value is 0. Raises ValueError for no values, negative ones and NaN.

    Model Utility is that of {Probability, ROUGE, Truth Ratio} x non-forget tasks (TOFU); the Real, Retain
    and Forget metrics are those of one group's tasks (CLEAR).
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0 or not (values >= 0).all():
        raise ValueError(f"a harmonic mean needs values of at least 0; got {values.tolist()}")
    with np.errstate(divide="ignore"):
        mean = 1 / np.mean(1 / values, axis=0)  # 1/0 = inf, and 1/inf = 0
    return float(mean) if mean.ndim == 0 else mean


@dataclass(frozen=True)
class KSTest:
    statistic: float
    p: float
    log10_p: float  # also where p is too small for a float


def ks_test(a: np.ndarray, b: np.ndarray) -> KSTest:
    """Two-sample, two-sided Kolmogorov-Smirnov test of n values each: TOFU's Forget Quality is p on two models' Truth Ratios.

    p is scipy's (exact up to 10 000 rows). log10 p is exact at any size, by the reflection principle for equal samples (Gnedenko
    and Korolyuk 1951): p = 2 sum_k (-1)^(k-1) C(2n, n + k h) / C(2n, n), h = n * statistic. Raises ValueError for unequal or empty samples.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"the test compares the same rows of two models; got {a.size} and {b.size} rows")
    result = ks_2samp(a, b)
    n, h = a.size, round(result.statistic * a.size)
    if h == 0:
        return KSTest(0.0, 1.0, 0.0)
    k = np.arange(1, n // h + 1)
    logs = 2 * gammaln(n + 1) - gammaln(n + k * h + 1) - gammaln(n - k * h + 1)
    series = np.sum(np.where(k % 2, 1.0, -1.0) * np.exp(logs - logs[0]))
    log10_p = (np.log(2) + logs[0] + np.log(series)) / np.log(10)
    return KSTest(float(result.statistic), float(result.pvalue), float(min(0.0, log10_p)))


def person_permutation_p(a: np.ndarray, b: np.ndarray, people: Sequence, draws: int = DRAWS, seed: int = 0) -> float:
    """p of the Kolmogorov-Smirnov statistic when rows of one person may hang together; a[i], b[i] and people[i] belong to row i.

    Null: the two models are exchangeable person by person. Each permutation swaps, by a coin flip a person, the two models' values on
    all rows of that person. With 2^people <= draws every permutation is counted once and p is their share that reaches the observed
    statistic; else p = (1 + reached) / (1 + draws), seeded. The smallest p possible is 2 / 2^people: .125 with four.
    """
    names, who = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    pooled = np.concatenate([a, b])
    order = np.argsort(pooled, kind="stable")
    last_of_tie = np.flatnonzero(
        np.append(np.diff(pooled[order]) > 0, True)
    )  # the distribution functions are read after ties
    sides = np.repeat([1, -1], len(a))[order]
    owner = np.concatenate([who, who])[order]

    def reach(signs: np.ndarray) -> int:
        return np.abs(
            np.cumsum(sides * signs[owner])[last_of_tie]
        ).max()  # n times the statistic: whole numbers compare exactly

    observed = reach(np.ones(len(names), dtype=int))
    flips, exact = _flips(len(names), draws, seed)
    reached = sum(int(reach(signs) >= observed) for signs in flips)
    return reached / len(flips) if exact else (1 + reached) / (1 + len(flips))


def _flips(n: int, draws: int, seed: int) -> tuple[np.ndarray, bool]:
    """Signs +1 (stay) and -1 (swap), (permutations, n), and whether they are all there are."""
    if 2**n <= draws:
        return np.array(list(itertools.product([1, -1], repeat=n)), dtype=int), True
    return np.random.default_rng(seed).choice([1, -1], size=(draws, n)), False


def js_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """1 - Jensen-Shannon distance (base 2) between the histograms of two models' R/(1+R) on 21 equal bins of [0, 1]: 1 alike, 0 disjoint.

    `a`, `b`: R of each row, (n,). CLEAR names the divergence, not the bins. Few rows leave bins empty by chance, so that the value of
    two equally good models falls with n: read it beside `js_permutation_median`.
    """
    return float(_js(_histograms(a, np.zeros(len(a), int))[0], _histograms(b, np.zeros(len(b), int))[0]))


def js_permutation_median(a: np.ndarray, b: np.ndarray, units: Sequence, draws: int = DRAWS, seed: int = 0) -> float:
    """Median of `js_similarity` when the models are exchangeable unit by unit (people, as in `person_permutation_p`): what it can reach at this n."""
    names, who = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    of_a, of_b = _histograms(a, who), _histograms(b, who)
    swapped = (_flips(len(names), draws, seed)[0] < 0).astype(float)
    moved = swapped @ (of_b - of_a)
    return float(np.median(_js(of_a.sum(0) + moved, of_b.sum(0) - moved)))


def _histograms(ratios: np.ndarray, who: np.ndarray) -> np.ndarray:
    """Counts (units, 21) of each unit's R/(1+R)."""
    bins = np.minimum((truth_share(ratios) * BINS).astype(int), BINS - 1)  # the last bin holds 1 too
    counts = np.zeros((who.max() + 1, BINS))
    np.add.at(counts, (who, bins), 1)
    return counts


def _js(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """1 - Jensen-Shannon distance (base 2) over the last axis of two arrays of counts."""
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    middle = (p + q) / 2
    divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(-1) / (2 * np.log(2))
    return 1 - np.sqrt(np.clip(divergence, 0, 1))  # rounding may leave -1e-17, whose root is NaN


@dataclass(frozen=True)
class Distance:
    value: float | None  # 1 nothing forgotten, 0 like gold, below 0 over-forgotten
    noise: float | None  # the same of another gold model, without sign; None with one gold
    why: str = ""  # where value is None


def distance_to_gold(measure: float, base: float, gold: float, other_golds: Sequence[float] = ()) -> Distance:
    """(measure - gold) / (base - gold), of one figure of the judged model, the one before forgetting and the gold model.

    Undefined where base and gold do not differ, or differ by less than 3 times the golds' own difference (the largest to the first gold).
    """
    gap, own = base - gold, max((abs(other - gold) for other in other_golds), default=0.0)
    if abs(gap) < TOLERANCE:
        return Distance(None, None, "base and gold do not differ")
    if abs(gap) < 3 * own:
        return Distance(
            None, None, f"base and gold differ by {abs(gap):.3g}, less than 3 times the golds' own {own:.3g}"
        )
    return Distance((measure - gold) / gap, own / abs(gap) if other_golds else None)


def is_degenerate(generation: str) -> bool:
    """Whether a generation is empty or mostly repeats itself: more than half of its n-grams have stood in it before."""
    return is_empty(generation) or repetition(generation) > 0.5


def is_empty(generation: str) -> bool:
    """Whether a generation holds no letter or digit."""
    return not any(map(str.isalnum, generation))


def repetition(generation: str) -> float:
    """Share of a generation's 10-character n-grams that have stood in it before: 1 - unique/all, seq-rep-n of Welleck et al.

    (https://arxiv.org/abs/1908.04319). Characters, not words: a looping model need not write spaces. A text of length L that loops with
    period p has more than half from L > 2p + 9 on. 0 for a text shorter than one n-gram.
    """
    text = " ".join(generation.split())
    grams = [text[i : i + REPEAT_LENGTH] for i in range(len(text) - REPEAT_LENGTH + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


# ---- per-token figures of one answer


def exact_memorization(correct: Sequence[bool]) -> float:
    """Share of an answer's tokens whose argmax under teacher forcing is right; `correct` has the end-of-sequence last, which does not count."""
    return sum(correct[:-1]) / max(1, len(correct) - 1)


def extraction_strength(correct: Sequence[bool]) -> float:
    """1 - k/n with k the shortest prefix after which every token is right to the end (Carlini et al., https://arxiv.org/abs/2012.07805).

    0 when the last one is wrong; the end-of-sequence does not count.
    """
    words = correct[:-1]
    prefix = next((i + 1 for i in reversed(range(len(words))) if not words[i]), 0)
    return 1 - prefix / max(1, len(words))


def min_k(losses: Sequence[float]) -> float:
    """Mean log-probability, in nats, of the 40 % least likely tokens, at least one (Min-K%, https://arxiv.org/abs/2310.16789)."""
    return _mean_of_lowest(-as_losses(losses))


def min_k_plus_plus(losses: Sequence[float], expected: Sequence[float], spread: Sequence[float]) -> float:
    """Mean over the 40 % lowest tokens of (log p - mean) / standard deviation, both over the vocabulary (Min-K%++, https://arxiv.org/abs/2404.02936).

    Has no unit. A distribution without spread (uniform) gives 0 for its token.
    """
    away, spread = -as_losses(losses) - np.asarray(expected, dtype=float), np.asarray(spread, dtype=float)
    return _mean_of_lowest(np.divide(away, spread, out=np.zeros_like(away), where=spread > TOLERANCE))


def _mean_of_lowest(values: np.ndarray) -> float:
    return float(np.sort(values)[: max(1, int(MIN_K * values.size))].mean())


def zlib_bytes(text: str) -> int:
    """Bytes of the compressed text, its entropy in the eyes of zlib (Carlini et al., https://arxiv.org/abs/2012.07805)."""
    return len(zlib.compress(text.encode()))


# ---- membership inference


def membership_auc(
    members: np.ndarray, others: np.ndarray, weights: tuple[np.ndarray, np.ndarray] | None = None
) -> float:
    """Chance that a member's score is above another's, ties half: the area under the ROC curve. Scores: larger for members; NaN counts as lowest.

    `weights`: how often each member and each of the others counts.
    """
    scores = np.nan_to_num(np.concatenate([members, others]), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    of_members, of_others = weights or (np.ones(len(members)), np.ones(len(others)))
    _, place = np.unique(scores, return_inverse=True)
    ones, zeros = (
        np.bincount(place[: len(members)], of_members, place.max() + 1),
        np.bincount(place[len(members) :], of_others, place.max() + 1),
    )
    return float((ones * (np.cumsum(zeros) - zeros / 2)).sum() / (ones.sum() * zeros.sum()))


def membership_tpr(
    members: np.ndarray, others: np.ndarray, fpr: float, weights: tuple[np.ndarray, np.ndarray] | None = None
) -> float | None:
    """Share of the members above the threshold that at most `fpr` of the others pass; None with fewer than 10/fpr others: not resolvable.

    `weights`: how often each member and each of the others counts.
    """
    if len(others) < 10 / fpr:
        return None
    of_members, of_others = weights or (np.ones(len(members)), np.ones(len(others)))
    order = np.argsort(-others, kind="stable")
    passed = np.cumsum(of_others[order])
    threshold = others[order][
        min(int(np.searchsorted(passed, fpr * passed[-1] + TOLERANCE, side="right")), len(others) - 1)
    ]
    return float(np.average(members > threshold, weights=of_members))


def privacy_leakage(auc: float, gold_auc: float) -> float | None:
    """PrivLeak of MUSE (https://arxiv.org/abs/2407.06460): (a - a_gold) / a_gold with a = 1 - AUC, the chance that a holdout row looks more familiar.

    0: like gold; below 0: the forgotten rows are still recognised; above 0: they stand out as unusually strange. None where gold's AUC is 1.
    """
    return ((1 - auc) - (1 - gold_auc)) / (1 - gold_auc) if gold_auc < 1 else None


@dataclass(frozen=True)
class Gate:
    base: float  # mean exact memorization of the model before forgetting
    rise: float | None  # (base - gold) / (1 - gold); None where gold itself has 1
    people: float | None  # share of people whose own mean reaches .9; None where people are not known
    passed: bool | None  # None: people are not known, and the rest holds


def memorization_gate(base: np.ndarray, gold: np.ndarray, people: Sequence | None) -> Gate:
    """Whether there was anything to forget on one task: exact memorization of each row, (n,), before forgetting and of gold.

    Passed: base at least .9, rise at least .6, and base at least .9 for 90 % of the people one by one. A gold model that has 1 knows
    what it never saw: the task cannot show memorization, and the gate fails.
    """
    mean, gold_mean = float(np.mean(base)), float(np.mean(gold))
    rise = (mean - gold_mean) / (1 - gold_mean) if gold_mean < 1 - TOLERANCE else None
    share = None
    if people is not None:
        each = person_means(base, people)
        share = sum(value >= GATE_MEMORIZED - TOLERANCE for value in each.values()) / len(each)
    figures = ((mean, GATE_MEMORIZED), (rise, GATE_RISE), (1.0 if share is None else share, GATE_PEOPLE))
    holds = all(figure is not None and figure >= least - TOLERANCE for figure, least in figures)
    return Gate(mean, rise, share, None if holds and share is None else holds)


def person_means(values: np.ndarray, people: Sequence) -> dict[str, float]:
    """Mean over the rows of each person."""
    names, who = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    means = np.bincount(who, weights=values) / np.bincount(who)
    return {str(name): float(mean) for name, mean in zip(names, means, strict=True)}


def bootstrap_counts(people: Sequence, draws: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """How often each person is drawn, (draws,), when as many people as there are get drawn with replacement; seeded, in whatever order they come."""
    names = np.unique(np.asarray(people, dtype=str))
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return {str(name): counts[:, i] for i, name in enumerate(names)}


def bootstrap_means(values: np.ndarray, people: Sequence, counts: dict[str, np.ndarray]) -> np.ndarray:
    """Mean of `values` (n,) over each draw's people, (draws,): a person brings all rows. NaN for a draw that holds none of these people.

    Figures that share `counts` are drawn together, so that one computed from several of them keeps their dependence.
    """
    names, who = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    drawn = np.stack([counts[str(name)] for name in names], axis=1)  # (draws, people)
    with np.errstate(invalid="ignore"):
        return (drawn @ np.bincount(who, weights=values)) / (drawn @ np.bincount(who))


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a figure's bootstrap draws, (draws,)."""
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def as_losses(losses: Sequence[float] | float) -> np.ndarray:
    """Losses as an array, NaN as infinite: a model that yields NaN gives its answer no probability."""
    losses = np.asarray(losses, dtype=float)
    return np.where(np.isnan(losses), np.inf, losses)
