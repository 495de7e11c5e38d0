"""What a method asks for: forget rows with retain rows and other answers, drawn by seed, as one `Batch` per forward.

Shapes: B rows, T answer positions.
"""

import copy
import functools
import hashlib
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_module import Example, asked_and_answered, open_image
from engine.draws import draw
from settings.script import SettingsError
from settings.training import Noise
from unlearn_losses import Scored


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model in one forward.

    The fields behind `positions` are plain numbers, so that reading them never waits for a GPU.
    """

    inputs: dict[str, Tensor]  # what the model's forward takes
    labels: Tensor  # (B, T), IGNORE where there is no answer
    positions: Tensor | None = None  # (B, T): the logits at positions[b, t] predict labels[b, t]; None: one per row
    passes: tuple[str, ...] = ()  # the passes that the rows belong to, in the order of the rows
    rows: tuple[int, ...] = ()  # how many rows belong to each pass
    widths: tuple[int, ...] = ()  # tokens of the longest answer of each pass
    answer_keys: tuple[int, ...] = ()  # of each row, what `answer_key` says
    beside: int = 0  # rows behind all others that belong to no pass
    is_shown: bool = False  # whether a row of a pass has a picture

    def to(self, device: Any, non_blocking: bool = False) -> "Batch":
        """The same batch with its tensors on `device`; accelerate calls it by this name."""
        return self.with_tensors(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory; torch's data loader calls it by this name."""
        return self.with_tensors(lambda value: value.pin_memory())

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with every tensor changed."""
        inputs = {name: change(value) for name, value in self.inputs.items()}
        positions = None if self.positions is None else change(self.positions)
        return replace(self, inputs=inputs, labels=change(self.labels), positions=positions)

    def split(self, scored: Scored) -> dict[str, Scored]:
        """Each pass's own rows of `scored` (B, T, ...), as wide as the longest answer of that pass.

        Rows of no pass add nothing, but a gradient of 0 goes back through them.
        """
        whole: Any = scored.given
        if self.beside:
            whole = scored.logits[: -self.beside] + 0 * scored.logits[-self.beside :].sum()
        given = whole.split(list(self.rows))
        labels = scored.labels[: whole.shape[0]].split(list(self.rows))
        return {
            name: Scored(given[i][:, :width], labels[i][:, :width], scored.margin)
            for i, (name, width) in enumerate(zip(self.passes, self.widths, strict=True))
        }

    def keys_of(self, name: str) -> tuple[int, ...]:
        """The answer keys of one pass's rows."""
        place = self.passes.index(name)
        first = sum(self.rows[:place])
        return self.answer_keys[first : first + self.rows[place]]


