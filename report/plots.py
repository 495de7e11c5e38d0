"""The report's plots as inline SVG: result rows, logs and loss curves in, text out."""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.metrics import truth_share
from settings.results import Scoring

plt.rcParams |= {
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "sans-serif",
}
BLUE, ORANGE, GREEN, GREY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#6e7781",
)  # Okabe and Ito's, told apart by the colour-blind
STYLE = {"base": (ORANGE, "s"), "gold": (GREEN, "*")}
LEAST_LOG10 = -20.0  # below, forget quality is drawn at the edge

Row = dict[str, Any]


def svg_of(figure: Figure, name: str) -> str:
    """The figure as an <svg> element, the same bytes each time; its ids depend on its name, because a page holds many, some hidden."""
    stream = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    plt.close(figure)
    text = stream.getvalue()
    most = f' style="max-width: {125 * figure.get_figwidth():.0f}px"'  # it fills its column, but a small plot is not blown up
    return re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', most, text[text.index("<svg") :], count=1)


def plots(
    rows: list[Row],
    tasks: dict[str, dict],
    scoring: dict[str, Scoring],
    losses: dict[str, list],
    further: Sequence[tuple[str, str, Figure]] = (),
) -> list[dict[str, Any]]:
    """title, caption, whether it is wide, and svg of each plot that the rows have figures for, and of `further` ones."""
    done = [row for row in rows if "Failed" not in row]
    words = [name for name in tasks if scoring[name].group == "forget" and not tasks[name].get("image")]
    pictures = [name for name in tasks if scoring[name].group == "forget" and tasks[name].get("image")]
    made = [
        (
            "Forgetting against utility",
            "Up: closer to gold's answers about the forgotten people. Right: more of the rest kept. Hollow: collapsed.",
            quality_plot(done),
        ),
        (
            "Pictures against words",
            "0 is gold, 1 is the base. On the line a method forgets equally in both; above it pictures keep what words lost.",
            modality_plot(done, pictures, words),
        ),
        (
            "Loss of each training",
            "The loss that each run minimised, by step; each on its own scale, since the methods' losses cannot be compared.",
            loss_plot(losses),
        ),
        *further,
    ]
    drawn = [(title, caption, figure) for title, caption, figure in made if figure is not None]
    return [
        {"title": title, "caption": caption, "wide": figure.get_figwidth() > 10, "svg": svg_of(figure, title)}
        for title, caption, figure in drawn
    ]


def draw_points(axes: Axes, points: list[tuple[Row, float, float]]) -> None:
    """Each model's point with its name; names that would lie on each other are moved down."""
    for row, x, y in points:
        color, shape = STYLE.get(row["Method"], (BLUE, "o"))
        face = "none" if row.get("Collapsed") == "yes" else color
        axes.plot(x, y, shape, markersize=13 if shape == "*" else 7, color=color, markerfacecolor=face, clip_on=False)
    axes.margins(0.12)
    axes.figure.canvas.draw()
    placed: list[tuple[float, float]] = []
    for row, x, y in sorted(points, key=lambda point: -point[2]):
        across, up = axes.transData.transform((x, y)) * 72 / axes.figure.dpi  # points
        level = up + 3
        while any(abs(across - a) < 6 * len(row["Method"]) + 12 and abs(level - u) < 10 for a, u in placed):
            level -= 3
        placed.append((across, level))
        color = STYLE.get(row["Method"], ("#1b1f24", ""))[0]
        axes.annotate(
            row["Method"], (x, y), xytext=(7, level - up), textcoords="offset points", fontsize=9, color=color
        )


