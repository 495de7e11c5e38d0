"""LUNAR in closed form: the rule by hand, and what an edited model says of forget and of retain rows."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from engine.edit_lunar import redirect
from engine.edit_step import edit
from engine.forget_rows import holdout_rows
from engine.frozen_start import Start
from engine.kept_hook import layers_of
from engine.language_model import forward, load_for_training, load_model, save
from engine.loss_trainer import LossTrainer
from engine.methods import bind
from engine.progress import Work
from engine.states import Place, mean_first_state, seen
from engine.train import train, training_arguments
from helpers import BASE, MODEL, ROOT, TRAINER, Few, pairs, training_settings, without_dropout
from settings.script import SettingsError
from settings.training import Method

LUNAR = OmegaConf.to_object(
    OmegaConf.merge(OmegaConf.structured(Method), OmegaConf.load(ROOT / "config/method/lunar.yaml"))
)
LUNAR = replace(LUNAR, edit=replace(LUNAR.edit, args={"layer": 2, "strength": 2.0, "damping": 0.01}))


def with_args(**args):
    return replace(LUNAR, edit=replace(LUNAR.edit, args={**LUNAR.edit.args, **args}))


def rows_of(data, modality="both", count=8):
    own = pairs(data, bind(LUNAR).batches, modality=modality)
    own.holdout = holdout_rows(replace(data, holdout_split="never_seen"), 0)
    return Few(own, count)


def run(data, encoder, folder, method=LUNAR, modality="both"):
    network = without_dropout(load_for_training(AutoModelForImageTextToText, training_settings(lora=None)))
    start = Start(network, forward, partial(save, encoder.processor))
    rows = rows_of(data, modality)
    train(start, bind(method), rows, encoder, TRAINER, seed=0, save_dir=str(folder), record={}, say=lambda line: None)
    return network


# ---- by hand


def test_the_least_squares_send_what_forget_rows_alone_use_the_whole_way_and_spare_the_rest():
    # one forget row with a = (1, 0), one retain row with a = (0, 1): C = I / 2, m = (1, 0) / 2, v = (1, 0)
    mean, moment = torch.tensor([0.5, 0.0]), torch.diag(torch.tensor([0.5, 0.5]))
    weight, direction = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, -1.0])
    new = redirect(weight, direction, mean, moment, strength=2.0, damping=0.0)
    assert new.tolist() == [[3.0, 2.0], [1.0, 4.0]]
    # damping 1: C + .5 I = I, v = (.5, 0)
    new = redirect(weight, direction, mean, moment, strength=2.0, damping=1.0)
    assert new.tolist() == [[2.0, 2.0], [2.0, 4.0]]


def test_a_neuron_that_both_kinds_use_alike_sends_both_half_the_way():
    # a = (1,) on both: C = 1, m = 1 / 2
    new = redirect(torch.zeros(1, 1), torch.ones(1), torch.tensor([0.5]), torch.ones(1, 1), strength=1.0, damping=0.0)
    assert new.item() == pytest.approx(0.5)


def test_a_strength_of_zero_changes_no_weight():
    weight, torch_rows = torch.randn(3, 4), torch.randn(5, 4)
    moment = torch_rows.T @ torch_rows / 5
    assert torch.equal(redirect(weight, torch.randn(3), torch_rows.mean(0), moment, strength=0.0, damping=0.1), weight)


def test_no_other_change_of_rank_one_or_more_comes_nearer_to_the_targets():
    torch.manual_seed(0)
    forget, retain = torch.randn(6, 4).double(), torch.randn(9, 4).double()
    rows = torch.cat([forget, retain])
    wanted = torch.cat([torch.ones(6), torch.zeros(9)]).double()[:, None] * torch.tensor([1.0, 2.0, -1.0]).double()
    weight = torch.randn(3, 4).double()
    mean, moment = forget.sum(0) / 15, rows.T @ rows / 15
    new = redirect(weight, torch.tensor([1.0, 2.0, -1.0]), mean, moment, strength=1.0, damping=0.0)
    best = torch.linalg.lstsq(rows, wanted).solution.T
    assert torch.allclose(new - weight, best, atol=1e-6)


# ---- a run


def test_one_down_projection_changes_and_is_what_is_saved(data, encoder, tmp_path):
    network = run(data, encoder, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (BASE, tmp_path / "out"))
    changed = [name for name in before if not torch.equal(before[name].float(), after[name].float())]
    assert len(changed) == 1
    assert ".layers.2." in changed[0]
    assert "down_proj" in changed[0]
    loaded = load_model(AutoModelForImageTextToText, str(tmp_path / "out"), MODEL, "float32")
    kept = dict(network.named_parameters())
    assert all(torch.equal(value, kept[name]) for name, value in loaded.named_parameters())


def test_forget_questions_end_nearer_to_the_state_of_unknown_peoples_and_retain_rows_stay(data, encoder, tmp_path):
    trainer = trainer_of(encoder, LUNAR, tmp_path)
    rows = rows_of(data)
    place = Place(layers_of(trainer.model)[2], "layer")
    kinds = {name: rows.rows_of(name) for name in ("forget_words", "holdout", "retain")}

    def states():
        with Work("row", 100, prepares=True) as work:
            return {
                name: mean_first_state(trainer, encoder, list(each), place, work=work) for name, each in kinds.items()
            }

    before = states()
    facts = edit(trainer, rows, encoder)
    after = states()
    way = before["holdout"] - before["forget_words"]
    moved = {name: float((after[name] - before[name]) @ way / (way @ way)) for name in kinds}
    assert moved["forget_words"] > 2 * abs(moved["retain"])
    assert moved["forget_words"] > 0.5  # strength 2 on rows that are told apart from the retain rows in part
    assert facts["steered_forget"] > facts["steered_retain"] > 0


def trainer_of(encoder, method, folder):
    network = without_dropout(load_for_training(AutoModelForImageTextToText, training_settings(lora=None)))
    start = Start(network, forward, partial(save, encoder.processor))
    return LossTrainer(start, bind(method), TRAINER, seed=0, args=training_arguments(TRAINER, 0, str(folder)))


def test_what_is_measured_of_neurons_goes_into_the_down_projection_and_is_a_mean_over_rows(data, encoder, tmp_path):
    trainer, rows = trainer_of(encoder, LUNAR, tmp_path), list(rows_of(data).rows_of("forget"))[:3]
    down = layers_of(trainer.model)[2].mlp.down_proj
    with Work("row", 100, prepares=True) as work:
        together = seen(trainer, encoder, rows, Place(down, "layer", taken=True), work=work)
        alone = [seen(trainer, encoder, [row], Place(down, "layer", taken=True), work=work) for row in rows]
    assert together.mean.shape == (down.in_features,)
    assert torch.allclose(together.mean, torch.stack([each.mean for each in alone]).mean(0), atol=1e-6)
    assert torch.allclose(together.moment, torch.stack([each.moment for each in alone]).mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (with_args(layer=4), r"method.edit.args.layer=4: .* has layers 0 to 3"),
        (with_args(strength=0.0), r"method.edit changes nothing, nothing would forget"),
        (with_args(layer=1.5), r"method.edit.args.layer=1.5 must be a whole number"),
        (with_args(damping=-1.0), r"method.edit.args.damping=-1.0 must be at least 0"),
    ],
)
def test_what_cannot_be_edited_so_is_one_line(method, line, data, encoder, tmp_path):
    with pytest.raises(SettingsError, match=line):
        run(data, encoder, tmp_path / "out", method)
    assert not (tmp_path / "out").exists()


def test_data_without_questions_in_words_or_unknown_people_is_one_line(data, encoder, tmp_path):
    with pytest.raises(SettingsError, match="asks for rows in words"):
        run(data, encoder, tmp_path / "out", modality="visual")
    with pytest.raises(SettingsError, match=r"data.holdout_split is empty"):
        holdout_rows(replace(data, holdout_split=""), 0)
    alone = pairs(data, ["forget"])
    with pytest.raises(SettingsError, match="people whom no model met, which there are for language models only"):
        alone.rows_of("holdout")