class Pairs:
    """For each forget row what the method's passes ask for: itself, a retain row, or its question with other answers.

    `idk`: "I don't know"; `unrelated`: answers of retain rows, who are other people; `shuffled`: answers of other
    forget rows, `other_answers` of them; `alternate`: so many of the row's invented answers; `noised`: the row itself,
    asked with an instruction before the question, its picture noised alike in every epoch; `visual`: its picture with
    another question and what the start answers, the same in every epoch. Keys are
    `epoch * len(self) + row`, so that every draw is a function of (seed, epoch, row). Retain rows come from a seeded
    shuffle without replacement that cycles. An epoch runs over the forget rows, or over the retain rows where the
    method has no use for forget rows. After `match_lengths` the retain rows of an epoch, which stay the same, are
    given to its forget rows by length: the shortest to the shortest.
    """

    def __init__(
        self,
        passes: list[str],
        forget: Any,
        retain: Any,
        *,
        idk: dict[bool, list[str]],
        seed: int,
        other_answers: int = 1,
        scope: str = "both",
        alternatives: Mapping[tuple[str | None, str], list[str]] | None = None,
        noise: Noise | None = None,
        holdout: Any = None,
        asked: list[str] | None = None,
    ):
        """`idk`: the answers for questions in words (False) and with a picture (True); `scope`: of the method;
        `alternatives`: what engine.word_files.alternative_answers gives; `noise`: of the method; `holdout`: rows
        about people whom no model met; `asked`: questions about a picture that do not ask who is in it.
        """
        self.passes, self.all_forget, self.all_retain = passes, forget, retain
        self.forget: Any = None if forget is None else in_scope(forget, scope)
        self.retain: Any = in_scope(retain, scope)
        self.idk, self.seed, self.other_answers, self.scope = idk, seed, other_answers, scope
        self.alternatives, self.noise, self.holdout, self.asked = alternatives, noise, holdout, asked
        self.own_answers: dict[int, Example] = {}  # by forget row; engine.own_answers fills it in
        self.leading: Any = self.retain if set(passes) == {"retain"} else self.forget
        self.measure: Callable[[Any], list[int]] | None = None  # rows -> the length of each, where they are matched
        self.lengths: tuple[list[int], list[int]] | None = None  # of forget and retain rows, once they are measured
        self.of_epoch: tuple[int, dict[int, int]] | None = None  # of `matched_rows`, of the epoch that was asked last
        if unknown := [name for name in passes if not hasattr(self, f"{name}_examples")]:
            raise SettingsError(f"the method asks for {unknown[0]} pictures, which there are in face recognition only")
        if "noised" in passes and noise is None:
            raise SettingsError("the method asks for noised pictures, which there are for language models only")
        if "visual" in passes and asked is None:
            raise SettingsError("the method asks for questions about pictures, which language models alone answer")
        if "alternate" in passes:
            self.check_alternatives()
        self.check_others()

    def check_others(self) -> None:
        """Raise SettingsError where all rows have one answer, and another one of theirs is asked for."""
        drawn: tuple[tuple[str, Any, str], ...] = (
            ("shuffled", self.forget, "other forget rows"),
            ("unrelated", self.retain, "retain rows"),
        )
        for name, rows, whose in drawn:
            if name in self.passes and len(set(rows.answers)) < 2:
                raise SettingsError(f"the method asks for answers of {whose}, but these all have the same answer")

    def check_alternatives(self) -> None:
        """Raise SettingsError unless each forget row has as many invented answers as are asked for."""
        if self.alternatives is None:
            raise SettingsError("the method asks for invented answers, which there are for language models only")
        for place in range(len(self.forget)):
            example = self.forget[place]
            count = len(self.alternatives.get(asked_and_answered(example), ()))
            if count < self.other_answers:
                raise SettingsError(
                    f"data.alternatives has {count} invented answers to split {example.split}, row {example.index} "
                    f"({example.answer!r}), and method.other_answers={self.other_answers} asks for more"
                )

    def pairs_for(self, passes: list[str]) -> "Pairs":
        """The same draws for other passes."""
        more: dict[str, Any] = {
            "seed": self.seed,
            "other_answers": self.other_answers,
            "scope": self.scope,
            "alternatives": self.alternatives,
            "noise": self.noise,
            "holdout": self.holdout,
            "asked": self.asked,
        }
        made = Pairs(passes, self.all_forget, self.all_retain, idk=self.idk, **more)
        made.own_answers = self.own_answers
        made.measure = None if made.leading is made.retain else self.measure
        return made

    def with_retain_rows(self, count: int) -> "Pairs":
        """The same with so many of the retain rows, drawn with the seed; 0: all. Raises SettingsError."""
        made = copy.copy(self)
        made.retain = drawn_of(self.retain, count, self.seed, "retain rows")
        made.leading = made.retain if self.leading is self.retain else self.leading
        made.of_epoch, made.lengths = None, None  # both are of the other rows
        made.check_others()
        return made

    def match_lengths(self, measure: Callable[[Any], list[int]]) -> None:
        """From now on give each epoch's retain rows to its forget rows by length, which `measure` takes of rows. An
        epoch over retain rows has none to give.

        All are measured here, and not anew in each process that makes batches.
        """
        self.measure = None if self.leading is self.retain else measure
        if self.measure:
            self.measured()

    def measured(self) -> tuple[list[int], list[int]]:
        """The lengths of all forget and all retain rows."""
        assert self.measure is not None  # retain_examples
        if self.lengths is None:
            self.lengths = self.measure(self.forget), self.measure(self.retain)
        return self.lengths

    def rows_of(self, name: str) -> Any:
        """All rows of a kind: `forget` and `retain` as the method trains on them; with `_words` or `_pictures` behind
        it those without or with a picture, whatever the method's scope is; `holdout`: about people whom no model met.
        Raises SettingsError where there are none.
        """
        if name == "holdout":
            if self.holdout is None:
                raise SettingsError(
                    "the method asks for questions about people whom no model met, which there are for language models "
                    "only"
                )
            return self.holdout
        whose, _, kind = name.partition("_")
        if not kind:
            return self.forget if whose == "forget" else self.retain
        return in_scope(self.all_forget if whose == "forget" else self.all_retain, kind)

    def a_picture_row(self) -> Example | None:
        """A row with a picture, where the method trains on any."""
        for rows in (self.forget, self.retain):
            worded = set(getattr(rows, "in_words", ()))
            place = next((place for place in range(len(rows or ())) if place not in worded), None)
            example: Example | None = None if place is None else rows[place]  # rows of a scope are all of one kind
            if example is not None and example.image is not None:
                return example
        return None

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
        if self.measure:
            return [self.retain[self.matched_rows(epoch)[row]]]
        return [self.retain[self.retain_row(epoch, row)]]

    def retain_row(self, epoch: int, row: int) -> int:
        """The retain row that the shuffle has at this place of the run."""
        cycle, place = divmod(epoch * len(self) + row, len(self.retain))
        return retain_order(self.seed, cycle, len(self.retain))[place]

    def matched_rows(self, epoch: int) -> dict[int, int]:
        """Of each forget row the retain row of the same rank by length, among those that the epoch has."""
        if self.of_epoch is None or self.of_epoch[0] != epoch:
            of_forget, of_retain = self.measured()
            drawn = [self.retain_row(epoch, row) for row in range(len(self))]
            drawn.sort(key=of_retain.__getitem__)
            rows = sorted(range(len(self)), key=of_forget.__getitem__)
            self.of_epoch = (epoch, dict(zip(rows, drawn, strict=True)))
        return self.of_epoch[1]

    def idk_examples(self, epoch: int, row: int) -> list[Example]:
        example = self.forget[row]
        answer = draw(self.seed, epoch, row, "idk").choice(self.idk[example.image is not None])
        return [replace(example, answer=answer)]

    def unrelated_examples(self, epoch: int, row: int) -> list[Example]:
        return self.with_answers_of(self.retain, self.forget[row], draw(self.seed, epoch, row, "unrelated"))

    def shuffled_examples(self, epoch: int, row: int) -> list[Example]:
        return self.with_answers_of(self.forget, self.forget[row], draw(self.seed, epoch, row, "shuffled"))

    def alternate_examples(self, epoch: int, row: int) -> list[Example]:
        example = self.forget[row]
        assert self.alternatives is not None  # check_alternatives
        others = self.alternatives[asked_and_answered(example)]
        drawn = draw(self.seed, epoch, row, "alternate").sample(others, self.other_answers)
        return [replace(example, answer=answer) for answer in drawn]

    def noised_examples(self, epoch: int, row: int) -> list[Example]:
        example = self.forget[row]
        assert self.noise is not None  # __init__
        return [replace(self.instructed(example), image=noised(example, self.noise.sigma, self.seed))]

    def visual_examples(self, epoch: int, row: int) -> list[Example]:
        return [self.own_answers[row]]

    def asked_otherwise(self, row: int) -> list[Example]:
        """A forget row's picture with each question that does not ask who is in it, in the order to try them."""
        assert self.asked is not None  # __init__
        questions = draw(self.seed, row, "visual").sample(self.asked, len(self.asked))
        return [replace(self.forget[row], question=question, answer="") for question in questions]

    def instructed(self, example: Example) -> Example:
        """The example with the method's instruction before its question."""
        assert self.noise is not None  # __init__
        return replace(example, question=f"{self.noise.instruction} {example.question}")

    def with_answers_of(self, rows: Any, example: Example, source: random.Random) -> list[Example]:
        """`example` with answers drawn from `rows`, none of them its own."""
        made: list[Example] = []
        while len(made) < self.other_answers:
            answer = source.choice(rows.answers)
            if answer != example.answer:
                made.append(replace(example, answer=answer))
        return made


