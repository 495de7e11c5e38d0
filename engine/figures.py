"""The logs of a judged model, of golds and of the base -> the judged model's figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine import metrics
from engine.headline import OF_SHORT_ANSWERS, forget_tasks, headline_figures
from engine.intervals import MIN_PEOPLE, Rows, bootstrap_t
from engine.kept import KEPT_MEASURES, Part, kept_figures
from engine.logs import EvalLog, TaskLog, forgotten_modality
from engine.measures import MEASURES, MEMBERSHIP_ATTACKS, MEMORY, OF_A_TASK
from engine.reading import hook_figure
from engine.result_table import Figure, Figures
from engine.task_metrics import ModelMetrics, TaskMetrics, draws_of, log_metrics
from settings.results import Scoring

ATTACK_FPR = 0.01
UTILITY_PARTS = ("rouge", "probability", "truth_ratio")  # of which Model Utility and the like are the harmonic mean
FORGET_QUALITY = (
    "forget_quality",
    "ks_statistic",
    "log10_forget_quality",
    "forget_quality_by_person",
    "forget_quality_js",
    "forget_quality_js_n",
    "forget_quality_js_median",
)
GROUPS = {  # of tasks -> the figure that is their harmonic mean
    "model_utility": ("retain", "real"),
    "real_metric": ("real",),
    "retain_metric": ("retain",),
    "forget_metric": ("forget",),
}


Ends = tuple[float | None, float | None]  # of an interval; None: there is none


@dataclass(frozen=True)
class Compared:
    """The judged model, and those that it is compared with, over the same rows of the same tasks."""

    model: ModelMetrics
    gold: ModelMetrics
    base: ModelMetrics | None  # before forgetting; None: not given
    start: ModelMetrics | None  # before it was taught anybody; None: not given
    other_golds: Sequence[ModelMetrics]
    tasks: dict[str, Scoring]
    modality: str | None  # what the model was made to forget: both, text or visual; None: not known

    @property
    def golds(self) -> list[ModelMetrics]:
        return [self.gold, *self.other_golds]

    def names(self, *groups: str) -> list[str]:
        """The tasks of some groups."""
        return names_of(self.tasks, *groups)


def names_of(tasks: Mapping[str, Scoring], *groups: str) -> list[str]:
    """The tasks of some groups."""
    return [name for name, scoring in tasks.items() if scoring.group in groups]


def figures_of_logs(
    ckpt: EvalLog,
    *,
    base: EvalLog | None,
    start: EvalLog | None,
    golds: list[EvalLog],
    scoring: dict[str, Scoring],
    truth_ratio: str,
) -> Figures:
    """All figures of one model.

    Args:
        ckpt: The judged model's log.
        base: The log of the model before forgetting; None: no gate and no distance to gold.
        start: The log of the model before it was taught anybody; None: what was kept of the taught is not known.
        golds: The log of gold, then those of golds of other seeds; all logs cover the same rows.
        scoring: Task -> how it is scored.
        truth_ratio: Which definition of the Truth Ratio: geometric or arithmetic.
    """
    model, gold, *others = (log_metrics(log, scoring, truth_ratio) for log in (ckpt, *golds))
    before, untaught = (log_metrics(log, scoring, truth_ratio) if log else None for log in (base, start))
    tasks = {name: scoring[name] for name in model}
    modality = forgotten_modality(ckpt.train_meta)
    compared = Compared(model, gold, before, untaught, others, tasks, modality)
    return {
        **headline_figures(compared.model, compared.base, compared.golds, compared.tasks, compared.modality),
        ("hook", ""): hook_figure(ckpt, base),
        **distance_figures(compared),
        **kept_figures_of(compared),
        **utility_figures(compared),
        **collapse_figures(compared),
        **gate_figures(compared),
        **forget_quality_figures(compared),
        **membership_figures(ckpt, golds[0], scoring),
        **task_figures(model, tasks),
        **people_figures(compared),
        **run_figures(ckpt),
        ("golds", ""): Figure(len(golds)),
    }


def run_figures(log: EvalLog) -> Figures:
    """Cost, from the records beside the log; without a value where there are none."""
    peaks = [meta["peak_memory_gb"] for meta in (log.meta, log.train_meta) if meta.get("peak_memory_gb") is not None]
    return {
        ("train_seconds", ""): Figure(log.train_meta.get("seconds")),
        ("eval_seconds", ""): Figure(log.meta.get("seconds")),
        ("peak_memory_gb", ""): Figure(max(peaks, default=None)),
    }


def task_figures(model: ModelMetrics, scoring: Mapping[str, Scoring]) -> Figures:
    """The means of each task."""
    figures: Figures = {}
    for task, of_task in model.items():
        for measure in OF_A_TASK:
            if measure.key == OF_SHORT_ANSWERS and not draws_of(scoring, task):
                continue
            mean = of_task.mean(measure.key)
            why = "not in the log" if mean is None else None
            figures[measure.key, task] = Figure(mean, why=why)
    return figures


# ---- what was kept


def group_metric(model: ModelMetrics, tasks: list[str]) -> float | None:
    """Harmonic mean of ROUGE, Probability and Truth Ratio over `tasks`; None when there are none."""
    means = [model[task].rows(part).mean() for task, part in group_parts(model, tasks)]
    return float(metrics.harmonic_mean(means)) if means else None


def group_parts(model: ModelMetrics, tasks: list[str], *, there: bool = True) -> list[tuple[str, str]]:
    """The parts of a group's metric that the logs hold, as (task, measure); those that they lack with `there` false."""
    parts = [(task, part) for task in tasks for part in UTILITY_PARTS]
    return [(task, part) for task, part in parts if (model[task].of_rows[part] is not None) == there]


