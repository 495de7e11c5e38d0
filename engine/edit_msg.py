"""MSG, of the challenge of 2023 (arXiv 2410.01276): the kernels on which forget and retain rows agree most begin anew,
and a training on retain rows follows, in which the others move less.
"""

import torch
from torch import Tensor


def renew(weight: Tensor, gradient: Tensor, fresh: Tensor, *, share: float) -> Tensor:
    """A convolution's weights, the `share` of the smallest gradients in place of which fresh ones stand.

    Args:
        weight: of a convolution.
        gradient: that of NLL(R') - NLL(F) at the weight, R' as many retain rows as there are forget rows.
        fresh: random weights of the same shape.
        share: between 0 and 1. The challenge has 0.3.

    Returns:
        The new weights.

    Source: kgltop2 of arXiv 2410.01276.
    """
    return torch.where(smallest(gradient, share), fresh, weight)


def smallest(gradient: Tensor, share: float) -> Tensor:
    """Where the `share` of the entries stands whose size is smallest, as a bool mask; of equal ones the first count."""
    order = gradient.abs().flatten().argsort(stable=True)
    chosen = torch.zeros_like(order, dtype=torch.bool)
    chosen[order[: int(share * len(order))]] = True
    return chosen.view_as(gradient)


def fresh_like(weight: Tensor, source: torch.Generator) -> Tensor:
    """Random weights of a convolution's shape (made, taken, height, width), normal after He et al. by what goes out."""
    made, _, height, width = weight.shape
    drawn = torch.randn(weight.shape, generator=source) * (2 / (made * height * width)) ** 0.5
    return drawn.to(weight)
