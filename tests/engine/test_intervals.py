"""Intervals over people: hand numbers, what they must not depend on, and how often they hold the true figure."""

import math

import numpy as np
import pytest

from engine.intervals import Rows, bootstrap_counts, bootstrap_t, estimate, percentile_interval, person_sums

EVERYTHING = (-math.inf, math.inf)


def only_mean(means):
    return means[..., 0]


def mean_rows(values):
    """One row per person."""
    return [Rows(np.asarray(values, dtype=float), [f"person {number:03d}" for number in range(len(values))])]


# ---- the standard error that a draw is measured in


def test_the_standard_error_of_a_mean_is_the_textbooks():
    # 1, 2, 3, 6: mean 3, deviations 4 + 1 + 0 + 9 = 14, variance 14 / 3, of the mean 14 / 12
    sums, counts = person_sums(mean_rows([1, 2, 3, 6]))
    values, spreads = estimate(np.ones((1, 4)), sums, counts, only_mean)
    assert values.tolist() == [3]
    assert spreads.tolist() == pytest.approx([math.sqrt(14 / 12)])


def test_a_person_drawn_twice_counts_twice():
    # 1, 1, 3: mean 5/3, squared deviations 4/9 + 4/9 + 16/9 = 8/3, over 3 * 2
    sums, counts = person_sums(mean_rows([1, 2, 3]))
    values, spreads = estimate(np.array([[2, 0, 1]]), sums, counts, only_mean)
    assert values.tolist() == pytest.approx([5 / 3])
    assert spreads.tolist() == pytest.approx([math.sqrt(8 / 18)])


def test_a_person_brings_all_rows():
    # a has 0, 1, 1 and b has 0: drawn a twice 2/3, drawn both 2/4
    rows = [Rows(np.array([0.0, 1, 1, 0]), ["a", "a", "a", "b"])]
    sums, counts = person_sums(rows)
    values, _ = estimate(np.array([[2, 0], [1, 1]]), sums, counts, only_mean)
    assert values.tolist() == pytest.approx([2 / 3, 0.5])


def test_the_standard_error_of_a_ratio_is_the_delta_methods():
    # x / y with x = 1, 2, 3, 4 and y = 2, 2, 4, 4: 2.5 / 3; residuals x - r y over the mean of y
    x = np.array([1.0, 2, 3, 4])
    y = np.array([2.0, 2, 4, 4])
    rows = [*mean_rows(x), *mean_rows(y)]
    sums, counts = person_sums(rows)
    _, spreads = estimate(np.ones((1, 4)), sums, counts, lambda means: means[..., 0] / means[..., 1])
    residuals = (x - 2.5 / 3 * y) / 3
    assert spreads.tolist() == pytest.approx([math.sqrt((residuals**2).sum() / 12)], rel=1e-5)


# ---- the interval


def test_the_interval_of_many_people_is_the_normal_one():
    values = np.random.default_rng(11).normal(0.5, 0.1, 400)
    low, high = bootstrap_t(mean_rows(values), only_mean, bounds=EVERYTHING)
    error = values.std(ddof=1) / math.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.001)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.001)


def test_the_order_of_rows_and_people_changes_nothing():
    values = np.random.default_rng(3).random(24)
    names = np.array([f"person {number % 12}" for number in range(24)])
    order = np.random.default_rng(4).permutation(24)
    ends = [
        bootstrap_t([Rows(values[place], list(names[place]))], only_mean, bounds=(0, 1))
        for place in (np.arange(24), order)
    ]
    assert ends[0] == pytest.approx(ends[1])


def test_rows_of_one_person_widen_the_interval():
    values = np.repeat(np.random.default_rng(12).random(20), 20)
    by_person = [str(number) for number in np.repeat(range(20), 20)]
    by_row = [str(number) for number in range(400)]
    widths = []
    for people in (by_person, by_row):
        low, high = bootstrap_t([Rows(values, people)], only_mean, bounds=(0, 1))
        widths.append(high - low)
    assert widths[0] > 3 * widths[1]  # sqrt(20) = 4.5 in the limit


def test_fewer_than_ten_people_have_no_interval():
    assert bootstrap_t(mean_rows(range(9)), only_mean, bounds=EVERYTHING) is None
    assert bootstrap_t(mean_rows(range(10)), only_mean, bounds=EVERYTHING) is not None


def test_people_who_are_all_alike_have_no_interval():
    assert bootstrap_t(mean_rows([1.0] * 20), only_mean, bounds=(0, 1)) is None


def test_ends_stay_within_what_is_possible():
    low, high = bootstrap_t(mean_rows([1.0] * 11 + [0.2]), only_mean, bounds=(0, 1))
    assert 0 <= low < high <= 1


def test_one_person_who_differs_leaves_the_ends_finite():
    low, high = bootstrap_t(mean_rows([0.0] * 11 + [5]), only_mean, bounds=EVERYTHING)
    assert -5 < low < high < 50


def test_tasks_about_other_people_are_drawn_together():
    rows = [
        Rows(np.linspace(0, 1, 10), [f"a{n}" for n in range(10)]),
        Rows(np.linspace(0, 1, 10), [f"b{n}" for n in range(10)]),
    ]
    low, high = bootstrap_t(rows, lambda means: means.mean(axis=-1), bounds=(0, 1))
    assert low < 0.5 < high


# ---- how often the interval holds the true figure (simulated)

SHAPES = {  # name -> (draws of n people, the true mean)
    "normal": (lambda rng, n: rng.normal(0, 1, n), 0.0),
    "folded": (lambda rng, n: abs(rng.normal(0, 1, n)), math.sqrt(2 / math.pi)),
    "beta": (lambda rng, n: rng.beta(0.5, 2, n), 0.2),
    "lognormal": (lambda rng, n: np.exp(rng.normal(0, 0.75, n)), math.exp(0.75**2 / 2)),
}


def coverage(draw, truth, people: int, worlds: int = 600) -> float:
    """Share of simulated worlds whose interval of the mean holds the true one."""
    held = 0
    for seed in range(worlds):
        values = draw(np.random.default_rng([seed, people]), people)
        low, high = bootstrap_t(mean_rows(values), only_mean, bounds=EVERYTHING, seed=seed)
        held += low <= truth <= high
    return held / worlds


@pytest.mark.slow
@pytest.mark.parametrize("people", [10, 20, 40])
@pytest.mark.parametrize("shape", SHAPES)
def test_95_percent_intervals_hold_the_true_mean_in_about_95_percent_of_worlds(shape, people):
    # 600 worlds: a coverage of .95 is measured with a standard error of .009
    assert 0.92 <= coverage(*SHAPES[shape], people) <= 0.98


# ---- draws for figures that are no function of means


def test_the_bootstrap_is_seeded_and_does_not_depend_on_the_order_of_people():
    people = [f"person {number}" for number in range(12)]
    first, again = bootstrap_counts(people), bootstrap_counts(people[::-1] * 2)
    assert all((first[name] == again[name]).all() for name in people)


def test_as_many_people_are_drawn_as_there_are():
    assert (sum(bootstrap_counts(["a", "b", "c"]).values()) == 3).all()


def test_a_percentile_interval_leaves_out_draws_without_a_figure():
    assert percentile_interval(np.array([0.0, np.nan, 1.0]), level=0.5) == (0.25, 0.75)
