"""A mask by neurons (MIP-Editor): which neurons say most of an answer, and what of the weights moves."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText, GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

from engine.attribution import attributed, attribution, listened, strongest
from engine.edit_statistics import mlps_of
from engine.frozen_start import Start
from engine.language_model import forward, load_for_training, save
from engine.layer_output import restore_layers
from engine.loss_trainer import LossTrainer
from engine.mask_step import entries_of, of_neurons
from engine.methods import bind
from engine.pairs import Batch
from engine.train import train, training_arguments
from helpers import BASE, ROOT, TRAINER, Few, example, pairs, training_settings, without_dropout
from settings.script import SettingsError
from settings.training import Activations, Mask, Method
from unlearn_losses import nll

MIP = OmegaConf.to_object(
    OmegaConf.merge(OmegaConf.structured(Method), OmegaConf.load(ROOT / "config/method/mip_editor.yaml"))
)
MIP = replace(MIP, activations=Activations(layer=2, trained=[1, 2]))


def run(data, encoder, folder, method=MIP, say=lambda line: None):
    start, bound = start_of(encoder, method), bind(method)
    few = Few(pairs(data, bound.batches), 6)
    train(start, bound, few, encoder, TRAINER, seed=0, save_dir=str(folder), record={}, say=say)


def start_of(encoder, method=None):
    own = training_settings(activations=method.activations if method else None)
    network = without_dropout(load_for_training(AutoModelForImageTextToText, own))
    return Start(network, forward, partial(save, encoder.processor))


def trainer_of(encoder, folder, method=None):
    arguments = training_arguments(TRAINER, 0, str(folder))
    return LossTrainer(start_of(encoder, method), bind(MIP), TRAINER, seed=0, args=arguments)


# ---- by hand


def test_a_neurons_attribution_is_the_mean_size_of_value_times_gradient_where_the_answer_is():
    values = torch.tensor([[[9.0, 9.0], [1.0, -2.0], [3.0, 0.0]]])
    gradients = torch.tensor([[[9.0, 9.0], [2.0, 1.0], [-1.0, 5.0]]])
    batch = Batch({}, torch.tensor([[7, 8]]), positions=torch.tensor([[1, 2]]))
    # (|1 * 2| + |3 * -1|) / 2 = 2.5; (|-2 * 1| + 0) / 2 = 1; the question's 81 does not count
    assert attribution(values, gradients, batch).tolist() == [2.5, 1.0]


def test_of_equal_neurons_the_first_counts_and_one_that_says_nothing_never_does():
    assert strongest(torch.tensor([1.0, 3.0, 1.0, 0.0]), 2).tolist() == [True, True, False, False]
    assert strongest(torch.tensor([0.0, 3.0, 0.0, 0.0]), 2).tolist() == [False, True, False, False]


def test_a_gradient_to_neurons_is_there_where_no_weight_trains(model, encoder):
    model.requires_grad_(False)
    mlps = [layer.mlp.down_proj for layer in model.get_decoder().layers]
    batch = encoder.collate([encoder.encode(example())])
    with listened(mlps) as values:
        gradients = torch.autograd.grad(nll(forward(model, batch)), values)
    # by finite differences: the first layer's neurons, moved along the gradient
    step = 1e-3 * gradients[0] / gradients[0].norm()

    def moved(module, inputs):
        return (inputs[0] + step,)

    before = nll(forward(model, batch)).item()
    handle = mlps[0].register_forward_pre_hook(moved)
    after = nll(forward(model, batch)).item()
    handle.remove()
    assert after - before == pytest.approx(1e-3 * gradients[0].norm().item(), rel=0.05)


def small_mlp(family):
    sizes = {"vocab_size": 32, "num_hidden_layers": 1}
    if family == "transposed":
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_inner=24))
    config = Phi3Config(hidden_size=16, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, **sizes)
    config.intermediate_size = 24
    return Phi3ForCausalLM(config)


@pytest.mark.parametrize("family", ["fused", "transposed"])
def test_the_entries_of_a_neuron_are_what_makes_it_active_and_what_it_writes(family):
    torch.manual_seed(0)
    network = small_mlp(family).eval()
    mlps = mlps_of(network, "mip_editor")
    neurons = torch.zeros(24, dtype=torch.bool)
    neurons[3] = True
    weights = list(network.parameters())
    moves = entries_of(weights, mlps, [neurons])
    # a change of these entries alone changes what the MLP gives only through neuron 3
    with torch.no_grad(), listened([mlps[0].down]) as before:
        network(torch.arange(1, 6)[None])
    with torch.no_grad():
        for weight, moving in zip(weights, moves, strict=True):
            weight += 0.5 * moving
    with torch.no_grad(), listened([mlps[0].down]) as after:
        network(torch.arange(1, 6)[None])
    changed = (before[0] != after[0]).reshape(-1, 24).any(0)
    assert changed.nonzero().flatten().tolist() == [3]
    parts = sum(int(each.sum()) for each in moves)
    halves = 2 if family == "fused" else 1
    biased = 1 if family == "transposed" else 0
    assert parts == 16 + halves * 16 + biased


# ---- a run


def test_only_the_chosen_neurons_of_the_trained_layers_move(data, encoder, tmp_path):
    lines = []
    run(data, encoder, tmp_path / "out", say=lines.append)
    before, after = (load_file(folder / "model.safetensors") for folder in (BASE, tmp_path / "out"))
    moved = {name: before[name].float() != after[name].float() for name in before}
    changed = {name for name, each in moved.items() if each.any()}
    assert changed
    assert all(".mlp." in name and (".layers.1." in name or ".layers.2." in name) for name in changed)
    for layer in (1, 2):
        down = next(name for name in changed if f".layers.{layer}.mlp.down_proj" in name)
        up = next(name for name in changed if f".layers.{layer}.mlp.up_proj" in name)
        columns, rows = moved[down].any(0), moved[up].any(1)
        assert torch.equal(columns, rows)
        assert 5 <= int(columns.sum()) <= 30  # 5 neurons of each of 6 rows
    assert any("the mask lets" in line for line in lines)


def test_the_neurons_do_not_depend_on_what_trains_or_where_the_model_ends(data, encoder, tmp_path):
    rows = Few(pairs(data, ["forget"]), 3)
    found = []
    for method in (None, MIP):
        trainer = trainer_of(encoder, tmp_path, method)
        restore_layers(trainer.model)
        mlps = mlps_of(trainer.model, "mip_editor", [1, 2])
        found.append(attributed(trainer, "grad_ascent", rows.rows_of("forget"), encoder, mlps=mlps, most=5))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_is_cut_off_again_after_the_look_waits_in_main_memory_and_the_rest_stays(
    data, encoder, tmp_path, monkeypatch
):
    trainer, moved = trainer_of(encoder, tmp_path, MIP), []
    monkeypatch.setattr(nn.Module, "cpu", lambda module: moved.extend(module.parameters()))
    of_neurons(trainer, MIP.mask, Few(pairs(data, bind(MIP).batches), 1), encoder)
    moved = set(map(id, moved))
    layers = next(part for _, _, part in trainer.model.__dict__["removed_parts"] if isinstance(part, nn.ModuleList))
    assert set(map(id, layers[3].parameters())) <= moved
    assert moved.isdisjoint(map(id, trainer.model.parameters()))


def test_a_part_without_the_down_projection_is_one_line(data, encoder, tmp_path):
    method = replace(MIP, activations=replace(MIP.activations, part="mlp.up_proj"))
    with pytest.raises(SettingsError, match=r"layer 1, whose down-projection does not train; see model.freeze and"):
        run(data, encoder, tmp_path / "out", method)


def test_more_rows_choose_more_neurons_and_fewer_may_be_drawn(data, encoder, tmp_path):
    trainer = trainer_of(encoder, tmp_path)
    mlps, rows = mlps_of(trainer.model, "mip_editor"), pairs(data, ["forget"]).rows_of("forget")
    first = [rows[place] for place in range(6)]
    few, many = (attributed(trainer, "grad_ascent", some, encoder, mlps=mlps, most=5) for some in (first[:1], first))
    assert all(int(each.sum()) == 5 for each in few)
    assert all((one <= other).all() for one, other in zip(few, many, strict=True))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Mask("grad_ascent"), r"method.mask takes one of share, ratio and neurons; got share=None ratio=None"),
        (lambda: Mask("grad_ascent", neurons=0), r"method.mask.neurons=0 must be at least 1"),
        (lambda: Mask("grad_ascent", neurons=5, share=0.5), r"takes one of share, ratio and neurons"),
        (lambda: Mask("grad_ascent", neurons=5, against=["retain"]), r"a ratio is against some rows, nothing else is"),
        (lambda: bind(replace(MIP, args={**MIP.args, "scale": 0.0})), r"method.args.scale=0.0 must be above 0"),
    ],
)
def test_a_mask_by_neurons_that_is_not_meant_so_is_one_line(make, line):
    with pytest.raises(SettingsError, match=line):
        make()


def test_a_model_without_a_decoder_is_one_line():
    with pytest.raises(SettingsError, match="looks at the neurons of a decoder, which language models alone have"):
        mlps_of(nn.Linear(2, 2), "mip_editor")
