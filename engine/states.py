"""Hidden states of rows at the positions that predict their answers: what `hook` steps and some edits look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data_module import Example
from engine.edit_statistics import answers_of
from engine.loss_trainer import LossTrainer
from engine.progress import Work
from settings.script import SettingsError


@dataclass(frozen=True)
class Place:
    """Where in a model states are looked at: what a module gives, or what it takes."""

    module: nn.Module
    setting: str  # what named it, for the line of an error
    taken: bool = False


@dataclass(frozen=True)
class Seen:
    """The states of some rows, each row as heavy as any other."""

    first: Tensor  # (H,): mean of the state at the end of the question, which predicts the answer's first token
    mean: Tensor  # (H,): over the positions that predict answer tokens
    moment: Tensor  # (H, H): of h h^T over the same


def size_of(gate: Tensor, moment: Tensor) -> float:
    """Root of the mean square of h . gate over the states whose moment is given."""
    return float((gate @ moment @ gate).clamp(min=0).sqrt())


@torch.no_grad()
def seen(trainer: LossTrainer, encoder: Any, rows: list[Example], place: Place, *, work: Work) -> Seen:
    """The states of some rows at a place, in eval mode and fp32, row by row."""
    trainer.model.eval()
    firsts, means, moments = [], [], []
    for states in states_of(trainer, encoder, rows, place):
        firsts.append(states[0])
        means.append(states.mean(0))
        moments.append(states.T @ states / len(states) / len(rows))
        if len(moments) > 1:
            moments = [moments[0] + moments[1]]  # matrices are added up at once: each is as large as H x H
        work.advance(1)
    return Seen(torch.stack(firsts).mean(0), torch.stack(means).mean(0), moments[0])


@torch.no_grad()
def mean_first_state(trainer: LossTrainer, encoder: Any, rows: list[Example], place: Place, *, work: Work) -> Tensor:
    """The mean over rows of the state that predicts the answer's first token, (H,), in eval mode and fp32."""
    trainer.model.eval()
    total: Tensor | None = None
    for states in states_of(trainer, encoder, rows, place):
        total = states[0] if total is None else total + states[0]
        work.advance(1)
    assert total is not None  # a split has rows
    return total / len(rows)


def states_of(trainer: LossTrainer, encoder: Any, rows: list[Example], place: Place) -> Iterator[Tensor]:
    """Of each row the states (T, H) at a place where the row's answer is predicted.

    Raises SettingsError for a module that does not run on words, or that has several states for a token.
    """
    found: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        state = inputs[0] if place.taken else output
        found.append(state if torch.is_tensor(state) else state[0])

    handle = place.module.register_forward_hook(keep)
    try:
        for row in rows:
            batch = encoder.collate([encoder.encode(row)]).to(trainer.args.device)
            found.clear()
            trainer.forward(trainer.model, batch)
            if not found or found[-1].shape[:-1].numel() != batch.inputs["input_ids"].numel():
                raise SettingsError(
                    f"{place.setting}: that layer of {type(trainer.model).__name__} gives no one state for each token "
                    f"of split {row.split}, row {row.index}; name another"
                )
            yield answers_of(found[-1], batch)
    finally:
        handle.remove()
