"""A method's `edit` step: what rows say of a model's weights is measured, and the rule makes new weights of it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from engine import edit_msg
from engine.edit_gradient import edit_along_gradient
from engine.edit_statistics import activity, mlps_of, scale_neurons
from engine.edits import EDITS, EditRule
from engine.kept_hook import numbered_layer
from engine.language_model import trained_weights
from engine.loss_trainer import LossTrainer
from engine.pairs import Chosen, drawn_of
from engine.progress import Work
from engine.row_gradients import mean_gradients, squared_gradients
from engine.states import Place, mean_first_state, seen, size_of
from settings.script import SettingsError
from settings.training import IMPORTANCE

TINY = 1e-12  # in place of 0, where something is divided


def edit(trainer: LossTrainer, pairs: Any, encoder: Any) -> dict[str, Any]:
    """Edit the weights of the model that is to be trained, in place.

    Args:
        trainer: with the model, which is whole on each process.
        pairs: what the rows are drawn from.
        encoder: examples -> batches.

    Returns:
        For the record: `edited`, the share of the weights or neurons that the rule changed of those that it looks at,
        and `edited_by_layer`, how many neurons of each layer.

    Raises:
        SettingsError: the data lacks rows that the rule looks at, or it changes nothing.
    """
    step = trainer.bound.method.edit
    assert step is not None  # else there is nothing to do
    rule = EDITS[step.rule]
    rows = {name: drawn_of(pairs.rows_of(name), step.rows, trainer.draw_seed) for name in rule.rows}
    own = {name: value for name, value in step.args.items() if name not in rule.measured}
    if rule.edits == "weights":  # they are weighed by how many rows of each kind there are
        own |= {name: len(pairs.rows_of(name)) for name in rule.rows}
    facts = WAYS[rule.edits](trainer, rule, rows, encoder, own)
    if not facts["edited"]:
        raise SettingsError(f"method={trainer.bound.method.name}: method.edit changes nothing, nothing would forget")
    return facts


def edit_neurons(
    trainer: LossTrainer, rule: EditRule, rows: dict[str, Chosen], encoder: Any, own: dict[str, Any]
) -> dict[str, Any]:
    """Scale the neurons of a decoder by the factors of the rule."""
    method = trainer.bound.method
    assert method.edit is not None
    mlps = mlps_of(trainer.model, method.name)
    measured = {"mlps": mlps, "threshold": method.edit.args.get("threshold", 0.0)}
    seen = [activity(trainer.model, trainer.forward, encoder, rows[name], **measured) for name in rule.rows]
    factors = rule.apply(*seen, **own)
    scale_neurons(mlps, factors)
    changed = [int((factor != 1).sum()) for factor in factors]
    return {"edited": sum(changed) / sum(map(len, factors)), "edited_by_layer": changed}


@torch.no_grad()
def edit_weights(
    trainer: LossTrainer, rule: EditRule, rows: dict[str, Chosen], encoder: Any, own: dict[str, Any]
) -> dict[str, Any]:
    """Edit every weight that trains but those of the output head, by its importance for forget rows and for all."""
    forget_count, retain_count = own.pop("forget"), own.pop("retain")
    with torch.enable_grad():
        of_forget, forget_shares = squared_gradients(trainer, IMPORTANCE, [rows["forget"]], encoder)
        of_retain, retain_shares = squared_gradients(trainer, IMPORTANCE, [rows["retain"]], encoder)
    head = {id(weight) for weight in head_weights(trainer.model)}
    changed = looked_at = 0
    weights = trained_weights(trainer.model).values()
    measured = zip(weights, of_forget, forget_shares, of_retain, retain_shares, strict=True)
    for weight, f, forget_share, r, retain_share in measured:
        if id(weight) in head:
            continue
        # how many of all rows go through the weight: a vision tower's are those with a picture
        of_f, of_r = forget_count * forget_share, retain_count * retain_share
        everything = (of_f * f + of_r * r) / (of_f + of_r) if of_f + of_r else r
        new = rule.apply(weight, f, everything, **own)
        changed += int((new != weight).sum())
        looked_at += weight.numel()
        weight.copy_(new)
    return {"edited": changed / looked_at}


def head_weights(model: Any) -> list[nn.Parameter]:
    """The weights that name the answers: of a language model's output head, and of a face network's classes."""
    return list(model.head_weights() if hasattr(model, "head_weights") else model.get_output_embeddings().parameters())


@torch.no_grad()
def edit_kernels(
    trainer: LossTrainer, rule: EditRule, rows: dict[str, Chosen], encoder: Any, own: dict[str, Any]
) -> dict[str, Any]:
    """Edit the kernels of the convolutions that train."""
    changed = looked_at = 0
    for module in trainer.model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            new = rule.apply(module.weight, **own)
            changed += int((new != module.weight).sum())
            looked_at += new.numel()
            module.weight.copy_(new)
    return {"edited": changed / max(looked_at, 1)}


@torch.no_grad()
def renew_kernels(
    trainer: LossTrainer, rule: EditRule, rows: dict[str, Chosen], encoder: Any, own: dict[str, Any]
) -> dict[str, Any]:
    """Begin some kernels of the convolutions that train anew, and have the others move by `rest` of each step."""
    method = trainer.bound.method
    assert method.edit is not None
    as_many = drawn_of(rows["retain"], len(rows["forget"]), trainer.draw_seed)
    with torch.enable_grad():
        of_forget = mean_gradients(trainer, IMPORTANCE, rows["forget"], encoder)
        of_retain = mean_gradients(trainer, IMPORTANCE, as_many, encoder)
    weights = trained_weights(trainer.model).values()
    differs = {id(weight): r - f for weight, f, r in zip(weights, of_forget, of_retain, strict=True)}
    source = torch.Generator().manual_seed(trainer.draw_seed)
    renewed = looked_at = 0
    for name, module in trainer.model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            weight, gradient = module.weight, differs[id(module.weight)]
            chosen = edit_msg.smallest(gradient, own["share"])
            weight.copy_(rule.apply(weight, gradient, edit_msg.fresh_like(weight, source), **own))
            trainer.slowed[f"{name}.weight"] = chosen + ~chosen * method.edit.args["rest"]
            renewed += int(chosen.sum())
            looked_at += weight.numel()
    trainer.add_callback(PartOfEachStep(trainer.model, trainer.slowed))
    return {"edited": renewed / max(looked_at, 1)}


class PartOfEachStep(TrainerCallback):
    """Has weights move by a share of what the optimizer moves them.

    A share of the gradient would be no share of the step: AdamW divides a gradient by its own size.
    """

    def __init__(self, model: nn.Module, shares: dict[str, Tensor]):
        """`shares`: by the names of weights, of each of their entries its share, from 0 to 1."""
        self.shares = [(model.get_parameter(name), share) for name, share in shares.items()]
        self.before: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any = None, state: Any = None, control: Any = None, **_: Any) -> None:
        self.before = [weight.detach().clone() for weight, _ in self.shares]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any = None, state: Any = None, control: Any = None, **_: Any) -> None:
        for (weight, share), before in zip(self.shares, self.before, strict=True):
            weight.copy_(before.lerp(weight, share))
        self.before.clear()


@torch.no_grad()
def redirect_mlp(
    trainer: LossTrainer, rule: EditRule, rows: dict[str, Chosen], encoder: Any, own: dict[str, Any]
) -> dict[str, Any]:
    """Edit the down-projection of one decoder layer, so that forget questions end in the state of unknown people's.

    Returns what `edit` does, and how far the neurons of forget and retain rows go, in shares of the whole way.
    """
    method = trainer.bound.method
    assert method.edit is not None
    number = method.edit.args["layer"]
    setting = f"method.edit.args.layer={number}"
    after = Place(numbered_layer(trainer.model, number, setting), setting)
    down: Any = mlps_of(trainer.model, method.name)[number].down
    neurons = Place(down, setting, taken=True)
    with Work("row for the edit", sum(map(len, rows.values())), prepares=True) as work:
        asked = mean_first_state(trainer, encoder, list(rows["forget_words"]), after, work=work)
        unknown = mean_first_state(trainer, encoder, list(rows["holdout"]), after, work=work)
        forget = seen(trainer, encoder, list(rows["forget"]), neurons, work=work)
        retain = seen(trainer, encoder, list(rows["retain"]), neurons, work=work)
    counts = {name: len(rows[name].rows) for name in ("forget", "retain")}  # of all rows, also where some were drawn
    share = counts["forget"] / sum(counts.values())
    moment = share * forget.moment + (1 - share) * retain.moment
    direction = unknown - asked
    weight = down.weight.T if isinstance(down, Conv1D) else down.weight
    new = rule.apply(weight, direction, share * forget.mean, moment, **own)
    gate = (new - weight).float().T @ direction / max(float(direction @ direction), TINY)
    edited = float((new != weight).float().mean())
    weight.copy_(new)
    steered = {"steered_forget": size_of(gate, forget.moment), "steered_retain": size_of(gate, retain.moment)}
    return {"edited": edited, **steered}


WAYS = {
    "neurons": edit_neurons,
    "weights": edit_weights,
    "gradient": edit_along_gradient,
    "kernels": edit_kernels,
    "renewed": renew_kernels,
    "redirected": redirect_mlp,
}
