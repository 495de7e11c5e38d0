"""Evaluated models: where their logs lie, and what their records say of how they were made."""

import glob
import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from natsort import natsorted

from engine.logs import EvalLog, read_records, recorded
from engine.record import (
    AGGREGATED,
    ATTACK_RECORD,
    EVAL_FOLDER,
    EVAL_RECORD,
    TRAIN_RECORD,
    decisive_settings,
    flat,
    model_fingerprint,
)
from settings.script import SettingsError

GLOB = frozenset("*?[")
UNKNOWN = ""
UNFINISHED = (".partial", ".former", ".tasks", ".checkpoints")  # endings of folders beside those that a run writes
TAUGHT = ("finetune", "pretrain")  # what the record of a training that forgets nobody calls its method
DIGITS = 8  # of a fingerprint in a table
CODE = "fingerprint of the code"  # among the settings of a training
# last parts of the names of settings that say where something stands: what stands there decides, and not where
OF_PLACES: tuple[str, ...] = (
    "path",
    "text_path",
    "made_by",
    "made_at",
    "idk_questions",
    "idk_pictures",
    "split_file",
    "file",
    "alternatives",
    "gold_result",
    "dataset",
)


@dataclass(frozen=True)
class Origin:
    """How a row was made, and what it was measured against: fingerprints, empty for what is not known or not given."""

    settings: str  # all that its records say of its training but the seed, as JSON
    began_with: str  # the model that it was made from
    log: str
    taught: str  # how its base was taught, but with which seed
    base: str  # before forgetting; of several bases all
    golds: str
    start: str  # before it was taught anybody
    data: str  # tasks, rows, right answers, how the questions were drawn, and the precision of the weights
    measures: str  # how the figures were computed: the code, the scoring, the Truth Ratio

    @property
    def against(self) -> tuple[str, ...]:
        """What must be equal for two rows to be compared."""
        return tuple(getattr(self, name) for name in AGAINST)


AGAINST = {  # part of an origin -> what a line calls it
    "base": "another base",
    "golds": "other golds",
    "start": "another start",
    "data": "other data or questions",
    "measures": "another version of the measures",
}
# part of an origin -> its column in a table with a row per model
ORIGIN_COLUMNS = {
    "settings": "Settings",
    "began_with": "Began with",
    "log": "Log",
    "taught": "Base was taught",
    "base": "Against base",
    "golds": "Against golds",
    "start": "Against start",
    "data": "Against data",
    "measures": "Measures version",
}
assert list(ORIGIN_COLUMNS) == [field.name for field in fields(Origin)]


# ---- where logs lie


def find_logs(name: str, value: str) -> list[Path]:
    """The logs that a setting's text names: a log, a model's folder or a glob of these.

    Args:
        name: The setting, for messages.
        value: A path. One that exists is no glob.

    Raises:
        SettingsError: Nothing is there, or a folder holds no log, or several.
    """
    path = Path(value)
    if path.is_file():
        return [path]
    if path.is_dir():
        return [log_of_folder(name, path)]
    if not GLOB & set(value):
        raise SettingsError(f"{name}={value!r}: no such file; it names the {AGGREGATED} of an evaluated model")
    found = [Path(each) for each in natsorted(glob.glob(value, recursive=True))]
    typed = set(Path(value).parts)  # what somebody typed is meant, whatever it ends with
    found = [each for each in found if not is_unfinished(set(each.parts) - typed)]
    logs = [each for each in found if each.is_file() and each.suffix == ".json"]
    for folder in [each for each in found if each.is_dir()]:
        of_folder = logs_of_folder(folder)
        logs += of_folder
        if not of_folder and (folder / TRAIN_RECORD).is_file():  # else a seed would be missing without a word
            print(f"{name}: {folder} is left out: it was not evaluated", file=sys.stderr)
    logs = [log for log in logs if log.name not in (EVAL_RECORD, TRAIN_RECORD, ATTACK_RECORD)]
    if not logs:
        what = f"{len(found)} files and folders, none with a log" if found else "nothing"
        raise SettingsError(f"{name}={value!r} matches {what}; it names logs ({AGGREGATED}) or folders of models")
    return list({log.resolve(): log for log in logs}.values())


def log_of_folder(name: str, folder: Path) -> Path:
    """The log in a model's folder, or beside it; raises SettingsError where there is none, or several."""
    found = logs_of_folder(folder)
    if not found:
        raise SettingsError(
            f"{name}={str(folder)!r} holds no {AGGREGATED}, and none beside it is of this model: evaluate it with "
            f"eval.py model_path={folder}"
        )
    if len(found) > 1:
        raise SettingsError(f"{name}={str(folder)!r} holds several logs: name one of {', '.join(map(str, found))}")
    return found[0]


def logs_of_folder(folder: Path) -> list[Path]:
    """The logs of a model: those in its folder, else those beside it."""
    return logs_in(folder) or logs_beside(folder)


def is_unfinished(parts: Iterable[str]) -> bool:
    """Whether one of the parts of a path is what an interrupted run left."""
    return any(part.endswith(UNFINISHED) for part in parts)


