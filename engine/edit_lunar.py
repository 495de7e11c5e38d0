"""LUNAR (arXiv 2502.07218) in closed form: one layer's MLP answers questions about forgotten people as it answers those
about people whom nobody knows.
"""

import torch
from torch import Tensor


def redirect(
    weight: Tensor, direction: Tensor, forget_mean: Tensor, moment: Tensor, *, strength: float, damping: float
) -> Tensor:
    """A down-projection that adds `strength` * r to what it writes on F, and next to nothing on R.

    W + c r v^T with v = (C + g I)^-1 m. That is the least-squares solution of W' a = W a + c r on F and W' a = W a on
    R, with a ridge g on the change. The authors train the same weights towards the same targets by gradient descent.

    Args:
        weight: W, (H, d_ff).
        direction: r, (H,), the mean state of questions about people whom nobody knows minus that of forget questions.
        forget_mean: m, the mean over all rows of F and R of the neurons a of the rows of F, (d_ff,).
        moment: C, the mean of a a^T over all rows of F and R, (d_ff, d_ff).
        strength: c, 0 or more. The authors have 2.
        damping: g as a share of the mean diagonal of C, 0 to 1.

    Returns:
        The new weights.

    Source: Shen et al. (arXiv 2502.07218) for the objective; the solution is the normal equation of it.
    """
    ridge = damping * moment.diagonal().double().mean() * torch.eye(len(moment), dtype=torch.float64).to(moment.device)
    gate = torch.linalg.pinv(moment.double() + ridge, hermitian=True) @ forget_mean.double()
    return weight + strength * torch.outer(direction.double(), gate).to(weight)
