"""A benchmark's settings -> its stages in the order they run, and the plan that the report reads."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.record import ATTACK_FOLDER, EVAL_FOLDER, PLAN, write_json
from report.folder import START, base_model, gold_models, gold_seeds, model_folder
from settings.results import Benchmark
from settings.script import SettingsError


@dataclass(frozen=True)
class Stage:
    """One recipe with its overrides."""

    kind: str  # the recipe's name: pretrain, finetune, forget, eval, attack
    model: str  # the name of the model that it trains, evaluates or attacks
    overrides: list[str]
    output: Path  # the folder it makes
    seed: int | None = None  # whose work it is; None: it is done once for all seeds, before theirs

    @property
    def name(self) -> str:
        return f"{self.kind} {self.model}"

    @property
    def file_name(self) -> str:
        """What its log and its record are called, without an ending."""
        return self.name.replace(" ", "_")


def plan_stages(benchmark: Benchmark, folder: Path) -> list[Stage]:
    """All stages of a benchmark in the order they run.

    Each model is trained, evaluated, and attacked where the benchmark attacks.

    Args:
        benchmark: The settings.
        folder: The benchmark's results, which hold every output.
    """
    stages = [*plan_pretraining(benchmark, folder), plan_start(benchmark, folder), *plan_given(benchmark, folder)]
    for seed in benchmark.seeds:
        stages += [replace(stage, seed=seed) for stage in plan_seed(benchmark, folder, seed)]
    return stages


def plan_seed(benchmark: Benchmark, folder: Path, seed: int) -> Iterator[Stage]:
    """The stages of one seed, which need no other seed's."""
    yield from plan_base(benchmark, folder, seed)
    for gold_seed in gold_seeds(benchmark, seed):
        yield from plan_gold(benchmark, folder, gold_seed, of=seed)
    for row in benchmark.runs:
        yield from plan_run(benchmark, folder, row, seed)
    for row in benchmark.models:
        yield from plan_model(benchmark, folder, row, seed)


def plan_given(benchmark: Benchmark, folder: Path) -> Iterator[Stage]:
    """The evaluations of models that were there and serve every seed."""
    first = benchmark.seeds[0]
    names = gold_models(benchmark, first) if benchmark.given_golds else []
    given = dict(zip(names, benchmark.given_golds, strict=True))
    if benchmark.base is not None and "{seed}" not in benchmark.base:
        given = {base_model(benchmark, first): benchmark.base, **given}
    for name, path in given.items():
        yield plan_evaluation(benchmark, name, path, model_folder(folder, name) / EVAL_FOLDER)
        yield from plan_attacks(benchmark, folder, name, path, first)


def with_overrides(planned: list[str], written: list[str]) -> list[str]:
    """The overrides of a stage: what the plan says, then what the benchmark's file says.

    Raises SettingsError for a line of the file that would undo one of the plan's: the table would tell of another
    model, seed or split than ran.
    """
    fixed = {"save_dir", *(text.partition("=")[0] for text in planned)}
    for text in written:
        name = text.partition("=")[0].strip("+~ ")
        if name in fixed:
            raise SettingsError(
                f"benchmark: {text!r} cannot stand in a list of overrides; a benchmark sets {name} itself"
            )
    return [*planned, *written]


def pretrained_models(benchmark: Benchmark, folder: Path) -> list[Path]:
    """The folder of the model that all begin with, if the benchmark makes one."""
    return [] if benchmark.pretrain is None else [model_folder(folder, "pretrained")]


def plan_pretraining(benchmark: Benchmark, folder: Path) -> Iterator[Stage]:
    for model in pretrained_models(benchmark, folder):
        overrides = with_overrides([f"save_dir={model}"], [*benchmark.common, *benchmark.pretrain])
        yield Stage("pretrain", model.name, overrides, model)


def plan_start(benchmark: Benchmark, folder: Path) -> Stage:
    """The evaluation of the model before it is taught anybody: the pretrained one, or the one that `model` names."""
    return plan_evaluation(benchmark, START, start_path(benchmark, folder), model_folder(folder, START) / EVAL_FOLDER)


def start_path(benchmark: Benchmark, folder: Path) -> str:
    """Where the model stands that is taught."""
    pretrained = pretrained_models(benchmark, folder)
    return str(pretrained[0]) if pretrained else "${model.path}"


def plan_base(benchmark: Benchmark, folder: Path, seed: int) -> Iterator[Stage]:
    """The model that knows everybody."""
    name = base_model(benchmark, seed)
    if benchmark.base is not None:
        if "{seed}" in benchmark.base:
            output, path = model_folder(folder, name) / EVAL_FOLDER, base_path(benchmark, folder, seed)
            yield plan_evaluation(benchmark, name, path, output)
            yield from plan_attacks(benchmark, folder, name, path, seed)
        return
    training = plan_finetuning(benchmark, folder, name, benchmark.base_split, seed)
    yield from (training, evaluation_of(benchmark, training))
    yield from plan_attacks(benchmark, folder, name, training.output, seed)
    yield from plan_face_attack(benchmark, folder, training, seed, [])


def plan_gold(benchmark: Benchmark, folder: Path, seed: int, *, of: int) -> Iterator[Stage]:
    """The model that never met the people who are to be forgotten; `of`: the seed of the base that it belongs to."""
    training = plan_finetuning(benchmark, folder, f"gold_seed{seed}", benchmark.gold_split, seed)
    yield from (training, evaluation_of(benchmark, training))
    yield from plan_attacks(benchmark, folder, training.model, training.output, of)
    if seed == of:
        yield from plan_face_attack(benchmark, folder, training, seed, ["split=retain"])


