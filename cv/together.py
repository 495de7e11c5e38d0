"""Many face networks trained in one stack, each with its own seed, people, class weights and stream of views.

A stack that is finished is found again by what it was made of.

What one of them becomes does not depend on the others: convolutions have a group per network, batch normalisation has
channels per network, and the loss is a sum whose terms share nothing. The step is the training loop's own
(engine.train): the same bound loss, pairs and collator, schedule and optimizer.
"""

import copy
import hashlib
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from cv.division import Division, met_by
from cv.face_settings import AttackFaces
from cv.network import (
    FaceNetwork,
    end_at,
    forward_of,
    stack_networks,
    start_of,
    with_first_classes,
    with_new_classes,
)
from cv.pictures import FaceEncoder, FacePairs, training_rows
from cv.preparation import People, prepare
from engine.edit_step import PartOfEachStep, edit
from engine.edits import EDITS
from engine.folders import written_whole
from engine.frozen_start import Forward, forward_passes
from engine.loss_trainer import LossTrainer
from engine.methods import UNTAUGHT, BoundLoss, bind
from engine.pairs import Batch, EpochSampler, PassCollator
from engine.progress import Work
from engine.record import read_json, work_key, write_record
from engine.source import code_of
from engine.train import training_arguments
from settings.inputs import Inputs
from settings.runs import one_at_a_time
from settings.script import SettingsError, processes
from settings.training import FINETUNING, Method, Trainer
from unlearn_losses import Scored, sequence_logprob

STACK_WEIGHTS = "models.safetensors"
STACK_RECORD = "made_of.json"


@dataclass(frozen=True)
class Shadow:
    """What one network of a stack does not share: the rows its loss asks for, its classes, the seed of its draws."""

    pairs: FacePairs
    encoder: FaceEncoder
    seed: int
    start: FaceNetwork  # the network that trains
    untaught: FaceNetwork | None = None  # where the loss compares with one that never learned anything
    measured: dict[str, float] = field(default_factory=dict)  # what the loss asks for
    before: FaceNetwork | None = None  # the network as it was, where it begins edited
    slowed: dict[str, Tensor] = field(default_factory=dict)  # see LossTrainer


def check_stackable(method: Method) -> None:
    """Raise SettingsError for a method that needs more than a loss: its steps look at one network at a time."""
    for step in ("hook", "trace", "combine", "init", "mask", "gradient", "multiplier", "task_vector"):
        if getattr(method, step):
            raise SettingsError(f"method={method.name}: many networks cannot train together with method.{step}")
    if method.edit and not EDITS[method.edit.rule].fits_faces:
        raise SettingsError(f"method={method.name} edits the decoder of a language model, which a face network has not")


@dataclass(frozen=True)
class References:
    """The networks that the losses of a stack compare with; None where they do not."""

    start: FaceNetwork | None
    untaught: FaceNetwork | None


def untaught_stack(shadows: list[Shadow]) -> FaceNetwork:
    """The networks that never learned anything, as one."""
    each = [shadow.untaught for shadow in shadows if shadow.untaught is not None]
    assert len(each) == len(shadows)  # cv.preparation makes one for each
    return stack_networks(each).requires_grad_(False).eval()


def start_stack(stack: FaceNetwork, shadows: list[Shadow]) -> FaceNetwork:
    """What a stack compares with: its networks as they were before an edit, or as they are."""
    before = [shadow.before for shadow in shadows if shadow.before is not None]
    start = stack_networks(before) if before else copy.deepcopy(stack)
    return start.requires_grad_(False).eval()


