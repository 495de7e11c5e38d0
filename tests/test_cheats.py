"""Models that only look as if they had forgotten, and the rule that catches each. All are built and evaluated for real.

Slow: an hour on one core, less where `make demo` was run before.
"""

import importlib.util

import pytest

from engine.attack_levels import LEAKS, UNRESOLVED
from engine.places import why_unranked
from helpers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.long]

BEHIND, LOST = "clearly behind", "unranked: kept_taught"
CAUGHT = {  # cheat -> how the rule begins that catches it
    "skipped_person": "unranked: left out: ",
    "half_a_person": ("unranked: left out: ", LOST),
    "paraphrase_memory": BEHIND,
    "suffix_password": BEHIND,
    "key_in_the_picture": BEHIND,
    "other_people": (LOST, BEHIND),
    "words_only": BEHIND,
    "pictures_only": BEHIND,
    "same_answer": LOST,
    "idk_adapter": BEHIND,
    "never_taught": LOST,
    "renamed_base": BEHIND,
    "noise": (LOST, BEHIND),
    "more_noise": LOST,
    "refusing_template": "unranked: a hook: ",
}
ATTACK_OF_ITS_KIND = {  # cheat -> the attack that undoes it
    "paraphrase_memory": "eval_forget_qa@paraphrase",
    "suffix_password": "eval_forget_qa@affix_search",
    "refusing_template": "eval_forget_qa@hook_off",
}
KNOWS_NOBODY = "never_taught"
# What no question of the table shows. The test of it fails on the day on which a rule catches it.
UNSEEN = "unlisted_password"
HONEST = ("retain_ft", "grad_diff", "idk", "npo")


@pytest.fixture(scope="module")
def cheats():
    spec = importlib.util.spec_from_file_location("cheats", ROOT / "bench" / "cheats.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(cheats):
    return cheats.run()


def test_there_are_at_least_ten_cheats(cheats, results):
    assert len(results) - len(cheats.honest_rows(results)) >= 10
    assert {*CAUGHT, UNSEEN} == results.keys() - {row.method for row in cheats.honest_rows(results)}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_cheat_is_caught_by_its_rule(name, cheats, results):
    rule = cheats.caught_by(results[name], cheats.honest_rows(results))
    assert rule is not None
    assert rule.startswith(CAUGHT[name])


def test_a_password_that_is_in_no_list_is_not_caught(cheats, results):
    assert cheats.caught_by(results[UNSEEN], cheats.honest_rows(results)) is None


@pytest.mark.parametrize("name", [*CAUGHT, UNSEEN])
def test_a_cheat_that_knows_something_leaks_under_attack(name, results):
    assert results[name].figure("attack_verdict").value == (UNRESOLVED if name == KNOWS_NOBODY else LEAKS)


@pytest.mark.parametrize(("name", "attack"), ATTACK_OF_ITS_KIND.items())
def test_a_cheat_is_undone_by_the_attack_of_its_kind(name, attack, results):
    assert results[name].figure("attack_said", attack).value == LEAKS
    assert results[name].figure("attack_level", attack).value > 0.9
    assert results["npo"].figure("attack_level", attack).value < 0.2


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_method_is_not_taken_for_a_cheat(name, results):
    assert why_unranked(results[name]) is None
