"""The layouts in which people keep rows: a folder's files, or a dataset of the library -> the rows of a split.

A folder holds `<split>.jsonl` or `<split>.parquet` files, or a folder of such files per split, or pictures with a
metadata.jsonl; a dataset card with configs is left to the library, as is the hub. A column whose values are names of
pictures, or bytes, holds pictures.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import yaml
from natsort import natsorted

from engine.decode import ENDINGS
from settings.script import SettingsError

DATA_ENDINGS = (".jsonl", ".parquet")
JOINED_ENDINGS = (".csv", ".tsv", ".json")  # the library would join such files of a folder into one split
SHARD = re.compile(r"-\d+-of-(\d+)(-[0-9a-f]+)?$")  # train-00000-of-00002
METADATA, DEFAULT = "metadata", "default"  # rows beside a folder of pictures, and what the library calls their split
FILE_NAME, IMAGE = "file_name", "image"  # their column of names, and what the library makes of it
PLAIN = "train"  # the library's name for the one part of a config

Source = dict[str, list[Path]]  # a part of a folder, by the name that its files share


def local_splits(folder: Path) -> dict[str, Source]:
    """The splits of a folder without a dataset card, each with the files that hold it; empty where there are none.

    A file in the folder itself, or in `data`, has its split's name. Another folder has the name of the split that its
    files hold. `metadata.jsonl` in the folder itself is the split `default`.
    """
    splits: dict[str, Source] = {}
    for file in natsorted([*visible(folder), *(inner for each in visible(folder) for inner in visible(each))]):
        if file.suffix not in DATA_ENDINGS or not file.is_file():
            continue
        stem = SHARD.sub("", file.stem)
        split = DEFAULT if stem == METADATA else stem
        if file.parent != folder and file.parent.name != "data":
            split = file.parent.name
        source = (file.parent / f"{stem}{file.suffix}").relative_to(folder).as_posix()
        splits.setdefault(split, {}).setdefault(source, []).append(file)
    return splits


def visible(folder: Path) -> list[Path]:
    """What a folder holds that is not hidden; nothing for what is no folder. Raises SettingsError."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    except OSError as error:
        raise SettingsError(f"{str(folder)!r} cannot be read: {error.strerror}") from None


def has_card(folder: Path) -> bool:
    """Whether a folder's README.md says which files are which config. Raises SettingsError where it is no YAML."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.S)
    try:
        said = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError as error:
        raise SettingsError(f"{str(card)!r}: what stands between its --- is no YAML ({one_line(error)})") from None
    return isinstance(said, dict) and bool(said.get("configs"))


def splits_of(path: str) -> dict[str, Source | tuple[str, str]]:
    """The splits of a dataset: of each its files, or the library's config and split.

    Args:
        path: a folder, or a hub id.

    Raises:
        SettingsError: there is no such dataset.
    """
    folder = Path(path)
    if not path or folder.is_file():
        raise SettingsError(f"data path {path!r} is no folder; give the one that holds the splits")
    if folder.is_dir():
        local, card = local_splits(folder), has_card(folder)
        flat = any(file.suffix == ".jsonl" and file.stem != METADATA for file in visible(folder))
        if local and (flat or not card):
            return {**local}
    elif path.count("/") != 1:
        raise SettingsError(f"data path {path!r} does not exist")
    try:
        configs = datasets.get_dataset_config_names(path)
    except Exception as error:  # the hub client raises errors of many libraries
        if "Dataset scripts" in str(error):
            raise SettingsError(
                f"data path {path!r} comes with code of its own, which is never run: save its rows as parquet or jsonl"
            ) from None
        what = "holds no rows" if folder.is_dir() else "is no folder and could not be read from the hub"
        raise SettingsError(f"data path {path!r} {what} ({type(error).__name__}: {one_line(error)})") from None
    if len(configs) == 1 and (parts := parts_of(path, configs[0])) != [PLAIN]:
        return {part: (configs[0], part) for part in parts}
    if folder.is_dir() and not card:
        check_not_joined(folder)
    return {config: (config, PLAIN) for config in configs}


def check_not_joined(folder: Path) -> None:
    """Raise SettingsError for files of several names that the library would read as one split."""
    firsts: dict[str, dict[str, str]] = {ending: {} for ending in JOINED_ENDINGS}  # ending -> split -> a file of it
    for file in natsorted(visible(folder)):
        if file.suffix in firsts:
            firsts[file.suffix].setdefault(SHARD.sub("", file.stem), file.name)
    for of_splits in firsts.values():
        if len(of_splits) > 1:
            one, other, *_ = of_splits.values()
            raise SettingsError(
                f"data path {str(folder)!r} holds {one} and {other}, which would be read as one split: save the rows "
                "of each split as <split>.jsonl or <split>.parquet"
            )


def parts_of(path: str, config: str) -> list[str]:
    """The library's splits of a config."""
    try:
        return datasets.get_dataset_split_names(path, config)
    except Exception:  # not known without a network; where there is no PLAIN, reading it says so
        return [PLAIN]


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def read_rows(path: str, split: str, source: Source | tuple[str, str], cache: Path) -> datasets.Dataset:
    """The rows of a split, its pictures undecoded.

    Args:
        path: of the dataset.
        split: its name.
        source: where the split stands, of `splits_of`.
        cache: a folder for the library's copies, which it finds by the files' names and not by what they hold.

    Raises:
        SettingsError: they cannot be read.
    """
    where = f"{path}, split {split}"
    if isinstance(source, dict) and len(source) > 1:
        raise SettingsError(f"{where} is there {len(source)} times: {', '.join(source)}; keep one of them")
    try:
        if isinstance(source, tuple):
            config, part = source
            return with_pictures(datasets.load_dataset(path, config, split=part, cache_dir=str(cache)))
        (files,) = source.values()
        check_parts(files, where)
        if files[0].suffix == ".jsonl":
            rows = datasets.concatenate_datasets([read_jsonl(file) for file in files])
        else:
            if not any(pyarrow.parquet.read_metadata(file).num_rows for file in files):
                raise SettingsError(f"{where} holds no row")
            rows = datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=str(cache))
    except SettingsError:
        raise
    except Exception as error:  # of many libraries
        reason = one_line(error.__cause__ or error)
        raise SettingsError(f"{where} could not be read ({type(error).__name__}: {reason})") from None
    if SHARD.sub("", files[0].stem) == METADATA and FILE_NAME in rows.column_names and IMAGE not in rows.column_names:
        rows = rows.rename_column(FILE_NAME, IMAGE)
    return with_paths(with_pictures(rows), files[0].parent, where, Path(path))


