"""A generation that begins with what the scored answers tell is the plain greedy one, and costs only what is left."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from engine import shared_prompts
from engine.adapters import add_lora
from engine.encode import Encoded
from engine.language_model import forward
from engine.score_answers import Prompt, ends_of, score_prompts
from engine.shared_prompts import CHOICE, CHOICE_IN_HALF, Beginning, beginning, doubt_of
from engine.token_figures import TokenFigures
from families import loud
from family_checks import LORA
from helpers import example, png

NEW = 9
END, OTHER_END = 90, 91
TEXT = {
    "vocab_size": 2100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WORDS = [
    example("Who?"),
    example("Which of all these many questions is the one that takes the longest to read?"),
    example("What is this?"),
    example("And where was she born?"),
]
PICTURES = [
    example("Who is this?", image=png("red")),
    example("What do you see in this picture?", image=png("blue", (56, 96))),
    example("Who?", image=png("green")),
]


@torch.no_grad()
def greedy(model, encoder, asked, ends=(), count=NEW):
    """The tokens of greedy generation: a forward of one whole row for each, without keys and values."""
    encoded, said = encoder.encode(asked), []
    for _ in range(count):
        batch = encoder.collate([Encoded(encoded.prompt, [*said, encoder.end], encoded.layout)])
        token = forward(model, batch).logits[0, -1].argmax().item()
        if token in ends:
            break
        said.append(token)
    return said


def told(encoder, monkeypatch, tokens):
    """The name of an answer that has these tokens."""
    name = " ".join(map(str, tokens))
    monkeypatch.setitem(encoder.kept_answers, name, tokens)
    return name


def half_known(model, encoder, monkeypatch, asked, *, count=NEW):
    """Prompts with answers that leave the greedy generation of each at different places, and the generations."""
    ends = ends_of(model, encoder)
    said = [greedy(model, encoder, each, ends, count) for each in asked]
    prompts = []
    for number, (each, text) in enumerate(zip(asked, said, strict=True)):
        known = (2 * number + 1) % (len(text) + 1)
        wrong = next(token for token in range(5, 99) if token not in {*text, *ends})
        leaves = [[wrong, encoder.end], [*text[:known], wrong, wrong, encoder.end], [*text[:1], wrong, encoder.end]]
        leaves = [*leaves[number % 3 :], *leaves[: number % 3]]  # the one that tells most is not everywhere the same
        prompts.append(Prompt(each, [told(encoder, monkeypatch, tokens) for tokens in leaves]))
    return prompts, said


def steps(model):
    """How many tokens of how many rows the model is called with one by one, from now on."""
    called = []

    def note(module, args, inputs):
        if inputs["input_ids"].shape[1] == 1:
            called.append(len(inputs["input_ids"]))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return called


def assert_greedy(model, encoder, prompts, said, **limits):
    for shared in (True, False):
        for from_answers in (True, False):
            ways = {"shared": shared, "from_answers": from_answers}
            results = score_prompts(model, encoder, prompts, **ways, **limits, say=print)
            assert [result.said for result in results] == said, ways


# ---- where a generation leaves an answer


def figures(choices, margins):
    return TokenFigures([0.0] * len(choices), choices, margins, [0.0] * len(choices), [0.0] * len(choices))


@pytest.mark.parametrize(
    ("answer", "choices", "margins", "found"),
    [
        ([7, 8, END], [7, 8, END], [1, 1, 1], Beginning([7, 8], True)),
        ([7, 8, END], [7, 8, OTHER_END], [1, 1, 1], Beginning([7, 8], True)),
        ([7, 8, END], [7, OTHER_END, 5], [1, 1, 1], Beginning([7], True)),
        ([7, 8, END], [END, 8, END], [1, 1, 1], Beginning([], True)),
        ([7, 8, END], [7, 5, END], [1, 1, 1], Beginning([7, 5], False)),
        ([7, 8, END], [7, 8, 5], [1, 1, 1], Beginning([7, 8, 5], False)),
        ([7, 8, END], [7, 8, END], [1, 0.1, 1], Beginning([7], False)),  # not clear
        ([7, 8, END], [7, 5, END], [1, 0.1, 1], Beginning([7], False)),
        ([7, 8, END], [7, 8, END], [1, 1, 0.1], Beginning([7, 8], False)),
        ([7, 8], [7, 8], [1, 1], Beginning([7, 8], False)),  # an answer that was cut has no end
        ([7, 8, END], [7, 8, END], [float("nan")] * 3, Beginning([], False)),
    ],
)
def test_a_generation_follows_an_answer_up_to_the_first_choice_that_is_another_or_is_not_clear(
    answer, choices, margins, found
):
    assert beginning(answer, figures(choices, margins), {END, OTHER_END}, 0.1) == found


def test_where_the_doubt_is_no_number_nothing_is_taken():
    assert beginning([7, END], figures([7, END], [5.0, 5.0]), {END}, float("nan")) == Beginning([], False)


def test_the_doubt_is_a_share_of_the_logits_spread_and_larger_in_half_precision():
    logits = torch.tensor([[0.0, 2.0, 4.0]])  # standard deviation 2
    model = LlamaForCausalLM(LlamaConfig(**TEXT))
    assert doubt_of(model, logits).tolist() == pytest.approx([2 * CHOICE])
    assert doubt_of(model.to(torch.bfloat16), logits.bfloat16()).tolist() == pytest.approx([2 * CHOICE_IN_HALF])


# ---- the generation is the plain one


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_answers_that_are_right_up_to_some_token_change_no_generation(
    model, encoder, monkeypatch, attention, batch_size
):
    model.set_attn_implementation(attention)
    prompts, said = half_known(loud(model), encoder, monkeypatch, [*WORDS, *PICTURES])
    assert_greedy(model, encoder, prompts, said, batch_size=batch_size, max_new_tokens=NEW)


def test_words_and_pictures_of_one_batch_begin_at_different_places(model, encoder, monkeypatch):
    prompts, said = half_known(loud(model), encoder, monkeypatch, [*WORDS, *PICTURES])
    whole = [list(range(len(prompts)))]
    monkeypatch.setattr("engine.score_answers.prompt_batches", lambda prompts, lengths, size: iter(whole))
    assert_greedy(model, encoder, prompts, said, batch_size=64, max_new_tokens=NEW, by_picture=False)


def test_positions_of_a_qwen_vl_go_on_from_the_picture_and_the_answer(qwen_encoder, qwen, monkeypatch):
    asked = [*WORDS[:2], *PICTURES]
    prompts, said = half_known(loud(qwen), qwen_encoder, monkeypatch, asked)
    assert_greedy(qwen, qwen_encoder, prompts, said, batch_size=64, max_new_tokens=NEW)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_generation_has_no_more_than_the_tokens_that_are_asked_for(model, encoder, monkeypatch, count):
    prompts, said = half_known(loud(model), encoder, monkeypatch, WORDS)
    cut = [text[:count] for text in said]
    assert_greedy(model, encoder, prompts, cut, batch_size=64, max_new_tokens=count)


def test_a_generation_stops_at_any_of_several_ends_also_within_a_right_answer(model, encoder, monkeypatch):
    said = greedy(loud(model), encoder, WORDS[0])
    answer = told(encoder, monkeypatch, [*said, encoder.end])
    stop = said[3]
    model.generation_config.eos_token_id = [encoder.end, stop]
    until = said[: said.index(stop)]
    assert_greedy(model, encoder, [Prompt(WORDS[0], [answer])], [until], batch_size=4, max_new_tokens=NEW)


@pytest.mark.parametrize("window", [24, 40, 512])
def test_a_sliding_window_forgets_nothing_for_what_the_answers_tell(encoder, monkeypatch, window):
    model = loud(MistralForCausalLM(MistralConfig(**TEXT, sliding_window=window)))
    prompts, said = half_known(model, encoder, monkeypatch, WORDS)
    assert_greedy(model, encoder, prompts, said, batch_size=64, max_new_tokens=NEW)


def test_where_a_window_leaves_no_room_for_what_is_kept_the_generation_begins_at_the_prompt(encoder, monkeypatch):
    model = loud(MistralForCausalLM(MistralConfig(**TEXT, sliding_window=512)))
    prompts, said = half_known(model, encoder, monkeypatch, WORDS)
    room = NEW + 30  # for a generation from the prompt, and not behind a kept text too
    monkeypatch.setattr(shared_prompts.SharedPrompts, "tokens_left", property(lambda self: room))
    called = steps(model)
    limits = {"batch_size": 64, "max_new_tokens": NEW, "say": print}
    score_prompts(model, encoder, prompts, **limits)
    behind_texts = sum(called)
    room = NEW + 2
    called.clear()
    monkeypatch.setattr("engine.score_answers.longest_suffix", lambda rounds: 0)
    assert [result.said for result in score_prompts(model, encoder, prompts, **limits)] == said
    assert sum(called) > behind_texts


CHANGES = {
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": NEW,
    "num_beams": 3,
    "do_sample": True,
    "encoder_repetition_penalty": 3.0,
    "forced_eos_token_id": 2,
    "forced_bos_token_id": 7,
}


@pytest.mark.parametrize("name", [*CHANGES, "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"])
def test_settings_of_a_checkpoint_that_change_generation_change_none_of_ours(model, encoder, monkeypatch, name):
    """Every way is the greedy generation that the model's logits say, and the model keeps its settings."""
    prompts, said = half_known(loud(model), encoder, monkeypatch, WORDS[:2])
    first = said[0][0]
    by_token = {"suppress_tokens": [first], "begin_suppress_tokens": [first], "bad_words_ids": [[first]]}
    setattr(model.generation_config, name, value := (CHANGES | by_token)[name])
    assert_greedy(model, encoder, prompts, said, batch_size=4, max_new_tokens=NEW)
    assert getattr(model.generation_config, name) == value


