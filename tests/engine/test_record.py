"""What a run leaves beside its results: whole or not there, with the key of what it did."""

import json
import os
from dataclasses import replace

import pytest
import torch

from engine import record
from engine.folders import MARK
from engine.record import (
    peak_memory_gb,
    read_json,
    start_of_peak,
    work_key,
    write_record,
    write_text_whole,
)
from engine.source import code_of
from helpers import ROOT
from settings.inputs import Inputs
from settings.script import SettingsError


def test_a_file_is_replaced_in_one_go(tmp_path):
    for text in ("old", "new"):
        write_text_whole(tmp_path / "a.json", text)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.json", "new")]


@pytest.mark.skipif(
    torch.cuda.is_available() or not os.access("/proc/self/clear_refs", os.W_OK),
    reason="measures main memory where Linux lets a peak be reset",
)
def test_peak_memory_speaks_of_what_came_since_its_start():
    large = torch.ones(100_000_000)  # 0.4 GB
    high = peak_memory_gb()
    del large
    start_of_peak()
    assert high > 0.4 and peak_memory_gb() < high - 0.2


# ---- keys

SETTINGS = {"seed": 0, "trainer": {"lr": 1e-3}, "save_dir": "out"}
CODE = code_of(ROOT / "mm" / "eval.py")


@pytest.fixture
def inputs(tmp_path):
    """A data folder, a model folder and a file, with a key of their own."""
    for folder, name in (("data", "rows.jsonl"), ("model", "model.safetensors"), ("files", "idk.txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("first")
    return Inputs([f"{tmp_path}/data"], [f"{tmp_path}/model"], [f"{tmp_path}/files/idk.txt"], losses=["npo"])


def test_the_same_work_has_the_same_key(inputs):
    assert work_key(SETTINGS, inputs, CODE) == work_key({**SETTINGS}, replace(inputs), CODE)


@pytest.mark.parametrize("change", [{"seed": 1}, {"trainer": {"lr": 1e-4}}, {"new": None}], ids=str)
def test_a_key_changes_with_the_settings(change, inputs):
    assert work_key({**SETTINGS, **change}, inputs, CODE) != work_key(SETTINGS, inputs, CODE)


@pytest.mark.parametrize("change", [{"save_dir": "other"}, {"model_path": "other"}, {"overwrite": True}], ids=str)
def test_a_key_does_not_change_with_the_place_of_the_results(change, inputs):
    assert work_key({**SETTINGS, **change}, inputs, CODE) == work_key(SETTINGS, inputs, CODE)


@pytest.mark.parametrize("file", ["data/rows.jsonl", "model/model.safetensors", "files/idk.txt"])
def test_a_key_changes_with_what_is_read(file, inputs, tmp_path):
    before = work_key(SETTINGS, inputs, CODE)
    (tmp_path / file).write_text("other text")
    assert work_key(SETTINGS, inputs, CODE) != before


def test_a_key_changes_with_the_loss_that_is_named(inputs):
    assert work_key(SETTINGS, replace(inputs, losses=["dpo"]), CODE) != work_key(SETTINGS, inputs, CODE)


def test_a_key_changes_with_the_code(inputs):
    assert work_key(SETTINGS, inputs, code_of(ROOT / "nlp" / "eval.py")) != work_key(SETTINGS, inputs, CODE)


def test_a_key_does_not_change_with_the_libraries(inputs, monkeypatch):
    before = work_key(SETTINGS, inputs, CODE)
    monkeypatch.setattr(record, "versions", lambda: {"torch": "another"})
    assert work_key(SETTINGS, inputs, CODE) == before


@pytest.mark.parametrize("watching", [{"save_every": "1step"}, {"report_to": "wandb"}], ids=str)
def test_a_key_does_not_change_with_how_a_training_is_watched(watching, inputs):
    changed = {**SETTINGS, "trainer": {**SETTINGS["trainer"], **watching}}
    assert work_key(changed, inputs, CODE) == work_key(SETTINGS, inputs, CODE)


MADE = {"key": "a", "settings": SETTINGS, "inputs": {"data": ["d"], "models": ["m"], "files": ["f"]}, "code": "c"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"settings": {**SETTINGS, "trainer": {"lr": 2e-3}}}, ["trainer.lr: 0.001 -> 0.002"]),
        ({"settings": {**SETTINGS, "trainer": {"lr": 1e-3, "l1": 0.5}}}, ["trainer.l1: None -> 0.5"]),
        ({"settings": {**SETTINGS, "save_dir": "elsewhere"}, "code": "d"}, ["the code"]),
        ({"inputs": {**MADE["inputs"], "data": ["e"]}}, ["the data"]),
        ({"inputs": {**MADE["inputs"], "models": ["n"]}}, ["the model it begins with"]),
        ({"inputs": {**MADE["inputs"], "files": ["g"]}}, ["a file it reads"]),
    ],
    ids=str,
)
def test_what_differs_from_a_record_is_said(change, why):
    assert record.why_another(MADE, {**MADE, "key": "b", **change}) == why


