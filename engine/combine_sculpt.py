"""The rule `sculpt` of a method's `combine` step (SMFA): what is learned of forgetting gives way to what is kept."""

import torch
from torch import Tensor


def sculpt(forgetting: Tensor, anchor: Tensor, *, k: float) -> Tensor:
    """dW_f without the entries that point against dW_a and are more than k times as large, each in lengths of its own
    update: dW_f dW_a < 0 and |dW_f| / norm(dW_f) > k |dW_a| / norm(dW_a).

    An entry that is exactly k times as large stays. Signs are compared and not products, which underflow.

    Args:
        forgetting: update of one weight by the training that forgets.
        anchor: the same by the training that keeps; same shape.
        k: at least 0; a large k leaves the update as it is.

    Returns:
        The update that is taken.

    Source: Zeng et al. 2025, https://arxiv.org/abs/2511.20196
    """
    opposed = forgetting.sign() * anchor.sign() < 0
    return forgetting.masked_fill(opposed & (shares(forgetting) > k * shares(anchor)), 0.0)


def shares(update: Tensor) -> Tensor:
    """Size of each entry in lengths of the whole; 0 where nothing moved."""
    length = torch.linalg.vector_norm(update, dtype=torch.float64).to(update.dtype)
    return update.abs() / length if length else torch.zeros_like(update)
