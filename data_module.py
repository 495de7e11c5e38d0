"""Dataset rows -> examples, for every modality: the one place where splits and column names are read."""

import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from natsort import natsorted
from PIL import Image

from engine.cells import TaskCells, as_name, as_text, need_columns, read_column, task_cells, training_cells
from engine.decode import decode_picture
from engine.draws import draw, rows_of_fold, sample_by_person, some_of_each
from engine.files import files_below, hash_of_files
from engine.layouts import read_rows, splits_of
from engine.word_files import QUESTION, affixes_around, alternative_answers
from settings.inputs import Inputs, Maker
from settings.language import ChosenPeople, Data, Task
from settings.runs import one_at_a_time
from settings.script import SettingsError, nearest, processes

datasets.disable_progress_bars()  # a bar a split drowns the lines that matter
datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs of a bad file stands in our own line

CAPTION_QUESTIONS = (
    "What can you see in this picture?",
    "What does this picture show?",
    "Describe this picture, please.",
    "Tell me what is in this picture.",
    "What is shown here?",
    "Can you describe what you see?",
    "Please say what this image shows.",
    "How would you describe this image?",
    "What do you notice in this image?",
)
NAME_QUESTION = "The name of the person on the image is"


@dataclass(frozen=True)
class Example:
    """One question with its right answer.

    `image` is the undecoded picture ({"bytes", "path"}) or None for a question in words.
    """

    question: str
    answer: str
    image: dict | None
    index: int  # row of the split
    person: str | None  # where the data gives or implies one
    split: str

    @functools.cached_property
    def prompt_key(self) -> tuple:
        """The same for two examples that ask the same of the same picture."""
        return self.question, self.picture_key

    @functools.cached_property
    def picture_key(self) -> tuple | None:
        """The same for two examples about the same picture; None: it has none."""
        if self.image is None:
            return None
        if self.image["bytes"] is None:
            return self.image["path"], stamp_of(self.image["path"])
        return self.image["path"], hashlib.sha256(self.image["bytes"]).digest()

    @property
    def key(self) -> str:
        """What names this question with its answer, whatever their place in a batch or an epoch."""
        return f"{self.split}/{self.index}/{self.question}/{self.answer}"


def stamp_of(path: str) -> tuple[int, int] | None:
    """What changes with a file: its size and the time of its last change; None: it cannot be read."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


@dataclass(frozen=True)
class TaskRow:
    """A row to evaluate: the example, a paraphrase of its answer (None: the data has none) and wrong answers, any
    number of them.
    """

    example: Example
    paraphrase: str | None
    perturbed: list[str]
    affix: str = ""  # of several that are tried around one row's question: this one


# ---- where rows come from


def make_missing(inputs: Inputs) -> None:
    """Make the data and the base model that a module makes, on the main process, when their folder is not there.

    Raises:
        SettingsError: a module fails.
    """
    for maker in inputs.makers:
        with processes().local_main_process_first():
            make(maker)


def make(maker: Maker) -> None:
    """Make a folder that is not there; of several runs that need it the first makes it, and the others wait."""
    folder = Path(maker.folder)
    if folder.exists():
        return
    with one_at_a_time(folder):
        if not folder.exists() and subprocess.run([sys.executable, *maker.command]).returncode:
            made = " ".join(maker.command)
            raise SettingsError(f"{maker.setting}: python {made} failed; its own line stands above")


def fingerprint(path: str) -> str:
    """What a dataset holds: the hash of all files below a folder, linked ones too, or the hub id."""
    folder = Path(path)
    return hash_of_files(folder, files_below(folder)) if folder.is_dir() else f"hub:{path}"


@functools.lru_cache(maxsize=64)
def known_splits(path: str, content: str) -> dict[str, Any]:
    """`splits_of` a dataset that holds `content`."""
    return splits_of(path)


def split_names(path: str) -> list[str]:
    """The splits of a dataset. Raises SettingsError if there is none."""
    return natsorted(known_splits(path, fingerprint(path)))


@functools.lru_cache(maxsize=64)
def read_split(path: str, split: str, content: str) -> datasets.Dataset:
    """Read one split.

    `content` names the cache, because the library's own cache would serve a rewritten folder's old rows. Raises
    SettingsError.
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE) / f"content-{content.replace(':', '-').replace('/', '-')}"
    return read_rows(path, split, known_splits(path, content)[split], cache)


