"""What vision-language models load and encode."""

from typing import Any

from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_module import Example, open_image
from engine.encode import ChatEncoder
from engine.frozen_start import Start
from engine.language_model import load, load_model, positions_of, start_of
from engine.memory import plan
from engine.processor_tensors import Layout, check_joined, layout_of
from settings.language import Finetune, Model
from settings.script import SettingsError, first_line


class PictureEncoder(ChatEncoder):
    """Chats with pictures, by the processor's template, or by the tags of the model file where it has none.

    Before tags stands the processor's own placeholder for a picture.
    """

    sees = True

    def turn(self, role: str, text: str, pictures: int = 0) -> dict[str, Any]:
        return {"role": role, "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]}

    @property
    def placeholder(self) -> str:
        """What stands for a picture in a text; empty where the processor does not say it."""
        return str(getattr(self.processor, "image_token", None) or "")

    def question_text(self, question: str, pictures: int = 0) -> str:
        text = super().question_text(question, pictures)
        return self.placeholder * pictures + text if self.tags else text

    def prompt_inputs(self, example: Example) -> dict[str, Tensor]:
        pictures = [open_image(example)] if example.image is not None else []
        try:
            return self.read([self.prompt_text(example)], [pictures])
        except SettingsError:
            raise
        except Exception as error:  # what a processor raises depends on the processor
            raise SettingsError(
                f"split {example.split}, row {example.index}: {type(self.processor).__name__} cannot read it: "
                f"{first_line(error)}"
            ) from None

    def read(self, texts: list[str], pictures: list[list[Image.Image]]) -> dict[str, Tensor]:
        """What the processor makes of prompts with the pictures of each, padded on the right.

        The begin token is left to the template where that writes one, as in the processor's own
        `apply_chat_template(tokenize=True)`. A processor's labels are dropped: ours follow from lengths.
        """
        begin = self.tokenizer.bos_token
        options: dict[str, Any] = {"add_special_tokens": False} if begin and texts[0].startswith(begin) else {}
        if len(texts) > 1:
            options |= {"padding": True, "padding_side": "right"}
        made = dict(
            self.processor(text=texts, images=pictures if any(pictures) else None, return_tensors="pt", **options)
        )
        made.pop("labels", None)
        return made

    def find_layout(self, answer_values: dict[str, int]) -> Layout:
        name = type(self.processor).__name__

        def read(questions: list[str], pictures: list[list[Image.Image]]) -> dict[str, Tensor]:
            texts = [self.question_text(each, len(own)) for each, own in zip(questions, pictures, strict=True)]
            return self.read(texts, pictures)

        try:
            layout = layout_of(read, answer_values, name)
            check_joined(read, layout, name)
        except SettingsError:
            raise
        except Exception as error:
            raise SettingsError(f"{name} cannot read a prompt with a picture: {first_line(error)}") from None
        return layout


def open_encoder(path: str, model: Model, *, max_length: int = 0, truncate: bool = False) -> PictureEncoder:
    """The encoder of the model at `path`, before any weights load. Raises SettingsError."""
    processor = load(AutoProcessor, path, model)
    limits: dict[str, Any] = {"max_length": max_length, "truncate": truncate, "room": model.keep_mib * 2**20}
    limits |= {"positions": positions_of(path, model, processor.tokenizer), "answer_values": model.answer_values}
    encoder = PictureEncoder(processor, model.tags, **limits)
    encoder.keep_with_last(path)
    return encoder


def open_model(path: str, model: Model) -> nn.Module:
    """The model at `path`, to be evaluated. Raises SettingsError."""
    return load_model(AutoModelForImageTextToText, path, model, model.weights)


def open_for_training(settings: Finetune, encoder: PictureEncoder) -> Start:
    """The model at `settings.model_path`, ready to train. Raises SettingsError."""
    return start_of(AutoModelForImageTextToText, settings, encoder.processor)


def say_plan(settings: Finetune) -> None:
    """Print what memory the training of `settings` needs. Raises SettingsError."""
    plan(settings, AutoModelForImageTextToText, open_encoder)
