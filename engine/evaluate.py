"""The one evaluation loop: named tasks -> per-row losses and one greedy generation -> logs in TOFU's and CLEAR's
layout.

No averages are taken here; aggregate_eval_stat.py makes numbers of the logs. A finished task is kept beside the results
with a key of everything it depends on, so that an interrupted evaluation goes on where it stopped and a changed one is
computed anew.
"""

import inspect
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
from accelerate.utils import gather_object
from pyarrow import parquet
from torch import nn

from data_module import Example, TaskRow, check_split, fingerprint, load_split, split_names, task_rows
from engine import metrics
from engine.cells import lacking
from engine.finished import OWN_RECORD, Parts
from engine.folders import beside, check_ours, marked, remove_ours, written_whole
from engine.language_model import forward
from engine.progress import Work
from engine.reading import reading_files
from engine.record import (
    AGGREGATED,
    EVAL_RECORD,
    file_fingerprint,
    model_fingerprint,
    say_line,
    start_of_peak,
    work_key,
    write_json,
    write_record,
)
from engine.score_answers import Prompt, score_prompts
from engine.scoring_way import Way, way_for
from engine.source import Code, code_of
from engine.start_checks import check_start
from engine.token_figures import AnswerLosses
from settings.inputs import Inputs
from settings.language import Eval, EvalFolds, EvalLimits, Task
from settings.script import SettingsError, processes

TASKS = Parts(EVAL_RECORD, "tasks")
TOKEN_COLUMNS = pyarrow.schema(
    [
        ("row", pyarrow.int64()),
        ("person", pyarrow.string()),
        ("roles", pyarrow.list_(pyarrow.string())),  # truth, paraphrase, perturbed: one answer may be several
        ("answer", pyarrow.string()),
        ("tokens", pyarrow.list_(pyarrow.int32())),
        ("losses", pyarrow.list_(pyarrow.float32())),  # nats
        ("first_choice", pyarrow.list_(pyarrow.bool_())),
        ("expected_logprob", pyarrow.list_(pyarrow.float32())),  # over the vocabulary, with its standard deviation
        ("logprob_spread", pyarrow.list_(pyarrow.float32())),
    ]
)


@dataclass(frozen=True)
class TaskResult:
    """One task's rows (index -> metric -> value), its answers token by token, and how many tokens went through the
    model.
    """

    rows: dict[int, dict[str, Any]]
    tokens: list[dict[str, Any]]
    token_count: int


def row_log(row: TaskRow, by_answer: dict[str, AnswerLosses], prompt: str, generation: str) -> dict[str, Any]:
    """Everything the log says of one row, by metric name (PROTOCOL of the logs: TOFU's and CLEAR's names, and ours)."""
    truth = by_answer[row.example.answer]
    log: dict[str, Any] = {
        "avg_gt_loss": truth.mean,
        "gt_loss": sum(truth.losses),
        "num_token_gt": len(truth.losses),
        "generated_text": [prompt, generation, row.example.answer],
        **metrics.rouge_recall(generation, row.example.answer),
        "rouge_tokenizer": metrics.rouge_tokenizer(row.example.answer),
        "exact_memorization": metrics.exact_memorization(truth.correct),
        # the last token is the end-of-sequence
        "avg_gt_loss_without_end": sum(truth.losses[:-1]) / max(1, len(truth.losses) - 1),
        "extraction_strength": metrics.extraction_strength(truth.correct),
        "min_k": metrics.min_k(truth.losses),
        "min_k_plus_plus": metrics.min_k_plus_plus(truth.losses, truth.expected, truth.spread),
        "zlib_bytes": metrics.zlib_bytes(row.example.answer),
    }
    if row.perturbed:
        log |= wrong_answers_log(
            truth,
            by_answer[row.example.answer if row.paraphrase is None else row.paraphrase],
            [by_answer[answer] for answer in row.perturbed],
        )
        if row.paraphrase is None:  # a choice among options: -log of the right one's share
            share = metrics.multiple_choice_probability(truth.mean, log["average_perturb_loss"])
            log["normalized_gt_loss"] = -math.log(max(share, sys.float_info.min))
    log |= {"affix": row.affix} if row.affix else {}
    return log | ({"person": row.example.person} if row.example.person else {})