def plan_run(benchmark: Benchmark, folder: Path, row: str, seed: int) -> Iterator[Stage]:
    """The model that the base becomes by a method."""
    base = base_path(benchmark, folder, seed)
    model = model_folder(folder, f"{row}_seed{seed}")
    splits = []
    if benchmark.forget_split:
        splits = [f"split={benchmark.forget_split}", f"retain_split={benchmark.gold_split}"]
    of_row = [*benchmark.forget, *benchmark.row_overrides(row)]
    planned = [f"save_dir={model}", f"model_path={base}", *splits, f"seed={seed}"]
    training = Stage("forget", model.name, with_overrides(planned, [*benchmark.common, *of_row]), model)
    yield from (training, evaluation_of(benchmark, training))
    yield from plan_attacks(benchmark, folder, model.name, model, seed)
    yield from plan_face_attack(benchmark, folder, training, seed, of_row)


def base_path(benchmark: Benchmark, folder: Path, seed: int) -> str:
    """Where the base of a seed stands."""
    if benchmark.base is not None:
        return benchmark.base.replace("{seed}", str(seed))
    return str(model_folder(folder, base_model(benchmark, seed)))


def plan_model(benchmark: Benchmark, folder: Path, row: str, seed: int) -> Iterator[Stage]:
    """The evaluation of a model made elsewhere, and the attacks on it."""
    name = f"{row}_seed{seed}"
    path = model_path(benchmark, row, seed)
    yield plan_evaluation(benchmark, name, path, model_folder(folder, name) / EVAL_FOLDER)
    yield from plan_attacks(benchmark, folder, name, path, seed)


def model_path(benchmark: Benchmark, row: str, seed: int) -> str:
    """Where a model made elsewhere stands."""
    return benchmark.models[row].replace("{seed}", str(seed))


def plan_finetuning(benchmark: Benchmark, folder: Path, name: str, split: str, seed: int) -> Stage:
    model = model_folder(folder, name)
    start = start_path(benchmark, folder)
    planned = [f"save_dir={model}", f"split={split}", f"seed={seed}", f"model_path={start}"]
    return Stage("finetune", name, with_overrides(planned, [*benchmark.common, *benchmark.finetune]), model)


def plan_evaluation(benchmark: Benchmark, model: str, path: str | Path, output: Path) -> Stage:
    """The evaluation of a model at `path`, which goes to `output`."""
    planned = [f"model_path={path}", f"save_dir={output}", *whom(benchmark)]
    overrides = with_overrides(planned, [*benchmark.common, *benchmark.eval])
    return Stage("eval", model, overrides, output)


def whom(benchmark: Benchmark) -> list[str]:
    """The override that says whose forgetting is looked at; none for faces."""
    return [f"forget={benchmark.forget_people}"] if benchmark.forget_people else []


def evaluation_of(benchmark: Benchmark, training: Stage) -> Stage:
    """The evaluation of a model that a stage trains."""
    return plan_evaluation(benchmark, training.model, training.output, training.output / EVAL_FOLDER)


def plan_attacks(benchmark: Benchmark, folder: Path, model: str, path: str | Path, seed: int) -> Iterator[Stage]:
    """The attacks on a model that reads, if the benchmark attacks: base, golds and all rows are attacked alike.

    Args:
        benchmark: The settings.
        folder: The benchmark's results.
        model: The name of the model.
        path: Where it stands.
        seed: Of the base that it belongs to.
    """
    if benchmark.attack is None or benchmark.modality == "cv":
        return
    output = model_folder(folder, model) / ATTACK_FOLDER
    planned = [f"model_path={path}", f"base_path={base_path(benchmark, folder, seed)}", f"save_dir={output}"]
    overrides = with_overrides([*planned, *whom(benchmark)], [*benchmark.common, *benchmark.attack])
    yield Stage("attack", model, overrides, output)


def plan_face_attack(
    benchmark: Benchmark, folder: Path, training: Stage, seed: int, of_row: list[str]
) -> Iterator[Stage]:
    """The attack on a trained face network, if the benchmark attacks; `of_row`: overrides that name the method."""
    if benchmark.attack is None or benchmark.modality != "cv":
        return
    output = training.output / ATTACK_FOLDER
    start = pretrained_models(benchmark, folder)
    if not start:
        raise SettingsError("benchmark.attack needs benchmark.pretrain: every attacked model begins with that one")
    shadows = [f"model_path={start[0]}", f"shadows_dir={folder}/shadows_seed{seed}", f"seed={seed}"]
    written = [*benchmark.common, *benchmark.attack, *of_row]
    yield Stage("attack", training.model, with_overrides([f"save_dir={output}", *shadows], written), output)


def stage_command(benchmark: Benchmark, stage: Stage) -> str:
    """The stage as one would type it to run it again."""
    recipe = f"{benchmark.modality}/{stage.kind}.py"
    return shlex.join(["accelerate", "launch", "-q", recipe, *stage.overrides, "overwrite=true"])


def write_plan(benchmark: Benchmark, folder: Path, records: dict[str, dict[str, Any]], typed: list[str]) -> None:
    """Write what the report reads of a finished benchmark: its settings, and every stage with its command and cost.

    Args:
        benchmark: The settings.
        folder: The benchmark's results.
        records: Name of a stage -> its record, from `run_stages`.
        typed: The overrides that run_benchmark.py was called with.
    """
    stages = []
    for stage in plan_stages(benchmark, folder):
        about = {"name": stage.name, "kind": stage.kind, "output": str(stage.output.relative_to(folder))}
        stages.append({**about, "command": stage_command(benchmark, stage), **records[stage.name]})
    again = shlex.join(["python", "run_benchmark.py", *typed])
    write_json(folder / PLAN, {"benchmark": asdict(benchmark), "command": again, "stages": stages})
