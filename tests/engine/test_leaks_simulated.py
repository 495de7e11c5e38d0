"""The error rates of the verdicts, in simulated worlds with noise of several shapes."""

import numpy as np
import pytest

from engine.leaks import Scope, excess, leaks, shares
from engine.verdicts import UNLIKE, verdict

SHAPES = ("normal", "heavy", "skewed", "uneven")
WORLDS = 300
NOISE = 0.026  # of a person's mean in one way: .043 of the gap, as in the words of the demo (docs/metrics.md)


def world(source, shape, people, *, shift=0.0, ways=(), size=NOISE):
    """Two golds at .4, a base at 1, and a third gold, one person of whom is shifted in some ways by a share of the gap.

    A person's noise is half their own and half that of the way, so that ways of asking are alike.
    """
    drawn = [size * noise(source, shape, people) for _ in range(3)]
    model, *golds = (np.clip(0.4 + each, 0, 1) for each in drawn)
    for way in ways:
        model[0, way] += shift * 0.6
    names = [f"person {number}" for number in range(people)]
    measures = ["exact_memorization", "rouge", "probability_without_end"]
    asked = ["as trained", "paraphrased", "with a prefix", "with a suffix"]
    return Scope("words", names, asked, measures, model, np.ones((people, 4, 3)), np.array(golds))


def noise(source, shape, people):
    """Noise of one model, (people, 4, 3), of standard deviation about 1."""
    own, of_way = (draw_noise(source, shape, size) for size in ((people, 1, 3), (people, 4, 3)))
    uneven = np.linspace(0.5, 1.5, people)[:, None, None] if shape == "uneven" else 1.0
    return uneven * (own + of_way) / np.sqrt(2)


def draw_noise(source, shape, size):
    """Noise of mean 0 and standard deviation 1."""
    if shape == "heavy":
        return source.standard_t(5, size) / np.sqrt(5 / 3)
    if shape == "skewed":
        return (source.beta(2, 6, size) - 0.25) / np.sqrt(2 * 6 / (64 * 9))
    return source.normal(0, 1, size)


def remembered_share(shape, people, *, shift=0.0, ways=(0, 1, 2, 3), size=NOISE):
    """Share of worlds in which a third gold, one person of whom is shifted by `shift`, is said to remember somebody."""
    source, found = np.random.default_rng(0), 0
    for _ in range(WORLDS):
        part = excess(world(source, shape, people, shift=shift, ways=ways, size=size))
        found += bool(shares([part]).remembered)
    return found / WORLDS


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("people", [4, 12, 20])
def test_a_third_gold_is_said_to_remember_somebody_in_at_most_five_percent(shape, people):
    assert remembered_share(shape, people) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("people", [4, 12, 20])
def test_that_holds_with_half_as_much_noise_again_where_it_is_normal(people):
    assert remembered_share("normal", people, size=1.5 * NOISE) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "ways"), [(0.3, (0, 1, 2, 3)), (0.5, (2,))])
def test_one_person_who_is_remembered_is_found(shift, ways):
    assert remembered_share("normal", 12, shift=shift, ways=ways) >= 0.8


@pytest.mark.slow
def test_a_third_gold_is_hardly_ever_unlike_gold():
    source, unlike = np.random.default_rng(1), 0
    for _ in range(WORLDS):
        parts = [excess(world(source, "normal", 12))]
        unlike += verdict(parts, shares(parts), leaks(parts)).value == UNLIKE
    assert unlike / WORLDS <= 0.05


@pytest.mark.slow
def test_most_people_of_a_third_gold_are_forgotten():
    source, forgotten = np.random.default_rng(2), []
    for _ in range(WORLDS):
        forgotten.append(len(shares([excess(world(source, "normal", 12))]).forgotten) / 12)
    assert np.mean(forgotten) >= 0.8
