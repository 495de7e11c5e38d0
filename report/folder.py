"""What stands where in a benchmark's folder, and the plan that run_benchmark.py leaves there."""

from pathlib import Path
from typing import Any

from engine.record import AGGREGATED, read_json
from settings.results import Benchmark
from settings.script import SettingsError

PLAN = "benchmark.json"  # what run_benchmark.py leaves of its settings and stages
PLAN_PARTS = {"benchmark", "command", "stages"}


def gold_seeds(benchmark: Benchmark, seed: int) -> list[int]:
    """Seeds of the gold models that belong to a base of `seed`: its own first, then far ones that no base uses."""
    return [seed + 1000 * number for number in range(benchmark.golds)]


def model_folder(folder: Path, model: str) -> Path:
    return folder / "models" / model


def log_file(folder: Path, model: str) -> Path:
    """The file with all tasks of a model's evaluation."""
    return model_folder(folder, model) / "eval_results" / AGGREGATED


def read_plan(folder: Path) -> dict[str, Any]:
    """What run_benchmark.py left of its settings and finished stages.

    Raises:
        SettingsError: `folder` holds no finished benchmark.
    """
    try:
        plan = read_json(folder / PLAN)
    except SettingsError:
        plan = None
    if not isinstance(plan, dict) or not plan.keys() >= PLAN_PARTS or not plan["stages"]:
        raise SettingsError(
            f"{folder} holds no finished benchmark ({PLAN} is missing or broken): python run_benchmark.py makes one"
        )
    return plan


def benchmark_of(plan: dict[str, Any]) -> Benchmark:
    """The settings of the benchmark that left `plan`."""
    return Benchmark(**plan["benchmark"])


def trained_model(stage: dict[str, Any]) -> str:
    """The name of the model that a stage of the plan trains, evaluates or attacks."""
    return stage["name"].partition(" ")[2]


def failures(plan: dict[str, Any], kind: str) -> dict[str, str]:
    """Model -> why its stage of this `kind` failed."""
    failed = [stage for stage in plan["stages"] if stage["kind"] == kind and "failed" in stage]
    return {trained_model(stage): stage["failed"] for stage in failed}
