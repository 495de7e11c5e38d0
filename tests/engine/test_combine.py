"""Several trainings whose updates become one: hand numbers of the rule, what the parts are trained on, and that the
whole run is as resumable as one training.
"""

import json
import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Conv1D, GPT2Config, GPT2LMHeadModel

from cv.together import check_stackable
from engine import checkpoints, combine_step
from engine.adapters import add_lora
from engine.combine_sculpt import sculpt
from engine.combine_step import combined, copies
from engine.frozen_start import Start
from engine.language_model import forward, load_for_training, save, trained_weights
from engine.loss_trainer import LossTrainer
from engine.memory import need_of
from engine.methods import bind
from engine.record import read_json
from engine.tracking import run_of
from engine.train import train
from helpers import BASE, ROOT, TRAINER, Few, largest_difference, pairs, training_settings, without_dropout
from settings.language import Forget
from settings.script import SettingsError, Stopped, compose
from settings.training import Combine, Lora, Method, Part
from unlearn_losses import nll

LORA = Lora(r=4, alpha=8, dropout=0.0)
FILE = OmegaConf.merge(OmegaConf.structured(Method), OmegaConf.load(ROOT / "config/method/smfa.yaml"))
SMFA: Method = OmegaConf.to_object(FILE)
SMFA = replace(SMFA, combine=replace(SMFA.combine, rows=4))
IDK = Method("idk", "idk", {"retain_weight": 1.0})
EACH_STEP = replace(TRAINER, epochs=2, batch_size=2, save_every="1step")


def with_k(k):
    return replace(SMFA, combine=replace(SMFA.combine, args={"k": k}))


def run(data, encoder, folder, method=SMFA, settings=TRAINER, *, record=None, say=lambda line: None, dropout=False):
    """Train on six rows, of which the second part sees the four that are drawn to be kept."""
    bound = bind(method)
    network = load_for_training(AutoModelForImageTextToText, training_settings(lora=settings.lora))
    start = Start(network if dropout else without_dropout(network), forward, partial(save, encoder.processor))
    few = Few(pairs(data, bound.batches), 6)
    train(start, bound, few, encoder, settings, seed=0, save_dir=str(folder), record=record or {}, say=say)
    return load_file(folder / "model.safetensors"), read_json(folder / "train_meta.json")


# ---- the rule by hand


def test_an_update_gives_way_where_it_points_against_the_anchor_and_is_far_larger():
    # norms 5 and 3, rho 5/3. Entry 0 points against the anchor: 3 > 1 * 5/3 * 1 = 1.67 goes, 3 < 2 * 5/3 * 1 = 3.33
    # stays. Entry 1 points the same way and entry 2 does not move
    forgetting, anchor = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([-1.0, 2.0, 2.0])
    assert sculpt(forgetting, anchor, k=1.0).tolist() == [0.0, 4.0, 0.0]
    assert sculpt(forgetting, anchor, k=2.0).tolist() == [3.0, 4.0, 0.0]


def test_an_entry_that_is_exactly_k_times_as_large_stays():
    # both are .6 and .8 of their lengths of 5 and 50
    forgetting, anchor = torch.tensor([3.0, -4.0]), torch.tensor([-30.0, 40.0])
    assert sculpt(forgetting, anchor, k=1.0).tolist() == [3.0, -4.0]
    assert sculpt(forgetting, anchor, k=0.99).tolist() == [0.0, 0.0]


def test_where_one_of_the_two_did_not_move_the_update_stays():
    moved, still = torch.tensor([1.0, -1.0]), torch.zeros(2)
    assert sculpt(moved, still, k=0.0).tolist() == [1.0, -1.0]
    assert sculpt(still, moved, k=0.0).tolist() == [0.0, 0.0]


def test_tiny_updates_are_sculpted_as_large_ones_are():
    # products and squares of 1e-30 are 0 in fp32
    forgetting, anchor = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([-1.0, 2.0, 2.0])
    tiny = sculpt(forgetting * 1e-30, anchor * 1e-30, k=1.0)
    assert (tiny != 0).tolist() == [False, True, False]


# ---- merged updates


