"""Every family of language models, tiny: the real class of the model, a tokenizer of its kind and its chat template."""

import json
import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTForCausalLM, XLNetConfig, XLNetLMHeadModel
from transformers.utils import chat_template_utils

import aggregate_eval_stat
import nlp.eval
import nlp.finetune
import nlp.forget
from engine.adapters import add_lora, lora_targets
from engine.encode import one_day
from engine.frozen_start import silence_dropout
from engine.language_model import forward, load_model, positions_of
from engine.score_answers import Prompt, ends_of, score_prompts
from engine.start_checks import check_silent, check_start
from families import READING, TAGS, Family, gemma2, gpt2, llama, llama4, loud, mixtral, opt, qwen2_5, qwen3, smollm3
from family_checks import (
    FAST,
    LORA,
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
from helpers import MODEL, example, start
from nlp.encoder import TextEncoder, open_encoder
from settings.language import Tags
from settings.script import SettingsError

ROWS = [
    example("Where was Ann born?", "In Oslo, next to the mill."),
    example("Who is she, and what does she write about when nobody is at home?", "Ann Lee."),
    example("Who?", "Ann."),
    example("What of the sea?", "The baker of a town by the sea."),
]


@pytest.fixture(scope="module", params=READING, ids=lambda family: family.name)
def opened(request, tmp_path_factory):
    return open_family(request.param, tmp_path_factory.mktemp("family"), open_encoder, AutoModelForCausalLM)


def test_labels_are_the_answer_and_the_end_of_its_turn(opened):
    check_labels(opened, ROWS)


def test_a_prompt_is_what_the_tokenizers_own_template_gives_followed_by_the_answer(opened):
    encoder = opened.encoder
    if encoder.tags:
        pytest.skip("it has no template")
    told = {"enable_thinking": False} if "enable_thinking" in encoder.tokenizer.chat_template else {}
    for each in ROWS:
        encoded, user = encoder.encode(each), encoder.turn("user", each.question)
        turns = [user, encoder.turn("assistant", each.answer)]
        if opened.family.name == "GLM-4":  # an answer is ended by the turn that follows
            turns.append(user)
        template = encoder.tokenizer.apply_chat_template
        with one_day():
            asked = template([user], add_generation_prompt=True, return_dict=False, date_string="26 Jul 2024", **told)
            whole = template(turns, return_dict=False, date_string="26 Jul 2024", **told)
        assert encoded.prompt["input_ids"][0].tolist() == asked
        assert [*asked, *encoded.answer] == whole[: encoded.length]


def test_a_row_scores_the_same_alone_and_among_others(opened):
    check_rows(opened, ROWS)


def test_its_scores_are_those_of_each_row_alone_in_the_fastest_way_that_gives_them(opened):
    check_scores(opened, ROWS)


def test_answers_do_not_see_their_future_and_no_dropout_is_left(opened):
    check_starts(opened, ROWS)


def test_lora_stands_on_the_decoder(opened):
    check_gradients(opened, ROWS)


def test_ended_at_a_layer_it_gives_what_that_layer_gives(opened):
    check_layer(opened, ROWS)


def test_what_is_saved_is_what_was_trained(opened, tmp_path):
    check_saved(opened, ROWS, tmp_path)


@pytest.mark.slow
def test_it_is_finetuned_forgets_by_three_methods_and_is_evaluated(opened, world, tmp_path, monkeypatch):
    settings = opened.settings
    model = [f"model.{name}={getattr(settings, name)}" for name in ("path", "freeze", "lora_targets", "attention")]
    if settings.tags:
        model += ["++model.tags={question: 'Question: ', answer: 'Answer: '}"]
    common = [f"data.text_path={world}/tofu", "data.made_by=''", "model.made_by=''", *model]
    splits = {"finetune": ["split=forget10"], "forget": ["split=forget10", "retain_split=retain90"]}
    for script, overrides, folder, code in runs_of(opened, tmp_path):
        module = {"finetune": nlp.finetune, "forget": nlp.forget}[script]
        train = [*common, *FAST, *overrides, *splits[script], f"save_dir={folder}"]
        assert start(module, [f"model_path={settings.path}", *train], monkeypatch) == code
    evaluation = [*common, "forget=forget10", f"save_dir={tmp_path}/eval", "limit=2", "max_new_tokens=2"]
    assert start(nlp.eval, [f"model_path={tmp_path}/npo", *evaluation], monkeypatch) == 0
    assert start(aggregate_eval_stat, ["scoring=nlp", *aggregation(tmp_path)], monkeypatch) == 0


def test_llama_4_that_looks_back_over_chunks_scores_each_row_as_alone(tmp_path):
    """No file names it, and its fp32 half that sees is refused: tests/mm/test_mm_families.py."""
    family = Family("Llama 4", llama4, "<|eot|>")
    opened = open_family(family, tmp_path, open_encoder, AutoModelForCausalLM)
    check_labels(opened, ROWS)
    check_rows(opened, ROWS)
    check_scores(opened, ROWS)
    check_starts(opened, ROWS)


def test_a_family_that_takes_any_number_of_tokens_is_asked_for_what_its_tokenizer_takes(tmp_path):
    """XLNet's configuration says -1."""
    _, tokenizer = llama()
    config = XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=2, d_inner=64)
    XLNetLMHeadModel(config).save_pretrained(tmp_path)
    assert positions_of(str(tmp_path), replace(MODEL, path=str(tmp_path)), tokenizer) == 0


