"""What a method asks for: forget rows with retain rows and other answers, drawn by seed, as batches named by their passes.

Shapes: B examples of a pass. A batch is data_module's with `pictured` (B,) and lists of whole numbers beside it: `keys`, `sizes`, `longest`.
"""

import functools
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from data_module import Example, draw
from engine.encode import Encoded
from settings.script import SettingsError


class Pairs:
    """For each forget row what the method's passes ask for: itself, a retain row, or the same question (and picture) with other answers.

    `idk`: "I don't know"; `unrelated`: answers of retain rows, who are other people; `shuffled`: answers of other forget rows, `other_answers` of them.
    Keys are `epoch * len(self) + row`, so that every draw is a function of (seed, epoch, row). Retain rows come from a seeded shuffle without
    replacement that cycles. An epoch runs over the forget rows, or over the retain rows where the method has no use for forget rows.
    """

    def __init__(
        self, passes: list[str], forget: Any, retain: Any, idk: dict[bool, list[str]], seed: int, other_answers: int = 1
    ):
        self.passes, self.forget, self.retain, self.idk, self.seed, self.other_answers = (
            passes,
            forget,
            retain,
            idk,
            seed,
            other_answers,
        )
        self.leading = retain if set(passes) == {"retain"} else forget
        if unknown := [name for name in passes if not hasattr(self, f"{name}_examples")]:
            raise SettingsError(f"the method asks for {unknown[0]} pictures, which there are in face recognition only")
        for name, rows, whose in (("shuffled", forget, "other forget rows"), ("unrelated", retain, "retain rows")):
            if name in passes and len(set(rows.answers)) < 2:
                raise SettingsError(f"the method asks for answers of {whose}, but these all have the same answer")

    def of(self, passes: list[str]) -> "Pairs":
        """The same draws for other passes."""
        return Pairs(passes, self.forget, self.retain, self.idk, self.seed, self.other_answers)

    def __len__(self) -> int:
        return len(self.leading)

    def __getitem__(self, key: int) -> dict[str, list[Example]]:
        epoch, row = divmod(key, len(self))
        return {name: getattr(self, f"{name}_examples")(epoch, row) for name in self.passes}

    def forget_examples(self, epoch: int, row: int) -> list[Example]:
        return [self.forget[row]]

    def retain_examples(self, epoch: int, row: int) -> list[Example]:
        if self.leading is self.retain:
            return [self.retain[row]]
        cycle, place = divmod(epoch * len(self) + row, len(self.retain))
        return [self.retain[retain_order(self.seed, cycle, len(self.retain))[place]]]

    def idk_examples(self, epoch: int, row: int) -> list[Example]:
        example = self.forget[row]
        return [replace(example, answer=draw(self.seed, epoch, row, "idk").choice(self.idk[example.image is not None]))]

    def unrelated_examples(self, epoch: int, row: int) -> list[Example]:
        return self.with_answers_of(self.retain, self.forget[row], draw(self.seed, epoch, row, "unrelated"))

    def shuffled_examples(self, epoch: int, row: int) -> list[Example]:
        return self.with_answers_of(self.forget, self.forget[row], draw(self.seed, epoch, row, "shuffled"))

    def with_answers_of(self, rows: Any, example: Example, source: random.Random) -> list[Example]:
        """`example` with answers drawn from `rows`, none of them its own."""
        made: list[Example] = []
        while len(made) < self.other_answers:
            answer = source.choice(rows.answers)
            made += [replace(example, answer=answer)] if answer != example.answer else []
        return made


@functools.lru_cache(maxsize=4)
def retain_order(seed: int, cycle: int, count: int) -> list[int]:
    """The order in which cycle number `cycle` visits the retain rows, each once."""
    return draw(seed, cycle, "retain").sample(range(count), count)


