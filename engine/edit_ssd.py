"""Selective Synaptic Dampening (Foster et al., arXiv 2308.07707): weights that matter for the forget rows far more than
for all rows become smaller.
"""

import torch
from torch import Tensor


def dampen(weight: Tensor, forget: Tensor, everything: Tensor, *, alpha: float, damping: float) -> Tensor:
    """A weight w becomes w * min(damping * everything / forget, 1) where forget > alpha * everything.

    Args:
        weight: any shape.
        forget: its importance for the forget rows, of that shape: the mean square of a row's own gradient.
        everything: the same for the rows that the model was trained on, the forget rows among them.
        alpha: how many times larger the first must be, above 0. Where both are 0 nothing is compared.
        damping: the authors' lambda; 0 makes the chosen weights 0.

    Returns:
        The new weight.
    """
    factor = (damping * everything / forget).clamp(max=1)
    return torch.where(forget > alpha * everything, weight * factor, weight)
