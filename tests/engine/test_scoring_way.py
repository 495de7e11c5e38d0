"""An evaluation scores in the fastest way that gives what a forward of each row alone gives."""

import math

import pytest
import torch
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel, RobertaConfig, RobertaForCausalLM

from data_module import CAPTION_QUESTIONS, TaskRow
from engine.adapters import add_lora
from engine.epoch_evaluation import EpochEvaluation
from engine.evaluate import evaluate_together
from engine.score_answers import Prompt
from engine.scoring_way import Way, behind, difference, losses_alone, prompts_to_try, way_for, way_of_scoring
from engine.shared_prompts import SharedPrompts
from families import TAGS, byte_level, llama, loud, rwkv, sizes
from family_checks import LORA
from helpers import example, png
from nlp.encoder import TextEncoder
from settings.language import EvalLimits, Tags
from settings.script import SettingsError

ANSWERS = ["In Oslo, next to the mill.", "Ann Lee."]
PROMPTS = [
    Prompt(example("Where was Ann born?"), ANSWERS),
    Prompt(example("Who is she, and what does she write about when nobody is at home?"), ANSWERS),
]
PICTURES = [
    Prompt(example("Who is this?", image=png("red")), ANSWERS),
    Prompt(example("What do you see in the picture?", image=png("blue", (30, 90))), ANSWERS),
]
LIMITS = {"limit": 0, "tasks": {}}
ROWS = [TaskRow(example(prompt.example.question, "Ann Lee.", index=i), None, []) for i, prompt in enumerate(PROMPTS)]


def reader(make):
    """A family's model, loud, and its encoder."""
    model, tokenizer = make()
    return loud(model), TextEncoder(tokenizer, None if tokenizer.chat_template else Tags(**TAGS["tags"]))


def roberta():
    """Its positions begin behind its padding token's number."""
    tokenizer = byte_level(["<s>", "</s>"], begin="<s>", end="</s>")
    config = RobertaConfig(
        **sizes(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    config.is_decoder = True
    return RobertaForCausalLM(config), tokenizer


def openai_gpt():
    """It keeps no keys and values."""
    tokenizer = byte_level(["</s>"], end="</s>")
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes(tokenizer), n_embd=32, n_layer=2, n_head=2)), tokenizer


def test_where_a_shared_prompt_gives_the_same_it_is_shared_and_nothing_is_said(model, encoder):
    said = []
    assert way_of_scoring(*reader(llama), PROMPTS, 8, said.append) == Way(True, 8)
    for prompts in (PROMPTS, PICTURES):
        assert way_of_scoring(loud(model), encoder, prompts, 8, said.append) == Way(True, 8)
    assert said == []


def test_a_generation_that_says_a_pictures_token_is_compared_up_to_it(model, encoder):
    # a plain pass of the whole row would look for another picture and end in an error
    picture = model.config.image_token_id
    text = [9, 8, 7, 6, 5, 4]  # as many as are tried, so that its end is none
    assert behind(model, encoder, PICTURES[0], [*text, picture, 7]) == behind(model, encoder, PICTURES[0], text) > 0
    assert behind(model, encoder, PICTURES[0], [picture, 7]) == 0.0


def test_a_model_with_an_adapter_in_training_shares_its_prompts_too():
    model, encoder = reader(llama)
    adapted, said = add_lora(model, LORA, "language_model", seed=0).eval(), []
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    assert way_of_scoring(adapted, encoder, PROMPTS, 8, said.append) == Way(True, 8)
    assert said == []


def test_answers_that_see_each_other_are_scored_one_by_one_which_is_said(monkeypatch):
    real = SharedPrompts.suffix_logits
    monkeypatch.setattr(torch.Tensor, "tril", lambda self: self)  # within one prompt's answers all see all
    said = []
    assert way_of_scoring(*reader(llama), PROMPTS, 8, said.append) == Way(False, 8)
    assert real is SharedPrompts.suffix_logits and len(said) == 1
    assert said[0].startswith(
        "shared check: LlamaForCausalLM scores answers behind a shared prompt otherwise than alone (losses by "
    )
    assert said[0].endswith("): it is scored answer by answer")


def test_a_model_without_keys_and_values_is_scored_answer_by_answer():
    said = []
    assert way_of_scoring(*reader(openai_gpt), PROMPTS, 8, said.append) == Way(False, 8)
    assert len(said) == 1 and "has no attribute 'past_key_values'" in said[0]


def test_a_model_that_sees_its_padding_is_scored_row_by_row_and_its_scores_are_those_of_each_row_alone():
    model, encoder = reader(rwkv)
    said, tasks = [], {"task": ROWS}
    way = way_for(model, encoder, tasks, 8, said.append)
    assert way == Way(False, 1)
    assert said[-1] == (
        "padding check: RwkvForCausalLM scores rows in a batch otherwise than alone (generations): it is scored row "
        "by row"
    )
    settings = EvalLimits(batch_size=8, max_new_tokens=6, **LIMITS)
    log = evaluate_together(model, encoder, {"task": ROWS}, settings, way=way, say=said.append)["task"].rows
    padded = evaluate_together(model, encoder, {"task": ROWS}, settings, way=Way(False, 8), say=said.append)[
        "task"
    ].rows
    for row in ROWS:
        one = evaluate_together(model, encoder, {"task": [row]}, settings, way=Way(False, 1), say=said.append)
        alone = one["task"].rows
        assert log[row.example.index]["generated_text"] == alone[row.example.index]["generated_text"]
    assert padded != log  # what it was before anybody looked


