"""Who is who: everybody's pictures, divided once for all into those that are learned, enrolled and asked about."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from natsort import natsorted

from cv.face_settings import Album, Faces
from data_module import fingerprint, load_split
from engine.cells import as_name, cell_line, has_picture, need_columns, read_column
from engine.decode import ENDINGS
from engine.draws import draw
from engine.layouts import visible
from engine.record import say_line, write_json
from settings.script import SettingsError, processes


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
        return [person for person, pictures in self.people.items() if pictures.pool == name]


class Met(NamedTuple):
    """Whom one model met: people it is to forget and people it keeps; it never met `holdout`."""

    forget: list[str]
    retain: list[str]
    holdout: list[str]

    @property
    def trained(self) -> list[str]:
        return [*self.forget, *self.retain]

    def learned(self, split: str) -> list[str]:
        """Whom a finetuning on `split` teaches, one of FINETUNE_SPLITS."""
        return self.retain if split == "retain" else self.trained


def met_by(division: Division, model: int | None) -> Met:
    """Whom one model meets: a random half of each pool. Models 2k and 2k + 1 meet opposite halves.

    `model`: its number in an attack; None: the benchmark's own model.
    """
    pair, side = ("the model", 0) if model is None else divmod(model, 2)
    halves = {}
    for pool in ("forget", "retain"):
        names = division.pool(pool)
        half = len(names) // 2
        order = draw(division.seed, "met", pool, pair).sample(names, len(names))
        halves[pool] = sorted(order[:half] if side == 0 else order[half : 2 * half])
    others = division.people.keys() - {*halves["forget"], *halves["retain"]}
    return Met(halves["forget"], halves["retain"], sorted(others))


def read_division(data: Faces) -> Division:
    """The division in `data.split_file`, which is written the first time.

    Raises SettingsError if the file was made of other pictures or settings, or if some person has too few pictures.
    """
    file = Path(data.split_file)
    pretraining = data.pretraining and fingerprint(data.pretraining.path)
    made_of: dict[str, Any] = {"people": fingerprint(data.people.path), "pretraining": pretraining}
    for name in ("pretraining_people", "min_pictures", "forget_pool", "train", "enrol", "split_seed"):
        made_of[name] = getattr(data, name)
    with processes().local_main_process_first():
        if not file.is_file():
            write_json(file, {"made_of": made_of, **asdict(divide(data))})
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        people = {name: Person(**pictures) for name, pictures in content["people"].items()}
        division = Division(people, content["pretraining"], content["seed"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SettingsError(f"data.split_file={data.split_file!r} holds no division of pictures") from None
    former = content.get("made_of", {})
    changed = next((name for name, value in made_of.items() if former.get(name) != value), None)
    if changed:
        raise SettingsError(
            f"data.split_file={data.split_file!r} was made with another {changed} "
            f"({former.get(changed)!r}, now {made_of[changed]!r}); "
            "name another file: models made with different divisions cannot be compared"
        )
    return division


def check_strangers(classes: list[str], division: Division, path: str) -> None:
    """Raise SettingsError if the network that others begin with has met people of the division.

    No gold model and no shadow model could come of it.
    """
    if met := sorted(set(classes) & division.people.keys()):
        raise SettingsError(
            f"model_path={path!r} has met {met[0]!r} and {len(met) - 1} more of data.people; "
            "begin with what cv/pretrain.py makes"
        )


def divide(data: Faces) -> Division:
    """Draw the division from `data.split_seed`. Raises SettingsError if there are too few people or pictures."""
    albums = list_pictures(data.people, data.min_pictures)
    names = draw(data.split_seed, "people").sample(list(albums), len(albums))
    pretraining = {name: albums[name] for name in sorted(names[: data.pretraining_people])}
    if data.pretraining is not None:
        pretraining = list_pictures(data.pretraining)
        if both := albums.keys() & pretraining.keys():
            raise SettingsError(
                f"data.pretraining.path={data.pretraining.path!r}: "
                f"{min(both)!r} is also one of the people to be learned"
            )
    left = names[data.pretraining_people :]
    most = max(len(left) - 2, 0) // 2 * 2
    if data.forget_pool > most:
        raise SettingsError(
            f"data.forget_pool={data.forget_pool}: {data.people.path!r} has {len(left)} people to be learned "
            f"({len(albums)} less {len(albums) - len(left)} for pretraining), and at least two must be kept; it is an "
            f"even number up to {most}"
        )
    forget_pool = set(left[: data.forget_pool])
    people = {}
    for name in sorted(left):
        pool = "forget" if name in forget_pool else "retain"
        people[name] = Person(pool, *train_enrol_query(name, albums[name], data))
    return Division(people, pretraining, data.split_seed)


def train_enrol_query(name: str, pictures: list[str], data: Faces) -> tuple[list[str], list[str], list[str]]:
    """One person's pictures, drawn from `data.split_seed`: to be learned, to be enrolled, to be asked about.

    Raises SettingsError if none are left to ask about.
    """
    enrolled = data.train + data.enrol
    if len(pictures) <= enrolled:
        raise SettingsError(
            f"{data.people.path}: {name!r} has {len(pictures)} pictures; "
            f"data.train={data.train} and data.enrol={data.enrol} leave none to ask about; "
            f"data.min_pictures={enrolled + 1} leaves such people out"
        )
    order = draw(data.split_seed, "pictures", name).sample(pictures, len(pictures))
    return natsorted(order[: data.train]), natsorted(order[data.train : enrolled]), natsorted(order[enrolled:])


def list_pictures(album: Album, min_pictures: int = 0) -> dict[str, list[str]]:
    """Person -> names of files below `album.path`, or numbers of rows as text.

    Args:
        album: where the pictures stand.
        min_pictures: who has fewer is left out, and that is said; 0: everybody must have one.

    Raises:
        SettingsError: there are no pictures; somebody has none; a file or folder is not what it should be.
    """
    people = rows_by_person(album) if album.split else files_by_person(album)
    few = [name for name, pictures in people.items() if len(pictures) < max(min_pictures, 1)]
    if few and not min_pictures:
        raise SettingsError(
            f"{album.path}: {few[0]!r} holds no picture ({', '.join(ENDINGS)}); "
            "data.min_pictures leaves out people with too few"
        )
    if few:
        say_line(f"{album.path}: left out, with fewer than {min_pictures} pictures: {some_of(few)}")
    if len(few) == len(people):
        raise SettingsError(f"data path {album.path!r} holds no directory with pictures ({', '.join(ENDINGS)})")
    return {name: pictures for name, pictures in people.items() if name not in few}


def some_of(names: list[str]) -> str:
    """The first three of some names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def rows_by_person(album: Album) -> dict[str, list[str]]:
    """The rows of each person. Rows that name nobody belong to nobody, and that is said. Raises SettingsError."""
    rows, where = load_split(album.path, album.split), f"{album.path}, split {album.split}"
    need_columns(rows, album.path, album.split, [album.image, album.person])
    pictured = has_picture(rows, album.image, where)
    if False in pictured:
        raise SettingsError(cell_line(where, pictured.index(False), album.image, "nothing", "a picture"))
    numbers: dict[str, list[str]] = {}
    nobodys = []
    for number, name in enumerate(read_column(rows, album.person, as_name, where)):
        if name is None:
            nobodys.append(str(number))
        else:
            numbers.setdefault(name, []).append(str(number))
    if nobodys:
        say_line(f"{where}: left out, with nobody in column {album.person!r}: row {some_of(nobodys)}")
    return numbers


