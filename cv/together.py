"""Many face networks trained together: each with its own seed, people, class weights and stream of views, side by side in one network.

What one of them becomes does not depend on the others: convolutions have a group a network, batch normalisation its own channels, the loss is a sum
whose terms share nothing. The step is the training loop's own (train_engine): the same bound loss, pairs and collator, schedule and optimizer.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from cv.face_settings import FaceModel
from cv.network import FaceNetwork, score_faces, side_by_side
from engine.methods import BoundLoss
from engine.pairs import EpochSampler, PassCollator
from engine.record import write_json, written_whole
from settings.script import SettingsError, processes
from settings.training import Method, Trainer
from unlearn_losses import Scored, sequence_logprob

STACK, GROUP_RECORD = "models.safetensors", "made_of.json"


@dataclass(frozen=True)
class Shadow:
    """What is one network's own: the rows its loss asks for, its classes, the seed of its draws."""

    pairs: Any
    encoder: Any
    seed: int


def check_together(method: Method) -> None:
    """Raise SettingsError for a method that needs more than a loss: its steps look at one network at a time."""
    for step in ("mask", "multiplier", "task_vector"):
        if getattr(method, step):
            raise SettingsError(f"method={method.name}: many networks cannot train together with method.{step}")


def train_together(
    stack: FaceNetwork, bound: BoundLoss, shadows: list[Shadow], settings: Trainer, model: FaceModel
) -> None:
    """Train the networks of `stack` in place, network i on the rows of shadows[i]; all have as many rows. Raises SettingsError if one diverges."""
    stack.to(processes().device)
    start = copy.deepcopy(stack).requires_grad_(False).eval() if bound.frozen or bound.cached else None
    steps = len(shadows[0].pairs) // settings.batch_size + (len(shadows[0].pairs) % settings.batch_size > 0)
    optimizer = make_optimizer(stack, settings)
    warmup = round(settings.warmup_ratio * steps * settings.epochs)
    schedule = transformers.get_scheduler(settings.schedule, optimizer, warmup, steps * settings.epochs)
    autocast = torch.autocast(processes().device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    stack.train()
    for number, (epoch, batches) in enumerate(all_batches(shadows, bound, settings)):
        with autocast:
            loss = sum_of_losses(stack, start, bound, batches, model, {"epoch": epoch, "step": number})
        if settings.l1 + bound.method.l1:
            loss = loss + (settings.l1 + bound.method.l1) * sum(
                p.abs().sum() for p in stack.parameters() if p.requires_grad
            )
        if not torch.isfinite(loss):
            raise SettingsError(
                f"method {bound.method.name}, step {number}: the loss of a shadow model is {loss.item()}; a lower trainer.lr may hold it"
            )
        loss.backward()
        if settings.max_grad_norm:
            clip_each(stack, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def make_optimizer(stack: FaceNetwork, settings: Trainer) -> torch.optim.Optimizer:
    """As the training loop's library makes it: no weight decay on biases."""
    named = [(name, p) for name, p in stack.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if "bias" not in name], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in named if "bias" in name], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return (
        torch.optim.SGD(groups, settings.lr) if settings.optimizer == "sgd" else torch.optim.AdamW(groups, settings.lr)
    )


def all_batches(
    shadows: list[Shadow], bound: BoundLoss, settings: Trainer
) -> Iterator[tuple[int, dict[str, dict[str, dict[str, Any]]]]]:
    """For each step of each epoch, in each network's own order: the epoch, and the batches of all networks side by side."""
    collators = [PassCollator(shadow.encoder, bound.trained, frozen_passes(bound)) for shadow in shadows]
    counts = {len(shadow.pairs) for shadow in shadows}
    assert len(counts) == 1, f"shadow models of {sorted(counts)} rows cannot train together"
    for epoch in range(settings.epochs):
        orders = []
        for shadow in shadows:
            sampler = EpochSampler(len(shadow.pairs), shadow.seed)
            sampler.set_epoch(epoch)
            orders.append(list(sampler))
        for first in range(0, len(shadows[0].pairs), settings.batch_size):
            made = [
                collator([shadow.pairs[key] for key in order[first : first + settings.batch_size]])
                for collator, shadow, order in zip(collators, shadows, orders, strict=True)
            ]
            yield (
                epoch,
                {
                    kind: {names: beside([each[kind][names] for each in made]) for names in made[0][kind]}
                    for kind in made[0]
                },
            )


def frozen_passes(bound: BoundLoss) -> list[str]:
    """The passes that the start scores, those of cached log-probabilities with them: one forward of a narrow network costs less than keeping them."""
    return list(dict.fromkeys([*bound.frozen, *bound.cached]))


def beside(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Batches of one pass of N networks as one: pixels (B, N * 3, S, S), labels (B, N)."""
    side_by_side = {name: torch.cat([batch[name] for batch in batches], dim=1) for name in ("pixels", "labels")}
    return {**side_by_side, "sizes": batches[0]["sizes"]}


def sum_of_losses(
    stack: FaceNetwork,
    start: FaceNetwork | None,
    bound: BoundLoss,
    batches: dict,
    model: FaceModel,
    state: dict[str, int],
) -> Tensor:
    """The sum of the networks' losses, a scalar."""
    scored = each_network(stack, batches["trained"], model)
    frozen: list[dict[str, Scored]] = [{} for _ in scored]
    if start is not None:
        with torch.no_grad():
            frozen = each_network(start, batches["frozen"] or batches["trained"], model)
    total = torch.zeros((), device=processes().device)
    for now, then in zip(scored, frozen, strict=True):
        passes: dict[str, Any] = {name: now[name] for name in bound.trained} | {
            f"ref_{name}": then[name] for name in bound.frozen
        }
        passes |= {f"ref_{name}_logprob": sequence_logprob(then[name]) for name in bound.cached}
        total = total + bound(passes, **state)
    return total


def each_network(stack: FaceNetwork, batches: dict[str, dict[str, Any]], model: FaceModel) -> list[dict[str, Scored]]:
    """Each network's passes, scored in one forward a batch: pass -> logits (B, 1, C) and labels (B, 1)."""
    networks: list[dict[str, Scored]] = [{} for _ in range(stack.models)]
    for names, batch in batches.items():
        moved = {name: batch[name].to(processes().device) for name in ("pixels", "labels")}
        scored = score_faces(stack, moved, scale=model.scale, margin=model.margin)
        for name, logits, labels in zip(
            names.split("+"), scored.logits.split(batch["sizes"]), scored.labels.split(batch["sizes"]), strict=True
        ):
            for number, passes in enumerate(networks):
                passes[name] = Scored(
                    logits[:, number : number + 1], labels[:, number : number + 1], margin=scored.margin
                )
    return networks


def clip_each(stack: FaceNetwork, most: float) -> None:
    """Scale each network's gradient to a norm of at most `most`."""
    gradients = [p.grad for p in stack.parameters() if p.grad is not None]
    norms = torch.stack([gradient.reshape(stack.models, -1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    shares = (most / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:  # in place on the gradient itself: reshaped, one in channels_last would be a copy
        gradient.mul_(shares.repeat_interleave(len(gradient) // stack.models).view(-1, *[1] * (gradient.dim() - 1)))


# ---- groups on disk


def save_group(stack: FaceNetwork, folder: Path, made_of: dict[str, Any]) -> None:
    """Write the networks of a group, and what they are made of, to a folder that is whole or not there."""
    with written_whole(folder) as aside:
        write_json(aside / GROUP_RECORD, made_of)
        save_file({name: value.contiguous() for name, value in stack.cpu().state_dict().items()}, aside / STACK)


def load_group(like: list[FaceNetwork], folder: Path) -> FaceNetwork:
    """A written group; `like` are networks of its shape, one for each."""
    stack = side_by_side(like)
    stack.load_state_dict(load_file(folder / STACK))
    return stack
