"""The plan of a training's memory: what is counted is what the settings train, and nothing is loaded for it."""

import gc
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from engine import memory
from engine.memory import Counted, Need, Shape, need_of, parts_ddp, parts_fsdp2, parts_zero2, parts_zero3
from engine.memory_page import Row, fits
from engine.methods import OF_FACES
from helpers import BASE, ROOT, start
from nlp import forget as nlp_forget
from settings.script import SettingsError, choices

SHAPE = Shape(length=24, answer=8, source="a test")
LORA = "trainer.lora={r: 4, alpha: 8, dropout: 0.0}"


def settings_of(folder, *overrides):
    own = ["model.made_by=''", f"model_path={folder}", "trainer.batch_size=2", *overrides]
    return nlp_forget.main.compose(own)


def need(folder, *overrides):
    settings = settings_of(folder, *overrides)
    return need_of(settings, AutoModelForCausalLM, AutoConfig.from_pretrained(folder), SHAPE)


@pytest.fixture(scope="module")
def sizes(text_base):
    """Weights of the tiny language model, and those of them that are no linear layer: its embedding and its norms."""
    model = AutoModelForCausalLM.from_pretrained(text_base)
    every = sum(weight.numel() for weight in model.parameters())
    projections = [name for name, _ in model.named_parameters() if "_proj" in name]
    return every, every - sum(model.get_parameter(name).numel() for name in projections)


def test_full_training_needs_fp32_weights_gradients_and_two_moments(text_base, sizes):
    every, _ = sizes
    found = need(text_base)
    assert (found.weights, found.gradients, found.optimizer) == (4 * every, 4 * every, 8 * every)
    assert found.reference == 0  # npo compares with log-probabilities, which are computed once


def test_a_frozen_copy_counts_its_linear_layers_in_half_under_bf16(text_base, sizes):
    every, others = sizes
    assert need(text_base, "method=kl").reference == 4 * every
    halved = need(text_base, "method=kl", "trainer.precision=bf16")
    assert halved.reference == 2 * (every - others) + 4 * others


def test_an_adapter_trains_alone_over_weights_of_their_own_precision_without_a_copy(text_base, sizes):
    every, _ = sizes
    found = need(text_base, LORA, "method=kl")
    # r * (in + out) of each of the four layers' seven projections: hidden 192, intermediate 512
    adapter = 4 * 4 * (4 * (192 + 192) + 3 * (192 + 512))
    assert found.trained == adapter and found.gradients == 4 * adapter and found.reference == 0
    half = need(text_base, LORA, "model.weights=bfloat16", "trainer.precision=bf16")
    assert half.weights == 2 * every + 4 * adapter


def test_checkpointing_changes_activations_alone(text_base):
    kept, again = need(text_base), need(text_base, "trainer.gradient_checkpointing=true")
    assert again.activations < kept.activations and again.peak <= kept.peak
    assert replace(again, activations=0, step=0) == replace(kept, activations=0, step=0)


def test_gradients_are_there_in_the_second_of_several_batches(text_base):
    one, two = need(text_base), need(text_base, "trainer.accumulation=2")
    assert two.step == two.activations + two.gradients > one.step


def test_a_batch_twice_as_large_needs_about_twice_the_activations(text_base):
    one, two = need(text_base), need(text_base, "trainer.batch_size=4")
    assert 1.6 < two.activations / one.activations < 2.1  # the gradient of the embedding is as large for both


def test_the_count_without_numbers_is_that_of_the_step_with_numbers(text_base, monkeypatch):
    without = need(text_base, "trainer.precision=fp32")
    monkeypatch.setattr(memory, "as_if_held", lambda network: network)
    monkeypatch.setattr(memory, "FakeTensorMode", lambda **options: torch.enable_grad())
    real = AutoModelForCausalLM.from_pretrained(text_base, dtype="float32", attn_implementation="sdpa")
    monkeypatch.setattr(memory, "model_without_weights", lambda *given: real)
    gc.collect()
    counted = need(text_base, "trainer.precision=fp32")
    assert counted.activations == pytest.approx(without.activations, rel=0.05)


