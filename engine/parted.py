"""Weights that processes hold in parts: put together again after the last step, or refused before the first."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from settings.script import SettingsError, processes
from settings.training import Method, Trainer

PLAIN = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)  # each process has all weights
INNER = ("base_optimizer_state", "optimizer_state_dict")  # where ZeRO-1 and 2, and ZeRO-3, keep the optimizer inside


def check_parts(accelerator: Any, settings: Trainer) -> None:
    """Raise SettingsError where processes would each hold a part of the weights that nobody puts together again.

    DeepSpeed in bf16 or fp16 is refused too: the model that it leaves is rounded, and updates that are smaller than the
    rounding would be lost.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        told = accelerator.state.deepspeed_plugin.hf_ds_config
        if told.is_zero3() and settings.gradient_checkpointing:
            raise SettingsError(
                "trainer.gradient_checkpointing=true: DeepSpeed's zero_stage=3 takes weights away while a layer is "
                "computed again; take zero_stage=2, or FSDP with fsdp_version=2"
            )
        if settings.precision != "fp32" or told.is_true("bf16.enabled") or told.is_true("fp16.enabled"):
            raise SettingsError(
                "DeepSpeed would round the weights that it saves, and small updates would be lost; take "
                "trainer.precision=fp32 and mixed_precision: no, or FSDP with fsdp_version=2"
            )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise SettingsError(
            "fsdp_version=1 parts the weights, and what is saved would have none; take fsdp_version=2, or DeepSpeed"
        )


def check_whole_weights(
    accelerator: Any, method: Method, settings: Trainer, *, each_epoch: bool, is_part: bool = False
) -> None:
    """Raise SettingsError for what looks at whole weights while it trains, where a process has no whole model.

    `each_epoch`: whether the model is evaluated at the end of every epoch; `is_part`: whether the training is one of
    those whose updates are combined.
    """
    kind = accelerator.distributed_type.value
    if accelerator.distributed_type in PLAIN:
        return
    steps = {
        "gradient": "takes the gradients of the forget and of the retain part apart, which {} does not give",
        "edit": "edits whole weights, which {} does not keep",
        "init": "changes whole weights, which {} does not keep",
        "hook": "looks at whole layers, which {} does not keep",
        "trace": "looks at whole layers, which {} does not keep",
        "visual": "has the model answer before it trains, for which {} has no whole layers",
        "mask": "holds single weights still, which {} does not do",
    }
    for step, why in steps.items():
        if getattr(method, step):
            raise SettingsError(f"method={method.name} {why.format(kind)}: launch it without sharding")
    if is_part:
        raise SettingsError(
            f"method={method.name} combines whole updates, which {kind} does not keep: launch it without sharding"
        )
    if in_parts(accelerator) and settings.l1 + method.l1:
        raise SettingsError(f"an l1 penalty is of whole weights, which {kind} lacks: launch it without sharding")
    if in_parts(accelerator) and each_epoch:
        raise SettingsError(
            f"epoch_eval asks each process about rows of its own, and {kind} needs all at once: launch it without "
            "sharding, or evaluate the trained model"
        )


