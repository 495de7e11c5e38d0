"""The layouts in which people keep rows: a folder's files -> the rows of a split."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from settings.script import SettingsError


def read_jsonl(file: Path) -> datasets.Dataset:
    """The rows of a file with one JSON object a line, or with one list of objects.

    The values stay as they are written. The library's own reader makes times of texts that look like dates.

    Raises:
        SettingsError: the file cannot be read; names the line.
    """
    records = list(records_of(file))
    if not records:
        raise SettingsError(f"{str(file)!r} holds no row")
    cells: dict[str, list] = {}
    for number, record in enumerate(records):
        for column in record:
            cells.setdefault(column, [None] * len(records))[number] = record[column]
    try:
        return datasets.Dataset.from_dict(cells, on_mixed_types="use_json")
    except (pyarrow.ArrowException, ArithmeticError, TypeError, ValueError) as error:
        raise SettingsError(f"{str(file)!r} cannot be read: {' '.join(str(error).split())[:120]}") from None


def records_of(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of `read_jsonl` one by one. Raises SettingsError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{str(file)!r} cannot be read: {error}") from None
    if text.lstrip().startswith("["):
        for number, record in enumerate(parse_json(text, f"{str(file)!r}")):
            yield row_of(record, f"{str(file)!r}, row {number}")
        return
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines also splits at signs within texts
        if line.strip():
            place = f"{str(file)!r}, line {number}"
            yield row_of(parse_json(line, place), place)


def row_of(record: Any, place: str) -> dict[str, Any]:
    """A row as it was read. Raises SettingsError where it is none."""
    if not isinstance(record, dict):
        raise SettingsError(f"{place} is {json.dumps(record)[:60]}, and no object that maps columns to values")
    return record


def parse_json(text: str, place: str) -> Any:
    """The value that a text is. Raises SettingsError where it is none, or where an object holds a name twice."""
    try:
        return json.loads(text, object_pairs_hook=without_twins)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{place} is not JSON: {error}") from None


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's names and values. Raises ValueError where a name is there twice: one value would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return made
