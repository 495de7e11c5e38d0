"""The cells of a dataset's columns: what each must hold, checked for all rows when a split is opened.

A cell is missing where it is null, NaN (as tables written by pandas have it), a text of nothing but white space, or an
empty list.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from engine.decode import ENDINGS
from settings.language import Data, Task
from settings.script import SettingsError, first_line, nearest


class Strange(Exception):
    """A cell that holds something else than it should; the message says what was found."""


def found(value: Any) -> str:
    """What a cell holds, in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{value} (true or false)"
    for kind, name in ((str, "a text"), (int | float, "a number"), (list, "a list"), (dict, "a mapping")):
        if isinstance(value, kind):
            return f"{repr(value)[:60]} ({name})"
    return f"{str(value)[:60]} ({type(value).__name__})"


def is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any) -> str | None:
    """A cell that is a text; None: it is missing."""
    if is_null(value):
        return None
    if not isinstance(value, str):
        raise Strange(found(value))
    return value if value.strip() else None


def as_name(value: Any) -> str | None:
    """A cell that names somebody: a text without the white space around it, or a whole number; None: nobody."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    named = as_text(value)
    return named and named.strip()


def as_texts(value: Any) -> list[str] | None:
    """A cell that is a list of texts, each of which must be there; None: it is missing."""
    if is_null(value):
        return None
    if not isinstance(value, list):
        raise Strange(found(value))
    for item in value:
        if not isinstance(item, str) or not item.strip():
            raise Strange(f"a list with {found(item)}")
    return value or None


DUE: dict[Callable, str] = {as_text: "a text", as_name: "a name", as_texts: "a list of texts"}


def read_column(
    rows: datasets.Dataset, column: str, kind: Callable[[Any], Any], where: str, *, needed: bool = False
) -> list[Any]:
    """The cells of a column as `kind` makes them, None where they are missing.

    Args:
        rows: a split.
        column: one of its columns.
        kind: `as_text`, `as_name` or `as_texts`.
        where: dataset and split, which begin an error.
        needed: whether no cell may be missing.

    Raises:
        SettingsError: a cell holds something else; names row, column, what was found and what is due.
    """
    cells = []
    for number, value in enumerate(values_of(rows, column, where)):
        try:
            cell = kind(value)
        except Strange as error:
            raise SettingsError(cell_line(where, number, column, str(error), DUE[kind])) from None
        if cell is None and needed:
            raise SettingsError(cell_line(where, number, column, found(value), DUE[kind]))
        cells.append(cell)
    return cells


def cell_line(where: str, row: int, column: str, what: str, due: str) -> str:
    return f"{where}, row {row}: column {column!r} holds {what}, where {due} is due"


def values_of(rows: datasets.Dataset, column: str, where: str) -> list[Any]:
    """The values of a column; numbers that stand for the names of classes are these names.

    Raises SettingsError where they cannot be decoded.
    """
    try:
        values = list(rows[column])
    except (ValueError, pyarrow.ArrowException) as error:  # bytes that are no UTF-8 are one
        raise SettingsError(f"{where}: column {column!r} cannot be read ({first_line(error)})") from None
    kind = rows.features[column]
    if not isinstance(kind, datasets.ClassLabel):
        return values
    return [None if number is None or number < 0 else kind.int2str(number) for number in values]


def has_picture(rows: datasets.Dataset, column: str, where: str) -> list[bool]:
    """Which cells of a column hold a picture; none is decoded.

    Raises SettingsError for a column that holds something else than pictures, or the name of a file that is not there.
    """
    kind = rows.features[column]
    if isinstance(kind, datasets.Value) and kind.dtype == "null":
        return [False] * len(rows)
    if not isinstance(kind, datasets.Image):
        raise SettingsError(no_picture_line(rows, column, where))
    there: list[bool] = []
    for chunk in rows.data.column(column).chunks:  # one by one: together they would be copied
        in_row = chunk.field("bytes").is_valid().to_pylist()
        for has_bytes, path in zip(in_row, chunk.field("path").to_pylist(), strict=True):
            if path and not has_bytes and not Path(path).is_file():
                due = "the name of a file that is there"
                raise SettingsError(cell_line(where, len(there), column, repr(path), due))
            there.append(has_bytes or bool(path))
    return there


def no_picture_line(rows: datasets.Dataset, column: str, where: str) -> str:
    """What is wrong with a column that holds no pictures: its first cell that is none."""
    values = values_of(rows, column, where)
    for number, value in enumerate(values):
        is_name = isinstance(value, str) and value.lower().endswith(ENDINGS)
        if not is_null(value) and not is_name:
            return cell_line(where, number, column, found(value), "a picture or the name of one, like ann/1.png,")
    return f"{where}: column {column!r} holds names of pictures, which are found in a folder only"


def need_columns(rows: datasets.Dataset, path: str, split: str, names: list[str]) -> None:
    """Raise SettingsError if a named column is missing."""
    for name in names:
        if name not in rows.column_names:
            raise SettingsError(
                f"{path}, split {split}: no column {name!r}{nearest(name, rows.column_names)}; it has "
                f"{', '.join(rows.column_names)}"
            )


# ---- the rows of training and of tasks

TRAINING_FIELDS = ("image", "caption", "question", "answer", "person")


@dataclass(frozen=True)
class TrainingCells:
    """The cells of a training split by row; None where one is missing."""

    columns: dict[str, str]  # field -> its column, of those that the split has
    pictured: list[bool]
    caption: list[str | None]
    question: list[str | None]
    answer: list[str | None]
    person: list[str | None]


def training_cells(rows: datasets.Dataset, data: Data, split: str) -> TrainingCells:
    """Read and check every cell of a training split but the pictures themselves.

    A row holds either a caption with its picture, or a question with its answer, and perhaps a picture.

    Raises SettingsError naming row, column, what was found and what is due.
    """
    where = f"{data.path}, split {split}"
    named = {field: getattr(data.columns, field) for field in TRAINING_FIELDS}
    columns = {field: name for field, name in named.items() if name and name in rows.column_names}
    if "caption" not in columns:
        need_columns(rows, data.path, split, [data.columns.question, data.columns.answer])
    read: dict[str, list] = {}
    for field in TRAINING_FIELDS[1:]:
        kind = as_name if field == "person" else as_text
        missing = [None] * len(rows)
        read[field] = read_column(rows, columns[field], kind, where) if field in columns else missing
    if any(read["caption"]):
        need_columns(rows, data.path, split, [data.columns.image])
    check_unnamed_pictures(rows, data.columns.image, where)
    pictured = has_picture(rows, columns["image"], where) if "image" in columns else [False] * len(rows)
    made = TrainingCells(columns, pictured, **read)
    for row in range(len(rows)):
        check_training_row(made, row, where)
    return made


def check_unnamed_pictures(rows: datasets.Dataset, named: str, where: str) -> None:
    """Raise SettingsError where the pictures stand in another column than `named`: their questions would be asked
    without them.
    """
    others = [column for column, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if named and others and named not in rows.column_names:
        raise SettingsError(
            f"{where}: data.columns.image={named!r} is no column, and column {others[0]!r} has pictures"
        )


def check_training_row(cells: TrainingCells, row: int, where: str) -> None:
    """Raise SettingsError unless a row is one of the two kinds there are."""
    caption, question, answer = cells.caption[row], cells.question[row], cells.answer[row]
    names = cells.columns
    if caption and not cells.pictured[row]:
        raise SettingsError(cell_line(where, row, names["image"], "nothing", "the caption's picture"))
    if caption and (question or answer):
        raise SettingsError(
            f"{where}, row {row}: it has a caption and a question or an answer, and one would be passed over; set "
            "data.columns.caption='', or data.columns.question='' and data.columns.answer=''"
        )
    if not caption and not (question and answer):
        lacking = "question" if not question and "question" in names else "answer"
        lacking = lacking if lacking in names else "caption"
        raise SettingsError(cell_line(where, row, names[lacking], "nothing", "a text"))


@dataclass(frozen=True)
class TaskCells:
    """The cells of a task's split by row; None where the task names no such column."""

    question: list[str | None]
    reworded: list[str | None]
    answer: list[str]
    paraphrase: list[str | None]
    perturbed: list[list[str] | None]  # without the right answer, which some lists hold too


