"""The page's words: p-values, seeds as one row, the order of rows, bars past 1, and the verdict in sentences."""

import pytest

from engine.measures import MEASURES
from engine.places import add_places
from engine.result_table import Column, Figure, ModelResult
from engine.seeds import seed_groups, shown
from report.method_notes import METHODS, loss_docstrings, method_note, method_notes
from report.method_rows import method_rows
from report.page_table import badges, column_groups, page_table, render_cell
from report.verdict_words import kind_of_model, outcome, what_was_done
from report.words import in_words, p_text, task_names
from settings.results import Aggregate
from settings.script import compose

SCORING = compose("aggregate_eval_stat", Aggregate, ["scoring=mm"]).scoring
NAMES = task_names(SCORING)


def method(name, distance, *, seed=0, held_out=0.05, flag=0.0, **more):
    """A model with what the verdict in words rests on."""
    figures = {
        "distance_worst_way": Figure(distance, distance - 0.1, distance + 0.1, "eval_log_forget, as trained"),
        "distance_held_out_worst_way": Figure(held_out),
        "flag": Figure(flag, why="kept_taught 0.10"),
        "skipped": Figure(0.0),
        "verdict": Figure(0.0, why="remembers 2 of 12 people, Ada 0.92 (eval_log_forget, as trained)"),
        **{key: Figure(value) for key, value in more.items()},
    }
    return ModelResult(name, seed, {(key, ""): figure for key, figure in figures.items()})


def words_of(*results):
    """What the page says of these models."""
    said = outcome(method_rows(list(results)), NAMES)
    return " ".join([said.headline, *said.sentences])


def column(key, task=""):
    return Column(MEASURES[key], task, key)


# ---- words


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (1.0, "1.00"),
        (0.996, "1.00"),
        (0.58, ".58"),
        (0.0449, ".04"),
        (0.0042, ".004"),
        (0.0009, "< .001"),
        (0, "< .001"),
    ],
)
def test_a_p_value_is_said_as_a_reader_reads_it(p, text):
    assert p_text(p) == text


def test_tasks_and_measures_in_a_sentence_have_their_human_names():
    text = "Ada 0.92 (eval_log_forget, as trained); kept_taught 0.10; my_eval_log_forget"
    assert in_words(text, NAMES) == "Ada 0.92 (captions, as trained); Kept, taught 0.10; my_eval_log_forget"


@pytest.mark.parametrize("track", ["mm", "nlp", "cv"])
def test_every_task_of_the_suite_has_a_human_name_of_its_own(track):
    names = task_names(compose("aggregate_eval_stat", Aggregate, [f"scoring={track}"]).scoring)
    assert [task for task, name in names.items() if "_" in name] == []
    assert len(set(names.values())) == len(names)


# ---- seeds


def test_several_seeds_are_one_row_with_mean_and_standard_deviation():
    (row,) = method_rows([method("npo", 0.2, seed=0), method("npo", 0.4, seed=1)])
    said = shown(row, column("distance_worst_way"))
    assert (said.text, said.spread) == ("0.30", "0.14")  # mean .3; sqrt(((.1)^2 + (.1)^2) / 1) = .141


def test_a_seed_without_a_value_is_counted():
    failed = ModelResult("npo", 1, {("failed", ""): Figure(1.0, why="nan")})
    (row,) = method_rows([method("npo", 0.2), failed])
    said = shown(row, column("distance_worst_way"))
    assert (said.text, said.spread, said.known) == ("0.20", "", 1)
    cell = render_cell(row, column("distance_worst_way"), 1.0, NAMES)
    assert (cell["text"], cell["spread"], cell["count"]) == ("0.20", "", "n = 1")
    assert badges(row) == ["failed"]


