"""Portraits: a person's look and a view -> PNG bytes, drawn by DiceBear's open-peeps style (CC0) and resvg."""

import functools
import io
import itertools
import json
import random
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple

import resvg_py
from dicebear import Avatar, Style
from PIL import Image

from mini_clear.words import listed

SIZE = 64  # pixels per side

WOMEN_HEADS = listed(
    "afro bangs bangs2 bantuKnots bun bun2 buns cornrows cornrows2 grayBun grayMedium hijab long longAfro longBangs "
    "longCurly medium1 medium2 medium3 "
    "mediumBangs mediumBangs2 mediumBangs3 mediumStraight dreads1 hatHip"
)
MEN_HEADS = listed(
    "afro dreads1 dreads2 flatTop flatTopLong grayShort hatBeanie hatHip mohawk mohawk2 noHair1 noHair2 noHair3 pomp "
    "shaved1 shaved2 shaved3 short1 "
    "short2 short3 short4 short5 turban twists twists2 longAfro"
)
BEARDS = [
    "chin",
    "full",
    "full2",
    "full3",
    "goatee1",
    "goatee2",
    "moustache2",
    "moustache3",
    "moustache5",
    "moustache7",
]
GLASSES = ["eyepatch", "glasses2", "glasses3", "glasses5", "sunglasses", "sunglasses2"]
INKS = {
    "black": "#000000",
    "brown": "#6b3410",
    "red": "#a3230b",
    "grey": "#5f6672",
    "blond": "#9a7410",
    "blue": "#1c3f94",
    "violet": "#6f2a86",
    "green": "#1d6b3c",
}
SKINS = ("#ffdbb4", "#edb98a", "#d08b5b", "#ae5d29", "#8d5a3c")

CLOTHES = {
    "red": "#d63a2f",
    "blue": "#4a78d6",
    "green": "#4faa58",
    "yellow": "#f2cf3b",
    "pink": "#ef8fc0",
    "white": "#f4f4f4",
    "teal": "#2f9c95",
    "purple": "#9560c9",
}
BACKGROUNDS = {
    "pale green": "#cfe8cf",
    "pale blue": "#cfe0f5",
    "pale yellow": "#faf1c0",
    "pale pink": "#f9d9e4",
    "light grey": "#dcdcdc",
    "white": "#ffffff",
    "sand": "#e8d7b5",
    "lilac": "#ddd2ef",
}
# DiceBear's expression -> what a caption calls it, as a verb and as a participle.
EXPRESSIONS = {
    "smile": ("smiles", "smiling"),
    "smileBig": ("grins", "grinning"),
    "smileLOL": ("laughs", "laughing"),
    "awe": ("stares", "staring"),
    "concerned": ("worries", "worrying"),
    "veryAngry": ("frowns", "frowning"),
    "rage": ("shouts", "shouting"),
    "tired": ("yawns", "yawning"),
    "solemn": ("sulks", "sulking"),
    "explaining": ("talks", "talking"),
    "lovingGrin1": ("swoons", "swooning"),
    "serious": ("waits", "waiting"),
}


class Look(NamedTuple):
    """What stays the same in every picture of a person: names of DiceBear variants and of colours ("" for none)."""

    head: str
    ink: str
    skin: str
    beard: str
    glasses: str


@dataclass(frozen=True)
class View:
    """What one picture shows besides the person; rotation in degrees, shift in DiceBear's percent of the canvas."""

    expression: str
    clothes: str
    background: str
    rotation: float
    scale: float
    shift: tuple[float, float]


def draw_look(rng: random.Random, woman: bool, others: list[Look]) -> Look:
    """Draw 100 looks and take the one least like those of others, so that people can be told apart at 64 pixels.

    Args:
        rng: source of the draws.
        woman: which heads and whether beards are possible.
        others: looks that are taken.

    Returns:
        A look that is not among `others`.

    Raises:
        ValueError: none of the 100 looks is new.
    """
    drawn = [draw_any_look(rng, woman) for _ in range(100)]
    best = max(drawn, key=lambda look: apartness(look, others))
    if best in others:
        raise ValueError(f"people: no distinct look is left after {len(others)} people; ask for fewer")
    return best


