"""A benchmark's folder -> the figures of all its models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from aggregate_eval_stat import aggregate, read_references
from engine.attack_figures import attack_figures_beside
from engine.result_table import Figure, ModelResult
from engine.seeds import SeedGroup
from report.face_networks import add_network_figures
from report.faces import add_distances, face_figures
from report.folder import START, Plan, base_model, gold_models, log_file, model_folder, row_model
from report.ranking import add_benchmark_places
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
        references = None  # base, golds and start are read once a seed, when the first row needs them
        for method in ("base", "gold", START, *benchmark.rows):
            model = row_model(benchmark, method, seed)
            if model in untrained:
                failed = {("failed", ""): Figure(1.0, why=untrained[model])}
                of_seed[method] = ModelResult(method, seed, failed)
                continue
            own = replace(settings, **logs_of_row(benchmark, folder, method, seed))
            references = references or read_references(own)
            result = aggregate(own, references)
            result.seed = seed  # no record of the start has one
            result.figures |= face_figures(model_folder(folder, model))
            if model in not_attacked:
                result.figures["attack_failed", ""] = Figure(1.0, why=not_attacked[model])
            of_seed[method] = result
        other_golds = [face_figures(model_folder(folder, other)) for other in gold_models(benchmark, seed)[1:]]
        add_distances(of_seed, other_golds)
        add_network_figures(of_seed)
        results += of_seed.values()
    add_benchmark_places(results, benchmark.name)
    return results


def further_golds(folder: Path, plan: Plan) -> list[SeedGroup]:
    """What attacks got out of the golds that have no row, each judged by the others; none where nothing was attacked.

    Args:
        folder: The benchmark's results.
        plan: What `read_plan` found there.
    """
    benchmark, made = plan.benchmark, []
    if benchmark.attack is None or benchmark.modality == "cv":
        return []
    for seed in benchmark.seeds:
        golds = [log_file(folder, gold) for gold in gold_models(benchmark, seed)]
        base = log_file(folder, base_model(benchmark, seed))
        for name, log in list(zip(gold_models(benchmark, seed), golds, strict=True))[1:]:
            result = ModelResult("gold", seed, attack_figures_beside(log, base, golds))
            made.append(SeedGroup(name, [result]))
    return made


def aggregation_settings(benchmark: Benchmark) -> Aggregate:
    """The aggregator's settings for models of the benchmark's modality, without the logs of a row."""
    return compose("aggregate_eval_stat", Aggregate, [f"scoring={benchmark.modality}"])


def logs_of_row(benchmark: Benchmark, folder: Path, method: str, seed: int) -> dict[str, Any]:
    """The aggregator's settings that name a row's method and logs."""
    return {
        "ckpt_result": str(log_file(folder, row_model(benchmark, method, seed))),
        "retain_result": [str(log_file(folder, gold)) for gold in gold_models(benchmark, seed)],
        "base_result": str(log_file(folder, base_model(benchmark, seed))),
        "start_result": str(log_file(folder, START)),
        "method_name": method,
        "save_file": f"{folder}/results.csv",
    }
