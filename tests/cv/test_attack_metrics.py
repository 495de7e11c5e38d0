"""Attacks and verification as numbers: known answers on made-up scores."""

import ast
import inspect

import numpy as np
import pytest
from scipy.stats import norm

from cv import attack_metrics
from cv.attack_metrics import (
    attack_accuracy,
    best_question,
    equal_error_rate,
    logistic_attack,
    roc_curve,
    share_of_members,
    tree_attack,
    verification_logit,
)
from engine.likelihood_ratio import attack_auc, attack_tpr, likelihood_ratio, with_interval

RNG = np.random.default_rng(0)


def test_attack_metrics_import_numpy_and_scipy_only():
    tree = ast.parse(inspect.getsource(attack_metrics))
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert [alias.name for node in plain for alias in node.names] == ["numpy"]
    assert modules == {"scipy.optimize", "scipy.special"}


def test_the_verification_logit_is_that_of_half_of_one_plus_the_cosine_and_stays_finite():
    # (1 + 0)/2 = 1/2: 0; (1 + .5)/2 = 3/4: log 3; clipped at 1e-6
    assert verification_logit(np.array([0.0, 0.5, -0.5])).tolist() == pytest.approx([0.0, np.log(3), -np.log(3)])
    assert verification_logit(np.array([1.0, -1.0])).tolist() == pytest.approx(
        [np.log((1 - 1e-6) / 1e-6), -np.log((1 - 1e-6) / 1e-6)]
    )


def test_the_equal_error_rate_by_hand():
    assert equal_error_rate(np.array([0.8, 0.9]), np.array([0.1, 0.2])) == 0
    # at .5 one genuine of four is refused (.4) and one impostor of four (.6) let in
    assert equal_error_rate(np.array([0.4, 0.7, 0.8, 0.9]), np.array([0.1, 0.2, 0.3, 0.6])) == pytest.approx(0.25)
    assert equal_error_rate(np.array([0.1, 0.2]), np.array([0.8, 0.9])) == 1


def test_the_equal_error_rate_of_two_normal_distributions_is_known():
    genuine, impostor = RNG.normal(2, 1, 200_000), RNG.normal(0, 1, 200_000)
    assert equal_error_rate(genuine, impostor) == pytest.approx(norm.cdf(-1), abs=2e-3)


def draw_models(gap, models=200, targets=100, queries=12):
    """Logits of models of which half met each query's person, normal, `gap` apart; and which of them did."""
    member = np.stack([RNG.permutation(models + targets) % 2 == 0 for _ in range(queries)], axis=1)
    location = RNG.normal(0, 3, queries)  # each query is differently hard: only a ratio for each example sees through
    logits = location + RNG.normal(0, 1, (models + targets, queries)) + gap * member
    return logits[:models], member[:models], logits[models:], member[models:]


def test_u_lira_reaches_the_best_possible_accuracy_and_auc_on_drawn_logits():
    shadow, learned, target, member = draw_models(gap=2.0)
    values = likelihood_ratio(shadow, learned, target)
    # the best test of two unit normals 2 apart: accuracy Phi(1), AUC Phi(2 / sqrt 2)
    assert attack_accuracy(values.ravel(), member.ravel()) == pytest.approx(norm.cdf(1), abs=0.03)
    assert attack_auc(values.ravel(), member.ravel()) == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.03)
    # the plain logit, compared across queries of different difficulty, knows less
    assert attack_auc(target.ravel(), member.ravel()) < 0.75


def test_u_lira_finds_nothing_where_forgotten_and_never_met_are_alike():
    shadow, learned, target, member = draw_models(gap=0.0)
    values = likelihood_ratio(shadow, learned, target)
    assert attack_accuracy(values.ravel(), member.ravel()) == pytest.approx(0.5, abs=0.04)
    assert attack_auc(values.ravel(), member.ravel()) == pytest.approx(0.5, abs=0.04)


def test_logistic_regression_finds_the_known_odds():
    member = RNG.random(20_000) < 0.5
    features = RNG.normal(0, 1, (20_000, 2)) + np.outer(member, [1.5, 0.0])
    # log odds of two unit normals 1.5 apart with equal shares: 1.5 x - 1.5^2 / 2
    asked = np.array([[0.0, 0.0], [0.75, 3.0], [2.0, 0.0]])
    assert logistic_attack(features, member, asked).tolist() == pytest.approx(
        (1.5 * asked[:, 0] - 1.125).tolist(), abs=0.12
    )


def test_logistic_regression_stays_finite_on_separable_rows():
    member = np.arange(20) >= 10
    values = logistic_attack(np.arange(20.0)[:, None], member, np.array([[0.0], [19.0]]))
    assert np.isfinite(values).all()
    assert values[0] < 0 < values[1]


def test_a_tree_learns_what_no_line_can():
    features = RNG.uniform(-1, 1, (2000, 2))
    member = np.abs(features[:, 0]) < 0.5  # a band: between two thresholds
    asked = np.array([[0.0, 0.0], [-0.9, 0.0], [0.9, 0.0]])
    assert (tree_attack(features, member, asked) > 0).tolist() == [True, False, False]
    assert attack_accuracy(logistic_attack(features, member, features), member) < 0.6
    assert attack_accuracy(tree_attack(features, member, features), member) > 0.95


def test_a_leaf_gives_log_odds_so_that_trees_and_lines_of_several_rounds_can_be_ranked_together():
    features = np.repeat([[0.0], [1.0]], 30, axis=0)
    member = np.arange(60) >= 30
    member[30:33] = False  # the right leaf: 27 members and 3 others; the left: none and 30
    log_odds = tree_attack(features, member, np.array([[0.0], [1.0]]))
    assert log_odds == pytest.approx([np.log(1 / 31), np.log(28 / 4)])  # one more of each side


