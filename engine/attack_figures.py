"""Logs of attacks on a judged model, on base and on golds -> its figures: a level per attack, and a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pyarrow import parquet

from engine import metrics
from engine.attack_levels import (
    NOT_APPLICABLE,
    Answers,
    Attacked,
    Level,
    Verdict,
    judge,
    key_positions,
    level_of,
    overall,
    worst_of,
    worst_of_rows,
)
from engine.logs import TaskLog, read_json, read_task, recorded
from engine.record import ATTACK_FOLDER, ATTACK_RECORD, EVAL_RECORD
from engine.result_table import Figure, Figures
from settings.attacks import CLEAN, KEY_TOKENS, MEASURES_OF_ATTACKS
from settings.script import SettingsError

NO_GAP = "base is not clearly above gold in any measure"


class TokenRow(NamedTuple):
    """The right answer of a row, token by token, its end last."""

    tokens: list[int]
    losses: list[float]
    is_first_choice: list[bool]
    told: list[bool]  # whether the prompt holds the token; empty: nothing was told


@dataclass(frozen=True)
class AttackLogs:
    """What one model's attacks came to.

    Attributes:
        name: The setting that the model came from, for messages.
        meta: The record of the run.
        logs: <task>@<attack>, with what was varied behind it -> rows.
        tokens: The same -> row -> its answer token by token.
    """

    name: str
    meta: dict[str, Any]
    logs: dict[str, TaskLog]
    tokens: dict[str, dict[str, TokenRow]]

    @property
    def attacks(self) -> dict[str, Any]:
        """Name of an attack -> what the record says of it; the rows without an attack are not among them."""
        return {name: each for name, each in self.meta["attacks"].items() if name != CLEAN}


def attack_folder(log: Path) -> Path:
    """Where the attacks on the model lie that an evaluation's log is of."""
    return log.parent.with_name(ATTACK_FOLDER)


def read_attack_logs(name: str, folder: Path) -> AttackLogs | None:
    """The logs in a folder that attack.py wrote; None: there is no such folder.

    Args:
        name: Of the model, for messages.
        folder: Its attack_results.

    Raises:
        SettingsError: a file is missing, or holds something else than such logs.
    """
    record = folder / ATTACK_RECORD
    if not record.is_file():
        return None
    meta = read_json(name, record)
    attacks = recorded(meta, "attacks")
    if not isinstance(attacks, dict) or CLEAN not in attacks:
        raise SettingsError(f"{name}: {str(record)!r} is no record of attacks on a model that reads")
    made = AttackLogs(name, meta, {}, {})
    for attack in attacks:
        file = folder / f"{attack}.json"
        if not file.is_file() or not file.with_suffix(".parquet").is_file():
            raise SettingsError(f"{name}: {str(record)!r} names {attack!r}, and {str(file)!r} or its .parquet is gone")
        content = read_json(name, file)
        if not isinstance(content, dict):
            raise SettingsError(f"{name}: {str(file)!r} is no log of an attack")
        for key, rows in content.items():
            made.logs[key] = read_task(f"{name}: {key}", rows)
        add_tokens(made.tokens, file.with_suffix(".parquet"))
    return made


def add_tokens(tokens: dict[str, dict[str, TokenRow]], file: Path) -> None:
    """Put the answers of a file, token by token, to those by task and row."""
    for row in parquet.read_table(file).to_pylist():
        own = TokenRow(row["tokens"], row["losses"], row["first_choice"], row["told"] or [])
        tokens.setdefault(row["task"], {})[str(row["row"])] = own


