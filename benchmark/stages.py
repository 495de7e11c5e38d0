"""A benchmark file -> base, gold, every method, their evaluations and one table: python run_benchmark.py benchmark=demo

Stages that are finished with the same settings and inputs are skipped, so that an interrupted run goes on where it stopped.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmark.plan import Stage, command, stages
from cv.face_settings import Faces
from data_module import fingerprint, idk_answers, make_if_missing, make_model_if_missing
from engine.methods import method_source
from engine.record import RECORDS, TRAIN_RECORD, model_fingerprint, versions, write_json
from report.rows import PLAN
from settings.language import Data, Finetune, Forget
from settings.results import Benchmark
from settings.script import ROOT, SettingsError
from settings.training import Method


class Progress:
    """Says which stage of how many is running and how long is left: the benchmark's expected seconds, corrected by the speed so far."""

    def __init__(self, expected: list[float]):
        self.expected, self.console = expected, Console(highlight=False)
        self.number, self.name, self.spent, self.worked = 0, "", 0.0, 0.0

    def begin(self, number: int, name: str) -> None:
        self.number, self.name, self.begun = number, name, time.perf_counter()
        self.show(0.0)
        if not self.console.is_terminal:
            self.console.print(self.line(0.0).replace(": 0%,", ":"))

    def line(self, fraction: float) -> str:
        spent = self.spent + time.perf_counter() - self.begun
        worked = self.worked + fraction * self.expected[self.number]
        speed = worked / spent if worked > 5 else 1.0  # expected seconds done in a real one
        left = (sum(self.expected[self.number :]) - fraction * self.expected[self.number]) / speed
        return f"[{self.number + 1}/{len(self.expected)}] {self.name}: {fraction:.0%}, about {left // 60:.0f} min {left % 60:.0f} s left in all"

    def show(self, fraction: float) -> None:
        """Refresh the line in place, on a terminal."""
        if self.console.is_terminal:
            self.console.print(self.line(fraction), end="\r", soft_wrap=True)

    def end(self, seconds: float, skipped: bool) -> None:
        if not skipped:
            self.spent += seconds
            self.worked += self.expected[self.number]
        note = "done before" if skipped else f"{seconds:.0f} s"
        self.console.print(f"[{self.number + 1}/{len(self.expected)}] {self.name}: {note}".ljust(80))


class StageLog(io.TextIOBase):
    """A stage's output: kept in a file, and watched for the epochs and tasks that tell how far it is."""

    def __init__(self, file: Path, fraction_done: Callable[[float], None], tasks: int):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.stream, self.fraction_done, self.tasks, self.finished_tasks = (
            file.open("w", encoding="utf-8"),
            fraction_done,
            tasks,
            0,
        )

    def write(self, text: str) -> int:
        self.stream.write(text)
        self.stream.flush()
        if epoch := re.search(r"^(?:epoch|models) (\d+)/(\d+)", text):
            self.fraction_done(int(epoch[1]) / int(epoch[2]))
        elif re.search(r"^\w+: \d+ rows", text):
            self.finished_tasks += 1
            self.fraction_done(min(1.0, self.finished_tasks / max(1, self.tasks)))
        return len(text)

    def close(self) -> None:
        self.stream.close()


def recipe_of(benchmark: Benchmark, stage: Stage) -> Callable:
    """The `main` of the stage's script."""
    return importlib.import_module(f"{benchmark.modality}.{stage.kind}").main


