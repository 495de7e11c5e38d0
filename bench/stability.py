"""Whether a benchmark's conclusions hold: the same methods over seeds, precisions and numbers of threads.

Run: python bench/stability.py --benchmark nlp_demo [--runs 20]

Base and golds are trained anew in every run. The runs are 5 seeds x {fp32, bf16} x {1, 2 threads}; `--runs 5` takes a
quarter of them, each seed once and each setting at least once. A run that was stopped goes on where it stopped.

bench/stability/<benchmark>.csv gets one line per run, model and measure; the report of that benchmark reads its spreads
from there. The output has lines `name value`:

- `<method>_distance_spread`: the standard deviation of the distance to gold over all runs.
- `reversed_share`: of all ordered pairs of methods that one run calls different, the share that another run reverses.
- `flags_turned`: methods that one run calls collapsed and another run not even borderline.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engine.kept import COLLAPSED, KEPT
from engine.record import matrix_instructions, processor_name
from settings.results import RunBenchmark
from settings.script import ROOT, compose

SEEDS = range(5)
SETTINGS = [("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]  # precision, threads
MEASURED = ("distance_to_gold", "noise_floor", "kept_taught", "kept_real", "flag")
RUN = ["seed", "precision", "threads"]


def planned_runs(count: int) -> list[tuple[int, str, int]]:
    """The first `count` runs (seed, precision, threads) of the grid: every seed once before any comes again."""
    grid = []
    for turn in range(len(SETTINGS)):
        grid += [(seed, *SETTINGS[(seed + turn) % len(SETTINGS)]) for seed in SEEDS]
    return grid[:count]


def run_once(benchmark: str, seed: int, precision: str, threads: int) -> pd.DataFrame:
    """The long table of one run."""
    folder = ROOT / "results" / "stability" / benchmark / f"seed{seed}_{precision}_{threads}_threads"
    settings = compose("run_benchmark", RunBenchmark, [f"benchmark={benchmark}"]).benchmark
    changes = [f"benchmark.seeds=[{seed}]"]
    for stage in ("finetune", "forget"):
        told = json.dumps([*getattr(settings, stage), f"trainer.precision={precision}"])  # quoted, as Hydra wants it
        changes.append(f"benchmark.{stage}={told}")
    command = [sys.executable, "run_benchmark.py", f"benchmark={benchmark}", f"results_dir={folder}", *changes]
    # waiting threads that sleep change no digit, and let other programs run
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    table = pd.read_parquet(folder / "results.parquet")
    of_models = table[table.measure.isin(MEASURED) & (table.task == "")]
    about = dict(zip(RUN, (seed, precision, threads), strict=True))
    return of_models[["model", "measure", "value", "low", "high"]].assign(**about)


def nearer_pairs(run: pd.DataFrame) -> set[tuple[str, str]]:
    """Ordered pairs of methods of one run of which the first is nearer to gold: by more than two golds lie apart, and
    with intervals that do not meet.
    """
    wide = run.pivot(index="model", columns="measure", values="value")
    ends = run[run.measure == "distance_to_gold"].set_index("model")
    pairs = set()
    for one, other in itertools.permutations(methods_of(run), 2):
        gap = wide.distance_to_gold[other] - wide.distance_to_gold[one]
        if gap > wide.noise_floor[one] and not ends.high[one] >= ends.low[other]:
            pairs.add((one, other))
    return pairs


def methods_of(table: pd.DataFrame) -> list[str]:
    """The methods, without the models that they are compared with."""
    return [model for model in table.model.unique() if model not in ("base", "gold", "start")]


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Name -> value of what the runs agree on."""
    runs = [run for _, run in table.groupby(RUN)]
    lines: dict[str, float] = {"runs": len(runs)}
    distances = table[table.measure == "distance_to_gold"]
    for method in methods_of(table):
        lines[f"{method}_distance_spread"] = distances[distances.model == method].value.std()
    called = [pair for run in runs for pair in nearer_pairs(run)]
    turned = [pair for pair in called if pair[::-1] in called]
    lines |= {"pairs_called": len(called), "reversed_share": len(turned) / len(called) if called else 0.0}
    flags = table[table.measure == "flag"].groupby("model").value
    ends = flags.agg(["min", "max"])
    lines["flags_turned"] = int(((ends["min"] == KEPT) & (ends["max"] == COLLAPSED)).sum())
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", default="nlp_demo", help="a file of config/benchmark with one seed")
    parser.add_argument("--runs", type=int, default=len(SEEDS) * len(SETTINGS), help="how many of the 20 runs")
    given = parser.parse_args()
    file = ROOT / "bench" / "stability" / f"{given.benchmark}.csv"
    file.parent.mkdir(exist_ok=True)
    tables = []
    for run in planned_runs(given.runs):
        tables.append(run_once(given.benchmark, *run))
        table = pd.concat(tables).assign(processor=f"{processor_name()}, {matrix_instructions()}")
        table[[*RUN, "model", "measure", "value", "low", "high", "processor"]].to_csv(
            file, index=False, float_format="%.6g", lineterminator="\n"
        )
    for name, value in summary(pd.concat(tables)).items():
        print(f"{name} {value:.4g}")


if __name__ == "__main__":
    main()
