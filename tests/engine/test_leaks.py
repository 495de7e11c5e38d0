"""Leaks of people, their shares, the distance, verdicts and places: hand numbers, and what must never happen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.leaks import (
    Scope,
    chance_of_memory,
    distance,
    excess,
    gold_distance,
    gold_worst_way,
    leaks,
    over_forgetting,
    person_means,
    shares,
    worst_way,
)
from engine.result_table import Figure
from engine.verdicts import LIKE, NOT_RESOLVED, UNLIKE, Judged, is_clearly_better, places, skipped_people, verdict

MEASURES = ["exact_memorization", "rouge", "probability_without_end"]
WAYS = ["as trained", "paraphrased", "with a prefix"]


def scope_of(model, golds, *, base=1.0, people=12, ways=WAYS, measures=MEASURES, task="words"):
    """A scope; `model`, `base` and each of `golds` are numbers, or arrays that fit (people, ways, measures)."""
    shape = (people, len(ways), len(measures))
    filled = [np.broadcast_to(np.asarray(values, dtype=float), shape).copy() for values in (model, base, *golds)]
    names = [f"person {number:02d}" for number in range(people)]
    return Scope(task, names, list(ways), list(measures), filled[0], filled[1], np.array(filled[2:]))


def part_of(model, golds, **more):
    return excess(scope_of(model, golds, **more))


def leaking(x, people=(0,), ways=(0, 1, 2)):
    """A model at gold's .2 that knows some people, in some ways, by x of the gap of .8."""
    values = np.full((12, 3, 3), 0.2)
    for person in people:
        for way in ways:
            values[person, way] = 0.2 + 0.8 * x
    return values


def test_the_excess_is_a_share_of_the_gap_and_its_noise_that_of_two_golds():
    # golds .1 and .3: mean .2, gap 1 - .2 = .8; model .6: (.6 - .2) / .8 = .5
    # root mean square of (gold1 - gold2) sqrt(3/4) = .2 * .8660 = .1732; / .8 = .2165
    part = part_of(0.6, [0.1, 0.3])
    assert part.x == pytest.approx(np.full((12, 3, 3), 0.5))
    assert part.noise.of_measure == pytest.approx([0.21651] * 3, abs=1e-5)


def test_the_noise_of_three_golds_is_their_variance_times_four_thirds():
    # golds 0, .1, .2: variance .01, times 1 + 1/3 = .013333, root .115470; gap 1 - .1 = .9; .115470 / .9 = .128300
    assert part_of(0.1, [0.0, 0.1, 0.2]).noise.of_measure == pytest.approx([0.1283] * 3, abs=1e-5)


def test_the_gap_is_the_one_as_trained_in_every_way():
    base = np.ones((12, 3, 3))
    base[:, 1] = 0.5  # half as well known in other words
    part = part_of(base, [0.2, 0.2], base=base)
    assert part.x[0, :, 0] == pytest.approx([1.0, 0.375, 1.0])  # (.5 - .2) / (1 - .2)
    assert part.valid.tolist() == [True, False, True]


def test_a_measure_whose_gap_is_noise_is_off_and_named():
    golds = [np.array([0.2, 0.2, 0.2]), np.array([0.2, 0.9, 0.2])]  # ROUGE: gap .45, noise .7 * .866 = .61
    part = part_of(0.2, golds)
    assert part.off == ["rouge"]
    assert part.measures == ["exact_memorization", "probability_without_end"]
    assert part.x.shape == (12, 3, 2)


def test_a_base_that_knows_no_more_than_gold_leaves_no_measure():
    assert part_of(0.2, [0.2, 0.2], base=0.2).measures == []


def test_one_gold_has_no_noise_and_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        part_of(0.2, [0.2])


def test_the_worst_person_is_named_with_the_way_that_gives_them_away():
    part = part_of(leaking(0.9, people=(7,), ways=(2,)), [0.19, 0.21])
    worst = leaks([part])[0]
    assert (worst.person, worst.way, worst.task) == ("person 07", "with a prefix", "words")
    assert worst.value == pytest.approx(0.9)
    # noise .02 * .866 / .8 = .02165; t at 1 - .025 / 108 with 24 degrees is 4.07: .9 - 4.07 * .02165 = .8119
    assert worst.low == pytest.approx(0.8119, abs=2e-3)


