"""Weights that a backend parts so that the suite cannot undo it are refused before a step and after the last one, and
so is what looks at whole weights while it trains.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from engine.pairs import Batch
from engine.parted import check_parts, check_whole, check_whole_weights, name_layers, shapes_of
from helpers import NPO, TRAINER
from settings.script import SettingsError
from settings.training import Edit, Gradient, Mask
from unlearn_losses import Scored


def launched(kind, *, zero3=False, fsdp2=False, rounds=""):
    """What accelerate says of a launch; `rounds`: what DeepSpeed's own configuration switches on."""
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(is_zero3=lambda: zero3, is_true=lambda name: name == rounds))
    return SimpleNamespace(
        distributed_type=kind, is_fsdp2=fsdp2, state=SimpleNamespace(deepspeed_plugin=plugin, fsdp_plugin=None)
    )


def test_a_backend_whose_parts_nobody_puts_together_is_refused_before_the_first_step():
    with pytest.raises(SettingsError, match="fsdp_version=1 parts the weights"):
        check_parts(launched(DistributedType.FSDP), TRAINER)


@pytest.mark.parametrize(
    "launch",
    [
        launched(DistributedType.DEEPSPEED),
        launched(DistributedType.DEEPSPEED, zero3=True),
        launched(DistributedType.FSDP, fsdp2=True),
        launched(DistributedType.MULTI_GPU),
        launched(DistributedType.NO),
    ],
    ids=["ZeRO-2", "ZeRO-3", "FSDP 2", "DDP", "one process"],
)
def test_one_whose_weights_are_whole_or_made_whole_is_not(launch):
    check_parts(launch, TRAINER)


@pytest.mark.parametrize(("precision", "rounds"), [("bf16", ""), ("fp32", "bf16.enabled"), ("fp32", "fp16.enabled")])
def test_deepspeed_is_refused_where_it_would_save_rounded_weights(precision, rounds):
    with pytest.raises(SettingsError, match="DeepSpeed would round the weights that it saves"):
        check_parts(launched(DistributedType.DEEPSPEED, rounds=rounds), replace(TRAINER, precision=precision))


def test_activations_are_not_computed_again_under_zero3_which_takes_the_weights_away():
    again = replace(TRAINER, gradient_checkpointing=True)
    check_parts(launched(DistributedType.DEEPSPEED), again)
    check_parts(launched(DistributedType.FSDP, fsdp2=True), again)
    with pytest.raises(SettingsError, match=r"trainer.gradient_checkpointing=true: DeepSpeed's zero_stage=3 takes"):
        check_parts(launched(DistributedType.DEEPSPEED, zero3=True), again)


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


# ---- what looks at whole weights

SHARDED = {
    "FSDP 2": launched(DistributedType.FSDP, fsdp2=True),
    "ZeRO-2": launched(DistributedType.DEEPSPEED),
    "ZeRO-3": launched(DistributedType.DEEPSPEED, zero3=True),
}
STEPS = {
    "mask": Mask(loss="grad_ascent", share=0.5),
    "gradient": Gradient(rule="project", args={"decay": 0.9}),
    "edit": Edit(rule="ssd", args={"alpha": 2.0, "damping": 1.0}),
}


@pytest.mark.parametrize("launch", SHARDED)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_whole_weights_is_refused_where_processes_do_not_keep_them(launch, step):
    method = replace(NPO, **{step: STEPS[step]})
    check_whole_weights(launched(DistributedType.MULTI_GPU), method, TRAINER, each_epoch=True)
    with pytest.raises(SettingsError, match="launch it without sharding"):
        check_whole_weights(SHARDED[launch], method, TRAINER, each_epoch=False)


@pytest.mark.parametrize("launch", ["FSDP 2", "ZeRO-3"])
def test_a_penalty_of_all_weights_and_an_evaluation_within_training_are_refused_where_weights_are_in_parts(launch):
    check_whole_weights(SHARDED[launch], NPO, TRAINER, each_epoch=False)
    with pytest.raises(SettingsError, match="an l1 penalty is of whole weights"):
        check_whole_weights(SHARDED[launch], NPO, replace(TRAINER, l1=0.1), each_epoch=False)
    with pytest.raises(SettingsError, match="epoch_eval asks each process about rows of its own"):
        check_whole_weights(SHARDED[launch], NPO, TRAINER, each_epoch=True)


def test_zero2_keeps_whole_weights_for_a_penalty_and_an_evaluation():
    check_whole_weights(SHARDED["ZeRO-2"], NPO, replace(TRAINER, l1=0.1), each_epoch=True)


class Layer(nn.Linear):
    pass


def test_fsdp2_parts_the_layers_that_the_model_names_and_has():
    launch = launched(DistributedType.FSDP, fsdp2=True)
    launch.state.fsdp_plugin = SimpleNamespace(transformer_cls_names_to_wrap=None)
    model = nn.Sequential(Layer(2, 2), Layer(2, 2))
    model._no_split_modules = ["Layer", "LayerOfAnotherTower"]
    name_layers(launch, model)
    assert launch.state.fsdp_plugin.transformer_cls_names_to_wrap == ["Layer"]
    launch.state.fsdp_plugin.transformer_cls_names_to_wrap = ["Other"]
    with pytest.raises(SettingsError, match="names Other, which the model has no layer of"):
        name_layers(launch, model)


# ---- a row with a picture beside rows in words


def test_a_row_of_no_pass_changes_no_logit_and_gets_a_gradient_of_zero():
    logits = torch.arange(12.0).view(3, 2, 2).requires_grad_()
    batch = Batch({}, torch.zeros(3, 2), passes=("forget", "retain"), rows=(1, 1), widths=(2, 1), beside=1)
    split = batch.split(Scored(logits, batch.labels))
    assert torch.equal(split["forget"].logits, logits[:1]) and torch.equal(split["retain"].logits, logits[1:2, :1])
    split["forget"].logits.sum().backward()
    # each of the four logits of the forget row counts once, those of the other rows do not
    assert torch.equal(logits.grad, torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 2, 2))