def run_stage(stage: Stage, benchmark: Benchmark, settings: Any, log: StageLog) -> None:
    """Run a recipe in this process, or through `accelerate launch` where the benchmark says so; raises SettingsError if it fails."""
    if not benchmark.launch:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            recipe_of(benchmark, stage).recipe(settings)
        return
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "-q",
        str(ROOT / benchmark.modality / f"{stage.kind}.py"),
    ]
    threads = {
        "OMP_NUM_THREADS": str(torch.get_num_threads())
    } | os.environ  # accelerate takes one core else, and rounding follows the number of cores
    process = subprocess.Popen(
        [*launch, *stage.overrides, "overwrite=true"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=threads,
    )
    why = ""
    for line in process.stdout:
        log.write(line)
        why = f": {line.removeprefix('error: ').strip()}" if line.startswith("error: ") else why
    if process.wait():
        raise SettingsError(f"{stage.name} failed with exit code {process.returncode}{why}; its log: {log.stream.name}")


def data_paths(data: Data | Faces) -> list[str]:
    """Where the rows or pictures of a stage stand."""
    return data.paths if isinstance(data, Faces) else [data.path, data.text_path]


def stage_key(stage: Stage, settings: Any) -> str:
    """What a finished stage depends on: its settings, its data, the model it starts from, its method's own code, the libraries' versions.

    A change of the code that all stages share is not in it: delete results/<name> after one.
    """
    depends: list[Any] = [asdict(settings), versions(), *(fingerprint(path) for path in data_paths(settings.data))]
    if stage.inputs or hasattr(settings, "model_path"):
        depends += [model_fingerprint(str(path)) for path in stage.inputs] or [model_fingerprint(settings.model_path)]
    if isinstance(settings, Forget):
        depends += [idk_answers(settings.data.idk_questions), idk_answers(settings.data.idk_pictures)]
    if isinstance(method := getattr(settings, "method", None), Method):
        depends += method_source(method)
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def run_stages(benchmark: Benchmark, folder: Path) -> dict[str, dict[str, Any]]:
    """Run what is not finished; returns each stage's record (seconds, peak memory), those of earlier runs included."""
    plan = stages(benchmark, folder)
    composed = [recipe_of(benchmark, stage).compose([*stage.overrides, "overwrite=true"]) for stage in plan]
    for stage, settings in zip(plan, composed, strict=True):
        if stage.kind == "forget" and settings.method.restart:
            raise SettingsError(
                f"benchmark.runs.{stage.name.split()[-1].rpartition('_seed')[0]}: gold is a row already, and what method={settings.method.name} makes"
            )
    make_if_missing(composed[0].data)
    for settings in composed:
        if isinstance(settings, Finetune):  # now, because a stage's key says which model it starts from
            make_model_if_missing(settings.model, settings.model_path)
    progress = Progress([benchmark.expected_seconds[stage.kind] for stage in plan])
    records = {}
    for number, (stage, settings) in enumerate(zip(plan, composed, strict=True)):
        progress.begin(number, stage.name)
        file, key = folder / "stages" / f"{stage.name.replace(' ', '_')}.json", stage_key(stage, settings)
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        failed = next(
            (records[f"forget {path.name}"].get("failed") for path in stage.inputs if f"forget {path.name}" in records),
            None,
        )
        if failed:  # nothing to evaluate
            progress.end(0.0, skipped=True)
            records[stage.name] = {"seconds": 0.0, "peak_memory_gb": 0.0, "failed": failed}
            continue
        skipped = (
            record.get("key") == key and stage.output.is_dir() and "failed" not in record
        )  # what failed is tried again
        if not skipped:
            record = {"stage": stage.name, "key": key, **measured(stage, benchmark, settings, folder, progress)}
            write_json(file, record)
        progress.end(record["seconds"], skipped)
        records[stage.name] = record
    return records


def measured(stage: Stage, benchmark: Benchmark, settings: Any, folder: Path, progress: Progress) -> dict[str, Any]:
    """Run a stage: its seconds and peak memory, and for a method that fails why: the others go on."""
    started, tasks = time.perf_counter(), len(getattr(settings, "tasks", {}))
    with contextlib.closing(
        StageLog(folder / "logs" / f"{stage.name.replace(' ', '_')}.log", progress.show, tasks)
    ) as log:
        try:
            run_stage(stage, benchmark, settings, log)
        except SettingsError as error:
            if stage.kind != "forget" and not (
                stage.kind == "attack" and settings.method is not None and not settings.method.restart
            ):
                raise
            if stage.kind == "attack":
                shutil.rmtree(
                    stage.output, ignore_errors=True
                )  # a former attack's figures would be taken for this one's
            return {"seconds": time.perf_counter() - started, "peak_memory_gb": 0.0, "failed": str(error)}
    own = json.loads((stage.output / RECORDS.get(stage.kind, TRAIN_RECORD)).read_text(encoding="utf-8"))
    return {"seconds": time.perf_counter() - started, "peak_memory_gb": own["peak_memory_gb"]}


def write_plan(benchmark: Benchmark, folder: Path, records: dict[str, dict[str, Any]], typed: list[str]) -> None:
    """What report.py makes its page of: the benchmark's settings and every stage with its command and cost."""
    made = [
        {
            "name": stage.name,
            "kind": stage.kind,
            "output": str(stage.output),
            "command": command(benchmark, stage),
            **records[stage.name],
        }
        for stage in stages(benchmark, folder)
    ]
    again = shlex.join(["python", "run_benchmark.py", *typed])
    write_json(folder / PLAN, {"benchmark": asdict(benchmark), "command": again, "stages": made})
