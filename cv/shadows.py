"""All the models of an attack: finetuned stack by stack, made to forget, compared."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cv.attack_scoring import Similarities
from cv.compare import compare
from cv.division import Division
from cv.face_settings import AttackFaces
from cv.network import FaceNetwork, check_parts, split_stack
from cv.together import StackPlan, check_stackable, train_or_load_stack
from engine.methods import bind
from engine.progress import Work
from engine.record import say_line
from settings.script import SettingsError, processes
from settings.training import FINETUNING, Method, Trainer


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
        bind(method, faces=True)


def compare_models(settings: AttackFaces, division: Division, pretrained: FaceNetwork) -> Similarities:
    """Train what is not finished and compare every model's queries with its centres."""
    stacks = []
    with Work("model", settings.models) as work:
        for first in range(0, settings.models, settings.together):
            numbers = range(first, min(first + settings.together, settings.models))
            stack = train_for_attack(settings, division, pretrained, numbers).to(processes().device)
            stacks.append(compare(stack, division, settings.data.people, size=settings.model.size, batch_size=64))
            work.at(numbers[-1] + 1)
            say_line(f"models {numbers[-1] + 1}/{settings.models}")
    queries = stacks[0]  # every stack is asked about the same
    people = [queries.people[owner] for owner in queries.owner]
    similarity = np.concatenate([compared.similarity for compared in stacks])
    nearest_other = np.concatenate([compared.nearest_other for compared in stacks])
    return Similarities(people, queries.files, similarity, nearest_other)


def train_for_attack(settings: AttackFaces, division: Division, pretrained: FaceNetwork, numbers: range) -> FaceNetwork:
    """The networks `numbers` as they are to be attacked, in one stack: finetuned and, with a method, made to forget."""
    root, name = Path(settings.shadows_dir), f"models_{numbers[0]:03d}"
    start = [pretrained] * len(numbers)
    plan = StackPlan(root / settings.split / name, FINETUNING, settings.finetune, numbers, start)
    stack = train_or_load_stack(settings, division, plan)
    if settings.method is None:
        return stack
    folder = root / row_folder(settings.method, settings.trainer) / name
    plan = StackPlan(folder, settings.method, settings.trainer, numbers, split_stack(stack))
    return train_or_load_stack(settings, division, plan)


def row_folder(method: Method, trainer: Trainer) -> str:
    """A folder for each setting of a method, so that two rows of one method keep their models."""
    settings = json.dumps([asdict(method), asdict(trainer)], sort_keys=True)
    return f"{method.name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
