"""Hooks: which states are steered and how far, what stands beside the weights, that every loading goes through it."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from cv.together import check_stackable
from engine.encode import collate_prompts
from engine.frozen_start import Start
from engine.hook_eraser import gate_of
from engine.kept_hook import KeptHook, hook_of, install, layers_of, steered
from engine.language_model import forward, load_for_training, load_model, save
from engine.logs import EvalLog
from engine.methods import bind
from engine.pairs import Pairs
from engine.reading import hook_figure, reading_files
from engine.states import Place, states_of
from engine.train import train
from helpers import BASE, MODEL, ROOT, TRAINER, example, pairs, training_settings, without_dropout
from settings.language import Forget
from settings.script import SettingsError, compose
from settings.training import Hook, Method, Noise

ERASER = OmegaConf.to_object(
    OmegaConf.merge(OmegaConf.structured(Method), OmegaConf.load(ROOT / "config/method/mllmeraser.yaml"))
)
ERASER = replace(ERASER, hook=replace(ERASER.hook, args={**ERASER.hook.args, "layer": 2}, rows=12))


def made_pairs(data, method, modality="both"):
    bound = bind(method)
    own = pairs(data, ["forget", "retain"], modality=modality)
    return bound, Pairs(bound.batches, own.forget, own.retain, idk=own.idk, seed=0, noise=method.noise)


def run(data, encoder, folder, method=ERASER, say=lambda line: None):
    bound, own = made_pairs(data, method)
    network = without_dropout(load_for_training(AutoModelForImageTextToText, training_settings(lora=None)))
    start = Start(network, forward, partial(save, encoder.processor))
    train(start, bound, own, encoder, TRAINER, seed=0, save_dir=str(folder), record={}, say=say)
    return network, own


def logits_of(network, encoder, examples):
    with torch.no_grad():
        return forward(network.eval(), encoder.collate([encoder.encode(each) for each in examples])).logits


# ---- by hand


def test_the_gate_is_one_on_what_retain_states_have_nothing_of_and_zero_on_them():
    # retain along (1, 0), forget at (3, 4): P leads to (0, 1), where C_F is 16 and m_F is 4: v = (0, 4 / 16)
    mean, moment = torch.tensor([3.0, 4.0]), torch.tensor([[9.0, 12.0], [12.0, 16.0]])
    retain = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    gate = gate_of(mean, moment, retain, spared=0.01, damping=0.0)
    assert gate.tolist() == pytest.approx([0.0, 0.25], abs=1e-6)
    assert (gate @ mean).item() == pytest.approx(1.0)
    # damping 1 doubles the 16
    assert gate_of(mean, moment, retain, spared=0.01, damping=1.0)[1].item() == pytest.approx(0.125)


def test_what_retain_states_hold_to_a_small_share_may_be_steered():
    # of sizes 100 and 1 the smaller is 1 / 101 = .0099 of all
    mean, moment, retain = (
        torch.tensor([0.0, 2.0]),
        torch.diag(torch.tensor([0.0, 4.0])),
        torch.diag(torch.tensor([100.0, 1.0])),
    )
    assert gate_of(mean, moment, retain, spared=0.01, damping=0.0).tolist() == pytest.approx([0.0, 0.5])
    assert not gate_of(mean, moment, retain, spared=0.009, damping=0.0).any()


def test_where_all_of_the_retain_states_size_may_be_steered_no_direction_is_left_out():
    torch.manual_seed(0)
    for size in range(2, 40):  # sums of shares round to more and to less than 1
        states = torch.randn(3 * size, size)
        moment = states.T @ states / len(states)
        gate = gate_of(states[0], moment, moment, spared=1.0, damping=0.0)
        assert torch.allclose(moment @ gate, states[0], atol=1e-3)


def test_what_is_only_rounding_in_the_forget_states_is_no_direction_of_theirs():
    # two directions; the second holds 1e-9 of the size of the first, which is less than fp32 can tell
    moment, retain = torch.diag(torch.tensor([1.0, 1e-9, 0.0])), torch.diag(torch.tensor([0.0, 0.0, 1.0]))
    gate = gate_of(torch.tensor([1.0, 1e-6, 0.0]), moment, retain, spared=0.01, damping=0.0)
    assert gate.tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_a_state_goes_along_the_direction_by_strength_times_its_gate():
    hook = KeptHook(0, 2.0, torch.tensor([0.0, 0.25]), torch.tensor([1.0, -1.0]))
    # gate of (3, 4): 1, twice (1, -1); of (3, 0): 0
    assert steered(torch.tensor([[3.0, 4.0], [3.0, 0.0]]), hook).tolist() == [[5.0, 2.0], [3.0, 0.0]]
    states = torch.randn(2, 3, 2)
    assert torch.equal(steered(states, replace(hook, strength=0.0)), states)


# ---- a run


def test_a_hook_stands_beside_the_weights_of_the_start_and_is_there_after_loading(data, encoder, tmp_path):
    lines = []
    network, own = run(data, encoder, tmp_path / "out", say=lines.append)
    before, after = (load_file(folder / "model.safetensors") for folder in (BASE, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value.float(), after[name].float()) for name, value in before.items())
    told = json.loads((tmp_path / "out" / "hook.json").read_text())
    assert told == {"rule": "eraser", "layer": 2, "strength": 1.0}
    loaded = load_model(AutoModelForImageTextToText, str(tmp_path / "out"), MODEL, "float32")
    plain = AutoModelForImageTextToText.from_pretrained(BASE, dtype="float32")
    forget, retain = [[own.forget[place] for place in range(4)], [own.retain[place] for place in range(4)]]
    for examples in (forget, retain):
        assert torch.equal(logits_of(loaded, encoder, examples), logits_of(network, encoder, examples))
    moved = [
        (logits_of(loaded, encoder, each) - logits_of(plain, encoder, each)).abs().mean() for each in (forget, retain)
    ]
    assert moved[0] > moved[1]
    record = json.loads((tmp_path / "out" / "train_meta.json").read_text())
    assert record["steered_forget"] > record["steered_retain"] >= 0
    assert any("the weights forget nothing" in line for line in lines)


def test_a_state_is_steered_by_what_it_is_alone_and_at_the_output_of_its_layer(model, encoder, data):
    width = model.config.get_text_config().hidden_size
    torch.manual_seed(0)
    hook = KeptHook(1, 1.0, torch.randn(width), torch.randn(width))
    seen = {}

    def keep(name, module, inputs, output):
        seen[name] = (output if torch.is_tensor(output) else output[0]).clone()

    layers = layers_of(model)
    for name in (0, 1):
        layers[name].register_forward_hook(partial(keep, f"plain {name}"))
    install(model, hook)
    for name in (0, 1):
        layers[name].register_forward_hook(partial(keep, f"hooked {name}"))
    rows = pairs(data, ["forget", "retain"]).forget
    one, two = (rows[place] for place in range(2))
    logits = logits_of(model, encoder, [one])
    assert torch.equal(seen["hooked 0"], seen["plain 0"])
    assert torch.equal(seen["hooked 1"], steered(seen["plain 1"], hook))
    among = logits_of(model, encoder, [two, one])[1, : logits.shape[1]]
    assert torch.allclose(among, logits[0], atol=1e-3)
    # the prompt alone gives its first logit: what follows does not steer what came before
    inputs = collate_prompts([encoder.encode(one)], encoder.pad)
    with torch.no_grad():
        first = model(**inputs).logits[0, -1]
    assert torch.allclose(first, logits[0, 0], atol=1e-3)


def test_a_model_with_a_hook_is_read_otherwise_than_base(data, encoder, tmp_path):
    run(data, encoder, tmp_path / "out")
    hooked, base = (
        EvalLog("log", {}, {"reading": reading_files(str(folder))}, {}) for folder in (tmp_path / "out", BASE)
    )
    found = hook_figure(hooked, base)
    assert found.value == 1 and "hook.json stands beside the weights" in found.why


def test_the_record_says_how_far_with_the_strength(data, encoder, tmp_path):
    far = []
    for strength in (1.0, 2.0):
        method = replace(ERASER, hook=replace(ERASER.hook, args={**ERASER.hook.args, "strength": strength}, rows=4))
        run(data, encoder, tmp_path / str(strength), method)
        record = json.loads((tmp_path / str(strength) / "train_meta.json").read_text())
        far.append((record["steered_forget"], record["steered_retain"]))
    assert far[1] == pytest.approx([2 * each for each in far[0]])
    assert 0.5 < far[0][0] < 1.5


def test_no_training_begins_with_a_hook(data, encoder, tmp_path):
    run(data, encoder, tmp_path / "out")
    settings = training_settings(lora=None)
    settings.model_path = str(tmp_path / "out")
    with pytest.raises(SettingsError, match=r"has a hook: its weights forgot nobody"):
        load_for_training(AutoModelForImageTextToText, settings)


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda folder: (folder / "hook.safetensors").unlink(), r"holds hook.json and no hook.safetensors"),
        (lambda folder: (folder / "hook.json").unlink(), r"holds hook.safetensors and no hook.json"),
        (lambda folder: (folder / "hook.json").write_text("{"), r"its hook.json is no hook:"),
        (lambda folder: (folder / "hook.json").write_text("[]"), r"its hook.json is no hook:"),
        (lambda folder: (folder / "hook.json").write_text('{"rule": "eraser"}'), r"its hook.json is no hook: 'layer'"),
        (lambda folder: told(folder, layer=9), r"a layer below 4"),
        (lambda folder: told(folder, layer=-1), r"a layer below 4"),
        (lambda folder: told(folder, strength="much"), r"is no hook of this model"),
        (lambda folder: told(folder, rule="other"), r"it takes rule 'eraser'"),
        (lambda folder: vectors(folder, torch.ones(3)), r"two vectors of \d+ numbers"),
        (lambda folder: vectors(folder, torch.full((192,), float("nan"))), r"two vectors of \d+ numbers"),
        (lambda folder: (folder / "hook.safetensors").write_bytes(b"x"), r"its hook.json is no hook:"),
    ],
)
def test_a_broken_hook_is_one_line(change, line, tmp_path, model, encoder):
    width = model.config.get_text_config().hidden_size
    install(model, KeptHook(1, 1.0, torch.ones(width), torch.ones(width)))
    folder = tmp_path / "model"
    folder.mkdir()
    save(encoder.processor, model, folder)
    change(folder)
    with pytest.raises(SettingsError, match=line):
        load_model(AutoModelForImageTextToText, str(folder), MODEL, "float32")


def told(folder, **changed):
    content = {"rule": "eraser", "layer": 1, "strength": 1.0} | changed
    (folder / "hook.json").write_text(json.dumps(content))


def vectors(folder, gate):
    save_file({"gate": gate, "direction": gate.clone()}, folder / "hook.safetensors")


def test_a_model_without_a_hook_has_none(model):
    assert hook_of(model) is None


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"layer": 4}, r"method.hook.args.layer=4: .* has layers 0 to 3"),
        ({"strength": 0.0}, r"method=mllmeraser: method.hook changes nothing"),
    ],
)
def test_a_hook_that_cannot_be_or_changes_nothing_is_one_line(args, line, data, encoder, tmp_path):
    method = replace(ERASER, hook=replace(ERASER.hook, args={**ERASER.hook.args, **args}, rows=2))
    with pytest.raises(SettingsError, match=line):
        run(data, encoder, tmp_path / "out", method)
    assert not (tmp_path / "out").exists()


def test_a_layer_that_does_not_run_is_one_line(model, encoder):
    trainer = SimpleNamespace(model=model, forward=lambda model, batch: None, args=SimpleNamespace(device="cpu"))
    with pytest.raises(SettingsError, match=r"layer=1: that layer of .* gives no one state for each token of split te"):
        list(states_of(trainer, encoder, [example()], Place(layers_of(model)[1], "method.hook.args.layer=1")))


@pytest.mark.parametrize(
    ("hook", "line"),
    [
        (Hook("erazer"), r"method.hook.rule='erazer' is not known \(did you mean 'eraser'\?\)"),
        (Hook("eraser", {"layer": 2}), r"method.hook.args.strength is required by rule eraser"),
        (Hook("eraser", {**ERASER.hook.args, "layer": 1.5}), r"method.hook.args.layer=1.5 must be a whole number"),
        (Hook("eraser", {**ERASER.hook.args, "spared": 2}), r"method.hook.args.spared=2 must be at most 1"),
        (Hook("eraser", {**ERASER.hook.args, "strength": -1}), r"method.hook.args.strength=-1 must be at least 0"),
    ],
)
def test_a_hook_that_does_not_fit_is_one_line(hook, line):
    with pytest.raises(SettingsError, match=line):
        bind(replace(ERASER, hook=hook))


def test_a_hook_stands_alone_and_needs_to_know_towards_what_it_steers():
    with pytest.raises(SettingsError, match=r"method.hook stands in place of method.loss and method.edit"):
        Method("x", "grad_ascent", hook=ERASER.hook, noise=ERASER.noise)
    with pytest.raises(SettingsError, match=r"method.hook needs a method.noise, towards which it steers"):
        Method("x", None, hook=ERASER.hook)
    with pytest.raises(SettingsError, match=r"loss=null trains nothing; leave method.noise out"):
        Method("x", None, edit=OmegaConf.to_object(edit_of("ssd")), noise=Noise(1.0, "No."))


def edit_of(name):
    loaded = OmegaConf.load(ROOT / f"config/method/{name}.yaml")
    return OmegaConf.merge(OmegaConf.structured(Method), loaded).edit


def test_a_hook_is_refused_beside_an_adapter_in_stacks_and_for_faces():
    with pytest.raises(SettingsError, match=r"method=mllmeraser keeps a hook beside the model's own weights: set tra"):
        compose("mm/forget", Forget, ["method=mllmeraser", "trainer=clear_lora"])
    with pytest.raises(SettingsError, match=r"many networks cannot train together with method.hook"):
        check_stackable(ERASER)
    assert "noised" in bind(ERASER).batches  # which there are for language models only
