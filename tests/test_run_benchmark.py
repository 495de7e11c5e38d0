"""A benchmark: every stage once, finished ones skipped, one row a model."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

import run_benchmark
from benchmark import stages as benchmark_stages
from benchmark.plan import stages
from benchmark.stages import Progress, StageLog, run_stages
from report.rows import gold_seeds
from settings.results import Run, RunBenchmark
from settings.script import ROOT, SettingsError, compose


def benchmark(world_overrides, folder, **changes):
    """The demo on the small world, with one method and one epoch."""
    settings = compose("run_benchmark", RunBenchmark, [f"results_dir={folder}"])
    quick = ["trainer.epochs=1", "trainer.batch_size=8", *world_overrides]
    small = {"finetune": quick, "forget": [*quick, "trainer.lr=1e-4"], "eval": [*world_overrides, "max_new_tokens=8"]}
    runs = {"grad_ascent": Run(method="grad_ascent")}
    return replace(settings, benchmark=replace(settings.benchmark, **small | {"runs": runs} | changes))


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
    assert float(rows["gold"]["Distance to gold"]) == 0 and float(rows["base"]["Distance to gold"]) == 1
    assert all(
        row["Seed"] == "0" and row["Gate"] in ("passed", "failed") and row["Distance to gold"] is not None
        for row in rows.values()
    )


def test_every_stage_keeps_its_log(finished):
    logs = {file.stem: file.read_text() for file in (Path(finished.results_dir) / "logs").glob("*.log")}
    assert set(logs) == {
        f"{k}_{n}_seed0" for k, n in [("finetune", "base"), ("finetune", "gold"), ("forget", "grad_ascent")]
    } | {f"eval_{n}_seed0" for n in ("base", "gold", "grad_ascent")}
    assert "epoch 1/1" in logs["finetune_base_seed0"] and "eval_forget_qa: 20 rows" in logs["eval_gold_seed0"]


def test_a_second_run_finds_everything_done(finished, monkeypatch):
    monkeypatch.setattr(benchmark_stages, "run_stage", lambda *_: pytest.fail("a finished stage ran again"))
    run_benchmark.main.recipe(finished)


def test_a_changed_method_runs_again_and_nothing_else_does(finished, world_overrides, monkeypatch):
    ran = []
    original = benchmark_stages.run_stage
    monkeypatch.setattr(
        benchmark_stages, "run_stage", lambda stage, *rest: (ran.append(stage.name), original(stage, *rest))
    )
    finished.benchmark.runs["grad_ascent"].overrides = ["trainer.lr=2e-4"]
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
    monkeypatch.setattr(
        benchmark_stages, "run_stage", lambda stage, *rest: (ran.append(stage.name), original(stage, *rest))
    )
    run_stages(settings.benchmark, tmp_path)
    assert ran[0] == "eval base_seed0" and len(ran) == 5


def test_seeds_are_part_of_every_path_and_golds_do_not_share_them(world_overrides, tmp_path):
    settings = benchmark(world_overrides, tmp_path, seeds=[0, 1], golds=2).benchmark
    plan = stages(settings, tmp_path)
    outputs = [str(stage.output) for stage in plan]
    assert len(set(outputs)) == len(outputs) and all("_seed" in output for output in outputs)
    assert gold_seeds(settings, 1) == [1, 1001] and any("gold_seed1001" in output for output in outputs)


def test_the_line_of_progress_says_which_stage_of_how_many_and_how_long_is_left():
    progress = Progress([100.0, 50.0])
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
    assert seen == [0.5, 0.125] and (tmp_path / "a.log").read_text().count("\n") == 3


@pytest.mark.slow
def test_launched_stages_give_the_same_rows_as_stages_in_one_process(finished, world_overrides, tmp_path):
    run_benchmark.main.recipe(benchmark(world_overrides, tmp_path, launch=True))
    own, launched = (
        list(csv.DictReader(Path(folder, "results.csv").read_text().splitlines()))
        for folder in (finished.results_dir, tmp_path)
    )
    cost = {"Train seconds", "Eval seconds", "Peak memory GB"}
    for one, two in zip(
        own[:2], launched[:2], strict=True
    ):  # base and gold; the method's rate was changed by a test above
        assert {k: v for k, v in one.items() if k not in cost} == {k: v for k, v in two.items() if k not in cost}
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
        "diverges": Run(method="grad_ascent", overrides=["trainer.lr=1e30"]),
        "grad_ascent": finished.benchmark.runs["grad_ascent"],
    }
    settings = replace(finished, benchmark=replace(finished.benchmark, runs=runs))
    run_benchmark.main.recipe(settings)
    with open(folder / "results.csv", encoding="utf-8") as stream:
        rows = {row["Method"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["base", "gold", "diverges", "grad_ascent"]
    assert "method grad_ascent, step" in rows["diverges"]["Failed"] and rows["diverges"]["Distance to gold"] == ""
    assert rows["grad_ascent"]["Distance to gold"] != "" and not (folder / "models" / "diverges_seed0").exists()
    assert (folder / "report.html").is_file()
    ran = []
    original = benchmark_stages.run_stage
    monkeypatch.setattr(
        benchmark_stages, "run_stage", lambda stage, *rest: (ran.append(stage.name), original(stage, *rest))
    )
    run_stages(settings.benchmark, folder)
    assert ran == ["forget diverges_seed0"]  # what failed is tried again, and nothing else


@pytest.mark.parametrize("name", sorted(file.stem for file in ROOT.glob("config/benchmark/*.yaml")))
def test_every_stage_of_every_benchmark_composes_with_its_recipe(name, tmp_path):
    settings = compose("run_benchmark", RunBenchmark, [f"benchmark={name}", f"results_dir={tmp_path}"]).benchmark
    plan = stages(settings, tmp_path)
    for stage in plan:
        recipe = benchmark_stages.recipe_of(settings, stage)
        assert recipe.compose(stage.overrides).save_dir == str(stage.output)
    attacks = 0 if settings.attack is None else 2 + len(settings.runs)  # base, gold of the first seed, and every run
    assert settings.name == name and len(plan) == 2 * (1 + settings.golds + len(settings.runs)) + attacks + (
        settings.pretrain is not None
    )
