"""What a model kept: hand numbers, damage that must be seen, and what must not be called damage."""

import numpy as np
import pytest

from engine.kept import Part, flag_of, kept_share
from engine.result_table import Figure

PEOPLE = [f"person {number:02d}" for number in range(12)]


def part(model, start, gold, name="ROUGE eval_log"):
    """One measure whose rows of twelve people lie around the given means."""
    noise = np.tile([-0.02, 0.02], 6)
    rows = [None if mean is None else mean + noise for mean in (model, start, gold)]
    return Part(name, rows[0], rows[1], [rows[2]], PEOPLE)


# ---- the share


def test_the_share_is_a_mean_of_clipped_ways_from_start_to_gold():
    # (.5 - .1) / (.9 - .1) = .5 and (.95 - .2) / (.8 - .2) > 1, which counts as 1: mean .75
    share = kept_share([part(0.5, 0.1, 0.9), part(0.95, 0.2, 0.8)])
    assert share.value == pytest.approx(0.75)


def test_gold_keeps_everything_and_the_start_nothing():
    assert kept_share([part(0.9, 0.1, 0.9)]).value == pytest.approx(1)
    assert kept_share([part(0.1, 0.1, 0.9)]).value == pytest.approx(0)


def test_several_golds_count_as_their_mean():
    rows = np.full(12, 0.5)
    both = Part("x", rows, rows * 0, [rows * 1.2, rows * 0.8], PEOPLE)  # golds .6 and .4
    assert kept_share([both]).value == pytest.approx(1)


def test_without_a_start_the_share_is_that_of_golds_value():
    assert kept_share([part(0.3, None, 0.6)]).value == pytest.approx(0.5)


def test_a_measure_in_which_gold_is_not_above_the_start_is_left_out_and_named():
    share = kept_share([part(0.5, 0.1, 0.9), part(0.5, 0.9, 0.2, name="ROUGE eval_retain_qa")])
    assert share.value == pytest.approx(0.5)
    assert share.why == "gold is not above the start in ROUGE eval_retain_qa"


def test_with_nothing_to_compare_there_is_no_share_and_it_says_so():
    assert kept_share([part(0.5, 0.9, 0.2)]).why == "gold is not above the start in ROUGE eval_log"
    assert kept_share([]).why == "the logs hold no such task"


def test_the_interval_is_over_people_and_within_0_and_1():
    rng = np.random.default_rng(0)
    model, gold = rng.uniform(0.2, 0.8, 12), rng.uniform(0.8, 1, 12)
    share = kept_share([Part("x", model, np.zeros(12), [gold], PEOPLE)])
    assert 0 <= share.low < share.value < share.high <= 1


def test_few_people_give_a_share_without_an_interval():
    share = kept_share([Part("x", np.full(4, 0.5), np.zeros(4), [np.ones(4)], ["a", "b", "c", "d"])])
    assert (share.value, share.low, share.high) == (0.5, None, None)


# ---- the flag


@pytest.mark.parametrize(
    ("taught", "real", "flag"),
    [
        (Figure(0.9, 0.8, 1.0), Figure(0.95, 0.9, 1.0), 0.0),
        (Figure(0.3, 0.2, 0.4), Figure(0.95, 0.9, 1.0), 1.0),
        (Figure(0.9, 0.8, 1.0), Figure(0.3, 0.2, 0.49), 1.0),
        (Figure(0.45, 0.3, 0.6), Figure(0.95, 0.9, 1.0), 0.5),
        (Figure(0.45), Figure(0.95), 1.0),  # without an interval the value decides
        (Figure(None, why="no start_result is given"), Figure(0.9, 0.8, 1.0), None),
        (Figure(None, why="no start_result is given"), Figure(0.1, 0.0, 0.2), 1.0),
    ],
)
def test_the_flag_is_what_the_shares_say(taught, real, flag):
    assert flag_of({"kept_taught": taught, "kept_real": real}).value == flag


def test_the_flag_names_what_was_lost():
    flag = flag_of({"kept_taught": Figure(0.3, 0.2, 0.4), "kept_real": Figure(0.9, 0.8, 1.0)})
    assert flag.why == "kept_taught 0.30 [0.20, 0.40]"
