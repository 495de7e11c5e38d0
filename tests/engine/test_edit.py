"""Edits of weights: hand numbers of their rules, what the statistics are of, and which weights a run changes."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from cv.face_settings import ForgetFaces
from cv.network import FaceNetwork, Shape
from cv.together import check_stackable
from engine.activity import Activity
from engine.edit_ct import transpose
from engine.edit_gradient import edit_along_gradient, go_farthest
from engine.edit_kvw import weaken
from engine.edit_manu import contrast, difference, prune
from engine.edit_repselect import collapse
from engine.edit_ssd import dampen
from engine.edit_statistics import activity, heard, mlps_of, moments, scale_neurons
from engine.edit_step import edit_weights, head_weights
from engine.edits import EditRule
from engine.frozen_start import Start
from engine.language_model import forward, load_for_training, save
from engine.loss_trainer import LossTrainer
from engine.methods import bind
from engine.pairs import drawn_of
from engine.train import train
from helpers import BASE, ROOT, TRAINER, Few, example, largest_difference, pairs, training_settings, without_dropout
from settings.language import Forget
from settings.script import SettingsError, compose
from settings.training import Edit, Mask, Method, TaskVector
from unlearn_losses import nll


def of_file(name):
    loaded = OmegaConf.merge(OmegaConf.structured(Method), OmegaConf.load(ROOT / f"config/method/{name}.yaml"))
    return OmegaConf.to_object(loaded)


SSD, MANU, KVW, CT = of_file("ssd"), of_file("manu"), of_file("kvw"), of_file("ct")
REPSELECT = of_file("repselect")
REPSELECT = replace(REPSELECT, edit=replace(REPSELECT.edit, args={**REPSELECT.edit.args, "components": 4}))
KVW = replace(KVW, edit=replace(KVW.edit, args={**KVW.edit.args, "spared_layers": 1}))  # of four layers
MANU = replace(MANU, edit=replace(MANU.edit, args={"share": 0.05, "threshold": 0.01}))
NEURONS = {"manu": MANU, "kvw": KVW}


def active(*sizes, signed=None, square=None, often=None):
    size = torch.tensor(sizes)
    given = [torch.tensor(each) if each is not None else size for each in (signed, square, often)]
    return Activity(size, *given)


def run(data, encoder, folder, method, settings=TRAINER, *, say=lambda line: None, modality="both"):
    bound = bind(method)
    network = without_dropout(load_for_training(AutoModelForImageTextToText, training_settings(lora=settings.lora)))
    start = Start(network, forward, partial(save, encoder.processor))
    few = Few(pairs(data, bound.batches, modality=modality), 6)
    train(start, bound, few, encoder, settings, seed=0, save_dir=str(folder), record={}, say=say)
    return network, load_file(folder / "model.safetensors")


# ---- rules by hand


def test_a_weight_that_matters_far_more_for_forget_rows_is_damped():
    # 8 > 10 * .5: times .5 / 8; 4 < 10 * .5 stays; 0 and 0 are not compared; 8 against 0 becomes 0
    weight, forget = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([8.0, 4.0, 0.0, 8.0])
    new = dampen(weight, forget, torch.tensor([0.5, 0.5, 0.0, 0.0]), alpha=10.0, damping=1.0)
    assert new.tolist() == [0.0625, 1.0, 1.0, 0.0]
    # a larger lambda damps less, and never makes a weight grow: .9 * 4 / 8; min(.9 * 4 / 4.4, 1) < 1
    new = dampen(torch.tensor([2.0]), torch.tensor([8.0]), torch.tensor([4.0]), alpha=1.0, damping=0.9)
    assert new.item() == pytest.approx(2 * 0.45)


def test_a_neuron_that_is_more_active_on_forget_rows_writes_less():
    # exp(-.02 * log(.4 / .1)) = 4^-.02 = .97265
    (factor,) = weaken([active(0.4, 0.1, 0.1, 0.0)], [active(0.1, 0.1, 0.4, 0.0)], **kvw(0.02))
    assert factor.tolist() == [pytest.approx(0.97265, abs=1e-5), 1.0, 1.0, 1.0]
    (factor,) = weaken([active(0.4)], [active(0.0)], **kvw(0.02))
    assert factor.item() == 0.0


def kvw(strength, first_layer=0, spared_layers=0):
    return {"strength": strength, "first_layer": first_layer, "spared_layers": spared_layers}


def test_a_strength_of_zero_and_layers_outside_the_range_change_nothing():
    forget, retain = [active(0.4, 0.2)] * 4, [active(0.1, 0.0)] * 4
    assert all((factor == 1).all() for factor in weaken(forget, retain, **kvw(0.0)))
    factors = weaken(forget, retain, **kvw(1.0, first_layer=1, spared_layers=2))
    assert [bool((factor == 1).all()) for factor in factors] == [True, False, True, True]


def test_what_a_neuron_tells_apart_is_the_sum_of_four_measures():
    pictures, words = active(0.3, signed=[0.1], square=[0.2], often=[0.5]), active(0.1, signed=[0.1], square=[0.05])
    # |.3 - .1| / .4 = .5; |.5 - .1| / .6 = .66667; V = .2 - 2 * .3 * .1 + .09 = .23 and .05 - 2 * .1 * .1 + .01 = .04:
    # sqrt(.27) = .51962; sqrt(|.2 - .05| / .25) = .77460
    assert difference(pictures, words).item() == pytest.approx(0.5 + 0.66667 + 0.51962 + 0.77460, abs=1e-4)
    assert contrast(torch.zeros(1), torch.zeros(1)).item() == 0.0


def test_the_share_of_the_neurons_with_the_largest_ratio_is_removed_and_ties_go_to_the_first():
    one, other, same = active(0.4, 0.2, 0.2), active(0.1, 0.1, 0.1), active(0.1, 0.1, 0.1)
    # of two layers of three neurons: floor(.5 * 6) = 3, the first of each layer and the next of the first
    factors = prune([one, one], [other, other], [same, same], [other, other], share=0.5)
    assert [factor.tolist() for factor in factors] == [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    factors = prune([one, one], [other, other], [same, same], [other, other], share=0.16)  # floor(.96) = 0
    assert all((factor == 1).all() for factor in factors)


def test_a_neuron_that_is_silent_on_forget_rows_is_never_removed():
    silent, some = active(0.0, 0.0), active(0.1, 0.0)
    (factor,) = prune([some], [silent], [some], [some], share=1.0)
    assert factor.tolist() == [0.0, 1.0]


def test_the_largest_singular_values_of_a_gradient_shrink_to_the_smallest_of_them():
    # of diag(8, 2, 1) the first two become 2 and 2; one alone, or equal ones, stay
    made = collapse(torch.diag(torch.tensor([8.0, 2.0, 1.0])), components=2)
    assert torch.allclose(made, torch.diag(torch.tensor([2.0, 2.0, 1.0])), atol=1e-6)
    rank_one = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0, 4.0]))
    assert torch.allclose(collapse(rank_one, components=1), rank_one, atol=1e-5)
    same = torch.diag(torch.tensor([3.0, 3.0, 1.0]))
    assert torch.allclose(collapse(same, components=2), same, atol=1e-5)
    assert torch.equal(collapse(torch.zeros(2, 3), components=2), torch.zeros(2, 3))


def test_singular_values_that_are_rounding_are_never_what_the_largest_shrink_to():
    torch.manual_seed(0)
    rank_two = torch.randn(8, 2) @ torch.randn(2, 6)
    assert torch.linalg.matrix_rank(collapse(rank_two, components=2)) == 2
    line = r"components=3 is more than the 2 singular values that a gradient of these rows has above rounding"
    with pytest.raises(ValueError, match=line):
        collapse(rank_two, components=3)


def test_weights_go_as_far_as_the_budget_allows():
    # length 5 of (3, 4) along (0, 1): cost (w1 - 4)^2 <= .09 is reached at w1 = 4.3, .3 / 5 = .06 lengths
    weight = torch.tensor([3.0, 4.0])
    length, cost = go_farthest([weight], [torch.tensor([0.0, 7.0])], lambda: (weight[1].item() - 4) ** 2, 0.09)
    assert (length, weight[1].item()) == (pytest.approx(0.06, rel=1e-2), pytest.approx(4.3, rel=1e-3))
    assert cost <= 0.09
    assert go_farthest([weight], [torch.zeros(2)], lambda: 0.0, 0.1) == (0.0, 0.0)
    assert go_farthest([weight], [torch.ones(2)], lambda: float("nan"), 0.1)[0] == 0.0


def test_kernels_are_transposed_and_those_of_one_pixel_stay():
    weight = torch.arange(8.0).view(2, 1, 2, 2)
    assert transpose(weight)[0, 0].tolist() == [[0.0, 2.0], [1.0, 3.0]]
    one = torch.ones(3, 2, 1, 1)
    assert torch.equal(transpose(one), one)


# ---- statistics


def test_moments_are_of_the_answers_positions():
    # |z| 1 and 3: mean 2; z -1 and 3: 1; z^2 1 and 9: 5; above 2: half
    assert moments(torch.tensor([[-1.0], [3.0]]), 2.0).flatten().tolist() == [2.0, 1.0, 5.0, 0.5]
    one = Activity(*moments(torch.tensor([[-1.0], [3.0]]), 2.0))
    assert one.around_size.item() == pytest.approx(((-1 - 2) ** 2 + (3 - 2) ** 2) / 2)


def test_neurons_are_heard_where_the_answer_is_predicted_and_rows_count_alike(data, encoder, model):
    mlps = mlps_of(model, "kvw")
    rows = [example(answer="Ann Lee."), example(question="Where is he from?", answer="He came from a far away town.")]
    measured = activity(model, forward, encoder, rows, mlps=mlps, threshold=0.0)
    means = []
    for row in rows:
        encoded = encoder.encode(row)
        batch = encoder.collate([encoded])
        with heard([mlp.down for mlp in mlps]) as seen, torch.no_grad():
            model(**batch.inputs)
        # the positions before each answer token are the last ones of the row
        means.append([values[0, -len(encoded.answer) :].abs().mean(0) for values in seen])
    for number, each in enumerate(measured):
        assert torch.allclose(each.size, (means[0][number] + means[1][number]) / 2, atol=1e-6)
    assert not torch.allclose(measured[0].size, means[0][0], atol=1e-4)


def test_the_head_of_a_language_model_and_of_a_face_network_is_what_names_answers(model):
    assert [id(each) for each in head_weights(model)] == [id(model.get_output_embeddings().weight)]
    network = FaceNetwork(Shape(4, 8), 3)
    assert [id(each) for each in head_weights(network)] == [id(network.classes)]


def test_ssd_weighs_what_forget_and_retain_rows_say_of_a_weight_by_those_that_go_through_it():
    class Toy(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen, self.read = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

        def head_weights(self):
            return []

    def loss_of_rows(bound, items, encoder, *, precise):
        size, pictured = items[0]["forget"][0]
        return (size * toy.seen if pictured else size * toy.read).sum()

    toy, everything = Toy(), []
    trainer = SimpleNamespace(model=toy, loss_of_rows=loss_of_rows)
    trainer.taken_gradients = partial(LossTrainer.taken_gradients, trainer)
    trainer.squared_gradients = partial(LossTrainer.squared_gradients, trainer)
    # the 10 forget rows are pictures; of 90 retain rows 10 were drawn, one of them with a picture
    rows = {"forget": [(2.0, True)] * 10, "retain": [(1.0, True), *[(3.0, False)] * 9]}
    rule = EditRule(lambda weight, f, every: everything.append(every.item()) or weight, edits="weights")
    edit_weights(trainer, rule, rows, None, {"forget": 10, "retain": 90})
    # through `seen` go 10 rows of 2^2 and about 9 of 1^2; through `read` rows of 3^2 alone
    assert everything == [pytest.approx((10 * 4 + 9 * 1) / 19), pytest.approx(9.0)]


# ---- neurons of several families

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
FAMILIES = {
    "gates": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=24, num_key_value_heads=2, mlp_bias=True)),
    "fused": lambda: Phi3ForCausalLM(Phi3Config(**SMALL, intermediate_size=24, num_key_value_heads=2, pad_token_id=0)),
    "transposed": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_inner=24)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_neurons_write_as_much_less_and_removed_ones_stay_silent(family):
    torch.manual_seed(0)
    network = FAMILIES[family]().eval()
    mlps, tokens = mlps_of(network, "kvw"), torch.arange(1, 9)[None]
    factor = torch.ones(24)
    factor[3], factor[5] = 0.5, 0.0

    def scaled(module, inputs):
        return (inputs[0] * factor,)

    with torch.no_grad():
        before = network(tokens).logits
        hooks = [mlp.down.register_forward_pre_hook(scaled) for mlp in mlps]
        wanted = network(tokens).logits
        for hook in hooks:
            hook.remove()
        scale_neurons(mlps, [factor] * 2)
        with heard([mlp.down for mlp in mlps]) as seen:
            made = network(tokens).logits
    assert torch.allclose(made, wanted, atol=1e-5)
    assert not torch.allclose(made, before, atol=1e-4)
    assert all((values[..., 5] == 0).all() and (values[..., 3] != 0).any() for values in seen)


def test_a_removed_neuron_gets_no_gradient():
    torch.manual_seed(0)
    network = FAMILIES["gates"]()
    mlps = mlps_of(network, "kvw")
    factor = torch.ones(24)
    factor[5] = 0.0
    scale_neurons(mlps, [factor] * 2)
    network(torch.arange(1, 9)[None]).logits.square().sum().backward()
    for mlp in mlps:
        assert mlp.down.weight.grad[:, 5].abs().sum() == 0
        assert all(linear.weight.grad[5].abs().sum() == 0 for linear in mlp.into)


# ---- runs


@pytest.mark.parametrize("method", [SSD, MANU, KVW, REPSELECT], ids=["ssd", "manu", "kvw", "repselect"])
def test_an_edit_trains_nothing_and_what_is_saved_is_what_was_edited(method, data, encoder, tmp_path):
    lines = []
    settings = replace(TRAINER, batch_size=2, lr=1.0)  # a step of this rate would move everything
    network, saved = run(data, encoder, tmp_path / "out", method, settings, say=lines.append)
    start = load_file(BASE / "model.safetensors")
    moved = {name for name in saved if not torch.equal(saved[name], start[name].float())}
    assert moved
    if method is SSD:
        assert "lm_head.weight" not in moved
    else:
        assert all("language_model" in name and ".mlp." in name for name in moved)
        assert {name.split(".mlp.")[1] for name in moved} == {
            "manu": {"down_proj.weight", "gate_proj.weight", "up_proj.weight"},
            "kvw": {"down_proj.weight"},
            "repselect": {"down_proj.weight", "gate_proj.weight", "up_proj.weight"},
        }[method.name]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="float32").eval()
    batch = encoder.collate([encoder.encode(example())])
    with torch.no_grad():
        one, other = forward(network.eval(), batch).logits, forward(again, batch).logits
    assert torch.allclose(one, other, atol=1e-6)
    assert any(line.startswith(f"{method.name}: the edit changes") for line in lines)
    record = json.loads((tmp_path / "out" / "train_meta.json").read_text())
    assert (record["steps"], 0 < record["edited"] <= 1) == (0, True)
    assert "loss" not in record and "figure" not in record  # a page draws no curve of it


@pytest.mark.parametrize("method", [SSD, MANU, KVW, REPSELECT], ids=["ssd", "manu", "kvw", "repselect"])
def test_an_edit_does_not_depend_on_the_batch_size_or_on_autocast(method, data, encoder, tmp_path):
    settings = [replace(TRAINER, batch_size=1), replace(TRAINER, batch_size=8, precision="bf16")]
    made = [run(data, encoder, tmp_path / str(n), method, each)[1] for n, each in enumerate(settings)]
    assert largest_difference(*made) == 0


def test_an_edit_may_come_before_a_training_whose_reference_is_the_start(data, encoder, tmp_path, monkeypatch):
    both = Method("both", "kl", edit=KVW.edit)
    losses = []
    real = LossTrainer.loss_of

    def heard_loss(self, passes, **state):
        parts = real(self, passes, **state)
        losses.append(parts.retain.item())
        return parts

    monkeypatch.setattr(LossTrainer, "loss_of", heard_loss)
    run(data, encoder, tmp_path / "out", both, replace(TRAINER, lr=0.0))
    assert losses[0] > 1e-4  # KL from the start as it was before the edit


def test_a_task_vector_subtracts_what_was_learned_and_not_the_edit_before_it(data, encoder, tmp_path):
    _, edited = run(data, encoder, tmp_path / "edited", KVW)
    both = Method("both", "learn_forget", edit=KVW.edit, task_vector=TaskVector(1.0))
    _, unlearned = run(data, encoder, tmp_path / "both", both, replace(TRAINER, lr=0.0))
    assert largest_difference(edited, unlearned) == 0


def test_an_edit_that_changes_nothing_is_refused(data, encoder, tmp_path):
    none = replace(SSD, edit=replace(SSD.edit, args={"alpha": 1e9, "damping": 1.0}))
    with pytest.raises(SettingsError, match=r"method=ssd: method.edit changes nothing, nothing would forget"):
        run(data, encoder, tmp_path / "out", none)


def test_repselect_raises_the_forget_loss_and_keeps_to_its_budget(data, encoder, tmp_path):
    network, _ = run(data, encoder, tmp_path / "out", REPSELECT)
    start = load_for_training(AutoModelForImageTextToText, training_settings())
    rows = Few(pairs(data, ["forget"]), 6)
    batch = encoder.collate([encoder.encode(rows[key]["forget"][0]) for key in range(6)])
    with torch.no_grad():
        before, after = (nll(forward(each.eval(), batch)).item() for each in (start, network))
    assert after > before
    record = json.loads((tmp_path / "out" / "train_meta.json").read_text())
    assert 0.005 < record["kl"] <= REPSELECT.edit.args["kl_budget"]
    assert record["kl_rows"] == 6  # all that there are


def test_the_rows_of_the_kl_budget_are_drawn_from_both_kinds(data, encoder, model, monkeypatch):
    looked_at = []
    made = pairs(data, ["forget"])
    rows = {"forget": drawn_of(made.rows_of("forget"), 2, 0), "retain": made.rows_of("retain")}
    monkeypatch.setattr("engine.edit_gradient.gradient_with_adapter", lambda trainer, matrices, *_: matrices)
    monkeypatch.setattr("engine.edit_gradient.scored", lambda trainer, batches: [])
    monkeypatch.setattr("engine.edit_gradient.go_farthest", lambda *_: (1.0, 0.0))
    monkeypatch.setattr(encoder, "encode", lambda row: looked_at.append(row) or row)
    monkeypatch.setattr(encoder, "collate", lambda encoded: torch.zeros(1))
    trainer = SimpleNamespace(model=model, bound=bind(REPSELECT), draw_seed=0, args=SimpleNamespace(device="cpu"))
    rule = EditRule(lambda gradient, components: gradient, edits="gradient")
    facts = edit_along_gradient(trainer, rule, rows, encoder, {"components": 4})
    assert facts["kl_rows"] == len(looked_at) == 64
    assert {row.image is None for row in looked_at} == {True, False}
    assert [row.index for row in looked_at] != [rows["retain"][place].index for place in range(64)]


@pytest.mark.parametrize(
    ("components", "line"),
    [
        (192, r"components=192 must be below 192, the singular values of the smallest matrix"),
        (191, r"components=191 is more than the \d+ singular values that a gradient of these rows has above rounding"),
    ],
)
def test_more_components_than_a_gradient_has_are_refused(components, line, data, encoder, tmp_path):
    many = replace(REPSELECT, edit=replace(REPSELECT.edit, args={**REPSELECT.edit.args, "components": components}))
    with pytest.raises(SettingsError, match=f"^method.edit.args.{line}"):
        run(data, encoder, tmp_path / "out", many)


def test_a_language_model_without_convolutions_has_nothing_to_transpose(data, encoder, tmp_path):
    own = replace(CT, loss=None)
    with pytest.raises(SettingsError, match=r"method=ct: method.edit changes nothing"):
        frozen = load_for_training(AutoModelForImageTextToText, training_settings())
        for module in frozen.modules():
            if isinstance(module, nn.Conv2d):
                module.requires_grad_(False)
        start = Start(frozen, forward, partial(save, encoder.processor))
        few = Few(pairs(data, ["forget"]), 6)
        where = {"seed": 0, "save_dir": str(tmp_path / "out"), "record": {}, "say": lambda line: None}
        train(start, bind(own), few, encoder, TRAINER, **where)


def test_manu_needs_rows_of_both_kinds(data, encoder, tmp_path):
    with pytest.raises(SettingsError, match=r"asks for rows with a picture, and split"):
        run(data, encoder, tmp_path / "out", MANU, modality="text")


def test_rows_of_an_edit_may_be_fewer(data, encoder, tmp_path, monkeypatch):
    asked = []
    real = LossTrainer.squared_gradients

    def counted(self, loss, kinds, encoder, **how):
        asked.append(len(kinds[0]))
        return real(self, loss, kinds, encoder, **how)

    monkeypatch.setattr(LossTrainer, "squared_gradients", counted)
    run(data, encoder, tmp_path / "out", replace(SSD, edit=replace(SSD.edit, rows=3)))
    assert asked == [3, 3]


# ---- what is refused


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (Edit("sdd", {}), r"method.edit.rule='sdd' is not known .*did you mean 'ssd'"),
        (Edit("ssd", {"alpha": 2.0}), r"method.edit.args.damping is required by rule ssd"),
        (Edit("ssd", {"alpha": 2.0, "damping": 2.0}), r"method.edit.args.damping=2.0 must be at most 1"),
        (Edit("manu", {"share": 0.0, "threshold": 0.1}), r"method.edit.args.share=0.0 must be above 0"),
        (Edit("manu", {"share": 0.1, "threshold": "low"}), r"method.edit.args.threshold='low' must be a number"),
        (Edit("ct", {}, rows=4), r"method.edit.rows=4: rule ct looks at no rows; leave it out"),
        (Edit("kvw", {"strength": 1.0, "first_layer": 0.5, "spared_layers": 0}), r"=0.5 must be a whole number"),
        (Edit("repselect", {**REPSELECT.edit.args, "kl_rows": 0.5}), r"kl_rows=0.5 must be a whole number"),
        (
            Edit("repselect", REPSELECT.edit.args, rows=63),
            r"method.edit.rows=63 is fewer than method.edit.args.kl_rows",
        ),
        (Edit("kvw", {"strength": -1.0, "first_layer": 0, "spared_layers": 0}), r"strength=-1.0 must be at least 0"),
    ],
)
def test_an_edit_that_does_not_fit_is_one_line(edit, line):
    with pytest.raises(SettingsError, match=line):
        bind(Method("x", None, edit=edit))


def test_a_weight_of_zero_is_refused_where_an_edit_divides_by_it_and_taken_where_a_loss_is_weighed():
    of_ssd = Edit("ssd", {"alpha": 0.0, "damping": 1.0})
    with pytest.raises(SettingsError, match=r"method.edit.args.alpha=0.0 must be above 0"):
        bind(Method("x", None, edit=of_ssd))
    for name in ("rmu", "scrub"):
        method = of_file(name)
        bind(replace(method, args={**method.args, "alpha": 0.0}))
        with pytest.raises(SettingsError, match=r"method.args.alpha=-1.0 must be at least 0"):
            bind(replace(method, args={**method.args, "alpha": -1.0}))


@pytest.mark.parametrize("step", [{"edit": SSD.edit}, {"edit": KVW.edit}, {"mask": Mask("grad_ascent", share=0.5)}])
def test_a_step_that_looks_at_answers_is_refused_where_the_model_ends_at_a_layer(step):
    (name,) = step
    with pytest.raises(SettingsError, match=rf"method.{name} needs the answers' logits, and with method.activations"):
        bind(replace(of_file("rmu"), **step))


def test_settings_without_effect_on_a_method_that_trains_nothing_are_refused():
    with pytest.raises(SettingsError, match=r"method.scope=pictures has no effect on rule manu"):
        bind(replace(MANU, scope="pictures"))
    bind(replace(KVW, scope="pictures"))
    with pytest.raises(SettingsError, match=r"method.loss=null trains nothing; leave method.retain=kl out"):
        replace(SSD, retain="kl")
    with pytest.raises(SettingsError, match=r"method.loss=null trains nothing; leave method.other_answers=2 out"):
        replace(SSD, other_answers=2)


def test_a_method_that_trains_nothing_needs_an_edit_and_names_no_step_of_a_training():
    with pytest.raises(SettingsError, match=r"method.loss=null trains nothing; it needs a method.edit"):
        Method("x", None)
    with pytest.raises(SettingsError, match=r"method.loss=null trains nothing; leave method.mask out"):
        Method("x", None, edit=SSD.edit, mask=Mask("grad_ascent", share=0.5))


def test_an_edit_is_refused_with_an_adapter_in_stacks_and_where_there_is_no_decoder(data, encoder):
    with pytest.raises(SettingsError, match=r"method=kvw edits the model's own weights: set trainer.lora=null"):
        compose("mm/forget", Forget, ["method=kvw", "trainer=clear_lora"])
    with pytest.raises(SettingsError, match=r"many networks cannot train together with method.edit"):
        check_stackable(SSD)
    with pytest.raises(SettingsError, match=r"method=kvw edits the neurons of a decoder"):
        mlps_of(FaceNetwork(Shape(4, 8), 3), "kvw")
    assert compose("cv/forget", ForgetFaces, ["method=ssd"]).method.loss is None


def test_a_layer_without_one_down_projection_is_named(model):
    decoder = model.get_decoder()
    decoder.layers[1].mlp.down_proj = nn.Identity()
    with pytest.raises(SettingsError, match=r"method=kvw: layer 1 of .* has no one down-projection"):
        mlps_of(model, "kvw")


def test_a_sharded_run_is_refused_by_name(data, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.parted.PLAIN", ())
    with pytest.raises(SettingsError, match=r"method=kvw edits whole weights, .* launch it without sharding"):
        run(data, encoder, tmp_path / "out", KVW)
