"""All the models of an attack: finetuned stack by stack, made to forget, compared."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cv.attack_scoring import Similarities, learned_by
from cv.compare import Compared, compare
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
    """Train what is not finished and compare every model's queries with its centres.

    Raises SettingsError for a model whose embeddings are no numbers.
    """
    parts = []
    with Work("model", settings.models) as work:
        for first in range(0, settings.models, settings.together):
            numbers = range(first, min(first + settings.together, settings.models))
            stack = train_for_attack(settings, division, pretrained, numbers).to(processes().device)
            compared = compare(stack, division, settings.data.people, size=settings.model.size, batch_size=64)
            parts.append(similarities_of(compared, division, numbers, settings.model.logit_scale))
            work.at(numbers[-1] + 1)
            say_line(f"models {numbers[-1] + 1}/{settings.models}")
    return joined(parts)


def similarities_of(compared: Compared, division: Division, numbers: range, logit_scale: float) -> Similarities:
    """What the models `numbers` make of every query.

    Raises SettingsError for a model whose embeddings are no numbers: every comparison with them would be false.
    """
    if len(broken := np.flatnonzero(~np.isfinite(compared.cosines).all((1, 2)))):
        number = numbers[broken[0]]
        raise SettingsError(f"attacked model {number} gives NaN or infinity: it diverged; a lower trainer.lr may help")
    strangers = ~learned_by(division, numbers.stop, compared.people)[numbers.start :]
    people = [compared.people[owner] for owner in compared.owner]
    arrays = compared.similarity, compared.nearest_other, compared.nearest_among(strangers)
    return Similarities(people, compared.files, *arrays, compared.margins(logit_scale))


def joined(parts: list[Similarities]) -> Similarities:
    """What the models of several stacks make of the same queries."""
    arrays = {}
    for name in ("similarity", "nearest_other", "nearest_stranger", "margin"):
        arrays[name] = np.concatenate([getattr(part, name) for part in parts])
    return Similarities(parts[0].people, parts[0].files, **arrays)


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
