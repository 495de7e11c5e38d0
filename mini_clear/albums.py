"""Albums: all pictures and texts of one person, and the groups of people that make up the splits."""

from collections.abc import Callable
from dataclasses import dataclass

from mini_clear.captions import Caption, make_caption
from mini_clear.people import Person
from mini_clear.portraits import draw_views, render
from mini_clear.questions import Pair, make_pairs

FORGET_PERCENTS = (5, 10, 25)  # of the people, the last: forget05 and retain95, and so on
PERTURBED_ROWS = 40  # rows in clear's retain_perturbed, where there are as many; more with more people


@dataclass(frozen=True)
class Picture:
    """One view of a person: PNG bytes, and the caption that describes them."""

    png: bytes
    caption: Caption


@dataclass(frozen=True)
class Album:
    """All that is written about one person: trained pictures, unseen pictures and question-answer pairs."""

    person: Person
    seen: list[Picture]
    unseen: list[Picture]
    pairs: list[Pair]


def make_album(
    person: Person, seen: int, unseen: int, names: list[str], *, advance: Callable[[int], None] = lambda count: None
) -> Album:
    """Draw a person's pictures and texts.

    The unseen views are drawn first. A larger number of trained views then leaves them as they are.

    Args:
        person: whom.
        seen: number of trained views.
        unseen: number of further views.
        names: from which wrong names are drawn.
        advance: takes 1 when a picture is drawn.

    Returns:
        The person's album.
    """
    pictures = []
    for number, view in enumerate(draw_views(person.random("views"), unseen + seen)):
        pictures.append(Picture(render(person.look, view), make_caption(person, number, view, names)))
        advance(1)
    return Album(person, pictures[unseen:], pictures[:unseen], make_pairs(person))


def forgotten(people: int, percent: int) -> int:
    """How many of the people a forget set of `percent` holds: at least one, and at least two from 10 percent on."""
    return max(1 if percent < 10 else 2, round(people * percent / 100))


def part(albums: list[Album]) -> dict[str, list[Album]]:
    """The training splits, name -> people. Forget sets are the last people, as in TOFU."""
    parts = {"full": albums}
    for percent in FORGET_PERCENTS:
        count = forgotten(len(albums), percent)
        parts |= {f"forget{percent:02d}": albums[-count:], f"retain{100 - percent}": albums[:-count]}
    return parts


def never_forgotten(albums: list[Album]) -> list[Album]:
    """The people who are in no forget set."""
    return part(albums)[f"retain{100 - max(FORGET_PERCENTS)}"]


def perturbed_parts(albums: list[Album], never_seen: list[Album]) -> dict[str, list[Album]]:
    """The splits that are evaluated with wrong answers, with all rows of their people.

    They are the forget sets, two folds of the people of forget10, and people never seen.
    """
    parts = part(albums)
    forget_sets = {f"{name}_perturbed": group for name, group in parts.items() if name.startswith("forget")}
    forget10 = parts["forget10"]
    half = len(forget10) // 2
    return forget_sets | {
        "forget10_fold0_perturbed": forget10[:half],
        "forget10_fold1_perturbed": forget10[half:],
        "never_seen": never_seen,
    }


def sample_evenly(albums: list[Album], per_person: int) -> list[tuple[Album, list[int]]]:
    """Choose rows evenly from all people, and each row number about equally often.

    Args:
        albums: the people.
        per_person: rows of each; their numbers are 0 to per_person - 1.

    Returns:
        Each person with the numbers of the chosen rows, at least one. Together PERTURBED_ROWS, or all rows if there are
        fewer; more where there are more people than that.
    """
    wanted = min(max(PERTURBED_ROWS, len(albums)), len(albums) * per_person)
    shares = [wanted // len(albums) + (i < wanted % len(albums)) for i in range(len(albums))]
    sampled = []
    for i, (album, share) in enumerate(zip(albums, shares, strict=True)):
        numbers = sorted((i + extra) % per_person for extra in range(share))
        sampled.append((album, numbers))
    return sampled
