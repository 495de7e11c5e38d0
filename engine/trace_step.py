"""A method's `trace` step: which MLPs of a decoder hold what a picture tells, and they alone train (causal tracing)."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from data_module import Example, open_image
from engine.draws import draw
from engine.edit_statistics import Mlp, decoder_mlps
from engine.language_model import trained_weights
from engine.loss_trainer import LossTrainer
from engine.pairs import Batch, drawn_of
from engine.progress import Work
from settings.script import SettingsError
from settings.training import Trace
from unlearn_losses import sequence_logprob


def train_traced_alone(trainer: LossTrainer, trace: Trace, pairs: Any, encoder: Any) -> dict[str, Any]:
    """Of the decoder's MLPs let only those train that bring back most of the forget answers, and nothing beside them.

    Returns for the record `traced_layers`, those that train, and `traced_effects`, in nats for an answer, of all.
    Raises SettingsError for more layers than there are, or where nothing of them would train.
    """
    name = trainer.bound.method.name
    mlps = decoder_mlps(trainer.model, name)
    check_layers(trainer.model, trace, mlps)
    effects = effects_of(trainer, trace.rows, pairs, encoder, mlps)
    strongest = sorted(range(len(mlps)), key=lambda number: -effects[number])[: trace.layers]
    layers = sorted(strongest)
    train_mlps_alone(trainer.model, [mlps[number] for number in layers])
    if not trained_weights(trainer.model):
        raise SettingsError(
            f"method={name}: nothing trains in the MLPs of layers {layers}; see model.freeze and model.lora_targets"
        )
    return {"traced_layers": layers, "traced_effects": effects}


def check_layers(model: nn.Module, trace: Trace, mlps: list[Mlp]) -> None:
    """Raise SettingsError where a trace is to find more layers than there are."""
    if trace.layers > len(mlps):
        raise SettingsError(f"method.trace.layers={trace.layers}: {type(model).__name__} has {len(mlps)} layers")


def train_mlps_alone(model: nn.Module, mlps: list[Mlp]) -> None:
    """Of the weights that train let only those of some MLPs do so, or of their adapters."""
    kept = {id(weight) for mlp in mlps for weight in weights_of(model, mlp)}
    for weight in trained_weights(model).values():
        weight.requires_grad_(id(weight) in kept)


def weights_of(model: nn.Module, mlp: Mlp) -> Iterator[nn.Parameter]:
    """The weights of an MLP's linear layers, with those of the adapters around them."""
    names = {id(module): name for name, module in model.named_modules()}
    for linear in (mlp.down, *mlp.into):
        yield from model.get_submodule(names[id(linear)].removesuffix(".base_layer")).parameters()


@torch.no_grad()
def effects_of(trainer: LossTrainer, most: int, pairs: Any, encoder: Any, mlps: list[Mlp]) -> list[float]:
    """Of each MLP the mean over forget rows of what it brings back of log p(answer), in nats.

    The row is asked about the picture of somebody who is kept, and the MLP writes what it wrote for the row's own.
    """
    trainer.model.eval()
    rows = drawn_of(pairs.rows_of("forget"), most, trainer.draw_seed, "trace")
    others = pairs.rows_of("retain_pictures")
    sums = [0.0] * len(mlps)
    with Work("row to trace", len(rows), prepares=True) as work:
        for row in rows:
            other = others[draw(trainer.draw_seed, row.index, "trace").randrange(len(others))]
            own, foreign = (
                encoder.collate([encoder.encode(each)]).to(trainer.args.device)
                for each in (row, with_picture_of(row, other))
            )
            with written([mlp.down for mlp in mlps]) as outputs:
                said(trainer, own)
            without = said(trainer, foreign)
            for number, mlp in enumerate(mlps):
                with rewritten(mlp.down, outputs[number], row):
                    sums[number] += said(trainer, foreign) - without
            work.advance(1)
    return [total / len(rows) for total in sums]


def said(trainer: LossTrainer, batch: Batch) -> float:
    """The log-probability of the answer of a batch of one row, in nats."""
    return float(sequence_logprob(trainer.forward(trainer.model, batch)))


def with_picture_of(row: Example, other: Example) -> Example:
    """The row with the picture of another, in the size of its own, so that a processor makes as many tokens of it."""
    stream = io.BytesIO()
    open_image(other).resize(open_image(row).size, Image.Resampling.BICUBIC).save(stream, "PNG")
    return replace(row, image={"bytes": stream.getvalue(), "path": None})


@contextlib.contextmanager
def written(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """What each module gives in a forward, in the list that is yielded."""
    outputs: list[Tensor] = [torch.empty(0)] * len(modules)

    def keep(number: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[number] = output

        return hook

    hooks = [module.register_forward_hook(keep(number)) for number, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for each in hooks:
            each.remove()


@contextlib.contextmanager
def rewritten(module: nn.Module, output: Tensor, row: Example) -> Iterator[None]:
    """Have a module give `output`. Raises SettingsError in a forward in which it would give another shape."""

    def give(module: nn.Module, inputs: Any, own: Tensor) -> Tensor:
        if own.shape != output.shape:
            raise SettingsError(
                f"method.trace: the processor makes {own.shape[-2]} tokens of another picture of the same size, and "
                f"{output.shape[-2]} of that of split {row.split}, row {row.index}"
            )
        return output

    handle = module.register_forward_hook(give)
    try:
        yield
    finally:
        handle.remove()
