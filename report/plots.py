"""The report's plots as inline SVG: figures, logs, loss curves and figures of attacks in, text out."""

import io
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from natsort import natsorted

from engine.kept import COLLAPSED
from engine.measures import MEMORY
from engine.result_table import ModelResult
from settings.results import Scoring

plt.rcParams |= {
    "svg.fonttype": "none",
    "figure.dpi": 72,  # SVG counts in points; texts are measured as they are drawn
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "sans-serif",
}
# Okabe and Ito's colours, told apart by the colour-blind; the page has lighter ones for its dark scheme
BLUE = "#0072b2"
ORANGE = "#d55e00"
GREEN = "#009e73"
GREY = "#6e7781"
INK = "#1b1f24"
# colour -> what a page that has another scheme may put in its place
THEMED = {
    BLUE: f"var(--plot-blue, {BLUE})",
    ORANGE: f"var(--plot-orange, {ORANGE})",
    GREEN: f"var(--plot-green, {GREEN})",
    GREY: f"var(--plot-grey, {GREY})",
    INK: "currentColor",
    "#000000": "currentColor",
}
STYLE = {
    "base": (ORANGE, "s"),
    "gold": (GREEN, "*"),
    "start": (GREY, "D"),
}  # colour and shape of a point; methods are blue and round
ON_LIGHT = "#111111"  # of texts on a coloured ground, which no scheme changes
LEAST_LOG10 = -20.0  # below, forget quality is drawn at the edge
MOST_POINTS = 120  # of a loss curve
WIDE = 13  # inches of a figure that takes the page's whole width
ACROSS = 6  # small plots beside each other
MARGINS = {"left": 0.6, "right": 0.1, "bottom": 0.25, "top": 0.35}  # inches around a small plot
LINES = ("-", "--", "-.", ":")  # of curves that lie close
POOLS = {"forget": "forgotten", "retain": "kept"}  # of people that are attacked -> the page's word


class Plot(NamedTuple):
    """A figure with its words; None: the rows have no figures for it."""

    title: str
    caption: str
    figure: Figure | None


def render_plots(plots: Iterable[Plot]) -> list[dict[str, Any]]:
    """title, caption, whether it is wide, and svg of each plot that there is."""
    there = [plot for plot in plots if plot.figure is not None]
    return [
        {
            "title": plot.title,
            "caption": plot.caption,
            "wide": plot.figure.get_figwidth() > 10,
            "svg": render_svg(plot.figure, plot.title),
        }
        for plot in there
    ]


def render_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element, the same bytes each time, on no background.

    Its ids depend on its name, because a page holds many, some hidden. Its colours are those of THEMED where the page
    has them.
    """
    svg = cut_out(drawn_svg(figure, name), figure, drawn_part(figure))
    plt.close(figure)
    return svg


def drawn_svg(figure: Figure, name: str) -> str:
    """The same of the whole figure, which stays open."""
    stream = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = stream.getvalue()
    return tidy(text[text.index("<svg") :])


def tidy(svg: str) -> str:
    """Drawn text with shorter numbers and the page's colours."""
    short = re.sub(r"(\.\d\d)\d+", r"\1", svg)  # a hundredth of a point is enough
    return re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda color: THEMED.get(color[0], color[0]), short)


def renderer_of(figure: Figure) -> Any:
    """What measures parts of a figure as `savefig` does."""
    return RendererSVG(*figure.bbox.size, io.StringIO())


def drawn_part(figure: Figure) -> Bbox:
    """What of a figure is drawn on, in inches.

    Small plots lie within their figure but for their titles, so that nothing else of them is measured.
    """
    renderer = renderer_of(figure)
    if len(figure.axes) == 1:
        return figure.get_tightbbox(renderer)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    right = max(axes.bbox.x1 for axes in shown) + 72 * MARGINS["right"]
    whole = Bbox.from_extents(0, 0, min(right, figure.bbox.x1), figure.bbox.y1)
    titles = [axes.title.get_window_extent(renderer) for axes in shown]
    return Bbox.union([whole, *titles]).transformed(figure.dpi_scale_trans.inverted())


