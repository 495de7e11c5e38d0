"""Adapters that begin with a part of the weights: the rule by hand, a start that stays what it was, and what may no
longer be taken for it.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate.utils import DistributedType
from omegaconf import OmegaConf
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GPT2Config, GPT2LMHeadModel

from cv.together import check_stackable
from engine import init_step
from engine.adapters import add_lora
from engine.frozen_start import Start
from engine.init_fila import begin
from engine.init_step import begin_one, training_instead
from engine.language_model import forward, load_for_training, save, trained_weights
from engine.loss_trainer import LossTrainer
from engine.memory import Shape, need_of
from engine.methods import bind
from engine.record import read_json
from engine.train import train
from helpers import BASE, ROOT, TRAINER, Few, largest_difference, pairs, training_settings, without_dropout
from settings.language import Forget
from settings.script import SettingsError, compose
from settings.training import Activations, Init, Lora, Method, TaskVector
from unlearn_losses import nll

LORA = Lora(r=4, alpha=8, dropout=0.0)
FILE = OmegaConf.merge(OmegaConf.structured(Method), OmegaConf.load(ROOT / "config/method/fila.yaml"))
FILA: Method = OmegaConf.to_object(FILE)
ADAPTED = replace(TRAINER, lora=LORA)


def run(data, encoder, folder, settings=ADAPTED, method=FILA):
    bound = bind(method)
    network = without_dropout(load_for_training(AutoModelForImageTextToText, training_settings(lora=settings.lora)))
    start = Start(network, forward, partial(save, encoder.processor))
    few = Few(pairs(data, bound.batches), 6)
    train(start, bound, few, encoder, settings, seed=0, save_dir=str(folder), record={}, say=lambda line: None)
    return load_file(folder / "model.safetensors"), read_json(folder / "train_meta.json")


# ---- the rule by hand


def test_an_adapter_begins_with_what_weighs_most_on_forget_rows():
    # w = sqrt(1.6e-4 / 1e-5) = 4 and sqrt(1e-5 / 1e-5) = 1: diag(w) W = diag(4, 2), so that the smaller weight comes
    # first. B A = diag(1 / (4 + 1e-5)) diag(4, 0) = diag(1, 0), whatever the adapter multiplies it by
    weight = torch.diag(torch.tensor([1.0, 2.0]))
    forget, retain = torch.tensor([[1.6e-4, 0.0], [0.0, 1e-5]]), torch.zeros(2, 2)
    for scale in (1.0, 2.0):
        a, b = begin(weight, forget, retain, rank=1, scale=scale)
        assert torch.allclose(scale * b @ a, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), atol=1e-5)
        # sqrt(4 / scale), and the same by 4 + 1e-5
        assert a.abs().max() == pytest.approx((4 / scale) ** 0.5) == pytest.approx(4 * b.abs().max().item(), rel=1e-4)


def test_what_retain_rows_need_too_weighs_less():
    # ratios 1.6e-4 / (1e-5 + 3.1e-4) = .5 and 1e-5 / 1e-5 = 1: diag(.707, 1) diag(1, 2) = diag(.707, 2)
    weight = torch.diag(torch.tensor([1.0, 2.0]))
    forget, retain = torch.tensor([[1.6e-4, 0.0], [0.0, 1e-5]]), torch.tensor([[3.1e-4, 0.0], [0.0, 0.0]])
    a, b = begin(weight, forget, retain, rank=1, scale=1.0)
    assert torch.allclose(b @ a, torch.tensor([[0.0, 0.0], [0.0, 2.0]]), atol=1e-4)


def test_an_adapter_of_full_rank_takes_all_of_the_rows_that_forget_rows_go_through():
    torch.manual_seed(0)
    weight, forget = torch.randn(3, 5), torch.rand(3, 5)
    forget[1] = 0.0
    a, b = begin(weight, forget, torch.rand(3, 5), rank=3, scale=0.5)
    assert torch.allclose((0.5 * b @ a)[[0, 2]], weight[[0, 2]], atol=1e-4)  # times w / (w + 1e-5)
    # the row without a forget gradient is left where it is, and the third direction is 0 and no rounding
    assert not b[1].any() and a.any(1).tolist() == [True, True, False] and torch.isfinite(b).all()


def test_a_direction_without_weight_keeps_its_drawn_values_so_that_it_learns():
    adapted = add_lora(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16)), LORA, "c_fc", seed=0)
    (layer,) = (each for each in adapted.modules() if isinstance(each, LoraLayer))
    before, drawn = layer.get_base_layer().weight.detach().clone(), layer.lora_A["default"].weight.detach().clone()
    forget = torch.zeros_like(before)
    forget[:, :2] = 1.0  # in a layer that holds its weight the other way round: two of its outputs
    begin_one(layer, begin, forget, torch.zeros_like(before))
    a, b = (getattr(layer, f"lora_{x}")["default"].weight for x in "AB")
    assert torch.equal(a[2:], drawn[2:]) and not torch.equal(a[:2], drawn[:2]) and not b[:, 2:].any()
    after = layer.get_base_layer().weight
    assert after[:, :2].abs().max() < 1e-4 and torch.equal(after[:, 2:], before[:, 2:])
    assert torch.allclose(after + layer.get_delta_weight("default"), before, atol=1e-6)


# ---- a run


def test_without_a_rate_the_merged_weights_are_those_of_the_start(data, encoder, tmp_path, monkeypatch):
    held = []
    real = init_step.begin_adapters

    def watched(trainer, *given):
        facts = real(trainer, *given)
        layers = [each for each in trainer.model.modules() if isinstance(each, LoraLayer)]
        held.extend(layer.lora_B["default"].weight.abs().max().item() for layer in layers)
        held.append(sorted(trained_weights(trainer.model)))
        return facts

    monkeypatch.setattr("engine.train.begin_adapters", watched)
    saved, record = run(data, encoder, tmp_path / "out", replace(ADAPTED, lr=0.0))
    names = held.pop()
    assert min(held) > 1e-3 and record["begun"] == 1.0  # no adapter begins at 0
    assert all(".lora_" in name for name in names)  # and they alone train
    assert largest_difference(saved, load_file(BASE / "model.safetensors")) < 1e-6
    assert not (tmp_path / "out" / "adapter").exists()  # added to the start it would be another model


def test_the_run_makes_forget_answers_less_likely_and_what_is_saved_is_what_was_trained(data, encoder, tmp_path):
    few = Few(pairs(data, ["forget"]), 6)
    scored = {}

    def nll_of(network):
        batch = encoder.collate([encoder.encode(few[key]["forget"][0]) for key in range(6)])
        with torch.no_grad():
            return nll(forward(network.eval(), batch)).item()

    def saved(processor, model, folder):
        scored["in memory"] = nll_of(model)
        save(processor, model, folder)

    bound = bind(FILA)
    network = without_dropout(load_for_training(AutoModelForImageTextToText, training_settings(lora=LORA)))
    scored["before"] = nll_of(network)
    start = Start(network, forward, partial(saved, encoder.processor))
    settings, where = replace(ADAPTED, epochs=4), {"seed": 0, "save_dir": str(tmp_path / "out"), "record": {}}
    train(start, bound, Few(pairs(data, bound.batches), 6), encoder, settings, **where, say=lambda line: None)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="float32")
    assert nll_of(again) == pytest.approx(scored["in memory"], abs=1e-5)
    assert scored["in memory"] > scored["before"] + 0.1


def test_how_adapters_begin_does_not_depend_on_the_batch_size_or_on_autocast(data, encoder, tmp_path, monkeypatch):
    seen = []
    real = init_step.begin_adapters

    def watched(trainer, *given):
        facts = real(trainer, *given)
        seen.append({name: weight.detach().clone() for name, weight in trainer.model.named_parameters()})
        return facts

    monkeypatch.setattr("engine.train.begin_adapters", watched)
    for number, each in enumerate((replace(ADAPTED, batch_size=1), replace(ADAPTED, batch_size=8, precision="bf16"))):
        run(data, encoder, tmp_path / str(number), replace(each, lr=0.0))
    assert largest_difference(*seen) == 0


class Killed(BaseException):
    """Ends a run at once, as kill -9 would."""


def test_a_killed_run_goes_on_with_the_same_bytes(data, encoder, tmp_path, monkeypatch):
    settings = replace(ADAPTED, epochs=2, save_every="1step")
    plain, record = run(data, encoder, tmp_path / "plain", settings)
    with monkeypatch.context() as patch:
        real = LossTrainer.training_step

        def step(self, *given, **named):
            if self.state.global_step == 3:
                raise Killed
            return real(self, *given, **named)

        patch.setattr(LossTrainer, "training_step", step)
        with pytest.raises(Killed):
            run(data, encoder, tmp_path / "again", settings)
    kept = load_file(tmp_path / "again.checkpoints" / "step_3" / "weights.safetensors")
    assert all(".lora_" in name for name in kept)
    again, record_again = run(data, encoder, tmp_path / "again", settings)
    assert largest_difference(plain, again) == 0 and record_again["loss"] == record["loss"]


def test_only_the_named_weights_train_while_they_are_measured(model):
    adapted = add_lora(model, LORA, "language_model", seed=0)
    before = list(trained_weights(adapted))
    chosen = adapted.get_submodule("base_model.model.model.language_model.layers.1.mlp.up_proj").get_base_layer()
    with training_instead(adapted, [chosen.weight]):
        assert list(trained_weights(adapted)) == [
            "base_model.model.model.language_model.layers.1.mlp.up_proj.base_layer.weight"
        ]
    assert list(trained_weights(adapted)) == before


# ---- what is refused


REFUSED = {
    "no adapters": (["trainer.lora=null"], "method=fila says how adapters begin: it needs trainer.lora"),
    "an adapter alone": (
        ["trainer.save=adapter"],
        "trainer.save=adapter: with method=fila adapters begin .* set trainer.save=merged",
    ),
    "a penalty of the update": (["+trainer.l1=0.1"], "trainer.l1=0.1: with method=fila .* set trainer.l1=0"),
    "weights that would be rounded": (["model.weights=bfloat16"], "model.weights=bfloat16: method=fila moves part"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_under_which_an_adapter_would_be_taken_for_what_was_learned_are_refused(name):
    overrides, line = REFUSED[name]
    with pytest.raises(SettingsError, match=line):
        compose("mm/forget", Forget, ["method=fila", "trainer=clear_lora", *overrides])


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: replace(FILA, task_vector=TaskVector(1.0)), "method.task_vector takes all that an adapter adds"),
        (lambda: replace(FILA, l1=0.1), "method.l1 takes all that an adapter adds"),
        (lambda: bind(replace(FILA, init=Init("fial"))), r"method.init.rule='fial'.*fila"),
        (lambda: Init("fila", rows=-1), "method.init.rows=-1 must be at least 0"),
        (lambda: bind(replace(FILA, retain="kl")), "the start that ihl compares with .* or take method.retain=nll"),
        (lambda: bind(replace(FILA, loss="kl", args={})), "the start that kl compares with in every step"),
        (
            lambda: bind(Method("rmu", "rmu", {}, init=Init("fila"), activations=Activations(1, [1]))),
            "method.args.c is required",
        ),
        (
            lambda: bind(
                Method(
                    "rmu",
                    "rmu",
                    {"c": 1.0, "alpha": 1.0, "direction_seed": 0},
                    init=Init("fila"),
                    activations=Activations(1, [1]),
                )
            ),
            "method.init needs the answers' logits",
        ),
        (lambda: check_stackable(FILA), "many networks cannot train together with method.init"),
    ],
)
def test_what_cannot_begin_so_is_one_line(make, line):
    with pytest.raises(SettingsError, match=line):
        make()


def test_log_probabilities_of_the_start_may_be_asked_for():
    method = Method("npo", "npo", {"beta": 0.1, "retain_weight": 1.0}, init=Init("fila"))
    assert bind(method).cached == ["forget"] and bind(method).frozen == []


def test_adapters_of_more_rank_than_their_matrix_are_refused(data, encoder, tmp_path):
    with pytest.raises(SettingsError, match=r"trainer.lora.r=5000 must be at most \d+, the singular values of "):
        run(data, encoder, tmp_path / "out", replace(TRAINER, lora=Lora(r=5000, alpha=8, dropout=0.0)))


def test_a_sharded_run_is_refused(data, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.distributed_type", property(lambda self: DistributedType.FSDP))
    monkeypatch.setattr("accelerate.Accelerator.is_fsdp2", property(lambda self: True))
    with pytest.raises(SettingsError, match=r"method=fila changes whole weights, .* launch it without sharding"):
        run(data, encoder, tmp_path / "out")


def test_a_plan_does_not_count_what_is_measured_and_says_so(text_base):
    common = [f"model_path={text_base}", "model=tiny-llama", "method=fila", "trainer=tofu_lora"]
    config = AutoConfig.from_pretrained(text_base)

    def need(*overrides):
        settings = compose("nlp/forget", Forget, [*common, *overrides])
        return need_of(settings, AutoModelForCausalLM, config, Shape(24, 12, "stated"))

    with pytest.raises(SettingsError, match="plan: what method=fila measures before it trains is not counted"):
        need()
    assert need("method.init=null").peak > 0
