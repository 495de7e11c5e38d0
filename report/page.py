"""A benchmark's folder -> results.csv, table.md, table.tex and one self-contained report.html: python report.py results/demo"""

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from engine.record import EVAL_RECORD, RECORDS, TRAIN_RECORD
from report import faces
from report.cards import card_data
from report.plots import distribution_plots, plots
from report.rows import Row, benchmark_of, log_file
from report.tables import REASONS, TABLE, cell, known_columns, name_of
from settings.results import Aggregate, Scoring
from settings.script import ROOT, compose

# ---- the page


def html_cell(row: Row, column: str) -> dict[str, Any]:
    value = row.get(column)
    number = isinstance(value, int | float)
    bar = round(100 * min(1.0, max(0.0, value)), 1) if number and column == "Distance to gold" else None
    reason = row.get(REASONS.get(column, f"{column} why")) or (row.get("Failed") if value is None else None)
    return {
        "text": cell(row, column),
        "value": "" if value is None else repr(value) if number else value,
        "title": reason,
        "bar": bar,
    }


def kind_of(row: Row) -> str:
    return (
        row["Method"]
        if row["Method"] in ("base", "gold")
        else "out"
        if row.get("Collapsed") == "yes" or "Failed" in row
        else "method"
    )


def gate_verdict(row: Row) -> dict[str, Any]:
    """The gate of one base in words, with its figures."""
    tasks = {name.split()[-1] for name, value in row.items() if name.startswith("Gate base ") and value is not None}
    figures = [
        f"{task}: base {row[f'Gate base {task}']:.2f}, rise {row[f'Gate rise {task}'] or 0:.2f}"
        for task in sorted(tasks)
    ]
    passed = row["Gate"] == "passed"
    meaning = (
        "the base knew the people by heart and gold did not" if passed else "without it the numbers below mean nothing"
    )
    return {
        "title": "Memorisation gate",
        "passed": passed,
        "text": row["Gate"],
        "why": f"{meaning[0].upper()}{meaning[1:]} ({'; '.join(figures)}).",
    }


def verdicts(made: list[Row]) -> list[dict[str, Any]]:
    """What must hold before a figure means anything: the attack's verdict where models were attacked, the gate of each base."""
    attack = faces.attack_verdict(made)
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
    files = {
        row["Method"]: log_file(folder, f"{row['Method']}_seed{row['Seed']}") for row in first if "Failed" not in row
    }
    logs = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    settings = json.loads((files["base"].parent / EVAL_RECORD).read_text(encoding="utf-8"))["settings"]
    scoring = compose("aggregate_eval_stat", Aggregate, [f"scoring={benchmark.modality}"]).scoring
    stages = [(stage, record_of(stage)) for stage in plan["stages"]]
    make_cards, tasks = (card_data, settings["tasks"]) if "tasks" in settings else (faces.face_cards, faces.TASKS)
    cards, people, sampled = make_cards(logs, settings, scoring)
    figures = faces.face_plots(folder, {method: file.parent.parent.name for method, file in files.items()})
    minutes, memory = (
        sum(stage["seconds"] for stage, _ in stages) / 60,
        max(stage["peak_memory_gb"] for stage, _ in stages),
    )
    cost = f"{minutes:.1f} minutes of work in {len(stages)} stages, at most {memory:.1f} GB of memory"
    losses = {stage["name"].split()[-1]: record["loss"] for stage, record in stages if "loss" in record}
    source = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "report" / "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return source.get_template("page.html.jinja").render(
        name=f"{benchmark.name}: forgetting {len(people)} people",
        summary=f"Forgotten: {', '.join(people)}, by {len(benchmark.runs)} methods. Cost: {cost}.",
        verdicts=verdicts(made),
        **html_table(made),
        plots=[{**each, "svg": Markup(each["svg"])} for each in plots(made, tasks, scoring, losses, figures)],
        distributions=distributions(logs, scoring, first)
        if make_cards is card_data
        else [],  # a face's Truth Ratios are all near 0
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
    return Markup((ROOT / "report" / "template" / name).read_text(encoding="utf-8"))


def html_table(made: list[Row]) -> dict[str, Any]:
    """The table's columns and rows, and a note on each that collapsed or failed."""
    columns = known_columns(made)
    headings = [{"heading": TABLE[column][0], "explanation": TABLE[column][2]} for column in columns]
    collapsed = [
        f"{name_of(row, made)} collapsed: {row['Collapsed why']}." for row in made if row.get("Collapsed") == "yes"
    ]
    return {
        "columns": [
            {"heading": "method", "explanation": "base: before forgetting; gold: trained without the forgotten people"},
            *headings,
        ],
        "table": [
            {
                "kind": kind_of(row),
                "cells": [{"text": name_of(row, made)}, *(html_cell(row, column) for column in columns)],
            }
            for row in made
        ],
        "notes": collapsed
        + [
            f"{name_of(row, made)} {what.lower()}: {row[what]}"
            for row in made
            for what in ("Failed", "Attack failed")
            if what in row
        ],
    }


def distributions(logs: dict[str, dict], scoring: dict[str, Scoring], rows: list[Row]) -> list[dict[str, Any]]:
    """The Truth Ratio plots by method; the one nearest to gold is shown first."""
    drawn = distribution_plots(logs, {name: each for name, each in scoring.items() if each.group == "forget"})
    ranked = {
        row["Method"]: row["Distance to gold"]
        for row in rows
        if kind_of(row) == "method" and row["Distance to gold"] is not None
    }
    chosen = min(ranked, key=ranked.get) if ranked else next(iter(drawn), None)
    return [{"method": method, "svg": Markup(svg), "chosen": method == chosen} for method, svg in drawn.items()]


def as_script(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return (
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )
