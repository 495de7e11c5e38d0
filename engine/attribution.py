"""Which neurons of a decoder say most of an answer: a neuron's value times the gradient of the loss to it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.edit_statistics import Mlp, answers_of
from engine.loss_trainer import LossTrainer
from engine.methods import bind
from engine.pairs import Batch, Chosen
from engine.progress import Work
from settings.training import Method


def attributed(
    trainer: LossTrainer, loss: str, rows: Chosen, encoder: Any, *, mlps: list[Mlp], most: int
) -> list[Tensor]:
    """The neurons that are among the `most` of their layer for one row or another.

    Args:
        trainer: with the model, which gives the answers' logits.
        loss: whose gradient.
        rows: examples.
        encoder: examples -> batches.
        mlps: of the layers.
        most: neurons of a layer for each row; one whose attribution is 0 is never among them.

    Returns:
        Of each layer a bool mask, (d_ff,).
    """
    trainer.model.eval()
    bound = bind(Method(name=loss, loss=loss))
    chosen: list[Tensor] = []
    with Work("row whose neurons count", len(rows), prepares=True) as work:
        for row in rows:
            batch = encoder.collate([encoder.encode(row)]).to(trainer.args.device)
            with listened([mlp.down for mlp in mlps]) as values:
                scored = trainer.forward(trainer.model, batch)
                gradients = torch.autograd.grad(bound({"forget": scored}), values)
            found = [
                strongest(attribution(value.detach(), gradient, batch), most)
                for value, gradient in zip(values, gradients, strict=True)
            ]
            chosen = found if not chosen else [one | other for one, other in zip(chosen, found, strict=True)]
            work.advance(1)
    return chosen


def attribution(values: Tensor, gradients: Tensor, batch: Batch) -> Tensor:
    """The mean over answer positions of |a * dL/da| of one row, (d_ff,)."""
    return answers_of(values * gradients, batch).abs().mean(0)


def strongest(scores: Tensor, most: int) -> Tensor:
    """Where the `most` largest of the scores stand that are above 0, as a bool mask; of equal ones the first count."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.argsort(descending=True, stable=True)[:most]] = True
    return chosen & (scores > 0)


@contextlib.contextmanager
def listened(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """What goes into each module in a forward, in the list that is yielded, so that a gradient to it can be taken also
    where no weight before it trains.
    """
    found: list[Tensor] = [torch.empty(0)] * len(modules)

    def listen(number: int) -> Any:
        def keep(module: nn.Module, inputs: Any) -> Any:
            value = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
            found[number] = value
            return (value, *inputs[1:])

        return keep

    hooks = [module.register_forward_pre_hook(listen(number)) for number, module in enumerate(modules)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
