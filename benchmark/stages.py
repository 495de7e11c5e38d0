"""Runs a benchmark's stages, each once: what was made by the same code of the same settings and inputs is skipped."""

import contextlib
import importlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.given import check_given, check_models
from benchmark.launch import (
    POLL_SECONDS,
    exhaust,
    launch_command,
    launch_stage,
    launched,
    recipe_file,
    worker_environment,
)
from benchmark.plan import Stage, plan_stages
from benchmark.progress import BenchmarkProgress
from cv.division import read_division
from data_module import TrainingRows, check_apart, check_split, make_missing
from engine.evaluate import check_task
from engine.folders import MARK, beside, remove_ours
from engine.progress import Hear, heard_by
from engine.record import (
    RECORDS,
    TRAIN_RECORD,
    other_versions,
    read_json,
    run_facts,
    say_line,
    why_another,
)
from engine.source import Code, code_of
from settings.attacks import AttackRun
from settings.language import Data, Eval, Forget
from settings.results import Benchmark
from settings.runs import lock_folder, locks_given_back
from settings.script import SettingsError, Stopped

MOST_SAID = 4  # stages that an error names, and reasons of each


def run_stages(
    benchmark: Benchmark, folder: Path, *, overwrite: bool = False, workers: int = 1
) -> dict[str, dict[str, Any]]:
    """Run the stages that are not finished.

    Args:
        benchmark: The settings.
        folder: The benchmark's results.
        overwrite: Whether a finished stage may be replaced that was made of something else.
        workers: How many seeds run side by side, each stage in a process of its own; 1: all in this process.

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
    check_given(benchmark, stages, composed)
    facts_now = [run_facts(settings, codes[stage.kind]) for stage, settings in zip(stages, composed, strict=True)]
    if not overwrite:
        check_finished(stages, composed, facts_now)
    say_other_versions(stages, facts_now)
    progress = BenchmarkProgress([benchmark.expected_seconds[stage.kind] for stage in stages], workers=workers)
    work = StagesAtWork(
        benchmark, folder, stages, composed, codes, overwrite=overwrite, progress=progress, workers=workers
    )
    with progress.bar, ended_by_sigterm():
        if workers == 1:
            for number in range(len(stages)):
                exhaust(work.steps(number, None))
        else:
            shared = [number for number, stage in enumerate(stages) if stage.seed is None]
            run_side_by_side(work, [shared], workers)
            own: dict[int, list[int]] = {}  # seed -> its stages
            for number, stage in enumerate(stages):
                if stage.seed is not None:
                    own.setdefault(stage.seed, []).append(number)
            run_side_by_side(work, list(own.values()), workers)
    return {stage.name: work.costs[stage.name] for stage in stages}


@dataclass
class StagesAtWork:
    """A benchmark's stages while they run."""

    benchmark: Benchmark
    folder: Path
    stages: list[Stage]
    composed: list[Any]  # the settings of each
    codes: dict[str, Code]  # by kind of stage
    overwrite: bool
    progress: BenchmarkProgress
    workers: int
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)  # name of a stage -> its cost, or why it failed

    def steps(self, number: int, worker: int | None) -> Iterator[None]:
        """Run a stage unless it is finished; yields while it runs in a process of its own.

        Args:
            number: Of the stage.
            worker: Which of several workers runs it; None: this process does.
        """
        stage, settings = self.stages[number], self.composed[number]
        self.progress.begin(number, stage.name)
        started = time.perf_counter()
        failed = self.costs.get(f"forget {stage.model}", {}).get("failed")
        facts = run_facts(settings, self.codes[stage.kind])  # now, because it reads what the stages before have made
        skipped = bool(failed) or is_finished(stage, facts["key"])
        if not skipped and not self.overwrite:
            check_finished([stage], [settings], [facts])
        if failed:  # there is no model to evaluate or to attack
            self.costs[stage.name] = failure(failed, 0.0)
        elif skipped:
            remove_leftovers(stage.output)
            self.costs[stage.name] = cost_of(stage)
        else:
            yield from self.run_or_fail(number, worker)
        self.progress.end(time.perf_counter() - started, skipped, number)

    def run_or_fail(self, number: int, worker: int | None) -> Iterator[None]:
        """Run a stage: its cost, or why it failed where it is one method's, because the other rows go on."""
        stage, started = self.stages[number], time.perf_counter()
        log = self.folder / "logs" / f"{stage.file_name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            if worker is None:
                run_stage(stage, self.benchmark, self.composed[number], log, self.progress.show)
            else:
                command = launch_command(self.benchmark, stage, processes=1)
                show = partial(self.progress.show, number=number)
                yield from launched(stage, command, log, show, environment=worker_environment(worker, self.workers))
        except SettingsError as error:
            if not is_of_a_run(stage, self.benchmark):
                raise
            if stage.kind == "attack":  # a former attack's figures would be taken for this one's
                shutil.rmtree(stage.output, ignore_errors=True)
            self.costs[stage.name] = failure(str(error), time.perf_counter() - started)
            return
        self.costs[stage.name] = cost_of(stage)


def run_side_by_side(work: StagesAtWork, lanes: list[list[int]], workers: int) -> None:
    """Run the stages of each lane one after another, and as many lanes side by side as there are workers.

    Whatever ends one ends all: the running stages are told to stop, and are waited for.
    """
    waiting, free = list(lanes), list(range(workers))
    running: dict[int, Iterator[None]] = {}  # by worker
    try:
        while waiting or running:
            while waiting and free:
                worker = free.pop(0)
                running[worker] = lane_steps(work, waiting.pop(0), worker)
            for worker, steps in list(running.items()):
                if next(steps, running) is running:  # it has no further step
                    del running[worker]
                    free.append(worker)
            time.sleep(POLL_SECONDS)
    finally:
        for steps in running.values():
            steps.close()


def lane_steps(work: StagesAtWork, numbers: list[int], worker: int) -> Iterator[None]:
    for number in numbers:
        yield from work.steps(number, worker)


def recipe_of(benchmark: Benchmark, stage: Stage) -> Callable:
    """The `main` of the stage's script."""
    return importlib.import_module(f"{benchmark.modality}.{stage.kind}").main


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
        for name, task in settings.tasks.items() if isinstance(settings, (Eval, AttackRun)) else []:
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
