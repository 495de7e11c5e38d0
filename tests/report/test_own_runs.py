"""Own runs that no benchmark file made: which model is what, by their records, and what is said to be missing."""

import json
import shutil
from dataclasses import replace

import pytest
from rich.console import Console

import report.__main__ as report_command
from engine.record import write_json
from engine.result_table import ModelResult
from engine.seeds import seed_groups
from helpers import TASKS, tiny_log, write_evaluated, write_study
from report.__main__ import write_own_report
from report.cards import Cards
from report.own_runs import add_face_figures, describe, find_own_runs, own_results
from settings.script import SettingsError

TAUGHT = {"began": "start", "method": "finetune"}


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "study", seeds=(0, 1))


def found(*folders, golds=(), base=(), start=None):
    return find_own_runs(folders, golds, base, start)


def names(models):
    return [model.name for model in models]


def test_base_gold_and_start_are_found_by_the_records_of_the_runs(study):
    chosen = found(study)
    assert names(chosen.bases) == ["base"]
    assert names(chosen.golds) == ["gold_0", "gold_1"]
    assert chosen.start.name == "start"
    assert names(chosen.runs) == ["idk_0", "idk_1", "npo_0", "npo_1"]
    assert (chosen.track, chosen.notes) == ("nlp", [])


def test_they_are_found_in_several_folders_and_a_folder_may_be_named_twice(study, tmp_path):
    (tmp_path / "others").mkdir()
    for name in ("base", "gold_0", "gold_1", "start"):
        shutil.move(study / name, tmp_path / "others" / name)
    chosen = found(study, tmp_path / "others", study)
    assert names(chosen.bases) == ["base"]
    assert len(chosen.runs) == 4


def test_the_figures_are_a_line_for_each_method_with_its_seeds(study, tmp_path):
    results, notes, _ = own_results(found(study), str(tmp_path / "results.csv"))
    rows = [(each.method, each.seed, each.value("place")) for each in results]
    anchors = [("base", 0, None), ("gold", 0, None), ("start", None, None)]
    assert rows == [*anchors, ("idk", 0, 2), ("idk", 1, 2), ("npo", 0, 1), ("npo", 1, 1)]
    assert results[0].value("distance_people") == pytest.approx(1)
    assert results[2].value("kept_taught") == pytest.approx(0, abs=0.01)
    assert notes == []


def test_runs_of_one_method_with_other_settings_are_rows_of_their_own(study, tmp_path):
    made = {"began": "base", "method": "npo", "retain_split": "retain", "split": "forget"}
    write_evaluated(study / "npo_fast", tiny_log(0.3, seed=3), **made, seed=0, lr=2e-3)
    results, _, _ = own_results(found(study), str(tmp_path / "results.csv"))
    assert {each.method for each in results} >= {"npo (lr=0.001)", "npo (lr=0.002)"}


def test_what_the_page_says_of_the_runs_comes_from_their_records(study):
    told = describe(found(study), "study", "python -m report study")
    assert (told.methods, told.seeds) == (2, [0, 1])
    kinds = [stage.kind for stage in told.stages]
    assert (kinds.count("finetune"), kinds.count("forget"), kinds.count("eval")) == (3, 4, 8)
    assert all(stage.output.is_absolute() for stage in told.stages)


def test_a_run_that_began_with_another_run_has_its_base(study):
    made = {"began": "npo_0", "method": "idk", "retain_split": "retain", "split": "forget"}
    write_evaluated(study / "twice", tiny_log(0.2, seed=4), **made, seed=0, lr=5)
    assert names(found(study).bases) == ["base"]


def test_a_model_made_elsewhere_is_a_row(study, tmp_path):
    write_evaluated(study / "ours", tiny_log(0.2, seed=4))
    chosen = found(study)
    assert "ours" in names(chosen.runs)
    results, notes, _ = own_results(chosen, str(tmp_path / "results.csv"))
    assert [each.method for each in results].count("ours") == 1
    assert notes == [f"ours: no record beside {study}/ours/eval_results/eval_log_aggregated.json says its settings and "
                     "its seed; it stands alone"]  # fmt: skip


def test_models_of_no_record_need_to_be_told_which_is_which(tmp_path):
    for name, log in (("ours", tiny_log(0.2, seed=4)), ("before", tiny_log(1.0)), ("never", tiny_log(seed=2))):
        write_evaluated(tmp_path / name, log)
    with pytest.raises(SettingsError, match=r"^no base: no record below .* made to forget.*name it with --base$"):
        found(tmp_path)
    with pytest.raises(SettingsError, match=r"^no gold: no record below .* name gold with --gold$"):
        found(tmp_path, base=[str(tmp_path / "before")])
    chosen = found(tmp_path, base=[str(tmp_path / "before")], golds=[str(tmp_path / "never")])
    assert names(chosen.runs) == ["ours"]


