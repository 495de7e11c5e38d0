"""What is checked of a model on a few rows before a run goes on, so that a family that is not understood is refused.

A model of a family that no file names goes the same way as the others. Whatever the suite assumes of it is tried here:
that answers do not see their own future, and that the picture has an effect. `check_silent` tries that no dropout is
left where the starting model is compared with the one in training.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from data_module import Example
from engine.frozen_start import Forward
from engine.pairs import Batch
from settings.script import SettingsError, first_line
from unlearn_losses import IGNORE

# of the logits' spread, what counts as moved
MOVED = 1e-3
MOVED_IN_HALF = 0.05  # where numbers have 8 or 11 bits


def check_start(
    model: nn.Module, encoder: Any, examples: list[Example], forward: Forward, say: Callable[[str], None]
) -> None:
    """Check that the model scores `examples` causally and each as if it were alone; say so where their pictures have no
    effect.

    Args:
        model: as it will be trained or evaluated.
        encoder: of the examples.
        examples: a few rows of the kinds that will share a batch.
        forward: scores a batch.
        say: takes a line.

    Raises:
        SettingsError: the model cannot score the rows, an answer sees its own future, or a row depends on others.
    """
    name, device = name_of(model), next(model.parameters()).device
    encoded = [encoder.encode(example) for example in examples]
    batch = encoder.collate(encoded).to(device)
    with torch.no_grad(), in_eval_mode(model):
        try:
            logits = forward(model, batch).logits
            changed = forward(model, with_last_token_changed(batch)).logits
            alone = [forward(model, encoder.collate([each]).to(device)).logits[0] for each in encoded]
        except SettingsError:
            raise
        except Exception as error:  # what a family's forward raises depends on the family
            why = first_line(error)
            raise SettingsError(f"scoring check: {name} cannot score {len(examples)} rows: {why}") from None
        share = MOVED if is_exact(model) else MOVED_IN_HALF
        check_causal(name, batch, logits.float(), changed.float(), share=share)
        check_alone(name, batch, logits.float(), alone, share=share)
        pictures = {key: -value for key, value in batch.inputs.items() if value.is_floating_point()}
        if pictures and torch.equal(forward(model, replace(batch, inputs=batch.inputs | pictures)).logits, logits):
            say(f"picture check: another picture changes nothing that {name} says: it does not look at pictures")


def name_of(model: nn.Module) -> str:
    """The model's class; that of the model inside an adapter."""
    return type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__


def is_exact(model: nn.Module) -> bool:
    """Whether the model computes in fp32, where the order of rounding is all that moves its logits."""
    device = next(model.parameters()).device
    types = {parameter.dtype for parameter in model.parameters()}
    return types == {torch.float32} and not torch.is_autocast_enabled(device.type)


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and as it was behind."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def last_tokens(batch: Batch) -> Tensor:
    """(B,): where the last token of each answer stands that is fed."""
    assert batch.positions is not None
    return batch.positions.amax(1)


def with_last_token_changed(batch: Batch) -> Batch:
    """The batch with another last token of each answer: its end, or its first token where that is the end already.

    A token of the prompt might stand for a part of a picture.
    """
    ids, rows, places = batch.inputs["input_ids"].clone(), torch.arange(len(batch.labels)), last_tokens(batch)
    ends = batch.labels[rows, (batch.labels != IGNORE).sum(1) - 1]
    ids[rows, places] = torch.where(ids[rows, places] == ends, batch.labels[:, 0], ends)
    return replace(batch, inputs={**batch.inputs, "input_ids": ids})


def check_causal(name: str, batch: Batch, logits: Tensor, changed: Tensor, share: float) -> None:
    """Raise SettingsError where logits (B, T, V) before a changed token are not what they were.

    `share`: of the logits' spread, what counts as moved.
    """
    assert batch.positions is not None
    earlier = (batch.labels != IGNORE) & (batch.positions < last_tokens(batch)[:, None])
    if not earlier.any():  # answers of one token have no earlier one
        return
    moved = (logits - changed)[earlier].abs().max().item()
    if moved > share * logits[earlier].std().item():
        raise SettingsError(
            f"causality check: {name} lets an answer see its own future: with another last token, logits before it "
            f"moved by {moved:.2g}; a per-token tensor may need another value over answers (model.answer_values)"
        )


def check_alone(name: str, batch: Batch, logits: Tensor, alone: list[Tensor], share: float) -> None:
    """Raise SettingsError where a row's logits (T, V) in the batch are on average not those that it has alone.

    `share`: as in `check_causal`.
    """
    for row, own in enumerate(alone):
        real = logits[row, : len(own)]
        moved = (real - own.float()).abs().mean().item()
        if moved > share * real.std().item():
            raise SettingsError(
                f"row check: {name} scores a row otherwise beside others than alone (logits move by {moved:.2g}); "
                "modality=text or modality=visual trains on words or on pictures only"
            )


def check_silent(
    model: nn.Module, encoder: Any, examples: list[Example], forward: Forward, say: Callable[[str], None]
) -> None:
    """Say so where two passes in training mode differ although dropout is off; an adapter's own dropout is not looked
    at. Arguments as `check_start` has them.
    """
    device = next(model.parameters()).device
    batch = encoder.collate([encoder.encode(example) for example in examples]).to(device)
    training = model.training
    model.train()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.eval()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            one, other = forward(model, batch).logits, forward(model, batch).logits
    finally:
        model.train(training)
    if not torch.allclose(one, other, atol=1e-4 * one.float().std().item()):
        difference = (one - other).abs().max().item()
        say(
            f"dropout check: two passes over the same rows differ by {difference:.2g} in training mode: a dropout is "
            "left that cannot be switched off, and the comparison with the start holds its noise"
        )


def rows_to_check(draws: Any, tries: int = 64) -> list[Example]:
    """Two rows in words and two with pictures of the first `tries` draws, as many as there are of different questions
    and pictures.

    `draws`: what a method asks for, by key: {pass: [Example]}.
    """
    found: dict[bool, dict[tuple, Example]] = {False: {}, True: {}}
    for key in range(min(tries, len(draws))):
        for examples in draws[key].values():
            for example in examples:
                kind = found[example.image is not None]
                if len(kind) < 2:
                    kind.setdefault(example.prompt_key, example)
    return [*found[False].values(), *found[True].values()]
