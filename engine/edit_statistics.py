"""What a method's `edit` step looks at: how active the neurons of each decoder layer are at the answers' positions.

Everything is measured in fp32 and eval mode, row by row, so that the batch size does not matter.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.activity import Activity
from engine.adapters import LINEAR, LanguageModel
from engine.frozen_start import Forward
from engine.kept_hook import layers_of
from engine.layer_output import DOWN_PROJECTION, parts_of, widths_of
from engine.pairs import Batch
from engine.progress import Work
from settings.script import SettingsError
from unlearn_losses import IGNORE


@dataclass(frozen=True)
class Mlp:
    """The MLP of one decoder layer: what writes its neurons' knowledge, and what makes them active."""

    down: nn.Module
    into: list[nn.Module]  # linear layers that make the neurons' values: of twice the width where two are one layer


def mlps_of(model: LanguageModel, method: str, only: Collection[int] | None = None) -> list[Mlp]:
    """The MLP of each decoder layer that is to be changed, or of `only` some of them in their order.

    Raises SettingsError for a model that has no decoder, or another kind of MLP, or where one does not train.
    """
    found = decoder_mlps(model, method)
    numbers = range(len(found)) if only is None else sorted(only)
    for number in numbers:
        if not next(found[number].down.parameters()).requires_grad:
            raise SettingsError(
                f"method={method} changes the MLP of layer {number}, whose down-projection does not train; see "
                "model.freeze and method.activations.part"
            )
    return [found[number] for number in numbers]


def decoder_mlps(model: LanguageModel, method: str) -> list[Mlp]:
    """The MLP of each decoder layer; under an adapter it is of the layers below it.

    Raises SettingsError for a model that has no decoder, or another kind of MLP.
    """
    if not hasattr(model, "get_decoder"):
        raise SettingsError(f"method={method} looks at the neurons of a decoder, which language models alone have")
    decoder = model.get_decoder()
    found = []
    for number, layer in enumerate(layers_of(model)):
        parts = parts_of(layer, decoder.config)
        if DOWN_PROJECTION not in parts:
            raise SettingsError(f"method={method}: layer {number} of {type(model).__name__} has no one down-projection")
        down = parts.pop(DOWN_PROJECTION)
        place = next(name for name, module in parts.items() if module is down).removesuffix(".base_layer")
        width, _ = widths_of(down)
        beside = layer.get_submodule(place.rpartition(".")[0]).modules()
        into = [each for each in beside if isinstance(each, LINEAR) and each is not down]
        found.append(Mlp(down, [each for each in into if widths_of(each)[1] in (width, 2 * width)]))
    return found


@contextlib.contextmanager
def heard(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """What goes into each module in a forward, in the list that is yielded."""
    seen: list[Tensor] = [torch.empty(0)] * len(modules)

    def hear(number: int) -> Any:
        def keep(module: nn.Module, inputs: Any) -> None:
            seen[number] = inputs[0].detach()

        return keep

    hooks = [module.register_forward_pre_hook(hear(number)) for number, module in enumerate(modules)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def activity(
    model: nn.Module, forward: Forward, encoder: Any, rows: Any, *, mlps: list[Mlp], threshold: float
) -> list[Activity]:
    """How active the neurons of each layer are over some rows.

    Args:
        model: unwrapped.
        forward: what scores a batch.
        encoder: examples -> batches.
        rows: examples.
        mlps: what `mlps_of` gives.
        threshold: of `often`.

    Returns:
        One of each layer.
    """
    model.eval()
    device = next(model.parameters()).device
    sums: list[Tensor] = []
    with heard([mlp.down for mlp in mlps]) as seen, Work("row for the edit", len(rows), prepares=True) as work:
        for row in rows:
            batch = encoder.collate([encoder.encode(row)]).to(device)
            forward(model, batch)
            means = [moments(answers_of(each, batch), threshold) for each in seen]
            sums = means if not sums else [one + other for one, other in zip(sums, means, strict=True)]
            work.advance(1)
    return [Activity(*(each / len(rows))) for each in sums]


def answers_of(values: Tensor, batch: Batch) -> Tensor:
    """What stands at the answer positions of a batch of one row, (T, d_ff) in fp32."""
    assert batch.positions is not None  # only faces have none
    return values.reshape(-1, values.shape[-1])[batch.positions[0][batch.labels[0] != IGNORE]].float()


def moments(values: Tensor, threshold: float) -> Tensor:
    """The four means of Activity, (4, d_ff), of values (T, d_ff)."""
    sizes = values.abs()
    return torch.stack([sizes.mean(0), values.mean(0), values.square().mean(0), (sizes > threshold).float().mean(0)])


@torch.no_grad()
def scale_neurons(mlps: list[Mlp], factors: Iterable[Tensor]) -> None:
    """Have each neuron write `factors` times as much. One with the factor 0 is removed whole, so that it cannot be
    trained again.
    """
    for mlp, factor in zip(mlps, factors, strict=True):
        scale(mlp.down, factor, made=False)
        for linear in mlp.into:
            kept = (factor != 0).to(factor.dtype)
            scale(linear, kept.repeat(widths_of(linear)[1] // len(kept)), made=True)


def scale(linear: nn.Module, factor: Tensor, *, made: bool) -> None:
    """Scale what a linear layer makes, or what it takes, feature by feature. GPT-2's have their weights transposed."""
    weight: Any = linear.weight
    rows = made == isinstance(linear, nn.Linear)
    weight.mul_(factor[:, None] if rows else factor)
    bias: Any = getattr(linear, "bias", None)
    if made and bias is not None:
        bias.mul_(factor)
