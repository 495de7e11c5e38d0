"""A model taught again: plain steps on some rows, at one learning rate, and looked at after some of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from data_module import Example
from engine.draws import draw
from engine.language_model import forward, freeze
from settings.script import SettingsError
from unlearn_losses import nll

MAX_GRADIENT = 1.0  # norm


def taught(
    model: nn.Module,
    encoder: Any,
    examples: Sequence[Example],
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    frozen: Sequence[str] = (),
) -> Iterator[int]:
    """Train a model in place, and give the number of each step when it is done; the next begins when it is asked for.

    AdamW at a constant rate without weight decay, without dropout; every epoch has an order of its own.

    Args:
        model: In float32, on its device.
        encoder: Of the examples.
        examples: What is taught.
        steps: How many there are.
        lr: Learning rate.
        batch_size: Rows of a step; fewer where an epoch ends.
        seed: Of the orders.
        frozen: Names of parts that do not train.

    Raises:
        SettingsError: The weights are not in float32, in which a small step would be rounded away.
    """
    kinds = {parameter.dtype for parameter in model.parameters()}
    if kinds != {torch.float32}:
        raise SettingsError("an attack by training needs model.weights=float32: smaller numbers round its steps away")
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)
    freeze(model, list(frozen))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    device = trained[0].device
    try:
        for step, numbers in zip(range(1, steps + 1), orders(len(examples), batch_size, seed), strict=False):
            batch = encoder.collate([encoder.encode(examples[number]) for number in numbers]).to(device)
            with torch.enable_grad():
                nll(forward(model, batch)).backward()
            nn.utils.clip_grad_norm_(trained, MAX_GRADIENT)
            optimizer.step()
            optimizer.zero_grad()
            yield step
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(before[name])


def orders(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Numbers below `count`, so many at a time, epoch after epoch without end."""
    epoch = 0
    while True:
        order = draw(seed, "relearn", epoch).sample(range(count), count)
        for start in range(0, count, batch_size):
            yield order[start : start + batch_size]
        epoch += 1
