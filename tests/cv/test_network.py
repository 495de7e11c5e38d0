"""Face networks: AM-softmax as its paper has it, torchvision's topology, stacks whose networks share nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch.func import functional_call

from cv.face_settings import FaceModel
from cv.network import (
    FaceNetwork,
    Shape,
    end_at,
    forward,
    load_network,
    save_network,
    split_stack,
    stack_networks,
    start_of,
    with_new_classes,
    with_nobody,
)
from engine.pairs import Batch
from settings.script import SettingsError
from settings.training import Activations
from unlearn_losses import Scored, kl_from_start, lowered, nll, sequence_logprob

SHAPE = Shape(width=4, embedding=8)
SETTINGS = FaceModel(name="tiny", path="", size=40, width=4, embedding=8, logit_scale=30.0, margin=0.4)


def network(seed=0, classes=5, models=1):
    torch.manual_seed(seed)
    return FaceNetwork(SHAPE, classes, models)


def pixels(count=6, models=1, seed=0):
    return torch.randn(count, 3 * models, 40, 40, generator=torch.Generator().manual_seed(seed))


def batch(count=6, models=1):
    return Batch({"pixels": pixels(count, models)}, torch.arange(count * models).view(count, models) % 5)


def test_logits_before_the_margin_are_s_times_cosines_whatever_the_length_of_weights_and_features():
    model = network().eval()
    scored = forward(model, batch(), logit_scale=30.0, margin=0.0)
    assert scored.logits.shape == (6, 1, 5)
    assert scored.logits.abs().max() <= 30 + 1e-4
    with torch.no_grad():
        model.classes.mul_(7.0)  # the class weights are normalised
        model.embed.weight.mul_(5.0)  # and so are the features
    again = forward(model, batch(), logit_scale=30.0, margin=0.0)
    assert torch.allclose(again.logits, scored.logits, atol=1e-3)


def test_logits_equal_the_cosines_of_torch():
    model = network().eval()
    embedded, weights = model.embeddings(pixels())[:, 0], model.classes[0]
    expected = torch.nn.functional.cosine_similarity(embedded[:, None], weights[None], dim=-1)
    assert torch.allclose(model(pixels())[:, 0], expected, atol=1e-5)


def test_the_margin_lowers_the_right_class_by_s_times_m_and_no_other():
    cosines, labels = torch.rand(4, 1, 5) * 2 - 1, torch.tensor([[0], [1], [4], [2]])
    change = lowered(Scored(30 * cosines, labels, margin=12.0)).logits - 30 * cosines
    assert torch.allclose(change, -12 * torch.nn.functional.one_hot(labels, 5).float(), atol=1e-5)


def test_am_softmax_by_hand():
    # cosines (.9, .5), the first is right: s (.9 - .4) = 15 and 15: p = 1/2
    batch = Scored(torch.tensor([[[27.0, 15.0]]]), torch.tensor([[0]]), margin=12.0)
    assert lowered(batch).logits.flatten().tolist() == pytest.approx([15.0, 15.0])
    assert nll(batch).item() == pytest.approx(np.log(2))


def test_probabilities_are_without_the_margin_that_the_trained_loss_has():
    scored, start = (forward(network(seed).eval(), batch(), logit_scale=30.0, margin=0.4) for seed in (0, 1))
    plain, plain_start = (each._replace(margin=0.0) for each in (scored, start))
    assert torch.equal(sequence_logprob(scored), sequence_logprob(plain))
    assert torch.equal(kl_from_start(scored, start), kl_from_start(plain, plain_start))
    assert nll(scored) > nll(plain) + 1


def test_the_gradient_of_the_loss_agrees_with_finite_differences():
    model = network().double().eval()
    given = Batch({"pixels": pixels(3).double()}, torch.tensor([[0], [3], [1]]))

    def loss(embed, classes):
        weights = {"model.embed.weight": embed, "model.classes": classes}
        logits = functional_call(LogitsWithMargin(model), weights, (given,))
        return torch.nn.functional.cross_entropy(logits[:, 0], given.labels[:, 0])  # nll computes in fp32

    weights = [torch.randn_like(weight).requires_grad_() for weight in (model.embed.weight, model.classes)]
    assert torch.autograd.gradcheck(loss, weights)


class LogitsWithMargin(torch.nn.Module):
    """`forward` as a module, so that its weights can be given from outside."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, given):
        return lowered(forward(self.model, given, logit_scale=30.0, margin=0.4)).logits


