"""How the metrics move while weights go in a straight line from a benchmark's base to its gold model.

Run: python bench/interpolate.py results/demo
A metric that is worth ranking by goes from "nothing forgotten" to "like gold" without turning back. The script prints
one line per point and writes the curves as a picture.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from aggregate_eval_stat import MEASURES, aggregate
from data_module import make_missing
from engine.evaluate import evaluate, read_tasks
from engine.record import AGGREGATED
from mm.encoder import PictureEncoder
from settings.language import Eval
from settings.results import Aggregate
from settings.script import compose

FORGET = {"eval_forget_qa": "words", "eval_forget_facerec": "names", "eval_log_forget": "captions"}


def rows_between(base: Path, gold: Path, points: int) -> list[dict]:
    """Evaluate models between base and gold.

    Args:
        base: folder of the base.
        gold: folder of the gold model.
        points: number of models, at equal steps of gold's share from 0 to 1.

    Returns:
        The result row at each share, with base and gold as its own references.
    """
    settings = compose("mm/eval", Eval, [f"model_path={base}"])
    make_missing(settings.inputs())
    tasks, encoder = read_tasks(settings, settings.seed, "all"), PictureEncoder(AutoProcessor.from_pretrained(base))
    model, start, end = (
        AutoModelForImageTextToText.from_pretrained(folder, dtype="float32") for folder in (base, base, gold)
    )
    with TemporaryDirectory() as scratch:
        logs = []
        for share in np.linspace(0, 1, points):
            with torch.no_grad():
                for weight, first, last in zip(model.parameters(), start.parameters(), end.parameters(), strict=True):
                    weight.copy_(torch.lerp(first, last, float(share)))
            folder = Path(scratch, f"{share:.3f}")
            evaluate(model, encoder, tasks, replace(settings, save_dir=str(folder)), facts={}, say=lambda line: None)
            logs.append(folder / AGGREGATED)
        common = [f"base_result={logs[0]}", f"retain_result={logs[-1]}", f"save_file={scratch}/row.csv"]
        return [aggregate(compose("aggregate_eval_stat", Aggregate, [f"ckpt_result={log}", *common])) for log in logs]


def draw(shares: np.ndarray, rows: list[dict], file: Path) -> None:
    """Write the curves to a picture; `rows` are the result rows at `shares`."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.5), sharex=True)
    for axis, (task, label) in zip(axes[0], FORGET.items(), strict=True):
        for measure in MEASURES:
            axis.plot(
                shares,
                [np.nan if (value := row[f"Distance to gold {measure} {task}"]) is None else value for row in rows],
                marker=".",
                label=measure,
            )
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_title(f"distance to gold, {label}")
    axes[0, 0].legend(fontsize=8)
    for task, label in FORGET.items():
        ending = "" if task == "eval_log_forget" else f" {task}"
        axes[1, 0].plot(shares, [row[f"log10 Forget Quality{ending}"] for row in rows], marker=".", label=label)
        axes[1, 1].plot(shares, [row[f"Forget Quality (JS){ending}"] for row in rows], marker=".", label=label)
    axes[1, 0].set_title("log10 forget quality (KS p-value)")
    axes[1, 1].set_title("forget quality (JS)")
    axes[1, 2].plot(shares, [row["Model Utility / gold"] for row in rows], marker=".", label="utility / gold")
    axes[1, 2].plot(
        shares, [row["Membership AUC min-k eval_forget_qa"] for row in rows], marker=".", label="membership AUC, min-k"
    )
    axes[1, 2].set_title("utility and membership")
    for axis in axes[1]:
        axis.legend(fontsize=8)
        axis.set_xlabel("share of gold's weights")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of a finished benchmark")
    parser.add_argument("--points", type=int, default=11)
    parser.add_argument("--picture", type=Path, default=Path("docs/interpolation.png"))
    asked = parser.parse_args()
    base, gold = (asked.results / "models" / f"{name}_seed0" for name in ("base", "gold"))
    shares, rows = np.linspace(0, 1, asked.points), rows_between(base, gold, asked.points)
    for share, row in zip(shares, rows, strict=True):
        figures = {
            "distance": row["Distance to gold"],
            "words": row["Distance to gold Exact Memorization eval_forget_qa"],
        }
        figures |= {
            "utility/gold": row["Model Utility / gold"],
            "log10 FQ words": row["log10 Forget Quality eval_forget_qa"],
        }
        print(
            f"{share:.1f}: "
            + ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            + f", collapsed {row['Collapsed']}"
        )
    draw(shares, rows, asked.picture)
    print(f"written: {asked.picture}")


if __name__ == "__main__":
    main()
