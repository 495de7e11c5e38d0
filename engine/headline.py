"""The logs of a judged model, of base and of golds -> the headline: every person, every way of asking."""

from collections.abc import Mapping, Sequence

import numpy as np

from engine.leaks import (
    AS_TRAINED,
    Excess,
    Leak,
    Scope,
    distance,
    excess,
    gold_distance,
    leaks,
    over_forgetting,
    shares,
    worst_way,
)
from engine.measures import HEADLINE
from engine.result_table import Figure, Figures
from engine.task_metrics import ModelMetrics, TaskMetrics
from engine.verdicts import leak_text, skipped_people, too_few_ways, verdict
from settings.results import Scoring

# all without the end-of-sequence token, whose loss alone can hide a name that is said rightly
HEADLINE_MEASURES = ("exact_memorization", "rouge", "probability_without_end")


def headline_figures(
    model: ModelMetrics,
    base: ModelMetrics | None,
    golds: Sequence[ModelMetrics],
    scoring: Mapping[str, Scoring],
    modality: str | None,
) -> Figures:
    """What may be concluded of a model.

    Args:
        model: The judged model's rows.
        base: Those of the model before forgetting; None: not given.
        golds: Those of the golds.
        scoring: Task -> how it is scored, of the tasks in the logs.
        modality: What the model was made to forget: both, text or visual; None: not known, which counts as both.
    """
    missing = why_missing(model, base, golds, scoring)
    if missing or base is None:
        return without_headline(missing)
    tasks = forget_tasks(scoring, modality)
    scopes = [scope_of(task, (model, base, *golds), scoring) for task in tasks]
    parts = [excess(scope) for scope in scopes if scope.measures]
    parts = [part for part in parts if part.measures]
    if not parts:
        return without_headline("base and gold lie less than 3 times the golds' own noise apart in every measure")
    return figures_of(parts)


def why_missing(
    model: ModelMetrics, base: ModelMetrics | None, golds: Sequence[ModelMetrics], scoring: Mapping[str, Scoring]
) -> str:
    """Why there is no headline; empty: there is one."""
    if base is None:
        return "no base_result is given"
    if len(golds) < 2:
        return "one gold only: retain_result=[<log>,<log>] takes golds of two seeds"
    tasks = [task for task, each in scoring.items() if each.group == "forget"]
    if not tasks:
        return "the logs hold no forget task"
    unknown = [task for task in tasks if model[task].people is None]
    return f"the people of {unknown[0]} are not known" if unknown else ""


def without_headline(why: str) -> Figures:
    """Every figure of the headline without a value; the verdict says why."""
    return {(measure.key, ""): Figure(None) for measure in HEADLINE} | {("verdict", ""): Figure(None, why=why)}


def forget_tasks(scoring: Mapping[str, Scoring], modality: str | None) -> list[str]:
    """The forget tasks of what a model was made to forget: all, or those in words or in pictures."""
    tasks = [task for task, each in scoring.items() if each.group == "forget"]
    if modality in (None, "both"):
        return tasks
    return [task for task in tasks if scoring[task].modality in ("", modality)]


def scope_of(task: str, models: Sequence[ModelMetrics], scoring: Mapping[str, Scoring]) -> Scope:
    """The means of every person in every way of asking a forget task.

    Args:
        task: The forget task.
        models: The judged model, base, and the golds.
        scoring: Task -> how it is scored.
    """
    ways = {AS_TRAINED: task} | {each.way: name for name, each in scoring.items() if each.way_of == task}
    logged = [model[name].of_rows for model in models for name in ways.values()]
    measures = list(HEADLINE_MEASURES)
    for of_rows in logged:
        measures = [measure for measure in measures if of_rows.get(measure) is not None]
    people = sorted(set(models[0][task].known_people))
    tables = []
    for model in models:
        of_ways = [person_table(model[name], measures, people) for name in ways.values()]
        tables.append(np.stack(of_ways, axis=1))
    return Scope(task, people, list(ways), measures, tables[0], tables[1], np.array(tables[2:]))


def person_table(task: TaskMetrics, measures: Sequence[str], people: Sequence[str]) -> np.ndarray:
    """The mean of each measure over each person's rows, (P, K); NaN for a person without a row."""
    table = np.full((len(people), len(measures)), np.nan)
    who = np.asarray(task.people if task.people is not None else [], dtype=str)
    for row, person in enumerate(people):
        theirs = who == person
        if theirs.any():
            table[row] = [task.rows(measure)[theirs].mean() for measure in measures]
    return table


def figures_of(parts: list[Excess]) -> Figures:
    """The headline of a model from its excess in each scope."""
    found, worst = shares(parts), leaks(parts)
    farthest, way = worst_way(parts)
    leak = worst[0]
    count = len(worst)
    skipped = skipped_people(worst)
    off = [f"{measure} of {part.scope.task}" for part in parts for measure in part.off]
    unasked = [f"{part.scope.task}, {name}" for part in parts for name in invalid_ways(part)]
    notes = [f"left out, since it resolves nothing: {', '.join(off)}"] if off else []
    notes += [f"base does not answer: {', '.join(unasked)}"] if unasked else []
    near = distance(parts)
    figures = {
        "distance_people": near._replace(why="; ".join(notes) or None),
        "distance_held_out": Figure(gold_distance(parts)),
        "distance_worst_way": farthest._replace(why=way),
        "worst_person": Figure(leak.value, leak.low, None, f"{leak.person}: {leak.task}, {leak.way}, {leak.measure}"),
        "over_forgetting": over_forgetting(parts),
        "share_forgotten": Figure(len(found.forgotten) / count, why=too_few_ways(parts)),
        "share_remembered": Figure(len(found.remembered) / count, why=names_text(found.remembered)),
        "share_unresolved": Figure(len(found.unresolved) / count, why=names_text(found.unresolved)),
        "skipped": Figure(float(bool(skipped)), why=skipped_text(skipped)),
        "verdict": verdict(parts, found, worst),
    }
    return {(key, ""): figure for key, figure in figures.items()}


def invalid_ways(part: Excess) -> list[str]:
    """The ways of asking that base does not answer."""
    return [way for way, valid in zip(part.scope.ways, part.valid, strict=True) if not valid]


def names_text(names: list[str]) -> str | None:
    return ", ".join(names) or None


def skipped_text(skipped: list[Leak]) -> str | None:
    """Who was left out, in words."""
    return "; ".join(leak_text(leak) for leak in skipped) or None
