"""What language models load and encode."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_module import Example
from engine.encode import ChatEncoder
from engine.frozen_start import Start
from engine.language_model import load, load_model, positions_of, start_of
from engine.memory import plan
from engine.processor_tensors import Layout
from settings.language import Finetune, Model
from settings.script import SettingsError


class TextEncoder(ChatEncoder):
    """Chats in words: by the tokenizer's template, or by the tags of the model file where it has none.

    A template writes the tokens that open a text by itself; before tags the tokenizer puts its own.
    """

    def turn(self, role: str, text: str, pictures: int = 0) -> dict[str, Any]:
        return {"role": role, "content": text}

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

    def find_layout(self, answer_values: dict[str, int]) -> Layout:
        if answer_values:
            raise SettingsError("model.answer_values has no effect on a language model: set it to {}")
        return Layout()


def open_encoder(path: str, model: Model, *, max_length: int = 0, truncate: bool = False) -> TextEncoder:
    """The encoder of the model at `path`, before any weights load. Raises SettingsError."""
    tokenizer = load(AutoTokenizer, path, model)
    limits: dict[str, Any] = {"max_length": max_length, "truncate": truncate, "room": model.keep_mib * 2**20}
    limits |= {"positions": positions_of(path, model, tokenizer), "answer_values": model.answer_values}
    encoder = TextEncoder(tokenizer, model.tags, **limits)
    encoder.keep_with_last(path)
    return encoder


def open_model(path: str, model: Model) -> nn.Module:
    """The model at `path`, to be evaluated. Raises SettingsError."""
    return load_model(AutoModelForCausalLM, path, model, model.weights)


def open_for_training(settings: Finetune, encoder: TextEncoder) -> Start:
    """The model at `settings.model_path`, ready to train. Raises SettingsError."""
    return start_of(AutoModelForCausalLM, settings, encoder.processor)


def say_plan(settings: Finetune) -> None:
    """Print what memory the training of `settings` needs. Raises SettingsError."""
    plan(settings, AutoModelForCausalLM, open_encoder)
