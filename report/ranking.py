"""How far the distances of a benchmark's methods move over repeated runs, by which their places are decided."""

from collections.abc import Sequence

import pandas as pd

from engine.places import RANKED_BY, add_places
from engine.result_table import ModelResult
from engine.seeds import seed_groups
from settings.script import ROOT

STABILITY = ROOT / "bench" / "stability"  # <benchmark>.csv, from bench/stability.py


def add_benchmark_places(results: Sequence[ModelResult], benchmark: str) -> None:
    """Give each method of a benchmark its place and the spread of its distance.

    Args:
        results: The figures of all seeds, which are changed.
        benchmark: Its name; a table of that name in bench/stability/ gives the spreads of repeated runs.
    """
    unmeasured = f"bench/stability/{benchmark}.csv holds no spread of this method"
    add_places(seed_groups(results), measured_spreads(benchmark), unmeasured)


def measured_spreads(benchmark: str) -> dict[str, float]:
    """Method -> standard deviation of its distance over the runs of bench/stability.py; empty: none were made."""
    file = STABILITY / f"{benchmark}.csv"
    if not file.is_file():
        return {}
    table = pd.read_csv(file)
    of_methods = table[table.measure == RANKED_BY].groupby("model").value
    return {str(method): float(spread) for method, spread in of_methods.std().dropna().items()}
