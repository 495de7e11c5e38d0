"""Invented answers to what is to be forgotten: other facts in the right answer's words, other names in captions."""

import json

from mini_clear.albums import FORGET_PERCENTS, Album, part
from mini_clear.people import Person, draw_names
from mini_clear.questions import wrong_answers

EACH = 5  # invented answers to a row
NAMES = 20  # names that nobody in the world has


def alternative_rows(albums: list[Album], taken: list[str], seed: int) -> list[dict]:
    """The invented answers to every row about the people of the largest forget set.

    None of them is a wrong answer that an evaluation scores: those name people of the world in their captions, and
    state their facts in the words of the paraphrase.

    Args:
        albums: the invented people.
        taken: the names of everybody in the world.
        seed: of the world.

    Returns:
        Rows with `question` (null: a caption), `answer` (the right one) and `alternatives`, each once.
    """
    names = [name for name, _ in draw_names(NAMES, seed, taken)]
    rows = []
    for album in part(albums)[f"forget{max(FORGET_PERCENTS):02d}"]:
        person = album.person
        captions = dict.fromkeys(picture.caption.text for picture in album.seen)
        rows += [row(None, caption, other_names(person, caption, names)) for caption in captions]
        for number, pair in enumerate(album.pairs):
            drawn = person.random(f"alternatives/{number}")
            rows.append(row(pair.question, pair.answer, wrong_answers(person, number, pair.wording, EACH, drawn)))
    return rows


def row(question: str | None, answer: str, alternatives: list[str]) -> dict:
    """One row of the file."""
    return {"question": question, "answer": answer, "alternatives": alternatives}


def other_names(person: Person, caption: str, names: list[str]) -> list[str]:
    """A caption with other names in the place of the person's."""
    drawn = person.random(f"alternatives/{caption}").sample(names, EACH)
    return [caption.replace(person.name, name) for name in drawn]


def as_lines(rows: list[dict]) -> str:
    """Rows as the text of a JSONL file."""
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
