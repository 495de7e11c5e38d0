"""Faces in a benchmark: one pretrained network; models trained, evaluated and attacked; the verdict stands first."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

import run_benchmark
from benchmark import stages as benchmark_stages
from benchmark.plan import plan_stages
from engine.result_table import Figure, ModelResult, short_columns
from helpers import copy_of_results
from report import faces
from report.folder import read_plan
from report.rows import benchmark_results
from report.tables import print_table
from settings.results import RunBenchmark
from settings.script import SettingsError, compose

SMALL = ["models=10", "targets=2", "together=5", "finetune.epochs=2", "finetune.batch_size=8"]


@pytest.fixture(scope="module")
def finished(face_overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cv_results")
    settings = compose("run_benchmark", RunBenchmark, ["benchmark=cv_demo", f"results_dir={folder}"])
    quick = ["trainer.epochs=2", "trainer.batch_size=8", *face_overrides]
    changes = {
        "pretrain": quick,
        "finetune": quick,
        "forget": quick,
        "eval": face_overrides,
        "attack": [*SMALL, *face_overrides],
    }
    runs = {"scrub": [], "twins": []}
    settings = replace(settings, benchmark=replace(settings.benchmark, **changes, runs=runs))
    run_benchmark.main.recipe(settings)
    return settings


@pytest.fixture
def results(finished, tmp_path):
    """A copy of the finished benchmark for a test that changes something."""
    return copy_of_results(finished, tmp_path / "results")


def rows_of(settings):
    with open(f"{settings.results_dir}/results.csv", encoding="utf-8") as stream:
        return {row["Method"]: row for row in csv.DictReader(stream)}


def test_the_table_has_base_gold_and_every_method_with_verification_and_attacks(finished):
    rows = rows_of(finished)
    assert list(rows) == ["base", "gold", "start", "scrub", "twins"]
    for row in [row for name, row in rows.items() if name != "start"]:  # which is not attacked
        for column in (
            "U-LiRA accuracy forget",
            "U-LiRA AUC retain",
            "U-MIA logistic accuracy forget",
            "U-MIA tree AUC retain",
            "EER holdout",
            "Identification forget",
            "Identification holdout",
        ):
            assert 0 <= float(row[column]) <= 1
        assert row["U-LiRA accuracy forget low"] == ""
        assert row["U-LiRA accuracy forget why"] == "no interval with 4 people"
        chosen = row["U-MIA accuracy forget why"].partition("attack of each round: ")[2].split(", ")
        assert len(chosen) == 5
        assert set(chosen) <= {"logistic", "tree"}
        assert row["KLOM forget why"] == row["Epsilon forget why"] == "5 networks on a side, and 8 are needed"
        assert row["U-LiRA TPR at 1% FPR forget"] == ""
        assert row["U-LiRA TPR at 1% FPR forget why"].startswith("not resolvable")
        for group in ("forget", "retain", "holdout"):
            assert 0 <= float(row[f"Exact Memorization eval_{group}_faces"]) <= 1


def test_the_tables_say_what_too_few_queries_cannot_resolve(finished):
    folder = Path(finished.results_dir)
    first, _, *lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    place = first.split("|").index(" U-LiRA TPR at 1 % ")
    attacked = [line.split("|")[place] for line in lines if not line.startswith("| start |")]
    assert attacked == [" not resolvable "] * 4
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "not resolvable with 60 scores of people who were not met" in page


def test_attacks_of_a_former_version_are_read_and_their_new_columns_say_why_they_are_empty(results):
    for folder in Path(results.results_dir).glob("models/*/attack_results"):
        figures = json.loads((folder / "attack.json").read_text())
        for of_pool in figures["pools"].values():
            del of_pool["identification"]
        (folder / "attack.json").write_text(json.dumps(figures))
        arrays = load_file(folder / "similarities.safetensors")
        save_file({name: arrays[name] for name in ("similarity", "nearest_other")}, folder / "similarities.safetensors")
        queries = json.loads((folder / "queries.json").read_text())
        (folder / "queries.json").write_text(json.dumps({name: queries[name] for name in ("people", "files")}))
    folder = Path(results.results_dir)
    found = [result for result in benchmark_results(folder, read_plan(folder)) if result.method != "start"]
    former = "was attacked by a version that did not measure it: attack the model anew"
    places = [("identification", "forget"), ("identification_level", "forget"), ("klom_95", "retain")]
    for place in [*places, ("epsilon", "forget")]:
        assert [result.figure(*place)[:] for result in found] == [(None, None, None, former)] * 4
    assert all(result.value("u-lira_accuracy", "forget") is not None for result in found)
    columns = {column.heading: column for column in short_columns(found, {})}
    assert [columns["identified, forgotten"].text(result) for result in found] == ["–"] * 4


def test_every_figure_of_faces_has_its_distance_to_gold(finished):
    table = pandas.read_parquet(Path(finished.results_dir, "results.parquet"))
    distances = table[table.measure.str.startswith("distance_to_gold:")].set_index(["measure", "task", "model"])
    places = {(measure, task) for measure, task, _ in distances.index}
    expected = {("u-lira_accuracy", "forget"), ("eer", "forget"), ("exact_memorization", "eval_retain_faces")}
    assert {(f"distance_to_gold:{measure}", task) for measure, task in expected} <= places
    defined = [place for place in places if pandas.notna(distances.loc[(*place, "base"), "value"])]
    assert defined
    assert {distances.loc[(*place, "gold"), "value"] for place in defined} == {0}
    assert {distances.loc[(*place, "base"), "value"] for place in defined} == {1}
    for place in places - set(defined):
        assert "gold" in distances.loc[(*place, "gold"), "why"]


def results_of_rates(**rates):
    """Method -> a result that holds an equal error rate alone."""
    return {name: ModelResult(name, 0, {("eer", "forget"): Figure(rate)}) for name, rate in rates.items()}


def test_a_distance_of_faces_is_undefined_where_two_gold_models_differ_as_much_as_base_and_gold():
    # an EER of .125, .25 and .175, with another gold at .105: |base - gold| = .125 is less than 3 * |.105 - .25| = .435
    results = results_of_rates(base=0.125, gold=0.25, npo=0.175)
    faces.add_distances(results, [{("eer", "forget"): Figure(0.105)}])
    assert [result.value("distance_to_gold:eer", "forget") for result in results.values()] == [None] * 3
    why = "base and gold differ by 0.125, less than 3 times the golds' own 0.145"
    assert results["npo"].figure("distance_to_gold:eer", "forget").why == why


def test_a_face_figure_that_a_model_lacks_has_no_distance_and_says_why():
    results = results_of_rates(base=0.125, gold=0.25, npo=None)
    faces.add_distances(results, [])
    assert results["npo"].figure("distance_to_gold:eer", "forget").why.startswith("the model, the base or gold has no")


@pytest.mark.parametrize("text", ["{}", "[]", '{"pools": {}}'])
def test_a_record_of_an_attack_without_figures_is_refused(text, tmp_path):
    (tmp_path / "attack_results").mkdir()
    (tmp_path / "attack_results" / "attack.json").write_text(text)
    with pytest.raises(SettingsError, match="holds no figures of an attack"):
        faces.read_attack(tmp_path)


def test_a_distance_of_faces_and_its_noise_floor_by_hand():
    # npo: (.175 - .25) / (.125 - .25) = .6; another gold: |.24 - .25| / .125 = .08
    results = results_of_rates(base=0.125, gold=0.25, npo=0.175)
    faces.add_distances(results, [{("eer", "forget"): Figure(0.24)}])
    distances = [result.value("distance_to_gold:eer", "forget") for result in results.values()]
    assert distances == pytest.approx([1, 0, 0.6])
    assert results["npo"].value("noise_floor:eer", "forget") == pytest.approx(0.08)


def test_pretraining_runs_once_and_every_model_is_attacked(finished):
    stages = plan_stages(finished.benchmark, Path(finished.results_dir))
    kinds = [stage.kind for stage in stages]
    assert kinds[0] == "pretrain"
    assert kinds.count("pretrain") == 1
    assert kinds.count("eval") == 6
    assert kinds.count("attack") == 4  # the second gold is not attacked


def test_gold_is_attacked_with_models_that_never_met_the_forgotten(finished):
    stages = {stage.name: stage for stage in plan_stages(finished.benchmark, Path(finished.results_dir))}
    assert "split=retain" in stages["attack gold_seed0"].overrides


@pytest.mark.parametrize("name", ["base", "gold"])
def test_base_and_gold_are_attacked_with_models_that_forgot_nothing(name, finished):
    stages = {stage.name: stage for stage in plan_stages(finished.benchmark, Path(finished.results_dir))}
    assert [text for text in stages[f"attack {name}_seed0"].overrides if text.startswith("method=")] == []


def test_a_second_run_finds_everything_done(results, monkeypatch):
    monkeypatch.setattr(benchmark_stages, "run_stage", lambda *_: pytest.fail("a finished stage ran again"))
    run_benchmark.main.recipe(results)


def test_the_page_gives_the_attacks_verdict_first_and_the_plots_of_faces(finished):
    page = Path(finished.results_dir, "report.html").read_text(encoding="utf-8")
    said = r"<strong>Attack: undecided\.</strong></summary>\s*<p>U-LiRA accuracy, gold [\d.]+; base [\d.]+: too few"
    assert re.search(said, page)
    assert (
        page.index("<strong>Attack: ") < page.index("<strong>Memorisation gate, seed") < page.index('<table id="table"')
    )
    of_pools = ("ROC of the attack", "Attack by person")
    titles = [f"{title}, {people}" for title in of_pools for people in ("forgotten", "kept")]
    titles += ["Scores of the attacked", "Verification scores"]
    assert [title for title in titles if f"<h3>{title}</h3>" not in page] == []
    assert "Whose face is this?" in page
    assert "data:image/webp" in page


def attacked(method, accuracy, low, high):
    """A result that holds the gate and the attack's accuracy alone."""
    figures = {("u-lira_accuracy", "forget"): Figure(accuracy, low, high), ("gate", ""): Figure(1.0)}
    return ModelResult(method, 0, figures)


