"""Examples -> encoded examples -> batches, for models that read and models that see.

Shapes: B examples, L input positions, T answer positions. A batch is a dict with `input_ids` and `attention_mask` (B, L), whatever
else the processor made (pictures concatenated along dimension 0), `labels` (B, T) and `positions` (B, T): the logits at
`positions[b, t]` predict `labels[b, t]`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import torch
from torch import Tensor

from data_module import Example, TaskRow, open_image
from settings.script import SettingsError
from unlearn_losses import IGNORE

TODAY = (
    "26 Jul 2024"  # for templates that tell the date: with the real one a model would be asked something else tomorrow
)


class TooLong(SettingsError):
    """An example that does not fit."""


@dataclass(frozen=True)
class Encoded:
    """An example in the model's terms: `prompt` as the processor made it (batch of one), `answer` its tokens, end-of-sequence last."""

    prompt: dict[str, Tensor]
    answer: list[int]

    @property
    def length(self) -> int:
        """Positions that it takes in a batch."""
        return self.prompt["input_ids"].shape[1] + len(self.answer)


class ChatEncoder:
    """Examples as a chat: the processor's template with the question (and picture) as the user's turn, the answer as the model's.

    The answer's tokens are appended to the prompt's, so that labels follow from lengths and never from looking for the answer in the text.
    Encoded prompts (up to `keep_bytes`) and answers are kept, because training and scoring meet each of them many times. An example longer than
    `max_length` tokens (0: what tokenizer and model have room for; `positions`: the model's, 0 where not known) is an error, or with `truncate` loses the
    end of its answer; a prompt is never cut. Raises SettingsError for a `max_length` beyond that room.
    """

    sees = True  # takes pictures

    def __init__(
        self,
        processor: Any,
        max_length: int = 0,
        truncate: bool = False,
        positions: int = 0,
        keep_bytes: int = 512 * 2**20,
    ):
        self.processor, self.tokenizer, self.room = processor, getattr(processor, "tokenizer", processor), keep_bytes
        most = min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)
        if max_length > most:
            raise SettingsError(f"max_length={max_length} is more than the {most} tokens that the model takes")
        self.max_length, self.truncate, self.pad = max_length or most, truncate, padding_for(self.tokenizer)
        self.kept: dict[tuple, dict[str, Tensor]] = {}
        self.told: dict[str, list[int]] = {}  # answers by their text

    def prompt_text(self, example: Example) -> str:
        picture = [{"type": "image"}] if example.image is not None else []
        turn = {"role": "user", "content": [*picture, {"type": "text", "text": example.question}]}
        return self.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)

    def prompt_inputs(self, example: Example) -> dict[str, Tensor]:
        """What the processor makes of the prompt, a batch of one."""
        images = [open_image(example)] if example.image is not None else None
        return dict(self.processor(text=[self.prompt_text(example)], images=images, return_tensors="pt"))

    def answer_tokens(self, answer: str) -> list[int]:
        return [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def encode(self, example: Example) -> Encoded:
        """Tokens and picture of one example; raises SettingsError naming the row for an unreadable picture, an answer without a token, too long a row."""
        prompt = self.kept.get(example.prompt_key)
        if prompt is None:
            prompt = self.prompt_inputs(example)
            del prompt["attention_mask"]
            self.room -= sum(value.nbytes for value in prompt.values())
            if self.room > 0:
                self.kept[example.prompt_key] = prompt
        return Encoded(prompt, self.encode_answer(example, prompt["input_ids"].shape[1]))

    def encode_answer(self, example: Example, asked: int) -> list[int]:
        """Tokens of the example's answer behind a prompt of `asked` tokens; raises SettingsError as `encode` does, without touching the picture."""
        answer = self.told.get(example.answer) or self.told.setdefault(
            example.answer, self.answer_tokens(example.answer)
        )
        if len(answer) == 1:
            raise SettingsError(
                f"split {example.split}, row {example.index}: no token is left of the answer {example.answer!r}"
            )
        if asked + len(answer) > self.max_length and not (self.truncate and asked < self.max_length):
            raise TooLong(
                f"split {example.split}, row {example.index}: {asked + len(answer)} tokens, but the model takes {self.max_length}"
            )
        return answer[: self.max_length - asked]

    def collate(self, encoded: list[Encoded]) -> dict[str, Tensor]:
        return collate(encoded, self.pad)

    def decode(self, tokens: Tensor) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def chat_text(tokenizer: Any, *turns: dict[str, str]) -> str:
    """The turns in the tokenizer's template, with what opens the model's answer behind a user's last one. Raises SettingsError for a template that fails."""
    try:
        return tokenizer.apply_chat_template(
            [*turns], add_generation_prompt=len(turns) == 1, tokenize=False, date_string=TODAY
        )
    except jinja2.TemplateError as error:
        raise SettingsError(
            f"the chat template of {tokenizer.name_or_path} fails ({error}); model.tags replaces it"
        ) from None


def check_template(tokenizer: Any) -> None:
    """Raise SettingsError unless the chat template keeps question and answer, and the answer stands right behind what opens it."""
    if not tokenizer.chat_template:
        raise SettingsError(
            f"model.tags is required: {tokenizer.name_or_path} has no chat template, so name what stands before question and answer"
        )
    question, answer = {"role": "user", "content": "the question"}, {"role": "assistant", "content": "the answer"}
    asked, whole = chat_text(tokenizer, question), chat_text(tokenizer, question, answer)
    if question["content"] not in asked:
        raise SettingsError(f"the chat template of {tokenizer.name_or_path} drops the question; model.tags replaces it")
    if answer["content"] not in whole:
        raise SettingsError(f"the chat template of {tokenizer.name_or_path} drops the answer; model.tags replaces it")
    if not whole.startswith(asked.rstrip()) or not whole[len(asked.rstrip()) :].lstrip().startswith(answer["content"]):
        raise SettingsError(
            f"the chat template of {tokenizer.name_or_path} opens an answer otherwise than it writes one; model.tags replaces it"
        )


def check_lengths(encoder: ChatEncoder, rows: Any) -> None:
    """Raise SettingsError with the number of rows that are too long and the first of them, before any weights load.

    Where the model sees, picture rows are not opened for it: one that does not fit is named when training meets it.
    """
    long = too_long(encoder, (rows[i] for i in (rows.in_words if encoder.sees else range(len(rows)))))
    if long:
        raise SettingsError(
            f"{len(long)} of {len(rows)} rows are too long, the first: {long[0]}; max_length= allows more, truncate=true cuts their answers"
        )


def check_answers(encoder: ChatEncoder, tasks: dict[str, list[TaskRow]]) -> None:
    """The same for the rows of tasks in words with all their answers; raises SettingsError too for one without a token."""
    for name, rows in tasks.items():
        answers = [
            replace(row.example, answer=answer)
            for row in rows
            for answer in (row.example.answer, row.paraphrase, *row.perturbed)
            if answer is not None
        ]
        if long := too_long(encoder, answers):
            raise SettingsError(f"{name}: {len(long)} of {len(answers)} answers are too long, the first: {long[0]}")


def too_long(encoder: ChatEncoder, examples: Iterable[Example]) -> list[str]:
    """A line for each example that does not fit."""
    found = []
    for example in examples:
        try:
            encoder.encode(example)
        except TooLong as error:
            found.append(str(error))
    return found


def padding_for(tokenizer: Any) -> int:
    """What fills a batch up, which masks hide: the pad token, else one that is not the end-of-sequence: made for it, the unknown, or the vocabulary's first.

    The tokenizer stays as it is: told that its pad token is "!", it would leave that out of every text once it is saved and read again.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    named = [number for token, number in tokenizer.get_added_vocab().items() if "pad" in token or "reserved" in token]
    return next(
        number
        for number in (*named, tokenizer.unk_token_id, 0, 1)
        if number is not None and number != tokenizer.eos_token_id
    )


def collate(encoded: list[Encoded], pad: int) -> dict[str, Tensor]:
    """Prompts with their answers, padded on the right; masks come from lengths, because a pad token may also be a real one."""
    sequences = [torch.cat([e.prompt["input_ids"][0], torch.tensor(e.answer[:-1], dtype=torch.long)]) for e in encoded]
    batch = pad_rows(sequences, pad, left=False)
    longest = max(len(e.answer) for e in encoded)
    labels = torch.full((len(encoded), longest), IGNORE)
    positions = torch.zeros((len(encoded), longest), dtype=torch.long)
    for i, e in enumerate(encoded):
        start, count = e.prompt["input_ids"].shape[1] - 1, len(e.answer)
        labels[i, :count] = torch.tensor(e.answer)
        positions[i, :count] = torch.arange(start, start + count)
    return {**batch, **processor_extras(encoded, sequences, left=False), "labels": labels, "positions": positions}


def collate_prompts(encoded: list[Encoded], pad: int) -> dict[str, Tensor]:
    """Prompts alone, padded on the left, ready to generate from."""
    sequences = [e.prompt["input_ids"][0] for e in encoded]
    return {**pad_rows(sequences, pad, left=True), **processor_extras(encoded, sequences, left=True)}


def pad_rows(rows: list[Tensor], pad: int, left: bool) -> dict[str, Tensor]:
    """Ragged rows (each (L_i,)) as `input_ids` (B, L) with their `attention_mask`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def processor_extras(encoded: list[Encoded], sequences: list[Tensor], left: bool) -> dict[str, Tensor]:
    """What the processor made besides token ids: per-token rows padded like the ids, pictures concatenated whatever their patch counts."""
    extras = {}
    for name in {name: None for e in encoded for name in e.prompt if name != "input_ids"}:
        values = [e.prompt[name] for e in encoded if name in e.prompt]
        if values[0].shape == next(e for e in encoded if name in e.prompt).prompt["input_ids"].shape:
            rows = [torch.cat([v[0], v.new_zeros(len(s) - v.shape[1])]) for v, s in zip(values, sequences, strict=True)]
            extras[name] = pad_rows(rows, 0, left)["input_ids"]
        else:
            extras[name] = torch.cat(values)
    return extras
