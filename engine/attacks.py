"""Attacks: pure ways to ask again, or to change the weights, each a function that a file of config/attack names.

A function takes the target and keyword-only values, and yields what is to be evaluated: rows to ask, with the encoder
that asks them, while the target's model is as the attack left it. When it ends, the model is as it was.
"""

import contextlib
import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from data_module import QUESTION, Example, TaskRow, affixes_of, draw, load_split, task_rows
from engine.encode import Encoded, TooLong
from engine.quantise import FORMATS, quantised_weights
from engine.relearn import taught
from settings.attacks import Attack
from settings.language import Task
from settings.script import SettingsError, nearest, one_of

Rows = dict[str, list[TaskRow]]  # by task


class NotApplicable(Exception):
    """An attack that these rows or this model leave nothing to; the message says what is missing."""


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        model: In eval mode, on its device.
        encoder: Of its rows.
        rows: What is asked without an attack, by task: each with its right answer alone.
        tasks: Where the rows come from.
        controls: Task about the forgotten -> the one about kept people.
        base_weights: Gives the weights of the model before forgetting, by name.
        seed: Of every draw; the same for all models that are compared.
        frozen: Names of parts of the model that never train.
    """

    model: nn.Module
    encoder: Any
    rows: Rows
    tasks: dict[str, Task]
    controls: dict[str, str]
    base_weights: Callable[[], dict[str, Tensor]]
    seed: int
    frozen: tuple[str, ...] = ()

    @property
    def forget_rows(self) -> Rows:
        """The rows about the people to forget."""
        return {task: self.rows[task] for task in self.controls}


@dataclass(frozen=True)
class Variant:
    """Rows to evaluate now.

    Attributes:
        name: What was varied; two variants of one name hold different rows of the same thing.
        rows: What is asked, by task.
        encoder: That asks it.
        facts: What else is known, by name.
        told: (task, row) -> what the prompt tells, where it tells something that may hold a part of the answer.
    """

    name: str
    rows: Rows
    encoder: Any
    facts: dict[str, float] = field(default_factory=dict)
    told: dict[tuple[str, int], str] = field(default_factory=dict)


Variants = Generator[Variant, None, None]  # what an attack yields; closing it gives the model its weights back


# ---- other questions


def reworded(target: Target, *, column: str) -> Variants:
    """Ask in other words: those of a column of the data."""
    rows = {}
    for name, own in target.rows.items():
        task = target.tasks[name]
        if not task.question or column not in load_split(task.dataset, task.split).column_names:
            continue
        asked = {row.example.index: row for row in task_rows(replace(task, reworded=column), target.seed, 0)}
        rows[name] = [with_question(row, asked[row.example.index].example.question) for row in own]
    if not any(task in rows for task in target.controls):
        raise NotApplicable(f"no attacked task has a column {column!r}")
    yield Variant("", rows, target.encoder)


def affixes(target: Target, *, file: str, count: int) -> Variants:
    """Put the words of a file around every question, one line after another.

    Args:
        target: What is attacked.
        file: A line for each try, in which {question} stands for the question.
        count: How many lines are drawn by the seed; 0: all, in their order.
    """
    lines = lines_to_try(file, count)
    chosen = draw(target.seed, "attack", file).sample(lines, count) if count else lines
    for number, line in enumerate(chosen):
        rows = {}
        for task, own in target.rows.items():
            rows[task] = [with_question(row, line.replace(QUESTION, row.example.question)) for row in own]
        yield Variant(str(number), rows, target.encoder)


def lines_to_try(file: str, count: int) -> list[str]:
    """The lines of a file of words around a question. Raises SettingsError where they are fewer than `count`."""
    lines = affixes_of(file)
    if count > len(lines):
        raise SettingsError(f"attack.args.count={count}: {file!r} has {len(lines)} lines")
    return lines


def in_context(target: Target, *, count: int) -> Variants:
    """Put other questions about the same person with their answers before the question.

    A model that never met the person may read the answer off them. So tokens of the answer that stand there are told,
    and the attack is judged on the others. Rows with a picture, and those that no longer fit, are left out.
    """
    rows: Rows = {}
    told = {}
    for task, own in target.rows.items():
        rows[task] = []
        for row, before in with_others(own, count, target.seed):
            asked = with_question(row, f"{before}\n{row.example.question}")
            if fits(target.encoder, asked.example):
                rows[task].append(asked)
                told[task, row.example.index] = before
    if not any(rows[task] for task in target.controls):
        raise NotApplicable("no row in words has room for other rows about its person")
    yield Variant("", {task: own for task, own in rows.items() if own}, target.encoder, told=told)


def with_others(rows: Sequence[TaskRow], count: int, seed: int) -> Iterator[tuple[TaskRow, str]]:
    """Each row in words of a person with enough others, and `count` others with other answers as a text."""
    for row in rows:
        asked = row.example
        others = [other.example for other in rows if is_another_about(asked, other.example)]
        if asked.image is not None or len(others) < count:
            continue
        chosen = draw(seed, "context", asked.split, asked.index).sample(others, count)
        yield row, "\n".join(f"{other.question} {other.answer}" for other in chosen)


def is_another_about(asked: Example, other: Example) -> bool:
    """Whether a row tells something else about the same person, in words."""
    same_person = asked.person is not None and other.person == asked.person
    return same_person and other.image is None and other.question != asked.question and other.answer != asked.answer


def fits(encoder: Any, example: Example) -> bool:
    try:
        encoder.encode(example)
    except TooLong:
        return False
    return True


def with_question(row: TaskRow, question: str) -> TaskRow:
    """A row that asks something else."""
    return replace(row, example=replace(row.example, question=question))


# ---- a begun answer


class Prefilled:
    """An encoder whose prompts end with the beginning of an answer: the model goes on from there.

    What it does not do itself, the encoder that it holds does.
    """

    def __init__(self, encoder: Any, begun: dict[tuple, tuple[str, int]]):
        """`begun`: `prompt_key` of a row -> the text that is answered, and how many of its tokens are given."""
        self.encoder, self.begun = encoder, begun

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, example: Example) -> Encoded:
        text, count = self.begun[example.prompt_key]
        whole = self.encoder.encode(replace(example, answer=text))
        given = torch.tensor([whole.answer[:count]], dtype=torch.long)
        prompt = dict(whole.prompt)
        for name, dim in whole.layout.token_dims.items():
            if name in prompt:
                more = whole.layout.answer_slice(name, prompt[name])
                prompt[name] = torch.cat([prompt[name], *[more] * count], dim)
        prompt["input_ids"] = torch.cat([prompt["input_ids"], given], 1)
        return Encoded(prompt, whole.answer[count:], whole.layout)

    def encode_answer(self, example: Example, prompt_length: int) -> list[int]:
        text, count = self.begun[example.prompt_key]
        return self.encoder.encode_answer(replace(example, answer=text), prompt_length - count)[count:]

    def prompt_text(self, example: Example) -> str:
        text, count = self.begun[example.prompt_key]
        given = self.encoder.encode_answer(replace(example, answer=text), 0)[:count]
        return self.encoder.prompt_text(example) + self.encoder.tokenizer.decode(given)


def prefill(target: Target, *, counts: list[int]) -> Variants:
    """Give the first tokens of the right answer, and judge the rest.

    Answers that have no token more are left out, and so is a row that asks what one before it asks.
    """
    for count in counts:
        rows: Rows = {}
        begun: dict[tuple, tuple[str, int]] = {}
        for task, own in target.rows.items():
            rows[task] = []
            for row in first_of_each_prompt(own, begun):
                tokens = target.encoder.encode_answer(row.example, 0)[:-1]  # without the end
                if len(tokens) <= count:
                    continue
                begun[row.example.prompt_key] = (row.example.answer, count)
                rest = target.encoder.decode(torch.tensor(tokens[count:]))
                rows[task].append(replace(row, example=replace(row.example, answer=rest)))
        if not any(rows[task] for task in target.controls):
            raise NotApplicable(f"no answer has more than {count} tokens")
        yield Variant(str(count), {task: own for task, own in rows.items() if own}, Prefilled(target.encoder, begun))


def affirm(target: Target, *, text: str) -> Variants:
    """Let every answer begin with a text that agrees to answer, and judge the right answer behind it."""
    rows: Rows = {}
    begun: dict[tuple, tuple[str, int]] = {}
    for task, own in target.rows.items():
        rows[task] = []
        for row in first_of_each_prompt(own, begun):
            whole = f"{text} {row.example.answer}"
            given = target.encoder.encode_answer(replace(row.example, answer=text), 0)[:-1]
            if target.encoder.encode_answer(replace(row.example, answer=whole), 0)[: len(given)] == given:
                begun[row.example.prompt_key] = (whole, len(given))
                rows[task].append(row)
    if not any(rows[task] for task in target.controls):
        raise NotApplicable("the tokenizer joins the text with the answer behind it")
    yield Variant("", {task: own for task, own in rows.items() if own}, Prefilled(target.encoder, begun))


def first_of_each_prompt(rows: Sequence[TaskRow], begun: dict[tuple, Any]) -> Iterator[TaskRow]:
    """The rows whose question, with its picture, was not asked before; `begun` is filled in between."""
    for row in rows:
        if row.example.prompt_key not in begun:
            yield row


# ---- other weights


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give every weight back as it was, to the bit."""
    kept = {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(kept[name])


def noise(target: Target, *, scales: list[float]) -> Variants:
    """Add normal noise to every weight: what comes back under it was masked, and not gone.

    Args:
        target: What is attacked.
        scales: Standard deviations of the noise, as shares of the root mean square of each tensor.
    """
    for scale in scales:
        with restored(target.model):
            add_noise(target.model, scale, target.seed)
            yield Variant(str(scale), target.rows, target.encoder)


@torch.no_grad()
def add_noise(model: nn.Module, scale: float, seed: int) -> None:
    """Normal noise on every weight in place; the draw of a tensor depends on its name and the seed alone."""
    for name, parameter in model.named_parameters():
        source = torch.Generator().manual_seed(draw(seed, "noise", name).getrandbits(63))
        drawn = torch.randn(parameter.shape, generator=source).to(parameter)
        parameter.add_(drawn * (scale * parameter.float().square().mean().sqrt().item()))


def interpolate(target: Target, *, shares: list[float]) -> Variants:
    """Move every weight a share of the way to base: what is found close by was not gone."""
    base = same_weights(target)
    for share in shares:
        with restored(target.model):
            with torch.no_grad():
                for name, parameter in target.model.named_parameters():
                    parameter.lerp_(base[name].to(parameter), share)
            yield Variant(str(share), target.rows, target.encoder)


def quantise(target: Target, *, formats: list[str]) -> Variants:
    """Round the weights of linear layers as low-bit formats do: a small update may be lost.

    `equal_codes` says which share of the weights has the same code as in base: these took nothing from forgetting.
    """
    for chosen in formats:
        one_of("attack.args.formats", chosen, list(FORMATS))
    base = same_weights(target)
    for chosen in formats:
        with restored(target.model):
            share = round_weights(target.model, base, chosen)
            yield Variant(chosen, target.rows, target.encoder, {"equal_codes": share})


@torch.no_grad()
def round_weights(model: nn.Module, base: dict[str, Tensor], chosen: str) -> float:
    """Round the linear weights in place to a format; returns the share of the codes that are base's."""
    equal, count = 0, 0
    for name, weight in quantised_weights(model).items():
        rounded = FORMATS[chosen](weight)
        equal += int((rounded.codes == FORMATS[chosen](base[name].to(weight)).codes).sum())
        count += weight.numel()
        weight.copy_(rounded.weights)
    return equal / count


def same_weights(target: Target) -> dict[str, Tensor]:
    """Base's weights. Raises SettingsError where they are not of the model's names and shapes."""
    base = target.base_weights()
    for name, parameter in target.model.named_parameters():
        if name not in base or base[name].shape != parameter.shape:
            raise SettingsError(f"base_path: base has no {name!r} of shape {tuple(parameter.shape)}, as the model has")
    return base


def relearn(target: Target, *, split: str, steps: list[int], lr: float, batch_size: int) -> Variants:
    """Teach the model some of the forgotten rows again, and judge the others after some of the steps of one run.

    Args:
        target: What is attacked.
        split: `half`: half of each person's rows; `people`: half of the people, and then the other half, so that
            everybody is judged by a model that was not taught them.
        steps: After how many steps the others are judged.
        lr: Learning rate, the same for all models.
        batch_size: Rows of a step.
    """
    one_of("attack.args.split", split, ("half", "people"))
    settings: dict[str, Any] = {"lr": lr, "batch_size": batch_size, "seed": target.seed, "frozen": target.frozen}
    for learned, judged in division(target, split):
        with restored(target.model):
            for step in taught(target.model, target.encoder, learned, steps=max(steps), **settings):
                if step in steps:
                    yield Variant(str(step), judged, target.encoder)


def division(target: Target, split: str) -> Iterator[tuple[list[Example], Rows]]:
    """What is taught again with what is judged then: one pair of both for `half`, two for `people`.

    Raises NotApplicable where there is nothing to part.
    """
    halves = (half_of_rows if split == "half" else half_of_people)(target)
    for part in (True, False):
        learned, judged = [], {}
        for task, own in target.rows.items():
            is_control = task not in target.controls
            in_part = [halves[key_of(row)] == part for row in own]
            learned += [row.example for row, inside in zip(own, in_part, strict=True) if inside and not is_control]
            others = [row for row, inside in zip(own, in_part, strict=True) if not inside]
            judged[task] = own if is_control and split == "half" else others
        if not learned or not any(judged[task] for task in target.controls):
            raise NotApplicable(f"too few rows or people to part them for split={split}")
        yield learned, {task: own for task, own in judged.items() if own}
        if split == "half":
            return


def key_of(row: TaskRow) -> tuple[str, int]:
    """What two tasks about one row of the data share: a picture asked for its caption and for its name."""
    return row.example.split, row.example.index


def person_of(row: TaskRow) -> str:
    """Whom a row is about; a row about nobody stands for itself."""
    return row.example.person or f"row {row.example.index} of {row.example.split}"


def half_of_rows(target: Target) -> dict[tuple[str, int], bool]:
    """Row -> whether it is in the half of its person's rows that is taught: the smaller half of an odd number."""
    by_person: dict[tuple[str, str], set[tuple[str, int]]] = {}
    for own in target.rows.values():
        for row in own:
            by_person.setdefault((row.example.split, person_of(row)), set()).add(key_of(row))
    chosen = {}
    for (split, person), rows in by_person.items():
        ordered = draw(target.seed, "half", split, person).sample(sorted(rows), len(rows))
        for place, key in enumerate(ordered):
            chosen[key] = place < len(rows) // 2
    return chosen


def half_of_people(target: Target) -> dict[tuple[str, int], bool]:
    """Row -> whether its person is in the first half of the people, who are halved among the forgotten and the kept."""
    chosen: dict[tuple[str, int], bool] = {}
    for kind in (set(target.controls), set(target.controls.values())):
        rows = [row for task in sorted(kind) for row in target.rows[task]]
        people = sorted({person_of(row) for row in rows})
        first = set(draw(target.seed, "people").sample(people, len(people) // 2))
        chosen |= {key_of(row): person_of(row) in first for row in rows}
    return chosen


# ---- by name

KIND = {
    "input": (reworded, affixes, in_context, prefill, affirm),
    "weights": (noise, interpolate, quantise, relearn),
}
FUNCTIONS: dict[str, Callable[..., Variants]] = {each.__name__: each for own in KIND.values() for each in own}


def bind(attack: Attack) -> Callable[[Target], Variants]:
    """An attack's function with its values.

    Raises:
        SettingsError: The function is not known or of another kind, or the values are not exactly its own.
    """
    where = f"attacks.{attack.name}"
    if attack.attack not in FUNCTIONS:
        known = f"{nearest(attack.attack, FUNCTIONS)}; choose from {', '.join(FUNCTIONS)}"
        raise SettingsError(f"{where}.attack={attack.attack!r} is not in engine/attacks.py{known}")
    function = FUNCTIONS[attack.attack]
    if function not in KIND[attack.kind]:
        raise SettingsError(f"{where}.kind={attack.kind!r}: {attack.attack} changes something else")
    wanted = [name for name in inspect.signature(function).parameters if name != "target"]
    if unknown := sorted(set(attack.args) - set(wanted)):
        raise SettingsError(f"{where}.args.{unknown[0]} is not a value of {attack.attack}; it has {', '.join(wanted)}")
    if missing := [name for name in wanted if name not in attack.args]:
        raise SettingsError(f"{where}.args.{missing[0]} is required by {attack.attack}")
    for name, value in attack.args.items():
        check_value(f"{where}.args.{name}", value, get_type_hints(function)[name])

    def attacked(target: Target) -> Variants:
        return function(target, **attack.args)

    return attacked


def check_attacks(attacks: Iterable[Attack], weights: str) -> None:
    """Check whatever can be known of attacks before a model is loaded.

    Args:
        attacks: Those that will be run.
        weights: The precision in which the model is loaded.

    Raises:
        SettingsError: A function or a value is wrong, a file cannot be read, or weights are too short to be trained.
    """
    for attack in attacks:
        bind(attack)
        if FUNCTIONS[attack.attack] is relearn and weights != "float32":
            raise SettingsError(
                f"attacks.{attack.name} trains, which needs model.weights=float32; ~attacks.{attack.name} leaves it out"
            )
        if FUNCTIONS[attack.attack] is affixes:
            lines_to_try(attack.args["file"], attack.args["count"])


def check_value(name: str, value: Any, kind: Any) -> None:
    """Raise SettingsError unless a value is of its kind, and a number above 0 or a list that is not empty."""
    lists = {list[int]: int, list[float]: int | float, list[str]: str}
    items = value if kind in lists and isinstance(value, list) else [value]
    of_items: Any = lists.get(kind, int | float if kind is float else kind)
    is_right = isinstance(value, list) == (kind in lists) and bool(items)
    is_right &= all(isinstance(item, of_items) and not isinstance(item, bool) for item in items)
    if not is_right:
        what = {list[int]: "whole numbers", list[float]: "numbers", list[str]: "texts"}.get(kind)
        one = {int: "a whole number", float: "a number", str: "a text"}.get(kind)
        raise SettingsError(f"{name}={value!r} must be {f'a list of {what}' if what else one}")
    least = 0 if name.endswith(".count") else 1e-12
    if any(not isinstance(item, str) and not item >= least for item in items):
        raise SettingsError(f"{name}={value!r} must be above 0")


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights in main memory, by name."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}
