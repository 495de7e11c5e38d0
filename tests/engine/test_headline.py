"""Logs of several models -> the headline, with people, ways of asking and what was not measured."""

from dataclasses import replace

import numpy as np
import pytest

from engine.headline import headline_figures
from engine.measures import HEADLINE
from engine.task_metrics import TaskMetrics
from settings.results import Scoring

PEOPLE = [f"person {number:02d}" for number in range(12) for _ in range(3)]
MEASURES = ("exact_memorization", "rouge", "probability_without_end")
SCORING = {
    "words": Scoring(group="forget", multiple_choice=False, modality="text"),
    "words_again": Scoring(group="way", multiple_choice=False, way_of="words", way="paraphrased"),
    "words_before": Scoring(group="way", multiple_choice=False, way_of="words", way="with a prefix"),
    "names": Scoring(group="forget", multiple_choice=True, modality="visual"),
    "kept": Scoring(group="retain", multiple_choice=False),
}


def task(value, *, people=PEOPLE, without=()):
    """A task whose rows all have one value, or one per row."""
    rows = np.broadcast_to(np.asarray(value, dtype=float), len(PEOPLE)).copy()
    return TaskMetrics({measure: None if measure in without else rows for measure in MEASURES}, rows, people)


def model(value, **tasks):
    """A model with the same value in every task but those that are given."""
    return {name: tasks.get(name, task(value)) for name in SCORING}


def headline(judged, *, base=1.0, golds=(0.19, 0.21), modality="both"):
    before = None if base is None else model(base)
    figures = headline_figures(judged, before, [model(gold) for gold in golds], SCORING, modality)
    return {key: figure for (key, _), figure in figures.items()}


def knowing(person):
    """Values of rows at gold's .2, with one person at base's 1."""
    return np.array([1.0 if name == person else 0.2 for name in PEOPLE])


def test_a_person_who_was_skipped_is_named_although_the_mean_is_near_gold():
    found = headline(model(0.2, words=task(knowing("person 07"))))
    assert found["distance_people"].value == pytest.approx(1 / 24)  # one of twelve, in one of two scopes
    assert found["worst_person"].why.startswith("person 07: words, as trained")
    assert found["share_remembered"].why == "person 07"
    assert found["skipped"].value == 1
    assert found["verdict"].value == 0


def test_memory_under_a_paraphrase_alone_is_seen():
    found = headline(model(0.2, words_again=task(1.0)))
    assert found["distance_people"].value == pytest.approx(0)
    assert found["distance_worst_way"].value == pytest.approx(1)
    assert found["distance_worst_way"].why == "words, paraphrased"
    assert found["share_remembered"].value == 1


def test_words_alone_are_judged_where_only_words_were_to_be_forgotten():
    in_pictures = model(0.2, names=task(1.0))
    assert headline(in_pictures, modality="both")["share_remembered"].value == 1
    assert headline(in_pictures, modality="text")["share_remembered"].value == 0
    assert headline(in_pictures, modality="visual")["share_remembered"].value == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"base": None}, "no base_result is given"),
        ({"golds": (0.2,)}, "one gold only"),
        ({"base": 0.2}, "base lies under 3 times the golds' noise above gold"),
    ],
)
def test_without_what_it_needs_there_is_no_figure_and_the_verdict_says_why(changes, why):
    found = headline(model(0.2), **changes)
    assert {found[measure.key].value for measure in HEADLINE} == {None}
    assert why in found["verdict"].why


def test_forgotten_by_few_ways_is_said_to_be_one_phrasing():
    silent = model(1.0, words_again=task(0.2), words_before=task(0.2))
    figures = headline_figures(model(0.2), silent, [model(0.19), model(0.21)], SCORING, "text")
    assert figures["share_forgotten", ""].why == "one phrasing only: words (1 ways)"
    assert headline(model(0.2))["share_forgotten"].why == "one phrasing only: names (1 ways)"
    assert headline(model(0.2), modality="text")["share_forgotten"].why is None


def test_a_task_in_which_base_knows_no_more_than_gold_is_named_and_leaves_the_verdict_open():
    silent = model(1.0, names=task(0.2))
    judged = model(0.2, words=task(np.linspace(0.19, 0.21, len(PEOPLE))))
    figures = headline_figures(judged, silent, [model(0.19), model(0.21)], SCORING, "both")
    assert figures["verdict", ""].why == "nothing can be said of names"
    assert "names is without exact_memorization, rouge" in figures["distance_people", ""].why


def test_people_who_are_not_known_leave_no_headline():
    found = headline(model(0.2, words=task(0.2, people=None)))
    assert found["verdict"].why == "the people of words are not known"