def name_layers(accelerator: Any, model: nn.Module) -> None:
    """Tell FSDP2 which classes of layers it parts one by one, where it parts by layers.

    They are those that the model itself names, as far as it has them: LLaVA names layers of towers that it may have.
    Raises SettingsError for a class that the launch names and the model lacks.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if accelerator.distributed_type != DistributedType.FSDP or plugin is None:
        return
    there = {type(module).__name__ for module in model.modules()}
    if plugin.transformer_cls_names_to_wrap is None:
        named = getattr(model, "_no_split_modules", None) or ()
        plugin.transformer_cls_names_to_wrap = sorted(there.intersection(named))
    if lacking := sorted(set(plugin.transformer_cls_names_to_wrap) - there):
        raise SettingsError(
            f"fsdp_transformer_layer_cls_to_wrap names {lacking[0]}, which the model has no layer of; leave it out, "
            "and the layers are those that the model names"
        )


def in_parts(accelerator: Any) -> bool:
    """Whether each process has a part of every weight alone: FSDP2 and ZeRO-3."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return bool(accelerator.state.deepspeed_plugin.hf_ds_config.is_zero3())
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def parted_alike(accelerator: Any, frozen: nn.Module) -> nn.Module:
    """A model that does not train, parted among the processes as the one that trains is. All processes call this."""
    if not in_parts(accelerator):
        return frozen.to(accelerator.device)
    if accelerator.distributed_type == DistributedType.FSDP:
        made: nn.Module = fsdp2_prepare_model(accelerator, frozen)
        return made
    import deepspeed  # here, because who does not launch by it need not have it

    config = copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
    for of_training in ("optimizer", "scheduler"):
        config.pop(of_training, None)
    config["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = deepspeed.initialize(model=frozen, config=config)
    engine.eval()
    wrapped: nn.Module = engine
    return wrapped


def is_zero3(weight: Tensor) -> bool:
    """Whether ZeRO-3 has parted a weight, which is empty between passes."""
    return hasattr(weight, "ds_id")


@contextlib.contextmanager
def gathered(weight: Tensor, *, changes: bool = False) -> Iterator[None]:
    """A weight that ZeRO-3 has parted, whole for a while; `changes`: each process then keeps its part of what the first
    has made of it. Another weight stays as it is. All processes must call this.
    """
    if not is_zero3(weight):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0 if changes else None):
        yield


def whole(value: Tensor) -> Tensor:
    """A tensor with all its parts, in the main memory of the first process; the others get an empty one.

    Under FSDP2 and ZeRO-3 every process has a part, and all must call this.
    """
    with gathered(value):
        value = value.detach()
        found = value.full_tensor() if isinstance(value, DTensor) else value
        if not processes().is_main_process:
            return torch.empty(0)
        # ZeRO-3 takes back what it has gathered
        return found.cpu().contiguous().clone() if found is value else found.cpu().contiguous()


def make_whole(model: nn.Module) -> None:
    """Undo FSDP2 or ZeRO-3 after the last step: the first process gets its model back as it was before it was parted.

    All processes must call this. Another model stays as it is.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # after a pass without gradients some weights are still whole, and would be parted again
    made: dict[int, nn.Parameter] = {}  # by the parted one, because two modules may share a weight
    parts: list[Tensor] = []  # kept, so that no other tensor gets the number of one
    for module in model.modules():
        for name, weight in [*module.named_parameters(recurse=False)]:
            if isinstance(weight, DTensor) or is_zero3(weight):
                if id(weight) not in made:
                    made[id(weight)] = nn.Parameter(whole(weight), weight.requires_grad)
                    parts.append(weight)
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


def put(weight: Tensor, value: Tensor) -> None:
    """Put a whole `value` in place of a weight's own; each process keeps its part. All processes must call this."""
    with torch.no_grad(), gathered(weight, changes=True):
        weight.copy_(parted_like(value, weight))


# ---- the optimizer inside DeepSpeed's, of which each process has the state of its own part


def part_of_optimizer(zero: Any) -> dict[str, Any]:
    """The state_dict of this process's optimizer; `zero`: DeepSpeed's around it."""
    state = zero.state_dict()
    found: dict[str, Any] = next(state[name] for name in INNER if name in state)
    return found


def load_part_of_optimizer(zero: Any, own: dict[str, Any]) -> None:
    """Give this process's optimizer back what `part_of_optimizer` gave, beside weights that are there already."""
    zero.refresh_fp32_params()
    state = zero.state_dict()
    state[next(name for name in INNER if name in state)] = own
    # of the states of all processes each looks at its own place alone
    zero.load_state_dict([state] * processes().num_processes)


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
