"""Attacks on hidden states: which layer is read, what base reads in them, which direction is taken out, and what is
drawn; whom each catches.
"""

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
    answer_places,
    changed_layers,
    directions_between,
    layer_states,
    most_telling_layer,
    parts_of,
    read_from,
    without_directions,
)
from engine.kept_hook import KeptHook, install, layers_of, without_hook
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


# ---- states put into base


def answers_said(model, encoder, rows):
    """Row -> geometric mean of the probabilities of its answer's tokens without the end, by one forward of the row."""
    said = []
    for row in rows:
        batch = batch_of(encoder, [row])
        with torch.no_grad():
            scored = forward(model, batch)
        losses = torch.nn.functional.cross_entropy(scored.logits[0], scored.labels[0], reduction="none")
        said.append((-losses[:-1].mean()).exp().item())
    return said


def patched(target):
    """Task -> the variant of its rows."""
    return {task: variant for variant in attack_of("patch_states")(target) for task in variant.rows}


def longer(rows):
    """Answers of several lengths, so that rows are padded."""
    answers = ["blue", "red and green", "a b c d e f", "white or black"]
    return [
        replace(row, example=replace(row.example, answer=answer)) for row, answer in zip(rows, answers, strict=False)
    ]


@pytest.fixture
def to_patch(text_model, text_encoder):
    """A base and a model that begins as it: a target whose model may be changed, and base's weights."""
    rows = {name: longer(own) for name, own in target_of(text_model, text_encoder).rows.items()}
    base = {name: weight.detach().clone() for name, weight in text_model.named_parameters()}
    return replace(target_of(text_model, text_encoder, rows), base_weights=lambda: base)


def disturb(*modules):
    with torch.no_grad():
        for number, module in enumerate(modules):
            for weight in module.parameters():
                weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))


def test_base_put_into_itself_says_what_it_says_under_every_layer(to_patch):
    for task, variant in patched(to_patch).items():
        own = answers_said(to_patch.model, to_patch.encoder, to_patch.rows[task])
        assert [variant.read[task, row.example.index] for row in to_patch.rows[task]] == pytest.approx(own, rel=1e-4)
        layers = len(layers_of(to_patch.model))
        assert variant.facts == pytest.approx({str(layer): np.log(own).mean() for layer in range(layers)}, rel=1e-4)


def test_states_of_the_last_layer_are_the_models_own_answers_through_bases_norm_and_head(to_patch):
    clean = np.log(answers_said(to_patch.model, to_patch.encoder, to_patch.rows["words"])).mean()
    disturb(*layers_of(to_patch.model))
    own = np.log(answers_said(to_patch.model, to_patch.encoder, to_patch.rows["words"])).mean()
    assert abs(own - clean) > 0.5
    facts = patched(to_patch)["words"].facts
    assert facts[str(len(facts) - 1)] == pytest.approx(own, rel=1e-4)


def test_a_model_that_is_changed_in_its_last_layer_alone_holds_everything_below(to_patch):
    clean = np.log(answers_said(to_patch.model, to_patch.encoder, to_patch.rows["words"])).mean()
    disturb(layers_of(to_patch.model)[-1])
    facts = list(patched(to_patch)["words"].facts.values())
    assert facts[:-1] == pytest.approx([clean] * (len(facts) - 1), rel=1e-4)
    assert abs(facts[-1] - clean) > 0.1