@pytest.mark.parametrize(
    ("gold", "base", "passed"),
    [
        ((0.51, 0.47, 0.55), (0.76, 0.7, 0.8), True),
        ((0.51, 0.47, 0.55), (0.56, 0.5, 0.62), False),
        ((0.62, 0.58, 0.66), (0.9, 0.85, 0.95), False),
    ],
)
def test_the_attacks_figures_mean_something_only_with_gold_near_one_half_and_the_base_clearly_above(
    gold, base, passed, capsys
):
    results = [attacked("base", *base), attacked("gold", *gold), attacked("npo", 0.6, 0.5, 0.7)]
    verdict = faces.attack_verdict(results)
    assert verdict["passed"] == passed
    assert f"gold {gold[0]:.3f} [{gold[1]:.3f}, {gold[2]:.3f}]" in verdict["why"]
    print_table(results, short_columns(results, {}), Console(width=200))
    printed = capsys.readouterr().out
    assert printed.index("attack passed" if passed else "attack failed") < printed.index("npo")


def test_without_intervals_the_attacks_verdict_is_undecided():
    verdict = faces.attack_verdict([attacked("base", 0.9, None, None), attacked("gold", 0.5, None, None)])
    assert not verdict["passed"]
    assert verdict["text"] == "undecided"


