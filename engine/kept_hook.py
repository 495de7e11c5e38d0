"""What a method leaves beside the weights: a hook that steers the states of a layer wherever the model is loaded.

The weights are those of the start, and whoever loads them without the hook has back what they hold.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.adapters import LanguageModel
from engine.reading import HOOK, HOOK_TENSORS
from settings.script import SettingsError, first_line

ERASER = "eraser"
OFF = "hook_is_off"  # of a model's attributes


@dataclass(frozen=True)
class KeptHook:
    """A layer's output h becomes h + strength (h . gate) direction, at each position by itself.

    A state is steered by what it is alone: a row has the same score whether its answer follows the prompt in one pass
    or in another, and whatever shares its batch.
    """

    layer: int  # decoder layer, from 0, whose output is steered
    strength: float
    gate: Tensor  # (H,)
    direction: Tensor  # (H,)


def layers_of(model: LanguageModel) -> nn.ModuleList:
    """The decoder layers of a language model."""
    return next(child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList))


def numbered_layer(model: LanguageModel, number: int, setting: str) -> nn.Module:
    """One of them. Raises SettingsError, which `setting` begins, where there are fewer."""
    layers = layers_of(model)
    if number >= len(layers):
        raise SettingsError(f"{setting}: {type(model).__name__} has layers 0 to {len(layers) - 1}")
    return layers[number]


def steered(states: Tensor, hook: KeptHook) -> Tensor:
    """States (..., H) as the hook leaves them, computed in fp32."""
    gate, direction = (each.to(states.device, torch.float32) for each in (hook.gate, hook.direction))
    exact = states.float()
    return (exact + hook.strength * (exact @ gate)[..., None] * direction).to(states.dtype)


def install(model: LanguageModel, hook: KeptHook) -> None:
    """Have every forward of a model go through a hook."""

    def steer(module: nn.Module, inputs: Any, output: Any) -> Any:
        if model.__dict__.get(OFF):
            return None
        if torch.is_tensor(output):
            return steered(output, hook)
        return (steered(output[0], hook), *output[1:])

    layers_of(model)[hook.layer].register_forward_hook(steer)
    model.__dict__["kept_hook"] = hook


def hook_of(model: nn.Module) -> KeptHook | None:
    """The hook that a model's forwards go through."""
    found: KeptHook | None = model.__dict__.get("kept_hook")
    return found


@contextlib.contextmanager
def without_hook(model: nn.Module) -> Iterator[None]:
    """The model as its weights alone make it, for a while; one without a hook stays as it is."""
    model.__dict__[OFF] = True
    try:
        yield
    finally:
        del model.__dict__[OFF]


def write_hook(model: nn.Module, folder: Path) -> None:
    """Write a model's hook beside its weights, if it has one."""
    if hook := hook_of(model):
        save_file({"gate": hook.gate.cpu(), "direction": hook.direction.cpu()}, folder / HOOK_TENSORS)
        told = {"rule": ERASER, "layer": hook.layer, "strength": hook.strength}
        (folder / HOOK).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def install_hook_of(path: str, model: LanguageModel) -> None:
    """Install the hook that stands in a model's folder, if there is one. Raises SettingsError where it is broken."""
    folder = Path(path)
    there = [name for name in (HOOK, HOOK_TENSORS) if (folder / name).is_file()]
    if len(there) == 1:
        lacking = HOOK if there == [HOOK_TENSORS] else HOOK_TENSORS
        raise SettingsError(f"model_path={path!r} holds {there[0]} and no {lacking}: a hook is both of them")
    if there:
        install(model, read_hook(path, model))


def read_hook(path: str, model: LanguageModel) -> KeptHook:
    """The hook in a model's folder. Raises SettingsError where it is none, or one of another model."""
    try:
        told = json.loads((Path(path) / HOOK).read_text(encoding="utf-8"))
        tensors = load_file(Path(path) / HOOK_TENSORS)
        rule, layer, strength = told["rule"], told["layer"], told["strength"]
        hook = KeptHook(layer, strength, tensors["gate"], tensors["direction"])
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise SettingsError(f"model_path={path!r}: its {HOOK} is no hook: {first_line(error)}") from None
    width, count = model.config.get_text_config().hidden_size, len(layers_of(model))
    fits = isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < count
    numbers = isinstance(strength, int | float) and math.isfinite(strength)
    whole = all(each.shape == (width,) and torch.isfinite(each).all() for each in (hook.gate, hook.direction))
    if rule != ERASER or not fits or not numbers or not whole:
        raise SettingsError(
            f"model_path={path!r}: its {HOOK} is no hook of this model: it takes rule {ERASER!r}, a layer below "
            f"{count}, a strength, and two vectors of {width} numbers"
        )
    return hook
