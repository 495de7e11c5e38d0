"""Prepared pictures in a byte for each value, which come back with the same bits.

A pixel has one of 256 values in each channel, and a processor makes the same of a value wherever it stands. So a
channel of what it makes has at most 256 values, and a byte can name each. Nothing is assumed of scales, means or
the order of operations: values are named as they are met. Which dimension counts channels differs between families, and
is found by trying. A picture in which a channel has more values is not packed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MOST = 256  # names in a byte
CHANNELS = 3
PLACES = 2**16
# odd, so that no two values have the same product; as signed numbers of 32 bits
FACTORS = [(2654435761 * odd + 2**31) % 2**32 - 2**31 for odd in range(1, 128, 2)]
LEAST = 4096  # bytes; what is smaller is not worth it
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a number -> what is compared in its place


class View(NamedTuple):
    """A tensor's values by channel, (before, channels, behind)."""

    dim: int  # from the last on, which holds the channels; 0: channels are not told apart
    is_outer: bool  # whether the channels are the outer part of that dimension
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Packed:
    """A tensor as names of its values."""

    names: Tensor  # uint8 (before, channels, behind)
    values: list[Tensor]  # of each channel, by name
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.names.nbytes

    def unpacked(self) -> Tensor:
        """The tensor, with the same bits as before."""
        made = torch.empty(self.names.shape, dtype=BITS[self.dtype.itemsize])
        for number, values in enumerate(self.values):
            names = self.names[:, number]
            made[:, number] = values.index_select(0, names.flatten().int()).view(names.shape)
        return made.view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Channel:
    """The values that were met in a channel, in the order of meeting: a value's place is its name.

    The product of a value's bits and a factor leads to its name. The factor is one that keeps all values apart.
    """

    values: Tensor  # (n,), at most 256
    factor: int
    leads_to: Tensor  # (65536,) uint8

    def names_of(self, found: Tensor) -> Tensor:
        """The name of each value (n,), as uint8; some name for one that was not met."""
        return self.leads_to.index_select(0, products(found, self.factor))


def channel_of(values: Tensor) -> Channel | None:
    """Values (n,) with names; None: they are too many, or bits above the lowest 32 tell them apart."""
    if len(values) > MOST:
        return None
    own = torch.arange(len(values), dtype=torch.uint8)
    for factor in FACTORS:
        places = products(values, factor)
        leads_to = torch.zeros(PLACES, dtype=torch.uint8).index_put((places,), own)
        if torch.equal(leads_to.index_select(0, places), own):
            return Channel(values, factor, leads_to)
    return None


def products(values: Tensor, factor: int) -> Tensor:
    """The upper half of the product of a value's lowest 32 bits and a factor, (n,) int32 in [0, 65536)."""
    return ((values.int() * factor) >> 16) & (PLACES - 1)


def named(found: Tensor, known: Channel | None) -> tuple[Channel, Tensor] | None:
    """The names of all values found in a channel, and the channel with those that are new; None: they are too many.

    Args:
        found: (n,) bits.
        known: What was met before; None: nothing.
    """
    channel = known or channel_of(found.unique())
    if channel is None:
        return None
    names = channel.names_of(found)
    strange = found[channel.values.index_select(0, names.int()) != found]
    if not len(strange):
        return channel, names
    grown = channel_of(torch.cat([channel.values, strange.unique()]))
    return named(found, grown) if grown else None


class Packer:
    """Packs tensors of one kind. One that does not fit ends it: others of that kind would not fit either."""

    def __init__(self) -> None:
        self.channels: dict[tuple, list[Channel]] = {}  # by the view's dimension and by the numbers' type
        self.last: tuple | None = None  # the view that fitted
        self.fits = True

    def pack(self, tensor: Tensor) -> Packed | None:
        """The tensor in 8 bits; None where its values cannot be named in a byte."""
        bits = BITS.get(tensor.dtype.itemsize)
        if not self.fits or bits is None or tensor.nbytes < LEAST:
            return None
        for view in sorted(views_of(tensor.shape), key=lambda view: view[:2] != self.last):
            names = self.names_of(tensor.contiguous().view(bits).view(view.shape), (*view[:2], tensor.dtype))
            if names is not None:
                self.last = view[:2]
                values = [channel.values for channel in self.channels[(*self.last, tensor.dtype)]]
                return Packed(names, values, tensor.shape, tensor.dtype)
        self.fits = False
        return None

    def names_of(self, bits: Tensor, key: tuple) -> Tensor | None:
        """The name of each value of a view (before, channels, behind); None where a channel has too many values."""
        known: list[Channel] = self.channels.get(key, [])
        names, grown = torch.empty(bits.shape, dtype=torch.uint8), []
        for number in range(bits.shape[1]):
            own = named(bits[:, number].flatten(), known[number] if known else None)
            if own is None:
                return None
            grown.append(own[0])
            names[:, number] = own[1].view(names[:, number].shape)
        self.channels[key] = grown
        return names


def views_of(shape: torch.Size) -> Iterator[View]:
    """How a tensor of some shape may hold its channels; the likely ways first."""
    yield View(0, True, (1, 1, shape.numel()))
    dims = [dim for dim in range(-1, -len(shape) - 1, -1) if shape[dim] % CHANNELS == 0]
    for dim in sorted(dims, key=lambda dim: shape[dim] != CHANNELS):
        before, behind = math.prod(shape[:dim]), math.prod(shape[dim:][1:])
        rest = shape[dim] // CHANNELS
        yield View(dim, True, (before, CHANNELS, rest * behind))
        if rest > 1:
            yield View(dim, False, (before * rest, CHANNELS, behind))
