"""MANU (arXiv 2502.15910): the neurons are removed that tell the forget people's pictures from words about them more
than those of the people to keep.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.activity import Activity

EPSILON = 1e-6  # what holds a ratio where a neuron is silent


def prune(
    forget_pictures: Sequence[Activity],
    forget_words: Sequence[Activity],
    retain_pictures: Sequence[Activity],
    retain_words: Sequence[Activity],
    *,
    share: float,
) -> list[Tensor]:
    """A factor of 0 for the `share` of all neurons whose importance(F) / importance(R) is largest, 1 for the others.

    Of neurons with the same ratio the first are taken. A neuron that is silent on all forget rows is never removed.

    Args:
        forget_pictures: of each decoder layer, how active its neurons are on forget rows with a picture.
        forget_words: the same on forget rows in words.
        retain_pictures: the same on retain rows with a picture.
        retain_words: the same on retain rows in words.
        share: of the neurons of all layers, from 0 to 1. floor(share * n) of n neurons are removed, if so many speak.

    Returns:
        Of each layer a factor per neuron.
    """
    scores, speaks = [], []
    for fp, fw, rp, rw in zip(forget_pictures, forget_words, retain_pictures, retain_words, strict=True):
        scores.append(difference(fp, fw) / (difference(rp, rw) + EPSILON))
        speaks.append((fp.square > 0) | (fw.square > 0))
    ratio = torch.cat(scores).masked_fill(~torch.cat(speaks), -math.inf)
    order = ratio.argsort(descending=True, stable=True)[: math.floor(share * len(ratio))]
    factors = torch.ones_like(ratio)
    factors[order[ratio[order] > -math.inf]] = 0.0
    return list(factors.split([len(each) for each in scores]))


def difference(pictures: Activity, words: Activity) -> Tensor:
    """How much a neuron tells pictures from words, (d_ff,): the sum of the paper's four measures.

    |Zp - Zw| / (Zp + Zw) + |Np - Nw| / (Np + Nw) + sqrt(Vp + Vw) + sqrt(|Ep - Ew| / (Ep + Ew)), Z = mean |z|, N = share
    of |z| above a threshold, V = mean (z - Z)^2, E = mean z^2
    """
    spread = (pictures.around_size + words.around_size).clamp(min=0).sqrt()
    return (
        contrast(pictures.size, words.size)
        + contrast(pictures.often, words.often)
        + spread
        + contrast(pictures.square, words.square).sqrt()
    )


def contrast(one: Tensor, other: Tensor) -> Tensor:
    """|a - b| / (a + b), for values of 0 or more."""
    return (one - other).abs() / (one + other + EPSILON)
