"""Beginnings that prompts of a batch share: a picture, and what else stands before their questions. Each is run once.

A rest is what follows a prompt's stem.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from engine.encode import Encoded, collate_prompts

WORTH = 0.9  # share of the positions of whole prompts above which two passes are not taken


@dataclass(frozen=True)
class Stems:
    """The beginnings of some prompts, each once."""

    inputs: dict[str, Tensor]  # what the model's forward takes, with the pictures
    firsts: list[int]  # of each stem, the prompt that it is taken from
    lengths: list[int]  # of each stem, its tokens
    of: list[int]  # of each prompt, the stem that it begins with
    rests: list[int]  # of each prompt, how many tokens follow its stem

    def tokens(self) -> list[int]:
        """How many tokens are run for each prompt: its rest, and its stem where no prompt before it has the same."""
        run = [*self.rests]
        for prompt, length in zip(self.firsts, self.lengths, strict=True):
            run[prompt] += length
        return run

    def to(self, device: Any) -> "Stems":
        """The same with its tensors on a device."""
        return replace(self, inputs={name: value.to(device) for name, value in self.inputs.items()})


def find_stems(encoded: list[Encoded], pictures: Sequence[Hashable], pad: int, worth: float = WORTH) -> Stems | None:
    """What prompts about one picture have in common; None where running it once saves next to nothing.

    A prompt whose picture no other has is a stem itself but for its last token.

    Args:
        encoded: the prompts.
        pictures: what names the picture of each; None: it has none, and shares nothing.
        pad: fills a batch up.
        worth: share of the positions of whole prompts that both passes together may have.
    """
    groups = groups_of(encoded, pictures)
    if len(groups) == len(encoded):
        return None
    ids = [each.prompt["input_ids"][0] for each in encoded]
    of, rests, lengths = [0] * len(encoded), [0] * len(encoded), []
    for stem, group in enumerate(groups):
        lengths.append(common_length([ids[number] for number in group]))
        for number in group:
            of[number], rests[number] = stem, len(ids[number]) - lengths[-1]
    together = len(groups) * max(lengths) + len(encoded) * max(rests)
    if min(lengths) < 1 or together > worth * len(encoded) * max(map(len, ids)):
        return None
    firsts = [group[0] for group in groups]
    cut = [beginning_of(encoded[first], length) for first, length in zip(firsts, lengths, strict=True)]
    return Stems(collate_prompts(cut, pad), firsts, lengths, of, rests)


def groups_of(encoded: list[Encoded], pictures: Sequence[Hashable]) -> list[list[int]]:
    """The numbers of prompts that a picture's name and all that the processor made of it show to be about one picture,
    in one list each.
    """
    groups: dict[Hashable, list[list[int]]] = {}
    for number, (each, picture) in enumerate(zip(encoded, pictures, strict=True)):
        named = groups.setdefault((number, None) if picture is None else picture, [])
        same = next((group for group in named if same_picture(encoded[group[0]], each)), None)
        if same is None:
            named.append([number])
        else:
            same.append(number)
    return [group for named in groups.values() for group in named]


def same_picture(one: Encoded, other: Encoded) -> bool:
    """Whether the processor made the same of both prompts' pictures."""
    by_token = {"input_ids", *one.layout.token_dims}
    return one.prompt.keys() == other.prompt.keys() and all(
        torch.equal(value, other.prompt[name]) for name, value in one.prompt.items() if name not in by_token
    )


def common_length(prompts: list[Tensor]) -> int:
    """With how many tokens, each (L_i,), all prompts begin alike, one token of each left aside."""
    size = min(map(len, prompts)) - 1
    first = prompts[0][:size]
    alike = torch.stack([prompt[:size] == first for prompt in prompts]).all(0)
    return int(alike.long().cumprod(0).sum())


def beginning_of(encoded: Encoded, length: int) -> Encoded:
    """The first tokens of a prompt, with its pictures."""
    dims = {"input_ids": 1, **encoded.layout.token_dims}
    cut = {
        name: value.narrow(dims[name], 0, length) if name in dims else value for name, value in encoded.prompt.items()
    }
    return replace(encoded, prompt=cut)
