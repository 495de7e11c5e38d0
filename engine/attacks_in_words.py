"""Attacks by other words: another question, more around it, other facts before it, or the beginning of an answer."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from data_module import Example, TaskRow, load_split, task_rows
from engine.attack_target import NotApplicable, Rows, Target, Variant, Variants, person_of, with_question
from engine.attacks_on_weights import people_apart
from engine.draws import draw
from engine.encode import Encoded, TooLong
from engine.score_answers import Prompt, score_prompts
from engine.word_files import QUESTION, affixes_of, lines_of
from settings.script import SettingsError

PROMPTS_AT_ONCE = 64  # of a search
ASKED = ("caption", "name")  # what tasks ask for in words of the suite, and not of the data

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


def closed_questions(target: Target, *, file: str) -> Variants:
    """Ask for captions and for names in other words, of which a file has some of each, or in other languages.

    Args:
        target: What is attacked.
        file: Lines `caption: <question>` and `name: <question>`, as many of each. The k-th of both are one try.
    """
    wordings = wordings_of(file)
    asked: dict[str, str] = {}
    for name in target.rows:
        task = target.tasks[name]
        asked |= {name: task.ask} if task.ask in ASKED and not task.question else {}
    if not any(task in asked for task in target.controls):
        raise NotApplicable("no attacked task asks for captions or names")
    for number in range(len(wordings["name"])):
        rows: Rows = {}
        for name, kind in asked.items():
            rows[name] = [with_question(row, wordings[kind][number]) for row in target.rows[name]]
        yield Variant(str(number), rows, target.encoder)


def wordings_of(file: str) -> dict[str, list[str]]:
    """What is asked for -> the questions of a file. Raises SettingsError unless it holds as many of each."""
    found: dict[str, list[str]] = {kind: [] for kind in ASKED}
    for line in lines_of("attack.args.file", file):
        kind, _, question = line.partition(":")
        if kind not in found or not question.strip():
            raise SettingsError(f"attack.args.file={file!r}: {line!r} must be one of {', '.join(ASKED)}, :, a question")
        found[kind].append(question.strip())
    counts = {kind: len(questions) for kind, questions in found.items()}
    if len(set(counts.values())) > 1:
        raise SettingsError(f"attack.args.file={file!r} must hold as many lines of each kind, and has {counts}")
    return found


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


def affix_search(target: Target, *, file: str, rows_of_each: int) -> Variants:
    """Put the line around every question that brings most out of some people, and ask the others with it.

    The line is searched for half of the people, who then are not judged by it, and then for the other half. It is
    searched anew for every model: gold has its own.

    Args:
        target: What is attacked.
        file: The lines, in which {question} stands for the question.
        rows_of_each: Rows of a person that the search asks.
    """
    lines = lines_to_try(file, 0)
    for learned, judged in people_apart(target):
        rows: Rows = {}
        for forget, control in target.controls.items():
            line = best_line(target, lines, first_of_each_person(learned[forget], rows_of_each))
            for task in (forget, control):
                asked = [with_question(row, line.replace(QUESTION, row.example.question)) for row in judged[task]]
                rows |= {task: asked} if asked else {}
        yield Variant("", rows, target.encoder)


def first_of_each_person(rows: Sequence[TaskRow], count: int) -> list[TaskRow]:
    """At most `count` rows of each person, the first ones."""
    seen: dict[str, int] = {}
    kept = []
    for row in rows:
        seen[person_of(row)] = seen.get(person_of(row), 0) + 1
        if seen[person_of(row)] <= count:
            kept.append(row)
    return kept


def best_line(target: Target, lines: Sequence[str], rows: Sequence[TaskRow]) -> str:
    """The line around the questions under which the right answers have the lowest loss, a mean over rows; of equals
    the first.
    """
    prompts = []
    for line in lines:
        for row in rows:
            asked = with_question(row, line.replace(QUESTION, row.example.question)).example
            prompts.append(Prompt(asked, [asked.answer]))
    limits: dict[str, Any] = {"batch_size": PROMPTS_AT_ONCE, "max_new_tokens": 1, "say": lambda line: None}
    results = score_prompts(target.model, target.encoder, prompts, **limits)
    losses = []
    for prompt, result in zip(prompts, results, strict=True):
        (answer,) = prompt.answers
        losses.append(np.mean(result.answers[answer].losses[:-1]))  # without the end
    return lines[int(np.reshape(losses, (len(lines), len(rows))).mean(axis=1).argmin())]


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
