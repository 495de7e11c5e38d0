"""Pictures of people: who is who, divided once and for all; decoded and resized once; rows, views and batches for the training loop.

Shapes: B pictures, S pixels a side. A batch is a dict with `pixels` (B, 3, S, S) in [-1, 1] and `labels` (B, 1), the person's class number.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision.transforms.functional as pictures_to
from natsort import natsorted
from PIL import Image
from torch import Tensor

from cv.face_settings import Album, Faces
from data_module import Example, draw, fingerprint, load_split, need_columns, open_image
from engine.encode import Encoded
from engine.pairs import Pairs
from engine.record import write_json
from settings.script import SettingsError, processes

ENDINGS = (".png", ".jpg", ".jpeg", ".pgm", ".bmp", ".webp")
SHIFT = 1 / 16  # of the side: how far a picture is moved at most while a network learns


# ---- who is who


@dataclass(frozen=True)
class Person:
    """One person's pictures by name of file or number of row: learned, enrolled, asked about."""

    pool: str  # forget or retain
    train: list[str]
    enrol: list[str]
    query: list[str]


@dataclass(frozen=True)
class Division:
    """Everybody's pictures, divided once; `pretraining` people (name -> pictures) are in no other part."""

    people: dict[str, Person]
    pretraining: dict[str, list[str]]
    seed: int

    def pool(self, name: str) -> list[str]:
        return [person for person, of in self.people.items() if of.pool == name]


class Met(NamedTuple):
    """Whom one model met: people it is to forget, people it keeps; it never met `holdout`."""

    forget: list[str]
    retain: list[str]
    holdout: list[str]

    @property
    def trained(self) -> list[str]:
        return [*self.forget, *self.retain]


def met_by(division: Division, model: int | None) -> Met:
    """Whom model number `model` meets, a random half of each pool: 2k and 2k + 1 meet opposite halves. None: the benchmark's own model."""
    halves = {}
    for pool in ("forget", "retain"):
        names = division.pool(pool)
        half = len(names) // 2
        pair, side = ("the model", 0) if model is None else divmod(model, 2)
        drawn = draw(division.seed, "met", pool, pair).sample(names, len(names))
        halves[pool] = sorted(drawn[:half] if side == 0 else drawn[half : 2 * half])
    return Met(
        halves["forget"], halves["retain"], sorted(division.people.keys() - {*halves["forget"], *halves["retain"]})
    )