def quality_plot(rows: list[Row]) -> Figure | None:
    """Forget quality (log10 p; the mean over the forget tasks that have one) against Model Utility relative to gold."""
    columns = [column for column in (rows[0] if rows else {}) if column.startswith("log10 Forget Quality")]
    points = []
    for row in rows:
        values = [row[column] for column in columns if row.get(column) is not None]
        if values and row.get("Model Utility / gold") is not None:
            points.append((row, row["Model Utility / gold"], max(LEAST_LOG10, sum(values) / len(values))))
    if not points:
        return None
    figure, axes = plt.subplots(figsize=(6.2, 4.2))
    draw_points(axes, points)
    axes.axhline(math.log10(0.05), color=GREY, linewidth=0.8, linestyle="--")
    axes.set_xlabel("Model Utility / gold's")
    axes.set_ylabel("log10 forget quality, mean of tasks")
    return figure


def mean_distance(row: Row, tasks: list[str]) -> float | None:
    """Mean |distance to gold| over the measures of `tasks` that are defined."""
    values = [
        abs(value)
        for column, value in row.items()
        if column.startswith("Distance to gold ")
        and "noise" not in column
        and value is not None
        and column.split()[-1] in tasks
        and isinstance(value, float)
    ]
    return sum(values) / len(values) if values else None


def modality_plot(rows: list[Row], pictures: list[str], words: list[str]) -> Figure | None:
    points = [(row, mean_distance(row, words), mean_distance(row, pictures)) for row in rows]
    points = [point for point in points if None not in point[1:]]
    if not points:
        return None
    figure, axes = plt.subplots(figsize=(6.2, 4.2))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    draw_points(axes, points)
    axes.set_xlabel("distance to gold, questions in words")
    axes.set_ylabel("distance to gold, pictures")
    return figure


def loss_plot(losses: dict[str, list]) -> Figure | None:
    if not losses:
        return None
    across = 6
    down = math.ceil(len(losses) / across)
    figure, grid = plt.subplots(down, across, figsize=(13, 1.8 * down), squeeze=False)
    for axes in grid.flat[len(losses) :]:
        axes.set_visible(False)
    for axes, (name, curve) in zip(grid.flat, losses.items(), strict=False):
        steps, values = thinned(curve)
        axes.plot(steps, values, color=STYLE.get(name.split("_seed")[0], (BLUE, ""))[0], linewidth=1)
        axes.set_title(name, fontsize=10)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    return figure


def thinned(curve: list, most: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring steps, so that at most `most` points are left."""
    size = math.ceil(len(curve) / most)
    chunks = [np.array(curve[start : start + size], dtype=float) for start in range(0, len(curve), size)]
    return np.array([chunk[:, 0].mean() for chunk in chunks]), np.array([chunk[:, 1].mean() for chunk in chunks])


def distribution_plots(logs: dict[str, dict], forget: dict[str, Scoring]) -> dict[str, str]:
    """Method -> the distribution functions of R/(1+R) on each forget task, base's and gold's beside it."""
    tasks = [name for name in forget if all(f"{name}.json" in log for log in logs.values())]
    if not tasks or not {"base", "gold"} <= logs.keys():
        return {}
    made = {}
    for method in [name for name in logs if name not in STYLE]:
        figure, grid = plt.subplots(1, len(tasks), figsize=(3.6 * len(tasks), 2.9), sharey=True, squeeze=False)
        for axes, task in zip(grid.flat, tasks, strict=True):
            for model, color, line in (("base", ORANGE, ":"), ("gold", GREEN, "--"), (method, BLUE, "-")):
                axes.ecdf(
                    truth_share(list(logs[model][f"{task}.json"]["truth_ratio"].values())),
                    color=color,
                    linestyle=line,
                    linewidth=2,
                    label=model,
                )
            axes.set_xlim(0, 1)
            axes.set_title(task, fontsize=10)
            axes.set_xlabel("R/(1+R)")
        grid[0, 0].set_ylabel("share of rows")
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(),
            loc="upper center",
            ncols=3,
            frameon=False,
            bbox_to_anchor=(0.5, 1.1),
        )
        figure.tight_layout()
        made[method] = svg_of(figure, method)
    return made
