"""Stacks: each network becomes what it becomes alone, stacks are found again, attacks ask only about queries."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cv import attack_scoring, shadows, together
from cv.attack_scoring import (
    Similarities,
    attack,
    attack_pool,
    attack_targets,
    check_rounds,
    choose_population_attack,
)
from cv.compare import Compared, compare
from cv.division import met_by, read_division
from cv.face_settings import AttackFaces
from cv.network import (
    FaceNetwork,
    Shape,
    end_at,
    forward_of,
    split_stack,
    stack_networks,
    start_of,
    with_first_classes,
    with_new_classes,
)
from cv.shadows import compare_models, similarities_of
from cv.together import check_stackable, concat_batches, model_seed, shadow_of, train_stack
from engine.methods import bind
from engine.pairs import Batch
from engine.train import train
from settings.script import SettingsError, compose
from settings.training import FINETUNING, Method, TaskVector
from unlearn_losses import Scored

METHODS = ["retain_ft", "neggrad", "scrub", "scrub_bio", "twins", "dpo", "llmu", "rmu", "sparsity", "npo", "jensun"]
METHODS += ["bad_teacher", "boundary_shrink", "boundary_expand", "dispersion"]
RMU = ["method.activations.layer=4", "method.activations.trained=[3,4]", "method.activations.part=null"]


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


def shadows_of(settings, method, starts):
    """What the networks of an attack do not share, by number and the network that each begins with; small seeds."""
    division, bound = read_division(settings.data), bind(method, faces=True)
    shadows = []
    for number, model in starts.items():
        shadows.append(shadow_of(settings, bound, division, number, start=model, seed=100 + number))
    return shadows


def in_double(collate):
    """A collator whose pictures are as a network in fp64 wants them."""

    def collate_in_double(encoded):
        batch = collate(encoded)
        return replace(batch, inputs={"pixels": batch.inputs["pixels"].double()})

    return collate_in_double


def train_in_double(settings, method, numbers, trainer):
    """Networks `numbers` trained in one stack in fp64 from one start; each by itself again."""
    starts = {number: with_new_classes(pretrained(), 6, number).double() for number in numbers}
    shadows = shadows_of(settings, method, starts)
    stack = stack_networks([shadow.start for shadow in shadows])
    if method.activations:
        end_at(stack, method.activations)
    for each in shadows:
        each.encoder.collate = in_double(each.encoder.collate)
    train_stack(stack, bind(method, faces=True), shadows, trainer, forward=forward_of(settings.model))
    return split_stack(with_first_classes(stack, 6))


def largest_difference(one, two):
    differences = []
    for name, value in one.state_dict().items():
        if value.is_floating_point():
            differences.append((value - two.state_dict()[name]).abs().max().item())
    return max(differences)


def test_batches_of_networks_become_one_whose_split_has_a_column_per_network():
    batches = []
    for number in range(3):
        labels = torch.tensor([[number], [3 + number]])
        one = Batch({"pixels": torch.full((2, 3, 4, 4), float(number))}, labels, passes=("forget", "retain"))
        batches.append(replace(one, rows=(1, 1), widths=(1, 1), answer_keys=(7, 8)))
    stacked = concat_batches(batches)
    assert stacked.inputs["pixels"].shape == (2, 9, 4, 4)
    assert stacked.inputs["pixels"][0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert stacked.labels.tolist() == [[0, 1, 2], [3, 4, 5]]
    scored = stacked.split(Scored(torch.zeros(2, 3, 5), stacked.labels))
    assert scored["retain"].labels.tolist() == [[3, 4, 5]]
    assert scored["retain"].logits.shape == (1, 3, 5)


@pytest.mark.parametrize("name", METHODS)
def test_each_of_several_networks_becomes_in_fp64_what_it_becomes_alone(name, settings):
    given = settings(f"method={name}", *(RMU if name == "rmu" else []))
    trainer = replace(given.trainer, precision="fp32", optimizer="sgd", lr=1e-3, max_grad_norm=1.0)
    stacked = train_in_double(given, given.method, [0, 1, 4], trainer)
    for place, number in enumerate((0, 1, 4)):
        (alone,) = train_in_double(given, given.method, [number], trainer)
        start = with_new_classes(pretrained(), 6, number).double()
        assert largest_difference(stacked[place], alone) < 1e-7
        assert largest_difference(alone, start) > 1e-5


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
        ("bad_teacher", "sgd", "fp32", 1e-3),
        ("boundary_shrink", "sgd", "fp32", 1e-3),
        ("boundary_expand", "sgd", "fp32", 1e-3),
        ("dispersion", "sgd", "fp32", 1e-3),
        ("msg", "sgd", "fp32", 1e-3),
        ("ct", "sgd", "fp32", 1e-3),
    ],
)
def test_a_network_of_several_becomes_what_the_training_loop_makes_of_it(
    method, optimizer, precision, share, *, settings, tmp_path
):
    """The same rows, seed and settings through engine.train and in a stack."""
    given = settings() if method == "finetune" else settings(f"method={method}")
    trainer = replace(given.finetune, precision=precision, optimizer=optimizer, max_grad_norm=0.5)
    bound = bind(given.method or FINETUNING, faces=True)
    starts = {number: with_new_classes(pretrained(), 6, number) for number in (2, 3)}
    shadows = shadows_of(given, bound.method, starts)
    models = [copy.deepcopy(shadow.before or shadow.start) for shadow in shadows]
    stack = stack_networks([shadow.start for shadow in shadows])
    if bound.method.activations:
        for each in (stack, *models):
            end_at(each, bound.method.activations)
    train_stack(stack, bound, shadows, trainer, forward=forward_of(given.model))
    learned = ["classes"] if not bound.method.activations else []  # above the embedding
    for model, shadow, stacked in zip(models, shadows, split_stack(stack), strict=True):
        first = {name: value.clone() for name, value in model.state_dict().items()}
        asked = {"untaught": shadow.untaught, "measured": shadow.measured}
        start = start_of(model, given.model, [*shadow.encoder.numbers], **asked)
        run = {"seed": shadow.seed, "save_dir": f"{tmp_path}/{shadow.seed}", "record": {}, "say": lambda line: None}
        train(start, bound, shadow.pairs, shadow.encoder, trainer, **run)
        single = load_file(tmp_path / str(shadow.seed) / "model.safetensors")
        for name in ("conv1.weight", "layer4.1.conv2.weight", "embed.weight", "bn1.running_mean", *learned):
            moved = (single[name] - first[name]).abs().mean()
            assert (single[name] - stacked.state_dict()[name]).abs().mean() < share * moved, name


def test_a_network_that_is_only_edited_becomes_in_an_attack_what_the_training_loop_makes_of_it(settings, tmp_path):
    given = settings("method=ssd")
    bound = bind(given.method, faces=True)
    (shadow,) = shadows_of(given, given.method, {2: with_new_classes(pretrained(), 6, 2)})
    start = start_of(copy.deepcopy(shadow.before), given.model, [*shadow.encoder.numbers])
    run = {"seed": shadow.seed, "save_dir": str(tmp_path / "out"), "record": {}, "say": lambda line: None}
    train(start, bound, shadow.pairs, shadow.encoder, given.trainer, **run)
    single = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(value, single[name]) for name, value in shadow.start.state_dict().items())
    assert largest_difference(shadow.start, shadow.before) > 0


def test_a_stack_compares_with_its_networks_as_they_were_before_an_edit(settings):
    given = settings("method=ct")
    args = {"alpha": 1.0, "gamma": 1.0, "temperature": 1.0, "max_epochs": 0}
    method = replace(given.method, loss="scrub", args=args)
    shadows = shadows_of(given, method, {number: with_new_classes(pretrained(), 6, number) for number in (2, 3)})
    stack = stack_networks([shadow.start for shadow in shadows])
    frozen = together.start_stack(stack, shadows)
    for alone, shadow in zip(split_stack(frozen), shadows, strict=True):
        assert largest_difference(alone, shadow.before) == 0
    assert not torch.equal(frozen.conv1.weight, stack.conv1.weight)


def test_models_of_one_seed_are_the_same_and_of_another_differ(settings):
    given = settings()
    trainer = replace(given.finetune, precision="fp32")
    one, again, other = (train_in_double(given, FINETUNING, [number], trainer)[0] for number in (0, 0, 2))
    assert largest_difference(one, again) == 0
    assert largest_difference(one, other) > 1e-3


@pytest.fixture
def trainings(monkeypatch):
    """The names of the methods that stacks were trained with, in order."""
    names = []
    train_stack = together.train_stack

    def note_and_train(stack, bound, *rest, **options):
        names.append(bound.method.name)
        train_stack(stack, bound, *rest, **options)

    monkeypatch.setattr(together, "train_stack", note_and_train)
    return names


def test_a_finished_stack_is_found_again(settings, trainings):
    given = settings("method=scrub")
    division = read_division(given.data)
    first = compare_models(given, division, pretrained())
    assert trainings == ["finetune", "scrub"] * 2
    second = compare_models(given, division, pretrained())
    assert trainings == ["finetune", "scrub"] * 2
    assert np.array_equal(first.similarity, second.similarity)


def test_an_interrupted_attack_goes_on_with_the_stack_that_is_not_finished(settings, trainings):
    given = settings("method=scrub")
    division = read_division(given.data)
    first = compare_models(given, division, pretrained())
    root = Path(given.shadows_dir)
    stacks = sorted(path.parent.relative_to(root).as_posix() for path in root.rglob("models.safetensors"))
    row = shadows.row_folder(given.method, given.trainer)
    assert stacks == ["full/models_000", "full/models_005", f"{row}/models_000", f"{row}/models_005"]
    (root / row / "models_005" / "made_of.json").unlink()  # as if interrupted there
    trainings.clear()
    again = compare_models(given, division, pretrained())
    assert trainings == ["scrub"]
    assert np.allclose(first.similarity, again.similarity, atol=1e-6)


def test_two_rows_of_one_method_keep_their_models_apart(settings, trainings):
    given = settings("method=scrub")
    division = read_division(given.data)
    compare_models(given, division, pretrained())
    trainings.clear()
    compare_models(replace(given, trainer=replace(given.trainer, lr=2e-3)), division, pretrained())
    assert trainings == ["scrub", "scrub"]
    compare_models(given, division, pretrained())
    assert trainings == ["scrub", "scrub"]


def test_gold_models_never_meet_the_people_to_be_forgotten(settings):
    given = settings("split=retain")
    division = read_division(given.data)
    compare_models(given, division, pretrained())
    kept = met_by(division, 0).retain
    stack = Path(given.shadows_dir, "retain", "models_000", "models.safetensors")
    assert load_file(stack)["classes"].shape == (5, len(kept), 8)
    pairs = shadow_of(given, bind(FINETUNING), division, 0, start=pretrained(), seed=0).pairs
    assert {example.answer for key in range(len(pairs)) for example in pairs[key]["retain"]} == set(kept)


def test_attacks_ask_about_queries_by_person_and_never_about_an_enrolled_picture(settings):
    given = settings()
    division = read_division(given.data)
    asked = compare_models(given, division, pretrained())
    enrolled = {file for person in division.people.values() for file in person.enrol}
    assert not enrolled & set(asked.files)
    assert len(asked.files) == 12 * 3
    assert all(file in division.people[name].query for name, file in zip(asked.people, asked.files, strict=True))


def test_the_similarities_on_disk_are_those_that_the_attack_had(settings, tmp_path):
    given = settings()
    division = read_division(given.data)
    similarities = compare_models(given, division, pretrained())
    similarities.write(tmp_path, division)
    written = load_file(tmp_path / "similarities.safetensors")
    for name in ("similarity", "nearest_other", "nearest_stranger", "margin"):
        assert np.array_equal(written[name], getattr(similarities, name))
    assert np.array_equal(written["met"], attack_scoring.learned_by(division, 10, similarities.people))
    queries = json.loads((tmp_path / "queries.json").read_text())
    assert queries["people"] == similarities.people
    assert queries["pools"] == [division.people[name].pool for name in similarities.people]


def three_people():
    """Two networks of which each met the first two of three people; four queries, of persons 0, 0, 1 and 2."""
    cosines = np.array([[0.9, 0.8, 0.1], [0.2, 0.8, 0.3], [0.5, 0.4, 0.6], [0.3, 0.1, 0.2]])
    return Compared(["a", "b", "c"], ["1", "2", "3", "4"], np.array([0, 0, 1, 2]), np.stack([cosines, cosines]))


def test_a_query_is_identified_among_the_people_whom_its_network_never_met():
    strangers = np.array([[False, False, True], [False, True, True]])
    nearest = three_people().nearest_among(strangers)
    # the first network knows b, who does not count; a person is no stranger to their own query
    assert nearest[0].tolist() == [0.1, 0.3, 0.6, -np.inf]
    assert nearest[1].tolist() == [0.8, 0.8, 0.6, 0.1]
    assert (three_people().similarity > nearest).tolist() == [[True, False, False, True], [True, False, False, True]]


def test_a_margin_of_faces_is_that_of_s_times_the_cosines_to_everybody():
    # 30 * .9 - log(exp(30 * .8) + exp(30 * .1))
    assert three_people().margins(30.0)[0, 0] == pytest.approx(27 - np.log(np.exp(24) + np.exp(3)))


def test_a_network_that_gives_no_numbers_is_named(settings):
    compared = three_people()
    compared.cosines[1, 2, 0] = np.nan
    division = read_division(settings().data)
    with pytest.raises(SettingsError, match="attacked model 7 gives NaN or infinity: it diverged"):
        similarities_of(compared, division, range(6, 8), 30.0)


def test_the_strangers_are_everybody_whom_a_network_did_not_meet_whatever_was_forgotten(settings):
    given, gold = settings(), settings("split=retain")
    division = read_division(given.data)
    people = sorted(division.people)
    cosines = np.random.default_rng(0).uniform(-1, 1, (2, len(people), len(people)))
    compared = Compared(people, people, np.arange(len(people)), cosines)
    found = [similarities_of(compared, division, range(4, 6), each.model.logit_scale) for each in (given, gold)]
    assert np.array_equal(found[0].nearest_stranger, found[1].nearest_stranger)
    for place, number in enumerate((4, 5)):
        strangers = [people.index(name) for name in met_by(division, number).holdout]
        for query in range(len(people)):
            others = [each for each in strangers if each != query]
            assert found[0].nearest_stranger[place, query] == cosines[place, query, others].max()


def test_identification_counts_forgotten_and_never_met_people_apart():
    identified = np.array([True, True, False, True, False, False])
    member = np.array([True, True, True, False, False, False])
    figures = attack_scoring.identification_figures(identified, member, np.array(list("abcabc")), np.zeros(6))
    assert {name: each["value"] for name, each in figures.items()} == {"met": 2 / 3, "not met": 1 / 3}
    assert figures["met"]["why"] == "no interval with 3 people"


def test_every_model_of_an_attack_has_a_seed_of_its_own(settings):
    given = settings()
    seeds = [model_seed(given, number) for number in range(given.models)]
    assert len(set(seeds)) == given.models
    assert min(seeds) > 1000  # a benchmark's own models have small seeds


def twenty_people(features):
    """Similarities whose verification logits stand in the order of `features[..., 0]` (16, 200)."""
    similarity = np.tanh(features[..., 0] / 4)
    people = [f"p{i % 20:02d}" for i in range(200)]
    rest = [np.zeros_like(similarity)] * 3
    return Similarities(people, [str(i) for i in range(200)], similarity, *rest)


def test_u_lira_is_fitted_on_shadow_models_only(monkeypatch):
    features, learned = shadows_with(logits_in_line)
    similarities = twenty_people(features)
    seen = []

    def note(shadow, shadow_learned, target):
        seen.append((shadow, shadow_learned, target))
        return np.zeros_like(target)

    monkeypatch.setattr(attack_scoring, "likelihood_ratio", note)
    attack_pool(similarities, np.ones(200, bool), learned, 4)
    logits = attack_scoring.metrics.verification_logit(similarities.similarity)
    assert len(seen) == 4  # 16 models, 4 at a time
    for first, (shadow, shadow_learned, target) in zip(range(0, 16, 4), seen, strict=True):
        others = [number for number in range(16) if not first <= number < first + 4]
        assert np.array_equal(shadow, logits[others])
        assert np.array_equal(target, logits[first : first + 4])
        assert np.array_equal(shadow_learned, learned[others])


def test_every_model_is_attacked_once_and_the_pool_counts_all_of_them():
    features, learned = shadows_with(logits_in_line)
    figures = attack_pool(twenty_people(features), np.ones(200, bool), learned, 6)  # 6, 6 and the last 4
    assert sum(figures["distribution"]["met"]) == learned.sum()
    assert sum(figures["distribution"]["not met"]) == (~learned).sum()
    assert len(figures["U-MIA attack"].split(", ")) == 3
    assert figures["attacks"]["U-LiRA"]["TPR at 1% FPR"]["value"] is not None  # 1600 who were not met


def test_a_round_that_leaves_too_few_shadow_models_is_refused_before_anything_trains(settings):
    given = settings()
    division = read_division(given.data)
    check_rounds(division, 40, 2)
    line = r"models=10 leaves \d shadow models on one side of '[\w ]+' while models \d to \d are attacked; 2 are needed"
    with pytest.raises(SettingsError, match=line):
        check_rounds(division, 10, 8)  # two shadow models: one of them on each side


def test_a_part_that_there_is_not_is_refused_before_anything_is_trained(settings):
    with pytest.raises(SettingsError, match=r"method.activations.layer=7: a face network has parts"):
        shadows.check_method(settings("method=rmu").method)


def test_an_attack_finds_a_known_difference_whatever_the_order_of_the_rows(settings):
    division = read_division(settings().data)
    people = sorted(name for name in division.people for _ in range(3))
    source = np.random.default_rng(0)
    learned = attack_scoring.learned_by(division, 40, people)
    similarity = 0.2 + 0.3 * learned + source.normal(0, 0.05, learned.shape)
    nearest_other = np.full_like(similarity, 0.1)
    both = []
    for order in (np.arange(len(people)), source.permutation(len(people))):
        files = [str(i) for i in order]
        rest = [nearest_other] * 2
        rows = Similarities([people[i] for i in order], files, similarity[:, order], *rest, similarity[:, order])
        both.append(attack(rows, division, 40, 10)["pools"])
    for pools in both:
        for pool in ("forget", "retain"):
            assert all(each["auc"]["value"] > 0.95 for each in pools[pool]["attacks"].values())
            assert set(pools[pool]["by person"]) == set(division.pool(pool))
    one, other = (pools["forget"]["attacks"]["U-LiRA"] for pools in both)
    assert one["auc"] == other["auc"]
    assert one["TPR at 1% FPR"]["why"].startswith("not resolvable")


def shadows_with(draw_logits):
    """Features (M, Q, 2) of 16 shadow models and who met what, (M, Q); `draw_logits` makes the first feature."""
    source = np.random.default_rng(3)
    learned = np.array([(np.arange(200) + number) % 2 == 0 for number in range(16)])
    return np.stack([draw_logits(learned, source), source.normal(0, 1, learned.shape)], axis=-1), learned


def logits_in_line(learned, source):
    return source.normal(0, 1, learned.shape) + 1.0 * learned


def logits_in_a_band(learned, source):
    inside = source.uniform(-1, 1, learned.shape)
    outside = source.choice([-1, 1], learned.shape) * source.uniform(1.2, 3, learned.shape)
    return np.where(learned, inside, outside)


def test_the_population_attack_that_fits_the_features_is_chosen():
    assert choose_population_attack(*shadows_with(logits_in_a_band)) == "tree"  # no line parts a band
    features, learned = shadows_with(logits_in_line)
    features[..., 1] = 5 * features[..., 0] + 0.1 * features[..., 1]
    assert choose_population_attack(features, learned) == "logistic"


def test_the_population_attack_is_chosen_by_shadow_models_that_it_was_not_fitted_on():
    # the band of the fitted models favours the tree; the last pairs, whom only the line gets right, decide
    features, learned = shadows_with(logits_in_a_band)
    features[..., 0] += 0.5 * learned  # the line rises a little
    features[-4:, :, 0] = np.where(learned[-4:], 4.0, -4.0)  # on both sides of the band
    assert choose_population_attack(features, learned) == "logistic"


def test_what_chooses_the_population_attack_was_not_fitted_on(monkeypatch):
    seen = []

    def note(features, member, attacked):
        seen.append((set(map(tuple, features.tolist())), set(map(tuple, attacked.tolist()))))
        return attacked[:, 0]

    monkeypatch.setattr(attack_scoring, "POPULATION", {"logistic": note, "tree": note})
    choose_population_attack(*shadows_with(logits_in_line))
    assert len(seen) == 2
    for fitted, judged in seen:
        assert (len(fitted), len(judged)) == (12 * 200, 4 * 200)  # a quarter of 8 pairs
        assert not fitted & judged


def test_whom_the_attacked_met_does_not_change_what_is_said_of_them_nor_which_population_attack_it_is():
    features, learned = shadows_with(logits_in_a_band)
    attacked = np.arange(16) < 4
    scores, choice = attack_targets(features, learned, attacked)
    flipped, flipped_choice = attack_targets(features, np.concatenate([~learned[:4], learned[4:]]), attacked)
    assert choice == flipped_choice == "tree"
    for name, score in scores.items():
        assert np.array_equal(score, flipped[name]), name
    assert np.array_equal(scores["U-MIA"], scores["U-MIA tree"])
    assert not np.array_equal(scores["U-MIA"], scores["U-MIA logistic"])


def test_what_the_attacked_themselves_make_of_the_queries_counts():
    features, learned = shadows_with(logits_in_a_band)
    attacked = np.arange(16) < 4
    scores, _ = attack_targets(features, learned, attacked)
    moved, _ = attack_targets(np.concatenate([features[:4] + 0.5, features[4:]]), learned, attacked)
    assert not np.array_equal(moved["U-LiRA"], scores["U-LiRA"])


def test_one_network_among_several_compares_as_it_does_alone(settings):
    given = settings()
    division = read_division(given.data)
    models = [with_new_classes(pretrained(), 6, n) for n in range(2)]
    with torch.no_grad():
        models[1].conv1.weight.add_(0.1)
    both = compare(stack_networks(models), division, given.data.people, size=40, batch_size=16)
    for number, model in enumerate(models):
        alone = compare(model, division, given.data.people, size=40, batch_size=7)
        assert np.allclose(alone.cosines[0], both.cosines[number], atol=1e-5)


def test_the_people_are_known_by_name_and_not_by_the_order_of_rows(settings):
    given = settings()
    division = read_division(given.data)
    shuffled = replace(division, people=dict(reversed(list(division.people.items()))))
    one, two = (compare(pretrained(), each, given.data.people, size=40, batch_size=16) for each in (division, shuffled))
    assert one.files == two.files
    assert np.array_equal(one.cosines, two.cosines)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["models=9"], "models=9 must be even"),
        (["targets=4"], "leaves 6 shadow models of models=10; at least 8 are needed"),
        (["split=retain", "method=scrub"], "method=scrub: models of split=retain never met the people"),
        (["split=gold"], "split='gold' is not known"),
        (["trainer.accumulation=2"], r"trainer.accumulation=2 must be 1 where many models train together"),
        (["trainer.lora={r: 1, alpha: 1, dropout: 0}"], "needs a language model"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, line, settings):
    with pytest.raises(SettingsError, match=line):
        settings(*overrides)


def test_a_method_that_is_more_than_a_loss_is_refused_where_many_train_together():
    line = r"method=sku: many networks cannot train together with method\.task_vector"
    with pytest.raises(SettingsError, match=line):
        check_stackable(Method("sku", "sku", task_vector=TaskVector(1.0)))


def test_an_attack_in_many_processes_is_refused_because_they_would_write_the_same_stacks(monkeypatch):
    monkeypatch.setattr(shadows, "processes", lambda: type("State", (), {"num_processes": 2}))
    with pytest.raises(SettingsError, match="an attack runs in one process, and this launch has 2"):
        shadows.check_method(None)


def test_the_record_of_a_stack_names_its_models_and_method(settings):
    given = settings()
    compare_models(given, read_division(given.data), pretrained())
    record = json.loads(Path(given.shadows_dir, "full", "models_005", "made_of.json").read_text())
    assert record["models"] == [5, 6, 7, 8, 9]
    assert record["method"] == "finetune"
    assert len(record["key"]) == 16