def train_stack(
    stack: FaceNetwork,
    bound: BoundLoss,
    shadows: list[Shadow],
    settings: Trainer,
    *,
    forward: Forward,
    stands_for: float = 0,
) -> None:
    """Train the networks of a stack in place, each on rows of its own.

    Args:
        stack: the networks.
        bound: the method's loss.
        shadows: of each network what is its own; all have as many rows.
        settings: of the trainer.
        forward: Scored of a network and a batch.
        stands_for: how many models of an attack are done when this is.

    Raises:
        SettingsError: a network diverged.
    """
    stack.to(processes().device)
    frozen = References(
        start_stack(stack, shadows).to(processes().device) if bound.frozen or bound.cached else None,
        untaught_stack(shadows).to(processes().device) if bound.untaught else None,
    )
    part = PartOfEachStep(stack, stacked_shares(shadows))
    optimizer = make_optimizer(stack, settings)
    steps = settings.epochs * math.ceil(len(shadows[0].pairs) / settings.batch_size)
    schedule = make_schedule(optimizer, settings, steps)
    autocast = torch.autocast(processes().device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    l1 = settings.l1 + bound.method.l1
    stack.train()
    with Work("step", steps, stands_for=stands_for) as work:
        for step, (epoch, batches) in enumerate(stacked_batches(shadows, bound, settings)):
            with autocast:
                passes = passes_of_each(stack, frozen, bound, batches, forward=forward)
                loss = torch.zeros((), device=processes().device)
                for each, shadow in zip(passes, shadows, strict=True):
                    loss = loss + bound(each, epoch=epoch, **shadow.measured)
            if l1:
                loss = loss + l1 * sum(p.abs().sum() for p in stack.parameters() if p.requires_grad)
            if not torch.isfinite(loss):
                where = f"method {bound.method.name}, step {step}: the loss of a shadow model is {loss.item()}"
                raise SettingsError(f"{where}; a lower trainer.lr may hold it")
            loss.backward()
            if settings.max_grad_norm:
                clip_each_network(stack, settings.max_grad_norm)
            part.on_pre_optimizer_step()
            optimizer.step()
            part.on_optimizer_step()
            schedule.step()
            optimizer.zero_grad()
            work.advance()


def stacked_shares(shadows: list[Shadow]) -> dict[str, Tensor]:
    """By name, the shares of their steps by which the weights of a stack move; those of a network stand together."""
    shares = {}
    for name in shadows[0].slowed:
        shares[name] = torch.cat([shadow.slowed[name] for shadow in shadows])
    return shares


def make_optimizer(stack: FaceNetwork, settings: Trainer) -> torch.optim.Optimizer:
    """As the training loop's library makes it: no weight decay on biases."""
    trained = [(name, p) for name, p in stack.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if "bias" not in name], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trained if "bias" in name], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD if settings.optimizer == "sgd" else torch.optim.AdamW
    return optimizer([group for group in groups if group["params"]], settings.lr)


def make_schedule(optimizer: torch.optim.Optimizer, settings: Trainer, steps: int) -> Any:
    """The learning rate's schedule over all steps."""
    warmup = round(settings.warmup_ratio * steps)
    return transformers.get_scheduler(settings.schedule, optimizer, warmup, steps)


def stacked_batches(shadows: list[Shadow], bound: BoundLoss, settings: Trainer) -> Iterator[tuple[int, dict[str, Any]]]:
    """For each step the epoch and the networks' batches, stacked; every network has an order of its own."""
    frozen = frozen_passes(bound)
    asked = {"by_length": True, "told": bound.told}
    collators = [PassCollator(shadow.encoder, bound.trained, frozen, **asked) for shadow in shadows]
    counts = {len(shadow.pairs) for shadow in shadows}
    assert len(counts) == 1, f"shadow models of {sorted(counts)} rows cannot train together"
    for epoch in range(settings.epochs):
        orders = [epoch_order(shadow, epoch) for shadow in shadows]
        for first in range(0, len(orders[0]), settings.batch_size):
            batches = []
            for shadow, collator, order in zip(shadows, collators, orders, strict=True):
                batches.append(collator([shadow.pairs[key] for key in order[first : first + settings.batch_size]]))
            stacked: dict[str, Any] = {kind: stack_batches(batches, kind) for kind in ("trained", "frozen")}
            stacked["labels"] = {name: stack_labels(batches, name) for name in bound.told}
            yield epoch, stacked


