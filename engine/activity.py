"""How active the neurons of a layer are: what rules look at that edit neurons."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Activity:
    """How active the neurons of one layer are, each (d_ff,): means over rows of means over answer positions."""

    size: Tensor  # |z|
    signed: Tensor  # z
    square: Tensor  # z^2
    often: Tensor  # share of the positions where |z| is above a threshold

    @property
    def around_size(self) -> Tensor:
        """The mean of (z - mean |z|)^2."""
        return self.square - 2 * self.size * self.signed + self.size.square()