def test_the_same_key_differs_in_nothing_and_a_record_of_another_making_in_all():
    assert record.why_another(MADE, MADE) == []
    assert record.why_another({"key": "a"}, {**MADE, "key": "b"}) == ["its record does not say what it was made of"]


def test_libraries_of_another_version_are_named(monkeypatch):
    monkeypatch.setattr(record, "versions", lambda: {"torch": "2", "peft": "1"})
    assert record.other_versions({"versions": {"torch": "1", "peft": "1"}}) == "torch 1 -> 2"
    assert record.other_versions({}) == ""


def test_the_curve_and_the_marks_are_no_part_of_a_model(tmp_path):
    (tmp_path / "model.safetensors").write_text("x")
    before = record.model_fingerprint(str(tmp_path))
    for name in ("metrics.jsonl", "train_meta.json", "eval_results.lock", MARK):
        (tmp_path / name).write_text("y")
    assert record.model_fingerprint(str(tmp_path)) == before
    (tmp_path / "config.json").write_text("y")
    assert record.model_fingerprint(str(tmp_path)) != before


def test_a_file_that_is_missing_is_named(inputs):
    with pytest.raises(SettingsError, match=r"'none\.txt' cannot be read: No such file"):
        work_key(SETTINGS, replace(inputs, files=["none.txt"]), CODE)


# ---- records


def test_a_record_holds_facts_cost_and_versions(tmp_path):
    write_record(tmp_path / "a.json", seconds=2.5, key="0123")
    written = read_json(tmp_path / "a.json")
    assert written["key"] == "0123"
    assert written["seconds"] == 2.5
    assert written["peak_memory_gb"] > 0
    assert written["versions"] == record.versions()


def test_a_peak_that_was_measured_before_stands_in_the_record(tmp_path):
    write_record(tmp_path / "a.json", seconds=1.0, peak_memory_gb=0.0)
    assert read_json(tmp_path / "a.json")["peak_memory_gb"] == 0.0


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


def test_a_record_that_is_killed_while_it_is_written_leaves_the_former_one(tmp_path, monkeypatch):
    write_record(tmp_path / "a.json", seconds=1.0, key="former")

    def half_written(self, content):
        with self.open("wb") as stream:
            stream.write(content[: len(content) // 2])
        raise Killed

    monkeypatch.setattr(record.Path, "write_bytes", half_written)
    with pytest.raises(Killed):
        write_record(tmp_path / "a.json", seconds=2.0, key="new")
    assert read_json(tmp_path / "a.json")["key"] == "former"


def test_a_record_says_on_which_machine_it_was_made(tmp_path):
    record.write_record(tmp_path / "meta.json", seconds=1.0)
    made = json.loads((tmp_path / "meta.json").read_text())["machine"]
    assert made["threads"] == torch.get_num_threads()
    assert made["processes"] == 1
    assert made["processor"] != ""
    assert set(made["instructions"].split()) <= {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
