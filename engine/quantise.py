"""Weights rounded as low-bit formats round them, and given back in full precision: what is lost is the same.

Nothing here needs a kernel of the format. A weight becomes a code (a small whole number) and a scale that a block of
weights shares; the rounded weight is the code's level times the scale.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

# the 16 levels of NormalFloat with 4 bits, as published: quantiles of a normal distribution, scaled to [-1, 1]
NF4 = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip


class Rounded(NamedTuple):
    """A weight matrix in a format."""

    codes: Tensor  # of the shape of the weights
    weights: Tensor  # what the codes stand for


def by_row(weight: Tensor, *, levels: int, size: int = 0) -> Rounded:
    """Symmetric whole numbers from -levels to levels with one scale per row, or per block of a row.

    Args:
        weight: (out, in).
        levels: 127 for 8 bits, 7 for 4.
        size: Weights of a block; 0: the whole row. The last block of a row may be shorter.
    """
    width = weight.shape[1]
    size = min(size or width, width)
    blocks = nn.functional.pad(weight.float(), (0, -width % size)).view(len(weight), -1, size)
    scales = scale_of(blocks) / levels
    codes = (blocks / scales).round().clamp(-levels, levels)
    flat = [value.reshape(len(weight), -1)[:, :width] for value in (codes, codes * scales)]
    return Rounded(flat[0].to(torch.int8), flat[1].to(weight.dtype))


def normal_float(weight: Tensor, *, size: int = 64) -> Rounded:
    """NormalFloat with 4 bits: the nearest of 16 levels, with one scale per `size` weights in the order of memory.

    Source: Dettmers et al. (2023), QLoRA, https://arxiv.org/abs/2305.14314. The scales stay in full precision.
    """
    flat = weight.float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)
    scales = scale_of(blocks)
    table = NF4.to(weight.device)
    codes = torch.bucketize(blocks / scales, (table[1:] + table[:-1]) / 2)
    shaped = [value.flatten()[: len(flat)].view_as(weight) for value in (codes, table[codes] * scales)]
    return Rounded(shaped[0].to(torch.int8), shaped[1].to(weight.dtype))


def scale_of(blocks: Tensor) -> Tensor:
    """The largest absolute value of each block, kept as a last dimension of 1; 1 for a block of zeros."""
    largest = blocks.abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, largest, torch.ones_like(largest))


FORMATS: dict[str, Callable[[Tensor], Rounded]] = {
    "int8": lambda weight: by_row(weight, levels=127),
    "int4_128": lambda weight: by_row(weight, levels=7, size=128),
    "int4_64": lambda weight: by_row(weight, levels=7, size=64),
    "nf4": normal_float,
}


def quantised_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that these formats round: those of linear layers but for the output head, by name."""
    find_head = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            found[f"{name}.weight"] = module.weight
    return found
