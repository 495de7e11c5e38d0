"""Attacks that need a world with pictures: unseen views, questions across words and faces, searches, probes, draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_module import TaskRow, load_split
from engine.attack_target import NotApplicable, Target, person_of, with_question
from engine.attacks_by_reading import Probed, best_layer, hidden_states, named, read_people
from engine.attacks_in_pictures import THE_PERSON
from engine.attacks_in_words import best_line, first_of_each_person
from engine.language_model import forward
from engine.word_files import QUESTION
from helpers import ROOT, attack_of, example, world_target
from nlp.encoder import TextEncoder

AFFIXES = "config/ways/affixes.txt"


@pytest.fixture
def target(world, model, encoder):
    return world_target(world, model, encoder)


# ---- views


def test_an_unseen_view_is_another_picture_of_the_same_person_in_the_clean_rows_place(target, world):
    (variant,) = attack_of("unseen_views", split="unseen_views")(target)
    seen = {bytes(row.example.image["bytes"]) for row in target.rows["forget_names"]}
    data = load_split(f"{world}/clear", "unseen_views")
    person_of_picture = {bytes(row["image"]["bytes"]): row["name"] for row in data}
    for asked, clean in zip(variant.rows["forget_names"], target.rows["forget_names"], strict=True):
        shown = bytes(asked.example.image["bytes"])
        assert shown not in seen
        assert person_of_picture[shown] == asked.example.answer
        assert replace(asked.example, image=None) == replace(clean.example, image=None)
    assert set(variant.rows) == {"forget_names", "retain_names"}  # captions and words ask for no name


def test_every_view_of_a_person_is_shown_once(target):
    (variant,) = attack_of("unseen_views", split="unseen_views")(target)
    shown = [bytes(row.example.image["bytes"]) for row in variant.rows["forget_names"]]
    assert len(set(shown)) == len(shown) > 2


def test_without_a_split_of_views_nothing_is_shown(target):
    with pytest.raises(NotApplicable, match="a split 'none'"):
        next(attack_of("unseen_views", split="none")(target))


# ---- words and faces


def test_a_fact_is_asked_by_the_face_without_the_name(target):
    (variant,) = attack_of("across", ways=["face"])(target)
    faces = {}
    for row in target.rows["forget_names"]:
        faces.setdefault(row.example.person, []).append(row.example.image)
    clean = {row.example.index: row.example for row in target.rows["forget_words"]}
    assert variant.rows["forget_words"]
    for row in variant.rows["forget_words"]:
        asked, before = row.example, clean[row.example.index]
        assert asked.person not in asked.question
        assert asked.question == before.question.replace(asked.person, THE_PERSON)
        assert asked.image in faces[asked.person]
        assert asked.answer == before.answer


def test_all_ways_ask_the_same_rows(target):
    ways = ["words", "face", "face_and_name", "other_face"]
    asked = {variant.name: variant.rows["forget_words"] for variant in attack_of("across", ways=ways)(target)}
    assert list(asked) == ways
    numbers = [row.example.index for row in asked["words"]]
    for rows in asked.values():
        assert [row.example.index for row in rows] == numbers
    assert all(row.example.image is None for row in asked["words"])


def test_a_name_under_another_face_shows_somebody_else_of_the_same_kind(target):
    (variant,) = attack_of("across", ways=["other_face"])(target)
    faces = {bytes(row.example.image["bytes"]): row.example.person for row in target.rows["forget_names"]}
    for row in variant.rows["forget_words"]:
        assert row.example.person in row.example.question
        assert faces[bytes(row.example.image["bytes"])] != row.example.person


def test_words_alone_have_no_face(text_base, target):
    model = AutoModelForCausalLM.from_pretrained(text_base, dtype=torch.float32).eval()
    rows = {name: own for name, own in target.rows.items() if name.endswith("words")}
    encoder = TextEncoder(AutoTokenizer.from_pretrained(text_base))
    alone = Target(model, encoder, rows, target.tasks, {"forget_words": "retain_words"}, dict, lambda: encoder, 0)
    with pytest.raises(NotApplicable, match="of whom a row shows a picture"):
        next(attack_of("across", ways=["face"])(alone))
    with pytest.raises(NotApplicable, match="no row shows a person"):
        next(attack_of("probe_people", ridge=0.1)(alone))


# ---- a search among lines


def test_the_line_is_searched_for_people_who_are_not_judged_by_it(target, monkeypatch):
    searched = []

    def line_for(of, lines, rows):
        searched.append({person_of(row) for row in rows})
        return f"Line {len(searched)}. {QUESTION}"

    monkeypatch.setattr("engine.attacks_in_words.best_line", line_for)
    judged = {}
    for number, variant in enumerate(attack_of("affix_search", file=AFFIXES, rows_of_each=1)(target)):
        for place, task_name in enumerate(("forget_names", "forget_words")):
            line = f"Line {2 * number + place + 1}. "
            rows = variant.rows[task_name]
            assert all(row.example.question.startswith(line) for row in rows)
            assert {person_of(row) for row in rows}.isdisjoint(searched[2 * number + place])
            judged.setdefault(task_name, []).extend(row.example.index for row in rows)
    for task_name, indices in judged.items():
        assert sorted(indices) == [row.example.index for row in target.rows[task_name]]


def test_the_best_line_is_the_one_with_the_lowest_loss(target):
    rows = first_of_each_person(target.rows["forget_names"], 1)
    lines = [QUESTION, f"Hello! {QUESTION}", f"{QUESTION} Please."]
    losses = []
    for line in lines:
        of_line = []
        for row in rows:
            asked = replace(row.example, question=line.replace(QUESTION, row.example.question))
            batch = target.encoder.collate([target.encoder.encode(asked)])
            with torch.no_grad():
                scored = forward(target.model, batch)
            of_line.append(torch.nn.functional.cross_entropy(scored.logits[0], scored.labels[0], reduction="none"))
        losses.append(np.mean([each[:-1].mean().item() for each in of_line]))
    assert best_line(target, lines, rows) == lines[int(np.argmin(losses))]


# ---- draws


def test_only_short_answers_are_drawn(target):
    (variant,) = attack_of("draws", draws=32, most_tokens=8)(target)
    for rows in variant.rows.values():
        assert all(len(target.encoder.encode_answer(row.example, 0)) <= 9 for row in rows)  # with the end
    with pytest.raises(NotApplicable, match="at most 1 tokens"):
        next(attack_of("draws", draws=32, most_tokens=1)(target))


# ---- probes


def test_states_are_those_that_predict_the_first_token_of_an_answer(target):
    """The last layer's state through the model's own head gives the losses' own logits."""
    rows = target.rows["forget_names"][:3]
    states = hidden_states(target.model, target.encoder, rows)
    batch = target.encoder.collate([target.encoder.encode(row.example) for row in rows])
    with torch.no_grad():
        wanted = forward(target.model, batch).logits[:, 0]
        given = target.model.get_output_embeddings()(torch.tensor(states[-1]))
    torch.testing.assert_close(given, wanted, atol=1e-3, rtol=1e-3)