def without_parts(model: ModelMetrics, tasks: list[str]) -> str | None:
    """What a group's metric does without; None: nothing."""
    lacking = [f"{MEASURES[part].heading} {task}" for task, part in group_parts(model, tasks, there=False)]
    return f"without {', '.join(lacking)}, which the log lacks" if lacking else None


def utility_figures(compared: Compared) -> Figures:
    """Model Utility and the metric of each group of tasks, with intervals; Model Utility also against gold's."""
    figures: Figures = {}
    for key, groups in GROUPS.items():
        tasks = compared.names(*groups)
        low, high = utility_interval(compared.model, tasks)
        why = without_parts(compared.model, tasks)
        figures[key, ""] = Figure(group_metric(compared.model, tasks), low, high, why)
    utility = figures["model_utility", ""].value
    of_gold = group_metric(compared.gold, compared.names("retain", "real"))
    share = None if utility is None or not of_gold else utility / of_gold
    return figures | {("utility_to_gold", ""): Figure(share)}


def kept_figures_of(compared: Compared) -> Figures:
    """What was kept of the people who were taught, and of the real world."""
    taught = kept_parts(compared, compared.names("retain"), compared.start, compared.golds)
    if compared.base:  # what was not to be forgotten of the forgotten people counts as well; gold never knew it
        judged = forget_tasks(compared.tasks, compared.modality)
        others = [task for task in compared.names("forget") if task not in judged]
        taught += kept_parts(compared, others, compared.start, [compared.base])
    real = kept_parts(compared, compared.names("real"), None, compared.golds)
    return kept_figures(taught, real, None if compared.start else "no start_result is given")


def kept_parts(
    compared: Compared, tasks: list[str], start: ModelMetrics | None, knowing: Sequence[ModelMetrics]
) -> list[Part]:
    """Each measure of what is kept, on each of `tasks` whose logs all hold it; `knowing`: models that know it."""
    parts = []
    for task in tasks:
        people = compared.model[task].people
        for measure in KEPT_MEASURES:
            of_golds = [each[task].of_rows[measure] for each in knowing]
            of_model = compared.model[task].of_rows[measure]
            of_start = start[task].of_rows[measure] if start else None
            golds = [values for values in of_golds if values is not None]
            if of_model is None or len(golds) < len(of_golds) or (start and of_start is None):
                continue
            names = people or [f"{task} {row}" for row in range(len(of_model))]
            parts.append(Part(f"{MEASURES[measure].heading} {task}", of_model, of_start, golds, names))
    return parts


