"""What a face-recognition benchmark adds to the report: columns of verification and attacks, the verdict on the attacks, ROC curves and distributions."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torchvision.transforms.functional as pictures_to
from matplotlib.figure import Figure

from attack_scoring import ATTACK
from eval_metrics import distance_to_gold
from face_pictures import read_pictures
from face_scoring import TASKS as face_tasks
from face_settings import Album
from report_cards import SAMPLED_PEOPLE, SHOWN, as_url, compared
from report_plots import BLUE, GREY, STYLE
from run_record import VERIFICATION
from run_settings import Scoring

# column of the row -> heading, format, what it says
TABLE = {
    "U-LiRA accuracy forget": (
        "U-LiRA, forgotten",
        ".3f",
        "Accuracy of telling forgotten people from people never met, by likelihood ratio; .5: nothing is told",
    ),
    "U-LiRA AUC forget": ("U-LiRA AUC", ".3f", "The same over all thresholds"),
    "U-LiRA TPR at 1% FPR forget": ("U-LiRA TPR at 1 %", ".3f", "Share of the forgotten that score above all but 1 % of those never met"),
    "U-MIA accuracy forget": (
        "U-MIA, forgotten",
        ".3f",
        "Accuracy of the population attack, logistic regression or decision tree, that shadow models held out for it preferred",
    ),
    "U-LiRA accuracy retain": ("U-LiRA, kept", ".3f", "Accuracy of telling kept people from people never met"),
    "Exact Memorization eval_forget_faces": ("accuracy, forgotten", ".3f", "Share of the forgotten people's queries that are nearest to their own person"),
    "Exact Memorization eval_retain_faces": ("accuracy, kept", ".3f", "Share of the kept people's queries that are nearest to their own person"),
    "Exact Memorization eval_holdout_faces": ("accuracy, never met", ".3f", "The same of people that the network never met"),
    "EER forget": ("EER, forgotten", ".3f", "Equal error rate of verifying the forgotten people"),
}
ATTACKED = ("accuracy", "auc", "TPR at 1% FPR", "TPR at 0.1% FPR")
TASKS = {task: {"image": "picture"} for task in face_tasks.values()}  # every task shows a picture

Row = dict[str, Any]


def read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def attack_of(model: Path) -> dict[str, Any] | None:
    """The figures of the attack beside a model; None: it was not attacked."""
    return read(model / "attack_results" / ATTACK)


def face_columns(model: Path) -> Row:
    """Verification and attack figures that stand beside a model, as columns; none for a model of another track."""
    row: Row = {}
    for group, figures in (read(model / "eval_results" / VERIFICATION) or {}).items():
        row |= {f"EER {group}": figures["eer"]}
    attacked = attack_of(model)
    for pool, of_pool in (attacked["pools"] if attacked else {}).items():
        attacks = of_pool["attacks"]
        for attack, figures in attacks.items():
            for name in ATTACKED:
                column = f"{attack} {name.replace('auc', 'AUC')} {pool}"
                row |= {column: figures[name]["value"], f"{column} low": figures[name]["low"], f"{column} high": figures[name]["high"]}
                row |= {f"{column} why": figures[name]["why"]} if figures[name]["why"] else {}
        row[f"U-MIA attack {pool}"] = of_pool["U-MIA attack"]
    return row


def add_distances(rows: list[Row]) -> None:
    """Add the distance to gold, (model - gold) / (base - gold), of every face column to each seed's rows in place."""
    for seed in {row["Seed"] for row in rows}:
        own = {row["Method"]: row for row in rows if row["Seed"] == seed}
        base, gold = own.get("base", {}), own.get("gold", {})
        for column in [name for name in base if is_figure(name) and name in gold]:
            for row in own.values():
                if None not in (row.get(column), base[column], gold[column]):
                    row[f"Distance to gold: {column}"] = distance_to_gold(row[column], base[column], gold[column]).value


def is_figure(column: str) -> bool:
    return column.startswith(("EER", "U-LiRA", "U-MIA")) and not column.startswith("U-MIA attack") and not column.endswith((" low", " high", " why"))


def attack_verdict(rows: list[Row]) -> dict[str, Any] | None:
    """Whether the attack can tell anything: gold's accuracy on the forgotten near 1/2, and the base's clearly above it. None: nothing was attacked.

    Near: 1/2 lies in gold's interval. Clearly above: the intervals do not touch. Without intervals neither is known.
    """
    own = {row["Method"]: row for row in reversed(rows)}  # of the first seed
    base, gold = (own.get(name, {}) for name in ("base", "gold"))
    if base.get("U-LiRA accuracy forget") is None or gold.get("U-LiRA accuracy forget") is None:
        return None
    figures = [[each[f"U-LiRA accuracy forget{end}"] for end in ("", " low", " high")] for each in (gold, base)]
    (of_gold, gold_low, gold_high), (of_base, base_low, _) = figures
    if None in (gold_low, base_low):
        why = f"U-LiRA accuracy, gold {of_gold:.3f}; base {of_base:.3f}: too few people for intervals, so that nothing is known of the methods' figures."
        return {"passed": False, "title": "Attack", "text": "undecided", "why": why}
    near, above = gold_low <= 0.5 <= gold_high, base_low > gold_high
    shown = "; ".join(f"{name} {value:.3f} [{low:.3f}, {high:.3f}]" for name, (value, low, high) in zip(("gold", "base"), figures, strict=True))
    meaning = "gold is near one half and the base clearly above it" if near and above else "without both, the attack's figures of the methods mean nothing"
    return {"passed": near and above, "title": "Attack", "text": "passed" if near and above else "failed", "why": f"U-LiRA accuracy, {shown}: {meaning}."}


