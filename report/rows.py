"""A benchmark's folder -> the figures of all its models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from aggregate_eval_stat import aggregate
from engine.result_table import Figure, ModelResult
from report.faces import add_distances, face_figures
from report.folder import START, Plan, gold_seeds, log_file, model_folder, model_name
from report.ranking import add_places
from settings.results import Aggregate, Benchmark
from settings.script import compose


def benchmark_results(folder: Path, plan: Plan) -> list[ModelResult]:
    """Read the logs of a finished benchmark.

    Args:
        folder: The benchmark's results.
        plan: What `read_plan` found there.

    Returns:
        Base, gold and each method, per seed. A model that could not be trained, or one made elsewhere that could not be
        evaluated, has the figure `failed` alone, which says why. One that could not be attacked has the figure
        `attack_failed` besides.

    Raises:
        SettingsError: A log is missing or broken, or two logs cover different rows.
    """
    benchmark = plan.benchmark
    untrained = plan.failures("forget") | plan.failures("eval")
    not_attacked = plan.failures("attack")
    settings = aggregation_settings(benchmark)
    results = []
    for seed in benchmark.seeds:
        of_seed = {}
        for method in ("base", "gold", START, *benchmark.rows):
            model = model_name(method, seed)
            if model in untrained:
                failed = {("failed", ""): Figure(1.0, why=untrained[model])}
                of_seed[method] = ModelResult(method, seed, failed)
                continue
            result = aggregate(replace(settings, **logs_of_row(benchmark, folder, method, seed)))
            result.seed = seed  # no record of the start has one
            result.figures |= face_figures(model_folder(folder, model))
            if model in not_attacked:
                result.figures["attack_failed", ""] = Figure(1.0, why=not_attacked[model])
            of_seed[method] = result
        others = gold_seeds(benchmark, seed)[1:]
        other_golds = [face_figures(model_folder(folder, f"gold_seed{other}")) for other in others]
        add_distances(of_seed, other_golds)
        add_places(of_seed, folder, benchmark.name)
        results += of_seed.values()
    return results


def aggregation_settings(benchmark: Benchmark) -> Aggregate:
    """The aggregator's settings for models of the benchmark's modality, without the logs of a row."""
    return compose("aggregate_eval_stat", Aggregate, [f"scoring={benchmark.modality}"])


def logs_of_row(benchmark: Benchmark, folder: Path, method: str, seed: int) -> dict[str, Any]:
    """The aggregator's settings that name a row's method and logs."""
    golds = gold_seeds(benchmark, seed)
    return {
        "ckpt_result": str(log_file(folder, model_name(method, seed))),
        "retain_result": [str(log_file(folder, f"gold_seed{gold_seed}")) for gold_seed in golds],
        "base_result": str(log_file(folder, model_name("base", seed))),
        "start_result": str(log_file(folder, START)),
        "method_name": method,
        "save_file": f"{folder}/results.csv",
    }