def check_parts(files: list[Path], where: str) -> None:
    """Raise SettingsError where parts of a split are missing, by what their names say: its other rows would be too."""
    named = [SHARD.search(file.stem) for file in files]
    if any(part is None or int(part[1]) != len(files) for part in named) and any(named):
        raise SettingsError(f"{where}: {len(files)} files are there, and {files[0].name!r} says that there are others")


# ---- pictures


def with_pictures(rows: datasets.Dataset) -> datasets.Dataset:
    """Rows whose pictures are {"bytes", "path"}, undecoded, so that one that cannot be read is named when it is met."""
    for column, kind in rows.features.items():
        if isinstance(kind, datasets.Image) or is_bytes(kind):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def is_bytes(kind: Any) -> bool:
    """Whether a column holds bytes, alone or as the library stores a picture."""
    stored = isinstance(kind, dict) and kind.keys() == {"bytes", "path"}
    return stored or (isinstance(kind, datasets.Value) and "binary" in kind.dtype)


def with_paths(rows: datasets.Dataset, folder: Path, where: str, root: Path) -> datasets.Dataset:
    """Rows in which a picture's name has become its path: it is relative to the file that holds the row.

    Args:
        rows: of files in one folder.
        folder: that folder.
        where: begins an error.
        root: the dataset's folder; a run's key follows what lies in it.

    Raises:
        SettingsError: a picture lies elsewhere.
    """
    for column, kind in rows.features.items():
        if isinstance(kind, datasets.Value) and "string" in kind.dtype and is_picture_names(rows[column]):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    for column, kind in rows.features.items():
        if isinstance(kind, datasets.Image):
            chunks = rows.data.column(column).chunks
            if not all(chunk.field("bytes").null_count == 0 for chunk in chunks):
                cells = placed(chunks, lambda name, row: path_within(root, folder, name, f"{where}, row {row}"))
                pictures = datasets.Dataset(pyarrow.table({column: cells})).cast_column(column, kind)
                rows = datasets.concatenate_datasets([rows.remove_columns(column), pictures], axis=1)
    return rows


def placed(chunks: list[pyarrow.StructArray], path_of: Callable[[str, int], str]) -> pyarrow.ChunkedArray:
    """Pictures as {"bytes", "path"} with the paths that `path_of` makes of name and row where there are no bytes.

    Chunk by chunk, because the bytes of a large dataset are copied where chunks are joined.
    """
    made, row = [], 0
    for chunk in chunks:
        paths = []
        in_row = chunk.field("bytes").is_valid().to_pylist()
        for has_bytes, name in zip(in_row, chunk.field("path").to_pylist(), strict=True):
            paths.append(path_of(name, row) if name and not has_bytes else name or None)
            row += 1
        fields = [chunk.field("bytes"), pyarrow.array(paths, "string")]
        made.append(pyarrow.StructArray.from_arrays(fields, ["bytes", "path"], mask=chunk.is_null()))
    return pyarrow.chunked_array(made)


def path_within(root: Path, folder: Path, name: str, where: str) -> str:
    """The path of a picture that a row names, relative to `folder`. Raises SettingsError where it leaves `root`."""
    path = os.path.abspath(folder / name)  # without a look at links: the pictures may be linked from elsewhere
    if "://" in name or not Path(path).is_relative_to(os.path.abspath(root)):
        raise SettingsError(f"{where}: picture {name!r} is not in {str(root)!r}; copy or link the pictures there")
    return path


def is_picture_names(names: Iterable[str | None]) -> bool:
    """Whether all texts of a column, and at least one, end as a picture's name does."""
    try:
        given = [name for name in names if name]
    except ValueError:  # no UTF-8, which is said where the column is read
        return False
    return bool(given) and all(name.lower().endswith(ENDINGS) for name in given)


# ---- lines of JSON


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
