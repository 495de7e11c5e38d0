"""Dataset rows -> examples, for every modality: the one place where splits and column names are read."""

import functools
import hashlib
import io
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from natsort import natsorted
from PIL import Image

from engine.cells import TaskCells, as_name, as_text, need_columns, read_column, task_cells, training_cells
from engine.decode import decode_picture
from engine.files import files_below, hash_of_files
from engine.layouts import read_rows, splits_of
from settings.inputs import Inputs, Maker
from settings.language import ANY, Affix, ChosenPeople, Data, Task
from settings.runs import one_at_a_time
from settings.script import ROOT, SettingsError, nearest, processes

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
QUESTION = "{question}"  # where the question stands in an affix


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
        return self.image["path"], hashlib.sha256(self.image["bytes"] or b"").digest()

    @property
    def key(self) -> str:
        """What names this question with its answer, whatever their place in a batch or an epoch."""
        return f"{self.split}/{self.index}/{self.question}/{self.answer}"


@dataclass(frozen=True)
class TaskRow:
    """A row to evaluate: the example, a paraphrase of its answer (None: the data has none) and wrong answers, any
    number of them.
    """

    example: Example
    paraphrase: str | None
    perturbed: list[str]
    affix: str = ""  # of several that are tried around one row's question: this one


def draw(*key: Any) -> random.Random:
    """A random source that is a function of `key` (seed, row, ...) alone, so that no draw depends on what was drawn
    before it.
    """
    return random.Random("/".join(map(str, key)))


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
    def lengths(self) -> list[tuple[bool, int]]:
        """What sorts the rows by length, read without their pictures: whether one has a picture, and the characters of
        its words.
        """
        cells, lengths = self.cells, []
        for i in self.indices:
            letters = sum(len(column[i] or "") for column in (cells.caption, cells.question, cells.answer))
            lengths.append((cells.pictured[i], letters))
        return lengths

    @functools.cached_property
    def answers(self) -> list[str]:
        """The answer of each row, read without its picture."""
        return [self.cells.caption[i] or self.cells.answer[i] or "" for i in self.indices]  # no row lacks both

    def __getitem__(self, position: int) -> Example:
        index, cells = self.indices[position], self.cells
        caption = cells.caption[index]
        question = draw(self.seed, index).choice(CAPTION_QUESTIONS) if caption else cells.question[index] or ""
        image = self.rows[index][cells.columns["image"]] if cells.pictured[index] else None
        return Example(question, self.answers[position], image, index, cells.person[index], self.split)

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
    if task.asked_of_each:  # before folds and limits part the rows, so that all of them ask the same ones
        kept = some_of_each(kept, people, task.asked_of_each, seed)
    in_fold = rows_of_fold([people[i] for i in kept], fold, validation_share, seed)
    chosen = [kept[place] for place in in_fold]
    if not chosen:
        raise SettingsError(
            f"fold={fold} leaves no row of {task.dataset}, split {task.split}: validation_share={validation_share}"
        )
    sampled = sample_by_person([people[i] for i in chosen], limit, seed)
    numbers = [chosen[place] for place in sampled]
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


def rows_of_fold(people: list[str | None], fold: str, validation_share: float, seed: int) -> list[int]:
    """Row numbers of a fold, ascending: `validation` has the share of the people, at least one; `test` the others.

    People are taken in an order drawn for each by name, so that tasks about the same people divide them alike; rows
    without one stand for themselves.
    """
    who = [str(i) if person is None else person for i, person in enumerate(people)]
    ordered = sorted(set(who), key=lambda name: draw(seed, "fold", name).random())
    validation = set(ordered[: max(1, round(validation_share * len(ordered)))])
    return [i for i, name in enumerate(who) if fold == "all" or (name in validation) == (fold == "validation")]


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


def some_of_each(rows: list[int], people: list[str | None], count: int, seed: int) -> list[int]:
    """Of the row numbers at most `count` of each person, drawn for each by name; ascending."""
    of_each: dict[str, list[int]] = {}
    for i in rows:  # a row about nobody stands for itself
        of_each.setdefault(people[i] or f"row {i}", []).append(i)
    drawn = [draw(seed, "asked", person).sample(own, min(count, len(own))) for person, own in of_each.items()]
    return sorted(itertools.chain.from_iterable(drawn))


def sample_by_person(people: list[str | None], limit: int, seed: int) -> list[int]:
    """Row numbers, ascending: all, or `limit` of them taken person by person so that every person keeps an equal
    share.
    """
    if not limit or limit >= len(people):
        return list(range(len(people)))
    by_person: dict[str | None, list[int]] = {}
    for i in draw(seed, "limit").sample(range(len(people)), len(people)):
        by_person.setdefault(people[i], []).append(i)
    turns = [
        rows[turn]
        for turn in range(max(map(len, by_person.values())))
        for rows in by_person.values()
        if turn < len(rows)
    ]
    return sorted(turns[:limit])


def asked_and_answered(example: Example) -> tuple[str | None, str]:
    """What names a row of any split by its words: the question (None: one of those for captions) and the answer."""
    asked = None if example.question in CAPTION_QUESTIONS else example.question
    return asked, example.answer


