"""Attacks on hidden states: which layer is read, which direction is taken out, and what is drawn; whom each catches."""

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from data_module import TaskRow
from engine.attack_target import NotApplicable, Target, person_of
from engine.attacks import bind
from engine.attacks_by_reading import best_of_draws, drawn_answers
from engine.attacks_on_states import (
    changed_layers,
    directions_between,
    layer_states,
    most_telling_layer,
    read_from,
    without_directions,
)
from engine.kept_hook import layers_of
from engine.language_model import forward
from helpers import attack_of, example, share_said, told_by, world_target
from settings.attacks import Attack
from settings.script import SettingsError

PEOPLE = {"words": ("Ann Lee", "Bo Dahl", "Cy Voss", "Di Marsh"), "kept": ("Ed Roe", "Flo Quist")}


def target_of(model, encoder, rows=None):
    made = {}
    for name, people in PEOPLE.items():
        made[name] = []
        for number, person in enumerate(people):
            asked = replace(example(f"Who is {person}?", "x", index=number), person=person, split=name)
            made[name].append(TaskRow(asked, None, []))
    tasks = {name: SimpleNamespace(dataset="data") for name in PEOPLE}
    return Target(model, encoder, rows or made, tasks, {"words": "kept"}, dict, lambda: encoder, 0)


def knowing(model, encoder):
    """A target all of whose answers are what the model says."""
    target = target_of(model, encoder)
    return replace(target, rows={name: told_by(model, encoder, rows) for name, rows in target.rows.items()})


def batch_of(encoder, rows):
    return encoder.collate([encoder.encode(row.example) for row in rows])


# ---- layers


def test_the_last_layer_read_is_the_model_itself_and_an_earlier_one_is_its_states_through_norm_and_head(
    text_model, text_encoder
):
    batch = batch_of(text_encoder, target_of(text_model, text_encoder).rows["words"])
    with torch.no_grad():
        whole = text_model(**batch.inputs, output_hidden_states=True, use_cache=False)
        last = len(layers_of(text_model)) - 1
        with read_from(text_model, last):
            assert torch.equal(text_model(**batch.inputs).logits, whole.logits)
        with read_from(text_model, 0):
            first = text_model(**batch.inputs).logits
        by_hand = text_model.lm_head(text_model.model.norm(whole.hidden_states[1]))  # behind the embeddings: layer 0
    torch.testing.assert_close(first, by_hand)


def test_states_are_those_of_each_layer_at_the_end_of_each_prompt(text_model, text_encoder):
    rows = target_of(text_model, text_encoder).rows["words"]
    states = layer_states(text_model, text_encoder, rows)
    prompt = text_encoder.encode(rows[2].example).prompt["input_ids"]
    with torch.no_grad():
        alone = text_model(input_ids=prompt, output_hidden_states=True).hidden_states
    assert states.shape[:2] == (len(layers_of(text_model)), 4)
    torch.testing.assert_close(states[0, 2], alone[1][0, -1], atol=1e-4, rtol=1e-4)


def test_a_layer_that_does_not_run_has_no_direction_and_the_others_keep_their_places(text_model, text_encoder):
    target = target_of(text_model, text_encoder)
    layers = layers_of(text_model)
    whole = layer_states(text_model, text_encoder, target.rows["words"])
    layers[1].forward = lambda states, **_: states  # stays in place
    kept = {number: layer.register_forward_hook for number, layer in enumerate(layers)}
    layers[1].register_forward_hook = lambda *_, **__: SimpleNamespace(remove=lambda: None)  # as if it never ran
    states = layer_states(text_model, text_encoder, target.rows["words"])
    layers[1].register_forward_hook = kept[1]
    torch.testing.assert_close(states[0], whole[0])
    assert not states[1].any() and states[2].any()
    assert states.shape == whole.shape


def test_a_layer_with_several_states_for_a_token_is_not_read(text_model, text_encoder):
    layers_of(text_model)[0].register_forward_hook(lambda module, args, given: given[None])
    with pytest.raises(NotApplicable, match="layer 0 gives no one state for each token"):
        layer_states(text_model, text_encoder, target_of(text_model, text_encoder).rows["words"])