def test_verdicts_of_seeds_that_differ_are_counted_and_p_values_are_a_range():
    first = ModelResult("npo", 0, {("verdict", ""): Figure(1.0), ("forget_quality", "a"): Figure(0.58)})
    second = ModelResult("npo", 1, {("verdict", ""): Figure(0.0), ("forget_quality", "a"): Figure(0.0001)})
    (row,) = method_rows([first, second])
    assert shown(row, column("verdict")).text == "1 × like gold, 1 × unlike gold"
    assert render_cell(row, column("forget_quality", "a"), 1.0, NAMES)["text"] == "< .001 to .58"


# ---- the table


def test_rows_stand_by_verdict_then_by_distance_and_what_does_not_count_is_last():
    models = [
        ModelResult("broken", 0, {("failed", ""): Figure(1.0)}),
        method("lost", 0.01, flag=1.0),
        method("far", 0.9),
        method("near", 0.2),
        method("like", 0.95, verdict=1.0),
        *(method(name, 0.0) for name in ("start", "base", "gold")),
    ]
    order = [row.label for row in method_rows(models)]
    assert order == ["gold", "base", "start", "like", "near", "far", "lost", "broken"]


def test_a_bar_past_one_goes_past_the_line_and_one_past_the_end_is_cut_off():
    results = [method("a", 0.5, worst_person=1.5), method("b", 0.5, worst_person=9.0)]
    rows = method_rows(results)
    bars = {}
    for row in rows:
        bars[row.label] = render_cell(row, column("worst_person"), 2.0, NAMES)["bar"]
    assert (bars["a"]["share"], bars["a"]["past"], bars["a"]["cut"]) == (50.0, 25.0, False)  # 1 of 2, then .5 of 2
    assert (bars["b"]["share"], bars["b"]["past"], bars["b"]["cut"]) == (50.0, 50.0, True)
    assert page_table(rows, column_groups(rows, [], SCORING), NAMES)["one_at"] == 50.0


def test_privacy_and_p_values_have_columns_of_their_own():
    figures = {"membership_auc:loss": "eval_forget_qa", "forget_quality": "eval_log_forget"}
    result = ModelResult("npo", 0, {place: Figure(0.5) for place in figures.items()})
    groups = column_groups(method_rows([result]), [], SCORING)
    assert [group.title for group in groups] == ["Attacks on privacy", "Told from gold, p"]


def test_a_table_without_a_verdict_has_the_distance_over_all_measures():
    figures = {"verdict": Figure(None, why="one gold only"), "distance_to_gold": Figure(0.4)}
    result = ModelResult("npo", 0, {(key, ""): figure for key, figure in figures.items()})
    (near,) = column_groups(method_rows([result]), [], SCORING)
    assert [column.measure.key for column in near.columns] == ["verdict", "distance_to_gold"]


# ---- the verdict in words


def test_the_nearest_is_named_with_its_lead_and_its_noise():
    said = words_of(method("npo", 0.2), method("idk", 0.5), method("ga", 0.1, flag=1.0))
    assert "Of 2 methods that kept what they should, npo is nearest to gold: 0.20 of the way" in said
    assert "(captions, as trained), 95 % interval 0.10 to 0.30" in said
    assert "Next is idk at 0.50, 0.30 farther, and two golds differ by 0.05" in said
    assert "one seed and no repeated run" in said
    assert "Not counted: ga (collapsed)." in said


def test_a_lead_within_what_golds_differ_by_is_none():
    said = words_of(method("npo", 0.2), method("idk", 0.24))
    assert "Two golds differ by 0.05: these two methods cannot be told apart." in said


@pytest.mark.parametrize(
    ("second", "said"),
    [
        # leads of .3 and .32: their deviation .01414 times 12.706 / sqrt(2), Student's t of two seeds
        ((0.5, 0.62), "The lead is more than the 0.13 that 2 seeds ask for: it holds."),
        # leads of .3 and .4: twice the deviation would be .14
        ((0.5, 0.7), "The lead is no more than the 0.64 that 2 seeds ask for: it may be chance."),
        # leads of .5, .51 and .49: .01 times 4.303 / sqrt(3)
        ((0.7, 0.81, 0.84), "The lead is more than the 0.02 that 3 seeds ask for: it holds."),
    ],
)
def test_a_lead_over_seeds_is_compared_with_its_own_spread(second, said):
    count = len(second)
    npo = [method("npo", value, seed=seed) for seed, value in enumerate((0.2, 0.3, 0.35)[:count])]
    idk = [method("idk", value, seed=seed) for seed, value in enumerate(second)]
    assert said in words_of(*npo, *idk)


