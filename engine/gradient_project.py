"""The rule `project`: what of the forget gradient would harm the retain rows is taken out of it."""

import torch
from torch import Tensor

from engine.gradient_step import Gradients, State


def project(
    forget: Gradients, retain: Gradients, state: State, *, smoothing: float, retain_share: float
) -> tuple[Gradients, State]:
    """g_forget without its part against a; then + retain_share * g_retain.

    a, the mean retain gradient, is smoothing * g_retain + (1 - smoothing) * a of the step before. Where
    <g_forget, a> < 0, a step down g_forget would raise the retain loss. g_forget - (<g_forget, a> / <a, a>) * a does
    not.

    Args:
        forget: gradient of the loss's forget part, a tensor for each trained weight.
        retain: that of its retain part, alike.
        state: a of the step before under `average`; nothing before the first.
        smoothing: share of the step's own retain gradient in a, above 0 and up to 1. The file has 0.8; published
            searches use 0.6 to 0.99.
        retain_share: how much of the retain gradient the step takes besides, 0 or more. The file has 0, as published
            code has: retain rows only say what may not be harmed.

    Returns:
        The gradient of the step, and the state.

    Source: Wang et al. (arXiv 2503.09117).
    """
    before = state.get("average", [torch.zeros_like(gradient) for gradient in retain])
    average = [smoothing * r + (1 - smoothing) * a for r, a in zip(retain, before, strict=True)]
    against, size = inner(forget, average), inner(average, average)
    share = torch.where((against < 0) & (size > 0), against / size, torch.zeros_like(size))
    made = [f - share * a + retain_share * r for f, a, r in zip(forget, average, retain, strict=True)]
    return made, {"average": average}


def inner(one: Gradients, other: Gradients) -> Tensor:
    """The inner product of two gradients over all weights, a scalar."""
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