# ---- what is missing


def test_a_missing_base_is_said_with_the_place_where_it_was(study):
    shutil.rmtree(study / "base")
    with pytest.raises(SettingsError, match=r"^no base: idk_0 began with 'models/base', of which no evaluation lies"):
        found(study)


def test_a_missing_gold_is_said_with_the_split_that_it_needs(study):
    for number in range(2):
        shutil.rmtree(study / f"gold_{number}")
    line = r"^no gold: no evaluated model below .* was finetuned on split=retain as the base was on full; finetune.py"
    with pytest.raises(SettingsError, match=line):
        found(study)


def test_a_gold_that_was_taught_otherwise_is_none_and_that_is_said(study):
    for number in range(2):
        shutil.rmtree(study / f"gold_{number}")
    write_evaluated(study / "fast", tiny_log(seed=70), **TAUGHT, seed=0, split="retain", lr=5)
    with pytest.raises(SettingsError, match=r"\(fast was taught otherwise than the base: lr 5, not None\)"):
        found(study)
    assert names(found(study, golds=[str(study / "fast")]).golds) == ["fast"]


def test_one_gold_and_no_start_are_said_and_the_page_is_made(study):
    shutil.rmtree(study / "gold_1")
    shutil.rmtree(study / "start")
    no_start, one_gold = found(study).notes
    assert no_start.startswith("no start: the model that the base was taught from is not evaluated here")
    assert one_gold.startswith("one gold: nothing is concluded of people without a second; finetune.py split=retain")


def test_taught_models_that_are_neither_base_nor_gold_are_said(study):
    write_evaluated(study / "half", tiny_log(seed=71), **TAUGHT, seed=0, split="half")
    assert found(study).notes == ["left out, neither base nor gold of these runs: half (taught half)"]


def test_what_an_interrupted_run_left_is_no_model(study):
    shutil.copytree(study / "npo_0", study / "npo_0.former")
    assert len(found(study).runs) == 4


def test_a_gold_that_is_the_base_is_refused(study):
    with pytest.raises(SettingsError, match=r"^gold .* is the same model as base "):
        found(study, golds=[str(study / "base")])


def test_runs_that_keep_different_people_are_not_set_against_one_gold(study):
    write_evaluated(study / "more", tiny_log(seed=4), began="base", method="kl", seed=0, retain_split="retain90")
    with pytest.raises(SettingsError, match=r"^the runs keep different people, retain and retain90"):
        found(study)


def test_models_of_several_tracks_are_refused(study):
    write_evaluated(study / "sees", tiny_log(seed=4), began="base", method="kl", seed=0)
    file = study / "sees" / "eval_results" / "eval_meta.json"
    meta = json.loads(file.read_text())
    meta["settings"]["tasks"] = {task: {"image": "image"} for task in TASKS}
    file.write_text(json.dumps(meta))
    with pytest.raises(SettingsError, match=r"^the evaluated models are of several tracks, nlp .*, mm .*: name the"):
        found(study)


def test_a_log_without_a_record_of_its_questions_makes_no_page(study):
    (study / "npo_0" / "eval_results" / "eval_meta.json").unlink()
    with pytest.raises(SettingsError, match=r"has no eval_meta.json beside it .* makes a table without\)$"):
        found(study)


# ---- two bases that were taught otherwise


@pytest.fixture
def two_bases(study):
    """The study with a second base, taught at another learning rate, and a run of `kl` from each base."""
    write_evaluated(study / "fast", tiny_log(1.0, seed=83), **TAUGHT, seed=1, split="full", lr=5)
    for seed, base in enumerate(("base", "fast")):
        made = {"began": base, "seed": seed, "retain_split": "retain", "split": "forget"}
        write_evaluated(study / f"kl_{seed}", tiny_log(0.3, seed=seed), **made, method="kl", lr=1)
        settings_of_method(study / f"kl_{seed}", {"name": "kl", "args": {"retain_weight": 2.5}})
    return study


def settings_of_method(model, method):
    """Write the method into the record of a training, as the recipes do."""
    record = json.loads((model / "train_meta.json").read_text())
    record["settings"]["method"] = method
    (model / "train_meta.json").write_text(json.dumps(record))


def test_golds_are_not_looked_for_of_bases_that_were_taught_otherwise(two_bases):
    line = r"^the bases of the runs were taught otherwise, base and fast: lr 5, not None; name the folders of one kind"
    with pytest.raises(SettingsError, match=line):
        found(two_bases)
    write_evaluated(two_bases / "gold_fast", tiny_log(seed=75), **TAUGHT, seed=0, split="retain", lr=5)
    with pytest.raises(SettingsError, match=line):
        found(two_bases)


