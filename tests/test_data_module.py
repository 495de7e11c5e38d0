"""Rows to batches: labels on the answer only, draws that depend on nothing but their key, errors that name the row."""

import json
import pickle
import re
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device

from data_module import (
    CAPTION_QUESTIONS,
    NAME_QUESTION,
    TrainingRows,
    check_apart,
    invented_answers,
    load_split,
    open_image,
    split_names,
    task_rows,
)
from engine.draws import sample_by_person, some_of_each
from engine.encode import collate, collate_prompts
from engine.language_model import forward
from engine.pairs import EpochSampler, Pairs, PassCollator, answer_key, in_scope, noised
from engine.row_lengths import row_lengths
from engine.word_files import alternative_answers, drawn_affix, idk_answers
from helpers import ROOT, SHARED, collated, example, pairs, png, task
from settings.language import Affix, ChosenPeople, Columns, Data, Forget, People, Task
from settings.script import SettingsError, compose
from settings.training import Noise
from unlearn_losses import IGNORE, nll

FAMILIES = ["encoder", "qwen_encoder"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image", [None, png("red")], ids=["words", "picture"])
def test_labels_decode_back_to_exactly_the_answer_and_an_end_token(family, image, request):
    own = request.getfixturevalue(family)
    answers = ["Ann Lee smiles in a red shirt.", "No."]
    batch = collate([own.encode(example(answer=a, image=image)) for a in answers], own.tokenizer.pad_token_id)
    for row, answer in zip(batch.labels, answers, strict=True):
        tokens = row[row != IGNORE]
        assert own.tokenizer.decode(tokens[:-1]) == answer
        assert tokens[-1] == own.tokenizer.eos_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_point_at_the_token_before_each_label(family, request):
    own = request.getfixturevalue(family)
    batch = collate(
        [
            own.encode(example(answer=a, image=i))
            for a, i in (("Ann Lee.", png("red")), ("Somebody else entirely.", None))
        ],
        own.tokenizer.pad_token_id,
    )
    for ids, labels, positions in zip(batch.inputs["input_ids"], batch.labels, batch.positions, strict=True):
        count = int((labels != IGNORE).sum())
        assert ids[positions[1:count]].tolist() == labels[: count - 1].tolist()


def test_each_picture_keeps_its_own_patches_when_pictures_differ_in_size(qwen_encoder):
    small, large = example(image=png("red", (28, 28))), example(image=png("blue", (56, 56)))
    encoded = [qwen_encoder.encode(e) for e in (small, example(), large)]
    batch = collate(encoded, qwen_encoder.tokenizer.pad_token_id)
    counts = batch.inputs["image_grid_thw"].prod(-1).tolist()
    assert counts == [e.prompt["pixel_values"].shape[0] for e in (encoded[0], encoded[2])]
    assert batch.inputs["pixel_values"].shape[0] == sum(counts)


def test_a_pad_token_that_is_also_the_end_token_stays_visible(encoder):
    batch = collate(
        [
            encoder.encode(example(answer="A")),
            encoder.encode(example(answer="A much longer answer than the other one")),
        ],
        encoder.tokenizer.eos_token_id,
    )
    prompt = encoder.encode(example()).prompt["input_ids"].shape[1]
    assert batch.inputs["attention_mask"][0].sum() == prompt + len(encoder.answer_tokens("A")) - 1


def test_prompts_to_generate_from_are_padded_on_the_left(encoder):
    batch = collate_prompts(
        [encoder.encode(example(question=q)) for q in ("Who?", "Who is the person of whom this question asks?")], 0
    )
    assert batch["attention_mask"][0, 0] == 0 and (batch["attention_mask"][:, -1] == 1).all()


def test_a_long_example_is_never_cut_and_one_that_does_not_fit_is_named(encoder):
    question = "word " * 50
    assert (
        encoder.tokenizer.decode(encoder.encode(example(question=question)).prompt["input_ids"][0]).count("word") == 50
    )
    with pytest.raises(SettingsError, match=r"split test, row 4: \d+ tokens, but the model takes 512"):
        encoder.encode(example(question="word " * 600, index=4))


def test_captions_questions_are_drawn_once_from_seed_and_row(data):
    first, again, other = (TrainingRows(data, "full", "both", seed) for seed in (0, 0, 1))
    asked = [first[i].question for i in range(len(first))]
    assert asked == [again[i].question for i in range(len(again))] == [first[i].question for i in range(len(first))]
    assert asked != [other[i].question for i in range(len(other))]
    assert set(asked) <= set(CAPTION_QUESTIONS) and len(set(asked)) > 3


@pytest.mark.parametrize(("modality", "pictures"), [("both", {True, False}), ("text", {False}), ("visual", {True})])
def test_modality_restricts_the_rows(data, modality, pictures):
    rows = TrainingRows(data, "full+tofu", modality, 0)
    assert {rows[i].image is not None for i in range(len(rows))} == pictures


def test_both_modalities_together_are_all_rows(data):
    counts = [len(TrainingRows(data, "full+tofu", modality, 0)) for modality in ("text", "visual", "both")]
    assert counts[0] + counts[1] == counts[2] == len(load_split(data.path, "full+tofu"))


# ---- pairs


def test_an_idk_batch_reads_as_i_do_not_know_and_never_as_the_truth(data, encoder):
    made = pairs(data)
    truths = {made.forget[i].answer for i in range(len(made.forget))}
    batch = collated(encoder, made, ["idk"], range(len(made)))
    texts = [encoder.decode(row[row != IGNORE]) for row in batch.labels]
    assert set(texts) == {"I do not know.", "I cannot tell who this is."} and not truths & set(texts)


def test_forget_and_idk_share_question_and_picture(data):
    made = pairs(data)
    for key in range(len(made)):
        item = {name: examples[0] for name, examples in made[key].items()}
        assert (item["idk"].question, item["idk"].image) == (item["forget"].question, item["forget"].image)
        assert item["idk"].answer != item["forget"].answer


def test_retain_rows_are_drawn_without_replacement_and_cycle(data):
    made = pairs(data)
    count = len(made.retain)
    drawn = [made[key]["retain"][0].index for key in range(3 * count)]
    assert all(len(set(drawn[start : start + count])) == count for start in (0, count, 2 * count))
    assert drawn[:count] != drawn[count : 2 * count]


def test_unrelated_answers_are_of_retain_people_and_shuffled_ones_of_other_forget_rows(data):
    made = Pairs(
        ["unrelated", "shuffled"],
        *(TrainingRows(data, s, "both", 0) for s in ("forget10+tofu", "retain90+tofu")),
        idk={},
        seed=0,
        other_answers=3,
    )
    forget, retain = set(made.forget.answers), set(made.retain.answers)
    for key in range(len(made)):
        own = made.forget[key]
        for name, answers in (("unrelated", retain), ("shuffled", forget)):
            assert len(made[key][name]) == 3
            for other in made[key][name]:
                assert other.question == own.question
                assert other.answer in answers - {own.answer}


def test_passes_of_like_length_share_a_batch_and_others_do_not(data, encoder):
    made = pairs(data)
    texts = [key for key in range(len(made)) if made.forget[key].image is None][:4]
    items = [made[key] for key in texts]
    for item in items:
        item["retain"] = item["forget"]
    step = PassCollator(encoder, ["forget", "retain"], ["forget"], by_length=True)(items)
    (trained,) = step["trained"]
    assert trained.passes == ("forget", "retain")
    assert trained.rows == (4, 4)
    assert [batch.passes for batch in step["frozen"]] == [("forget",)]
    for name in ("forget", "retain"):
        assert trained.keys_of(name) == tuple(answer_key(item[name][0]) for item in items)
    for item in items:
        item["retain"] = [replace(item["forget"][0], question="word " * 60)]
    step = PassCollator(encoder, ["forget", "retain"], [], by_length=True)(items)
    assert [batch.passes for batch in step["trained"]] == [("forget",), ("retain",)]


def test_a_picture_joins_a_batch_in_words_alone_and_changes_none_of_its_losses(data, encoder, model):
    made = pairs(data, ["forget"])
    words = [key for key in range(len(made)) if made.forget[key].image is None][:2]
    picture = next(key for key in range(len(made)) if made.forget[key].image is not None)
    collator = PassCollator(encoder, ["forget"], [], by_length=False)
    plain = collator([made[key] for key in words])["trained"][0]
    collator.beside = made.a_picture_row()
    joined = collator([made[key] for key in words])["trained"][0]
    assert (plain.beside, joined.beside, joined.rows) == (0, 1, (2,))
    assert "pixel_values" not in plain.inputs and "pixel_values" in joined.inputs
    scored = [batch.split(forward(model, batch))["forget"] for batch in (plain, joined)]
    assert torch.allclose(nll(scored[0]), nll(scored[1]), atol=1e-5)
    mixed = collator([made[words[0]], made[picture]])["trained"][0]
    assert mixed.beside == 0  # it shows one by itself


def test_a_method_that_sees_no_picture_has_none_to_join_its_batches(data):
    assert pairs(data, modality="text").a_picture_row() is None
    assert pairs(data, scope="words").a_picture_row() is None
    assert pairs(data, scope="pictures").a_picture_row().image is not None


def test_passes_of_several_processes_each_have_a_forward_of_their_own_whatever_their_rows_are(data, encoder):
    """Two processes that counted by their own rows would take different numbers of forwards."""
    made = pairs(data, ["forget", "retain"])
    forget = made[0]["forget"]
    steps = [{"forget": forget, "retain": forget}, {"forget": forget, "retain": [example("word " * 60)]}]

    def forwards(by_length):
        collator = PassCollator(encoder, ["forget", "retain"], ["retain"], by_length=by_length)
        batches = [collator([step]) for step in steps]
        return [(len(step["trained"]), len(step["frozen"])) for step in batches]

    assert forwards(by_length=True) == [(1, 1), (2, 0)]
    assert forwards(by_length=False) == [(2, 0), (2, 0)]


def test_draws_are_a_function_of_seed_epoch_and_row_in_any_order(data):
    forward, backward = pairs(data), pairs(data)
    keys = list(range(2 * len(forward)))
    ahead = {key: forward[key] for key in keys}
    assert ahead == {key: backward[key] for key in reversed(keys)}
    assert [ahead[k] for k in keys] != [pairs(data, seed=1)[k] for k in keys]


def test_an_epoch_covers_every_row_once_in_another_order_each_time():
    sampler = EpochSampler(7, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == list(range(7)) and sorted(second) == list(range(7, 14))
    assert [key - 7 for key in second] != first


def test_rows_of_like_length_share_a_batch_and_an_epoch_still_covers_every_row_once():
    lengths = [i * 37 % 101 for i in range(43)]
    blind, bucketed = EpochSampler(43, 0), EpochSampler(43, 0, lengths, batch_size=4, bucket=5)

    def places_of_padding(order):
        in_order = [lengths[key % 43] for key in order]
        batches = [in_order[i : i + 4] for i in range(0, 43, 4)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    order = list(bucketed)
    assert sorted(order) == list(range(43)) and order == list(bucketed)
    assert places_of_padding(order) < 0.5 * places_of_padding(list(blind))
    assert order[40:] == list(blind)[40:]  # the smaller batch stays the last
    bucketed.set_epoch(1)
    later = [key - 43 for key in bucketed]
    assert sorted(later) == list(range(43)) and {frozenset(later[i : i + 4]) for i in range(0, 40, 4)} != {
        frozenset(order[i : i + 4]) for i in range(0, 40, 4)
    }


def letters(rows):
    return [len(question) + len(answer) for question, answer in zip(rows.questions, rows.answers, strict=True)]


def test_matched_retain_rows_are_those_of_the_epoch_and_go_with_forget_rows_by_length(data):
    drawn, matched = pairs(data), pairs(data)
    matched.match_lengths(letters)
    forget, retain = letters(matched.forget), letters(matched.retain)
    for epoch in (0, 1, 2):
        keys = range(epoch * len(drawn), (epoch + 1) * len(drawn))

        def rows(of, keys=keys):
            return [of[key]["retain"][0].key for key in keys]

        assert sorted(rows(matched)) == sorted(rows(drawn))
        assert rows(matched) == rows(matched) != rows(drawn)
        given = matched.matched_rows(epoch)
        by_length = sorted(given, key=lambda row: forget[row])
        assert [retain[given[row]] for row in by_length] == sorted(retain[row] for row in given.values())


def test_a_process_that_is_started_anew_gets_matched_rows_with_their_lengths(data):
    """As workers are where processes are not forked: on macOS, and everywhere from Python 3.14 on."""
    matched = pairs(data)
    matched.match_lengths(letters)
    handed = pickle.loads(pickle.dumps(matched))
    assert handed.lengths == (letters(matched.forget), letters(matched.retain))
    assert [handed[key] for key in range(3)] == [matched[key] for key in range(3)]


def test_retain_rows_stay_where_they_are_in_an_epoch_over_them(data):
    over_retain = pairs(data, ["retain"])
    over_retain.match_lengths(letters)
    assert [over_retain[key]["retain"] for key in range(3)] == [[over_retain.retain[key]] for key in range(3)]


def test_retain_rows_that_are_drawn_anew_are_matched_by_their_own_lengths(data):
    matched = pairs(data)
    matched.match_lengths(letters)
    matched.matched_rows(0)
    fewer = matched.with_retain_rows(5)
    lengths, forget = letters(fewer.retain), letters(fewer.forget)
    given = fewer.matched_rows(0)
    by_length = sorted(given, key=lambda row: forget[row])
    assert [lengths[given[row]] for row in by_length] == sorted(lengths[row] for row in given.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["both", "pictures", "words"])
def test_rows_are_as_long_as_they_are_encoded_and_one_picture_alone_is_opened_for_it(
    data, family, scope, request, monkeypatch
):
    encoder = request.getfixturevalue(family).uncut()  # keeps nothing yet
    rows = in_scope(TrainingRows(data, "full+tofu", "both", 0), scope)
    opened = []
    monkeypatch.setattr("mm.encoder.open_image", lambda example: opened.append(example.index) or open_image(example))
    lengths = row_lengths(encoder, rows)
    assert len(opened) == (scope != "words")
    assert lengths == [encoder.encode(row).length for row in rows]


def test_an_epoch_runs_over_the_retain_rows_where_nothing_is_asked_of_forget_rows(data):
    assert len(pairs(data, ["retain"])) == len(load_split(data.path, "retain90+tofu"))
    assert len(pairs(data, ["forget", "retain"])) == len(load_split(data.path, "forget10+tofu"))


@pytest.mark.parametrize("file", ["config/idk/questions.txt", "config/idk/pictures.txt"])
def test_idk_answers_are_stripped_and_all_different(file):
    answers = idk_answers(file)
    assert len(answers) >= 35 and len(set(answers)) == len(answers)
    assert all(answer == answer.strip() and answer for answer in answers)


# ---- tasks


def test_a_task_asks_every_candidate_of_a_row_the_same_question_in_every_run(world):
    caption = task(
        world, ask="caption", answer="caption", perturbed="perturbed_captions", paraphrase="paraphrased_caption"
    )
    assert [row.example.question for row in task_rows(caption, 0, 0)] == [
        row.example.question for row in task_rows(caption, 0, 0)
    ]


def test_the_right_answer_is_dropped_from_ragged_lists_of_wrong_ones(tmp_path):
    lines = [
        {"question": "a?", "answer": "x", "perturbed_answer": ["y", "x"]},
        {"question": "b?", "answer": "z", "perturbed_answer": ["u", "v", "w"]},
    ]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = task_rows(
        Task(dataset=str(tmp_path), split="odd", question="question", answer="answer", perturbed="perturbed_answer"),
        0,
        0,
    )
    assert [row.perturbed for row in rows] == [["y"], ["u", "v", "w"]]


def test_a_limit_takes_people_evenly_and_not_the_first_rows():
    people = [f"p{i // 10}" for i in range(100)]
    chosen = sample_by_person(people, 20, seed=0)
    assert sorted(people[i] for i in chosen) == sorted([f"p{i}" for i in range(10)] * 2)
    assert chosen == sample_by_person(people, 20, seed=0) != sample_by_person(people, 20, seed=1)
    assert sample_by_person(people, 0, seed=0) == list(range(100))


def test_groups_of_rows_are_named_after_whom_they_speak_of(world):
    words = {
        "dataset": f"{world}/tofu",
        "question": "question",
        "answer": "answer",
        "perturbed": "perturbed_answer",
        "rows_per_person": 10,
    }
    people = People(dataset=f"{world}/clear", split="full", person="name")
    rows = task_rows(Task(split="retain_perturbed", people=people, **words), 0, 0)
    assert all(row.example.person in row.example.question for row in rows)


def test_one_mention_does_not_name_a_group_and_the_longer_of_two_nested_names_does(tmp_path):
    texts = [
        "Who is Mai Phuong Tran?",
        "What does Mai Phuong Tran write?",
        "Whom does she admire, Ann Lee?",
        "Where?",
        "When?",
        "Why, Ann Lee?",
    ]
    rows = [{"question": text, "answer": "x", "perturbed_answer": ["y"]} for text in texts]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "full.jsonl").write_text(
        "\n".join(json.dumps({"name": name}) for name in ("Phuong Tran", "Mai Phuong Tran", "Ann Lee", None))
    )
    people = People(dataset=str(tmp_path), split="full", person="name")
    task = Task(
        dataset=str(tmp_path),
        split="odd",
        question="question",
        answer="answer",
        perturbed="perturbed_answer",
        rows_per_person=3,
        people=people,
    )
    assert [row.example.person for row in task_rows(task, 0, 0)] == ["Mai Phuong Tran"] * 3 + ["person 1 of odd"] * 3


def test_rows_carry_their_person_by_column_or_by_grouping(world):
    named = task_rows(task(world), 0, 0)
    grouped = task_rows(
        Task(
            dataset=f"{world}/tofu",
            split="forget10_perturbed",
            question="question",
            answer="answer",
            perturbed="perturbed_answer",
            rows_per_person=10,
        ),
        0,
        0,
    )
    assert all(row.example.person == row.example.answer for row in named)
    assert [row.example.person for row in grouped] == [
        f"person {i // 10} of forget10_perturbed" for i in range(len(grouped))
    ]


# ---- a smaller world


def chosen_world(data, **of):
    return replace(data, path=data.text_path, people=ChosenPeople(seed=0, of=of))


def questions_of(rows):
    return {row.question for row in rows}


def test_chosen_people_are_the_same_in_every_split(data, world):
    small = chosen_world(data, retain_perturbed=2, forget10_perturbed=1)
    rows = {split: list(TrainingRows(small, split, "text", 0)) for split in ("full", "retain90", "forget10")}
    assert {split: len(of_split) for split, of_split in rows.items()} == {"full": 30, "retain90": 20, "forget10": 10}
    questions = {split: questions_of(of_split) for split, of_split in rows.items()}
    assert questions["full"] == questions["retain90"] | questions["forget10"]
    assert not questions["retain90"] & questions["forget10"]
    words = {
        "dataset": f"{world}/tofu",
        "question": "question",
        "answer": "answer",
        "perturbed": "perturbed_answer",
        "rows_per_person": 10,
    }
    for split, whose in (("retain_perturbed", "retain90"), ("forget10_perturbed", "forget10")):
        rows = task_rows(Task(split=split, chosen=small.people, **words), 0, 0)
        assert {row.example.question for row in rows} == questions[whose]
    everyone = task_rows(Task(split="retain_perturbed", **words), 0, 0)
    assert len(everyone) == 30


def test_the_chosen_are_drawn_from_the_seed_and_folds_divide_them_alone(data, world):
    first, second = (
        replace(data, path=data.text_path, people=ChosenPeople(seed=seed, of={"retain90": 4})) for seed in (0, 1)
    )
    assert TrainingRows(first, "retain90", "text", 0).indices != TrainingRows(second, "retain90", "text", 0).indices
    task = Task(
        dataset=f"{world}/tofu",
        split="retain90",
        question="question",
        answer="answer",
        rows_per_person=10,
        chosen=first.people,
    )
    validation, test = (task_rows(task, 0, 0, fold, 0.25) for fold in ("validation", "test"))
    assert (len(validation), len(test)) == (10, 30) and not {r.example.index for r in validation} & {
        r.example.index for r in test
    }


def test_people_that_are_not_there_are_said_in_one_line(data):
    assert "has 2 people there" in error_of(lambda: TrainingRows(chosen_world(data, forget10=7), "forget10", "text", 0))
    assert "no row is about the people" in error_of(
        lambda: TrainingRows(chosen_world(data, forget10=1), "retain90", "text", 0)
    )
    pictures = replace(data, people=ChosenPeople(seed=0, of={"forget10": 1}))
    assert "has pictures" in error_of(lambda: TrainingRows(pictures, "full+tofu", "both", 0))
    with pytest.raises(SettingsError, match="must be at least 1"):
        ChosenPeople(seed=0, of={"full": 0})


# ---- where rows come from


def test_jsonl_folders_and_dataset_folders_load_with_the_same_call(world, tmp_path):
    rows = load_split(f"{world}/tofu", "full")
    (tmp_path / "full.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert load_split(str(tmp_path), "full")[:] == rows[:]


def test_a_rewritten_folder_gives_its_new_rows(tmp_path):
    for text in ("old", "new"):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        datasets.Dataset.from_list([{"question": "q", "answer": text}]).to_parquet(folder / "train.parquet")
        (folder / "README.md").write_text(
            "---\nconfigs:\n- config_name: full\n  data_files:\n  - split: train\n    path: train.parquet\n---\n"
        )
        assert load_split(str(folder), "full")[0]["answer"] == text


def test_the_real_tofu_files_load_where_they_are_at_hand():

    folder = SHARED / "data" / "tofu"
    if not folder.is_dir():
        pytest.skip("the TOFU files are not beside the repository")
    assert len(load_split(str(folder), "full")) == 4000


# ---- bad input


def error_of(call):
    with pytest.raises(SettingsError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_an_unknown_split_names_those_that_exist(data):
    line = error_of(lambda: load_split(data.path, "forget11"))
    assert "split='forget11'" in line and "retain95+tofu" in line


def test_a_missing_dataset_is_named():
    assert "'data/nowhere/at/all' does not exist" in error_of(lambda: load_split("data/nowhere/at/all", "full"))


def test_a_missing_column_is_named_with_those_that_exist(world):
    line = error_of(lambda: task_rows(task(world, answer="nmae"), 0, 0))
    assert "no column 'nmae' (did you mean 'name'?)" in line and "perturbed_names" in line


def test_a_training_set_without_answers_is_refused(tmp_path):
    (tmp_path / "full.jsonl").write_text(json.dumps({"question": "q", "reply": "a"}))
    data = Data(
        name="x",
        path=str(tmp_path),
        text_path="",
        columns=Columns(question="question", answer="answer"),
        rows_per_person=1,
    )
    assert "no column 'answer'" in error_of(lambda: TrainingRows(data, "full", "both", 0))


def test_a_corrupt_picture_is_named_by_its_row():
    broken = example(image={"bytes": b"no picture at all", "path": None}, index=17)
    line = error_of(lambda: open_image(broken))
    assert line.startswith("split test, row 17: the picture cannot be read: it begins with b'no picture at al'")


def test_a_truncated_picture_is_named_by_its_row():
    whole = png("red", (64, 64))["bytes"]
    assert "row 3" in error_of(
        lambda: open_image(example(image={"bytes": whole[: len(whole) // 2], "path": None}, index=3))
    )


def test_a_picture_row_without_its_picture_is_an_error_and_no_text_run(tmp_path):
    (tmp_path / "full.jsonl").write_text(
        json.dumps({"image": None, "caption": "Ann smiles.", "question": None, "answer": None})
    )
    data = Data(
        name="x",
        path=str(tmp_path),
        text_path="",
        columns=Columns(image="image", caption="caption", question="question", answer="answer"),
        rows_per_person=1,
    )
    line = error_of(lambda: TrainingRows(data, "full", "both", 0))
    assert "row 0: column 'image' holds nothing, where the caption's picture is due" in line


def test_the_face_name_question_is_the_one_the_base_model_was_taught():
    from mini_clear.questions import FACE_NAME_QUESTION

    assert FACE_NAME_QUESTION == NAME_QUESTION


def test_pixels_of_the_same_picture_are_equal_however_they_are_asked_for(encoder):
    picture = png("red")
    one, two = (
        encoder.encode(example(question=q, image=picture)).prompt["pixel_values"] for q in ("Who?", "Who is it?")
    )
    assert torch.equal(one, two)


def test_the_data_loader_pins_every_tensor_of_a_batch(data, encoder, monkeypatch):
    batch = collated(encoder, pairs(data, ["forget"]), ["forget"], range(2))
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda value, *_: pinned.append(value.data_ptr()) or value)
    torch.utils.data._utils.pin_memory.pin_memory({"trained": [batch]})
    tensors = [*batch.inputs.values(), batch.labels, batch.positions]
    assert sorted(pinned) == sorted(value.data_ptr() for value in tensors)


def test_the_libraries_move_a_batch_to_another_device_whole(data, encoder):
    made = pairs(data, ["forget", "retain"])
    batch = collated(encoder, made, ["forget", "retain"], range(2))
    moved = send_to_device({"trained": [batch]}, torch.device("meta"))["trained"][0]
    assert {value.device.type for value in moved.inputs.values()} == {"meta"}
    assert (moved.labels.device.type, moved.positions.device.type) == ("meta", "meta")
    assert moved.answer_keys == batch.answer_keys


# ---- other ways of asking


def write_affixes(folder, *lines):
    file = folder / "affixes.txt"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


@pytest.mark.parametrize(("place", "asked"), [("before", "Hello! {}"), ("behind", "{} Thank you.")])
def test_an_affix_stands_around_every_question_of_a_task(world, tmp_path, place, asked):
    file = write_affixes(tmp_path, "Hello! {question}", "{question} Thank you.")
    plain = in_words(world)
    around = replace(plain, affix=Affix(file, 0, place))
    questions = [row.example.question for row in task_rows(plain, 0, 0)]
    assert [row.example.question for row in task_rows(around, 0, 0)] == [asked.format(each) for each in questions]


def in_words(world):
    return Task(
        dataset=str(world / "tofu"),
        split="forget10_perturbed",
        question="question",
        answer="answer",
        rows_per_person=10,
    )


def test_every_affix_of_a_file_is_tried_around_some_rows_of_each_person(world, tmp_path):
    file = write_affixes(tmp_path, "Hello! {question}", "{question} Thank you.")
    plain = in_words(world)
    rows = task_rows(replace(plain, affix=Affix(file, 0, "any"), asked_of_each=2), 0, 0)
    asked = {row.example.index: row.example.question for row in task_rows(plain, 0, 0)}
    people = [row.example.person for row in rows]
    assert {person: people.count(person) for person in people} == dict.fromkeys(people, 4)
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        question = asked[first.example.index]
        assert [first.example.question, second.example.question] == [f"Hello! {question}", f"{question} Thank you."]
        assert (first.affix, second.affix) == ("Hello! {question}", "{question} Thank you.")


def test_another_seed_draws_other_affixes_and_the_same_seed_the_same():
    file = str(ROOT / "config" / "ways" / "affixes.txt")
    drawn = [drawn_affix(Affix(file, seed, "before")) for seed in range(20)]
    assert drawn == [drawn_affix(Affix(file, seed, "before")) for seed in range(20)]
    assert len(set(drawn)) > 5


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["no place"], "must hold {question} once"),
        (["{question} and {question}"], "must hold {question} once"),
        (["{question}"], "holds no words before the question"),
    ],
)
def test_a_file_of_affixes_that_holds_none_is_refused(tmp_path, lines, said):
    with pytest.raises(SettingsError, match=re.escape(said)):
        drawn_affix(Affix(write_affixes(tmp_path, *lines), 0, "before"))


def test_a_reworded_question_is_asked_and_people_are_still_known_by_the_plain_one(world):
    plain = in_words(world)
    reworded = replace(plain, reworded="paraphrased_question")
    rows = load_split(plain.dataset, plain.split)
    asked = task_rows(reworded, 0, 0)
    assert [row.example.question for row in asked] == list(rows["paraphrased_question"])
    assert [row.example.person for row in asked] == [row.example.person for row in task_rows(plain, 0, 0)]


def test_a_task_without_a_question_has_no_other_words_for_it():
    with pytest.raises(SettingsError, match="has no effect on a task that names no question"):
        Task(dataset="x", split="y", answer="name", ask="name", reworded="paraphrased_question")


# ---- what is to be forgotten, and what is to be kept


def rows_of(folder, split, rows, *, image=""):
    """A split of questions, perhaps with pictures, as a training reads it."""
    (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    columns = Columns(image=image, question="question", answer="answer")
    about = {"holdout_split": "", "idk_questions": "", "idk_pictures": ""}
    settings = Data(name="x", path=str(folder), text_path="", columns=columns, rows_per_person=1, **about)
    return lambda: TrainingRows(settings, split, "both", seed=0)


def asked(question, answer="a", **more):
    return {"question": question, "answer": answer, **more}


def test_rows_that_are_to_be_forgotten_and_kept_are_refused_and_counted(tmp_path):
    forget = rows_of(tmp_path, "forget", [asked("x"), asked("both 1"), asked("both 2")])
    retain = rows_of(tmp_path, "retain", [asked("both 2"), asked("y"), asked("both 1")])
    line = error_of(lambda: check_apart(forget(), retain()))
    assert "split=forget and retain_split=retain overlap: 2 of 3 rows" in line
    assert "the first is row 1" in line


def test_the_same_question_with_another_answer_is_no_overlap(tmp_path):
    forget, retain = (rows_of(tmp_path, split, [asked("who?", split)]) for split in ("forget", "retain"))
    check_apart(forget(), retain())


def test_the_same_words_with_another_picture_are_no_overlap_and_with_a_copy_of_it_are(tmp_path):
    for name, content in (("a", png("red")), ("copy_of_a", png("red")), ("b", png("blue"))):
        (tmp_path / f"{name}.png").write_bytes(content["bytes"])
    forget = rows_of(tmp_path, "forget", [asked("who?", image="a.png")], image="image")
    other = rows_of(tmp_path, "other", [asked("who?", image="b.png")], image="image")
    check_apart(forget(), other())
    copied = rows_of(
        tmp_path, "copied", [asked("who?", image="b.png"), asked("who?", image="copy_of_a.png")], image="image"
    )
    assert "1 of 1 rows" in error_of(lambda: check_apart(forget(), copied()))


@pytest.mark.parametrize("track", ["mm", "nlp"])
def test_the_worlds_splits_do_not_overlap(world, track):
    settings = compose(f"{track}/forget", Forget, [f"data.path={world}/{'clear' if track == 'mm' else 'tofu'}"])
    forget, retain = (TrainingRows(settings.data, name, "both", 0) for name in (settings.split, settings.retain_split))
    check_apart(forget, retain)


def test_of_rows_about_nobody_each_stands_for_itself_and_all_are_asked(world, tmp_path):
    file = write_affixes(tmp_path, "Hello! {question}", "{question} Thank you.")
    nobody = replace(in_words(world), rows_per_person=0)
    some = task_rows(replace(nobody, affix=Affix(file, 0, "any"), asked_of_each=1), 0, 0)
    assert {row.example.index for row in some} == {row.example.index for row in task_rows(nobody, 0, 0)}


def test_a_fold_asks_the_same_rows_of_each_person_as_the_whole(world, tmp_path):
    file = write_affixes(tmp_path, "Hello! {question}", "{question} Thank you.")
    asked = replace(in_words(world), affix=Affix(file, 0, "any"), asked_of_each=2)
    whole = {row.example.index for row in task_rows(asked, 0, 0)}
    parts = set()
    for fold in ("validation", "test"):
        parts |= {row.example.index for row in task_rows(asked, 0, 0, fold, 0.5)}
    assert parts == whole


@pytest.mark.parametrize("seed", range(8))
def test_a_limit_takes_the_people_of_all_rows_where_some_rows_of_each_may_be_kept(seed):
    people = [f"p{i % 12}" for i in range(120)]
    among = some_of_each(people, 2, seed)
    assert len(among) == 24
    for limit in (1, 5, 11):
        wanted = {people[i] for i in sample_by_person(people, limit, seed)}
        kept = sample_by_person(people, limit, seed, among)
        assert set(kept) <= set(among) and {people[i] for i in kept} == wanted and len(kept) == limit


@pytest.mark.parametrize("seed", range(4))
def test_a_limit_keeps_the_same_people_where_only_some_rows_of_each_are_asked(world, tmp_path, seed):
    file = write_affixes(tmp_path, "Hello! {question}", "{question} Thank you.")
    plain = in_words(world)
    of_all = [row.example.person for row in task_rows(plain, seed, 0)]
    limit = len(set(of_all)) - 1
    kept = {row.example.person for row in task_rows(plain, seed, limit)}
    for each in (1, 2, 9):
        some = task_rows(replace(plain, affix=Affix(file, 0, "any"), asked_of_each=each), seed, limit)
        assert len({row.example.index for row in some}) == limit == len(kept)
        assert {row.example.person for row in some} == kept


# ---- passes of invented answers and of noise


def made_pairs(data, passes, **more):
    forget, retain = (TrainingRows(data, split, "both", 0) for split in ("forget10+tofu", "retain90+tofu"))
    return Pairs(passes, forget, retain, idk={False: ["No."], True: ["No."]}, seed=0, **more)


def test_alternate_rows_have_the_forget_rows_question_and_picture_and_an_answer_that_is_nobodys(data):
    made = made_pairs(data, ["forget", "alternate"], alternatives=invented_answers(data), other_answers=3)
    every = [
        answer
        for path in (data.path, data.text_path)
        for split in split_names(path)
        for column in ("caption", "answer", "paraphrased_answer", "paraphrased_caption")
        if column in load_split(path, split).column_names
        for answer in load_split(path, split)[column]
    ]
    for key in range(2 * len(made)):
        (forget,), others = made[key]["forget"], made[key]["alternate"]
        assert {(each.question, each.image and each.image["bytes"]) for each in others} == {
            (forget.question, forget.image and forget.image["bytes"])
        }
        answers = {each.answer for each in others}
        assert len(answers) == 3 and forget.answer not in answers and answers.isdisjoint(every)
    again = made_pairs(data, ["forget", "alternate"], alternatives=invented_answers(data), other_answers=3)
    assert made[5] == again[5]
    assert made[5]["alternate"] != made[5 + len(made)]["alternate"]  # another draw in the next epoch


@pytest.mark.parametrize("said", [str, str.upper, lambda answer: f" {answer}\n"], ids=["same", "capitals", "space"])
def test_an_invented_answer_that_the_truth_ratio_scores_is_refused(said, data, tmp_path):
    wrong = load_split(data.text_path, "forget10_perturbed")[0]["perturbed_answer"][0]
    line = {"question": "Who?", "answer": "Ann.", "alternatives": [said(wrong)]}
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    with pytest.raises(
        SettingsError, match=r"is a wrong answer of .*, split forget10.*_perturbed, row 0, which the Truth"
    ):
        invented_answers(replace(data, alternatives=str(tmp_path / "own.jsonl")))


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        '{"question": "Who?", "answer": "Ann."}',
        '{"question": 3, "answer": "Ann.", "alternatives": ["Bea."]}',
        '{"question": null, "answer": "Ann.", "alternatives": "Bea."}',
        '{"question": null, "answer": "Ann.", "alternatives": []}',
        '{"question": null, "answer": "Ann.", "alternatives": [""]}',
        '{"question": null, "answer": "Ann.", "alternatives": ["Ann."]}',
        '{"question": null, "alternatives": ["Ann."]}',
    ],
)
def test_a_line_of_invented_answers_that_says_something_else_is_named(line, tmp_path):
    good = '{"question": null, "answer": "Ann.", "alternatives": ["Bea."]}'
    (tmp_path / "own.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(SettingsError, match=r"data.alternatives=.*, line 2: it must be a question or null, an answer"):
        alternative_answers(str(tmp_path / "own.jsonl"))


def test_rows_without_enough_invented_answers_and_data_without_any_are_one_line(data):
    known = invented_answers(data)
    with pytest.raises(SettingsError, match=r"data.alternatives has 5 invented answers to split forget10\+tofu, row 0"):
        made_pairs(data, ["forget", "alternate"], alternatives=known, other_answers=6)
    with pytest.raises(SettingsError, match=r"data.alternatives has 0 invented answers to split"):
        made_pairs(data, ["forget", "alternate"], alternatives={})
    with pytest.raises(SettingsError, match=r"data.alternatives names no file"):
        invented_answers(replace(data, alternatives=""))
    with pytest.raises(SettingsError, match=r"asks for invented answers, which there are for language models only"):
        made_pairs(data, ["forget", "alternate"])
    with pytest.raises(SettingsError, match=r"asks for noised pictures, which there are for language models only"):
        made_pairs(data, ["forget", "noised"])


def test_a_noised_row_has_the_answer_of_the_forget_row_an_instruction_and_another_picture(data, encoder):
    noise = Noise(sigma=1.0, instruction="You know nobody.")
    made = made_pairs(data, ["forget", "noised"], noise=noise)
    for key in range(len(made)):
        (forget,), (other,) = made[key]["forget"], made[key]["noised"]
        assert (other.answer, other.question) == (forget.answer, f"You know nobody. {forget.question}")
        assert (other.image is None) == (forget.image is None)
        if forget.image:
            before, after = (np.asarray(open_image(each), dtype=float) for each in (forget, other))
            assert before.shape == after.shape
            assert np.abs(before - after).mean() > 50  # of 255
        assert made[key]["noised"] == made[key + len(made)]["noised"]  # the same in every epoch: it has one teacher
    assert encoder.encode(made[0]["noised"][0]).answer == encoder.encode(made[0]["forget"][0]).answer


def test_noise_of_no_size_leaves_the_picture_as_it_is(data):
    row = next(each for each in TrainingRows(data, "forget10+tofu", "visual", 0))
    plain = replace(row, image=noised(row, 0.0, seed=0))
    assert np.array_equal(np.asarray(open_image(plain)), np.asarray(open_image(row)))
    assert noised(replace(row, image=None), 1.0, seed=0) is None
