"""Answers that the starting model invents: which of them count, that they follow the seed, what is written."""

import json
from collections import Counter
from dataclasses import replace

import pytest

import nlp.alternatives
from data_module import TrainingRows, invented_answers, load_split
from engine import invent
from engine.invent import asked, check_room, invented, refusal, sampled, words_of, write_alternatives
from helpers import BASE, example, start
from settings.language import Invent
from settings.script import SettingsError, compose


@pytest.fixture
def settings(world_overrides, tmp_path):
    own = ["split=forget10+tofu", f"model_path={BASE}", f"save_dir={tmp_path}/out", "each=2", "tries=2"]
    return lambda *more: compose("mm/alternatives", Invent, [*world_overrides, *own, *more])


def says(monkeypatch, *rounds):
    """Have every prompt answered by the texts of each round; a text that ends in "..." has not ended."""

    def answer(model, encoder, asked_of, given, *, number):
        return [(text.removesuffix("..."), not text.endswith("...")) for text in rounds[number % len(rounds)]]

    monkeypatch.setattr(invent, "sampled", answer)


def invented_by(model, settings, row, taken=()):
    refused = Counter()
    return invented(model, None, row, settings, taken={words_of(each) for each in taken}, refused=refused), refused


def test_question_and_answer_stand_in_the_instruction_as_they_are():
    row = example(question="What is {answer}?", answer="It is {question}.")
    made = asked(row, "Q: {question} A: {answer} Invent.")
    assert made.question == "Q: What is {answer}? A: It is {question}. Invent."
    assert (made.answer, made.image) == (row.answer, row.image)


@pytest.mark.parametrize(
    ("text", "ended", "why"),
    [
        ("Bea Ray.", True, ""),
        ("Bea Ray", False, "not ended"),
        ("...", True, "empty"),
        ("ann  LEE", True, "right"),
        ("Cy Ott!", True, "scored as wrong answers"),
        ("dee poe", True, "repeated"),
    ],
)
def test_an_answer_counts_that_is_ended_and_differs_in_its_words(text, ended, why):
    known = {"right": words_of("Ann Lee."), "taken": {words_of("Cy Ott.")}, "found": {words_of("Dee Poe."): ""}}
    assert refusal(words_of(text), ended=ended, **known) == why


def test_words_are_told_apart_in_every_script():
    assert words_of("\u0915\u093f\u0964") != words_of("\u0915\u0940\u0964")  # two words of one consonant in Hindi
    assert words_of("Ren\u00e9, 9!") == words_of("REN\u0045\u0301 9") == "ren\u00e9 9"


def test_answers_are_drawn_again_until_there_are_enough_and_no_more_are_kept(settings, monkeypatch):
    says(monkeypatch, ["Ann Lee.", "Bea Ray."], ["Cy Ott.", "Dee Poe."])
    found, refused = invented_by(None, settings(), example())
    assert found == ["Bea Ray.", "Cy Ott."] and refused == {"right": 1}


def test_a_row_of_which_none_counts_is_one_line_with_the_reasons(settings, monkeypatch):
    says(monkeypatch, ["Ann Lee.", "Bea..."], ["Cy Ott.", "Ann Lee"])
    line = (
        r"split test, row 0 \('Ann Lee.'\): none of 4 answers that the model invents counts \(1 not ended, 2 right, 1"
    )
    with pytest.raises(SettingsError, match=line):
        invented_by(None, settings(), example(), taken=["Cy Ott."])


def test_what_a_model_draws_is_a_function_of_seed_row_and_try_alone(model, encoder, settings):
    row = example()
    given = settings("max_new_tokens=6", "temperature=2.0")
    first = sampled(model, encoder, row, given, number=0)
    assert len(first) == 2
    sampled(model, encoder, replace(row, index=1), given, number=0)
    assert sampled(model, encoder, row, given, number=0) == first
    others = [
        sampled(model, encoder, row, given, number=1),
        sampled(model, encoder, replace(row, index=1), given, number=0),
        sampled(model, encoder, row, replace(given, seed=1), number=0),
    ]
    assert all(each != first for each in others)


def test_the_file_is_one_that_a_method_takes_and_the_record_says_what_was_refused(
    data, model, encoder, settings, monkeypatch
):
    given = settings("modality=both")
    wrong = load_split(data.text_path, "forget10_perturbed")[0]["perturbed_answer"][0]
    says(monkeypatch, ["Nobody knows that.", wrong.upper()], ["Bea Ray lives in Oslo."])
    rows = TrainingRows(given.data, given.split, given.modality, 0)
    file = write_alternatives(model, encoder, rows, given, facts={})
    found = invented_answers(replace(data, alternatives=str(file)))
    texts = {question for question, _ in found}
    assert None in texts and len(texts) > 2  # captions and questions
    assert {tuple(others) for others in found.values()} == {("Nobody knows that.", "Bea Ray lives in Oslo.")}
    record = json.loads((file.parent / "alternatives_meta.json").read_text())
    assert record["rows"] == len(found) and record["fewer"] == 0
    assert record["refused"] == {"scored as wrong answers": len(found)}


def test_a_row_without_room_for_an_answer_is_named_before_anything_is_drawn(encoder, settings):
    given = settings("max_new_tokens=100000")
    rows = TrainingRows(given.data, given.split, given.modality, 0)
    line = r"split forget10\+tofu, row 0: the instruction has \d+ tokens, and with max_new_tokens=100000 they are"
    with pytest.raises(SettingsError, match=line):
        check_room(encoder, rows, given)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["temperature=0"], r"temperature=0.0 must be a number above 0: answers are drawn"),
        (["top_p=0"], r"top_p=0.0 must be above 0 and at most 1"),
        (["each=0"], r"each=0 must be at least 1"),
        (["instruction=Invent."], r"instruction='Invent.' must hold \{question\} once"),
        (["model.quantize=8bit"], r"model.quantize=8bit has no effect on invented answers"),
        (["modality=sound"], r"modality='sound' is not known"),
    ],
)
def test_settings_that_cannot_be_are_one_line(overrides, line, settings):
    with pytest.raises(SettingsError, match=line):
        settings(*overrides)


def test_a_launch_of_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(invent, "processes", lambda: type("State", (), {"num_processes": 2}))
    with pytest.raises(SettingsError, match="answers are invented in one process, and this launch has 2"):
        invent.check_alone()


def test_the_script_ends_in_one_line_where_there_is_no_model(world_overrides, tmp_path, monkeypatch, capsys):
    code = start(
        nlp.alternatives, [*world_overrides, "model_path=models/none", f"save_dir={tmp_path}/out"], monkeypatch
    )
    assert code == 1 and not (tmp_path / "out").exists()
    assert "model_path='models/none' does not exist" in capsys.readouterr().err
