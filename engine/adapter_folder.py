"""A model in a folder that holds its adapter alone: the base that it was trained over stands elsewhere, named in the
folder by path and fingerprint.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, set_peft_model_state_dict
from peft.mapping_func import get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from engine.adapters import LanguageModel
from engine.record import NO_FOLDER, model_fingerprint, read_json, write_json
from settings.script import SettingsError, first_line

ADAPTER, TENSORS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base.json"  # what names the base


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained over."""

    path: str  # as it was given
    from_here: str  # the same, from the adapter's folder, so that both may move together; empty for a hub id
    fingerprint: str  # of its folder
    weights: str  # their dtype while the adapter was trained
    quantize: str  # likewise: none, 8bit, 4bit


def base_of(path: str, weights: str, quantize: str) -> Base:
    """What names the model at `path` as the base of an adapter."""
    return Base(path, "", model_fingerprint(path), weights, quantize)


def is_adapter_folder(path: str) -> bool:
    """Whether a folder holds an adapter with what names its base."""
    return (Path(path) / BASE).is_file()


def write_adapter(model: LanguageModel, base: Base, folder: Path) -> None:
    """Write an adapter, its base's name and the model's configuration to a folder, which may be renamed."""
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    model.get_base_model().config.save_pretrained(folder)  # tokenizers and processors ask for it
    is_folder = not base.fingerprint.startswith(NO_FOLDER)
    from_here = os.path.relpath(Path(base.path).absolute(), folder.absolute()) if is_folder else ""
    write_json(folder / BASE, {**asdict(base), "from_here": from_here})


def read_base(path: str, name: str = "model_path") -> Base:
    """What an adapter's folder says of its base, with a path at which it is.

    Raises SettingsError where the base is gone or is no longer what it was, or where nothing of use is said.
    """
    told = read_json(Path(path) / BASE)
    try:
        base = Base(**told)
    except TypeError:
        raise SettingsError(f"{name}={path!r}: its {BASE} does not name a base as trainer.save=adapter does") from None
    if base.fingerprint.startswith(NO_FOLDER):
        return base
    places = [str(Path(path, base.from_here)), base.path] if base.from_here else [base.path]
    there = [os.path.normpath(place) for place in places if Path(place).is_dir()]
    if not there:
        raise SettingsError(
            f"{name}={path!r} holds an adapter alone, and its base {base.path!r} is gone; put it back, or train "
            "with trainer.save=merged"
        )
    for place in there:
        if model_fingerprint(place) == base.fingerprint:
            return Base(place, base.from_here, base.fingerprint, base.weights, base.quantize)
    raise SettingsError(
        f"{name}={path!r} holds an adapter of another model than {there[0]!r} holds now (fingerprint "
        f"{model_fingerprint(there[0])}, and it was trained over {base.fingerprint})"
    )


def check_adapter_folder(path: str, name: str = "model_path") -> str:
    """The path of the base; raises SettingsError unless the folder's adapter and its base can be read."""
    if not (Path(path) / TENSORS).is_file():
        raise SettingsError(f"{name}={path!r} holds no adapter weights ({TENSORS})")
    return read_base(path, name).path


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn an adapter that cannot be read into a SettingsError."""
    try:
        yield
    except SettingsError:
        raise
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        why = " ".join(first_line(error).split())[:300]
        raise SettingsError(f"model_path={path!r}: its adapter could not be read: {why}") from None


def with_adapter(model: LanguageModel, path: str, dtype: str) -> LanguageModel:
    """A base in the dtype that it was trained in, with the adapter of a folder added to its weights, in `dtype`.

    The sum is made in fp32 in main memory, as where merged weights are saved, so that both give the same model.
    Raises SettingsError where the adapter lacks a tensor or does not fit the base.
    """
    with readable(path):
        config = PeftConfig.from_pretrained(path)
        config.base_model_name_or_path = None  # else peft warns where the base has moved
        made = get_peft_model(model.float(), config)
        tensors = load_file(Path(path) / TENSORS)
        wanted = {name for name, _ in made.named_parameters() if ".lora_" in name}
        found = {name.replace(".weight", ".default.weight") for name in tensors}
        if wanted != found:
            odd = sorted(wanted ^ found)[0]
            raise SettingsError(f"model_path={path!r}: its adapter and its base differ in tensor {odd!r}")
        set_peft_model_state_dict(made, tensors)
    merged: Any = made.merge_and_unload()
    kind = getattr(torch, dtype)
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(kind)
    merged.config.dtype = kind
    return without_trace(merged)


def without_trace(model: LanguageModel) -> LanguageModel:
    """The model as if it had never had an adapter, so that it can get another one."""
    for module in model.modules():
        if isinstance(module, nn.Module) and hasattr(module, "peft_config"):
            del module.peft_config
    return model.requires_grad_(True)
