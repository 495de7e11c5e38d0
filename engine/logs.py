"""Eval logs in the layout of TOFU and CLEAR: read from their files, checked alone, and checked against each other.

A log is {task file name: {metric: {row index: value}}}. Ours add exact memorization, extraction strength, the figures
of membership attacks and the row's person.
"""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.metrics import ASCII, ROUNDING
from engine.record import EVAL_RECORD, NO_FOLDER, TRAIN_RECORD, model_fingerprint
from settings.script import SettingsError, first_line, nearest

# what is read of the records beside a log, where they hold it
RECORDED = {
    "seed": int,
    "seconds": int | float,
    "peak_memory_gb": int | float,
    "settings": dict,
    "data": dict | str,
    "reading": dict,
}
MODALITIES = ("both", "text", "visual")  # what a model was made to forget
A_LOSS = "a loss, a number of 0 or more"
REQUIRED = ("avg_gt_loss", "rougeL_recall", "generated_text")


@dataclass(frozen=True)
class TaskLog:
    """One task's n rows, sorted by index, so that nothing computed from them depends on the order in the file."""

    rows: list[str]  # indices
    losses: np.ndarray  # (n,), of the right answer, nats per token, 0 or more
    paraphrase_losses: np.ndarray  # (n,); those of the right answer where the task has no paraphrase
    perturbed_losses: list[list[float]] | None  # n lists of any length; None: the task has no wrong answers
    rouge: np.ndarray  # (n,), ROUGE-L recall as logged
    rouge_tokenizers: list[str]  # by which words; `ascii` where that is not logged, as other suites have it
    prompts: list[str]
    generations: list[str]
    truths: list[str]
    exact_memorization: np.ndarray | None  # (n,); None: not logged
    extraction_strength: np.ndarray | None
    losses_without_end: np.ndarray | None  # (n,), nats per token of the answer, its end-of-sequence token left out
    token_counts: np.ndarray | None  # (n,), tokens of the right answer with its end-of-sequence token
    min_k: np.ndarray | None  # (n,), nats
    min_k_plus_plus: np.ndarray | None  # (n,)
    zlib_bytes: np.ndarray | None  # (n,), of the right answer
    people: list[str] | None  # None: not known for every row
    tried_affixes: bool  # whether each row was asked with many affixes, and is the one that gave most away


@dataclass(frozen=True, eq=False)
class EvalLog:
    """One model's log, with the records that stand beside it; equal to itself alone."""

    name: str  # the setting it came from, for messages
    tasks: dict[str, TaskLog]
    meta: dict[str, Any]  # eval_meta.json beside the log; empty where there is none
    train_meta: dict[str, Any]  # train_meta.json of the model that was evaluated; empty where there is none
    file: Path | None = None  # where it lies


def read_eval_log(name: str, path: str, known_tasks: list[str]) -> EvalLog:
    """Read the log that a setting points to, and the records beside it.

    Args:
        name: of the setting, for messages.
        path: of an eval_log_aggregated.json.
        known_tasks: tasks that the scoring settings know.

    Returns:
        The log with its tasks in alphabetical order.

    Raises:
        SettingsError: the file is missing, is not JSON or is not a log; a task is not among `known_tasks`; metrics or
            rows are missing; a value is not of its kind; a record beside it is none.
    """
    file = Path(path)
    if not file.is_file():
        raise SettingsError(
            f"{name}={path!r}: no such file; it names the eval_log_aggregated.json of an evaluated model"
        )
    content = read_json(name, file)
    if not is_table(content):
        raise SettingsError(f"{name}={path!r} is not an eval log: it must map tasks to metrics to rows")
    tasks: dict[str, TaskLog] = {}
    for key in sorted(content):
        task = task_named(key, name, known_tasks)
        if task in tasks:
            raise SettingsError(f"{name}: task {task!r} is there twice, with and without .json")
        tasks[task] = read_task(f"{name}: task {task!r}", content[key])
    return EvalLog(name, tasks, *read_records(name, file), file)