class EpochSampler(torch.utils.data.Sampler):
    """Keys of one epoch in an order drawn from (seed, epoch); the trainer calls `set_epoch`.

    With `bucket` > 0 the rows of that many batches (of `batch_size`) in a row are sorted by `lengths` and their batches shuffled, so that rows of like
    length share a batch and little of it is padding; an epoch's last, smaller batch stays the last.
    """

    def __init__(self, count: int, seed: int, lengths: Sequence[Any] = (), batch_size: int = 1, bucket: int = 0):
        self.count, self.seed, self.epoch = count, seed, 0
        self.lengths, self.batch_size, self.window = lengths, batch_size, bucket * batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        rows = draw(self.seed, self.epoch, "order").sample(range(self.count), self.count)
        return iter([self.epoch * self.count + i for i in (self.bucketed(rows) if self.window else rows)])

    def bucketed(self, rows: list[int]) -> list[int]:
        whole = self.count - self.count % self.batch_size
        batches = []
        for start in range(0, whole, self.window):
            window = sorted(rows[start : min(start + self.window, whole)], key=lambda row: self.lengths[row])
            batches += [window[i : i + self.batch_size] for i in range(0, len(window), self.batch_size)]
        draw(self.seed, self.epoch, "batches").shuffle(batches)
        return [row for batch in batches for row in batch] + rows[whole:]


def answer_key(example: Example) -> int:
    """A number that names a question with its answer, whatever their place in a batch or an epoch."""
    digest = hashlib.sha256(example.key.encode()).digest()
    return int.from_bytes(digest[:7], "big")  # fits the 64 bits of a tensor with a sign


class PassCollator:
    """What a method asks for, pass by pass: a list of {pass: [Example]} becomes {"trained": {passes: batch}, "frozen": {passes: batch}}.

    Passes whose examples are of like length go through the model in one batch, named "forget+retain": its `sizes` say how many rows belong to
    each and `longest` how long its longest answer is, `keys` are the rows' `answer_key`: lists, so that nobody waits for a GPU to read them.
    "frozen" holds the passes of the starting model, if it scores others than the trained one does. `encoder` encodes an example and collates several.
    """

    def __init__(self, encoder: Any, trained: list[str], frozen: list[str]):
        self.encoder, self.trained, self.frozen = encoder, trained, frozen

    def __call__(self, items: list[dict[str, list[Example]]]) -> dict[str, dict[str, dict[str, Tensor]]]:
        examples = {name: [example for item in items for example in item[name]] for name in items[0]}
        encoded = {name: [self.encoder.encode(example) for example in examples[name]] for name in examples}
        trained = self.groups(self.trained, encoded)
        frozen = (
            []
            if {"+".join(group) for group in trained} >= {"+".join(self.frozen)}
            else self.groups(self.frozen, encoded)
        )
        return {
            "trained": {"+".join(group): self.batch(group, examples, encoded) for group in trained},
            "frozen": {"+".join(group): self.batch(group, examples, encoded) for group in frozen},
        }

    def groups(self, names: list[str], encoded: dict[str, list[Encoded]]) -> list[list[str]]:
        """All passes in one group where padding them together costs at most a tenth more than apart, else each in its own."""
        lengths = {name: [e.length for e in encoded[name]] for name in names}
        apart = sum(len(rows) * max(rows) for rows in lengths.values())
        together = sum(map(len, lengths.values())) * max((max(rows) for rows in lengths.values()), default=0)
        return [names] if names and together <= 1.1 * apart else [[name] for name in names]

    def batch(
        self, names: list[str], examples: dict[str, list[Example]], encoded: dict[str, list[Encoded]]
    ) -> dict[str, Tensor]:
        batch = self.encoder.collate([e for name in names for e in encoded[name]])
        rows = [example for name in names for example in examples[name]]
        about = {
            "keys": [answer_key(row) for row in rows],
            "sizes": [len(encoded[name]) for name in names],
            "longest": [max(len(e.answer) for e in encoded[name]) for name in names],
            "pictured": torch.tensor([row.image is not None for row in rows]),
        }
        return batch | about
