"""A benchmark: every stage once, finished ones skipped, one row a model."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import run_benchmark
from benchmark import stages as benchmark_stages
from benchmark.plan import plan_stages
from benchmark.progress import BenchmarkProgress, StageLog
from benchmark.stages import run_stages
from report.folder import gold_seeds
from settings.results import RunBenchmark
from settings.script import ROOT, SettingsError, compose


def benchmark(world_overrides, folder, **changes):
    """The demo on the small world, with one method and one epoch."""
    settings = compose("run_benchmark", RunBenchmark, [f"results_dir={folder}"])
    quick = ["trainer.epochs=1", "trainer.batch_size=8", *world_overrides]
    small = {"finetune": quick, "forget": [*quick, "trainer.lr=1e-4"], "eval": [*world_overrides, "max_new_tokens=8"]}
    runs = {"grad_ascent": []}
    return replace(settings, benchmark=replace(settings.benchmark, **small | {"runs": runs} | changes))


def note_names(ran, run_stage):
    """`run_stage` that also notes the names of the stages in `ran`."""
    return lambda stage, *rest: (ran.append(stage.name), run_stage(stage, *rest))


@pytest.fixture(scope="module")
def finished(world_overrides, tmp_path_factory):
    settings = benchmark(world_overrides, tmp_path_factory.mktemp("results"))
    run_benchmark.main.recipe(settings)
    return settings


def test_the_table_has_base_gold_and_every_method_once(finished):
    with open(f"{finished.results_dir}/results.csv", encoding="utf-8") as stream:
        rows = {row["Method"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["base", "gold", "grad_ascent"]
    assert float(rows["gold"]["Forget Quality eval_forget_qa"]) == 1.0
    assert float(rows["gold"]["Distance to gold"]) == 0
    assert float(rows["base"]["Distance to gold"]) == 1
    assert {row["Seed"] for row in rows.values()} == {"0"}
    assert {row["Gate"] for row in rows.values()} <= {"passed", "failed"}
    assert [name for name, row in rows.items() if row["Distance to gold"] == ""] == []


def test_every_stage_keeps_its_log(finished):
    logs = {file.stem: file.read_text() for file in (Path(finished.results_dir) / "logs").glob("*.log")}
    trained = {"finetune_base_seed0", "finetune_gold_seed0", "forget_grad_ascent_seed0"}
    assert set(logs) == trained | {"eval_base_seed0", "eval_gold_seed0", "eval_grad_ascent_seed0"}
    assert "epoch 1/1" in logs["finetune_base_seed0"]
    assert "eval_forget_qa: 20 rows" in logs["eval_gold_seed0"]


def test_a_second_run_finds_everything_done(finished, monkeypatch):
    monkeypatch.setattr(benchmark_stages, "run_stage", lambda *_: pytest.fail("a finished stage ran again"))
    run_benchmark.main.recipe(finished)


def test_a_changed_method_runs_again_and_nothing_else_does(finished, world_overrides, monkeypatch):
    ran = []
    original = benchmark_stages.run_stage
    monkeypatch.setattr(benchmark_stages, "run_stage", note_names(ran, original))
    finished.benchmark.runs["grad_ascent"] = ["trainer.lr=2e-4"]
    run_stages(finished.benchmark, Path(finished.results_dir))
    assert ran == ["forget grad_ascent_seed0", "eval grad_ascent_seed0"]


def test_an_interrupted_stage_runs_again_and_the_finished_ones_do_not(world_overrides, tmp_path, monkeypatch):
    settings = benchmark(world_overrides, tmp_path)
    original = benchmark_stages.run_stage

    def interrupted(stage, *rest):
        if stage.name == "eval base_seed0":
            raise KeyboardInterrupt
        original(stage, *rest)

    monkeypatch.setattr(benchmark_stages, "run_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stages(settings.benchmark, tmp_path)
    ran = []
    monkeypatch.setattr(benchmark_stages, "run_stage", note_names(ran, original))
    run_stages(settings.benchmark, tmp_path)
    assert ran[0] == "eval base_seed0"
    assert len(ran) == 5


def test_seeds_are_part_of_every_path_and_golds_do_not_share_them(world_overrides, tmp_path):
    settings = benchmark(world_overrides, tmp_path, seeds=[0, 1], golds=2).benchmark
    outputs = [str(stage.output) for stage in plan_stages(settings, tmp_path)]
    assert len(set(outputs)) == len(outputs)
    assert [output for output in outputs if "_seed" not in output] == []
    assert gold_seeds(settings, 1) == [1, 1001]
    assert any("gold_seed1001" in output for output in outputs)


def test_the_line_of_progress_says_which_stage_of_how_many_and_how_long_is_left():
    progress = BenchmarkProgress([100.0, 50.0])
    progress.begin(0, "finetune base")
    assert progress.line(0.0) == "[1/2] finetune base: 0%, about 2 min 30 s left in all"
    progress.end(200.0, skipped=False)  # twice as long as expected, so the 25 s that are left of the rest will be 50
    progress.begin(1, "forget npo")
    assert progress.line(0.5) == "[2/2] forget npo: 50%, about 0 min 40 s left in all"


def test_epochs_and_tasks_move_the_progress(tmp_path):
    seen = []
    log = StageLog(tmp_path / "a.log", seen.append, tasks=8)
    for line in ("epoch 2/4, loss 1.0\n", "eval_log: 40 rows, 1 s\n", "other\n"):
        log.write(line)
    log.close()
    assert seen == [0.5, 0.125]
    assert (tmp_path / "a.log").read_text().count("\n") == 3


@pytest.mark.slow
def test_launched_stages_give_the_same_rows_as_stages_in_one_process(finished, world_overrides, tmp_path):
    run_benchmark.main.recipe(benchmark(world_overrides, tmp_path, launch=True))
    in_one_process, launched = (
        list(csv.DictReader(Path(folder, "results.csv").read_text().splitlines()))
        for folder in (finished.results_dir, tmp_path)
    )
    cost = {"Train seconds", "Eval seconds", "Peak memory GB"}
    # base and gold; the method's rate was changed by a test above
    for one, other in zip(in_one_process[:2], launched[:2], strict=True):
        assert {k: v for k, v in one.items() if k not in cost} == {k: v for k, v in other.items() if k not in cost}
    assert [row["Method"] for row in launched] == ["base", "gold", "grad_ascent"]


def test_a_failing_launched_stage_names_its_log_and_gives_the_scripts_own_line(world_overrides, tmp_path, monkeypatch):
    settings = benchmark(world_overrides, tmp_path, launch=True)
    monkeypatch.setattr(
        benchmark_stages.subprocess,
        "Popen",
        lambda *_, **__: type("P", (), {"stdout": iter(["error: no\n"]), "wait": lambda self: 1, "returncode": 1})(),
    )
    with pytest.raises(
        SettingsError, match=r"finetune base_seed0 failed with exit code 1: no; its log: .*finetune_base_seed0.log"
    ):
        run_stages(settings.benchmark, tmp_path)


def test_a_method_that_fails_gets_a_row_that_says_why_and_the_others_go_on(finished, monkeypatch):
    folder = Path(finished.results_dir)
    runs = {
        "diverges": ["method=grad_ascent", "trainer.lr=1e30"],
        "grad_ascent": finished.benchmark.runs["grad_ascent"],
    }
    settings = replace(finished, benchmark=replace(finished.benchmark, runs=runs))
    run_benchmark.main.recipe(settings)
    with open(folder / "results.csv", encoding="utf-8") as stream:
        rows = {row["Method"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["base", "gold", "diverges", "grad_ascent"]
    assert "method grad_ascent, step" in rows["diverges"]["Failed why"]
    assert rows["diverges"]["Distance to gold"] == ""
    assert rows["grad_ascent"]["Distance to gold"] != ""
    assert not (folder / "models" / "diverges_seed0").exists()
    assert (folder / "report.html").is_file()
    ran = []
    original = benchmark_stages.run_stage
    monkeypatch.setattr(benchmark_stages, "run_stage", note_names(ran, original))
    run_stages(settings.benchmark, folder)
    assert ran == ["forget diverges_seed0"]  # what failed is tried again, and nothing else


@pytest.mark.parametrize("name", sorted(file.stem for file in ROOT.glob("config/benchmark/*.yaml")))
def test_every_stage_of_every_benchmark_composes_with_its_recipe(name, tmp_path):
    settings = compose("run_benchmark", RunBenchmark, [f"benchmark={name}", f"results_dir={tmp_path}"]).benchmark
    stages = plan_stages(settings, tmp_path)
    for stage in stages:
        recipe = benchmark_stages.recipe_of(settings, stage)
        assert recipe.compose(stage.overrides).save_dir == str(stage.output)
    attacks = 0 if settings.attack is None else 2 + len(settings.runs)  # base, gold of the first seed, and every run
    trained = 1 + settings.golds + len(settings.runs)
    assert settings.name == name
    assert len(stages) == 2 * trained + attacks + (settings.pretrain is not None)


def test_a_row_has_the_method_of_its_name_or_the_one_that_it_names(tmp_path):
    settings = compose("run_benchmark", RunBenchmark, []).benchmark
    runs = {"npo": ["trainer.lr=1"], "other": ["method=kl", "trainer.lr=2"]}
    stages = {stage.name: stage.overrides for stage in plan_stages(replace(settings, runs=runs), tmp_path)}
    assert stages["forget npo_seed0"][-2:] == ["method=npo", "trainer.lr=1"]
    assert stages["forget other_seed0"][-2:] == ["method=kl", "trainer.lr=2"]


def test_what_is_common_goes_to_every_stage_once_and_before_what_one_kind_says(tmp_path):
    settings = compose("run_benchmark", RunBenchmark, ["benchmark=cv_orl"]).benchmark
    told = [stage.overrides for stage in plan_stages(settings, tmp_path)]
    assert {overrides.count("data=orl_faces") for overrides in told} == {1}
    settings = replace(compose("run_benchmark", RunBenchmark, []).benchmark, common=["seed=1"], eval=["seed=2"])
    assert plan_stages(settings, tmp_path)[1].overrides[-2:] == ["seed=1", "seed=2"]


def test_a_benchmark_that_attacks_needs_a_pretrained_model(tmp_path):
    settings = compose("run_benchmark", RunBenchmark, ["benchmark=cv_demo", f"results_dir={tmp_path}"]).benchmark
    with pytest.raises(SettingsError, match=r"benchmark\.attack needs benchmark\.pretrain"):
        plan_stages(replace(settings, pretrain=None), tmp_path)


def test_the_door_imports_no_torch():
    code = "import sys, run_benchmark; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
