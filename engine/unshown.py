"""A step of several processes whose rows show no picture: what pictures alone reach stays as it is, as in one process.

Processes that wait for each other's gradients get zeros for weights that no row of theirs reaches. Where no process has
a picture these zeros are no gradient: an optimizer that takes them for one goes on with its momentum and its decay.
"""

from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from transformers import TrainerCallback


def weights_of_pictures(model: Any) -> list[nn.Parameter]:
    """The trained weights that rows without a picture do not reach: all but those of decoder, embeddings and head."""
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    in_words = {id(weight) for part in parts if part is not None for weight in part.parameters()}
    return [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in in_words]


def has_unshown_steps(trainer: Any, pairs: Any) -> bool:
    """Whether several processes train a model that sees, on rows of which some have a picture.

    An l1 penalty reaches every weight in every step, and a gradient's rule tells by itself what no row has reached.
    DeepSpeed keeps gradients to itself, and there the zeros stay.
    """
    keeps_own = trainer.accelerator.distributed_type == DistributedType.DEEPSPEED
    if trainer.args.world_size == 1 or keeps_own or not hasattr(trainer.model, "get_decoder"):
        return False
    if trainer.l1 or trainer.parted:
        return False
    return pairs.a_picture_row() is not None


class UnshownSteps(TrainerCallback):
    """Takes the zeros away before the optimizer's step."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.weights: list[nn.Parameter] | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        own = torch.tensor(float(self.trainer.is_shown), device=self.trainer.args.device)
        shown = self.trainer.accelerator.reduce(own, "sum").item() > 0
        self.trainer.is_shown = False
        if shown:
            return
        if self.weights is None:  # here, because a wrapper may have put other tensors in their place
            self.weights = weights_of_pictures(self.trainer.model)
        for weight in self.weights:
            weight.grad = None