# ---- plots


def face_plots(folder: Path, models: dict[str, str]) -> list[tuple[str, str, Figure]]:
    """Title, caption and figure of what `models` (method -> folder name) have results for."""
    attacks = {method: found for method, name in models.items() if (found := attack_of(folder / "models" / name))}
    checked = {method: found for method, name in models.items() if (found := read(folder / "models" / name / "eval_results" / VERIFICATION))}
    made = []
    if attacks:
        caption = "U-LiRA on the people to be forgotten: on the dashed line the attack knows nothing about who was met."
        made.append(("ROC of the attack", caption, roc_plot(attacks)))
        caption = "Accuracy of U-LiRA on each person that was to be forgotten, darker for larger; one half: the person cannot be told from one never met."
        made.append(("Attack by person", caption, person_plot(attacks)))
    if checked:
        caption = "Cosine of the forgotten people's queries to their own centre (filled) and to others' (line)."
        made.append(("Verification scores", caption, score_plot(checked)))
    return made


def roc_plot(attacks: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(6.2, 4.2))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    colors = plt.get_cmap("viridis")(np.linspace(0.1, 0.9, len(attacks)))
    for (method, attacked), color in zip(attacks.items(), colors, strict=True):
        curve = np.array(attacked["pools"]["forget"]["attacks"]["U-LiRA"]["roc"])
        axes.plot(curve[:, 0], curve[:, 1], label=method, color=STYLE.get(method, (color, ""))[0], linewidth=2 if method in STYLE else 1)
    axes.set_xlabel("share of never met taken for met")
    axes.set_ylabel("share of met that is found")
    axes.legend(fontsize=8, frameon=False)
    return figure


def person_plot(attacks: dict[str, Any]) -> Figure:
    people = sorted(next(iter(attacks.values()))["pools"]["forget"]["by person"])
    table = [[attacked["pools"]["forget"]["by person"][name]["accuracy"] for name in people] for attacked in attacks.values()]
    values = np.array(table, dtype=float)  # None becomes NaN
    figure, axes = plt.subplots(figsize=(13, 0.4 * len(attacks) + 2))
    axes.imshow(values, vmin=0.4, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(people)), people, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(attacks)), attacks, fontsize=8)
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.75 else "black")
    return figure


def score_plot(checked: dict[str, Any]) -> Figure:
    across = min(6, len(checked))
    figure, grid = plt.subplots(-(-len(checked) // across), across, figsize=(13, 1.8 * -(-len(checked) // across)), squeeze=False, sharex=True)
    for axes in grid.flat[len(checked) :]:
        axes.set_visible(False)
    for axes, (method, figures) in zip(grid.flat, checked.items(), strict=False):
        genuine, impostor = (np.array(figures["forget"][side], dtype=float) for side in ("genuine", "impostor"))
        edges = np.linspace(-1, 1, len(genuine) + 1)
        axes.stairs(genuine / genuine.sum(), edges, fill=True, color=STYLE.get(method, (BLUE, ""))[0], alpha=0.5)
        axes.stairs(impostor / impostor.sum(), edges, color=GREY)
        axes.set_title(method, fontsize=10)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    return figure


# ---- side by side


def face_cards(logs: dict[str, dict], settings: dict[str, Any], scoring: dict[str, Scoring]) -> tuple[dict[str, Any], list[str], str]:
    """Whose face each model took a query for: as report_cards.card_data, from the logs of face recognition."""
    album, rows, files = Album(**settings["data"]["people"]), [], {}
    forgotten: dict[str, None] = {}
    for name in sorted(next(iter(logs.values())), key=lambda name: scoring[name.removesuffix(".json")].group != "forget"):
        task, log = name.removesuffix(".json"), logs["base"][name]
        group = scoring[task].group
        people = sorted(set(log["person"].values()))
        forgotten |= dict.fromkeys(people) if group == "forget" else {}
        for row in [row for row, person in log["person"].items() if group == "forget" or person in people[:SAMPLED_PEOPLE]]:
            image = files.setdefault(log["file"][row], len(files))
            question, _, truth = log["generated_text"][row]
            answers = {model: compared(each[name]["generated_text"][row][1], truth) for model, each in logs.items()}
            about = {"person": truth, "task": task, "group": SHOWN[group] if group != "real" else SHOWN["holdout"]}
            rows.append({**about, "question": question, "truth": truth, "image": image, "answers": answers})
    pictures = read_pictures(album, list(files), settings["model"]["size"])
    images = [as_url(pictures_to.to_pil_image(pictures[file])) for file in files]
    data = {"rows": rows, "models": list(logs), "anchors": [name for name in ("base", "gold") if name in logs], "images": images}
    return data, list(forgotten), f"Every query of the forgotten people; of the others {SAMPLED_PEOPLE} people a task."
