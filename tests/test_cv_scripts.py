"""The five scripts of face recognition as their users start them, at tiny size; one line for a mistake."""

import json
import re
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
from cv.face_settings import ForgetFaces
from cv.pictures import met_by, read_division
from helpers import start
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
    "retrain",
    "npo",
    "grad_ascent",
]
TASKS = ["eval_forget_faces", "eval_holdout_faces", "eval_retain_faces"]


@pytest.fixture(scope="module")
def made(face_overrides, tmp_path_factory):
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


def test_training_writes_weights_configuration_and_record_and_no_pickle(made):
    for name, people in (("pretrained", 3), ("base", 6), ("gold", 4)):
        assert {file.name for file in (made / name).iterdir()} - {"eval_results"} == {
            "config.json",
            "model.safetensors",
            "train_meta.json",
        }
        assert len(json.loads((made / name / "config.json").read_text())["classes"]) == people
        losses = [loss for _, loss in json.loads((made / name / "train_meta.json").read_text())["loss"]]
        assert losses[-1] < losses[0]


def test_the_base_learns_the_people_and_the_gold_model_never_met_those_to_be_forgotten(made, face_overrides):
    met = met_by(read_division(compose("cv/forget", ForgetFaces, face_overrides).data), None)
    classes = {name: json.loads((made / name / "config.json").read_text())["classes"] for name in ("base", "gold")}
    assert classes["base"] == met.trained and classes["gold"] == met.retain and len(met.forget) == 2


def test_the_log_has_the_other_tracks_layout_and_covers_every_query_once(made):
    log = json.loads((made / "base" / "eval_results" / "eval_log_aggregated.json").read_text())
    assert sorted(log) == [f"{task}.json" for task in TASKS]
    rows = [row for task in log.values() for row in task["avg_gt_loss"]]
    assert sorted(map(int, rows)) == list(range(36))
    task = log["eval_forget_faces.json"]
    for row, (question, said, truth) in task["generated_text"].items():
        assert question and task["exact_memorization"][row] == float(said == truth) and task["person"][row] == truth
        assert len(task["average_perturb_loss"][row]) == 11
        total = np.exp(-task["avg_gt_loss"][row]) + np.exp(-np.array(task["average_perturb_loss"][row])).sum()
        assert total == pytest.approx(1)  # a distribution over people


def test_verification_is_given_for_each_group(made):
    figures = json.loads((made / "base" / "eval_results" / "verification.json").read_text())
    assert {group: each["people"] for group, each in figures.items()} == {"forget": 2, "retain": 4, "holdout": 6}
    for each in figures.values():
        assert 0 <= each["eer"] <= 1 and 0 <= each["accuracy"] <= 1
        assert sum(each["genuine"]) == each["queries"] and sum(each["impostor"]) == each["queries"] * 11


def test_the_aggregator_makes_a_row_with_distance_to_gold_of_the_faces_logs(made):
    logs = {name: f"{made}/{name}/eval_results/eval_log_aggregated.json" for name in ("base", "gold")}
    common = [
        "scoring=cv",
        f"retain_result={logs['gold']}",
        f"base_result={logs['base']}",
        "method_name=x",
        f"save_file={made}/row.csv",
    ]
    for name, distance in (("base", 1.0), ("gold", 0.0)):
        row = aggregate(compose("aggregate_eval_stat", Aggregate, [f"ckpt_result={logs[name]}", *common]))
        assert row["Distance to gold"] == pytest.approx(distance)
        assert row["Gate"] in ("passed", "failed") and 0 <= row["Exact Memorization eval_forget_faces"] <= 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_network_that_can_be_evaluated(method, made, face_overrides, tmp_path, monkeypatch):
    own = ["method.activations.layer=4", "method.activations.trained=[3,4]"] if method == "rmu" else []
    overrides = [
        f"model.path={made}/pretrained",
        f"model_path={made}/base",
        f"method={method}",
        f"save_dir={tmp_path}/out",
        *QUICK,
        *face_overrides,
        *own,
    ]
    assert start(cv.forget, overrides, monkeypatch) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (made / "base", tmp_path / "out"))
    moved = [
        name for name in before if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    ]
    assert before.keys() == after.keys() and moved
    if method == "rmu":  # running means move wherever pictures pass, weights in the named parts only
        assert all(name.startswith(("layer3.", "layer4.")) or "running" in name or "tracked" in name for name in moved)
    assert len(json.loads((tmp_path / "out" / "config.json").read_text())["classes"]) == (
        4 if method == "retrain" else 6
    )
    assert start(cv.eval, [f"model_path={tmp_path}/out", *face_overrides], monkeypatch) == 0