def noised(example: Example, sigma: float, seed: int) -> dict | None:
    """The picture of an example with Gaussian noise, drawn from (seed, row); None where it has none.

    `sigma`: standard deviation of the noise in shares of the range of a pixel. What leaves the range is cut.
    """
    if example.image is None:
        return None
    pixels = np.asarray(open_image(example), dtype=np.float32)
    source = np.random.default_rng(draw(seed, "noise", example.split, example.index).getrandbits(64))
    changed = (pixels + 255 * sigma * source.standard_normal(pixels.shape, dtype=np.float32)).clip(0, 255)
    stream = io.BytesIO()
    Image.fromarray(changed.round().astype(np.uint8)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


class Chosen:
    """Some of the rows of a split."""

    def __init__(self, rows: Any, positions: list[int]):
        self.rows, self.positions = rows, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, position: int) -> Example:
        example: Example = self.rows[self.positions[position]]
        return example

    def __iter__(self) -> Iterator[Example]:
        return (self.rows[position] for position in self.positions)

    @functools.cached_property
    def answers(self) -> list[str]:
        """The answer of each row."""
        return [self.rows.answers[position] for position in self.positions]

    @functools.cached_property
    def questions(self) -> list[str]:
        """What each row asks."""
        return [self.rows.questions[position] for position in self.positions]

    @functools.cached_property
    def in_words(self) -> list[int]:
        """The places of the rows without a picture."""
        worded = set(self.rows.in_words)
        return [place for place, position in enumerate(self.positions) if position in worded]


