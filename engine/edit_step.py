"""A method's `edit` step: what rows say of a model's weights is measured, and the rule makes new weights of it."""

from typing import Any

import torch

from engine.edit_gradient import edit_along_gradient
from engine.edit_statistics import activity, mlps_of, scale_neurons
from engine.edits import EDITS, EditRule
from engine.language_model import trained_weights
from engine.loss_trainer import LossTrainer
from engine.pairs import Chosen, drawn_of
from settings.script import SettingsError
from settings.training import IMPORTANCE


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
        of_forget, forget_shares = trainer.squared_gradients(IMPORTANCE, [rows["forget"]], encoder)
        of_retain, retain_shares = trainer.squared_gradients(IMPORTANCE, [rows["retain"]], encoder)
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


def head_weights(model: Any) -> list[torch.nn.Parameter]:
    """The weights that name the answers: of a language model's output head, and of a face network's classes."""
    return list(model.head_weights() if hasattr(model, "head_weights") else model.get_output_embeddings().parameters())


@torch.no_grad()
def edit_kernels(
    trainer: LossTrainer, rule: EditRule, rows: dict[str, Chosen], encoder: Any, own: dict[str, Any]
) -> dict[str, Any]:
    """Edit the kernels of the convolutions that train."""
    changed = looked_at = 0
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.requires_grad:
            new = rule.apply(module.weight, **own)
            changed += int((new != module.weight).sum())
            looked_at += new.numel()
            module.weight.copy_(new)
    return {"edited": changed / max(looked_at, 1)}


WAYS = {"neurons": edit_neurons, "weights": edit_weights, "gradient": edit_along_gradient, "kernels": edit_kernels}
