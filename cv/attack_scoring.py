"""Similarities that many models give -> membership attacks on the forgotten people and on those that were kept.

Shapes: M models, Q queries, T models attacked at a time. Models are in pairs that met opposite halves of the people.
A model that is attacked is not its own shadow model.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cv import attack_metrics as metrics
from cv.division import Division, met_by
from engine.likelihood_ratio import LEAST_SHADOWS, attack_auc, attack_tpr, likelihood_ratio, with_interval
from engine.record import NETWORKS, QUERIES, write_json
from settings.script import SettingsError

RATES = {"TPR at 1% FPR": 0.01, "TPR at 0.1% FPR": 0.001}
BINS = 40  # of the distributions of similarities, on [-1, 1]
POPULATION = {"logistic": metrics.logistic_attack, "tree": metrics.tree_attack}  # U-MIA
HELD_OUT = 4  # one of so many pairs of shadow models chooses between them


@dataclass(frozen=True)
class Similarities:
    """What each model makes of each query."""

    people: list[str]  # (Q,), of the queries
    files: list[str]  # (Q,)
    similarity: np.ndarray  # (M, Q), cosine to the centre of the query's person
    nearest_other: np.ndarray  # (M, Q), cosine to the nearest of the other people's centres
    nearest_stranger: np.ndarray  # (M, Q), the same among the people whom the model never met
    margin: np.ndarray  # (M, Q), log odds of the query's person among everybody

    @property
    def identified(self) -> np.ndarray:
        """Whether a query is nearer to its own person's centre than to that of anybody never met, bool (M, Q)."""
        return self.similarity > self.nearest_stranger

    def write(self, folder: Path, division: Division) -> None:
        """Write what each model makes of each query, whom it met (of gold: whom it would have met), and the pools."""
        arrays = {"similarity": self.similarity, "nearest_other": self.nearest_other}
        arrays |= {"nearest_stranger": self.nearest_stranger, "margin": self.margin}
        arrays["met"] = learned_by(division, len(self.similarity), self.people).astype(np.uint8)
        # contiguous: the library writes the memory as it lies, and picked columns lie transposed
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / NETWORKS)
        pools = [division.people[name].pool for name in self.people]
        write_json(folder / QUERIES, {"people": self.people, "files": self.files, "pools": pools})


def attack(similarities: Similarities, division: Division, models: int, targets: int) -> dict[str, Any]:
    """U-LiRA and U-MIA on the forget pool and on the retain pool.

    Every model is attacked, `targets` at a time. All others are their shadow models, so that no model ever says
    anything of itself.

    Returns:
        For each pool figures with intervals over people and models, ROC curves, a table by person, distributions.
    """
    people = np.array(similarities.people)
    learned = learned_by(division, models, similarities.people)
    pools = {}
    for pool in ("forget", "retain"):
        chosen = np.isin(people, division.pool(pool))
        pools[pool] = attack_pool(similarities, chosen, learned, targets)
    return {"models": models, "targets": targets, "shadows": models - targets, "pools": pools}


def learned_by(division: Division, models: int, people: list[str]) -> np.ndarray:
    """Which models met which of `people`, bool (M, P)."""
    learned = []
    for number in range(models):
        met = set(met_by(division, number).trained)
        learned.append([name in met for name in people])
    return np.array(learned)


def check_rounds(division: Division, models: int, targets: int) -> None:
    """Check, before anything trains, that every round of the attack has enough shadow models on both sides.

    Raises SettingsError where too few of them met someone, or too few did not.
    """
    people = sorted(division.people)
    learned = learned_by(division, models, people)
    for first in range(0, models, targets):
        shadows = np.delete(learned, np.s_[first : first + targets], axis=0)
        fewest = np.minimum(shadows.sum(0), (~shadows).sum(0))
        if fewest.min() < LEAST_SHADOWS:
            raise SettingsError(
                f"models={models} leaves {fewest.min()} shadow models on one side of {people[int(fewest.argmin())]!r} "
                f"while models {first} to {first + targets - 1} are attacked; "
                f"{LEAST_SHADOWS} are needed: more models, or more people"
            )


