"""trainer.gradient_checkpointing: the same losses and gradients, of fewer kept activations."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from engine.frozen_start import Start
from engine.language_model import compute_activations_again, forward, load_for_training, save
from engine.loss_trainer import LossTrainer
from engine.methods import bind
from engine.train import train
from helpers import NPO, TRAINER, Few, largest_difference, pairs, training_settings
from settings.script import SettingsError
from settings.training import Activations, Lora, Method

ADAPTER = Lora(r=4, alpha=8, dropout=0.2)
KL = Method(name="kl", loss="kl")
RMU = Method(
    name="rmu",
    loss="rmu",
    args={"c": 6.5, "alpha": 1.0, "direction_seed": 0},
    activations=Activations(layer=2, trained=[1, 2]),
)
PLAIN = Method(name="retain_ft", loss="retain_ft")  # compares with no start, so that the model's own dropout stays


@pytest.fixture
def rows(data, encoder):
    """Where rows stand, and what encodes them."""
    return data, encoder


def first_steps(rows, folder, method, monkeypatch, *, lora, checkpointed):
    """The losses of two steps, and the gradients of the first."""
    gradients = []

    def keep(self, model):
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(LossTrainer, "_clip_grad_norm", keep)
    data, encoder = rows
    bound, losses = bind(method), []
    own = training_settings(lora=lora, activations=method.activations, checkpointed=checkpointed)
    network = load_for_training(AutoModelForImageTextToText, own)
    start = Start(network, forward, partial(save, encoder.processor))
    settings = replace(TRAINER, max_grad_norm=1.0)
    losses_of = LossTrainer.loss_of
    monkeypatch.setattr(LossTrainer, "loss_of", lambda *given, **how: note(losses, losses_of(*given, **how)))
    few = Few(pairs(data, bound.batches), 8)
    train(start, bound, few, encoder, settings, seed=0, save_dir=str(folder), record={}, say=lambda line: None)
    monkeypatch.undo()
    return losses, gradients[0]


def note(losses, parts):
    losses.append(parts.total.item())
    return parts


@pytest.mark.parametrize(
    ("method", "lora"),
    [(NPO, None), (NPO, ADAPTER), (KL, None), (RMU, None), (RMU, ADAPTER), (PLAIN, None)],
    ids=["npo", "npo_lora", "kl", "rmu", "rmu_lora", "dropout_of_the_model"],
)
def test_losses_and_gradients_are_those_of_kept_activations(method, lora, rows, tmp_path, monkeypatch):
    kept, of_kept = first_steps(rows, tmp_path / "kept", method, monkeypatch, lora=lora, checkpointed=False)
    again, of_again = first_steps(rows, tmp_path / "again", method, monkeypatch, lora=lora, checkpointed=True)
    assert again == pytest.approx(kept, rel=1e-6, abs=1e-6)
    assert of_kept.keys() == of_again.keys()
    scale = max(gradient.abs().max().item() for gradient in of_kept.values())
    assert scale > 0 and largest_difference(of_kept, of_again) < 1e-6 * scale


def kept_bytes(model, loss_of):
    """Bytes that a forward keeps for its backward pass, weights apart, each tensor once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def note_tensor(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that its place is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note_tensor, lambda tensor: tensor):
        loss_of(model)
    return sum(size for size, _ in kept.values())


def test_less_is_kept_for_the_backward_pass(model):
    def loss_of(network):
        return network(input_ids=torch.randint(5, 100, (4, 64)), use_cache=False).logits[:, -1].sum()

    model.train()
    before = kept_bytes(model, loss_of)
    compute_activations_again(model)
    assert 0 < kept_bytes(model, loss_of) < before / 3


def test_a_model_that_cannot_is_refused_in_one_line(text_base, monkeypatch):
    network = AutoModelForCausalLM.from_pretrained(text_base)
    monkeypatch.setattr(type(network), "supports_gradient_checkpointing", False)
    with pytest.raises(SettingsError, match=r"trainer\.gradient_checkpointing=true: LlamaForCausalLM does not support"):
        compute_activations_again(network)