def wrong_answers_log(truth: AnswerLosses, paraphrase: AnswerLosses, perturbed: list[AnswerLosses]) -> dict[str, Any]:
    return {
        "average_perturb_loss": [p.mean for p in perturbed],
        "avg_paraphrased_loss": paraphrase.mean,
        "truth_ratio": float(metrics.truth_ratio(paraphrase.mean, [p.mean for p in perturbed])),
        "paraphrased_loss": sum(paraphrase.losses),
        "perturb_loss": [sum(p.losses) for p in perturbed],
        "num_token_paraphrased": len(paraphrase.losses),
        "num_token_perturb": [len(p.losses) for p in perturbed],
    }


def roles_of(row: TaskRow) -> dict[str, list[str]]:
    """Every answer of a row, once, with what it is."""
    roles: dict[str, list[str]] = {}
    for role, answers in (
        ("truth", [row.example.answer]),
        ("paraphrase", [] if row.paraphrase is None else [row.paraphrase]),
        ("perturbed", row.perturbed),
    ):
        for answer in dict.fromkeys(answers):
            roles.setdefault(answer, []).append(role)
    return roles


def evaluate_rows(
    model: nn.Module, encoder: Any, rows: list[TaskRow], *, max_new_tokens: int, **limits: Any
) -> TaskResult:
    """`evaluate_tasks` of one task."""
    return evaluate_tasks(model, encoder, {"": rows}, max_new_tokens=max_new_tokens, **limits)[""]


def evaluate_tasks(
    model: nn.Module, encoder: Any, tasks: dict[str, list[TaskRow]], *, max_new_tokens: int, **limits: Any
) -> dict[str, TaskResult]:
    """Score and generate for the rows of some tasks, as `score_prompts` does.

    Each question (with its picture) goes through the model once, and each of its distinct answers once. Its tokens
    count for the first task that asks it.

    Args:
        model: In eval mode.
        encoder: Of the rows.
        tasks: Name -> rows.
        max_new_tokens: Of a generation.
        limits: Those of `score_prompts`; where nothing is said, lines of progress are printed.
    """
    prompts: dict[tuple, Prompt] = {}
    asked_first: dict[tuple, str] = {}  # prompt -> task
    roles = {name: list(map(roles_of, rows)) for name, rows in tasks.items()}
    for name, rows in tasks.items():
        for row, of_row in zip(rows, roles[name], strict=True):
            prompt = prompts.setdefault(row.example.prompt_key, Prompt(row.example, []))
            prompt.answers.extend(answer for answer in of_row if answer not in prompt.answers)
            asked_first.setdefault(row.example.prompt_key, name)
    options: dict[str, Any] = {"say": say_line, "max_new_tokens": max_new_tokens, **limits}
    results = dict(zip(prompts, score_prompts(model, encoder, list(prompts.values()), **options), strict=True))
    counts = dict.fromkeys(tasks, 0)
    for key, result in results.items():
        counts[asked_first[key]] += result.tokens
    made = {name: TaskResult({}, [], count) for name, count in counts.items()}
    for name, rows in tasks.items():
        for row, of_row in zip(rows, roles[name], strict=True):
            own, prompt_text = results[row.example.prompt_key], encoder.prompt_text(row.example)
            made[name].rows[row.example.index] = row_log(row, own.answers, prompt_text, own.generation)
            answers = [token_row(row, answer, kinds, own.answers[answer]) for answer, kinds in of_row.items()]
            made[name].tokens.extend(answers)
    return made


def token_row(row: TaskRow, answer: str, kinds: list[str], own: AnswerLosses) -> dict[str, Any]:
    about = {"row": row.example.index, "person": row.example.person, "roles": kinds, "answer": answer}
    figures = {"tokens": own.tokens, "losses": own.losses, "first_choice": own.correct}
    return {**about, **figures, "expected_logprob": own.expected, "logprob_spread": own.spread}