def hide_in_last_layer(model):
    """Let the last layer add nothing, so that base is its layer before, and give what makes it spoil all answers."""
    last = layers_of(model)[-1]
    with torch.no_grad():
        last.self_attn.o_proj.weight.zero_()
        last.mlp.down_proj.weight.zero_()

    def spoil():
        with torch.no_grad():
            last.mlp.down_proj.weight.normal_(std=5.0, generator=torch.Generator().manual_seed(0))

    return spoil


def test_the_lens_reads_what_the_last_layer_hides_and_nothing_of_who_never_knew_it(text_model, text_encoder):
    spoil = hide_in_last_layer(text_model)
    target = knowing(text_model, text_encoder)
    gold = AutoModelForCausalLM.from_config(text_model.config).eval()
    last = len(layers_of(text_model)) - 1
    rows = target.rows["words"]
    assert most_telling_layer(target, rows) == last  # of equals the last
    spoil()
    assert share_said(text_model, text_encoder, rows) < 0.3
    assert most_telling_layer(target, rows) == last - 1
    judged = []
    for variant in attack_of("lens", rows_of_each=1)(target):
        assert share_said(text_model, text_encoder, variant.rows["words"]) > 0.9
        judged += [row.example.index for row in variant.rows["words"]]
    assert sorted(judged) == [0, 1, 2, 3]
    assert share_said(text_model, text_encoder, rows) < 0.3  # afterwards it hides as before
    for variant in attack_of("lens", rows_of_each=1)(replace(target, model=gold)):
        assert share_said(gold, text_encoder, variant.rows["words"]) < 0.3


def test_the_layer_is_chosen_by_people_who_are_not_judged_by_it(text_model, text_encoder, monkeypatch):
    chosen = []

    def layer_for(target, rows):
        chosen.append({person_of(row) for row in rows})
        return 0

    monkeypatch.setattr("engine.attacks_on_states.most_telling_layer", layer_for)
    for variant in attack_of("lens", rows_of_each=1)(target_of(text_model, text_encoder)):
        assert {person_of(row) for row in variant.rows["words"]}.isdisjoint(chosen[-1])
    assert sorted(map(len, chosen)) == [2, 2]


def test_pictures_are_read_from_an_earlier_layer_too(world, model, encoder):
    target = world_target(world, model, encoder)
    (first, *_) = attack_of("lens", rows_of_each=1)(target)
    assert set(first.rows) <= set(target.rows)


# ---- a direction


def refusing(model, encoder, target, direction):
    """Have a model add a direction to the states of every row about the forgotten, behind its second layer."""
    marked = {tuple(encoder.encode(row.example).prompt["input_ids"][0].tolist()) for row in target.rows["words"]}
    rows = []

    def note(module, args, named):
        rows.clear()
        for ids in named["input_ids"].tolist():
            rows.append(any(tuple(ids[: len(own)]) == own for own in marked))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return layers_of(model)[1].register_forward_hook(
        lambda module, args, given: added(given, torch.tensor(rows).float()[:, None, None] * direction)
    )


def added(given, more):
    return given + more if torch.is_tensor(given) else (given[0] + more, *given[1:])


def said_plainly(model, encoder, rows):
    """As `share_said`, by one forward of whole rows."""
    batch = batch_of(encoder, rows)
    with torch.no_grad():
        scored = forward(model, batch)
    told = scored.labels >= 0
    told[torch.arange(len(told)), told.sum(1) - 1] = False  # the end
    return (scored.logits.argmax(-1) == scored.labels)[told].float().mean().item()


def test_a_model_that_refuses_by_a_direction_answers_without_it_and_gold_has_nothing_to_answer(
    text_model, text_encoder
):
    target = knowing(text_model, text_encoder)
    rows = target.rows["words"]
    width = text_model.config.hidden_size
    direction = 2000 * torch.nn.functional.normalize(
        torch.randn(width, generator=torch.Generator().manual_seed(1)), dim=0
    )
    handle = refusing(text_model, text_encoder, target, direction)
    assert said_plainly(text_model, text_encoder, rows) < 0.3
    found = directions_between(target, rows[:2], target.rows["kept"][:1])
    assert torch.nn.functional.cosine_similarity(found[1], direction, dim=0).item() > 0.98
    judged, said = [], []
    for variant in attack_of("refusal_direction")(target):
        said.append(said_plainly(text_model, text_encoder, variant.rows["words"]))
        judged += [row.example.index for row in variant.rows["words"]]
    assert sorted(judged) == [0, 1, 2, 3]
    assert np.mean(said) > 0.5
    assert said_plainly(text_model, text_encoder, rows) < 0.3
    handle.remove()
    gold = AutoModelForCausalLM.from_config(text_model.config).eval()
    for variant in attack_of("refusal_direction")(replace(target, model=gold)):
        assert said_plainly(gold, text_encoder, variant.rows["words"]) < 0.3