def test_golds_that_agree_exactly_make_the_bound_the_leak_itself():
    worst = leaks([part_of(leaking(0.3, people=(3,)), [0.2, 0.2])])[0]
    assert worst.low == pytest.approx(worst.value) == pytest.approx(0.3)


def test_a_person_of_one_scope_only_is_judged_there():
    words = part_of(0.2, [0.19, 0.21])
    names = part_of(leaking(1.0, people=(11,)), [0.19, 0.21], task="names")
    fewer = scope_of(0.2, [0.19, 0.21], people=11)
    assert leaks([excess(fewer), names])[0].person == "person 11"
    assert {leak.person for leak in leaks([words, names])} == set(words.scope.people)


@pytest.mark.parametrize(
    ("x", "ways", "remembered"),
    [(1.0, (0, 1, 2), True), (1.0, (1,), True), (0.4, (0,), True), (0.2, (0, 1, 2), False), (0.0, (0,), False)],
)
def test_a_leak_above_a_quarter_in_any_way_is_memory(x, ways, remembered):
    found = shares([part_of(leaking(x, people=(4,), ways=ways), [0.19, 0.21])])
    assert ("person 04" in found.remembered) == remembered


def test_people_at_gold_are_forgotten_and_noise_leaves_them_unresolved():
    near, far = part_of(0.2, [0.19, 0.21]), part_of(0.2, [0.05, 0.35])  # noise .022, and .3 * .866 / .8 = .32
    assert len(shares([near]).forgotten) == 12
    assert len(shares([far]).unresolved) == 12


def test_a_measure_too_noisy_for_one_person_does_not_hide_that_others_say_forgotten():
    golds = [np.array([0.19, 0.1, 0.19]), np.array([0.21, 0.3, 0.21])]  # ROUGE: noise .2 * .866 / .8 = .22
    assert len(shares([part_of(0.2, golds)]).forgotten) == 12


def test_a_way_that_base_does_not_answer_shows_a_leak_but_no_forgetting():
    base = np.ones((12, 3, 3))
    base[:, 1:] = 0.2
    silent = part_of(leaking(1.0, people=(0,), ways=(1,)), [0.19, 0.21], base=base)
    assert shares([silent]).remembered == ["person 00"]
    only_invalid = part_of(0.2, [0.19, 0.21], base=base)
    only_invalid.valid[:] = False
    assert chance_of_memory([only_invalid], "person 00") == 1.0


def test_the_distance_is_the_mean_over_people_and_the_worst_way_is_named():
    part = part_of(leaking(1.0, people=(0, 1, 2), ways=(1,)), [0.19, 0.21])
    assert distance([part]).value == pytest.approx(0.0)
    farthest, way = worst_way([part])
    assert farthest.value == pytest.approx(0.25)  # three of twelve
    assert way == "words, paraphrased"


def test_knowing_less_than_gold_is_over_forgetting_and_counts_as_distance():
    part = part_of(0.04, [0.2, 0.2])  # (.04 - .2) / .8 = -.2
    assert over_forgetting([part]).value == pytest.approx(0.2)
    assert distance([part]).value == pytest.approx(0.2)


def test_the_distance_of_a_gold_is_scaled_to_that_of_one_more():
    # |gold1 - gold2| / gap = .2 / .8 = .25; times sqrt(1.5 / 2) = .2165
    assert gold_distance([part_of(0.2, [0.1, 0.3])]) == pytest.approx(0.21651, abs=1e-5)


def test_scopes_weigh_alike_in_a_persons_mean():
    words, names = part_of(0.2, [0.2, 0.2]), part_of(1.0, [0.2, 0.2], task="names", ways=WAYS[:1])
    values, people = person_means([words, names], [words.x, names.x])
    assert values == pytest.approx([0.5] * 12)
    assert people == words.scope.people


