"""A benchmark of models that are there: a base and golds that are evaluated and not trained, where they fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark import stages as benchmark_stages
from benchmark.given import check_given
from benchmark.plan import plan_stages
from engine.record import model_fingerprint
from helpers import BASE
from report.rows import logs_of_row
from settings.results import RunBenchmark
from settings.script import SettingsError, compose

START = "${model.path}"


@pytest.fixture
def models(tmp_path):
    """A base and two golds: copies of the tiny model whose weights differ in their names alone."""
    for name in ("base", "gold_a", "gold_b"):
        shutil.copytree(BASE, tmp_path / name)
        (tmp_path / name / "notes.txt").write_text(name)
    return tmp_path


def given(models, **changes):
    """The demo on models that are there."""
    settings = compose("run_benchmark", RunBenchmark, []).benchmark
    golds = [str(models / "gold_a"), str(models / "gold_b")]
    told = {"runs": {"npo": []}, "seeds": [0, 1], "base": str(models / "base"), "golds": golds}
    return replace(settings, **told | changes)


def checked(benchmark):
    stages = plan_stages(benchmark, Path("results"))
    composed = [benchmark_stages.recipe_of(benchmark, stage).compose(stage.overrides) for stage in stages]
    check_given(benchmark, stages, composed)


def record(folder, **told):
    (folder / "train_meta.json").write_text(json.dumps(told))


def test_they_are_evaluated_once_for_all_seeds_and_nothing_is_taught(models):
    stages = plan_stages(given(models), Path("results"))
    assert [stage.name for stage in stages if stage.seed is None] == [
        "eval start", "eval base", "eval gold_1", "eval gold_2",
    ]  # fmt: skip
    assert [stage.name for stage in stages if stage.seed == 1] == ["forget npo_seed1", "eval npo_seed1"]
    forget = next(stage for stage in stages if stage.kind == "forget")
    assert f"model_path={models}/base" in forget.overrides


def test_a_base_of_each_seed_is_named_by_its_seed_and_is_that_seeds_work(models):
    shutil.copytree(models / "base", models / "base_1")
    (models / "base").rename(models / "base_0")
    stages = plan_stages(given(models, base=f"{models}/base_{{seed}}"), Path("results"))
    (own,) = [stage for stage in stages if stage.name == "eval base_seed1"]
    assert own.seed == 1
    assert f"model_path={models}/base_1" in own.overrides


def test_rows_are_measured_against_them(models):
    logs = logs_of_row(given(models), Path("r"), "npo", 1)
    assert logs["base_result"] == "r/models/base/eval_results/eval_log_aggregated.json"
    assert [Path(log).parts[2] for log in logs["retain_result"]] == ["gold_1", "gold_2"]
    trained = replace(given(models), base=None, golds=2)
    logs = logs_of_row(trained, Path("r"), "npo", 1)
    assert [Path(log).parts[2] for log in logs["retain_result"]] == ["gold_seed1", "gold_seed1001"]


def test_models_that_fit_are_taken(models):
    checked(given(models))


def test_another_base_is_another_key_of_all_that_is_made_of_it(models):
    before = model_fingerprint(str(models / "base"))
    (models / "base" / "notes.txt").write_text("another")
    assert model_fingerprint(str(models / "base")) != before
    stages = plan_stages(given(models), Path("results"))
    for stage in stages:
        settings = benchmark_stages.recipe_of(given(models), stage).compose(stage.overrides)
        is_of_base = stage.name in ("eval base", "forget npo_seed0", "forget npo_seed1")
        assert (str(models / "base") in settings.inputs().models) == is_of_base


def test_a_gold_that_is_the_base_is_refused(models):
    with pytest.raises(
        SettingsError, match=r"^benchmark.golds\[0\]=.* is the same model as benchmark.base: gold never"
    ):
        checked(given(models, golds=[str(models / "base")]))


def test_one_gold_twice_is_refused(models):
    with pytest.raises(
        SettingsError, match=r"golds\[1\]=.* is the same model as benchmark.golds\[0\]: golds are models"
    ):
        checked(given(models, golds=[str(models / "gold_a")] * 2))


def test_a_gold_that_was_taught_everybody_is_refused_by_its_record(models):
    record(models / "gold_a", settings={"split": "full+tofu+replay"})
    line = (
        r"was taught split=full\+tofu\+replay, as its record says, and benchmark.gold_split is retain75\+tofu\+replay"
    )
    with pytest.raises(SettingsError, match=line):
        checked(given(models))


def test_a_gold_that_was_taught_other_data_is_refused_by_its_record(models):
    record(models / "gold_a", data="0ther")
    with pytest.raises(SettingsError, match=r"was taught other data \(fingerprint 0ther\) than forget npo_seed0 reads"):
        checked(given(models))


def test_a_base_that_was_taught_from_another_start_is_refused_by_its_record(models):
    record(models / "base", inputs={"models": ["an0ther"]})
    with pytest.raises(SettingsError, match=r"was taught from another model \(fingerprint an0ther\) than the start"):
        checked(given(models))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"golds": []}, r"benchmark.golds=\[\] must name models that are there, or say how many"),
        ({"golds": ["", "x"]}, "must name models that are there"),
        ({"golds": True}, "benchmark.golds=True must be a number of models, or a list of their folders"),
        ({"golds": "models/gold"}, "benchmark.golds='models/gold' must be a number of models, or a list"),
        ({"golds": 0}, "benchmark.golds=0 must be at least 1"),
        ({"base": " "}, "benchmark.base='' must name a model that is there"),
    ],
)
def test_what_names_no_model_is_refused(changes, line, models):
    with pytest.raises(SettingsError, match=line):
        given(models, **changes)


def test_a_place_without_a_model_is_refused_before_anything_runs(models):
    with pytest.raises(SettingsError, match=r"^benchmark.base='.*/none' does not exist"):
        benchmark_stages.check_models(given(models, base=str(models / "none")))
    with pytest.raises(SettingsError, match=r"^benchmark.golds\[0\]='.*/none' does not exist"):
        benchmark_stages.check_models(given(models, golds=[str(models / "none")]))


def test_golds_that_are_there_are_attacked_with_one_base(tmp_path):
    settings = compose("run_benchmark", RunBenchmark, ["benchmark=attacks"]).benchmark
    own = {"golds": ["golds/a", "golds/b"], "runs": {}}
    stages = plan_stages(replace(settings, base="bases/one", **own), tmp_path)
    attacked = [stage for stage in stages if stage.kind == "attack"]
    assert [stage.overrides[0] for stage in attacked] == [
        f"model_path={path}" for path in ("bases/one", "golds/a", "golds/b")
    ]
    assert all("base_path=bases/one" in stage.overrides for stage in attacked)
    for base in (None, "bases/{seed}"):
        with pytest.raises(SettingsError, match="golds that are there serve every seed"):
            replace(settings, base=base, **own)


@pytest.mark.parametrize("golds", [1, ["golds/a"]])
def test_attacks_are_judged_by_two_golds(golds):
    settings = compose("run_benchmark", RunBenchmark, ["benchmark=attacks"]).benchmark
    with pytest.raises(SettingsError, match="attacks are judged by two golds"):
        replace(settings, golds=golds, base="bases/one")


def test_an_attack_on_faces_needs_models_that_are_trained_here():
    faces = compose("run_benchmark", RunBenchmark, ["benchmark=cv_demo"]).benchmark
    with pytest.raises(SettingsError, match=r"^benchmark.attack trains networks as benchmark.finetune says"):
        replace(faces, base="models/mine")
