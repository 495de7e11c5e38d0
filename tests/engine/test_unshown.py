"""Steps of several processes without a picture: which weights have no gradient then, and where nobody needs that."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from engine.unshown import UnshownSteps, has_unshown_steps, weights_of_pictures


def trainer_of(model, processes=2, **changes):
    """As much of a trainer as is asked, where no other process has a picture."""
    kind = DistributedType.NO if processes == 1 else DistributedType.MULTI_CPU
    accelerator = SimpleNamespace(distributed_type=kind, reduce=lambda own, how: own)
    own = {"l1": 0.0, "parted": None, "is_shown": False, "args": SimpleNamespace(world_size=processes, device="cpu")}
    return SimpleNamespace(model=model, accelerator=accelerator, **(own | changes))


PICTURES, WORDS = (SimpleNamespace(a_picture_row=lambda found=found: found) for found in ("a row", None))


def with_gradients(model):
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    return {name for name, _ in model.named_parameters()}


def with_a_gradient(model):
    return {name for name, weight in model.named_parameters() if weight.grad is not None}


def test_a_step_without_a_picture_leaves_what_pictures_alone_reach(model):
    trainer, every = trainer_of(model), with_gradients(model)
    UnshownSteps(trainer).on_pre_optimizer_step(None, None, None)
    left = every - with_a_gradient(model)
    assert left == {name for name in every if "vision" in name or "projector" in name} != set()


def test_a_picture_in_any_batch_of_a_step_keeps_all_gradients_of_that_step_alone(model):
    trainer, every = trainer_of(model, is_shown=True), with_gradients(model)
    steps = UnshownSteps(trainer)
    steps.on_pre_optimizer_step(None, None, None)
    assert with_a_gradient(model) == every
    steps.on_pre_optimizer_step(None, None, None)
    assert with_a_gradient(model) < every


def test_frozen_weights_of_pictures_are_none_of_them(model):
    model.requires_grad_(False)
    assert weights_of_pictures(model) == []


@pytest.mark.parametrize(
    ("changes", "pairs", "expected"),
    [
        ({}, PICTURES, True),
        ({"processes": 1}, PICTURES, False),
        ({}, WORDS, False),
        ({"l1": 1e-4}, PICTURES, False),  # which moves every weight in every step
        ({"parted": object()}, PICTURES, False),  # whose rule may move a weight by what it kept of other steps
    ],
    ids=["pictures", "one process", "words", "l1", "rule"],
)
def test_gradients_are_taken_away_where_zeros_stand_for_none(model, changes, pairs, expected):
    assert has_unshown_steps(trainer_of(model, **changes), pairs) is expected