def test_updates_of_adapters_are_those_of_merged_weights(model):
    """The base is what it was plus the rule of the merged updates, whatever becomes of the factors."""
    before = copies(dict(model.named_parameters()))
    adapted = add_lora(model, LORA, "language_model", seed=0)
    torch.manual_seed(0)
    first = copies(trained_weights(adapted))

    def drawn():
        return {name: torch.randn_like(each) / 10 for name, each in first.items()}

    own = [drawn(), drawn()]
    made, left_out = combined(adapted, first, own, partial(sculpt, k=1.0))
    after = dict(made.named_parameters())
    place = "model.language_model.layers.1.mlp.up_proj"
    factor = f"base_model.model.{place}.lora_{{}}.default.weight"
    forgetting, anchor = (8 / 4 * each[factor.format("B")] @ each[factor.format("A")] for each in own)
    expected = before[f"{place}.weight"] + sculpt(forgetting, anchor, k=1.0)
    assert torch.allclose(after[f"{place}.weight"], expected, atol=1e-6)
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {f"{name}.weight" for name, each in made.named_modules() if is_adapted(name, each)}
    assert 0 < left_out < 0.5  # where signs are drawn, at most half of them are opposed
    assert not any("lora" in name for name in after)


def is_adapted(name, module):
    return isinstance(module, torch.nn.Linear) and ".language_model.layers." in name


def test_layers_that_hold_their_weight_the_other_way_round_are_updated_alike():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, n_positions=16))
    before = copies(dict(model.named_parameters()))
    adapted = add_lora(model, LORA, "language_model", seed=0)
    first = copies(trained_weights(adapted))
    torch.manual_seed(0)
    moved = {name: torch.randn_like(each) for name, each in first.items()}
    made, _ = combined(adapted, first, [moved, first], partial(sculpt, k=1.0))  # an anchor that did not move
    place = "transformer.h.0.mlp.c_fc"
    assert isinstance(made.get_submodule(place), Conv1D)
    b, a = (moved[f"base_model.model.{place}.lora_{x}.default.weight"] for x in "BA")
    expected = before[f"{place}.weight"] + (8 / 4 * b @ a).T
    assert torch.allclose(made.get_submodule(place).weight, expected, atol=1e-6)


# ---- a run


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapters"])
def test_without_sculpting_the_model_is_that_of_the_first_part_alone(lora, data, encoder, tmp_path):
    """k so large that nothing goes: what the anchor learned leaves no trace, and the parts have the draws of a training
    of their own.
    """
    settings = replace(TRAINER, lora=lora)
    method = replace(with_k(1e30), combine=replace(with_k(1e30).combine, rows=0))
    whole, record = run(data, encoder, tmp_path / "whole", method, settings)
    alone, own = run(data, encoder, tmp_path / "alone", IDK, settings)
    start = load_file(BASE / "model.safetensors")
    assert record["left_out"] == 0 and record["loss"][: len(own["loss"])] == own["loss"]
    assert largest_difference(whole, alone) < 1e-6 < largest_difference(whole, start)
    assert not (tmp_path / "whole" / "adapter").exists()  # an adapter would be of another update


@pytest.mark.slow
@pytest.mark.parametrize("settings", [TRAINER, replace(TRAINER, lora=LORA, precision="bf16")], ids=["all", "lora"])
def test_every_part_starts_where_the_model_started(settings, data, encoder, tmp_path, monkeypatch):
    seen = []
    real = combine_step.combined

    def heard(model, first, own, rule):
        seen.extend([first, *own])
        return real(model, first, own, rule)

    monkeypatch.setattr(combine_step, "combined", heard)
    _, record = run(data, encoder, tmp_path / "both", SMFA, settings)
    first, forgetting, anchor = seen
    swapped = SMFA.combine.parts["anchor"]
    parts = {"forgetting": swapped, "anchor": SMFA.combine.parts["forgetting"]}
    run(data, encoder, tmp_path / "swapped", replace(SMFA, combine=replace(SMFA.combine, parts=parts)), settings)
    assert largest_difference(first, seen[3]) == 0
    assert largest_difference(anchor, seen[4]) == 0 and largest_difference(forgetting, seen[5]) == 0
    assert 0 < record["left_out"] < 0.5