def read_records(name: str, file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The records of an evaluation and of the training of its model; empty where there are none.

    Args:
        name: The setting that the log came from, for messages.
        file: The log.

    Raises:
        SettingsError: A file that should be one of these records is none.
    """
    meta = read_record(name, file.parent / EVAL_RECORD)
    training = training_record(file, meta)
    return meta, read_record(name, training) if training else {}


def training_record(file: Path, meta: dict[str, Any]) -> Path | None:
    """Where the training of an evaluated model left its record; None: nowhere that is known to be this model's.

    It is the folder above the log where the evaluation's record names that folder. A model may be evaluated into any
    folder, also into another model's, and folders are moved: else the weights decide. Where the record has no
    fingerprint of them, or they are gone, the folder's name does.

    Args:
        file: The log.
        meta: The evaluation's record; empty where there is none.
    """
    above, told = file.parent.parent, recorded(meta, "settings", "model_path")
    if not isinstance(told, str) or Path(told).resolve() == above.resolve():
        return above / TRAIN_RECORD
    fingerprint = meta.get("model")
    for folder in (Path(told), above) if fingerprint else ():
        if (folder / TRAIN_RECORD).is_file() and model_fingerprint(str(folder)) == fingerprint:
            return folder / TRAIN_RECORD
    is_named = Path(told).name == above.resolve().name
    has_weights = bool(fingerprint) and not model_fingerprint(str(above)).startswith(NO_FOLDER)
    return above / TRAIN_RECORD if is_named and not has_weights else None


def read_record(name: str, file: Path) -> dict[str, Any]:
    """A record beside the log that the setting `name` points to; empty where there is none.

    Raises SettingsError where it holds something else than a run's record.
    """
    record = read_json(name, file) if file.is_file() else {}
    if not isinstance(record, dict):
        raise SettingsError(f"{name}: {str(file)!r} is no record of a run: it must map names to values")
    for field, kind in RECORDED.items():
        value = record.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise SettingsError(f"{name}: {str(file)!r} is no record of a run: its {field} is {json.dumps(value)[:60]}")
    modality = recorded(record, "settings", "modality")
    if modality not in (None, *MODALITIES):
        raise SettingsError(
            f"{name}: {str(file)!r} is no record of a run: its settings.modality is {json.dumps(modality)[:60]}, not "
            f"one of {', '.join(MODALITIES)}"
        )
    return record


def recorded(record: Any, *names: str) -> Any:
    """What a record says under a name, and a name below it; None where it says nothing, or is of another shape."""
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def forgotten_modality(record: Any) -> str | None:
    """What a run's record says it was made to forget: both, text or visual; None where it does not say."""
    return forgotten(recorded(record, "settings", "method", "scope"), recorded(record, "settings", "modality"))


def forgotten(scope: str | None, modality: str | None) -> str | None:
    """What a method of some scope was made to forget on rows of some modality; None: not known.

    A method's scope goes before the rows of the run: one that forgets pictures alone is to keep what stands in words.
    """
    return {"pictures": "visual", "words": "text"}.get(str(scope), modality)


def is_table(content: Any) -> bool:
    """Whether a file's content maps names to mappings, and at least one."""
    return isinstance(content, dict) and bool(content) and all(isinstance(inner, dict) for inner in content.values())


def task_named(key: str, name: str, known_tasks: list[str]) -> str:
    """The task that a key of the log `name` stands for, with or without .json. Raises SettingsError for an unknown."""
    task = key.removesuffix(".json")
    if task not in known_tasks:
        raise SettingsError(
            f"{name}: task {task!r} is not in scoring{nearest(task, known_tasks)}; it knows {', '.join(known_tasks)}"
        )
    return task


def read_json(name: str, file: Path) -> Any:
    """The content of a JSON file. Raises SettingsError where it is none; `name` begins the message."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # bad UTF-8 as well as bad JSON
        reason = first_line(error)
        raise SettingsError(f"{name}: {str(file)!r} is not JSON ({reason})") from None


def read_task(where: str, metrics: dict[str, Any]) -> TaskLog:
    """One task's metrics as a TaskLog.

    Args:
        where: begins each error message.
        metrics: metric -> row index -> value. The losses of wrong answers may be missing as a whole.

    Returns:
        The rows, sorted by index.

    Raises:
        SettingsError: a metric is missing, covers other rows than `avg_gt_loss`, or holds a value that is not of its
            kind.
    """
    if strange := next((metric for metric, by_row in metrics.items() if not isinstance(by_row, dict)), None):
        raise SettingsError(f"{where}: {strange} must map row indices to values")
    if missing := [metric for metric in REQUIRED if not metrics.get(metric)]:
        raise SettingsError(f"{where} lacks {', '.join(missing)}")
    columns = Columns(where, metrics)
    paraphrased = "avg_paraphrased_loss" if "avg_paraphrased_loss" in metrics else "avg_gt_loss"
    texts = columns.values("generated_text", prompt_generation_truth, "[prompt, generation, truth]")
    losses_expected = "a list of losses, each of 0 or more, with at least one"
    wrong = "average_perturb_loss" in metrics
    return TaskLog(
        rows=columns.rows,
        losses=columns.numbers("avg_gt_loss", loss, A_LOSS),
        paraphrase_losses=columns.numbers(paraphrased, loss, A_LOSS),
        perturbed_losses=columns.values("average_perturb_loss", loss_list, losses_expected) if wrong else None,
        rouge=columns.numbers("rougeL_recall", share, "a number from 0 to 1"),
        rouge_tokenizers=columns.texts("rouge_tokenizer", ASCII),
        prompts=[prompt for prompt, _, _ in texts],
        generations=[generation for _, generation, _ in texts],
        truths=[truth for _, _, truth in texts],
        exact_memorization=columns.numbers_if_logged("exact_memorization", share, "a number from 0 to 1"),
        extraction_strength=columns.numbers_if_logged("extraction_strength", share, "a number from 0 to 1"),
        losses_without_end=columns.numbers_if_logged("avg_gt_loss_without_end", loss, A_LOSS),
        token_counts=columns.numbers_if_logged("num_token_gt", above_zero, "a number of tokens"),
        min_k=columns.numbers_if_logged("min_k", log_probability, "a log-probability of 0 or less"),
        min_k_plus_plus=columns.numbers_if_logged("min_k_plus_plus", number, "a number"),
        zlib_bytes=columns.numbers_if_logged("zlib_bytes", above_zero, "a number of bytes"),
        people=columns.people(),
        tried_affixes="affix" in metrics,
    )


class Columns:
    """One task's metrics, column by column; every column covers the rows of `avg_gt_loss`."""

    def __init__(self, where: str, metrics: dict[str, dict[str, Any]]):
        """`where` begins each error message; `metrics`: metric -> row index -> value."""
        self.where, self.metrics = where, metrics
        self.rows = sorted(metrics["avg_gt_loss"])

    def values(self, metric: str, read: Callable[[Any], Any], expected: str) -> list[Any]:
        """The values of a metric by row, as `read` makes them of what is logged.

        Raises SettingsError where the metric covers other rows, and for a value of which `read` makes None: it is not
        `expected`.
        """
        by_row = self.metrics[metric]
        if by_row.keys() != set(self.rows):
            raise SettingsError(
                f"{self.where}: {metric} covers {len(by_row)} rows, avg_gt_loss {len(self.rows)}, and they must be the "
                "same rows"
            )
        values = [read(by_row[row]) for row in self.rows]
        if None in values:
            bad = self.rows[values.index(None)]
            raise SettingsError(
                f"{self.where}: {metric} of row {bad} is {json.dumps(by_row[bad])[:60]}, not {expected}"
            )
        return values

    def numbers(self, metric: str, read: Callable[[Any], float | None], expected: str) -> np.ndarray:
        """The same as an array."""
        return np.array(self.values(metric, read, expected), dtype=float)

    def numbers_if_logged(self, metric: str, read: Callable[[Any], float | None], expected: str) -> np.ndarray | None:
        """The same; None where the metric is not logged."""
        return self.numbers(metric, read, expected) if metric in self.metrics else None

    def texts(self, metric: str, otherwise: str) -> list[str]:
        """The texts of a metric by row; `otherwise` for each row where the metric is not logged."""
        if metric not in self.metrics:
            return [otherwise] * len(self.rows)
        return self.values(metric, lambda value: value if isinstance(value, str) else None, "a text")

    def people(self) -> list[str] | None:
        """Each row's person; None where one row has none."""
        people = self.metrics.get("person", {})
        named = [str(people[row]) for row in self.rows if people.get(row) is not None]
        return named if len(named) == len(self.rows) else None


def number(value: Any) -> float | None:
    """A logged number as a float; None where the value is none, NaN or infinite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def loss(value: Any) -> float | None:
    """A logged loss, 0 or more; None where the value is no such number.

    NaN stands for a model that lost its numbers, and a loss below 0 for a probability above 1: a row that holds one was
    not evaluated. What is below 0 by rounding is 0.
    """
    found = number(value)
    return max(found, 0.0) if found is not None and found >= -ROUNDING else None


def log_probability(value: Any) -> float | None:
    """A logged log-probability, 0 or less; None where the value is no such number."""
    found = number(value)
    return found if found is not None and found <= ROUNDING else None


def above_zero(value: Any) -> float | None:
    """A logged number above 0; None where the value is no such number."""
    found = number(value)
    return found if found is not None and found > 0 else None


def loss_list(value: Any) -> list[float] | None:
    """A logged list of losses; None where it is empty or holds something else."""
    items = value if isinstance(value, list) else []
    losses = [found for found in map(loss, items) if found is not None]
    return losses if losses and len(losses) == len(items) else None


def share(value: Any) -> float | None:
    """A logged number from 0 to 1; None where the value is no such number."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def prompt_generation_truth(value: Any) -> list[str] | None:
    """A logged [prompt, generation, truth]; None where the value is no list of three texts."""
    return (
        value if isinstance(value, list) and len(value) == 3 and all(isinstance(text, str) for text in value) else None
    )


def check_same_rows(a: EvalLog, b: EvalLog) -> None:
    """Check that two logs cover the same rows of the same tasks and were made from the same data and questions.

    Args:
        a: a log.
        b: the log it is compared with.

    Raises:
        SettingsError: the logs differ in tasks, rows or right answers, or `check_same_source` finds a difference.
    """
    for one, other in ((a, b), (b, a)):
        if lacking := [task for task in other.tasks if task not in one.tasks]:
            raise SettingsError(
                f"{one.name} lacks task {lacking[0]!r}, which {other.name} has: evaluate both models on the same tasks"
            )
    for task in a.tasks:
        check_same_task(a, b, task)
    check_same_source(a, b)


def check_same_task(a: EvalLog, b: EvalLog, task: str) -> None:
    """Raise SettingsError where two logs differ in the rows of a task, in whom they are about, in their right answers,
    in whether there are wrong ones, or in the words of ROUGE.
    """
    of_a, of_b = a.tasks[task], b.tasks[task]
    if of_a.rows != of_b.rows:
        row = min(set(of_a.rows) ^ set(of_b.rows))
        raise SettingsError(
            f"{a.name} and {b.name} cover different rows of task {task!r}: "
            f"{len(of_a.rows)} and {len(of_b.rows)} rows, row {row} is in one of them only"
        )
    if (of_a.perturbed_losses is None) != (of_b.perturbed_losses is None):
        without, other = (a, b) if of_a.perturbed_losses is None else (b, a)
        raise SettingsError(
            f"{without.name}: task {task!r} lacks average_perturb_loss, which {other.name} has: evaluate both "
            "models on the same data"
        )
    if of_a.people and of_b.people and of_a.people != of_b.people:
        raise SettingsError(
            f"{a.name} and {b.name} name different people in the rows of task {task!r}: evaluate both on the same data"
        )
    for row, *words in zip(of_a.rows, of_a.rouge_tokenizers, of_b.rouge_tokenizers, strict=True):
        if words[0] != words[1]:
            raise SettingsError(
                f"{a.name} and {b.name} have ROUGE by other words ({words[0]} and {words[1]}) in row {row} of task "
                f"{task!r}: evaluate both models with this version"
            )
    for row, truth_a, truth_b in zip(of_a.rows, of_a.truths, of_b.truths, strict=True):
        if truth_a.strip() != truth_b.strip():
            raise SettingsError(
                f"{a.name} and {b.name} cover different data: "
                f"row {row} of task {task!r} has another right answer in each"
            )


def check_different_models(logs: list[EvalLog], what: str = "golds are models of several seeds") -> None:
    """Raise SettingsError where two of the logs, which should be of models of several seeds, are those of one model;
    `what` ends the message.
    """
    for one, other in itertools.combinations(logs, 2):
        same = [np.array_equal(log.losses, other.tasks[task].losses) for task, log in one.tasks.items()]
        if all(same):
            raise SettingsError(f"{one.name} and {other.name} hold the same losses: {what}")


def check_same_source(a: EvalLog, b: EvalLog) -> None:
    """Check that two logs were made with the same question seed, generation length, limit, fold and data.

    Only what both logs record is compared. Logs of other suites record none of it.

    Args:
        a: a log.
        b: the log it is compared with.

    Raises:
        SettingsError: both record one of these, and it differs.
    """
    seeds = [recorded(log.meta, "settings", "seed") for log in (a, b)]
    if None not in seeds and seeds[0] != seeds[1]:
        raise SettingsError(
            f"{a.name} and {b.name} were evaluated with seeds {seeds[0]} and {seeds[1]}: "
            "their rows have different questions"
        )
    for name in ("max_new_tokens", "limit", "fold", "affix_seed", "model.weights"):
        values = [recorded(log.meta, "settings", *name.split(".")) for log in (a, b)]
        if None not in values and values[0] != values[1]:
            raise SettingsError(f"{a.name} and {b.name} were evaluated with {name} {values[0]} and {values[1]}")
    for task in a.tasks:
        for name, what in (("fingerprint", "data"), ("affixes", "files of affixes")):
            prints = [recorded(log.meta, "data", task, name) for log in (a, b)]
            if None not in prints and prints[0] != prints[1]:
                raise SettingsError(
                    f"{a.name} and {b.name} were evaluated on different {what} for task {task!r}: "
                    f"fingerprints {prints[0]} and {prints[1]}"
                )
