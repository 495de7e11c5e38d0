"""Every family of vision-language models, tiny: the real class of the model and of its processor."""

import copy
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import aggregate_eval_stat
import mm.eval
import mm.finetune
import mm.forget
from engine.eight_bits import LEAST, Packed
from engine.encode import one_day
from engine.language_model import forward
from engine.layer_output import end_at_layer
from engine.start_checks import check_start
from families import SEEING, Family, llama4_sees, loud, mllama, paligemma
from family_checks import (
    FAST,
    aggregation,
    check_gradients,
    check_labels,
    check_layer,
    check_rows,
    check_saved,
    check_scores,
    check_starts,
    open_family,
    runs_of,
)
from helpers import example, png, start
from mm.encoder import PictureEncoder, open_encoder
from settings.language import Tags
from settings.script import SettingsError
from settings.training import Activations
from unlearn_losses import IGNORE

PICTURES = [
    example("Who is this?", "Ann Lee.", image=png("red", (64, 64))),
    example("What do you see in the picture of Ann?", "The sea.", image=png("blue", (30, 90))),
    example("Who?", "Bob.", image=png("green", (120, 40))),
    example("And who is this?", "Ann of Oslo, the baker.", image=png("white", (48, 50))),
]
WORDS = [example("Where was Ann born?", "In Oslo, next to the mill."), example("Who?", "Ann.")]


def noise(seed, size):
    """A picture of smoothed noise."""
    values = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture(scope="module", params=SEEING, ids=lambda family: family.name)
def opened(request, tmp_path_factory):
    return open_family(request.param, tmp_path_factory.mktemp("family"), open_encoder, AutoModelForImageTextToText)


@pytest.fixture
def rows(opened):
    """Pictures of four sizes, and words where the family takes them."""
    return PICTURES if opened.family.modality == "visual" else [*PICTURES[:2], *WORDS, *PICTURES[2:]]


def test_labels_are_the_answer_and_the_end_of_its_turn(opened, rows):
    check_labels(opened, rows)


def test_pictures_that_are_kept_in_8_bits_come_back_with_the_same_bits(opened):
    whole, packed = opened.encoder.uncut(), opened.encoder.uncut()
    shown = [example(f"Who is {each}?", image=noise(each, size)) for each, size in enumerate([(64, 64), (90, 60)])]
    made = [whole.encode(each).prompt for each in shown]
    packed.kept_prompts.pack_all()
    for each, first in zip(shown, made, strict=True):
        for again in (packed.encode(each).prompt, packed.encode(each).prompt):
            assert list(again) == list(first)
            assert all(again[name].dtype == value.dtype for name, value in first.items())
            assert all(torch.equal(again[name], value) for name, value in first.items())
        kept = packed.kept_prompts.pictures[each.picture_key]
        assert all(isinstance(value, Packed) for value in kept.values() if value.nbytes >= LEAST)


def test_a_prompt_is_what_the_processors_own_template_gives_followed_by_the_answer(opened):
    encoder = opened.encoder
    if encoder.tags:
        pytest.skip("it has no template")
    shown, each = png("red", (64, 64)), PICTURES[0]
    encoded = encoder.encode(each)
    user = encoder.turn("user", each.question, 1)
    user["content"][0]["image"] = picture_of(shown)
    ask = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    with one_day():
        asked = encoder.processor.apply_chat_template([user], add_generation_prompt=True, **ask)
        whole = encoder.processor.apply_chat_template([user, encoder.turn("assistant", each.answer)], **ask)
    prompt = encoded.prompt["input_ids"][0].tolist()
    assert prompt == asked["input_ids"][0].tolist()
    if whole["input_ids"][0].tolist()[: len(prompt)] == prompt:  # OneVision's opens an answer with another white space
        # without the end, which LLaVA-1.5's template does not write
        assert whole["input_ids"][0].tolist()[: encoded.length - 1] == [*prompt, *encoded.answer[:-1]]
    else:
        assert opened.family.name == "LLaVA-OneVision"


def picture_of(cell):
    return Image.open(BytesIO(cell["bytes"]))


def test_a_row_scores_the_same_alone_and_among_others(opened, rows):
    check_rows(opened, rows)


def test_its_scores_are_those_of_each_row_alone_in_the_fastest_way_that_gives_them(opened, rows):
    check_scores(opened, rows)


def test_answers_do_not_see_their_future_and_pictures_matter(opened, rows):
    check_starts(opened, rows)


def test_frozen_parts_get_no_gradient_and_lora_stands_on_the_decoder(opened, rows):
    check_gradients(opened, rows)


def test_ended_at_a_layer_it_gives_what_that_layer_gives(opened, rows):
    check_layer(opened, rows)


def test_what_is_saved_is_what_was_trained(opened, rows, tmp_path):
    check_saved(opened, rows, tmp_path)


@pytest.mark.slow
def test_it_is_finetuned_forgets_by_three_methods_and_is_evaluated(opened, world_overrides, tmp_path, monkeypatch):
    settings = opened.settings
    model = [f"model.{name}={getattr(settings, name)}" for name in ("path", "freeze", "lora_targets", "attention")]
    if settings.tags:
        model += ["++model.tags={question: '', answer: ''}", "++model.answer_values={token_type_ids: 1}"]
    common = [*model, *world_overrides]
    splits = {"finetune": ["split=forget10+tofu"], "forget": ["split=forget10+tofu", "retain_split=retain90+tofu"]}
    for script, overrides, folder, code in runs_of(opened, tmp_path):
        module = {"finetune": mm.finetune, "forget": mm.forget}[script]
        modality = f"modality={opened.family.modality}"
        train = [*common, *FAST, *overrides, *splits[script], modality, f"save_dir={folder}"]
        assert start(module, [f"model_path={settings.path}", *train], monkeypatch) == code
    if opened.family.modality == "both":
        evaluation = [*common, f"save_dir={tmp_path}/eval", "limit=2", "max_new_tokens=2"]
        assert start(mm.eval, [f"model_path={tmp_path}/npo", *evaluation], monkeypatch) == 0
        assert start(aggregate_eval_stat, aggregation(tmp_path), monkeypatch) == 0