def alternative_answers(path: str) -> dict[tuple[str | None, str], list[str]]:
    """The invented answers of a JSONL file: question (None: a caption) and right answer -> others.

    Raises SettingsError where there is no such file, or a line says something else.
    """
    if not path:
        raise SettingsError("the method asks for invented answers, and data.alternatives names no file of them")
    found: dict[tuple[str | None, str], list[str]] = {}
    for number, line in enumerate(lines_of("data.alternatives", str(Path(path).absolute())), start=1):
        try:
            row = json.loads(line)
            question, answer, others = row["question"], row["answer"], row["alternatives"]
        except (ValueError, KeyError, TypeError):
            others = None
        is_told = isinstance(others, list) and others and all(isinstance(each, str) and each for each in others)
        if not is_told or not isinstance(answer, str) or not isinstance(question, str | None) or answer in others:
            raise SettingsError(
                f"data.alternatives={path!r}, line {number}: it must be a question or null, an answer, and "
                "alternatives, which are other answers"
            )
        found[question, answer] = others
    return found


def check_not_scored(alternatives: Iterable[list[str]], data: Data) -> None:
    """Raise SettingsError where an invented answer is one of the wrong answers that the Truth Ratio scores: who trains
    on its candidates measures nothing by it.
    """
    columns = [data.columns.perturbed_captions, data.columns.perturbed_answer]
    taught = {as_said(answer): answer for others in alternatives for answer in others}
    for path in dict.fromkeys((data.path, data.text_path)):
        for split in (split for split in split_names(path) if "perturbed" in split):
            rows = load_split(path, split)
            for column in (column for column in columns if column in rows.column_names):
                for index, wrong in enumerate(rows[column]):
                    if both := taught.keys() & set(map(as_said, wrong or [])):
                        raise SettingsError(
                            f"data.alternatives: {taught[min(both)]!r} is a wrong answer of {path}, split {split}, row "
                            f"{index}, which the Truth Ratio scores; invent another"
                        )


def as_said(answer: str) -> str:
    """An answer as far as it says something: capitals and white space around it do not."""
    return answer.strip().casefold()


def invented_answers(data: Data) -> dict[tuple[str | None, str], list[str]]:
    """What `alternative_answers` gives for a data set, none of which an evaluation scores. Raises SettingsError."""
    found = alternative_answers(data.alternatives)
    check_not_scored(found.values(), data)
    return found


def idk_answers(path: str) -> list[str]:
    """The "I don't know" answers of a file, one a line, stripped."""
    return lines_of("data.idk_questions or data.idk_pictures", path)


def affixes_of(file: str) -> list[str]:
    """The lines of a file of words around a question, each with QUESTION at the question's place.

    Raises SettingsError for a line without that place.
    """
    lines = lines_of("affix.file", file)
    for line in lines:
        if line.count(QUESTION) != 1:
            raise SettingsError(f"affix.file={file!r}: {line!r} must hold {QUESTION} once")
    return lines


def affixes_around(affix: Affix | None) -> list[str]:
    """What stands around the questions of a task: nothing, the drawn affix, or each of the file."""
    if affix is None:
        return [QUESTION]
    return affixes_of(affix.file) if affix.place == ANY else [drawn_affix(affix)]


def drawn_affix(affix: Affix) -> str:
    """The affix that the seed draws from the file.

    Raises SettingsError for a file without words at the place that is asked for.
    """
    lines = affixes_of(affix.file)
    before = [line for line in lines if not line.startswith(QUESTION)]
    behind = [line for line in lines if line.startswith(QUESTION) and line != QUESTION]
    allowed = before if affix.place == "before" else behind
    if not allowed:
        raise SettingsError(f"affix.file={affix.file!r} holds no words {affix.place} the question")
    return draw(affix.seed, "affix", affix.place).choice(allowed)


def lines_of(setting: str, path: str) -> list[str]:
    """The lines of a file that are not empty, stripped; a relative path begins at the root of the suite.

    Raises SettingsError where there is none.
    """
    file = Path(path) if Path(path).is_absolute() else ROOT / path
    if not file.is_file():
        raise SettingsError(f"{setting}: {path!r} is no file")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise SettingsError(f"{setting}: {path!r} is no text in UTF-8") from None
    if not lines:
        raise SettingsError(f"{setting}: {path!r} holds no line of text")
    return lines


def noised(example: Example, sigma: float, seed: int) -> dict | None:
    """The picture of an example with Gaussian noise, drawn from (seed, row); None where it has none.

    `sigma`: standard deviation of the noise in shares of the range of a pixel. What leaves the range is cut.
    """
    if example.image is None:
        return None
    pixels = np.asarray(open_image(example), dtype=np.float32)
    source = np.random.default_rng(draw(seed, "noise", example.split, example.index).getrandbits(64))
    changed = (pixels + 255 * sigma * source.standard_normal(pixels.shape, dtype=np.float32)).clip(0, 255)
    stream = io.BytesIO()
    Image.fromarray(changed.round().astype(np.uint8)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def open_image(example: Example) -> Image.Image:
    """Decode the picture to RGB; raises SettingsError naming the row if it cannot be read."""
    assert example.image is not None
    source = example.image["path"] if example.image["bytes"] is None else example.image["bytes"]
    return decode_picture(source, f"split {example.split}, row {example.index}")