@pytest.mark.parametrize("shared", [True, False])
def test_an_adapter_and_the_model_inside_it_keep_their_settings(encoder, shared):
    model = add_lora(loud(LlamaForCausalLM(LlamaConfig(**TEXT))), LORA, "language_model", seed=0).eval()
    models = model, model.get_base_model()
    for each in models:
        each.generation_config.repetition_penalty = 3.0
    before = [each.generation_config for each in models]
    (result,) = score_prompts(
        model, encoder, [Prompt(WORDS[0], ["x"])], batch_size=1, max_new_tokens=NEW, say=print, shared=shared
    )
    assert result.said == greedy(model, encoder, WORDS[0], ends_of(model, encoder))
    assert [each.generation_config for each in models] == before
    assert all(each.generation_config is own for each, own in zip(models, before, strict=True))


def test_a_prompt_without_answers_is_generated_whole(model, encoder, monkeypatch):
    said = greedy(loud(model), encoder, WORDS[0])
    for asked in ([Prompt(WORDS[0], [])], [Prompt(WORDS[0], []), Prompt(WORDS[1], ["x", "y"])]):
        results = score_prompts(model, encoder, asked, batch_size=2, max_new_tokens=NEW, say=print)
        assert results[0].said == said and results[0].answers == {}


# ---- ties