def utility_interval(model: ModelMetrics, tasks: list[str]) -> Ends:
    """The interval of a group's metric; None where there are too few people."""
    if not has_enough_people(model, tasks):
        return None, None
    rows = [Rows(model[task].rows(part), model[task].known_people) for task, part in group_parts(model, tasks)]
    return bootstrap_t(rows, harmonic_mean_of, bounds=(0, 1)) or (None, None)


def harmonic_mean_of(means: np.ndarray) -> np.ndarray:
    """Harmonic mean of K means, (..., K) -> (...)."""
    return np.asarray(metrics.harmonic_mean(np.moveaxis(means, -1, 0)))


def collapse_figures(compared: Compared) -> Figures:
    """Whether the model lost what it should have kept, and what its generations look like."""
    figures: Figures = {}
    for group in ("retain", "forget"):
        tasks = compared.names(group)
        for measure in ("degenerate", "empty", "repetition"):
            values = [compared.model[task].rows(measure) for task in tasks]
            figures[measure, group] = Figure(float(np.concatenate(values).mean()) if values else None)
    others = compared.names("retain", "real")
    utility, of_gold = (group_metric(each, others) for each in (compared.model, compared.gold))
    degenerate = figures["degenerate", "retain"].value
    reasons = []
    if utility is not None and of_gold is not None and utility < of_gold / 2:
        reasons.append(f"Model Utility {utility:.4f} is under half of gold's {of_gold:.4f}")
    if degenerate is not None and degenerate > 0.5:
        reasons.append(f"{degenerate:.0%} of the retain generations are degenerate")
    verdict = Figure(float(bool(reasons)), why="; ".join(reasons) or None)
    return {("collapsed", ""): verdict, **figures}


# ---- against gold


def forget_quality_figures(compared: Compared) -> Figures:
    """The two models' Truth Ratios compared on each forget task."""
    figures: Figures = {}
    for task in compared.names("forget"):
        a, b = compared.model[task].ratio, compared.gold[task].ratio
        if a is None or b is None:
            unknown = Figure(None, why="the task has no wrong answers")
            figures |= dict.fromkeys(((key, task) for key in FORGET_QUALITY), unknown)
            continue
        people = compared.model[task].people
        test = metrics.ks_test(a, b)
        by_person = Figure(None, why="people are not known")
        permuted = "permuted by row: people are not known"
        if people:
            by_person = Figure(metrics.person_permutation_p(a, b, people))
            permuted = "permuted by person"
        median = metrics.js_permutation_median(a, b, people or range(len(a)))
        figures |= {
            ("forget_quality", task): Figure(test.p),
            ("ks_statistic", task): Figure(test.statistic),
            ("log10_forget_quality", task): Figure(test.log10_p),
            ("forget_quality_by_person", task): by_person,
            ("forget_quality_js", task): Figure(metrics.js_similarity(a, b)),
            ("forget_quality_js_n", task): Figure(len(a)),
            ("forget_quality_js_median", task): Figure(median, why=permuted),
        }
    return figures


