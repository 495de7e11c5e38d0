"""What a face-recognition benchmark adds to the report: columns of verification and attacks, the verdict on the attacks, ROC curves and distributions."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torchvision.transforms.functional as pictures_to
from matplotlib.figure import Figure
from natsort import natsorted

from cv.attack_scoring import ATTACK
from cv.compare import TASKS as face_tasks
from cv.face_settings import Album
from cv.pictures import read_pictures
from engine.metrics import distance_to_gold
from engine.record import VERIFICATION
from report.cards import SAMPLED_PEOPLE, SHOWN, as_url, compared
from report.plots import BLUE, GREY, STYLE
from settings.results import Scoring

# column of the row -> heading, format, what it says
TABLE = {
    "U-LiRA accuracy forget": (
        "U-LiRA, forgotten",
        ".3f",
        "Accuracy of telling forgotten people from people never met, by likelihood ratio; .5: nothing is told",
    ),
    "U-LiRA AUC forget": ("U-LiRA AUC", ".3f", "The same over all thresholds"),
    "U-LiRA TPR at 1% FPR forget": (
        "U-LiRA TPR at 1 %",
        ".3f",
        "Share of the forgotten that score above all but 1 % of those never met",
    ),
    "U-MIA accuracy forget": (
        "U-MIA, forgotten",
        ".3f",
        "Accuracy of the population attack, logistic regression or decision tree, that shadow models held out for it preferred",
    ),
    "U-LiRA accuracy retain": ("U-LiRA, kept", ".3f", "Accuracy of telling kept people from people never met"),
    "Exact Memorization eval_forget_faces": (
        "accuracy, forgotten",
        ".3f",
        "Share of the forgotten people's queries that are nearest to their own person",
    ),
    "Exact Memorization eval_retain_faces": (
        "accuracy, kept",
        ".3f",
        "Share of the kept people's queries that are nearest to their own person",
    ),
    "Exact Memorization eval_holdout_faces": (
        "accuracy, never met",
        ".3f",
        "The same of people that the network never met",
    ),
    "EER forget": ("EER, forgotten", ".3f", "Equal error rate of verifying the forgotten people"),
}
ATTACKED = ("accuracy", "auc", "TPR at 1% FPR", "TPR at 0.1% FPR")
POOLS = {"forget": "forgotten", "retain": "kept"}
LINES = ("-", "--", "-.", ":")  # of curves that lie close
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
                row |= {
                    column: figures[name]["value"],
                    f"{column} low": figures[name]["low"],
                    f"{column} high": figures[name]["high"],
                }
                row |= {f"{column} why": figures[name]["why"]} if figures[name]["why"] else {}
        row[f"U-MIA attack {pool}"] = of_pool["U-MIA attack"]
    return row


def add_distances(rows: list[Row], other_golds: dict[int, list[Row]]) -> None:
    """Add the distance to gold, (model - gold) / (base - gold), of every face column to each seed's rows in place, or why it is undefined.

    `other_golds`: by seed, the columns of the gold models of other seeds.
    """
    for seed in {row["Seed"] for row in rows}:
        own = {row["Method"]: row for row in rows if row["Seed"] == seed}
        base, gold = own.get("base", {}), own.get("gold", {})
        for column in [name for name in base if is_figure(name) and name in gold]:
            others = [other[column] for other in other_golds.get(seed, []) if other.get(column) is not None]
            for row in own.values():
                if None not in (row.get(column), base[column], gold[column]):
                    distance = distance_to_gold(row[column], base[column], gold[column], others)
                    row[f"Distance to gold: {column}"] = distance.value
                    row |= {f"Distance to gold: {column} why": distance.why} if distance.value is None else {}


def is_figure(column: str) -> bool:
    """Whether a column is a figure of faces that the aggregation gives no distance of."""
    accuracies = tuple(f"Exact Memorization {task}" for group, task in face_tasks.items() if group != "forget")
    return (
        column.startswith(("EER", "U-LiRA", "U-MIA", *accuracies))
        and not column.startswith("U-MIA attack")
        and not column.endswith((" low", " high", " why"))
    )


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
    shown = "; ".join(
        f"{name} {value:.3f} [{low:.3f}, {high:.3f}]"
        for name, (value, low, high) in zip(("gold", "base"), figures, strict=True)
    )
    meaning = (
        "gold is near one half and the base clearly above it"
        if near and above
        else "without both, the attack's figures of the methods mean nothing"
    )
    return {
        "passed": near and above,
        "title": "Attack",
        "text": "passed" if near and above else "failed",
        "why": f"U-LiRA accuracy, {shown}: {meaning}.",
    }


# ---- plots


def face_plots(folder: Path, models: dict[str, str]) -> list[tuple[str, str, Figure]]:
    """Title, caption and figure of what `models` (method -> folder name) have results for."""
    attacks = {method: found for method, name in models.items() if (found := attack_of(folder / "models" / name))}
    checked = {
        method: found
        for method, name in models.items()
        if (found := read(folder / "models" / name / "eval_results" / VERIFICATION))
    }
    made = []
    for pool, people in POOLS.items() if attacks else ():
        of_pool = {method: attacked["pools"][pool] for method, attacked in attacks.items()}
        caption = f"U-LiRA on the {people} people: on the dashed line the attack knows nothing about who was met."
        made.append((f"ROC of the attack, {people}", caption, roc_plot(of_pool)))
        caption = f"Accuracy of U-LiRA on each of the {people} people, darker for larger; one half: the person cannot be told from one never met."
        made.append((f"Attack by person, {people}", caption, person_plot(of_pool)))
    if attacks:
        caption = "Cosine of a query to its own centre, all attacked networks: its person met and to be forgotten (filled), or never met (line)."
        parts = {
            method: [attacked["pools"]["forget"]["distribution"][side] for side in ("met", "not met")]
            for method, attacked in attacks.items()
        }
        made.append(("Scores of the attacked", caption, score_plot(parts)))
    if checked:
        caption = "Cosine of the forgotten people's queries to their own centre (filled) and to others' (line), in the one network of the table."
        parts = {
            method: [figures["forget"][side] for side in ("genuine", "impostor")] for method, figures in checked.items()
        }
        made.append(("Verification scores", caption, score_plot(parts)))
    return made


def roc_plot(attacks: dict[str, Any]) -> Figure:
    """One curve a method; `attacks` are one pool's figures by method."""
    figure, axes = plt.subplots(figsize=(6.2, 4.2))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    found = {method: of_pool["attacks"]["U-LiRA"] for method, of_pool in attacks.items()}
    ranked = sorted(found, key=lambda method: -found[method]["auc"]["value"])  # the legend in the order of the curves
    colors = plt.get_cmap("plasma")(np.linspace(0, 0.85, len(ranked)))
    for number, (method, color) in enumerate(zip(ranked, colors, strict=True)):
        curve, shown = np.array(found[method]["roc"]), f"{method} {found[method]['auc']['value']:.2f}"
        plain = {"color": color, "linewidth": 1.2, "linestyle": LINES[number % len(LINES)]}
        axes.plot(
            curve[:, 0],
            curve[:, 1],
            label=shown,
            **({"color": STYLE[method][0], "linewidth": 2.5} if method in STYLE else plain),
        )
    axes.set_xlabel("share of never met taken for met")
    axes.set_ylabel("share of met that is found")
    axes.legend(fontsize=8, frameon=False, title="AUC", title_fontsize=8)
    return figure