def test_the_model_that_is_saved_refuses_more_and_what_is_saved_is_what_was_combined(data, encoder, tmp_path):
    _, record = run(data, encoder, tmp_path / "out", SMFA, replace(TRAINER, epochs=4))
    few = Few(pairs(data, ["forget", "idk"]), 6)

    def losses(folder):
        network = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
        means = []
        for name in ("forget", "idk"):
            batch = encoder.collate([encoder.encode(few[key][name][0]) for key in range(6)])
            with torch.no_grad():
                means.append(nll(forward(network, batch)).item())
        return means

    (forget, idk), (forget_before, idk_before) = losses(tmp_path / "out"), losses(BASE)
    assert idk < idk_before and forget - idk > forget_before - idk_before
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    # six forget rows and four retain rows, four a step, four epochs
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 13)) == [step for step, _ in record["loss"]]
    assert [json.loads(line)["part"] for line in lines] == ["forgetting"] * 8 + ["anchor"] * 4
    assert record["steps"] == 12 and [each["steps"] for each in record["parts"].values()] == [8, 4]
    assert record["seconds"] >= sum(each["seconds"] for each in record["parts"].values()) > 0
    assert 0 < record["padding"] < 1 and record["tokens_per_second"] > 0
    assert not (tmp_path / "out.checkpoints").exists()


def test_parts_see_the_same_few_retain_rows_drawn_with_the_seed(data):
    few = pairs(data, ["idk", "retain"]).with_retain_rows(4)
    anchor = pairs(data, ["retain"]).with_retain_rows(4)
    assert len(anchor) == 4 and len(few) == len(few.forget) > 4
    seen = {few[key]["retain"][0].key for key in range(len(few))}
    assert seen == {anchor[key]["retain"][0].key for key in range(4)}
    other = pairs(data, ["retain"], seed=1).with_retain_rows(4)
    assert seen != {other[key]["retain"][0].key for key in range(4)}
    assert len(anchor.with_retain_rows(0)) == 4 and len(pairs(data, ["retain"]).with_retain_rows(0)) > 4


def test_few_retain_rows_of_one_answer_give_no_other_answers(data):
    with pytest.raises(SettingsError, match="answers of retain rows, but these all have the same answer"):
        pairs(data, ["forget", "unrelated"]).with_retain_rows(1)


