"""Logs of attacks on one model: read from where attack.py left them, and compared with those of another model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import parquet

from engine.logs import TaskLog, read_json, read_task, recorded
from engine.record import ATTACK_FOLDER, ATTACK_RECORD, EVAL_RECORD
from settings.attacks import CLEAN, READ
from settings.script import SettingsError


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
        read: The same -> row -> what was read from the model without its answer, from 0 to 1; of readers alone.
    """

    name: str
    meta: dict[str, Any]
    logs: dict[str, TaskLog]
    tokens: dict[str, dict[str, TokenRow]]
    read: dict[str, dict[str, float]]

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
    if recorded(meta, "settings", "shadows_dir") is not None:
        return None  # of attacks on a face network, whose figures are others
    attacks = recorded(meta, "attacks")
    if not isinstance(attacks, dict) or CLEAN not in attacks:
        raise SettingsError(f"{name}: {str(record)!r} is no record of attacks on a model that reads")
    made = AttackLogs(name, meta, {}, {}, {})
    for attack in attacks:
        file = folder / f"{attack}.json"
        if not file.is_file() or not file.with_suffix(".parquet").is_file():
            raise SettingsError(f"{name}: {str(record)!r} names {attack!r}, and {str(file)!r} or its .parquet is gone")
        content = read_json(name, file)
        if not isinstance(content, dict):
            raise SettingsError(f"{name}: {str(file)!r} is no log of an attack")
        for key, rows in content.items():
            made.logs[key] = read_task(f"{name}: {key}", rows)
            if READ in rows:
                made.read[key] = read_shares(f"{name}: {key}", rows[READ], made.logs[key].rows)
        add_tokens(made.tokens, file.with_suffix(".parquet"))
    return made


def read_shares(where: str, shares: Any, rows: Sequence[str]) -> dict[str, float]:
    """What was read of each row. Raises SettingsError unless it is a number from 0 to 1 for exactly these rows."""
    is_whole = isinstance(shares, dict) and shares.keys() == set(rows)
    if not is_whole or not all(isinstance(value, int | float) and 0 <= value <= 1 for value in shares.values()):
        raise SettingsError(f"{where}: {READ} must be a number from 0 to 1 for each of its rows")
    return shares


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
        check_left_out_alike(name, one, other)
    for setting in ("seed", "limit", "max_new_tokens", "attacked", "model.weights"):
        values = [recorded(each.meta, "settings", *setting.split(".")) for each in (one, other)]
        if values[0] != values[1]:
            raise SettingsError(f"{one.name} and {other.name} were attacked with {setting} {values[0]} and {values[1]}")
    check_asked_alike(one, other)
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


def check_left_out_alike(attack: str, one: AttackLogs, other: AttackLogs) -> None:
    """Raise SettingsError where an attack is applicable to one of two models alone."""
    reasons = {each.name: each.attacks[attack].get("left_out") for each in (one, other)}
    for name, why in reasons.items():
        if why and not all(reasons.values()):
            raise SettingsError(
                f"attack {attack!r} is not applicable to {name}, and to another model it is: {why}; attack all of them "
                f"without it, ~attacks.{attack}"
            )


def check_asked_alike(one: AttackLogs, other: AttackLogs) -> None:
    """Raise SettingsError where the tasks of two models ask their rows otherwise."""
    asked, of_other = asked_in(one), asked_in(other)
    if differs := [name for name in asked if asked[name] != of_other.get(name)]:
        raise SettingsError(f"{one.name} and {other.name} were asked otherwise: tasks.{differs[0]} differs")


def asked_in(logs: AttackLogs) -> dict[str, dict[str, Any]]:
    """Task -> how its rows are asked, without the places of the data, whose content is compared."""
    tasks = recorded(logs.meta, "settings", "tasks") or {}
    return {name: {**task, "dataset": "", "people": None} for name, task in tasks.items()}


def base_of(logs: AttackLogs) -> str | None:
    """The fingerprint of the model before forgetting that a run was told."""
    models = recorded(logs.meta, "inputs", "models")
    return models[-1] if isinstance(models, list) and models else None


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
