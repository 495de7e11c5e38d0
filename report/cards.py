"""What the models answered, side by side: rows of the logs with question, picture and the words that are not true."""

import base64
import difflib
import hashlib
import json
import random
import re
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import TypeAdapter

from data_module import Example, TaskRow, load_split, open_image, task_rows
from settings.language import ANY, Task
from settings.results import Scoring

SAMPLED_PEOPLE = 6  # of those who were not forgotten, drawn for each task
MOST_CHARACTERS = 1_200_000  # of all rows and pictures together; the forgotten people's come first
ROWS_WITHOUT_PERSON = 10  # of a task about nobody in particular: as many rows as a person would bring
PICTURE = 128  # pixels of the longer side
GROUP_WORDS = {
    "forget": "forgotten",
    "way": "forgotten, asked otherwise",
    "retain": "retained",
    "real": "real world",
    "holdout": "never met",
}
FACE_GROUP_WORDS = GROUP_WORDS | {"real": GROUP_WORDS["holdout"]}  # the kept ability is shown by people never met


@dataclass(frozen=True)
class Cards:
    """What the page shows side by side."""

    data: dict[str, Any]  # what the page's script reads
    forgotten: list[str]  # names of the people
    note: str  # which rows are shown, in a sentence


def make_cards(logs: dict[str, dict], settings: dict[str, Any], scoring: dict[str, Scoring]) -> Cards:
    """The cards of any modality.

    Args:
        logs: Model -> aggregated log.
        settings: Those that the evaluation recorded; they name the data.
        scoring: Task -> how it is scored.

    Raises:
        SettingsError: The data or a picture cannot be read.
    """
    cards_of = answer_cards if "tasks" in settings else face_cards
    return cards_of(logs, settings, scoring)


def script_data(rows: list[dict[str, Any]], models: list[str], images: list[str]) -> dict[str, Any]:
    """What page.js reads; `images` are data URLs, which the rows name by number."""
    anchors = [name for name in ("base", "gold") if name in models]
    return {"rows": rows, "models": models, "anchors": anchors, "images": images}


# ---- answers in words


def answer_cards(logs: dict[str, dict], settings: dict[str, Any], scoring: dict[str, Scoring]) -> Cards:
    """The answers of language models: every row of the forgotten people, and a sample of the others."""
    thumbnails = Thumbnails()
    cards: list[dict[str, Any]] = []
    forgotten: set[str] = set()
    left_out = {True: 0, False: 0}  # whether it is about the forgotten people -> rows that are not shown
    used = 0
    tasks = [name.removesuffix(".json") for name in next(iter(logs.values()))]
    for task in sorted(tasks, key=lambda name: (scoring[name].group != "forget", scoring[name].group != "retain")):
        group = scoring[task].group
        every = rows_of_task(task, settings)
        kept = every if group == "forget" else rows_of_some_people(every)
        if group == "forget":
            forgotten |= {row.example.person for row in every if row.example.person}
        of_task = {model: log[f"{task}.json"] for model, log in logs.items()}
        before = len(cards)
        for row in kept:
            if used + thumbnails.characters > MOST_CHARACTERS:
                break
            card = answer_card(row.example, task, GROUP_WORDS[group], thumbnails.number(row.example), of_task)
            cards.append(card)
            used += len(json.dumps(card, ensure_ascii=False, separators=(",", ":")))
        left_out[group == "forget"] += len(every) - (len(cards) - before)
    note = shown_rows(left_out[True], left_out[False])
    return Cards(script_data(cards, list(logs), thumbnails.urls), sorted(forgotten), note)


def shown_rows(of_forgotten: int, of_others: int) -> str:
    """Which rows are shown, in a sentence; the arguments count those that are not."""
    note = "Every row of the forgotten people, asked as trained"
    if of_forgotten:
        return f"Rows of the forgotten people, asked as trained, until the page is full ({of_forgotten} are not shown)."
    if not of_others:
        return f"{note} and of the others."
    return f"{note}; of the others {SAMPLED_PEOPLE} people a task, drawn at random ({of_others} rows are not shown)."


def rows_of_task(task: str, settings: dict[str, Any]) -> list[TaskRow]:
    """The rows that an evaluation with the recorded `settings` asked about."""
    drawn = [settings[name] for name in ("seed", "limit", "fold", "validation_share")]
    asked = TypeAdapter(Task).validate_python(settings["tasks"][task])
    if asked.affix and asked.affix.place == ANY:  # each model was asked with words of its own around the question
        asked = replace(asked, affix=None)
    return task_rows(asked, *drawn)


def rows_of_some_people(rows: list[TaskRow]) -> list[TaskRow]:
    """The rows of people drawn at random, always the same ones; of a task about nobody in particular some rows."""
    people = sorted({row.example.person or "" for row in rows})
    if people == [""]:
        return random.Random(0).sample(rows, min(len(rows), ROWS_WITHOUT_PERSON))
    chosen = set(random.Random(0).sample(people, min(SAMPLED_PEOPLE, len(people))))
    return [row for row in rows if (row.example.person or "") in chosen]


def answer_card(example: Example, task: str, group: str, image: int | None, logs: dict[str, dict]) -> dict[str, Any]:
    """One row of a task with each model's answer; `logs`: model -> its log of the task."""
    return {
        "person": example.person or "nobody in particular",
        "task": task,
        "group": group,
        "question": example.question,
        "truth": example.answer,
        "image": image,
        "answers": compare_answers(logs, str(example.index), example.answer),
    }