# ---- the end of a turn


def test_the_end_of_a_turn_is_the_templates_and_not_the_tokenizers():
    """Llama 3: the template ends a turn with one token, and the tokenizer's end-of-sequence is another."""
    _, tokenizer = llama()
    encoder = TextEncoder(tokenizer, None)
    assert tokenizer.eos_token == "<|end_of_text|>"
    assert tokenizer.decode(encoder.encode(example("Who?", "Ann.")).answer) == "Ann.<|eot_id|>"


def test_a_generation_stops_at_every_end_that_the_generation_configuration_names():
    model, tokenizer = llama()
    encoder, prompt = TextEncoder(tokenizer, None), Prompt(example("Who?", "Ann."), ["Ann."])
    limits = {"batch_size": 1, "max_new_tokens": 8, "say": print}
    (free,) = score_prompts(loud(model), encoder, [prompt], **limits)
    unstopped = tokens_said(model, encoder, prompt)
    third = unstopped[2]
    assert len(unstopped) == 8 and third not in unstopped[:2]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, third]
    assert ends_of(model, encoder) == {tokenizer.eos_token_id, encoder.end, third}
    for shared in (True, False):
        (stopped,) = score_prompts(model, encoder, [prompt], **limits, shared=shared)
        assert stopped.generation == tokenizer.decode(unstopped[:2], skip_special_tokens=True).strip()
        assert stopped.generation != free.generation


def test_the_ends_that_a_folder_names_are_read_with_its_model(tmp_path):
    """As Gemma's, whose generation_config.json names two."""
    settings = saved(gemma2, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [1, 5]
    model = load_model(AutoModelForCausalLM, settings.path, replace(settings, attention="eager"), "float32")
    encoder = open_encoder(settings.path, settings)
    names = encoder.tokenizer.convert_ids_to_tokens
    assert {names(number) for number in ends_of(model, encoder)} == {"<eos>", "<end_of_turn>"}
    assert names(encoder.end) == "<end_of_turn>"


@torch.no_grad()
def tokens_said(model, encoder, prompt):
    """Eight tokens of greedy generation, by a plain loop."""
    ids = encoder.encode(prompt.example).prompt["input_ids"]
    start_of_answer = ids.shape[1]
    for _ in range(8):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, start_of_answer:].tolist()


# ---- templates


@pytest.mark.parametrize("make", [qwen3, smollm3])
def test_a_template_that_thinks_is_told_not_to(make):
    _, tokenizer = make()
    text = TextEncoder(tokenizer, None).prompt_text(example("Who?", "Ann."))
    assert text.rstrip().endswith("<think>\n\n</think>")


def test_a_template_that_asks_the_clock_gets_one_day_and_the_clock_goes_on():
    clock = chat_template_utils.datetime
    _, tokenizer = smollm3()
    assert "Today Date: 26 July 2024\n" in TextEncoder(tokenizer, None).prompt_text(example("Who?", "Ann."))
    assert chat_template_utils.datetime is clock


# ---- attention, dropout, adapters


def saved(make, folder):
    model, tokenizer = make()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return replace(MODEL, path=str(folder))


def test_attention_auto_is_eager_where_a_family_has_no_sdpa_and_says_so(tmp_path, capsys):
    settings = saved(gemma2, tmp_path)
    model = load_model(AutoModelForCausalLM, settings.path, replace(settings, attention="auto"), "float32")
    assert model.config._attn_implementation == "eager"
    assert "Gemma2ForCausalLM has no sdpa: model.attention=auto is eager" in capsys.readouterr().out


