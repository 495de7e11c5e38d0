"""All the models of an attack: finetuned group by group, made to forget, compared; a finished group is found again by what it was made of."""

import hashlib
import inspect
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cv import network, pictures, together
from cv.attack_scoring import ModelScores
from cv.compare import compare
from cv.face_settings import AttackFaces
from cv.network import FaceNetwork, check_parts, end_at, side_by_side, with_new_classes
from cv.pictures import Classes, Division, FaceEncoder, FacePairs, Met, met_by, training_rows
from cv.together import GROUP_RECORD, Shadow, check_together, load_group, save_group, train_together
from data_module import fingerprint
from engine import pairs
from engine.methods import BoundLoss, bind, method_source
from engine.record import say_line, versions
from settings.script import SettingsError, processes
from settings.training import Method, Trainer

LEARN = Method(name="finetune", loss="retain_ft")
# read at the start: later it could be the text of files that were edited while the old code ran
DECIDING = (sys.modules[__name__], together, network, pictures, pairs)
CODE = hashlib.sha256("".join(map(inspect.getsource, DECIDING)).encode()).hexdigest()[:16]


def check_method(method: Method | None) -> None:
    """Raise SettingsError for a method under test that does not bind, or that many models cannot train with together, and in a launch of many processes."""
    if processes().num_processes > 1:  # they would train the same groups into the same folders
        raise SettingsError(
            f"an attack runs in one process, and this launch has {processes().num_processes}: --num_processes 1"
        )
    if method is not None:
        check_together(method)
        check_parts(method.activations)
        bind(method)


def compare_models(settings: AttackFaces, division: Division, pretrained: FaceNetwork) -> ModelScores:
    """Train what is not finished and compare every model's queries with its centres."""
    own, nearest_other = [], []
    compared = None
    for first in range(0, settings.models, settings.together):
        numbers = range(first, min(first + settings.together, settings.models))
        stack = finished(settings, division, pretrained, numbers)
        compared = compare(
            stack.to(processes().device), division, settings.data.people, settings.model.size, batch_size=64
        )
        own.append(compared.own)
        nearest_other.append(compared.nearest_other)
        say_line(f"models {numbers[-1] + 1}/{settings.models}")
    people = [compared.people[owner] for owner in compared.owner]
    return ModelScores(people, compared.files, np.concatenate(own), np.concatenate(nearest_other))


def finished(settings: AttackFaces, division: Division, pretrained: FaceNetwork, numbers: range) -> FaceNetwork:
    """One group as it is to be attacked: finetuned, or gold, or finetuned and made to forget with `settings.method`."""
    restart = settings.method is not None and settings.method.restart
    if not restart:
        folder = Path(settings.shadows_dir) / f"models_{numbers[0]:03d}"
        stack = group(
            settings, folder, LEARN, settings.finetune, division, numbers, [pretrained] * len(numbers), new_classes=True
        )
    if settings.method is None:
        return stack
    start = [pretrained] * len(numbers) if restart else network.apart(stack)
    trainer = settings.finetune if restart else settings.trainer
    folder = Path(settings.shadows_dir) / row_folder(settings.method, trainer) / f"models_{numbers[0]:03d}"
    return group(settings, folder, settings.method, trainer, division, numbers, start, new_classes=restart)


def row_folder(method: Method, trainer: Trainer) -> str:
    """A folder for each setting of a method, so that two rows of one method keep their models."""
    told = json.dumps([asdict(method), asdict(trainer)], sort_keys=True)
    return f"{method.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def group(
    settings: AttackFaces,
    folder: Path,
    method: Method,
    trainer: Trainer,
    division: Division,
    numbers: range,
    start: list[FaceNetwork],
    new_classes: bool,
) -> FaceNetwork:
    """Networks `numbers` trained from `start`, or found in `folder` if they were made of the same."""
    made_of = key(settings, method, trainer, numbers, start)
    people = [people_of(met_by(division, number), method) for number in numbers]
    seeds = [model_seed(settings, number) for number in numbers]
    if new_classes:
        start = [
            with_new_classes(model, len(names), seed) for model, names, seed in zip(start, people, seeds, strict=True)
        ]
    record = folder / GROUP_RECORD
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) == made_of:
        return load_group(start, folder)
    stack, bound = side_by_side(start), bind(method)
    shadows = [
        shadow(settings, bound, division, number, names, seed)
        for number, names, seed in zip(numbers, people, seeds, strict=True)
    ]
    if method.activations:
        end_at(stack, method.activations)
    train_together(stack, bound, shadows, trainer, settings.model)
    stack.ends_at = None
    save_group(stack, folder, made_of)
    return stack


def people_of(met: Met, method: Method) -> list[str]:
    """The classes of a network: everyone it met, or for one that begins anew those it keeps."""
    return met.retain if method.restart else met.trained


def shadow(
    settings: AttackFaces, bound: BoundLoss, division: Division, number: int, classes: list[str], seed: int
) -> Shadow:
    """What is model `number`'s own."""
    met = met_by(division, number)
    forget, retain = training_rows(division, met.forget, "forget"), training_rows(division, met.retain, "retain")
    if bound.method is LEARN:
        forget, retain = None, training_rows(division, met.trained, "full")
    encoder = FaceEncoder(Classes(classes, settings.model.size), settings.data.people)
    encoder.read([*(forget.files if forget else []), *retain.files])
    return Shadow(
        FacePairs(bound.batches, forget, retain, settings.model.size, seed, bound.method.other_answers), encoder, seed
    )


def model_seed(settings: AttackFaces, number: int) -> int:
    """Every model's own, and none of them the seed of a benchmark's model."""
    return 1_000_003 * (settings.seed + 1) + number


def key(settings: AttackFaces, method: Method, trainer: Trainer, numbers: range, start: list[FaceNetwork]) -> dict:
    """What a group is made of: settings, method, its code, the pictures and their division, the networks it starts from."""
    digest = hashlib.sha256()
    for model in {id(model): model for model in start}.values():
        for value in model.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    made_of = {
        "method": asdict(method),
        "trainer": asdict(trainer),
        "model": asdict(settings.model),
        "seed": settings.seed,
    }
    data = {
        "people": fingerprint(settings.data.people.path),
        "division": Path(settings.data.split_file).read_text(encoding="utf-8"),
    }
    whole = json.dumps(
        [made_of, data, method_source(method), versions(), CODE, [*numbers], digest.hexdigest()], sort_keys=True
    )
    return {"models": [*numbers], "method": method.name, "key": hashlib.sha256(whole.encode()).hexdigest()[:16]}
