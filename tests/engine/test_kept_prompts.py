import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import mm.encoder
import nlp.encoder
from engine.eight_bits import Packed, Packer
from engine.kept_prompts import KeptPrompts
from engine.reading import processor_files
from helpers import BASE, MODEL, example, png
from settings.language import Model, Tags
from settings.script import SettingsError

CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
ONE = 3 * 32 * 32  # values of a picture


def picture(seed=0, means=CLIP):
    """What a processor makes of a picture of noise: (value / 255 - mean) / deviation of each channel."""
    values = np.random.default_rng(seed).integers(0, 256, (1, 3, 32, 32)).astype(np.float32)
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in means)
    return (torch.from_numpy(values) * (1 / 255) - mean) / deviation


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def patches_of(whole, *, channels_last):
    """(1, 3, 32, 32) -> patches of 8 x 8 pixels, (16, 192), as Qwen-VL has them or with the channels last."""
    parts = whole.view(3, 4, 8, 4, 8)
    order = (1, 3, 2, 4, 0) if channels_last else (1, 3, 0, 2, 4)
    return parts.permute(order).reshape(16, 192)


SHAPES = {
    "a picture": lambda whole: whole,
    "tiles": lambda whole: whole.view(1, 3, 4, 8, 32).permute(0, 2, 1, 3, 4).contiguous(),
    "channels last": lambda whole: whole.permute(0, 2, 3, 1).contiguous(),
    "patches": lambda whole: patches_of(whole, channels_last=False),
    "patches, channels last": lambda whole: patches_of(whole, channels_last=True),
    "bf16": lambda whole: whole.bfloat16(),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("means", [CLIP, ([0.5] * 3, [0.5] * 3)], ids=["by channel", "alike"])
def test_a_picture_in_8_bits_comes_back_with_the_same_bits(shape, means):
    packer = Packer()
    made = [SHAPES[shape](picture(seed, means)) for seed in range(3)]
    packed = [packer.pack(each) for each in made]
    assert [type(each) for each in packed] == [Packed] * 3
    assert all(each.nbytes == ONE for each in packed)
    assert all(same_bits(each.unpacked(), whole) for each, whole in zip(packed, made, strict=True))


def test_zeros_of_both_signs_and_what_is_no_number_keep_their_bits():
    whole = torch.tensor([0.0, -0.0, float("nan"), -float("inf")]).repeat(1, 3, 32, 32)
    packed = Packer().pack(whole)
    assert same_bits(packed.unpacked(), whole)


def test_a_picture_of_more_than_256_values_in_a_channel_is_not_packed():
    assert Packer().pack(torch.arange(ONE, dtype=torch.float32).view(1, 3, 32, 32)) is None


def test_the_257th_value_of_a_channel_is_one_too_many():
    packer = Packer()
    whole = (torch.arange(3 * 1024, dtype=torch.float32) % 256).view(1, 3, 32, 32)
    assert same_bits(packer.pack(whole).unpacked(), whole)
    other = whole.clone()
    other[0, :, 0, 0] = 0.5
    assert packer.pack(other) is None
    assert packer.pack(whole) is None  # and nothing is tried any more


def test_a_picture_that_is_packed_early_outlives_values_that_are_met_later():
    packer = Packer()
    dark = picture() * 0
    early = packer.pack(dark)
    packer.pack(picture(1))
    assert same_bits(early.unpacked(), dark)


# ---- prompts


def prompt(number, made=picture):
    return {"input_ids": torch.full((1, 4), number), "pixel_values": made(number), "sizes": torch.tensor([[32, 32]])}


def asked(number):
    return example(f"Who is {number}?", image={**png("red"), "path": str(number)})


def kept_of(count, room, made=picture):
    kept = KeptPrompts(room, ())
    for number in range(count):
        kept.add(asked(number), prompt(number, made))
    return kept


BESIDE = 4 * 8 + 2 * 8  # bytes of a prompt's ids and sizes


def test_prompts_stay_as_they_are_while_all_have_room():
    kept = kept_of(3, 3 * (4 * ONE + BESIDE))
    assert not kept.packs and kept.room == 0
    assert kept.get(asked(1))["pixel_values"] is kept.get(asked(1))["pixel_values"]


def test_four_times_as_many_pictures_have_room_in_8_bits():
    room = 2 * (4 * ONE + BESIDE)
    kept = kept_of(9, room)
    each = ONE + BESIDE
    assert list(kept.prompts) == [asked(number).prompt_key for number in range(room // each)] == [*kept.prompts][:7]
    assert kept.room == room - 7 * each
    for number in range(7):
        found, whole = kept.get(asked(number)), prompt(number)
        assert list(found) == list(whole)
        assert all(same_bits(found[name], whole[name]) for name in whole)
    assert kept.get(asked(7)) is None


def test_a_picture_that_cannot_be_packed_stays_as_it_is():
    def odd(number):
        return torch.arange(ONE, dtype=torch.float32).view(1, 3, 32, 32) + number

    kept = kept_of(3, 2 * (4 * ONE + BESIDE), odd)
    assert same_bits(kept.get(asked(1))["pixel_values"], odd(1))
    assert kept.get(asked(2)) is None and kept.room == 0


def test_another_question_about_a_packed_picture_costs_its_words_alone():
    kept = kept_of(3, 2 * (4 * ONE + BESIDE))
    left, other = kept.room, example("And who is this?", image=asked(2).image)
    kept.add(other, {**prompt(2), "input_ids": torch.ones(1, 6, dtype=torch.long)})
    assert left - kept.room == 6 * 8
    assert same_bits(kept.get(other)["pixel_values"], picture(2))


def test_what_the_question_changes_of_its_picture_is_its_own():
    kept = kept_of(1, 2**20)
    other = example("And who is this?", image=asked(0).image)
    kept.add(other, {**prompt(0), "pixel_values": picture(5)})
    assert same_bits(kept.get(other)["pixel_values"], picture(5))
    assert same_bits(kept.get(asked(0))["pixel_values"], picture(0))


def test_room_below_nothing_is_refused():
    with pytest.raises(SettingsError, match=r"model\.keep_mib=-1"):
        Model(keep_mib=-1)


def test_where_there_is_no_room_no_picture_is_packed_or_kept():
    kept = kept_of(2, 0)
    assert kept.get(asked(0)) is None and not kept.packers


# ---- from one encoder to the next


@pytest.fixture
def alike(tmp_path):
    """Two folders of one processor."""
    for name in ("one", "other"):
        shutil.copytree(BASE, tmp_path / name)
        (tmp_path / name / "train_meta.json").write_text(name)  # a record is no file of the processor
    return tmp_path / "one", tmp_path / "other"


def change_json(file, **changes):
    told = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in told.items() if value is not None}))