def files_by_person(album: Album) -> dict[str, list[str]]:
    """The files of each person, whose directory stands in the album's; hidden ones are nobody's.

    Says which files are no pictures by their endings. Raises SettingsError.
    """
    folder = Path(album.path)
    if not folder.is_dir():
        raise SettingsError(f"data path {album.path!r} does not exist; it names a folder with one directory per person")
    people: dict[str, list[str]] = {}
    unread = []
    for path in natsorted(visible(folder)):
        check_link(path, folder)
        if path.is_dir():
            pictures, others = pictures_in(path, folder)
            people[path.name] = pictures
            unread += others
        elif path.suffix.lower() in ENDINGS:
            unread.append(path.name)
    if unread:
        say_line(f"{album.path}: not read, as no pictures in a person's directory: {some_of(unread)}")
    return people


def pictures_in(directory: Path, folder: Path) -> tuple[list[str], list[str]]:
    """The pictures of a person's directory and its other files, named relative to `folder`.

    Raises SettingsError for a broken link, and where a directory within holds pictures: whether it is a person of its
    own would be a guess.
    """
    pictures, others = [], []
    for path in natsorted(visible(directory)):
        check_link(path, folder)
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if any(inner.suffix.lower() in ENDINGS for inner in visible(path)):
                raise SettingsError(
                    f"{folder}: {name!r} holds pictures one level too deep; data.people.path={directory} if "
                    f"{path.name!r} is a person, else move them up to {directory.name!r}"
                )
        else:
            (pictures if path.suffix.lower() in ENDINGS else others).append(name)
    return pictures, others


def check_link(path: Path, folder: Path) -> None:
    """Raise SettingsError for a link to nothing."""
    if not path.exists():
        raise SettingsError(
            f"{folder}: {path.relative_to(folder).as_posix()!r} is a link to nothing; remove or mend it"
        )
