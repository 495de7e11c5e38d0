"""A method's `combine` step: several trainings from the same start, and the one update that a rule makes of theirs.

Each part is a training as any other, with checkpoints of its own. It leaves its weights in `<save_dir>.checkpoints`,
and a run that goes on takes the parts that are there. Updates are those of merged weights: the factors of an adapter
say nothing by themselves.
"""

import contextlib
import gc
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.checkpoints import WEIGHTS, Diverged, check_room, last_checkpoint, readable
from engine.folders import beside, marked, remove_ours, written_whole
from engine.frozen_start import Start, silence_dropout
from engine.language_model import trained_weights
from engine.methods import COMBINATIONS, BoundLoss
from engine.record import (
    METRICS,
    TRAIN_RECORD,
    peak_memory_gb,
    read_json,
    start_of_peak,
    why_another,
    write_record,
)
from settings.script import MAKE_ROOM, SettingsError, processes
from settings.training import Trainer

Weights = dict[str, Tensor]  # those that train, by name
Rule = Callable[..., Tensor]


def train_parts(
    start: Start,
    bound: BoundLoss,
    pairs: Any,
    encoder: Any,
    settings: Trainer,
    *,
    train: Callable[..., None],
    seed: int,
    save_dir: str,
    record: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Train the parts of a method and write the start with what its rule makes of their updates to `save_dir`.

    Args:
        train: trains one part: engine.train.train, which has the other arguments too.

    Raises:
        SettingsError: a part diverged, the disk has no room, or the rule leaves nothing.
        Stopped: a signal ended it, after a checkpoint.
    """
    combine = bound.method.combine
    assert combine is not None  # else there is nothing to do
    model, name = start.model, bound.method.name
    check_room(model, save_dir, settings, parts=len(bound.trainings))
    folder = beside(Path(save_dir), "checkpoints")
    if processes().is_main_process:
        marked(folder)
    first, attributes = copies(trained_weights(model)), set(vars(model))
    if any(part.frozen or part.cached for part in bound.trainings.values()):
        silence_dropout(model)  # of all parts, whichever of them is trained in this attempt
    with kept_only_with_use(folder):
        for part, own in bound.trainings.items():
            if is_there(folder / part, record, say):
                say(f"{name}: the part {part} is there")
                continue
            say(f"{name}: the part {part}, {own.method.loss}")
            of_part = pairs.pairs_for(own.batches).with_retain_rows(combine.rows)
            put(model, first, attributes)
            where = {"seed": seed, "save_dir": str(folder / part), "record": record, "say": say}
            train(replace(start, save=save_weights), own, of_part, encoder, settings, **where)
        put(model, first, attributes)
        if processes().is_main_process:
            write_combined(start, bound, first, {"seed": seed, **record}, save_dir=Path(save_dir), say=say)
            remove_ours(folder)
        processes().wait_for_everyone()


def copies(weights: Mapping[str, Tensor]) -> Weights:
    """Copies of weights in main memory."""
    return {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}


@torch.no_grad()
def put(model: nn.Module, weights: Weights, own: set[str]) -> None:
    """Put a model where it was before an earlier training.

    `own`: the names of the attributes that it had. accelerate leaves a mark on a model, by which it would take it for
    prepared: the next training would have no autocast, and under DDP no common gradient.
    """
    gc.collect()  # under DDP what wrapped the model no longer listens to its weights
    for name in vars(model).keys() - own:
        del model.__dict__[name]
    for name, weight in trained_weights(model).items():
        weight.grad = None
        weight.copy_(weights[name])


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write the trained weights of a part, under LoRA those of its adapter."""
    save_file({name: weight.contiguous() for name, weight in copies(trained_weights(model)).items()}, folder / WEIGHTS)


def is_there(folder: Path, record: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Whether an earlier attempt of this run has finished a part, the same for every process."""
    found = False
    if processes().is_main_process and (folder / TRAIN_RECORD).is_file():
        left = read_json(folder / TRAIN_RECORD)
        why = why_another(left, record)
        if left["machine"]["processes"] != processes().num_processes:  # whose batches were others
            why.append(f"{left['machine']['processes']} processes -> {processes().num_processes}")
        found = not why
        if why:
            say(f"{str(folder)!r} is of another run ({', '.join(why[:5])}): it is trained anew")
    return bool(gather_object([found])[0])


@contextlib.contextmanager
def kept_only_with_use(folder: Path) -> Iterator[None]:
    """Remove the folder of the parts after an error, where none has got as far as a checkpoint or one diverged."""
    try:
        yield
    except BaseException as error:
        if processes().is_main_process and folder.is_dir():
            finished = list(folder.glob(f"*/{TRAIN_RECORD}"))
            begun = [each for each in folder.glob("*.checkpoints") if last_checkpoint(each)]
            if isinstance(error, Diverged) or not (finished or begun):
                remove_ours(folder)
        raise


def write_combined(
    start: Start,
    bound: BoundLoss,
    first: Weights,
    facts: dict[str, Any],
    *,
    save_dir: Path,
    say: Callable[[str], None],
) -> None:
    """Write the start with the combined update, its record, and the curves of the parts one behind the other."""
    began = time.monotonic()
    start_of_peak()
    combine = bound.method.combine
    assert combine is not None  # train_parts
    folder = beside(save_dir, "checkpoints")
    own = []
    for part in bound.trainings:
        with readable(folder / part):
            own.append(load_file(folder / part / WEIGHTS))

    def rule(*updates: Tensor) -> Tensor:
        made: Tensor = COMBINATIONS[combine.rule](*updates, **combine.args)
        return made

    model, left_out = combined(start.model, first, own, rule)
    say(f"{bound.method.name}: {combine.rule} leaves out {left_out:.1%} of the update")
    if left_out == 1:
        raise SettingsError(
            f"method={bound.method.name}: method.combine leaves nothing of the update, nothing would be forgotten"
        )
    records = {part: read_json(folder / part / TRAIN_RECORD) for part in bound.trainings}
    cost = cost_of(list(records.values()), time.monotonic() - began)
    parts = {part: {"seconds": each["seconds"], "steps": each["steps"]} for part, each in records.items()}
    with written_whole(save_dir, f"the parts that are trained stay: {MAKE_ROOM}") as aside:
        start.save(model, aside)
        (aside / METRICS).write_text("".join(curve_lines(folder, records)), encoding="utf-8")
        write_record(aside / TRAIN_RECORD, **{**facts, **cost, "parts": parts, "left_out": left_out})


@torch.no_grad()
def combined(model: Any, first: Weights, own: list[Weights], rule: Rule) -> tuple[nn.Module, float]:
    """The start with one update in place of those of the parts.

    Args:
        model: at the start; changed.
        first: its weights that train, at the start.
        own: the same after the training of each part.
        rule: of one weight's updates makes one.

    Returns:
        The model, without an adapter, and the share of the first part's update that the rule left out, by entries.
    """
    moved = left_out = 0
    adapted = isinstance(model, PeftModel)
    model = model.cpu().float() if adapted else model  # as where an adapter is merged
    for weight, updates in updates_of(model, first, own):
        new = rule(*updates)
        moved += int((updates[0] != 0).sum())
        left_out += int(((updates[0] != 0) & (new == 0)).sum())
        weight.add_(new)
    return model.unload() if adapted else model, left_out / max(moved, 1)


def updates_of(model: Any, first: Weights, own: list[Weights]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Each weight that the parts move, at the start, with the update by each part."""
    if not isinstance(model, PeftModel):
        for name, weight in trained_weights(model).items():
            yield weight, [(each[name] - first[name]).to(weight.device) for each in own]
        return
    layers: dict[str, Any] = {place: each for place, each in model.named_modules() if isinstance(each, LoraLayer)}
    for place, layer in layers.items():
        yield layer.get_base_layer().weight, [merged_update(layer, place, each) for each in own]


def merged_update(layer: Any, place: str, weights: Weights) -> Tensor:
    """What an adapter of these weights adds to the weight of a layer; `place`: the layer's name."""
    (adapter,) = layer.active_adapters
    for name, weight in layer.named_parameters():
        if f"{place}.{name}" in weights:
            weight.copy_(weights[f"{place}.{name}"])
    update: Tensor = layer.get_delta_weight(adapter)
    return update


def cost_of(records: list[dict[str, Any]], own_seconds: float) -> dict[str, Any]:
    """What the record says of all trainings together; `own_seconds`: of what came behind them."""
    cost: dict[str, Any] = {
        "seconds": sum(each["seconds"] for each in records) + own_seconds,
        "steps": sum(each["steps"] for each in records),
        "peak_memory_gb": max(peak_memory_gb(), *(each["peak_memory_gb"] for each in records)),
        "figure": ", ".join(each["figure"] for each in records),
        "loss": [(before + step, loss) for each, before in behind(records) for step, loss in each["loss"]],
    }
    if all("padding" in each for each in records):
        tokens = [each["tokens_per_second"] * each["seconds"] for each in records]
        places = [count / (1 - each["padding"]) for count, each in zip(tokens, records, strict=True)]
        cost |= {"tokens_per_second": sum(tokens) / cost["seconds"], "padding": 1 - sum(tokens) / sum(places)}
    return cost


def behind(records: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Each training's record with the number of steps of those before it."""
    before = itertools.accumulate((each["steps"] for each in records), initial=0)
    return list(zip(records, before, strict=False))  # the last count is of all


def curve_lines(folder: Path, records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The lines of the parts' curves, their steps counted on, each with the name of its part."""
    for part, (_, before) in zip(records, behind(list(records.values())), strict=True):
        for line in (folder / part / METRICS).read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            yield json.dumps({"part": part, **told, "step": before + told["step"]}) + "\n"
