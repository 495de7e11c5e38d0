"""A method's `init` step: before training, adapters begin with a part of the weights that they are added to."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from engine.language_model import trained_weights
from engine.loss_trainer import LossTrainer
from engine.methods import INITS
from engine.pairs import drawn_of
from engine.row_gradients import squared_gradients
from settings.script import SettingsError
from settings.training import IMPORTANCE

LOOKS_AT = ("forget", "retain")


def begin_adapters(trainer: LossTrainer, pairs: Any, encoder: Any) -> dict[str, Any]:
    """Give each adapter its first weights by the rule, and take what it adds from the weight that it is added to.

    The model computes what it did before, up to rounding. A run that goes on does it again before it loads its
    checkpoint.

    Args:
        trainer: with the model under LoRA, which is whole on each process and in fp32.
        pairs: what the rows are drawn from.
        encoder: examples -> batches.

    Returns:
        For the record: `begun`, the share of the adapted matrices that forget rows go through; the others' adapters
        begin as without a rule.

    Raises:
        SettingsError: the adapters have more rank than a matrix, or no forget row goes through any.
    """
    step = trainer.bound.method.init
    assert step is not None  # else there is nothing to do
    named = trainer.model.named_modules()
    layers: dict[str, Any] = {name: layer for name, layer in named if isinstance(layer, LoraLayer)}
    check_rank(layers)
    weights = [layer.get_base_layer().weight for layer in layers.values()]
    rows = {name: drawn_of(pairs.rows_of(name), step.rows, trainer.draw_seed) for name in LOOKS_AT}
    with training_instead(trainer.model, weights):
        order = list(map(id, trained_weights(trainer.model).values()))
        of_forget, _ = squared_gradients(trainer, IMPORTANCE, [rows["forget"]], encoder)
        of_retain, _ = squared_gradients(trainer, IMPORTANCE, [rows["retain"]], encoder)
    measured = dict(zip(order, zip(of_forget, of_retain, strict=True), strict=True))
    begun = 0
    for layer in layers.values():
        forget, retain = measured[id(layer.get_base_layer().weight)]
        if forget.any():
            begin_one(layer, INITS[step.rule], forget, retain)
            begun += 1
    if not begun:
        raise SettingsError(f"method={trainer.bound.method.name}: method.init: no forget row goes through an adapter")
    return {"begun": begun / len(layers)}


def check_rank(layers: dict[str, Any]) -> None:
    """Raise SettingsError for adapters of more rank than a matrix that they are added to."""
    for name, layer in layers.items():
        (adapter,) = layer.active_adapters
        most = min(layer.get_base_layer().weight.shape)
        if layer.r[adapter] > most:
            raise SettingsError(
                f"trainer.lora.r={layer.r[adapter]} must be at most {most}, the singular values of {name}, with which "
                "method.init begins its adapter"
            )


@torch.no_grad()
def begin_one(layer: Any, rule: Any, forget: Tensor, retain: Tensor) -> None:
    """Give one adapter its first weights, and take what it adds from its layer's weight, in place."""
    (adapter,) = layer.active_adapters
    weight = layer.get_base_layer().weight
    # some layers hold their weight the other way round
    given = [each.T if layer.fan_in_fan_out else each for each in (weight, forget, retain)]
    a, b = rule(*given, rank=layer.r[adapter], scale=layer.scaling[adapter])
    own = layer.lora_A[adapter].weight
    own.copy_(torch.where(a.any(1, keepdim=True), a, own))  # a direction without weight stays drawn, so that it learns
    layer.lora_B[adapter].weight.copy_(b)
    weight.sub_(layer.get_delta_weight(adapter))


@contextlib.contextmanager
def training_instead(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """A model of which only these weights train."""
    chosen, training = set(map(id, weights)), {id(weight) for weight in model.parameters() if weight.requires_grad}
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in chosen)
    try:
        yield
    finally:
        for weight in model.parameters():
            weight.requires_grad_(id(weight) in training)
