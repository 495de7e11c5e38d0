"""One model's log -> its rows as metrics, task by task."""

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from engine import metrics
from engine.logs import EvalLog, TaskLog
from settings.results import Scoring


@dataclass(frozen=True)
class TaskMetrics:
    """One task's rows as metrics.

    Attributes:
        of_rows: Key of a measure -> (n,); None where the log does not hold it. All are in [0, 1].
        ratio: The Truth Ratio R, above 0, (n,); None where the task has no wrong answers.
        people: Whom each row is about; None where that is not known.
    """

    of_rows: dict[str, np.ndarray | None]
    ratio: np.ndarray | None
    people: list[str] | None

    def rows(self, measure: str) -> np.ndarray:
        """A measure, (n,), that the caller knows to be there."""
        values = self.of_rows[measure]
        assert values is not None
        return values

    @property
    def known_people(self) -> list[str]:
        """Whom each row is about, where the caller has seen that this is known."""
        assert self.people is not None
        return self.people

    def mean(self, measure: str) -> float | None:
        values = self.of_rows[measure]
        return None if values is None else float(values.mean())


ModelMetrics = Mapping[str, TaskMetrics]  # by task


# Log -> its metrics by what they were made with: base and golds are compared with every judged model.
MADE: WeakKeyDictionary[EvalLog, dict[str, dict[str, TaskMetrics]]] = WeakKeyDictionary()


def log_metrics(log: EvalLog, scoring: dict[str, Scoring], truth_ratio: str) -> dict[str, TaskMetrics]:
    """Metrics of every task but the holdout ones, which nobody was meant to learn or forget; made once per log."""
    of_log = MADE.setdefault(log, {})
    made_with = repr((truth_ratio, scoring))
    if made_with not in of_log:
        scored = [name for name in log.tasks if scoring[name].group != "holdout"]
        of_log[made_with] = {
            name: task_metrics(log.tasks[name], scoring[name], truth_ratio, draws_of(scoring, name)) for name in scored
        }
    return of_log[made_with]


def draws_of(scoring: Mapping[str, Scoring], task: str) -> int:
    """In how many drawn answers the right one is looked for: a way of asking has what the task has that it asks."""
    return scoring[scoring[task].way_of or task].draws


def task_metrics(log: TaskLog, scoring: Scoring, truth_ratio: str, draws: int = 0) -> TaskMetrics:
    """Losses and generations as metrics.

    The Truth Ratio is taken from the losses: a logged one may follow the other definition.

    Args:
        log: The rows.
        scoring: How they are scored.
        truth_ratio: Which definition of the Truth Ratio.
        draws: In how many drawn answers the right one is looked for; 0: it is not.
    """
    ratios = truth_ratios(log, truth_ratio)
    forget, without_end = scoring.group == "forget", log.losses_without_end
    of_rows = {
        "rouge": log.rouge,
        "probability": answer_probabilities(log, scoring.multiple_choice),
        "truth_ratio": None if ratios is None else metrics.truth_ratio_scores(ratios, forget=forget),
        "truth_share": None if ratios is None else metrics.truth_share(ratios),
        "exact_memorization": log.exact_memorization,
        "extraction_strength": log.extraction_strength,
        "probability_without_end": None if without_end is None else metrics.probability(without_end),
        "hits_in_draws": hits_in_draws(log, draws),
        "degenerate": np.array([metrics.is_degenerate(text) for text in log.generations]),
        "empty": np.array([metrics.is_empty(text) for text in log.generations]),
        "repetition": np.array([metrics.repetition(text) for text in log.generations]),
    }
    return TaskMetrics(of_rows, ratios, log.people)


def hits_in_draws(log: TaskLog, draws: int) -> np.ndarray | None:
    """Chance of each row that one of `draws` answers drawn at temperature 1 begins with the right one, (n,)."""
    if not draws or log.losses_without_end is None or log.token_counts is None:
        return None
    return metrics.hit_chance(log.losses_without_end * (log.token_counts - 1), draws)


def truth_ratios(log: TaskLog, definition: str) -> np.ndarray | None:
    """R of each row, (n,); None where the task has no wrong answers."""
    if log.perturbed_losses is None:
        return None
    counts = np.array([len(wrong) for wrong in log.perturbed_losses])
    ratios = np.empty(len(counts))
    for count in np.unique(counts):  # rows of as many wrong answers at once
        rows = np.flatnonzero(counts == count)
        wrong = [log.perturbed_losses[row] for row in rows]
        ratios[rows] = metrics.truth_ratios(log.paraphrase_losses[rows], wrong, definition)
    return ratios


def answer_probabilities(log: TaskLog, multiple_choice: bool) -> np.ndarray | None:
    """Probability of each row's right answer, (n,); None where it is a share among options and there are none."""
    if not multiple_choice:
        return metrics.probability(log.losses)
    if log.perturbed_losses is None:
        return None
    options = zip(log.losses, log.perturbed_losses, strict=True)
    return np.array([metrics.multiple_choice_probability(right, wrong) for right, wrong in options])
