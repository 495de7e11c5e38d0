"""Networks that forgot against retrained ones: margins, KLOM, likelihood ratios and bounds of epsilon by hand."""

import numpy as np
import pytest
from scipy.stats import norm

from engine.likelihood_ratio import likelihood_ratio, median, robust_normal
from engine.retrained import (
    epsilon_bound,
    errors_of_telling,
    klom,
    largest_rate,
    margin,
)

RNG = np.random.default_rng(0)


def column(*values):
    """Margins or scores of one query, (len, 1)."""
    return np.array(values, dtype=float)[:, None]


# ---- KLOM


def test_a_margin_is_the_right_logit_above_the_others_together_which_is_the_log_odds():
    logits = np.array([[[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]])  # one network, two queries
    margins = margin(logits, np.array([0, 2]))
    # 2 - log(e^1 + e^0) and 0 - log(e^2 + e^1)
    assert margins[0].tolist() == pytest.approx([2 - np.log(np.e + 1), -np.log(np.e**2 + np.e)])
    chance = np.exp(2) / np.exp([2.0, 1.0, 0.0]).sum()
    assert margins[0, 0] == pytest.approx(np.log(chance / (1 - chance)))


def test_klom_by_hand():
    # 20 bins on [0, 10]: 0 lies in the first, 10 in the last; p (1/2, 1/2), q (1/4, 3/4)
    value = klom(column(0, 0, 10, 10), column(0, 10, 10, 10))
    assert value.tolist() == pytest.approx([0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)])


def test_klom_is_of_the_networks_that_forgot_from_the_retrained_and_not_the_other_way_round():
    # p (1/4, 3/4), q (1/2, 1/2)
    value = klom(column(0, 10, 10, 10), column(0, 0, 10, 10))
    assert value.tolist() == pytest.approx([0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)])


def test_a_bin_without_a_retrained_network_counts_a_hundred_thousandth_and_the_largest_margin_counts():
    # p (1/2, 1/2), q (1, 1e-5) over 1.00001
    value = klom(column(0, 10), column(0, 0))
    assert value.tolist() == pytest.approx([0.5 * np.log(0.5 * 1.00001) + 0.5 * np.log(0.5 * 1.00001 / 1e-5)])
    apart = klom(column(0, 0), column(10, 10))  # p (1, 0), q (1e-5, 1) over 1.00001: the most that there is
    assert apart.tolist() == pytest.approx([np.log(1.00001 / 1e-5)])


def test_margins_are_clipped_to_a_hundred_and_equal_ones_have_no_divergence():
    # clipped: -100, -100, 100 against -100, 100, 100: p (2/3, 1/3), q (1/3, 2/3)
    value = klom(column(-1e6, -200, 300), column(-150, 1e9, 101))
    assert value.tolist() == pytest.approx([2 / 3 * np.log(2) + 1 / 3 * np.log(0.5)])
    assert klom(column(3, 3), column(3, 3, 3)).tolist() == [0.0]


def test_each_query_has_bins_of_its_own_and_the_order_of_networks_does_not_matter():
    one, two = RNG.normal(0, 1, (40, 5)) * [1, 2, 3, 50, 0.1], RNG.normal(0.5, 1, (30, 5)) * [1, 2, 3, 50, 0.1]
    together = klom(one, two)
    alone = [klom(one[:, [query]], two[::-1, [query]])[0] for query in range(5)]
    assert together.tolist() == pytest.approx(alone)
    assert klom(10 * one[:, :3], 10 * two[:, :3]).tolist() == pytest.approx(alone[:3])  # no unit


def test_a_margin_that_is_no_number_does_not_count():
    without = klom(column(0, 0, 10, 10), column(0, 10, 10, 10))
    assert klom(column(0, np.nan, 0, 10, 10), column(np.nan, 0, 10, 10, 10)).tolist() == without.tolist()


# ---- likelihood ratios


@pytest.mark.parametrize("count", [2, 7])
def test_the_median_is_that_of_numpy(count):
    values = RNG.normal(0, 1, (count, 30))
    values[1:, ::3] = np.nan
    assert median(values).tolist() == np.nanmedian(values, axis=0).tolist()


def test_location_and_spread_are_robust_and_of_the_chosen_models_only():
    logits = np.array([[1.0], [2.0], [3.0], [1000.0], [7.0]])
    chosen = np.array([[True], [True], [True], [False], [False]])
    # median 2, deviations 1, 0, 1: median 1
    assert [float(part[0]) for part in robust_normal(logits, chosen)] == pytest.approx([2.0, 1.4826])
    with_outlier = np.concatenate([RNG.normal(0, 1, (999, 1)), [[1e6]]])
    location, spread = robust_normal(with_outlier, np.ones((1000, 1), bool))
    assert location[0] == pytest.approx(0, abs=0.15)
    assert spread[0] == pytest.approx(1, abs=0.15)


