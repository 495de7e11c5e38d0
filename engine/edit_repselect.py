"""RepSelect (arXiv 2606.17168): the forget gradient without its few strongest directions, which retain rows share."""

import torch
from torch import Tensor


def collapse(gradient: Tensor, *, components: int) -> Tensor:
    """Shrink the largest singular values of a gradient, each to the smallest of those.

    Args:
        gradient: of one matrix, (rows, columns).
        components: how many singular values are shrunk, 1 or more. 1 leaves the gradient as it is.

    Returns:
        (rows, columns).

    Raises:
        ValueError: the gradient has so few singular values above the rounding of fp32 that what is left of the largest
            would be noise. A gradient of 0 has none to shrink and stays.
    """
    left, values, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    rank = int((values > torch.finfo(values.dtype).eps * max(gradient.shape) * values[0]).sum())
    if rank and components > rank:
        raise ValueError(
            f"components={components} is more than the {rank} singular values that a gradient of these rows has above "
            "rounding; lower it or give more rows"
        )
    shrunk = values.clone()
    shrunk[:components] = values[min(components, len(values)) - 1]
    return (left * shrunk) @ right