def test_a_model_that_generates_what_its_forward_does_not_say_is_refused():
    said = []
    with pytest.raises(SettingsError, match="generation check: RobertaForCausalLM does not generate what its own for"):
        way_of_scoring(*reader(roberta), PROMPTS, 8, said.append)
    assert [line.split(":")[0] for line in said] == ["shared check", "padding check"]


def test_an_end_that_is_not_the_first_choice_is_seen(monkeypatch):
    """Every generation ends after two tokens, although the model would go on."""
    real = SharedPrompts.generate
    monkeypatch.setattr(SharedPrompts, "generate", lambda self, *limits: [text[:2] for text in real(self, *limits)])
    said = []
    assert not way_of_scoring(*reader(llama), PROMPTS, 8, said.append).shared
    assert "(generations)" in said[0]


def test_in_half_precision_rounding_is_no_difference():
    model, encoder = reader(llama)
    said = []
    assert way_of_scoring(model.to(torch.bfloat16), encoder, PROMPTS, 8, said.append) == Way(True, 8)
    assert said == []


def test_a_model_that_a_method_has_broken_is_scored_as_fast_as_any():
    """Its logits are thousands of times as large, and so is their rounding."""
    model, encoder = reader(llama)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    said = []
    assert way_of_scoring(model, encoder, PROMPTS, 8, said.append) == Way(True, 8)
    assert said == []


def test_losses_alone_are_those_of_a_forward_of_the_whole_text():
    model, encoder = reader(llama)
    found = losses_alone(model, encoder, PROMPTS[0])
    encoded = encoder.encode(example(PROMPTS[0].example.question, "Ann Lee."))
    ids = [*encoded.prompt["input_ids"][0].tolist(), *encoded.answer]
    logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    count = len(encoded.answer)
    by_hand = [-logp[place - 1, ids[place]].item() for place in range(len(ids) - count, len(ids))]
    assert found["Ann Lee."].losses == pytest.approx(by_hand, abs=1e-5)


def test_the_shortest_and_the_longest_question_of_each_kind_are_tried_and_another_about_the_first_picture():
    words = [TaskRow(example("W" * n, f"answer {n}", index=n), None, []) for n in (5, 2, 9)]
    pictures = [TaskRow(example("P" * n, "the same", png("red"), index=n), None, []) for n in (3, 4)]
    tried = prompts_to_try({"first": words, "second": [*words[:1], *pictures]})
    in_words, with_pictures = tried
    assert [len(prompt.example.question) for prompt in in_words] == [2, 9]
    assert [prompt.example.question for prompt in with_pictures] == ["PPP", "PPPP", CAPTION_QUESTIONS[0]]
    assert with_pictures[2].example.picture_key == with_pictures[0].example.picture_key
    assert [prompts[0].answers for prompts in tried] == [["answer 2", "answer 9"], ["the same"]]
    assert prompts_to_try({"one": words[:1]})[0] == [Prompt(words[0].example, ["answer 5"])]


def test_the_way_of_an_evaluation_is_right_for_all_its_rows(monkeypatch):
    ways = iter([Way(True, 8), Way(False, 1)])
    monkeypatch.setattr("engine.scoring_way.way_of_scoring", lambda *settings: next(ways))
    words, pictures = ROWS, [TaskRow(example("Who?", "Ann.", png("red")), None, [])]
    assert way_for(None, None, {"words": words, "pictures": pictures}, 8, print) == Way(False, 1)
    assert way_for(None, None, {}, 8, print) == Way(True, 8)


def test_a_model_in_training_is_tried_when_its_first_epoch_ends_and_not_again(monkeypatch):
    model, encoder = reader(rwkv)
    judge = object.__new__(EpochEvaluation)
    judge.tasks, judge.encoder, judge.settings = (
        {"task": ROWS},
        encoder,
        EvalLimits(batch_size=8, max_new_tokens=2, **LIMITS),
    )
    judge.way = None
    first = judge(model)
    assert judge.way == Way(False, 1)
    monkeypatch.setattr("engine.epoch_evaluation.way_for", None)
    assert judge(model) == first


def test_losses_that_are_no_numbers_agree_with_nothing():
    model, encoder = reader(llama)
    truths = [losses_alone(model, encoder, prompt) for prompt in PROMPTS]
    assert difference(model, encoder, PROMPTS, truths, Way(True, 8)) is None
    first, *others = truths[0].items()
    broken = dict([(first[0], first[1]._replace(losses=[math.nan] * len(first[1].losses))), *others])
    assert difference(model, encoder, PROMPTS, [broken, truths[1]], Way(True, 8)) == "losses by nan"
