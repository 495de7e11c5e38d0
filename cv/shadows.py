"""All the models of an attack: finetuned stack by stack, made to forget, compared.

A stack that is finished is found again by what it was made of.
"""

import hashlib
import inspect
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import data_module
from cv import network, pictures, together
from cv.attack_scoring import Similarities
from cv.compare import compare
from cv.face_settings import AttackFaces
from cv.network import FaceNetwork, check_parts, end_at, forward_of, split_stack, stack_networks, with_new_classes
from cv.pictures import Division, FaceEncoder, FacePairs, Met, met_by, training_rows
from cv.together import STACK_RECORD, Shadow, check_stackable, load_stack, save_stack, train_stack
from data_module import fingerprint
from engine import frozen_start, methods, pairs
from engine.methods import BoundLoss, bind, method_source, source_with_helpers
from engine.record import read_json, say_line, versions
from settings.script import SettingsError, processes
from settings.training import Method, Trainer
from unlearn_losses import sequence_logprob

FINETUNING = Method(name="finetune", loss="retain_ft")
# Read at the start: later it could be the text of files that were edited while the old code ran.
MODULES_OF_A_STACK = (
    sys.modules[__name__],
    together,
    network,
    pictures,
    pairs,
    methods,
    frozen_start,
    data_module,
)
SOURCES_OF_A_STACK = [*map(inspect.getsource, MODULES_OF_A_STACK), source_with_helpers(sequence_logprob)]
CODE_OF_A_STACK = hashlib.sha256("".join(SOURCES_OF_A_STACK).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StackPlan:
    """How the networks of one stack come about."""

    folder: Path  # where they are kept
    method: Method
    trainer: Trainer
    numbers: range  # of the models in the attack
    start: list[FaceNetwork]  # of each network the one it begins with
    new_classes: bool  # it begins with random class weights in place of those of its start


def check_method(method: Method | None) -> None:
    """Raise SettingsError for a method that does not bind, or that many models cannot train together with.

    Raises it too in a launch of several processes: they would train the same stacks into the same folders.
    """
    count = processes().num_processes
    if count > 1:
        raise SettingsError(f"an attack runs in one process, and this launch has {count}: --num_processes 1")
    if method is not None:
        check_stackable(method)
        check_parts(method.activations)
        bind(method)


def compare_models(settings: AttackFaces, division: Division, pretrained: FaceNetwork) -> Similarities:
    """Train what is not finished and compare every model's queries with its centres."""
    stacks = []
    for first in range(0, settings.models, settings.together):
        numbers = range(first, min(first + settings.together, settings.models))
        stack = train_for_attack(settings, division, pretrained, numbers).to(processes().device)
        stacks.append(compare(stack, division, settings.data.people, size=settings.model.size, batch_size=64))
        say_line(f"models {numbers[-1] + 1}/{settings.models}")
    queries = stacks[0]  # every stack is asked about the same
    people = [queries.people[owner] for owner in queries.owner]
    similarity = np.concatenate([compared.similarity for compared in stacks])
    nearest_other = np.concatenate([compared.nearest_other for compared in stacks])
    return Similarities(people, queries.files, similarity, nearest_other)


def train_for_attack(settings: AttackFaces, division: Division, pretrained: FaceNetwork, numbers: range) -> FaceNetwork:
    """The networks `numbers` as they are to be attacked, in one stack.

    They are finetuned; with a method they are then made to forget, or, where it begins anew, trained as gold models.
    """
    method = settings.method
    root, name = Path(settings.shadows_dir), f"models_{numbers[0]:03d}"
    start = [pretrained] * len(numbers)
    if method is not None and method.restart:
        folder = root / row_folder(method, settings.finetune) / name
        plan = StackPlan(folder, method, settings.finetune, numbers, start, new_classes=True)
        return train_or_load_stack(settings, division, plan)
    plan = StackPlan(root / name, FINETUNING, settings.finetune, numbers, start, new_classes=True)
    stack = train_or_load_stack(settings, division, plan)
    if method is None:
        return stack
    folder = root / row_folder(method, settings.trainer) / name
    plan = StackPlan(folder, method, settings.trainer, numbers, split_stack(stack), new_classes=False)
    return train_or_load_stack(settings, division, plan)


def row_folder(method: Method, trainer: Trainer) -> str:
    """A folder for each setting of a method, so that two rows of one method keep their models."""
    settings = json.dumps([asdict(method), asdict(trainer)], sort_keys=True)
    return f"{method.name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def train_or_load_stack(settings: AttackFaces, division: Division, plan: StackPlan) -> FaceNetwork:
    """The planned networks: trained, or found in the plan's folder if they were made of the same."""
    made_of = stack_key(settings, plan)
    classes = {number: classes_of(met_by(division, number), plan.method) for number in plan.numbers}
    seeds = {number: model_seed(settings, number) for number in plan.numbers}
    start = plan.start
    if plan.new_classes:
        start = []
        for number, model in zip(plan.numbers, plan.start, strict=True):
            start.append(with_new_classes(model, len(classes[number]), seeds[number]))
    record = plan.folder / STACK_RECORD
    if record.is_file() and read_json(record) == made_of:
        return load_stack(start, plan.folder)
    bound = bind(plan.method)
    shadows = []
    for number in plan.numbers:
        shadows.append(shadow_of(settings, bound, division, number, classes=classes[number], seed=seeds[number]))
    stack = stack_networks(start)
    if plan.method.activations:
        end_at(stack, plan.method.activations)
    train_stack(stack, bound, shadows, plan.trainer, forward=forward_of(settings.model))
    stack.ends_at = None
    save_stack(stack, plan.folder, made_of)
    return stack


def classes_of(met: Met, method: Method) -> list[str]:
    """The people that a network has classes for: everyone it met, or, if it begins anew, those it keeps."""
    return met.retain if method.restart else met.trained


def shadow_of(
    settings: AttackFaces, bound: BoundLoss, division: Division, number: int, *, classes: list[str], seed: int
) -> Shadow:
    """What model `number` does not share with the others of its stack."""
    met = met_by(division, number)
    if bound.method is FINETUNING:
        forget = None
        retain = training_rows(division, met.trained, "full")
    else:
        forget = training_rows(division, met.forget, "forget")
        retain = training_rows(division, met.retain, "retain")
    encoder = FaceEncoder(classes, settings.data.people, settings.model.size)
    encoder.read([*(forget.files if forget else []), *retain.files])
    draws = {"size": settings.model.size, "seed": seed, "other_answers": bound.method.other_answers}
    return Shadow(FacePairs(bound.batches, forget, retain, **draws), encoder, seed)


def model_seed(settings: AttackFaces, number: int) -> int:
    """Every model's own, and none of them the seed of a benchmark's model."""
    return 1_000_003 * (settings.seed + 1) + number


def stack_key(settings: AttackFaces, plan: StackPlan) -> dict[str, Any]:
    """What a stack is made of.

    It is a hash of settings, method, its code, the pictures and their division, the networks it starts from; beside it
    stand the models' numbers and the method's name.
    """
    made_of = {
        "method": asdict(plan.method),
        "trainer": asdict(plan.trainer),
        "model": asdict(settings.model),
        "seed": settings.seed,
        "people": fingerprint(settings.data.people.path),
        "division": Path(settings.data.split_file).read_text(encoding="utf-8"),
        "code": [CODE_OF_A_STACK, method_source(plan.method)],
        "versions": versions(),
        "models": [*plan.numbers],
        "start": weights_hash(plan.start),
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return {"models": [*plan.numbers], "method": plan.method.name, "key": digest[:16]}


def weights_hash(models: list[FaceNetwork]) -> str:
    """A hash of the weights of all models, those that are one and the same taken once."""
    digest = hashlib.sha256()
    for model in {id(model): model for model in models}.values():
        for value in model.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
