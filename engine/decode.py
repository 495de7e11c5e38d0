"""A picture's file -> 8-bit RGB, as the file says it, or one line that says why not.

What is assumed of a picture is checked here, for every track: its format, its bits, its orientation, its transparency.
Colour profiles are not applied, as the models' own processors do not apply them.
"""

import warnings
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from settings.script import SettingsError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PPM: PGM and PBM too
ENDINGS = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")  # to RGB without a guess
BITS, PHOTOMETRIC = 258, 262  # tags of TIFF
WHITE_IS_ZERO = 0


class Unreadable(Exception):
    """Why a picture is not read, in a few words."""


class Greys(NamedTuple):
    """The values of black and white in a picture of more than 8 bits."""

    black: int
    white: int


def decode_picture(source: bytes | str | Path, name: str) -> Image.Image:
    """Decode a picture to 8-bit RGB.

    Grey of 16 bits is scaled by the range of its format, orientation tags are followed, and what is transparent is laid
    on white.

    Args:
        source: the file's bytes, or its path.
        name: what an error calls the picture: its row, or its file.

    Returns:
        The picture, in mode RGB.

    Raises:
        SettingsError: the picture cannot be read, is of no format of FORMATS, is of a mode that cannot be converted
            without a guess, has several frames, or has more pixels than the library takes.
    """
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return decode(BytesIO(source) if isinstance(source, bytes) else source, said)
    except Unreadable as error:
        why = str(error)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        why = f"it has more than {Image.MAX_IMAGE_PIXELS} pixels, the library's limit; make it smaller"
    except UnidentifiedImageError:
        why = f"it begins with {first_bytes(source)!r}; {', '.join(FORMATS)} are read, and their headers must be whole"
    except FileNotFoundError:
        why = f"{str(source)!r} is {'a link to nothing' if Path(str(source)).is_symlink() else 'not there'}"
    except Exception as error:  # of each format's own reader
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    raise SettingsError(f"{name}: the picture cannot be read: {why}")


def first_bytes(source: bytes | str | Path) -> bytes:
    """What a file begins with, which tells a web page or a pointer to a file from a picture."""
    if isinstance(source, bytes):
        return source[:16]
    with Path(source).open("rb") as stream:
        return stream.read(16)


def decode(source: BytesIO | str | Path, said: list[warnings.WarningMessage]) -> Image.Image:
    """Decode as `decode_picture` does.

    `said`: where the library's warnings are gathered. Raises Unreadable, and whatever the library raises.
    """
    with Image.open(source, formats=FORMATS) as image:
        check_frames(image)
        check_transparent_colour(image)
        image.load()
        greys = greys_of(image)
        check_orientation(image, said)
        upright = ImageOps.exif_transpose(image)
    return on_white(upright) if greys is None else to_8_bits(upright, greys)


def check_frames(image: Image.Image) -> None:
    """Raise Unreadable for an animation or several pages: which of them is meant would be a guess.

    MPO, which the reader of JPEG opens too, says itself that its first frame is the picture.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise Unreadable(f"it holds {frames} frames or pages; save the one that is meant")


def check_transparent_colour(image: Image.Image) -> None:
    """Raise Unreadable where the one colour of a PNG that is transparent cannot be found among the decoded values.

    The library scales values of 2, 4 and 16 bits while it decodes them, but not that colour.
    """
    if isinstance(image, PngImageFile) and "transparency" in image.info and image.mode in ("L", "RGB", "I;16"):
        stored = image.tile[0].args
        if stored != image.mode:
            raise Unreadable(f"one colour of it is transparent, and its values are {stored}; save it with 8 bits each")


def check_orientation(image: Image.Image, said: list[warnings.WarningMessage]) -> None:
    """Raise Unreadable where the tags are torn before the one that says which side is up."""
    known = ExifTags.Base.Orientation in image.getexif()
    if not known and any("EXIF" in str(each.message) for each in said):
        raise Unreadable("its EXIF tags are torn, so that nobody knows which side is up; save it without them")


def greys_of(image: Image.Image) -> Greys | None:
    """Black and white of a decoded picture; None where its mode says them.

    Raises Unreadable for a mode that says nothing of them.
    """
    if image.mode in MODES:
        return None
    if image.mode.startswith("I;16") and isinstance(image, TiffImageFile):
        white = 2 ** image.tag_v2[BITS][0] - 1  # 12 bits are decoded to this mode too
        return Greys(white, 0) if image.tag_v2[PHOTOMETRIC] == WHITE_IS_ZERO else Greys(0, white)
    if (image.format, image.mode) in (("PNG", "I;16"), ("PNG", "I"), ("PPM", "I")):  # PNG: by version of the library
        return Greys(0, 65535)
    raise Unreadable(f"{image.format} of mode {image.mode} does not say which value is white; save it with 8 bits")


def to_8_bits(image: Image.Image, greys: Greys) -> Image.Image:
    """A grey picture of more than 8 bits as RGB."""
    values = np.asarray(image).astype(float)
    share = (values - greys.black) / (greys.white - greys.black)
    return Image.fromarray(np.rint(255 * share).astype(np.uint8)).convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """A picture as RGB, what is transparent laid on white: what a page shows, and not the colours that it hides."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