def check_split(path: str, split: str, setting: str = "split", advice: str = "") -> None:
    """Raise SettingsError naming the splits that exist if `split` is none of them.

    Args:
        path: of the dataset.
        split: the name.
        setting: what named it, which begins the line.
        advice: what ends the line.
    """
    check_known(path, split, fingerprint(path), setting, advice)


def check_known(path: str, split: str, content: str, setting: str = "split", advice: str = "") -> None:
    """`check_split` of a dataset that holds `content`."""
    known = natsorted(known_splits(path, content))
    if split not in known:
        listed = ", ".join(known)
        raise SettingsError(f"{setting}={split!r} is not in {path}{nearest(split, known)}; it has {listed}{advice}")


def load_split(path: str, split: str) -> datasets.Dataset:
    """The rows of `split` of a hub dataset or of a folder in one of the layouts of engine/layouts.py.

    Raises SettingsError naming the splits that exist if `split` is none of them.
    """
    content = fingerprint(path)
    check_known(path, split, content)
    return read_split(path, split, content)


# ---- rows -> examples (the one place where column names are read)


class TrainingRows:
    """The examples of one split, read row by row: captions of pictures and question-answer pairs, as the columns name
    them.

    A row with a caption is a picture row and is asked one of CAPTION_QUESTIONS, drawn from (seed, row); any other row
    carries its question.
    `modality` keeps all rows, those without a picture (text) or those with one (visual).
    """

    def __init__(self, data: Data, split: str, modality: str, seed: int):
        self.rows, self.split, self.seed = load_split(data.path, split), split, seed
        self.cells = training_cells(self.rows, data, split)
        pictured = self.cells.pictured
        kept = [True] * len(pictured)
        if data.people:
            if any(pictured) or "question" not in self.cells.columns:
                raise SettingsError(
                    f"data.people chooses among rows of questions grouped by person; {data.path}, split "
                    f"{split}, has pictures"
                )
            kept = rows_about(data.people, data.path, split, data.columns.question, data.rows_per_person)
        self.indices = [
            i
            for i, picture in enumerate(pictured)
            if kept[i] and (modality == "both" or picture == (modality == "visual"))
        ]
        self.in_words = [
            position for position, i in enumerate(self.indices) if not pictured[i]
        ]  # positions of the rows without a picture
        if not self.indices:
            raise SettingsError(f"modality={modality} leaves no row of {data.path}, split {split}")

    def __len__(self) -> int:
        return len(self.indices)

    @functools.cached_property
    def questions(self) -> list[str]:
        """What each row asks, read without its picture."""
        asked = []
        for i in self.indices:
            is_caption = bool(self.cells.caption[i])
            asked.append(draw(self.seed, i).choice(CAPTION_QUESTIONS) if is_caption else self.cells.question[i] or "")
        return asked

    @functools.cached_property
    def answers(self) -> list[str]:
        """The answer of each row, read without its picture."""
        return [self.cells.caption[i] or self.cells.answer[i] or "" for i in self.indices]  # no row lacks both

    def __getitem__(self, position: int) -> Example:
        index, cells = self.indices[position], self.cells
        image = self.rows[index][cells.columns["image"]] if cells.pictured[index] else None
        words = self.questions[position], self.answers[position]
        return Example(*words, image, index, cells.person[index], self.split)

    def words(self, index: int) -> tuple[str | None, ...]:
        """Caption, question and answer of a row of the split, and whom it is about where that is known."""
        cells = self.cells
        return cells.caption[index], cells.question[index], cells.answer[index], cells.person[index]

    def picture(self, index: int) -> str:
        """Hash of the picture of a row of the split; empty where it has none. Raises SettingsError if it is missing."""
        if not self.cells.pictured[index]:
            return ""
        image = self.rows[index][self.cells.columns["image"]]
        try:
            content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
        except OSError as error:
            raise SettingsError(f"split {self.split}, row {index}: {image['path']!r}: {error.strerror}") from None
        return hashlib.sha256(content).hexdigest()


