"""Result tables as files: a line per figure (parquet), or a row per model (CSV, JSON); written, and read again."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet

from engine.evaluated import ORIGIN_COLUMNS, Origin
from engine.logs import forgotten
from engine.measures import MEASURES, Measure
from engine.result_table import Figure, Figures, ModelResult, column_name, wide_row
from engine.seeds import COUNT, DEVIATION, MEAN, OF_THE_METHOD, SUMMARIES, SeedGroup, seed_groups, settings_of
from settings.script import SettingsError

FORMULA_BEGINS = ("=", "+", "-", "@", "\t")
POOLS = ("forget", "retain", "holdout")  # people of whom a figure may be, in place of a task
ENDS_AND_REASON = ("low", "high", "why")  # what follows the heading of a figure, in columns beside it

# ---- the long table

FIGURE_COLUMNS = {
    "model": "string",
    "seed": "Int64",
    "task": "string",
    "measure": "string",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "why": "string",
}
# over the rows that differ in the seed alone and have the figure
SEED_COLUMNS = {"mean": "float64", "sd": "float64", "seeds": "Int64"}
COLUMNS = FIGURE_COLUMNS | SEED_COLUMNS


def long_table(results: Sequence[ModelResult]) -> pd.DataFrame:
    """One line per figure: model, seed, task, measure, value, low, high, why; mean, sd and seeds of the same figure
    over the seeds of the method; of own runs also how each was made and what it was measured against.

    Args:
        results: The models, each with its figures. A verdict is 1 or 0; what cannot be known is empty. Several p-values
            have no mean.
    """
    lines = []
    for group in seed_groups(results):
        spreads: dict[tuple[str, str], tuple] = {}
        for result in group.results:
            about = origin_cells(result)
            for (measure, task), figure in result.figures.items():
                assert measure in MEASURES, measure
                if (measure, task) not in spreads:
                    over = group.figure(measure, task)
                    spreads[measure, task] = (over.mean, over.deviation, len(over.values))
                line = (result.method, result.seed, task, measure, *figure, *spreads[measure, task])
                lines.append(dict(zip(COLUMNS, line, strict=True)) | about)
    further = dict.fromkeys((name for line in lines for name in line if name not in COLUMNS), "string")
    return pd.DataFrame(lines, columns=[*COLUMNS, *further]).astype(COLUMNS | further)


def origin_cells(result: ModelResult) -> dict[str, Any]:
    """What a table says of a row of own runs besides its figures; nothing of a benchmark's."""
    if result.origin is None:
        return {}
    return {name: None if value is None else str(value) for name, value in about_cells(result).items()}


def about_cells(result: ModelResult) -> dict[str, Any]:
    """The part of a row that is no figure, without method and seed."""
    named = ModelResult(result.method, result.seed, {}, result.about, result.origin)
    cells = wide_row(named)
    return {name: cells[name] for name in cells if name not in ("Method", "Seed")}


def parquet(results: Sequence[ModelResult]) -> bytes:
    """The long table as the content of a parquet file."""
    stream = io.BytesIO()
    long_table(results).to_parquet(stream, index=False)
    return stream.getvalue()


def is_long_table(file: Path) -> bool:
    """Whether a file holds a long table."""
    try:
        # a table of an earlier version has no columns over seeds
        return pyarrow.parquet.read_schema(file).names[: len(FIGURE_COLUMNS)] == list(FIGURE_COLUMNS)
    except (OSError, pyarrow.ArrowInvalid):
        return False


# ---- a row per model


def wide_rows(results: Sequence[ModelResult]) -> list[dict[str, Any]]:
    """A row per model, with the number of seeds of its method; after these, of each method with several seeds a row of
    means, one of standard deviations, and one of the number of seeds of which each figure is known. These say `mean`,
    `sd` and `n` in place of a seed.
    """
    groups = seed_groups(results)
    counts = {id(result): len(group) for group in groups for result in group.results}
    rows = [with_seeds(wide_row(result), counts[id(result)]) for result in results]
    for group in groups:
        if len(group) > 1:
            rows += [with_seeds(row, len(group)) for row in summary_rows(group)]
    return rows


def with_seeds(row: dict[str, Any], count: int) -> dict[str, Any]:
    """A row that says behind its seed how many its method has."""
    return {"Method": row["Method"], "Seed": row["Seed"], "Seeds": count} | row