def person_plot(attacks: dict[str, Any]) -> Figure:
    """One row a method, one column a person; `attacks` are one pool's figures by method."""
    people = natsorted(next(iter(attacks.values()))["by person"])
    values = np.array(
        [[of_pool["by person"][name]["accuracy"] for name in people] for of_pool in attacks.values()], dtype=float
    )  # None becomes NaN
    figure, axes = plt.subplots(figsize=(13, 0.4 * len(attacks) + 2))
    axes.imshow(values, vmin=0.4, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(people)), people, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(attacks)), attacks, fontsize=8)
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(
                x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.75 else "black"
            )
    return figure


def score_plot(parts: dict[str, list]) -> Figure:
    """One histogram a method: a filled part and a line, counts on equal bins of [-1, 1]."""
    across = min(6, len(parts))
    figure, grid = plt.subplots(
        -(-len(parts) // across), across, figsize=(13, 1.8 * -(-len(parts) // across)), squeeze=False, sharex=True
    )
    for axes in grid.flat[len(parts) :]:
        axes.set_visible(False)
    for axes, (method, counts) in zip(grid.flat, parts.items(), strict=False):
        filled, line = (np.array(each, dtype=float) for each in counts)
        edges = np.linspace(-1, 1, len(filled) + 1)
        axes.stairs(filled / filled.sum(), edges, fill=True, color=STYLE.get(method, (BLUE, ""))[0], alpha=0.5)
        axes.stairs(line / line.sum(), edges, color=GREY)
        axes.set_title(method, fontsize=10)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    return figure


# ---- side by side


def face_cards(
    logs: dict[str, dict], settings: dict[str, Any], scoring: dict[str, Scoring]
) -> tuple[dict[str, Any], list[str], str]:
    """Whose face each model took a query for: as report_cards.card_data, from the logs of face recognition."""
    album, rows, files = Album(**settings["data"]["people"]), [], {}
    forgotten: dict[str, None] = {}
    for name in sorted(
        next(iter(logs.values())), key=lambda name: scoring[name.removesuffix(".json")].group != "forget"
    ):
        task, log = name.removesuffix(".json"), logs["base"][name]
        group = scoring[task].group
        people = sorted(set(log["person"].values()))
        forgotten |= dict.fromkeys(people) if group == "forget" else {}
        for row in [
            row for row, person in log["person"].items() if group == "forget" or person in people[:SAMPLED_PEOPLE]
        ]:
            image = files.setdefault(log["file"][row], len(files))
            question, _, truth = log["generated_text"][row]
            answers = {model: compared(each[name]["generated_text"][row][1], truth) for model, each in logs.items()}
            about = {"person": truth, "task": task, "group": SHOWN[group] if group != "real" else SHOWN["holdout"]}
            rows.append({**about, "question": question, "truth": truth, "image": image, "answers": answers})
    pictures = read_pictures(album, list(files), settings["model"]["size"])
    images = [as_url(pictures_to.to_pil_image(pictures[file])) for file in files]
    data = {
        "rows": rows,
        "models": list(logs),
        "anchors": [name for name in ("base", "gold") if name in logs],
        "images": images,
    }
    return data, list(forgotten), f"Every query of the forgotten people; of the others {SAMPLED_PEOPLE} people a task."
