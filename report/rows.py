"""A benchmark's folder -> result rows."""

import json
from pathlib import Path
from typing import Any

from aggregate_eval_stat import aggregate
from engine.record import AGGREGATED
from report import faces
from settings.results import Aggregate, Benchmark, Run
from settings.script import SettingsError, compose

PLAN = "benchmark.json"  # what run_benchmark leaves of its settings and stages
Row = dict[str, Any]


# ---- rows


def gold_seeds(benchmark: Benchmark, seed: int) -> list[int]:
    """Seeds of the gold models that belong to a base of `seed`: its own first, then far ones that no base uses."""
    return [seed + 1000 * number for number in range(benchmark.golds)]


def log_file(folder: Path, model: str) -> Path:
    return folder / "models" / model / "eval_results" / AGGREGATED


def read_plan(folder: Path) -> dict[str, Any]:
    """The benchmark's settings and finished stages. Raises SettingsError if `folder` holds no finished benchmark."""
    try:
        return json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise SettingsError(
            f"{folder} holds no finished benchmark ({PLAN} is missing or broken): python run_benchmark.py makes one"
        ) from None


def benchmark_of(plan: dict[str, Any]) -> Benchmark:
    settings = plan["benchmark"]
    return Benchmark(**{**settings, "runs": {name: Run(**run) for name, run in settings["runs"].items()}})


def rows(benchmark: Benchmark, folder: Path, failed: dict[str, str], not_attacked: dict[str, str]) -> list[Row]:
    """One aggregated row for base, gold and each method, per seed; of a model in `failed` (by name), why, as for one whose attack failed."""
    made, other_golds = [], {}
    for seed in benchmark.seeds:
        golds = [str(log_file(folder, f"gold_seed{gold_seed}")) for gold_seed in gold_seeds(benchmark, seed)]
        for row in ("base", "gold", *benchmark.runs):
            if why := failed.get(f"{row}_seed{seed}"):
                made.append({"Method": row, "Seed": seed, "Failed": why})
                continue
            overrides = [
                f"ckpt_result={log_file(folder, f'{row}_seed{seed}')}",
                f"retain_result=[{','.join(golds)}]",
                f"base_result={log_file(folder, f'base_seed{seed}')}",
                f"scoring={benchmark.modality}",
                f"method_name={row}",
                f"save_file={folder}/results.csv",
            ]
            model = folder / "models" / f"{row}_seed{seed}"
            why = {"Attack failed": not_attacked[model.name]} if model.name in not_attacked else {}
            made.append(
                aggregate(compose("aggregate_eval_stat", Aggregate, overrides)) | faces.face_columns(model) | why
            )
        other_golds[seed] = [
            faces.face_columns(folder / "models" / f"gold_seed{other}") for other in gold_seeds(benchmark, seed)[1:]
        ]
    faces.add_distances(made, other_golds)
    return made
