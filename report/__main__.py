"""A finished benchmark's folder -> results.csv, table.md, table.tex and report.html: python -m report results/demo"""

import argparse
from pathlib import Path
from typing import Any

from engine.record import write_text_whole
from report.folder import read_plan
from settings.results import Aggregate
from settings.script import check_installation, one_line_errors


def write_report(folder: Path) -> list[dict[str, Any]]:
    """Write a finished benchmark's tables and its page into its folder.

    Returns:
        The result rows.

    Raises:
        SettingsError: `folder` holds no finished benchmark, or one of its logs is missing or broken.
    """
    plan = read_plan(folder)

    # here, so that --help and a wrong folder need not wait for the libraries of plots and data
    from report.page import render_page
    from report.rows import result_rows
    from report.tables import csv_table, latex_table, markdown_table

    rows = result_rows(folder, plan)
    texts = {
        "results.csv": csv_table(rows),
        "table.md": markdown_table(rows),
        "table.tex": latex_table(rows),
        "report.html": render_page(folder, plan, rows),
    }
    for name, text in texts.items():
        write_text_whole(folder / name, text)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m report", description="Tables and a page of a finished benchmark.")
    parser.add_argument("folder", type=Path, help="a benchmark's results, such as results/demo")
    folder = parser.parse_args().folder
    with one_line_errors(Aggregate):
        check_installation()
        rows = write_report(folder)

    from rich.console import Console

    from report.tables import print_table

    print_table(rows, Console(width=140))
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
