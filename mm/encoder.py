"""What vision-language models load and encode."""

from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_module import Example, open_image
from engine.encode import ChatEncoder
from engine.frozen_start import Start
from engine.language_model import load, load_model, positions_of, start_of
from settings.language import Finetune, Model
from settings.script import SettingsError


class PictureEncoder(ChatEncoder):
    """Chats with pictures, by the processor's template."""

    sees = True

    def __init__(self, processor: Any, **limits: Any):
        super().__init__(processor, **limits)
        self.check_template()

    def turn(self, role: str, text: str, pictures: int = 0) -> dict[str, Any]:
        return {"role": role, "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]}

    def prompt_inputs(self, example: Example) -> dict[str, Tensor]:
        images = [open_image(example)] if example.image is not None else None
        return dict(self.processor(text=[self.prompt_text(example)], images=images, return_tensors="pt"))


def open_encoder(path: str, model: Model, *, max_length: int = 0, truncate: bool = False) -> PictureEncoder:
    """The encoder of the model at `path`, before any weights load. Raises SettingsError."""
    if model.tags:
        raise SettingsError(
            "model.tags: a vision-language model is asked by its processor's chat template; set tags to null"
        )
    processor = load(AutoProcessor, path, model)
    return PictureEncoder(
        processor, max_length=max_length, truncate=truncate, positions=positions_of(path, model, processor.tokenizer)
    )


def open_model(path: str, model: Model) -> nn.Module:
    """The model at `path`, to be evaluated. Raises SettingsError."""
    return load_model(AutoModelForImageTextToText, path, model, model.weights)


def open_for_training(settings: Finetune, encoder: PictureEncoder) -> Start:
    """The model at `settings.model_path`, ready to train. Raises SettingsError."""
    return start_of(AutoModelForImageTextToText, settings, encoder.processor)