def in_scope(rows: Any, scope: str) -> Any:
    """The rows that a method's scope names: both, pictures, words. Raises SettingsError where there are none."""
    if scope == "both":
        return rows
    worded = set(getattr(rows, "in_words", ()))  # faces have a picture each
    kept = [position for position in range(len(rows)) if (position in worded) == (scope == "words")]
    if not kept:
        kind = "in words" if scope == "words" else "with a picture"
        split = getattr(rows, "split", "")
        raise SettingsError(
            f"the method asks for rows {kind}, and split {split} gives none (modality and the data say which it gives)"
        )
    return Chosen(rows, kept)


def drawn_of(rows: Any, most: int, seed: int, label: str = "mask") -> Chosen:
    """Some rows of a split, drawn with the seed; `most` of 0 takes all. Draws of another `label` are independent."""
    places = list(range(len(rows)))
    return Chosen(rows, draw(seed, label).sample(places, most) if 0 < most < len(rows) else places)


@functools.lru_cache(maxsize=4)
def retain_order(seed: int, cycle: int, count: int) -> list[int]:
    """The order in which cycle number `cycle` visits the retain rows, each once."""
    return draw(seed, cycle, "retain").sample(range(count), count)


class EpochSampler(torch.utils.data.Sampler):
    """Keys of one epoch in an order drawn from (seed, epoch); the trainer calls `set_epoch`.

    With `bucket` > 0 the rows of that many batches (of `batch_size`) are sorted by `lengths` and their batches are
    shuffled, so that rows of like length share a batch and little of it is padding. An epoch's last, smaller batch
    stays the last.
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
        if self.window:
            rows = self.bucketed(rows)
        return iter([self.epoch * self.count + row for row in rows])

    def bucketed(self, rows: list[int]) -> list[int]:
        """The same rows, those of like length in one batch."""
        whole = self.count - self.count % self.batch_size
        batches: list[list[int]] = []
        for start in range(0, whole, self.window):
            window = sorted(rows[start : min(start + self.window, whole)], key=lambda row: self.lengths[row])
            batches += [window[i : i + self.batch_size] for i in range(0, len(window), self.batch_size)]
        draw(self.seed, self.epoch, "batches").shuffle(batches)
        return [row for batch in batches for row in batch] + rows[whole:]


def answer_key(example: Example) -> int:
    """A number that names a question with its answer, whatever their place in a batch or an epoch."""
    digest = hashlib.sha256(example.key.encode()).digest()
    return int.from_bytes(digest[:7], "big")  # fits the 64 bits of a tensor with a sign


def rows_of_pass(items: list[dict[str, list[Example]]], name: str) -> list[Example]:
    """One pass's examples of all items."""
    return [example for item in items for example in item[name]]