def test_a_probe_names_who_stands_apart_and_nobody_where_states_say_nothing():
    source = np.random.default_rng(0)
    people = np.repeat(["Ann", "Bo", "Cy"], 10)
    apart = source.normal(size=(3, 6))[np.repeat([0, 1, 2], 10)] * 3 + source.normal(size=(30, 6)) * 0.1
    other = source.normal(size=(30, 6))
    assert (named(apart[::2], people[::2], apart[1::2], 0.1) == people[1::2]).all()
    assert np.mean(named(other[::2], people[::2], other[1::2], 0.1) == people[1::2]) < 0.7  # chance: a third


def test_a_probe_reads_the_layer_that_its_own_half_finds_best():
    source = np.random.default_rng(0)
    people = np.repeat(["Ann", "Bo", "Cy"], 8)
    empty = np.zeros((24, 6))
    noise = source.normal(size=(24, 6))
    telling = source.normal(size=(3, 6))[np.repeat([0, 1, 2], 8)] + source.normal(size=(24, 6)) * 0.05
    states = np.stack([empty, noise, telling])
    assert best_layer(states, people, 0.1) == 2
    rows = [TaskRow(replace(example(index=number), person=person), None, []) for number, person in enumerate(people)]
    found = read_people(Probed(rows, states), np.arange(24) % 2 == 0, 0.1)
    assert found.tolist() == [1.0] * 24


def test_a_person_of_whom_the_probe_learns_nothing_is_not_read():
    rows = [TaskRow(replace(example(index=number), person=person), None, []) for number, person in enumerate("aabbc")]
    states = np.eye(5)[None]
    found = read_people(Probed(rows, states), np.array([True, False, True, False, True]), 0.1)
    assert np.isnan(found).tolist() == [False, False, False, False, True]


def test_a_probe_sees_pictures_whose_question_does_not_name_the_person(target):
    (variant,) = attack_of("probe_people", ridge=0.1)(target)
    assert set(variant.rows) == {"forget_names", "retain_names"}
    for name, rows in variant.rows.items():
        assert all(row.example.image and row.example.person not in row.example.question for row in rows)
        assert {variant.read[name, row.example.index] for row in rows} <= {0.0, 1.0}
    first = {}
    for row in target.rows["retain_names"]:
        first.setdefault(row.example.person, row)
    one_each = replace(target, rows={**target.rows, "retain_names": list(first.values())})
    (variant,) = attack_of("probe_people", ridge=0.1)(one_each)
    assert set(variant.rows) == {"forget_names"}  # of one row of a person nothing is learned and read
    naming = {}
    for name, rows in target.rows.items():
        naming[name] = [with_question(row, f"Is this {row.example.person}?") for row in rows]
    with pytest.raises(NotApplicable, match="whom the question does not name"):
        next(attack_of("probe_people", ridge=0.1)(replace(target, rows=naming)))


def test_the_list_of_lines_is_there_and_every_line_holds_the_question():
    lines = (ROOT / AFFIXES).read_text().splitlines()
    assert len(lines) >= 50 and all(QUESTION in line for line in lines)
