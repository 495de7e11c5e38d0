"""The rule `sam`: the forget gradient is taken a short way up the forget loss, so that what is forgotten lies flat."""

import torch

from engine.gradient_step import Gradients, State


def perturbation(forget: Gradients, *, rho: float) -> Gradients:
    """Where the forget gradient is taken anew: e = rho * g_forget / ||g_forget||, to be added to the weights.

    Args:
        forget: gradient of the loss's forget part over a whole optimizer step, a tensor for each trained weight.
        rho: length of e, 0 or more. The file has 0.01, as the authors have. 0 is the loss without this rule.

    Returns:
        e, a tensor for each weight; 0 where the gradient is.

    Source: Fan et al. (arXiv 2502.05374); Foret et al. (arXiv 2010.01412).
    """
    norm = torch.stack([gradient.norm() for gradient in forget]).norm()
    scale = torch.where(norm > 0, rho / norm, torch.zeros_like(norm))
    return [scale * gradient for gradient in forget]


def add(forget: Gradients, retain: Gradients, state: State) -> tuple[Gradients, State]:
    """g_forget + g_retain.

    Args:
        forget: gradient of the loss's forget part at weights + e.
        retain: that of its retain part at the weights.
        state: of the rule; it has none.

    Returns:
        The gradient of the step, and the state.
    """
    return [f + r for f, r in zip(forget, retain, strict=True)], state