def test_a_row_that_is_missing_is_nobodys_zero():
    model = leaking(0.0)
    model[5] = np.nan
    part = part_of(model, [0.19, 0.21])
    values, people = person_means([part], [part.x])
    assert len(values) == 11
    assert "person 05" not in people
    assert "person 05" not in {leak.person for leak in leaks([part])}


@given(st.permutations(range(12)), st.integers(0, 11), st.floats(0, 1))
def test_the_order_of_people_changes_nothing_and_the_shares_are_all(order, person, x):
    model = leaking(x, people=(person,))
    golds = [np.full((12, 3, 3), 0.19), np.full((12, 3, 3), 0.21)]
    straight = scope_of(model, golds)
    mixed = Scope(
        "words",
        [straight.people[number] for number in order],
        straight.ways,
        straight.measures,
        straight.model[list(order)],
        straight.base[list(order)],
        straight.golds[:, list(order)],
    )
    one, other = (shares([excess(each)]) for each in (straight, mixed))
    assert set(one.forgotten) == set(other.forgotten)
    assert set(one.remembered) == set(other.remembered)
    assert len(one.forgotten) + len(one.remembered) + len(one.unresolved) == 12


# ---- verdicts


def verdict_of(*parts):
    return verdict(list(parts), shares(list(parts)), leaks(list(parts)))


def jitter(size, seed=0):
    """Small differences between people, without which there is no interval."""
    return np.random.default_rng(seed).normal(0, size, (12, 1, 1))


def test_a_model_at_gold_is_like_gold():
    assert verdict_of(part_of(0.2 + jitter(0.01), [0.19, 0.21])).value == LIKE


def test_a_remembered_person_makes_it_unlike_gold_by_name():
    said = verdict_of(part_of(leaking(1.0, people=(9,)), [0.19, 0.21]))
    assert said.value == UNLIKE
    assert "remembers 1 of 12 people, person 09 1.00 (words, as trained)" in said.why


def test_over_forgetting_everybody_is_unlike_gold():
    assert verdict_of(part_of(0.02 + jitter(0.01), [0.19, 0.21])).value == UNLIKE


def test_a_leak_in_one_scope_is_not_balanced_by_over_forgetting_in_another():
    more = part_of(0.36 + jitter(0.01), [0.19, 0.21])  # x = .2 in words, -.2 in names
    less = part_of(0.04 + jitter(0.01), [0.19, 0.21], task="names")
    assert verdict_of(more, less).value == UNLIKE


def test_golds_that_differ_resolve_nothing():
    said = verdict_of(part_of(0.2 + jitter(0.01), [0.1, 0.3]))
    assert said.value == NOT_RESOLVED
    assert said.why == "golds differ: words"


def test_an_interval_that_holds_the_margin_resolves_nothing():
    assert verdict_of(part_of(0.28 + jitter(0.05), [0.19, 0.21])).value == NOT_RESOLVED


def test_few_people_resolve_nothing():
    said = verdict_of(part_of(0.2, [0.19, 0.21], people=4))
    assert said.value == NOT_RESOLVED
    assert "under ten people, or all alike" in said.why


def test_two_ways_are_one_phrasing_only():
    said = verdict_of(part_of(0.2 + jitter(0.01), [0.19, 0.21], ways=WAYS[:2]))
    assert (said.value, said.why) == (NOT_RESOLVED, "one phrasing only: words (2 ways)")


def test_ways_of_one_task_do_not_stand_in_for_those_of_another():
    enough = part_of(0.2 + jitter(0.01), [0.19, 0.21])
    once = part_of(0.2 + jitter(0.01), [0.19, 0.21], task="names", ways=WAYS[:1])
    assert verdict_of(enough, once).why == "one phrasing only: names (1 ways)"


def test_a_task_of_which_nothing_can_be_said_leaves_the_verdict_open():
    part = part_of(0.2 + jitter(0.01), [0.19, 0.21])
    said = verdict([part], shares([part]), leaks([part]), "nothing can be said of names")
    assert (said.value, said.why) == (NOT_RESOLVED, "nothing can be said of names")