def test_several_starts_are_not_guessed_at(study):
    write_evaluated(study / "other_start", tiny_log(seed=91, kept=0.1))
    taught = {"began": "other_start", "method": "finetune"}
    write_evaluated(study / "second", tiny_log(1.0, seed=83), **taught, seed=1, split="full")
    write_evaluated(study / "kl", tiny_log(0.3), began="second", method="kl", seed=0, retain_split="retain")
    golds = [f"{study}/gold_*"]
    with pytest.raises(SettingsError, match=r"^the bases were taught from several models, .*: name one with --start"):
        found(study, golds=golds)
    assert found(study, golds=golds, start=str(study / "start")).start.name == "start"


def test_bases_that_do_not_belong_together_stay_bases_and_their_runs_apart(two_bases, tmp_path):
    results, _, _ = own_results(found(two_bases, golds=[f"{two_bases}/gold_*"]), str(tmp_path / "results.csv"))
    assert [each.method for each in results].count("base") == 2
    groups = {group.label: len(group) for group in seed_groups(results)}
    assert [count for label, count in groups.items() if label.startswith("kl")] == [1, 1]
    assert [each.value("place") for each in results if each.method == "base"] == [None, None]


def test_the_page_shows_both_bases_and_what_each_run_recorded_of_its_method(two_bases, tmp_path, monkeypatch):
    shown = {}

    def no_cards(logs, settings, scoring):
        shown.update(logs)
        models = list(logs)
        return Cards({"rows": [], "models": models, "anchors": ["base", "gold"], "images": []}, ["Ada"], "a note")

    monkeypatch.setattr("report.page.make_cards", no_cards)
    golds = [f"{two_bases}/gold_*"]
    write_own_report([two_bases], tmp_path / "page", golds=golds, base=(), start=None, console=Console(quiet=True))
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    bases = [name for name in shown if name.startswith("base")]
    assert bases == ["base", "base (lr=5)"]
    assert {"gold", "npo", "idk"} < set(shown)
    for name in bases:
        assert f">{name}<" in page
    assert page.count("retain_weight 2.5") == 2
    assert "by 4 methods" in page  # npo, idk, and kl of either base


def test_each_face_network_is_set_against_its_own_base(study):
    """EER of base .5, of the second base .9, of gold .1, of a run of either .3."""
    write_evaluated(study / "second", tiny_log(1.0, seed=83), **TAUGHT, seed=1, split="full", lr=5)
    write_evaluated(study / "kl", tiny_log(0.3), began="second", method="kl", seed=0, retain_split="retain")
    chosen = replace(found(study, golds=[f"{study}/gold_*"]), track="cv")
    results = []
    for model in chosen.models:
        eer = {"base": 0.5, "second": 0.9, "gold_0": 0.1}.get(model.name, 0.3)
        write_json(model.log.with_name("verification.json"), {"forget": {"eer": eer}})
        name = model.name if model.name in ("base", "start") else model.method or "base"
        name = "gold" if model.name == "gold_0" else name
        results.append(ModelResult(name, model.seed, {}, log=model.log))
    add_face_figures(chosen, results)
    distances = {result.log.parts[-3]: result.value("distance_to_gold:eer", "forget") for result in results}
    assert distances["npo_0"] == pytest.approx(0.5)  # (.3 - .1) / (.5 - .1)
    assert distances["kl"] == pytest.approx(0.25)  # (.3 - .1) / (.9 - .1)
    assert (distances["base"], distances["second"], distances["gold_0"]) == (1, 1, 0)


# ---- the command


def report(monkeypatch, *typed):
    monkeypatch.setattr("sys.argv", ["report", *map(str, typed)])
    with pytest.raises(SystemExit) as stop:
        report_command.main()
    return stop.value.code


@pytest.mark.parametrize("wrong", ["empty", "a file", "not there", "several", "in the way", "no base"])
def test_what_cannot_be_a_page_ends_in_one_line(wrong, study, tmp_path, monkeypatch, capsys):
    typed = [study]
    if wrong == "empty":
        (tmp_path / "empty").mkdir()
        typed = [tmp_path / "empty"]
    if wrong == "a file":
        typed = [study / "base" / "train_meta.json"]
    if wrong == "not there":
        typed = [tmp_path / "none"]
    if wrong == "several":
        typed = [study, study / "base"]
    if wrong == "in the way":
        (study / "results.csv").write_text("mine")
    if wrong == "no base":
        shutil.rmtree(study / "base")
    assert report(monkeypatch, *typed) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    if wrong == "in the way":
        assert (study / "results.csv").read_text() == "mine"