def test_the_same_seed_gives_the_same_network(made, face_overrides, tmp_path, monkeypatch):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        overrides = [
            f"model_path={made}/base",
            "method=twins",
            f"save_dir={tmp_path}/{name}",
            *QUICK[:2],
            f"seed={seed}",
            *face_overrides,
        ]
        assert start(cv.forget, overrides, monkeypatch) == 0
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other


def test_retrain_makes_the_gold_model_that_finetuning_on_the_kept_makes(made, face_overrides, tmp_path, monkeypatch):
    start_of_both, often = f"{made}/pretrained", ["epochs=3", "batch_size=8"]
    own = [*face_overrides, "seed=5"]
    gold = [
        f"model_path={start_of_both}",
        "split=retain",
        f"save_dir={tmp_path}/gold",
        *(f"trainer.{each}" for each in often),
    ]
    again = [
        f"model.path={start_of_both}",
        "method=retrain",
        f"save_dir={tmp_path}/again",
        *(f"finetune.{each}" for each in often),
        "trainer.epochs=1",
    ]
    assert start(cv.finetune, [*gold, *own], monkeypatch) == 0 and start(cv.forget, [*again, *own], monkeypatch) == 0
    assert (tmp_path / "gold" / "model.safetensors").read_bytes() == (
        tmp_path / "again" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("script", [cv.finetune, cv.attack, cv.forget], ids=lambda script: script.__name__)
def test_a_start_that_has_met_the_people_is_refused(script, made, face_overrides, tmp_path, monkeypatch, capsys):
    own = [f"model.path={made}/base", "method=retrain"] if script is cv.forget else [f"model_path={made}/base"]
    models = ["models=10", "targets=2"] if script is cv.attack else []
    assert start(script, [*own, *models, f"save_dir={tmp_path}/out", *face_overrides], monkeypatch) == 1
    assert re.search(
        r"^error: model_path='.*base' has met 'people \d+' and 5 more of data.people; begin with what cv/pretrain.py makes$",
        capsys.readouterr().err.strip(),
    )


def test_a_face_training_speaks_of_no_tokens(made):
    record = json.loads((made / "base" / "train_meta.json").read_text())
    assert "padding" not in record and "tokens_per_second" not in record and record["seconds"] > 0


def test_the_rate_peaks_where_the_settings_say(made, face_overrides, tmp_path, monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *a, **k: (rates.append(self.param_groups[0]["lr"]), step(self, *a, **k))[1],
    )
    overrides = [
        f"model_path={made}/pretrained",
        f"save_dir={tmp_path}/out",
        *QUICK,
        *face_overrides,
        "trainer.optimizer=sgd",
        "trainer.lr=0.1",
    ]
    assert start(cv.finetune, [*overrides, "trainer.warmup_ratio=0.5"], monkeypatch) == 0
    assert len(rates) == 6 and max(rates) == rates[3] == pytest.approx(0.1) and rates[0] == 0


def test_an_attack_writes_scores_figures_and_record_for_both_pools(made, face_overrides, tmp_path, monkeypatch, capsys):
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
        f"model_path={made}/pretrained",
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
        "scores.safetensors",
    }
    figures = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert figures["shadows"] == 8 and figures["targets"] == 2 and set(figures["pools"]) == {"forget", "retain"}
    for pool in figures["pools"].values():
        assert set(pool["attacks"]) == {"U-LiRA", "U-MIA", "U-MIA logistic", "U-MIA tree"}
        for each in pool["attacks"].values():
            assert (
                0 <= each["accuracy"]["value"] <= 1
                and each["accuracy"]["low"] is None
                and "no interval with" in each["accuracy"]["why"]
            )
            assert each["TPR at 1% FPR"]["value"] is None and "not resolvable" in each["TPR at 1% FPR"]["why"]
            assert each["roc"][0] == [0, 0] and each["roc"][-1] == [1, 1]
    assert load_file(tmp_path / "out" / "scores.safetensors")["own"].shape == (10, 36)
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
        ["models=10", "targets=2", "+trainer.report_to=wandb"],
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
    assert error.count("\n") == 1 and error.startswith("error: ") and re.search(line, error), error
    assert not list(tmp_path.iterdir()) and not Path("no").exists()


@pytest.mark.parametrize(
    "script", [cv.pretrain, cv.finetune, cv.forget, cv.eval, cv.attack], ids=lambda script: script.__name__
)
def test_an_existing_output_folder_names_overwrite(script, made, face_overrides, tmp_path, monkeypatch, capsys):
    common = [*face_overrides, f"save_dir={tmp_path}"]
    assert start(script, common, monkeypatch) == 1
    assert capsys.readouterr().err == f"error: save_dir='{tmp_path}' exists; overwrite=true replaces it\n"
    assert start(script, [*common, "overwrite=true"], monkeypatch) == 1
    assert "holds something else than a former run" in capsys.readouterr().err and tmp_path.is_dir()
