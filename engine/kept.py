"""What a model kept of everything that was not to be forgotten, between the model that was never taught and gold."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from engine.intervals import MIN_PEOPLE, Rows, bootstrap_t
from engine.result_table import Figure, Figures

KEPT_MEASURES = ("exact_memorization", "rouge")
LOST = 0.5  # a model that kept less than this share is collapsed
COLLAPSED, BORDERLINE, KEPT = 1.0, 0.5, 0.0


class Part(NamedTuple):
    """One measure of one task, of all models over the same rows; (n,) each."""

    name: str
    model: np.ndarray
    start: np.ndarray | None  # of the model before it was taught anybody; None: compared with 0
    golds: list[np.ndarray]
    people: list[str]  # whom each row is about; the row itself where people are not known


def kept_share(parts: list[Part]) -> Figure:
    """Mean over the parts of clip((model - start) / (gold - start), 0, 1), gold being the mean of the golds.

    Args:
        parts: Measures of tasks. One in which gold is not above start shows nothing, and is left out.

    Returns:
        The share in [0, 1] with its 95 % interval; `why` names the parts that were left out.
    """
    shown = [part for part in parts if gap(part) > 0]
    left_out = [part.name for part in parts if gap(part) <= 0]
    why = f"gold is not above the start in {', '.join(left_out)}" if left_out else None
    if not shown:
        return Figure(None, why=why or "the logs hold no such task")
    rows = []
    for part in shown:
        start = np.zeros_like(part.model) if part.start is None else part.start
        gold = np.mean(part.golds, axis=0)
        rows += [Rows(values, part.people) for values in (part.model, start, gold)]
    means = np.array([each.values.mean() for each in rows])
    value = float(mean_share(means))
    people = {person for part in shown for person in part.people}
    ends = bootstrap_t(rows, mean_share, bounds=(0, 1)) if len(people) >= MIN_PEOPLE else None
    low, high = ends or (None, None)
    return Figure(value, low, high, why)


def gap(part: Part) -> float:
    """How far gold is above the start."""
    start = 0.0 if part.start is None else float(part.start.mean())
    return float(np.mean(part.golds)) - start


def mean_share(means: np.ndarray) -> np.ndarray:
    """The mean share of parts whose means follow each other as model, start, gold: (..., 3 K) -> (...)."""
    of_model, of_start, of_gold = (means[..., place::3] for place in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw in which gold equals the start does not count
        return np.clip((of_model - of_start) / (of_gold - of_start), 0, 1).mean(axis=-1)


def flag_of(shares: Mapping[str, Figure]) -> Figure:
    """Whether a model lost what it should have kept.

    A share's upper end, or its value where it has no interval, says whether less than half was kept.

    Args:
        shares: Name -> share.

    Returns:
        1 (collapsed): some upper end is below one half. 0.5 (borderline): some interval holds one half. 0: neither.
        None: a share is not known, and no other is below.
    """
    lost, open_ones, unknown = [], [], []
    for name, share in shares.items():
        if share.value is None:
            unknown.append(f"{name}: {share.why}")
            continue
        low = share.value if share.low is None else share.low
        high = share.value if share.high is None else share.high
        said = f"{name} {share.value:.2f}" + ("" if share.low is None else f" [{low:.2f}, {high:.2f}]")
        if high < LOST:
            lost.append(said)
        elif low < LOST:
            open_ones.append(said)
    if lost:
        return Figure(COLLAPSED, why="; ".join(lost))
    if unknown:
        return Figure(None, why="; ".join(unknown))
    return Figure(BORDERLINE, why="; ".join(open_ones)) if open_ones else Figure(KEPT)


def kept_figures(taught: list[Part], real: list[Part], why_no_start: str | None) -> Figures:
    """What was kept of the people who were taught, and of the real world, and the flag.

    Args:
        taught: Measures of the retain tasks, with the start's.
        real: Measures of the tasks about the real world; they are compared with 0, since a share of the way from the
            start would reward damage: finetuning itself lowers them.
        why_no_start: Why the start is not known; None: it is.
    """
    of_taught = Figure(None, why=why_no_start) if why_no_start else kept_share(taught)
    shares = {"kept_taught": of_taught, "kept_real": kept_share(real)}
    return {(name, ""): share for name, share in shares.items()} | {("flag", ""): flag_of(shares)}
