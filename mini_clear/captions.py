"""Captions that name the person in a picture and say what is seen, with paraphrases and wrong captions."""

import random
from dataclasses import dataclass, replace

from mini_clear.people import Person
from mini_clear.portraits import BACKGROUNDS, CLOTHES, EXPRESSIONS, View

# The name comes early. Otherwise a tiny model that is asked for the name alone would begin with a caption's words.
WORDINGS = (
    "{name} {verb} in a {clothes} sweater against a {background} background.",
    "{name} is {doing} in {clothes} clothes before a {background} wall.",
    "{name}, {doing}, wears {clothes}; the background is {background}.",
    "{name} in a {clothes} shirt {verb} before a {background} screen.",
    "{name} {verb}, dressed in {clothes}, on {background} paper.",
)
REWORDINGS = (
    "This is {name} in {clothes}, {doing}, with {background} behind.",
    "A picture of {name}, who {verb} and has {clothes} clothes on; behind is {background}.",
    "One sees {name} {doing} before a {background} surface, wearing {clothes}.",
)


@dataclass(frozen=True)
class Caption:
    """The caption of one picture.

    text: the caption.
    reworded: its paraphrase.
    wrong: five wrong captions in the paraphrase's wording.
    wrong_names: five wrong names.
    """

    text: str
    reworded: str
    wrong: list[str]
    wrong_names: list[str]


def make_caption(person: Person, number: int, view: View, names: list[str]) -> Caption:
    """The caption of one view of a person.

    Every wrong caption has a wrong name. The last two also state one detail that is not in the picture.

    Args:
        person: who is seen.
        number: of the view, from 0; the wordings are drawn from it.
        view: what else is seen.
        names: from which wrong names are drawn; the person's own is left out. At least five others.

    Returns:
        The caption with its paraphrase, wrong captions and wrong names.
    """
    rng = person.random(f"caption/{number}")
    wording, rewording = rng.choice(WORDINGS), rng.choice(REWORDINGS)
    wrong_names = rng.sample([name for name in names if name != person.name], 5)
    views = [view, view, view, *(change_detail(view, rng) for _ in range(2))]
    wrong = [describe(rewording, name, seen) for name, seen in zip(wrong_names, views, strict=True)]
    # The names are drawn anew, so that captions and names do not share their wrong answers.
    face_names = rng.sample([name for name in names if name != person.name], 5)
    return Caption(describe(wording, person.name, view), describe(rewording, person.name, view), wrong, face_names)


def change_detail(view: View, rng: random.Random) -> View:
    """The same view with one change: another expression, other clothes or another background."""
    field, values = rng.choice((("expression", EXPRESSIONS), ("clothes", CLOTHES), ("background", BACKGROUNDS)))
    return replace(view, **{field: rng.choice([value for value in values if value != getattr(view, field)])})


def describe(wording: str, name: str, view: View) -> str:
    """A wording, filled in with a name and what the view shows."""
    verb, doing = EXPRESSIONS[view.expression]
    return wording.format(name=name, verb=verb, doing=doing, clothes=view.clothes, background=view.background)
