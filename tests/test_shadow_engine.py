"""Many networks together: each becomes what it becomes alone, groups are found again, a pool's attack asks only about queries."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cv import attack_scoring, shadows
from cv.attack_scoring import ModelScores, attack, attack_pool, attack_some, check_rounds, choose_population
from cv.compare import compare
from cv.face_settings import AttackFaces
from cv.network import FaceNetwork, Shape, apart, end_at, side_by_side, with_new_classes
from cv.pictures import met_by, read_division
from cv.shadows import LEARN, compare_models, shadow
from cv.together import check_together, train_together
from engine.methods import bind
from settings.script import SettingsError, compose
from settings.training import Method, TaskVector

METHODS = ["retain_ft", "neggrad", "scrub", "scrub_bio", "twins", "dpo", "llmu", "rmu", "sparsity", "npo"]
RMU = ["method.activations.layer=4", "method.activations.trained=[3,4]"]


@pytest.fixture
def settings(face_overrides, tmp_path):
    quick = [
        "finetune.epochs=2",
        "finetune.batch_size=8",
        "trainer.epochs=2",
        "trainer.batch_size=3",
        "models=10",
        "targets=2",
        "together=5",
    ]
    return lambda *more: compose(
        "cv/attack", AttackFaces, [*face_overrides, *quick, f"shadows_dir={tmp_path}/shadows", *more]
    )


def pretrained(classes=3):
    torch.manual_seed(0)
    return FaceNetwork(Shape(width=4, embedding=8), classes)


def trained(settings, method, numbers, trainer, start=None):
    """Networks `numbers` trained together in fp64 from one start; apart again."""
    division = read_division(settings.data)
    bound = bind(method)
    shadows = [shadow(settings, bound, division, n, met_by(division, n).trained, 100 + n) for n in numbers]
    models = [with_new_classes(pretrained(), 6, n).double() if start is None else start[n] for n in numbers]
    stack = side_by_side(models)
    if method.activations:
        end_at(stack, method.activations)
    for each in shadows:  # pictures as the fp64 network wants them
        real = each.encoder.collate
        each.encoder.collate = lambda encoded, real=real: {
            k: v.double() if v.is_floating_point() else v for k, v in real(encoded).items()
        }
    train_together(stack, bound, shadows, trainer, settings.model)
    return apart(stack)


def apartness(one, two):
    return max(
        (value - two.state_dict()[name]).abs().max().item()
        for name, value in one.state_dict().items()
        if value.is_floating_point()
    )


@pytest.mark.parametrize("name", METHODS)
def test_each_of_several_networks_becomes_in_fp64_what_it_becomes_alone(name, settings):
    given = settings(f"method={name}", *(RMU if name == "rmu" else []))
    trainer = replace(given.trainer, precision="fp32", optimizer="sgd", lr=1e-3, max_grad_norm=1.0)
    together = trained(given, given.method, [0, 1, 4], trainer)
    for place, number in enumerate((0, 1, 4)):
        (alone,) = trained(given, given.method, [number], trainer)
        start = with_new_classes(pretrained(), 6, number).double()
        assert apartness(together[place], alone) < 1e-7 < 1e-5 < apartness(alone, start)


@pytest.mark.parametrize(
    ("method", "optimizer", "precision", "share"),
    [
        ("finetune", "sgd", "fp32", 1e-3),
        ("finetune", "sgd", "bf16", 0.1),
        ("finetune", "adamw_torch", "fp32", 0.02),
        ("scrub", "sgd", "fp32", 1e-3),
        ("scrub", "sgd", "bf16", 0.1),
        ("dpo", "sgd", "fp32", 1e-3),
        ("sparsity", "sgd", "fp32", 1e-3),
        ("twins", "sgd", "fp32", 1e-3),
    ],
)
def test_a_network_of_several_becomes_what_the_training_loop_makes_of_it(
    method, optimizer, precision, share, settings, tmp_path
):
    """The same rows, seed and settings through train_engine and through the shadow engine."""
    from functools import partial

    from cv.network import save_network, score_faces
    from engine.train import train

    given = settings() if method == "finetune" else settings(f"method={method}")
    trainer = replace(given.finetune, precision=precision, optimizer=optimizer, max_grad_norm=0.5)
    division = read_division(given.data)
    bound = bind(given.method or LEARN)
    own = [shadow(given, bound, division, n, met_by(division, n).trained, 100 + n) for n in (2, 3)]
    models = [with_new_classes(pretrained(), 6, n) for n in (2, 3)]
    stack = side_by_side(models)
    if bound.method.activations:
        for each in (stack, *models):
            end_at(each, bound.method.activations)
    train_together(stack, bound, own, trainer, given.model)
    score = partial(score_faces, scale=given.model.scale, margin=given.model.margin)
    save = partial(save_network, settings=given.model)
    for number, (model, each) in enumerate(zip(models, own, strict=True)):
        first = {name: value.clone() for name, value in model.state_dict().items()}
        out = tmp_path / str(number)
        train(
            model,
            bound,
            each.pairs,
            each.encoder,
            trainer,
            each.seed,
            str(out),
            {},
            say=lambda line: None,
            score=score,
            save=save,
        )
        single, ours = load_file(out / "model.safetensors"), apart(stack)[number].state_dict()
        learned = ["classes"] if not bound.method.activations else []  # above the embedding
        for name in ("conv1.weight", "layer4.1.conv2.weight", "embed.weight", "bn1.running_mean", *learned):
            moved = (single[name] - first[name]).abs().mean()
            assert (single[name] - ours[name]).abs().mean() < share * moved, name


def test_models_of_one_seed_are_the_same_and_of_another_differ(settings):
    given = settings()
    trainer = replace(given.finetune, precision="fp32")
    one, again, other = (trained(given, LEARN, [number], trainer)[0] for number in (0, 0, 2))
    assert apartness(one, again) == 0 and apartness(one, other) > 1e-3


def test_a_finished_group_is_found_again_and_an_interrupted_attack_goes_on_with_the_next(settings, monkeypatch):
    given = settings("method=scrub")
    division = read_division(given.data)
    made = []
    real = shadows.train_together
    monkeypatch.setattr(
        shadows,
        "train_together",
        lambda stack, bound, *rest: (made.append(bound.method.name), real(stack, bound, *rest))[1],
    )
    first = compare_models(given, division, pretrained())
    assert made == ["finetune", "scrub"] * 2
    second = compare_models(given, division, pretrained())
    assert made == ["finetune", "scrub"] * 2 and np.array_equal(first.own, second.own)
    folders = sorted(
        path.parent.relative_to(given.shadows_dir).as_posix()
        for path in Path(given.shadows_dir).rglob("models.safetensors")
    )
    own = shadows.row_folder(given.method, given.trainer)
    assert folders == ["models_000", "models_005", f"{own}/models_000", f"{own}/models_005"]
    Path(given.shadows_dir, own, "models_005", "made_of.json").unlink()  # as if interrupted there
    third = compare_models(given, division, pretrained())
    assert made == [*["finetune", "scrub"] * 2, "scrub"] and np.allclose(first.own, third.own, atol=1e-6)
    changed = replace(given, trainer=replace(given.trainer, lr=2e-3))
    compare_models(changed, division, pretrained())
    assert made[5:] == ["scrub", "scrub"]
    compare_models(given, division, pretrained())  # two rows of one method: neither takes the other's models
    assert made[7:] == []


def test_gold_models_never_meet_the_people_to_be_forgotten(settings):
    given = settings("method=retrain")
    division = read_division(given.data)
    compare_models(given, division, pretrained())
    state = load_file(
        Path(given.shadows_dir) / shadows.row_folder(given.method, given.finetune) / "models_000" / "models.safetensors"
    )
    assert state["classes"].shape == (5, len(met_by(division, 0).retain), 8)
    bound = bind(given.method)
    rows = shadow(given, bound, division, 0, met_by(division, 0).retain, 0).pairs
    seen = {example.answer for key in range(len(rows)) for example in rows[key]["retain"]}
    assert seen == set(met_by(division, 0).retain)


def test_attacks_score_queries_by_person_and_never_an_enrolled_picture(settings):
    given = settings()
    division = read_division(given.data)
    scores = compare_models(given, division, pretrained())
    enrolled = {file for person in division.people.values() for file in person.enrol}
    assert not enrolled & set(scores.files) and len(scores.files) == 12 * 3
    assert all(file in division.people[name].query for name, file in zip(scores.people, scores.files, strict=True))


def test_the_scores_on_disk_are_those_that_the_attack_had(settings, tmp_path):
    given = settings()
    scores = compare_models(given, read_division(given.data), pretrained())
    scores.write(tmp_path)
    written = load_file(tmp_path / "scores.safetensors")
    assert np.array_equal(written["own"], scores.own) and np.array_equal(written["nearest_other"], scores.nearest_other)
    assert json.loads((tmp_path / "queries.json").read_text())["people"] == scores.people


def test_every_model_of_an_attack_has_a_seed_of_its_own(settings):
    given = settings()
    seeds = [shadows.model_seed(given, number) for number in range(given.models)]
    assert len(set(seeds)) == given.models and min(seeds) > 1000  # a benchmark's own models have small seeds


def test_u_lira_is_fitted_on_shadow_models_only(monkeypatch):
    features, learned = shadows_with(in_line)
    own = np.tanh(features[..., 0] / 4)
    seen = []

    def spy(shadow, met, never, target):
        seen.append((shadow, met, never, target))
        return np.zeros_like(target)

    monkeypatch.setattr(attack_scoring.metrics, "likelihood_ratio", spy)
    scores = ModelScores([f"p{i % 20:02d}" for i in range(200)], [str(i) for i in range(200)], own, np.zeros_like(own))
    attack_pool(scores, np.ones(200, bool), learned, 4)
    logits = attack_scoring.metrics.verification_logit(own)
    assert len(seen) == 4  # 16 models, 4 at a time
    for first, (others_say, met, never, target) in zip(range(0, 16, 4), seen, strict=True):
        others = [number for number in range(16) if not first <= number < first + 4]
        assert np.array_equal(others_say, logits[others]) and np.array_equal(target, logits[first : first + 4])
        assert np.array_equal(met, learned[others]) and np.array_equal(never, ~learned[others])


def test_every_model_is_attacked_once_and_the_pool_counts_all_of_them():
    features, learned = shadows_with(in_line)
    own = np.tanh(features[..., 0] / 4)
    scores = ModelScores([f"p{i % 20:02d}" for i in range(200)], [str(i) for i in range(200)], own, np.zeros_like(own))
    made = attack_pool(scores, np.ones(200, bool), learned, 6)  # 6, 6 and the last 4
    assert (
        sum(made["distribution"]["met"]) == learned.sum() and sum(made["distribution"]["not met"]) == (~learned).sum()
    )
    assert (
        len(made["U-MIA attack"].split(", ")) == 3 and made["attacks"]["U-LiRA"]["TPR at 1% FPR"]["value"] is not None
    )  # 1600 who were not met


def test_a_round_that_leaves_too_few_shadow_models_is_refused_before_anything_trains(settings):
    given = settings()
    division = read_division(given.data)
    check_rounds(division, 40, 2)
    with pytest.raises(
        SettingsError,
        match=r"models=10 leaves \d shadow models on one side of '[\w ]+' while models \d to \d are attacked; 2 are needed",
    ):
        check_rounds(division, 10, 8)  # two shadow models: one of them on each side


def test_a_part_that_there_is_not_is_refused_before_anything_is_trained(settings):
    with pytest.raises(SettingsError, match=r"method.activations.layer=7: a face network has parts"):
        shadows.check_method(settings("method=rmu").method)


def test_an_attack_finds_a_known_difference_whatever_the_order_of_the_rows(settings):
    given = settings()
    division = read_division(given.data)
    people = sorted(name for name in division.people for _ in range(3))
    source = np.random.default_rng(0)
    met = np.array([[name in met_by(division, n).trained for name in people] for n in range(40)])
    own = 0.2 + 0.3 * met + source.normal(0, 0.05, met.shape)
    order = source.permutation(len(people))
    both = [
        attack(
            ModelScores([people[i] for i in o], [str(i) for i in o], own[:, o], np.full_like(own, 0.1)),
            division,
            40,
            10,
        )
        for o in (np.arange(len(people)), order)
    ]
    for pools in (each["pools"] for each in both):
        for pool in ("forget", "retain"):
            assert all(each["auc"]["value"] > 0.95 for each in pools[pool]["attacks"].values())
            assert set(pools[pool]["by person"]) == set(division.pool(pool))
    assert (
        both[0]["pools"]["forget"]["attacks"]["U-LiRA"]["auc"] == both[1]["pools"]["forget"]["attacks"]["U-LiRA"]["auc"]
    )
    assert both[0]["pools"]["forget"]["attacks"]["U-LiRA"]["TPR at 1% FPR"]["why"].startswith("not resolvable")


def shadows_with(own_of):
    """Features (M, Q, 2) of 16 shadow models and who met what, (M, Q): `own_of` makes the own logit of the second."""
    source = np.random.default_rng(3)
    learned = np.array([(np.arange(200) + number) % 2 == 0 for number in range(16)])
    return np.stack([own_of(learned, source), source.normal(0, 1, learned.shape)], axis=-1), learned


def in_line(learned, source):
    return source.normal(0, 1, learned.shape) + 1.0 * learned


def in_a_band(learned, source):
    return np.where(
        learned,
        source.uniform(-1, 1, learned.shape),
        source.choice([-1, 1], learned.shape) * source.uniform(1.2, 3, learned.shape),
    )


def test_the_population_attack_is_chosen_by_shadow_models_that_it_was_not_fitted_on():
    assert choose_population(*shadows_with(in_a_band)) == "tree"  # no line parts a band
    features, learned = shadows_with(in_line)
    features[..., 1] = 5 * features[..., 0] + 0.1 * features[..., 1]
    assert choose_population(features, learned) == "logistic"
    # the models that were fitted on, whose band favours the tree, do not decide: the last pairs do, whom only the line gets right
    features, learned = shadows_with(in_a_band)
    features[..., 0] += 0.5 * learned  # the line rises a little
    features[-4:, :, 0] = np.where(learned[-4:], 4.0, -4.0)  # on both sides of the band
    assert choose_population(features, learned) == "logistic"


def test_what_chooses_the_population_attack_was_not_fitted_on(monkeypatch):
    seen = []

    def spy(features, member, attacked):
        seen.append(({tuple(row) for row in features.tolist()}, {tuple(row) for row in attacked.tolist()}))
        return attacked[:, 0]

    monkeypatch.setattr(attack_scoring, "POPULATION", {"logistic": spy, "tree": spy})
    choose_population(*shadows_with(in_line))
    assert len(seen) == 2
    for fitted, judged in seen:
        assert len(fitted) == 12 * 200 and len(judged) == 4 * 200 and not fitted & judged  # a quarter of 8 pairs


def test_the_attacked_have_no_say_in_what_is_said_of_them_nor_in_which_population_attack_it_is():
    features, learned = shadows_with(in_a_band)
    attacked = np.arange(16) < 4
    told, flipped = (
        attack_some(features, np.concatenate([first, learned[4:]]), attacked) for first in (learned[:4], ~learned[:4])
    )
    assert told[1] == flipped[1] == "tree" and all(np.array_equal(told[0][name], flipped[0][name]) for name in told[0])
    assert np.array_equal(told[0]["U-MIA"], told[0]["U-MIA tree"]) and not np.array_equal(
        told[0]["U-MIA"], told[0]["U-MIA logistic"]
    )
    moved, _ = attack_some(
        np.concatenate([features[:4] + 0.5, features[4:]]), learned, attacked
    )  # what they say themselves does count
    assert not np.array_equal(moved["U-LiRA"], told[0]["U-LiRA"])


def test_one_network_among_several_compares_as_it_does_alone(settings):
    given = settings()
    division = read_division(given.data)
    models = [with_new_classes(pretrained(), 6, n) for n in range(2)]
    with torch.no_grad():
        models[1].conv1.weight.add_(0.1)
    both = compare(side_by_side(models), division, given.data.people, 40, 16)
    for number, model in enumerate(models):
        alone = compare(model, division, given.data.people, 40, 7)
        assert np.allclose(alone.cosines[0], both.cosines[number], atol=1e-5)


def test_the_people_are_known_by_name_and_not_by_the_order_of_rows(settings):
    given = settings()
    division = read_division(given.data)
    shuffled = replace(division, people=dict(reversed(list(division.people.items()))))
    one, two = (compare(pretrained(), each, given.data.people, 40, 16) for each in (division, shuffled))
    assert one.files == two.files and np.array_equal(one.cosines, two.cosines)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["models=9"], "models=9 must be even"),
        (["targets=4"], "leaves 6 shadow models of models=10; at least 8 are needed"),
        (["trainer.accumulation=2"], r"trainer.accumulation=2 must be 1 where many models train together"),
        (["trainer.lora={r: 1, alpha: 1, dropout: 0}"], "needs a language model"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, line, settings):
    with pytest.raises(SettingsError, match=line):
        settings(*overrides)


def test_a_method_that_is_more_than_a_loss_is_refused_where_many_train_together():
    with pytest.raises(
        SettingsError, match=r"method=sku: many networks cannot train together with method\.task_vector"
    ):
        check_together(Method("sku", "sku", task_vector=TaskVector(1.0)))


def test_an_attack_in_many_processes_is_refused_because_they_would_write_the_same_groups(monkeypatch):
    monkeypatch.setattr(shadows, "processes", lambda: type("State", (), {"num_processes": 2}))
    with pytest.raises(SettingsError, match="an attack runs in one process, and this launch has 2"):
        shadows.check_method(None)


def test_the_record_of_a_group_names_its_models_and_method(settings):
    given = settings()
    compare_models(given, read_division(given.data), pretrained())
    record = json.loads(Path(given.shadows_dir, "models_005", "made_of.json").read_text())
    assert record["models"] == [5, 6, 7, 8, 9] and record["method"] == "finetune" and len(record["key"]) == 16
