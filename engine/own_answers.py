"""What the start itself answers to questions about forget pictures that do not ask who is in them."""

from dataclasses import replace
from typing import Any

import torch

from data_module import Example
from engine.encode import collate_prompts
from engine.loss_trainer import LossTrainer
from engine.progress import Work
from engine.score_answers import ends_of, generate_plain
from settings.script import SettingsError


@torch.no_grad()
def answer_as_the_start(trainer: LossTrainer, pairs: Any, encoder: Any, max_new_tokens: int) -> None:
    """Give `pairs` an answer to one question about each forget picture: the start's own, generated greedily.

    Where the start says nothing, the next question is asked. Raises SettingsError where it says nothing to any.
    """
    trainer.model.eval()
    ends = ends_of(trainer.model, encoder)
    with Work("picture to describe", len(pairs.forget), prepares=True) as work:
        for row in range(len(pairs.forget)):
            pairs.own_answers[row] = first_answered(trainer, pairs.asked_otherwise(row), encoder, max_new_tokens, ends)
            work.advance(1)


def first_answered(
    trainer: LossTrainer, questions: list[Example], encoder: Any, max_new_tokens: int, ends: set[int]
) -> Example:
    """The first of some questions that the model has something to say to, with what it says.

    Raises SettingsError where there is none, or where one is too long.
    """
    for example in questions:
        inputs = collate_prompts([encoder.encode(replace(example, answer="."))], encoder.pad)
        (text,) = generate_plain(trainer.model, inputs, max_new_tokens, pad=encoder.pad, ends=ends)
        if answer := encoder.decode(torch.tensor(text, dtype=torch.long)).strip():
            answered = replace(example, answer=answer)
            encoder.encode(answered)  # says so where it is too long
            return answered
    row = questions[0]
    raise SettingsError(
        f"split {row.split}, row {row.index}: the model has no answer to any question of method.visual.questions"
    )
