"""The golds' noise: hand numbers, golds of several seeds, noise that is larger somewhere, golds that agree."""

import math

import numpy as np
import pytest

from engine.noise import golds_noise, prior_dof, squeezed


def golds_at(*values, shape=(4, 3, 3)):
    """Golds that each have one value in all answers."""
    return np.array([np.full(shape, value) for value in values])


# ---- the size


def test_the_noise_of_two_golds_is_their_difference_times_the_root_of_three_quarters():
    # |0 - .2| * .866025 = .173205
    assert golds_noise(golds_at(0, 0.2)).of_measure == pytest.approx([0.173205] * 3, abs=1e-6)


def test_the_noise_is_the_root_mean_square_over_people_and_ways():
    # differences .1 and .3: sqrt((.01 + .09) / 2 * 3/4) = sqrt(.0375) = .193649
    golds = np.array([np.zeros((2, 1, 1)), np.array([0.1, 0.3]).reshape(2, 1, 1)])
    assert golds_noise(golds).of_measure == pytest.approx([0.193649], abs=1e-6)


def test_the_noise_of_three_golds_is_their_variance_times_four_thirds():
    # 0, .1, .2: variance .01; sqrt(.01 * 4/3) = .115470
    assert golds_noise(golds_at(0, 0.1, 0.2)).of_measure == pytest.approx([0.11547] * 3, abs=1e-6)


@pytest.mark.parametrize("golds", [2, 3, 5])
def test_it_is_how_far_another_gold_is_from_the_mean_of_these(golds):
    # 20000 people: both standard deviations are known to half a percent
    drawn = np.random.default_rng(golds).normal(0, 0.1, (golds + 1, 20000, 1, 1))
    another = drawn[0] - drawn[1:].mean(axis=0)
    assert golds_noise(drawn[1:]).of_measure[0] == pytest.approx(another.std(), rel=0.03)


def test_an_answer_that_a_gold_lacks_does_not_count():
    golds = golds_at(0, 0.2)
    golds[1, 0, 0, 0] = np.nan
    assert golds_noise(golds).of_measure == pytest.approx([0.173205] * 3, abs=1e-6)


# ---- degrees of freedom


def test_even_noise_has_two_degrees_of_freedom_per_person_and_gold_but_one():
    assert (golds_noise(golds_at(0, 0.2)).dof == 8).all()  # 2 * 4
    assert (golds_noise(golds_at(0, 0.1, 0.2)).dof == 16).all()  # 2 * 4 * 2


def test_one_way_of_asking_has_one_degree_of_freedom_per_person():
    assert (golds_noise(golds_at(0, 0.2, shape=(4, 1, 3))).dof == 4).all()


def test_a_persons_missing_answers_lower_their_degrees_of_freedom_only_where_noise_is_uneven():
    golds = golds_at(0, 0.2)
    golds[:, 0, 1:] = np.nan
    assert (golds_noise(golds).dof == 8).all()
    golds[1, 3] = 0.9
    dof = golds_noise(golds).dof
    assert (dof[0] < dof[1]).all()


def test_groups_that_are_alike_have_a_sure_prior():
    assert prior_dof(np.ones(6), np.full(6, 3.0)) == math.inf
    assert prior_dof(np.ones(1), np.ones(1)) == math.inf  # one group says nothing of others


def test_the_prior_of_two_groups_by_hand():
    # .5 and 1.5: v = (.25 + .25) / 1 = .5, its standard error 0; by chance 2/100 = .02
    # (.5 - .02) / 1.02 = .470588; 4 + 2 / .470588 = 8.25
    assert prior_dof(np.array([0.5, 1.5]), np.full(2, 100.0)) == pytest.approx(8.25)


def test_the_prior_of_many_drawn_variances_is_about_the_true_one():
    source = np.random.default_rng(5)
    variances = 10 / source.chisquare(10, 4000)
    squares = variances * source.chisquare(6, 4000) / 6
    assert 7 < prior_dof(squares, np.full(4000, 6.0)) < 14


def test_a_group_is_squeezed_towards_the_common_variance_by_hand():
    # 100 people, two ways with variances .5 and 1.5: prior 8.25, a share of 100 / 108.25 = .92379 stays
    # 1 - .92379 * .5 = .538106, known with 108.25 degrees of freedom
    ratios = np.broadcast_to(np.array([0.5, 1.5])[:, None], (100, 2, 1))
    values, dof = squeezed(ratios, axis=0, each=1)
    assert values.ravel() == pytest.approx([0.538106, 1.461894], abs=1e-5)
    assert dof.ravel() == pytest.approx([108.25] * 2)


# ---- noise that is larger somewhere


def uneven(larger):
    """Two golds of 12 people, 4 ways and 3 measures that differ by .05, and by .3 in the answers named."""
    golds = np.zeros((2, 12, 4, 3))
    golds[1] = 0.05
    golds[(1, *larger)] = 0.3
    return golds


def test_a_person_in_whom_golds_differ_more_has_a_larger_scale():
    # pooled: sqrt((.3^2 + 11 * .05^2) / 12 * 3/4) = .0857; their own: .3 * .866 = .26, the others' .043
    scale = golds_noise(uneven((0,))).scale
    assert 0.16 < scale[0].min() <= scale[0].max() < 0.26
    assert 0.043 < scale[1:].min() <= scale[1:].max() < 0.0857


def test_a_way_in_which_golds_differ_more_has_a_larger_scale():
    # pooled: sqrt((.3^2 + 3 * .05^2) / 4 * 3/4) = .1352
    scale = golds_noise(uneven((slice(None), 2))).scale
    assert 0.16 < scale[:, 2].min() <= scale[:, 2].max() < 0.26
    assert 0.043 < np.delete(scale, 2, axis=1).max() < 0.09


@pytest.mark.parametrize("larger", [(0,), (slice(None), 2)])
def test_uneven_noise_leaves_fewer_degrees_of_freedom_than_two_per_person(larger):
    assert golds_noise(uneven(larger)).dof.max() < 24
    assert (golds_noise(uneven((slice(0),))).dof == 24).all()


def test_single_answers_in_which_golds_differ_much_leave_very_few_degrees_of_freedom():
    assert golds_noise(uneven(((0, 5, 10), (0, 2, 3), (0, 1, 2)))).dof.max() < 8


# ---- golds that agree


def test_golds_that_agree_have_no_noise():
    noise = golds_noise(golds_at(0.3, 0.3))
    assert (noise.of_measure == 0).all()
    assert (noise.scale == 0).all()


def test_golds_that_agree_but_for_rounding_agree():
    assert (golds_noise(golds_at(0.3, 0.1 + 0.2)).scale == 0).all()


def test_a_measure_in_which_golds_agree_says_nothing_of_the_others_noise():
    golds = uneven((0,))
    agreeing = golds.copy()
    agreeing[:, :, :, 2] = 0
    alone, beside = golds_noise(golds[..., :2]), golds_noise(agreeing)
    assert beside.scale[..., :2] == pytest.approx(alone.scale)
    assert beside.dof[..., :2] == pytest.approx(alone.dof)
