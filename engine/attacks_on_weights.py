"""Attacks on the weights: noise, a step towards base, rounding, and relearning; each gives the weights back."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_module import Example
from engine.attack_target import NotApplicable, Rows, Target, Variant, Variants, person_of
from engine.draws import draw
from engine.kept_hook import without_hook
from engine.quantise import FORMATS, quantised_weights
from engine.relearn import taught
from settings.script import SettingsError

SPLITS = ("same", "half", "people", "words", "pictures", "kept")  # of what is taught again


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give every weight back as it was, to the bit."""
    kept = {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(kept[name])


def noise(target: Target, *, scales: list[float]) -> Variants:
    """Add normal noise to every weight: what comes back under it was masked, and not gone.

    Args:
        target: What is attacked.
        scales: Standard deviations of the noise, as shares of the root mean square of each tensor.
    """
    for scale in scales:
        with restored(target.model):
            add_noise(target.model, scale, target.seed)
            yield Variant(str(scale), target.rows, target.encoder)


def hook_off(target: Target) -> Variants:
    """Take off what steers states beside the weights, and ask through the template and tokenizer of base.

    A model that has base's and no hook stays as it is, and so do its answers.
    """
    encoder = target.base_encoder()
    embeddings: Any = target.model.get_input_embeddings  # mypy takes it for a tensor
    if len(encoder.tokenizer) > embeddings().num_embeddings:
        raise NotApplicable("base's tokenizer has more tokens than the model")
    with without_hook(target.model):
        yield Variant("", target.rows, encoder)


@torch.no_grad()
def add_noise(model: nn.Module, scale: float, seed: int) -> None:
    """Normal noise on every weight in place; the draw of a tensor depends on its name and the seed alone."""
    for name, parameter in model.named_parameters():
        source = torch.Generator().manual_seed(draw(seed, "noise", name).getrandbits(63))
        drawn = torch.randn(parameter.shape, generator=source).to(parameter)
        parameter.add_(drawn * (scale * parameter.float().square().mean().sqrt().item()))


def interpolate(target: Target, *, shares: list[float]) -> Variants:
    """Move every weight a share of the way to base: what is found close by was not gone."""
    base = same_weights(target)
    for share in shares:
        with restored(target.model):
            with torch.no_grad():
                for name, parameter in target.model.named_parameters():
                    parameter.lerp_(base[name].to(parameter), share)
            yield Variant(str(share), target.rows, target.encoder)


def quantise(target: Target, *, formats: list[str]) -> Variants:
    """Round the weights of linear layers as low-bit formats do: a small update may be lost.

    `equal_codes` says which share of the weights that are not base's has base's code: there forgetting is rounded away.
    """
    base = same_weights(target)
    for chosen in formats:
        with restored(target.model):
            share = round_weights(target.model, base, chosen)
            yield Variant(chosen, target.rows, target.encoder, {} if share is None else {"equal_codes": share})


@torch.no_grad()
def round_weights(model: nn.Module, base: dict[str, Tensor], chosen: str) -> float | None:
    """Round the linear weights in place to a format.

    Returns:
        Of the weights that are not base's, the share whose code is; None: all of them are base's.
    """
    equal, count = 0, 0
    for name, weight in quantised_weights(model).items():
        rounded, of_base = FORMATS[chosen](weight), base[name].to(weight)
        has_moved = weight != of_base
        equal += int((rounded.codes == FORMATS[chosen](of_base).codes)[has_moved].sum())
        count += int(has_moved.sum())
        weight.copy_(rounded.weights)
    return equal / count if count else None


def same_weights(target: Target) -> dict[str, Tensor]:
    """Base's weights. Raises SettingsError where they are not of the model's names and shapes."""
    base = target.base_weights()
    for name, parameter in target.model.named_parameters():
        if name not in base or base[name].shape != parameter.shape:
            raise SettingsError(f"base_path: base has no {name!r} of shape {tuple(parameter.shape)}, as the model has")
    return base


def relearn(target: Target, *, split: str, steps: list[int], lr: float, batch_size: int) -> Variants:
    """Teach the model some of the forgotten rows again, and judge the others after some of the steps of one run.

    Args:
        target: What is attacked.
        split: `same`: all rows of the forgotten, which are then judged themselves; gold learns them, too, so that what
            is left is how fast; `half`: half of each person's rows; `people`: half of the people, and then the other
            half, so that everybody is judged by a model that was not taught them; `words`: the rows without a picture,
            and those with one are judged; `pictures`: the other way round; `kept`: rows of half of the kept people
            alone, and everybody else is judged.
        steps: After how many steps the others are judged.
        lr: Learning rate, the same for all models.
        batch_size: Rows of a step.
    """
    settings: dict[str, Any] = {"lr": lr, "batch_size": batch_size, "seed": target.seed, "frozen": target.frozen}
    for learned, judged in division(target, split):
        with restored(target.model):
            for step in taught(target.model, target.encoder, learned, steps=max(steps), **settings):
                if step in steps:
                    yield Variant(str(step), judged, target.encoder)


def division(target: Target, split: str) -> Iterator[tuple[list[Example], Rows]]:
    """What is taught again with what is judged then: two pairs of both for `people`, one for any other split.

    Raises NotApplicable where there is nothing to part.
    """
    ways = {"same": every_row, "half": half_of_rows, "people": half_of_people, "kept": half_of_people}
    halves = ways[split](target) if split in ways else by_picture(target, split == "pictures")
    for part in (True, False) if split == "people" else (True,):
        learned, judged = [], {}
        for task, own in target.rows.items():
            is_control = task not in target.controls
            is_taught = is_control == (split == "kept")
            in_part = [halves[target.key_of(task, row)] == part for row in own]
            learned += [row.example for row, inside in zip(own, in_part, strict=True) if inside and is_taught]
            others = [row for row, inside in zip(own, in_part, strict=True) if not inside]
            stays_whole = split == "same" or (split in ("half", "kept") and not is_taught)
            judged[task] = own if stays_whole else others
        if not learned or not any(judged[task] for task in target.controls):
            raise NotApplicable(f"too few rows or people to part them for split={split}")
        yield learned, {task: own for task, own in judged.items() if own}


def every_row(target: Target) -> dict[tuple[str, str, int], bool]:
    """Row -> True."""
    return {target.key_of(task, row): True for task, own in target.rows.items() for row in own}


def by_picture(target: Target, pictured: bool) -> dict[tuple[str, str, int], bool]:
    """Row -> whether it has a picture; where not `pictured`, whether it has none."""
    chosen = {}
    for task, own in target.rows.items():
        for row in own:
            chosen[target.key_of(task, row)] = (row.example.image is not None) == pictured
    return chosen


def half_of_rows(target: Target) -> dict[tuple[str, str, int], bool]:
    """Row -> whether it is in the half of its person's rows that is taught: the smaller half of an odd number."""
    by_person: dict[tuple[str, str, str], set[tuple[str, str, int]]] = {}
    for task, own in target.rows.items():
        for row in own:
            key = target.key_of(task, row)
            by_person.setdefault((*key[:2], person_of(row)), set()).add(key)
    chosen = {}
    for (dataset, split, person), rows in by_person.items():
        ordered = draw(target.seed, "half", Path(dataset).name, split, person).sample(sorted(rows), len(rows))
        for place, key in enumerate(ordered):
            chosen[key] = place < len(rows) // 2
    return chosen


def half_of_people(target: Target) -> dict[tuple[str, str, int], bool]:
    """Row -> whether its person is in the first half of the people, who are halved among the forgotten and the kept."""
    chosen: dict[tuple[str, str, int], bool] = {}
    for kind in (set(target.controls), set(target.controls.values())):
        of_rows = {target.key_of(task, row): person_of(row) for task in sorted(kind) for row in target.rows[task]}
        people = sorted(set(of_rows.values()))
        first = set(draw(target.seed, "people").sample(people, len(people) // 2))
        chosen |= {key: person in first for key, person in of_rows.items()}
    return chosen


def people_apart(target: Target) -> Iterator[tuple[Rows, Rows]]:
    """The rows about half of the people, from which an attack learns, and those about the others, who are judged; then
    the other way round.

    Raises NotApplicable where a task about the forgotten has too few people.
    """
    halves = half_of_people(target)
    for learns in (True, False):
        learned: Rows = {}
        judged: Rows = {}
        for task, own in target.rows.items():
            learned[task] = [row for row in own if halves[target.key_of(task, row)] == learns]
            judged[task] = [row for row in own if halves[target.key_of(task, row)] != learns]
        if not all(learned[task] for task in target.controls):
            raise NotApplicable("too few people to part them")
        yield learned, judged


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights in main memory, by name."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}
