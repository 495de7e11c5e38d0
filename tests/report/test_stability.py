"""The summary of repeated runs: spreads, pairs that a run reverses, verdicts that turn."""

import importlib.util

import pandas as pd
import pytest

from helpers import ROOT

FILE = ROOT / "bench" / "stability.py"


@pytest.fixture(scope="module")
def stability():
    spec = importlib.util.spec_from_file_location("stability", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(seed, threads, *, verdict=0.0, flag=0.0, **distances):
    """The lines of one run; `distances`: method -> distance of its worst way."""
    lines = []
    for model, distance in distances.items():
        figures = {"distance_worst_way": distance, "distance_held_out_worst_way": 0.03, "worst_person": 0.5}
        figures |= {"flag": flag, "skipped": 0.0, "verdict": verdict}
        for measure, value in figures.items():
            ends = (value - 0.02, value + 0.02)
            lines.append((seed, "fp32", threads, model, measure, value, *ends))
    return pd.DataFrame(lines, columns=["seed", "precision", "threads", "model", "measure", "value", "low", "high"])


def test_every_seed_comes_once_before_any_comes_again_and_a_quarter_holds_every_setting(stability):
    quarter = stability.planned_runs(5)
    assert [seed for seed, *_ in quarter] == [0, 1, 2, 3, 4]
    assert {tuple(setting) for _, *setting in quarter} == set(stability.SETTINGS)
    assert len(set(stability.planned_runs(20))) == 20


def test_a_pair_that_another_run_reverses_counts_once_per_seed(stability):
    # npo before idk in both seeds, and idk before npo in one more run of seed 1: 3 pairs called, all of them reversed
    runs = [run_of(0, 1, npo=0.1, idk=0.5), run_of(1, 1, npo=0.1, idk=0.5), run_of(1, 2, npo=0.5, idk=0.1)]
    made = stability.summary(pd.concat(runs))
    assert (made["runs"], made["pairs_called"], made["reversed_share"]) == (3, 3, 1.0)
    agreeing = stability.summary(pd.concat(runs[:2]))
    assert (agreeing["pairs_called"], agreeing["reversed_share"], agreeing["reversed_share_high"]) == (2, 0.0, 0.0)


def test_a_flagged_method_is_in_no_pair(stability):
    made = stability.summary(pd.concat([run_of(0, 1, npo=0.1), run_of(0, 2, flag=1.0, idk=0.5)]))
    assert made["pairs_called"] == 0


def test_spreads_and_turned_verdicts_are_over_all_runs(stability):
    # .1 and .3: standard deviation .2 / sqrt(2) = .141421
    made = stability.summary(pd.concat([run_of(0, 1, npo=0.1), run_of(1, 1, verdict=1.0, flag=1.0, npo=0.3)]))
    assert made["npo_distance_spread"] == pytest.approx(0.141421, abs=1e-6)
    assert (made["flags_turned"], made["verdicts_turned"]) == (1, 1)