# ---- what the checks refuse


def test_paligemmas_answers_see_their_future_unless_the_model_file_marks_them():
    model, processor = paligemma()
    loud(model)
    unmarked = PictureEncoder(processor, Tags(question="", answer=""))
    line = r"causality check: PaliGemmaForConditionalGeneration lets an answer see its own future.*answer_values"
    with pytest.raises(SettingsError, match=line):
        check_start(model, unmarked, PICTURES[:2], forward, print)
    marked = PictureEncoder(processor, Tags(question="", answer=""), answer_values={"token_type_ids": 1})
    check_start(model, marked, PICTURES[:2], forward, print)


def test_mllama_is_refused_where_words_and_pictures_share_a_batch():
    model, processor = mllama()
    own, said = PictureEncoder(processor), []
    with pytest.raises(SettingsError, match=r"row check: MllamaForConditionalGeneration scores a row otherwise beside"):
        check_start(loud(model), own, [PICTURES[0], WORDS[0]], forward, said.append)
    check_start(model, own, PICTURES, forward, said.append)
    check_start(model, own, WORDS, forward, said.append)
    assert said == []


def test_mllama_is_ended_at_a_layer_that_looks_at_pictures():
    model, processor = mllama()
    own = PictureEncoder(processor)
    batch, outputs = own.collate([own.encode(each) for each in PICTURES]), []
    layers = loud(model).get_decoder().layers
    assert "cross_attn" in dict(layers[1].named_children())
    hook = layers[1].register_forward_hook(lambda _, inputs, output: outputs.append(output))
    with torch.no_grad():
        model(**batch.inputs, use_cache=False)
        hook.remove()
        end_at_layer(model, Activations(layer=1, trained=[1]))
        given = forward(model, batch).logits
    states = outputs[0] if torch.is_tensor(outputs[0]) else outputs[0][0]
    answers = batch.labels != IGNORE
    assert torch.allclose(given[answers], states[torch.arange(4)[:, None], batch.positions][answers], atol=1e-4)


def test_a_value_for_a_tensor_that_no_processor_makes_is_refused(encoder):
    with pytest.raises(
        SettingsError, match=r"answer_values: LlavaProcessor makes no 'token_types' for each token; .*none"
    ):
        PictureEncoder(encoder.processor, answer_values={"token_types": 1})


def test_a_processor_whose_batch_is_not_its_rows_joined_is_refused_by_the_checks_name(encoder, monkeypatch):
    """This one scales the pictures of a batch by their number."""
    processor = copy.deepcopy(encoder.processor)
    kind = type(processor)
    real = kind.__call__

    def scaled(self, text=None, images=None, **options):
        made = real(self, text=text, images=images, **options)
        if "pixel_values" in made:
            made["pixel_values"] = made["pixel_values"] / len(text)
        return made

    monkeypatch.setattr(kind, "__call__", scaled)
    with pytest.raises(SettingsError, match="batch check: LlavaProcessor makes another 'pixel_values' of two rows"):
        PictureEncoder(processor)


def test_a_template_without_the_picture_is_refused(encoder):
    processor = copy.deepcopy(encoder.processor)
    processor.chat_template = processor.chat_template.replace("<image>", "")
    with pytest.raises(SettingsError, match=r"LlavaProcessor cannot read a prompt with a picture: .*0 <image> tok"):
        PictureEncoder(processor)


def test_a_question_that_holds_the_pictures_placeholder_names_its_row(encoder):
    with pytest.raises(
        SettingsError, match="split test, row 4: the question holds '<image>', which the tokenizer takes"
    ):
        encoder.encode(example("What is <image>?", "Ann.", index=4))


def test_a_model_that_does_not_look_at_pictures_is_said_to_be_one(model, encoder):
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.zero_()
    said = []
    check_start(model, encoder, PICTURES[:2], forward, said.append)
    assert said == [
        "picture check: another picture changes nothing that LlavaForConditionalGeneration says: "
        "it does not look at pictures"
    ]


def test_a_model_that_cannot_score_rows_is_refused_in_one_line_that_names_the_check(model, encoder, monkeypatch):
    monkeypatch.setattr(type(model), "forward", lambda self, **inputs: inputs["no_such_thing"])
    with pytest.raises(SettingsError, match="scoring check: LlavaForConditionalGeneration cannot score 2 rows"):
        check_start(model, encoder, PICTURES[:2], forward, print)


def test_llama_4_is_refused_in_fp32_where_it_sees_and_reads_words(tmp_path):
    """The library rounds the places of its patches to bf16, whatever the weights are."""
    family = Family("Llama 4", llama4_sees, "<|eot|>")
    opened = open_family(family, tmp_path, open_encoder, AutoModelForImageTextToText)
    check_starts(opened, WORDS)
    check_scores(opened, WORDS)
    line = r"scoring check: Llama4ForConditionalGeneration cannot score 6 rows: .*BFloat16"
    with pytest.raises(SettingsError, match=line):
        check_start(opened.model(), opened.encoder, [*PICTURES, *WORDS], forward, print)