def read_division(data: Faces) -> Division:
    """The division in `data.split_file`, which is written the first time.

    Raises SettingsError if the file was made of other pictures or settings, or if some person has too few pictures.
    """
    file = Path(data.split_file)
    made_of = {
        "people": fingerprint(data.people.path),
        "pretraining": data.pretraining and fingerprint(data.pretraining.path),
    }
    made_of |= {
        name: getattr(data, name) for name in ("pretraining_people", "forget_pool", "train", "enrol", "split_seed")
    }
    with processes().local_main_process_first():
        if not file.is_file():
            write_json(file, {"made_of": made_of, **asdict(divide(data))})
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        division = Division(
            {name: Person(**of) for name, of in found["people"].items()}, found["pretraining"], found["seed"]
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SettingsError(f"data.split_file={data.split_file!r} holds no division of pictures") from None
    former = found.get("made_of", {})
    if changed := [name for name, value in made_of.items() if former.get(name) != value]:
        raise SettingsError(
            f"data.split_file={data.split_file!r} was made with another {changed[0]} ({former.get(changed[0])!r}, now {made_of[changed[0]]!r}); "
            "name another file: models made with different divisions cannot be compared"
        )
    return division


def check_strangers(classes: list[str], division: Division, path: str) -> None:
    """Raise SettingsError if the network that others begin with has met people of the division: no gold model and no shadow model could come of it."""
    if met := sorted(set(classes) & division.people.keys()):
        raise SettingsError(
            f"model_path={path!r} has met {met[0]!r} and {len(met) - 1} more of data.people; begin with what cv/pretrain.py makes"
        )


def divide(data: Faces) -> Division:
    """Draw the division from `data.split_seed`. Raises SettingsError if there are too few people or pictures."""
    albums = list_pictures(data.people)
    names = draw(data.split_seed, "people").sample(list(albums), len(albums))
    pretraining = {name: albums[name] for name in sorted(names[: data.pretraining_people])}
    if data.pretraining is not None:
        pretraining = list_pictures(data.pretraining)
        if both := albums.keys() & pretraining.keys():
            raise SettingsError(
                f"data.pretraining.path={data.pretraining.path!r}: {min(both)!r} is also one of the people to be learned"
            )
    left = names[data.pretraining_people :]
    if len(left) < data.forget_pool + 2:
        raise SettingsError(
            f"data.forget_pool={data.forget_pool}: {data.people.path!r} has {len(left)} people to be learned; at least two must be left"
        )
    people = {}
    for name in sorted(left):
        pictures = draw(data.split_seed, "pictures", name).sample(albums[name], len(albums[name]))
        if len(pictures) <= data.train + data.enrol:
            raise SettingsError(
                f"{data.people.path}: {name!r} has {len(pictures)} pictures; data.train={data.train} and data.enrol={data.enrol} leave none to ask about"
            )
        train, enrol, query = (natsorted(part) for part in cut(pictures, data.train, data.enrol))
        people[name] = Person("forget" if name in left[: data.forget_pool] else "retain", train, enrol, query)
    return Division(people, pretraining, data.split_seed)


def cut(items: list[str], first: int, second: int) -> tuple[list[str], list[str], list[str]]:
    return items[:first], items[first : first + second], items[first + second :]


def list_pictures(album: Album) -> dict[str, list[str]]:
    """Person -> names of files below `album.path`, or numbers of rows as text. Raises SettingsError if there are none."""
    if album.split:
        rows = load_split(album.path, album.split)
        need_columns(rows, album.path, album.split, [album.image, album.person])
        found: dict[str, list[str]] = {}
        for number, name in enumerate(rows[album.person]):
            found.setdefault(str(name), []).append(str(number))
        return found
    folder = Path(album.path)
    if not folder.is_dir():
        raise SettingsError(f"data path {album.path!r} does not exist; it names a folder with one directory a person")
    directories = natsorted(path for path in folder.iterdir() if path.is_dir())
    found = {
        d.name: natsorted(f"{d.name}/{p.name}" for p in d.iterdir() if p.suffix.lower() in ENDINGS) for d in directories
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise SettingsError(f"data path {album.path!r} holds no directory with pictures ({', '.join(ENDINGS)})")
    return found


# ---- decoded and resized once


def read_pictures(album: Album, names: list[str], size: int) -> dict[str, Tensor]:
    """Name -> picture (3, S, S) in uint8; what this process has read before is not read again."""
    kept = kept_pictures(album.path, album.split, fingerprint(album.path), size)
    rows = load_split(album.path, album.split) if album.split else None
    for name in names:
        if name not in kept:
            image = (
                {"path": str(Path(album.path, name)), "bytes": None} if rows is None else rows[int(name)][album.image]
            )
            kept[name] = resized(
                open_image(
                    Example(
                        "", "", image, int(name) if rows is not None else 0, None, name if rows is None else album.split
                    )
                ),
                size,
            )
    return {name: kept[name] for name in names}


@functools.lru_cache(maxsize=8)
def kept_pictures(path: str, split: str, content: str, size: int) -> dict[str, Tensor]:
    """Where `read_pictures` keeps what it has read; `content` makes rewritten pictures others."""
    return {}


def resized(image: Image.Image, size: int) -> Tensor:
    """The middle square of an RGB picture, `size` pixels a side, (3, S, S) in uint8."""
    side = min(image.size)
    return pictures_to.pil_to_tensor(
        pictures_to.center_crop(image, [side, side]).resize((size, size), Image.Resampling.BICUBIC)
    )


def to_pixels(pictures: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return pictures.float() / 127.5 - 1


# ---- rows, views, batches


class View(NamedTuple):
    """How a picture is shown: mirrored, moved (pixels), with a square hidden (top, left, side; side 0: none)."""

    mirrored: bool = False
    down: int = 0
    right: int = 0
    hidden: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Face(Example):
    """A picture to be told whose it is: `answer` is the person, `image` names the picture; `view` how it is shown."""

    view: View = View()  # noqa: RUF009 - a tuple of constants

    @property
    def key(self) -> str:
        return f"{super().key}/{self.view}"


class FaceRows:
    """The training pictures of some people, as the training loop's rows."""

    def __init__(self, pictures: dict[str, list[str]], split: str):
        self.rows = [
            Face("", name, {"path": file, "bytes": None}, number, name, split)
            for name, file, number in numbered(pictures)
        ]

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


def numbered(pictures: dict[str, list[str]]) -> Iterator[tuple[str, str, int]]:
    pairs = [(name, file) for name, files in pictures.items() for file in files]
    return ((name, file, number) for number, (name, file) in enumerate(pairs))


def training_rows(division: Division, people: list[str], split: str) -> FaceRows:
    return FaceRows({name: division.people[name].train for name in people}, split)


class FacePairs(Pairs):
    """Pairs of pictures, each shown in a view drawn from (seed, epoch, row, pass); "I don't know" is somebody else's name.

    A row's passes that are compared with each other share the view. `augmented` shows the forget pictures with a square hidden, as no network was
    trained with (twins).
    """

    def __init__(
        self, passes: list[str], forget: FaceRows | None, retain: FaceRows, size: int, seed: int, other_answers: int = 1
    ):
        super().__init__(passes, forget, retain, {True: sorted(set(retain.answers))}, seed, other_answers)
        self.size = size

    def of(self, passes: list[str]) -> "FacePairs":
        return FacePairs(passes, self.forget, self.retain, self.size, self.seed, self.other_answers)

    def __getitem__(self, key: int) -> dict[str, list[Face]]:
        made = super().__getitem__(key)
        shown = {name: self.drawn_view(key, "retain" if name == "retain" else "forget") for name in made}
        if "augmented" in made:
            shown["augmented"] = shown["augmented"]._replace(hidden=self.drawn_square(key))
        return {name: [replace(example, view=shown[name]) for example in examples] for name, examples in made.items()}

    def augmented_examples(self, epoch: int, row: int) -> list[Face]:
        return [self.forget[row]]

    def drawn_view(self, key: int, whose: str) -> View:
        source, most = draw(self.seed, key, whose, "view"), round(self.size * SHIFT)
        return View(source.random() < 0.5, source.randint(-most, most), source.randint(-most, most))

    def drawn_square(self, key: int) -> tuple[int, int, int]:
        source, side = draw(self.seed, key, "square"), self.size // 2
        return source.randint(0, self.size - side), source.randint(0, self.size - side), side


def shown(picture: Tensor, view: View) -> Tensor:
    """A picture (3, S, S) as `view` shows it; what moves in from outside repeats the edge."""
    size = picture.shape[-1]
    rows = (torch.arange(size) - view.down).clamp(0, size - 1)
    columns = (torch.arange(size) - view.right).clamp(0, size - 1)
    moved = picture[:, rows][:, :, columns.flip(0) if view.mirrored else columns]
    top, left, side = view.hidden
    moved[:, top : top + side, left : left + side] = 127
    return moved


class EncodedFace(Encoded):
    """A picture (`prompt`: `picture`, uint8) and the person's class number (`answer`)."""

    @property
    def length(self) -> int:
        return 1


class Classes(NamedTuple):
    """What a network takes and gives: pictures of `size` pixels a side, cosines to `names` in this order."""

    names: list[str]
    size: int


class FaceEncoder:
    """Faces in a network's terms. Stands where the language tracks have their chat encoder; raises SettingsError for a person it has no class for."""

    def __init__(self, classes: Classes, album: Album):
        self.processor, self.album = classes, album
        self.number = {name: number for number, name in enumerate(classes.names)}

    def read(self, files: list[str]) -> None:
        """Decode what will be needed, before training."""
        self.pictures = read_pictures(self.album, files, self.processor.size)

    def encode(self, example: Face) -> EncodedFace:
        if example.answer not in self.number:
            raise SettingsError(
                f"split {example.split}: the network has no class for {example.answer!r}; it knows {len(self.number)} people"
            )
        return EncodedFace(
            {"picture": shown(self.pictures[example.image["path"]], example.view)}, [self.number[example.answer]]
        )

    def collate(self, encoded: list[EncodedFace]) -> dict[str, Any]:
        return {
            "pixels": to_pixels(torch.stack([e.prompt["picture"] for e in encoded])),
            "labels": torch.tensor([e.answer for e in encoded]),
        }
