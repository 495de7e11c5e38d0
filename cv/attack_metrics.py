"""Verification and membership attacks as numbers in, number out.

Shapes: M shadow models, T target models, Q queries. A membership score is what an attack says: it is larger for what
looks learned. `member` says what was learned. U-LiRA's likelihood ratio stands in engine.likelihood_ratio.
Sources: U-LiRA and U-MIA (Hayes et al., arXiv 2403.01218; Carlini et al., arXiv 2112.03570; Kurmanji et al., arXiv
2302.09880; CLEAR, arXiv 2410.18057).
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

CLIP = 1e-6  # of (1 + cos) / 2
TREE_DEPTH = 3  # of the attack's decision tree: questions in a row
TREE_LEAF = 0.02  # least share of the rows in a leaf
RIDGE = 1e-3  # of the logistic regression, so that separable rows have a finite answer


# ---- verification


def equal_error_rate(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Share of errors at the threshold that refuses as large a share of genuine as it lets in of impostors.

    Between two thresholds the shares are interpolated.

    Args:
        genuine: similarities of queries to their own person, (n,).
        impostor: similarities of queries to other people, (m,).

    Returns:
        A share, 0 to 1.
    """
    thresholds = np.unique(np.concatenate([genuine, impostor]))
    refused = np.searchsorted(np.sort(genuine), thresholds, side="left") / len(genuine)  # below the threshold
    let_in = 1 - np.searchsorted(np.sort(impostor), thresholds, side="left") / len(impostor)
    refused = np.append(refused, 1.0)
    let_in = np.append(let_in, 0.0)
    i = int(np.argmax(refused >= let_in))
    if i == 0 or refused[i] == let_in[i]:
        return float(refused[i] + let_in[i]) / 2
    # the two lines between the last threshold with too few refusals and the first with too many cross at share t
    rise = refused[i] - refused[i - 1]
    fall = let_in[i - 1] - let_in[i]
    t = (let_in[i - 1] - refused[i - 1]) / (rise + fall)
    return float(refused[i - 1] + t * rise)


def verification_logit(similarity: np.ndarray) -> np.ndarray:
    """logit((1 + cos) / 2), clipped: a similarity on a line, near to normal (PROTOCOL)."""
    share = np.clip((1 + similarity) / 2, CLIP, 1 - CLIP)
    return np.log(share) - np.log1p(-share)


# ---- attacks


def logistic_attack(features: np.ndarray, member: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """U-MIA by logistic regression.

    Args:
        features: of the rows it is fitted on, (n, f).
        member: which of these were learned, bool (n,).
        attacked: features of the rows to be judged, (k, f).

    Returns:
        Log odds of membership, (k,).
    """
    mean = features.mean(0)
    deviation = np.maximum(features.std(0), 1e-9)
    x = np.column_stack([(features - mean) / deviation, np.ones(len(features))])
    sign = np.where(member, 1.0, -1.0)

    def loss_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ w)
        loss = np.logaddexp(0, -margin).mean() + RIDGE * w @ w / 2
        return loss, -(x * (sign * expit(-margin))[:, None]).mean(0) + RIDGE * w

    weights = minimize(loss_and_gradient, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
    return np.column_stack([(attacked - mean) / deviation, np.ones(len(attacked))]) @ weights


def tree_attack(features: np.ndarray, member: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """U-MIA by a decision tree (Gini impurity); arguments as those of `logistic_attack`.

    Returns:
        Log odds of membership, (k,), in each row's leaf, with one member and one other added to it.
    """
    least = max(1, round(TREE_LEAF * len(member)))
    return grow_tree(features, member.astype(float), attacked, TREE_DEPTH, least)


def grow_tree(features: np.ndarray, member: np.ndarray, attacked: np.ndarray, depth: int, least: int) -> np.ndarray:
    """The tree's log odds for `attacked`; only the branches that these rows take are grown.

    `depth`: questions that may still be asked; `least`: rows in a leaf.
    """
    question = best_question(features, member, least) if depth else None
    if question is None:
        return np.full(len(attacked), np.log((member.sum() + 1) / (len(member) - member.sum() + 1)))
    column, threshold = question
    log_odds = np.empty(len(attacked))
    fitted_below = features[:, column] <= threshold
    attacked_below = attacked[:, column] <= threshold
    for rows, judged in ((fitted_below, attacked_below), (~fitted_below, ~attacked_below)):
        log_odds[judged] = grow_tree(features[rows], member[rows], attacked[judged], depth - 1, least)
    return log_odds


def best_question(features: np.ndarray, member: np.ndarray, least: int) -> tuple[int, float] | None:
    """The column and threshold that lower the Gini impurity most, with `least` rows on each side.

    None where no question lowers it.
    """
    n = len(member)
    total = member.sum()
    lowest = total * (n - total) / n - 1e-12  # impurity times rows, over 2
    question = None
    left = np.arange(1, n)  # rows below the threshold
    for column in range(features.shape[1]):
        order = np.argsort(features[:, column], kind="stable")
        values = features[order, column]
        ones = np.cumsum(member[order])[:-1]
        impurity = ones * (left - ones) / left + (total - ones) * (n - left - (total - ones)) / (n - left)
        impurity[(values[1:] == values[:-1]) | (left < least) | (n - left < least)] = np.inf
        if n > 1 and impurity.min() < lowest:
            place = int(impurity.argmin())
            lowest = float(impurity[place])
            question = column, float(values[place] + values[place + 1]) / 2
    return question


# ---- how well an attack does


def attack_accuracy(membership_score: np.ndarray, member: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Balanced accuracy at a probability of 1/2: the mean over members and others of the share that is judged right.

    Arguments as those of `attack_auc`; scores are log odds, of which 0 is right by half.
    """
    weights = np.ones(len(membership_score)) if weights is None else weights
    right = np.where(membership_score == 0, 0.5, (membership_score > 0) == member)
    of_members = np.average(right[member], weights=weights[member])
    of_others = np.average(right[~member], weights=weights[~member])
    return float((of_members + of_others) / 2)


def share_of_members(right: np.ndarray, member: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Share of the members' rows that are `right`, bool (n,); the other arguments as those of `attack_auc`."""
    return float(np.average(right[member], weights=None if weights is None else weights[member]))


def roc_curve(membership_score: np.ndarray, member: np.ndarray, points: int = 101) -> list[list[float]]:
    """[false positive rate, true positive rate] at `points` thresholds from none to all."""
    quantiles = np.quantile(membership_score, np.linspace(1, 0, points - 1))
    curve = []
    for threshold in np.concatenate([[np.inf], quantiles]):
        above = membership_score >= threshold
        curve.append([float(above[~member].mean()), float(above[member].mean())])
    return curve
