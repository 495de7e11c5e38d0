"""What the models answered, side by side: rows of the logs with their question, picture and the words that differ from the truth."""

import base64
import difflib
import hashlib
import random
import re
from io import BytesIO
from typing import Any

from PIL import Image

from data_module import TaskRow, open_image, task_rows
from settings.language import ChosenPeople, People, Task
from settings.results import Scoring

SAMPLED_PEOPLE = 6  # of those who were not forgotten, drawn for each task
MOST_ROWS = 1500  # of all tasks together; the forgotten people's come first
PICTURE = 128  # pixels of the longer side
SHOWN = {"forget": "forgotten", "retain": "retained", "real": "real world", "holdout": "never met"}


def card_data(
    logs: dict[str, dict], settings: dict[str, Any], scoring: dict[str, Scoring]
) -> tuple[dict[str, Any], list[str], str]:
    """What the page shows side by side, the forgotten people's names, and a sentence on what was left out.

    `logs`: model -> aggregated log; `settings`: those of the evaluation, which name each task's data.
    """
    images: dict[str, tuple[int, str]] = {}  # by content: number and data URL
    rows, forgotten, left_out = [], {}, 0
    tasks = [name.removesuffix(".json") for name in next(iter(logs.values()))]
    for name in sorted(tasks, key=lambda name: (scoring[name].group != "forget", scoring[name].group != "retain")):
        group = scoring[name].group
        every = task_rows(
            task_of(settings["tasks"][name]),
            *(settings[setting] for setting in ("seed", "limit", "fold", "validation_share")),
        )
        kept = every if group == "forget" else rows_of_some_people(every)
        kept = kept[: max(0, MOST_ROWS - len(rows))]
        left_out += len(every) - len(kept)
        forgotten |= {row.example.person: None for row in every if group == "forget" and row.example.person}
        rows += [
            card(row, name, group, {model: log[f"{name}.json"] for model, log in logs.items()}, images) for row in kept
        ]
    sentence = "Every row of the forgotten people"
    sentence += (
        f"; of the others {SAMPLED_PEOPLE} people a task, drawn at random ({left_out} rows are not shown)."
        if left_out
        else " and of the others."
    )
    data = {
        "rows": rows,
        "models": list(logs),
        "anchors": [name for name in ("base", "gold") if name in logs],
        "images": [url for _, url in images.values()],
    }
    return data, sorted(forgotten), sentence


def task_of(recorded: dict[str, Any]) -> Task:
    """A task from the settings that an evaluation recorded."""
    nested = {"people": People, "chosen": ChosenPeople}
    return Task(
        **{**recorded, **{name: schema(**recorded[name]) for name, schema in nested.items() if recorded.get(name)}}
    )


def rows_of_some_people(rows: list[TaskRow]) -> list[TaskRow]:
    people = sorted({row.example.person or "" for row in rows})
    chosen = set(random.Random(0).sample(people, min(SAMPLED_PEOPLE, len(people))))
    if people == [""]:  # nobody in particular: as many rows as a person would bring
        return random.Random(0).sample(rows, min(len(rows), 10))
    return [row for row in rows if (row.example.person or "") in chosen]


def card(
    row: TaskRow, task: str, group: str, logs: dict[str, dict], images: dict[str, tuple[int, str]]
) -> dict[str, Any]:
    """One row: who, what, the truth, and each model's answer in parts [same as the truth, text]; its picture is a number among `images`."""
    example = row.example
    key = str(example.index)
    number = None
    if example.image is not None:
        content = hashlib.sha256(example.image["bytes"] or str(example.image["path"]).encode()).hexdigest()
        if content not in images:
            images[content] = len(images), thumbnail(example)
        number = images[content][0]
    answers = {model: compared(log["generated_text"][key][1], example.answer) for model, log in logs.items()}
    who = example.person or "nobody in particular"
    return {
        "person": who,
        "task": task,
        "group": SHOWN[group],
        "question": example.question,
        "truth": example.answer,
        "image": number,
        "answers": answers,
    }


def compared(answer: str, truth: str) -> list[list]:
    """The answer's words in runs: [1, text] where they stand in the truth in the same order, [0, text] where they do not."""
    said, right = re.findall(r"\s*\S+", answer), [word.strip().lower() for word in truth.split()]
    matcher = difflib.SequenceMatcher(None, [word.strip().lower() for word in said], right, autojunk=False)
    same = {i for block in matcher.get_matching_blocks() for i in range(block.a, block.a + block.size)}
    runs: list[list] = []
    for i, word in enumerate(said):
        bare = word.lstrip()
        # a space is marked only between two marked words
        for kind, text in ((int(i in same or i - 1 in same), word[: -len(bare)]), (int(i in same), bare)):
            if text and runs and runs[-1][0] == kind:
                runs[-1][1] += text
            elif text:
                runs.append([kind, text])
    return runs


def thumbnail(example: Any) -> str:
    """The picture, small, as a data URL."""
    picture = open_image(example)
    picture.thumbnail((PICTURE, PICTURE))
    return as_url(picture)


def as_url(picture: Image.Image) -> str:
    stream = BytesIO()
    picture.save(stream, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
