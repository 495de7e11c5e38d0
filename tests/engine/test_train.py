"""The training loop: accumulation is exact, seeds decide everything, the schedule peaks where it says, weights do
move.
"""

import copy
import json
import math
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from engine import answer_head, loss_trainer
from engine import train as train_module
from engine.checkpoints import SIGNALS
from engine.encode import TooLong
from engine.frozen_start import Start, forward_passes
from engine.language_model import forward, freeze, l1_norm, load_for_training, save
from engine.layer_output import end_at_layer
from engine.loss_trainer import LossTrainer
from engine.mask_step import largest
from engine.methods import bind
from engine.train import deterministic_kernels, train, workers_of
from helpers import (
    BASE,
    NPO,
    ROOT,
    TRAINER,
    Few,
    collated,
    largest_difference,
    pairs,
    training_settings,
    without_dropout,
)
from settings.script import SettingsError
from settings.training import Activations, Edit, Gradient, Lora, Mask, Method, Multiplier, TaskVector
from unlearn_losses import nll, sequence_logprob


def run(data, encoder, folder, settings=TRAINER, method=NPO, *, count=8, seed=0, say=lambda line: None):
    bound = bind(method)
    own = training_settings(lora=settings.lora, activations=method.activations, seed=seed)
    network = without_dropout(load_for_training(AutoModelForImageTextToText, own))
    start = Start(network, forward, partial(save, encoder.processor))
    few = Few(pairs(data, bound.batches, seed), count)
    train(start, bound, few, encoder, settings, seed=seed, save_dir=str(folder), record={}, say=say)
    return load_file(folder / "model.safetensors"), json.loads((folder / "train_meta.json").read_text())


def test_accumulated_small_batches_have_the_gradient_of_one_large_batch(data, encoder, tmp_path, monkeypatch):
    """2 x 4 and 8 x 1, ragged answers: the gradients themselves are compared, because Adam would hide a wrong scale."""
    gradients = []

    def keep(self, model):
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(LossTrainer, "_clip_grad_norm", keep)
    for batch_size, accumulation in ((8, 1), (2, 4)):
        run(
            data,
            encoder,
            tmp_path / str(batch_size),
            replace(TRAINER, batch_size=batch_size, accumulation=accumulation, max_grad_norm=1.0),
        )
    large, small = gradients
    scale = max(g.abs().max().item() for g in large.values())
    assert scale > 1e-3 and largest_difference(large, small) < 1e-4 * scale


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(data, encoder, tmp_path):
    settings = replace(TRAINER, precision="bf16", lora=Lora(r=4, alpha=8, dropout=0.1))
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        run(data, encoder, tmp_path / name, settings, seed=seed)
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other


def test_batches_that_workers_make_are_the_same(data, encoder, tmp_path):
    alone, _ = run(data, encoder, tmp_path / "alone", replace(TRAINER, workers=0))
    helped, _ = run(data, encoder, tmp_path / "helped", replace(TRAINER, workers=2))
    assert largest_difference(alone, helped) == 0


def test_what_a_worker_cannot_read_ends_the_run_in_one_line(data, encoder, tmp_path, monkeypatch):
    def refuses(self, example):
        if torch.utils.data.get_worker_info() is None:  # the checks before the first step
            return original(self, example)
        raise TooLong(f"row {example.index}: 300 tokens, but the model takes 200")

    original = type(encoder).encode
    monkeypatch.setattr(type(encoder), "encode", refuses)
    with pytest.raises(SettingsError, match=r"^row \d+: 300 tokens, but the model takes 200$"):
        run(data, encoder, tmp_path / "out", replace(TRAINER, workers=1))
    assert multiprocessing.active_children() == []  # one that is left would not hear that it is to end, and hold this


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_whole_group_does_not_end_a_worker_whose_batch_the_step_waits_for(
    data, encoder, tmp_path, monkeypatch, number
):
    original = type(encoder).encode

    def told(self, example):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), number)
        return original(self, example)

    alone, _ = run(data, encoder, tmp_path / "alone", replace(TRAINER, workers=0))
    monkeypatch.setattr(type(encoder), "encode", told)
    helped, _ = run(data, encoder, tmp_path / "helped", replace(TRAINER, workers=1))
    assert largest_difference(alone, helped) == 0


