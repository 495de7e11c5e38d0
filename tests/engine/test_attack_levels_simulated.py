"""Error rates and power of what is said of a model under twelve attacks, in worlds with noise of many shapes.

The size of the noise is that of tests/engine/test_leaks_simulated.py: .05 of the gap is about what two golds of the
demo differ by from each other in one measure of one person.
"""

import numpy as np
import pytest

from engine.attack_levels import LEAKS, RESISTS, Answers, Attacked, judge, level_of, overall
from forgotten_worlds import MEASURES, SHAPES, drawn

ATTACKS = 12
WORLDS = 200


def attacks(source, shape, *, people=12, add=0.0, **more):
    """One gold more as the judged model under twelve attacks; the first way of asking is the clean one."""
    scope = drawn(source, shape, people=people, ways=ATTACKS + 1, add=add, **more)
    made = []
    for way in range(1, ATTACKS + 1):
        attacked, clean = (Answers(scope.model[:, at], scope.base[:, at], scope.golds[:, :, at]) for at in (way, 0))
        made.append(Attacked(f"words@{way}", scope.people, list(MEASURES), attacked, clean))
    return made


def verdicts(shape, *, count=WORLDS, **more):
    """What is said of each of the worlds' models under each attack."""
    source = np.random.default_rng([len(shape), more.get("people", 12)])
    return [judge(list(map(level_of, attacks(source, shape, **more)))) for _ in range(count)]


def share_said(shape, value, **more):
    """Share of the worlds in which this is said of the model."""
    return np.mean([overall(world).value == value for world in verdicts(shape, **more)])


TAME = [shape for shape in SHAPES if shape != "shift"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", TAME)
def test_a_held_out_gold_resists_every_valid_attack_in_93_percent_of_worlds(shape):
    assert share_said(shape, RESISTS) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("people", [10, 20])
@pytest.mark.parametrize("shape", ["t of 3", "uneven and heavy"])
def test_that_holds_with_fewer_and_more_people(shape, people):
    assert share_said(shape, RESISTS, people=people) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["normal", "lognormal", "uneven and heavy", "shift"])
def test_a_held_out_gold_leaks_in_at_most_5_percent_of_worlds_with_twice_the_noise(shape):
    assert share_said(shape, LEAKS, size=0.1) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["normal", "t of 3", "shift"])
def test_base_leaks_in_every_attack(shape):
    everything = np.ones((12, ATTACKS + 1, len(MEASURES)))
    for world in verdicts(shape, add=everything, count=50):
        assert all(each.value == LEAKS for each in world)


def resisted_with_a_leak(shape, size):
    """Share of the worlds in which a model that leaks .15 in the third attack is said to resist it."""
    leak = np.zeros((12, ATTACKS + 1, len(MEASURES)))
    leak[:, 3] = 0.15
    return np.mean([world[2].value == RESISTS for world in verdicts(shape, add=leak, size=size)])


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["normal", "t of 3", "lognormal", "uneven people", "uneven and heavy"])
def test_a_leak_of_15_hundredths_in_one_attack_is_resistance_in_at_most_5_percent_of_worlds(shape):
    """Where an interval that holds 0 is called resistance, noise is rewarded: that would be half of them here."""
    assert resisted_with_a_leak(shape, 0.2) <= 0.05


@pytest.mark.slow
def test_golds_that_are_elsewhere_as_a_whole_are_known_less_well_from_two():
    """Seven tenths of the noise is one shift of all people: two golds tell little of it, and people nothing."""
    assert share_said("shift", RESISTS) >= 0.9
    assert resisted_with_a_leak("shift", 0.05) <= 0.05
    assert resisted_with_a_leak("shift", 0.2) <= 0.12


@pytest.mark.slow
def test_a_leak_of_a_quarter_in_one_of_twelve_attacks_is_found():
    leak = np.zeros((12, ATTACKS + 1, len(MEASURES)))
    leak[:, 5] = 0.25
    found = verdicts("normal", add=leak)
    assert np.mean([world[4].value == LEAKS for world in found]) >= 0.95


@pytest.mark.slow
def test_one_person_of_twelve_who_is_remembered_is_no_resistance():
    leak = np.zeros((12, ATTACKS + 1, len(MEASURES)))
    leak[0, 5] = 1.0
    assert share_said("normal", RESISTS, add=leak) <= 0.05