def evaluate_together(
    model: nn.Module,
    encoder: Any,
    tasks: dict[str, list[TaskRow]],
    settings: EvalLimits,
    *,
    way: Way,
    counts: Collection[str] = (),
    say: Callable[[str], None] = say_line,
) -> dict[str, TaskResult]:
    """`evaluate_tasks` in the `way` that `way_for` found, the rows shared by all processes.

    Every process gets the whole result, rows ascending.

    Of a row that stands there with several affixes, the one counts that gives most away.

    Args:
        model: In eval mode.
        encoder: Of the rows.
        tasks: Name -> rows.
        settings: How long a generation is.
        way: How the rows are scored.
        counts: The tasks whose rows the work around this one counts.
        say: Takes a line of progress.
    """
    state = processes()
    passes = sum(map(passes_of, tasks.values()))
    counted = sum(passes_of(tasks[name]) for name in counts)
    with Work(title_of([*tasks]), passes, stands_for=counted, say=say) as work:

        def advance(count: int) -> None:
            work.advance(count * state.num_processes)

        limits: dict[str, Any] = {**way.limits, "say": say, "advance": advance}
        chosen, tried_tokens = {}, {}
        for name, rows in tasks.items():
            chosen[name], tried_tokens[name] = most_revealing(model, encoder, rows, **limits)
        own = own_rows(chosen, state.process_index, state.num_processes)
        parts = gather_object([evaluate_tasks(model, encoder, own, max_new_tokens=settings.max_new_tokens, **limits)])
    return {name: joined_parts(name, parts, tried_tokens[name]) for name in tasks}


def title_of(names: list[str]) -> str:
    """What tasks that are scored together are called."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def own_rows(tasks: dict[str, list[TaskRow]], process: int, count: int) -> dict[str, list[TaskRow]]:
    """The rows that one of several processes takes: all about a picture go to the same process, in every task."""
    pictures: dict[tuple, int] = {}  # numbered as they appear
    own: dict[str, list[TaskRow]] = {}
    for name, rows in tasks.items():
        own[name] = []
        for number, row in enumerate(rows):
            key = row.example.picture_key
            place = number if key is None else pictures.setdefault(key, len(pictures))
            if place % count == process:
                own[name].append(row)
    return own


def joined_parts(name: str, parts: list[dict[str, TaskResult]], tried_tokens: int) -> TaskResult:
    """What several processes made of a task's rows, as one result."""
    own = [part[name] for part in parts]
    by_index = {index: row for part in own for index, row in part.rows.items()}
    tokens = sorted((token for part in own for token in part.tokens), key=lambda token: token["row"])
    rows = {index: by_index[index] for index in sorted(by_index)}
    return TaskResult(rows, tokens, tried_tokens + sum(part.token_count for part in own))


def tasks_by_picture(tasks: dict[str, list[TaskRow]]) -> list[list[str]]:
    """Names of the tasks, those that ask about the same pictures in one list."""
    groups: list[tuple[set, list[str]]] = []  # pictures, names
    for name, rows in tasks.items():
        pictures = {row.example.picture_key for row in rows} - {None}
        shared = [group for group in groups if group[0] & pictures]
        first: tuple[set, list[str]] = shared[0] if shared else (set(), [])
        if not shared:
            groups.append(first)
        for other in shared[1:]:  # this task joins what was apart
            groups.remove(other)
            first[0].update(other[0])
            first[1].extend(other[1])
        first[0].update(pictures)
        first[1].append(name)
    return [names for _, names in groups]


def passes_of(rows: list[TaskRow]) -> int:
    """How many rows a task has to score: those that are tried with several affixes once more, with the one chosen."""
    tried = [row for row in rows if row.affix]
    return len(tried) + len({row.example.index for row in rows}) if tried else len(rows)


def most_revealing(model: nn.Module, encoder: Any, rows: list[TaskRow], **limits: Any) -> tuple[list[TaskRow], int]:
    """Every row once: of those with one index, the one whose right answer has the lowest loss without its end.

    All processes share the work, and each gets the whole result. The second value: how many tokens went through the
    model. `limits`: those of `score_prompts`, but for the generation.
    """
    tried = [row for row in rows if row.affix]
    if not tried:
        return rows, 0
    state = processes()
    own = range(state.process_index, len(tried), state.num_processes)
    prompts = [Prompt(tried[i].example, [tried[i].example.answer]) for i in own]
    results = score_prompts(model, encoder, prompts, max_new_tokens=1, **limits)
    losses = []
    for i, result in zip(own, results, strict=True):
        losses.append((sum(result.answers[tried[i].example.answer].losses[:-1]), i))
    tokens = sum(gather_object([sum(result.tokens for result in results)]))
    best: dict[int, TaskRow] = {}
    for _, i in sorted(gather_object(losses)):
        best.setdefault(tried[i].example.index, tried[i])
    return [best[index] for index in sorted(best)], tokens


