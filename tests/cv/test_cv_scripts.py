"""The five scripts of face recognition as their users start them, at tiny size; one line for a mistake."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cv.attack
import cv.eval
import cv.finetune
import cv.forget
import cv.pretrain
from aggregate_eval_stat import aggregate
from cv.compare import compare
from cv.division import met_by, read_division
from cv.face_settings import EvalFaces, ForgetFaces
from cv.network import load_network
from cv.pictures import read_pictures, to_pixels
from helpers import ROOT, start
from settings.results import Aggregate
from settings.script import compose

QUICK = ["trainer.epochs=2", "trainer.batch_size=8", "seed=0"]
METHODS = [
    "retain_ft",
    "neggrad",
    "scrub",
    "scrub_bio",
    "twins",
    "dpo",
    "llmu",
    "rmu",
    "sparsity",
    "npo",
    "grad_ascent",
    "npo_sam",
    "gru",
    "jensun",
    "flat",
    "ssd",
    "ct",
    "negation",
    "bad_teacher",
    "boundary_shrink",
    "boundary_expand",
    "dispersion",
    "msg",
]
TASKS = ["eval_forget_faces", "eval_holdout_faces", "eval_retain_faces"]


@pytest.fixture(scope="module")
def networks(face_overrides, tmp_path_factory):
    """A folder with a pretrained network, a base, a gold model, and their evaluations."""
    folder = tmp_path_factory.mktemp("cv")
    patch = pytest.MonkeyPatch()
    assert start(cv.pretrain, [f"save_dir={folder}/pretrained", *QUICK, *face_overrides], patch) == 0
    for name, split in (("base", "full"), ("gold", "retain")):
        overrides = [
            f"split={split}",
            f"model_path={folder}/pretrained",
            f"save_dir={folder}/{name}",
            "trainer.epochs=20",
            "trainer.batch_size=8",
        ]
        assert start(cv.finetune, [*overrides, *face_overrides], patch) == 0
        assert start(cv.eval, [f"model_path={folder}/{name}", *face_overrides], patch) == 0
    patch.undo()
    return folder


def classes_in(folder):
    return json.loads((folder / "config.json").read_text())["classes"]


def test_training_writes_weights_configuration_and_record_and_no_pickle(networks):
    files = {"config.json", "model.safetensors", "metrics.jsonl", "train_meta.json"}
    for name in ("pretrained", "base", "gold"):
        assert {file.name for file in (networks / name).iterdir()} - {"eval_results"} == files


def test_training_lowers_the_loss_and_a_network_has_a_class_for_each_of_its_people(networks):
    for name, people in (("pretrained", 3), ("base", 6), ("gold", 4)):
        assert len(classes_in(networks / name)) == people
        losses = [loss for _, loss in json.loads((networks / name / "train_meta.json").read_text())["loss"]]
        assert losses[-1] < losses[0]


def test_the_base_learns_the_people_and_the_gold_model_never_met_those_to_be_forgotten(networks, face_overrides):
    met = met_by(read_division(compose("cv/forget", ForgetFaces, face_overrides).data), None)
    assert classes_in(networks / "base") == met.trained
    assert classes_in(networks / "gold") == met.retain
    assert len(met.forget) == 2


def test_the_log_has_the_other_tracks_layout_and_covers_every_query_once(networks):
    log = json.loads((networks / "base" / "eval_results" / "eval_log_aggregated.json").read_text())
    assert sorted(log) == [f"{task}.json" for task in TASKS]
    rows = [row for task in log.values() for row in task["avg_gt_loss"]]
    assert sorted(map(int, rows)) == list(range(36))
    task = log["eval_forget_faces.json"]
    for row, (question, answer, truth) in task["generated_text"].items():
        assert question
        assert task["exact_memorization"][row] == float(answer == truth)
        assert task["person"][row] == truth
        assert len(task["average_perturb_loss"][row]) == 11
        total = np.exp(-task["avg_gt_loss"][row]) + np.exp(-np.array(task["average_perturb_loss"][row])).sum()
        assert total == pytest.approx(1)  # a distribution over people


def test_verification_is_given_for_each_group(networks):
    figures = json.loads((networks / "base" / "eval_results" / "verification.json").read_text())
    assert {group: each["people"] for group, each in figures.items()} == {"forget": 2, "retain": 4, "holdout": 6}
    for each in figures.values():
        assert 0 <= each["eer"] <= 1
        assert 0 <= each["accuracy"] <= 1
        assert sum(each["genuine"]) == each["queries"]
        assert sum(each["impostor"]) == each["queries"] * 11


def test_zeroing_the_heads_rows_of_the_forgotten_changes_no_identification(networks, face_overrides):
    """A cheat that answers no question about the forgotten, and knows their faces as before."""
    settings = compose("cv/eval", EvalFaces, [f"model_path={networks}/base", *face_overrides])
    division, album = read_division(settings.data), settings.data.people
    met = met_by(division, None)
    base, classes = load_network(settings.model_path, settings.model)
    cheat = copy.deepcopy(base)
    forgotten = [classes.index(name) for name in met.forget]
    with torch.no_grad():
        cheat.classes[:, forgotten] = 0
    files = [file for name in met.forget for file in division.people[name].train]
    pictures = to_pixels(torch.stack([*read_pictures(album, files, 40).values()]))
    owners = torch.tensor([classes.index(name) for name in met.forget for _ in division.people[name].train])
    with torch.no_grad():
        known = [(network.eval()(pictures)[:, 0].argmax(-1) == owners).float().mean() for network in (base, cheat)]
    assert known[0] > 0.5
    assert known[1] == 0
    asked = [compare(network, division, album, size=40, batch_size=16) for network in (base, cheat)]
    strangers = np.array([[name in met.holdout for name in asked[0].people]])
    identified = [each.similarity > each.nearest_among(strangers) for each in asked]
    assert np.array_equal(*identified)
    assert np.array_equal(asked[0].margins(30.0), asked[1].margins(30.0))


def test_the_aggregator_makes_a_row_with_distance_to_gold_of_the_faces_logs(networks):
    logs = {name: f"{networks}/{name}/eval_results/eval_log_aggregated.json" for name in ("base", "gold")}
    common = [
        "scoring=cv",
        f"retain_result={logs['gold']}",
        f"base_result={logs['base']}",
        "method_name=x",
        f"save_file={networks}/row.csv",
    ]
    for name, distance in (("base", 1.0), ("gold", 0.0)):
        result = aggregate(compose("aggregate_eval_stat", Aggregate, [f"ckpt_result={logs[name]}", *common]))
        assert result.value("distance_to_gold") == pytest.approx(distance)
        assert result.value("gate") in (0, 1)
        assert 0 <= result.value("exact_memorization", "eval_forget_faces") <= 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_network_that_can_be_evaluated(method, networks, face_overrides, tmp_path, monkeypatch):
    stages = ["method.activations.layer=4", "method.activations.trained=[3,4]", "method.activations.part=null"]
    overrides = [
        f"model.path={networks}/pretrained",
        f"model_path={networks}/base",
        f"method={method}",
        f"save_dir={tmp_path}/out",
        *QUICK,
        *face_overrides,
        *(stages if method == "rmu" else []),
    ]
    assert start(cv.forget, overrides, monkeypatch) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (networks / "base", tmp_path / "out"))
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]  # of another shape: not equal
    assert moved
    if method == "rmu":  # running means move wherever pictures pass, weights in the named parts only
        assert all(name.startswith(("layer3.", "layer4.")) or "running" in name or "tracked" in name for name in moved)
    assert len(classes_in(tmp_path / "out")) == 6
    assert start(cv.eval, [f"model_path={tmp_path}/out", *face_overrides], monkeypatch) == 0


def test_the_same_seed_gives_the_same_network(networks, face_overrides, tmp_path, monkeypatch):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        overrides = [
            f"model_path={networks}/base",
            "method=twins",
            f"save_dir={tmp_path}/{name}",
            *QUICK[:2],
            f"seed={seed}",
            *face_overrides,
        ]
        assert start(cv.forget, overrides, monkeypatch) == 0
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other


@pytest.mark.parametrize("script", [cv.finetune, cv.attack], ids=lambda script: script.__name__)
def test_a_start_that_has_met_the_people_is_refused(script, networks, face_overrides, tmp_path, *, monkeypatch, capsys):
    models = ["models=10", "targets=2"] if script is cv.attack else []
    assert (
        start(
            script, [f"model_path={networks}/base", *models, f"save_dir={tmp_path}/out", *face_overrides], monkeypatch
        )
        == 1
    )
    line = r"error: model_path='.*base' has met 'people \d+' and 5 more of data.people; begin with what .* makes\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_a_face_training_speaks_of_no_tokens(networks):
    record = json.loads((networks / "base" / "train_meta.json").read_text())
    assert not {"padding", "tokens_per_second"} & record.keys()
    assert record["seconds"] > 0


def test_the_rate_peaks_where_the_settings_say(networks, face_overrides, tmp_path, monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def note_and_step(self, *args, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", note_and_step)
    overrides = [
        f"model_path={networks}/pretrained",
        f"save_dir={tmp_path}/out",
        *QUICK,
        *face_overrides,
        "trainer.optimizer=sgd",
        "trainer.lr=0.1",
    ]
    assert start(cv.finetune, [*overrides, "trainer.warmup_ratio=0.5"], monkeypatch) == 0
    assert len(rates) == 6
    assert max(rates) == rates[3] == pytest.approx(0.1)
    assert rates[0] == 0


def test_an_attack_writes_similarities_figures_and_record_for_both_pools(
    networks, face_overrides, tmp_path, monkeypatch, capsys
):
    quick = [
        "finetune.epochs=1",
        "finetune.batch_size=8",
        "trainer.epochs=1",
        "trainer.batch_size=8",
        "models=10",
        "targets=2",
        "together=5",
        "method=scrub",
    ]
    overrides = [
        f"model_path={networks}/pretrained",
        f"save_dir={tmp_path}/out",
        f"shadows_dir={tmp_path}/shadows",
        *quick,
        *face_overrides,
    ]
    assert start(cv.attack, overrides, monkeypatch) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "attack.json",
        "attack_meta.json",
        "queries.json",
        "similarities.safetensors",
    }
    figures = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert (figures["shadows"], figures["targets"]) == (8, 2)
    assert set(figures["pools"]) == {"forget", "retain"}
    for pool in figures["pools"].values():
        assert set(pool["attacks"]) == {"U-LiRA", "U-MIA", "U-MIA logistic", "U-MIA tree"}
        for each in pool["attacks"].values():
            assert 0 <= each["accuracy"]["value"] <= 1
            assert each["accuracy"]["low"] is None
            assert "no interval with" in each["accuracy"]["why"]
            assert each["TPR at 1% FPR"]["value"] is None
            assert "not resolvable" in each["TPR at 1% FPR"]["why"]
            assert (each["roc"][0], each["roc"][-1]) == ([0, 0], [1, 1])
        for each in pool["identification"].values():
            assert 0 <= each["value"] <= 1
            assert "no interval with" in each["why"]
    assert load_file(tmp_path / "out" / "similarities.safetensors")["similarity"].shape == (10, 36)
    assert "forget: U-LiRA accuracy" in capsys.readouterr().out


MISTAKES = {
    "a network that is not there": (
        cv.forget,
        ["model_path=models/none"],
        r"model_path='models/none' holds no face network",
    ),
    "an unknown split": (cv.finetune, ["split=fulll"], r"split='fulll' is not known \(did you mean 'full'\?\)"),
    "an adapter": (
        cv.finetune,
        ["trainer.lora={r: 4, alpha: 8, dropout: 0.0}"],
        r"trainer.lora=.* needs a language model",
    ),
    "an unknown setting": (cv.eval, ["model.widht=8"], r"unknown setting model\.widht \(did you mean 'width'\?\)"),
    "a method with unknown hyperparameters": (
        cv.forget,
        ["method=neggrad", "+method.args.gamma=1"],
        r"method\.args\.gamma is not a hyperparameter of neggrad",
    ),
    "too few shadow models": (cv.attack, ["models=8"], r"targets=16 leaves -8 shadow models"),
    "an optimizer that many networks cannot share": (
        cv.attack,
        ["models=10", "targets=2", "trainer.report_to=wandb"],
        r"(trainer.report_to=wandb must be none where many models train together|wandb is not installed)",
    ),
    "a method that is more than a loss": (
        cv.attack,
        ["method=sku"],
        r"many networks cannot train together with method.task_vector",
    ),
    "people that are not there": (
        cv.pretrain,
        ["data.people.path=no/such", "data.split_file=no/division.json"],
        r"data path 'no/such' does not exist",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_in_one_line_and_exit_code_one_with_nothing_written(
    case, face_overrides, tmp_path, monkeypatch, capsys
):
    script, overrides, line = MISTAKES[case]
    capsys.readouterr()
    assert start(script, [*face_overrides, f"save_dir={tmp_path}/out", *overrides], monkeypatch) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{line}.*\n", error), error
    assert not list(tmp_path.iterdir())
    assert not Path("no").exists()


@pytest.mark.parametrize("script", [cv.finetune, cv.forget, cv.eval, cv.attack], ids=lambda script: script.__name__)
def test_a_network_that_is_not_there_is_said_before_any_picture_is_read(
    script, face_overrides, tmp_path, monkeypatch, capsys
):
    pictures = [f"data.people.path={tmp_path}/none", f"data.split_file={tmp_path}/division.json"]
    overrides = [*face_overrides, *pictures, f"save_dir={tmp_path}/out", f"model_path={tmp_path}/nowhere"]
    assert start(script, overrides, monkeypatch) == 1
    assert re.match(r"error: model_path='.*nowhere' holds no face network", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["pretrain", "finetune", "forget", "eval", "attack"])
def test_a_misspelt_setting_is_said_before_torch_is_imported(name):
    code = (
        f"import sys, cv.{name}\n"
        "sys.argv = ['script', 'sedd=1']\n"
        "try:\n"
        f"    cv.{name}.main()\n"
        "except SystemExit as stop:\n"
        "    print(stop.code, 'torch' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout == "1 False\n"
    assert run.stderr.startswith("error: unknown setting sedd")


@pytest.mark.parametrize(
    "script", [cv.pretrain, cv.finetune, cv.forget, cv.eval, cv.attack], ids=lambda script: script.__name__
)
def test_an_existing_output_folder_names_overwrite(script, networks, face_overrides, tmp_path, *, monkeypatch, capsys):
    common = [*face_overrides, f"save_dir={tmp_path}"]
    assert start(script, common, monkeypatch) == 1
    assert capsys.readouterr().err == f"error: save_dir='{tmp_path}' exists; overwrite=true replaces it\n"
    assert start(script, [*common, "overwrite=true"], monkeypatch) == 1
    assert "holds something else than a former run" in capsys.readouterr().err
    assert tmp_path.is_dir()
