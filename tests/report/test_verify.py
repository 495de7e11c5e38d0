"""What was changed after it was made is found by its record."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from engine.record import EVAL_RECORD, TRAIN_RECORD, key_of, model_fingerprint, what_no_longer_matches, write_record
from helpers import ENVIRONMENT, ROOT
from report import verify as verify_module
from report.verify import FIGURE, changed_figures, verify
from settings.script import SettingsError

PARTS = {"settings": {"seed": 0}, "inputs": {"data": ["d"], "models": [], "files": []}, "code": "c"}


@pytest.fixture
def model(tmp_path):
    """A model's folder with an evaluation, each with its record."""
    folder = tmp_path / "results" / "models" / "npo_seed0"
    (folder / "adapter").mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    (folder / "adapter" / "adapter.safetensors").write_text("update")
    write_record(folder / TRAIN_RECORD, seconds=1.0, key=key_of(PARTS), **PARTS)
    (folder / "eval_results").mkdir()
    (folder / "eval_results" / "task.json").write_text("{}")
    facts = {"key": key_of(PARTS), **PARTS, "model": model_fingerprint(str(folder))}
    write_record(folder / "eval_results" / EVAL_RECORD, seconds=1.0, **facts)
    return folder


def test_what_nobody_touched_matches_also_after_it_was_moved(model, tmp_path):
    assert verify(tmp_path) == (2, [])
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    assert verify(tmp_path) == (2, [])


def test_a_changed_log_is_named(model, tmp_path):
    (model / "eval_results" / "task.json").write_text("{ }")
    assert verify(tmp_path)[1] == [f"{model / 'eval_results' / 'task.json'}: the file was changed"]


def test_changed_weights_are_named_and_so_is_the_evaluation_of_the_former_ones(model, tmp_path):
    (model / "model.safetensors").write_text("others")
    lines = verify(tmp_path)[1]
    assert f"{model / 'model.safetensors'}: the file was changed" in lines
    assert f"{model / 'eval_results' / EVAL_RECORD}: it is of another model than {model} holds" in lines
    assert len(lines) == 2


def test_a_file_that_is_gone_is_named(model, tmp_path):
    (model / "adapter" / "adapter.safetensors").unlink()
    assert verify(tmp_path)[1] == [f"{model / 'adapter' / 'adapter.safetensors'}: the file is gone"]


def test_a_record_whose_settings_were_changed_is_named(model):
    record = model / TRAIN_RECORD
    facts = json.loads(record.read_text())
    record.write_text(json.dumps({**facts, "settings": {"seed": 1}}))
    assert what_no_longer_matches(record) == [f"{record}: its settings or its key were changed"]


def test_a_record_without_fingerprints_is_said(model):
    (model / TRAIN_RECORD).write_text('{"key": "0"}')
    assert "names no fingerprints" in what_no_longer_matches(model / TRAIN_RECORD)[0]


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="there is nothing to verify"):
        verify(tmp_path)


def test_a_figure_that_the_logs_do_not_give_is_named(tmp_path, monkeypatch):
    line = dict(zip(FIGURE, ("npo", 0, "", "distance"), strict=True))
    now = pd.DataFrame([{**line, "value": 0.25, "low": None}, {**line, "measure": "kept", "value": 0.5, "low": None}])
    monkeypatch.setattr(verify_module, "read_plan", lambda folder: None)
    monkeypatch.setattr("report.rows.benchmark_results", lambda folder, plan: [])
    monkeypatch.setattr("engine.table_files.long_table", lambda results: now)
    now.to_parquet(tmp_path / "results.parquet")
    assert changed_figures(tmp_path) == []
    now.assign(value=[0.2, 0.5]).to_parquet(tmp_path / "results.parquet")
    assert changed_figures(tmp_path) == [f"{tmp_path / 'results.parquet'}: npo 0 distance is not what the logs give"]
    now.iloc[:1].to_parquet(tmp_path / "results.parquet")
    assert changed_figures(tmp_path) == [f"{tmp_path / 'results.parquet'}: npo 0 kept is not what the logs give"]


@pytest.mark.parametrize(("changed", "code"), [(False, 0), (True, 1)])
def test_the_command_ends_with_one_if_something_no_longer_matches(changed, code, model, tmp_path):
    if changed:
        (model / "eval_results" / "task.json").write_text("[]")
    command = [sys.executable, "-m", "report", "--verify", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last == ("2 records: what no longer matches stands above" if changed else "2 records: everything matches")
