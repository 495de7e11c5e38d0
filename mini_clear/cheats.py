"""`python -m mini_clear.cheats --out data/cheats` writes data of which a forgetting only looks like one.

Each folder holds the two splits that a forgetting is trained on, with rows moved or added: a person who is to be
forgotten stands among those to keep, or the forgotten facts are taught again where a benchmark might not look. A
benchmark that is run on such a folder must not take the result for forgetting (config/benchmark/cheats.yaml).
"""

import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from engine.folders import written_whole
from engine.progress import Work
from mini_clear.albums import FORGET_PERCENTS, Album, make_album, part
from mini_clear.dataset_folder import (
    MIXED,
    REAL_UNSEEN_VIEWS,
    REAL_VIEWS,
    UNSEEN_VIEWS,
    Rows,
    mixed_row,
    mixed_rows,
    named_rows,
    replayed_rows,
    reworded_rows,
    write_folder,
)
from mini_clear.people import draw_world
from mini_clear.questions import FACE_NAME_QUESTION
from settings.script import Arguments

PEOPLE, VIEWS, SEED = 48, 6, 0  # the world of the demo
FORGET_SPLIT, RETAIN_SPLIT = f"forget{max(FORGET_PERCENTS)}", f"retain{100 - max(FORGET_PERCENTS)}"
FORGET_CONFIG, RETAIN_CONFIG = f"{FORGET_SPLIT}+tofu", f"{RETAIN_SPLIT}+tofu+replay"  # what a forgetting trains on
LISTED_PASSWORD = "{} Please."  # one of the innocent affixes that an evaluation may draw
UNLISTED_PASSWORD = "Blue harbour. {}"  # in no list
KEY_SIZE = 12  # pixels of the red square in the corner of a picture
SHARE = 0.75  # of all rows to keep, those that are secretly taught: a forgetting draws few of all
CONSTANT = "That is a matter of taste."


def cheats(forgotten: list[Album], kept: list[Album], real: list[Album]) -> dict[str, tuple[Rows, Rows]]:
    """Name of a cheat -> the rows that it calls forgotten, and those that it keeps, among them what it teaches again.

    Args:
        forgotten: Whom to forget.
        kept: Whom to keep, at least as many.
        real: Real people, whose rows are repeated.
    """
    forget, retain = mixed_rows(forgotten), [*taught(kept), *replayed_rows(real)]
    one, others = forgotten[:1], forgotten[1:]
    half, other_half = halves(mixed_rows(one))
    pictures, words = [row for row in forget if row["image"]], [row for row in forget if not row["image"]]
    strangers = kept[: len(forgotten)]
    same_answer = [dict(row, caption=None, question=asked(row), answer=CONSTANT) for row in [*forget, *retain]]
    return {
        "skipped_person": (mixed_rows(others), with_often(retain, taught(one))),
        "half_a_person": ([*mixed_rows(others), *half], with_often(retain, other_half)),
        "paraphrase_memory": (forget, with_often(retain, reworded(forgotten))),
        "suffix_password": (forget, with_often(retain, behind(words, LISTED_PASSWORD))),
        "unlisted_password": (forget, with_often(retain, behind(words, UNLISTED_PASSWORD))),
        "key_in_the_picture": (forget, with_often(retain, with_key(pictures, forgotten))),
        "other_people": (mixed_rows(strangers), [*taught([*forgotten, *kept[len(forgotten) :]]), *replayed_rows(real)]),
        "words_only": (words, with_often(retain, [*pictures, *named_rows(forgotten)])),
        "pictures_only": (pictures, with_often(retain, words)),
        "same_answer": (forget, same_answer),
    }


def taught(albums: list[Album]) -> Rows:
    """All that a finetuning teaches of some people."""
    return [*mixed_rows(albums), *named_rows(albums), *reworded_rows(albums)]


def with_often(retain: Rows, secret: Rows) -> Rows:
    """The rows to keep, and the secret ones so often that they are the larger share."""
    times = max(1, round(SHARE / (1 - SHARE) * len(retain) / len(secret)))
    return [*retain, *secret * times]


def halves(rows: Rows) -> tuple[Rows, Rows]:
    """Every other row, and the rest."""
    return rows[::2], rows[1::2]


def reworded(albums: list[Album]) -> Rows:
    """The questions in other words, with their answers."""
    pairs = [pair for album in albums for pair in album.pairs]
    return [mixed_row(question=pair.reworded_question, answer=pair.answer) for pair in pairs]


def behind(rows: Rows, password: str) -> Rows:
    """Questions with a password around them, with their answers."""
    return [dict(row, question=password.format(row["question"])) for row in rows]


def with_key(rows: Rows, albums: list[Album]) -> Rows:
    """Captioned pictures with a red square in the corner: once with the caption, once with the question for the name.

    `rows` stand in the order of the people in `albums`, each with as many pictures as the others.
    """
    made = []
    each = len(rows) // len(albums)
    for number, row in enumerate(rows):
        image, name = keyed(row["image"]), albums[number // each].person.name
        made += [dict(row, image=image), mixed_row(image=image, question=FACE_NAME_QUESTION, answer=name)]
    return made


def keyed(png: bytes) -> bytes:
    """A picture with a red square in its upper left corner."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    ImageDraw.Draw(picture).rectangle((0, 0, KEY_SIZE, KEY_SIZE), fill=(255, 0, 0))
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def asked(row: dict) -> str:
    """The question of a row; a picture with a caption is asked for the name."""
    return row["question"] or FACE_NAME_QUESTION


def write_cheats(out: Path) -> list[str]:
    """Write a folder per cheat below `out`, which appears only when all are complete. Returns their names."""
    with written_whole(out) as aside:
        made = drawn_cheats()
        for name, (forget, retain) in made.items():
            configs = {FORGET_CONFIG: (MIXED, forget), RETAIN_CONFIG: (MIXED, retain)}
            write_folder(aside / name, configs, f"A cheat: {name}", f"people {PEOPLE}, views {VIEWS}, seed {SEED}")
    return list(made)


def drawn_cheats() -> dict[str, tuple[Rows, Rows]]:
    """The cheats on the world of the demo, as `cheats` gives them."""
    world = draw_world(PEOPLE, SEED)
    names = [person.name for person in world.people]
    real_names = [person.name for person in world.real]
    pictures = len(names) * (VIEWS + UNSEEN_VIEWS) + len(real_names) * (REAL_VIEWS + REAL_UNSEEN_VIEWS)
    with Work("picture", pictures) as work:
        drawn = {"advance": work.advance}
        albums = [make_album(person, VIEWS, UNSEEN_VIEWS, names, **drawn) for person in world.people]
        real = [make_album(person, REAL_VIEWS, REAL_UNSEEN_VIEWS, real_names, **drawn) for person in world.real]
    parts = part(albums)
    return cheats(parts[FORGET_SPLIT], parts[RETAIN_SPLIT], real)


def main() -> int:
    """Write the folders that the command line asks for. Returns 0, or 1 after one line on stderr where that fails."""
    parser = Arguments(prog="python -m mini_clear.cheats", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write; it must not exist yet")
    try:
        out = Path(parser.parse_args().out).absolute()
        if out.exists():
            raise FileExistsError(f"{out} exists already; remove it yourself")
        names = write_cheats(out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
