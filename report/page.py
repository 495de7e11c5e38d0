"""The figures, logs and records of a benchmark -> one self-contained report.html."""

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from engine.kept import COLLAPSED
from engine.places import ANCHORS
from engine.record import EVAL_RECORD, RECORDS, TRAIN_RECORD, read_json
from engine.result_table import Column, ModelResult
from engine.seeds import SeedGroup, cell_text, seed_groups
from engine.short_tables import row_label
from report.cards import make_cards
from report.faces import attack_verdict, read_attack, read_verification
from report.folder import START, Described, FinishedStage
from report.plots import attack_plots, common_plots, render_plots, truth_ratio_plots, verification_plots
from report.tables import failure_texts, flag_text, gate_text, verdict_text
from settings.results import Scoring
from settings.script import ROOT

TEMPLATE = ROOT / "report" / "template"
JSON_AS_IS = {"ensure_ascii": False, "separators": (",", ":")}  # for Jinja's tojson, which escapes < > & '

Recorded = list[tuple[FinishedStage, dict[str, Any]]]  # stages of the plan, each with what it recorded


def render_page(
    folder: Path, told: Described, results: list[ModelResult], columns: list[Column], scoring: dict[str, Scoring]
) -> str:
    """The page of a finished benchmark or of own runs, report.html, as text.

    Everything that comes from data is escaped: by the template, or as JSON without < > &.

    Args:
        folder: Where the page will stand.
        told: What it says of the runs.
        results: The figures of the models, base and gold among them.
        columns: Those that the table shows.
        scoring: Task -> how it is scored.

    Raises:
        SettingsError: A log, a record or the data cannot be read.
    """
    first = first_seeds(results)
    judged = {each.method: each for each in first if not each.value("failed") and each.method != START}
    places = {method: each.log for method, each in judged.items() if each.log is not None}
    logs = {method: read_json(log) for method, log in places.items()}
    settings = read_json(places["base"].with_name(EVAL_RECORD))["settings"]
    cards = make_cards(logs, settings, scoring)
    stages = [(stage, read_record(folder, stage)) for stage in told.stages]
    # the Truth Ratios of a face are all near 0, so that their distributions show nothing
    ratios = truth_ratios(logs, scoring, first) if "tasks" in settings else []
    tasks = settings["tasks"] if "tasks" in settings else picture_tasks(logs["base"])
    plots = common_plots(results, tasks, scoring, loss_curves(stages)) + face_plots(places)
    return load_template().render(
        **head(told, cards.forgotten, stages),
        verdicts=verdicts(results),
        **result_table(results, columns),
        plots=[{**each, "svg": Markup(each["svg"])} for each in render_plots(plots)],
        distributions=ratios,
        sampled=cards.note,
        **run_description(told, stages),
        data=cards.data,
        css=template_text("page.css"),
        js=template_text("page.js"),
    )


def first_seeds(results: list[ModelResult]) -> list[ModelResult]:
    """The first row of each method, for what the page shows of one seed."""
    return list({result.method: result for result in reversed(results)}.values())[::-1]