@pytest.mark.parametrize(
    ("there", "asked", "cores", "count", "workers"),
    [(True, -1, 16, 1, 4), (True, -1, 4, 2, 1), (True, -1, 1, 1, 0), (True, 7, 1, 1, 7), (False, -1, 16, 1, 0)],
)
def test_workers_help_beside_a_gpu_as_far_as_there_are_cores(monkeypatch, there, asked, cores, *, count, workers):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores))
    monkeypatch.setattr(train_module, "processes", lambda: SimpleNamespace(num_processes=count))
    assert workers_of(replace(TRAINER, workers=asked)) == workers


def test_deterministic_kernels_change_nothing_else_and_are_given_back(data, encoder, tmp_path):
    plain, _ = run(data, encoder, tmp_path / "plain")
    again, _ = run(data, encoder, tmp_path / "again", replace(TRAINER, deterministic=True))
    assert largest_difference(plain, again) == 0
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_kernel_ends_the_run_in_one_line():
    with pytest.raises(SettingsError, match=r"trainer\.deterministic=true: put_"), deterministic_kernels(True):
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))  # where nobody asked for it


def test_another_error_under_deterministic_kernels_stays_what_it_is():
    with pytest.raises(RuntimeError, match="size of tensor"), deterministic_kernels(True):
        torch.zeros(3) + torch.zeros(4)


def test_npo_starts_at_the_reference(data, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "without_dropout", lambda network: network)  # the tiny model's own is .1
    method = replace(NPO, args={"beta": 0.5, "retain_weight": 0.0})
    for precision, close in (("fp32", 1e-4), ("bf16", 1e-2)):  # in bf16 rounding follows the width of the padded batch
        for name, lora in (("full", None), ("lora", Lora(r=4, alpha=8, dropout=0.5))):
            _, meta = run(
                data, encoder, tmp_path / precision / name, replace(TRAINER, lora=lora, precision=precision), method
            )
            assert meta["loss"][0][1] == pytest.approx(2 / 0.5 * math.log(2), rel=close)


def test_fp32_stays_fp32_whatever_the_users_accelerate_configuration_says(data, encoder, tmp_path, monkeypatch):
    plain, _ = run(data, encoder, tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launched, _ = run(data, encoder, tmp_path / "launched")
    assert largest_difference(plain, launched) == 0


@pytest.mark.parametrize(
    ("method", "term"), [(Method(name="grad_ascent", loss="grad_ascent"), "forget"), (NPO, "forget")]
)
def test_a_loss_that_diverges_stops_the_run_naming_step_method_and_term_and_writes_nothing(
    method, term, data, encoder, tmp_path
):
    with pytest.raises(
        SettingsError, match=rf"method {method.name}, step \d+: the loss is (nan|-?inf); the logits of its {term} pass"
    ):
        run(data, encoder, tmp_path / "out", replace(TRAINER, lr=1e30, epochs=3), method)
    assert not (tmp_path / "out").exists()


def test_weights_move_at_a_rate_of_1e_5_under_bf16_autocast(data, encoder, tmp_path):
    start = load_file(BASE / "model.safetensors")
    trained, _ = run(data, encoder, tmp_path / "out", replace(TRAINER, lr=1e-5, precision="bf16"))
    moved = [
        (trained[name] != start[name].float()).float().mean().item()
        for name in trained
        if "language_model" in name and "_proj" in name
    ]
    assert all(trained[name].dtype == torch.float32 for name in trained) and min(moved) > 0.9


def test_the_schedule_rises_over_the_warmup_ratio_to_the_rate_and_falls_to_zero(data, encoder, tmp_path, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **k: (rates.append(self.param_groups[0]["lr"]), step(self, *a, **k))[1],
    )
    run(data, encoder, tmp_path / "out", replace(TRAINER, epochs=5, schedule="linear", warmup_ratio=0.2))
    # 10 steps: 2 of warm-up from 0, then down from the peak
    assert len(rates) == 10 and max(rates) == rates[2] == pytest.approx(1e-3) and rates[0] == 0 and rates[-1] < 2e-4


def test_a_run_of_one_step_takes_it_at_the_full_rate(data, encoder, tmp_path):
    trained, _ = run(data, encoder, tmp_path / "out", replace(TRAINER, warmup_ratio=0.1, batch_size=8))
    start = load_file(BASE / "model.safetensors")
    assert sum((trained[n] - start[n].float()).abs().sum().item() for n in trained) > 0


def test_the_fused_adamw_makes_the_steps_of_the_other(data, encoder, tmp_path):
    one, two = (
        run(data, encoder, tmp_path / name, replace(TRAINER, batch_size=8, optimizer=name))[0]
        for name in ("adamw_torch", "adamw_torch_fused")
    )
    assert largest_difference(one, two) < 1e-6


def test_a_run_that_makes_losses_part_by_part_of_the_vocabulary_is_the_same(data, encoder, tmp_path, monkeypatch):
    settings = replace(TRAINER, batch_size=8, optimizer="sgd")
    whole, told = run(data, encoder, tmp_path / "whole", settings)
    monkeypatch.setattr(answer_head, "MOST_BYTES", 0)
    monkeypatch.setattr(answer_head, "AT_ONCE", 1)
    asked = []
    own = answer_head.OnDemand.token_nll
    monkeypatch.setattr(answer_head.OnDemand, "token_nll", lambda *given: asked.append(given) or own(*given))
    parted, also_told = run(data, encoder, tmp_path / "parted", settings)
    assert largest_difference(whole, parted) < 1e-6
    assert len(asked) >= 3  # of the start, and of both passes of the step
    assert also_told["loss"][0][1] == pytest.approx(told["loss"][0][1], rel=1e-6)


def test_a_run_writes_weights_processor_and_its_record_and_no_pickle(data, encoder, tmp_path):
    _, meta = run(data, encoder, tmp_path / "out", replace(TRAINER, lora=Lora(r=4, alpha=8, dropout=0.0)))
    names = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "train_meta.json",
        "adapter_model.safetensors",
    } <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".pth")) for name in names)
    assert meta["steps"] == 2 and meta["seconds"] > 0 and 0 < meta["peak_memory_gb"] < 64 and len(meta["loss"]) == 2
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


