"""The starting model that a loss compares with."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import nn


def silence_dropout(model: nn.Module) -> None:
    """Switch off the model's own dropout (an adapter's stays): compared with a start in eval mode, its noise would drown what is to be learned."""
    for name, module in model.named_modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
        elif isinstance(module, nn.Dropout) and "lora_dropout" not in name:
            module.p = 0.0


class FrozenStart:
    """The starting model p0 that a loss compares with: the adapter switched off under LoRA, else a frozen copy made before training.

    Where training is in bf16, autocast rounds the weights of linear layers and convolutions at each use: the copy holds those in bf16, which
    gives the same numbers to the bit in half the memory. Everything else, and a head that is also the embedding, stays as it is.
    """

    def __init__(self, model: nn.Module, precision: str):
        self.copy = None
        if isinstance(model, PeftModel):
            return
        parts = model.__dict__.pop("cut_off", None)  # else what is not computed would be copied too
        self.copy = copy.deepcopy(model).requires_grad_(False).eval()
        if parts:
            model.cut_off = parts
        if precision == "bf16":
            embeddings = {id(module.weight) for module in self.copy.modules() if isinstance(module, nn.Embedding)}
            for module in self.copy.modules():
                if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and id(module.weight) not in embeddings:
                    module.to(torch.bfloat16)

    @contextlib.contextmanager
    def model(self, current: nn.Module) -> Iterator[nn.Module]:
        """The frozen model, in eval mode and without gradients; `current` is the unwrapped model in training."""
        with torch.no_grad():
            if self.copy is not None:
                yield self.copy.to(next(current.parameters()).device)
                return
            training = current.training
            current.eval()
            try:
                with current.disable_adapter():
                    yield current
            finally:
                current.train(training)
