"""Weights that a backend parts so that the suite cannot undo it are refused before a step and after the last one."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from engine.parted import check_parts, check_whole, shapes_of
from settings.script import SettingsError


def launched(kind, *, zero3=False, fsdp2=False, rounds=""):
    """What accelerate says of a launch; `rounds`: what DeepSpeed's own configuration switches on."""
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(is_zero3=lambda: zero3, is_true=lambda name: name == rounds))
    return SimpleNamespace(
        distributed_type=kind, is_fsdp2=fsdp2, state=SimpleNamespace(deepspeed_plugin=plugin, fsdp_plugin=None)
    )


@pytest.mark.parametrize(
    ("launch", "line"),
    [
        (launched(DistributedType.DEEPSPEED, zero3=True), "DeepSpeed's zero_stage=3 parts the weights"),
        (launched(DistributedType.FSDP), "fsdp_version=1 parts the weights"),
    ],
    ids=["ZeRO-3", "FSDP 1"],
)
def test_a_backend_whose_parts_nobody_puts_together_is_refused_before_the_first_step(launch, line):
    with pytest.raises(SettingsError, match=line):
        check_parts(launch, "fp32")


@pytest.mark.parametrize(
    "launch",
    [
        launched(DistributedType.DEEPSPEED),
        launched(DistributedType.FSDP, fsdp2=True),
        launched(DistributedType.MULTI_GPU),
        launched(DistributedType.NO),
    ],
    ids=["ZeRO-2", "FSDP 2", "DDP", "one process"],
)
def test_one_whose_weights_are_whole_or_made_whole_is_not(launch):
    check_parts(launch, "fp32")


@pytest.mark.parametrize(("precision", "rounds"), [("bf16", ""), ("fp32", "bf16.enabled"), ("fp32", "fp16.enabled")])
def test_deepspeed_is_refused_where_it_would_save_rounded_weights(precision, rounds):
    with pytest.raises(SettingsError, match="DeepSpeed would round the weights that it saves"):
        check_parts(launched(DistributedType.DEEPSPEED, rounds=rounds), precision)


def test_a_model_that_was_left_in_parts_is_not_written_by_the_process_that_writes():
    model = nn.Linear(2, 3)
    shapes = shapes_of(model)
    check_whole(model, shapes, writes=True)
    model.weight = nn.Parameter(torch.empty(0))  # as ZeRO-3 leaves it
    check_whole(model, shapes, writes=False)
    with pytest.raises(SettingsError, match=r"the weight weight has the shape \(0,\) in place of \(3, 2\)"):
        check_whole(model, shapes, writes=True)


def test_a_model_whose_weights_have_other_names_is_not_written_either():
    with pytest.raises(SettingsError, match=r"the weight bias has the shape None in place of \(3,\)"):
        check_whole(nn.Linear(2, 3, bias=False), shapes_of(nn.Linear(2, 3)), writes=True)