def distance_figures(compared: Compared) -> Figures:
    """Distance to gold of each measure on each forget task, their mean |d| first, and the other golds' as noise
    floor.
    """
    distances = {
        (task, key): memory_distance(compared, task, key) for task in compared.names("forget") for key in MEMORY
    }
    defined = [place for place, each in distances.items() if each.value is not None]
    noises = [each.noise for each in distances.values() if each.noise is not None]
    reasons = [f"{MEASURES[key].heading} {task}: {each.why}" for (task, key), each in distances.items() if each.why]
    low, high = distance_interval(compared, defined)
    why = "no base_result is given" if compared.base is None else "; ".join(reasons) or None
    sizes = [abs(each.value) for each in distances.values() if each.value is not None]
    mean = float(np.mean(sizes)) if sizes else None
    figures = {
        ("distance_to_gold", ""): Figure(mean, low, high, why),
        ("noise_floor", ""): Figure(float(np.mean(noises)) if noises else None),
    }
    for (task, key), each in distances.items():
        figures |= distance_pair(key, task, each)
    return figures


def memory_distance(compared: Compared, task: str, measure: str) -> metrics.Distance:
    """The distance to gold of one measure on one task."""
    if compared.base is None:
        return metrics.Distance(None, None)
    models = (compared.model, compared.base, compared.gold, *compared.other_golds)
    means = [each[task].mean(measure) for each in models]
    known = [mean for mean in means if mean is not None]
    if len(known) < len(models):
        return metrics.Distance(None, None, "not in every log")
    of_model, of_base, of_gold, *of_others = known
    return metrics.distance_to_gold(of_model, of_base, of_gold, of_others)


def distance_pair(measure: str, task: str, distance: metrics.Distance) -> Figures:
    """A distance and its noise floor as figures."""
    return {
        (f"distance_to_gold:{measure}", task): Figure(distance.value, why=distance.why or None),
        (f"noise_floor:{measure}", task): Figure(distance.noise),
    }


def distance_interval(compared: Compared, defined: list[tuple[str, str]]) -> Ends:
    """The interval of the mean |distance| over tasks and measures; None where there are too few people."""
    if not defined or not has_enough_people(compared.model, compared.names("forget")):
        return None, None
    assert compared.base is not None  # else no distance is defined
    rows = []
    for task, measure in defined:
        people = compared.model[task].known_people
        for model in (compared.model, compared.base, compared.gold):
            rows.append(Rows(model[task].rows(measure), people))
    return bootstrap_t(rows, mean_distance_of, bounds=(0, np.inf)) or (None, None)


