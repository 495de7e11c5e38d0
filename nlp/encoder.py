"""nlp encoder"""

from typing import Any

import torch
from torch import Tensor

from data_module import Example
from engine.encode import ChatEncoder, chat_text, check_template
from settings.language import Tags
from settings.script import SettingsError


class TextEncoder(ChatEncoder):
    """The same for a language model: its tokenizer's chat template, or the tags of its model file where it has none.

    A template starts with the tokens that open a text by itself; before tags the tokenizer puts its own. White space at the end of the answer's tag
    belongs to the answer, as a tokenizer that reads both at once has it.
    """

    sees = False

    def __init__(
        self, tokenizer: Any, tags: Tags | None, max_length: int = 0, truncate: bool = False, positions: int = 0
    ):
        super().__init__(tokenizer, max_length, truncate, positions)
        self.tags = tags
        self.opening = tags.answer.rstrip() if tags else ""
        self.space = tags.answer[len(self.opening) :] if tags else ""
        if tags is None:
            check_template(tokenizer)

    def prompt_text(self, example: Example) -> str:
        if self.tags:
            return f"{self.tags.question}{example.question}{self.opening}"
        return chat_text(self.tokenizer, {"role": "user", "content": example.question})

    def prompt_inputs(self, example: Example) -> dict[str, Tensor]:
        if example.image is not None:
            raise SettingsError(
                f"split {example.split}, row {example.index} shows a picture, and this model reads words only; modality=text leaves it out"
            )
        tokens = self.tokenizer(self.prompt_text(example), add_special_tokens=self.tags is not None)["input_ids"]
        if self.tags and tokens and tokens[-1] == self.tokenizer.eos_token_id:
            tokens = tokens[:-1]  # some tokenizers end every text; the answer is still to come
        ids = torch.tensor([tokens])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def answer_tokens(self, answer: str) -> list[int]:
        return super().answer_tokens(self.space + answer)
