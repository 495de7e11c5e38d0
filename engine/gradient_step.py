"""What a method's `gradient` and `mask` steps share: the gradients of a loss's two parts, kept apart over the batches
of an optimizer step.

A rule is a pure function of (g_forget, g_retain, state) and its keyword-only settings -> (gradient, state), in a file
of its own (engine/gradient_<rule>.py).
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from unlearn_losses import Parts

Gradients = list[Tensor]  # one for each trained weight
State = dict[str, Gradients]  # what a rule keeps from step to step, by name


class PartedGradient:
    """The gradients of a loss's forget and retain part over the batches of one optimizer step."""

    def __init__(self, weights: Iterable[nn.Parameter]):
        """`weights`: those that train."""
        self.weights = list(weights)
        self.clear()

    def clear(self) -> None:
        """Begin the next step."""
        self.forget = [torch.zeros_like(weight) for weight in self.weights]
        self.retain = [torch.zeros_like(weight) for weight in self.weights]
        self.met = [False] * len(self.weights)  # whether a batch has gone through the weight

    def clear_forget(self) -> None:
        """Begin the forget part again."""
        self.forget = [torch.zeros_like(weight) for weight in self.weights]

    def add(self, parts: Parts) -> None:
        """Add the gradients of one batch's parts."""
        self.add_to(self.forget, parts.forget, again=isinstance(parts.retain, Tensor))
        self.add_to(self.retain, parts.retain, again=False)

    def add_to(self, sums: Gradients, part: Tensor | float, *, again: bool) -> None:
        """Add the gradient of a part; `again`: another part of the same graph follows."""
        if not isinstance(part, Tensor) or not part.requires_grad:
            return
        gradients = torch.autograd.grad(part, self.weights, retain_graph=again, allow_unused=True)
        for number, gradient in enumerate(gradients):
            if gradient is not None:
                sums[number] += gradient
                self.met[number] = True

    def average_over_processes(self, sums: Gradients, count: int) -> None:
        """Make of each process's gradients their mean, in place."""
        if count > 1:
            for gradient in sums:
                torch.distributed.all_reduce(gradient)
                gradient /= count

    def put(self, gradients: Gradients) -> None:
        """Give the weights their gradient of the step; a weight that no batch went through has none."""
        for weight, gradient, met in zip(self.weights, gradients, self.met, strict=True):
            weight.grad = gradient if met or bool(gradient.any()) else None
        self.clear()


@contextlib.contextmanager
def moved(weights: Sequence[nn.Parameter], by: Gradients) -> Iterator[None]:
    """The weights with `by` added to them; afterwards they are what they were, to the bit."""
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, more in zip(weights, by, strict=True):
                weight.add_(more)
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """A model whose batch normalisation counts nothing: its running statistics stay as they are."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@contextlib.contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """A model in training with its class's own forward, in place of the library's with autocast."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped:
            model.forward = wrapped
