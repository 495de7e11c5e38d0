"""The one evaluation loop: named tasks -> per-row losses and one greedy generation -> logs in TOFU's and CLEAR's layout.

No averages are taken here; aggregate_eval_stat.py makes numbers of the logs. This is the plain way of scoring: one forward an answer.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from data_module import Example, TaskRow, collate, collate_prompts, fingerprint, task_rows
from eval_metrics import multiple_choice_probability, rouge_recall, truth_ratio
from model_module import score
from run_record import AGGREGATED, EVAL_RECORD, peak_memory_gb, processes, say_line, start_of_peak, versions, write_json, written_whole
from run_settings import Eval, Task
from unlearn_losses import IGNORE, token_nll


@dataclass(frozen=True)
class AnswerScore:
    """Teacher-forced answer: per-token negative log-likelihoods and whether each token was the model's first choice; end-of-sequence last."""

    losses: list[float]
    correct: list[bool]

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)

    @property
    def exact_memorization(self) -> float:
        """Share of answer tokens, end-of-sequence excluded, whose argmax is right."""
        return sum(self.correct[:-1]) / max(1, len(self.correct) - 1)

    @property
    def extraction_strength(self) -> float:
        """1 - k/n with k the shortest prefix after which every token is right to the end; 0 when the last one is wrong."""
        words = self.correct[:-1]
        prefix = next((i + 1 for i in reversed(range(len(words))) if not words[i]), 0)
        return 1 - prefix / max(1, len(words))


def by_length(examples: list[Example], answers: list[str]) -> list[int]:
    """The order in which neighbours are of similar length, judged by their letters: encoding all at once would hold every picture in memory."""
    return sorted(range(len(examples)), key=lambda i: (examples[i].image is not None, len(examples[i].question) + len(answers[i])))


@torch.no_grad()
def score_answers(model: nn.Module, encoder: Any, examples: list[Example], batch_size: int) -> list[AnswerScore]:
    """Score the answer of each example, one forward each, in batches of similar length; results in the order of `examples`."""
    order = by_length(examples, [example.answer for example in examples])
    scores: list[AnswerScore | None] = [None] * len(examples)
    device = next(model.parameters()).device
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([encoder.encode(examples[i]) for i in chosen], encoder.tokenizer.pad_token_id)
        scored = score(model, {name: value.to(device) for name, value in batch.items()})
        losses, correct = token_nll(scored).cpu(), (scored.logits.argmax(-1) == scored.labels).cpu()
        for row, i in enumerate(chosen):
            answer = batch["labels"][row] != IGNORE
            scores[i] = AnswerScore(losses[row][answer].tolist(), correct[row][answer].tolist())
    return scores


