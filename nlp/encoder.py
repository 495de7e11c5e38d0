"""What language models load and encode."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_module import Example
from engine.encode import ChatEncoder
from engine.frozen_start import Start
from engine.language_model import load, load_model, positions_of, start_of
from settings.language import Finetune, Model, Tags
from settings.script import SettingsError


class TextEncoder(ChatEncoder):
    """Chats in words: by the tokenizer's template, or by the tags of the model file where it has none.

    A template writes the tokens that open a text by itself; before tags the tokenizer puts its own. White space at the
    end of the answer's tag belongs to the answer, as a tokenizer that reads both at once has it.
    """

    def __init__(self, tokenizer: Any, tags: Tags | None, **limits: Any):
        super().__init__(tokenizer, **limits)
        self.tags = tags
        self.opening = tags.answer.rstrip() if tags else ""
        self.space = tags.answer[len(self.opening) :] if tags else ""
        if tags is None and not tokenizer.chat_template:
            raise SettingsError(
                f"model.tags is required: {tokenizer.name_or_path} has no chat template, "
                "so name what stands before question and answer"
            )
        if tags is None:
            self.check_template()

    @property
    def without_template(self) -> str:
        return "model.tags replaces it"

    def turn(self, role: str, text: str, pictures: int = 0) -> dict[str, Any]:
        return {"role": role, "content": text}

    def prompt_text(self, example: Example) -> str:
        if self.tags:
            return f"{self.tags.question}{example.question}{self.opening}"
        return super().prompt_text(example)

    def prompt_inputs(self, example: Example) -> dict[str, Tensor]:
        if example.image is not None:
            raise SettingsError(
                f"split {example.split}, row {example.index} shows a picture, and this model reads words only; "
                "modality=text leaves it out"
            )
        tokens = self.tokenizer(self.prompt_text(example), add_special_tokens=self.tags is not None)["input_ids"]
        if self.tags and tokens and tokens[-1] == self.tokenizer.eos_token_id:
            tokens = tokens[:-1]  # some tokenizers end every text; the answer is still to come
        ids = torch.tensor([tokens])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def answer_tokens(self, answer: str) -> list[int]:
        return super().answer_tokens(self.space + answer)


def open_encoder(path: str, model: Model, *, max_length: int = 0, truncate: bool = False) -> TextEncoder:
    """The encoder of the model at `path`, before any weights load. Raises SettingsError."""
    tokenizer = load(AutoTokenizer, path, model)
    limits = {"max_length": max_length, "truncate": truncate, "positions": positions_of(path, model, tokenizer)}
    return TextEncoder(tokenizer, model.tags, **limits)


def open_model(path: str, model: Model) -> nn.Module:
    """The model at `path`, to be evaluated. Raises SettingsError."""
    return load_model(AutoModelForCausalLM, path, model, model.weights)


def open_for_training(settings: Finetune, encoder: TextEncoder) -> Start:
    """The model at `settings.model_path`, ready to train. Raises SettingsError."""
    return start_of(AutoModelForCausalLM, settings, encoder.processor)