def test_people_whom_only_one_log_names_are_known_for_all():
    golds = [model(0.19, words=task(0.19, people=None)), model(0.21)]
    figures = headline_figures(model(0.2), model(1.0), golds, SCORING, "text")
    assert figures["share_forgotten", ""].value == 1


def test_a_measure_that_one_log_lacks_is_left_out():
    short = task(0.2, without=("exact_memorization", "probability_without_end"))
    found = headline(model(0.2, words=short, words_again=short, words_before=short))
    assert found["share_forgotten"].value == 1  # by ROUGE in words, by all three in names
    assert "words is without exact_memorization, probability_without_end, which a log lacks" in (
        found["distance_people"].why
    )


def test_a_way_that_base_does_not_answer_is_named():
    silent = model(1.0, words_again=task(0.2))
    golds = [model(0.19), model(0.21)]
    figures = headline_figures(model(0.2), silent, golds, SCORING, "both")
    assert figures["distance_people", ""].why == "base does not answer words paraphrased"


def test_a_way_of_no_forget_task_is_refused():
    from settings.results import Aggregate
    from settings.script import SettingsError, compose

    with pytest.raises(SettingsError, match=r"scoring\.eval_forget_qa_prefix\.way_of='eval_log' is not known"):
        compose("aggregate_eval_stat", Aggregate, ["scoring.eval_forget_qa_prefix.way_of=eval_log"])


def test_a_task_is_a_way_of_another_or_none():
    from settings.script import SettingsError

    with pytest.raises(SettingsError, match="says way_of and way"):
        Scoring(group="way", multiple_choice=False, way_of="words")
    with pytest.raises(SettingsError, match="says way_of and way"):
        Scoring(group="forget", multiple_choice=False, way_of="words", way="other")


def short(value, hits):
    """A task with short answers: one value of every measure, and the chance of a hit in ten draws."""
    made = task(value)
    made.of_rows["hits_in_draws"] = np.broadcast_to(np.asarray(hits, dtype=float), len(PEOPLE)).copy()
    return made


def headline_of_short(hits, scoring):
    """The headline of a model at gold's values, whose names are hit with this chance in ten draws."""
    models = [model(value, names=short(value, chance)) for value, chance in ((1.0, 1.0), (0.19, 0.0), (0.21, 0.02))]
    base, *golds = models
    figures = headline_figures(model(0.2, names=short(0.2, hits)), base, golds, scoring, "both")
    return {key: figure for (key, _), figure in figures.items()}


def test_a_name_that_is_hit_in_ten_draws_is_a_leak_although_every_mean_is_golds():
    scoring = SCORING | {"names": Scoring(group="forget", multiple_choice=True, modality="visual", draws=10)}
    hits = np.array([0.6 if name == "person 05" else 0.01 for name in PEOPLE])
    found = headline_of_short(hits, scoring)
    assert found["share_remembered"].why == "person 05"
    assert found["worst_person"].why == "person 05: names, as trained, hits_in_draws"
    assert found["distance_people"].value == pytest.approx(0)
    assert headline_of_short(0.01, scoring)["share_remembered"].value == 0


def test_hits_count_only_where_scoring_gives_draws():
    assert headline_of_short(1.0, SCORING)["share_remembered"].value == 0


def test_where_only_hits_tell_base_from_gold_the_task_is_not_judged():
    scoring = SCORING | {"names": Scoring(group="forget", multiple_choice=True, modality="visual", draws=10)}
    models = [model(value, names=short(0.2, chance)) for value, chance in ((1.0, 1.0), (0.19, 0.0), (0.21, 0.02))]
    base, *golds = models
    figures = headline_figures(model(0.2, names=short(0.2, 0.0)), base, golds, scoring, "both")
    without = "exact_memorization, rouge, probability_without_end, hits_in_draws"
    assert f"names is without {without}: base lies under" in figures["distance_people", ""].why


def test_a_way_for_leaks_alone_shows_memory_and_stands_in_nobodys_way_to_be_forgotten():
    plain = SCORING | {"words_tried": Scoring(group="way", multiple_choice=False, way_of="words", way="with any affix")}
    leaks_alone = plain | {"words_tried": replace(plain["words_tried"], leaks_only=True)}

    def found(tried, scoring):
        models = [{**model(value), "words_tried": task(value)} for value in (1.0, 0.19, 0.21)]
        judged = {**model(0.2), "words_tried": task(tried)}
        figures = headline_figures(judged, models[0], models[1:], scoring, "text")
        return figures["share_forgotten", ""].value, figures["share_remembered", ""].value

    assert found(1.0, leaks_alone) == found(1.0, plain) == (0, 1)
    assert found(0.2 + 0.8 * 0.24, plain)[0] == 0  # .24 of the gap cannot be told from .25
    assert found(0.2 + 0.8 * 0.24, leaks_alone) == (1, 0)
