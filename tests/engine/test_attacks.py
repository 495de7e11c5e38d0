"""Attacks on the tiny language model: what each asks, what it does to the weights, and that it gives them back."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_module import TaskRow
from engine import attack_run
from engine.attack_target import NotApplicable, Target, Variant
from engine.attacks import FUNCTIONS, bind, check_attacks
from engine.attacks_on_weights import weights_of
from engine.kept_hook import KeptHook, install
from engine.language_model import forward
from engine.quantise import quantised_weights
from engine.score_answers import Prompt, score_prompts
from engine.scoring_way import Way
from helpers import ROOT, attack_of, example, png, task
from nlp.encoder import TextEncoder
from settings.attacks import Attack
from settings.script import SettingsError

FILES = sorted((ROOT / "config" / "attack").glob("*.yaml"))
PEOPLE = ("Ann Lee", "Bo Dahl", "Cy Voss", "Di Marsh")
FACTS = ("was born in Oslo", "writes short novels", "keeps three cats", "won a prize in May")


def rows_of(names, split):
    made = []
    for name in names:
        for fact in FACTS:
            asked = example(f"What about {name}, who {fact[:5]}?", f"{name} {fact}.", index=len(made))
            made.append(TaskRow(replace(asked, person=name, split=split), None, []))
    return made


def target_of(model, encoder, base=None, world=None, **changes):
    names = {"words": PEOPLE, "kept": ("Ed Roe", "Flo Quist")}
    rows = {name: rows_of(people, name) for name, people in names.items()}
    tasks = {name: replace(task(Path("data")), split=name) for name in names}
    weights = weights_of(base or model)
    return Target(model, encoder, rows, tasks, {"words": "kept"}, lambda: weights, lambda: encoder, 0, **changes)


def other_model(model):
    """A base elsewhere."""
    made = AutoModelForCausalLM.from_config(model.config)
    return made.eval()


def moved(model, before):
    now = weights_of(model)
    return [name for name in now if not torch.equal(now[name], before[name])]


# ---- every file


def attack_in(file):
    found = OmegaConf.create(yaml.safe_load(file.read_text()))
    found.args = {name: "paraphrased_question" if name == "column" else value for name, value in found.args.items()}
    return Attack(**OmegaConf.to_container(found))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_names_its_function_with_exactly_its_values(file):
    found = attack_in(file)
    assert found.name == file.stem
    bind(found)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_is_in_a_tier(file):
    tiers = "".join(tier.read_text() for tier in (ROOT / "config" / "attacks").glob("*.yaml"))
    assert f"/attack@{file.stem}: {file.stem}\n" in tiers


# need pictures, or tasks that ask for captions or names
OF_DATA = ("reworded", "unseen_views", "across", "probe_people", "picture_changes", "figstep", "adversarial_noise",
           "sign_noise", "closed_questions")  # fmt: skip
QUICKER = {
    "relearn": {"split": "half", "steps": [1]},
    "draws": {"most_tokens": 50},
    "samples": {"samples": 2, "best_of": 1, "max_new_tokens": 2},
}
ON_WHOLE_ROWS = ("hook_off", "noise", "interpolate", "quantise")


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in OF_DATA])
def test_an_attack_changes_what_its_kind_says_and_gives_the_weights_back_to_the_bit(name, text_model, text_encoder):
    found = next(each for each in map(attack_in, FILES) if each.attack == name)
    found.args |= QUICKER.get(name, {})
    target = target_of(text_model, text_encoder, base=other_model(text_model))
    before, judged = weights_of(text_model), set()
    for variant in bind(found)(target):
        steered = name in ("hook_off", "refusal_direction")  # which changes states alone
        assert bool(moved(text_model, before)) == (found.kind == "weights" and not steered)
        assert set(variant.rows) <= set(target.rows)
        judged |= {row.example.index for row in variant.rows.get("words", [])}
        if name in ON_WHOLE_ROWS:
            assert variant.rows == target.rows
    assert judged
    assert moved(text_model, before) == []
    assert not any(module._forward_hooks for module in text_model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in text_model.parameters())


def test_an_attack_that_finds_nothing_to_do_halfway_leaves_no_rows(text_model, text_encoder, monkeypatch):
    def half(target):
        yield Variant("", {"words": target.rows["words"]}, target.encoder)
        raise NotApplicable("nothing more")

    def add(log, *_, **options):
        log.rows["words@a"] = {0: {}}

    monkeypatch.setattr(attack_run, "add_variant", add)
    monkeypatch.setattr(attack_run, "bind", lambda attack: half)
    limits = {"way": Way(True, 4), "say": print}
    log = attack_run.carry_out("a", Attack(name="a", kind="input"), target_of(text_model, text_encoder), None, **limits)
    assert log.rows == {}
    assert log.left_out == "nothing more"


def test_weights_come_back_where_an_evaluation_fails(text_model, text_encoder):
    before = weights_of(text_model)
    variants = attack_of("noise", scales=[0.1])(target_of(text_model, text_encoder))
    next(variants)
    with pytest.raises(RuntimeError, match="no memory"):
        variants.throw(RuntimeError("no memory"))
    assert moved(text_model, before) == []


@pytest.mark.parametrize(
    ("name", "args", "line"),
    [
        ("nois", {}, "attack='nois' is not in engine/attacks.py (did you mean 'noise'?)"),
        ("noise", {}, "args.scales is required"),
        ("noise", {"scales": [0.1], "scale": 1}, "args.scale is not a value of noise; it has scales"),
        ("noise", {"scales": []}, "must be a list of numbers"),
        ("noise", {"scales": 0.1}, "must be a list of numbers"),
        ("noise", {"scales": [True]}, "must be a list of numbers"),
        ("noise", {"scales": [-0.1]}, "must be above 0"),
        ("in_context", {"count": 0}, "must be above 0"),
        ("relearn", {"split": "half", "steps": [0], "lr": 1e-4, "batch_size": 8}, "must be above 0"),
        ("relearn", {"split": "half", "steps": [1], "lr": "fast", "batch_size": 8}, "must be a number"),
        ("relearn", {"split": "halves", "steps": [1], "lr": 1e-4, "batch_size": 8}, "args.split='halves' is not known"),
        ("quantise", {"formats": ["nf4", "int3"]}, "args.formats='int3' is not known"),
        ("noise", {"scales": [float("inf")]}, "must be above 0"),
        ("noise", {"scales": [0.1, 0.2, 0.1]}, "args.scales names 0.1 twice"),
        ("quantise", {"formats": ["nf4", "nf4"]}, "args.formats names 'nf4' twice"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, args, line):
    kind = "input" if name == "in_context" else "weights"
    with pytest.raises(SettingsError, match=r"attacks\.a\.") as error:
        bind(Attack(name="a", kind=kind, attack=name, args=args))
    assert line in str(error.value)


def test_a_way_of_asking_that_there_is_not_is_refused_before_a_model_is_loaded():
    with pytest.raises(SettingsError, match=r"attacks\.a\.args\.ways='faces' is not known \(did you mean 'face'\?\)"):
        check_attacks([Attack(name="a", kind="input", attack="across", args={"ways": ["faces"]})], "float32")


def test_an_attack_of_another_kind_than_it_says_is_refused():
    with pytest.raises(SettingsError, match="noise changes something else"):
        bind(Attack(name="a", kind="input", attack="noise", args={"scales": [0.1]}))


def test_every_function_is_named_by_a_file():
    assert {attack_in(file).attack for file in FILES} == set(FUNCTIONS)


# ---- questions


def test_words_around_a_question_are_drawn_by_the_seed(text_model, text_encoder):
    target = target_of(text_model, text_encoder)
    draws = attack_of("affixes", file="config/ways/affixes.txt", count=3)
    asked = [variant.rows["words"][0].example.question for variant in draws(target)]
    again = [variant.rows["words"][0].example.question for variant in draws(target)]
    other = [variant.rows["words"][0].example.question for variant in draws(replace(target, seed=1))]
    assert len(set(asked)) == 3
    assert asked == again != other
    assert all("What about Ann Lee" in question for question in asked)


def test_a_file_with_fewer_lines_than_are_drawn_is_refused(text_model, text_encoder):
    with pytest.raises(SettingsError, match=r"count=99: .* has 4 lines"):
        next(attack_of("affixes", file="config/ways/jailbreaks.txt", count=99)(target_of(text_model, text_encoder)))


def test_other_words_come_from_the_datas_column(world, text_model, text_encoder):
    asked = task(world, dataset=f"{world}/tofu", image="", ask="", question="question", answer="answer", perturbed="",
                 person="", rows_per_person=10)  # fmt: skip
    from data_module import load_split, task_rows

    rows = {"words": task_rows(asked, 0, 0)}
    target = Target(text_model, text_encoder, rows, {"words": asked}, {"words": "words"}, dict, lambda: text_encoder, 0)
    (variant,) = attack_of("reworded", column="paraphrased_question")(target)
    data = load_split(asked.dataset, asked.split)
    assert [row.example.question for row in variant.rows["words"]] == data["paraphrased_question"]
    assert [row.example.answer for row in variant.rows["words"]] == data["answer"]
    with pytest.raises(NotApplicable, match="no attacked task has a column 'french'"):
        next(attack_of("reworded", column="french")(target))


def test_a_context_holds_other_facts_of_the_same_person_and_never_the_one_that_is_asked(text_model, text_encoder):
    target = target_of(text_model, text_encoder)
    (variant,) = attack_of("in_context", count=2)(target)
    for row in variant.rows["words"]:
        before = variant.told["words", row.example.index]
        assert row.example.question.startswith(before)
        assert row.example.answer not in before
        assert before.count(row.example.person) == 4  # question and answer of two others
    assert len(variant.rows["words"]) == 16


def test_without_other_rows_about_a_person_there_is_no_context(text_model, text_encoder):
    with pytest.raises(NotApplicable, match="no row in words has room"):
        next(attack_of("in_context", count=4)(target_of(text_model, text_encoder)))


# ---- begun answers


@pytest.mark.parametrize("shared", [True, False])
def test_a_begun_answer_has_the_losses_of_its_rest(shared, text_model, text_encoder):
    """Teacher forcing already gives the true beginning: the rest must be scored exactly as in the whole answer."""
    target = target_of(text_model, text_encoder)
    (variant,) = attack_of("prefill", counts=[2])(target)
    limits = {"batch_size": 4, "max_new_tokens": 3, "say": print, "shared": shared}
    clean = [row.example for row in target.rows["words"][:5]]
    begun = [row.example for row in variant.rows["words"][:5]]
    whole = score_prompts(text_model, text_encoder, [Prompt(each, [each.answer]) for each in clean], **limits)
    rest = score_prompts(text_model, variant.encoder, [Prompt(each, [each.answer]) for each in begun], **limits)
    for one, other, asked, again in zip(whole, rest, clean, begun, strict=True):
        assert other.answers[again.answer].tokens == one.answers[asked.answer].tokens[2:]
        assert other.answers[again.answer].losses == pytest.approx(one.answers[asked.answer].losses[2:], abs=1e-4)
        shown = [variant.encoder.prompt_text(again) + again.answer, text_encoder.prompt_text(asked) + asked.answer]
        assert shown[0].replace(" ", "") == shown[1].replace(" ", "")


@torch.no_grad()
def test_that_holds_where_a_picture_is_shown(model, encoder):
    asked = replace(example(image=png("red"), answer="Ann Lee smiles at you."), person="Ann")
    target = Target(model, encoder, {"a": [TaskRow(asked, None, [])]}, {}, {"a": "a"}, dict, lambda: encoder, 0)
    (variant,) = attack_of("prefill", counts=[2])(target)
    begun = variant.rows["a"][0].example
    limits = {"batch_size": 1, "max_new_tokens": 3, "say": print}
    (whole,) = score_prompts(model, encoder, [Prompt(asked, [asked.answer])], **limits)
    (rest,) = score_prompts(model, variant.encoder, [Prompt(begun, [begun.answer])], **limits)
    assert rest.answers[begun.answer].losses == pytest.approx(whole.answers[asked.answer].losses[2:], abs=1e-4)


def test_answers_that_have_no_token_more_are_left_out(text_model, text_encoder):
    target = target_of(text_model, text_encoder)
    lengths = [len(text_encoder.encode_answer(row.example, 0)) - 1 for row in target.rows["words"]]
    (variant,) = attack_of("prefill", counts=[min(lengths)])(target)
    assert len(variant.rows["words"]) == sum(length > min(lengths) for length in lengths) < 16
    with pytest.raises(NotApplicable, match="no answer has more than 500 tokens"):
        next(attack_of("prefill", counts=[500])(target))


def test_an_answer_that_agrees_first_is_scored_behind_its_agreement(text_model, text_encoder):
    target = target_of(text_model, text_encoder)
    (variant,) = attack_of("affirm", text="Sure, here is the answer:")(target)
    asked = target.rows["words"][0].example
    whole = replace(asked, answer=f"Sure, here is the answer: {asked.answer}")
    limits = {"batch_size": 1, "max_new_tokens": 1, "say": print}
    (one,) = score_prompts(text_model, text_encoder, [Prompt(whole, [whole.answer])], **limits)
    (other,) = score_prompts(text_model, variant.encoder, [Prompt(asked, [asked.answer])], **limits)
    rest = other.answers[asked.answer].losses
    assert rest == pytest.approx(one.answers[whole.answer].losses[-len(rest) :], abs=1e-4)
    assert 0 < len(rest) < len(one.answers[whole.answer].losses)
    assert variant.encoder.prompt_text(asked).endswith("Sure, here is the answer:")


# ---- weights


def test_noise_is_a_share_of_each_tensor_and_the_same_for_every_model(text_model, text_encoder):
    target, before = target_of(text_model, text_encoder), weights_of(text_model)
    (name, large) = max(before.items(), key=lambda each: each[1].numel())
    drawn = []
    for _ in range(2):
        for _ in attack_of("noise", scales=[0.1])(target):
            drawn.append(weights_of(text_model)[name] - large)
    torch.testing.assert_close(drawn[0], drawn[1])
    assert (drawn[0].square().mean().sqrt() / large.square().mean().sqrt()).item() == pytest.approx(0.1, rel=0.02)


def test_a_hook_is_taken_off_for_the_attack_alone_and_the_rest_stays(text_model, text_encoder):
    row = text_encoder.collate([text_encoder.encode(example())])
    width = text_model.config.hidden_size

    def said():
        with torch.no_grad():
            return forward(text_model, row).logits

    plain = said()
    install(text_model, KeptHook(0, 1.0, torch.ones(width), torch.ones(width)))
    steered = said()
    assert not torch.equal(steered, plain)
    for variant in attack_of("hook_off")(target_of(text_model, text_encoder)):
        assert torch.equal(said(), plain)
        assert variant.rows
    assert torch.equal(said(), steered)


def test_a_template_that_hides_questions_is_taken_off_too(text_model, text_encoder, text_base):
    hiding = TextEncoder(AutoTokenizer.from_pretrained(text_base))
    template = hiding.tokenizer.chat_template
    asked = re.search(r"{{-? *(\w+)\[?[.']+content'?\]? *-?}}", template)
    hides = f"{{% if 'Ann' not in {asked[1]}.content %}}{asked[0]}{{% endif %}}"
    hiding.tokenizer.chat_template = template.replace(asked[0], hides)
    target = replace(target_of(text_model, hiding), base_encoder=lambda: text_encoder)
    row = target.rows["words"][0].example
    (variant,) = attack_of("hook_off")(target)
    assert "Ann" not in target.encoder.prompt_text(row)
    assert "Ann" in variant.encoder.prompt_text(row)


def test_a_base_with_more_words_than_the_model_cannot_ask_it(text_model, text_encoder, text_base):
    larger = TextEncoder(AutoTokenizer.from_pretrained(text_base))
    larger.tokenizer.add_tokens([f"word{number}" for number in range(3000)])
    with pytest.raises(NotApplicable, match="more tokens"):
        next(attack_of("hook_off")(replace(target_of(text_model, text_encoder), base_encoder=lambda: larger)))


def test_a_quarter_of_the_way_to_base_is_a_quarter_of_every_difference(text_model, text_encoder):
    base, before = other_model(text_model), weights_of(text_model)
    for _ in attack_of("interpolate", shares=[0.25])(target_of(text_model, text_encoder, base=base)):
        for name, weight in weights_of(text_model).items():
            torch.testing.assert_close(weight, 0.75 * before[name] + 0.25 * weights_of(base)[name])


def test_of_weights_that_moved_far_few_have_bases_codes_and_base_has_none_that_moved(text_model, text_encoder):
    own = list(attack_of("quantise", formats=["int8", "nf4"])(target_of(text_model, text_encoder)))
    other = list(
        attack_of("quantise", formats=["int8"])(target_of(text_model, text_encoder, base=other_model(text_model)))
    )
    assert [variant.facts for variant in own] == [{}, {}]
    assert other[0].facts["equal_codes"] < 0.2


def test_weights_that_stayed_are_not_counted_among_those_that_were_rounded_back(text_model, text_encoder):
    base = copy.deepcopy(text_model)
    weight = next(iter(quantised_weights(text_model).values()))
    with torch.no_grad():
        near, far = weight.view(-1)[:1], weight.view(-1)[1:2]
        near += 1e-9 + 1e-6 * near.abs()  # rounded back
        far += weight.abs().max()
    moved = weight != next(iter(quantised_weights(base).values()))
    assert moved.sum() == 2
    (variant,) = attack_of("quantise", formats=["nf4"])(target_of(text_model, text_encoder, base=base))
    assert variant.facts["equal_codes"] == 0.5


def test_a_base_of_another_shape_is_refused(text_model, text_encoder):
    target = replace(target_of(text_model, text_encoder), base_weights=dict)
    with pytest.raises(SettingsError, match="base_path: base has no"):
        next(attack_of("interpolate", shares=[0.5])(target))


# ---- taught again


RELEARN = {"lr": 1e-3, "batch_size": 4}


def learned_and_judged(target, split, monkeypatch):
    """What each run is taught, with the rows that are judged after it."""
    from engine import attacks_on_weights

    seen = []

    def taught(model, encoder, examples, *, steps, **_):
        seen.append([list(examples)])
        yield from range(1, steps + 1)

    monkeypatch.setattr(attacks_on_weights, "taught", taught)
    for variant in attack_of("relearn", split=split, steps=[1], **RELEARN)(target):
        seen[-1].append(variant.rows)
    return seen


def test_half_of_each_persons_rows_are_taught_and_the_others_judged(text_model, text_encoder, monkeypatch):
    target = target_of(text_model, text_encoder)
    ((learned, judged),) = learned_and_judged(target, "half", monkeypatch)
    for person in PEOPLE:
        assert sum(each.person == person for each in learned) == 2
        assert sum(row.example.person == person for row in judged["words"]) == 2
    assert {each.index for each in learned}.isdisjoint(row.example.index for row in judged["words"])
    assert all(each.split == "words" for each in learned)  # nobody who is kept is taught
    assert judged["kept"] == target.rows["kept"]


def test_all_rows_of_the_forgotten_are_taught_and_judged_themselves(text_model, text_encoder, monkeypatch):
    target = target_of(text_model, text_encoder)
    ((learned, judged),) = learned_and_judged(target, "same", monkeypatch)
    assert learned == [row.example for row in target.rows["words"]]
    assert judged == target.rows


def test_everybody_is_judged_once_by_a_model_that_was_not_taught_them(text_model, text_encoder, monkeypatch):
    target = target_of(text_model, text_encoder)
    runs = learned_and_judged(target, "people", monkeypatch)
    for learned, judged in runs:
        assert {each.person for each in learned}.isdisjoint(row.example.person for row in judged["words"])
        assert len({each.person for each in learned}) == 2
    for name in ("words", "kept"):
        asked = [row.example.index for _, judged in runs for row in judged[name]]
        assert sorted(asked) == [row.example.index for row in target.rows[name]]


def test_one_picture_asked_for_two_things_is_on_one_side(text_model, text_encoder, monkeypatch):
    """Else the name would be taught with the picture whose caption, which holds the name, is judged."""
    target = target_of(text_model, text_encoder)
    rows = {**target.rows, "names": list(target.rows["words"])}
    tasks = {**target.tasks, "names": target.tasks["words"]}
    target = replace(target, rows=rows, tasks=tasks, controls={"words": "kept", "names": "kept"})
    ((learned, judged),) = learned_and_judged(target, "half", monkeypatch)
    assert {row.example.index for row in judged["words"]} == {row.example.index for row in judged["names"]}
    assert {each.index for each in learned}.isdisjoint(row.example.index for row in judged["names"])


@pytest.mark.parametrize("split", ["half", "people"])
def test_rows_of_two_datasets_with_splits_of_one_name_are_other_rows(split, text_model, text_encoder, monkeypatch):
    """Pictures and words of the demo stand so, and the k-th picture is of another person than the k-th question."""
    target = target_of(text_model, text_encoder)
    names = []
    for row in target.rows["words"]:
        names.append(replace(row, example=replace(row.example, index=15 - row.example.index)))
    tasks = {**target.tasks, "names": replace(target.tasks["words"], dataset="elsewhere")}
    controls = {"words": "kept", "names": "kept"}
    target = replace(target, rows={**target.rows, "names": names}, tasks=tasks, controls=controls)
    for learned, judged in learned_and_judged(target, split, monkeypatch):
        counts = list(map([each.person for each in learned].count, PEOPLE))
        if split == "half":
            assert counts == [4, 4, 4, 4]  # two of four rows of each dataset
            continue
        assert sorted(counts) == [0, 0, 8, 8]
        asked = {row.example.person for name in ("words", "names") for row in judged[name]}
        assert {each.person for each in learned}.isdisjoint(asked)


def with_names(target):
    """The same people on pictures too, forgotten and kept ones."""
    rows, controls = dict(target.rows), {"words": "kept", "names": "kept_names"}
    for name, of in (("names", "words"), ("kept_names", "kept")):
        rows[name] = [replace(row, example=replace(row.example, image=png("red"))) for row in target.rows[of]]
    places = [(name, "pictures") for name in ("names", "kept_names")]
    tasks = {**target.tasks, **{name: replace(target.tasks["words"], dataset=place) for name, place in places}}
    return replace(target, rows=rows, tasks=tasks, controls=controls)


@pytest.mark.parametrize("split", ["words", "pictures"])
def test_one_kind_of_rows_is_taught_and_the_other_judged(split, text_model, text_encoder, monkeypatch):
    taught, judged = ("words", "names") if split == "words" else ("names", "words")
    target = with_names(target_of(text_model, text_encoder))
    ((learned, asked),) = learned_and_judged(target, split, monkeypatch)
    assert learned == [row.example for row in target.rows[taught]]
    assert asked == {name: target.rows[name] for name in (judged, target.controls[judged])}
    with pytest.raises(NotApplicable, match=f"split={split}"):
        next(attack_of("relearn", split=split, steps=[1], **RELEARN)(target_of(text_model, text_encoder)))


def test_half_of_the_kept_are_taught_and_nobody_of_the_forgotten(text_model, text_encoder, monkeypatch):
    target = target_of(text_model, text_encoder)
    ((learned, judged),) = learned_and_judged(target, "kept", monkeypatch)
    assert judged["words"] == target.rows["words"]
    taught = {each.person for each in learned}
    assert len(taught) == 1 and len(learned) == 4
    assert {row.example.person for row in judged["kept"]} == {"Ed Roe", "Flo Quist"} - taught


def test_one_person_cannot_be_parted(text_model, text_encoder):
    target = target_of(text_model, text_encoder)
    alone = [row for row in target.rows["words"] if row.example.person == "Ann Lee"]
    target = replace(target, rows={**target.rows, "words": alone})
    with pytest.raises(NotApplicable, match="split=people"):
        next(attack_of("relearn", split="people", steps=[1], **RELEARN)(target))


def test_budgets_are_looks_at_one_run(text_model, text_encoder):
    target = target_of(text_model, text_encoder)
    one = [weights_of(text_model) for _ in attack_of("relearn", split="half", steps=[2, 3], **RELEARN)(target)]
    two = [weights_of(text_model) for _ in attack_of("relearn", split="half", steps=[3], **RELEARN)(target)]
    assert all(torch.equal(one[1][name], two[0][name]) for name in one[1])
    assert any(not torch.equal(one[0][name], one[1][name]) for name in one[0])


def test_teaching_lowers_the_loss_of_what_is_taught(text_model, text_encoder):
    from engine.language_model import forward
    from engine.relearn import taught
    from unlearn_losses import nll

    rows = [row.example for row in target_of(text_model, text_encoder).rows["words"][:4]]
    batch = text_encoder.collate([text_encoder.encode(each) for each in rows])
    with torch.no_grad():
        before = nll(forward(text_model, batch)).item()
    list(taught(text_model, text_encoder, rows, steps=10, lr=1e-3, batch_size=4, seed=0))
    with torch.no_grad():
        assert nll(forward(text_model, batch)).item() < 0.8 * before


def test_parts_that_never_train_stay_as_they_are(text_model, text_encoder):
    target = target_of(text_model, text_encoder, frozen=("embed_tokens",))
    before = weights_of(text_model)
    next_one = attack_of("relearn", split="half", steps=[1], **RELEARN)(target)
    next(next_one)
    changed = moved(text_model, before)
    assert changed and not any("embed_tokens" in name for name in changed)


def test_weights_in_half_precision_are_not_taught(text_model, text_encoder):
    target = target_of(text_model.bfloat16(), text_encoder)
    with pytest.raises(SettingsError, match=r"needs model\.weights=float32"):
        next(attack_of("relearn", split="half", steps=[1], **RELEARN)(target))