def tied(encoder, share):
    """A llama each of whose tokens has a twin: the logit of the odd one of a pair is the other's, times 1 + share."""
    model = loud(LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=False)))
    with torch.no_grad():
        model.lm_head.weight[1::2] = model.lm_head.weight[::2] * (1 + share)
    return model


@pytest.mark.parametrize("share", [0.0, 1e-7, 1e-6])
def test_nothing_is_taken_from_an_answer_where_rounding_may_decide(encoder, monkeypatch, share):
    model = tied(encoder, share)
    limits = {"batch_size": 64, "max_new_tokens": NEW, "say": print}
    asked = [Prompt(each, ["x"]) for each in WORDS]
    said = [result.said for result in score_prompts(model, encoder, asked, **limits, from_answers=False)]
    called = steps(model)
    known = [told(encoder, monkeypatch, [*text, encoder.end]) for text in said]
    prompts = [Prompt(each, [answer]) for each, answer in zip(WORDS, known, strict=True)]
    assert [result.said for result in score_prompts(model, encoder, prompts, **limits)] == said
    assert sum(called) == len(WORDS) * (NEW - 1)  # every token but the first, which the prompt tells


def test_a_tie_within_an_answer_is_generated_and_what_stands_before_it_is_not(encoder, monkeypatch):
    """Only one token has a twin: the fifth of the generation."""
    model = loud(LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=False)))
    said = greedy(model, encoder, WORDS[1])
    assert said[4] not in said[:4]
    with torch.no_grad():
        model.lm_head.weight[2099] = model.lm_head.weight[said[4]]
    again = greedy(model, encoder, WORDS[1])
    assert again == said  # the lower one of the two
    answer = told(encoder, monkeypatch, [*said, encoder.end])
    called = steps(model)
    (result,) = score_prompts(model, encoder, [Prompt(WORDS[1], [answer])], batch_size=1, max_new_tokens=NEW, say=print)
    assert result.said == said and len(called) == NEW - 4


# ---- what it costs


def test_a_generation_that_an_answer_tells_whole_costs_no_forward(model, encoder, monkeypatch):
    said = [greedy(loud(model), encoder, each) for each in WORDS]
    prompts = [
        Prompt(each, [told(encoder, monkeypatch, [*text, encoder.end])]) for each, text in zip(WORDS, said, strict=True)
    ]
    called = []
    model.register_forward_pre_hook(lambda *call: called.append(call))
    results = score_prompts(model, encoder, prompts, batch_size=64, max_new_tokens=NEW, say=print)
    assert [result.said for result in results] == said
    assert len(called) == 2  # the prompts, and the answers behind them
    monkeypatch.setattr("engine.score_answers.generate_plain", None)  # using it would be an error
    plain = score_prompts(model, encoder, prompts, batch_size=64, max_new_tokens=NEW, say=print, shared=False)
    assert [result.said for result in plain] == said


def test_each_row_is_generated_from_the_token_where_its_answers_leave_it(model, encoder, monkeypatch):
    """One row: its answer has six right tokens, then a wrong one. The right seventh is known, and two are left."""
    said = greedy(loud(model), encoder, WORDS[1])
    wrong = next(token for token in range(5, 99) if token not in said)
    answers = [told(encoder, monkeypatch, [*said[:count], wrong, encoder.end]) for count in (2, 6, 4)]
    called = steps(model)
    (result,) = score_prompts(model, encoder, [Prompt(WORDS[1], answers)], batch_size=1, max_new_tokens=NEW, say=print)
    assert result.said == said and len(called) == NEW - 7
