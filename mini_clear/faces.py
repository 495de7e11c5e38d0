"""Pictures for face recognition, one directory per person: `python -m mini_clear.faces --out data/mini_clear_faces`.

`people/` holds the embedded world's people. They are those of the dataset folders, and their first pictures
are the same. `pretraining/` holds the real people and strangers, who are in no other split.
"""

import argparse
import random
import sys
import time
from pathlib import Path

from engine.folders import written_whole
from engine.progress import Work
from mini_clear.people import Person, draw_world
from mini_clear.portraits import Look, View, draw_views, render
from mini_clear.strangers import draw_strangers

FEWEST_VIEWS = 20  # of each person: some are trained, five enrolled, the others asked about
PRETRAINING_VIEWS = 16  # of each person for pretraining


def write_faces(out: str | Path, people: int = 48, views: int = 24, strangers: int = 60, seed: int = 0) -> int:
    """Write `<out>/people` and `<out>/pretraining`. The folder appears only when it is complete.

    Args:
        out: folder to write; it must not exist yet.
        people: number of invented people, 32 or more. With fewer, no model would have 8 to forget.
        views: pictures of each of them, 20 or more.
        strangers: number of strangers for pretraining.
        seed: another seed gives other people.

    Returns:
        Number of pictures.

    Raises:
        FileExistsError: `out` exists.
        ValueError: there are too few people or views, or a folder of somebody else stands where it would write.
    """
    out = Path(out).absolute()
    if out.exists():
        raise FileExistsError(f"{out} exists already; remove it to have it made anew")
    if people < 32 or views < FEWEST_VIEWS:
        raise ValueError(f"people: {people}, views: {views}; at least 32 people and {FEWEST_VIEWS} views are needed")
    world = draw_world(people, seed)
    albums = {f"people/{person.name}": pictures_of(person, views) for person in world.people}
    albums |= {f"pretraining/{person.name}": pictures_of(person, PRETRAINING_VIEWS) for person in world.real}
    known = {person.look for group in (world.people, world.real, world.never_seen) for person in group}
    for number, pictures in enumerate(draw_extras(strangers, seed, known)):
        albums[f"pretraining/stranger {number:02d}"] = pictures
    count = sum(map(len, albums.values()))
    with written_whole(out) as aside, Work("picture", count) as work:
        for folder, pictures in albums.items():
            (aside / folder).mkdir(parents=True)
            for number, (look, view) in enumerate(pictures):
                (aside / folder / f"{number:02d}.png").write_bytes(render(look, view))
                work.advance()
    return count


def pictures_of(person: Person, views: int) -> list[tuple[Look, View]]:
    """The first `views` pictures of a person, to be rendered."""
    return [(person.look, view) for view in draw_views(person.random("views"), views)]


def draw_extras(count: int, seed: int, known: set[Look]) -> list[list[tuple[Look, View]]]:
    """The pictures of `count` strangers. No two of them have the same look, and none has a look in `known`."""
    drawn: dict[Look, list[tuple[Look, View]]] = {}
    source = random.Random(f"{seed}/extras")
    while len(drawn) < count:
        pictures = draw_strangers(1, PRETRAINING_VIEWS, source.getrandbits(32), known | drawn.keys())
        drawn[pictures[0][0]] = pictures
    return list(drawn.values())


def main() -> int:
    """Write the pictures that the command line asks for. Returns 0, or 1 after one line on stderr where that fails."""
    parser = argparse.ArgumentParser(
        prog="python -m mini_clear.faces", description="Write pictures for face recognition, one directory a person."
    )
    parser.add_argument("--out", required=True, help="folder to write; it must not exist yet")
    parser.add_argument("--people", type=int, default=48, help="number of invented people (default 48)")
    parser.add_argument("--views", type=int, default=24, help="pictures of each of them (default 24)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other people (default 0)")
    given, start = parser.parse_args(), time.monotonic()
    try:
        count = write_faces(given.out, given.people, given.views, seed=given.seed)
    except (ValueError, OSError) as error:
        print(f"mini_clear.faces: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {count} pictures in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