def test_states_stand_where_the_answer_is_predicted_and_nowhere_else(to_patch):
    """By hand, of one row alone: base's first layer gives the model's states from the prompt's last token on."""
    (row, *_), encoder, base = to_patch.rows["words"], to_patch.encoder, to_patch.base_weights()
    batch = batch_of(encoder, [row])
    prompt = encoder.encode(row.example).prompt["input_ids"].shape[1]
    disturb(layers_of(to_patch.model)[0])
    found = {}

    def note(module, args, given):
        found["states"] = given if torch.is_tensor(given) else given[0]

    handle = layers_of(to_patch.model)[0].register_forward_hook(note)
    with torch.no_grad():
        to_patch.model(**batch.inputs)
        handle.remove()
        other = AutoModelForCausalLM.from_config(to_patch.model.config).eval()
        for name, weight in other.named_parameters():
            weight.copy_(base[name])

        def put(module, args, given):
            states = (given if torch.is_tensor(given) else given[0]).clone()
            states[:, prompt - 1 :] = found["states"][:, prompt - 1 :]
            return states if torch.is_tensor(given) else (states, *given[1:])

        layers_of(other)[0].register_forward_hook(put)
        (by_hand,) = answers_said(other, encoder, [row])
    for rows in ([row], to_patch.rows["words"]):  # alone, and padded beside others
        variant = patched(replace(to_patch, rows={"words": rows, "kept": to_patch.rows["kept"]}))["words"]
        if len(rows) == 1:
            assert variant.facts["0"] == pytest.approx(np.log(by_hand), rel=1e-4)
            alone = variant.read["words", 0]
    assert variant.read["words", 0] == pytest.approx(alone, rel=1e-4)


def test_the_places_of_packed_rows_are_those_of_the_same_tokens(to_patch, monkeypatch):
    batch = batch_of(to_patch.encoder, to_patch.rows["words"])
    places, count = answer_places(to_patch.model, batch)
    monkeypatch.setattr("engine.attacks_on_states.packs", lambda model, inputs: True)
    packed, packed_count = answer_places(to_patch.model, batch)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    assert count == ids.numel() > packed_count == mask.sum()
    assert torch.equal(ids.flatten()[places], ids[mask][packed])
    assert len(packed.unique()) == len(packed)


def test_the_model_is_as_it_was_while_its_rows_are_asked_and_afterwards(to_patch):
    disturb(layers_of(to_patch.model)[1])
    before = {name: weight.detach().clone() for name, weight in to_patch.model.named_parameters()}
    for _ in attack_of("patch_states")(to_patch):
        assert all(torch.equal(weight, before[name]) for name, weight in to_patch.model.named_parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in to_patch.model.named_parameters())


def test_rows_whose_states_have_no_room_together_are_read_in_turn(to_patch, monkeypatch):
    disturb(layers_of(to_patch.model)[1])
    whole = patched(to_patch)["words"].read
    monkeypatch.setattr("engine.attacks_on_states.ROWS_AT_ONCE", 1)
    monkeypatch.setattr("engine.attacks_on_states.MOST_HELD", 1)
    assert [len(parts) for parts in parts_of(to_patch, to_patch.rows["words"])] == [1, 1, 1, 1]
    assert patched(to_patch)["words"].read == pytest.approx(whole, rel=1e-4)


def test_a_layer_that_steers_its_states_beside_the_weights_is_read_as_steered_and_base_is_not(to_patch):
    width = to_patch.model.config.hidden_size
    gate, direction = torch.randn(2, width, generator=torch.Generator().manual_seed(1)).unbind(0)
    install(to_patch.model, KeptHook(0, 2.0, gate, direction))
    clean = np.log(answers_said(to_patch.model, to_patch.encoder, to_patch.rows["words"])).mean()
    facts = list(patched(to_patch)["words"].facts.values())
    with without_hook(to_patch.model):
        unsteered = np.log(answers_said(to_patch.model, to_patch.encoder, to_patch.rows["words"])).mean()
    assert facts[-1] == pytest.approx(clean, rel=1e-4)
    assert abs(clean - unsteered) > 0.1


def test_states_of_a_model_of_other_shapes_are_not_put_into_base(to_patch):
    weights = to_patch.base_weights()
    weights.pop(next(iter(weights)))
    with pytest.raises(SettingsError, match="base has no"):
        next(attack_of("patch_states")(to_patch))


def test_states_of_pictures_are_put_into_base_too(world, model, encoder):
    target = world_target(world, model, encoder)
    base = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    found = patched(replace(target, base_weights=lambda: base))
    assert set(found) == set(target.rows)
    for task, rows in target.rows.items():
        read = [found[task].read[task, row.example.index] for row in rows]
        assert read == pytest.approx(answers_said(model, encoder, rows), rel=1e-3)


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
