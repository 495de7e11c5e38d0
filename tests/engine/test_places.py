"""Places over seeds: paired where methods have the same seeds; shared where the spread explains the difference."""

import pytest

from engine.places import add_places
from engine.result_table import Figure, ModelResult
from engine.seeds import seed_groups
from engine.verdicts import spreads_needed


def row(method, seed, distance, *, flag=0.0):
    figures = {
        ("distance_worst_way", ""): Figure(distance, distance - 0.01, distance + 0.01),
        ("distance_held_out_worst_way", ""): Figure(0.03),
        ("worst_person", ""): Figure(0.5, 0.45),
        ("flag", ""): Figure(flag, why="kept_taught 0.10" if flag else None),
        ("skipped", ""): Figure(0.0),
    }
    return ModelResult(method, seed, figures)


def placed(spreads=(), **methods):
    """Method -> place; `methods`: method -> distance by seed."""
    rows = [row(method, seed, value) for method, of_seed in methods.items() for seed, value in of_seed.items()]
    add_places(seed_groups(rows), dict(spreads), "one seed")
    return {each.method: each.value("place") for each in rows}


def test_how_many_deviations_a_difference_must_exceed():
    # Student's t at .975 over sqrt(n): 12.706 / sqrt(2), 4.303 / sqrt(3), 3.182 / 2 < 2
    assert [round(spreads_needed(count), 2) for count in (2, 3, 4, 9)] == [8.98, 2.48, 2.0, 2.0]


def test_a_difference_that_every_seed_shows_is_seen_though_the_seeds_differ():
    # differences .10, .11, .12: mean .11, deviation .01; the deviations over seeds are .20 and more
    found = placed(npo={0: 0.1, 1: 0.3, 2: 0.5}, idk={0: 0.2, 1: 0.41, 2: 0.62})
    assert found == {"npo": 1, "idk": 2}


def test_the_same_distances_of_other_seeds_are_not_told_apart():
    found = placed(npo={0: 0.1, 1: 0.3, 2: 0.5}, idk={3: 0.2, 4: 0.41, 5: 0.62})
    assert found == {"npo": 1, "idk": 1}


def test_a_difference_below_the_spread_over_seeds_gives_no_place():
    # differences .3, .0, .15: mean .15, deviation .15, of which 2.48 are needed
    found = placed(npo={0: 0.1, 1: 0.3, 2: 0.2}, idk={0: 0.4, 1: 0.3, 2: 0.35})
    assert found == {"npo": 1, "idk": 1}


def test_a_difference_below_the_golds_noise_gives_no_place():
    assert placed(npo={0: 0.1, 1: 0.1, 2: 0.1}, idk={0: 0.125, 1: 0.125, 2: 0.125}) == {"npo": 1, "idk": 1}
    assert placed(npo={0: 0.1, 1: 0.1, 2: 0.1}, idk={0: 0.14, 1: 0.14, 2: 0.14}) == {"npo": 1, "idk": 2}


def test_two_seeds_ask_for_nine_deviations():
    # differences .10 and .14: mean .12, deviation .028, nine of which are .25
    assert placed(npo={0: 0.1, 1: 0.1}, idk={0: 0.2, 1: 0.24}) == {"npo": 1, "idk": 1}
    assert placed(npo={0: 0.1, 1: 0.1}, idk={0: 0.2, 1: 0.21}) == {"npo": 1, "idk": 2}


def test_a_method_of_one_seed_has_a_place_only_by_repeated_runs():
    assert placed(npo={0: 0.1}, idk={0: 0.4}) == {"npo": None, "idk": None}
    assert placed({"npo": 0.01, "idk": 0.01}, npo={0: 0.1}, idk={0: 0.4}) == {"npo": 1, "idk": 2}


def test_a_method_that_collapsed_with_one_seed_has_no_place_and_says_which():
    rows = [row("npo", 0, 0.1), row("npo", 1, 0.1, flag=1.0)]
    add_places(seed_groups(rows), {}, "one seed")
    assert [(each.value("place"), each.figure("place").why) for each in rows] == [
        (None, "seed 1: kept_taught 0.10")
    ] * 2


def test_a_collapsed_method_whose_table_lost_the_reason_has_no_place_still():
    rows = [row("npo", seed, 0.1 + seed / 100, flag=1.0) for seed in range(2)]
    for each in rows:
        each.figures["flag", ""] = Figure(1.0)
    add_places(seed_groups(rows), {}, "one seed")
    assert rows[0].figure("place") == Figure(None, why="seed 0: collapsed")


@pytest.mark.parametrize("lacking", ["worst_person", "distance_held_out_worst_way", "skipped", "the lower end"])
def test_a_row_whose_table_lost_a_column_has_no_place_and_says_why(lacking):
    rows = [row("npo", seed, 0.1 + seed / 100) for seed in range(2)]
    for each in rows:
        if lacking == "the lower end":
            each.figures["worst_person", ""] = Figure(each.value("worst_person"))
        else:
            del each.figures[lacking, ""]
    add_places(seed_groups(rows), {}, "one seed")
    assert rows[0].value("place") is None
    assert rows[0].figure("place").why.startswith("seed 0: its table lacks ")


def test_the_spread_is_that_of_the_seeds_or_of_repeated_runs_whichever_is_more():
    rows = [row("npo", 0, 0.1), row("npo", 1, 0.3)]
    add_places(seed_groups(rows), {"npo": 0.5}, "one seed")
    assert rows[0].value("distance_spread") == 0.5
    add_places(seed_groups(rows), {"npo": 0.1}, "one seed")
    assert rows[0].value("distance_spread") == pytest.approx(0.141421, abs=1e-6)
