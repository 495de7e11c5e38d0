"""A benchmark's folder -> results.csv, table.md, table.tex and one self-contained report.html: python report.py results/demo"""

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

import report_faces
from aggregate_eval_stat import aggregate
from report_cards import card_data
from report_plots import distribution_plots, plots
from run_record import AGGREGATED, EVAL_RECORD, RECORDS, TRAIN_RECORD, write_text_whole
from run_settings import ROOT, Aggregate, Benchmark, Run, Scoring, SettingsError, compose, one_line_errors

PLAN = "benchmark.json"  # what run_benchmark leaves of its settings and stages
Row = dict[str, Any]

# column of the row -> heading, format, what it says
TABLE = {
    **report_faces.TABLE,
    "Distance to gold": ("distance to gold ↓", ".2f", "Mean over measures and forget tasks of |model - gold| / |base - gold|"),
    "Distance to gold noise floor": ("noise floor", ".2f", "Distance to gold of a second gold model of another seed"),
    "Model Utility / gold": ("utility / gold ↑", ".2f", "Harmonic mean of Probability, ROUGE and Truth Ratio on everything else, relative to gold"),
    "Forget Quality eval_forget_qa": ("forget quality, words ↑", ".1e", "p-value of telling the model's Truth Ratios on questions from gold's"),
    "Forget Quality eval_forget_facerec": ("forget quality, names ↑", ".1e", "p-value of telling the model's Truth Ratios on face names from gold's"),
    "Exact Memorization eval_forget_qa": ("memorised, words", ".2f", "Share of the forgotten answers' tokens that the model would still say"),
    "Exact Memorization eval_forget_facerec": ("memorised, names", ".2f", "Share of the forgotten names' tokens that the model would still say"),
    "Forget Quality": ("forget quality ↑", ".1e", "p-value of telling the model's Truth Ratios on questions from gold's"),
    "Exact Memorization eval_log_forget": ("memorised", ".2f", "Share of the forgotten answers' tokens that the model would still say"),
    "Collapsed": ("collapsed", "", "Whether the model lost what it should have kept: half of gold's utility, or degenerate answers"),
    "Train seconds": ("train s", ".0f", "Seconds of training"),
}
TEXT_ONLY = ("Forget Quality", "Exact Memorization eval_log_forget")  # captions in the multimodal track, where questions in words stand beside them
REASONS = {"Collapsed": "Collapsed why", "Distance to gold": "Distance to gold undefined"}


# ---- rows


def gold_seeds(benchmark: Benchmark, seed: int) -> list[int]:
    """Seeds of the gold models that belong to a base of `seed`: its own first, then far ones that no base uses."""
    return [seed + 1000 * number for number in range(benchmark.golds)]


def log_file(folder: Path, model: str) -> Path:
    return folder / "models" / model / "eval_results" / AGGREGATED


def read_plan(folder: Path) -> dict[str, Any]:
    """The benchmark's settings and finished stages. Raises SettingsError if `folder` holds no finished benchmark."""
    try:
        return json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise SettingsError(f"{folder} holds no finished benchmark ({PLAN} is missing or broken): python run_benchmark.py makes one") from None


def benchmark_of(plan: dict[str, Any]) -> Benchmark:
    settings = plan["benchmark"]
    return Benchmark(**{**settings, "runs": {name: Run(**run) for name, run in settings["runs"].items()}})


def rows(benchmark: Benchmark, folder: Path, failed: dict[str, str], not_attacked: dict[str, str]) -> list[Row]:
    """One aggregated row for base, gold and each method, per seed; of a model in `failed` (by name), why, as for one whose attack failed."""
    made, other_golds = [], {}
    for seed in benchmark.seeds:
        golds = [str(log_file(folder, f"gold_seed{gold_seed}")) for gold_seed in gold_seeds(benchmark, seed)]
        for row in ("base", "gold", *benchmark.runs):
            if why := failed.get(f"{row}_seed{seed}"):
                made.append({"Method": row, "Seed": seed, "Failed": why})
                continue
            overrides = [
                f"ckpt_result={log_file(folder, f'{row}_seed{seed}')}",
                f"retain_result=[{','.join(golds)}]",
                f"base_result={log_file(folder, f'base_seed{seed}')}",
                f"scoring={benchmark.modality}",
                f"method_name={row}",
                f"save_file={folder}/results.csv",
            ]
            model = folder / "models" / f"{row}_seed{seed}"
            why = {"Attack failed": not_attacked[model.name]} if model.name in not_attacked else {}
            made.append(aggregate(compose("aggregate_eval_stat", Aggregate, overrides)) | report_faces.face_columns(model) | why)
        other_golds[seed] = [report_faces.face_columns(folder / "models" / f"gold_seed{other}") for other in gold_seeds(benchmark, seed)[1:]]
    report_faces.add_distances(made, other_golds)
    return made


# ---- tables


def known_columns(made: list[Row]) -> list[str]:
    """The headline columns that some row has, or says why it has none."""
    known = [column for column in TABLE if any(row.get(column) is not None or row.get(f"{column} why") for row in made)]
    return [column for column in known if column not in TEXT_ONLY or "Forget Quality eval_forget_qa" not in known]


