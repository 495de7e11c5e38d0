"""The log of a judged model and those of the gold model and the base -> one result row, CSV or JSON: python
aggregate_eval_stat.py ckpt_result=...

Columns that cannot be filled stay empty and another column says why; every row has the columns of its tasks, whatever
is known.
"""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine import metrics as metrics
from engine.logs import EvalLog, TaskLog, check_same_rows, read_eval_log
from settings.results import Aggregate, Scoring
from settings.script import SettingsError, script

PUBLISHED = "eval_log_forget"  # its Forget Quality is the column that papers print
MEASURES = ("Exact Memorization", "ROUGE", "Probability", "Truth Ratio R/(1+R)")  # of the distance to gold
ATTACK_FPR = 0.01
INTERVALS = ("Model Utility", "Real metric", "Retain metric", "Forget metric", "Distance to gold")

Row = dict[str, Any]


@dataclass(frozen=True)
class TaskMetrics:
    """One task's rows as metrics in [0, 1], each (n,)."""

    rouge: np.ndarray
    probability: np.ndarray
    truth_ratio: np.ndarray  # min(R, 1/R) on forget tasks, else max(0, 1 - R)
    ratio: np.ndarray  # R itself, above 0
    exact: np.ndarray | None
    extraction: np.ndarray | None
    degenerate: np.ndarray  # of the generations: empty or mostly repeating itself
    empty: np.ndarray
    repetition: np.ndarray  # share of repeated n-grams
    people: list[str] | None

    @property
    def means(self) -> list[float]:
        """ROUGE, Probability and Truth Ratio, of which the harmonic means are made."""
        return [float(each.mean()) for each in self.parts]

    @property
    def parts(self) -> list[np.ndarray]:
        return [self.rouge, self.probability, self.truth_ratio]

    def measure(self, name: str) -> np.ndarray | None:
        """Per-row values of one of MEASURES."""
        return dict(
            zip(MEASURES, (self.exact, self.rouge, self.probability, metrics.truth_share(self.ratio)), strict=True)
        )[name]


ModelMetrics = dict[str, TaskMetrics]  # by task name


@script("aggregate_eval_stat", Aggregate)
def main(settings: Aggregate) -> None:
    row = aggregate(settings)
    write_row(row, settings.save_file)
    width = max(map(len, row))
    print("\n".join(f"{name:<{width}}  {readable(value)}" for name, value in row.items()))
    print(f"written: {settings.save_file}")


def aggregate(settings: Aggregate) -> Row:
    """The result row of `settings.ckpt_result`: column name -> text, number, or None where it cannot be known.

    Raises SettingsError for logs that cannot be read or do not cover the same rows of the same tasks.
    """
    ckpt, base, golds = read_logs(settings)
    model, gold, *others = (log_metrics(log, settings) for log in (ckpt, *golds))
    start = log_metrics(base, settings) if base else None
    tasks = {name: settings.scoring[name] for name in model}
    row = {"Method": settings.method_name, "Submitted By": settings.submitted_by, **run_columns(ckpt)}
    row |= utility_columns(model, gold, tasks)
    row |= forget_quality_columns(model, gold, tasks)
    row |= distance_columns(model, gold, start, others, tasks)
    row |= gate_columns(start, gold, tasks)
    row |= membership_columns(ckpt, golds[0], settings.scoring)
    row |= interval_columns(model, gold, start, others, tasks)
    row |= task_columns(model)
    return row | {
        "Truth Ratio definition": settings.truth_ratio,
        "ROUGE definition": "ROUGE-L recall, stemmed",
        "Golds": len(golds),
    }


