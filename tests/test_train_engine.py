"""The training loop: accumulation is exact, seeds decide everything, the schedule peaks where it says, weights do move."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from conftest import BASE, ROOT
from model_module import load_for_training
from run_settings import Lora, Method, Model, Trainer
from test_data_module import pairs
from train_engine import LossTrainer, bind, train

TRAINER = Trainer(
    epochs=1,
    batch_size=4,
    accumulation=1,
    lr=1e-3,
    weight_decay=0.0,
    warmup_ratio=0.0,
    schedule="constant",
    max_grad_norm=0.0,
    optimizer="adamw_torch",
    precision="fp32",
    lora=None,
)
MODEL = Model(name="tiny", path=str(BASE), freeze=[], lora_targets="language_model", attention="sdpa", weights="float32")
NPO = Method(name="npo", loss="npo", args={"beta": 0.1, "retain_weight": 1.0})


class Few:
    """The first `count` keys of a dataset of pairs, as a dataset."""

    def __init__(self, made, count):
        self.made, self.count = made, count

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        epoch, row = divmod(key, self.count)
        return self.made[epoch * len(self.made) + row]


def without_dropout(network):
    """The tiny model drops attention at random while it trains; where batches are compared with each other it must not."""
    for module in network.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return network


def run(data, encoder, folder, settings=TRAINER, method=NPO, count=8, seed=0):
    bound = bind(method)
    network = without_dropout(load_for_training(AutoModelForImageTextToText, str(BASE), MODEL, settings.lora, seed))
    train(network, bound, Few(pairs(data, bound.batches, seed), count), encoder, settings, seed, str(folder), {}, say=lambda line: None)
    return load_file(folder / "model.safetensors"), json.loads((folder / "train_meta.json").read_text())


def largest_difference(one, two):
    return max((one[name] - two[name]).abs().max().item() for name in one)


def test_accumulated_small_batches_have_the_gradient_of_one_large_batch(data, encoder, tmp_path, monkeypatch):
    """2 x 4 and 8 x 1, ragged answers: the gradients themselves are compared, because Adam would hide a wrong scale."""
    gradients = []

    def keep(self, model):
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(LossTrainer, "_clip_grad_norm", keep)
    for batch_size, accumulation in ((8, 1), (2, 4)):
        run(data, encoder, tmp_path / str(batch_size), replace(TRAINER, batch_size=batch_size, accumulation=accumulation, max_grad_norm=1.0))
    large, small = gradients
    scale = max(g.abs().max().item() for g in large.values())
    assert scale > 1e-3 and largest_difference(large, small) < 1e-4 * scale


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(data, encoder, tmp_path):
    settings = replace(TRAINER, precision="bf16", lora=Lora(r=4, alpha=8, dropout=0.1))
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        run(data, encoder, tmp_path / name, settings, seed=seed)
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other


def test_npo_starts_at_the_reference(data, encoder, tmp_path):
    method = replace(NPO, args={"beta": 0.5, "retain_weight": 0.0})
    for precision in ("fp32", "bf16"):
        for name, lora in (("full", None), ("lora", Lora(r=4, alpha=8, dropout=0.5))):
            _, meta = run(data, encoder, tmp_path / precision / name, replace(TRAINER, lora=lora, precision=precision), method)
            assert meta["loss"][0][1] == pytest.approx(2 / 0.5 * math.log(2), rel=1e-4)


def test_fp32_stays_fp32_whatever_the_users_accelerate_configuration_says(data, encoder, tmp_path, monkeypatch):
    plain, _ = run(data, encoder, tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launched, _ = run(data, encoder, tmp_path / "launched")
    assert largest_difference(plain, launched) == 0


def test_a_diverged_loss_is_recorded_as_it_is(data, encoder, tmp_path):
    _, meta = run(data, encoder, tmp_path / "out", replace(TRAINER, lr=1e30, epochs=3), Method(name="grad_ascent", loss="grad_ascent"))
    assert not math.isfinite(meta["loss"][-1][1])


def test_weights_move_at_a_rate_of_1e_5_under_bf16_autocast(data, encoder, tmp_path):
    start = load_file(BASE / "model.safetensors")
    trained, _ = run(data, encoder, tmp_path / "out", replace(TRAINER, lr=1e-5, precision="bf16"))
    moved = [(trained[name] != start[name].float()).float().mean().item() for name in trained if "language_model" in name and "_proj" in name]
    assert all(trained[name].dtype == torch.float32 for name in trained) and min(moved) > 0.9


def test_the_schedule_rises_over_the_warmup_ratio_to_the_rate_and_falls_to_zero(data, encoder, tmp_path, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (rates.append(self.param_groups[0]["lr"]), step(self, *a, **k))[1])
    run(data, encoder, tmp_path / "out", replace(TRAINER, epochs=5, schedule="linear", warmup_ratio=0.2))
    # 10 steps: 2 of warm-up from 0, then down from the peak
    assert len(rates) == 10 and max(rates) == rates[2] == pytest.approx(1e-3) and rates[0] == 0 and rates[-1] < 2e-4


def test_a_run_of_one_step_takes_it_at_the_full_rate(data, encoder, tmp_path):
    trained, _ = run(data, encoder, tmp_path / "out", replace(TRAINER, warmup_ratio=0.1, batch_size=8))
    start = load_file(BASE / "model.safetensors")
    assert sum((trained[n] - start[n].float()).abs().sum().item() for n in trained) > 0


def test_a_run_writes_weights_processor_and_its_record_and_no_pickle(data, encoder, tmp_path):
    _, meta = run(data, encoder, tmp_path / "out", replace(TRAINER, lora=Lora(r=4, alpha=8, dropout=0.0)))
    names = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "train_meta.json", "adapter_model.safetensors"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".pth")) for name in names)
    assert meta["steps"] == 2 and meta["seconds"] > 0 and 0 < meta["peak_memory_gb"] < 64 and len(meta["loss"]) == 2
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


def test_a_method_trains_what_its_passes_name_and_loads_no_reference_for_the_rest(data, encoder, tmp_path, monkeypatch):
    import train_engine

    made = []
    monkeypatch.setattr(train_engine, "FrozenStart", lambda model: made.append(model))
    run(data, encoder, tmp_path / "out", method=Method(name="grad_ascent", loss="grad_ascent"))
    assert made == []


DDP = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch
from run_record import processes
assert processes().num_processes == int(sys.argv[3])
from conftest import BASE
from data_module import ChatEncoder
from run_settings import Columns, Data
from transformers import AutoProcessor
from test_train_engine import run, TRAINER
from dataclasses import replace
from pathlib import Path
import train_engine
columns = Columns(image="image", caption="caption", question="question", answer="answer", person="name")
data = Data(name="mini", path={world!r} + "/clear", text_path={world!r} + "/tofu", columns=columns, rows_per_person=10, idk_questions="", idk_pictures="")
encoder = ChatEncoder(AutoProcessor.from_pretrained(BASE))
settings = replace(TRAINER, batch_size=int(sys.argv[1]), max_grad_norm=1.0)
import test_train_engine
from transformers import AutoModelForImageTextToText
bound = train_engine.bind(test_train_engine.NPO)
network = test_train_engine.without_dropout(test_train_engine.load_for_training(AutoModelForImageTextToText, str(BASE), test_train_engine.MODEL, None, 0))
few = test_train_engine.Few(test_train_engine.pairs(data, bound.batches, 0), 8)
train_engine.train(network, bound, few, encoder, settings, 0, sys.argv[2], {{}}, say=lambda line: None)
"""


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_same_global_batch(data, world, tmp_path):
    script = tmp_path / "ddp.py"
    script.write_text(DDP.format(root=str(ROOT), world=str(world)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), "2", str(tmp_path / "two"), "2"]
    subprocess.run(torchrun, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    subprocess.run([sys.executable, str(script), "4", str(tmp_path / "one"), "1"], check=True, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    start, one, two = (load_file(folder / "model.safetensors") for folder in (BASE, tmp_path / "one", tmp_path / "two"))
    # a mean over all weights, because Adam turns the rounding of a gradient near zero into a whole step of that one weight
    apart = sum((one[n] - two[n]).abs().sum().item() for n in one)
    moved = sum((one[n] - start[n].float()).abs().sum().item() for n in one)
    assert moved > 0 and apart < 0.01 * moved
