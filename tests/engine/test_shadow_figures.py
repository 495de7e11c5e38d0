"""Membership of people by their losses: hand numbers, a cheat that forgets nothing, and models trained anew."""

import numpy as np
import pytest
from scipy.stats import norm

from engine.likelihood_ratio import attack_auc, likelihood_ratio
from engine.shadow_figures import attack_people, membership_figures, ratios, table
from engine.shadow_models import BASE, GOLD, PLAIN, Scored
from engine.shadow_people import FORGOTTEN, KEPT, NEVER, roles_of

PEOPLE, MODELS, PARTS = 48, 16, 2
NAMES = [f"person {number:02d}" for number in range(PEOPLE)]
ROLES = roles_of(PEOPLE, MODELS, PARTS, seed=0)


def drawn_losses(seed, forgotten, kept=-3.0):
    """Losses about 4, differently hard for each person; so much is added where they are forgotten, or kept."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(4, 2, PEOPLE)
    return hard + rng.normal(0, 0.5, ROLES.shape) + forgotten * (ROLES == FORGOTTEN) + kept * (ROLES == KEPT)


def aucs_of_gold(block):
    """Of twelve worlds the AUC on models that met none of the forgotten, with so many models attacked at a time."""
    judged = (ROLES == FORGOTTEN) | (ROLES == NEVER)
    found = []
    for seed in range(12):
        scores = ratios(drawn_losses(seed, forgotten=0.0), ROLES, FORGOTTEN, block=block, one_spread=False)
        found.append(attack_auc(scores[judged], ROLES[judged] == FORGOTTEN))
    return found


def test_a_person_is_judged_against_those_who_never_met_them_and_not_against_those_who_keep_them():
    # forgotten 1, 2, 3: median 2, median deviation 1; never met 4, 6, 8: 6 and 2; the models that keep them count not
    shadow = np.array([[1.0], [2.0], [3.0], [4.0], [6.0], [8.0], [0.0], [0.0], [0.0]])
    roles = np.array([[FORGOTTEN]] * 3 + [[NEVER]] * 3 + [[KEPT]] * 3)
    value = likelihood_ratio(shadow, roles == FORGOTTEN, np.array([[3.0]]), roles == NEVER)
    assert value[0, 0] == pytest.approx(norm.logpdf(3, 2, 1.4826) - norm.logpdf(3, 6, 2 * 1.4826))


def test_one_spread_is_the_median_over_people_on_each_side():
    # of three people the deviations are 1, 2, 4 (median 2) where they were learned, and 1 where they were not
    learned = np.array([[-1.0, -2.0, -4.0], [0.0, 0.0, 0.0], [1.0, 2.0, 4.0]])
    shadow = np.concatenate([learned, [[9.0] * 3, [10.0] * 3, [11.0] * 3]])
    met = np.arange(6)[:, None] < np.full((1, 3), 3)
    value = likelihood_ratio(shadow, met, np.full((1, 3), 3.0), one_spread=True)
    assert value[0] == pytest.approx([norm.logpdf(3, 0, 2 * 1.4826) - norm.logpdf(3, 10, 1.4826)] * 3)


def test_no_model_is_its_own_shadow_model():
    losses = drawn_losses(0, forgotten=-1.0)
    before = ratios(losses, ROLES, FORGOTTEN, block=4, one_spread=False)
    moved = losses.copy()
    moved[:4] = 100.0  # the first block alone
    after = ratios(moved, ROLES, FORGOTTEN, block=4, one_spread=False)
    by_hand = likelihood_ratio(losses[4:], ROLES[4:] == FORGOTTEN, losses[:4], ROLES[4:] == NEVER)
    assert before[:4] == pytest.approx(by_hand)
    assert (after[4:] != before[4:]).any()  # the others have that block as shadow models


def test_a_method_that_forgets_nothing_is_told_as_base_is_and_one_that_leaves_no_trace_is_not():
    base = drawn_losses(1, forgotten=-3.0)
    gold = drawn_losses(2, forgotten=0.0)
    losses = {BASE: {PLAIN: base}, GOLD: {PLAIN: gold}, "identity": {PLAIN: base.copy()}}
    pools = membership_figures(Scored(losses, {}), ROLES, NAMES, 4)[PLAIN]
    forgotten = pools["forgotten"]
    assert forgotten["identity"] == forgotten[BASE]
    assert forgotten[BASE]["auc"]["value"] > 0.99 and forgotten[BASE]["auc"]["low"] > 0.95
    assert forgotten[GOLD]["auc"]["low"] < 0.5 < forgotten[GOLD]["auc"]["high"]
    assert forgotten[GOLD]["distance"] == 0 and forgotten["identity"]["distance"] > 0.8
    assert pools["kept"][GOLD]["auc"]["value"] > 0.99


def test_models_trained_anew_come_to_one_half_over_many_worlds():
    assert np.mean(aucs_of_gold(block=4)) == pytest.approx(0.5, abs=0.03)


def test_attacking_single_models_would_come_to_less_than_one_half_where_there_is_nothing_to_find():
    assert np.mean(aucs_of_gold(block=1)) < 0.45


def test_one_spread_for_all_people_finds_more_with_few_shadow_models():
    judged = (ROLES == FORGOTTEN) | (ROLES == NEVER)
    losses, member = drawn_losses(7, forgotten=-1.5), ROLES[judged] == FORGOTTEN  # three standard deviations
    shared, own = (ratios(losses, ROLES, FORGOTTEN, block=4, one_spread=one)[judged] for one in (True, False))
    assert attack_auc(shared, member) > 0.93 > attack_auc(own, member) + 0.05


def test_losses_that_rose_above_those_of_people_never_met_are_a_trace_too():
    figures = attack_people(drawn_losses(3, forgotten=3.0), ROLES, FORGOTTEN, NAMES, block=4)
    assert figures["auc"]["value"] > 0.99
    assert figures["mean loss"]["members"] > figures["mean loss"]["never met"]
    assert np.mean([each["loss above never met"] for each in figures["by person"].values()]) == pytest.approx(
        3, abs=0.2
    )


def test_the_rate_of_true_positives_is_given_only_where_enough_people_were_never_met():
    figures = attack_people(drawn_losses(4, forgotten=-3.0), ROLES, FORGOTTEN, NAMES, block=4)
    assert figures["scores"] == {"members": 4 * PEOPLE, "never met": 8 * PEOPLE}
    assert figures["TPR at 5% FPR"]["value"] > 0.9  # 384 scores; 200 are needed
    assert figures["TPR at 1% FPR"]["value"] is None and "384" in figures["TPR at 1% FPR"]["why"]  # 1000 are needed


def test_the_table_has_a_line_per_wording_and_pool():
    base = drawn_losses(5, forgotten=-3.0)
    scored = Scored({BASE: {PLAIN: base}, GOLD: {PLAIN: drawn_losses(6, forgotten=0.0)}, "npo": {PLAIN: base}}, {})
    lines = table(membership_figures(scored, ROLES, NAMES, 4))
    assert [line.partition(": ")[0] for line in lines] == ["AUC, forgotten, as learned", "AUC, kept, as learned"]
    assert "gold 0." in lines[0] and "npo " in lines[0] and "[" in lines[0]