def check_alike(one: AttackLogs, other: AttackLogs) -> None:
    """Raise SettingsError where two models were attacked otherwise, or with other rows."""
    if missing := sorted(set(one.attacks) ^ set(other.attacks)):
        there, lacks = (one, other) if missing[0] in one.attacks else (other, one)
        raise SettingsError(f"{lacks.name} lacks attack {missing[0]!r}, which {there.name} has: attack both alike")
    for name, own in one.attacks.items():
        if own.get("attack") != other.attacks[name].get("attack"):
            raise SettingsError(f"{one.name} and {other.name} were attacked with other values of {name!r}")
    for setting in ("seed", "limit", "max_new_tokens", "attacked", "model.weights"):
        values = [recorded(each.meta, "settings", *setting.split(".")) for each in (one, other)]
        if values[0] != values[1]:
            raise SettingsError(f"{one.name} and {other.name} were attacked with {setting} {values[0]} and {values[1]}")
    told = [[each.meta.get("data"), recorded(each.meta, "inputs", "files")] for each in (one, other)]
    if told[0] != told[1]:
        raise SettingsError(f"{one.name} and {other.name} were attacked on different data or with different words")
    if base_of(one) != base_of(other):
        raise SettingsError(f"{one.name} and {other.name} were attacked with other models as base_path: take one base")
    for key in sorted(set(one.logs) | set(other.logs)):
        own, others = one.logs.get(key), other.logs.get(key)
        if own is None or others is None or (own.rows, own.truths) != (others.rows, others.truths):
            raise SettingsError(
                f"{one.name} and {other.name} cover different rows of {key}: are they of one tokenizer?"
            )


def base_of(logs: AttackLogs) -> str | None:
    """The fingerprint of the model before forgetting that a run was told."""
    models = recorded(logs.meta, "inputs", "models")
    return models[-1] if isinstance(models, list) and models else None


# ---- rows as measures


@dataclass(frozen=True)
class Models:
    """The judged model, base and golds, and which tokens of an answer a model must have met the person for."""

    model: AttackLogs
    base: AttackLogs
    golds: list[AttackLogs]
    keys: dict[str, dict[str, list[int]]]  # task -> row -> positions

    def answers(self, clean: str, keys: Sequence[str], states: Sequence[str]) -> Answers:
        """Rows of all models, of several tries the most revealing.

        Args:
            clean: The task, with @clean.
            keys: The logs of the tries, whose rows are taken.
            states: Where the values come from: `keys` themselves, or the clean log for each.
        """

        def of(logs: AttackLogs, chooses: bool) -> np.ndarray:
            tries: list[np.ndarray] = []
            for key, state in zip(keys, states, strict=True):
                tries.append(values_of(logs, clean, key, state, self.positions(clean, chooses)))
            return worst_of_rows(tries)

        golds = [of(gold, number == 0) for number, gold in enumerate(self.golds)]
        return Answers(of(self.model, False), of(self.base, False), np.stack(golds))

    def positions(self, clean: str, chooses: bool) -> dict[str, list[int]]:
        """Row -> its key tokens; none for the gold that they were chosen with."""
        return {} if chooses else self.keys.get(clean, {})


def models_of(model: AttackLogs, base: AttackLogs, golds: list[AttackLogs]) -> Models:
    """The models with the key tokens of the forgotten people's answers, which the first gold and base choose."""
    keys: dict[str, dict[str, list[int]]] = {}
    for task in recorded(base.meta, "settings", "attacked"):
        clean = f"{task}@{CLEAN}"
        keys[clean] = {}
        for row, own in golds[0].tokens[clean].items():
            keys[clean][row] = key_positions(own.losses, base.tokens[clean][row].losses)
    return Models(model, base, golds, keys)


def values_of(logs: AttackLogs, clean: str, key: str, state: str, positions: Mapping[str, list[int]]) -> np.ndarray:
    """The rows of `key` as measures (n, K), their values from the log `state`, which is `key` or the clean one."""
    rows, log = logs.logs[key].rows, logs.logs[state]
    places = {row: place for place, row in enumerate(log.rows)}
    at = [places[row] for row in rows]
    made = np.full((len(rows), len(MEASURES_OF_ATTACKS)), np.nan)
    for number, values in enumerate((log.exact_memorization, log.rouge, log.losses_without_end)):
        if values is not None:
            made[:, number] = metrics.probability(values[at]) if values is log.losses_without_end else values[at]
    for place, row in enumerate(rows):
        own = logs.tokens[state][row]
        judged = judged_tokens(logs.tokens[clean][row], logs.tokens[key][row], positions.get(row, []))
        if judged:
            made[place, -1] = np.mean([own.is_first_choice[-from_end] for from_end in judged])
    return made


