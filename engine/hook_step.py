"""A method's `hook` step: the states of rows are measured, and what is made of them stands beside the weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_module import Example
from engine.edit_statistics import answers_of
from engine.kept_hook import KeptHook, install, layers_of
from engine.loss_trainer import LossTrainer
from engine.methods import HOOKS
from engine.pairs import drawn_of
from engine.progress import Work
from settings.script import SettingsError


@dataclass(frozen=True)
class Seen:
    """The states of some rows, each row as heavy as any other."""

    first: Tensor  # (H,): mean of the state at the end of the question, which predicts the answer's first token
    mean: Tensor  # (H,): over the positions that predict answer tokens
    moment: Tensor  # (H, H): of h h^T over the same


def keep_hook(trainer: LossTrainer, pairs: Any, encoder: Any) -> dict[str, Any]:
    """Install a hook in the model of a trainer.

    Args:
        trainer: with the model, which is whole on each process.
        pairs: what the rows are drawn from.
        encoder: examples -> batches.

    Returns:
        For the record: `steered_forget` and `steered_retain`, how far the states of these rows go, as the root of the
        mean square in shares of the whole way, which is the direction.

    Raises:
        SettingsError: there is no such layer, or the hook would change nothing.
    """
    method = trainer.bound.method
    step = method.hook
    assert step is not None  # else there is nothing to do
    args = dict(step.args)
    number, strength = args.pop("layer"), args.pop("strength")
    count = len(layers_of(trainer.model))
    if number >= count:
        kind = type(trainer.model).__name__
        raise SettingsError(f"method.hook.args.layer={number}: {kind} has layers 0 to {count - 1}")
    own = pairs.pairs_for(["forget", "noised"])
    items = [own[place] for place in drawn_of(own.forget, step.rows, trainer.draw_seed).positions]
    retain_rows = drawn_of(pairs.rows_of("retain"), step.rows, trainer.draw_seed)
    with Work("row for the hook", 2 * len(items) + len(retain_rows), prepares=True) as work:
        forget = seen(trainer, encoder, [item["forget"][0] for item in items], number, work=work)
        noised = seen(trainer, encoder, [item["noised"][0] for item in items], number, work=work)
        retain = seen(trainer, encoder, list(retain_rows), number, work=work)
    gate = HOOKS[step.rule](forget.mean, forget.moment, retain.moment, **args)
    direction = noised.first - forget.first
    if not strength or not gate.any() or not direction.any():
        raise SettingsError(f"method={method.name}: method.hook changes nothing, nothing would be forgotten")
    install(trainer.model, KeptHook(number, float(strength), gate, direction))
    steered = {"steered_forget": forget.moment, "steered_retain": retain.moment}
    return {name: strength * size_of(gate, moment) for name, moment in steered.items()}


def size_of(gate: Tensor, moment: Tensor) -> float:
    """Root of the mean square of h . gate over the states whose moment is given."""
    return float((gate @ moment @ gate).clamp(min=0).sqrt())


@torch.no_grad()
def seen(trainer: LossTrainer, encoder: Any, rows: list[Example], layer: int, *, work: Work) -> Seen:
    """The states that a decoder layer gives for some rows, in eval mode and fp32, row by row."""
    trainer.model.eval()
    firsts, means, moments = [], [], []
    for states in states_of(trainer, encoder, rows, layer):
        firsts.append(states[0])
        means.append(states.mean(0))
        moments.append(states.T @ states / len(states) / len(rows))
        if len(moments) > 1:
            moments = [moments[0] + moments[1]]  # matrices are added up at once: each is as large as H x H
        work.advance(1)
    return Seen(torch.stack(firsts).mean(0), torch.stack(means).mean(0), moments[0])


def states_of(trainer: LossTrainer, encoder: Any, rows: list[Example], layer: int) -> Iterator[Tensor]:
    """Of each row the output (T, H) of a layer at the positions that predict its answer.

    Raises SettingsError for a layer that does not run on words, or that gives several states for a token.
    """
    given: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        given.append(output if torch.is_tensor(output) else output[0])

    handle = layers_of(trainer.model)[layer].register_forward_hook(keep)
    try:
        for row in rows:
            batch = encoder.collate([encoder.encode(row)]).to(trainer.args.device)
            given.clear()
            trainer.forward(trainer.model, batch)
            if not given or given[-1].shape[:-1].numel() != batch.inputs["input_ids"].numel():
                raise SettingsError(
                    f"method.hook.args.layer={layer}: that layer of {type(trainer.model).__name__} gives no one state "
                    f"for each token of split {row.split}, row {row.index}; name another"
                )
            yield answers_of(given[-1], batch)
    finally:
        handle.remove()
