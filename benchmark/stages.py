"""Runs a benchmark's stages, each once: what is finished with the same settings and inputs is skipped."""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmark.plan import Stage, plan_stages
from benchmark.progress import BenchmarkProgress, StageLog
from cv.face_settings import Faces
from data_module import fingerprint, idk_answers, make_if_missing, make_model_if_missing
from engine.methods import method_source
from engine.record import RECORDS, TRAIN_RECORD, model_fingerprint, read_json, versions, write_json
from settings.language import Data, Finetune, Forget
from settings.results import Benchmark
from settings.script import ROOT, SettingsError
from settings.training import Method


def run_stages(benchmark: Benchmark, folder: Path) -> dict[str, dict[str, Any]]:
    """Run the stages that are not finished.

    Args:
        benchmark: The settings.
        folder: The benchmark's results.

    Returns:
        Name of a stage -> its record (seconds, peak memory, why it failed), those of earlier runs included.

    Raises:
        SettingsError: A stage has settings or data that cannot be used, or fails although nothing goes on without it.
    """
    stages = plan_stages(benchmark, folder)
    composed = [recipe_of(benchmark, stage).compose([*stage.overrides, "overwrite=true"]) for stage in stages]
    check_methods(stages, composed)
    make_sources(composed)
    progress = BenchmarkProgress([benchmark.expected_seconds[stage.kind] for stage in stages])
    records: dict[str, dict[str, Any]] = {}
    for number, (stage, settings) in enumerate(zip(stages, composed, strict=True)):
        progress.begin(number, stage.name)
        file = folder / "stages" / f"{stage.file_name}.json"
        key = stage_key(stage, settings)
        record = read_json(file) if file.is_file() else {}
        failed = records.get(f"forget {stage.model}", {}).get("failed")
        skipped = bool(failed) or is_finished(stage, record, key)
        if failed:  # there is no model to evaluate or to attack
            record = {"seconds": 0.0, "peak_memory_gb": 0.0, "failed": failed}
        elif not skipped:
            cost = run_and_measure(stage, benchmark, settings, folder, progress)
            record = {"stage": stage.name, "key": key, **cost}
            write_json(file, record)
        progress.end(record["seconds"], skipped)
        records[stage.name] = record
    return records


def recipe_of(benchmark: Benchmark, stage: Stage) -> Callable:
    """The `main` of the stage's script."""
    return importlib.import_module(f"{benchmark.modality}.{stage.kind}").main


# ---- before the first stage


def check_methods(stages: list[Stage], composed: list[Any]) -> None:
    """Raise SettingsError for a run whose method makes what gold is."""
    for stage, settings in zip(stages, composed, strict=True):
        if stage.kind == "forget" and settings.method.restart:
            run = stage.model.rpartition("_seed")[0]
            name = settings.method.name
            raise SettingsError(f"benchmark.runs.{run}: gold is a row already, and what method={name} makes")


def make_sources(composed: list[Any]) -> None:
    """Make the data and base models that are made on first use: a stage's key says which ones it starts from."""
    make_if_missing(composed[0].data)
    for settings in composed:
        if isinstance(settings, Finetune):
            make_model_if_missing(settings.model, settings.model_path)


# ---- what is finished


def data_paths(data: Data | Faces) -> list[str]:
    """Where the rows or pictures of a stage stand."""
    return data.paths if isinstance(data, Faces) else [data.path, data.text_path]


def stage_key(stage: Stage, settings: Any) -> str:
    """What a finished stage depends on, as a hash.

    These are its settings, its data, the model it starts from, its method's own code, and the libraries' versions. A
    change of the code that all stages share is not among them: delete results/<name> after one.
    """
    depends: list[Any] = [asdict(settings), versions(), *(fingerprint(path) for path in data_paths(settings.data))]
    if stage.inputs or hasattr(settings, "model_path"):
        depends += [model_fingerprint(str(path)) for path in stage.inputs] or [model_fingerprint(settings.model_path)]
    if isinstance(settings, Forget):
        depends += [idk_answers(settings.data.idk_questions), idk_answers(settings.data.idk_pictures)]
    if isinstance(method := getattr(settings, "method", None), Method):
        depends += method_source(method)
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def is_finished(stage: Stage, record: dict[str, Any], key: str) -> bool:
    """Whether an earlier run did the same; what failed is tried again."""
    return record.get("key") == key and stage.output.is_dir() and "failed" not in record


# ---- one stage


def run_and_measure(
    stage: Stage, benchmark: Benchmark, settings: Any, folder: Path, progress: BenchmarkProgress
) -> dict[str, Any]:
    """Run a stage: its seconds and peak memory, and for a method that fails why, because the others go on."""
    started = time.perf_counter()
    log = StageLog(folder / "logs" / f"{stage.file_name}.log", progress.show, len(getattr(settings, "tasks", {})))
    with contextlib.closing(log):
        try:
            run_stage(stage, benchmark, settings, log)
        except SettingsError as error:
            if not is_of_a_method(stage, settings):
                raise
            if stage.kind == "attack":  # a former attack's figures would be taken for this one's
                shutil.rmtree(stage.output, ignore_errors=True)
            return {"seconds": time.perf_counter() - started, "peak_memory_gb": 0.0, "failed": str(error)}
    record = read_json(stage.output / RECORDS.get(stage.kind, TRAIN_RECORD))
    return {"seconds": time.perf_counter() - started, "peak_memory_gb": record["peak_memory_gb"]}


def is_of_a_method(stage: Stage, settings: Any) -> bool:
    """Whether a stage is one method's forgetting, or the attack on it: other rows do not need it."""
    if stage.kind == "attack":
        return settings.method is not None and not settings.method.restart
    return stage.kind == "forget"


def run_stage(stage: Stage, benchmark: Benchmark, settings: Any, log: StageLog) -> None:
    """Run a recipe in this process, or through `accelerate launch` where the benchmark says so.

    Raises:
        SettingsError: The recipe failed.
    """
    if benchmark.launch:
        launch_stage(stage, benchmark, log)
        return
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        recipe_of(benchmark, stage).recipe(settings)


def launch_stage(stage: Stage, benchmark: Benchmark, log: StageLog) -> None:
    """Run a recipe through `accelerate launch`; raises SettingsError with the recipe's own line if it fails."""
    recipe = str(ROOT / benchmark.modality / f"{stage.kind}.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "-q", recipe, *stage.overrides, "overwrite=true"]
    # accelerate takes one core else, and rounding follows the number of cores
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())} | os.environ
    process = subprocess.Popen(launch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    why = ""
    for line in process.stdout:
        log.write(line)
        if line.startswith("error: "):
            why = f": {line.removeprefix('error: ').strip()}"
    if process.wait():
        raise SettingsError(f"{stage.name} failed with exit code {process.returncode}{why}; its log: {log.file}")
