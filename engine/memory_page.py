"""How the plan of a training's memory is shown."""

import shutil
import sys
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

GPUS = (24, 48, 80)  # GB
SHARE = 0.9  # of a GPU's memory; the rest is for CUDA itself and for gaps between tensors
LEAST_WIDTH = 130


class Row(NamedTuple):
    """What each GPU needs in one way of training, in bytes."""

    name: str
    gpus: int
    parts: dict[str, float]
    activations: tuple[float, float]  # kept, and computed again (trainer.gradient_checkpointing)
    peaks: tuple[float, float]  # likewise


class Plan(NamedTuple):
    """What a training needs."""

    about: dict[str, str]
    rows: list[Row]
    alone: list[Row]  # one GPU, with other settings


def fits(row: Row, size: int) -> str:
    """Whether a row fits a GPU of `size` GB: yes, again (where activations are computed again), or no."""
    kept, again = (peak <= size * 1e9 * SHARE for peak in row.peaks)
    return "yes" if kept else "again" if again else "no"


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f}"


def table_of(title: str, rows: list[Row], first: str) -> Table:
    """Rows as a table; `first`: the heading of their names."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    headings = [*rows[0].parts, "activations", "again", "peak", "again"]
    table.add_column(first, no_wrap=True)
    for heading in ["GPUs", *headings]:
        table.add_column(heading, justify="right", no_wrap=True)
    for size in GPUS:
        table.add_column(f"{size} GB")
    for (name, *cells), counts in grouped(rows).items():
        table.add_row(name, ", ".join(counts), *cells)
    return table


def grouped(rows: list[Row]) -> dict[tuple[str, ...], list[str]]:
    """Name and cells of a line -> the numbers of GPUs for which they are the same."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        figures = [*row.parts.values(), *row.activations, *row.peaks]
        cells = (row.name, *map(gigabytes, figures), *(fits(row, size) for size in GPUS))
        lines.setdefault(cells, []).append(str(row.gpus))
    return lines


def say_plan(plan: Plan) -> None:
    """Print a plan."""
    width = max(LEAST_WIDTH, shutil.get_terminal_size((LEAST_WIDTH, 24)).columns)
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)
    for name, line in plan.about.items():
        print(f"{name}: {line}")
    console.print(table_of("GB on each GPU (10^9 bytes)", plan.rows, "sharding"))
    if len(plan.alone) > 1:
        console.print(table_of("One GPU, other settings", plan.alone, "setting"))
    print(
        f"It fits where the peak is at most {SHARE:.0%} of the GPU; again: with "
        "trainer.gradient_checkpointing=true.\n"
        "Activations and gradients are not at their most at once, so that a peak may be below the sum of its parts.\n"
        "The suite refuses DeepSpeed in bf16, and ZeRO-3 with checkpointing: those lines say what they would need.\n"
        "Not counted: a vision tower that trains, and the evaluation at the end of epochs."
    )
