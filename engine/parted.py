"""Weights that processes hold in parts: put together again after the last step, or refused before the first."""

from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from settings.script import SettingsError, processes

WHOLE = "take zero_stage=2, or FSDP with fsdp_version=2"


def check_parts(accelerator: Any, precision: str) -> None:
    """Raise SettingsError where processes would each hold a part of the weights that nobody puts together again.

    Saved, such a model would have weights without a number in them. DeepSpeed in bf16 or fp16 is refused too: the model
    that it leaves is rounded, and updates that are smaller than the rounding would be lost.

    `precision`: bf16 or fp32, of the training.
    """
    kind, parts = accelerator.distributed_type, "parts the weights, and what is saved would have none"
    if kind == DistributedType.DEEPSPEED:
        told = accelerator.state.deepspeed_plugin.hf_ds_config
        if told.is_zero3():
            raise SettingsError(f"DeepSpeed's zero_stage=3 {parts}; {WHOLE}")
        if precision != "fp32" or told.is_true("bf16.enabled") or told.is_true("fp16.enabled"):
            raise SettingsError(
                "DeepSpeed would round the weights that it saves, and small updates would be lost; take "
                "trainer.precision=fp32 and mixed_precision: no, or FSDP with fsdp_version=2"
            )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise SettingsError(f"fsdp_version=1 {parts}; {WHOLE}")


def whole(value: Tensor) -> Tensor:
    """A tensor with all its parts, in the main memory of the first process; the others get an empty one.

    Under FSDP2 every process has a part, and all must call this.
    """
    value = value.detach()
    gathered = value.full_tensor() if isinstance(value, DTensor) else value
    return gathered.cpu().contiguous() if processes().is_main_process else torch.empty(0)


def make_whole(model: nn.Module) -> None:
    """Undo FSDP2 after the last step: the first process gets its model back as it was before it was parted.

    All processes must call this. Another model stays as it is.
    """
    made: dict[int, nn.Parameter] = {}  # by the parted one, because two modules may share a weight
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(weight, DTensor):
                if id(weight) not in made:
                    made[id(weight)] = nn.Parameter(whole(weight), weight.requires_grad)
                setattr(module, name, made[id(weight)])
    for module in model.modules():
        if isinstance(module, FSDPModule):  # which FSDP2 has made a base of the module's own class
            own: Any = next(kind for kind in type(module).__mro__[1:] if not issubclass(kind, FSDPModule))
            module.__class__ = own


def parted_like(value: Tensor, like: Tensor) -> Tensor:
    """`value` as `like` lies: under FSDP2 this process's part of it."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in model.named_parameters()}


def check_whole(trained: nn.Module, shapes: dict[str, torch.Size], writes: bool) -> None:
    """Raise SettingsError where the process that `writes` the model has other weights than it began with: `shapes`.

    It is the last guard against a backend that parts a model in a way that the suite does not know.
    """
    now = shapes_of(trained)
    other = [name for name in shapes.keys() | now.keys() if shapes.get(name) != now.get(name)]
    if writes and other:
        name = min(other)
        was, found = (tuple(each[name]) if name in each else None for each in (shapes, now))
        raise SettingsError(
            f"after training the weight {name} has the shape {found} in place of {was}: the way in which the "
            "processes were launched parts the weights. Nothing was written"
        )
