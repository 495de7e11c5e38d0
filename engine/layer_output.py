"""A language model that ends at one of its layers, for methods that compare what a layer gives (RMU)."""

import itertools
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engine.adapters import LINEAR, LanguageModel
from engine.start_checks import in_eval_mode
from settings.script import SettingsError, first_line, one_of
from settings.training import Activations

PROBE = torch.tensor([[5, 6, 7]])  # tokens, whichever they are
DOWN_PROJECTION = "down_projection"  # of method.activations.part, whatever a model calls it


class LastLayer(nn.Module):
    """Stands for the output head of a model that ends at a layer, and keeps what it gets.

    Some families scale or bound what their head returns, which would change the layer's output.
    """

    def __init__(self, dtype: torch.dtype):
        """`dtype`: of the weight that a family asks its head for."""
        super().__init__()
        self.seen: Tensor | None = None
        self.register_buffer("weight", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        self.seen = states
        return states

    def take(self) -> Tensor:
        """What it got last; it keeps that no longer."""
        states, self.seen = self.seen, None
        assert states is not None
        return states


def end_at_layer(model: LanguageModel, activations: Activations) -> None:
    """End the model at a decoder layer: what `forward` gives is that layer's output (B, T, H), before the final norm;
    only the named layers train, or the named part of each.

    What is removed is neither computed nor trained, so that no process waits for its gradient; `restore_layers` puts it
    back. Raises SettingsError, also where what is left does not give that layer's output.
    """
    decoder = model.get_decoder()
    stack = next(name for name, child in decoder.named_children() if isinstance(child, nn.ModuleList))
    layers = getattr(decoder, stack)
    if activations.layer >= len(layers):
        raise SettingsError(
            f"method.activations.layer={activations.layer}: {type(model).__name__} has layers 0 to {len(layers) - 1}"
        )
    # `freeze` has stopped some
    training = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    model.requires_grad_(False)
    for number in activations.trained:
        for parameter in part_of(layers[number], activations.part, decoder.config).parameters():
            parameter.requires_grad_(id(parameter) in training)
    if next(model.parameters()).is_meta:  # memory is counted of it, and there are no numbers to compare
        cut(model, decoder, stack, activations.layer, behind=[])
        return
    try:
        states, behind = run_to_layer(model, decoder, layers, activations.layer)
        cut(model, decoder, stack, activations.layer, behind=behind)
        given = given_by(model, probed(model))
    except Exception as error:  # what a family's forward raises depends on the family
        why = f": {first_line(error)}"
    else:
        if torch.allclose(given, states, rtol=1e-3, atol=1e-5):
            return
        why = ""
    raise SettingsError(
        f"activations check: {type(model).__name__} cannot be ended at layer {activations.layer}, as "
        f"method.activations.layer asks{why}"
    )


def cut(model: LanguageModel, decoder: nn.Module, stack: str, layer: int, *, behind: list[str]) -> None:
    """Remove the layers above `layer` of the decoder's `stack`, what runs `behind` them, and the output head."""
    layers, head = getattr(decoder, stack), model.get_output_embeddings()
    head_parent, head_name = place_of(model, head)
    removed = [(decoder, stack, layers), *((decoder, name, getattr(decoder, name)) for name in behind)]
    model.__dict__["removed_parts"] = [*removed, (head_parent, head_name, head)]
    setattr(decoder, stack, layers[: layer + 1])
    for name in behind:
        setattr(decoder, name, nn.Identity())
    setattr(head_parent, head_name, LastLayer(head.weight.dtype))


@torch.no_grad()
def probed(model: LanguageModel) -> Tensor:
    """The logits (1, T, V) of the probe."""
    with in_eval_mode(model):
        return model(input_ids=PROBE.to(next(model.parameters()).device), use_cache=False).logits


def run_to_layer(
    model: LanguageModel, decoder: nn.Module, layers: nn.ModuleList, layer: int
) -> tuple[Tensor, list[str]]:
    """What a decoder layer gives for the probe, (1, T, H), and the names of the decoder's children that run behind all
    layers, as its final norm does. Names do not tell that one from a norm of the embeddings.

    A layer that only looks at pictures does not run. Then the output is that of the last layer before it that runs.
    """
    states: list[Tensor] = []
    behind: list[str] = []

    def of_layer(number: int, output: Any) -> None:
        behind.clear()
        if number <= layer:
            states.append(output if torch.is_tensor(output) else output[0])

    hooks = []
    for number, each in enumerate(layers):
        hooks.append(each.register_forward_hook(lambda *call, number=number: of_layer(number, call[-1])))
    for name, child in decoder.named_children():
        if child is not layers:
            hooks.append(child.register_forward_hook(lambda *_, name=name: behind.append(name)))
    try:
        probed(model)
    finally:
        for hook in hooks:
            hook.remove()
    return states[-1].clone(), list(dict.fromkeys(behind))


def given_by(model: nn.Module, logits: Tensor) -> Tensor:
    """What a call of the model gave: its logits, or the output of the layer that it ends at, in the same dtype."""
    last = next((module for module in model.modules() if isinstance(module, LastLayer)), None)
    return logits if last is None else last.take().to(logits.dtype)


def part_of(layer: nn.Module, part: str | None, config: Any) -> nn.Module:
    """The part of a decoder layer that `method.activations.part` names; None names all of it.

    Raises SettingsError for a part that the layer does not have.
    """
    if part is None:
        return layer
    parts = parts_of(layer, config)
    one_of("method.activations.part", part, [*parts])
    return parts[part]


def parts_of(layer: nn.Module, config: Any) -> dict[str, nn.Module]:
    """A decoder layer's modules with weights by their names in it, and its down-projection.

    The down-projection is the linear layer that leads from the `intermediate_size` features of the MLP back to the
    `hidden_size` of the model; where the configuration has no such size, from more features than those. Where none
    does, or several do, the layer has no part of that name.
    """
    weighty = {name for name, module in layer.named_modules() if next(module.parameters(), None) is not None}
    parts = {name: module for name, module in layer.named_modules() if name in weighty and module is not layer}
    middle, width = getattr(config, "intermediate_size", None), config.hidden_size
    down = []
    for module in parts.values():
        if isinstance(module, LINEAR):
            features, made = widths_of(module)
            if made == width and (features == middle if middle else features > width):
                down.append(module)
    return {DOWN_PROJECTION: down[0], **parts} if len(down) == 1 else parts


def widths_of(linear: nn.Module) -> tuple[int, int]:
    """Features that a linear layer takes and makes. GPT-2's keep their weights transposed."""
    assert isinstance(linear.weight, Tensor)
    rows, columns = linear.weight.shape
    return (rows, columns) if isinstance(linear, Conv1D) else (columns, rows)


def place_of(model: nn.Module, part: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds `part`, and its name there."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is part:
                return parent, name
    raise AssertionError("the part is not in the model")


def set_aside(model: LanguageModel) -> None:
    """Move what `end_at_layer` removed to main memory, but for what the model still has: nothing computes it."""

    def tensors_of(module: nn.Module) -> set[int]:
        return set(map(id, itertools.chain(module.parameters(), module.buffers())))

    own = tensors_of(model)
    for _, _, part in model.__dict__.get("removed_parts", []):
        for module in part.modules():
            if not tensors_of(module) & own:
                module.cpu()


def restore_layers(model: LanguageModel) -> LanguageModel:
    """The model with what `end_at_layer` removed put back."""
    start: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    device = next(start.parameters()).device  # the removed parts did not move with the model
    removed = start.__dict__.pop("removed_parts", [])
    for parent, name, part in removed:
        setattr(parent, name, part.to(device))
    if removed:
        start.tie_weights()  # a model that was parted has another embedding than its head remembers
    return model