def test_one_model_on_a_side_has_no_location_and_spread():
    logits = np.array([[1.0], [2.0], [3.0], [1000.0], [7.0]])
    with pytest.raises(ValueError, match="at least 2 are needed"):
        robust_normal(logits, np.array([[True], [False], [False], [False], [False]]))


def test_the_likelihood_ratio_is_that_of_two_normal_densities():
    shadow = np.array([[1.0], [2.0], [3.0], [-2.0], [0.0], [2.0]])
    learned = np.array([[True], [True], [True], [False], [False], [False]])
    value = likelihood_ratio(shadow, learned, np.array([[1.7]]))
    # medians 2 and 0; median absolute deviations 1 and 2
    assert value[0, 0] == pytest.approx(norm.logpdf(1.7, 2, 1.4826) - norm.logpdf(1.7, 0, 2 * 1.4826))


# ---- epsilon


def test_the_largest_rate_is_that_of_clopper_and_pearson():
    # the two-sided 95 % interval of 5 of 10 ends at .8129, of 0 of 10 at 1 - .025^(1/10) = .3085
    rates = largest_rate(np.array([5, 0, 10]), np.array([10, 10, 10]), 0.025)
    assert rates.tolist() == pytest.approx([0.8129, 1 - 0.025**0.1, 1.0], abs=1e-4)


def one_bound(missed, forgot, mistaken, retrained, alpha=0.05):
    counts = (np.array([count]) for count in (missed, forgot, mistaken, retrained))
    return float(epsilon_bound(*counts, alpha=alpha)[0])


def test_without_an_error_the_bound_is_what_the_number_of_networks_can_show():
    most = 1 - 0.025 ** (1 / 64)  # no error of 64 may still be a rate of .056
    assert one_bound(0, 64, 0, 64) == pytest.approx(np.log((1 - 1e-5 - most) / most))
    assert one_bound(0, 64, 0, 64) == pytest.approx(2.82, abs=0.01)
    assert one_bound(0, 64, 0, 64, alpha=0.05 / 16) < one_bound(0, 64, 0, 64) < one_bound(0, 256, 0, 256)


def test_the_bound_takes_the_better_of_both_directions_and_is_never_below_zero():
    fnr, fpr = largest_rate(np.array([40, 0]), np.array([64, 64]), 0.025)
    # most that forgot pass for retrained, but none that was retrained is mistaken: (1 - fnr) / fpr counts
    assert one_bound(40, 64, 0, 64) == pytest.approx(np.log((1 - 1e-5 - fnr) / fpr))
    assert one_bound(0, 64, 40, 64) == pytest.approx(one_bound(40, 64, 0, 64))
    assert one_bound(32, 64, 32, 64) == 0
    assert one_bound(64, 64, 64, 64) == 0


def test_errors_are_counted_by_an_attacker_who_never_saw_the_judged_networks():
    forgot = np.arange(16)[:, None] % 2 == 0
    scores = np.where(forgot, 10.0, 0.0) + np.tile([0.0, 0.1, 0.2, 0.3], 4)[:, None]
    assert [errors.tolist() for errors in errors_of_telling(scores, forgot, 4)] == [[0], [0]]
    scores[0], scores[3] = 0.0, 10.0  # one that forgot looks retrained, and one that was retrained does not
    assert [errors.tolist() for errors in errors_of_telling(scores, forgot, 4)] == [[1], [1]]
    # with nothing to tell them by every answer is an error
    assert [errors.tolist() for errors in errors_of_telling(np.zeros((16, 1)), forgot, 4)] == [[8], [8]]


def drawn_scores(high_if_forgot, high_if_retrained, people=400, models=128):
    """Scores near 1 or near 0, by chances that depend on whether a network forgot the person; and which did."""
    forgot = np.repeat(np.arange(models) % 2 == 0, people).reshape(models, people)
    chance = np.where(forgot, high_if_forgot, high_if_retrained)
    return (RNG.random(forgot.shape) < chance) + RNG.normal(0, 0.2, forgot.shape), forgot


def bounds(scores, forgot):
    missed, mistaken = errors_of_telling(scores, forgot, 16)
    return epsilon_bound(missed, forgot.sum(0), mistaken, (~forgot).sum(0), alpha=0.05)


def test_a_known_epsilon_is_exceeded_in_at_most_five_of_a_hundred_bounds_and_shown_to_be_there():
    found = bounds(*drawn_scores(0.8, 0.2))  # no attacker can do better than log(.8 / .2) = 1.39
    assert (found > np.log(4)).mean() <= 0.05
    assert (found > 0.4).mean() > 0.9


def test_retrained_networks_against_retrained_ones_have_an_epsilon_of_zero_in_95_of_100_cases():
    assert (bounds(*drawn_scores(0.5, 0.5)) > 0).mean() <= 0.05
