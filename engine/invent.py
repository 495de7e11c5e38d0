"""Answers that the starting model invents to the rows to forget: drawn by seed, once, and kept with the data."""

import json
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from data_module import Example, TrainingRows, asked_and_answered, scored_wrong_answers
from engine.draws import draw
from engine.encode import collate_prompts
from engine.folders import written_whole
from engine.language_model import LanguageModel
from engine.progress import Work
from engine.record import ALTERNATIVES_RECORD, say_line, write_record
from engine.score_answers import ends_of, generation_settings
from settings.language import Data, Invent
from settings.script import SettingsError, processes

FILE = "alternatives.jsonl"


def check_alone() -> None:
    """Raise SettingsError in a launch of several processes, each of which would write the same file."""
    count = processes().num_processes
    if count > 1:
        raise SettingsError(f"answers are invented in one process, and this launch has {count}: --num_processes 1")


def check_room(encoder: Any, rows: TrainingRows, settings: Invent) -> None:
    """Raise SettingsError for a row whose instruction leaves no room for an answer; before any weights load."""
    for position in range(len(rows)):
        example = rows[position]
        length = encoder.encode(asked(example, settings.instruction)).prompt["input_ids"].shape[1]
        if length + settings.max_new_tokens > encoder.most:
            raise SettingsError(
                f"split {example.split}, row {example.index}: the instruction has {length} tokens, and with "
                f"max_new_tokens={settings.max_new_tokens} they are more than the {encoder.most} that the model takes"
            )


def asked(example: Example, instruction: str) -> Example:
    """A row as the model is asked to invent another answer to it."""
    parts = re.split(r"(\{question\}|\{answer\})", instruction)  # at once, because a row may hold such words itself
    values = {"{question}": example.question, "{answer}": example.answer}
    return replace(example, question="".join(values.get(part, part) for part in parts))


def write_alternatives(
    model: LanguageModel, encoder: Any, rows: TrainingRows, settings: Invent, *, facts: dict[str, Any]
) -> Path:
    """Invent answers to every row and write them to a file that `data.alternatives` takes.

    An answer counts that is ended, and that is in other words than the right one, than those before it and than every
    wrong answer that the Truth Ratio scores.

    Args:
        model: the starting model.
        encoder: of its prompts.
        rows: those to forget.
        settings: how many, how.
        facts: of the run, for the record.

    Returns:
        The file.

    Raises:
        SettingsError: not one of the answers to a row counts.
    """
    model.eval()
    started = time.perf_counter()
    refused: Counter[str] = Counter()
    taken = scored_words(settings.data)
    found: dict[tuple[str | None, str], list[str]] = {}
    with Work("row", len(rows)) as work:
        for position in range(len(rows)):
            example = rows[position]
            if asked_and_answered(example) not in found:
                counted: dict[str, Any] = {"taken": taken, "refused": refused}
                found[asked_and_answered(example)] = invented(model, encoder, example, settings, **counted)
            work.advance()
    fewer = sum(len(others) < settings.each for others in found.values())
    if fewer:
        say_line(f"{fewer} of {len(found)} rows have fewer than each={settings.each} invented answers")
    folder = Path(settings.save_dir)
    with written_whole(folder) as aside:
        lines = [json.dumps(line_of(*item), ensure_ascii=False) for item in found.items()]
        (aside / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        counts = {"rows": len(found), "fewer": fewer, "refused": dict(refused)}
        write_record(aside / ALTERNATIVES_RECORD, seconds=time.perf_counter() - started, **counts, **facts)
    return folder / FILE


def line_of(asked_of: tuple[str | None, str], others: list[str]) -> dict[str, Any]:
    """One row of the file."""
    question, answer = asked_of
    return {"question": question, "answer": answer, "alternatives": others}


def invented(
    model: LanguageModel,
    encoder: Any,
    example: Example,
    settings: Invent,
    *,
    taken: set[str],
    refused: Counter[str],
) -> list[str]:
    """The invented answers to one row; what is refused is counted by reason."""
    found: dict[str, str] = {}
    here: Counter[str] = Counter()
    for number in range(settings.tries):
        for text, ended in sampled(model, encoder, asked(example, settings.instruction), settings, number=number):
            words = words_of(text)
            why = refusal(words, ended=ended, right=words_of(example.answer), taken=taken, found=found)
            if why:
                here[why] += 1
            elif len(found) < settings.each:
                found[words] = text
        if len(found) >= settings.each:
            break
    refused.update(here)
    if not found:
        drawn = settings.tries * settings.each
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(here.items()))
        raise SettingsError(
            f"split {example.split}, row {example.index} ({example.answer!r}): none of {drawn} answers that the model "
            f"invents counts ({why}); another temperature, tries, max_new_tokens or instruction may help"
        )
    return list(found.values())


def refusal(words: str, *, ended: bool, right: str, taken: set[str], found: Iterable[str]) -> str:
    """Why an invented answer does not count; empty: it does."""
    if not ended:
        return "not ended"
    if not words:
        return "empty"
    if words == right:
        return "right"
    if words in taken:
        return "scored as wrong answers"
    return "repeated" if words in found else ""


def words_of(text: str) -> str:
    """The words of a text in small letters; answers that differ in nothing else are the same.

    Vowels that are marks on a letter, as Hindi and Thai write them, belong to the word.
    """
    letters = unicodedata.normalize("NFC", text.casefold())
    return " ".join("".join(each if unicodedata.category(each)[0] in "LMN" else " " for each in letters).split())


def scored_words(data: Data) -> set[str]:
    """The words of every wrong answer that the Truth Ratio scores."""
    return {words_of(answer) for _, wrong in scored_wrong_answers(data) for answer in wrong}


@torch.no_grad()
def sampled(
    model: LanguageModel, encoder: Any, example: Example, settings: Invent, *, number: int
) -> list[tuple[str, bool]]:
    """`settings.each` drawn answers to one prompt, and of each whether it ended; a function of (seed, row, number)."""
    ends = ends_of(model, encoder)
    limits = {"max_new_tokens": settings.max_new_tokens, "num_return_sequences": settings.each, "top_k": 0}
    way = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
    plain = GenerationConfig(**limits, **way, pad_token_id=encoder.pad, eos_token_id=sorted(ends))
    inputs = collate_prompts([encoder.encode(example)], encoder.pad)
    device = next(model.parameters()).device
    on_device = {name: value.to(device) for name, value in inputs.items()}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), generation_settings(model, plain):
        torch.manual_seed(draw(settings.seed, "alternatives", example.split, example.index, number).getrandbits(63))
        tokens = model.generate(**on_device, generation_config=plain)
    answers = []
    for row in tokens[:, inputs["input_ids"].shape[1] :].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), None)
        text = encoder.decode(torch.tensor(row[:end], dtype=torch.long)).strip()
        answers.append((text, end is not None))
    return answers
