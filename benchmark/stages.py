"""Runs a benchmark's stages, each once: what was made by the same code of the same settings and inputs is skipped."""

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmark.plan import Stage, model_path, plan_stages
from benchmark.progress import BenchmarkProgress
from cv.division import read_division
from data_module import make_missing, split_names
from engine.evaluate import check_task
from engine.language_model import check_model_path
from engine.record import PROGRESS_FILE, RECORDS, TRAIN_RECORD, heard_by, read_json, reported_progress, run_facts
from engine.source import code_of
from settings.language import Data, Eval
from settings.results import Benchmark
from settings.script import ROOT, SettingsError, nearest

POLL_SECONDS = 0.2  # how often a launched stage is asked how far it is


def run_stages(benchmark: Benchmark, folder: Path) -> dict[str, dict[str, Any]]:
    """Run the stages that are not finished.

    Args:
        benchmark: The settings.
        folder: The benchmark's results.

    Returns:
        Name of a stage -> its cost (seconds, peak_memory_gb), or why it failed.

    Raises:
        SettingsError: A stage has settings or data that cannot be used, or fails although nothing goes on without it.
    """
    check_models(benchmark)
    stages = plan_stages(benchmark, folder)
    composed = [recipe_of(benchmark, stage).compose([*stage.overrides, "overwrite=true"]) for stage in stages]
    codes = {stage.kind: code_of(recipe_file(benchmark, stage)) for stage in stages}
    make_sources(benchmark, composed)
    check_splits(stages, composed)
    progress = BenchmarkProgress([benchmark.expected_seconds[stage.kind] for stage in stages])
    costs: dict[str, dict[str, Any]] = {}
    with progress.bar:
        for number, (stage, settings) in enumerate(zip(stages, composed, strict=True)):
            progress.begin(number, stage.name)
            started = time.perf_counter()
            failed = costs.get(f"forget {stage.model}", {}).get("failed")
            skipped = bool(failed) or is_finished(stage, run_facts(settings, codes[stage.kind])["key"])
            if failed:  # there is no model to evaluate or to attack
                costs[stage.name] = failure(failed, 0.0)
            elif skipped:
                costs[stage.name] = cost_of(stage)
            else:
                costs[stage.name] = run_or_fail(stage, benchmark, settings, folder, progress)
            progress.end(time.perf_counter() - started, skipped)
    return costs


def check_models(benchmark: Benchmark) -> None:
    """Raise SettingsError for a model made elsewhere that is not there, before anything is trained."""
    for row in benchmark.models:
        for seed in benchmark.seeds:
            path, name = model_path(benchmark, row, seed), f"benchmark.models.{row}"
            if benchmark.modality != "cv":
                check_model_path(path, name)
            elif not Path(path).is_dir():
                raise SettingsError(f"{name}={path!r} is no folder")


def recipe_of(benchmark: Benchmark, stage: Stage) -> Callable:
    """The `main` of the stage's script."""
    return importlib.import_module(f"{benchmark.modality}.{stage.kind}").main


def recipe_file(benchmark: Benchmark, stage: Stage) -> Path:
    return ROOT / benchmark.modality / f"{stage.kind}.py"


def make_sources(benchmark: Benchmark, composed: list[Any]) -> None:
    """Make what is made on first use (data, base models, the division of faces): a stage's key says what it reads."""
    for settings in composed:
        make_missing(settings.inputs())
    if benchmark.modality == "cv":
        for data in {settings.data.split_file: settings.data for settings in composed}.values():
            read_division(data)


def check_splits(stages: list[Stage], composed: list[Any]) -> None:
    """Raise SettingsError for a split that is not in its data, before anything is trained.

    Args:
        stages: All stages.
        composed: The settings of each. Those of faces name no splits of their data.
    """
    for stage, settings in zip(stages, composed, strict=True):
        data = getattr(settings, "data", None)
        for name in ("split", "retain_split"):
            split = getattr(settings, name, None)
            if split is None or not isinstance(data, Data):
                continue
            known = split_names(data.path)
            if split not in known:
                raise SettingsError(
                    f"{stage.name}: {name}={split!r} is not in {data.path}{nearest(split, known)}; it has "
                    f"{', '.join(known)}"
                )
        for name, task in settings.tasks.items() if isinstance(settings, Eval) else []:
            if not task.optional:
                check_task(name, task)