def epoch_order(shadow: Shadow, epoch: int) -> list[int]:
    """The keys of one network's epoch."""
    sampler = EpochSampler(len(shadow.pairs), shadow.seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def frozen_passes(bound: BoundLoss) -> list[str]:
    """The passes that networks score in every step that do not train.

    Those of cached log-probabilities are among them: one forward of a narrow network costs less than keeping them.
    """
    return list(dict.fromkeys([*bound.compared, *bound.cached]))


def stack_labels(batches: list[dict[str, Any]], name: str) -> Tensor:
    """The answers (B, N) of one pass of N networks."""
    return torch.cat([each["labels"][name] for each in batches], dim=1)


def stack_batches(batches: list[dict[str, Any]], kind: str) -> list[Batch]:
    """The batches of one step of each network, `trained` or `frozen`, as those of the stack."""
    of_networks = [each[kind] for each in batches]
    return [concat_batches(list(group)) for group in zip(*of_networks, strict=True)]


def concat_batches(batches: list[Batch]) -> Batch:
    """Batches of N networks, each with the same passes, as one: pixels (B, N * 3, S, S), labels (B, N)."""
    first = batches[0]
    assert {(batch.passes, batch.rows) for batch in batches} == {(first.passes, first.rows)}
    pixels = torch.cat([batch.inputs["pixels"] for batch in batches], dim=1)
    labels = torch.cat([batch.labels for batch in batches], dim=1)
    widths = (len(batches),) * len(first.passes)  # an answer is one token wide, and there is one per network
    return replace(first, inputs={"pixels": pixels}, labels=labels, widths=widths, answer_keys=())


def passes_of_each(
    stack: FaceNetwork,
    frozen: References,
    bound: BoundLoss,
    batches: dict[str, Any],
    *,
    forward: Forward,
) -> list[dict[str, Scored | Tensor]]:
    """Of each network what its loss asks for, scored in one forward per batch.

    `frozen`: the networks that it compares with.
    """
    device = processes().device
    trained = [batch.to(device) for batch in batches["trained"]]
    now = forward_passes(stack, trained, forward)
    reference = [batch.to(device) for batch in batches["frozen"]] or trained
    with torch.no_grad():
        start = forward_passes(frozen.start, reference, forward) if frozen.start else {}
        untaught = forward_passes(frozen.untaught, reference, forward) if frozen.untaught else {}
    each = []
    for number in range(stack.models):
        passes: dict[str, Scored | Tensor] = {name: pick_network(now[name], number) for name in bound.trained}
        for name in bound.frozen:
            passes[f"ref_{name}"] = pick_network(start[name], number)
        for name in bound.untaught:
            passes[f"{UNTAUGHT}{name}"] = pick_network(untaught[name], number)
        for name in bound.cached:
            passes[f"ref_{name}_logprob"] = sequence_logprob(pick_network(start[name], number))
        for name, labels in batches["labels"].items():
            passes[f"{name}_labels"] = labels[:, number : number + 1].to(device)
        each.append(passes)
    return each


def pick_network(scored: Scored, number: int) -> Scored:
    """One network's logits (B, 1, C) and labels (B, 1) of a stack's (B, N, C) and (B, N)."""
    column = slice(number, number + 1)
    return scored._replace(given=scored.logits[:, column], labels=scored.labels[:, column])


def clip_each_network(stack: FaceNetwork, most: float) -> None:
    """Scale each network's gradient to a norm of at most `most`."""
    gradients = [p.grad for p in stack.parameters() if p.grad is not None]
    squares = [gradient.reshape(stack.models, -1).square().sum(1) for gradient in gradients]
    norms = torch.stack(squares).sum(0).sqrt()
    shares = (most / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:  # in place on the gradient itself: reshaped, one in channels_last would be a copy
        share = shares.repeat_interleave(len(gradient) // stack.models)
        gradient.mul_(share.view(-1, *[1] * (gradient.dim() - 1)))


# ---- a stack, trained or found


@dataclass(frozen=True)
class StackPlan:
    """How the networks of one stack come about."""

    folder: Path  # where they are kept
    method: Method
    trainer: Trainer
    numbers: range  # of the models in the attack
    start: list[FaceNetwork]  # of each network the one it begins with


def train_or_load_stack(settings: AttackFaces, division: Division, plan: StackPlan) -> FaceNetwork:
    """The planned networks: trained, or found in the plan's folder if they were made of the same.

    Of several attacks that need them one trains them, and the others wait.
    """
    with one_at_a_time(plan.folder):
        return found_or_trained(settings, division, plan)


def found_or_trained(settings: AttackFaces, division: Division, plan: StackPlan) -> FaceNetwork:
    key = stack_key(settings, plan)
    seeds = {number: model_seed(settings, number) for number in plan.numbers}
    start = plan.start
    if plan.method == FINETUNING:
        start = []
        for number, model in zip(plan.numbers, plan.start, strict=True):
            classes = met_by(division, number).learned(settings.split)
            start.append(with_new_classes(model, len(classes), seeds[number]))
    record = plan.folder / STACK_RECORD
    if record.is_file() and read_json(record).get("key") == key:
        return load_stack(start, plan.folder)
    started = time.perf_counter()
    bound = bind(plan.method, faces=True)
    shadows = []
    for model, (number, seed) in zip(start, seeds.items(), strict=True):
        shadows.append(shadow_of(settings, bound, division, number, start=model, seed=seed))
    stack = stack_networks([shadow.start for shadow in shadows])
    if plan.method.activations:
        end_at(stack, plan.method.activations)
    share = len(plan.numbers) if settings.method is None else len(plan.numbers) / 2  # the other half is to forget
    if bound.loss:
        train_stack(stack, bound, shadows, plan.trainer, forward=forward_of(settings.model), stands_for=share)
    stack.ends_at = None
    stack = with_first_classes(stack, start[0].classes.shape[1])
    facts = {"models": [*plan.numbers], "method": plan.method.name, "key": key}
    save_stack(stack, plan.folder, {**facts, "seconds": time.perf_counter() - started})
    return stack


def shadow_of(
    settings: AttackFaces, bound: BoundLoss, division: Division, number: int, *, start: FaceNetwork, seed: int
) -> Shadow:
    """What model `number` does not share with the others of its stack; it begins with `start`."""
    met = met_by(division, number)
    classes = met.learned(settings.split)
    if bound.method != FINETUNING:
        people = People(division, met, classes)
        ready = prepare(bound, start, people, data=settings.data, shape=settings.model, seed=seed)
        shadow = Shadow(ready.pairs, ready.encoder, seed, ready.model, ready.untaught, ready.measured)
        return edited(shadow, bound, settings) if bound.method.edit else shadow
    retain = training_rows(division, classes, settings.split)
    encoder = FaceEncoder(classes, settings.data.people, settings.model.size)
    encoder.read(retain.files)
    return Shadow(FacePairs(bound.batches, None, retain, size=settings.model.size, seed=seed), encoder, seed, start)


def edited(shadow: Shadow, bound: BoundLoss, settings: AttackFaces) -> Shadow:
    """The shadow with its network edited, as the training loop edits one network."""
    network = copy.deepcopy(shadow.start)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(settings.trainer, shadow.seed, scratch)
        start = start_of(network, settings.model, [*shadow.encoder.numbers])
        rows = {"train_dataset": shadow.pairs, "args": arguments}
        trainer = LossTrainer(start, bound, settings.trainer, seed=shadow.seed, **rows)
        edit(trainer, shadow.pairs, shadow.encoder)
    return replace(shadow, start=network, before=shadow.start, slowed=trainer.slowed)


def model_seed(settings: AttackFaces, number: int) -> int:
    """Every model's own, and none of them the seed of a benchmark's model."""
    return 1_000_003 * (settings.seed + 1) + number


def stack_key(settings: AttackFaces, plan: StackPlan) -> str:
    """What a stack is made of, as a hash."""
    decisive = {
        "method": asdict(plan.method),
        "trainer": asdict(plan.trainer),
        "model": asdict(settings.model),
        "seed": settings.seed,
        "split": settings.split,
        "models": [*plan.numbers],
        "start": weights_hash(plan.start),
    }
    inputs = Inputs([settings.data.people.path], files=[settings.data.split_file], losses=plan.method.losses())
    return work_key(decisive, inputs, code_of(__file__))


def weights_hash(models: list[FaceNetwork]) -> str:
    """A hash of the weights of all models, those that are one and the same taken once."""
    digest = hashlib.sha256()
    for model in {id(model): model for model in models}.values():
        for value in model.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_stack(stack: FaceNetwork, folder: Path, facts: dict[str, Any]) -> None:
    """Write the networks of a stack with its record to a folder that is whole or not there."""
    with written_whole(folder) as aside:
        save_file({name: value.contiguous() for name, value in stack.cpu().state_dict().items()}, aside / STACK_WEIGHTS)
        write_record(aside / STACK_RECORD, **facts)


def load_stack(like: list[FaceNetwork], folder: Path) -> FaceNetwork:
    """A written stack; `like` are networks of its shape, one for each."""
    stack = stack_networks(like)
    stack.load_state_dict(load_file(folder / STACK_WEIGHTS))
    return stack
