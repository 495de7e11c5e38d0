"""Shadow language models, one after another: each learns, forgets and is trained anew by the recipes, and is scored.

A model that is finished is found again: the recipe says by its key whether it was made of the same.
"""

import gc
import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_module import Example
from engine.draws import draw
from engine.forget_rows import open_pairs
from engine.language_model import forward
from engine.methods import BoundLoss
from engine.progress import Work
from engine.record import TRAIN_RECORD, decisive_settings, read_json, say_line, work_key, write_json
from engine.shadow_people import People, write_rows
from engine.source import code_of
from settings.inputs import Inputs
from settings.language import Finetune, Forget
from settings.membership import LEARNED, RETAIN, Membership
from settings.script import SEEDS, FolderExists, SettingsError, processes
from unlearn_losses import IGNORE, sequence_logprob

BASE, GOLD = "base", "gold"  # models that forgot nobody, and models that never met those whom the others forget
PLAIN, REWORDED = "as learned", "in other words"


@dataclass(frozen=True)
class Recipes:
    """What a track gives: its recipes, and how it opens a model."""

    finetune: Callable[[Any], None]
    forget: Callable[[Any], None]
    open_encoder: Callable[..., Any]
    open_model: Callable[..., nn.Module]


@dataclass(frozen=True)
class Scored:
    """What the shadow models came to."""

    losses: dict[str, dict[str, np.ndarray]]  # row of the table -> wording -> (models, people), in nats
    seconds: dict[str, float]  # that the trainings of a row took, whenever that was


def check_alone() -> None:
    """Raise SettingsError in a launch of several processes: each would train the same models into the same folders."""
    count = processes().num_processes
    if count > 1:
        raise SettingsError(f"shadow models train in one process, and this launch has {count}: --num_processes 1")


def folders_of(settings: Membership) -> tuple[Path, dict[str, Path]]:
    """Where the models' own rows are kept, and the models of each row of the table, by what decides them."""
    chosen = {name: getattr(settings, name) for name in ("split", "people", "parts", "seed")}
    learning = chosen | {"model": asdict(settings.model), "finetune": asdict(settings.finetune)}
    forgetting = learning | {"method": asdict(settings.method), "trainer": asdict(settings.trainer)}
    root = Path(settings.shadows_dir)
    learned = digest(learning)
    return root / f"rows-{learned}", {
        BASE: root / f"learned-{learned}",
        GOLD: root / f"retrained-{learned}",
        settings.method.name: root / f"{settings.method.name}-{digest(forgetting)}",
    }


def digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decisive_settings(settings), sort_keys=True).encode()).hexdigest()[:8]


def trainings_of(settings: Membership, number: int) -> dict[str, Finetune]:
    """What the recipes are told of one shadow model, by row: it learns, forgets, and is trained anew."""
    of_rows, folders = folders_of(settings)
    name, method = f"{number:03d}", settings.method.name
    rows, seed = str(of_rows / name), draw(settings.seed, "shadow", number).randrange(SEEDS)
    learned = str(folders[BASE] / name)
    return {
        BASE: settings.learning(rows, LEARNED, learned, seed),
        GOLD: settings.learning(rows, RETAIN, str(folders[GOLD] / name), seed),
        method: settings.forgetting(rows, learned, str(folders[method] / name), seed),
    }


def write_all_rows(people: People, roles: np.ndarray, settings: Membership, loss: BoundLoss) -> None:
    """Write every model's own rows, and check that the method finds all it asks for in them, before anything trains.

    Raises SettingsError where it does not.
    """
    for number in range(settings.models):
        write_rows(people, roles[number], settings, folders_of(settings)[0] / f"{number:03d}")
        told = trainings_of(settings, number)[settings.method.name]
        assert isinstance(told, Forget)
        open_pairs(told, loss)


def losses_of_models(people: People, settings: Membership, recipes: Recipes) -> Scored:
    """Train what is not finished, and score every person by every model."""
    found: dict[str, list[dict[str, list[float]]]] = {}
    seconds: dict[str, float] = {}
    with Work("shadow model", settings.models) as work:
        for number in range(settings.models):
            for row, told in trainings_of(settings, number).items():
                make(recipes.finetune if row in (BASE, GOLD) else recipes.forget, told)
                found.setdefault(row, []).append(losses_of(people, settings, told, recipes))
                seconds[row] = seconds.get(row, 0.0) + read_json(Path(told.save_dir) / TRAIN_RECORD)["seconds"]
            work.at(number + 1)
            say_line(f"shadow models {number + 1}/{settings.models}")
    losses: dict[str, dict[str, np.ndarray]] = {}
    for row, models in found.items():
        losses[row] = {}
        for wording in models[0]:
            losses[row][wording] = np.array([each[wording] for each in models])
    return Scored(losses, seconds)


def make(recipe: Callable[[Any], None], told: Finetune) -> None:
    """Train one model, unless its folder holds one that was made of the same; another one is replaced."""
    try:
        recipe(replace(told, overwrite=False))
    except FolderExists as error:
        if error.is_same():
            return
        say_line(f"{told.save_dir}: made of other settings, data or code, and is trained anew")
        recipe(told)
    gc.collect()  # a model lies in cycles: the next training needs its memory


# ---- scores


def losses_of(people: People, settings: Membership, told: Finetune, recipes: Recipes) -> dict[str, list[float]]:
    """Wording -> each person's mean loss by the model in `told.save_dir`, computed or found beside that folder."""
    folder = Path(told.save_dir)
    file = folder.with_name(f"losses_{folder.name}.json")
    decisive = {"model": asdict(settings.model), "batch_size": settings.batch_size}
    decisive |= {"people": settings.people, "reworded": settings.reworded}
    code = code_of(__file__, inspect.getfile(recipes.open_model))
    key = work_key(decisive, Inputs([settings.data.path], [told.save_dir]), code)
    kept = read_json(file) if file.is_file() else {}
    if kept.get("key") != key:
        encoder = recipes.open_encoder(told.save_dir, settings.model)
        model = recipes.open_model(told.save_dir, settings.model).to(processes().device).eval()
        losses = {PLAIN: person_losses(model, encoder, people.plain, settings.batch_size)}
        if people.reworded:
            losses[REWORDED] = person_losses(model, encoder, people.reworded, settings.batch_size)
        if not np.isfinite([*losses.values()]).all():
            raise SettingsError(
                f"{told.save_dir}: the loss of somebody's rows is no finite number; nothing can be compared"
            )
        kept = {"key": key, "losses": losses}
        write_json(file, kept)
    return kept["losses"]


def person_losses(model: nn.Module, encoder: Any, groups: list[list[Example]], batch_size: int) -> list[float]:
    """Each person's mean over their rows of the mean loss of a row's answer, its end included, in nats a token."""
    rows = [row for group in groups for row in group]
    owner = [number for number, group in enumerate(groups) for _ in group]
    losses = np.array(row_losses(model, encoder, rows, batch_size))
    return (np.bincount(owner, losses) / np.bincount(owner)).tolist()


@torch.no_grad()
def row_losses(model: nn.Module, encoder: Any, rows: list[Example], batch_size: int) -> list[float]:
    """Mean loss of each row's answer; rows of like length go through the model together."""
    device = next(model.parameters()).device
    losses = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].question) + len(rows[place].answer))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        scored = forward(model, encoder.collate([encoder.encode(rows[place]) for place in places]).to(device))
        means = -sequence_logprob(scored) / (scored.labels != IGNORE).sum(-1)
        for place, loss in zip(places, means.tolist(), strict=True):
            losses[place] = loss
    return losses