def test_an_update_of_which_nothing_is_left_is_refused(data, encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(combine_step.COMBINATIONS, "sculpt", lambda forgetting, anchor, *, k: 0 * forgetting)
    with pytest.raises(SettingsError, match=r"method.combine leaves nothing of the update, nothing would be forgotten"):
        run(data, encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_rate_the_model_stays_the_start(data, encoder, tmp_path):
    saved, record = run(data, encoder, tmp_path / "out", SMFA, replace(TRAINER, lr=0.0))
    assert largest_difference(saved, load_file(BASE / "model.safetensors")) == 0 == record["left_out"]


# ---- killed and begun again


class Killed(BaseException):
    """Ends a run at once, as kill -9 would."""


@pytest.fixture
def trainings(monkeypatch):
    """`trainings.at(part, step, act)`: acts after so many steps of that training; `trainings.count`: how many began."""
    made = LossTrainer.__init__
    state = SimpleNamespace(count=0, part=0, step=0, act=None)

    def counted(self, *args, **options):
        made(self, *args, **options)
        state.count += 1
        number, taken = state.count, self.training_step

        def step(*given, **named):
            if state.act and (number, self.state.global_step) == (state.part, state.step):
                state.act()
            return taken(*given, **named)

        self.training_step = step

    def at(part, step, act):
        state.count, state.part, state.step, state.act = 0, part, step, act

    monkeypatch.setattr(LossTrainer, "__init__", counted)
    state.at = at
    return state


def die():
    raise Killed


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed",
    [(1, 4, 2, None), (2, 0, 1, LORA), (2, 3, 1, replace(LORA, dropout=0.5))],
    ids=["first", "between", "second"],
)
def test_a_killed_run_trains_no_finished_part_again_and_ends_with_the_same_bytes(
    killed, data, encoder, tmp_path, trainings
):
    """Six steps of the first part and four of the second: where it is killed, how many trainings then begin, LoRA."""
    part, step, begun, lora = killed
    settings = replace(EACH_STEP, lora=lora, precision="bf16" if lora else "fp32")
    plain, record = run(data, encoder, tmp_path / "plain", settings=settings, dropout=True)
    trainings.at(part, step, die)
    with pytest.raises(Killed):
        run(data, encoder, tmp_path / "again", settings=settings, dropout=True)
    assert not (tmp_path / "again").exists()
    trainings.at(0, 0, None)
    again, record_again = run(data, encoder, tmp_path / "again", settings=settings, dropout=True)
    assert trainings.count == begun
    assert largest_difference(plain, again) == 0
    assert record_again["loss"] == record["loss"] and record_again["steps"] == record["steps"] == 10
    assert record_again["left_out"] == record["left_out"]
    assert not (tmp_path / "again.checkpoints").exists()


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_combined_only_combines(data, encoder, tmp_path, trainings, monkeypatch):
    plain, _ = run(data, encoder, tmp_path / "plain")
    with monkeypatch.context() as patch:
        patch.setattr(combine_step, "combined", lambda *_: die())
        with pytest.raises(Killed):
            run(data, encoder, tmp_path / "again")
    trainings.count, said = 0, []
    again, _ = run(data, encoder, tmp_path / "again", say=said.append)
    assert trainings.count == 0 and said[:2] == ["smfa: the part forgetting is there", "smfa: the part anchor is there"]
    assert largest_difference(plain, again) == 0


@pytest.mark.slow
def test_dropout_of_all_parts_is_off_where_one_compares_whichever_is_trained_again(data, encoder, tmp_path, trainings):
    """The second part compares with the start: the first is as silent in an attempt in which both are trained."""
    parts = {**SMFA.combine.parts, "anchor": Part("kl")}
    method = replace(SMFA, combine=replace(SMFA.combine, parts=parts))
    plain, _ = run(data, encoder, tmp_path / "plain", method, dropout=True)
    swapped = {"forgetting": Part("kl"), "anchor": SMFA.combine.parts["forgetting"]}
    turned = replace(SMFA, combine=replace(SMFA.combine, parts=swapped, args={"k": 1e30}))
    trainings.at(2, 0, die)
    with pytest.raises(Killed):
        run(data, encoder, tmp_path / "again", turned, dropout=True)
    trainings.at(0, 0, None)
    losses = run(data, encoder, tmp_path / "again", turned, dropout=True)[1]["loss"]
    without, _ = run(data, encoder, tmp_path / "silent", turned)
    assert largest_difference(load_file(tmp_path / "again" / "model.safetensors"), without) == 0 and len(losses) == 4
    assert largest_difference(plain, run(data, encoder, tmp_path / "own", method)[0]) == 0


@pytest.mark.slow
def test_a_part_of_another_run_is_trained_anew(data, encoder, tmp_path, trainings):
    facts = {"settings": {}, "inputs": {"data": [], "models": [], "files": []}, "code": "c"}
    trainings.at(2, 0, die)
    with pytest.raises(Killed):
        run(data, encoder, tmp_path / "out", record={**facts, "key": "one"})
    trainings.at(0, 0, None)
    said = []
    run(data, encoder, tmp_path / "out", record={**facts, "key": "two", "code": "d"}, say=said.append)
    assert trainings.count == 2 and "is of another run (the code): it is trained anew" in said[0]


@pytest.mark.slow
def test_a_signal_in_the_last_step_of_a_part_ends_the_run_and_the_same_call_goes_on(data, encoder, tmp_path, trainings):
    plain, _ = run(data, encoder, tmp_path / "plain", settings=EACH_STEP)
    trainings.at(1, 5, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match=r"SIGTERM: .* is a finished part of the run; the same command goes on") as stop:
        run(data, encoder, tmp_path / "again", settings=EACH_STEP)
    assert stop.value.code == 128 + signal.SIGTERM
    trainings.at(0, 0, None)
    again, _ = run(data, encoder, tmp_path / "again", settings=EACH_STEP)
    assert trainings.count == 1 and largest_difference(plain, again) == 0


def test_a_part_that_diverges_leaves_nothing(data, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.loss_trainer.is_finite", lambda scored: True)
    settings = replace(EACH_STEP, lr=1e20)
    with pytest.raises(checkpoints.Diverged, match="method smfa"):
        run(data, encoder, tmp_path / "out", settings=settings)
    assert not (tmp_path / "out.checkpoints").exists() and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_weights_of_a_part_that_cannot_be_read_are_one_line(data, encoder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(combine_step, "combined", lambda *_: die())
        with pytest.raises(Killed):
            run(data, encoder, tmp_path / "out")
    (tmp_path / "out.checkpoints" / "anchor" / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(SettingsError, match=r"the checkpoint '.*anchor' cannot be read"):
        run(data, encoder, tmp_path / "out")


def test_too_little_room_for_the_parts_is_told_before_the_first_step(data, encoder, tmp_path, monkeypatch, trainings):
    asked = []
    monkeypatch.setattr(checkpoints, "check_space", lambda folder, needed, how: asked.append(needed))
    run(data, encoder, tmp_path / "out", settings=replace(TRAINER, save_every="never"))
    weights = sum(
        each.numel() for each in trained_weights(load_for_training(AutoModelForImageTextToText, OWN)).values()
    )
    assert asked[0] - asked[1] == 2 * 4 * weights  # the weights of two parts in fp32, beside the model


OWN = training_settings()


# ---- what is refused


def method_of(**changes):
    return replace(SMFA, combine=replace(SMFA.combine, **changes))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: replace(SMFA, loss="npo"), "method.combine stands in place of method.loss"),
        (
            lambda: replace(SMFA, retain="kl"),
            "a part of method.combine is a loss with its args; leave method.retain=kl",
        ),
        (lambda: replace(SMFA, args={"beta": 1.0}), "a loss with its args; leave method.args out"),
        (lambda: bind(method_of(rule="sculp")), r"method.combine.rule='sculp'.*sculpt"),
        (lambda: bind(method_of(args={})), "method.combine.args.k is required by rule sculpt"),
        (lambda: bind(method_of(args={"k": -1.0})), "method.combine.args.k=-1.0 must be at least 0"),
        (lambda: bind(method_of(parts={"anchor": Part("kl")})), "method.combine.parts.forgetting is required by rule"),
        (
            lambda: bind(method_of(parts={**SMFA.combine.parts, "anchor": Part("retain_tf")})),
            r"method.combine.parts.anchor, a loss with its args: method.loss='retain_tf' is not in unlearn_losses",
        ),
        (
            lambda: bind(method_of(parts={**SMFA.combine.parts, "forgetting": Part("idk")})),
            "method.combine.parts.forgetting, a loss with its args: method.args.retain_weight is required by idk",
        ),
        (lambda: bind(SMFA, faces=True), "method=smfa combines the updates .* for language models"),
        (lambda: check_stackable(SMFA), "many networks cannot train together with method.combine"),
        (lambda: Combine("sculpt", {}, rows=-1), "method.combine.rows=-1 must be at least 0"),
        (
            lambda: compose("mm/forget", Forget, ["method=smfa", "trainer=clear_lora", "trainer.save=adapter"]),
            "trainer.save=adapter: what method=smfa combines is no adapter; set trainer.save=merged",
        ),
        (
            lambda: compose("mm/forget", Forget, ["method=smfa", "epoch_eval=mm"]),
            "epoch_eval: what method=smfa trains is no whole model before the end",
        ),
    ],
)
def test_what_a_combination_cannot_be_is_one_line(make, line):
    with pytest.raises(SettingsError, match=line):
        make()


def test_a_sharded_combination_is_refused(data, encoder, tmp_path, monkeypatch):
    def sharded(self):
        return DistributedType.FSDP

    monkeypatch.setattr("accelerate.Accelerator.distributed_type", property(sharded))
    monkeypatch.setattr("accelerate.Accelerator.is_fsdp2", property(lambda self: True))
    with pytest.raises(SettingsError, match=r"method=smfa combines whole updates, .* launch it without sharding"):
        run(data, encoder, tmp_path / "out")
    assert not (tmp_path / "out.checkpoints").exists()


def test_a_combination_needs_as_much_memory_as_its_largest_part(text_base):
    from transformers import AutoConfig

    from engine.memory import Shape

    config = AutoConfig.from_pretrained(text_base)

    def peak(*overrides):
        common = [f"model_path={text_base}", "model=tiny-llama", "trainer.weight_decay=0"]
        settings = compose("nlp/forget", Forget, [*common, *overrides])
        return need_of(settings, AutoModelForCausalLM, config, Shape(24, 12, "stated")).peak

    assert peak("method=smfa") == peak("method=idk") > peak("method=retain_ft")


def test_invented_answers_that_a_part_asks_for_are_an_input(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("")
    settings = compose("mm/forget", Forget, ["method=smfa", f"data.alternatives={file}"])
    assert str(file) not in settings.inputs().files
    settings.method.combine.parts["forgetting"].loss = "altpo"
    assert str(file) in settings.inputs().files and "altpo" in settings.inputs().losses


def test_figures_of_a_part_go_by_the_name_of_the_run_and_the_part(tmp_path):
    assert run_of(tmp_path / "smfa_seed0.checkpoints" / "anchor") == (tmp_path / "smfa_seed0.anchor").resolve()