def read_logs(settings: Aggregate) -> tuple[EvalLog, EvalLog | None, list[EvalLog]]:
    """The judged model's log, the base's (None: not given) and the golds', all over the same rows."""
    listed = isinstance(settings.retain_result, list)
    paths = settings.retain_result if listed else [settings.retain_result]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise SettingsError(f"retain_result={settings.retain_result!r} must be the path of a log or a list of paths")
    named = {f"retain_result[{i}]" if listed else "retain_result": path for i, path in enumerate(paths)}
    if settings.base_result is not None:
        if not Path(settings.base_result).is_file():
            raise SettingsError(
                f"base_result={settings.base_result!r}: no such file; base_result=null leaves out the gate and "
                "the distance to gold"
            )
        named["base_result"] = settings.base_result
    known, holdout = list(settings.scoring), names_of(settings.scoring, "holdout")
    ckpt = read_eval_log("ckpt_result", settings.ckpt_result, known, holdout)
    logs = {name: read_eval_log(name, path, known, holdout) for name, path in named.items()}
    for log in logs.values():
        check_same_rows(ckpt, log)
    inputs = [settings.ckpt_result, *named.values()]
    if Path(settings.save_file).resolve() in [Path(path).resolve() for path in inputs]:
        raise SettingsError(f"save_file={settings.save_file!r} is one of the logs: name another file")
    base = logs.pop("base_result", None)
    return ckpt, base, list(logs.values())


def log_metrics(log: EvalLog, settings: Aggregate) -> ModelMetrics:
    """Metrics of every task but the holdout ones, which nobody was meant to learn or forget."""
    scored = {name: settings.scoring[name] for name in log.tasks if settings.scoring[name].group != "holdout"}
    return {name: task_metrics(log.tasks[name], scoring, settings.truth_ratio) for name, scoring in scored.items()}


def task_metrics(log: TaskLog, scoring: Scoring, definition: str) -> TaskMetrics:
    """Losses and generations as metrics.

    The Truth Ratio is taken from the losses: a logged one may follow the other definition.
    """
    ratios = [
        metrics.truth_ratio(right, wrong, definition)
        for right, wrong in zip(log.paraphrase_losses, log.perturbed_losses, strict=True)
    ]
    if scoring.multiple_choice:
        pairs = zip(log.losses, log.perturbed_losses, strict=True)
        probabilities = np.array([metrics.multiple_choice_probability(right, wrong) for right, wrong in pairs])
    else:
        probabilities = metrics.probability(log.losses)
    return TaskMetrics(
        rouge=log.rouge,
        probability=probabilities,
        truth_ratio=metrics.truth_ratio_scores(ratios, forget=scoring.group == "forget"),
        ratio=np.array(ratios),
        exact=log.exact_memorization,
        extraction=log.extraction_strength,
        degenerate=np.array([metrics.is_degenerate(text) for text in log.generations]),
        empty=np.array([metrics.is_empty(text) for text in log.generations]),
        repetition=np.array([metrics.repetition(text) for text in log.generations]),
        people=log.people,
    )


def run_columns(log: EvalLog) -> Row:
    """Seed and cost, from the records beside the log; empty where there are none."""
    peaks = [meta["peak_memory_gb"] for meta in (log.meta, log.train_meta) if meta.get("peak_memory_gb") is not None]
    return {
        "Seed": log.train_meta.get("seed"),
        "Train seconds": log.train_meta.get("seconds"),
        "Eval seconds": log.meta.get("seconds"),
        "Peak memory GB": max(peaks, default=None),
    }


def names_of(tasks: dict[str, Scoring], *groups: str) -> list[str]:
    return [name for name, scoring in tasks.items() if scoring.group in groups]


def group_metric(scores: ModelMetrics, tasks: list[str]) -> float | None:
    """Harmonic mean of ROUGE, Probability and Truth Ratio over `tasks`; None when there are none."""
    return metrics.harmonic_mean([mean for name in tasks for mean in scores[name].means]) if tasks else None


