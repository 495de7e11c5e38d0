"""Knowledge Vector Weakening (arXiv 2601.21794): neurons that are more active on forget rows than on retain rows write
less.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.activity import Activity


def weaken(
    forget: Sequence[Activity],
    retain: Sequence[Activity],
    *,
    strength: float,
    first_layer: int,
    spared_layers: int,
) -> list[Tensor]:
    """Neuron j of a layer writes exp(-strength * max(0, log(kc_F[j] / kc_R[j]))) times as much, kc = mean size.

    Args:
        forget: of each decoder layer, how active its neurons are on forget rows.
        retain: the same on retain rows.
        strength: the authors' gamma times their number of forget batches, 0 or more; 0 changes nothing.
        first_layer: layers before it stay as they are.
        spared_layers: so many of the last layers do, too.

    Returns:
        Of each layer a factor per neuron, between 0 and 1; 1 where both are as active, or neither is.
    """
    factors = []
    last = len(forget) - spared_layers
    for number, (f, r) in enumerate(zip(forget, retain, strict=True)):
        stronger = (f.size > r.size) & (first_layer <= number < last)
        factors.append(torch.where(stronger, (r.size / f.size) ** strength, 1.0))
    return factors
