"""Face recognition in the result rows: verification, attacks, their distances to gold, and the attack's verdict."""

from pathlib import Path
from typing import Any, NamedTuple

from aggregate_eval_stat import Row
from engine.metrics import distance_to_gold
from engine.record import ATTACK_FIGURES, VERIFICATION, read_json

# names in the attack's record -> names in a column
ATTACK_MEASURES = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "TPR at 1% FPR": "TPR at 1% FPR",
    "TPR at 0.1% FPR": "TPR at 0.1% FPR",
}
# beginnings of the columns that get a distance to gold here; the aggregation itself gives one to the accuracy on the
# forgotten people's queries
MEASURES_WITH_DISTANCE = (
    "EER",
    "U-LiRA",
    "U-MIA",
    "Exact Memorization eval_retain_faces",
    "Exact Memorization eval_holdout_faces",
)
VERDICT_COLUMN = "U-LiRA accuracy forget"


def read_verification(model: Path) -> dict[str, Any] | None:
    """Group -> verification figures of a model's queries; None: the model is of another modality."""
    file = model / "eval_results" / VERIFICATION
    return read_json(file) if file.is_file() else None


def read_attack(model: Path) -> dict[str, Any] | None:
    """The figures of the attack beside a model; None: it was not attacked."""
    file = model / "attack_results" / ATTACK_FIGURES
    return read_json(file) if file.is_file() else None


# ---- columns


def face_columns(model: Path) -> Row:
    """Columns of the verification and attack figures beside a model; none for a model of another modality."""
    verification = read_verification(model) or {}
    row: Row = {f"EER {group}": of_group["eer"] for group, of_group in verification.items()}
    attack = read_attack(model)
    for pool, of_pool in attack["pools"].items() if attack else ():
        row |= attack_columns(pool, of_pool)
    return row


def attack_columns(pool: str, of_pool: dict[str, Any]) -> Row:
    """Columns of each attack on one pool of people (forget or retain), with intervals."""
    row: Row = {}
    for attack, measures in of_pool["attacks"].items():
        for measure, name in ATTACK_MEASURES.items():
            figure = measures[measure]
            column = f"{attack} {name} {pool}"
            row |= {column: figure["value"], f"{column} low": figure["low"], f"{column} high": figure["high"]}
            if figure["why"]:
                row[f"{column} why"] = figure["why"]
    row[f"U-MIA attack {pool}"] = of_pool["U-MIA attack"]
    return row


def has_distance(column: str) -> bool:
    """Whether a column gets a distance to gold here."""
    beside = column.startswith("U-MIA attack") or column.endswith((" low", " high", " why"))
    return column.startswith(MEASURES_WITH_DISTANCE) and not beside


def add_distances(rows: list[Row], other_golds: dict[int, list[Row]]) -> None:
    """Add the distance to gold of every face column to the rows in place, or why it is undefined.

    Args:
        rows: The rows of all seeds. The distance is (model - gold) / (base - gold), within a seed.
        other_golds: Seed -> the face columns of its further gold models, from which the noise floor comes.
    """
    for seed in {row["Seed"] for row in rows}:
        models = {row["Method"]: row for row in rows if row["Seed"] == seed}
        base = models.get("base", {})
        gold = models.get("gold", {})
        for column in [name for name in base if has_distance(name) and name in gold]:
            others = [other[column] for other in other_golds.get(seed, []) if other.get(column) is not None]
            for row in models.values():
                if None not in (row.get(column), base[column], gold[column]):
                    row |= distance_columns(column, row[column], base[column], gold[column], others)


def distance_columns(column: str, model: float, base: float, gold: float, others: list[float]) -> Row:
    """The distance of one figure, and why it is undefined where it is."""
    distance = distance_to_gold(model, base, gold, others)
    name = f"Distance to gold: {column}"
    return {name: distance.value} | ({f"{name} why": distance.why} if distance.value is None else {})


# ---- the attack's verdict


class Estimate(NamedTuple):
    """A figure with its 95 % interval; None: too few people for one."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def attack_accuracy(row: Row) -> Estimate | None:
    """The accuracy of U-LiRA on the forgotten people; None: the model was not attacked."""
    if row.get(VERDICT_COLUMN) is None:
        return None
    return Estimate(*(row[f"{VERDICT_COLUMN}{end}"] for end in ("", " low", " high")))


def attack_verdict(rows: list[Row]) -> dict[str, Any] | None:
    """Whether the attack can tell anything, in words.

    It can where gold's accuracy on the forgotten people is near one half (its interval holds one half) and the base's
    accuracy is clearly above gold's (the intervals do not touch). Without intervals neither is known.

    Returns:
        title, text, why and whether it passed, for the first seed; None: nothing was attacked.
    """
    of_first_seed = {row["Method"]: row for row in reversed(rows)}
    gold = attack_accuracy(of_first_seed.get("gold", {}))
    base = attack_accuracy(of_first_seed.get("base", {}))
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
