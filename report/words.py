"""The page's words: tasks and measures by human names, p-values, lists."""

import re
from collections.abc import Iterable, Mapping

from engine.measures import MEASURES
from settings.results import Scoring

CERTAIN = 0.995  # a p-value from here on rounds to 1.00
SMALLEST = 0.001  # below, a p-value is only said to be smaller


def task_names(scoring: Mapping[str, Scoring]) -> dict[str, str]:
    """Task -> what the page calls it: its name, or that of the task that it asks in another way, and the way."""
    own = {task: each.name or task for task, each in scoring.items()}
    names = {}
    for task, each in scoring.items():
        names[task] = f"{own[each.way_of]}, {each.way}" if each.way_of and not each.name else own[task]
    return names


def in_words(text: str, names: Mapping[str, str]) -> str:
    """A sentence of the figures with tasks and measures by their human names.

    Args:
        text: It may hold keys, such as `eval_log_forget` and `exact_memorization`.
        names: Task -> what the page calls it.
    """
    measures = {key: measure.heading for key, measure in MEASURES.items() if "_" in key}
    known = {**measures, "rouge": MEASURES["rouge"].heading, **names}
    longest_first = sorted(known, key=len, reverse=True)
    pattern = "|".join(re.escape(key) for key in longest_first)
    return re.sub(rf"(?<![\w:])(?:{pattern})(?!\w)", lambda found: known[found[0]], text)


def p_text(p: float) -> str:
    """A p-value: 1.00, .58, .004 or < .001."""
    if p >= CERTAIN:
        return "1.00"
    if p < SMALLEST:
        return "< .001"
    return f"{p:.3f}"[1:] if p < 10 * SMALLEST else f"{p:.2f}"[1:]


def listed(words: Iterable[str]) -> str:
    """a, b and c"""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def counted(count: int, noun: str, plural: str = "") -> str:
    """1 seed, 2 seeds"""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