# ---- what is finished


def record_of(stage: Stage) -> Path:
    """The file in which a stage's recipe says what it did."""
    return stage.output / RECORDS.get(stage.kind, TRAIN_RECORD)


def is_finished(stage: Stage, key: str) -> bool:
    """Whether the stage's output is there and was made of the same."""
    file = record_of(stage)
    record = read_json(file) if file.is_file() else None
    return isinstance(record, dict) and record.get("key") == key


def cost_of(stage: Stage) -> dict[str, Any]:
    """What a finished stage cost, by its recipe's own record."""
    record = read_json(record_of(stage))
    return {name: record[name] for name in ("seconds", "peak_memory_gb")}


def failure(why: str, seconds: float) -> dict[str, Any]:
    return {"seconds": seconds, "peak_memory_gb": 0.0, "failed": why}


# ---- one stage


def run_or_fail(
    stage: Stage, benchmark: Benchmark, settings: Any, folder: Path, progress: BenchmarkProgress
) -> dict[str, Any]:
    """Run a stage: its cost, or why it failed where it is one method's, because the other rows go on."""
    started = time.perf_counter()
    log = folder / "logs" / f"{stage.file_name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        run_stage(stage, benchmark, settings, log, progress.show)
    except SettingsError as error:
        if not is_of_a_run(stage, benchmark):
            raise
        if stage.kind == "attack":  # a former attack's figures would be taken for this one's
            shutil.rmtree(stage.output, ignore_errors=True)
        return failure(str(error), time.perf_counter() - started)
    return cost_of(stage)


def is_of_a_run(stage: Stage, benchmark: Benchmark) -> bool:
    """Whether a stage is one method's forgetting, or the attack on it: other rows do not need it."""
    return stage.kind in ("forget", "attack") and stage.model.rpartition("_seed")[0] in benchmark.runs


def run_stage(stage: Stage, benchmark: Benchmark, settings: Any, log: Path, show: Callable[[float], None]) -> None:
    """Run a recipe in this process, or through `accelerate launch` where the benchmark says so.

    Args:
        stage: The recipe with its overrides.
        benchmark: The settings.
        settings: The stage's own.
        log: The file that takes what the recipe prints.
        show: Called with the share of the stage that is done.

    Raises:
        SettingsError: The recipe failed.
    """
    if benchmark.launch:
        launch_stage(stage, launch_command(benchmark, stage), log, show)
        return
    stream = log.open("w", encoding="utf-8", buffering=1)  # line by line, for whoever looks into it meanwhile
    with stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), heard_by(show):
        recipe_of(benchmark, stage).recipe(settings)


def launch_command(benchmark: Benchmark, stage: Stage) -> list[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "-q", str(recipe_file(benchmark, stage))]
    return [*launch, *stage.overrides, "overwrite=true"]


def launch_stage(stage: Stage, command: list[str], log: Path, show: Callable[[float], None]) -> None:
    """Run a recipe in processes of its own; raises SettingsError with the recipe's own line if it fails."""
    reported = log.with_suffix(".progress")
    reported.unlink(missing_ok=True)  # of a run that was killed
    # accelerate takes one core else, and rounding follows the number of cores
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())} | os.environ | {PROGRESS_FILE: str(reported)}
    stream = log.open("w", encoding="utf-8")
    with stream, subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment) as process:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            show(reported_progress(reported))
    reported.unlink(missing_ok=True)
    if process.returncode:
        errors = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("error: ")]
        why = f": {errors[-1].removeprefix('error: ')}" if errors else ""
        raise SettingsError(f"{stage.name} failed with exit code {process.returncode}{why}; its log: {log}")