def test_class_probabilities_run_over_classes_and_not_over_embedding_features():
    scored = forward(network(classes=5).eval(), batch(), logit_scale=30.0, margin=0.0)
    assert scored.logits.shape[-1] == 5 != SHAPE.embedding
    assert torch.allclose(scored.logits.softmax(-1).sum(-1), torch.ones(6, 1))


def test_the_paper_network_is_torchvisions_resnet18_name_by_name_and_number_by_number():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None).eval()
    ours = FaceNetwork(Shape(width=64, embedding=512), classes=3).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert set(missing) == {"embed.weight", "classes"}
    assert set(unexpected) == {"fc.weight", "fc.bias"}
    theirs.fc = torch.nn.Identity()
    ours.ends_at = 4
    pictures = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(ours(pictures)[:, 0], theirs(pictures), atol=1e-4)


def test_no_convolution_of_one_pixel_has_a_stride():
    """Its gradient in channels_last would corrupt memory where there are few channels, and crash elsewhere, later."""
    convolutions = [module for module in network(models=2).modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 21
    assert not [c for c in convolutions if c.kernel_size == (1, 1) and c.stride != (1, 1)]


def test_the_networks_of_a_stack_give_what_each_gives_alone_and_are_the_same_after_it_is_split():
    models = [network(seed).double() for seed in range(3)]
    pictures = pixels(models=3).double()
    for model in models:
        model.train()(pixels(seed=9).double())  # running statistics of its own
    stack = stack_networks(models)
    for mode in (True, False):
        stacked = stack.train(mode)(pictures)
        parts = zip(models, pictures.chunk(3, dim=1), strict=True)
        alone = torch.cat([model.train(mode)(part) for model, part in parts], dim=1)
        assert torch.allclose(stacked, alone, atol=1e-12)
    for model, again in zip(models, split_stack(stack), strict=True):
        assert all(torch.allclose(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_network_that_ends_at_a_part_gives_its_states_and_trains_the_named_parts_only():
    for layer, features in ((0, 4), (1, 4), (2, 8), (3, 16), (4, 32), (5, 8)):
        model = network()
        end_at(model, Activations(layer=layer, trained=[layer]))
        scored = forward(model, batch(), logit_scale=30.0, margin=0.4)
        assert scored.logits.shape == (6, 1, features)
        assert scored.labels.shape == (6, 1)
        scored.logits.sum().backward()
        of_the_part = {id(p) for module in model.parts()[layer] for p in module.parameters()}
        assert {id(p) for p in model.parameters() if p.grad is not None} == of_the_part


def test_the_class_of_nobody_is_there_for_the_training_alone(tmp_path):
    model = network()
    grown = with_nobody(model, 3)
    assert torch.equal(grown.classes[:, :-1], model.classes) and grown.classes.shape[1] == model.classes.shape[1] + 1
    assert torch.equal(with_nobody(model, 3).classes, grown.classes)
    assert not torch.equal(with_nobody(model, 4).classes, grown.classes)
    names = [f"person {number}" for number in range(model.classes.shape[1])]
    save_network(grown, tmp_path, settings=SETTINGS, classes=names)
    loaded, classes = load_network(str(tmp_path), SETTINGS)
    seen = pixels()
    assert classes == names
    assert torch.equal(loaded.eval()(seen), grown.eval()(seen)[..., :-1])


def test_a_part_that_there_is_not_is_refused_with_those_that_there_are():
    line = r"method.activations.layer=7: a face network has parts 0 \(the stem\) to 5 \(the embedding\)"
    with pytest.raises(SettingsError, match=line):
        end_at(network(), Activations(layer=7, trained=[7]))


def test_something_within_a_part_is_refused():
    line = r"method.activations.part='down_projection' must be null: a face network trains all of what"
    with pytest.raises(SettingsError, match=line):
        end_at(network(), Activations(layer=4, trained=[4], part="down_projection"))


def test_embeddings_have_length_one():
    embedded = network(models=2).eval().embeddings(pixels(models=2))
    assert embedded.shape == (6, 2, 8)
    assert torch.allclose(embedded.norm(dim=-1), torch.ones(6, 2), atol=1e-5)


def same_weights(one, two):
    return all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_saved_network_is_the_same_when_it_is_loaded(tmp_path):
    model = network()
    save_network(model, tmp_path, settings=SETTINGS, classes=[*"abcde"])
    loaded, classes = load_network(str(tmp_path), SETTINGS)
    assert classes == [*"abcde"]
    assert same_weights(model, loaded)
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["logit_scale"], config["margin"]) == (30.0, 0.4)


def test_a_start_scales_and_saves_as_its_settings_say(tmp_path):
    model = network().eval()
    start = start_of(model, SETTINGS, [*"abcde"])
    scored = start.forward(model, batch())
    assert torch.allclose(scored.logits, 30 * model(pixels()), atol=1e-4)
    assert scored.margin == pytest.approx(12.0)
    start.save(model, tmp_path)
    assert load_network(str(tmp_path), SETTINGS)[1] == [*"abcde"]


@pytest.mark.parametrize("change", [{"width": 8}, {"size": 64}, {"logit_scale": 64.0}, {"margin": 0.2}], ids=str)
def test_a_network_of_another_shape_size_logit_scale_or_margin_is_refused(change, tmp_path):
    save_network(network(), tmp_path, settings=SETTINGS, classes=[*"abcde"])
    found = r"Shape\(width=4, embedding=8\) for 40 pixels with logit_scale 30.0 and margin 0.4"
    with pytest.raises(SettingsError, match=f"is a network of {found}, but model=tiny"):
        load_network(str(tmp_path), replace(SETTINGS, **change))


def test_a_folder_without_a_network_a_torn_one_and_one_of_an_older_kind_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="holds no face network"):
        load_network(str(tmp_path / "none"), SETTINGS)
    save_network(network(), tmp_path, settings=SETTINGS, classes=[*"abcde"])
    config = json.loads((tmp_path / "config.json").read_text())
    del config["logit_scale"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match=r"its config.json does not say 'logit_scale'; train it again"):
        load_network(str(tmp_path), SETTINGS)
    (tmp_path / "config.json").write_text(json.dumps({**config, "logit_scale": 30.0}))
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(SettingsError, match="could not be loaded"):
        load_network(str(tmp_path), SETTINGS)


BAD_WEIGHTS = {
    "a tensor lacking": (lambda weights: weights.pop("embed.weight"), "model.safetensors lacks tensor 'embed.weight'"),
    "a tensor too many": (
        lambda weights: weights.update({"fc.weight": torch.ones(2)}),
        "holds tensor 'fc.weight', which no face network has",
    ),
    "another shape": (
        lambda weights: weights.update({"conv1.weight": torch.ones(5, 3, 7, 7)}),
        r"'conv1.weight' has shape \(5, 3, 7, 7\), and config.json makes it \(4, 3, 7, 7\)",
    ),
    "another number of classes": (
        lambda weights: weights.update({"classes": torch.ones(1, 4, 8)}),
        r"'classes' has shape \(1, 4, 8\), and config.json makes it \(1, 5, 8\)",
    ),
    "NaN": (lambda weights: weights["bn1.running_var"].fill_(float("nan")), "'bn1.running_var' holds NaN or infinity"),
    "infinity": (lambda weights: weights["classes"][0, 0].fill_(float("inf")), "'classes' holds NaN or infinity"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_a_network_that_is_not_whole_is_refused_in_one_line(name, tmp_path):
    change, line = BAD_WEIGHTS[name]
    save_network(network(), tmp_path, settings=SETTINGS, classes=[*"abcde"])
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(SettingsError, match=line) as caught:
        load_network(str(tmp_path), SETTINGS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [[*"abcda"], "abcde", [1, 2, 3, 4, 5]], ids=str)
def test_classes_that_are_not_different_names_are_refused(classes, tmp_path):
    save_network(network(), tmp_path, settings=SETTINGS, classes=classes)
    with pytest.raises(SettingsError, match=r"classes in its config\.json must be different names"):
        load_network(str(tmp_path), SETTINGS)


def test_new_classes_leave_everything_else_and_follow_the_seed():
    model = network()
    one, again, other = (with_new_classes(model, 3, seed) for seed in (0, 0, 1))
    assert one.classes.shape == (1, 3, 8)
    assert torch.equal(one.classes, again.classes)
    assert not torch.equal(one.classes, other.classes)
    assert torch.equal(one.conv1.weight, model.conv1.weight)
    assert model.classes.shape == (1, 5, 8)


def test_a_classifiers_answer_is_one_token():
    scored = forward(network().eval(), batch(), logit_scale=30.0, margin=0.4)
    expected = torch.nn.functional.cross_entropy(scored.logits[:, 0], batch().labels[:, 0])
    assert -sequence_logprob(scored).mean().item() == pytest.approx(expected.item(), rel=1e-5)