def test_a_method_trains_what_its_passes_name_and_loads_no_reference_for_the_rest(data, encoder, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(loss_trainer, "FrozenStart", lambda model, dtype: made.append(model))
    run(data, encoder, tmp_path / "out", method=Method(name="grad_ascent", loss="grad_ascent"))
    assert made == []


# ---- methods that are more than a scalar


def test_a_frozen_part_stays_frozen_in_the_layers_that_train(model):
    network = copy.deepcopy(model)
    freeze(network, ["self_attn"])
    end_at_layer(network, Activations(layer=1, trained=[1]))
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert names and all(".layers.1." in name and "self_attn" not in name for name in names)


def test_rmu_trains_the_named_part_of_its_layers_alone(data, encoder, tmp_path):
    args = {"c": 6.5, "alpha": 1.0, "direction_seed": 0}
    part = Activations(layer=1, trained=[0, 1], part="down_projection")
    method = Method("rmu", "rmu", args, activations=part)
    start = load_file(BASE / "model.safetensors")
    named = {f"language_model.model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}
    for folder, lora in (("full", None), ("lora", Lora(r=4, alpha=8, dropout=0.0))):
        trained, _ = run(data, encoder, tmp_path / folder, replace(TRAINER, lora=lora), method)
        assert {name for name in trained if not torch.equal(trained[name], start[name].float())} == named


def test_rmu_trains_its_layers_alone_and_computes_nothing_above_its_layer(data, encoder, tmp_path, monkeypatch):
    method = Method(
        "rmu", "rmu", {"c": 6.5, "alpha": 1.0, "direction_seed": 0}, activations=Activations(layer=1, trained=[1])
    )
    seen = []
    monkeypatch.setattr(
        LossTrainer,
        "reference_passes",
        lambda self, *a, _real=LossTrainer.reference_passes: (seen.append(layers_of(self.model)), _real(self, *a))[1],
    )
    trained, _ = run(data, encoder, tmp_path / "out", method=method)
    start = load_file(BASE / "model.safetensors")
    assert set(seen) == {2} and trained.keys() == start.keys()
    moved = {name for name in trained if not torch.equal(trained[name], start[name].float())}
    assert moved and all(".layers.1." in name for name in moved)
    lora, _ = run(data, encoder, tmp_path / "lora", replace(TRAINER, lora=Lora(r=4, alpha=8, dropout=0.0)), method)
    assert {name for name in lora if not torch.equal(lora[name], start[name].float())} <= moved


def layers_of(network):
    return len(network.get_decoder().layers)


def test_hidden_states_are_the_layers_output_at_the_answers_positions(model, encoder, data):
    made = pairs(data, ["forget"])
    batch = collated(encoder, made, ["forget"], range(3))
    network = copy.deepcopy(model).eval()
    with torch.no_grad():
        states = network(**batch.inputs, output_hidden_states=True).hidden_states[
            2
        ]  # 0: embeddings, 2: output of layer 1
        end_at_layer(network, Activations(layer=1, trained=[0]))
        hidden = forward(network, batch)
    expected = states[torch.arange(3)[:, None], batch.positions]
    answers = batch.labels != -100
    assert torch.allclose(hidden.logits[answers], expected[answers], atol=1e-5)


def test_scrub_forgets_for_a_whole_epoch_and_then_keeps_for_one(data, encoder, tmp_path):
    """At rate 0 the model stays the start: its KL terms are 0, and what is left is gamma * NLL(R) of the keeping."""
    args = {"alpha": 1.0, "gamma": 2.0, "temperature": 4.0, "max_epochs": 1}
    settings = replace(TRAINER, epochs=3, lr=0.0)
    lines = []
    _, meta = run(data, encoder, tmp_path / "out", settings, Method("scrub", "scrub", args), say=lines.append)
    assert "trainer.lr=0: no weight will change" in lines
    losses = [loss for _, loss in meta["loss"]]
    assert len(losses) == 6  # two steps an epoch
    assert losses[:2] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert min(losses[2:]) > 1.0


def test_sku_subtracts_what_it_learned_so_that_the_forget_answers_become_less_likely(data, encoder, tmp_path):
    args = {"forget_weight": 1.0, "shuffled_weight": 0.0, "kl_weight": 0.0}
    learn, forget = (
        Method("sku", "sku", args, task_vector=vector) for vector in (TaskVector(-1.0), TaskVector(1.0))
    )  # -1: theta itself
    start = {name: value.float() for name, value in load_file(BASE / "model.safetensors").items()}
    for lora in (None, Lora(r=4, alpha=8, dropout=0.0)):
        settings = replace(TRAINER, lora=lora)
        learned, _ = run(data, encoder, tmp_path / f"learned{lora is None}", settings, learn)
        forgot, _ = run(data, encoder, tmp_path / f"forgot{lora is None}", settings, forget)
        assert largest_difference(learned, start) > 1e-4
        mirrored = {name: 2 * start[name] - learned[name] for name in start}
        assert largest_difference(forgot, mirrored) < 1e-5
        nlls = [
            forget_nll(folder, encoder, data)
            for folder in (BASE, tmp_path / f"forgot{lora is None}", tmp_path / f"learned{lora is None}")
        ]
        assert nlls[2] < nlls[0] < nlls[1]


def forget_nll(folder, encoder, data):
    made = pairs(data, ["forget"])
    network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return nll(forward(network, collated(encoder, made, ["forget"], range(8)))).item()


def test_pdus_multiplier_waits_for_its_warmup_and_then_rises_by_what_the_retain_loss_exceeds_its_target(
    data, encoder, tmp_path
):
    def final(warmup, target):
        method = Method("pdu", "pdu", multiplier=Multiplier(start=1.0, rate=0.5, target=target, warmup_epochs=warmup))
        return run(data, encoder, tmp_path / f"{warmup}{target}", replace(TRAINER, epochs=2, lr=0.0), method)[1][
            "multiplier"
        ]

    assert final(2, 0.0) == 1.0
    high, low = final(0, 0.0), final(0, 100.0)
    assert high > 1.0 and low == 0.0
    # at rate 0 the model stays: each of 4 steps adds .5 * NLL(R) of its own rows, and a target of .1 takes .05 from
    # each
    assert final(0, 0.1) == pytest.approx(high - 4 * 0.05, abs=1e-5)


def test_pdus_multiplier_follows_the_mean_of_all_passes_of_a_step(data, encoder, tmp_path):
    method = Method("pdu", "pdu", multiplier=Multiplier(start=0.0, rate=0.5, target=0.0, warmup_epochs=0))
    ends = [
        run(
            data,
            encoder,
            tmp_path / str(size),
            replace(TRAINER, lr=0.0, batch_size=size, accumulation=8 // size),
            method,
        )[1]["multiplier"]
        for size in (8, 2)
    ]
    assert ends[0] > 0 and ends[1] == pytest.approx(ends[0], rel=1e-4)


def test_a_mask_never_moves_a_weight_without_a_gradient():
    few, none = torch.tensor([0.0, 3.0, 0.0, 1.0, 2.0]), torch.zeros(5)
    # half of ten would be five, but three have a gradient; the largest fifth are two
    assert [mask.tolist() for mask in largest([few, none], 0.5)] == [[False, True, False, True, True], [False] * 5]
    assert [mask.tolist() for mask in largest([few, none], 0.2)] == [[False, True, False, False, True], [False] * 5]


@pytest.mark.parametrize("loss", ["kl", "npo", "retain_ft", "grad_ascnt"])
def test_a_masks_loss_is_one_of_forget_rows_alone(loss):
    with pytest.raises(
        SettingsError, match=rf"method.mask.loss='{loss}' is not known.*choose from grad_ascent, learn_forget$"
    ):
        bind(Method("salun", "idk", {"retain_weight": 1.0}, mask=Mask(loss=loss, share=0.5)))


def test_weights_that_diverge_in_the_last_step_are_not_written(data, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *_: [p.data.fill_(float("inf")) for p in self.param_groups[0]["params"]] and None,
    )
    with pytest.raises(SettingsError, match=r"method grad_ascent, step 1: the weights are not finite"):
        run(
            data,
            encoder,
            tmp_path / "out",
            replace(TRAINER, batch_size=8),
            Method(name="grad_ascent", loss="grad_ascent"),
        )
    assert not (tmp_path / "out").exists()


def test_a_penalty_that_diverges_is_named(data, encoder, tmp_path):
    with pytest.raises(SettingsError, match=r"method retain_ft, step 0: the loss is inf; its trainer.l1 penalty"):
        run(data, encoder, tmp_path / "out", replace(TRAINER, l1=1e39), Method(name="retain_ft", loss="retain_ft"))


def test_a_mask_lets_only_the_weights_with_the_largest_forget_gradients_move(data, encoder, tmp_path):
    method = Method("salun", "idk", {"retain_weight": 1.0}, mask=Mask(loss="grad_ascent", share=0.25))
    trained, _ = run(data, encoder, tmp_path / "masked", method=method)
    everywhere, _ = run(data, encoder, tmp_path / "free", method=replace(method, mask=None))
    start = {name: value.float() for name, value in load_file(BASE / "model.safetensors").items()}
    moved = sum((trained[name] != start[name]).sum().item() for name in start)
    free = sum((everywhere[name] != start[name]).sum().item() for name in start)
    total = sum(value.numel() for value in start.values())
    assert 0.2 * total < moved <= 0.25 * total + 1 < free
    # the weights that moved have the largest gradients of the forget NLL, whatever those of the loss itself are
    before, after = (
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (BASE, tmp_path / "masked")
    )
    made = pairs(data, ["forget"])
    for first in (0, 4):
        batch = collated(encoder, made, ["forget"], range(first, first + 4))
        nll(forward(before, batch)).backward()
    both = [
        (p.grad.abs() if p.grad is not None else torch.zeros_like(p), p != q)
        for p, q in zip(before.parameters(), after.parameters(), strict=True)
    ]
    gradient, changed = torch.cat([g.flatten() for g, _ in both]), torch.cat([c.flatten() for _, c in both])
    threshold = gradient.topk(round(0.25 * total)).values.min()
    assert gradient[changed].min() > 0.99 * threshold  # up to the rounding of two ways to sum


def test_answer_log_probabilities_of_the_start_are_computed_once_and_are_the_starts(
    data, encoder, tmp_path, monkeypatch
):
    """Two epochs of redrawn refusals: each distinct answer is scored once, keyed by row, and equals the frozen model's
    own.
    """
    kept, model_calls = {}, []
    real = LossTrainer.keep_start_logprobs

    def keep(self, made, encoder):
        network = self.model
        handle = network.register_forward_hook(lambda *_: model_calls.append(1))
        real(self, made, encoder)
        handle.remove()
        kept.update(self.start_logprobs)
        self.frozen_copy = copy.deepcopy(network).eval()

    real_passes = LossTrainer.reference_passes

    def compare(self, model, inputs):
        passes = real_passes(self, model, inputs)
        with torch.no_grad():
            scored = forward_passes(self.frozen_copy, inputs["trained"], self.forward)
        for name in ("forget", "idk"):
            assert torch.allclose(passes[f"ref_{name}_logprob"], sequence_logprob(scored[name]), atol=1e-3)
        return passes

    monkeypatch.setattr(LossTrainer, "keep_start_logprobs", keep)
    monkeypatch.setattr(LossTrainer, "reference_passes", compare)
    run(
        data,
        encoder,
        tmp_path / "out",
        replace(TRAINER, epochs=2),
        Method("dpo", "dpo", {"beta": 0.1, "task_weight": 1.0, "retain_weight": 1.0}),
    )
    assert (
        len(kept) == 16 and len(model_calls) == 4
    )  # 8 rows with an answer and a refusal each, in batches of 4, whatever the epochs


@pytest.mark.parametrize(
    ("precision", "lora"), [("fp32", None), ("bf16", None), ("bf16", Lora(r=4, alpha=8, dropout=0.0))]
)
def test_a_retain_term_by_kl_is_zero_at_the_start_and_a_run_that_starts_without_a_gradient_says_so(
    precision, lora, data, encoder, tmp_path
):
    method = Method("grad_diff", "grad_diff", {"beta": 1e-12, "retain_weight": 1.0}, retain="kl")
    lines = []
    settings = replace(TRAINER, max_grad_norm=1.0, precision=precision, lora=lora)
    _, meta = run(data, encoder, tmp_path / "out", settings, method, say=lines.append)
    assert meta["loss"][0][1] == pytest.approx(0, abs=1e-6)
    assert any("the first step's gradient vanished" in line for line in lines)
    lines.clear()
    run(data, encoder, tmp_path / "other", settings, say=lines.append)
    assert not any("vanished" in line for line in lines)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_a_start_is_compared_with_the_models_own_dropout_is_off(precision, data, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "without_dropout", lambda network: network)  # the tiny model's own is .1
    method = Method(name="grad_diff", loss="grad_diff", args={"beta": 1e-12, "retain_weight": 1.0}, retain="kl")
    _, meta = run(data, encoder, tmp_path / "out", replace(TRAINER, precision=precision), method=method)
    assert meta["loss"][0][1] == pytest.approx(
        0, abs=1e-6
    )  # also in bf16: the copy gives the start's numbers to the bit


def test_an_l1_penalty_adds_the_absolute_weights_or_the_merged_updates(data, encoder, tmp_path):
    _, plain = run(data, encoder, tmp_path / "plain", method=Method("retain_ft", "retain_ft"))
    _, penal = run(data, encoder, tmp_path / "penal", replace(TRAINER, l1=1e-3), Method("retain_ft", "retain_ft"))
    start = {name: value.float() for name, value in load_file(BASE / "model.safetensors").items()}
    absolute = sum(value.abs().sum().item() for value in start.values())
    assert penal["loss"][0][1] - plain["loss"][0][1] == pytest.approx(1e-3 * absolute, rel=1e-3)
    own = training_settings(lora=Lora(r=2, alpha=6, dropout=0.0))
    network = load_for_training(AutoModelForImageTextToText, own)
    layer = next(module for module in network.modules() if isinstance(module, LoraLayer))
    assert l1_norm(network).item() == 0
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(1.0)
    # alpha / r = 3 times B A, B all ones: every row of BA is the column sum of A
    rows = layer.lora_B["default"].weight.shape[0]
    assert l1_norm(network).item() == pytest.approx(
        3 * rows * layer.lora_A["default"].weight.sum(0).abs().sum().item(), rel=1e-5
    )


SHARED = {
    "npo": (None, NPO),
    "npo_sam": (None, replace(NPO, gradient=Gradient("sam", {"rho": 0.01}))),
    "gru": (None, replace(NPO, gradient=Gradient("project", {"smoothing": 0.8, "retain_share": 0.0}))),
    "mmunlearner": (
        None,
        Method(
            "mmunlearner",
            "grad_diff",
            {"beta": 1.0, "retain_weight": 1.0},
            mask=Mask("grad_ascent", ratio=1.0, against=["retain", "forget_words"], applies_to="forget"),
        ),
    ),
    "kvw": (
        None,
        Method(
            "kvw",
            None,
            edit=Edit("kvw", {"strength": 3.8, "first_layer": 0, "spared_layers": 0}),
        ),
    ),
    "jensun": (None, Method("jensun", "jensun", {"jsd_weight": 1.0})),
    "kl": (Lora(r=4, alpha=8, dropout=0.0), Method("kl", "kl")),
    "pdu": (None, Method("pdu", "pdu", multiplier=Multiplier(start=1.0, rate=0.5, target=0.1, warmup_epochs=0))),
    "rmu": (
        None,
        Method(
            "rmu", "rmu", {"c": 6.5, "alpha": 1.0, "direction_seed": 0}, activations=Activations(layer=1, trained=[1])
        ),
    ),
}
EACH_KIND = ("npo", "gru", "kl", "rmu")  # a loss, a rule for gradients, an adapter, activations; the others are long
DDP = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests", {root!r} + "/tests/engine"]
from dataclasses import replace
from functools import partial

from accelerate.utils import gather_object
from transformers import AutoModelForImageTextToText, AutoProcessor

import test_train
from engine.frozen_start import Start
from engine.language_model import forward, load_for_training, save
from engine.methods import bind
from engine.pairs import PassCollator
from engine.train import train
from helpers import BASE, TRAINER, Few, pairs, training_settings, without_dropout
from mm.encoder import PictureEncoder
from settings.language import Columns, Data
from settings.script import end_processes, processes

assert processes().num_processes == int(sys.argv[3])
columns = Columns(image="image", caption="caption", question="question", answer="answer", person="name")
data = Data("mini", {world!r} + "/clear", {world!r} + "/tofu", columns, 10, "never_seen", "", "")
encoder = PictureEncoder(AutoProcessor.from_pretrained(BASE))
lora, method = test_train.SHARED[sys.argv[4]]
settings = replace(TRAINER, batch_size=int(sys.argv[1]), max_grad_norm=1.0, lora=lora, bucket=2)
bound = bind(method)
own = training_settings(lora=lora, activations=method.activations)
network = without_dropout(load_for_training(AutoModelForImageTextToText, own))
start = Start(network, forward, partial(save, encoder.processor))
few = Few(pairs(data, bound.batches), 8)
by_own_rows, forwards = [], [0]
collate = PassCollator.__call__


def watched(self, items):
    # beside what the collator does: how many forwards the rows of this process alone would have asked for
    step = collate(self, items)
    alone = PassCollator(self.encoder, self.trained, self.frozen, by_length=True)
    by_own_rows.append(len(collate(alone, items)["trained"]))
    return step


def counted(*_):
    forwards[0] += 1


PassCollator.__call__ = watched
network.register_forward_pre_hook(counted)
train(start, bound, few, encoder, settings, seed=0, save_dir=sys.argv[2], record={{}}, say=lambda line: None)
everywhere = gather_object([(by_own_rows, forwards[0])])
if processes().is_main_process and sys.argv[4] == "npo" and processes().num_processes == 2:
    (one, count), (other, of_other) = everywhere
    assert one != other, "the rows of the two processes would be grouped alike: the test shows nothing"
    assert count == of_other, f"{{count}} and {{of_other}} forwards"
end_processes()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in EACH_KIND else pytest.mark.long) for name in SHARED]
)
def test_two_processes_train_like_one_with_the_same_global_batch(method, data, world, tmp_path):
    script = tmp_path / "ddp.py"
    script.write_text(DDP.format(root=str(ROOT), world=str(world)))
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        "2",
        str(tmp_path / "two"),
        "2",
        method,
    ]
    subprocess.run(
        torchrun, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    )
    subprocess.run(
        [sys.executable, str(script), "4", str(tmp_path / "one"), "1", method],
        check=True,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    start, one, two = (load_file(folder / "model.safetensors") for folder in (BASE, tmp_path / "one", tmp_path / "two"))
    # a mean over all weights, because Adam turns the rounding of a gradient near zero into a whole step of that one
    # weight
    apart = sum((one[n] - two[n]).abs().sum().item() for n in one)
    moved = sum((one[n] - start[n].float()).abs().sum().item() for n in one)
    assert moved > 0 and apart < 0.01 * moved
