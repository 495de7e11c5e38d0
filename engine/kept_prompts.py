"""Encoded prompts that are kept for the next time they are asked for, as long as there is room."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from data_module import Example
from engine.eight_bits import Packed, Packer

Prompt = dict[str, Tensor]  # what the processor made of a question, a batch of one
Kept = Tensor | Packed


class KeptPrompts:
    """Encoded prompts by what they ask. What prompts about one picture have of it is kept once.

    Pictures stay as the processor made them while all of them have room. Then those that are there and those that come
    are packed in 8 bits, if that loses nothing. Prompts that have no room after that are not kept, and nothing makes
    room for them: rows come in another order each epoch, so that the next epoch misses as few as it can.
    """

    def __init__(self, room: int, by_token: Iterable[str]):
        """`room`: bytes of all that is kept; `by_token`: names of what belongs to a question, not to its picture."""
        self.room = room
        self.is_full = False  # whether a prompt had no room
        self.by_token = {"input_ids", *by_token}
        self.packs = False
        self.packers: dict[str, Packer] = defaultdict(Packer)
        self.prompts: dict[tuple, dict[str, Tensor | None]] = {}  # None: it is the picture's
        self.pictures: dict[tuple, dict[str, Kept]] = {}

    def get(self, example: Example) -> Prompt | None:
        """The prompt of an example; None: it is not kept."""
        kept = self.prompts.get(example.prompt_key)
        if kept is None:
            return None
        shown = self.picture_of(example)
        return {name: shown[name] if own is None else own for name, own in kept.items()}

    def picture_of(self, example: Example) -> Prompt:
        """What is kept of an example's picture; empty where nothing is."""
        kept = {} if example.picture_key is None else self.pictures.get(example.picture_key, {})
        return {name: unpacked(value) for name, value in kept.items()}

    def add(self, example: Example, prompt: Prompt) -> Prompt:
        """Keep a prompt if there is room; returns it, with what is kept of its picture already."""
        shown = self.picture_of(example)
        same = {name for name, value in shown.items() if name in prompt and torch.equal(prompt[name], value)}
        prompt = {name: shown[name] if name in same else value for name, value in prompt.items()}
        whole: Prompt = {}  # what is new of its picture
        if example.picture_key is not None and not shown:
            whole = {name: value for name, value in prompt.items() if name not in self.by_token}
        own = {name: None if name in same or name in whole else value for name, value in prompt.items()}
        needed = sum(value.nbytes for value in own.values() if value is not None)
        if not self.packs and needed + size(whole) > self.room:
            self.pack_all()
        if self.packs and needed + sum(value.numel() for value in whole.values()) > self.room:
            self.is_full = True  # no room in 8 bits either
            return prompt
        new: dict[str, Kept] = self.packed(whole) if self.packs else dict(whole)
        needed += size(new)
        if needed > self.room:
            self.is_full = True
            return prompt
        self.room -= needed
        self.prompts[example.prompt_key] = own
        if new and example.picture_key is not None:
            self.pictures[example.picture_key] = new
        return prompt

    def pack_all(self) -> None:
        """Pack the pictures that are kept, and from now on those that come."""
        self.packs = True
        before = sum(map(size, self.pictures.values()))
        self.pictures = {key: self.packed(kept) for key, kept in self.pictures.items()}
        self.room += before - sum(map(size, self.pictures.values()))

    def packed(self, kept: Mapping[str, Kept]) -> dict[str, Kept]:
        """The same in 8 bits, where that loses nothing."""
        return {
            name: value if isinstance(value, Packed) else self.packers[name].pack(value) or value
            for name, value in kept.items()
        }


def unpacked(kept: Kept) -> Tensor:
    return kept.unpacked() if isinstance(kept, Packed) else kept


def size(kept: Mapping[str, Kept]) -> int:
    """Bytes of what is kept of a picture."""
    return sum(value.nbytes for value in kept.values())