def test_a_benchmark_without_attacks_has_no_verdict():
    assert faces.attack_verdict([ModelResult("base", 0, {}), ModelResult("gold", 0, {})]) is None


def test_photographs_that_are_not_there_are_said_in_one_line(tmp_path):
    settings = compose("run_benchmark", RunBenchmark, ["benchmark=cv_orl", f"results_dir={tmp_path}"])
    absent = [f"data.people.path={tmp_path}/none", f"data.split_file={tmp_path}/division.json"]
    changes = {
        name: [*getattr(settings.benchmark, name), *absent]
        for name in ("pretrain", "finetune", "forget", "eval", "attack")
    }
    with pytest.raises(SettingsError, match=r"data path '.*none' does not exist"):
        run_benchmark.main.recipe(replace(settings, benchmark=replace(settings.benchmark, **changes)))


def test_a_failed_attack_is_said_and_no_former_figures_stand_in_its_row(results, monkeypatch, capsys):
    runs = {"scrub": ["trainer.lr=1e9"], "twins": []}
    settings = replace(results, overwrite=True, benchmark=replace(results.benchmark, runs=runs))
    real = benchmark_stages.run_stage

    def run(stage, *rest):  # the forgetting goes well, its attack does not
        if stage.name == "attack scrub_seed0":
            raise SettingsError("step 3: the loss of a shadow model is nan")
        if "scrub" not in stage.name:
            real(stage, *rest)

    monkeypatch.setattr(benchmark_stages, "run_stage", run)
    run_benchmark.main.recipe(settings)
    row = rows_of(settings)["scrub"]
    assert row["Attack failed why"] == "step 3: the loss of a shadow model is nan"
    assert row["U-LiRA accuracy forget"] == ""
    assert row["EER forget"]
    assert "scrub, seed 0, attack failed: step 3" in capsys.readouterr().out
    page = Path(settings.results_dir, "report.html").read_text(encoding="utf-8")
    assert "<dt>scrub</dt><dd>attack failed: step 3" in page
