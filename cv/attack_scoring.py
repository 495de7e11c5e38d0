"""Verification scores of many models -> membership attacks on the people that were forgotten and on those that were kept.

Shapes: M models, Q queries, T models attacked at a time. Models are in pairs that met opposite halves of the people; who is attacked is no shadow model.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cv import attack_metrics as metrics
from cv.pictures import Division, met_by
from engine.record import write_json
from settings.script import SettingsError

SCORES, ATTACK = "scores.safetensors", "attack.json"
QUERIES = "queries.json"
RATES = {"TPR at 1% FPR": 0.01, "TPR at 0.1% FPR": 0.001}
BINS = 40
POPULATION = {"logistic": metrics.logistic_attack, "tree": metrics.tree_attack}  # U-MIA
HELD_OUT = 4  # one of so many pairs of shadow models chooses between them


@dataclass(frozen=True)
class ModelScores:
    """What each model says of each query."""

    people: list[str]  # (Q,), whose the query is
    files: list[str]  # (Q,)
    own: np.ndarray  # (M, Q), cosine to the person's own centre
    nearest_other: np.ndarray  # (M, Q), cosine to the nearest of the others' centres

    def write(self, folder: Path) -> None:
        # contiguous: the library writes the memory as it lies, and picked columns lie transposed
        save_file(
            {"own": np.ascontiguousarray(self.own), "nearest_other": np.ascontiguousarray(self.nearest_other)},
            folder / SCORES,
        )
        write_json(folder / QUERIES, {"people": self.people, "files": self.files})


def attack(scores: ModelScores, division: Division, models: int, targets: int) -> dict[str, Any]:
    """U-LiRA and U-MIA on the forget pool and on the retain pool: figures with intervals over people and models, ROC curves, a table by person, distributions.

    Every model is attacked, `targets` at a time; all others are their shadow models, so that no model ever says anything of itself.
    """
    people = np.array(scores.people)
    learned = learned_by(division, models, scores.people)
    pools = {}
    for pool in ("forget", "retain"):
        chosen = np.isin(people, division.pool(pool))
        pools[pool] = attack_pool(scores, chosen, learned, targets)
    return {"models": models, "targets": targets, "shadows": models - targets, "pools": pools}


def learned_by(division: Division, models: int, people: list[str]) -> np.ndarray:
    """Which models met which of `people`, (M, P)."""
    met = [set(met_by(division, number).trained) for number in range(models)]
    return np.array([[name in names for name in people] for names in met])


def check_rounds(division: Division, models: int, targets: int) -> None:
    """Raise SettingsError, before anything trains, where a round of the attack has too few shadow models that met someone, or that did not."""
    people = sorted(division.people)
    learned = learned_by(division, models, people)
    for first in range(0, models, targets):
        shadows = np.delete(learned, np.s_[first : first + targets], axis=0)
        fewest = np.minimum(shadows.sum(0), (~shadows).sum(0))
        if fewest.min() < metrics.LEAST_SHADOWS:
            raise SettingsError(
                f"models={models} leaves {fewest.min()} shadow models on one side of {people[int(fewest.argmin())]!r} while models {first} to "
                f"{first + targets - 1} are attacked; {metrics.LEAST_SHADOWS} are needed: more models, or more people"
            )


def attack_pool(scores: ModelScores, chosen: np.ndarray, learned: np.ndarray, targets: int) -> dict[str, Any]:
    """One pool's figures; `chosen` (Q,) are its queries, `learned` (M, Q) says which models met their people."""
    logits = metrics.verification_logit(scores.own[:, chosen])
    margins = logits - metrics.verification_logit(scores.nearest_other[:, chosen])
    known, people = learned[:, chosen], np.array(scores.people)[chosen]
    features = np.stack([logits, margins], axis=-1)
    models = np.arange(len(logits))
    rounds = [
        attack_some(features, known, (models >= first) & (models < first + targets))
        for first in range(0, len(models), targets)
    ]
    attacks = {name: np.concatenate([told[name] for told, _ in rounds]) for name in rounds[0][0]}
    member, who, pairs = known.ravel(), np.tile(people, len(models)), np.repeat(models // 2, len(people))
    edges = np.linspace(-1, 1, BINS + 1)
    cosines = scores.own[:, chosen].ravel().clip(-1, 1)
    return {
        "queries": int(chosen.sum()),
        "people": len(set(people)),
        "U-MIA attack": ", ".join(choice for _, choice in rounds),
        "attacks": {name: figures(values, member, who, pairs) for name, values in attacks.items()},
        "by person": {name: by_person(attacks["U-LiRA"], member, who == name) for name in sorted(set(people))},
        "distribution": {
            "met": np.histogram(cosines[member], edges)[0].tolist(),
            "not met": np.histogram(cosines[~member], edges)[0].tolist(),
        },
    }


def attack_some(features: np.ndarray, learned: np.ndarray, attacked: np.ndarray) -> tuple[dict[str, np.ndarray], str]:
    """What each attack says of the models `attacked` (M,), (T * Q,), from the others as shadow models; and which population attack is U-MIA's.

    `features` (M, Q, 2): the verification logit, and how far above that of the nearest other person it is; `learned` (M, Q).
    """
    shadows, known, targets = features[~attacked], learned[~attacked], features[attacked]
    told = {"U-LiRA": metrics.likelihood_ratio(shadows[..., 0], known, ~known, targets[..., 0]).ravel()}
    told |= {f"U-MIA {name}": population(name, shadows, known, targets) for name in POPULATION}
    choice = choose_population(shadows, known)
    return told | {"U-MIA": told[f"U-MIA {choice}"]}, choice


def population(name: str, features: np.ndarray, learned: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """Log odds, (T * Q,), that one population attack fitted on `features` (M, Q, f) and `learned` (M, Q) gives `attacked` (T, Q, f)."""
    count = features.shape[-1]
    return POPULATION[name](features.reshape(-1, count), learned.ravel(), attacked.reshape(-1, count))


def choose_population(features: np.ndarray, learned: np.ndarray) -> str:
    """The population attack that is more accurate on pairs of shadow models that it was not fitted on; by the targets the better of two would be luck.

    Between equals the first of POPULATION.
    """
    held = 2 * max(1, len(features) // 2 // HELD_OUT)
    told = {name: population(name, features[:-held], learned[:-held], features[-held:]) for name in POPULATION}
    return max(told, key=lambda name: metrics.attack_accuracy(told[name], learned[-held:].ravel()))


def figures(values: np.ndarray, member: np.ndarray, who: np.ndarray, pairs: np.ndarray) -> dict[str, Any]:
    """Accuracy at 1/2, AUC and TPR at low FPR, each with its interval over people and pairs of models, and the ROC curve."""

    def tpr(rate: float) -> metrics.Figure:
        return metrics.with_interval(
            lambda *given: metrics.attack_tpr(*given[:2], rate, *given[2:]), values, member, who, pairs
        )

    made = {
        "accuracy": metrics.with_interval(metrics.attack_accuracy, values, member, who, pairs),
        "auc": metrics.with_interval(metrics.attack_auc, values, member, who, pairs),
    }
    made |= {name: tpr(rate) for name, rate in RATES.items()}
    return {name: asdict(figure) for name, figure in made.items()} | {"roc": metrics.roc_curve(values, member)}


def by_person(values: np.ndarray, member: np.ndarray, own: np.ndarray) -> dict[str, float | None]:
    """One person's accuracy and AUC; empty where the targets all met them, or none did."""
    both = member[own].any() and (~member[own]).any()
    return {
        "accuracy": metrics.attack_accuracy(values[own], member[own]) if both else None,
        "auc": metrics.attack_auc(values[own], member[own]) if both else None,
    }