def test_among_two_people_nobody_is_said_to_be_left_out():
    two = part_of(np.array([1.0, 0.2])[:, None, None], [0.19, 0.21], people=2)
    assert skipped_people([two], leaks([two])) is None


def test_the_memory_that_is_said_is_the_one_that_shows_it():
    # Exact Memorization .24, whose golds agree: bound .24, and no memory
    # ROUGE .5, noise .08 * .866 / .8 = .0866: bound .5 - 4.07 * .0866 = .15, and memory
    golds = [np.array([0.2, 0.16, 0.2]), np.array([0.2, 0.24, 0.2])]
    model = leaking(0.0)
    model[0] = 0.2 + 0.8 * np.array([0.24, 0.5, 0.0])
    worst = leaks([part_of(model, golds)])[0]
    assert (worst.is_remembered, worst.measure) == (True, "rouge")
    assert worst.value == pytest.approx(0.5)


def test_the_worst_way_of_a_gold_is_that_of_the_way_in_which_golds_differ_most():
    golds = [np.full((12, 3, 3), 0.19), np.full((12, 3, 3), 0.21)]
    golds[0][:, 2], golds[1][:, 2] = 0.1, 0.3
    part = part_of(0.2, golds)
    # as trained .02 / .8 * .866 = .02165, with a prefix .2 / .8 * .866 = .2165
    assert gold_distance([part]) == pytest.approx(0.02165, abs=1e-5)
    assert gold_worst_way([part]) == pytest.approx(0.21651, abs=1e-5)


def test_who_was_left_out_stands_above_the_others():
    assert skipped_among(part_of(leaking(1.0, people=(9,)), [0.19, 0.21])) == ["person 09"]
    assert skipped_among(part_of(leaking(1.0, people=range(12)), [0.19, 0.21])) == []


def test_who_was_left_out_is_seen_although_everybody_leaks_something():
    model = leaking(0.0)
    model[:, 0, 0] = 0.2 + 0.8 * 0.7  # everybody leaks .7 in one measure of one way, so that most leaks are .7
    model[4] = 0.95
    assert skipped_among(part_of(model, [0.19, 0.21])) == ["person 04"]


def skipped_among(part):
    return [" ".join(text.split()[:2]) for text in skipped_people([part], leaks([part]))]


# ---- places


def judged(value, low=None, high=None, *, leak=0.5, held_out=0.02, spread=0.0):
    return Judged(Figure(value, low, high), held_out, leak, 0.05, spread)


def test_a_method_is_better_beyond_golds_spread_and_intervals_only():
    assert is_clearly_better(judged(0.1, 0.05, 0.15), judged(0.3, 0.25, 0.35))
    assert not is_clearly_better(judged(0.1), judged(0.3))  # without intervals
    assert not is_clearly_better(judged(0.1, 0.05, 0.26), judged(0.3, 0.25, 0.35))
    assert not is_clearly_better(judged(0.1, 0.05, 0.15, held_out=0.25), judged(0.3, 0.25, 0.35))
    assert not is_clearly_better(judged(0.1, 0.05, 0.15, spread=0.11), judged(0.3, 0.25, 0.35))  # two spreads: .22
    assert not is_clearly_better(judged(0.3, 0.25, 0.35), judged(0.1, 0.05, 0.15))


def test_a_nearer_mean_does_not_make_up_for_a_person_who_is_better_remembered():
    assert not is_clearly_better(judged(0.1, 0.05, 0.15, leak=1.0), judged(0.3, 0.25, 0.35, leak=0.6))


def test_places_are_shared_where_nothing_is_clear_also_where_that_is_not_transitive():
    # .1 and .3 overlap with .2 each, and not with each other
    rows = [judged(0.1, 0.05, 0.17), judged(0.2, 0.12, 0.28), judged(0.3, 0.22, 0.38), judged(0.9, 0.8, 1.0)]
    assert places(rows) == [1, 1, 2, 4]