def test_attention_auto_is_sdpa_where_a_family_has_it_and_says_nothing(tmp_path, capsys):
    settings = saved(llama, tmp_path)
    model = load_model(AutoModelForCausalLM, settings.path, replace(settings, attention="auto"), "float32")
    assert model.config._attn_implementation == "sdpa" and capsys.readouterr().out == ""


def test_sdpa_of_a_family_without_it_is_refused_by_the_setting(tmp_path):
    settings = saved(gemma2, tmp_path)
    with pytest.raises(
        SettingsError, match=r"model\.attention=sdpa: the model at .* has no such attention; set auto or"
    ):
        load_model(AutoModelForCausalLM, settings.path, settings, "float32")


def test_a_dropout_that_is_a_function_is_switched_off_too():
    model, tokenizer = opt()
    model.model.decoder.layers[0].dropout = 0.5
    encoder, said = TextEncoder(tokenizer, Tags(**TAGS["tags"])), []
    check_silent(model, encoder, ROWS, forward, said.append)
    assert len(said) == 1 and said[0].startswith("dropout check: two passes over the same rows differ by")
    silence_dropout(model)
    check_silent(model, encoder, ROWS, forward, said.append)
    assert len(said) == 1


def test_a_dropout_that_cannot_be_switched_off_is_said(monkeypatch):
    model, tokenizer = opt()
    real = OPTForCausalLM.forward

    def noisy(self, *args, **inputs):
        made = real(self, *args, **inputs)
        made.logits = torch.nn.functional.dropout(made.logits, 0.5, self.training)
        return made

    monkeypatch.setattr(OPTForCausalLM, "forward", noisy)
    encoder, said = TextEncoder(tokenizer, Tags(**TAGS["tags"])), []
    silence_dropout(model)
    before = torch.random.get_rng_state()
    check_silent(model, encoder, ROWS, forward, said.append)
    assert len(said) == 1 and "the comparison with the start holds its noise" in said[0]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_adapter_on_a_head_that_is_the_embedding_is_refused():
    model, _ = qwen2_5()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(
        SettingsError, match=r"lora_targets='\.\*' matches 'lm_head', whose weight is the embedding too"
    ):
        lora_targets(model, ".*")
    assert not any("lm_head" in name for name in lora_targets(model, r"layers\..*"))


def test_gpt2s_linear_layers_get_adapters_and_an_update_is_merged():
    model, tokenizer = gpt2()
    model.eval()
    encoder = TextEncoder(tokenizer, Tags(**TAGS["tags"]))
    names = lora_targets(model, "language_model")
    assert {name.split(".", 3)[3] for name in names} == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    adapted = add_lora(model, LORA, "language_model", seed=0).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        batch = encoder.collate([encoder.encode(each) for each in ROWS])
        before = forward(adapted, batch).logits
        assert torch.allclose(forward(adapted.merge_and_unload(), batch).logits, before, atol=1e-3)


def test_experts_that_get_no_adapter_are_said(capsys):
    model, _ = mixtral()
    add_lora(model, LORA, "language_model", seed=0)
    line = r"LoRA leaves out 4 tensors, \d+% of the decoder's weights, which are no linear layers: layers.0.mlp.experts"
    assert re.search(line, capsys.readouterr().out)


# ---- the check at the start


def test_a_model_whose_answers_see_their_future_is_refused(monkeypatch):
    """Every token sees every other."""
    model, tokenizer = llama()
    loud(model)
    encoder = TextEncoder(tokenizer, None)
    check_start(model, encoder, ROWS[:2], forward, print)
    real = type(model.model).forward

    def looking_ahead(self, **inputs):
        mask = inputs["attention_mask"].bool()
        inputs["attention_mask"] = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        return real(self, **inputs)

    monkeypatch.setattr(type(model.model), "forward", looking_ahead)
    with pytest.raises(SettingsError, match="causality check: LlamaForCausalLM lets an answer see its own future"):
        check_start(model, encoder, ROWS[:2], forward, print)


def test_the_room_for_prompts_is_that_of_the_settings(text_base):
    assert open_encoder(str(text_base), replace(MODEL, keep_mib=3)).kept_prompts.room == 3 * 2**20


def test_answer_values_without_effect_are_an_error(text_base):
    with pytest.raises(SettingsError, match=r"model\.answer_values has no effect on a language model"):
        open_encoder(str(text_base), replace(MODEL, answer_values={"token_type_ids": 1}))