def test_a_lead_over_seeds_that_one_person_pays_for_does_not_hold():
    models = [method("npo", 0.1 + seed / 100, seed=seed) for seed in range(3)]
    models += [method("idk", 0.6 + seed / 100, seed=seed) for seed in range(3)]
    for model, leak in zip(models, (0.9, 0.9, 0.9, 0.1, 0.1, 0.1), strict=True):
        model.figures |= {("worst_person", ""): Figure(leak, leak - 0.1), ("distance_spread", ""): Figure(0.01)}
    assert "but intervals meet, or one person pays for it: it may be chance" in words_of(*models)
    for model in models[:3]:
        model.figures["worst_person", ""] = Figure(0.1, 0.0)
    assert "it holds" in words_of(*models)


def with_places(rows):
    """Places as the tables have them, of models that give one person away as much."""
    for each in rows:
        each.figures |= {("worst_person", ""): Figure(0.1, 0.0)}
    add_places(seed_groups(rows), {}, "one seed")
    return rows


def test_the_nearest_has_the_first_place_though_methods_have_other_seeds():
    one = [method("one", value, seed=seed) for seed, value in enumerate((0.10, 0.12, 0.50, 0.50))]
    two = [method("two", value, seed=seed) for seed, value in ((2, 0.34), (3, 0.36))]
    for each in (*one, *two):
        value = each.value("distance_worst_way")
        each.figures["distance_worst_way", ""] = Figure(value, value - 0.01, value + 0.01, "x")
    rows = with_places([*one, *two])
    assert {each.method: each.value("place") for each in rows} == {"one": 2, "two": 1}
    said = words_of(*rows)
    assert "two is nearest to gold: 0.35" in said  # though the mean of `one` over its own seeds is .305
    assert "over the seeds 2 and 3 that both have 0.15 farther" in said  # .5 - .35
    assert "it holds" in said


def test_a_method_without_a_place_is_not_the_nearest_for_that():
    """One seed without repeated runs gives no place."""
    near = [method("near", 0.1 + seed / 100, seed=seed) for seed in range(2)]
    rows = with_places([*near, method("far", 0.9)])
    assert {each.method: each.value("place") for each in rows} == {"near": 1, "far": None}
    assert "near is nearest to gold" in words_of(*rows)


def test_figures_of_methods_with_other_seeds_are_said_to_be_of_each():
    rows = [method("one", 0.1, seed=0), method("one", 0.2, seed=1), method("two", 0.2, seed=2)]
    said = " ".join(what_was_done(method_rows(rows), {"model": {}, "data": {}}, ["Ada"]))
    assert "means over the seeds of each method, with" in said


def test_what_golds_differ_by_is_the_mean_over_seeds_as_for_the_places():
    floors = (0.02, 0.02, 0.20, 0.02)
    rows = [method("one", 0.2 + s / 100, seed=s, held_out=floor) for s, floor in enumerate(floors)]
    rows += [method("two", 0.5 + s / 100, seed=s, held_out=floor) for s, floor in enumerate(floors)]
    rows = with_places(rows)
    said = words_of(*rows)
    assert "two golds differ by 0.07" in said  # (.02 + .02 + .2 + .02) / 4, rounded
    assert {each.method: each.value("place") for each in rows} == {"one": 1, "two": 2}
    assert "it holds" in said


def test_a_method_of_which_a_seed_failed_is_not_the_nearest():
    failed = ModelResult("npo", 1, {("failed", ""): Figure(1.0, why="diverged")})
    said = words_of(method("npo", 0.1), failed, method("idk", 0.5), method("idk", 0.5, seed=1))
    assert said.startswith("idk alone kept what it should have kept")
    assert "Not counted: npo (1 seed failed)." in said


