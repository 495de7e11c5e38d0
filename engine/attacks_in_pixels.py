"""Attacks by one pattern on all pictures: learned, so that a model says more of people whom it was not learned by."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_module import Example, TaskRow
from engine.attack_target import NotApplicable, Rows, Target, Variant, Variants
from engine.attacks_on_weights import people_apart
from engine.draws import draw
from engine.encode import Encoded
from engine.language_model import forward
from engine.relearn import orders
from unlearn_losses import nll

PIXELS = "pixel_values"  # what processors call pictures


class Pixels(NamedTuple):
    """Pictures as a processor gives them: their shape, and what black, white and a step from one to the other are."""

    shape: torch.Size  # channels, height, width
    black: Tensor  # (channels, 1, 1), as white and range
    white: Tensor

    @property
    def range(self) -> Tensor:
        """How far white is from black."""
        return self.white - self.black

    def shifted(self, pictures: Tensor, pattern: Tensor) -> Tensor:
        """Pictures (..., channels, height, width) with a pattern added, none darker than black or lighter than white.

        `pattern`: (channels, height, width), from -1 to 1 as shares of the range.
        """
        low, high, scale = (each.to(pictures) for each in (self.black, self.white, self.range))
        return torch.minimum(torch.maximum(pictures + pattern.to(pictures) * scale, low), high)


class Patterned:
    """An encoder that adds one pattern to every picture. What it does not do itself, the encoder that it holds does."""

    def __init__(self, encoder: Any, pixels: Pixels, pattern: Tensor):
        """`pixels`: as `pixels_of` gives them; `pattern`: as `Pixels.shifted` takes it."""
        self.encoder, self.pixels, self.pattern = encoder, pixels, pattern

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, example: Example) -> Encoded:
        whole = self.encoder.encode(example)
        shown = self.pixels.shifted(whole.prompt[PIXELS], self.pattern)
        return Encoded({**whole.prompt, PIXELS: shown}, whole.answer, whole.layout)


def adversarial_noise(target: Target, *, size: int, step: int, steps: int, batch_size: int) -> Variants:
    """Add one pattern to every picture under which a model says more of the forgotten people.

    It is learned by pictures of half of the people, who then are not judged by it, and then of the other half. It
    ascends by the sign of the gradient of the right answers' likelihood. It is learned anew for every model: gold has
    its own.

    Args:
        target: What is attacked.
        size: How far a value of a picture may be moved, of 255.
        step: How far one step moves it, of 255.
        steps: How many there are.
        batch_size: Rows of a step.
    """
    pixels = pixels_of(target.encoder, pictured(target.rows))
    limits: dict[str, Any] = {"size": size / 255, "step": step / 255, "steps": steps, "batch_size": batch_size}
    for learned, judged in people_apart(target):
        of_forgotten = pictured({task: learned[task] for task in target.controls})
        rows = [row for own in of_forgotten.values() for row in own]
        asked = pictured(judged)
        if not rows or not any(task in asked for task in target.controls):
            raise NotApplicable("too few people with pictures to part them")
        pattern = learned_pattern(target, rows, pixels, **limits)
        yield Variant("", asked, Patterned(target.encoder, pixels, pattern))


def sign_noise(target: Target, *, size: int) -> Variants:
    """Add one drawn pattern of values that are all moved by `size` of 255, up or down: what learned noise is beside.

    Args:
        target: What is attacked.
        size: As of `adversarial_noise`.
    """
    shown = pictured(target.rows)
    pixels = pixels_of(target.encoder, shown)
    source = torch.Generator().manual_seed(draw(target.seed, "signs").getrandbits(63))
    signs = 2.0 * torch.randint(2, tuple(pixels.shape), generator=source) - 1
    yield Variant("", shown, Patterned(target.encoder, pixels, size / 255 * signs))


def pictured(rows: Rows) -> Rows:
    """Of each task the rows with a picture; tasks without one are left out."""
    shown: Rows = {}
    for task, own in rows.items():
        found = [row for row in own if row.example.image is not None]
        shown |= {task: found} if found else {}
    return shown


def pixels_of(encoder: Any, rows: Rows) -> Pixels:
    """How a processor gives the pictures of some rows.

    Raises NotApplicable where there is none, or where no one pattern fits them all.
    """
    asked = [row.example for own in rows.values() for row in own]
    if not asked:
        raise NotApplicable("no row shows a picture")
    made = getattr(encoder.processor, "image_processor", None)
    mean, spread = (list(getattr(made, name, None) or []) for name in ("image_mean", "image_std"))
    is_told = mean and spread and getattr(made, "do_normalize", False) and getattr(made, "do_rescale", False)
    if made is None or not is_told or abs(255 * made.rescale_factor - 1) > 1e-6:
        raise NotApplicable("the processor does not say what black and white become")
    given = [encoder.encode(example).prompt.get(PIXELS) for example in asked]
    shapes = {() if pictures is None else tuple(pictures.shape[-3:]) for pictures in given}
    shape = shapes.pop()
    if shapes or len(shape) < 3 or shape[0] != len(mean):
        raise NotApplicable("the processor gives pictures in patches or in several sizes, and one pattern fits none")
    black = [-value / deviation for value, deviation in zip(mean, spread, strict=True)]
    white = [(1 - value) / deviation for value, deviation in zip(mean, spread, strict=True)]
    return Pixels(torch.Size(shape), *(torch.tensor(each)[:, None, None] for each in (black, white)))


def learned_pattern(
    target: Target, rows: Sequence[TaskRow], pixels: Pixels, *, size: float, step: float, steps: int, batch_size: int
) -> Tensor:
    """The pattern that `adversarial_noise` learns by some rows, as shares of the range; it begins at 0."""
    device = next(target.model.parameters()).device
    pattern = torch.zeros(pixels.shape, device=device)
    for numbers in itertools.islice(orders(len(rows), batch_size, target.seed), steps):
        batch = target.encoder.collate([target.encoder.encode(rows[number].example) for number in numbers]).to(device)
        moved = pattern.requires_grad_()
        with torch.enable_grad():
            shown = pixels.shifted(batch.inputs[PIXELS], moved)
            loss = nll(forward(target.model, replace(batch, inputs={**batch.inputs, PIXELS: shown})))
            (slope,) = torch.autograd.grad(loss, [moved], allow_unused=True)
        if slope is None:
            raise NotApplicable("no gradient of the model reaches its pictures")
        pattern = (pattern.detach() - step * slope.sign()).clamp(-size, size)
    return pattern.detach().cpu()
