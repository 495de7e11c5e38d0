"""A model in training, evaluated on the validation fold at the end of every epoch, and which epoch was best."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from data_module import TaskRow
from engine import metrics
from engine.evaluate import TaskResult, evaluate_together, read_tasks, tasks_by_picture
from engine.logs import TaskLog, is_table, read_json, read_task
from engine.record import say_line
from engine.row_lengths import check_answers
from engine.scoring_way import Way, way_for
from settings.language import EpochEval, Finetune, Forget
from settings.script import SettingsError


class EpochEvaluation:
    """Evaluates the validation fold at the end of each epoch: task -> measure -> mean over its rows.

    The best epoch is the one nearest to gold: smallest mean difference over all measures of all tasks, of what is
    forgotten and what is kept alike.
    A finetuning without `gold_result` has its best where the mean loss of the right answers, over all tasks, is lowest.
    """

    def __init__(self, tasks: dict[str, list[TaskRow]], encoder: Any, settings: EpochEval, forgetting: bool):
        self.tasks, self.encoder, self.settings, self.forgetting = tasks, encoder, settings, forgetting
        self.gold = gold_measures(settings.gold_result, tasks) if settings.gold_result else None
        self.way: Way | None = None  # found when the first epoch ends

    def __call__(self, model: nn.Module) -> dict[str, dict[str, float]]:
        way = self.way = self.way or way_for(model, self.encoder, self.tasks, self.settings.batch_size, say_line)
        made: dict[str, TaskResult] = {}
        for names in tasks_by_picture(self.tasks):
            group = {name: self.tasks[name] for name in names}
            made |= evaluate_together(model, self.encoder, group, self.settings, way=way)
        return {name: measures(made[name].rows) for name in self.tasks}

    def best(self, epochs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
        """The best epoch, counted from 1, and by which rule; of a forgetting without gold nobody can say."""
        if self.gold:
            named = [(task, measure) for task in self.tasks for measure in self.gold[task] if measure != "loss"]
            badness = []
            for epoch in epochs:
                away = [abs(epoch[task][measure] - self.gold[task][measure]) for task, measure in named]
                badness.append(float(np.mean(away)))
            rule = "smallest mean difference from gold, over all measures of all tasks, on the validation fold"
        elif self.forgetting:
            return {"epoch": None, "rule": "not known: epoch_eval.gold_result is not given"}
        else:
            badness = []
            for epoch in epochs:
                losses = [epoch[task]["loss"] for task in self.tasks]
                badness.append(float(np.mean(losses)))
            rule = "lowest mean loss of the right answers, over all tasks, on the validation fold"
        known = np.nan_to_num(badness, nan=np.inf)  # an epoch that diverged is never the best
        return {"epoch": int(np.argmin(known)) + 1, "rule": rule, "badness": badness}


def open_epoch_evaluation(settings: Finetune, encoder: Any) -> EpochEvaluation | None:
    """What judges the model at the end of every epoch; None where nobody asks for it. Raises SettingsError."""
    if settings.epoch_eval is None:
        return None
    tasks = read_tasks(settings.epoch_eval, settings.seed, "validation")
    uncut = encoder.uncut()
    check_answers(uncut, tasks)
    return EpochEvaluation(tasks, uncut, settings.epoch_eval, forgetting=isinstance(settings, Forget))


def measures(rows: dict[int, dict[str, Any]]) -> dict[str, float]:
    """Means over a task's rows: loss (nats a token) and figures in [0, 1]."""
    each = list(rows.values())
    made: dict[str, Any] = {
        "loss": [row["avg_gt_loss"] for row in each],
        "Exact Memorization": [row["exact_memorization"] for row in each],
        "ROUGE": [row["rougeL_recall"] for row in each],
        "Probability": metrics.probability([row["avg_gt_loss"] for row in each]),
    }
    if all("truth_ratio" in row for row in each):
        made["Truth Ratio R/(1+R)"] = metrics.truth_share([row["truth_ratio"] for row in each])
    return {name: float(np.mean(values)) for name, values in made.items()}


def logged_row(log: TaskLog, place: int) -> dict[str, Any]:
    """What `measures` takes of the row at a place of a log."""
    assert log.exact_memorization is not None
    row = {
        "avg_gt_loss": log.losses[place],
        "exact_memorization": log.exact_memorization[place],
        "rougeL_recall": log.rouge[place],
    }
    if log.perturbed_losses is not None:
        row["truth_ratio"] = metrics.truth_ratio(log.paraphrase_losses[place], log.perturbed_losses[place])
    return row


def gold_measures(path: str, tasks: dict[str, list[TaskRow]]) -> dict[str, dict[str, float]]:
    """The gold model's means on the same rows, from its log. Raises SettingsError if it lacks a task or a row."""
    if not Path(path).is_file():
        raise SettingsError(
            f"epoch_eval.gold_result={path!r}: no such file; it names the eval_log_aggregated.json of the gold model"
        )
    setting = "epoch_eval.gold_result"
    log, made = read_json(setting, Path(path)), {}
    if not is_table(log):
        raise SettingsError(f"{setting}={path!r} is not an eval log: it must map tasks to metrics to rows")
    for name, rows in tasks.items():
        columns = log.get(f"{name}.json", {})
        wanted = [str(row.example.index) for row in rows]
        if missing := [index for index in wanted if index not in columns.get("exact_memorization", {})]:
            raise SettingsError(
                f"epoch_eval.gold_result={path!r} lacks row {missing[0]} of task {name!r}: evaluate gold on "
                "all rows with the same tasks"
            )
        if ("average_perturb_loss" in columns) != bool(rows[0].perturbed):
            with_wrong, without = ("log", "data") if "average_perturb_loss" in columns else ("data", "log")
            raise SettingsError(
                f"epoch_eval.gold_result={path!r}: task {name!r} has wrong answers in the {with_wrong} and none in the "
                f"{without}: evaluate gold on the same data"
            )
        logged = read_task(f"{setting}: task {name!r}", columns)
        places = [logged.rows.index(row) for row in wanted]
        made[name] = measures({int(logged.rows[place]): logged_row(logged, place) for place in places})
    return made