def test_a_freed_tensor_no_longer_counts():
    counted = Counted([])
    with counted:
        first = torch.ones(1000)
        del first
        second = torch.ones(500)
    assert counted.most == 4000 and counted.live == 2000 and len(second) == 500


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(choices("method"))))
def test_every_method_of_language_models_can_be_planned(method, text_base):
    settings = settings_of(text_base)
    try:
        own = ["trainer=tofu_lora", "method.init=null"] if method == "fila" else []  # it begins adapters
        settings = settings_of(text_base, f"method={method}", *own, "trainer.weight_decay=0")
        memory.bind(settings.method)
    except ValueError:
        pytest.skip("not for language models")
    if settings.method.activations:
        settings.method.activations = replace(settings.method.activations, layer=2, trained=[1, 2])
        settings.method.mask = None  # the whole model, at which it looks, is not counted
    if {*OF_FACES} & {*memory.bind(settings.method).batches}:
        with pytest.raises(ValueError, match="in face recognition only"):
            need_of(settings, AutoModelForCausalLM, AutoConfig.from_pretrained(text_base), SHAPE)
        return
    if not settings.method.trained_losses():
        with pytest.raises(ValueError, match="trains nothing"):
            need_of(settings, AutoModelForCausalLM, AutoConfig.from_pretrained(text_base), SHAPE)
        return
    found = need_of(settings, AutoModelForCausalLM, AutoConfig.from_pretrained(text_base), SHAPE)
    assert found.peak > found.weights > 0 and found.activations > 0


def test_of_a_traced_method_the_mlps_alone_train_in_a_plan(text_base):
    config = AutoConfig.from_pretrained(text_base)
    settings = settings_of(text_base, "method=pava", "method.trace.layers=2")
    found = need_of(settings, AutoModelForCausalLM, config, SHAPE)
    assert found.trained == 2 * 3 * config.hidden_size * config.intermediate_size < found.all_weights
    settings = settings_of(text_base, "method=pava", "method.trace.layers=9")
    with pytest.raises(SettingsError, match=r"method.trace.layers=9: LlamaForCausalLM has 4 layers"):
        need_of(settings, AutoModelForCausalLM, config, SHAPE)


def test_a_plan_does_not_count_a_model_that_is_whole_while_a_mask_is_chosen_and_says_so(text_base):
    settings = settings_of(text_base, "method=mip_editor", "trainer.weight_decay=0")
    with pytest.raises(SettingsError, match=r"^plan: the whole model, at which .* method.mask=null plans the training"):
        need_of(settings, AutoModelForCausalLM, AutoConfig.from_pretrained(text_base), SHAPE)


# ---- shares of several GPUs, by hand: a thousand weights in fp32, of which all train

ALONE = Need(
    weights=4000,
    gradients=4000,
    optimizer=8000,
    reference=500,
    activations=300,
    step=4200,
    update=4000,
    all_weights=1000,
    trained=1000,
    gathered=100,
)


def test_one_gpu_peaks_where_the_optimizer_steps_or_in_the_backward_pass():
    assert ALONE.peak == 4000 + 8000 + 500 + (4000 + 4000)  # beside the gradients a copy of them
    assert replace(ALONE, step=9000).peak == 4000 + 8000 + 500 + 9000


def test_ddp_holds_the_gradients_twice():
    assert parts_ddp(ALONE)["gradients"] == 8000 and parts_ddp(ALONE)["peak"] == ALONE.peak + 4000


def test_fsdp2_shares_everything_out_but_what_is_in_use():
    parts = parts_fsdp2(ALONE, ALONE, 4, half=False)
    # of weights and reference a quarter, and the 100 weights that are gathered for a pass
    assert [parts[name] for name in ("weights", "reference")] == [4000 / 4 + 400, 500 / 4 + 400]
    assert [parts[name] for name in ("gradients", "optimizer")] == [1000, 2000]
    assert parts["peak"] == 1400 + 525 + 1000 + 2000 + 1000  # the step of the optimizer: 4000 / 4
    assert parts_fsdp2(replace(ALONE, reference=0), ALONE, 4, half=False)["reference"] == 0