def attack_pool(similarities: Similarities, chosen: np.ndarray, learned: np.ndarray, targets: int) -> dict[str, Any]:
    """One pool's figures.

    Args:
        similarities: of all queries.
        chosen: which queries are the pool's, bool (Q,).
        learned: which models met which query's person, bool (M, Q).
        targets: models attacked at a time.
    """
    logits = metrics.verification_logit(similarities.similarity[:, chosen])
    margins = logits - metrics.verification_logit(similarities.nearest_other[:, chosen])
    people = np.array(similarities.people)[chosen]
    scores, choices = attack_in_rounds(np.stack([logits, margins], axis=-1), learned[:, chosen], targets)
    count = len(logits)
    member = learned[:, chosen].ravel()
    person = np.tile(people, count)
    pairs = np.repeat(np.arange(count) // 2, len(people))
    cosines = similarities.similarity[:, chosen].ravel().clip(-1, 1)
    edges = np.linspace(-1, 1, BINS + 1)
    return {
        "queries": int(chosen.sum()),
        "people": len(set(people)),
        "U-MIA attack": ", ".join(choices),
        "attacks": {name: attack_figures(each, member, person, pairs) for name, each in scores.items()},
        "identification": identification_figures(similarities.identified[:, chosen].ravel(), member, person, pairs),
        "by person": {name: person_figures(scores["U-LiRA"], member, person == name) for name in sorted(set(people))},
        "distribution": {
            "met": np.histogram(cosines[member], edges)[0].tolist(),
            "not met": np.histogram(cosines[~member], edges)[0].tolist(),
        },
    }


def attack_in_rounds(
    features: np.ndarray, learned: np.ndarray, targets: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Membership scores of all models by each attack, (M * Q,), and of each round which population attack is U-MIA's.

    Arguments as those of `attack_targets`; `targets` models are attacked per round.
    """
    models = np.arange(len(features))
    rounds, choices = [], []
    for first in range(0, len(models), targets):
        scores, choice = attack_targets(features, learned, (models >= first) & (models < first + targets))
        rounds.append(scores)
        choices.append(choice)
    of_all = {}
    for name in rounds[0]:
        of_all[name] = np.concatenate([scores[name] for scores in rounds])
    return of_all, choices


def attack_targets(
    features: np.ndarray, learned: np.ndarray, attacked: np.ndarray
) -> tuple[dict[str, np.ndarray], str]:
    """Membership scores of some models by each attack, from the others as shadow models.

    Args:
        features: (M, Q, 2), the verification logit, and how far it is above that of the nearest other person.
        learned: which models met which query's person, bool (M, Q).
        attacked: which models are attacked, bool (M,).

    Returns:
        The scores by name of the attack, each (T * Q,), and the name of the population attack that is U-MIA's.
    """
    shadows, targets = features[~attacked], features[attacked]
    shadows_learned = learned[~attacked]
    ratio = likelihood_ratio(shadows[..., 0], shadows_learned, targets[..., 0])
    scores = {"U-LiRA": ratio.ravel()}
    for name in POPULATION:
        scores[f"U-MIA {name}"] = population_attack(name, shadows, shadows_learned, targets)
    choice = choose_population_attack(shadows, shadows_learned)
    return scores | {"U-MIA": scores[f"U-MIA {choice}"]}, choice


def population_attack(name: str, features: np.ndarray, learned: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """Log odds, (T * Q,), that a population attack fitted on `features` (M, Q, f) gives `attacked` (T, Q, f).

    `learned` (M, Q) says which of `features` are members'.
    """
    count = features.shape[-1]
    return POPULATION[name](features.reshape(-1, count), learned.ravel(), attacked.reshape(-1, count))


def choose_population_attack(features: np.ndarray, learned: np.ndarray) -> str:
    """The population attack that is more accurate on pairs of shadow models that it was not fitted on.

    Between equals it is the first of POPULATION. Chosen by the targets, the better of two would be luck.
    """
    held = 2 * max(1, len(features) // 2 // HELD_OUT)
    member = learned[-held:].ravel()
    accuracy = {}
    for name in POPULATION:
        log_odds = population_attack(name, features[:-held], learned[:-held], features[-held:])
        accuracy[name] = metrics.attack_accuracy(log_odds, member)
    return max(accuracy, key=accuracy.get)


def attack_figures(
    membership_score: np.ndarray, member: np.ndarray, person: np.ndarray, pairs: np.ndarray
) -> dict[str, Any]:
    """Accuracy at 1/2, AUC and TPR at low FPR, each with its interval over people and pairs of models; the ROC curve.

    All arguments are (n,): a row's score, whether its person was met, its person, its model's pair.
    """
    functions = {"accuracy": metrics.attack_accuracy, "auc": attack_auc}
    functions |= {name: partial(tpr_at, rate) for name, rate in RATES.items()}
    figures: dict[str, Any] = {}
    for name, function in functions.items():
        figures[name] = asdict(with_interval(function, membership_score, member, person, pairs))
    return figures | {"roc": metrics.roc_curve(membership_score, member)}


def identification_figures(
    identified: np.ndarray, member: np.ndarray, person: np.ndarray, pairs: np.ndarray
) -> dict[str, Any]:
    """Share of queries that are identified among people never met, of people who were met and of others.

    Each has its interval over people and pairs of models. All arguments are (n,): whether a query is identified,
    whether its person was met, its person, its model's pair.
    """
    figures = {}
    for name, asked in (("met", member), ("not met", ~member)):
        figures[name] = asdict(with_interval(metrics.share_of_members, identified, asked, person, pairs))
    return figures


def tpr_at(
    rate: float, membership_score: np.ndarray, member: np.ndarray, weights: np.ndarray | None = None
) -> float | None:
    """`attack_tpr` with its rate first."""
    return attack_tpr(membership_score, member, rate, weights)


def person_figures(membership_score: np.ndarray, member: np.ndarray, rows: np.ndarray) -> dict[str, float | None]:
    """One person's accuracy and AUC; None where all targets met them, or none did.

    All arguments are (n,); `rows` says which rows are the person's.
    """
    if member[rows].all() or not member[rows].any():
        return {"accuracy": None, "auc": None}
    return {
        "accuracy": metrics.attack_accuracy(membership_score[rows], member[rows]),
        "auc": attack_auc(membership_score[rows], member[rows]),
    }


def summary(of_pool: dict[str, Any]) -> str:
    """One line on the attacks on a pool; `of_pool`: what `attack_pool` gives."""
    parts = []
    for name, figures in of_pool["attacks"].items():
        parts.append(f"{name} accuracy {figures['accuracy']['value']:.3f}, AUC {figures['auc']['value']:.3f}")
    rates = {name: figure["value"] for name, figure in of_pool["identification"].items()}
    return ", ".join([*parts, f"identified {rates['met']:.3f}, of people never met {rates['not met']:.3f}"])