def test_a_method_whose_distance_is_unknown_with_one_seed_is_not_the_nearest():
    blind = method("npo", 0.1, seed=1)
    blind.figures["distance_worst_way", ""] = Figure(None)
    said = words_of(method("npo", 0.1), blind, method("idk", 0.5), method("idk", 0.5, seed=1))
    assert said.startswith("idk alone kept what it should have kept")
    assert "Not counted: npo (its distance is not known)." in said


@pytest.mark.parametrize(("spread", "said"), [(0.01, "beyond repeated runs too"), (0.2, "may order them otherwise")])
def test_a_lead_of_one_seed_is_compared_with_repeated_runs(spread, said):
    leak = {("worst_person", ""): Figure(0.1, 0.0), ("distance_spread", ""): Figure(spread)}
    models = [method("npo", 0.1), method("idk", 0.45)]
    for model in models:
        model.figures |= leak
    assert said in words_of(*models)


def test_without_a_verdict_the_page_says_why_and_orders_by_the_mean_of_all_measures():
    why = Figure(None, why="one gold only")
    models = []
    for name, distance in (("npo", 0.2), ("idk", 0.5)):
        figures = {"distance_to_gold": Figure(distance), "flag": Figure(0.0), "verdict": why}
        models.append(ModelResult(name, 0, {(key, ""): figure for key, figure in figures.items()}))
    said = words_of(*models)
    assert "npo is nearest to gold: 0.20" in said
    assert "how far two golds differ is not known" in said
    assert "Whether it is like gold is not known: one gold only." in said


def test_a_page_without_a_method_that_counts_calls_none_the_nearest():
    assert words_of(method("ga", 0.1, flag=1.0)).startswith("No method can be called the nearest to gold.")
    assert words_of(method("base", 1.0)).startswith("No method was run")


def test_where_the_gate_failed_no_method_is_called_the_nearest():
    said = words_of(method("base", 1.0, gate=0.0), method("npo", 0.2))
    assert said.startswith("The memorisation gate failed")
    assert "nearest" not in said
    assert "nearest" in words_of(method("base", 1.0, gate=1.0), method("npo", 0.2), method("idk", 0.6))


def test_what_was_done_is_said_with_model_data_and_people():
    settings = {"model": {"name": "tiny-llava"}, "data": {"name": "mini_clear"}, "tasks": {"a": {"image": "image"}}}
    rows = method_rows([method("base", 1.0), *(method("npo", 0.2, seed=seed, golds=2.0) for seed in (0, 1))])
    said = " ".join(what_was_done(rows, settings, ["Ada", "Bo"]))
    assert "a vision-language model (tiny-llava) that learned everybody in mini_clear" in said
    assert "forget 2 people by 1 method," in said
    assert "has 2 golds" in said
    assert "means over the seeds 0 and 1" in said


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({}, "a face network"), ({"tasks": {"a": {"image": ""}}}, "a language model")],
)
def test_what_was_evaluated_is_known_by_its_tasks(settings, kind):
    assert kind_of_model(settings) == kind


# ---- methods


@pytest.mark.parametrize("file", sorted(METHODS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_method_has_a_line_a_formula_and_a_link(file):
    note = method_note(file.stem, loss_docstrings())
    assert note["line"].endswith(".")
    assert "http" not in note["line"]
    assert note["formula"]
    assert note["link"].startswith("https://")


def test_a_row_shows_the_method_and_the_values_that_its_training_recorded():
    long, gone, theirs = method_notes(
        ["npo_long", "mine", "theirs"],
        {"npo_long": {"name": "npo", "args": {"beta": 0.5}}, "mine": {"name": "gone", "args": {}}},
    )
    assert (long["method"], long["settings"]) == ("npo", "beta 0.5")
    assert long["line"].startswith("Negative preference optimization")
    assert (gone["line"], theirs["line"]) == ("", "")