def cell(row: Row, column: str) -> str:
    value, spec = row.get(column), TABLE[column][1]
    if value is None:
        return "not resolvable" if "not resolvable" in row.get(f"{column} why", "") else "–"
    return format(value, spec) if isinstance(value, int | float) and spec else str(value)


def name_of(row: Row, made: list[Row]) -> str:
    """The method, with its seed where there are several."""
    return row["Method"] if len({each["Seed"] for each in made}) == 1 else f"{row['Method']}, seed {row['Seed']}"


def table_of(made: list[Row]) -> list[list[str]]:
    """Headings and cells as text."""
    columns = known_columns(made)
    return [["method", *(TABLE[column][0] for column in columns)], *([name_of(row, made), *(cell(row, column) for column in columns)] for row in made)]


def markdown_table(made: list[Row]) -> str:
    lines = [[text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for text in line] for line in table_of(made)]
    ruled = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled) + "\n"


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--"}
LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}


def latex_table(made: list[Row]) -> str:
    """The same for LaTeX with the package booktabs."""
    lines = ["  " + " & ".join("".join(LATEX.get(letter, letter) for letter in text) for text in line) + r" \\" for line in table_of(made)]
    columns = "l" + "r" * (len(table_of(made)[0]) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"  \toprule", lines[0], r"  \midrule", *lines[1:], r"  \bottomrule", r"\end{tabular}", ""])


def csv_table(made: list[Row]) -> str:
    """All columns; one that a row lacks stays empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(column for row in made for column in row)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(made)
    return stream.getvalue()


def print_table(made: list[Row], console: Console) -> None:
    if verdict := report_faces.attack_verdict(made):  # before any figure of a method
        console.print(f"attack {verdict['text']}: {verdict['why']}", markup=False)
    first, *others = table_of(made)
    table = Table()
    for number, text in enumerate(first):
        table.add_column(text, justify="right" if number else "left")
    for line in others:
        table.add_row(*line)
    console.print(table)
    for row in made:
        if row["Method"] == "base":
            console.print(f"memorisation gate, seed {row['Seed']}: {row['Gate']}", markup=False)
        for what in ("Failed", "Attack failed"):
            if what in row:
                console.print(f"{row['Method']}, seed {row['Seed']}, {what.lower()}: {row[what]}", markup=False)


# ---- the page


def html_cell(row: Row, column: str) -> dict[str, Any]:
    value = row.get(column)
    number = isinstance(value, int | float)
    bar = round(100 * min(1.0, max(0.0, value)), 1) if number and column == "Distance to gold" else None
    reason = row.get(REASONS.get(column, f"{column} why")) or (row.get("Failed") if value is None else None)
    return {"text": cell(row, column), "value": "" if value is None else repr(value) if number else value, "title": reason, "bar": bar}


def kind_of(row: Row) -> str:
    return row["Method"] if row["Method"] in ("base", "gold") else "out" if row.get("Collapsed") == "yes" or "Failed" in row else "method"


def gate_verdict(row: Row) -> dict[str, Any]:
    """The gate of one base in words, with its figures."""
    tasks = {name.split()[-1] for name, value in row.items() if name.startswith("Gate base ") and value is not None}
    figures = [f"{task}: base {row[f'Gate base {task}']:.2f}, rise {row[f'Gate rise {task}'] or 0:.2f}" for task in sorted(tasks)]
    passed = row["Gate"] == "passed"
    meaning = "the base knew the people by heart and gold did not" if passed else "without it the numbers below mean nothing"
    return {"title": "Memorisation gate", "passed": passed, "text": row["Gate"], "why": f"{meaning[0].upper()}{meaning[1:]} ({'; '.join(figures)})."}


def verdicts(made: list[Row]) -> list[dict[str, Any]]:
    """What must hold before a figure means anything: the attack's verdict where models were attacked, the gate of each base."""
    attack = report_faces.attack_verdict(made)
    return [*([attack] if attack else []), *(gate_verdict(row) for row in made if row["Method"] == "base")]


def record_of(stage: dict[str, Any]) -> dict[str, Any]:
    """What a stage left beside its result; nothing if it failed: what lies there then is of an earlier run."""
    file = Path(stage["output"]) / RECORDS.get(stage["kind"], TRAIN_RECORD)
    return json.loads(file.read_text(encoding="utf-8")) if "failed" not in stage else {}


def stage_row(stage: dict[str, Any], record: dict[str, Any]) -> dict[str, str]:
    """A stage's cost, with the fingerprints that its record holds."""
    data = record.get("data", "")
    data = ", ".join(sorted({each["fingerprint"] for each in data.values()})) if isinstance(data, dict) else data
    cost = {"seconds": f"{stage['seconds']:.0f}", "memory": f"{stage['peak_memory_gb']:.1f}"}
    return {"name": stage["name"], **cost, "model": record.get("model", ""), "data": data}


