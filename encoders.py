"""Examples -> encoded examples -> batches, for models that read and models that see.

Shapes: B examples, L input positions, T answer positions. A batch is a dict with `input_ids` and `attention_mask` (B, L), whatever
else the processor made (pictures concatenated along dimension 0), `labels` (B, T) and `positions` (B, T): the logits at
`positions[b, t]` predict `labels[b, t]`.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from data_module import Example
from language_settings import Tags
from run_settings import SettingsError
from unlearn_losses import IGNORE


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


def open_image(example: Example) -> Image.Image:
    """Decode the picture to RGB; raises SettingsError naming the row if it cannot be read."""
    try:
        source = BytesIO(example.image["bytes"]) if example.image["bytes"] is not None else example.image["path"]
        return Image.open(source).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise SettingsError(f"split {example.split}, row {example.index}: the picture cannot be read ({type(error).__name__})") from None


class ChatEncoder:
    """Examples as a chat: the processor's template with the question (and picture) as the user's turn, the answer as the model's.

    The answer's tokens are appended to the prompt's, so that labels follow from lengths and never from looking for the answer in the text.
    Encoded prompts are kept (up to `keep_bytes`), because training and scoring meet each of them many times. An example longer than
    `max_length` tokens (0: what the tokenizer says its model takes) is an error, or with `truncate` loses the end of its answer; a prompt is never cut.
    """

    def __init__(self, processor: Any, max_length: int = 0, truncate: bool = False, keep_bytes: int = 512 * 2**20):
        self.processor, self.tokenizer, self.room = processor, getattr(processor, "tokenizer", processor), keep_bytes
        self.max_length, self.truncate = min(max_length or self.tokenizer.model_max_length, self.tokenizer.model_max_length), truncate
        self.kept: dict[tuple, dict[str, Tensor]] = {}
        if self.tokenizer.pad_token_id is None:
            raise SettingsError(f"the tokenizer of {self.tokenizer.name_or_path} has no pad token")

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
        answer = self.answer_tokens(example.answer)
        if len(answer) == 1:
            raise SettingsError(f"split {example.split}, row {example.index}: no token is left of the answer {example.answer!r}")
        if asked + len(answer) > self.max_length and not (self.truncate and asked < self.max_length):
            raise TooLong(f"split {example.split}, row {example.index}: {asked + len(answer)} tokens, but the model takes {self.max_length}")
        return answer[: self.max_length - asked]

    def collate(self, encoded: list[Encoded]) -> dict[str, Tensor]:
        return collate(encoded, self.tokenizer.pad_token_id)

    def decode(self, tokens: Tensor) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()


class TextEncoder(ChatEncoder):
    """The same for a language model: its tokenizer's chat template, or the tags of its model file where it has none.

    A template starts with the tokens that open a text by itself; before tags the tokenizer puts its own. A tokenizer without a pad token gets one that
    is not its end-of-sequence.
    """

    def __init__(self, tokenizer: Any, tags: Tags | None, max_length: int = 0, truncate: bool = False):
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = padding_for(tokenizer)
        super().__init__(tokenizer, max_length, truncate)
        self.tags = tags
        if tags is None and not tokenizer.chat_template:
            raise SettingsError(f"model.tags is required: {tokenizer.name_or_path} has no chat template, so name what stands before question and answer")
        probe = Example("the question", "the answer", None, 0, None, "")
        if probe.question not in self.prompt_text(probe):
            raise SettingsError(f"the chat template of {tokenizer.name_or_path} drops the question; model.tags replaces it")

    def prompt_text(self, example: Example) -> str:
        if self.tags:
            return f"{self.tags.question}{example.question}{self.tags.answer}"
        turn = {"role": "user", "content": example.question}
        return self.tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)

    def prompt_inputs(self, example: Example) -> dict[str, Tensor]:
        tokens = self.tokenizer(self.prompt_text(example), add_special_tokens=self.tags is not None)["input_ids"]
        if self.tags and tokens and tokens[-1] == self.tokenizer.eos_token_id:
            tokens = tokens[:-1]  # some tokenizers end every text; the answer is still to come
        ids = torch.tensor([tokens])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def check_lengths(encoder: ChatEncoder, rows: Any) -> None:
    """Raise SettingsError with the number of rows that are too long and the first of them, before any weights load.

    Picture rows are not opened for it: one that does not fit is named when training meets it.
    """
    long: list[str] = []
    for example in (rows[i] for i in rows.in_words):
        try:
            encoder.encode(example)
        except TooLong as error:
            long.append(str(error))
    if long:
        raise SettingsError(f"{len(long)} of {len(rows)} rows are too long, the first: {long[0]}; max_length= allows more, truncate=true cuts their answers")


def padding_for(tokenizer: Any) -> str:
    """A token to pad with that is not the end-of-sequence: one made for it, the unknown token, or the vocabulary's first."""
    named = [token for token in tokenizer.get_added_vocab() if "pad" in token or "reserved" in token]
    choices = [*named, *filter(None, [tokenizer.unk_token]), *tokenizer.convert_ids_to_tokens([0, 1])]
    return next(token for token in choices if token != tokenizer.eos_token)


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
