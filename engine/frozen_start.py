"""The model that training starts from: what a recipe hands to the training loop, and its frozen copy that a loss
compares with.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from engine.pairs import Batch
from unlearn_losses import Scored

Forward = Callable[[nn.Module, Batch], Scored]


@dataclass(frozen=True)
class Start:
    """A model ready to train, and what only its kind knows of it.

    `forward` makes Scored of the (wrapped) model and a batch; `save` writes the trained model to a folder. `check` and
    `check_silent` are called with (model, encoder, examples, forward, say) before the first step, the second only where
    dropout is switched off; None: there is nothing to check. `untaught` is a model of random weights where the loss
    compares with one, `measured` what the loss asks for that was measured before training.
    """

    model: nn.Module
    forward: Forward
    save: Callable[[Any, Path], None]
    check: Callable[..., None] | None = None
    check_silent: Callable[..., None] | None = None
    untaught: nn.Module | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


def forward_passes(model: nn.Module, batches: list[Batch], forward: Forward) -> dict[str, Scored]:
    """One forward per batch; the result is pass by pass."""
    scored: dict[str, Scored] = {}
    for batch in batches:
        scored |= batch.split(forward(model, batch))
    return scored


def silence_dropout(model: nn.Module) -> None:
    """Switch off the model's own dropout; an adapter's stays.

    The start is computed without dropout. Compared with it, the noise of dropout would drown what is to be learned.
    Some families call dropout as a function, or leave out whole layers, at a rate that a module holds as a number.
    """
    for name, module in model.named_modules():
        for rate, value in list(vars(module).items()):
            if "drop" in rate and isinstance(value, float):
                setattr(module, rate, 0.0)
        if isinstance(module, nn.Dropout) and "lora_dropout" not in name:
            module.p = 0.0


class FrozenStart:
    """The starting model p0 that a loss compares with.

    Under LoRA it is the model in training with its adapter switched off, else a frozen copy made before training.
    Where training is in bf16, autocast rounds the weights of linear layers and convolutions at each use. The copy holds
    those in bf16, which gives the same numbers to the bit in half the memory. Everything else, and a head that is also
    the embedding, stays as it is.
    """

    def __init__(self, model: nn.Module, precision: str, place: Callable[[nn.Module], nn.Module] | None = None):
        """`precision`: bf16 or fp32, of the training; `place`: puts the copy where it computes, once."""
        self.copy: nn.Module | None = None
        self.place = place
        if isinstance(model, PeftModel):
            return
        removed = model.__dict__.pop("removed_parts", None)  # else what is not computed would be copied too
        self.copy = copy.deepcopy(model).requires_grad_(False).eval()
        if removed:
            model.__dict__["removed_parts"] = removed
        if precision == "bf16":
            round_as_autocast_does(self.copy)

    @contextlib.contextmanager
    def model(self, current: nn.Module) -> Iterator[nn.Module]:
        """The frozen model, in eval mode and without gradients; `current` is the unwrapped model in training."""
        with torch.no_grad():
            if self.copy is not None:
                if self.place:
                    self.copy, self.place = self.place(self.copy), None
                yield self.copy
                return
            assert isinstance(current, PeftModel)  # else there is a copy
            training = current.training
            current.eval()
            try:
                with current.disable_adapter():
                    yield current
            finally:
                current.train(training)


def round_as_autocast_does(model: nn.Module) -> None:
    """Hold the weights in bf16 that autocast would round to bf16 at each use."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and id(module.weight) not in embeddings:
            module.to(torch.bfloat16)