def opened(folder, **changes):
    return mm.encoder.open_encoder(str(folder), MODEL, **changes)


def test_the_next_model_of_one_processor_finds_the_prompts_and_answers_that_were_encoded(alike, monkeypatch):
    first = opened(alike[0])
    encoded = first.encode(example(image=png("red")))
    monkeypatch.setattr(mm.encoder.PictureEncoder, "prompt_inputs", lambda *_: pytest.fail("it is encoded anew"))
    again = opened(alike[1]).encode(example(image=png("red")))
    assert again.answer == encoded.answer and again.prompt.keys() == encoded.prompt.keys()
    assert all(torch.equal(again.prompt[name], value) for name, value in encoded.prompt.items())


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json", "processor_config.json"])
def test_a_model_with_another_file_of_its_processor_finds_nothing(alike, file):
    first = opened(alike[0])
    if file.endswith("json"):
        change_json(alike[1] / file, told="otherwise")
    else:
        (alike[1] / file).write_text((alike[1] / file).read_text() + " ")
    assert opened(alike[1]).kept_prompts is not first.kept_prompts


@pytest.mark.parametrize("file", ["qwen.tiktoken", "tokenizer.model.v3", "additional_chat_templates/a.jinja"])
def test_nor_does_one_with_another_file_that_some_tokenizer_may_read(alike, file):
    for folder in alike:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("one")
    assert processor_files(str(alike[0])) == processor_files(str(alike[1]))
    (alike[1] / file).write_text("other")
    assert processor_files(str(alike[0])) != processor_files(str(alike[1]))