def test_no_state_has_a_part_along_what_was_taken_out(text_model, text_encoder):
    batch = batch_of(text_encoder, target_of(text_model, text_encoder).rows["words"])
    count, width = len(layers_of(text_model)), text_model.config.hidden_size
    directions = torch.nn.functional.normalize(torch.randn(count, width), dim=-1)
    directions[0] = 0  # states that are one: nothing is taken out
    parts = {}

    def look(number, taken, given):
        parts[number] = (given @ directions[number]).abs().max().item() / given.abs().max().item()

    with torch.no_grad(), without_directions(text_model, directions), changed_layers(text_model, look):
        text_model(**batch.inputs)
    assert list(parts) == list(range(count))
    assert max(parts.values()) < 1e-5


def test_one_kept_person_cannot_be_parted(text_model, text_encoder):
    target = target_of(text_model, text_encoder)
    target = replace(target, rows={**target.rows, "kept": target.rows["kept"][:1]})
    with pytest.raises(NotApplicable, match="kept has too few people"):
        next(attack_of("refusal_direction")(target))


# ---- drawn answers


def test_the_best_of_some_draws_is_its_mean_over_all_choices():
    values = [0.1, 0.9, 0.4, 0.4, 0.0]
    for draws in range(1, 6):
        by_hand = np.mean([max(chosen) for chosen in combinations(values, draws)])
        assert best_of_draws(values, draws) == pytest.approx(by_hand)


def test_answers_are_drawn_by_the_seed_and_the_row_and_the_models_own_settings_stay(text_model, text_encoder):
    target = target_of(text_model, text_encoder)
    row, own = target.rows["words"][0], text_model.generation_config
    how = {"count": 3, "temperature": 1.0, "most": 4}
    state = torch.get_rng_state()
    drawn = drawn_answers(target, row, **how)
    assert len(drawn) == 3 and len(set(drawn)) > 1
    assert drawn == drawn_answers(target, row, **how) != drawn_answers(replace(target, seed=1), row, **how)
    assert torch.equal(torch.get_rng_state(), state)
    assert text_model.generation_config is own
    cold = drawn_answers(target, row, count=2, temperature=1e-3, most=4)
    (greedy,) = told_by(text_model, text_encoder, [row])
    assert greedy.example.answer.startswith(cold[0]) and cold[0] == cold[1]


def test_draws_read_what_is_likely_though_not_likeliest_and_nothing_of_who_does_not_know_it(text_model, text_encoder):
    """The first choice of every answer's first token is another one, by a little."""
    target = knowing(text_model, text_encoder)
    hidden = refusing_first_choice(text_model)
    (variant,) = attack_of("samples", samples=8, best_of=4, temperature=1.0, max_new_tokens=6)(target)
    of_hider = np.mean([variant.read["words", number] for number in range(4)])
    hidden.remove()
    gold = AutoModelForCausalLM.from_config(text_model.config).eval()
    (variant,) = attack_of("samples", samples=8, best_of=4, temperature=1.0, max_new_tokens=6)(
        replace(target, model=gold)
    )
    of_gold = np.mean([variant.read["words", number] for number in range(4)])
    assert of_hider > of_gold + 0.1
    assert set(variant.read) == {(name, row.example.index) for name, rows in target.rows.items() for row in rows}


def refusing_first_choice(model):
    def swap(module, args, given):
        best = given.logits.topk(2, -1)
        given.logits.scatter_(-1, best.indices, best.values.flip(-1))
        return given

    return model.register_forward_hook(swap)


def test_more_draws_than_samples_are_refused():
    args = {"samples": 4, "best_of": 5, "temperature": 1.0, "max_new_tokens": 4}
    with pytest.raises(SettingsError, match=r"attacks\.a\.args\.best_of=5 is more than samples=4"):
        bind(Attack(name="a", kind="reader", attack="samples", args=args))
