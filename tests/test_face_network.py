"""Face networks: AM-softmax as its paper has it, torchvision's topology, networks side by side that know nothing of each other."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch.func import functional_call

from cv.face_settings import FaceModel
from cv.network import (
    FaceNetwork,
    Shape,
    apart,
    end_at,
    load_network,
    save_network,
    score_faces,
    side_by_side,
    with_new_classes,
)
from cv.pictures import Classes
from settings.script import SettingsError
from settings.training import Activations
from unlearn_losses import Scored, kl_from_start, lowered, nll, sequence_logprob

SHAPE = Shape(width=4, embedding=8)
SETTINGS = FaceModel(name="tiny", path="", size=40, width=4, embedding=8, scale=30.0, margin=0.4)


def network(seed=0, classes=5, models=1):
    torch.manual_seed(seed)
    return FaceNetwork(SHAPE, classes, models)


def pixels(count=6, models=1, seed=0):
    return torch.randn(count, 3 * models, 40, 40, generator=torch.Generator().manual_seed(seed))


def batch(count=6, models=1):
    return {"pixels": pixels(count, models), "labels": torch.arange(count * models).view(count, models) % 5}


def test_logits_before_the_margin_are_s_times_cosines_whatever_the_length_of_weights_and_features():
    model = network().eval()
    scored = score_faces(model, batch(), scale=30.0, margin=0.0)
    assert scored.logits.shape == (6, 1, 5) and scored.logits.abs().max() <= 30 + 1e-4
    with torch.no_grad():
        model.classes.mul_(7.0)  # the class weights are normalised
        model.embed.weight.mul_(5.0)  # and so are the features
    again = score_faces(model, batch(), scale=30.0, margin=0.0)
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
    scored, start = (score_faces(network(seed).eval(), batch(), scale=30.0, margin=0.4) for seed in (0, 1))
    plain, plain_start = (each._replace(margin=0.0) for each in (scored, start))
    assert torch.equal(sequence_logprob(scored), sequence_logprob(plain)) and torch.equal(
        kl_from_start(scored, start), kl_from_start(plain, plain_start)
    )
    assert nll(scored) > nll(plain) + 1


def test_the_gradient_of_the_loss_agrees_with_finite_differences():
    model = network().double().eval()
    given = {"pixels": pixels(3).double(), "labels": torch.tensor([[0], [3], [1]])}

    def loss(embed, classes):
        logits = functional_call(Scorer(model), {"model.embed.weight": embed, "model.classes": classes}, (given,))
        return torch.nn.functional.cross_entropy(logits[:, 0], given["labels"][:, 0])  # nll computes in fp32

    weights = [torch.randn_like(weight).requires_grad_() for weight in (model.embed.weight, model.classes)]
    assert torch.autograd.gradcheck(loss, weights)


class Scorer(torch.nn.Module):
    """score_faces as a module, so that its weights can be given from outside."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, given):
        return lowered(score_faces(self.model, given, scale=30.0, margin=0.4)).logits


def test_class_probabilities_run_over_classes_and_not_over_embedding_features():
    scored = score_faces(network(classes=5).eval(), batch(), scale=30.0, margin=0.0)
    assert scored.logits.shape[-1] == 5 != SHAPE.embedding
    assert torch.allclose(scored.logits.softmax(-1).sum(-1), torch.ones(6, 1))


def test_the_paper_network_is_torchvisions_resnet18_name_by_name_and_number_by_number():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None).eval()
    ours = FaceNetwork(Shape(width=64, embedding=512), classes=3).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert set(missing) == {"embed.weight", "classes"} and set(unexpected) == {"fc.weight", "fc.bias"}
    theirs.fc = torch.nn.Identity()
    ours.ends_at = 4
    pictures = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(ours(pictures)[:, 0], theirs(pictures), atol=1e-4)


