"""Attacked face networks against gold's: what hides is found, a gold that is held out is not, old attacks say why."""

import functools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.result_table import ModelResult
from report import face_networks
from report.face_networks import (
    FORMER,
    LEAST_NETWORKS,
    PLACES,
    Networks,
    add_network_figures,
    golds_against_golds,
    identification_level,
    klom_figures,
    network_figures,
    read_networks,
    said_of_level,
    sides_as_met,
)
from settings.script import SettingsError

PAIRS, PEOPLE, PICTURES = 32, 12, 4  # of each pool
POOLS = np.repeat(["forget", "retain"], PEOPLE * PICTURES)
NAMES = np.repeat([f"p{number:02d}" for number in range(2 * PEOPLE)], PICTURES)


def whom_networks_met():
    """Bool (M, Q): the networks of a pair met opposite halves of each pool, drawn anew for every pair."""
    source, met = np.random.default_rng(5), []
    for _ in range(PAIRS):
        half = np.concatenate([source.permutation(PEOPLE) < PEOPLE // 2 for _ in range(2)])
        met += [np.repeat(half, PICTURES), np.repeat(~half, PICTURES)]
    return np.array(met)


MET = whom_networks_met()


def networks(gap, seed, *, kept=3.0):
    """Networks whose margins are `gap` higher where they learned a person to be forgotten, `kept` for one to be kept.

    A query is identified where its margin is above 1.
    """
    source = np.random.default_rng(seed)
    hardness = np.random.default_rng(9).normal(0, 1, len(NAMES))  # of each picture, in every network
    raised = np.where(POOLS == "forget", gap, kept) * MET
    margins = hardness + raised + source.normal(0, 1, MET.shape)
    return Networks(NAMES, tuple(map(str, range(len(NAMES)))), POOLS, MET, margins > 1, margins, 8)


BASE, GOLD = networks(3.0, 1), networks(0.0, 2)


@functools.cache
def of_golds():
    return golds_against_golds(GOLD)


def figures_of(own):
    return network_figures(own, BASE, GOLD)


# ---- what hides is found


def test_a_network_that_hides_its_answers_and_keeps_its_embeddings_stands_where_base_does():
    found = figures_of(BASE)  # see test_zeroing_the_heads_rows_of_the_forgotten_changes_no_identification
    assert found["identification_level", "forget"].value == 1
    assert found["identification_level", "forget"].low > 0
    assert found["identification_level", "forget"].why == "leaks"
    assert found["klom_95", "forget"].low > of_golds()["klom_95_golds", "forget"].high
    assert found["epsilon", "forget"].low > of_golds()["epsilon_golds", "forget"].high
    assert found["epsilon_worst", "forget"].value > of_golds()["epsilon_worst_golds", "forget"].high


def test_a_gold_that_is_held_out_is_like_gold_in_everything():
    found = figures_of(networks(0.0, 3))
    level = found["identification_level", "forget"]
    assert level.low < 0 < level.high
    assert level.why in ("resists", "not resolved")
    for group in ("forget", "retain", "holdout"):
        for key in ("klom", "klom_95"):
            expected = of_golds()[f"{key}_golds", group]
            assert found[key, group].value == pytest.approx(expected.value, rel=0.25)
    assert found["epsilon_worst", "forget"].value == 0
    assert found["epsilon", "forget"].value < 0.05


def test_gold_against_gold_is_near_what_golds_differ_by_at_this_number_of_networks():
    found = figures_of(GOLD)
    level = found["identification_level", "forget"]
    assert level[:3] == (0, None, None)
    assert re.fullmatch(r"the other half of gold's networks has -?0\.\d\d", level.why)
    for group in ("forget", "retain", "holdout"):
        low, high = (of_golds()["klom_golds", group][place] for place in (1, 2))
        assert low - 0.1 * (high - low) <= found["klom", group].value <= high + 0.1 * (high - low)
    assert of_golds()["klom_golds", "forget"].low < of_golds()["klom_golds", "forget"].value
    assert of_golds()["epsilon_worst_golds", "forget"].value < 0.1


def test_a_person_who_is_always_identified_is_no_resistance_where_the_others_never_are():
    """The level is far below gold's, and its interval below .1: eleven people would pay for the twelfth."""
    identified = GOLD.identified & ~(MET & (POOLS == "forget"))
    nobody = identification_level(replace(GOLD, identified=identified), BASE, GOLD)
    one = identification_level(replace(GOLD, identified=identified | (MET & (NAMES == "p11"))), BASE, GOLD)
    assert nobody.why == "resists"
    assert one.value < 0
    assert one.high < 0.1
    assert one.why == "not resolved: less than gold of some people makes up for no others"


def test_a_person_who_was_skipped_is_named_with_the_largest_epsilon_that_can_be_shown():
    margins = networks(0.0, 3).margin.copy()
    skipped = np.flatnonzero(NAMES == "p07")
    margins[:, skipped] += 6 * MET[:, skipped]
    worst = figures_of(replace(GOLD, margin=margins))["epsilon_worst", "forget"]
    # no error of 32 and 32, for twelve people at once: a rate of up to 1 - (.05 / 24)^(1/32) = .175
    most = 1 - (0.05 / 24) ** (1 / 32)
    assert worst.value == pytest.approx(np.log((1 - 1e-5 - most) / most))
    assert worst.why == f"p07; no more than {worst.value:.2f} can be shown with 32 networks on each side"


def test_forgetting_too_much_has_a_level_below_zero_and_is_seen_by_klom_and_epsilon():
    found = figures_of(networks(-3.0, 4))
    assert found["identification_level", "forget"].value < 0
    assert found["klom", "forget"].low > of_golds()["klom_golds", "forget"].high
    assert found["epsilon", "forget"].value > 0.5


# ---- the level of identification


def test_the_level_is_the_share_of_the_way_from_gold_to_base_by_hand():
    source = np.random.default_rng(0)
    rates = {"base": 1.0, "own": 0.7, "gold": 0.5}
    each = {}
    for name, rate in rates.items():
        hits = np.zeros(MET.shape, dtype=bool)
        asked = np.flatnonzero(MET.ravel() & np.tile(POOLS == "forget", len(MET)))
        hits.ravel()[source.permutation(asked)[: round(rate * len(asked))]] = True
        others = np.flatnonzero(~MET.ravel() & np.tile(POOLS == "forget", len(MET)))
        hits.ravel()[others[::2]] = True  # one half of gold's other networks identify: as many as of those asked
        each[name] = replace(GOLD, identified=hits)
    level = identification_level(each["own"], each["base"], each["gold"])
    assert level.value == pytest.approx((0.7 - 0.5) / (1.0 - 0.5), abs=0.01)
    assert level.low < level.value < level.high
    assert level.why == "leaks"


def test_the_level_is_undefined_where_golds_halves_differ_by_a_third_of_the_gap():
    level = identification_level(GOLD, replace(GOLD, identified=networks(0.05, 2).identified), GOLD)
    assert level.value is None
    assert "less than 3 times the golds' own" in level.why


def test_a_network_that_tells_all_faces_apart_better_is_not_said_to_leak():
    better = replace(GOLD, identified=GOLD.margin > 0.3)  # of people never met as well
    level = identification_level(better, BASE, GOLD)
    assert level.low > 0.1
    assert level.why == "not resolved: not clearly more than people never met"


def test_where_gold_is_identified_more_often_than_base_the_attack_tells_nothing():
    level = identification_level(GOLD, GOLD, BASE)
    assert level[:3] == (None, None, None)
    assert level.why == "base is identified no more often than gold, so that the attack tells nothing"


def test_a_broken_network_that_identifies_nobody_resists_nothing():
    nobody = replace(GOLD, identified=np.zeros_like(GOLD.identified))
    assert identification_level(nobody, BASE, GOLD).why == "not resolved: kept people are hardly identified"


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [(0.3, 0.1, 0.5, "leaks"), (0.3, -0.1, 0.5, "not resolved"), (0.02, -0.05, 0.09, "resists"),
     (0.05, 0.02, 0.12, "not resolved"), (0.08, 0.06, 0.1, "not resolved")],
)  # fmt: skip
def test_what_an_interval_of_a_level_says(value, low, high, said):
    assert said_of_level(value, low, high, keeps=True) == said


# ---- who is compared


def test_no_number_stands_on_both_sides_and_nobody_on_golds_side_was_taught_the_forgotten():
    sides = sides_as_met(GOLD)
    ((judged, golds),) = sides.of("forget")
    assert np.array_equal(judged, MET)
    assert np.array_equal(golds, ~MET)
    assert (judged.sum(0) == PAIRS).all()
    for judged, golds in sides.of("retain"):
        assert MET[judged].all()
        assert MET[golds].all()
        pairs_of = [side.reshape(PAIRS, 2, -1).any(1) for side in (judged, golds)]
        assert not (pairs_of[0] & pairs_of[1]).any()


def test_klom_is_of_the_networks_and_pictures_that_the_group_names():
    margins = GOLD.margin.copy()
    margins[MET & (POOLS == "retain")] += 8
    moved = {
        group: klom_figures(replace(GOLD, margin=margins), GOLD, group) for group in ("forget", "retain", "holdout")
    }
    still = {group: klom_figures(GOLD, GOLD, group) for group in moved}
    assert moved["retain"]["klom", "retain"].value > 5
    for group in ("forget", "holdout"):
        assert moved[group] == still[group]


def test_too_few_networks_have_no_figure_and_say_how_many_are_needed():
    few = replace(GOLD, met=MET[:12], margin=GOLD.margin[:12], identified=GOLD.identified[:12])
    found = network_figures(few, few, few) | golds_against_golds(few)
    for key in ("klom", "klom_95", "epsilon", "epsilon_worst"):
        assert found[key, "forget"].value is None
        assert found[key, "forget"].why == f"6 networks on a side, and {LEAST_NETWORKS} are needed"
    assert found["klom_95_golds", "retain"].value is None


# ---- what is read


@pytest.fixture
def few_draws(monkeypatch):
    """Intervals of few draws, in tests that do not look at them."""
    monkeypatch.setattr(face_networks, "LEVEL_DRAWS", 20)
    monkeypatch.setattr(face_networks, "GOLD_DRAWS", 2)


def write_attack(model, own, *, leave_out=()):
    """Write the networks as an attack does; returns the model's result."""
    folder = model / "attack_results"
    folder.mkdir(parents=True)
    similarity = np.where(own.identified, 1.0, 0.0)
    arrays = {"similarity": similarity, "nearest_other": similarity, "nearest_stranger": 1 - similarity}
    arrays |= {"margin": own.margin, "met": own.met.astype(np.uint8)}
    save_file(
        {name: array for name, array in arrays.items() if name not in leave_out}, folder / "similarities.safetensors"
    )
    queries = {"people": own.people.tolist(), "files": list(own.files), "pools": own.pools.tolist()}
    (folder / "queries.json").write_text(json.dumps({k: v for k, v in queries.items() if k not in leave_out}))
    (folder / "attack.json").write_text(json.dumps({"pools": {}, "targets": own.targets}))
    return result_of(model)


def result_of(model):
    return ModelResult(model.name, 0, {}, log=model / "eval_results" / "eval_log_aggregated.json")


def test_written_networks_are_read_again_and_every_place_has_its_figure(tmp_path, few_draws):
    own = networks(1.0, 7)
    results = {"base": BASE, "gold": GOLD, "x": own}
    results = {name: write_attack(tmp_path / name, each) for name, each in results.items()}
    add_network_figures(results)
    expected = network_figures(own, BASE, GOLD) | golds_against_golds(GOLD)
    assert results["x"].figures == expected
    assert set(expected) == set(PLACES)


def test_an_attack_of_a_former_version_says_why_it_has_no_figure(tmp_path, few_draws):
    results = {"base": write_attack(tmp_path / "base", BASE), "gold": write_attack(tmp_path / "gold", GOLD)}
    left_out = ("nearest_stranger", "margin", "met", "pools")
    results["x"] = write_attack(tmp_path / "x", BASE, leave_out=left_out)
    add_network_figures(results)
    assert {figure[:] for figure in results["x"].figures.values()} == {(None, None, None, FORMER)}
    assert set(results["x"].figures) == set(PLACES)
    assert results["base"].value("klom", "forget") is not None


def test_without_an_attack_on_gold_the_others_say_so_and_who_was_not_attacked_says_nothing(tmp_path):
    results = {"base": write_attack(tmp_path / "base", BASE), "gold": result_of(tmp_path / "gold")}
    add_network_figures(results)
    assert results["base"].figure("klom", "forget").why == "gold was not attacked"
    assert results["gold"].figures == {}


def test_attacks_of_other_networks_people_or_pictures_are_not_compared(tmp_path, few_draws):
    results = {"base": write_attack(tmp_path / "base", BASE), "gold": write_attack(tmp_path / "gold", GOLD)}
    other = {"met": replace(BASE, met=~MET), "files": replace(BASE, files=BASE.files[::-1])}
    other["people"] = replace(BASE, people=BASE.people[::-1])
    results |= {name: write_attack(tmp_path / name, each) for name, each in other.items()}
    add_network_figures(results)
    for name in other:
        assert results[name].figure("klom", "forget").why.endswith("attacked with other networks, people or pictures")
    assert results["base"].value("klom", "forget") is not None


@pytest.mark.parametrize("broken", ["similarities.safetensors", "queries.json", "shape", "targets", "list"])
def test_files_of_an_attack_that_do_not_belong_together_are_named_in_one_line(broken, tmp_path):
    write_attack(tmp_path / "x", BASE)
    folder = tmp_path / "x" / "attack_results"
    if broken == "shape":
        queries = json.loads((folder / "queries.json").read_text())
        queries["files"].pop()
        (folder / "queries.json").write_text(json.dumps(queries))
    elif broken == "targets":
        (folder / "attack.json").write_text('{"pools": {}}')
    elif broken == "list":
        (folder / "queries.json").write_text("[]")
    else:
        (folder / broken).write_bytes(b"broken")
    with pytest.raises(SettingsError, match=r"attack the model anew|is not JSON"):
        read_networks(tmp_path / "x")
