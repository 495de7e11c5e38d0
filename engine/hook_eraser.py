"""The rule `eraser` of a method's `hook` step (MLLMEraser): which states of a layer are steered, and how far."""

import torch
from torch import Tensor


def gate_of(
    forget_mean: Tensor, forget_moment: Tensor, retain_moment: Tensor, *, spared: float, damping: float
) -> Tensor:
    """The vector whose inner product with a state says how far it is steered: about 1 on F and about 0 on R.

    v = P (P C_F P + g P)^+ P m_F. P leads to the directions in which the states of R have next to no size. With the
    same direction d for every state of F, the authors' W P is the matrix d v^T.

    Args:
        forget_mean: m_F, the mean state of forget rows, (H,).
        forget_moment: C_F, the mean of h h^T over forget rows, (H, H).
        retain_moment: the same over retain rows, (H, H).
        spared: share of the squared size of R's states, 0 to 1, that the directions of P may hold together. The
            authors take directions "near zero".
        damping: g as a share of the mean size of C_F in P, 0 to 1.

    Returns:
        v, (H,); 0 where the states of F have nothing in P.

    Source: after Ding et al. (arXiv 2510.04217).
    """
    sizes, directions = torch.linalg.eigh(retain_moment.double())
    held = sizes.clamp(min=0).cumsum(0)
    free = directions[:, held <= spared * held[-1]]
    inner = free.T @ forget_moment.double() @ free
    inner = inner + damping * inner.diagonal().sum() / max(1, len(inner)) * torch.eye(len(inner)).to(inner)
    rounding = len(inner) * torch.finfo(torch.float32).eps  # of moments in fp32: what is smaller is no direction of F
    inverse = torch.linalg.pinv(inner, hermitian=True, rtol=rounding)
    return (free @ inverse @ free.T @ forget_mean.double()).float()
