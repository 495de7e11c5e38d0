"""A finished benchmark's folder -> tables and report.html: python -m report results/demo

python -m report --verify results/demo says what no longer is as the records of models, logs and rows have it.

results.parquet is the long table, one line per figure. results.csv, table.md, table.tex and report.html are its views.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.record import write_bytes_whole
from report.folder import read_plan
from settings.results import Aggregate
from settings.script import Arguments, check_installation, one_line_errors

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "python -m report results/demo",
    "python -m report /media/stick/demo",
    "python -m report --verify results/demo",
)


def write_report(folder: Path, console: "Console | None" = None) -> None:
    """Write a finished benchmark's tables and its page into its folder.

    Args:
        folder: The benchmark's results.
        console: Where the short table is printed; None: nowhere.

    Raises:
        SettingsError: `folder` holds no finished benchmark, or one of its logs is missing or broken.
    """
    plan = read_plan(folder)

    # here, so that --help and a wrong folder need not wait for the libraries of plots and data
    from engine.result_table import parquet, short_columns, wide_csv
    from report.page import render_page
    from report.rows import aggregation_settings, benchmark_results
    from report.tables import latex_table, markdown_table, print_table

    results = benchmark_results(folder, plan)
    scoring = aggregation_settings(plan.benchmark).scoring
    columns = short_columns(results, scoring)
    texts = {
        "results.csv": wide_csv(results),
        "table.md": markdown_table(results, columns),
        "table.tex": latex_table(results, columns),
    }
    offered = {name: texts[name] for name in ("results.csv", "table.tex")}
    texts["report.html"] = render_page(folder, plan, results, columns, scoring, downloads=offered)
    write_bytes_whole(folder / "results.parquet", parquet(results))
    for name, text in texts.items():
        write_bytes_whole(folder / name, text.encode())
    if console:
        print_table(results, columns, console)


def say_verified(folder: Path) -> int:
    """Print what no longer matches its record; returns the exit code."""
    from report.verify import verify

    count, lines = verify(folder)
    for line in lines:
        print(line)
    print(f"{count} records: {'what no longer matches stands above' if lines else 'everything matches'}")
    return 1 if lines else 0


def main() -> None:
    parser = Arguments("python -m report", "Tables and a page of a finished benchmark.", EXAMPLES)
    parser.add_argument("folder", type=Path, help="a benchmark's results, such as results/demo")
    help_ = "say what no longer is as the records have it; write nothing"
    parser.add_argument("--verify", action="store_true", help=help_)
    with one_line_errors(Aggregate):
        typed = parser.parse_args()
        folder = typed.folder
        check_installation()
        if typed.verify:
            sys.exit(say_verified(folder))
        from rich.console import Console

        write_report(folder, Console(width=140))
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