def cut_out(svg: str, figure: Figure, part: Bbox) -> str:
    """What `drawn_svg` made of a figure, with a part of it in view.

    Args:
        svg: The whole figure.
        figure: The figure.
        part: In inches from its lower left corner; a margin is added.
    """
    seen = part.padded(plt.rcParams["savefig.pad_inches"])
    corner = (72 * seen.x0, 72 * (figure.get_figheight() - seen.y1))
    box = " ".join(f"{value:.2f}" for value in (*corner, 72 * seen.width, 72 * seen.height))
    # it fills its column, but a small plot is not blown up
    most = f'viewBox="{box}" style="max-width: {125 * seen.width:.0f}px"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt" viewBox="[^"]*"', most, svg, count=1)


def small_plots(count: int, across: int = ACROSS, share_x: bool = False) -> tuple[Figure, list[Axes]]:
    """A wide figure with `count` small plots, `across` of them beside each other."""
    down = math.ceil(count / across)
    high = 1.9 * down
    beside, above = MARGINS["left"] + MARGINS["right"], MARGINS["bottom"] + MARGINS["top"]
    places = {
        "left": MARGINS["left"] / WIDE,
        "right": 1 - MARGINS["right"] / WIDE,
        "bottom": MARGINS["bottom"] / high,
        "top": 1 - MARGINS["top"] / high,
        "wspace": beside / (WIDE / across - beside),  # in shares of a plot
        "hspace": above / (high / down - above),
    }
    figure, grid = plt.subplots(down, across, figsize=(WIDE, high), squeeze=False, sharex=share_x, gridspec_kw=places)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:count])


def color_of(model: str, other: str = BLUE) -> str:
    """The colour of base and gold; `other` for methods."""
    return STYLE[model][0] if model in STYLE else other


# ---- plots of any modality


def common_plots(
    results: list[ModelResult], tasks: dict[str, dict], scoring: dict[str, Scoring], losses: dict[str, list]
) -> list[Plot]:
    """The plots that figures and loss curves give.

    Args:
        results: The models' figures; failed models are left out.
        tasks: Task -> its recorded settings, which say whether it shows a picture.
        scoring: Task -> how it is scored.
        losses: Model -> pairs of a step and the loss there.
    """
    trained = [result for result in results if not result.value("failed")]
    forget = [name for name in tasks if scoring[name].group == "forget"]
    words = [name for name in forget if not tasks[name].get("image")]
    pictures = [name for name in forget if tasks[name].get("image")]
    return [
        Plot(
            "Forgetting against keeping",
            "Up: closer to gold's answers about the forgotten people. Right: more of the rest kept. Hollow: collapsed.",
            draw_quality(trained, forget),
        ),
        Plot(
            "Pictures against words",
            "0 is gold, 1 is the base. On the line a method forgets equally in both; "
            "above it pictures keep what words lost.",
            draw_modalities(trained, pictures, words),
        ),
        Plot(
            "Loss of each training",
            "The loss that each run minimised, by step; each on its own scale, "
            "since the methods' losses cannot be compared.",
            draw_losses(losses),
        ),
    ]


def draw_points(axes: Axes, points: list[tuple[ModelResult, float, float]]) -> None:
    """Draw each model's point with its name; names that would lie on each other are moved down."""
    for result, x, y in points:
        color, shape = STYLE.get(result.method, (BLUE, "o"))
        face = "none" if result.value("flag") == COLLAPSED else color
        axes.plot(x, y, shape, markersize=13 if shape == "*" else 7, color=color, markerfacecolor=face, clip_on=False)
    axes.margins(0.12)
    axes.figure.canvas.draw()
    placed: list[tuple[float, float]] = []
    named: set[str] = set()
    for result, x, y in sorted(points, key=lambda point: -point[2]):
        name = result.method
        if name in named:  # of several seeds one has the name
            continue
        named.add(name)
        across, up = axes.transData.transform((x, y)) * 72 / axes.figure.dpi  # points
        level = up + 3
        while any(abs(across - left) < 6 * len(name) + 12 and abs(level - height) < 10 for left, height in placed):
            level -= 3
        placed.append((across, level))
        place = {"xytext": (7, level - up), "textcoords": "offset points"}
        axes.annotate(name, (x, y), **place, fontsize=9, color=color_of(name, INK))