def settings_of(stages: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, str]]:
    """The settings that the first finetune, each forget and the first eval run recorded, and the versions."""
    chosen, seen = [], set()
    for stage, record in stages:
        if record and (stage["kind"] == "forget" or stage["kind"] not in seen):
            seen.add(stage["kind"])
            text = json.dumps({"settings": record["settings"], "versions": record["versions"]}, indent=1)
            chosen.append({"name": f"Settings and versions: {stage['name']}", "text": text})
    return chosen


def page(folder: Path, plan: dict[str, Any], made: list[Row]) -> str:
    """report.html as text. Everything that comes from data is escaped: by the template, or as JSON without < > &."""
    benchmark = benchmark_of(plan)
    first = [row for row in made if row["Seed"] == benchmark.seeds[0]]
    files = {row["Method"]: log_file(folder, f"{row['Method']}_seed{row['Seed']}") for row in first if "Failed" not in row}
    logs = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    settings = json.loads((files["base"].parent / EVAL_RECORD).read_text(encoding="utf-8"))["settings"]
    scoring = compose("aggregate_eval_stat", Aggregate, [f"scoring={benchmark.modality}"]).scoring
    stages = [(stage, record_of(stage)) for stage in plan["stages"]]
    make_cards, tasks = (card_data, settings["tasks"]) if "tasks" in settings else (report_faces.face_cards, report_faces.TASKS)
    cards, people, sampled = make_cards(logs, settings, scoring)
    figures = report_faces.face_plots(folder, {method: file.parent.parent.name for method, file in files.items()})
    minutes, memory = sum(stage["seconds"] for stage, _ in stages) / 60, max(stage["peak_memory_gb"] for stage, _ in stages)
    cost = f"{minutes:.1f} minutes of work in {len(stages)} stages, at most {memory:.1f} GB of memory"
    losses = {stage["name"].split()[-1]: record["loss"] for stage, record in stages if "loss" in record}
    source = jinja2.Environment(loader=jinja2.FileSystemLoader(ROOT / "report_page"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return source.get_template("page.html.jinja").render(
        name=f"{benchmark.name}: forgetting {len(people)} people",
        summary=f"Forgotten: {', '.join(people)}, by {len(benchmark.runs)} methods. Cost: {cost}.",
        verdicts=verdicts(made),
        **html_table(made),
        plots=[{**each, "svg": Markup(each["svg"])} for each in plots(made, tasks, scoring, losses, figures)],
        distributions=distributions(logs, scoring, first) if make_cards is card_data else [],  # a face's Truth Ratios are all near 0
        sampled=sampled,
        cost=f"Seeds {', '.join(map(str, benchmark.seeds))}; {cost}.",
        again=plan["command"],
        commands=[stage["command"] for stage, _ in stages],
        stages=[stage_row(*each) for each in stages],
        settings=settings_of(stages),
        data=Markup(as_script(cards)),
        css=own_file("page.css"),
        js=own_file("page.js"),
    )


def own_file(name: str) -> Markup:
    return Markup((ROOT / "report_page" / name).read_text(encoding="utf-8"))


def html_table(made: list[Row]) -> dict[str, Any]:
    """The table's columns and rows, and a note on each that collapsed or failed."""
    columns = known_columns(made)
    headings = [{"heading": TABLE[column][0], "explanation": TABLE[column][2]} for column in columns]
    collapsed = [f"{name_of(row, made)} collapsed: {row['Collapsed why']}." for row in made if row.get("Collapsed") == "yes"]
    return {
        "columns": [{"heading": "method", "explanation": "base: before forgetting; gold: trained without the forgotten people"}, *headings],
        "table": [{"kind": kind_of(row), "cells": [{"text": name_of(row, made)}, *(html_cell(row, column) for column in columns)]} for row in made],
        "notes": collapsed + [f"{name_of(row, made)} {what.lower()}: {row[what]}" for row in made for what in ("Failed", "Attack failed") if what in row],
    }


def distributions(logs: dict[str, dict], scoring: dict[str, Scoring], rows: list[Row]) -> list[dict[str, Any]]:
    """The Truth Ratio plots by method; the one nearest to gold is shown first."""
    drawn = distribution_plots(logs, {name: each for name, each in scoring.items() if each.group == "forget"})
    ranked = {row["Method"]: row["Distance to gold"] for row in rows if kind_of(row) == "method" and row["Distance to gold"] is not None}
    chosen = min(ranked, key=ranked.get) if ranked else next(iter(drawn), None)
    return [{"method": method, "svg": Markup(svg), "chosen": method == chosen} for method, svg in drawn.items()]


def as_script(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def make(folder: Path) -> list[Row]:
    """Write results.csv, table.md, table.tex and report.html of a finished benchmark's folder; returns the rows. Raises SettingsError."""
    plan = read_plan(folder)
    failed = {kind: {s["name"].split()[-1]: s["failed"] for s in plan["stages"] if s["kind"] == kind and "failed" in s} for kind in ("forget", "attack")}
    made = rows(benchmark_of(plan), folder, failed["forget"], failed["attack"])
    texts = {"results.csv": csv_table(made), "table.md": markdown_table(made), "table.tex": latex_table(made), "report.html": page(folder, plan, made)}
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