def judged_tokens(clean: TokenRow, attacked: TokenRow, positions: Sequence[int]) -> list[int]:
    """Which key tokens an attacked answer still holds and is not told: how far each stands from the answer's end.

    An answer that was begun for the model has lost its first tokens, so that tokens are counted from the end.
    """
    same = 0
    for one, other in zip(reversed(clean.tokens), reversed(attacked.tokens), strict=False):
        if one != other:
            break
        same += 1
    found = []
    for position in positions:
        from_end = len(clean.tokens) - position
        is_told = bool(attacked.told) and from_end <= same and attacked.told[-from_end]
        if from_end <= same and not is_told:
            found.append(from_end)
    return found


# ---- figures


def attack_figures(model: AttackLogs, base: AttackLogs, golds: list[AttackLogs]) -> Figures:
    """A level for each attack on each forget task, and what is said of the model.

    Args:
        model: The judged model's logs.
        base: Those of the model before forgetting.
        golds: Those of at least two golds, none of which is the judged model.

    Raises:
        SettingsError: The models were attacked otherwise, or on other rows.
    """
    for other in (base, *golds):
        check_alike(model, other)
    if base_of(model) not in (None, base.meta.get("model")):
        raise SettingsError(f"{model.name} was attacked with another model as base_path than {base.name} is")
    tasks = list(recorded(model.meta, "settings", "attacked"))
    if unknown := [task for task in tasks if model.logs[f"{task}@{CLEAN}"].people is None]:
        return without_attack_figures(f"the people of {unknown[0]} are not known")
    models = models_of(model, base, golds)
    levels: list[Level] = []
    without: list[str] = []
    for attack, about in model.attacks.items():
        for name, keys in cells_of(model, attack, about).items():
            level = level_of(attacked_of(models, name, keys, about))
            if level is None:
                without.append(name)
            else:
                levels.append(level)
    verdicts = judge(levels)
    figures: Figures = overall_figures(verdicts, tasks_without(without, levels))
    for name in without:
        figures["attack_said", name] = Figure(NOT_APPLICABLE, why=NO_GAP)
    for each in verdicts:
        figures |= figures_of_level(each)
    for attack, about in model.attacks.items():
        figures |= recorded_figures(attack, about, tasks)
    return figures


def recorded_figures(attack: str, about: dict[str, Any], tasks: Sequence[str]) -> Figures:
    """What the record of an attack says by itself: why it was left out, and how many codes are base's."""
    figures: Figures = {}
    if about.get("left_out"):
        for task in tasks:
            figures["attack_said", f"{task}@{attack}"] = Figure(NOT_APPLICABLE, why=about["left_out"])
    for key, facts in (about.get("facts") or {}).items():
        if key.partition("@")[0] in tasks:
            figures["attack_equal_codes", key] = Figure(facts.get("equal_codes"))
    return figures


def cells_of(model: AttackLogs, attack: str, about: dict[str, Any]) -> dict[str, list[str]]:
    """What is judged of an attack: its name -> the logs of its tries; of what is no try each log has a name."""
    forget = recorded(model.meta, "settings", "attacked")
    cells: dict[str, list[str]] = {}
    for task in forget:
        start = f"{task}@{attack}"
        keys = [key for key in model.logs if key == start or key.startswith(f"{start}.")]
        for key in sorted(keys):
            name = start if recorded(about, "attack", "worst_of_tries") else key
            cells.setdefault(name, []).append(key)
    return cells


def attacked_of(models: Models, name: str, keys: list[str], about: dict[str, Any]) -> Attacked:
    """The rows of all models of what is judged: `keys` are the logs of its tries."""
    task = name.partition("@")[0]
    clean, control = f"{task}@{CLEAN}", recorded(models.model.meta, "settings", "attacked")[task]
    counted = tuple(recorded(about, "attack", "measures") or ())
    log = models.model.logs[keys[0]]
    if other := next((key for key in keys if models.model.logs[key].rows != log.rows), None):
        raise SettingsError(
            f"{models.model.name}: {keys[0]} and {other} cover different rows: they are no tries of one"
        )
    people = log.people or []  # known, as those of the clean rows are
    how: dict[str, Any] = {"counted": counted, "chosen": (KEY_TOKENS,)}
    asked = [key.replace(f"{task}@", f"{control}@", 1) for key in keys]
    if all(key in models.model.logs for key in asked):
        own = f"{control}@{CLEAN}"
        how["control"] = models.answers(own, asked, asked)
        how["control_clean"] = models.answers(own, asked, [own] * len(asked))
    attacked = models.answers(clean, keys, keys)
    without = models.answers(clean, keys, [clean] * len(keys))
    return Attacked(name, people, list(MEASURES_OF_ATTACKS), attacked, without, **how)


