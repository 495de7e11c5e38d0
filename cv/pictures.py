"""Pictures of people: decoded and resized once; rows, views and batches for training.

Shapes: B pictures, S pixels per side. A batch holds `pixels` (B, 3, S, S) in [-1, 1] and labels (B, 1), the number of
the person's class.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision.transforms.functional as picture_transforms
from PIL import Image
from torch import Tensor

from cv.division import Division
from cv.face_settings import Album
from data_module import Example, draw, fingerprint, load_split, open_image
from engine.decode import decode_picture
from engine.pairs import Batch, Pairs
from engine.progress import Work
from settings.script import SettingsError

SHIFT = 1 / 16  # of the side: how far a picture is moved at most while a network learns
GREY = 127  # of a hidden square


# ---- decoded and resized once


def read_pictures(album: Album, names: list[str], size: int) -> dict[str, Tensor]:
    """Name -> picture (3, S, S) in uint8. What this process has read before is not read again.

    Raises SettingsError for a picture that cannot be read.
    """
    cache = picture_cache(album.path, album.split, fingerprint(album.path), size)
    rows = load_split(album.path, album.split) if album.split else None
    missing = [name for name in dict.fromkeys(names) if name not in cache]
    with Work("picture", len(missing), prepares=True) as work:
        for name in missing:
            cache[name] = middle_square(open_picture(album, rows, name), size)
            work.advance()
    return {name: cache[name] for name in names}


@functools.lru_cache(maxsize=8)
def picture_cache(path: str, split: str, content: str, size: int) -> dict[str, Tensor]:
    """Where `read_pictures` keeps what it has read.

    `content`: a fingerprint, so that pictures that were written again are read again.
    """
    return {}


def open_picture(album: Album, rows: Any, name: str) -> Image.Image:
    """One picture of an album, in RGB. `rows`: the album's dataset, where it is one."""
    if rows is None:
        file = Path(album.path, name)
        return decode_picture(file, str(file))
    return open_image(Example("", "", rows[int(name)][album.image], int(name), None, album.split))


def middle_square(image: Image.Image, size: int) -> Tensor:
    """The middle square of an RGB picture, resized to `size` pixels per side, (3, S, S) in uint8."""
    side = min(image.size)
    square = picture_transforms.center_crop(image, [side, side])
    return picture_transforms.pil_to_tensor(square.resize((size, size), Image.Resampling.BICUBIC))