def test_a_tokenizer_whose_configuration_numbers_its_tokens_otherwise_has_its_own_prompts(alike):
    """A token that stands in tokenizer_config.json alone has the next number, in the order of the names there."""
    names, found = {"a_token": "<aa>", "b_token": "<bb>"}, []
    for folder, order in zip(alike, (1, -1), strict=True):
        extra = dict(list(names.items())[::order])
        change_json(folder / "tokenizer_config.json", extra_special_tokens=extra)
        template = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").write_text(f"<aa>{template}")
        config = json.loads((folder / "config.json").read_text())
        change_json(folder / "config.json", text_config={**config["text_config"], "vocab_size": 2112})
        found.append(opened(folder).encode(example()).prompt["input_ids"][0].tolist())
    assert found[0] != found[1] and processor_files(str(alike[0])) != processor_files(str(alike[1]))


def test_a_tokenizer_whose_kind_the_models_configuration_names_has_its_own_prompts(text_base, tmp_path):
    """Without a kind in tokenizer_config.json the library takes that of config.json."""
    asked, found = example(answer="cafe\u0301"), []  # Qwen2's joins the letter and its accent
    for kind in ("PreTrainedTokenizerFast", "Qwen2Tokenizer"):
        folder = tmp_path / kind
        shutil.copytree(text_base, folder)
        change_json(folder / "tokenizer_config.json", tokenizer_class=None)
        change_json(folder / "config.json", tokenizer_class=kind, vocab_size=4000)
        encoder = nlp.encoder.open_encoder(str(folder), replace(MODEL, answer_values={}))
        kept, fresh = encoder.encode(asked), encoder.uncut().encode(asked)
        assert torch.equal(kept.prompt["input_ids"], fresh.prompt["input_ids"]) and kept.answer == fresh.answer
        found.append(fresh)
    assert found[0].answer != found[1].answer  # so that one that was kept would be wrong


def test_where_some_had_no_room_the_next_model_begins_with_none(alike):
    """Else rows of an earlier evaluation would keep those of all later ones from being kept."""
    small = replace(MODEL, keep_mib=0)
    first = mm.encoder.open_encoder(str(alike[0]), small)
    assert mm.encoder.open_encoder(str(alike[1]), small).kept_prompts is first.kept_prompts
    first.encode(example())
    assert mm.encoder.open_encoder(str(alike[1]), small).kept_prompts is not first.kept_prompts


def test_how_weights_are_held_what_a_run_writes_and_from_where_it_was_loaded_make_no_other_processor(alike):
    config = json.loads((alike[1] / "config.json").read_text())
    config["text_config"]["dtype"] = "float16"
    change_json(alike[1] / "config.json", dtype="float32", text_config=config["text_config"])
    (alike[1] / "metrics.jsonl").write_text("{}")
    (alike[1] / "eval_results.lock").write_text("")
    change_json(alike[1] / "tokenizer_config.json", is_local=True, local_files_only=True)
    assert processor_files(str(alike[0])) == processor_files(str(alike[1]))


def test_nor_does_one_with_other_tags_another_room_or_of_another_kind(alike, text_base):
    changed = (MODEL, replace(MODEL, tags=Tags(question="Q: ", answer="A: ")), replace(MODEL, keep_mib=7))
    made = [mm.encoder.open_encoder(str(alike[0]), each) for each in changed]
    made.append(nlp.encoder.open_encoder(text_base, replace(MODEL, answer_values={})))
    assert len({id(each.kept_prompts) for each in made}) == len({id(each.kept_answers) for each in made}) == 4


def test_a_limit_of_length_is_the_encoders_own(alike):
    long = example(answer="blue and green " * 20)
    assert opened(alike[0]).encode(long).length > 40
    with pytest.raises(SettingsError, match="the model takes 40"):
        opened(alike[1], max_length=40).encode(long)


def test_a_picture_that_was_changed_in_its_place_is_read_anew(alike, tmp_path):
    place = tmp_path / "picture.png"

    def shown(colour):
        place.write_bytes(png(colour)["bytes"])
        os.utime(place, ns=(1, len(colour)))  # a clock that is coarser than two writes
        return opened(alike[0]).encode(example(image={"path": str(place), "bytes": None})).prompt["pixel_values"]

    red, blue = shown("red"), shown("blue")
    assert not torch.equal(red, blue)
    assert torch.equal(shown("red"), red)
