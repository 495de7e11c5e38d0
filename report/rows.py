"""A benchmark's folder -> result rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from aggregate_eval_stat import Row, aggregate
from report.faces import add_distances, face_columns
from report.folder import benchmark_of, failures, gold_seeds, log_file, model_folder
from settings.results import Aggregate, Benchmark
from settings.script import compose


def result_rows(folder: Path, plan: dict[str, Any]) -> list[Row]:
    """Read the logs of a finished benchmark and make its table's rows.

    Args:
        folder: The benchmark's results.
        plan: What `read_plan` found there.

    Returns:
        One row for base, gold and each method, per seed. A model that could not be trained has a row that says why in
        `Failed`; one that could not be attacked says why in `Attack failed`.

    Raises:
        SettingsError: A log is missing or broken, or two logs cover different rows.
    """
    benchmark = benchmark_of(plan)
    untrained = failures(plan, "forget")
    not_attacked = failures(plan, "attack")
    settings = aggregation_settings(benchmark)
    rows = []
    other_golds = {}
    for seed in benchmark.seeds:
        for method in ("base", "gold", *benchmark.runs):
            model = f"{method}_seed{seed}"
            if model in untrained:
                rows.append({"Method": method, "Seed": seed, "Failed": untrained[model]})
                continue
            row = aggregate(replace(settings, **logs_of_row(benchmark, folder, method, seed)))
            row |= face_columns(model_folder(folder, model))
            if model in not_attacked:
                row["Attack failed"] = not_attacked[model]
            rows.append(row)
        others = gold_seeds(benchmark, seed)[1:]
        other_golds[seed] = [face_columns(model_folder(folder, f"gold_seed{other}")) for other in others]
    add_distances(rows, other_golds)
    return rows


def aggregation_settings(benchmark: Benchmark) -> Aggregate:
    """The aggregator's settings for models of the benchmark's modality, without the logs of a row."""
    return compose("aggregate_eval_stat", Aggregate, [f"scoring={benchmark.modality}"])


def logs_of_row(benchmark: Benchmark, folder: Path, method: str, seed: int) -> dict[str, Any]:
    """The aggregator's settings that name a row's method and logs."""
    golds = gold_seeds(benchmark, seed)
    return {
        "ckpt_result": str(log_file(folder, f"{method}_seed{seed}")),
        "retain_result": [str(log_file(folder, f"gold_seed{gold_seed}")) for gold_seed in golds],
        "base_result": str(log_file(folder, f"base_seed{seed}")),
        "method_name": method,
        "save_file": f"{folder}/results.csv",
    }
