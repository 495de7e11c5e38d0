"""Examples -> encoded examples -> batches. One encoder base holds every guard on tokenizers and templates.

Shapes: B examples, L input positions, T answer positions. The inputs of a batch are `input_ids` and `attention_mask`
(B, L) and whatever else the processor made; pictures are concatenated along dimension 0.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import torch
from torch import Tensor

from data_module import Example, TaskRow
from engine.pairs import Batch
from settings.script import SettingsError
from unlearn_losses import IGNORE

# For templates that tell the date: with the real one a model would be asked something else tomorrow.
TODAY = "26 Jul 2024"


class TooLong(SettingsError):
    """An example that does not fit."""


@dataclass(frozen=True)
class Encoded:
    """An example in the model's terms.

    `prompt`: what the processor made of the question, a batch of one. `answer`: its tokens, end-of-sequence last.
    """

    prompt: dict[str, Tensor]
    answer: list[int]

    @property
    def length(self) -> int:
        """Positions that it takes in a batch."""
        return self.prompt["input_ids"].shape[1] + len(self.answer)


class ChatEncoder(ABC):
    """Examples as a chat: the question (and its picture) is the user's turn, the answer the model's.

    mm/encoder.py and nlp/encoder.py say what a turn and a prompt are for their models. The answer's tokens are appended
    to the prompt's, so that labels follow from lengths and never from looking for the answer in the text. Encoded
    prompts (up to `CACHE_BYTES`) and answers are kept, because training and scoring meet each of them many times.
    """

    CACHE_BYTES = 512 * 2**20
    sees = False  # takes pictures
    one_length = False  # whether every row takes as many positions as any other

    def __init__(self, processor: Any, *, max_length: int = 0, truncate: bool = False, positions: int = 0):
        """
        Args:
            processor: the model's processor or tokenizer.
            max_length: tokens of question and answer; 0: what tokenizer and model have room for.
            truncate: cut the end of an answer that does not fit. Without it such an example is an error. A prompt is
                never cut.
            positions: the tokens that the model has room for; 0: not known.

        Raises:
            SettingsError: `max_length` is more than there is room for, or the chat template cannot be used.
        """
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.most = min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)
        if max_length > self.most:
            raise SettingsError(f"max_length={max_length} is more than the {self.most} tokens that the model takes")
        self.max_length, self.truncate = max_length or self.most, truncate
        self.pad = padding_for(self.tokenizer)
        self.forget_kept()

    def forget_kept(self) -> None:
        """Drop the prompts and answers that are kept."""
        self.cache_bytes_left = self.CACHE_BYTES
        self.kept_prompts: dict[tuple, dict[str, Tensor]] = {}
        self.kept_answers: dict[str, list[int]] = {}  # by their text

    def uncut(self) -> "ChatEncoder":
        """The same encoder for evaluation, which cuts nothing and takes all that the model has room for."""
        encoder = copy.copy(self)
        encoder.max_length, encoder.truncate = self.most, False
        encoder.forget_kept()
        return encoder

    # ---- what mm and nlp say

    @abstractmethod
    def turn(self, role: str, text: str, pictures: int = 0) -> dict[str, Any]:
        """One turn of a chat, as the template takes it."""

    @abstractmethod
    def prompt_inputs(self, example: Example) -> dict[str, Tensor]:
        """What the processor makes of the prompt, a batch of one."""

    # ---- what they share

    def chat_text(self, *turns: dict[str, Any]) -> str:
        """The turns in the chat template, with what opens the model's answer behind a lone user's turn.

        Raises SettingsError for a template that fails.
        """
        date = {"date_string": TODAY} if "date_string" in str(self.processor.chat_template) else {}
        asks = {"add_generation_prompt": len(turns) == 1, "tokenize": False}
        try:
            return self.processor.apply_chat_template([*turns], **asks, **date)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
            raise SettingsError(f"{self.template_name} fails ({error}); {self.without_template}") from None

    @property
    def template_name(self) -> str:
        return f"the chat template of {self.tokenizer.name_or_path}"

    @property
    def without_template(self) -> str:
        """What a user can do about a template that is of no use."""
        return "it cannot be used"

    def check_template(self) -> None:
        """Check that the template keeps question and answer, and that the answer follows what opens it.

        Raises SettingsError.
        """
        question, answer = "the question", "the answer"
        asked = self.chat_text(self.turn("user", question))
        whole = self.chat_text(self.turn("user", question), self.turn("assistant", answer))
        if question not in asked:
            raise SettingsError(f"{self.template_name} drops the question; {self.without_template}")
        if answer not in whole:
            raise SettingsError(f"{self.template_name} drops the answer; {self.without_template}")
        opening = asked.rstrip()
        if not whole.startswith(opening) or not whole[len(opening) :].lstrip().startswith(answer):
            raise SettingsError(
                f"{self.template_name} opens an answer otherwise than it writes one; {self.without_template}"
            )

    def prompt_text(self, example: Example) -> str:
        """The question in the chat template, with what opens the answer."""
        return self.chat_text(self.turn("user", example.question, int(example.image is not None)))

    def answer_tokens(self, answer: str) -> list[int]:
        return [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def encode(self, example: Example) -> Encoded:
        """Tokens and picture of one example.

        Raises:
            SettingsError: the picture cannot be read, the answer has no token, or the row is too long; names the row.
        """
        prompt = self.kept_prompts.get(example.prompt_key)
        if prompt is None:
            prompt = self.prompt_inputs(example)
            del prompt["attention_mask"]
            self.check_begin(example, prompt["input_ids"][0])
            self.cache_bytes_left -= sum(value.nbytes for value in prompt.values())
            if self.cache_bytes_left > 0:
                self.kept_prompts[example.prompt_key] = prompt
        return Encoded(prompt, self.encode_answer(example, prompt["input_ids"].shape[1]))

    def check_begin(self, example: Example, ids: Tensor) -> None:
        """Raise SettingsError where the begin token is written twice, by template and tokenizer: another prompt than in
        training.
        """
        begin = self.tokenizer.bos_token_id
        if begin is not None and len(ids) > 1 and ids[:2].tolist() == [begin, begin]:
            raise SettingsError(
                f"split {example.split}, row {example.index}: the prompt begins with {self.tokenizer.bos_token!r} "
                "twice; chat template and tokenizer together must write it once"
            )

    def encode_answer(self, example: Example, prompt_length: int) -> list[int]:
        """Tokens of the example's answer behind a prompt of `prompt_length` tokens; the picture is not touched.

        Raises SettingsError as `encode` does.
        """
        if example.answer not in self.kept_answers:
            self.kept_answers[example.answer] = self.answer_tokens(example.answer)
        answer = self.kept_answers[example.answer]
        row = f"split {example.split}, row {example.index}"
        if len(answer) == 1:
            raise SettingsError(f"{row}: no token is left of the answer {example.answer!r}")
        length = prompt_length + len(answer)
        if length > self.max_length and not (self.truncate and prompt_length < self.max_length):
            raise TooLong(f"{row}: {length} tokens, but the model takes {self.max_length}")
        return answer[: self.max_length - prompt_length]

    def collate(self, encoded: list[Encoded]) -> Batch:
        return collate(encoded, self.pad)

    def decode(self, tokens: Tensor) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def check_lengths(encoder: ChatEncoder, *splits: Any) -> None:
    """Check that the rows of every split fit, before any weights load.

    Where the model sees, picture rows are not opened for it: one that does not fit is named when training meets it.
    Raises SettingsError with the number of rows that are too long and the first of them.
    """
    for rows in splits:
        positions = rows.in_words if encoder.sees else range(len(rows))
        long = too_long(encoder, (rows[i] for i in positions))
        if long:
            raise SettingsError(
                f"{len(long)} of {len(rows)} rows are too long, the first: {long[0]}; "
                "max_length= allows more, truncate=true cuts their answers"
            )


def check_answers(encoder: ChatEncoder, tasks: dict[str, list[TaskRow]]) -> None:
    """The same for the rows of tasks with all their answers; raises SettingsError too for one without a token."""
    for name, rows in tasks.items():
        answers = []
        for row in rows:
            if encoder.sees and row.example.image is not None:
                continue
            texts = [row.example.answer, row.paraphrase, *row.perturbed]
            answers += [replace(row.example, answer=text) for text in texts if text is not None]
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
    """What fills a batch up; masks hide it.

    It is the pad token, else one that is not the end-of-sequence: one made for padding, the unknown token, or the
    vocabulary's first. The tokenizer stays as it is: told that its pad token is "!", it would leave that out of every
    text once it is saved and read again.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    added = tokenizer.get_added_vocab().items()
    named = [number for token, number in added if "pad" in token or "reserved" in token]
    candidates = (*named, tokenizer.unk_token_id, 0, 1)
    return next(number for number in candidates if number is not None and number != tokenizer.eos_token_id)


