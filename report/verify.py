"""python -m report --verify results/demo: is everything still what its records say it is?"""

from pathlib import Path

import pandas as pd

from engine.record import ATTACK_RECORD, EVAL_RECORD, MEMBERSHIP_RECORD, PLAN, TRAIN_RECORD, what_no_longer_matches
from report.folder import read_plan
from settings.script import SettingsError

TABLE = "results.parquet"
FIGURE = ["model", "seed", "task", "measure"]  # what a line of the table is about


def verify(folder: Path) -> tuple[int, list[str]]:
    """Look at every record below a folder, and at the table of a benchmark.

    Args:
        folder: A benchmark's results, or a folder with models and evaluations.

    Returns:
        How many records there are, and what no longer matches, one line each.

    Raises:
        SettingsError: There is no record.
    """
    names = (TRAIN_RECORD, EVAL_RECORD, ATTACK_RECORD, MEMBERSHIP_RECORD)
    records = sorted(file for name in names for file in folder.rglob(name))
    if not records:
        raise SettingsError(f"{str(folder)!r} holds no record ({', '.join(names)}): there is nothing to verify")
    lines = [line for record in records for line in what_no_longer_matches(record)]
    if (folder / PLAN).is_file():
        lines += changed_figures(folder)
    return len(records), lines


def changed_figures(folder: Path) -> list[str]:
    """The figures of a benchmark's table that do not come out of its logs again, one line each."""
    from engine.table_files import long_table
    from report.rows import benchmark_results

    file = folder / TABLE
    if not file.is_file():
        return [f"{file}: the table is gone"]
    try:
        again = long_table(benchmark_results(folder, read_plan(folder)))
    except SettingsError as error:
        return [f"{file}: its figures cannot be computed again ({error})"]
    tables = [table.astype(object).set_index(FIGURE).sort_index() for table in (pd.read_parquet(file), again)]
    written, now = tables
    lines = []
    for figure in sorted({*written.index, *now.index}, key=str):
        if figure not in written.index or figure not in now.index or differ(written.loc[figure], now.loc[figure]):
            lines.append(f"{file}: {' '.join(str(part) for part in figure if part != '')} is not what the logs give")
    return lines


def differ(one: pd.Series, other: pd.Series) -> bool:
    """Whether two lines say something different; what is missing in both is the same."""
    return any(not (a == b or (pd.isna(a) and pd.isna(b))) for a, b in zip(one, other, strict=True))