def test_zero2_has_whole_weights_in_half_and_a_share_of_fp32_weights_and_moments():
    parts = parts_zero2(ALONE, ALONE, 4, half=True)
    # gradients: a share of 2000, and the bucket in which they are summed, which has room for 5 * 10^8
    assert [parts[name] for name in ("weights", "gradients", "optimizer")] == [2000, 500 + 10**9, (8000 + 4000) / 4]
    assert parts["reference"] == 500


def test_zero3_shares_the_weights_out_too():
    parts = parts_zero3(ALONE, ALONE, 4, half=True)
    assert parts["weights"] == 500 + 2000  # those in use: fewer than 10^9
    assert parts["reference"] == 125 + 2000


def test_a_plan_fits_where_a_tenth_of_the_gpu_is_left():
    row = Row("one GPU", 1, {}, (0, 0), (21.7e9, 21.5e9))
    assert [fits(row, size) for size in (24, 48)] == ["again", "yes"]
    assert fits(row._replace(peaks=(90e9, 80e9)), 80) == "no"


# ---- the command


def plan(folder, capfd, monkeypatch, *more):
    overrides = ["plan=true", "model.made_by=''", f"model_path={folder}", "save_dir=models/never", *more]
    code = start(nlp_forget, overrides, monkeypatch)
    return code, capfd.readouterr()


def test_a_plan_is_the_same_page_again_needs_no_weights_and_writes_nothing(text_base, tmp_path, capfd, monkeypatch):
    shutil.copy(text_base / "config.json", tmp_path)
    pages = [plan(tmp_path, capfd, monkeypatch, "data.made_by=''")[1].out for _ in range(2)]
    assert pages[0] == pages[1] and len(pages[0].splitlines()) < 50
    for part in ("weights", "gradients", "optimizer", "reference", "activations", "peak", "24 GB", "on disk"):
        assert part in pages[0]
    for way in ("one GPU", "DDP", "FSDP2", "ZeRO-2", "ZeRO-3", "ZeRO-3 offload"):
        assert way in pages[0]
    assert "stated" in pages[0] and not Path("models/never").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_plan_reads_the_longest_row_where_data_and_tokenizer_are_there(text_base, data, capfd, monkeypatch):
    rows = [f"data.path={data.text_path}", "split=forget10", "retain_split=retain90", "data.made_by=''"]
    _, said = plan(text_base, capfd, monkeypatch, *rows)
    assert "the longest rows of forget10 and retain90" in said.out


def test_a_hub_id_that_is_not_on_disk_is_refused_in_one_line(capfd, monkeypatch):
    code, said = plan("nobody/nothing", capfd, monkeypatch, "model.path=nobody/nothing")
    assert code == 1 and said.err.count("\n") == 1 and "model_path='nobody/nothing' could not be loaded" in said.err


def test_a_model_that_is_still_to_be_trained_is_planned_by_its_start(capfd, monkeypatch, text_base):
    _, said = plan("models/not/there", capfd, monkeypatch, f"model.path={text_base}", "data.made_by=''")
    assert str(text_base) in said.out


def test_a_model_that_sees_is_planned_with_the_tokens_of_a_picture(data):
    from mm import finetune

    own = [f"data.path={ROOT}/nowhere", "data.made_by=''", f"model_path={BASE}"]
    settings = finetune.main.compose(own)
    config = AutoConfig.from_pretrained(BASE)
    shape = memory.shape_of(settings, config, None)
    assert shape.length == 256 + memory.picture_tokens(config) and "of a picture" in shape.source
    assert need_of(settings, AutoModelForImageTextToText, config, SHAPE).trained < 2.5e6
