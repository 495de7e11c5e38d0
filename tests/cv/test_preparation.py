"""What is measured of a face network before it forgets: near boundaries, how alike people are whom it never met."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cv import preparation
from cv.division import Met, met_by, read_division
from cv.face_settings import ForgetFaces
from cv.network import EMBEDDING, FaceNetwork, Shape, end_at, forward_of, start_of
from cv.pictures import FacePairs, training_rows
from cv.preparation import People, likeness, nearest_kept, prepare
from engine.methods import bind
from engine.pairs import Batch
from engine.train import train
from helpers import TRAINER
from settings.script import SettingsError, compose
from unlearn_losses import nll

SHAPE = Shape(width=4, embedding=8)


@pytest.fixture
def settings(face_overrides, tmp_path):
    def composed(*more):
        return compose("cv/forget", ForgetFaces, [*face_overrides, f"data.split_file={tmp_path}/division.json", *more])

    return composed


def people_of(data):
    division = read_division(data)
    met = met_by(division, None)
    return People(division, met, met.trained)


def network(classes, seed=0):
    torch.manual_seed(seed)
    return FaceNetwork(SHAPE, classes).eval()


def prepared(settings, method, model, *more):
    given = settings(f"method={method}", *more)
    bound = bind(given.method, faces=True)
    people = people_of(given.data)
    return prepare(bound, model, people, data=given.data, shape=given.model, seed=0), people, bound


def test_the_nearest_name_is_of_somebody_kept_one_step_away_and_does_not_depend_on_the_others(settings, monkeypatch):
    given = settings("method=boundary_shrink")
    people = people_of(given.data)
    model, rows = network(len(people.classes)), training_rows(people.division, people.met.forget, "forget")
    options = {"data": given.data, "shape": given.model, "bound": 0.1}
    names = nearest_kept(model, rows, people, **options)
    assert len(names) == len(rows) and set(names) <= set(people.met.retain)
    monkeypatch.setattr(preparation, "AT_ONCE", 1)
    assert nearest_kept(model, rows, people, **options) == names
    # the first by hand: .1 of a range of 2 is .2
    label = torch.tensor([[people.classes.index(rows[0].answer)]])
    pixels = preparation.pixels_of(rows.files[:1], data=given.data, model=model, size=given.model.size)
    forward = forward_of(given.model)
    nll(forward(model, Batch({"pixels": pixels.requires_grad_()}, label))).backward()
    moved = (pixels.detach() + 0.2 * pixels.grad.sign()).clamp(-1, 1)
    logits = forward(model, Batch({"pixels": moved}, label)).logits[0, 0]
    best = max(people.met.retain, key=lambda name: logits[people.classes.index(name)].item())
    assert names[0] == best


def test_a_forget_picture_gets_its_nearest_name_in_every_epoch_and_is_else_the_same(settings):
    model = network(6)
    ready, people, _ = prepared(settings, "boundary_shrink", model)
    assert ready.model is model
    for key in range(2 * len(ready.pairs)):
        (face,) = ready.pairs[key]["nearest"]
        own = ready.pairs.forget[key % len(ready.pairs)]
        assert face.image == own.image and face.answer == ready.pairs.nearest[face.index]
        assert face.answer in people.met.retain


def test_nobody_is_one_class_more_and_the_start_keeps_its_own(settings):
    model = network(6)
    ready, _, _ = prepared(settings, "boundary_expand", model)
    assert (model.classes.shape[1], ready.model.classes.shape[1]) == (6, 7)
    (face,) = ready.pairs[0]["nobody"]
    assert ready.encoder.encode(face).answer == [6]


def test_a_sibling_is_another_picture_of_the_same_person_in_a_view_of_its_own(settings):
    ready, _, _ = prepared(settings, "dispersion", network(6))
    views = 0
    for key in range(3 * len(ready.pairs)):
        forget, sibling = (ready.pairs[key][name][0] for name in ("forget", "sibling"))
        assert forget.answer == sibling.answer and forget.image != sibling.image
        views += forget.view != sibling.view
    assert views > len(ready.pairs)


def test_likeness_is_the_mean_cosine_over_pairs_and_then_over_people_who_were_never_met(settings):
    given = settings("method=dispersion")
    people = people_of(given.data)
    model = network(len(people.classes))
    means = []
    for name in people.met.holdout:
        files = people.division.people[name].train
        e = model.embeddings(preparation.pixels_of(files, data=given.data, model=model, size=given.model.size))[:, 0]
        cosines = e @ e.T
        count = len(files)
        means.append((cosines.sum() - count) / (count * (count - 1)))  # the diagonal is 1
    measured = likeness(model, people, data=given.data, size=given.model.size, part=EMBEDDING)
    assert measured == pytest.approx(torch.stack(means).mean().item(), abs=1e-5)
    ready, _, bound = prepared(settings, "dispersion", model)
    assert ready.measured == {"never_met": pytest.approx(measured)}
    assert bound.batches == ["forget", "sibling", "retain"]


def test_likeness_is_that_of_the_states_at_which_the_loss_looks(settings):
    model = network(6)
    stage = ["method.activations.layer=2", "method.activations.trained=[2]"]
    ready, people, bound = prepared(settings, "dispersion", model, *stage)
    means = []
    end_at(model, bound.method.activations)
    for name in people.met.holdout:
        files = people.division.people[name].train
        seen = model(preparation.pixels_of(files, data=settings().data, model=model, size=40))[:, 0].detach()
        one = [seen[i] @ seen[j] / seen[i].norm() / seen[j].norm() for i in range(len(files)) for j in range(i)]
        means.append(torch.stack(one).mean())
    assert ready.measured["never_met"] == pytest.approx(torch.stack(means).mean().item(), abs=1e-5)
    at_the_embedding, _, _ = prepared(settings, "dispersion", network(6))
    assert ready.measured["never_met"] != pytest.approx(at_the_embedding.measured["never_met"], abs=1e-3)


def test_where_nobody_is_left_who_was_never_met_one_line_says_so(settings):
    given = settings("method=dispersion")
    people = people_of(given.data)
    alone = replace(people, met=Met(people.met.forget, people.met.retain, []))
    with pytest.raises(SettingsError, match=r"nobody whom it never met has two that could be learned"):
        likeness(network(6), alone, data=given.data, size=given.model.size, part=EMBEDDING)


def test_one_picture_of_a_person_has_no_sibling(settings):
    given = settings("method=dispersion")
    people = people_of(given.data)
    retain = training_rows(people.division, people.met.retain, "retain")
    division = people.division
    one = {name: replace(person, train=person.train[:1]) for name, person in division.people.items()}
    forget = training_rows(replace(division, people=one), people.met.forget, "forget")
    with pytest.raises(SettingsError, match=r"another picture of each person to be forgotten, and '.*' has one to lea"):
        FacePairs(["forget", "sibling", "retain"], forget, retain, size=40, seed=0)


def test_the_bad_teacher_has_weights_of_its_own_that_follow_the_seed(settings):
    model = network(6)
    ready, _, _ = prepared(settings, "bad_teacher", model)
    again, _, _ = prepared(settings, "bad_teacher", model)
    assert ready.untaught.classes.shape == model.classes.shape
    assert not torch.equal(ready.untaught.conv1.weight, model.conv1.weight)
    assert torch.equal(ready.untaught.conv1.weight, again.untaught.conv1.weight)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
def test_of_msgs_kernels_those_that_stay_move_by_the_rest_of_a_step_whatever_the_optimizer(
    optimizer, settings, tmp_path
):
    after = []
    for rest in (0.0, 0.1, 1.0):
        given = settings("method=msg", f"method.edit.args.rest={rest}")
        bound, people = bind(given.method, faces=True), people_of(given.data)
        ready = prepare(bound, network(6), people, data=given.data, shape=given.model, seed=0)
        trainer = replace(TRAINER, batch_size=64, optimizer=optimizer)  # one step
        run = {"seed": 0, "save_dir": f"{tmp_path}/{rest}", "record": {}, "say": lambda line: None}
        train(start_of(ready.model, given.model, people.classes), bound, ready.pairs, ready.encoder, trainer, **run)
        after.append(load_file(tmp_path / str(rest) / "model.safetensors"))
    still, some, whole = after
    for name in ("conv1.weight", "layer3.0.conv2.weight", "embed.weight"):
        moved = whole[name] - still[name]
        stayed = moved != 0
        assert 0.6 < stayed.float().mean() < 0.75  # .3 of them begin anew, and move alike in all three
        assert torch.allclose((some[name] - still[name])[stayed], 0.1 * moved[stayed], rtol=1e-3, atol=1e-6)
    assert torch.equal(some["classes"], whole["classes"])