def task_cells(task: Task, rows: datasets.Dataset) -> TaskCells:
    """Read and check every cell of a task's split but the pictures themselves.

    Raises SettingsError naming row, column, what was found and what is due.
    """
    where = f"{task.dataset}, split {task.split}"
    named = (task.image, task.question, task.reworded, task.answer, task.person)
    needed = [column for column in named if column]
    need_columns(rows, task.dataset, task.split, needed)
    read: dict[str, list] = {}
    for field in ("question", "reworded", "answer", "paraphrase", "perturbed"):
        column, kind = getattr(task, field), as_texts if field == "perturbed" else as_text
        missing = [None] * len(rows)
        read[field] = read_column(rows, column, kind, where, needed=True) if column in rows.column_names else missing
    for row, (right, wrong) in enumerate(zip(read["answer"], read["perturbed"], strict=True)):
        others = [answer for answer in wrong or [] if answer.strip() != right.strip()]
        if wrong and not others:
            raise SettingsError(f"{where}, row {row}: column {task.perturbed!r} holds no answer but the right one")
        read["perturbed"][row] = others or None
    pictures = has_picture(rows, task.image, where) if task.image else []
    if False in pictures:
        raise SettingsError(cell_line(where, pictures.index(False), task.image, "nothing", "a picture"))
    return TaskCells(**read)


def lacking(task: Task, rows: datasets.Dataset) -> list[str]:
    """A line for each column of a task that its split lacks and that it does without."""
    where = f"{task.dataset}, split {task.split}"
    if task.perturbed and task.perturbed not in rows.column_names:
        return [f"{where} has no column {task.perturbed!r}: no Truth Ratio is computed"]
    if task.paraphrase and task.paraphrase not in rows.column_names:
        return [f"{where} has no column {task.paraphrase!r}: the right answer stands in for its paraphrase"]
    return []