def by_metric(rows: dict[int, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """row -> metric -> value turned into the logs' metric -> row -> value."""
    log: dict[str, dict[str, Any]] = {}
    for index, row in rows.items():
        for metric, value in row.items():
            log.setdefault(metric, {})[str(index)] = value
    return log


def read_tasks(settings: EvalFolds, seed: int, fold: str) -> dict[str, list[TaskRow]]:
    """The rows of every task; says which tasks are left out, and which columns are missing that a task does without.

    Raises SettingsError for tasks that do not fit their data.
    """
    rows = {}
    for name, task in settings.tasks.items():
        if task.optional and (why := why_left_out(task)):
            say_line(f"{name} is left out: {why}")
            continue
        check_task(name, task)
        for line in lacking(task, load_split(task.dataset, task.split)):
            say_line(f"{name}: {line}")
        rows[name] = task_rows(task, seed, settings.limit, fold, settings.validation_share)
    return rows


def why_left_out(task: Task) -> str | None:
    """What the data lacks for an optional task; None: nothing."""
    if not task.answer:
        return "data.columns names no column of its answers"
    if task.split not in split_names(task.dataset):
        return f"{task.dataset} has no split {task.split!r}"
    columns = load_split(task.dataset, task.split).column_names
    if task.reworded and task.reworded not in columns:
        return f"{task.dataset}, split {task.split} has no column {task.reworded!r}"
    return None


def check_task(name: str, task: Task) -> None:
    """Raise SettingsError for a task without a split or a right answer in the data."""
    if not task.answer:
        raise SettingsError(f"tasks.{name}.answer is empty in data.columns: ~tasks.{name} leaves the task out")
    check_split(task.dataset, task.split, f"tasks.{name}.split", f"; ~tasks.{name} leaves the task out")


# ---- a checkpoint, task by task


def evaluate(
    model: nn.Module,
    encoder: Any,
    tasks: dict[str, list[TaskRow]],
    settings: Eval,
    *,
    facts: dict[str, Any],
    say: Callable[[str], None] = say_line,
) -> None:
    """Run every task and write its results to `settings.save_dir`, whole or not at all.

    They are <task>.json, <task>.parquet, eval_log_aggregated.json and eval_meta.json. Tasks that an interrupted
    evaluation, or one that is now overwritten, has finished under the same key are taken from it. Several processes
    share the rows of each task; the first writes.

    Args:
        model: to be evaluated.
        encoder: examples -> batches.
        tasks: name -> rows.
        settings: of the evaluation.
        facts: what its record says of the run besides.
        say: takes a line of progress.
    """
    state = processes()
    folder = Path(settings.save_dir).resolve()
    kept = beside(folder, "tasks")
    check_ours(kept)
    fingerprint_of_model = model_fingerprint(settings.model_path)
    device = next(model.parameters()).device.type
    code = code_of(__file__, inspect.getfile(type(encoder)))
    groups = tasks_by_picture(tasks)
    keys = {name: task_key(name, settings, code, device, names) for names in groups for name in names}
    finished = {name: TASKS.finished(name, key, kept, folder) for name, key in keys.items()}
    places: dict[str, Path] = {}
    state.wait_for_everyone()  # nothing is written before everyone has looked
    model.eval()
    way = Way(True, settings.batch_size)
    if not all(finished.values()):
        for example in first_rows(tasks):  # words and pictures are never of one batch
            check_start(model, encoder, [example], forward, say)
        way = way_for(model, encoder, tasks, settings.batch_size, say)
    with Work("row", sum(map(passes_of, tasks.values())), say=say) as work:
        for name, place in finished.items():
            if place:
                places[name] = place
                work.skip(passes_of(tasks[name]))
                say(f"{name}: done before")
        for names in groups:
            if all(finished[name] for name in names):
                continue
            start_of_peak()
            started = time.perf_counter()
            group = {name: tasks[name] for name in names}  # finished ones too: a batch's rows decide on rounding
            opened = [name for name in names if not finished[name]]
            results = evaluate_together(model, encoder, group, settings, way=way, counts=opened, say=say)
            seconds = seconds_of(results, time.perf_counter() - started)
            for name in opened:
                say(f"{name}: {len(results[name].rows)} rows, {seconds[name]:.1f} s")
                places[name] = kept / name
                if state.is_main_process:
                    marked(kept)
                    record = {"key": keys[name], "rows": len(results[name].rows), "seconds": seconds[name]}
                    write_task(places[name], name, results[name], {**record, "tokens": results[name].token_count})
    places = {name: places[name] for name in tasks}
    if state.is_main_process:
        about = {"model": fingerprint_of_model, "reading": reading_files(settings.model_path)}
        write_results(folder, places, settings, {**facts, **about})
        remove_ours(kept)
    state.wait_for_everyone()


def seconds_of(results: dict[str, TaskResult], seconds: float) -> dict[str, float]:
    """Of each of the tasks that were scored together its part of the seconds, by tokens."""
    every = sum(result.token_count for result in results.values())
    return {name: seconds * result.token_count / max(1, every) for name, result in results.items()}


def first_rows(tasks: dict[str, list[TaskRow]]) -> list[Example]:
    """A row in words and one with a picture, each where the tasks have one."""
    found: dict[bool, Example] = {}
    for rows in tasks.values():
        for row in rows:
            found.setdefault(row.example.image is not None, row.example)
    return list(found.values())


def task_key(name: str, settings: Eval, code: Code, device: str, together: Sequence[str] = ()) -> str:
    """What a task's results depend on: the model, its data, the task's settings, the code that scores, the kind of
    device and the tasks that are scored `together` with it.
    """
    task = settings.tasks[name]
    chosen = {
        field: getattr(settings, field)
        for field in ("seed", "batch_size", "max_new_tokens", "limit", "fold", "validation_share")
    }
    others = {each: settings.tasks[each] for each in together if each != name}
    decisive = {"task": asdict(task), "model": asdict(settings.model), "device": device, **chosen}
    decisive["together"] = {each: asdict(other) for each, other in others.items()}
    every = [task, *others.values()]
    read = [place for each in every for place in each.datasets()]
    files = [file for each in every for file in each.files()]
    return work_key(decisive, Inputs([*dict.fromkeys(read)], [settings.model_path], [*dict.fromkeys(files)]), code)


def data_record(task: Task) -> dict[str, str]:
    """Which data a task read: name, split and content fingerprint, with that of the people's names if they stand
    elsewhere.
    """
    names = {"people": fingerprint(task.people.dataset)} if task.people else {}
    names |= {"affixes": "".join(map(file_fingerprint, task.files()))} if task.files() else {}
    return {"dataset": task.dataset, "split": task.split, "fingerprint": fingerprint(task.dataset), **names}


def write_task(place: Path, name: str, result: TaskResult, record: dict[str, Any]) -> None:
    with written_whole(place) as aside:
        write_json(aside / f"{name}.json", by_metric(result.rows))
        parquet.write_table(pyarrow.Table.from_pylist(result.tokens, TOKEN_COLUMNS), aside / f"{name}.parquet")
        write_record(aside / OWN_RECORD, **record)


def write_results(folder: Path, done: dict[str, Path], settings: Eval, record: dict[str, Any]) -> None:
    """Gather the finished tasks (name -> where they lie) in `folder`; an earlier evaluation there is replaced."""
    records = {name: TASKS.record(name, place) for name, place in done.items()}
    with written_whole(folder) as aside:
        logs = {}
        for name, place in done.items():
            for ending in ("json", "parquet"):
                shutil.copyfile(place / f"{name}.{ending}", aside / f"{name}.{ending}")
            logs[f"{name}.json"] = json.loads((place / f"{name}.json").read_text(encoding="utf-8"))
        write_json(aside / AGGREGATED, logs)
        cost = {
            "seconds": sum(each["seconds"] for each in records.values()),
            "tokens": sum(each["tokens"] for each in records.values()),
        }
        cost["peak_memory_gb"] = max(each["peak_memory_gb"] for each in records.values())
        data = {name: data_record(settings.tasks[name]) for name in done}
        about: dict[str, Any] = {"data": data, "tasks": records, "figure": figure_of(logs, settings)}
        write_record(aside / EVAL_RECORD, **record, **about, **cost)


def is_of(split: str, forget: str) -> bool:
    """Whether a split holds rows of the people to forget: `forget10` itself, `forget10_perturbed`, `forget10+tofu`."""
    return bool(forget) and re.match(rf"{re.escape(forget)}(?![A-Za-z0-9])", split) is not None


def figure_of(logs: dict[str, Any], settings: Eval) -> str:
    """The figure by which the jobs of a sweep are told apart: how much is remembered of the people to forget."""
    about = [f"{name}.json" for name, task in settings.tasks.items() if is_of(task.split, settings.forget)]
    rows: list[float] = []
    for name in about:
        rows += logs.get(name, {}).get("exact_memorization", {}).values()
    return f"exact memorization of {settings.forget}: {sum(rows) / len(rows):.4f}" if rows else ""
