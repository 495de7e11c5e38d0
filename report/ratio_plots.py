"""The distribution of each method's Truth Ratios as inline SVG, base's and gold's beside it.

What all these plots have in common, axes and anchors, is drawn once, and a method's lines are laid on it.
"""

import hashlib
import io
import re
from collections.abc import Iterable

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from engine.metrics import truth_share
from report.plots import BLUE, GREEN, ORANGE, STYLE, cut_out, drawn_svg, plt, renderer_of, tidy
from settings.results import Scoring

COMMON = "Truth Ratios"  # what the ids of the common part depend on
HIGH, LEGEND = 2.9, 0.3  # inches of the plots and of the legend above them


def truth_ratio_plots(logs: dict[str, dict], scoring: dict[str, Scoring]) -> dict[str, str]:
    """Method -> svg of the distribution functions of R/(1+R) on each forget task, base's and gold's beside it.

    Args:
        logs: Model -> aggregated log.
        scoring: Task -> how it is scored.
    """
    if not {"base", "gold"} <= logs.keys():
        return {}
    in_all_logs = set.intersection(*map(set, logs.values()))
    forget = [name for name in scoring if scoring[name].group == "forget" and f"{name}.json" in in_all_logs]
    tasks = [name for name in forget if "truth_ratio" in logs["base"][f"{name}.json"]]
    if not tasks:
        return {}
    figure, anchors = draw_anchors(logs, {task: scoring[task].name or task for task in tasks})
    common = drawn_svg(figure, COMMON)
    around = figure.get_tightbbox(renderer_of(figure))  # inches; a method's lines stay within it
    plots = {}
    for method in [name for name in logs if name not in STYLE]:
        lines = add_truth_ratios(figure, logs, method, tasks)
        legend = add_legend(figure, [*anchors, lines[0]], ["base", "gold", method])
        box = legend.get_window_extent(renderer_of(figure)).transformed(figure.dpi_scale_trans.inverted())
        drawn = draw_parts(figure, [*lines, legend], width=72 * max(figure.get_figwidth(), box.x1))
        plots[method] = cut_out(with_own_ids(laid_on(common, drawn), method), figure, Bbox.union([around, box]))
        for artist in (*lines, legend):
            artist.remove()
    plt.close(figure)
    return plots


def draw_anchors(logs: dict[str, dict], tasks: dict[str, str]) -> tuple[Figure, list[Line2D]]:
    """Draw the distribution functions of base and gold, one plot a task, to which those of each method are added.

    `tasks`: task -> its title. The second value: the lines of the first plot.
    """
    figure, grid = plt.subplots(1, len(tasks), figsize=(3.6 * len(tasks), HIGH + LEGEND), sharey=True, squeeze=False)
    for axes, (task, title) in zip(grid.flat, tasks.items(), strict=True):
        for model, color, line in (("base", ORANGE, ":"), ("gold", GREEN, "--")):
            add_shares(axes, logs, model, task, color=color, linestyle=line)
        axes.set_xlim(0, 1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("R/(1+R)")
    grid[0, 0].set_ylabel("share of rows")
    figure.tight_layout(rect=(0, 0, 1, HIGH / (HIGH + LEGEND)))
    figure.set_layout_engine(None)  # it is laid out; else it would be drawn twice
    return figure, list(grid[0, 0].lines)


def add_truth_ratios(figure: Figure, logs: dict[str, dict], method: str, tasks: Iterable[str]) -> list[Line2D]:
    """Add one method's distribution functions; gives their lines."""
    return [
        add_shares(axes, logs, method, task, color=BLUE, linestyle="-")
        for axes, task in zip(figure.axes, tasks, strict=True)
    ]


def add_legend(figure: Figure, lines: list[Line2D], names: list[str]) -> Legend:
    """Add the legend above the plots; one that is wider than they are begins where they do."""
    legend = figure.legend(lines, names, loc="upper center", ncols=len(names), frameon=False, borderaxespad=0)
    share = legend.get_window_extent(renderer_of(figure)).width / figure.bbox.width
    legend.set_bbox_to_anchor((max(0.5, share / 2), 1), figure.transSubfigure)
    return legend


def add_shares(axes: Axes, logs: dict[str, dict], model: str, task: str, **style: str) -> Line2D:
    """Add the distribution function of a model's R/(1+R) on a task."""
    shares = truth_share(list(logs[model][f"{task}.json"]["truth_ratio"].values()))
    return axes.ecdf(shares, linewidth=2, **style)


# ---- one drawing laid on another


def draw_parts(figure: Figure, parts: Iterable[Artist], width: float) -> str:
    """Some parts of a figure as SVG elements, as they stand where `drawn_svg` draws all of it.

    `width`: in points; lines right of it are cut off.
    """
    stream = io.StringIO()
    with plt.rc_context({"svg.hashsalt": COMMON}):
        renderer = RendererSVG(width, figure.bbox.height, stream)
        renderer.writer.flush()
        begun = stream.tell()
        for part in parts:
            part.draw(renderer)
        renderer.writer.flush()
    return tidy(stream.getvalue()[begun:])


def laid_on(svg: str, drawn: str) -> str:
    """A drawing with other elements on top; areas that both are cut to are named alike and stand in the drawing."""
    end = svg.rindex("</g>")  # of the figure; behind it stand the areas
    return svg[:end] + drawn + svg[end:]


def with_own_ids(svg: str, name: str) -> str:
    """A drawing whose markers and areas have names of its own: a hidden plot does not lend its own to others."""
    own = hashlib.sha256(name.encode()).hexdigest()[:10]
    return re.sub(r'(?<=["#])([mp][0-9a-f]{10})(?=[")])', rf"\1-{own}", svg)
