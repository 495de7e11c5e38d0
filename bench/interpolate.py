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
from aggregate_eval_stat import aggregate
from data_module import make_missing
from engine.evaluate import evaluate, read_tasks
from engine.measures import MEASURES, MEMORY
from engine.record import AGGREGATED
from engine.result_table import ModelResult
from mm.encoder import PictureEncoder
from settings.language import Eval
from settings.results import Aggregate
from settings.script import compose

FORGET = {"eval_forget_qa": "words", "eval_forget_facerec": "names", "eval_log_forget": "captions"}


def rows_between(base: Path, gold: Path, points: int) -> list[ModelResult]:
    """Evaluate models between base and gold.

    Args:
        base: folder of the base.
        gold: folder of the gold model.
        points: number of models, at equal steps of gold's share from 0 to 1.

    Returns:
        The figures at each share, with base and gold as its own references.
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
        settings = [compose("aggregate_eval_stat", Aggregate, [f"ckpt_result={log}", *common]) for log in logs]
        return [aggregate(each) for each in settings]


def curve(axis: plt.Axes, shares: np.ndarray, values: list[float | None], label: str) -> None:
    """Draw one figure over the shares, with gaps where it is not defined."""
    axis.plot(shares, np.array(values, dtype=float), marker=".", label=label)


def draw(shares: np.ndarray, results: list[ModelResult], file: Path) -> None:
    """Write the curves to a picture; `results` are the figures at `shares`."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.5), sharex=True)
    for axis, (task, label) in zip(axes[0], FORGET.items(), strict=True):
        for measure in MEMORY:
            distances = [result.value(f"distance_to_gold:{measure}", task) for result in results]
            curve(axis, shares, distances, MEASURES[measure].heading)
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_title(f"distance to gold, {label}")
    axes[0, 0].legend(fontsize=8)
    for task, label in FORGET.items():
        curve(axes[1, 0], shares, [result.value("log10_forget_quality", task) for result in results], label)
        curve(axes[1, 1], shares, [result.value("forget_quality_js", task) for result in results], label)
    curve(axes[1, 2], shares, [result.value("utility_to_gold") for result in results], "utility / gold")
    attack = [result.value("membership_auc:min-k", "eval_forget_qa") for result in results]
    curve(axes[1, 2], shares, attack, "membership AUC, min-k")
    axes[1, 0].set_title("log10 forget quality (KS p-value)")
    axes[1, 1].set_title("forget quality (JS)")
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
    shares = np.linspace(0, 1, asked.points)
    results = rows_between(base, gold, asked.points)
    for share, result in zip(shares, results, strict=True):
        figures = {
            "distance": result.value("distance_to_gold"),
            "words": result.value("distance_to_gold:exact_memorization", "eval_forget_qa"),
            "utility/gold": result.value("utility_to_gold"),
            "log10 FQ words": result.value("log10_forget_quality", "eval_forget_qa"),
        }
        texts = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"{share:.1f}: {texts}, collapsed {'yes' if result.value('collapsed') else 'no'}")
    draw(shares, results, asked.picture)
    print(f"written: {asked.picture}")


if __name__ == "__main__":
    main()
