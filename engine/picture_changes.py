"""Changes of a picture that leave the person on it: noise, light, sharpness, what is covered, and how it is stored.

Each takes a picture in RGB, a strength and a random source, and gives a picture of the same size.
"""

import math
from collections.abc import Callable
from io import BytesIO
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from settings.script import SettingsError, nearest

Picture = Image.Image


def noise(picture: Picture, strength: float, source: Random) -> Picture:
    """Normal noise on every value; `strength`: its standard deviation as a share of the range from black to white."""
    values = np.asarray(picture, dtype=float)
    drawn = np.random.default_rng(source.getrandbits(63)).normal(size=values.shape)
    return Image.fromarray(np.rint(np.clip(values + 255 * strength * drawn, 0, 255)).astype(np.uint8))


def brightness(picture: Picture, strength: float, source: Random) -> Picture:
    """Every value times `strength`."""
    return ImageEnhance.Brightness(picture).enhance(strength)


def contrast(picture: Picture, strength: float, source: Random) -> Picture:
    """Every value's distance from the mean grey times `strength`."""
    return ImageEnhance.Contrast(picture).enhance(strength)


def down_up(picture: Picture, strength: float, source: Random) -> Picture:
    """Made smaller to a share `strength` of its width and height, and as large as before."""
    small = [max(1, round(strength * side)) for side in picture.size]
    return picture.resize((small[0], small[1])).resize(picture.size)


def crop(picture: Picture, strength: float, source: Random) -> Picture:
    """A part with a share `strength` of its width and height, at a drawn place, made as large as the whole."""
    left, upper, right, lower = place_in(picture, strength, source)
    return picture.crop((left, upper, right, lower)).resize(picture.size)


def blur(picture: Picture, strength: float, source: Random) -> Picture:
    """Gaussian blur; `strength`: its radius as a share of the shorter side."""
    return picture.filter(ImageFilter.GaussianBlur(strength * min(picture.size)))


def occlusion(picture: Picture, strength: float, source: Random) -> Picture:
    """A share `strength` of the area, at a drawn place, covered with the mean colour."""
    covered = picture.copy()
    mean = np.rint(np.asarray(picture, dtype=float).mean(axis=(0, 1))).astype(int).tolist()
    covered.paste(tuple(mean), place_in(picture, math.sqrt(strength), source))
    return covered


def flip(picture: Picture, strength: float, source: Random) -> Picture:
    """Left and right exchanged."""
    return ImageOps.mirror(picture)


def jpeg(picture: Picture, strength: float, source: Random) -> Picture:
    """Stored as JPEG and read again; `strength`: its quality."""
    stored = BytesIO()
    picture.save(stored, "JPEG", quality=round(strength))
    return Image.open(stored).convert("RGB")


def grey(picture: Picture, strength: float, source: Random) -> Picture:
    """Without colour."""
    return ImageOps.grayscale(picture).convert("RGB")


def place_in(picture: Picture, share: float, source: Random) -> tuple[int, int, int, int]:
    """Left, upper, right and lower end of a part with a share of a picture's width and height, at a drawn place."""
    starts, ends = [], []
    for side in picture.size:
        length = max(1, round(share * side))
        starts.append(source.randint(0, side - length))
        ends.append(starts[-1] + length)
    return starts[0], starts[1], ends[0], ends[1]


class Change(NamedTuple):
    """One change; `least`, `most`: between which numbers its strength lies; equal where it has none."""

    function: Callable[[Picture, float, Random], Picture]
    least: float
    most: float


CHANGES = {
    "noise": Change(noise, 0, 1),
    "brightness": Change(brightness, 0, 10),
    "contrast": Change(contrast, 0, 10),
    "down_up": Change(down_up, 0, 1),
    "crop": Change(crop, 0, 1),
    "blur": Change(blur, 0, 1),
    "occlusion": Change(occlusion, 0, 1),
    "jpeg": Change(jpeg, 1, 95),
    "flip": Change(flip, 0, 0),
    "grey": Change(grey, 0, 0),
}


def change_of(setting: str, text: str) -> Callable[[Picture, Random], Picture]:
    """The change that a text names, as `noise 0.02` or `flip`: a function of a picture and a random source.

    Raises SettingsError, which `setting` begins, for a text that names none, or one of a strength that it cannot have.
    """
    name, _, rest = text.partition(" ")
    if name not in CHANGES:
        raise SettingsError(
            f"{setting}={text!r}: {name!r} is not known{nearest(name, CHANGES)}; choose from {', '.join(CHANGES)}"
        )
    change = CHANGES[name]
    try:
        strength = float(rest) if rest else 0.0
    except ValueError:
        strength = math.nan
    if change.least == change.most and rest:
        raise SettingsError(f"{setting}={text!r}: {name} has no strength")
    if change.least < change.most and not (rest and change.least <= strength <= change.most and strength > 0):
        begin = "above 0" if change.least == 0 else f"from {change.least}"
        raise SettingsError(f"{setting}={text!r} must be {name!r} and a number {begin} to {change.most}")
    return lambda picture, source: change.function(picture, strength, source)