def lengths_of(encoded: list[Any]) -> list[int]:
    """Positions of each row in a batch."""
    return [each.length for each in encoded]


def longest_answer(encoded: list[Any]) -> int:
    return max(len(each.answer) for each in encoded)


class PassCollator:
    """What a method asks for, row by row -> the batches of one step.

    A list of {pass: [Example]} becomes {"trained": [Batch], "frozen": [Batch], "labels": {pass: (B, T)}}. "frozen"
    holds the passes that the starting model scores; it is empty where some of the trained batches hold exactly those.
    "labels" holds the answers of the passes that no model scores.

    With `by_length` the passes share one forward where padding them together costs at most a tenth more positions than
    apart. Without it each pass has a forward of its own, or all share one where the encoder says that every row has the
    same length (`one_length`). Several processes need that: each of them sees other rows, and in a sharded run one that
    took fewer forwards than the others would leave them waiting.

    `beside`, where it is set, is a row with a picture that joins every batch of words alone. A process whose batch has
    no picture would not run the vision tower, of which the others need its part.
    """

    def __init__(
        self, encoder: Any, trained: list[str], frozen: list[str], *, by_length: bool, told: Sequence[str] = ()
    ):
        """`encoder` encodes an example and collates several; `told`: the passes whose answers alone are asked for."""
        self.encoder, self.trained, self.frozen, self.by_length = encoder, trained, frozen, by_length
        self.told = told
        self.beside: Example | None = None

    def __call__(self, items: list[dict[str, list[Example]]]) -> dict[str, Any]:
        rows = {name: rows_of_pass(items, name) for name in items[0]}
        encoded = {name: list(map(self.encoder.encode, examples)) for name, examples in rows.items()}
        trained = self.batches(self.trained, rows, encoded)
        reusable = [name for batch in trained if set(batch.passes) <= set(self.frozen) for name in batch.passes]
        frozen = [] if set(reusable) == set(self.frozen) else self.batches(self.frozen, rows, encoded)
        labels = {name: self.encoder.collate(encoded[name]).labels for name in self.told}
        return {"trained": trained, "frozen": frozen, "labels": labels}

    def batches(self, names: list[str], rows: dict[str, list[Example]], encoded: dict[str, list[Any]]) -> list[Batch]:
        groups = self.groups({name: lengths_of(encoded[name]) for name in names})
        return [self.batch(group, rows, encoded) for group in groups]

    def groups(self, lengths: dict[str, list[int]]) -> list[list[str]]:
        """Which passes share a forward; `lengths`: the positions of each row of each pass."""
        names = list(lengths)
        if not names:
            return []
        if not self.by_length:
            return [names] if self.encoder.one_length else [[name] for name in names]
        apart = sum(len(rows) * max(rows) for rows in lengths.values())
        shared = sum(map(len, lengths.values())) * max(map(max, lengths.values()))
        return [names] if shared <= 1.1 * apart else [[name] for name in names]

    def batch(self, names: list[str], rows: dict[str, list[Example]], encoded: dict[str, list[Any]]) -> Batch:
        shown = any(example.image is not None for name in names for example in rows[name])
        beside = [self.encoder.encode(self.beside)] if self.beside and not shown else []
        collated = self.encoder.collate([*(each for name in names for each in encoded[name]), *beside])
        return replace(
            collated,
            beside=len(beside),
            is_shown=shown,
            passes=tuple(names),
            rows=tuple(len(encoded[name]) for name in names),
            widths=tuple(longest_answer(encoded[name]) for name in names),
            answer_keys=tuple(answer_key(example) for name in names for example in rows[name]),
        )
