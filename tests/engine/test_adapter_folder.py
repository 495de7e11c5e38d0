"""trainer.save=adapter: the adapter alone with what names its base, which together are the merged model."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import nlp.eval
import nlp.finetune
import nlp.forget
from engine.adapter_folder import BASE, TENSORS, base_of
from engine.adapters import add_lora
from engine.checkpoints import size_on_disk
from engine.language_model import check_model_path, load_model, save, save_adapter
from engine.record import model_fingerprint
from helpers import MODEL, QUICK, TRAINER, start
from nlp.encoder import open_encoder
from settings.script import SettingsError
from settings.training import Lora

LORA = Lora(r=4, alpha=8, dropout=0.0)
SOME = torch.tensor([[5, 9, 17, 30, 42]])
open_float = partial(load_model, AutoModelForCausalLM, settings=MODEL, dtype="float32")


def trained_over(base, seed, weights="float32"):
    """A model with an adapter over the model in `base` that is no longer zero."""
    network = add_lora(open_float(str(base)).to(getattr(torch, weights)), LORA, "language_model", seed)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def write_both(base, folder, *, seed=0, weights="float32"):
    """The same training written as an adapter and merged; returns both folders."""
    tokenizer, network = AutoTokenizer.from_pretrained(base), trained_over(base, seed, weights)
    adapter, merged = folder / "adapter_alone", folder / "merged"
    adapter.mkdir(parents=True)
    save_adapter(tokenizer, base_of(str(base), weights, "none"), network, adapter)
    save(tokenizer, network, merged)
    return adapter, merged


@pytest.fixture
def base(text_base, tmp_path):
    """A base that a test may change."""
    return shutil.copytree(text_base, tmp_path / "base")


@torch.no_grad()
def logits(folder, dtype="float32"):
    return load_model(AutoModelForCausalLM, str(folder), MODEL, dtype).eval()(input_ids=SOME).logits


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_over_its_base_gives_the_logits_of_the_merged_model_to_the_bit(weights, dtype, base, tmp_path):
    adapter, merged = write_both(base, tmp_path, weights=weights)
    assert torch.equal(logits(adapter, dtype), logits(merged, dtype))
    assert not torch.allclose(logits(adapter).float(), logits(base), atol=1e-2)


def test_what_is_loaded_has_no_trace_of_an_adapter_and_trains_again(base, tmp_path):
    adapter, _ = write_both(base, tmp_path)
    model = open_float(str(adapter))
    assert type(model).__name__ == "LlamaForCausalLM" and all(p.requires_grad for p in model.parameters())
    assert not any("lora" in name or "base_layer" in name for name, _ in model.named_modules())


@torch.no_grad()
def test_an_adapter_may_have_a_base_that_is_one_itself(base, tmp_path):
    first, merged = write_both(base, tmp_path / "first")
    second, _ = write_both(first, tmp_path / "second", seed=1)
    network = trained_over(merged, 1).eval()
    tensors = load_file(second / TENSORS)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.copy_(tensors[name.replace(".default.", ".")])
    assert torch.allclose(logits(second), network(input_ids=SOME).logits, atol=1e-5)


def test_the_folder_holds_no_weights_of_the_base(base, tmp_path):
    adapter, merged = write_both(base, tmp_path)
    assert not list(adapter.glob("model*.safetensors")) and (adapter / TENSORS).is_file()
    assert (adapter / TENSORS).stat().st_size < (merged / "model.safetensors").stat().st_size / 10
    assert open_encoder(str(adapter), MODEL).tokenizer.get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    assert json.loads((adapter / BASE).read_text())["fingerprint"] == model_fingerprint(str(base))


def test_a_base_that_is_gone_is_named(base, tmp_path):
    adapter, _ = write_both(base, tmp_path)
    shutil.rmtree(base)
    with pytest.raises(SettingsError, match=r"holds an adapter alone, and its base '.*base' is gone"):
        check_model_path(str(adapter))


def test_a_base_that_was_changed_is_refused(base, tmp_path):
    adapter, _ = write_both(base, tmp_path)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingsError, match="holds an adapter of another model than"):
        open_float(str(adapter))


def test_adapter_and_base_may_move_together(base, tmp_path):
    adapter, _ = write_both(base, tmp_path / "runs")
    before = logits(adapter)
    other = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "runs", other / "runs")
    shutil.move(base, other / "base")
    assert torch.equal(logits(other / "runs" / "adapter_alone"), before)


def change_tensors(adapter, change):
    tensors = load_file(adapter / TENSORS)
    change(tensors)
    save_file(tensors, adapter / TENSORS)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda tensors: tensors.pop(sorted(tensors)[0]), "differ in tensor"),
        (lambda tensors: tensors.update({sorted(tensors)[0]: torch.zeros(3, 3)}), "could not be read"),
        (lambda tensors: tensors[sorted(tensors)[0]].fill_(float("nan")), "holds NaN or infinity"),
    ],
    ids=["missing", "another shape", "nan"],
)
def test_a_broken_adapter_is_refused(change, line, base, tmp_path):
    adapter, _ = write_both(base, tmp_path)
    change_tensors(adapter, change)
    with pytest.raises(SettingsError, match=line):
        open_float(str(adapter))


@pytest.mark.parametrize(
    ("file", "text"), [(TENSORS, "torn"), (BASE, "{}"), (BASE, "{"), ("adapter_config.json", "{}")]
)
def test_torn_files_end_in_one_line(file, text, base, tmp_path):
    adapter, _ = write_both(base, tmp_path)
    (adapter / file).write_text(text)
    with pytest.raises(SettingsError) as error:
        open_float(str(adapter))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_the_disk_needs_room_for_the_adapter_alone(base):
    network = trained_over(base, 0)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    settings = TRAINER.__class__(**{**vars(TRAINER), "lora": LORA, "save": "adapter"})
    assert size_on_disk(network, settings)[0] == 4 * trained


def test_an_adapter_alone_needs_an_adapter():
    with pytest.raises(SettingsError, match=r"trainer\.save=adapter needs trainer\.lora"):
        nlp.forget.main.compose(["trainer.save=adapter", "trainer.lora=null"])


ADAPTED = ["trainer.lora={r: 4, alpha: 8, dropout: 0.0}", "trainer.save=adapter"]


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["trainer.lora=null"], "needs trainer.lora"),
        ([ADAPTED[0]], "needs trainer.save=adapter"),
        ([*ADAPTED, "method=rmu"], "whole weights"),
        (ADAPTED, "model.quantize=4bit needs a CUDA GPU, and this machine has none"),
    ],
)
def test_quantized_weights_are_refused_where_they_cannot_serve(typed, line, monkeypatch):
    monkeypatch.setattr("settings.training.cuda_is_there", lambda: False)
    with pytest.raises(SettingsError, match=line):
        nlp.forget.main.compose(["model.quantize=4bit", *typed])


def test_a_plan_of_quantized_weights_needs_no_gpu():
    settings = nlp.forget.main.compose(["model.quantize=8bit", "plan=true", *ADAPTED])
    assert settings.model.quantize == "8bit"


def test_quantized_weights_have_no_effect_on_an_evaluation():
    with pytest.raises(SettingsError, match="has no effect on an evaluation"):
        nlp.eval.main.compose(["model.quantize=8bit"])


@pytest.mark.slow
def test_a_finetuned_adapter_is_made_to_forget_and_evaluated_like_the_merged_one(
    world, text_base, tmp_path, monkeypatch
):
    splits = ["data.splits.nlp={full: full, retain: retain90, forget: forget10}", "data.forget=forget10"]
    words = [f"data.text_path={world}/tofu", "data.made_by=''", *splits, f"model.path={text_base}", "model.made_by=''"]
    logs = []
    for kept in ("adapter", "merged"):
        taught, forgot = tmp_path / kept / "taught", tmp_path / kept / "forgot"
        own = [*QUICK, *words, ADAPTED[0], f"trainer.save={kept}"]
        assert start(nlp.finetune, [*own, f"save_dir={taught}"], monkeypatch) == 0
        assert start(nlp.forget, [*own, "method=npo", f"model_path={taught}", f"save_dir={forgot}"], monkeypatch) == 0
        quick = [*words, "max_new_tokens=4", "limit=4", f"model_path={forgot}"]
        assert start(nlp.eval, quick, monkeypatch) == 0
        log = json.loads((forgot / "eval_results" / "eval_log_aggregated.json").read_text())
        logs.append([task["avg_gt_loss"] for task in log.values()])
    assert logs[0] == logs[1]
