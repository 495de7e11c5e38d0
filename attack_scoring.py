"""Verification scores of many models -> membership attacks on the people that were forgotten and on those that were kept.

Shapes: M models, Q queries. Models are in pairs that met opposite halves of the people; the first ones are targets, all others shadow models.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import attack_metrics as metrics
from face_pictures import Division, met_by
from run_record import write_json

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
        save_file({"own": self.own, "nearest_other": self.nearest_other}, folder / SCORES)
        write_json(folder / QUERIES, {"people": self.people, "files": self.files})


def attack(scores: ModelScores, division: Division, models: int, targets: int) -> dict[str, Any]:
    """U-LiRA and U-MIA on the forget pool and on the retain pool: figures with intervals over people, ROC curves, a table by person, distributions."""
    people = np.array(scores.people)
    met = [set(met_by(division, number).trained) for number in range(models)]
    learned = np.array([[name in names for name in people] for names in met])
    pools = {}
    for pool in ("forget", "retain"):
        chosen = np.isin(people, division.pool(pool))
        pools[pool] = attack_pool(scores, chosen, learned, targets)
    return {"models": models, "targets": targets, "shadows": models - targets, "pools": pools}


def attack_pool(scores: ModelScores, chosen: np.ndarray, learned: np.ndarray, targets: int) -> dict[str, Any]:
    """One pool's figures; `chosen` (Q,) are its queries, `learned` (M, Q) says which models met their people."""
    logits = metrics.verification_logit(scores.own[:, chosen])
    margins = logits - metrics.verification_logit(scores.nearest_other[:, chosen])
    known, people = learned[:, chosen], np.array(scores.people)[chosen]
    features = np.stack([logits, margins], axis=-1)
    member = known[:targets].ravel()
    attacks = {"U-LiRA": metrics.likelihood_ratio(logits[targets:], known[targets:], ~known[targets:], logits[:targets]).ravel()}
    attacks |= {f"U-MIA {name}": population(name, features[targets:], known[targets:], features[:targets]) for name in POPULATION}
    chosen_attack = choose_population(features[targets:], known[targets:])
    attacks["U-MIA"] = attacks[f"U-MIA {chosen_attack}"]
    who = np.tile(people, targets)
    edges = np.linspace(-1, 1, BINS + 1)
    of_targets = scores.own[:targets, chosen].ravel().clip(-1, 1)
    return {
        "queries": int(chosen.sum()),
        "people": len(set(people)),
        "U-MIA attack": chosen_attack,
        "attacks": {name: figures(values, member, who) for name, values in attacks.items()},
        "by person": {name: by_person(attacks["U-LiRA"], member, who == name) for name in sorted(set(people))},
        "distribution": {"met": np.histogram(of_targets[member], edges)[0].tolist(), "not met": np.histogram(of_targets[~member], edges)[0].tolist()},
    }


def population(name: str, features: np.ndarray, learned: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """Log odds or shares, (T * Q,), that one population attack fitted on `features` (M, Q, f) and `learned` (M, Q) gives `attacked` (T, Q, f)."""
    count = features.shape[-1]
    return POPULATION[name](features.reshape(-1, count), learned.ravel(), attacked.reshape(-1, count))


def choose_population(features: np.ndarray, learned: np.ndarray) -> str:
    """The population attack that is more accurate on pairs of shadow models that it was not fitted on; by the targets the better of two would be luck.

    Between equals the first of POPULATION.
    """
    held = 2 * max(1, len(features) // 2 // HELD_OUT)
    told = {name: population(name, features[:-held], learned[:-held], features[-held:]) for name in POPULATION}
    return max(told, key=lambda name: metrics.attack_accuracy(told[name], learned[-held:].ravel()))


def figures(values: np.ndarray, member: np.ndarray, who: np.ndarray) -> dict[str, Any]:
    """Accuracy at 1/2, AUC and TPR at low FPR, each with its interval over people, and the ROC curve."""

    def tpr(rate: float) -> metrics.Figure:
        return metrics.with_interval(lambda *given: metrics.attack_tpr(*given[:2], rate, *given[2:]), values, member, who)

    made = {
        "accuracy": metrics.with_interval(metrics.attack_accuracy, values, member, who),
        "auc": metrics.with_interval(metrics.attack_auc, values, member, who),
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