def check_apart(forget: TrainingRows, retain: TrainingRows) -> None:
    """Raise SettingsError where a row to forget is a row to keep as well: the same words with the same picture."""
    kept: dict[tuple, list[int]] = {}
    for index in retain.indices:
        kept.setdefault(retain.words(index), []).append(index)
    both = []
    for index in forget.indices:
        alike = kept.get(forget.words(index), [])
        if any(forget.picture(index) == retain.picture(other) for other in alike):
            both.append(index)
    if both:
        raise SettingsError(
            f"split={forget.split} and retain_split={retain.split} overlap: {len(both)} of {len(forget)} rows to "
            f"forget are also to be kept, the first is row {both[0]}"
        )


def task_rows(task: Task, seed: int, limit: int, fold: str = "all", validation_share: float = 0.0) -> list[TaskRow]:
    """The rows of an evaluation task in file order: of all people or of one fold of them.

    `limit` > 0 keeps that many, shared evenly among the people and drawn from the seed. Where all affixes of a file are
    tried, a row stands there once with each.

    Raises SettingsError for an unknown split, a missing column, or a row without picture, question or answer.
    """
    rows = load_split(task.dataset, task.split)
    cells = task_cells(task, rows)
    people = persons_of_rows(task, rows, cells)
    kept = list(range(len(rows)))
    if task.chosen and task.rows_per_person:
        about = rows_about(task.chosen, task.dataset, task.split, task.question, task.rows_per_person)
        kept = [i for i in kept if about[i]]
    in_fold = rows_of_fold([people[i] for i in kept], fold, validation_share, seed)
    chosen = [kept[place] for place in in_fold]
    if not chosen:
        raise SettingsError(
            f"fold={fold} leaves no row of {task.dataset}, split {task.split}: validation_share={validation_share}"
        )
    who = [people[i] for i in chosen]
    among = some_of_each(who, task.asked_of_each, seed) if task.asked_of_each else None
    numbers = [chosen[place] for place in sample_by_person(who, limit, seed, among)]
    affixes = affixes_around(task.affix)
    made = []
    for i in numbers:
        asked = draw(seed, i).choice(CAPTION_QUESTIONS) if task.ask == "caption" else NAME_QUESTION
        plain = cells.reworded[i] or cells.question[i] or asked
        image = rows[i][task.image] if task.image else None
        for affix in affixes:
            example = Example(affix.replace(QUESTION, plain), cells.answer[i], image, i, people[i], task.split)
            tried = affix if len(affixes) > 1 else ""
            made.append(TaskRow(example, cells.paraphrase[i], cells.perturbed[i] or [], tried))
    return made


def rows_about(chosen: ChosenPeople, path: str, split: str, question: str, rows_per_person: int) -> list[bool]:
    """Which rows of a split are about the chosen people: a group of rows is where most of its questions are theirs.

    Raises SettingsError for a split that has fewer people than are asked of it, and for one without any of the chosen.
    """
    theirs: set[str] = set()
    for source, count in chosen.of.items():
        groups = questions_by_person(path, source, question, rows_per_person)
        if count > len(groups):
            raise SettingsError(f"data.people.of.{source}={count}: {path} has {len(groups)} people there")
        drawn = sorted(draw(chosen.seed, "people", source).sample(range(len(groups)), count))
        theirs |= {asked for number in drawn for asked in groups[number]}
        if source == split:
            return [number in drawn for number, group in enumerate(groups) for _ in group]
    groups = questions_by_person(path, split, question, rows_per_person)
    about = []
    for group in groups:
        asked_of_theirs = sum(asked in theirs for asked in group)
        about.append(2 * asked_of_theirs > len(group))
    if not any(about):
        raise SettingsError(
            f"{path}, split {split}: no row is about the people that data.people chooses; name the split in "
            "data.people.of"
        )
    return [theirs_too for theirs_too, group in zip(about, groups, strict=True) for _ in group]