def draw_quality(results: list[ModelResult], tasks: list[str]) -> Figure | None:
    """Draw forget quality (log10 p; the mean over `tasks`) against what was kept."""
    points = []
    for result in results:
        known = [result.value("log10_forget_quality", task) for task in tasks]
        known = [value for value in known if value is not None]
        kept = [result.value(share) for share in ("kept_taught", "kept_real")]
        kept = [share for share in kept if share is not None]
        if known and kept:
            points.append((result, min(kept), max(LEAST_LOG10, sum(known) / len(known))))
    if not points:
        return None
    figure, axes = plt.subplots(figsize=(6.2, 4.2))
    draw_points(axes, points)
    axes.axhline(math.log10(0.05), color=GREY, linewidth=0.8, linestyle="--")
    axes.set_xlabel("kept: the smaller of taught and real")
    axes.set_ylabel("log10 forget quality, mean of tasks")
    return figure


def mean_distance(result: ModelResult, tasks: list[str]) -> float | None:
    """Mean |distance to gold| over the measures of `tasks` that are defined."""
    values = [result.value(f"distance_to_gold:{measure}", task) for task in tasks for measure in MEMORY]
    defined = [abs(value) for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def draw_modalities(results: list[ModelResult], pictures: list[str], words: list[str]) -> Figure | None:
    """Draw the distance to gold on tasks with pictures against that on tasks in words."""
    points = [(result, mean_distance(result, words), mean_distance(result, pictures)) for result in results]
    points = [point for point in points if None not in point[1:]]
    if not points:
        return None
    figure, axes = plt.subplots(figsize=(6.2, 4.2))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    draw_points(axes, points)
    axes.set_xlabel("distance to gold, questions in words")
    axes.set_ylabel("distance to gold, pictures")
    return figure


def draw_losses(losses: dict[str, list]) -> Figure | None:
    """Draw the loss curve of each training on a scale of its own."""
    if not losses:
        return None
    figure, grid = small_plots(len(losses))
    for axes, (name, curve) in zip(grid, losses.items(), strict=True):
        steps, values = thin_curve(curve)
        axes.plot(steps, values, color=color_of(name.split("_seed")[0]), linewidth=1)
        axes.set_title(name.replace("_seed", ", seed "), fontsize=10)
        axes.tick_params(labelsize=8)
    return figure


def thin_curve(curve: list, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring steps and of their losses, so that at most `most` points are left."""
    size = math.ceil(len(curve) / most)
    chunks = [np.array(curve[start : start + size], dtype=float) for start in range(0, len(curve), size)]
    return np.array([chunk[:, 0].mean() for chunk in chunks]), np.array([chunk[:, 1].mean() for chunk in chunks])


# ---- plots of face recognition


def attack_plots(attacks: dict[str, dict]) -> list[Plot]:
    """The plots of membership attacks; `attacks`: method -> the attack's record, for the methods that have one."""
    if not attacks:
        return []
    plots = []
    for pool, people in POOLS.items():
        of_pool = {method: attack["pools"][pool] for method, attack in attacks.items()}
        caption = f"U-LiRA on the {people} people: on the dashed line the attack knows nothing about who was met."
        plots.append(Plot(f"ROC of the attack, {people}", caption, draw_roc(of_pool)))
        caption = f"Accuracy of U-LiRA on each of the {people} people, darker for larger; "
        caption += "one half: the person cannot be told from one never met."
        plots.append(Plot(f"Attack by person, {people}", caption, draw_people(of_pool)))
    counts = {method: attack["pools"]["forget"]["distribution"] for method, attack in attacks.items()}
    caption = "Cosine of a query to its own centre, all attacked networks: "
    caption += "its person met and to be forgotten (filled), or never met (line)."
    return [*plots, Plot("Scores of the attacked", caption, draw_histograms(counts, "met", "not met"))]


def verification_plots(verifications: dict[str, dict]) -> list[Plot]:
    """The plots of verification; `verifications`: method -> its record, for the methods that have one."""
    if not verifications:
        return []
    counts = {method: groups["forget"] for method, groups in verifications.items()}
    caption = "Cosine of the forgotten people's queries to their own centre (filled) and to others' (line), "
    caption += "in the one network of the table."
    return [Plot("Verification scores", caption, draw_histograms(counts, "genuine", "impostor"))]


def draw_roc(attacks: dict[str, Any]) -> Figure:
    """Draw one curve a method; `attacks`: method -> the attack's figures on one pool."""
    figure, axes = plt.subplots(figsize=(6.2, 4.2))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    by_method = {method: of_pool["attacks"]["U-LiRA"] for method, of_pool in attacks.items()}
    areas = {method: figures["auc"]["value"] for method, figures in by_method.items()}
    ranked = sorted(areas, key=lambda method: -areas[method])  # the legend in the order of the curves
    colors = plt.get_cmap("plasma")(np.linspace(0, 0.85, len(ranked)))
    for number, (method, color) in enumerate(zip(ranked, colors, strict=True)):
        curve = np.array(by_method[method]["roc"])
        look = {"color": color, "linewidth": 1.2, "linestyle": LINES[number % len(LINES)]}
        if method in STYLE:
            look = {"color": color_of(method), "linewidth": 2.5}
        axes.plot(curve[:, 0], curve[:, 1], label=f"{method} {areas[method]:.2f}", **look)
    axes.set_xlabel("share of never met taken for met")
    axes.set_ylabel("share of met that is found")
    axes.legend(fontsize=8, frameon=False, title="AUC", title_fontsize=8)
    return figure


def draw_people(attacks: dict[str, Any]) -> Figure:
    """Draw the accuracy on each person: one row a method, one column a person; `attacks` as for `draw_roc`."""
    people = natsorted(next(iter(attacks.values()))["by person"])
    accuracies = np.stack([accuracy_by_person(of_pool, people) for of_pool in attacks.values()])
    figure, axes = plt.subplots(figsize=(WIDE, 0.4 * len(attacks) + 2))
    axes.imshow(accuracies, vmin=0.4, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(people)), people, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(attacks)), attacks, fontsize=8)
    for (y, x), value in np.ndenumerate(accuracies):
        if np.isfinite(value):
            color = "white" if value > 0.75 else ON_LIGHT
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    return figure


def accuracy_by_person(of_pool: dict[str, Any], people: list[str]) -> np.ndarray:
    """The attack's accuracy on each of `people`; NaN where it has none."""
    return np.array([of_pool["by person"][name]["accuracy"] for name in people], dtype=float)


def draw_histograms(counts: dict[str, dict[str, list]], filled: str, line: str) -> Figure:
    """Draw two histograms a method, one filled and one as a line.

    Args:
        counts: Method -> name of the histogram -> counts on equal bins of [-1, 1].
        filled: The filled histogram's name.
        line: The other one's name.
    """
    figure, grid = small_plots(len(counts), across=min(ACROSS, len(counts)), share_x=True)
    for axes, (method, of_method) in zip(grid, counts.items(), strict=True):
        filled_counts = np.array(of_method[filled], dtype=float)
        line_counts = np.array(of_method[line], dtype=float)
        edges = np.linspace(-1, 1, len(filled_counts) + 1)
        axes.stairs(filled_counts / filled_counts.sum(), edges, fill=True, color=color_of(method), alpha=0.5)
        axes.stairs(line_counts / line_counts.sum(), edges, color=GREY)
        axes.set_title(method, fontsize=10)
        axes.tick_params(labelsize=8)
    return figure
