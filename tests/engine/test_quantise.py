"""Weights as low-bit formats round them: hand numbers, the published table, and how many codes a small update moves."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from engine.quantise import FORMATS, NF4, by_row, normal_float, quantised_weights


def test_eight_bits_have_one_scale_per_row():
    rounded = by_row(torch.tensor([[1.27, 0.01, -0.014], [12.7, 0.01, -0.2]]), levels=127)
    # scales .01 and .1: .014 / .01 = 1.4 -> 1, .01 / .1 -> 0, .2 / .1 -> 2
    assert rounded.codes.tolist() == [[127, 1, -1], [127, 0, -2]]
    assert rounded.weights[0].tolist() == pytest.approx([1.27, 0.01, -0.01])


def test_four_bits_have_a_scale_for_each_block_and_the_last_may_be_short():
    rounded = by_row(torch.tensor([[7.0, 1.2, 0.7, 0.1, 0.35]]), levels=7, size=2)
    assert rounded.codes.tolist() == [[7, 1, 7, 1, 7]]
    assert rounded.weights[0].tolist() == pytest.approx([7, 1, 0.7, 0.1, 0.35])


def test_a_row_of_zeros_stays_zero():
    for rounding in FORMATS.values():
        assert rounding(torch.zeros(2, 64)).weights.abs().max() == 0


def test_the_16_levels_are_quantiles_of_a_normal_distribution():
    """As QLoRA makes them: eight above 0 and seven below, evenly in probability, scaled to 1."""
    ends = 0.9677083
    above = norm.ppf(np.linspace(ends, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(ends, 0.5, 8)[:-1])
    levels = np.sort([*above, 0.0, *below]) / above.max()
    assert NF4.tolist() == pytest.approx(levels.tolist(), abs=1e-6)


def test_normal_float_takes_the_nearest_level_of_a_block():
    weight = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rounded = normal_float(weight, size=64)
    flat = torch.cat([weight.flatten(), torch.zeros(42)]).view(3, 64)
    for block, made in zip(flat, torch.cat([rounded.weights.flatten(), torch.zeros(42)]).view(3, 64), strict=True):
        scale = block.abs().max()
        nearest = (block[:, None] / scale - NF4).abs().argmin(1)
        torch.testing.assert_close(made[block != 0], (NF4[nearest] * scale)[block != 0])


@pytest.mark.parametrize(("change", "four", "eight"), [(1e-4, 0.988, 0.847), (5e-3, 0.50, 0.04)])
def test_a_small_update_leaves_most_weights_at_their_codes(change, four, eight):
    """Weights of .02: why rounding gives back what a small learning rate took away.

    The largest of 64 normal weights is about 2.4 of their spread, of 1024 about 3.3: steps of .048 / 7 = .0069 and
    .066 / 127 = .00052. A small change of mean size .8 * .0001 moves 1.2 % and 15 % of the codes; a large one leaves
    .00052 / (.005 * 2.5) = 4 % where they were.
    """
    source = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(512, 1024, generator=source)
    moved = weight + change * torch.randn(512, 1024, generator=source)
    for name, expected in (("int4_64", four), ("int8", eight)):
        equal = (FORMATS[name](weight).codes == FORMATS[name](moved).codes).float().mean().item()
        assert equal == pytest.approx(expected, abs=0.03)


def test_linear_layers_are_rounded_and_neither_embeddings_nor_the_output_head():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layer, self.head = nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def get_output_embeddings(self):
            return self.head

    assert list(quantised_weights(Model())) == ["layer.weight"]
