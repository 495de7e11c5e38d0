"""Examples -> encoded examples -> batches. One encoder base holds every guard on tokenizers and templates.

Shapes: B examples, L input positions, T answer positions. The inputs of a batch are `input_ids` and `attention_mask`
(B, L) and whatever else the processor made, see engine.processor_tensors.
"""

import contextlib
import copy
import datetime
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jinja2
import torch
from torch import Tensor
from transformers.utils import chat_template_utils

from data_module import Example
from engine.kept_prompts import KeptPrompts
from engine.language_model import quiet_library
from engine.pairs import Batch
from engine.processor_tensors import Layout, join_rows
from engine.reading import processor_files
from settings.language import Tags
from settings.script import SettingsError
from unlearn_losses import IGNORE

# What templates ask besides the turns, each told only to a template that names it. A model that thinks before it
# answers is trained and scored without its thoughts.
TOLD = {"date_string": "26 Jul 2024", "enable_thinking": False}

PADDING, SHOWN = "pad|reserved", "image|video|vision|audio"  # in names of tokens


class OneDay(datetime.datetime):
    """For templates that ask the clock: with the real date a model would be asked something else tomorrow."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "OneDay":
        return cls(2024, 7, 26, tzinfo=tz)


@contextlib.contextmanager
def one_day() -> Iterator[None]:
    """Templates that call `strftime_now` get the same date every day; the library lets nobody else answer them."""
    names = vars(chat_template_utils)
    clock = names["datetime"]
    names["datetime"] = OneDay
    try:
        yield
    finally:
        names["datetime"] = clock


class TooLong(SettingsError):
    """An example that does not fit."""


@dataclass(frozen=True)
class Encoded:
    """An example in the model's terms.

    `prompt`: what the processor made of the question, a batch of one. `answer`: its tokens, the end of its turn last.
    """

    prompt: dict[str, Tensor]
    answer: list[int]
    layout: Layout = field(default_factory=Layout)  # of what the processor made

    @property
    def length(self) -> int:
        """Positions that it takes in a batch."""
        return self.prompt["input_ids"].shape[1] + len(self.answer)


OF_LAST: dict[str, Any] = {}  # what the encoder that was opened last keeps, and how it reads


class ChatEncoder(ABC):
    """Examples as a chat: the question (and its picture) is the user's turn, the answer the model's.

    mm/encoder.py and nlp/encoder.py say what a turn and a prompt are for their models. The answer's tokens are appended
    to the prompt's, so that labels follow from lengths and never from looking for the answer in the text. Encoded
    prompts (as many as have room) and answers are kept, because training and scoring meet each of them many times.
    """

    kept_prompts: KeptPrompts
    kept_answers: dict[str, list[int]]  # by their text
    sees = False  # takes pictures
    one_length = False  # whether every row takes as many positions as any other

    def __init__(
        self,
        processor: Any,
        tags: Tags | None = None,
        *,
        max_length: int = 0,
        truncate: bool = False,
        positions: int = 0,
        answer_values: dict[str, int] | None = None,
        room: int = 512 * 2**20,
    ):
        """
        Args:
            processor: the model's processor or tokenizer.
            tags: what stands before question and answer; None: the chat template says it.
            max_length: tokens of question and answer; 0: what tokenizer and model have room for.
            truncate: cut the end of an answer that does not fit. Without it such an example is an error. A prompt is
                never cut.
            positions: the tokens that the model has room for; 0: not known.
            answer_values: what per-token tensors of the processor hold over an answer, see `Model.answer_values`.
            room: bytes of encoded prompts that are kept.

        Raises:
            SettingsError: `max_length` is more than there is room for, there is neither template nor tags, or the
                chat template or the processor cannot be used.
        """
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.most = min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)
        if max_length > self.most:
            raise SettingsError(f"max_length={max_length} is more than the {self.most} tokens that the model takes")
        self.max_length, self.truncate = max_length or self.most, truncate
        self.pad = padding_for(self.tokenizer)
        self.marks = self.find_marks()
        self.tags = tags
        self.opening, self.space, self.end = self.frame_of_answers()
        self.layout = self.find_layout(answer_values or {})
        self.room = room
        self.forget_kept()

    def keep_with_last(self, path: str) -> None:
        """Keep prompts and answers together with the encoder that was opened last, if both read alike: the models of a
        benchmark have one processor, and meet the same rows.

        Where some prompts had no room, it begins with none: those that are kept may be of other rows, and nothing
        makes room for them.

        Args:
            path: the model's folder or hub id, from which the processor was loaded.

        Raises:
            SettingsError: a file of the processor cannot be read.
        """
        key = (type(self), processor_files(path), self.tags, self.room, self.layout)
        if OF_LAST.get("key") != key or OF_LAST["prompts"].is_full:
            OF_LAST.update(key=key, prompts=self.kept_prompts, answers=self.kept_answers)
        self.kept_prompts, self.kept_answers = OF_LAST["prompts"], OF_LAST["answers"]

    def forget_kept(self) -> None:
        """Begin with no prompts and answers that are kept."""
        self.kept_prompts = KeptPrompts(self.room, self.layout.token_dims)
        self.kept_answers = {}

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

    @abstractmethod
    def find_layout(self, answer_values: dict[str, int]) -> Layout:
        """The layout of what the processor makes. Raises SettingsError."""

    # ---- what they share

    @property
    def placeholder(self) -> str:
        """What stands for a picture in a text; empty where nothing does."""
        return ""

    def find_marks(self) -> re.Pattern[str]:
        """Matches what the tokenizer takes for a special token wherever it stands in a text, as ends of turns and
        placeholders of pictures; single letters and what stands for an unknown one are left out.
        """
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        special = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        special = {token for token in special | {self.placeholder} if len(token) > 1}
        if self.tokenizer.unk_token not in (self.tokenizer.bos_token, self.tokenizer.eos_token):  # GPT-2's is both
            special.discard(self.tokenizer.unk_token)
        longest_first = sorted(special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def check_marks(self, example: Example, part: str, text: str) -> None:
        """Raise SettingsError where a question or an answer holds a special token: it would end a turn, or stand for a
        picture.
        """
        if found := self.marks.search(text):
            raise SettingsError(
                f"split {example.split}, row {example.index}: the {part} holds {found[0]!r}, which the tokenizer takes "
                "for a special token"
            )

    def chat_text(self, *turns: dict[str, Any]) -> str:
        """The turns in the chat template, with what opens the model's answer behind a lone user's turn.

        Raises SettingsError for a template that fails.
        """
        return self.rendered([*turns], opens=len(turns) == 1)

    def rendered(self, turns: list[dict[str, Any]], opens: bool) -> str:
        """The turns in the chat template; `opens`: with what opens the model's answer. Raises SettingsError."""
        template = str(self.processor.chat_template)
        told = {name: value for name, value in TOLD.items() if name in template}
        try:
            with one_day(), quiet_library():  # it warns of what a template sets itself
                return self.processor.apply_chat_template(turns, add_generation_prompt=opens, tokenize=False, **told)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
            raise SettingsError(f"{self.template_name} fails ({error}); {self.without_template}") from None

    @property
    def template_name(self) -> str:
        return f"the chat template of {self.tokenizer.name_or_path}"

    @property
    def without_template(self) -> str:
        """What a user can do about a template that is of no use."""
        return "model.tags replaces it"

    def frame_of_answers(self) -> tuple[str, str, int]:
        """What stands around an answer: the text that opens it, the white space before it, and the token behind it.

        White space that template or tag puts before an answer belongs to the answer, as a tokenizer that reads both at
        once has it. The token behind an answer is the special one that the template writes there, or else the one that
        opens the next turn. Where there is neither, and behind tags, it is the tokenizer's end-of-sequence. Raises
        SettingsError.
        """
        end = self.tokenizer.eos_token_id
        if self.tags:
            opening = self.tags.answer.rstrip()
            return opening, self.tags.answer[len(opening) :], end
        if not self.processor.chat_template:
            raise SettingsError(
                f"model.tags is required: {self.tokenizer.name_or_path} has no chat template, "
                "so name what stands before question and answer"
            )
        space, *behind = self.check_template()
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        tails = [self.token_ids(text.strip())[:1] for text in behind]
        ends = [token for tail in tails for token in tail if token in special and token != self.tokenizer.bos_token_id]
        return self.opening_of_template(), space, [*ends, end][0]

    def check_template(self) -> tuple[str, str, str]:
        """The white space before an answer, the text behind it, and that behind it where another question follows, as
        the template writes them.

        Raises SettingsError for a template that does not keep question and answer, or whose answer does not follow
        what opens it.
        """
        question, answer = "the question", "the answer"
        asked = self.chat_text(self.turn("user", question))
        whole = self.chat_text(self.turn("user", question), self.turn("assistant", answer))
        if question not in asked:
            raise SettingsError(f"{self.template_name} drops the question; {self.without_template}")
        if answer not in whole:
            raise SettingsError(f"{self.template_name} drops the answer; {self.without_template}")
        opening = asked if whole.startswith(asked) else asked.rstrip()
        space, _, behind = whole[len(opening) :].partition(answer)
        if not whole.startswith(opening) or space.strip():
            raise SettingsError(
                f"{self.template_name} opens an answer otherwise than it writes one; {self.without_template}"
            )
        turns = [self.turn("user", question), self.turn("assistant", answer), self.turn("user", question)]
        try:
            onward = self.rendered(turns, opens=False).partition(answer)[2]
        except SettingsError:  # a template of one question
            onward = ""
        return space if opening == asked else "", behind, onward

    def opening_of_template(self) -> str:
        """The text that opens an answer: what the template adds behind a question when it is told to open one, or the
        whole prompt where it adds nothing.
        """
        turn = self.turn("user", "the question")
        closed, asked = self.rendered([turn], opens=False), self.rendered([turn], opens=True)
        return asked.removeprefix(closed) or asked

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text without what the tokenizer puts around one."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def text_lengths(self, texts: list[str]) -> list[int]:
        """How many tokens each text has."""
        return [len(tokens) for tokens in self.tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    def prompt_text(self, example: Example) -> str:
        """The question in the chat template or between the tags, with what opens the answer."""
        return self.question_text(example.question, int(example.image is not None))

    def question_text(self, question: str, pictures: int = 0) -> str:
        """A question about so many pictures, as `prompt_text` writes it."""
        if self.tags:
            return f"{self.tags.question}{question}{self.opening}"
        return self.chat_text(self.turn("user", question, pictures))

    def answer_tokens(self, answer: str) -> list[int]:
        """The tokens of an answer and its end, as they stand behind what opens it."""
        before, whole = self.token_ids(self.opening), self.token_ids(f"{self.opening}{self.space}{answer}")
        apart = whole[: len(before)] != before  # a tokenizer that joins both at their border
        tokens = self.token_ids(f"{self.space}{answer}") if apart else whole[len(before) :]
        return [*tokens, self.end]

    def encode(self, example: Example) -> Encoded:
        """Tokens and picture of one example.

        Raises:
            SettingsError: the picture cannot be read, the answer has no token, or the row is too long; names the row.
        """
        prompt = self.kept_prompts.get(example)
        if prompt is None:
            self.check_marks(example, "question", example.question)
            prompt = self.prompt_inputs(example)
            del prompt["attention_mask"]
            self.check_frame(example, prompt["input_ids"][0])
            prompt = self.kept_prompts.add(example, prompt)
        return Encoded(prompt, self.encode_answer(example, prompt["input_ids"].shape[1]), self.layout)

    def check_frame(self, example: Example, ids: Tensor) -> None:
        """Raise SettingsError where the begin token is written twice, by template and tokenizer, or where the tokenizer
        ends the prompt: another prompt than in training, and an answer behind its end.
        """
        begin = self.tokenizer.bos_token_id
        if begin is not None and len(ids) > 1 and ids[:2].tolist() == [begin, begin]:
            raise SettingsError(
                f"split {example.split}, row {example.index}: the prompt begins with {self.tokenizer.bos_token!r} "
                "twice; chat template and tokenizer together must write it once"
            )
        end = self.tokenizer.eos_token
        if ids[-1] == self.tokenizer.eos_token_id and not self.prompt_text(example).rstrip().endswith(end):
            raise SettingsError(
                f"split {example.split}, row {example.index}: the tokenizer ends the prompt with {end!r}, and the "
                "answer is still to come; add_eos_token=false in tokenizer_config.json stops that"
            )

    def encode_answer(self, example: Example, prompt_length: int) -> list[int]:
        """Tokens of the example's answer behind a prompt of `prompt_length` tokens; the picture is not touched.

        Raises SettingsError as `encode` does.
        """
        if example.answer not in self.kept_answers:
            self.check_marks(example, "answer", example.answer)
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


def padding_for(tokenizer: Any) -> int:
    """What fills a batch up; masks hide it.

    It is the pad token, else one that is not the end-of-sequence: one made for padding, the unknown token, or the
    vocabulary's first. `<|image_pad|>` is none: it stands for a part of a picture. The tokenizer stays as it is: told
    that its pad token is "!", it would leave that out of every text once it is saved and read again.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    added = tokenizer.get_added_vocab().items()
    named = [number for token, number in added if re.search(PADDING, token) and not re.search(SHOWN, token)]
    candidates = (*named, tokenizer.unk_token_id, 0, 1)
    return next(number for number in candidates if number is not None and number != tokenizer.eos_token_id)


def collate(encoded: list[Encoded], pad: int) -> Batch:
    """Prompts with their answers, padded on the right; masks come from lengths, because a pad token may also be a real
    one.
    """
    sequences = [torch.cat([e.prompt["input_ids"][0], torch.tensor(e.answer[:-1], dtype=torch.long)]) for e in encoded]
    inputs = joined(encoded, sequences, pad, left=False)
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
    return joined(encoded, sequences, pad, left=True)


def joined(encoded: list[Encoded], sequences: list[Tensor], pad: int, left: bool) -> dict[str, Tensor]:
    """The token ids `sequences` of the rows as a batch, with their mask and what else the processor made."""
    prompts = [e.prompt for e in encoded]
    others = join_rows(prompts, [*map(len, sequences)], encoded[0].layout, left)
    return {**pad_rows(sequences, pad, left), **others}


def pad_rows(rows: list[Tensor], pad: int, left: bool) -> dict[str, Tensor]:
    """Ragged rows (each (L_i,)) as `input_ids` (B, L) with their `attention_mask`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}