def test_the_trees_best_question_by_hand():
    # 1 2 | 3 4 parts the classes; the other column is noise; with at least 3 rows a side there is no question
    features, member = np.array([[1.0, 5.0], [2.0, 1.0], [3.0, 4.0], [4.0, 2.0]]), np.array([0.0, 0.0, 1.0, 1.0])
    assert best_question(features, member, 1) == (0, 2.5)
    assert best_question(features, member, 3) is None
    assert best_question(features, np.ones(4), 1) is None


def test_auc_counts_pairs_and_ties_by_half():
    # pairs of members 2, 1 with others 1, 0: 2>1, 2>0, 1=1, 1>0: 3.5 of 4
    assert attack_auc(np.array([2.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False])) == pytest.approx(3.5 / 4)


def test_weights_stand_for_rows_that_come_several_times():
    source = np.random.default_rng(0)
    scores, member = source.normal(0, 1, 80).round(1), np.arange(80) % 2 == 0  # 40 others resolve each of the rates
    weights = source.integers(0, 4, 80)
    repeated = np.repeat(scores, weights), np.repeat(member, weights)
    for figure in (attack_auc, attack_accuracy):
        assert figure(scores, member, weights.astype(float)) == pytest.approx(figure(*repeated))
    for rate in (0.5, 0.6, 0.9):
        assert attack_tpr(scores, member, rate, weights.astype(float)) == pytest.approx(attack_tpr(*repeated, rate))


def test_accuracy_is_balanced_and_undecided_is_half_right():
    # members: right, right, wrong -> 2/3; others: right -> 1; (2/3 + 1) / 2
    assert attack_accuracy(np.array([1.0, 2.0, -1.0, -1.0]), np.array([True, True, True, False])) == pytest.approx(
        5 / 6
    )
    assert attack_accuracy(np.zeros(4), np.array([True, True, True, False])) == 0.5


def test_tpr_at_a_low_fpr_needs_ten_over_the_rate_others_and_is_exact_with_them():
    others, members = np.arange(1000.0), np.array([5.0, 990.5, 995.0, 2000.0])
    scores, member = np.concatenate([members, others]), np.arange(1004) < 4
    # 10 of 1000 others may be above: those from 990 on, so that members above 989 count
    assert attack_tpr(scores, member, 0.01) == 0.75
    assert attack_tpr(scores[:-1], member[:-1], 0.01) is None
    assert attack_tpr(scores, member, 0.001) is None


def test_the_share_of_members_leaves_others_out_and_counts_rows_by_weight():
    right, member = np.array([True, False, True, False]), np.array([True, True, True, False])
    assert share_of_members(right, member) == pytest.approx(2 / 3)
    assert share_of_members(right, member, np.array([1.0, 4.0, 1.0, 9.0])) == pytest.approx(2 / 6)


ONE_PAIR = np.zeros(200)  # of attacked models


def test_a_figure_that_cannot_be_resolved_says_so_and_others_have_intervals_over_people():
    people = np.repeat([f"p{i}" for i in range(20)], 10)
    member, scores = np.tile([True, False], 100), RNG.normal(0, 1, 200)
    unresolved = with_interval(lambda s, m, w=None: attack_tpr(s, m, 0.01, w), scores, member, people, ONE_PAIR)
    assert unresolved.value is None
    assert unresolved.why == "not resolvable with 100 scores of people who were not met"
    auc = with_interval(attack_auc, scores + member, member, people, ONE_PAIR)
    assert auc.low < auc.value < auc.high
    assert auc.value == attack_auc(scores + member, member)


def test_fewer_than_ten_people_have_no_interval():
    people, member = np.repeat([f"p{i}" for i in range(9)], 10), np.arange(90) % 2 == 0
    figure = with_interval(attack_auc, RNG.normal(0, 1, 90), member, people, np.zeros(90))
    assert figure.value is not None
    assert (figure.low, figure.high, figure.why) == (None, None, "no interval with 9 people")


def test_the_interval_draws_people_and_not_rows():
    people, member = np.repeat([f"p{i}" for i in range(20)], 50), np.tile([True, False], 500)
    scores = np.repeat(RNG.normal(0, 1, 20), 50) * member  # rows of a person are alike: 20 facts, not 1000
    one_pair = np.zeros(1000)
    by_row = with_interval(attack_auc, scores, member, np.array([str(i) for i in range(1000)]), one_pair)
    by_person = with_interval(attack_auc, scores, member, people, one_pair)
    assert by_person.high - by_person.low > 3 * (by_row.high - by_row.low)


def test_the_interval_draws_pairs_of_attacked_models_too():
    people, pairs = np.tile([f"p{i}" for i in range(20)], 50), np.repeat(np.arange(10), 100)
    member = np.tile(np.repeat([True, False], 20), 25)
    scores = np.repeat(RNG.normal(0, 1, 10), 100) * member  # rows of a pair are alike: ten facts
    blind, whole = (with_interval(attack_auc, scores, member, people, given) for given in (np.zeros(1000), pairs))
    assert whole.value == blind.value
    assert whole.high - whole.low > 3 * (blind.high - blind.low)


def test_the_roc_curve_runs_from_none_to_all_and_its_area_is_the_auc():
    member = RNG.random(5000) < 0.5
    scores = RNG.normal(0, 1, 5000) + member
    curve = np.array(roc_curve(scores, member, points=1001))
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]
    assert (np.diff(curve, axis=0) >= 0).all()
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(attack_auc(scores, member), abs=2e-3)