def summary_rows(group: SeedGroup) -> list[dict[str, Any]]:
    """Means, standard deviations and numbers of seeds of a method's figures.

    Several p-values and verdicts have no mean and no deviation, and what is one of all seeds has its value as mean.
    """
    first = group.results[0]
    shared = about_cells(first)
    for other in map(about_cells, group.results):
        shared = {name: value for name, value in shared.items() if other.get(name) == value}
    rows = []
    over = {place: group.figure(*place) for each in group.results for place in each.figures}
    for name in SUMMARIES:
        row: dict[str, Any] = {"Method": group.method, "Seed": name}
        for (key, task), figure in over.items():
            cells = {MEAN: figure.mean, DEVIATION: figure.deviation, COUNT: len(figure.values)}
            if (name != DEVIATION or key not in OF_THE_METHOD) and (name == COUNT or not MEASURES[key].words):
                row[column_name(MEASURES[key], task)] = cells[name]
        rows.append(row | shared)
    return rows


def harmless(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula, and that ends no line by itself."""
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r", " ")  # which the library does not quote
    return f"'{text}" if text.startswith(FORMULA_BEGINS) else text


def harmless_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of harmless cells."""
    return {name: harmless(cell) for name, cell in row.items()}


def wide_csv(results: Sequence[ModelResult]) -> str:
    """A header and the rows of `wide_rows`; what a model lacks stays empty.

    A text that a spreadsheet would take for a formula, and run, has an apostrophe before it.
    """
    rows = [harmless_row(row) for row in wide_rows(results)]
    return pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")


# ---- written and read again


def file_content(results: Sequence[ModelResult], ending: str) -> bytes:
    """What a table's file holds; `ending`: .csv, .json (a list of rows) or .parquet."""
    if ending == ".parquet":
        return parquet(results)
    if ending == ".csv":
        return wide_csv(results).encode()
    return (json.dumps(wide_rows(results), indent=1) + "\n").encode()


def read_results(name: str, file: Path) -> list[ModelResult]:
    """The rows of a table's file; none where there is no file.

    Args:
        name: The setting that names the file, for messages.
        file: Ends in .csv, .json or .parquet.

    Raises:
        SettingsError: Something else than a result table stands there.
    """
    if not file.is_file():
        return []
    no_table = f"{name}={str(file)!r} is no result table; name another file"
    if file.suffix == ".parquet":
        if not is_long_table(file):
            raise SettingsError(no_table)
        try:
            return results_of_lines(pd.read_parquet(file))
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{no_table} ({error})") from None
    try:
        rows = csv_rows(file) if file.suffix == ".csv" else json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # bad UTF-8 as well as bad JSON or CSV
        raise SettingsError(no_table) from None
    rows = [rows] if isinstance(rows, dict) else rows  # an earlier version wrote one row
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.get("Method") for row in rows):
        raise SettingsError(f"{no_table} (a row of it has no Method)")
    return [result_of_row(name, file, row) for row in rows if row.get("Seed") not in SUMMARIES]


def csv_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file as texts; what is empty is None."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    rows: list[dict[str, Any]] = []
    for row in table.to_dict("records"):
        rows.append({str(name): cell or None for name, cell in row.items()})
    return rows


def result_of_row(name: str, file: Path, row: dict[str, Any]) -> ModelResult:
    """A row as figures; what is no figure's column stays as it is."""
    figures: dict[tuple[str, str], dict[str, Any]] = {}
    about: dict[str, Any] = {}
    for column, cell in row.items():
        place = place_of(column)
        if place is None or is_own_text(column, place, cell):
            about[column] = plain(cell)
        elif cell is not None or file.suffix != ".csv":  # in a CSV a model that lacks a figure has an empty cell
            key, task, part = place
            figures.setdefault((key, task), {})[part] = cell
    method, seed = str(about.pop("Method")), about.pop("Seed", None)
    about.pop("Seeds", None)
    column = "Seed"
    try:
        whose = seed_number(seed)
        read = {}
        for (key, task), cells in figures.items():
            column = column_name(MEASURES[key], task)
            read[key, task] = figure_of(MEASURES[key], cells)
    except (ValueError, TypeError):
        raise SettingsError(
            f"{name}={str(file)!r}: the row of {method!r} holds no number in its column {column!r}; name another file"
        ) from None
    try:
        return with_origin(method, whose, read, about)
    except ValueError:
        raise SettingsError(
            f"{name}={str(file)!r}: the row of {method!r} holds something else in its column 'Settings' than a table "
            "keeps there; call that column otherwise"
        ) from None


