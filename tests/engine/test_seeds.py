"""Several seeds of a method as one line: means, standard deviations, and which rows belong together."""

import json

import pytest

from engine.evaluated import Origin
from engine.measures import MEASURES
from engine.result_table import Column, Figure, ModelResult
from engine.seeds import cell_text, parted_notes, seed_groups, shown
from report.words import p_text

DISTANCE = Column(MEASURES["distance_people"], "", "distance")
VERDICT = Column(MEASURES["verdict"], "", "verdict")


def origin(base="b", began="b", log="l", taught="t", **settings):
    text = json.dumps({"lr": 1, **settings}, sort_keys=True)
    told = {"taught": taught, "base": base, "golds": "g", "start": "s", "data": "d", "measures": "m"}
    return Origin(settings=text, began_with=began, log=log, **told)


def row(method="npo", seed=0, distance=None, *, verdict=None, by="", made=None):
    figures = {("distance_people", ""): Figure(distance), ("verdict", ""): Figure(verdict)}
    return ModelResult(method, seed, figures, {"Submitted By": by}, made)


def labels(*rows):
    return [(group.label, len(group)) for group in seed_groups(rows)]


def test_mean_and_standard_deviation_are_over_the_seeds_of_which_the_figure_is_known():
    (group,) = seed_groups([row(seed=0, distance=0.1), row(seed=1, distance=0.3), row(seed=2)])
    # mean (.1 + .3) / 2; deviation sqrt((.1^2 + .1^2) / 1)
    distance, kept = group.figure("distance_people"), group.figure("kept_real")
    assert (distance.mean, distance.deviation) == (pytest.approx(0.2), pytest.approx(0.141421, abs=1e-6))
    assert len(distance.values) == 2
    assert (kept.mean, kept.deviation, kept.values) == (None, None, ())


def test_a_cell_shows_mean_and_deviation_and_of_how_many_seeds_where_one_lacks_the_figure():
    def cell(*distances):
        (group,) = seed_groups([row(seed=seed, distance=distance) for seed, distance in enumerate(distances)])
        return cell_text(DISTANCE, group)

    assert cell(0.1, 0.3) == "0.20 ± 0.14"
    assert cell(0.1, 0.3, None) == "0.20 ± 0.14 (2 of 3)"
    assert cell(0.1, None) == "0.10 (1 of 2)"
    assert cell(0.1) == "0.10"
    assert cell(0.2, 0.2) == "0.20 ± 0.00"
    assert cell(None, None) == "–"


def test_of_verdicts_a_cell_counts_the_seeds():
    def cell(*verdicts):
        (group,) = seed_groups([row(seed=seed, verdict=verdict) for seed, verdict in enumerate(verdicts)])
        return cell_text(VERDICT, group)

    assert cell(1.0, 1.0) == "like gold"
    assert cell(1.0, 0.0, 1.0) == "2 × like gold, 1 × unlike gold"
    assert cell(1.0, None, 1.0) == "like gold (2 of 3)"


def test_of_p_values_a_cell_has_the_smallest_and_the_largest_and_no_mean():
    column = Column(MEASURES["forget_quality"], "eval_log_forget", "p")
    rows = []
    for seed, p in enumerate((0.58, 0.0001, 0.2)):
        rows.append(ModelResult("npo", seed, {("forget_quality", "eval_log_forget"): Figure(p)}))
    (group,) = seed_groups(rows)
    assert cell_text(column, group) == "1.0e-04 to 5.8e-01"
    assert shown(group, column, p_text).text == "< .001 to .58"
    figure = group.figure("forget_quality", "eval_log_forget")
    assert (figure.mean, figure.deviation) == (None, None)
    (alone,) = seed_groups(rows[:1])
    assert alone.mean("forget_quality", "eval_log_forget") == 0.58


def test_rows_of_a_benchmark_belong_together_by_name():
    assert labels(row(seed=0), row("idk", seed=0), row(seed=1)) == [("npo", 2), ("idk", 1)]


def test_own_rows_belong_together_by_settings_and_a_label_names_the_setting_that_differs():
    rows = [row(seed=0, made=origin(beta=1)), row(seed=1, made=origin(beta=1)), row(seed=0, made=origin(beta=2))]
    assert labels(*rows) == [("npo (beta=1)", 2), ("npo (beta=2)", 1)]


def test_what_was_measured_against_another_base_is_another_line():
    rows = [row(seed=0, made=origin()), row(seed=1, made=origin(base="c", began="c"))]
    assert labels(*rows) == [("npo [seeds 0]", 1), ("npo [seeds 1]", 1)]


def test_seeds_whose_bases_were_taught_otherwise_are_two_lines():
    rows = [row(seed=0, made=origin(began="x")), row(seed=1, made=origin(began="y"))]
    assert labels(*rows) == [("npo", 2)]  # bases of two seeds, taught alike
    rows[1].origin = origin(began="y", taught="faster")
    assert [count for _, count in labels(*rows)] == [1, 1]


def test_a_row_more_leaves_several_seeds_together_and_that_is_said():
    rows = [row(seed=seed, made=origin(began=f"b{seed}")) for seed in range(3)]
    more = row(seed=0, made=origin(began="b1"))
    assert sorted(count for _, count in labels(*rows, more)) == [1, 3]
    (note,) = parted_notes(seed_groups([*rows, more]))
    assert note.startswith("one seed was made from several models, so that these are lines of their own: npo")
    assert parted_notes(seed_groups(rows)) == []


def test_seeds_from_each_of_two_models_are_a_line_for_each_model():
    rows = [row(seed=seed, made=origin(began=began)) for began, seed in (("x", 0), ("y", 0), ("y", 1), ("x", 1))]
    one, other = seed_groups(rows)
    assert {each.origin.began_with for each in one.results} == {"x"}
    assert {each.origin.began_with for each in other.results} == {"y"}


def test_rows_that_differ_in_what_they_were_measured_against_alone_have_labels_of_their_own():
    rows = [row(seed=0, made=origin()), row(seed=0, made=origin(base="c"))]
    assert len({label for label, _ in labels(*rows)}) == 2


def test_one_seed_from_two_models_is_two_lines():
    rows = [row(seed=0, made=origin(began="x")), row(seed=0, made=origin(began="y"))]
    assert labels(*rows) == [("npo [from x]", 1), ("npo [from y]", 1)]


def test_rows_of_two_submitters_are_two_lines():
    rows = [row(seed=0, by="ann", made=origin()), row(seed=1, by="bob", made=origin())]
    assert labels(*rows) == [("npo [by ann]", 1), ("npo [by bob]", 1)]


def test_a_row_whose_records_say_nothing_stands_alone():
    unknown = [Origin("", "", log, "t", "b", "g", "s", "d", "m") for log in ("1", "2")]
    rows = [row(seed=None, made=made) for made in unknown]
    assert [count for _, count in labels(*rows)] == [1, 1]
    assert len({label for label, _ in labels(*rows)}) == 2
