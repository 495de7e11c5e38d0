"""The rule `fila` of a method's `init` step (LoKU): adapters begin with what the forget rows need most."""

import torch
from torch import Tensor

SMALLEST = 1e-5  # the authors', against division by 0


def begin(weight: Tensor, forget: Tensor, retain: Tensor, *, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """B = diag(1 / (w + 1e-5)) U sqrt(S / scale) and A = sqrt(S / scale) V^T, with the `rank` largest of U S V^T =
    diag(w) W and w_i = sqrt(sum_j S_F / (1e-5 + S_R)): scale B A is what of W weighs most on forget rows.

    A row that no forget row goes through (w_i = 0) begins at 0 in B, and so does a direction that is 0 or rounding, in
    A too.

    Args:
        weight: W, (out, in).
        forget: S_F, mean square of a forget row's own gradient, (out, in).
        retain: S_R, the same of retain rows.
        rank: of the adapter, at most min(out, in).
        scale: what the adapter multiplies B A by.

    Returns:
        A (rank, in) and B (out, rank).

    Source: Cha et al. 2025, https://arxiv.org/abs/2408.06621
    """
    w = (forget / (SMALLEST + retain)).sum(1).sqrt()
    u, s, vt = torch.linalg.svd(w[:, None] * weight, full_matrices=False)
    rounding = s[0] * max(weight.shape) * torch.finfo(weight.dtype).eps
    sizes = torch.where(s > rounding, s / scale, 0.0)[:rank].sqrt()
    rows = torch.where(w > 0, 1 / (w + SMALLEST), 0.0)
    return sizes[:, None] * vt[:rank], rows[:, None] * u[:, :rank] * sizes