def load_template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(TEMPLATE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = JSON_AS_IS
    return environment.get_template("page.html.jinja")


def template_text(name: str) -> Markup:
    return Markup((TEMPLATE / name).read_text(encoding="utf-8"))


# ---- what the stages recorded


def read_record(folder: Path, stage: FinishedStage) -> dict[str, Any]:
    """What a stage left beside its result; nothing if it failed: what lies there then is of an earlier run."""
    if stage.failed:
        return {}
    return read_json(folder / stage.output / RECORDS.get(stage.kind, TRAIN_RECORD))


def loss_curves(stages: Recorded) -> dict[str, list]:
    """Model -> pairs of a step and the loss there."""
    return {stage.model: record["loss"] for stage, record in stages if "loss" in record}


def recorded_settings(stages: Recorded) -> list[dict[str, str]]:
    """Settings and versions that the first stage of each kind recorded, and every forget stage."""
    texts = []
    kinds = set()
    for stage, record in stages:
        if record and (stage.kind == "forget" or stage.kind not in kinds):
            kinds.add(stage.kind)
            text = json.dumps({name: record.get(name) for name in ("settings", "versions")}, indent=1)
            texts.append({"name": f"Settings and versions: {stage.name}", "text": text})
    return texts


# ---- the page's parts


def cost_sentence(stages: Recorded) -> str:
    minutes = sum(stage.seconds for stage, _ in stages) / 60
    memory = max(stage.peak_memory_gb for stage, _ in stages)
    return f"{minutes:.1f} minutes of work in {len(stages)} stages, at most {memory:.1f} GB of memory"


def head(told: Described, forgotten: list[str], stages: Recorded) -> dict[str, str]:
    """The page's title and what was done, in a sentence."""
    done = f"Forgotten: {', '.join(forgotten)}, by {told.methods} methods."
    return {
        "name": f"{told.name}: forgetting {len(forgotten)} people",
        "summary": f"{done} Cost: {cost_sentence(stages)}.",
    }


def verdicts(results: list[ModelResult]) -> list[dict[str, Any]]:
    """What must hold before a figure means anything: the attack where models were attacked, the gate of each base."""
    attack = attack_verdict(results)
    gates = [gate_verdict(result) for result in results if result.method == "base"]
    return [attack, *gates] if attack else gates


def gate_verdict(base: ModelResult) -> dict[str, Any]:
    """The gate of one base in words, with its figures."""
    figures = []
    for task, memorized in sorted(base.tasks_of("gate_base")):
        if memorized.value is not None:
            rise = base.value("gate_rise", task) or 0
            figures.append(f"{task}: base {memorized.value:.2f}, rise {rise:.2f}")
    passed = base.value("gate") == 1
    meaning = "The base knew the people by heart and gold did not"
    if not passed:
        meaning = "Without it the numbers below mean nothing"
    why = f"{meaning} ({'; '.join(figures)})."
    return {"title": "Memorisation gate", "passed": passed, "text": gate_text(base), "why": why}


def result_table(results: list[ModelResult], columns: list[Column]) -> dict[str, Any]:
    """The table's columns and rows, and a note on each model that collapsed or failed."""
    anchors = "base: before forgetting; gold: trained without the forgotten people; start: before it met anybody"
    first = {"heading": "method", "explanation": anchors}
    headings = [{"heading": column.heading, "explanation": column.measure.sentence} for column in columns]
    groups = seed_groups(results)
    several = any(len(group) > 1 for group in groups)
    if several:
        headings.insert(0, {"heading": "seeds", "explanation": "How many; a number is their mean ± standard deviation"})
    lines = []
    for group in groups:
        count = str(len(group))
        counted = [{"text": count, "value": count, "title": None, "bar": None}] if several else []
        cells = [{"text": group.label}, *counted, *(render_cell(group, column) for column in columns)]
        lines.append({"kind": row_kind(group.results[0]), "cells": cells})
    notes = [f"{row_label(each, results)}: {verdict_text(each)}." for each in results if each.figure("verdict").why]
    notes += [f"{row_label(each, results)} {flag_text(each)}." for each in results if each.value("flag")]
    for result in results:
        notes += [f"{row_label(result, results)} {failure}" for failure in failure_texts(result)]
    return {"columns": [first, *headings], "table": lines, "notes": notes}


def render_cell(group: SeedGroup, column: Column) -> dict[str, Any]:
    """A cell as the template takes it: text, value to sort by, reason to show on hovering, share of a bar."""
    mean = group.spread(column.measure.key, column.task).mean
    has_bar = mean is not None and column.measure.key == "distance_people"
    return {
        "text": cell_text(column, group),
        "value": "" if mean is None else repr(mean),
        "title": reasons(group, column),
        "bar": round(100 * min(1.0, max(0.0, mean)), 1) if has_bar else None,
    }


def reasons(group: SeedGroup, column: Column) -> str | None:
    """Why a cell is what it is: of one seed its reason, of several that of each; None: nothing says why."""
    found = {}
    for result in group.results:
        figure = column.figure(result)
        reason = figure.why or (result.figure("failed").why if figure.value is None else None)
        found |= {result.seed: reason} if reason else {}
    if len(set(found.values())) <= 1 and len(found) in (0, len(group)):
        return next(iter(found.values()), None)
    return "; ".join(f"seed {seed}: {reason}" for seed, reason in found.items())


def row_kind(result: ModelResult) -> str:
    """The row's class in the style sheet: base, gold, method, or out for a row that does not count."""
    if result.method in ANCHORS:
        return result.method
    return "out" if result.value("flag") == COLLAPSED or result.value("failed") else "method"


def picture_tasks(log: dict[str, dict]) -> dict[str, dict]:
    """The tasks of a face network's log as a language model's evaluation would record them: all show a picture."""
    return {name.removesuffix(".json"): {"image": "picture"} for name in log}


def face_plots(logs: dict[str, Path]) -> list:
    """The plots that face networks add; `logs`: method -> its log, in a folder of its model's."""
    folders = {method: log.parent.parent for method, log in logs.items()}
    attacks = {method: record for method, model in folders.items() if (record := read_attack(model))}
    verifications = {method: record for method, model in folders.items() if (record := read_verification(model))}
    return attack_plots(attacks) + verification_plots(verifications)


def truth_ratios(
    logs: dict[str, dict], scoring: dict[str, Scoring], results: list[ModelResult]
) -> list[dict[str, Any]]:
    """The Truth Ratio plots by method; the method nearest to gold is shown first."""
    plots = truth_ratio_plots(logs, scoring)
    distances = {each.method: each.value("distance_to_gold") for each in results if row_kind(each) == "method"}
    distances = {method: distance for method, distance in distances.items() if distance is not None}
    chosen = min(distances, key=distances.get) if distances else next(iter(plots), None)
    return [{"method": method, "svg": Markup(svg), "chosen": method == chosen} for method, svg in plots.items()]


def run_description(told: Described, stages: Recorded) -> dict[str, Any]:
    """Which run this was: seeds and cost, commands, stages, settings."""
    return {
        "cost": f"Seeds {', '.join(map(str, told.seeds))}; {cost_sentence(stages)}.",
        "again": told.command,
        "commands": [stage.command for stage, _ in stages if stage.command],
        "stages": [describe_stage(stage, record) for stage, record in stages],
        "settings": recorded_settings(stages),
    }


def describe_stage(stage: FinishedStage, record: dict[str, Any]) -> dict[str, str]:
    """A stage's cost, with the fingerprints of model and data that its record holds."""
    data = record.get("data", "")
    if isinstance(data, dict):
        data = ", ".join(sorted({each["fingerprint"] for each in data.values()}))
    return {
        "name": stage.name,
        "seconds": f"{stage.seconds:.0f}",
        "memory": f"{stage.peak_memory_gb:.1f}",
        "model": record.get("model", ""),
        "data": data,
    }