def utility_columns(model: ModelMetrics, gold: ModelMetrics, tasks: dict[str, Scoring]) -> Row:
    """Model Utility, alone and against gold's, the three group metrics, and whether the model collapsed."""
    others = names_of(tasks, "retain", "real")
    utility, gold_utility = group_metric(model, others), group_metric(gold, others)
    texts = generation_columns(model, tasks)
    degenerate = texts["Degenerate retain generations"]
    reasons = []
    if utility is not None and utility < gold_utility / 2:
        reasons.append(f"Model Utility {utility:.4f} is under half of gold's {gold_utility:.4f}")
    if degenerate is not None and degenerate > 0.5:
        reasons.append(f"{degenerate:.0%} of the retain generations are degenerate")
    return {
        "Model Utility": utility,
        "Model Utility / gold": utility / gold_utility if gold_utility else None,
        "Collapsed": "yes" if reasons else "no",
        "Collapsed why": "; ".join(reasons) or None,
        **texts,
        **{
            f"{group.title()} metric": group_metric(model, names_of(tasks, group))
            for group in ("real", "retain", "forget")
        },
    }


def generation_columns(model: ModelMetrics, tasks: dict[str, Scoring]) -> Row:
    """Degenerate and empty shares and mean repetition of the generations, for what is kept and for what is
    forgotten.
    """
    row: Row = {}
    for group in ("retain", "forget"):
        for measure in ("degenerate", "empty", "repetition"):
            values = [getattr(model[name], measure) for name in names_of(tasks, group)]
            row[f"{measure.title()} {group} generations"] = float(np.concatenate(values).mean()) if values else None
    return row


def membership_columns(model: EvalLog, gold: EvalLog, scoring: dict[str, Scoring]) -> Row:
    """How well attacks tell the forgotten rows from rows that nobody was trained on; empty where a log has no such
    rows, and why.
    """
    row: Row = {}
    for holdout in names_of(scoring, "holdout"):
        members = scoring[holdout].members
        if holdout not in model.tasks or members not in model.tasks:
            continue
        of_model, of_gold = (membership_scores(log.tasks[members], log.tasks[holdout]) for log in (model, gold))
        resolved = len(model.tasks[holdout].rows) >= 10 / ATTACK_FPR
        row["Membership TPR undefined"] = (
            None
            if resolved
            else f"{len(model.tasks[holdout].rows)} holdout rows; at least {10 / ATTACK_FPR:.0f} resolve it"
        )
        for attack, pair in of_model.items():
            auc, gold_auc = (
                None if each is None else metrics.membership_auc(*each) for each in (pair, of_gold[attack])
            )
            row[f"Membership AUC {attack} {members}"] = auc
            row[f"Membership TPR at 1% FPR {attack} {members}"] = (
                None if pair is None else metrics.membership_tpr(*pair, ATTACK_FPR)
            )
            row[f"Privacy leakage {attack} {members}"] = (
                None if auc is None or gold_auc is None else metrics.privacy_leakage(auc, gold_auc)
            )
    return row


def membership_scores(members: TaskLog, others: TaskLog) -> dict[str, tuple[np.ndarray, np.ndarray] | None]:
    """Attack -> scores of members and of others, larger for what looks known.

    None where the logs do not hold what it needs.
    """

    def pair(score: Callable[[TaskLog], np.ndarray | None]) -> tuple[np.ndarray, np.ndarray] | None:
        scores = score(members), score(others)
        return None if any(each is None for each in scores) else scores

    return {
        "loss": pair(lambda log: -log.losses),
        "zlib": pair(lambda log: None if log.zlib_bytes is None else -log.losses / log.zlib_bytes),
        "min-k": pair(lambda log: log.min_k),
        "min-k++": pair(lambda log: log.min_k_plus_plus),
    }


def forget_quality_columns(model: ModelMetrics, gold: ModelMetrics, tasks: dict[str, Scoring]) -> Row:
    """The two models' Truth Ratios compared on each forget task; columns of all but the published task end with its
    name.
    """
    row: Row = {}
    for name in sorted(names_of(tasks, "forget"), key=lambda name: (name != PUBLISHED, name)):
        a, b, people = model[name].ratio, gold[name].ratio, model[name].people
        test = metrics.ks_test(a, b)
        columns = {
            "Forget Quality": test.p,
            "Forget Quality statistic": test.statistic,
            "log10 Forget Quality": test.log10_p,
            "Forget Quality (person permutation)": metrics.person_permutation_p(a, b, people) if people else None,
            "Forget Quality (JS)": metrics.js_similarity(a, b),
            "Forget Quality (JS) n": len(a),
            "Forget Quality (JS) permutation median": metrics.js_permutation_median(a, b, people or range(len(a))),
            "Forget Quality (JS) permuted by": "person" if people else "row: people are not known",
        }
        ending = "" if name == PUBLISHED else f" {name}"
        row |= {f"{column}{ending}": value for column, value in columns.items()}
    return row