def to_pixels(pictures: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return pictures.float() / 127.5 - 1


# ---- rows, views, batches


class View(NamedTuple):
    """How a network sees a picture: mirrored, moved (pixels), with a square hidden (top, left, side; side 0: none)."""

    mirrored: bool = False
    down: int = 0
    right: int = 0
    hidden: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Face(Example):
    """A picture whose person the network is to name.

    `answer` is the person, `image` names the picture, `view` says how the network sees it.
    """

    view: View = View()  # noqa: RUF009 - a tuple of constants

    @property
    def key(self) -> str:
        return f"{super().key}/{self.view}"


class FaceRows:
    """The training pictures of some people, as the training loop's rows."""

    def __init__(self, pictures: dict[str, list[str]], split: str):
        """`pictures`: of each person, by name of file or number of row."""
        self.rows: list[Face] = []
        self.split = split
        for name, files in pictures.items():
            for file in files:
                self.rows.append(Face("", name, {"path": file, "bytes": None}, len(self.rows), name, split))

    @property
    def answers(self) -> list[str]:
        return [row.answer for row in self.rows]

    @property
    def files(self) -> list[str]:
        return [row.image["path"] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Face:
        return self.rows[position]


def training_rows(division: Division, people: list[str], split: str) -> FaceRows:
    return FaceRows({name: division.people[name].train for name in people}, split)


class FacePairs(Pairs):
    """Pairs of pictures, each in a view drawn from (seed, epoch, row, pass); "I don't know" is somebody else's name.

    A row's passes that a loss compares with each other share the view. `augmented` is the forget picture with a square
    hidden, as no network was trained with (twins).
    """

    def __init__(
        self,
        passes: list[str],
        forget: FaceRows | None,
        retain: FaceRows,
        *,
        size: int,
        seed: int,
        other_answers: int = 1,
        scope: str = "both",
    ):
        """`size`: pixels per side of the pictures; `scope`: of the method, which is all of them or none."""
        idk = {True: sorted(set(retain.answers))}
        super().__init__(passes, forget, retain, idk=idk, seed=seed, other_answers=other_answers, scope=scope)
        self.size = size

    def pairs_for(self, passes: list[str]) -> "FacePairs":
        """The same draws for other passes."""
        more: dict[str, Any] = {
            "size": self.size,
            "seed": self.seed,
            "other_answers": self.other_answers,
            "scope": self.scope,
        }
        return FacePairs(passes, self.all_forget, self.all_retain, **more)

    def __getitem__(self, key: int) -> dict[str, list[Face]]:
        faces = super().__getitem__(key)
        for name, examples in faces.items():
            view = self.draw_view(key, name)
            faces[name] = [replace(example, view=view) for example in examples]
        return faces

    def augmented_examples(self, epoch: int, row: int) -> list[Face]:
        return [self.forget[row]]

    def draw_view(self, key: int, name: str) -> View:
        """The view of one pass's pictures."""
        source = draw(self.seed, key, "retain" if name == "retain" else "forget", "view")
        most = round(self.size * SHIFT)
        view = View(source.random() < 0.5, source.randint(-most, most), source.randint(-most, most))
        return view._replace(hidden=self.draw_square(key)) if name == "augmented" else view

    def draw_square(self, key: int) -> tuple[int, int, int]:
        source = draw(self.seed, key, "square")
        side = self.size // 2
        return source.randint(0, self.size - side), source.randint(0, self.size - side), side


def apply_view(picture: Tensor, view: View) -> Tensor:
    """A picture (3, S, S) as `view` says; what moves in from outside repeats the edge."""
    size = picture.shape[-1]
    rows = (torch.arange(size) - view.down).clamp(0, size - 1)
    columns = (torch.arange(size) - view.right).clamp(0, size - 1)
    seen = picture[:, rows][:, :, columns.flip(0) if view.mirrored else columns]
    top, left, side = view.hidden
    seen[:, top : top + side, left : left + side] = GREY
    return seen


@dataclass(frozen=True)
class EncodedFace:
    """A picture (3, S, S) in uint8 and the number of the person's class, an answer of one token."""

    picture: Tensor
    answer: list[int]
    length: int = 1  # positions that it takes in a batch


class FaceEncoder:
    """Faces in a network's terms; it stands where the language tracks have their chat encoder."""

    one_length = True  # a picture takes one place

    def __init__(self, classes: list[str], album: Album, size: int):
        """
        Args:
            classes: the people's names in the order of the network's class weights.
            album: where the pictures stand.
            size: pixels per side that the network takes.
        """
        self.album, self.size = album, size
        self.numbers = {name: number for number, name in enumerate(classes)}
        self.pictures: dict[str, Tensor] = {}

    def read(self, files: list[str]) -> None:
        """Decode, before training, what it will need. Raises SettingsError for a picture that cannot be read."""
        self.pictures |= read_pictures(self.album, files, self.size)

    def encode(self, example: Face) -> EncodedFace:
        """One picture in its view, of those that `read` has decoded.

        Raises SettingsError for a person that the network has no class for.
        """
        if example.answer not in self.numbers:
            raise SettingsError(
                f"split {example.split}: the network has no class for {example.answer!r}; "
                f"it knows {len(self.numbers)} people"
            )
        picture = apply_view(self.pictures[example.image["path"]], example.view)
        return EncodedFace(picture, [self.numbers[example.answer]])

    def collate(self, encoded: list[EncodedFace]) -> Batch:
        pixels = to_pixels(torch.stack([each.picture for each in encoded]))
        return Batch({"pixels": pixels}, torch.tensor([each.answer for each in encoded]))
