"""Gradients of a loss over some rows at the model's present weights: what `mask` and `edit` steps look at."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data_module import Example
from engine.frozen_start import forward_passes
from engine.gradient_step import Gradients
from engine.language_model import trained_weights
from engine.loss_trainer import LossTrainer
from engine.methods import BoundLoss, bind
from engine.pairs import Chosen, PassCollator
from engine.progress import Work
from settings.training import Method


def mean_gradient(trainer: LossTrainer, loss: str, pairs: Any, encoder: Any) -> Gradients:
    """Absolute value of the gradient of a loss over all forget rows together, in fp32 without autocast."""
    bound = bind(Method(name=loss, loss=loss))
    own = pairs.pairs_for(bound.batches)
    size = trainer.args.per_device_train_batch_size
    with Work("row for the mask", len(own), prepares=True) as work:
        for first in range(0, len(own), size):
            items = [own[key] for key in range(first, min(first + size, len(own)))]
            (loss_of_rows(trainer, bound, items, encoder) * len(items)).backward()
            work.advance(len(items))
    return [torch.zeros_like(weight) if each is None else each.abs_() for weight, each in taken_gradients(trainer)]


def mean_gradients(trainer: LossTrainer, loss: str, rows: Chosen, encoder: Any) -> Gradients:
    """Mean over rows of each row's own gradient of a loss, with its sign, in fp32."""
    bound = bind(Method(name=loss, loss=loss))
    sums = [torch.zeros_like(weight) for weight in trained_weights(trainer.model).values()]
    with Work("row whose gradient counts", len(rows), prepares=True) as work:
        for row in rows:
            loss_of_rows(trainer, bound, [{"forget": [row]}], encoder).backward()
            for total, (_, gradient) in zip(sums, taken_gradients(trainer), strict=True):
                if gradient is not None:
                    total += gradient / len(rows)
            work.advance(1)
    return sums


def squared_gradients(
    trainer: LossTrainer, loss: str, kinds: Sequence[Chosen], encoder: Any
) -> tuple[Gradients, list[float]]:
    """Mean over rows of the square of each row's own gradient of a loss, in fp32 without autocast.

    A weight's mean is over the rows that go through it: words do not thin out what pictures say of a vision tower.
    The second result is the share of the rows that go through each weight.
    """
    bound = bind(Method(name=loss, loss=loss))
    sums = [torch.zeros_like(weight) for weight in trained_weights(trainer.model).values()]
    counts = [0] * len(sums)
    with Work("row whose gradient counts", sum(map(len, kinds)), prepares=True) as work:
        for row in itertools.chain.from_iterable(kinds):  # one at a time, so that the batch size does not matter
            loss_of_rows(trainer, bound, [{"forget": [row]}], encoder).backward()
            for number, (_, gradient) in enumerate(taken_gradients(trainer)):
                if gradient is not None:
                    sums[number] += gradient.square()
                    counts[number] += 1
            work.advance(1)
    means = [each / max(count, 1) for each, count in zip(sums, counts, strict=True)]
    return means, [count / sum(map(len, kinds)) for count in counts]


def loss_of_rows(trainer: LossTrainer, bound: BoundLoss, items: list[dict[str, list[Example]]], encoder: Any) -> Tensor:
    """The loss of some rows at the model's present weights, in eval mode and fp32."""
    trainer.model.eval()
    collator = PassCollator(encoder, bound.trained, [], by_length=True)  # one pass, so that nothing is shared
    batches = [batch.to(trainer.args.device) for batch in collator(items)["trained"]]
    return bound(forward_passes(trainer.model, batches, trainer.forward), epoch=0)


def taken_gradients(trainer: LossTrainer) -> list[tuple[nn.Parameter, Tensor | None]]:
    """The trained weights with their gradients, which are cleared."""
    taken = [(weight, weight.grad) for weight in trained_weights(trainer.model).values()]
    for weight, _ in taken:
        weight.grad = None
    return taken