def draw_any_look(rng: random.Random, woman: bool) -> Look:
    """Draw one look without regard to other people's."""
    beard = "" if woman or rng.random() < 0.45 else rng.choice(BEARDS)
    glasses = "" if rng.random() < 0.6 else rng.choice(GLASSES)
    skin = rng.choice(SKINS)
    # The ink also draws the lines of the face. If it is about as bright as the skin, the expression cannot be seen.
    inks = [name for name, colour in INKS.items() if brightness(skin) - brightness(colour) >= 55]
    return Look(rng.choice(WOMEN_HEADS if woman else MEN_HEADS), rng.choice(inks), skin, beard, glasses)


def brightness(colour: str) -> float:
    """The luma (0 to 255, ITU-R BT.601) of a colour written #rrggbb."""
    red, green, blue = bytes.fromhex(colour[1:])
    return 0.299 * red + 0.587 * green + 0.114 * blue


def apartness(look: Look, others: list[Look]) -> tuple[float, float]:
    """How far a look is from those of others, for comparison.

    The first number is the distance of the nearest other look. The second decides between draws where that is equal: it
    is larger where all other looks are farther away.
    """
    distances = [distance(look, other) for other in others]
    return min(distances, default=0), -sum(2.0**-far for far in distances)


def distance(one: Look, other: Look) -> int:
    """How easily two looks are told apart: the sum of the visible weights of the traits in which they differ."""
    return sum(weight for weight, a, b in zip((4, 4, 3, 2, 1), one, other, strict=True) if a != b)


def draw_views(rng: random.Random, count: int) -> list[View]:
    """Draw views, no two of which agree in expression, clothes and background.

    Args:
        rng: source of the draws.
        count: number of views. A larger number only adds views to the smaller one's.

    Returns:
        The views.

    Raises:
        ValueError: there are not that many.
    """
    scenes = list(itertools.product(EXPRESSIONS, CLOTHES, BACKGROUNDS))
    if count > len(scenes):
        raise ValueError(f"views: {count} is more than the {len(scenes)} there are")
    rng.shuffle(scenes)
    return [
        View(*scene, rng.uniform(-8, 8), rng.uniform(0.92, 1.12), (rng.uniform(-5, 5), rng.uniform(-2, 5)))
        for scene in scenes[:count]
    ]


@functools.cache
def peeps() -> Style:
    """The open-peeps style, parsed once."""
    return Style(json.loads(files("dicebear_styles").joinpath("open-peeps.json").read_text("utf-8")))


def render(look: Look, view: View) -> bytes:
    """The PNG bytes (64 x 64, RGB) of one picture."""
    options = {
        "seed": "mini",  # every choice is made below; the seed decides nothing
        "headVariant": [look.head],
        "inkColor": [INKS[look.ink]],
        "headContrastColor": [INKS[look.ink]],
        "skinColor": [look.skin],
        "facialHairVariant": [look.beard or BEARDS[0]],
        "facialHairProbability": 100 if look.beard else 0,
        "accessoriesVariant": [look.glasses or GLASSES[0]],
        "accessoriesProbability": 100 if look.glasses else 0,
        "maskProbability": 0,
        "expressionVariant": [view.expression],
        "clothingColor": [CLOTHES[view.clothes]],
        "backgroundColor": [BACKGROUNDS[view.background]],
        "rotate": round(view.rotation, 2),
        "scale": round(view.scale, 3),
        "translateX": round(view.shift[0], 2),
        "translateY": round(view.shift[1], 2),
    }
    svg = Avatar(peeps(), options).to_string()
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
    opaque = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(opaque, "PNG")
    return opaque.getvalue()