@torch.no_grad()
def generate_answers(model: nn.Module, encoder: Any, examples: list[Example], batch_size: int, max_new_tokens: int) -> list[str]:
    """Greedy answer of the model to each example's question (and picture), in the order of `examples`."""
    order = by_length(examples, [""] * len(examples))
    texts = [""] * len(examples)
    device = next(model.parameters()).device
    tokenizer = encoder.tokenizer
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate_prompts([encoder.encode(examples[i]) for i in chosen], tokenizer.pad_token_id)
        tokens = model.generate(
            **{name: value.to(device) for name, value in batch.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        for row, i in enumerate(chosen):
            texts[i] = encoder.decode(tokens[row, batch["input_ids"].shape[1] :])
    return texts


def row_log(row: TaskRow, by_answer: dict[str, AnswerScore], prompt: str, generation: str) -> dict[str, Any]:
    """Everything the log says of one row, by metric name (PROTOCOL of the logs: TOFU's and CLEAR's names)."""
    truth = by_answer[row.example.answer]
    paraphrase = by_answer[row.paraphrase or row.example.answer]
    perturbed = [by_answer[answer] for answer in row.perturbed]
    log = {
        "avg_gt_loss": truth.mean,
        "gt_loss": sum(truth.losses),
        "num_token_gt": len(truth.losses),
        "generated_text": [prompt, generation, row.example.answer],
        **rouge_recall(generation, row.example.answer),
        "average_perturb_loss": [p.mean for p in perturbed],
        "avg_paraphrased_loss": paraphrase.mean,
        "truth_ratio": float(truth_ratio(paraphrase.mean, [p.mean for p in perturbed])),
        "paraphrased_loss": sum(paraphrase.losses),
        "perturb_loss": [sum(p.losses) for p in perturbed],
        "num_token_paraphrased": len(paraphrase.losses),
        "num_token_perturb": [len(p.losses) for p in perturbed],
        "exact_memorization": truth.exact_memorization,
        "extraction_strength": truth.extraction_strength,
    }
    if row.paraphrase is None:  # a choice among options: -log of the right one's share
        share = multiple_choice_probability(truth.mean, [p.mean for p in perturbed])
        log["normalized_gt_loss"] = -math.log(max(share, sys.float_info.min))
    return log | ({"person": row.example.person} if row.example.person else {})


def evaluate_rows(model: nn.Module, encoder: Any, rows: list[TaskRow], batch_size: int, max_new_tokens: int) -> dict[int, dict[str, Any]]:
    """Score and generate for `rows`: row index -> metric -> value. Every distinct answer of a row is forwarded once."""
    wanted = [(i, answer) for i, row in enumerate(rows) for answer in dict.fromkeys([row.example.answer, *filter(None, [row.paraphrase]), *row.perturbed])]
    scores = score_answers(model, encoder, [replace(rows[i].example, answer=answer) for i, answer in wanted], batch_size)
    by_row: list[dict[str, AnswerScore]] = [{} for _ in rows]
    for (i, answer), answer_score in zip(wanted, scores, strict=True):
        by_row[i][answer] = answer_score
    generations = generate_answers(model, encoder, [row.example for row in rows], batch_size, max_new_tokens)
    prompts = [encoder.prompt_text(row.example) for row in rows]
    return {row.example.index: row_log(row, *parts) for row, *parts in zip(rows, by_row, prompts, generations, strict=True)}


def by_metric(rows: dict[int, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """row -> metric -> value turned into the logs' metric -> row -> value, rows ascending."""
    log: dict[str, dict[str, Any]] = {}
    for index in sorted(rows):
        for metric, value in rows[index].items():
            log.setdefault(metric, {})[str(index)] = value
    return log


def read_tasks(settings: Eval) -> dict[str, list[TaskRow]]:
    """The rows of every task; raises SettingsError for tasks that do not fit their data."""
    return {name: task_rows(task, settings.seed, settings.limit) for name, task in settings.tasks.items()}


def evaluate(
    model: nn.Module, encoder: Any, tasks: dict[str, list[TaskRow]], settings: Eval, record: dict[str, Any], say: Callable[[str], None] = say_line
) -> None:
    """Run every task and write <task>.json, eval_log_aggregated.json and eval_meta.json to `settings.save_dir`, whole or not at all.

    Several processes share the rows of each task; the first writes.
    """
    state = processes()
    start_of_peak()
    started, logs, seconds = time.perf_counter(), {}, {}
    model.eval()
    for name, rows in tasks.items():
        begun = time.perf_counter()
        own = rows[state.process_index :: state.num_processes]
        parts = gather_object([evaluate_rows(model, encoder, own, settings.batch_size, settings.max_new_tokens)])
        logs[f"{name}.json"] = by_metric({index: row for part in parts for index, row in part.items()})
        seconds[name] = time.perf_counter() - begun
        say(f"{name}: {len(rows)} rows, {seconds[name]:.1f} s")
    if state.is_main_process:
        with written_whole(Path(settings.save_dir)) as aside:
            for name, log in logs.items():
                write_json(aside / name, log)
            write_json(aside / AGGREGATED, logs)
            cost = {"seconds": time.perf_counter() - started, "task_seconds": seconds, "peak_memory_gb": peak_memory_gb()}
            data = {name: data_record(task) for name, task in settings.tasks.items()}
            write_json(aside / EVAL_RECORD, {**record, "data": data, "rows": {n: len(r) for n, r in tasks.items()}, **cost, "versions": versions()})
    state.wait_for_everyone()


def data_record(task: Task) -> dict[str, str]:
    """Which data a task read: name, split and content fingerprint."""
    return {"dataset": task.dataset, "split": task.split, "fingerprint": fingerprint(task.dataset)}
