"""The rule `mask`: the forget gradient moves the chosen weights alone, the retain gradient moves all."""

from torch import Tensor

from engine.gradient_step import Gradients, State


def mask(forget: Gradients, retain: Gradients, state: State, *, moves: list[Tensor]) -> tuple[Gradients, State]:
    """moves * g_forget + g_retain.

    Args:
        forget: gradient of the loss's forget part, a tensor for each trained weight.
        retain: that of its retain part, alike.
        state: of the rule; it has none.
        moves: which entries of each weight the forget part may move, as bool masks; the engine makes them.

    Returns:
        The gradient of the step, and the state.

    Source: Huo et al. (arXiv 2502.11051).
    """
    return [mine * f + r for mine, f, r in zip(moves, forget, retain, strict=True)], state