def mean_distance_of(means: np.ndarray) -> np.ndarray:
    """Mean |distance to gold| of measures whose means follow each other as model, base, gold: (..., 3 K) -> (...)."""
    of_model, of_base, of_gold = (means[..., place::3] for place in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw in which base equals gold does not count
        return np.abs((of_model - of_gold) / (of_base - of_gold)).mean(axis=-1)


def gate_figures(compared: Compared) -> Figures:
    """Whether the base had memorized what was to be forgotten: 1 passed, 0 failed, else why it is not known."""
    figures: Figures = {}
    verdicts: list[bool | None] = []
    unknown = ["no base_result is given"] if compared.base is None else missing_gate(compared)
    for task in [name for name, scoring in compared.tasks.items() if scoring.gate]:
        gate = None
        if compared.base is not None:
            gate, why = task_gate(compared.base[task], compared.gold[task], task)
            unknown += [why] if why else []
            verdicts += [gate.passed] if gate else []
        for part in ("base", "rise", "people"):
            figures[f"gate_{part}", task] = Figure(None if gate is None else getattr(gate, part))
    verdict = Figure(1.0)
    if False in verdicts:
        verdict = Figure(0.0)
    elif unknown:
        verdict = Figure(None, why="; ".join(unknown))
    return {("gate", ""): verdict, **figures}


def missing_gate(compared: Compared) -> list[str]:
    """Why there is no gate at all: no task is marked for it."""
    if any(scoring.gate for scoring in compared.tasks.values()):
        return []
    ways = " or ".join(f"scoring.{name}.gate=true" for name in compared.names("forget"))
    return [f"the logs hold no task marked gate; {ways} marks one" if ways else "the logs hold no forget task"]


def task_gate(base: TaskMetrics, gold: TaskMetrics, task: str) -> tuple[metrics.Gate | None, str]:
    """The gate of one task, and what is not known of it."""
    of_base, of_gold = (each.of_rows["exact_memorization"] for each in (base, gold))
    if of_base is None or of_gold is None:
        return None, f"{task} has no exact_memorization in the base's or the gold's log"
    gate = metrics.memorization_gate(of_base, of_gold, base.people)
    return gate, f"the people of {task} are not known" if gate.passed is None else ""


# ---- people


def people_figures(compared: Compared) -> Figures:
    """How many people the figures rest on."""
    return {
        ("people", ""): Figure(fewest_people(compared.model, compared.names("forget"))),
        ("retain_people", ""): Figure(fewest_people(compared.model, compared.names("retain"))),
    }


def fewest_people(model: ModelMetrics, tasks: list[str]) -> int | None:
    """People of the task that has the fewest; None when they are not known for every task."""
    counts = []
    for name in tasks:
        people = model[name].people
        if people is None:
            return None
        counts.append(len(set(people)))
    return min(counts, default=None)


def has_enough_people(model: ModelMetrics, tasks: list[str]) -> bool:
    """Whether the people of every task are known, and are enough for an interval."""
    fewest = fewest_people(model, tasks)
    return fewest is not None and fewest >= MIN_PEOPLE


# ---- membership


def membership_figures(model: EvalLog, gold: EvalLog, scoring: dict[str, Scoring]) -> Figures:
    """How well attacks tell the forgotten rows from rows that nobody was trained on.

    There is none where the logs have no such rows.
    """
    figures: Figures = {}
    for holdout in names_of(scoring, "holdout"):
        members = scoring[holdout].members
        if holdout not in model.tasks or members not in model.tasks:
            continue
        of_model = membership_scores(model.tasks[members], model.tasks[holdout])
        of_gold = membership_scores(gold.tasks[members], gold.tasks[holdout])
        for attack in MEMBERSHIP_ATTACKS:
            figures |= attack_figures(attack, members, of_model[attack], of_gold[attack])
    return figures


Scores = tuple[np.ndarray, np.ndarray]  # of members and of others, larger for what looks known


def attack_figures(attack: str, members: str, of_model: Scores | None, of_gold: Scores | None) -> Figures:
    """What one attack tells of the rows of task `members`, and how much more or less than of gold's."""
    keys = [(f"{measure}:{attack}", members) for measure in ("membership_auc", "membership_tpr_1", "privacy_leakage")]
    if of_model is None:
        return dict.fromkeys(keys, Figure(None, why="not in the log"))
    auc = metrics.membership_auc(*of_model)
    leakage = Figure(None, why="not in the gold's log")
    if of_gold is not None:
        value = metrics.privacy_leakage(auc, metrics.membership_auc(*of_gold))
        leakage = Figure(value, why="gold's AUC is 1" if value is None else None)
    least = round(10 / ATTACK_FPR)
    others = len(of_model[1])
    unresolved = f"{others} holdout rows; at least {least} resolve it" if others < least else None
    rate = Figure(metrics.membership_tpr(*of_model, ATTACK_FPR), why=unresolved)
    return dict(zip(keys, (Figure(auc), rate, leakage), strict=True))


def membership_scores(members: TaskLog, others: TaskLog) -> dict[str, Scores | None]:
    """Attack -> scores of members and of others, larger for what looks known.

    None where the logs do not hold what it needs.
    """

    def pair(score: Callable[[TaskLog], np.ndarray | None]) -> Scores | None:
        of_members, of_others = score(members), score(others)
        return None if of_members is None or of_others is None else (of_members, of_others)

    return {
        "loss": pair(lambda log: -log.losses),
        "zlib": pair(lambda log: None if log.zlib_bytes is None else -log.losses / log.zlib_bytes),
        "min-k": pair(lambda log: log.min_k),
        "min-k++": pair(lambda log: log.min_k_plus_plus),
    }
