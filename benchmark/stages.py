"""Runs a benchmark's stages, each once: what was made by the same code of the same settings and inputs is skipped."""

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmark.plan import Stage, model_path, plan_stages
from benchmark.progress import BenchmarkProgress
from cv.division import read_division
from data_module import TrainingRows, check_apart, check_split, make_missing
from engine.evaluate import check_task
from engine.folders import MARK, beside, remove_ours
from engine.language_model import check_model_path
from engine.progress import PROGRESS_FILE, Hear, heard_by, reported_progress
from engine.record import (
    RECORDS,
    TRAIN_RECORD,
    other_versions,
    read_json,
    run_facts,
    say_line,
    why_another,
)
from engine.source import code_of
from settings.language import Data, Eval, Forget
from settings.results import Benchmark
from settings.runs import ending_with_this, lock_folder, locks_given_back
from settings.script import GOES_ON, ROOT, SettingsError, Stopped

MOST_SAID = 4  # stages that an error names, and reasons of each
POLL_SECONDS = 0.2  # how often a launched stage is asked how far it is


def run_stages(benchmark: Benchmark, folder: Path, *, overwrite: bool = False) -> dict[str, dict[str, Any]]:
    """Run the stages that are not finished.

    Args:
        benchmark: The settings.
        folder: The benchmark's results.
        overwrite: Whether a finished stage may be replaced that was made of something else.

    Returns:
        Name of a stage -> its cost (seconds, peak_memory_gb), or why it failed.

    Raises:
        SettingsError: A stage has settings or data that cannot be used, or fails although nothing goes on without it,
            or finished stages would be replaced without `overwrite`.
        Stopped: A signal told this process, or a stage, to stop.
    """
    check_models(benchmark)
    stages = plan_stages(benchmark, folder)
    composed = [recipe_of(benchmark, stage).compose([*stage.overrides, "overwrite=true"]) for stage in stages]
    codes = {stage.kind: code_of(recipe_file(benchmark, stage)) for stage in stages}
    make_sources(benchmark, composed)
    check_splits(stages, composed)
    facts_now = [run_facts(settings, codes[stage.kind]) for stage, settings in zip(stages, composed, strict=True)]
    if not overwrite:
        check_finished(stages, composed, facts_now)
    say_other_versions(stages, facts_now)
    progress = BenchmarkProgress([benchmark.expected_seconds[stage.kind] for stage in stages])
    costs: dict[str, dict[str, Any]] = {}
    with progress.bar, ended_by_sigterm():
        for number, (stage, settings) in enumerate(zip(stages, composed, strict=True)):
            progress.begin(number, stage.name)
            started = time.perf_counter()
            failed = costs.get(f"forget {stage.model}", {}).get("failed")
            facts = run_facts(settings, codes[stage.kind])  # now, because it reads what the stages before have made
            skipped = bool(failed) or is_finished(stage, facts["key"])
            if not skipped and not overwrite:
                check_finished([stage], [settings], [facts])
            if failed:  # there is no model to evaluate or to attack
                costs[stage.name] = failure(failed, 0.0)
            elif skipped:
                remove_leftovers(stage.output)
                costs[stage.name] = cost_of(stage)
            else:
                costs[stage.name] = run_or_fail(stage, benchmark, settings, folder, progress)
            progress.end(time.perf_counter() - started, skipped)
    return costs


def check_models(benchmark: Benchmark) -> None:
    """Raise SettingsError for a model made elsewhere that is not there, before anything is trained.

    A line says which of them is one and the same for all seeds.
    """
    for row, named in benchmark.models.items():
        if len(benchmark.seeds) > 1 and "{seed}" not in named:
            say_line(
                f"benchmark.models.{row}={named!r} is one model for the seeds {benchmark.seeds}: its rows differ by "
                "their base and gold alone; {seed} in the path names a model for each"
            )
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
    seen: set[tuple[str, ...]] = set()
    for stage, settings in zip(stages, composed, strict=True):
        data = getattr(settings, "data", None)
        for name in ("split", "retain_split"):
            split = getattr(settings, name, None)
            if split is not None and isinstance(data, Data):
                check_split(data.path, split, f"{stage.name}: {name}")
        if isinstance(settings, Forget):
            check_rows_apart(settings, seen)
        for name, task in settings.tasks.items() if isinstance(settings, Eval) else []:
            if not task.optional:
                check_task(name, task)


def check_rows_apart(settings: Forget, seen: set[tuple[str, ...]]) -> None:
    """Raise SettingsError where rows are to be forgotten and kept; `seen`: what was looked at before."""
    place = (settings.data.path, settings.split, settings.retain_split, settings.modality)
    if place in seen:
        return
    seen.add(place)
    forget = TrainingRows(settings.data, settings.split, settings.modality, settings.seed)
    check_apart(forget, TrainingRows(settings.data, settings.retain_split, settings.modality, settings.seed))


# ---- what is finished


def record_of(stage: Stage) -> Path:
    """The file in which a stage's recipe says what it did."""
    return stage.output / RECORDS.get(stage.kind, TRAIN_RECORD)


def read_record(stage: Stage) -> dict[str, Any] | None:
    """What a stage's recipe said of what it did; None: its output is not there."""
    file = record_of(stage)
    if not file.is_file():
        return None
    record = read_json(file)
    return record if isinstance(record, dict) else {}


