"""One pass over the prompt gives what plain passes give: every family, attention, padding and length; and it is one
pass.
"""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from bench.eval_speed import RandomRows
from bench.plain_clear import PictureRows
from bench.plain_openunlearning import RandomWords
from engine import score_answers
from engine.score_answers import Prompt, prompt_batches, score_prompts, word_lengths
from engine.shared_prompts import unshareable
from helpers import example, png

WORDS = [
    Prompt(example("Who?", "Ann Lee."), ["Ann Lee.", "No.", "A baker from a small town by the sea, who sings."]),
    Prompt(
        example("Which of all these many questions is the one that takes the longest to read?", "This."),
        ["This.", "That one over there."],
    ),
    Prompt(example("What?", "x"), ["x"]),
]
PICTURES = [
    Prompt(example("Who is this?", "Ann.", image=png("red")), ["Ann.", "Bob Miller.", "I do not know.", "Eve"]),
    Prompt(
        example("What do you see in this picture?", "Blue.", image=png("blue", (56, 96))),
        ["Blue.", "A red square, and next to it a house."],
    ),
]
TEXT = {
    "vocab_size": 2100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def loud(model):
    """Random weights large enough that answers differ clearly, in eval mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model.eval()


def qwen(encoder):
    """A random Qwen2-VL around the tiny tokenizer, whose positions have three rows."""
    ids = {
        name: encoder.tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": len(encoder.tokenizer), "rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    return loud(Qwen2VLForConditionalGeneration(config))


def both_ways(model, encoder, prompts, batch_size=64, max_new_tokens=12):
    """Scores by the shared prompt and by plain passes, and what was said."""
    said = []
    limits = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    shared = score_prompts(model, encoder, prompts, **limits, say=said.append)
    return shared, score_prompts(model, encoder, prompts, **limits, say=said.append, shared=False), said


def assert_equal_scores(shared, plain):
    for one, other in zip(shared, plain, strict=True):
        assert one.generation == other.generation and one.tokens == other.tokens
        assert list(one.answers) == list(other.answers)
        for answer, score in one.answers.items():
            naive = other.answers[answer]
            assert score.tokens == naive.tokens and score.correct == naive.correct
            assert score.losses == pytest.approx(naive.losses, abs=1e-4)
            assert score.expected == pytest.approx(naive.expected, abs=1e-4) and score.spread == pytest.approx(
                naive.spread, abs=1e-3
            )


MIXES = {"words": WORDS, "pictures": PICTURES, "mixed": [*WORDS, *PICTURES]}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [1, 3, 6, 64])
def test_llava_scores_and_says_the_same_from_one_pass_over_the_prompt(
    model, encoder, mix, attention, batch_size, *, monkeypatch
):
    model.set_attn_implementation(attention)
    if mix == "mixed":  # else words and pictures come in different batches
        monkeypatch.setattr(
            score_answers, "prompt_batches", lambda prompts, lengths, size: iter([list(range(len(prompts)))])
        )
    shared, plain, said = both_ways(loud(model), encoder, MIXES[mix], batch_size)
    assert_equal_scores(shared, plain)
    assert not said


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_qwen_vl_counts_positions_on_from_the_picture_and_not_from_an_earlier_batch(
    qwen_encoder, mix, attention, monkeypatch
):
    model = qwen(qwen_encoder)
    model.set_attn_implementation(attention)
    if mix == "mixed":
        monkeypatch.setattr(
            score_answers, "prompt_batches", lambda prompts, lengths, size: iter([list(range(len(prompts)))])
        )
    plain = [
        score_prompts(model, qwen_encoder, [prompt], batch_size=1, max_new_tokens=12, say=print, shared=False)[0]
        for prompt in MIXES[mix]
    ]  # one by one: no padding either
    score_prompts(
        model, qwen_encoder, PICTURES[::-1], batch_size=64, max_new_tokens=4, say=print
    )  # leaves its offsets behind
    assert_equal_scores(
        score_prompts(model, qwen_encoder, MIXES[mix], batch_size=64, max_new_tokens=12, say=print), plain
    )


def test_a_llama_scores_and_says_the_same(encoder):
    assert_equal_scores(*both_ways(loud(LlamaForCausalLM(LlamaConfig(**TEXT))), encoder, WORDS)[:2])


@pytest.mark.parametrize(("window", "plainly"), [(512, False), (16, True)])
def test_a_prompt_past_the_attentions_window_is_scored_answer_by_answer_and_said(encoder, window, plainly):
    model = loud(MistralForCausalLM(MistralConfig(**TEXT, sliding_window=window)))
    shared, plain, said = both_ways(model, encoder, WORDS)
    assert_equal_scores(shared, plain)
    assert any("window" in line for line in said) == plainly


def test_a_model_whose_attention_takes_no_such_mask_is_scored_answer_by_answer_and_said(model, encoder, monkeypatch):
    attention = model.config.get_text_config()._attn_implementation
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    why = unshareable(model)
    assert "flash_attention_2" in why
    model.config.get_text_config()._attn_implementation = attention  # flash attention itself runs on a GPU only
    monkeypatch.setattr(score_answers, "unshareable", lambda model: why)
    monkeypatch.setattr(score_answers, "SharedPrompts", None)  # using it would be an error
    shared, plain, said = both_ways(model, encoder, WORDS)
    assert_equal_scores(shared, plain)
    assert said == [f"LlavaForConditionalGeneration is scored answer by answer: {why}"]


def test_a_picture_is_opened_once_for_all_its_answers_even_where_no_prompt_can_be_kept(model, encoder, monkeypatch):
    opened, forgetful = [], encoder.uncut()
    forgetful.kept_prompts.room = 0
    original = forgetful.prompt_inputs
    monkeypatch.setattr(forgetful, "prompt_inputs", lambda example: (opened.append(example), original(example))[1])
    score_prompts(model, forgetful, PICTURES, batch_size=64, max_new_tokens=2, say=print)
    assert len(opened) == len(PICTURES)


def test_answers_behind_one_prompt_do_not_see_each_other(model, encoder):
    model = loud(model)
    alone = score_prompts(
        model,
        encoder,
        [Prompt(WORDS[0].example, [answer]) for answer in WORDS[0].answers],
        batch_size=1,
        max_new_tokens=1,
        say=print,
    )
    together = score_prompts(model, encoder, WORDS[:1], batch_size=64, max_new_tokens=1, say=print)[0]
    for own in alone:
        ((answer, score),) = own.answers.items()
        assert together.answers[answer].losses == pytest.approx(score.losses, abs=1e-4)


def tokens_behind(prompt, encoder):
    """How many tokens follow a prompt: of each answer all but the last."""
    return sum(len(encoder.answer_tokens(answer)) - 1 for answer in prompt.answers)


def test_every_question_and_every_answer_goes_through_the_model_once(model, encoder):
    """Counts the tokens that the model is called with: each prompt's, each answer's but its last, each generated one's
    but the last.
    """
    called = []
    model.register_forward_pre_hook(lambda module, args, inputs: called.append(dict(inputs)), with_kwargs=True)
    prompts = [*WORDS, *PICTURES]
    results = score_prompts(
        model, encoder, prompts, batch_size=64, max_new_tokens=1, say=print
    )  # one new token: it follows from the prompt's own pass
    seen = [sum(int(inputs["attention_mask"].sum()) for inputs in called if inputs["attention_mask"].ndim == 2)]
    assert seen == [sum(encoder.encode(prompt.example).prompt["input_ids"].shape[1] for prompt in prompts)]
    answers = [inputs for inputs in called if inputs["attention_mask"].ndim == 4]
    assert (
        len(called) == 4 and len(answers) == 2 and all("pixel_values" not in inputs for inputs in answers)
    )  # words and pictures: two batches
    fed = sum(len(score.tokens) - 1 for result in results for score in result.answers.values())
    padded = 0  # to the longest of the batch, once
    for group in (WORDS, PICTURES):
        lengths = [tokens_behind(prompt, encoder) for prompt in group]
        padded += len(group) * max(lengths)
    assert sum(inputs["input_ids"].numel() for inputs in answers) == padded >= fed


@pytest.mark.parametrize("rows", [RandomRows, PictureRows, RandomWords])
def test_what_a_bench_scores_has_lengths(rows):
    prompts = [Prompt(example("1", "2"), ["2", "13"])]
    assert len(word_lengths(rows(), prompts)) == 1


def test_batches_are_of_like_length_in_tokens_and_words_stand_apart_from_pictures(encoder):
    prompts = [*WORDS, *PICTURES] * 3
    counted = word_lengths(encoder, prompts)
    batches = list(prompt_batches(prompts, counted, 4))
    assert sorted(i for batch in batches for i in batch) == list(range(len(prompts)))
    assert [len(batch) for batch in batches] == [4, 4, 1, 4, 2]
    lengths = []
    for number in (i for batch in batches for i in batch):
        asked = prompts[number]
        words = [encoder.token_ids(text) for text in (asked.example.question, *asked.answers)]
        assert counted[number] == (len(words[0]), sum(map(len, words[1:])))
        lengths.append((asked.example.image is not None, *counted[number]))
    assert lengths == sorted(lengths)


def test_generation_stops_at_the_end_token_and_rows_that_go_on_do_so(model, encoder):
    """Short and long generations in one batch, each as if it were alone."""
    prompts = [
        Prompt(example(question, "x"), ["x"])
        for question in ("Who?", "What is two and two?", "In which town was she born, and when?", "Why")
    ]
    together = score_prompts(model, encoder, prompts, batch_size=64, max_new_tokens=20, say=print)
    assert [each.generation for each in together] == [
        score_prompts(model, encoder, [prompt], batch_size=1, max_new_tokens=20, say=print, shared=False)[0].generation
        for prompt in prompts
    ]