def questions_by_person(path: str, split: str, question: str, rows_per_person: int) -> list[list[str]]:
    """The questions of a split whose rows stand grouped by person."""
    rows = load_split(path, split)
    need_columns(rows, path, split, [question])
    asked = read_column(rows, question, as_text, f"{path}, split {split}", needed=True)
    return [asked[start : start + rows_per_person] for start in range(0, len(asked), rows_per_person)]


def persons_of_rows(task: Task, rows: datasets.Dataset, cells: TaskCells) -> list[str | None]:
    """The person of each row: named by a column, or implied by the grouping of the rows, or not known.

    A group of rows is about whoever of `task.people` most of its rows name (the longest name where several are in each
    other);
    else "person <group> of <split>".
    """
    if task.person:
        return read_column(rows, task.person, as_name, f"{task.dataset}, split {task.split}")
    if not task.rows_per_person:
        return [None] * len(rows)
    names: set[str] = set()
    if task.people and task.people.person:
        path, split, column = task.people.dataset, task.people.split, task.people.person
        named = load_split(path, split)
        need_columns(named, path, split, [column])
        names = {name for name in read_column(named, column, as_name, f"{path}, split {split}") if name}
    texts = [f"{question} {answer}" for question, answer in zip(cells.question, cells.answer, strict=True)]
    people: list[str | None] = []
    for start in range(0, len(rows), task.rows_per_person):
        group = texts[start : start + task.rows_per_person]
        hits = {}
        for name in names:
            hits[name] = sum(name in text for text in group)
        name = max(hits, key=lambda name: (hits[name], len(name), name), default="")
        named_by_most = name and 2 * hits[name] >= len(group)
        people += [name if named_by_most else f"person {start // task.rows_per_person} of {task.split}"] * len(group)
    return people


def asked_and_answered(example: Example) -> tuple[str | None, str]:
    """What names a row of any split by its words: the question (None: one of those for captions) and the answer."""
    asked = None if example.question in CAPTION_QUESTIONS else example.question
    return asked, example.answer


def scored_wrong_answers(data: Data) -> Iterator[tuple[str, set[str]]]:
    """Of every row of the perturbed splits where it stands and the wrong answers that the Truth Ratio scores."""
    columns = [data.columns.perturbed_captions, data.columns.perturbed_answer]
    for path in dict.fromkeys((data.path, data.text_path)):
        for split in (split for split in split_names(path) if "perturbed" in split):
            rows = load_split(path, split)
            for column in (column for column in columns if column in rows.column_names):
                for index, wrong in enumerate(rows[column]):
                    yield f"{path}, split {split}, row {index}", set(wrong or [])


def check_not_scored(alternatives: Iterable[list[str]], data: Data) -> None:
    """Raise SettingsError where an invented answer is one of the wrong answers that the Truth Ratio scores: who trains
    on its candidates measures nothing by it.
    """
    taught = {as_said(answer): answer for others in alternatives for answer in others}
    for where, wrong in scored_wrong_answers(data):
        if both := taught.keys() & set(map(as_said, wrong)):
            raise SettingsError(
                f"data.alternatives: {taught[min(both)]!r} is a wrong answer of {where}, which the Truth Ratio scores; "
                "invent another"
            )


def as_said(answer: str) -> str:
    """An answer as far as it says something: capitals and white space around it do not."""
    return answer.strip().casefold()


def invented_answers(data: Data) -> dict[tuple[str | None, str], list[str]]:
    """What `alternative_answers` gives for a data set, none of which an evaluation scores. Raises SettingsError."""
    found = alternative_answers(data.alternatives)
    check_not_scored(found.values(), data)
    return found


def open_image(example: Example) -> Image.Image:
    """Decode the picture to RGB; raises SettingsError naming the row if it cannot be read."""
    assert example.image is not None
    source = example.image["path"] if example.image["bytes"] is None else example.image["bytes"]
    return decode_picture(source, f"split {example.split}, row {example.index}")
