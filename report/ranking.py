"""Which place each method of a benchmark has, and why some have none."""

from pathlib import Path

import pandas as pd

from engine.kept import KEPT
from engine.logs import forgotten_modality as forgotten
from engine.record import TRAIN_RECORD, read_json
from engine.result_table import Figure, ModelResult
from engine.verdicts import Judged, places
from report.folder import START, model_folder, model_name
from settings.script import ROOT

ANCHORS = ("base", "gold", START)  # what methods are compared with
STABILITY = ROOT / "bench" / "stability"  # <benchmark>.csv, from bench/stability.py
RANKED_BY = "distance_worst_way"


def add_places(of_seed: dict[str, ModelResult], folder: Path, benchmark: str) -> None:
    """Give each method of one seed its place and the spread of its distance.

    Places are among the methods that forget the same: words, pictures or both. A method that lost what it should have
    kept, that left people out, or of which no repeated runs say how far its distance moves, has none.

    Args:
        of_seed: Row name -> figures, which are changed.
        folder: The benchmark's results.
        benchmark: Its name; a table of that name in bench/stability/ gives the spreads.
    """
    spreads = measured_spreads(benchmark)
    ranked: dict[str, list[ModelResult]] = {}
    for name, result in of_seed.items():
        if name in ANCHORS or result.value("failed"):
            continue
        spread = spreads.get(name)
        unmeasured = f"bench/stability/{benchmark}.csv holds no spread of this method" if spread is None else None
        result.figures["distance_spread", ""] = Figure(spread, why=unmeasured)
        if why := why_unranked(result) or unmeasured:
            result.figures["place", ""] = Figure(None, why=why)
            continue
        ranked.setdefault(forgotten_modality(folder, result), []).append(result)
    for results in ranked.values():
        rows = [judged(each, spreads[each.method]) for each in results]
        for result, place in zip(results, places(rows), strict=True):
            result.figures["place", ""] = Figure(float(place))


def why_unranked(result: ModelResult) -> str | None:
    """Why a method has no place; None: it has one."""
    distance, flag, skipped = (result.figure(key) for key in (RANKED_BY, "flag", "skipped"))
    if distance.value is None:
        return result.figure("verdict").why or "its distance is not known"
    if flag.value is None:
        return f"what was kept is not known: {flag.why}"
    if flag.value != KEPT:
        return flag.why
    if (hook := result.figure("hook")).value:
        return f"a hook: {hook.why}"
    return f"left out: {skipped.why}" if skipped.value else None


def judged(result: ModelResult, spread: float) -> Judged:
    """What the place of a method is decided by; `spread` of its distance over repeated runs."""
    worst, held_out = result.figure("worst_person"), result.value("distance_held_out_worst_way")
    assert worst.value is not None and worst.low is not None and held_out is not None  # they come with the distance
    return Judged(result.figure(RANKED_BY), held_out, worst.value, worst.value - worst.low, spread)


def forgotten_modality(folder: Path, result: ModelResult) -> str:
    """What a method was made to forget: both, text or visual."""
    assert result.seed is not None  # every row of a benchmark has one
    file = model_folder(folder, model_name(result.method, result.seed)) / TRAIN_RECORD
    return (file.is_file() and forgotten(read_json(file))) or "both"


def measured_spreads(benchmark: str) -> dict[str, float]:
    """Method -> standard deviation of its distance over the runs of bench/stability.py; empty: none were made."""
    file = STABILITY / f"{benchmark}.csv"
    if not file.is_file():
        return {}
    table = pd.read_csv(file)
    of_methods = table[table.measure == RANKED_BY].groupby("model").value
    return {str(method): float(spread) for method, spread in of_methods.std().dropna().items()}
