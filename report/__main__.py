"""python -m report results/demo"""

import argparse
from pathlib import Path

from rich.console import Console

from engine.record import write_text_whole
from report.page import page
from report.rows import Row, benchmark_of, read_plan, rows
from report.tables import csv_table, latex_table, markdown_table, print_table
from settings.results import Aggregate
from settings.script import one_line_errors


def make(folder: Path) -> list[Row]:
    """Write results.csv, table.md, table.tex and report.html of a finished benchmark's folder; returns the rows. Raises SettingsError."""
    plan = read_plan(folder)
    failed = {
        kind: {s["name"].split()[-1]: s["failed"] for s in plan["stages"] if s["kind"] == kind and "failed" in s}
        for kind in ("forget", "attack")
    }
    made = rows(benchmark_of(plan), folder, failed["forget"], failed["attack"])
    texts = {
        "results.csv": csv_table(made),
        "table.md": markdown_table(made),
        "table.tex": latex_table(made),
        "report.html": page(folder, plan, made),
    }
    for name, text in texts.items():
        write_text_whole(folder / name, text)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables and a page of a finished benchmark.")
    parser.add_argument("folder", type=Path, help="a benchmark's results, such as results/demo")
    folder = parser.parse_args().folder
    with one_line_errors(Aggregate):
        print_table(make(folder), Console(width=140))
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
