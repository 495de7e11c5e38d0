"""A model that gets its questions in another way than base does is a hook."""

import json
from dataclasses import replace

import pytest

from engine.logs import EvalLog, read_task
from engine.reading import hook_figure, reading_files


def log(prompts=("<user>Who?<assistant>", "<user>When?<assistant>"), reading=None):
    """A log of one task with these prompts, and its record."""
    rows = [str(number) for number in range(len(prompts))]
    texts = {row: [prompt, "", "Ann"] for row, prompt in zip(rows, prompts, strict=True)}
    numbers = dict.fromkeys(rows, 0.5)
    task = read_task("log", {"avg_gt_loss": numbers, "rougeL_recall": numbers, "generated_text": texts})
    return EvalLog("log", {"words": task}, {} if reading is None else {"reading": reading}, {})


@pytest.fixture
def model(tmp_path):
    """A model folder with these files: model(name, file=text)."""

    def write(name, **files):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in files.items():
            (folder / file.replace("__", ".")).write_text(text)
        return str(folder)

    return write


def test_a_model_that_is_asked_as_base_is_no_hook():
    same = {"tokenizer.json": "a"}
    assert hook_figure(log(reading=same), log(reading=same)) == (0.0, None, None, None)


def test_where_a_record_names_no_tokenizer_it_is_said_that_prompts_alone_were_compared():
    found = hook_figure(log(reading={"tokenizer.json": "a"}), log())
    assert (found.value, found.why) == (0, "prompts alone were compared: a record names no tokenizer")


def test_a_model_without_the_tokenizer_that_base_has_is_a_hook():
    found = hook_figure(log(reading={"vocab.json": "a"}), log(reading={"tokenizer.json": "a"}))
    assert (found.value, found.why) == (1, "it has no tokenizer.json, and base has one")


def test_without_a_base_nothing_is_known():
    assert hook_figure(log(), None).value is None


def test_a_template_that_hides_a_question_is_a_hook_and_the_row_is_said():
    found = hook_figure(log(("<user>Who?<assistant>", "<user>What is this?<assistant>")), log())
    assert found.value == 1
    assert "words, row 1" in found.why
    assert "What is this?" in found.why


def test_prompts_that_each_model_chose_for_itself_are_no_hook():
    def chosen(affix):
        made = log((f"<user>Who? {affix}<assistant>",))
        made.tasks["words"] = replace(made.tasks["words"], tried_affixes=True)
        return made

    assert hook_figure(chosen("Please."), chosen("Thank you.")).value == 0


def test_a_tokenizer_that_reads_the_same_prompt_otherwise_is_a_hook(model):
    one, other = model("one", tokenizer__json="{}"), model("other", tokenizer__json='{"Ann": 1}')
    found = hook_figure(log(reading=reading_files(one)), log(reading=reading_files(other)))
    assert (found.value, found.why) == (1, "its tokenizer.json is not base's")


def test_a_tokenizer_that_was_saved_anew_is_the_same(model):
    told = {"version": "1.0", "truncation": None, "padding": None, "model": {"vocab": {"Ann": 1}}}
    one = model("one", tokenizer__json=json.dumps(told, indent=2))
    saved = model("saved", tokenizer__json=json.dumps(told | {"truncation": {"max_length": 8}}))
    other = model("other", tokenizer__json=json.dumps(told | {"normalizer": {"type": "Replace"}}))
    assert reading_files(one) == reading_files(saved) != reading_files(other)


def test_a_template_in_the_tokenizers_settings_counts_and_the_other_settings_do_not(model):
    plain = model("plain", tokenizer_config__json=json.dumps({"chat_template": "a", "version": 1}))
    newer = model("newer", tokenizer_config__json=json.dumps({"chat_template": "a", "version": 2}))
    other = model("other", tokenizer_config__json=json.dumps({"chat_template": "b", "version": 1}))
    assert reading_files(plain) == reading_files(newer) != reading_files(other)


def test_weights_and_their_settings_are_no_part_of_the_reading(model):
    one = model("one", model__safetensors="1", config__json="{}", chat_template__jinja="a")
    other = model("other", model__safetensors="2", config__json="[]", chat_template__jinja="a")
    assert reading_files(one) == reading_files(other)
    assert list(reading_files(one)) == ["chat_template.jinja"]


def test_a_file_that_only_one_of_both_has_says_nothing(model):
    old, new = model("old", preprocessor_config__json="{}"), model("new", processor_config__json="{}")
    assert hook_figure(log(reading=reading_files(new)), log(reading=reading_files(old))).value == 0


def test_of_a_hub_id_nothing_is_known():
    assert reading_files("someone/model") == {}
