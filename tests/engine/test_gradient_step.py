"""Steps that treat the forget and the retain gradient apart: each rule by hand, and in the training loop."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from cv.together import check_stackable
from data_module import TrainingRows
from engine import checkpoints
from engine.checkpoints import OWN
from engine.frozen_start import Start
from engine.gradient_mask import mask
from engine.gradient_project import project
from engine.gradient_sam import add, perturbation
from engine.gradient_step import PartedGradient, moved, statistics_kept
from engine.language_model import forward, load_for_training, save
from engine.loss_trainer import LossTrainer
from engine.mask_step import chosen_by, exceeds
from engine.methods import bind
from engine.pairs import drawn_of, in_scope
from engine.train import train
from helpers import BASE, MODEL, NPO, ROOT, TRAINER, Few, largest_difference, pairs, training_settings, without_dropout
from settings.script import SettingsError
from settings.training import Gradient, Lora, Mask, Method
from unlearn_losses import Parts

GRAD_DIFF = {"beta": 1.0, "retain_weight": 1.0}


def of_file(name, **changes):
    """A method as its file has it, but for some settings."""
    file = OmegaConf.load(ROOT / f"config/method/{name}.yaml")
    return replace(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Method), file)), **changes)


SAM = of_file("npo_sam")
GRU = of_file("gru")
MMUNLEARNER = of_file("mmunlearner")
METHODS = {"sam": SAM, "project": GRU, "mask": MMUNLEARNER}


def run(data, encoder, folder, settings=TRAINER, method=NPO, *, count=8, say=print, weights="float32"):
    bound = bind(method)
    model = replace(MODEL, weights=weights)
    own = training_settings(model, lora=settings.lora, activations=method.activations)
    network = without_dropout(load_for_training(AutoModelForImageTextToText, own))
    start = Start(network, forward, partial(save, encoder.processor))
    few = Few(pairs(data, bound.batches, scope=method.scope), count)
    train(start, bound, few, encoder, settings, seed=0, save_dir=str(folder), record={}, say=say)
    return load_file(folder / "model.safetensors"), json.loads((folder / "train_meta.json").read_text())


# ---- the rules, by hand


def test_a_mask_holds_the_forget_part_still_and_lets_the_retain_part_move_everything():
    # (1, 0) * (3, 4) + (10, 20)
    made, state = mask(
        [torch.tensor([3.0, 4.0])], [torch.tensor([10.0, 20.0])], {}, moves=[torch.tensor([True, False])]
    )
    assert made[0].tolist() == [13.0, 20.0]
    assert state == {}


def test_a_ratio_selects_what_is_at_least_so_many_times_larger_and_never_a_tie_of_zeros():
    # 4 >= 1 * 1; 1 < 1 * 4; 2 >= 1 * 2; 0 and 0: nothing to compare; 5 against 0: no other row asks for it
    forget, others = torch.tensor([4.0, 1.0, 2.0, 0.0, 5.0]), torch.tensor([1.0, 4.0, 2.0, 0.0, 0.0])
    assert exceeds(forget, others, 1.0).tolist() == [True, False, True, False, True]
    assert exceeds(forget, others, 2.0).tolist() == [True, False, False, False, True]


def test_sams_step_has_the_length_rho_over_all_weights_together_and_the_gradients_direction():
    # ||(3, 0, 4)|| = 5: .5 / 5 of each
    steps = perturbation([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], rho=0.5)
    assert steps[0].tolist() == pytest.approx([0.3, 0.0])
    assert steps[1].tolist() == [pytest.approx([0.4])]
    assert perturbation([torch.zeros(2)], rho=0.5)[0].tolist() == [0.0, 0.0]


def test_sam_on_a_quadratic_is_its_gradient_a_step_of_rho_further_up():
    # forget 2 w^2 has 4 w: 4 at w = 1; e = .25, and 4 * 1.25 = 5 there; retain 3 w has 3 at w: 5 + 3
    weight = nn.Parameter(torch.tensor([1.0]))
    parted = PartedGradient([weight])
    parted.add(Parts((2 * weight**2).sum(), (3 * weight).sum()))
    with moved([weight], perturbation(parted.forget, rho=0.25)):
        parted.clear_forget()
        parted.add(Parts((2 * weight**2).sum(), 0.0))
    made, _ = add(parted.forget, parted.retain, {})
    assert made[0].item() == pytest.approx(8.0)
    assert weight.item() == 1.0


def test_a_projected_forget_gradient_does_not_point_against_the_mean_retain_gradient():
    # a = .5 * (2, 0) = (1, 0) at the first step; <(-3, 4), a> = -3 < 0: (-3, 4) + 3 a = (0, 4); + 2 * (2, 0)
    forget, retain = [torch.tensor([-3.0, 4.0])], [torch.tensor([2.0, 0.0])]
    made, state = project(forget, retain, {}, smoothing=0.5, retain_share=2.0)
    assert made[0].tolist() == [4.0, 4.0]
    assert state["average"][0].tolist() == [1.0, 0.0]
    # the next: a = .5 * (0, 2) + .5 * (1, 0) = (.5, 1); <(1, -1), a> = -.5, <a, a> = 1.25: (1, -1) + .4 * (.5, 1)
    made, state = project([torch.tensor([1.0, -1.0])], [torch.tensor([0.0, 2.0])], state, smoothing=0.5, retain_share=0)
    assert made[0].tolist() == pytest.approx([1.2, -0.6])
    assert state["average"][0].tolist() == [0.5, 1.0]


def test_a_forget_gradient_that_harms_no_retain_row_stays_as_it_is():
    made, _ = project([torch.tensor([3.0, 4.0])], [torch.tensor([2.0, 0.0])], {}, smoothing=1.0, retain_share=0.0)
    assert made[0].tolist() == [3.0, 4.0]
    made, _ = project([torch.tensor([3.0])], [torch.tensor([0.0])], {}, smoothing=1.0, retain_share=0.0)
    assert made[0].tolist() == [3.0]


def test_a_projection_is_of_all_weights_together_and_not_of_each_alone():
    # <f, a> = -1 + 3 = 2 over both weights: nothing is taken out, though the first alone would be
    forget, retain = [torch.tensor([-1.0]), torch.tensor([3.0])], [torch.tensor([1.0]), torch.tensor([1.0])]
    made, _ = project(forget, retain, {}, smoothing=1.0, retain_share=0.0)
    assert [each.item() for each in made] == [-1.0, 3.0]


def test_a_weight_that_no_batch_went_through_gets_no_gradient():
    used, unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    parted = PartedGradient([used, unused])
    parted.add(Parts((2 * used).sum(), (0 * used).sum()))
    parted.put([torch.tensor([2.0]), torch.zeros(1)])
    assert used.grad.item() == 2.0
    assert unused.grad is None  # else its moments and decay would move it


def test_a_weight_that_another_process_went_through_is_met_on_each(monkeypatch):
    def reduce_with_another(values, operation):
        # the other process went through the second weight alone
        assert operation is torch.distributed.ReduceOp.MAX
        values.copy_(torch.maximum(values, torch.tensor([0, 1, 0], dtype=values.dtype)))

    monkeypatch.setattr(torch.distributed, "all_reduce", reduce_with_another)
    weights = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    parted = PartedGradient(weights)
    parted.add(Parts((2 * weights[0]).sum(), 0.0))
    parted.agree_on_met(2)
    parted.put([torch.zeros(1)] * 3)  # as a mask leaves them
    assert [weight.grad is not None for weight in weights] == [True, True, False]


def test_batch_normalisation_counts_nothing_where_a_rule_looks_again():
    layer = nn.BatchNorm1d(2)
    with statistics_kept(layer):
        layer(torch.randn(8, 2) + 5)
    assert layer.running_mean.tolist() == [0.0, 0.0]
    layer(torch.randn(8, 2) + 5)
    assert layer.running_mean.abs().min() > 0.1


def test_a_mask_looks_at_so_many_rows_drawn_with_the_seed_or_at_all():
    rows = [f"row {number}" for number in range(10)]
    some = list(drawn_of(rows, 4, seed=0))
    assert len(set(some)) == 4
    assert some == list(drawn_of(rows, 4, seed=0))
    assert some != list(drawn_of(rows, 4, seed=1))
    assert list(drawn_of(rows, 0, seed=0)) == list(drawn_of(rows, 10, seed=0)) == rows


# ---- what the training loop makes of them


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_accumulated_small_batches_have_the_gradient_of_one_large_batch(method, data, encoder, tmp_path, monkeypatch):
    gradients = []

    def keep(self, model):
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(LossTrainer, "_clip_grad_norm", keep)
    for size in (8, 2):
        settings = replace(TRAINER, batch_size=size, accumulation=8 // size, max_grad_norm=1.0)
        run(data, encoder, tmp_path / str(size), settings, method)
    large, small = gradients
    scale = max(gradient.abs().max().item() for gradient in large.values())
    assert scale > 1e-3
    assert largest_difference(large, small) < 1e-3 * scale


def test_sam_with_rho_0_is_npo_and_with_more_it_is_not(data, encoder, tmp_path):
    settings = replace(TRAINER, optimizer="sgd", lr=1e-3)  # Adam would turn the rounding of a zero into a whole step
    plain, _ = run(data, encoder, tmp_path / "npo", settings)
    none, far = (replace(SAM, gradient=Gradient("sam", {"rho": rho})) for rho in (0.0, 0.5))
    still, _ = run(data, encoder, tmp_path / "still", settings, none)
    some, _ = run(data, encoder, tmp_path / "some", settings, far)
    moved_by = largest_difference(plain, load_file(BASE / "model.safetensors"))
    assert largest_difference(plain, still) < 1e-4 * moved_by
    assert largest_difference(plain, some) > 1e-2 * moved_by


def test_sam_looks_in_fp32_where_bf16_would_round_its_step_away(data, encoder, tmp_path, monkeypatch):
    dtypes = []
    real = LossTrainer.parts_of

    def watched(self, model, inputs, *, again=False):
        layer = next(module for name, module in model.named_modules() if name.endswith("down_proj"))
        handle = layer.register_forward_hook(lambda _, __, made: dtypes.append((again, made.dtype)))
        parts = real(self, model, inputs, again=again)
        handle.remove()
        return parts

    monkeypatch.setattr(LossTrainer, "parts_of", watched)
    run(data, encoder, tmp_path / "out", replace(TRAINER, precision="bf16", batch_size=8), SAM)
    assert set(dtypes) == {(False, torch.bfloat16), (True, torch.float32)}


def test_sam_looks_again_with_the_dropout_of_the_first_look_and_training_goes_on_with_its_own(
    data, encoder, tmp_path, monkeypatch
):
    looks, draws = [], []
    real = LossTrainer.take_forget_anew

    def watched(self, model):
        first = [gradient.clone() for gradient in self.parted.forget]
        draws.append(torch.get_rng_state())
        real(self, model)
        looks.append((first, [gradient.clone() for gradient in self.parted.forget]))
        assert torch.equal(torch.get_rng_state(), draws[-1])

    monkeypatch.setattr(LossTrainer, "take_forget_anew", watched)
    settings = replace(TRAINER, lora=Lora(r=4, alpha=8, dropout=0.5), batch_size=2, accumulation=2)
    run(data, encoder, tmp_path / "out", settings, replace(SAM, gradient=Gradient("sam", {"rho": 0.0})))
    for first, second in looks:  # where the weights did not move
        assert any(gradient.any() for gradient in first)
        assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(first, second, strict=True))
    assert len(looks) == 2 and not torch.equal(*draws)


def test_weights_in_bf16_beside_an_adapter_hide_sams_step_and_that_is_said(data, encoder, tmp_path):
    settings = replace(TRAINER, lora=Lora(r=4, alpha=8, dropout=0.0), precision="bf16", batch_size=8)
    for dtype, expected in (("bfloat16", 1), ("float32", 0)):
        lines = []
        run(data, encoder, tmp_path / dtype, settings, SAM, say=lines.append, weights=dtype)
        assert sum("the weights beside the adapter are in bf16" in line for line in lines) == expected


@pytest.mark.parametrize("method", [SAM, GRU], ids=["sam", "project"])
def test_a_rule_works_on_an_adapters_weights(method, data, encoder, tmp_path):
    settings = replace(TRAINER, lora=Lora(r=4, alpha=8, dropout=0.0), precision="bf16")
    start = load_file(BASE / "model.safetensors")
    trained, _ = run(data, encoder, tmp_path / "out", settings, method)
    changed = {name for name in start if not torch.equal(trained[name], start[name].float())}
    assert changed
    assert all("language_model" in name and "_proj" in name for name in changed)


def test_mmunlearners_ascent_moves_only_weights_that_pictures_ask_for_and_its_descent_moves_all(
    data, encoder, tmp_path
):
    start = {name: value.float() for name, value in load_file(BASE / "model.safetensors").items()}
    ascent = replace(MMUNLEARNER, args={"beta": 1.0, "retain_weight": 0.0})
    some, _ = run(data, encoder, tmp_path / "some", method=ascent)
    lines = []
    few = replace(ascent, mask=replace(ascent.mask, ratio=10.0))
    none, _ = run(data, encoder, tmp_path / "none", method=few, say=lines.append)
    whole, _ = run(data, encoder, tmp_path / "whole", method=MMUNLEARNER)

    def moving(weights):
        return sum((weights[name] != start[name]).sum().item() for name in start)

    counts = [moving(none), moving(some), moving(whole)]
    assert counts[0] < counts[1] < counts[2]
    assert 0 < counts[0] < 0.5 * counts[2]
    assert any(re.match(r"mmunlearner: the mask lets [\d.]+% of the trained weights move", line) for line in lines)


def test_a_mask_that_chooses_no_weight_is_one_line(data, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.mask_step.exceeds", lambda values, others, ratio: torch.zeros_like(values).bool())
    with pytest.raises(SettingsError, match=r"method=mmunlearner: method.mask chooses no weight"):
        run(data, encoder, tmp_path / "out", method=MMUNLEARNER)


def test_a_mask_by_ratio_does_not_depend_on_the_batch_size_or_on_autocast(data, encoder, tmp_path, monkeypatch):
    masks = []
    monkeypatch.setattr("engine.mask_step.chosen_by", lambda *given: masks.append(chosen_by(*given)) or masks[-1])
    for size, precision in ((1, "fp32"), (8, "bf16")):
        settings = replace(TRAINER, batch_size=size, precision=precision, lr=0.0)
        run(data, encoder, tmp_path / str(size), settings, MMUNLEARNER)
    assert all(torch.equal(one, other) for one, other in zip(*masks, strict=True))
    chosen = sum(each.sum().item() for each in masks[0]) / sum(each.numel() for each in masks[0])
    assert 0.05 < chosen < 0.95


def test_a_mask_by_share_does_not_depend_on_autocast(data, encoder, tmp_path, monkeypatch):
    salun, masks = of_file("salun"), []
    monkeypatch.setattr("engine.mask_step.chosen_by", lambda *given: masks.append(chosen_by(*given)) or masks[-1])
    for precision in ("fp32", "bf16"):
        run(data, encoder, tmp_path / precision, replace(TRAINER, precision=precision, lr=0.0), salun)
    assert all(torch.equal(one, other) for one, other in zip(*masks, strict=True))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_killed_training_with_a_rule_ends_with_the_same_bytes(method, data, encoder, tmp_path, monkeypatch):
    settings = replace(TRAINER, batch_size=2, save_every="1step", max_grad_norm=1.0)
    plain, _ = run(data, encoder, tmp_path / "plain", settings, method)
    real, steps = LossTrainer.put_gradient, []

    def killed(self, model):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        real(self, model)

    monkeypatch.setattr(LossTrainer, "put_gradient", killed)
    with pytest.raises(KeyboardInterrupt):
        run(data, encoder, tmp_path / "again", settings, method)
    (kept,) = (tmp_path / "again.checkpoints").glob(f"*/{OWN}")
    assert bool(load_file(kept)) == (method is GRU)  # a mean retain gradient goes on, the others begin each step anew
    monkeypatch.setattr(LossTrainer, "put_gradient", real)
    again, _ = run(data, encoder, tmp_path / "again", settings, method)
    assert largest_difference(plain, again) == 0


def test_a_rule_that_forgets_its_state_would_be_noticed(data, encoder, tmp_path, monkeypatch):
    settings = replace(TRAINER, batch_size=2)
    plain, _ = run(data, encoder, tmp_path / "plain", settings, GRU)
    monkeypatch.setattr(LossTrainer, "rule_state", property(lambda self: {}, lambda self, state: None), raising=False)
    other, _ = run(data, encoder, tmp_path / "other", settings, GRU)
    assert largest_difference(plain, other) > 0


def test_a_sharded_run_is_refused_by_name(data, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.parted.PLAIN", ())
    with pytest.raises(SettingsError, match=r"method=gru takes the gradients .* launch it without sharding"):
        run(data, encoder, tmp_path / "out", method=GRU)


# ---- scope


def test_a_method_with_a_scope_trains_on_its_rows_alone(data):
    both, pictures, words = (pairs(data, ["forget", "retain"], scope=scope) for scope in ("both", "pictures", "words"))
    assert len(pictures) + len(words) == len(both)
    for made, has_picture in ((pictures, True), (words, False)):
        rows = [example for key in range(len(made)) for examples in made[key].values() for example in examples]
        assert {row.image is not None for row in rows} == {has_picture}
        assert made.leading.questions == [row.question for row in made.leading]
        assert made.leading.in_words == [place for place, row in enumerate(made.leading) if row.image is None]
        assert all(row.image is None for row in made.rows_of("forget_words"))


def test_a_scope_without_rows_is_one_line(data):
    words = TrainingRows(data, "forget10+tofu", "text", 0)
    with pytest.raises(SettingsError, match=r"asks for rows with a picture, and split forget10\+tofu gives none"):
        in_scope(words, "pictures")


# ---- what is refused


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (replace(NPO, gradient=Gradient("sma", {})), r"method.gradient.rule='sma' is not known .*did you mean 'sam'"),
        (replace(NPO, other_answers=3), r"method.other_answers=3: npo asks for no other answers; leave it out"),
        (replace(NPO, gradient=Gradient("sam", {})), r"method.gradient.args.rho is required by rule sam"),
        (replace(NPO, gradient=Gradient("sam", {"rho": -1.0})), r"method.gradient.args.rho=-1.0 must be at least 0"),
        (replace(NPO, gradient=Gradient("sam", {"rho": "far"})), r"method.gradient.args.rho='far' must be a number"),
        (replace(NPO, gradient=Gradient("sam", {"rh": 1.0})), r"method.gradient.args.rh is not a hyperparameter"),
        (
            Method("x", "grad_ascent", gradient=Gradient("sam", {"rho": 0.1})),
            r"method.gradient.rule=sam: grad_ascent has no forget and retain part",
        ),
        (
            replace(GRU, args={"beta": 0.1, "retain_weight": 0.0}),
            r"method.gradient.rule=project needs retain rows, which method.args.retain_weight=0 leaves out",
        ),
        (
            replace(GRU, loss="llmu", args={"forget_weight": 1.0, "unrelated_weight": 1.0, "kl_weight": 0.0}),
            r"method.gradient.rule=project needs retain rows, which method.args.kl_weight=0 leaves out",
        ),
        (
            replace(GRU, gradient=Gradient("project", {"smoothing": 1.5, "retain_share": 0.0})),
            r"method.gradient.args.smoothing=1.5 must be at most 1",
        ),
        (
            Method("x", "grad_ascent", mask=Mask("grad_ascent", share=0.5, applies_to="forget")),
            r"method.mask.applies_to=forget: grad_ascent has no forget and retain part",
        ),
    ],
)
def test_a_rule_that_does_not_fit_is_one_line(method, line):
    with pytest.raises(SettingsError, match=line):
        bind(method)


@pytest.mark.parametrize(
    ("scope", "against", "line"),
    [
        ("both", ["retain", "retain_words"], "retain holds retain_words, which would count double"),
        ("words", ["retain", "retain_words"], "retain holds retain_words, which would count double"),
        ("words", ["forget_words"], "forget rows would be compared with themselves"),
    ],
)
def test_a_mask_against_rows_that_hold_each_other_is_one_line(scope, against, line):
    with pytest.raises(SettingsError, match=line):
        replace(MMUNLEARNER, scope=scope, mask=replace(MMUNLEARNER.mask, against=against))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"ratio": 1.0, "against": ["retain", "retain"]}, "names rows twice, which would count double"),
        ({}, "method.mask takes one of share, ratio and neurons"),
        ({"share": 0.5, "ratio": 1.0, "against": ["retain"]}, "method.mask takes one of share, ratio and neurons"),
        ({"share": 0.5, "against": ["retain"]}, r"method.mask.against=\['retain'\]: a ratio is against some rows"),
        ({"ratio": 1.0}, r"method.mask.against=\[\]: a ratio is against some rows"),
        ({"ratio": 0.0, "against": ["retain"]}, "method.mask.ratio=0.0 must be a number above 0"),
        ({"ratio": float("nan"), "against": ["retain"]}, "method.mask.ratio=nan must be a number above 0"),
        ({"ratio": 1.0, "against": ["words"]}, "method.mask.against='words' is not known"),
        ({"share": 0.5, "rows": 8}, "method.mask.rows=8: a share looks at all forget rows"),
        ({"share": 0.5, "applies_to": "retain"}, "method.mask.applies_to='retain' is not known"),
    ],
)
def test_a_mask_that_says_too_little_or_too_much_is_one_line(settings, line):
    with pytest.raises(SettingsError, match=line):
        Mask("grad_ascent", **settings)


def test_a_rule_and_a_mask_of_the_forget_part_are_not_taken_together():
    with pytest.raises(SettingsError, match=r"method.gradient and method.mask.applies_to=forget"):
        replace(MMUNLEARNER, gradient=Gradient("sam", {"rho": 0.1}))


@pytest.mark.parametrize("method", [SAM, GRU, MMUNLEARNER], ids=["sam", "project", "mask"])
def test_stacked_networks_refuse_a_rule(method):
    with pytest.raises(SettingsError, match="many networks cannot train together with method"):
        check_stackable(method)


def test_room_is_asked_for_what_a_rule_keeps(model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(checkpoints, "check_space", lambda folder, size, how: asked.append(size))
    for own in (0, 4):
        checkpoints.check_room(model, str(tmp_path), TRAINER, own=own)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert asked[1] - asked[0] == 2 * 4 * trained
