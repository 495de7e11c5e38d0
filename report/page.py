"""The figures, logs and records of a benchmark -> one self-contained report.html."""

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from engine.logs import read_records, recorded
from engine.places import ANCHORS
from engine.record import EVAL_RECORD, RECORDS, TRAIN_RECORD, read_json
from engine.result_table import Column, ModelResult
from engine.seeds import seed_groups
from report.cards import make_cards
from report.faces import attack_verdict, read_attack, read_verification
from report.folder import START, Described, FinishedStage
from report.method_notes import method_notes
from report.method_rows import MethodRow, method_rows, nearness
from report.page_table import column_groups, page_table
from report.plots import attack_plots, common_plots, render_plots, verification_plots
from report.ratio_plots import truth_ratio_plots
from report.tables import gate_text
from report.verdict_words import outcome, what_was_done
from report.words import counted, listed, task_names
from settings.results import Scoring
from settings.script import ROOT

TEMPLATE = ROOT / "report" / "template"
JSON_AS_IS = {"ensure_ascii": False, "separators": (",", ":")}  # for Jinja's tojson, which escapes < > & '

Recorded = list[tuple[FinishedStage, dict[str, Any]]]  # stages of the plan, each with what it recorded


def render_page(
    folder: Path,
    told: Described,
    results: list[ModelResult],
    columns: list[Column],
    scoring: dict[str, Scoring],
    *,
    downloads: dict[str, str],
    attacks: dict[str, Any] | None = None,
) -> str:
    """The page of a finished benchmark or of own runs, report.html, as text.

    Everything that comes from data is escaped: by the template, or as JSON without < > &.

    Args:
        folder: Where the page will stand.
        told: What it says of the runs.
        results: The figures of the models, base and gold among them.
        columns: Those that the short tables show.
        scoring: Task -> how it is scored.
        downloads: Name of a file that the page offers -> its text; the page holds it.
        attacks: What `attack_table` made; None: nothing was attacked.

    Raises:
        SettingsError: A log, a record or the data cannot be read.
    """
    rows = method_rows(results)
    judged = {name: each for name, each in first_rows(results).items() if not each.value("failed")}
    places = {method: each.log for method, each in judged.items() if each.log is not None}
    logs = {method: read_json(log) for method, log in places.items()}
    settings = read_json(places["base"].with_name(EVAL_RECORD))["settings"]
    cards = make_cards(logs, settings, scoring)
    stages = [(stage, read_record(folder, stage)) for stage in told.stages]
    names = task_names(scoring)
    # the Truth Ratios of a face are all near 0, so that their distributions show nothing
    ratios = truth_ratios(logs, scoring, rows) if "tasks" in settings else []
    tasks = settings["tasks"] if "tasks" in settings else picture_tasks(logs["base"])
    plots = common_plots(results, tasks, scoring, loss_curves(stages)) + face_plots(places)
    asked = [task for task in names if f"{task}.json" in logs["base"]]
    return load_template().render(
        name=f"{told.name}: forgetting {counted(len(cards.forgotten), 'person', 'people')}",
        done=what_was_done(rows, settings, cards.forgotten),
        forgotten=cards.forgotten,
        outcome=outcome(rows, names),
        gates=gates(results, names),
        **page_table(rows, column_groups(rows, columns, scoring), names),
        plots=[{**each, "svg": Markup(each["svg"])} for each in render_plots(plots)],
        distributions=ratios,
        attacks=attacks,
        sampled=cards.note,
        methods=method_notes([row.label for row in rows if row.is_method], recorded_methods(rows)),
        tasks=[{"key": task, "name": names[task]} for task in asked],
        **run_description(told, stages),
        data=cards.data | {"tasks": names, "downloads": downloads},
        css=template_text("page.css"),
        js=template_text("page.js") + template_text("table.js"),
    )


def first_rows(results: list[ModelResult]) -> dict[str, ModelResult]:
    """Name -> the first seed of each method, base and gold, for what the page shows of one model.

    Of several bases or golds that stand apart the first has the plain name, which methods are set against.
    """
    first: dict[str, ModelResult] = {}
    for group in seed_groups(results):
        if group.method != START:
            is_plain = group.method in ANCHORS and group.method not in first
            first[group.method if is_plain else group.label] = group.results[0]
    return first


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


def recorded_methods(rows: list[MethodRow]) -> dict[str, dict[str, Any]]:
    """Row -> its method, as the training of its first model recorded it, where it did."""
    methods = {}
    for row in rows:
        logs = [result.log for result in row.results if result.log is not None]
        train_meta = read_records(str(logs[0]), logs[0])[1] if logs else {}
        method = recorded(train_meta, "settings", "method")
        if isinstance(method, dict):
            methods[row.label] = method
    return methods


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


def gates(results: list[ModelResult], names: dict[str, str]) -> list[dict[str, Any]]:
    """What must hold before a figure means anything: the attack where models were attacked, the gates of the bases.

    Gates that say the same make one box, which names its seeds.
    """
    attack = attack_verdict(results)
    boxes = [{**attack, "why": [attack["why"]]}] if attack else []
    of_texts: dict[str, list[ModelResult]] = {}
    for result in results:
        if result.method == "base":
            of_texts.setdefault(gate_text(result), []).append(result)
    return boxes + [gate_box(text, bases, names) for text, bases in of_texts.items()]


def gate_box(text: str, bases: list[ModelResult], names: dict[str, str]) -> dict[str, Any]:
    """The gates of bases that say the same, with the figures of each."""
    passed = bases[0].value("gate") == 1
    meaning = "The base knew the people by heart and gold did not."
    if not passed:
        meaning = "Without it the figures below mean nothing."
    seeds = listed(str(base.seed) for base in bases)
    title = f"Memorisation gate, {'seed' if len(bases) == 1 else 'seeds'} {seeds}"
    return {"title": title, "passed": passed, "text": text, "why": [meaning, *(gate_figures(b, names) for b in bases)]}


def gate_figures(base: ModelResult, names: dict[str, str]) -> str:
    """What the gate of one base rests on."""
    figures = []
    for task, memorized in sorted(base.tasks_of("gate_base")):
        if memorized.value is not None:
            rise = base.value("gate_rise", task) or 0
            figures.append(f"{names.get(task, task)}: base {memorized.value:.2f}, rise above gold {rise:.2f}")
    return f"Seed {base.seed}: {'; '.join(figures) or 'no figures'}."


def picture_tasks(log: dict[str, dict]) -> dict[str, dict]:
    """The tasks of a face network's log as a language model's evaluation would record them: all show a picture."""
    return {name.removesuffix(".json"): {"image": "picture"} for name in log}


def face_plots(logs: dict[str, Path]) -> list:
    """The plots that face networks add; `logs`: method -> its log, in a folder of its model's."""
    folders = {method: log.parent.parent for method, log in logs.items()}
    attacks = {method: record for method, model in folders.items() if (record := read_attack(model))}
    verifications = {method: record for method, model in folders.items() if (record := read_verification(model))}
    return attack_plots(attacks) + verification_plots(verifications)


def truth_ratios(logs: dict[str, dict], scoring: dict[str, Scoring], rows: list[MethodRow]) -> list[dict[str, Any]]:
    """The Truth Ratio plots by method; of those that kept what they should, the one nearest to gold is shown first."""
    plots = truth_ratio_plots(logs, scoring)
    nearest = sorted((nearness(row) or 0.0, row.label) for row in rows if row.counts and row.label in plots)
    chosen = nearest[0][1] if nearest else next(iter(plots), None)
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
