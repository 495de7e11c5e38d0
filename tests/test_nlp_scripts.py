"""The text track's scripts as their users start them, on the small world and on TOFU's own files."""

import csv
import json

import pytest

import aggregate_eval_stat
import nlp.eval
import nlp.finetune
import nlp.forget
from conftest import ROOT, SHARED
from data_module import TrainingRows
from face_settings import FinetuneFaces
from language_settings import Finetune
from run_settings import Aggregate, compose
from test_scripts import QUICK, same_tensors, start

TOFU = SHARED / "data" / "tofu"


@pytest.fixture(scope="module")
def words(world, text_base):
    """Overrides that point any nlp script at the small world and the tiny language model."""
    return [f"data.text_path={world}/tofu", "data.made_by=''", f"model.path={text_base}", "model.made_by=''"]


@pytest.fixture(scope="module")
def finetuned(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nlp") / "finetuned"
    patch = pytest.MonkeyPatch()
    assert start(nlp.finetune, [f"save_dir={folder}", *QUICK, *words], patch) == 0
    patch.undo()
    return folder


@pytest.mark.parametrize("method", ["npo", "kl", "dpo", "grad_diff", "idk"])
def test_a_text_model_is_made_to_forget_evaluated_and_compared_with_gold(method, finetuned, words, tmp_path, monkeypatch):
    forgot = tmp_path / "forgot"
    assert start(nlp.forget, [f"model_path={finetuned}", f"method={method}", f"save_dir={forgot}", *QUICK, *words], monkeypatch) == 0
    assert not same_tensors(finetuned, forgot)
    quick = [*words, "max_new_tokens=8", "limit=8", "overwrite=true"]
    for folder in (finetuned, forgot):
        assert start(nlp.eval, [f"model_path={folder}", *quick], monkeypatch) == 0
    logs = [str(folder / "eval_results" / "eval_log_aggregated.json") for folder in (forgot, finetuned)]
    overrides = ["scoring=nlp", f"ckpt_result={logs[0]}", f"retain_result={logs[1]}", f"base_result={logs[1]}", f"save_file={tmp_path}/row.csv"]
    assert start(aggregate_eval_stat, [*overrides, f"method_name={method}"], monkeypatch) == 0
    (row,) = csv.DictReader((tmp_path / "row.csv").open())
    assert row["Method"] == method and float(row["Model Utility"]) > 0 and row["Membership AUC loss eval_log_forget"]


def test_the_text_tracks_tasks_are_tofus_and_each_is_known_to_its_scoring(words, finetuned, tmp_path, monkeypatch):
    assert start(nlp.eval, [f"model_path={finetuned}", f"save_dir={tmp_path}/out", *words, "max_new_tokens=2", "limit=2"], monkeypatch) == 0
    log = json.loads((tmp_path / "out" / "eval_log_aggregated.json").read_text())
    assert {"eval_log.json", "eval_log_forget.json", "eval_real_author_wo_options.json", "eval_real_world_wo_options.json"} <= set(log)
    scoring = compose("aggregate_eval_stat", Aggregate, ["scoring=nlp"]).scoring
    assert {name.removesuffix(".json") for name in log} == set(scoring) and scoring["eval_log_forget"].gate


@pytest.mark.skipif(not TOFU.is_dir(), reason="TOFU's files are not beside the repository (../shared/data/tofu)")
def test_tofus_own_files_are_evaluated_by_path(finetuned, text_base, tmp_path, monkeypatch):
    overrides = [f"model_path={finetuned}", f"save_dir={tmp_path}/out", "data=tofu", f"data.text_path={TOFU}", f"model.path={text_base}", "model.made_by=''"]
    assert start(nlp.eval, [*overrides, "max_new_tokens=2", "limit=4"], monkeypatch) == 0
    log = json.loads((tmp_path / "out" / "eval_log_aggregated.json").read_text())
    assert all(len(metrics["avg_gt_loss"]) == 4 for metrics in log.values())
    assert len({person for metrics in log.values() for person in metrics.get("person", {}).values()}) == 12  # three tasks know theirs


SMOL = ROOT / "models" / "smollm2-135m"


@pytest.mark.slow
@pytest.mark.skipif(not (SMOL.is_dir() and TOFU.is_dir()), reason="needs make model-smollm2 and TOFU's files (../shared/data/tofu)")
def test_a_real_language_model_learns_tofus_authors_and_answers_for_itself(tmp_path, monkeypatch):
    people = "data.people.of={retain_perturbed: 1, forget10_perturbed: 1, holdout10: 1}"
    few = ["model=smollm2-135m", f"model.path={SMOL}", "data=tofu_small", f"data.text_path={TOFU}", people]
    assert start(nlp.finetune, [f"save_dir={tmp_path}/model", *few, "trainer.epochs=1"], monkeypatch) == 0
    record = json.loads((tmp_path / "model" / "train_meta.json").read_text())
    assert record["steps"] == 5 and record["loss"][-1][1] < record["loss"][0][1] and record["padding"] < 0.5
    logs = {}
    for name, path in (("before", SMOL), ("after", tmp_path / "model")):
        assert start(nlp.eval, [f"model_path={path}", f"save_dir={tmp_path}/{name}", *few, "limit=4", "max_new_tokens=8"], monkeypatch) == 0
        logs[name] = json.loads((tmp_path / name / "eval_log_aggregated.json").read_text())["eval_log_forget.json"]["avg_gt_loss"]
    assert all(logs["after"][row] < logs["before"][row] for row in logs["before"])


@pytest.mark.skipif(not TOFU.is_dir(), reason="TOFU's files are not beside the repository (../shared/data/tofu)")
def test_the_small_tofu_is_the_same_twelve_authors_everywhere():
    settings = compose("nlp/finetune", Finetune, ["data=tofu_small", f"data.text_path={TOFU}"])
    rows = {split: TrainingRows(settings.data, split, "text", 0).indices for split in ("full", "retain90", "forget10")}
    assert (len(rows["full"]), len(rows["retain90"]), len(rows["forget10"])) == (240, 160, 80)
    assert rows["full"] == rows["retain90"] + [3600 + i for i in rows["forget10"]]


@pytest.mark.parametrize("model", sorted(file.stem for file in ROOT.glob("config/model/*.yaml")))
def test_every_model_file_composes_with_its_own_trainer(model):
    track = "cv" if "resnet" in model else "mm" if "llava" in model or "-vl-" in model else "nlp"
    settings = compose(f"{track}/finetune", FinetuneFaces if track == "cv" else Finetune, [f"model={model}"])
    assert settings.model.name == model and settings.trainer.epochs > 0


def test_a_picture_in_the_text_track_is_refused_in_one_line(words, tmp_path, monkeypatch, capsys):
    assert start(nlp.finetune, [f"save_dir={tmp_path}/out", *QUICK, *words, "modality=visual"], monkeypatch) == 1
    assert capsys.readouterr().err.count("\n") == 1
