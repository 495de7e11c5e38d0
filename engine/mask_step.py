"""A method's `mask` step: before training the gradients of rows choose which weights move."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.attribution import attributed
from engine.edit_statistics import Mlp, mlps_of
from engine.language_model import trained_weights
from engine.layer_output import end_at_layer, restore_layers, set_aside, widths_of
from engine.loss_trainer import LossTrainer
from engine.pairs import drawn_of
from engine.row_gradients import mean_gradient, squared_gradients
from settings.script import SettingsError
from settings.training import Mask


def hold_all_but(trainer: LossTrainer, mask: Mask, pairs: Any, encoder: Any) -> float:
    """Let only the weights move that the mask chooses, or let only them move by the forget part.

    Returns the share of the trained weights that they are. Raises SettingsError where there are none.
    """
    moves = chosen_by(trainer, mask, pairs, encoder)
    share = sum(int(each.sum()) for each in moves) / sum(each.numel() for each in moves)
    if not share:
        raise SettingsError(f"method={trainer.bound.method.name}: method.mask chooses no weight, nothing would forget")
    hold(trainer, mask, moves)
    return share


def hold(trainer: LossTrainer, mask: Mask, moves: list[Tensor]) -> None:
    """Let only the entries move that `moves` has of each trained weight."""
    if trainer.bound.rule and mask.applies_to == "forget":
        trainer.rule_args["moves"] = moves
        return
    for weight, moving in zip(trained_weights(trainer.model).values(), moves, strict=True):
        weight.register_hook(partial(torch.mul, moving))


def chosen_by(trainer: LossTrainer, mask: Mask, pairs: Any, encoder: Any) -> list[Tensor]:
    """Which entries of each trained weight a mask lets move."""
    if mask.share is not None:
        return largest(mean_gradient(trainer, mask.loss, pairs, encoder), mask.share)
    if mask.neurons is not None:
        return of_neurons(trainer, mask, pairs, encoder)
    assert mask.ratio is not None
    others = [pairs.rows_of(name) for name in mask.against]  # first: it says so where there are none
    drawn = [drawn_of(rows, mask.rows, trainer.draw_seed) for rows in (pairs.rows_of("forget"), *others)]
    of_forget, _ = squared_gradients(trainer, mask.loss, drawn[:1], encoder)
    of_others, _ = squared_gradients(trainer, mask.loss, drawn[1:], encoder)
    return [exceeds(f, o, mask.ratio) for f, o in zip(of_forget, of_others, strict=True)]


def of_neurons(trainer: LossTrainer, mask: Mask, pairs: Any, encoder: Any) -> list[Tensor]:
    """Which entries move of a mask by neurons: what makes a chosen neuron active, and what it writes.

    The model's whole answers are looked at, also where it ends at a layer while it trains.
    """
    method = trainer.bound.method
    assert mask.neurons is not None
    rows = drawn_of(pairs.rows_of("forget"), mask.rows, trainer.draw_seed)
    mlps = mlps_of(trainer.model, method.name, method.activations.trained if method.activations else None)
    restore_layers(trainer.model)
    try:
        chosen = attributed(trainer, mask.loss, rows, encoder, mlps=mlps, most=mask.neurons)
    finally:
        if method.activations:
            end_at_layer(trainer.model, method.activations)
            set_aside(trainer.model)
    return entries_of(trained_weights(trainer.model).values(), mlps, chosen)


def entries_of(weights: Iterable[nn.Parameter], mlps: list[Mlp], chosen: list[Tensor]) -> list[Tensor]:
    """Where in each weight the entries of the chosen neurons stand, as bool masks; `chosen`: of each MLP's neurons."""
    found: dict[int, Tensor] = {}
    for mlp, neurons in zip(mlps, chosen, strict=True):
        for linear in (mlp.down, *mlp.into):
            made = linear is not mlp.down
            weight: Any = linear.weight
            of_each = neurons.repeat(widths_of(linear)[1] // len(neurons)) if made else neurons
            across = of_each[:, None] if made == isinstance(linear, nn.Linear) else of_each
            found[id(weight)] = across.expand(weight.shape)
            if made and linear.bias is not None:
                found[id(linear.bias)] = of_each
    return [found.get(id(weight), torch.zeros_like(weight, dtype=torch.bool)) for weight in weights]


def largest(values: list[Tensor], share: float) -> list[Tensor]:
    """Where the `share` of all entries stands that is largest, as bool masks; an entry of 0 is never among them."""
    flat = torch.cat([value.flatten() for value in values])
    least = flat.kthvalue(flat.numel() - max(1, round(share * flat.numel())) + 1).values
    return [(value >= least) & (value > 0) for value in values]


def exceeds(values: Tensor, others: Tensor, ratio: float) -> Tensor:
    """Where values are at least `ratio` times the others, as a bool mask; where both are 0 there is nothing to compare,
    and nothing moves.
    """
    return (values >= ratio * others) & (values > 0)