def distance_columns(
    model: ModelMetrics,
    gold: ModelMetrics,
    base: ModelMetrics | None,
    others: list[ModelMetrics],
    tasks: dict[str, Scoring],
) -> Row:
    """Distance to gold of each measure on each forget task, their mean |d| first, and the other golds' beside as noise
    floor.
    """
    distances = measure_distances(model, gold, base, others, tasks)
    defined = [each for each in distances.values() if each.value is not None]
    noises = [each.noise for each in defined if each.noise is not None]
    why = [f"{name}: {each.why}" for name, each in distances.items() if each.why]
    return {
        "Distance to gold": float(np.mean([abs(each.value) for each in defined])) if defined else None,
        "Distance to gold noise floor": float(np.mean(noises)) if noises else None,
        "Distance to gold undefined": "no base_result is given" if base is None else "; ".join(why) or None,
        **{f"Distance to gold {name}": each.value for name, each in distances.items()},
        **{f"Distance to gold noise floor {name}": each.noise for name, each in distances.items()},
    }


def measure_distances(
    model: ModelMetrics,
    gold: ModelMetrics,
    base: ModelMetrics | None,
    others: list[ModelMetrics],
    tasks: dict[str, Scoring],
) -> dict[str, metrics.Distance]:
    """`<measure> <task>` -> its distance, for all measures of all forget tasks."""
    distances = {}
    for task in names_of(tasks, "forget"):
        for measure in MEASURES:
            if base is None:
                distances[f"{measure} {task}"] = metrics.Distance(None, None)
                continue
            rows = [scores[task].measure(measure) for scores in (model, base, gold, *others)]
            if any(values is None for values in rows):
                distances[f"{measure} {task}"] = metrics.Distance(None, None, "not in every log")
                continue
            of_model, of_base, of_gold, *of_others = (float(values.mean()) for values in rows)
            distances[f"{measure} {task}"] = metrics.distance_to_gold(of_model, of_base, of_gold, of_others)
    return distances


def gate_columns(base: ModelMetrics | None, gold: ModelMetrics, tasks: dict[str, Scoring]) -> Row:
    """Whether the base had memorized what was to be forgotten:

    `passed`, `failed` or `not known: why`, and each task's figures.
    """
    row: Row = {}
    gates, unknown = [], []
    marked = [name for name, scoring in tasks.items() if scoring.gate]
    if base is None:
        unknown.append("no base_result is given")
    elif not marked:
        ways = " or ".join(f"scoring.{name}.gate=true" for name in names_of(tasks, "forget"))
        unknown.append(
            f"the logs hold no task marked gate; {ways} marks one" if ways else "the logs hold no forget task"
        )
    for name in marked:
        gate = None
        if base is not None and (base[name].exact is None or gold[name].exact is None):
            unknown.append(f"{name} has no exact_memorization in the base's or the gold's log")
        elif base is not None:
            gate = metrics.memorization_gate(base[name].exact, gold[name].exact, base[name].people)
            gates.append(gate)
            unknown += [f"the people of {name} are not known"] if gate.passed is None else []
        row[f"Gate base {name}"] = gate and gate.base
        row[f"Gate rise {name}"] = gate and gate.rise
        row[f"Gate people {name}"] = gate and gate.people
    failed = any(gate.passed is False for gate in gates)
    return {"Gate": "failed" if failed else f"not known: {'; '.join(unknown)}" if unknown else "passed", **row}


