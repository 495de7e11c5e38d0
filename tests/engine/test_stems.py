"""Prompts about one picture share what they have in common, which changes no score and no generation."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from test_score_answers import assert_equal_scores, qwen

from data_module import TaskRow
from engine import shared_prompts
from engine.encode import Encoded
from engine.evaluate import evaluate_rows, evaluate_tasks, own_rows, tasks_by_picture
from engine.processor_tensors import Layout
from engine.score_answers import Prompt, WordLengths, like_answers, prompt_groups, score_prompts
from engine.scoring_way import Way, way_of_scoring
from engine.stems import common_length, find_stems
from families import loud
from helpers import example, png

RED, BLUE = png("red"), png("blue", (56, 96))
ANSWERS = ["Ann.", "A red square, and next to it a house.", "No"]
ASKED = [
    Prompt(example("Who is this?", image=RED), ANSWERS),
    Prompt(example("What do you see in this picture, and what is the name of the person on it?", image=RED), ANSWERS),
    Prompt(example("Who is this?", image=BLUE), ANSWERS[:2]),
    Prompt(example("Tell me what is in this picture.", image=BLUE), ANSWERS[1:]),
    Prompt(example("Who?", image=png("green", (80, 40))), ANSWERS),
]


def positions_run(model):
    """Positions of each forward of the model from now on, with whether it sees pictures."""
    called = []

    def note(module, args, inputs):
        called.append((inputs["input_ids"].numel(), "pixel_values" in inputs))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return called


def scored(model, encoder, prompts, **options):
    limits = {"batch_size": 64, "max_new_tokens": 8, "say": print, "worth": math.inf}
    return score_prompts(model, encoder, prompts, **(limits | options))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_questions_about_one_picture_score_and_say_what_each_does_alone(model, encoder, attention, batch_size):
    model.set_attn_implementation(attention)
    together = scored(loud(model), encoder, ASKED, batch_size=batch_size)
    alone = scored(model, encoder, ASKED, shared=False)
    assert_equal_scores([replace(each, tokens=0) for each in together], [replace(each, tokens=0) for each in alone])


def test_losses_are_those_of_whole_prompts_to_a_millionth(model, encoder):
    by_picture, whole = (scored(model, encoder, ASKED, by_picture=wanted) for wanted in (True, False))
    for one, other in zip(by_picture, whole, strict=True):
        for answer in one.answers:
            assert one.answers[answer].losses == pytest.approx(other.answers[answer].losses, rel=1e-6, abs=1e-6)


def test_pictures_with_positions_of_three_rows_share_them_too(qwen_encoder):
    model = qwen(qwen_encoder)
    together = scored(model, qwen_encoder, ASKED)
    alone = scored(model, qwen_encoder, ASKED, shared=False)
    assert_equal_scores([replace(each, tokens=0) for each in together], [replace(each, tokens=0) for each in alone])


def test_a_picture_is_run_once_for_all_questions_about_it(model, encoder):
    called = positions_run(model)
    results = scored(model, encoder, ASKED[:2], max_new_tokens=1)
    lengths = [encoder.encode(prompt.example).prompt["input_ids"].shape[1] for prompt in ASKED[:2]]
    stem = common_length([encoder.encode(prompt.example).prompt["input_ids"][0] for prompt in ASKED[:2]])
    (of_stem, sees), (of_rests, sees_again), *others = called
    assert (of_stem, sees) == (stem, True)
    assert (of_rests, sees_again) == (2 * (max(lengths) - stem), False)
    assert not any(seen for _, seen in others)
    answers = sum(len(each.tokens) for each in results[0].answers.values())
    first, second = (each.tokens - answers - len(each.said) for each in results)
    assert (first, second) == (lengths[0], lengths[1] - stem)  # the stem counts once


def test_next_to_nothing_in_common_is_not_worth_two_passes(model, encoder):
    called = positions_run(model)
    other = Prompt(example("Who?", image=png("green")), ["Ann."])
    score_prompts(model, encoder, [*ASKED[:1], other], batch_size=64, max_new_tokens=1, say=print)
    assert [seen for _, seen in called] == [True, False]  # the prompts, the answers


def encoded(ids, picture, layout=None):
    made = {"input_ids": torch.tensor([ids]), "pixel_values": torch.full((1, 2), float(picture))}
    return Encoded(made, [1], layout or Layout())


def test_stems_are_what_prompts_about_one_picture_begin_with_alike():
    prompts = [encoded([9, 9, 9, 1, 2, 5], 0), encoded([9, 9, 9, 1, 3], 0), encoded([9, 9, 4], 1)]
    stems = find_stems(prompts, ["a", "a", "b"], 0, worth=math.inf)
    assert (stems.lengths, stems.firsts, stems.of) == ([4, 2], [0, 2], [0, 0, 1])
    assert stems.rests == [2, 1, 1]
    assert stems.inputs["input_ids"].tolist() == [[9, 9, 9, 1], [0, 0, 9, 9]]
    assert stems.inputs["pixel_values"].tolist() == [[0, 0], [1, 1]]
    assert stems.tokens() == [4 + 2, 1, 2 + 1]


def test_the_last_token_of_a_prompt_is_never_of_its_stem():
    assert common_length([torch.tensor([9, 9, 1]), torch.tensor([9, 9, 1])]) == 2
    assert common_length([torch.tensor([9, 9, 1]), torch.tensor([9, 9])]) == 1


def test_two_passes_must_be_worth_it():
    prompts = [encoded([9] * 8 + [1, 2], 0), encoded([9] * 8 + [3, 4], 0)]  # 8 + 2 * 2 of 20 positions
    assert find_stems(prompts, ["a", "a"], 0, worth=0.6)
    assert find_stems(prompts, ["a", "a"], 0, worth=0.59) is None


def test_what_is_named_alike_and_looks_otherwise_is_two_pictures():
    prompts = [encoded([9, 9, 9, 1, 2], 0), encoded([9, 9, 9, 1, 3], 1)]
    assert find_stems(prompts, ["a", "a"], 0, worth=math.inf) is None


def test_words_share_nothing():
    prompts = [encoded([9, 9, 9, 1, 2], 0), encoded([9, 9, 9, 1, 3], 0)]
    assert find_stems(prompts, [None, None], 0, worth=math.inf) is None


def test_per_token_tensors_go_with_their_tokens():
    prompts = []
    for last in (5, 6):
        made = encoded([9, 9, 9, last], 0, Layout({"kinds": 1}))
        made.prompt["kinds"] = torch.tensor([[1, 1, 2, 3]])
        prompts.append(made)
    stems = find_stems(prompts, ["a", "a"], 0, worth=math.inf)
    assert stems.inputs["kinds"].tolist() == [[1, 1, 2]]


def letters(prompts):
    """Lengths in letters, as if each were a token."""
    return [WordLengths(len(each.example.question), sum(map(len, each.answers))) for each in prompts]


def test_stems_are_looked_for_among_all_prompts_about_some_pictures():
    colors = ("red", "blue", "green")
    prompts = [Prompt(example(f"{'W' * n}?", image=png(color)), ["x"]) for n in (1, 9) for color in colors]
    prompts.append(Prompt(example("In words?"), ["x"]))
    assert list(prompt_groups(prompts, letters(prompts), 4, by_picture=True)) == [[6], [0, 3, 1, 4], [2, 5]]
    assert list(prompt_groups(prompts, letters(prompts), 1, by_picture=True)) == [[6], [0, 3], [1, 4], [2, 5]]
    assert list(prompt_groups(prompts, letters(prompts), 2, by_picture=False)) == [[0, 1, 2, 3, 4, 5, 6]]


def test_batches_behind_stems_have_as_many_answers_each_and_questions_of_like_length():
    prompts = [
        Prompt(example("W" * n, image=RED), ["x"] * count) for n, count in ((9, 1), (1, 2), (5, 1), (7, 2), (1, 1))
    ]
    assert list(like_answers(prompts, letters(prompts), 2)) == [[4, 2], [0], [1, 3]]


# ---- a model or a template that does not allow it


def test_a_model_whose_pictures_see_the_question_is_scored_question_by_question(model, encoder, monkeypatch):
    """Stands in for one: the keys of a stem that is run alone are others."""
    original, said = shared_prompts.RunStems.__init__, []

    def otherwise(self, model, stems):
        stems.inputs["pixel_values"] += 1.0
        original(self, model, stems)

    monkeypatch.setattr(shared_prompts.RunStems, "__init__", otherwise)
    way = way_of_scoring(loud(model), encoder, ASKED[:3], 8, said.append)
    assert way == Way(True, 8, by_picture=False)
    (line,) = said
    assert line.startswith("picture check: ") and line.endswith("it is scored question by question")


def test_a_template_with_the_picture_behind_the_question_is_scored_question_by_question(model, encoder):
    before = "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    behind = "{% if part['type'] != 'image' %}{{ part['text'] }}{% endif %}{% endfor %}<image>"
    assert before in encoder.processor.chat_template
    turned, said = copy.copy(encoder), []
    turned.processor = copy.copy(encoder.processor)
    turned.processor.chat_template = encoder.processor.chat_template.replace(before, behind)
    turned.forget_kept()
    assert way_of_scoring(loud(model), turned, ASKED[:3], 8, said.append) == Way(True, 8, by_picture=False)
    assert len(said) == 1 and said[0].startswith("picture check: ")


def test_where_a_stem_leaves_no_room_in_a_window_each_prompt_is_run_whole(model, encoder, monkeypatch):
    """The padding between a stem and what follows it counts against the window of an attention."""
    said, original = [], shared_prompts.SharedPrompts.__init__

    def note(self, *args, behind=None, **rest):
        said.append(behind is not None)
        original(self, *args, behind=behind, **rest)

    monkeypatch.setattr(shared_prompts.SharedPrompts, "__init__", note)
    monkeypatch.setattr(shared_prompts.SharedPrompts, "has_room", lambda self, wanted: not said[-1])
    found = scored(loud(model), encoder, ASKED)
    assert said == [True, False] * 2  # three of the prompts have three answers, two have two
    assert_equal_scores(found, scored(model, encoder, ASKED, by_picture=False))


# ---- tasks about the same pictures


def task(*pictures, question="Who?"):
    return [TaskRow(example(question, image=each, index=n), None, []) for n, each in enumerate(pictures)]


def index_of(row):
    return row.example.index


def test_tasks_about_the_same_pictures_are_scored_together():
    green = png("green")
    tasks = {
        "a": task(RED),
        "words": task(None),
        "b": task(BLUE),
        "c": task(RED, BLUE),
        "d": task(green),
        "e": task(None),
    }
    assert tasks_by_picture(tasks) == [["a", "b", "c"], ["words"], ["d"], ["e"]]


def test_each_of_several_processes_takes_all_questions_about_a_picture():
    tasks = {"a": task(RED, BLUE, None, None), "b": task(BLUE, RED, RED, question="What?")}

    def taken(process):
        own = own_rows(tasks, process, 2)
        return {name: list(map(index_of, rows)) for name, rows in own.items()}

    assert taken(0) == {"a": [0, 2], "b": [1, 2]}
    assert taken(1) == {"a": [1, 3], "b": [0]}


def test_tasks_scored_together_have_the_results_of_each_alone(model, encoder):
    tasks = {"a": task(RED, BLUE), "b": task(BLUE, RED, question="What is the name of this person?")}
    together = evaluate_tasks(loud(model), encoder, tasks, batch_size=8, max_new_tokens=4, worth=math.inf)
    for name, rows in tasks.items():
        alone = evaluate_rows(model, encoder, rows, batch_size=8, max_new_tokens=4)
        assert list(together[name].rows) == list(alone.rows)
        for index, row in alone.rows.items():
            own = together[name].rows[index]
            assert own["avg_gt_loss"] == pytest.approx(row["avg_gt_loss"], rel=1e-6, abs=1e-6)
            assert own["generated_text"] == row["generated_text"]
    assert (
        together["b"].token_count
        < evaluate_rows(model, encoder, tasks["b"], batch_size=8, max_new_tokens=4).token_count
    )


def test_a_question_that_two_tasks_ask_is_counted_for_the_first(model, encoder):
    tasks = {"a": task(RED), "b": task(RED)}
    made = evaluate_tasks(model, encoder, tasks, batch_size=8, max_new_tokens=2)
    assert made["a"].token_count > 0 == made["b"].token_count
    assert made["a"].rows[0]["avg_gt_loss"] == made["b"].rows[0]["avg_gt_loss"]
