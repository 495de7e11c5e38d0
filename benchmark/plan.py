"""A benchmark's settings -> its stages, in the order they run."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from report.rows import gold_seeds
from settings.results import Benchmark


@dataclass(frozen=True)
class Stage:
    """One recipe with its overrides: `kind` is its script's name, `output` the folder it makes, `inputs` the folders it reads."""

    name: str
    kind: str
    overrides: list[str]
    output: Path
    inputs: list[Path]


def stages(benchmark: Benchmark, folder: Path) -> list[Stage]:
    """All stages of a benchmark in the order they run: each model is trained, evaluated, and attacked where the benchmark attacks."""
    made, models = [], folder / "models"
    pretrained = [] if benchmark.pretrain is None else [models / "pretrained"]
    for model in pretrained:
        made.append(Stage("pretrain pretrained", "pretrain", [f"save_dir={model}", *benchmark.pretrain], model, []))
    known = benchmark.forget_split.removesuffix("+tofu")

    def add(name: str, kind: str, overrides: list[str], inputs: list[Path], attack: list[str] | None = None) -> Path:
        model = models / name
        made.append(Stage(f"{kind} {name}", kind, [f"save_dir={model}", *overrides], model, inputs))
        evaluation = [f"model_path={model}", *([f"forget={known}"] if known else []), *benchmark.eval]
        made.append(Stage(f"eval {name}", "eval", evaluation, model / "eval_results", [model]))
        if benchmark.attack is not None and attack is not None:
            output, own = (
                model / "attack_results",
                [f"model_path={pretrained[0]}", f"shadows_dir={folder}/shadows_seed{seed}", f"seed={seed}"],
            )
            made.append(
                Stage(
                    f"attack {name}",
                    "attack",
                    [f"save_dir={output}", *own, *benchmark.attack, *attack],
                    output,
                    [*pretrained, model],
                )
            )
        return model

    learn = [*(f"model_path={model}" for model in pretrained), *benchmark.finetune]
    for seed in benchmark.seeds:
        base = add(
            f"base_seed{seed}", "finetune", [f"split={benchmark.base_split}", f"seed={seed}", *learn], pretrained, []
        )
        for gold_seed in gold_seeds(benchmark, seed):
            attack = ["method=retrain"] if gold_seed == seed else None
            add(
                f"gold_seed{gold_seed}",
                "finetune",
                [f"split={benchmark.gold_split}", f"seed={gold_seed}", *learn],
                pretrained,
                attack,
            )
        people = [f"split={benchmark.forget_split}", f"retain_split={benchmark.gold_split}"] if known else []
        for row, run in benchmark.runs.items():
            own = [f"method={run.method}", *benchmark.forget, *run.overrides]
            add(f"{row}_seed{seed}", "forget", [f"model_path={base}", *people, f"seed={seed}", *own], [base], own)
    return made


def command(benchmark: Benchmark, stage: Stage) -> str:
    """The stage as one would type it to run it again."""
    return shlex.join(
        ["accelerate", "launch", f"{benchmark.modality}/{stage.kind}.py", *stage.overrides, "overwrite=true"]
    )