def test_no_convolution_of_one_pixel_has_a_stride():
    """Its gradient in channels_last would corrupt memory where there are few channels, and crash somewhere else, some time later."""
    convolutions = [module for module in network(models=2).modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 21 and not [c for c in convolutions if c.kernel_size == (1, 1) and c.stride != (1, 1)]


def test_networks_side_by_side_give_what_each_gives_alone_and_come_apart_again():
    models = [network(seed).double() for seed in range(3)]
    pictures = pixels(models=3).double()
    for model in models:
        model.train()(pixels(seed=9).double())  # running statistics of its own
    stack = side_by_side(models)
    for mode in (True, False):
        together = stack.train(mode)(pictures)
        alone = torch.cat(
            [model.train(mode)(part) for model, part in zip(models, pictures.chunk(3, dim=1), strict=True)], dim=1
        )
        assert torch.allclose(together, alone, atol=1e-12)
    for model, again in zip(models, apart(stack), strict=True):
        assert all(torch.allclose(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_network_that_ends_at_a_part_gives_its_states_and_trains_the_named_parts_only():
    for layer, features in ((0, 4), (1, 4), (2, 8), (3, 16), (4, 32), (5, 8)):
        model = network()
        end_at(model, Activations(layer=layer, trained=[layer]))
        scored = score_faces(model, batch(), scale=30.0, margin=0.4)
        assert scored.logits.shape == (6, 1, features) and scored.labels.shape == (6, 1)
        scored.logits.sum().backward()
        own = {id(p) for module in model.parts()[layer] for p in module.parameters()}
        assert {id(p) for p in model.parameters() if p.grad is not None} == own
    with pytest.raises(
        SettingsError,
        match=r"method.activations.layer=7: a face network has parts 0 \(the stem\) to 5 \(the embedding\)",
    ):
        end_at(network(), Activations(layer=7, trained=[7]))


def test_embeddings_have_length_one():
    embedded = network(models=2).eval().embeddings(pixels(models=2))
    assert embedded.shape == (6, 2, 8) and torch.allclose(embedded.norm(dim=-1), torch.ones(6, 2), atol=1e-5)


def test_a_saved_network_is_the_same_and_one_of_another_shape_is_refused(tmp_path):
    model = network()
    save_network(model, Classes([*"abcde"], 40), tmp_path, settings=SETTINGS)
    loaded, classes = load_network(str(tmp_path), SETTINGS)
    assert classes == [*"abcde"] and all(
        torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items()
    )
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    for other in ({"width": 8}, {"size": 64}, {"scale": 64.0}):
        with pytest.raises(
            SettingsError,
            match=r"is a network of Shape\(width=4, embedding=8\) for 40 pixels at scale 30, but model=tiny",
        ):
            load_network(str(tmp_path), replace(SETTINGS, **other))
    assert json.loads((tmp_path / "config.json").read_text())["margin"] == 0.4
    with pytest.raises(SettingsError, match="holds no face network"):
        load_network(str(tmp_path / "none"), SETTINGS)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(SettingsError, match="could not be loaded"):
        load_network(str(tmp_path), SETTINGS)


def test_new_classes_leave_everything_else_and_follow_the_seed():
    model = network()
    one, again, other = (with_new_classes(model, 3, seed) for seed in (0, 0, 1))
    assert (
        one.classes.shape == (1, 3, 8)
        and torch.equal(one.classes, again.classes)
        and not torch.equal(one.classes, other.classes)
    )
    assert torch.equal(one.conv1.weight, model.conv1.weight) and model.classes.shape == (1, 5, 8)


def test_a_classifiers_answer_is_one_token():
    scored = score_faces(network().eval(), batch(), scale=30.0, margin=0.4)
    expected = torch.nn.functional.cross_entropy(scored.logits[:, 0], batch()["labels"][:, 0])
    assert -sequence_logprob(scored).mean().item() == pytest.approx(expected.item(), rel=1e-5)
