"""What stands where in a benchmark's folder, the plan that run_benchmark.py leaves there, and what a page says."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from engine.record import AGGREGATED, EVAL_FOLDER, PLAN, read_json
from settings.results import GOLD_SEEDS_APART, Benchmark
from settings.script import SettingsError

START = "start"  # the model before it was taught anybody, one for all seeds


class FinishedStage(BaseModel):
    """One recipe that ran, as the plan records it."""

    name: str
    kind: str  # the recipe's name: pretrain, finetune, forget, eval, attack
    output: Path  # the folder it made, below the benchmark's, which may have been moved or copied
    command: str  # what one would type to run it again
    seconds: float
    peak_memory_gb: float
    failed: str | None = None  # why it failed

    @property
    def model(self) -> str:
        """The name of the model that it trains, evaluates or attacks."""
        return self.name.partition(" ")[2]


class Plan(BaseModel):
    """What run_benchmark.py leaves of a finished benchmark."""

    benchmark: Benchmark
    command: str
    stages: list[FinishedStage] = Field(min_length=1)

    @property
    def described(self) -> "Described":
        """What the page says of the benchmark."""
        told = self.benchmark
        return Described(told.name, len(told.rows), told.seeds, self.command, self.stages)

    def failures(self, kind: str) -> dict[str, str]:
        """Model -> why its stage of this `kind` failed."""
        return {stage.model: stage.failed for stage in self.stages if stage.kind == kind and stage.failed}


@dataclass(frozen=True)
class Described:
    """What a page says of the runs that it shows, besides their figures."""

    name: str
    methods: int  # rows beside base, gold and start
    seeds: list[int]
    command: str  # what one would type to do it all again
    stages: list[FinishedStage]  # a folder in them is one below the page's, or a whole path


def gold_seeds(benchmark: Benchmark, seed: int) -> list[int]:
    """Seeds of the gold models that belong to a base of `seed`: its own first, then far ones that no base uses."""
    return [seed + GOLD_SEEDS_APART * number for number in range(benchmark.trained_golds)]


def gold_models(benchmark: Benchmark, seed: int) -> list[str]:
    """The names of the golds that a base of `seed` is compared with; golds that were there serve every seed."""
    given = [f"gold_{number + 1}" for number in range(len(benchmark.given_golds))]
    return given or [f"gold_seed{gold_seed}" for gold_seed in gold_seeds(benchmark, seed)]


def base_model(benchmark: Benchmark, seed: int) -> str:
    """The name of the base of a seed; one that was there may serve every seed."""
    return "base" if benchmark.base is not None and "{seed}" not in benchmark.base else f"base_seed{seed}"


def row_model(benchmark: Benchmark, row: str, seed: int) -> str:
    """The name of a row's model."""
    if row == START:
        return START
    if row == "gold":
        return gold_models(benchmark, seed)[0]
    return base_model(benchmark, seed) if row == "base" else f"{row}_seed{seed}"


def model_folder(folder: Path, model: str) -> Path:
    return folder / "models" / model


def log_file(folder: Path, model: str) -> Path:
    """The file with all tasks of a model's evaluation."""
    return model_folder(folder, model) / EVAL_FOLDER / AGGREGATED


def read_plan(folder: Path) -> Plan:
    """What run_benchmark.py left of its settings and finished stages.

    Raises:
        SettingsError: `folder` holds no finished benchmark.
    """
    try:
        return Plan.model_validate(read_json(folder / PLAN))
    except SettingsError as error:
        why = str(error)
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
    raise SettingsError(f"{folder} holds no finished benchmark: python run_benchmark.py makes one ({PLAN}: {why})")
