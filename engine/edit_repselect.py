"""RepSelect (arXiv 2606.17168): the forget gradient without its few strongest directions, which retain rows share."""

import torch
from torch import Tensor


def collapse(gradient: Tensor, *, components: int) -> Tensor:
    """Shrink the largest singular values of a gradient, each to the smallest of those.

    Args:
        gradient: of one matrix, (rows, columns).
        components: how many singular values are shrunk, 1 or more; a matrix that has fewer shrinks all it has. 1 leaves
            the gradient as it is.

    Returns:
        (rows, columns).
    """
    left, values, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    shrunk = values.clone()
    shrunk[:components] = values[: min(components, len(values))].min()
    return (left * shrunk) @ right
