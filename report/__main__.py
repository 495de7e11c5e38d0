"""Evaluated models -> tables and report.html: python -m report results/demo

The folder is that of a finished benchmark, or several folders hold own runs: base and gold are found by the records of
the runs, or are told with --base and --gold. python -m report --verify results/demo says what no longer is as the
records of models, logs and rows have it.

results.parquet is the long table, one line per figure. results.csv, table.md, table.tex and report.html are its views,
and attacks.md where models that read were attacked.
"""

import contextlib
import gc
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.record import OWN_RUNS, PLAN, VIEWS, write_bytes_whole, write_json
from report.folder import Described, read_plan
from settings.results import Aggregate, Scoring
from settings.script import Arguments, SettingsError, check_installation, one_line_errors

if TYPE_CHECKING:
    from rich.console import Console

    from engine.result_table import ModelResult
    from engine.seeds import SeedGroup

EXAMPLES = (
    "python -m report results/demo",
    "python -m report models/mm --gold models/mm/gold_seed0 --base models/mm/base --out results/mine",
    "python -m report --verify results/demo",
)


@contextlib.contextmanager
def no_search_for_cycles() -> Iterator[None]:
    """Python's garbage collector is off meanwhile: it would look through all logs again and again, and frees none."""
    looked = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looked:
            gc.enable()


@no_search_for_cycles()
def write_report(folder: Path, console: "Console | None" = None, out: Path | None = None) -> None:
    """Write a finished benchmark's tables and its page.

    Args:
        folder: The benchmark's results.
        console: Where the short table is printed; None: nowhere.
        out: The folder that is written; None: the benchmark's own.

    Raises:
        SettingsError: `folder` holds no finished benchmark, or one of its logs is missing or broken.
    """
    plan = read_plan(folder)
    told = plan.described

    # here, so that --help and a wrong folder need not wait for the libraries of plots and data
    from report.rows import aggregation_settings, benchmark_results, further_golds

    results = benchmark_results(folder, plan)
    further = further_golds(folder, plan)
    if out is not None:
        check_ours(out)
        write_json(out / OWN_RUNS, {"benchmark": str(folder.resolve())})
    scoring = aggregation_settings(plan.benchmark).scoring
    write_tables(folder, out or folder, told, results, scoring, console=console, further=further)


@no_search_for_cycles()
def write_own_report(
    folders: Sequence[Path],
    out: Path,
    *,
    golds: Sequence[str],
    base: Sequence[str],
    start: str | None,
    console: "Console",
) -> None:
    """Write the tables and the page of evaluated models that no benchmark file made.

    Args:
        folders: Where they stand.
        out: The folder that is written.
        golds: What names gold, one text for each seed; none: it is found by the runs' records.
        base: The same of the model before forgetting.
        start: The same of the model before it was taught anybody.
        console: Where the short table is printed, and what is missing.

    Raises:
        SettingsError: Base or gold is not there, or a log or record is broken.
    """
    from report.own_runs import describe, find_own_runs, log_of, own_results

    check_ours(out)
    chosen = find_own_runs(folders, golds, base, start)
    results, notes, settings = own_results(chosen, str(out / "results.csv"))
    models = {"bases": chosen.bases, "golds": chosen.golds, "runs": chosen.runs}
    logs = {name: list(map(log_of, each)) for name, each in models.items()}
    write_json(out / OWN_RUNS, logs | {"start": log_of(chosen.start) if chosen.start else None})
    command = shlex.join(["python", "-m", "report", *sys.argv[1:]])
    told = describe(chosen, folders[0].resolve().name, command)
    write_tables(out, out, told, results, settings.scoring, console=console)
    for line in [*notes, *chosen.notes]:
        console.print(line, markup=False, soft_wrap=True)


def check_ours(out: Path) -> None:
    """Raise SettingsError where files stand in the way that no page of ours was."""
    there = [name for name in VIEWS if (out / name).exists()]
    if there and not (out / OWN_RUNS).is_file():
        raise SettingsError(f"{str(out / there[0])!r} is there, and no page of own runs wrote it; --out names a folder")


def write_tables(
    folder: Path,
    out: Path,
    told: Described,
    results: "list[ModelResult]",
    scoring: dict[str, Scoring],
    *,
    console: "Console | None",
    further: "Sequence[SeedGroup]" = (),
) -> None:
    """Write the tables and the page of some models into `out`.

    Args:
        folder: Below which their stages stand.
        out: The folder that is written.
        told: What the page says of the runs.
        results: The figures of the models.
        scoring: Task -> how it is scored.
        console: Where the short table is printed; None: nowhere.
        further: Golds that have no row, and stand in the table of attacks alone.
    """
    from engine.result_table import short_columns
    from engine.table_files import parquet, wide_csv
    from report.attack_table import attack_table, attacks_in_markdown
    from report.method_rows import method_rows
    from report.page import render_page
    from report.tables import latex_table, markdown_table, print_table
    from report.words import task_names

    columns = short_columns(results, scoring)
    texts = {
        "results.csv": wide_csv(results),
        "table.md": markdown_table(results, columns),
        "table.tex": latex_table(results, columns),
    }
    offered = {name: texts[name] for name in ("results.csv", "table.tex")}
    attacks = attack_table([*method_rows(results), *further], task_names(scoring))
    if attacks:
        texts["attacks.md"] = attacks_in_markdown(attacks)
    page = {"downloads": offered, "attacks": attacks}
    texts["report.html"] = render_page(folder, told, results, columns, scoring, **page)
    write_bytes_whole(out / "results.parquet", parquet(results))
    for name, text in texts.items():
        write_bytes_whole(out / name, text.encode())
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
    about = "Tables and a page of a finished benchmark, or of any evaluated models."
    parser = Arguments("python -m report", about, EXAMPLES)
    help_ = "a benchmark's results, such as results/demo, or folders in which evaluated models stand"
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder", help=help_)
    help_ = "say what no longer is as the records have it; write nothing"
    parser.add_argument("--verify", action="store_true", help=help_)
    help_ = "models that never met the people to forget: logs, folders or globs; by default those that the records name"
    parser.add_argument("--gold", nargs="+", action="extend", default=[], help=help_)
    parser.add_argument("--base", nargs="+", action="extend", default=[], help="the models before forgetting, likewise")
    parser.add_argument("--start", help="the model before it was taught anybody, likewise")
    parser.add_argument("--out", type=Path, help="the folder to write; by default the folder, where it is one")
    with one_line_errors(Aggregate):
        typed = parser.parse_args()
        check_installation()
        if typed.verify:
            sys.exit(max(say_verified(folder) for folder in typed.folders))
        out = write_page(typed)
    print(f"report: {out / 'report.html'}")


def write_page(typed: Namespace) -> Path:
    """Write the page that was asked for; returns its folder."""
    from rich.console import Console

    console = Console(width=140)
    first = typed.folders[0]
    told = bool(typed.gold or typed.base or typed.start)
    if len(typed.folders) == 1 and not told and (is_benchmark(first) or not first.is_dir()):
        write_report(first, console, typed.out)
        return typed.out or first
    if typed.out is None and len(typed.folders) > 1:
        raise SettingsError(f"{len(typed.folders)} folders: --out names the one that the page goes to")
    out = typed.out or first
    named = {"golds": typed.gold, "base": typed.base, "start": typed.start}
    write_own_report(typed.folders, out, **named, console=console)
    return out


def is_benchmark(folder: Path) -> bool:
    """Whether run_benchmark.py left a plan in a folder, be it whole or not."""
    return (folder / PLAN).exists()


if __name__ == "__main__":
    main()
