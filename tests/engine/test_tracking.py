"""Figures that go to tensorboard or Weights & Biases: what a training, an evaluation and a row log there."""

import contextlib
import importlib.util
import json
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

import aggregate_eval_stat
from engine import tracking
from engine.tracking import means_of_logs, run_of, tracked, tracked_evaluation, wandb_refusal_said
from helpers import TOFU_LOGS, TRAINER, start
from settings import training as training_settings
from settings.script import SettingsError

need_tensorboard = pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="needs tensorboard")
need_wandb = pytest.mark.skipif(
    getattr(importlib.util.find_spec("wandb"), "origin", None) is None, reason="needs wandb"
)


def logged(folder):
    """Figure -> its (step, value) pairs, as tensorboard shows a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), purge_orphaned_data=True)
    events.Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        found[name] = [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]
    return {name: shown for name, shown in found.items() if shown}


# ---- tensorboard


@need_tensorboard
def test_a_run_of_tensorboard_has_the_name_of_the_row_and_its_figures(tmp_path):
    with tracked("tensorboard", tmp_path, "npo_seed0", job="train", first_step=0) as log:
        for step in (1, 2):
            log({"train/loss": 2.0 / step}, step)
    assert logged(tmp_path / "tensorboard" / "npo_seed0") == {"train/loss": [(1, 2.0), (2, 1.0)]}


@need_tensorboard
def test_a_training_that_goes_on_replaces_the_steps_that_were_lost(tmp_path):
    with tracked("tensorboard", tmp_path, "npo", job="train", first_step=0) as log:
        for step in (1, 2, 3):
            log({"train/loss": 9.0}, step)
    with tracked("tensorboard", tmp_path, "npo", job="train", first_step=2) as log:
        log({"train/loss": 5.0}, 2)
    assert logged(tmp_path / "tensorboard" / "npo") == {"train/loss": [(1, 9.0), (2, 5.0)]}


@need_tensorboard
def test_a_training_that_begins_anew_hides_the_former_one_with_its_evaluation(tmp_path):
    with tracked("tensorboard", tmp_path, "npo", job="train", first_step=0) as log:
        log({"train/loss": 9.0}, 1)
    with tracked("tensorboard", tmp_path, "npo", job="eval") as log:
        log({"eval_forget_qa/rougeL_recall": 0.1}, 0)
    with tracked("tensorboard", tmp_path, "npo", job="train", first_step=0) as log:
        log({"train/loss": 5.0}, 1)
    assert logged(tmp_path / "tensorboard" / "npo") == {"train/loss": [(1, 5.0)]}


@need_tensorboard
def test_an_evaluation_logs_the_means_of_every_task_under_the_name_of_its_model(tmp_path):
    folder = tmp_path / "npo_seed0" / "eval_results"
    folder.mkdir(parents=True)
    columns = {"avg_gt_loss": {"0": 1.0, "1": 2.0}, "person": {"0": "Ann", "1": "Bo"}}
    (folder / tracking.AGGREGATED).write_text(json.dumps({"eval_forget_qa.json": columns}))
    with tracked_evaluation("tensorboard", str(folder)):
        pass
    assert logged(tmp_path / "tensorboard" / "npo_seed0") == {"eval_forget_qa/avg_gt_loss": [(0, 1.5)]}


@need_tensorboard
def test_a_result_row_is_logged_under_its_name(tmp_path, monkeypatch, capsys):
    logs = {"ckpt_result": "llama2-7b_full", "retain_result": "llama2-7b_retain90"}
    row = [f"{name}={TOFU_LOGS}/{file}.json" for name, file in logs.items()]
    options = ["scoring=nlp", "method_name=mine", f"save_file={tmp_path}/row.json", "report_to=tensorboard"]
    assert start(aggregate_eval_stat, [*row, *options], monkeypatch) == 0, capsys.readouterr().err
    found = logged(tmp_path / "tensorboard" / "mine_llama2-7b_full")
    (written,) = json.loads((tmp_path / "row.json").read_text())
    # how many seeds a row of the table stands for is no figure of the model
    known = {name: value for name, value in written.items() if is_number(value) and name != "Seeds"}
    assert len(found) == len(known) > 5
    assert found["Model Utility"] == [(0, known["Model Utility"])]


def is_number(value):
    return isinstance(value, int | float)


# ---- what is logged, and where


@pytest.mark.parametrize(
    ("folder", "name"), [("models/npo/eval_results", "npo"), ("models/npo", "npo"), ("models/start", "start")]
)
def test_an_evaluation_in_its_models_folder_has_the_name_of_the_model(folder, name, tmp_path):
    assert run_of(tmp_path / folder) == tmp_path / "models" / name


def test_the_means_of_a_log_are_those_of_numbers_alone():
    columns = {
        "rougeL_recall": {"0": 0.5, "1": 1.0},
        "average_perturb_loss": {"0": [1.0], "1": [2.0]},
        "generated_text": {"0": ["a", "b", "c"], "1": ["a", "b", "c"]},
        "empty": {},
    }
    assert means_of_logs({"eval_forget_qa.json": columns}) == {"eval_forget_qa/rougeL_recall": 0.75}


def test_who_reports_to_nobody_writes_nothing(tmp_path):
    with tracked("none", tmp_path, "npo", job="train") as log:
        log({"train/loss": 1.0}, 1)
    with tracked_evaluation("none", str(tmp_path / "not there")):
        pass
    assert list(tmp_path.iterdir()) == []


# ---- Weights & Biases


@need_wandb
def test_weights_and_biases_takes_a_run_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    with tracked("wandb", tmp_path, "npo_seed0", job="train", first_step=0, settings={"seed": 0}) as log:
        log({"train/loss": 1.0}, 1)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = run.glob("*.wandb")
    end = time.monotonic() + 60  # a process of the library's own writes it
    while not all(part in file.read_bytes() for part in (b"npo_seed0", b"train/loss", b"clear-unlearning")):
        assert time.monotonic() < end, "it was not written"
        time.sleep(0.1)


def test_a_run_of_weights_and_biases_is_told_name_kind_project_and_settings(tmp_path, monkeypatch):
    """The package itself is in no requirement of the tests: what it would be given stands in its place."""
    given, figures, ended = {}, [], []
    run = SimpleNamespace(log=lambda values, step: figures.append((step, values)), finish=lambda: ended.append(1))
    fake = SimpleNamespace(init=lambda **options: (given.update(options), run)[1])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    with tracked("wandb", tmp_path, "npo_seed0", job="train", first_step=0, settings={"seed": 3}) as log:
        log({"train/loss": 1.0}, 1)
    about = {"name": "npo_seed0", "group": "npo_seed0", "job_type": "train", "config": {"seed": 3}}
    assert given == {"project": "clear-unlearning", **about}
    assert figures == [(1, {"train/loss": 1.0})]
    assert ended == [1]


def test_a_refusal_of_weights_and_biases_is_one_line():
    refusal = type("UsageError", (Exception,), {"__module__": "wandb.errors"})
    said = r"^report_to=wandb: nobody is logged in \(WANDB_MODE=offline keeps the figures here\)$"
    with pytest.raises(SettingsError, match=said), wandb_refusal_said():
        raise refusal("nobody is\n logged in")
    with pytest.raises(ZeroDivisionError), wandb_refusal_said():
        raise ZeroDivisionError


# ---- what is not installed


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)], ids=["nothing", "a folder of that name"])
def test_a_tracker_that_is_not_installed_names_the_file_that_installs_it(tracker, found, monkeypatch):
    monkeypatch.setattr(training_settings.importlib.util, "find_spec", lambda package: found)
    said = rf"^trainer\.report_to={tracker}: {tracker} is not installed \(pip install -r req-track\.txt\)$"
    with pytest.raises(SettingsError, match=said):
        replace(TRAINER, report_to=tracker)


def test_who_may_not_report_is_told_before_anything_is_evaluated(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def refused(*told, **options):
        raise SettingsError("report_to=wandb: not logged in")
        yield

    monkeypatch.setattr(tracking, "tracked", refused)
    with pytest.raises(SettingsError, match="not logged in"), tracked_evaluation("wandb", str(tmp_path)):
        pytest.fail("it was evaluated")
