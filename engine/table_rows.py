"""Rows that are added to a table's file: which is which, which it replaces, and the places of all."""

from collections.abc import Sequence
from pathlib import Path

from engine.places import ONE_SEED, add_places
from engine.record import OWN_RUNS, PLAN, VIEWS, write_bytes_whole
from engine.result_table import ModelResult
from engine.seeds import seed_groups
from engine.short_tables import against_of
from engine.table_files import file_content, read_results
from settings.runs import lock_folder, locks_given_back
from settings.script import SettingsError

PATIENCE = 60.0  # seconds to wait for another run that adds rows to the same file


def row_name(result: ModelResult) -> str:
    """A row in a message."""
    return result.method if result.seed is None else f"{result.method}, seed {result.seed}"


def identity(result: ModelResult) -> tuple:
    """What a row is: two rows that are the same do not stand in one table."""
    assert result.origin is not None  # every row of a file has one
    origin = result.origin
    own = (result.method, result.seed, result.about.get("Submitted By") or "", origin.settings, origin.began_with)
    return own if origin.settings and result.seed is not None else (*own, origin.log)


def add_rows(made: Sequence[ModelResult], save_file: str) -> tuple[list[ModelResult], list[str]]:
    """Add rows to a file, each whole or not at all. A row that is there already is replaced, and all others stay.

    Args:
        made: The new rows.
        save_file: Ends in .csv or .json (a row per model) or .parquet (a line per figure).

    Returns:
        All rows of the file, and a line for each that was replaced and had been measured against something else.

    Raises:
        SettingsError: The file cannot be written, or something else than a result table stands there.
    """
    file = Path(save_file)
    check_no_view(save_file)
    try:
        with locks_given_back():
            lock_folder(file.resolve(), "save_file", patience=PATIENCE)
            rows, replaced = upsert(made, file)
    except OSError as error:
        raise SettingsError(f"save_file={save_file!r} cannot be written: {error.strerror}: {error.filename}") from None
    lines = []
    for row, new in replaced:
        if against_of(row) != against_of(new):
            lines.append(f"{row_name(row)} is replaced; it had been measured against something else")
    return rows, lines


def check_no_view(save_file: str) -> None:
    """Raise SettingsError where a table of a benchmark or of a page would lose the places that its own spreads gave."""
    file = Path(save_file)
    if file.name in VIEWS and any((file.parent / name).is_file() for name in (PLAN, OWN_RUNS)):
        raise SettingsError(
            f"save_file={save_file!r} is a table that python -m report writes, with places by repeated runs; name "
            "another file"
        )


def upsert(made: Sequence[ModelResult], file: Path) -> tuple[list[ModelResult], list[tuple[ModelResult, ModelResult]]]:
    """Write a file with further rows; returns all that it holds, and each row that was replaced with its new one."""
    new = {identity(row): row for row in made}
    rows, replaced = [], []
    for row in read_results("save_file", file):
        other = new.pop(identity(row), None)
        rows.append(other or row)
        replaced += [(row, other)] if other else []
    rows += new.values()
    rank(rows)
    write_bytes_whole(file, file_content(rows, file.suffix))
    return rows, replaced


def rank(results: Sequence[ModelResult]) -> None:
    """Give the rows their places, among those that were measured against the same."""
    together: dict[tuple[str, ...], list[ModelResult]] = {}
    for result in results:
        together.setdefault(against_of(result), []).append(result)
    for against, rows in together.items():
        add_places(seed_groups(rows), {}, ONE_SEED if any(against) else "nothing says what it was measured against")