def interval_columns(
    model: ModelMetrics,
    gold: ModelMetrics,
    base: ModelMetrics | None,
    others: list[ModelMetrics],
    tasks: dict[str, Scoring],
) -> Row:
    """95 % intervals of the headline figures by drawing people anew; empty unless each task of a figure has at least 10
    known people.
    """
    draws: dict[str, np.ndarray] = {}
    groups = {
        "Model Utility": ("retain", "real"),
        "Real metric": ("real",),
        "Retain metric": ("retain",),
        "Forget metric": ("forget",),
    }
    for figure, members in groups.items():
        if counts := drawn_people(model, names := names_of(tasks, *members)):
            parts = np.stack(
                [
                    metrics.bootstrap_means(part, model[name].people, counts)
                    for name in names
                    for part in model[name].parts
                ]
            )
            draws[figure] = metrics.harmonic_mean(parts[:, ~np.isnan(parts).any(axis=0)])
    defined = [
        key for key, each in measure_distances(model, gold, base, others, tasks).items() if each.value is not None
    ]
    if defined and (counts := drawn_people(model, names_of(tasks, "forget"))):
        draws["Distance to gold"] = np.mean([distance_draws(key, model, gold, base, counts) for key in defined], axis=0)
    row: Row = {}
    for figure in INTERVALS:
        row[f"{figure} low"], row[f"{figure} high"] = (
            metrics.interval(draws[figure]) if figure in draws else (None, None)
        )
    return {
        "n people": fewest_people(model, names_of(tasks, "forget")),
        "n retain people": fewest_people(model, names_of(tasks, "retain")),
        **row,
    }


def fewest_people(scores: ModelMetrics, tasks: list[str]) -> int | None:
    """People of the task that has the fewest; None when they are not known for every task."""
    known = [scores[name].people for name in tasks]
    return None if not known or None in known else min(len(set(people)) for people in known)


def drawn_people(scores: ModelMetrics, tasks: list[str]) -> dict[str, np.ndarray] | None:
    """Bootstrap counts of the people of `tasks`; None where a task has fewer than 10, or they are not known."""
    fewest = fewest_people(scores, tasks)
    if fewest is None or fewest < metrics.MIN_PEOPLE:
        return None
    return metrics.bootstrap_counts([person for name in tasks for person in scores[name].people])


def distance_draws(
    key: str, model: ModelMetrics, gold: ModelMetrics, base: ModelMetrics, counts: dict[str, np.ndarray]
) -> np.ndarray:
    """|distance to gold| of one measure on one task for each draw of people, the same people in all three models."""
    measure, task = key.rsplit(" ", 1)
    of_model, of_base, of_gold = (
        metrics.bootstrap_means(s[task].measure(measure), model[task].people, counts) for s in (model, base, gold)
    )
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # a draw in which base equals gold: left out by the interval if 0/0, beyond it if x/0
        return np.abs((of_model - of_gold) / (of_base - of_gold))


def task_columns(model: ModelMetrics) -> Row:
    """The means of each task, tasks in the order of their names."""
    row: Row = {}
    for name, scores in model.items():
        row |= {
            f"{column} {name}": mean
            for column, mean in zip(("ROUGE", "Probability", "Truth Ratio"), scores.means, strict=True)
        }
        row[f"Exact Memorization {name}"] = None if scores.exact is None else float(scores.exact.mean())
        row[f"Extraction Strength {name}"] = None if scores.extraction is None else float(scores.extraction.mean())
    return row


def readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or abs(value) >= 5e-5 else f"{value:.2e}"
    return "-" if value is None else str(value)


def write_row(row: Row, save_file: str) -> None:
    """Write `row` as the only one of a CSV (header and row; empty for None) or JSON file, whole or not at all.

    Raises SettingsError.
    """
    file = Path(save_file)
    aside = file.with_name(f"{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8", newline="") as stream:
            if file.suffix == ".json":
                stream.write(json.dumps(row, indent=1) + "\n")
            else:
                writer = csv.DictWriter(stream, row)
                writer.writeheader()
                writer.writerow(row)
        os.replace(aside, file)
    except OSError as error:
        raise SettingsError(f"save_file={save_file!r} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    main()