def with_origin(method: str, seed: int | None, figures: Figures, about: dict[str, Any]) -> ModelResult:
    """A row that was read, with its origin, which is empty where its table names none.

    Raises ValueError where its settings are none.
    """
    cells = {part: str(about.pop(column, None) or "") for part, column in ORIGIN_COLUMNS.items()}
    result = ModelResult(method, seed, figures, about, Origin(**cells))
    told = settings_of(result)
    if cells["settings"] and not told:
        raise ValueError(cells["settings"])
    result.forgets = forgotten(told.get("method.scope"), told.get("modality")) or "both"
    return result


def place_of(column: str) -> tuple[str, str, str] | None:
    """Measure, task and part (value, low, high, why) of a column with a row per model; None: it is of no figure."""
    if column in NO_FIGURES:
        return None
    heading, _, last = column.rpartition(" ")
    if last in ENDS_AND_REASON and (place := measure_of(heading)):
        return (*place, last)
    place = measure_of(column)
    return (*place, "value") if place else None


def is_own_text(column: str, place: tuple[str, str, str], cell: Any) -> bool:
    """Whether a column that begins with the heading of a measure is somebody's own, such as `Verdict mine`: what
    follows is no task by its looks, and the cell holds no figure.
    """
    key, task, part = place
    if not task or column in HEADINGS or "_" in task or task in POOLS:
        return False
    try:
        figure_of(MEASURES[key], {part: cell})
    except (ValueError, TypeError):
        return True
    return False


def measure_of(column: str) -> tuple[str, str] | None:
    """The measure and the task that a column is headed by; None: none is."""
    if column in HEADINGS:
        measure = HEADINGS[column]
        return measure.key, measure.unnamed_task
    heading, _, task = column.rpartition(" ")  # a task's name is one word
    return (HEADINGS[heading].key, task) if heading in HEADINGS else None


# columns that begin as those of a measure and are none
NO_FIGURES = ("Truth Ratio definition", "ROUGE definition")
HEADINGS = {measure.heading: measure for measure in MEASURES.values()}


def figure_of(measure: Measure, cells: dict[str, Any]) -> Figure:
    """A figure of its cells."""
    words = {word: value for value, word in measure.words.items()}
    value = cells.get("value")
    read = words[value] if isinstance(value, str) and value in words else number(value)
    if measure.words and read is not None and read not in measure.words:
        raise ValueError(value)
    why = cells.get("why")
    return Figure(read, number(cells.get("low")), number(cells.get("high")), None if why is None else str(plain(why)))


def number(cell: Any) -> float | None:
    """A cell as a number; None: it is empty. Raises ValueError or TypeError for anything else, nan and inf too."""
    if cell is None:
        return None
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        raise TypeError(cell)
    read = int(cell) if isinstance(cell, str) and cell.lstrip("-").isdecimal() else float(cell)
    if not math.isfinite(read):
        raise ValueError(cell)
    return int(cell) if isinstance(cell, int) else read


def seed_number(cell: Any) -> int | None:
    """A cell as a seed, which a spreadsheet may have given decimals; None: it is empty. Raises ValueError else."""
    read = None if cell == "" else number(cell)
    if read is not None and read != int(read):
        raise ValueError(cell)
    return None if read is None else int(read)


def plain(cell: Any) -> Any:
    """A text without the apostrophe that keeps spreadsheets from running it."""
    return cell[1:] if isinstance(cell, str) and cell[:1] == "'" and cell[1:].startswith(FORMULA_BEGINS) else cell


def results_of_lines(table: pd.DataFrame) -> list[ModelResult]:
    """The rows of a long table. Raises ValueError or TypeError for a line that holds no figure."""
    further = [name for name in table.columns if name not in COLUMNS]
    results = []
    texts = table[[*further, "model"]].astype(object).where(table[[*further, "model"]].notna(), None)
    whose = pd.concat([texts, table.seed.astype("Int64").astype(str).rename("whose seed")], axis=1)
    for _, places in whose.groupby([*further, "model", "whose seed"], sort=False, dropna=False).groups.items():
        lines = table.loc[places]
        first = lines.iloc[0]
        figures = {(str(line.measure), str(line.task)): figure_of_line(line) for line in lines.itertuples()}
        about = {name: None if pd.isna(first[name]) else str(first[name]) for name in further}
        seed = None if pd.isna(first.seed) else int(first.seed)
        results.append(with_origin(str(first.model), seed, figures, about))
    return results


def figure_of_line(line: Any) -> Figure:
    """A figure of a line of the long table."""
    if line.measure not in MEASURES:
        raise ValueError(f"{line.measure!r} is no measure of this version")
    values = {name: None if pd.isna(cell := getattr(line, name)) else cell for name in ("value", "low", "high")}
    return figure_of(MEASURES[line.measure], values)._replace(why=None if pd.isna(line.why) else str(line.why))