def collate(encoded: list[Encoded], pad: int) -> Batch:
    """Prompts with their answers, padded on the right; masks come from lengths, because a pad token may also be a real
    one.
    """
    sequences = [torch.cat([e.prompt["input_ids"][0], torch.tensor(e.answer[:-1], dtype=torch.long)]) for e in encoded]
    inputs = {**pad_rows(sequences, pad, left=False), **processor_extras(encoded, sequences, left=False)}
    longest = max(len(e.answer) for e in encoded)
    labels = torch.full((len(encoded), longest), IGNORE)
    positions = torch.zeros((len(encoded), longest), dtype=torch.long)
    for i, e in enumerate(encoded):
        start, count = e.prompt["input_ids"].shape[1] - 1, len(e.answer)
        labels[i, :count] = torch.tensor(e.answer)
        positions[i, :count] = torch.arange(start, start + count)
    return Batch(inputs, labels, positions)


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
    """What the processor made besides token ids: per-token rows padded like the ids, pictures concatenated whatever
    their patch counts.
    """
    extras = {}
    for name in {name: None for e in encoded for name in e.prompt if name != "input_ids"}:
        values = [e.prompt[name] for e in encoded if name in e.prompt]
        if values[0].shape == next(e for e in encoded if name in e.prompt).prompt["input_ids"].shape:
            rows = [torch.cat([v[0], v.new_zeros(len(s) - v.shape[1])]) for v, s in zip(values, sequences, strict=True)]
            extras[name] = pad_rows(rows, 0, left)["input_ids"]
        else:
            extras[name] = torch.cat(values)
    return extras