def compare_answers(logs: dict[str, dict], row: str, truth: str) -> dict[str, list[list]]:
    """Model -> its answer to a row, in runs of words; `logs`: model -> its log of the row's task."""
    return {model: word_diff(log["generated_text"][row][1], truth) for model, log in logs.items()}


def word_diff(answer: str, truth: str) -> list[list]:
    """The answer's words in runs: [1, text] where they stand in the truth in the same order, [0, text] elsewhere."""
    words = re.findall(r"\s*\S+", answer)
    said = [word.strip().lower() for word in words]
    right = [word.lower() for word in truth.split()]
    same: set[int] = set()
    for block in difflib.SequenceMatcher(None, said, right, autojunk=False).get_matching_blocks():
        same.update(range(block.a, block.a + block.size))
    runs: list[list] = []
    for number, text in enumerate(words):
        word = text.lstrip()
        space = text[: -len(word)]
        # a space is marked only between two marked words
        add_to_runs(runs, int(number in same or number - 1 in same), space)
        add_to_runs(runs, int(number in same), word)
    return runs


def add_to_runs(runs: list[list], kind: int, text: str) -> None:
    """Add text to the last run if that is of the same kind, else as a run of its own."""
    if text and runs and runs[-1][0] == kind:
        runs[-1][1] += text
    elif text:
        runs.append([kind, text])


# ---- faces


def face_cards(logs: dict[str, dict], settings: dict[str, Any], scoring: dict[str, Scoring]) -> Cards:
    """Whose face each network took a query for: all queries of the forgotten people, and those of some others."""
    pictures: dict[str, int] = {}  # file or row -> its number on the page
    cards: list[dict[str, Any]] = []
    forgotten: dict[str, None] = {}
    groups = {name: scoring[name.removesuffix(".json")].group for name in next(iter(logs.values()))}
    for name in sorted(groups, key=lambda name: groups[name] != "forget"):
        log = logs["base"][name]
        people = sorted(set(log["person"].values()))
        if groups[name] == "forget":
            forgotten |= dict.fromkeys(people)
        else:
            people = people[:SAMPLED_PEOPLE]
        of_task = {model: each[name] for model, each in logs.items()}
        for row in [row for row, person in log["person"].items() if person in people]:
            image = pictures.setdefault(log["file"][row], len(pictures))
            cards.append(face_card(row, name.removesuffix(".json"), FACE_GROUP_WORDS[groups[name]], image, of_task))
    images = face_pictures(settings["data"]["people"], list(pictures), settings["model"]["size"])
    note = f"Every query of the forgotten people; of the others {SAMPLED_PEOPLE} people a task."
    return Cards(script_data(cards, list(logs), images), list(forgotten), note)


def face_card(row: str, task: str, group: str, image: int, logs: dict[str, dict]) -> dict[str, Any]:
    """One query with the person that each network took it for; `logs`: model -> its log of the task."""
    question, _, truth = logs["base"]["generated_text"][row]
    return {
        "person": truth,
        "task": task,
        "group": group,
        "question": question,
        "truth": truth,
        "image": image,
        "answers": compare_answers(logs, row, truth),
    }


def face_pictures(album: dict[str, str], names: list[str], size: int) -> list[str]:
    """The pictures of an album as the networks saw them, as data URLs.

    Args:
        album: The setting `data.people` that the evaluation recorded. Where `split` is empty it is a folder with a
            directory per person, else a dataset with a column of pictures.
        names: Files below the folder, or row numbers of the dataset as text.
        size: Pixels a side.

    Raises:
        SettingsError: The album or one of its pictures cannot be read.
    """
    rows = load_split(album["path"], album["split"]) if album["split"] else None
    urls = []
    for name in names:
        if rows is None:
            image = {"path": str(Path(album["path"], name)), "bytes": None}
            example = Example(question="", answer="", image=image, index=0, person=None, split=name)
        else:
            image = rows[int(name)][album["image"]]
            example = Example(question="", answer="", image=image, index=int(name), person=None, split=album["split"])
        urls.append(data_url(middle_square(open_image(example), size)))
    return urls


# ---- pictures


class Thumbnails:
    """Small pictures as data URLs, each content once."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.numbers: dict[str, int] = {}  # hash of the content -> place among `urls`

    @property
    def characters(self) -> int:
        """How many characters the pictures take."""
        return sum(map(len, self.urls))

    def number(self, example: Example) -> int | None:
        """The place of the example's picture among `urls`; None: it has none."""
        if example.image is None:
            return None
        content = hashlib.sha256(example.image["bytes"] or str(example.image["path"]).encode()).hexdigest()
        if content not in self.numbers:
            self.numbers[content] = len(self.urls)
            picture = open_image(example)
            picture.thumbnail((PICTURE, PICTURE))
            self.urls.append(data_url(picture))
        return self.numbers[content]


def middle_square(picture: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture, `size` pixels a side, as the face networks see it."""
    side = min(picture.size)
    left, top = (round((length - side) / 2) for length in picture.size)
    return picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)


def data_url(picture: Image.Image) -> str:
    stream = BytesIO()
    picture.save(stream, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