def is_finished(stage: Stage, key: str) -> bool:
    """Whether the stage's output is there and was made of the same."""
    record = read_record(stage)
    return record is not None and record.get("key") == key


def remove_leftovers(output: Path) -> None:
    """Remove what stands beside a finished output because its run was killed in its last moment."""
    left = [beside(output, ending) for ending in ("checkpoints", "tasks", "partial", "former")]
    with locks_given_back():
        lock_folder(output.resolve(), "save_dir")
        for folder in left:
            if (folder / MARK).is_file():
                remove_ours(folder)


def check_finished(stages: list[Stage], composed: list[Any], facts: list[dict[str, Any]]) -> None:
    """Raise SettingsError where finished stages would be made anew, with what differs.

    Args:
        stages: In the order they run.
        composed: The settings of each.
        facts: What the record of each would say if it ran now.
    """
    planned = {stage.output.resolve(): stage.name for stage in stages}
    anew: dict[str, list[str]] = {}  # name of a stage -> why it is made anew
    for stage, settings, now in zip(stages, composed, facts, strict=True):
        record = read_record(stage)
        if record is None:
            continue
        models = [Path(path).resolve() for path in settings.inputs().models]
        above = [planned[path] for path in models if planned.get(path) in anew]
        if above:
            anew[stage.name] = [f"{above[0]} is"]
        elif all(path.exists() or path not in planned for path in models):  # else it is seen when that one is there
            why = why_another(record, now)
            anew |= {stage.name: why} if why else {}
    if not anew:
        return
    named = [f"{name} ({', '.join(why[:MOST_SAID])})" for name, why in anew.items()]
    more = f" and {len(named) - MOST_SAID} more" if len(named) > MOST_SAID else ""
    raise SettingsError(
        f"{len(anew)} finished {'stage' if len(anew) == 1 else 'stages'} would be made anew: "
        f"{'; '.join(named[:MOST_SAID])}{more}. overwrite=true replaces what is there; results_dir=<another> keeps it"
    )


def say_other_versions(stages: list[Stage], facts: list[dict[str, Any]]) -> None:
    """Say which finished stages are kept although libraries have other versions now."""
    kept: dict[str, int] = {}
    for stage, now in zip(stages, facts, strict=True):
        record = read_record(stage)
        if record and record.get("key") == now["key"] and (changed := other_versions(record)):
            kept[changed] = kept.get(changed, 0) + 1
    for changed, count in kept.items():
        say_line(f"{count} finished stages were made with other libraries ({changed}) and are kept")


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
    """Whether a stage is one method's forgetting, the attack on it, or the evaluation of a model made elsewhere: other
    rows do not need it.
    """
    row = stage.model.rpartition("_seed")[0]
    return (stage.kind in ("forget", "attack") and row in benchmark.runs) or row in benchmark.models


def run_stage(stage: Stage, benchmark: Benchmark, settings: Any, log: Path, show: Hear) -> None:
    """Run a recipe in this process, or through `accelerate launch` where the benchmark says so.

    Args:
        stage: The recipe with its overrides.
        benchmark: The settings.
        settings: The stage's own.
        log: The file that takes what the recipe prints.
        show: Called with the share of the stage that is done, and what the stage says of it.

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


def launch_stage(stage: Stage, command: list[str], log: Path, show: Hear) -> None:
    """Run a recipe in processes of its own; raises SettingsError with the recipe's own line if it fails."""
    reported = log.with_suffix(".progress")
    reported.unlink(missing_ok=True)  # of a run that was killed
    # accelerate takes one core else, and rounding follows the number of cores
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())} | os.environ | {PROGRESS_FILE: str(reported)}
    stream = log.open("w", encoding="utf-8")
    options = {"stdout": stream, "stderr": subprocess.STDOUT, "env": environment}
    # a group of its own, which a terminal's signals do not reach: they come to this process, which ends the group
    options |= {"start_new_session": True}
    with stream, subprocess.Popen(ending_with_this(command), **options) as process:
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                show(*reported_progress(reported))
        except BaseException:
            end_group(process)
            raise
    reported.unlink(missing_ok=True)
    if process.returncode:
        lines = log.read_text(encoding="utf-8").splitlines()
        if stopped := [line for line in lines if line.endswith(GOES_ON)]:
            raise Stopped(f"{stage.name} was told to stop; {stopped[-1]}", 143)
        errors = [line for line in lines if line.startswith("error: ")]
        why = f": {errors[-1].removeprefix('error: ')}" if errors else ""
        raise SettingsError(f"{stage.name} failed with exit code {process.returncode}{why}; its log: {log}")


def end_group(process: subprocess.Popen) -> None:
    """Tell the processes of a launched stage to stop, and wait until they have saved; a second Ctrl+C ends them."""
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        while lives(process.pid):
            process.poll()  # else the launcher would stay as one that nobody has asked for its end
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise


def lives(group: int) -> bool:
    """Whether a process of a group still runs; one that only waits to be asked for its end does not."""
    if not Path("/proc/self/stat").is_file():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, 0)
            return True
        return False
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, own_group = file.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(own_group) == group and state not in "ZX":
                return True
    return False


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end the benchmark as Ctrl+C does, so that a launched stage is told and its record stays whole."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a launched stage may take its time to save
        raise Stopped("SIGTERM: what was finished stays; the same command goes on", 128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
