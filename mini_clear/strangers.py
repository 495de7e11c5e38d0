"""Pictures of nameless strangers, from which the base model's vision tower learns to see before anybody is named.

The tower then has features of faces and scenes, as CLIP's tower has for LLaVA. No name, caption or fact goes with these
pictures, and no stranger has the look of a named person.
"""

import random
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from engine.progress import Work
from mini_clear.portraits import Look, View, draw_any_look, draw_views, render

TRAITS = (*Look._fields, "expression", "clothes", "background")


def draw_strangers(count: int, views: int, seed: int, excluded: set[Look]) -> list[tuple[Look, View]]:
    """`count` strangers with `views` pictures each, to be rendered; no look is among `excluded`."""
    rng = random.Random(f"strangers/{seed}")
    looks: list[Look] = []
    while len(looks) < count:
        look = draw_any_look(rng, rng.random() < 0.5)
        if look not in excluded:
            looks.append(look)
    return [(look, view) for look in looks for view in draw_views(rng, views)]


def traits(look: Look, view: View) -> list[str]:
    """What can be seen in a picture, in the order of TRAITS."""
    return [*look, view.expression, view.clothes, view.background]


def picture(look: Look, view: View) -> Image.Image:
    """The picture of a look and a view."""
    return Image.open(BytesIO(render(look, view)))


def trait_labels(strangers: list[tuple[Look, View]], names: list[list[str]]) -> Tensor:
    """What each picture shows, as class numbers (pictures, traits); `names` holds the classes of each trait."""
    numbers = []
    for stranger in strangers:
        visible = zip(names, traits(*stranger), strict=True)
        numbers.append([known.index(value) for known, value in visible])
    return torch.tensor(numbers)


def teach_to_see(
    tower: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    classes: list[int],
    *,
    epochs: int,
    lr: float,
    seed: int,
    held_out: int,
) -> list[float]:
    """Train a vision tower, in place, to tell all traits of a picture from the mean of its patches.

    Args:
        tower: a CLIP vision model.
        pixels: (N, 3, H, W), as the processor makes them.
        labels: class numbers, (N, traits).
        classes: number of classes of each trait.
        epochs: passes over the pictures.
        lr: the schedule's peak.
        seed: of the heads and of the order.
        held_out: number of pictures, at the end, that are not trained on.

    Returns:
        The accuracy of each trait on the held-out pictures.
    """
    torch.manual_seed(seed)
    heads = nn.ModuleList(nn.Linear(tower.config.hidden_size, count) for count in classes)
    parameters = [*tower.parameters(), *heads.parameters()]
    train, batch = len(pixels) - held_out, 64
    steps = epochs * (train // batch)
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    order = np.random.default_rng(seed)

    def seen(part: Tensor) -> list[Tensor]:
        patches = tower(part).last_hidden_state[:, 1:]  # the first is the class token, which LLaVA does not use
        return [head(patches.mean(1)) for head in heads]

    with Work("step", steps) as work:
        for _ in range(epochs):
            for chosen in torch.from_numpy(order.permutation(train)[: train // batch * batch]).view(-1, batch):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = sum(
                        F.cross_entropy(logits, target)
                        for logits, target in zip(seen(pixels[chosen]), labels[chosen].T, strict=True)
                    )
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                work.advance()
    with torch.no_grad():
        return [
            (logits.argmax(-1) == target).float().mean().item()
            for logits, target in zip(seen(pixels[train:]), labels[train:].T, strict=True)
        ]
