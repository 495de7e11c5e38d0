"""Whether a benchmark's conclusions hold: the same methods over seeds, precisions and numbers of threads.

Run: python bench/stability.py --benchmark nlp_demo [--runs 20]

Base and golds are trained anew in every run. The runs are 5 seeds x {fp32, bf16} x {1, 2 threads}; `--runs 5` takes a
quarter of them, each seed once and each setting at least once. A run that was stopped goes on where it stopped.

bench/stability/<benchmark>.csv gets one line per run, model and measure; the report of that benchmark reads its spreads
from there. The output has lines `name value`:

- `<method>_distance_spread`: the standard deviation of the worst way's distance over all runs.
- `pairs_called`: ordered pairs of methods, per seed, of which some run calls the first clearly better.
- `reversed_share`: the share of these that any run reverses, with the ends of its interval over seeds.
- `flags_turned`: models that one run calls collapsed and another run not even borderline.
- `verdicts_turned`: models that one run calls like gold and another unlike gold.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engine.intervals import bootstrap_counts, percentile_interval
from engine.kept import COLLAPSED, KEPT
from engine.places import ANCHORS, RANKED_BY, judged, why_unranked
from engine.record import matrix_instructions, processor_name
from engine.result_table import Figure, ModelResult
from engine.verdicts import LIKE, UNLIKE, is_clearly_better
from settings.results import RunBenchmark
from settings.script import ROOT, compose

SEEDS = range(5)
SETTINGS = [("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]  # precision, threads
MEASURED = (
    "verdict",
    "distance_people",
    "distance_held_out",
    "distance_worst_way",
    "distance_held_out_worst_way",
    "worst_person",
    "share_forgotten",
    "share_remembered",
    "skipped",
    "kept_taught",
    "kept_real",
    "flag",
)
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
    command = [
        sys.executable,
        "run_benchmark.py",
        f"benchmark={benchmark}",
        f"results_dir={folder}",
        "overwrite=true",
        *changes,
    ]
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
    """Ordered pairs of methods of one run of which the first is clearly better, by the rule of the report's places.

    The runs are to tell the spread, so that none is taken off.
    """
    results = [result_of(run[run.model == method], method) for method in methods_of(run)]
    rows = {result.method: judged(result, 0.0) for result in results if why_unranked(result) is None}
    return {pair for pair in itertools.permutations(rows, 2) if is_clearly_better(rows[pair[0]], rows[pair[1]])}


def result_of(lines: pd.DataFrame, method: str) -> ModelResult:
    """The figures of one method of one run."""
    figures = {}
    for line in lines.itertuples():
        value, low, high = (None if pd.isna(number) else float(number) for number in (line.value, line.low, line.high))
        figures[line.measure, ""] = Figure(value, low, high)
    return ModelResult(method, None, figures)


def methods_of(table: pd.DataFrame) -> list[str]:
    """The methods, without the models that they are compared with."""
    return [model for model in table.model.unique() if model not in ANCHORS]


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Name -> value of what the runs agree on."""
    runs = [run for _, run in table.groupby(RUN)]
    lines: dict[str, float] = {"runs": len(runs)}
    distances = table[table.measure == RANKED_BY]
    for method in methods_of(table):
        lines[f"{method}_distance_spread"] = distances[distances.model == method].value.std()
    lines |= reversals(table)
    for measure, no, yes in (("flag", KEPT, COLLAPSED), ("verdict", UNLIKE, LIKE)):
        ends = table[table.measure == measure].groupby("model").value.agg(["min", "max"])
        turned_models = (ends["min"] == min(no, yes)) & (ends["max"] == max(no, yes))
        lines[f"{measure}s_turned"] = int(turned_models.sum())
    return lines


def reversals(table: pd.DataFrame) -> dict[str, float]:
    """How many pairs of methods are called different, per seed, and the share of these that any run reverses.

    The ends of its 95 % interval are over seeds, which are drawn anew with replacement.
    """
    called: dict[str, set[tuple[str, str]]] = {}
    for (seed, *_), run in table.groupby(RUN):
        called.setdefault(str(seed), set()).update(nearer_pairs(run))
    anywhere = set().union(*called.values())
    drawn = bootstrap_counts(list(called))
    counts, turned, draws_of_counts, draws_of_turned = 0, 0, 0, 0
    for seed, pairs in called.items():
        reversed_pairs = [pair for pair in pairs if pair[::-1] in anywhere]
        counts, turned = counts + len(pairs), turned + len(reversed_pairs)
        draws_of_counts = draws_of_counts + drawn[seed] * len(pairs)
        draws_of_turned = draws_of_turned + drawn[seed] * len(reversed_pairs)
    if not counts:
        return {"pairs_called": 0}
    low, high = percentile_interval(draws_of_turned / np.maximum(draws_of_counts, 1))
    share = {"reversed_share": turned / counts, "reversed_share_low": low, "reversed_share_high": high}
    return {"pairs_called": counts, **share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", default="nlp_demo", help="a file of config/benchmark with one seed")
    parser.add_argument("--runs", type=int, default=len(SEEDS) * len(SETTINGS), help="how many of the 20 runs")
    given = parser.parse_args()
    table = pd.concat([run_once(given.benchmark, *run) for run in planned_runs(given.runs)])
    table = table.assign(processor=f"{processor_name()}, {matrix_instructions()}")
    file = ROOT / "bench" / "stability" / f"{given.benchmark}.csv"
    file.parent.mkdir(exist_ok=True)
    columns = [*RUN, "model", "measure", "value", "low", "high", "processor"]
    table[columns].to_csv(file, index=False, float_format="%.6g", lineterminator="\n")
    for name, value in summary(table).items():
        print(f"{name} {value:.4g}")


if __name__ == "__main__":
    main()
