"""Whether a model gets its questions as the model before forgetting did: through the same template and tokenizer.

A template that looks for a name, and a tokenizer that does not know it, forget nothing: the weights still hold all of
it, and whoever loads them without these files has it back. Such a model is a hook and is ranked apart.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.files import content_digest
from engine.logs import EvalLog, TaskLog
from engine.record import is_part_of_a_model
from engine.result_table import Figure
from settings.script import SettingsError

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
OF_THE_LAST_USE = {  # what saving them anew may change: how texts were padded, and from where the tokenizer was loaded
    TOKENIZER: ("padding", "truncation", "version"),
    TOKENIZER_CONFIG: ("is_local", "local_files_only"),
}
READ_THROUGH = (
    TOKENIZER,
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*processor_config.json",
    "hook.json",
    "hook.safetensors",
)
HOOK, HOOK_TENSORS = "hook.json", "hook.safetensors"  # what steers the states of a layer
CONFIG = "config.json"
OF_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json")
OF_MODELS = ("generation_config.json", HOOK)
OF_WEIGHTS_ALONE = ("dtype", "torch_dtype", "use_cache")  # in config.json
SHOWN = 60  # characters of a prompt in a message


def reading_files(path: str) -> dict[str, str]:
    """The files of a model folder that stand between a question and the weights, each with its hash.

    Args:
        path: A model folder, or a hub id, of which nothing is known.

    Returns:
        Name -> 16 hexadecimal digits; empty for a hub id.
    """
    folder = Path(path)
    found = {file for pattern in READ_THROUGH for file in folder.glob(pattern) if file.is_file()}
    hashes = {file.relative_to(folder).as_posix(): hash_of_reading(file) for file in sorted(found)}
    old = folder / TOKENIZER_CONFIG  # where older versions of the library keep the template
    template = json.loads(old.read_text(encoding="utf-8")).get("chat_template") if old.is_file() else None
    return hashes if template is None else hashes | {f"{TOKENIZER_CONFIG}: chat_template": hash_of_value(template)}


def processor_files(path: str) -> tuple[tuple[str, str], ...]:
    """What a processor or a tokenizer may read in a model folder: each file's name with its hash; the hub's id itself.

    Two folders of the same files read texts and pictures alike. Nobody can list what all tokenizers read, so that only
    weights and records are left out. `config.json` is there: it may name the kind of tokenizer.

    Args:
        path: A model folder, or a hub id.

    Raises:
        SettingsError: A file cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        return ((path, ""),)
    files = [file for file in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")) if file.is_file()]
    others = [file for file in files if file.name not in OF_MODELS and not file.name.endswith(OF_WEIGHTS)]
    read = [file for file in others if is_part_of_a_model(file)]
    try:
        return tuple((file.relative_to(folder).as_posix(), hash_of_reading(file)) for file in sorted(read))
    except OSError as error:
        raise SettingsError(f"{str(error.filename)!r} cannot be read: {error.strerror}") from None


def hash_of_reading(file: Path) -> str:
    """Hash of a file between question and weights, 16 hexadecimal digits.

    Of a tokenizer's own files, how it was last told to pad and to cut does not count, nor from where it was loaded, nor
    do spaces in the JSON. Of the model's configuration, how its weights are held does not. The order of names counts in
    the tokenizer's configuration alone: tokens that only stand there are numbered by it.
    """
    if file.name not in (*OF_THE_LAST_USE, CONFIG):
        return content_digest(file).hex()[:16]
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        told = None
    if not isinstance(told, dict):
        return content_digest(file).hex()[:16]
    if file.name == CONFIG:
        return hash_of_value(without_weights(told))
    kept = {name: told[name] for name in told if name not in OF_THE_LAST_USE[file.name]}
    return hash_of_value(kept, in_order=file.name == TOKENIZER_CONFIG)


def without_weights(told: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration, those of its parts too, without how the weights are held."""
    kept = {name: value for name, value in told.items() if name not in OF_WEIGHTS_ALONE}
    return {name: without_weights(value) if isinstance(value, dict) else value for name, value in kept.items()}


def hash_of_value(value: object, *, in_order: bool = False) -> str:
    """Hash of what a JSON file holds somewhere, 16 hexadecimal digits; `in_order`: the order of names counts."""
    return hashlib.sha256(json.dumps(value, sort_keys=not in_order).encode()).hexdigest()[:16]


def hook_figure(model: EvalLog, base: EvalLog | None) -> Figure:
    """1 where a model is read in another way than base, 0 where it is not, and why.

    The prompts in the logs are compared, and the files of `reading_files` that the records of both evaluations name.

    Args:
        model: The judged model's log.
        base: The log of the model before forgetting, over the same rows; None: not given.
    """
    if base is None:
        return Figure(None, why="no base_result is given")
    why = read_otherwise((model.tasks, model.meta), (base.tasks, base.meta))
    if why is None and not (model.meta.get("reading") and base.meta.get("reading")):
        return Figure(0.0, why="prompts alone were compared: a record names no tokenizer")
    return Figure(float(bool(why)), why=why)


Read = tuple[Mapping[str, TaskLog], Mapping[str, Any]]  # logs by task, and the record of their run


def read_otherwise(model: Read, base: Read) -> str | None:
    """How a model gets its questions otherwise than base, in words; None: it gets them alike."""
    return other_prompt(model[0], base[0]) or other_file(model[1], base[1])


def other_prompt(model: Mapping[str, TaskLog], base: Mapping[str, TaskLog]) -> str | None:
    """The first row whose prompt is not base's, in words; None: all are the same."""
    for task, of_model in model.items():
        of_base = base[task]
        if of_model.tried_affixes:  # each model has the prompts that give most away of it
            continue
        for row, prompt, expected in zip(of_model.rows, of_model.prompts, of_base.prompts, strict=True):
            if prompt != expected:
                return f"its prompt of {task}, row {row} is {prompt[:SHOWN]!r}, and base's is {expected[:SHOWN]!r}"
    return None


def other_file(model: Mapping[str, Any], base: Mapping[str, Any]) -> str | None:
    """The first file between questions and weights that both records name and that differs; None: there is none."""
    of_model, of_base = (record.get("reading") or {} for record in (model, base))
    if HOOK in of_model and HOOK not in of_base:
        return f"its {HOOK} stands beside the weights, which hold everything without it"
    if of_model and TOKENIZER in of_base and TOKENIZER not in of_model:
        return f"it has no {TOKENIZER}, and base has one"
    differing = [name for name in of_base if name in of_model and of_model[name] != of_base[name]]
    return f"its {differing[0]} is not base's" if differing else None