def figures_of_level(verdict: Verdict) -> Figures:
    """The figures of one attack."""
    level = verdict.level
    parts = [f"{MEASURE_WORDS[key]} {value:.2f}" for key, value in level.of_measure.items()]
    parts += [f"without {', '.join(MEASURE_WORDS[key] for key in level.off)}"] if level.off else []
    figures = {
        "attack_said": Figure(verdict.value, why=verdict.why),
        "attack_level": Figure(level.value, verdict.low, verdict.high, "; ".join(parts)),
        "attack_lift": Figure(level.lift),
        "attack_base": Figure(level.base),
        "attack_control": Figure(level.control, why=None if level.control is not None else "no kept people are asked"),
        "attack_kept": Figure(level.answers_kept),
    }
    return {(key, level.name): figure for key, figure in figures.items()}


def tasks_without(cells: Sequence[str], levels: Sequence[Level]) -> str | None:
    """The tasks of which no attack says anything, in words; None: there is none."""
    known = {level.name.partition("@")[0] for level in levels}
    lost = sorted({cell.partition("@")[0] for cell in cells} - known)
    return f"nothing can be said of {', '.join(lost)}: {NO_GAP}" if lost else None


def overall_figures(verdicts: Sequence[Verdict], missing: str | None) -> Figures:
    """What is said of the model over all attacks, and under which one it shows most."""
    figures = {("attack_verdict", ""): overall(verdicts, missing), ("attack_worst", ""): Figure(None)}
    if verdicts:
        worst = worst_of(verdicts)
        figures["attack_worst", ""] = Figure(worst.level.value, worst.low, worst.high, worst.level.name)
    return figures


MEASURE_WORDS = {
    "exact_memorization": "Exact Memorization",
    "rouge": "ROUGE",
    "probability_without_end": "Probability",
    KEY_TOKENS: "key tokens",
}


def without_attack_figures(why: str) -> Figures:
    """The verdict without a value, and why there is none."""
    return {("attack_verdict", ""): Figure(None, why=why), ("attack_worst", ""): Figure(None)}


def attack_figures_beside(model: Path, base: Path | None, golds: Sequence[Path]) -> Figures:
    """The figures of the attacks whose logs lie beside evaluations; none where the judged model was not attacked.

    A gold that is the judged model does not judge it.

    Args:
        model: The evaluation's log of the judged model.
        base: Of the model before forgetting; None: not given.
        golds: Of the golds.

    Raises:
        SettingsError: The models were attacked otherwise, or a file is no log of attacks, or of another model.
    """
    judged = attacks_beside("ckpt_result", model)
    if judged is None:
        return {}
    if base is None:
        return without_attack_figures("no base_result is given")
    of_base = attacks_beside("base_result", base)
    if of_base is None:
        return without_attack_figures("base was not attacked")
    found = [attacks_beside(f"retain_result[{number}]", gold) for number, gold in enumerate(golds)]
    others = [each for each in found if each is not None and each.meta.get("model") != judged.meta.get("model")]
    if len(others) < 2:
        return without_attack_figures(f"other golds that were attacked: {len(others)}, and two golds judge")
    return attack_figures(judged, of_base, others)


def attacks_beside(name: str, log: Path) -> AttackLogs | None:
    """The attacks on the model that an evaluation's log is of; None: it was not attacked.

    Raises SettingsError where what lies there is of another model.
    """
    found = read_attack_logs(name, attack_folder(log))
    record = log.parent / EVAL_RECORD
    evaluated = recorded(read_json(name, record), "model") if found and record.is_file() else None
    if found and evaluated is not None and evaluated != found.meta.get("model"):
        raise SettingsError(
            f"{name}: {str(attack_folder(log))!r} holds attacks on another model than {str(log)!r} is of; attack it "
            "again"
        )
    return found
