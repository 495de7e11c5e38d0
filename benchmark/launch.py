"""A stage in processes of its own: its command, how far it is, and how it is told to stop."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmark.plan import Stage
from engine.progress import PROGRESS_FILE, Hear, reported_progress
from settings.results import Benchmark
from settings.runs import ending_with_this
from settings.script import GOES_ON, ROOT, SettingsError, Stopped

POLL_SECONDS = 0.2  # how often a launched stage is asked how far it is


def recipe_file(benchmark: Benchmark, stage: Stage) -> Path:
    return ROOT / benchmark.modality / f"{stage.kind}.py"


def exhaust(steps: Iterator[None]) -> None:
    """Take every step; between two of them the process that they wait for goes on."""
    with contextlib.closing(steps):
        for _ in steps:
            time.sleep(POLL_SECONDS)


def launch_command(benchmark: Benchmark, stage: Stage, processes: int | None = None) -> list[str]:
    """The command that runs a stage; `processes`: how many, None: as accelerate was configured."""
    count = [] if processes is None else ["--num_processes", str(processes)]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "-q", *count, str(recipe_file(benchmark, stage))]
    return [*launch, *stage.overrides, "overwrite=true"]


def launch_stage(stage: Stage, command: list[str], log: Path, show: Hear) -> None:
    """Run a recipe in processes of its own; raises SettingsError with the recipe's own line if it fails."""
    exhaust(launched(stage, command, log, show, environment={}))


def launched(stage: Stage, command: list[str], log: Path, show: Hear, *, environment: dict[str, str]) -> Iterator[None]:
    """Run a recipe in processes of its own, and yield while they run; who closes this ends them.

    Args:
        stage: The recipe with its overrides.
        command: What runs it.
        log: The file that takes what the recipe prints.
        show: Called with the share of the stage that is done, and what the stage says of it.
        environment: Variables of the processes besides this one's.

    Raises:
        SettingsError: The recipe failed, with its own line.
    """
    reported = log.with_suffix(".progress")
    reported.unlink(missing_ok=True)  # of a run that was killed
    # accelerate takes one core else, and rounding follows the number of cores
    variables = {"OMP_NUM_THREADS": str(torch.get_num_threads())} | os.environ | environment
    variables |= {PROGRESS_FILE: str(reported)}
    stream = log.open("w", encoding="utf-8")
    options = {"stdout": stream, "stderr": subprocess.STDOUT, "env": variables}
    # a group of its own, which a terminal's signals do not reach: they come to this process, which ends the group
    options |= {"start_new_session": True}
    with stream, subprocess.Popen(ending_with_this(command), **options) as process:
        try:
            while process.poll() is None:
                yield
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


# ---- workers


def worker_environment(worker: int, workers: int) -> dict[str, str]:
    """What a worker's processes see: one GPU where there are any, and its share of the threads."""
    share = (
        {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers))}
    )
    gpus = visible_gpus()
    return share | ({"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {})


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    told = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    count = torch.cuda.device_count()
    return told[:count] if told else [str(number) for number in range(count)]
