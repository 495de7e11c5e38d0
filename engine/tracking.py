"""Figures that go to tensorboard or to Weights & Biases beside what a run writes, by accelerate's trackers.

A run there has the name of the row: that of the folder that a training writes. An evaluation in its `eval_results` has
the same.
"""

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.record import AGGREGATED, EVAL_FOLDER, read_json
from settings.script import SettingsError, processes

PROJECT = "clear-unlearning"  # of Weights & Biases, where WANDB_PROJECT names no other

Log = Callable[[dict[str, float], int], Any]  # takes figures by name, and the step that they are of


@contextlib.contextmanager
def tracked(
    report_to: str,
    place: Path,
    name: str,
    *,
    job: str,
    first_step: int | None = None,
    settings: dict[str, Any] | None = None,
) -> Iterator[Log]:
    """What logs figures while it is open; of several processes the first does.

    Args:
        report_to: none, tensorboard or wandb.
        place: The folder in which `tensorboard/<name>` stands.
        name: Of the run.
        job: What kind of run it is: train, eval or row.
        first_step: tensorboard hides what an earlier attempt logged from this step on; None: nothing.
        settings: What Weights & Biases shows of the run's settings.

    Raises:
        SettingsError: Weights & Biases refuses the run, as where nobody is logged in.
    """
    if report_to == "none":
        yield lambda figures, step: None
        return
    processes()  # the trackers ask accelerate which process is the first
    from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker  # here, because they load torch

    if report_to == "tensorboard":
        tracker: GeneralTracker = TensorBoardTracker(name, place / "tensorboard", purge_step=first_step)
    else:
        about = {"name": name, "group": name, "job_type": job, "config": settings}
        tracker = WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), **about)
    with wandb_refusal_said():
        tracker.start()
    try:
        yield tracker.log
    finally:
        tracker.finish()


@contextlib.contextmanager
def wandb_refusal_said() -> Iterator[None]:
    """Turn an error of Weights & Biases' own into a SettingsError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] != "wandb":
            raise
        said = " ".join(str(error).split())
        raise SettingsError(f"report_to=wandb: {said} (WANDB_MODE=offline keeps the figures here)") from None


def run_of(folder: Path) -> Path:
    """The folder whose name a run's figures go by: of an evaluation within its model's folder, that one; of a training
    that is a part of another, `<its folder>.<part>`.
    """
    folder = folder.resolve()
    if folder.parent.suffix == ".checkpoints":
        return folder.parent.with_suffix(f".{folder.name}")
    return folder.parent if folder.name == EVAL_FOLDER else folder


@contextlib.contextmanager
def tracked_evaluation(report_to: str, save_dir: str) -> Iterator[None]:
    """Log the means of the evaluation that is made within, task by task, under the name of its model.

    Raises SettingsError as `tracked` does, before anything is evaluated.
    """
    if report_to == "none" or not processes().is_main_process:
        yield
        return
    run = run_of(Path(save_dir))
    with tracked(report_to, run.parent, run.name, job="eval") as log:
        yield
        log(means_of_logs(read_json(Path(save_dir) / AGGREGATED)), 0)


def means_of_logs(logs: dict[str, dict[str, dict[str, Any]]]) -> dict[str, float]:
    """`<task>/<metric>` -> mean over the task's rows, of each metric of the logs that is one number per row."""
    means = {}
    for file, columns in logs.items():
        for metric, rows in columns.items():
            values = list(rows.values())
            if values and all(isinstance(value, int | float) for value in values):
                means[f"{file.removesuffix('.json')}/{metric}"] = statistics.fmean(values)
    return means
