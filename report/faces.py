"""Face recognition among the figures: verification, attacks, their distances to gold, and the attack's verdict."""

from pathlib import Path
from typing import Any, NamedTuple

from engine.measures import EER, FACE_ATTACKS, IDENTIFICATION
from engine.metrics import distance_to_gold
from engine.record import ATTACK_FIGURES, EVAL_FOLDER, VERIFICATION, read_json
from engine.result_table import Figure, Figures, ModelResult
from report.face_networks import FORMER
from settings.script import SettingsError

# Figures of an attack's record, in the order of the attack's measures.
ATTACK_FIGURES_TOLD = ("accuracy", "auc", "TPR at 1% FPR", "TPR at 0.1% FPR")
# Whose accuracy gets a distance to gold here; the aggregation itself gives one to that of the forgotten people.
OTHER_PEOPLE = ("eval_retain_faces", "eval_holdout_faces")


def read_verification(model: Path) -> dict[str, Any] | None:
    """Group -> verification figures of a model's queries; None: the model is of another modality."""
    file = model / EVAL_FOLDER / VERIFICATION
    return read_json(file) if file.is_file() else None


def read_attack(model: Path) -> dict[str, Any] | None:
    """The figures of the attack beside a model; None: it was not attacked."""
    file = model / "attack_results" / ATTACK_FIGURES
    attack = read_json(file) if file.is_file() else None
    if attack is not None and not (isinstance(attack, dict) and attack.get("pools")):
        raise SettingsError(f"{str(file)!r} holds no figures of an attack: attack the model anew")
    return attack


# ---- figures


def face_figures(model: Path) -> Figures:
    """The verification and attack figures beside a model; none for a model of another modality."""
    verification = read_verification(model) or {}
    figures: Figures = {(EER.key, group): Figure(of_group["eer"]) for group, of_group in verification.items()}
    attack = read_attack(model)
    for pool, of_pool in attack["pools"].items() if attack else ():
        figures |= attack_figures(pool, of_pool)
    return figures | (identification_figures(attack["pools"]) if attack else {})


def identification_figures(pools: dict[str, dict[str, Any]]) -> Figures:
    """The share of queries that are identified among people never met, of each group.

    People never met are those of the forget pool whom a network did not meet.
    """
    figures: Figures = {}
    for group, pool, name in (
        ("forget", "forget", "met"),
        ("retain", "retain", "met"),
        ("holdout", "forget", "not met"),
    ):
        told = pools.get(pool, {}).get("identification", {}).get(name)
        own = (
            Figure(told["value"], told["low"], told["high"], told["why"] or None) if told else Figure(None, why=FORMER)
        )
        figures[IDENTIFICATION.key, group] = own
    return figures


def attack_figures(pool: str, of_pool: dict[str, Any]) -> Figures:
    """The figures of each attack on one pool of people (forget or retain), with intervals."""
    figures: Figures = {}
    for attack, measures in FACE_ATTACKS.items():
        for measure, name in zip(measures, ATTACK_FIGURES_TOLD, strict=True):
            told = of_pool["attacks"][attack][name]
            figures[measure.key, pool] = Figure(told["value"], told["low"], told["high"], told["why"] or None)
    accuracy = figures["u-mia_accuracy", pool]
    chosen = f"attack of each round: {of_pool['U-MIA attack']}"
    figures["u-mia_accuracy", pool] = accuracy._replace(why="; ".join(filter(None, (accuracy.why, chosen))))
    return figures


def has_distance(key: str, task: str) -> bool:
    """Whether a figure gets a distance to gold here."""
    attacks = {measure.key for measures in FACE_ATTACKS.values() for measure in measures}
    return key in attacks | {EER.key} or (key == "exact_memorization" and task in OTHER_PEOPLE)


def add_distances(results: dict[str, ModelResult], other_golds: list[Figures]) -> None:
    """Add the distance to gold of every face figure to the results in place, or why it is undefined.

    Args:
        results: Method -> result, of one seed. The distance is (model - gold) / (base - gold).
        other_golds: The face figures of the seed's further gold models, from which the noise floor comes.
    """
    base, gold = results["base"], results["gold"]
    trained = [result for result in results.values() if not result.value("failed")]
    for key, task in [place for place in base.figures if has_distance(*place)]:
        others = [figures[key, task].value for figures in other_golds if (key, task) in figures]
        others = [value for value in others if value is not None]
        for result in trained:
            values = [each.value(key, task) for each in (result, base, gold)]
            if None in values:
                why = "the model, the base or gold has no such figure"
                result.figures[f"distance_to_gold:{key}", task] = Figure(None, why=why)
            else:
                distance = distance_to_gold(*values, others)
                result.figures[f"distance_to_gold:{key}", task] = Figure(distance.value, why=distance.why or None)
                if others:
                    result.figures[f"noise_floor:{key}", task] = Figure(distance.noise)


# ---- the attack's verdict


class Estimate(NamedTuple):
    """A figure with its 95 % interval; None: too few people for one."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def attack_accuracy(result: ModelResult | None) -> Estimate | None:
    """The accuracy of U-LiRA on the forgotten people; None: the model was not attacked."""
    if result is None or result.value("u-lira_accuracy", "forget") is None:
        return None
    return Estimate(*result.figure("u-lira_accuracy", "forget")[:3])


def attack_verdict(results: list[ModelResult]) -> dict[str, Any] | None:
    """Whether the attack can tell anything, in words.

    It can where gold's accuracy on the forgotten people is near one half (its interval holds one half) and the base's
    accuracy is clearly above gold's (the intervals do not touch). Without intervals neither is known.

    Returns:
        title, text, why and whether it passed, for the first seed; None: nothing was attacked.
    """
    of_first_seed = {result.method: result for result in reversed(results)}
    gold = attack_accuracy(of_first_seed.get("gold"))
    base = attack_accuracy(of_first_seed.get("base"))
    if gold is None or base is None:
        return None
    if gold.low is None or base.low is None:
        why = f"U-LiRA accuracy, gold {gold.value:.3f}; base {base.value:.3f}: too few people for intervals, "
        why += "so that nothing is known of the methods' figures."
        return {"passed": False, "title": "Attack", "text": "undecided", "why": why}
    passed = gold.low <= 0.5 <= gold.high and base.low > gold.high
    meaning = "gold is near one half and the base clearly above it"
    if not passed:
        meaning = "without both, the attack's figures of the methods mean nothing"
    why = f"U-LiRA accuracy, gold {gold}; base {base}: {meaning}."
    return {"passed": passed, "title": "Attack", "text": "passed" if passed else "failed", "why": why}