def logs_in(folder: Path) -> list[Path]:
    """The logs of a model's folder: that in `eval_results`, or of a folder of logs its own, else those one below."""
    for own in (folder / EVAL_FOLDER / AGGREGATED, folder / AGGREGATED):
        if own.is_file():
            return [own]
    return natsorted(folder.glob(f"*/{AGGREGATED}"), key=str)


def logs_beside(folder: Path) -> list[Path]:
    """The logs in neighbouring folders whose record says that they are of the model in `folder`."""
    found = []
    for log in natsorted(folder.parent.glob(f"*/{AGGREGATED}"), key=str):
        told = read_records("log", log)[0].get("model")
        if told is not None and told == model_fingerprint(str(folder)):
            found.append(log)
    return found


def logs_below(folder: Path) -> Iterator[Path]:
    """Every log in a folder and below, without those that an interrupted run left."""
    for log in natsorted(folder.rglob(AGGREGATED), key=str):
        if not is_unfinished(log.relative_to(folder).parts):
            yield log


def model_name_of(log: Path) -> str:
    """What a model is called that no record names: its folder, or its log's own name."""
    if log.name != AGGREGATED:
        return log.stem
    folder = log.resolve().parent
    return folder.parent.name if folder.name == EVAL_FOLDER else folder.name


# ---- what records say


def method_of(train_meta: dict[str, Any]) -> str | None:
    """The method that a model was made by; None: no record says it, or it was made to forget nobody."""
    method = train_meta.get("method")
    return method if isinstance(method, str) and method not in TAUGHT else None


def began_with(train_meta: dict[str, Any]) -> str:
    """The fingerprint of the model that a training began with; empty where no record says it."""
    models = recorded(train_meta, "inputs", "models")
    return models[0] if isinstance(models, list) and models and isinstance(models[0], str) else UNKNOWN


def made_from(train_metas: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Model -> the model that it began with, of those that were made to forget.

    Args:
        train_metas: Fingerprint of a model -> the record of its training.
    """
    return {model: began_with(record) for model, record in train_metas.items() if method_of(record)}


def base_among(bases: Collection[str], model: str, parents: Mapping[str, str]) -> str | None:
    """The one of several bases that a model was made from, through other models that were made to forget; None: none.

    Args:
        bases: Fingerprints.
        model: The fingerprint of the model; a base is its own.
        parents: What `made_from` tells.
    """
    seen: set[str] = set()
    while model not in seen:
        if model in bases:
            return model
        seen.add(model)
        model = parents.get(model, UNKNOWN)
    return None


def how_taught(train_meta: dict[str, Any], leave_out: Collection[str] = ()) -> tuple:
    """The model that a training began with and all that decided it but its seed and the code, which may have changed in
    between; empty: not recorded.

    Args:
        train_meta: The record of the training.
        leave_out: Settings that do not matter.
    """
    told = training_settings(train_meta)
    left = {*leave_out, CODE}
    kept = sorted((name, repr(value)) for name, value in told.items() if name not in left)
    return (began_with(train_meta), *kept) if told else ()


def training_settings(train_meta: dict[str, Any]) -> dict[str, Any]:
    """Name -> value of all that decided a training but its seed: settings, data, files and code; empty: not recorded.

    What only says where something stands is replaced by fingerprints of what stood there.
    """
    settings = recorded(train_meta, "settings")
    if not isinstance(settings, dict) or not settings:
        return {}
    told = {name: value for name, value in flat(decisive_settings(settings)).items() if decides(name)}
    inputs = {f"fingerprint of the {kind}": recorded(train_meta, "inputs", kind) for kind in ("data", "files")}
    code = {CODE: train_meta.get("code")}
    return told | {name: value for name, value in (inputs | code).items() if value}


def decides(name: str) -> bool:
    """Whether a setting decides a training, and is neither its seed nor a place."""
    return name != "seed" and name.rpartition(".")[2] not in OF_PLACES and not name.startswith("data.made_with")


def digest_of(content: Any) -> str:
    """A short hash of anything that JSON can say."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def fingerprint_of(log: EvalLog) -> str:
    """What tells an evaluated model from another: the fingerprint in its record, else a hash of its log."""
    told = log.meta.get("model")
    return told if isinstance(told, str) else digest_of(losses_of(log))


def losses_of(log: EvalLog) -> dict[str, Any]:
    """What a log holds of every row, in so far as it differs between models."""
    return {name: [task.losses.tolist(), task.rouge.tolist(), task.generations] for name, task in log.tasks.items()}


def data_of(log: EvalLog) -> str:
    """A hash of what was asked: tasks, rows, people, right answers, how the questions were drawn, and with weights of
    which precision.
    """
    rows = {name: [task.rows, task.truths, task.people] for name, task in log.tasks.items()}
    drawn = ("seed", "affix_seed", "limit", "fold", "validation_share", "max_new_tokens")
    prints = {name: recorded(log.meta, "data", name, "fingerprint") for name in log.tasks}
    affixes = {name: recorded(log.meta, "data", name, "affixes") for name in log.tasks}
    weights = recorded(log.meta, "settings", "model", "weights")
    return digest_of([rows, prints, affixes, weights, [recorded(log.meta, "settings", name) for name in drawn]])


def as_columns(origin: Origin) -> dict[str, str]:
    """An origin as columns of a table."""
    return {ORIGIN_COLUMNS[name]: value for name, value in asdict(origin).items()}
