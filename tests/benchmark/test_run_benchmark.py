"""A benchmark: every stage once, finished ones skipped, one row a model."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from rich.console import Console

import run_benchmark
from benchmark import progress as benchmark_progress
from benchmark import stages as benchmark_stages
from benchmark.plan import Stage, plan_stages
from benchmark.progress import BenchmarkProgress
from benchmark.stages import launch_stage, run_stages
from engine import record as record_module
from engine.source import code_of
from helpers import BASE, ENVIRONMENT, copy_of_results
from report.folder import gold_seeds
from settings import runs
from settings.results import RunBenchmark
from settings.script import ROOT, SettingsError, Stopped, compose
from terminals import screens


def benchmark(world_overrides, folder, **changes):
    """The demo on the small world, with one gold, one method and one epoch."""
    settings = compose("run_benchmark", RunBenchmark, [f"results_dir={folder}"])
    quick = ["trainer.epochs=1", "trainer.batch_size=8", *world_overrides]
    small = {"finetune": quick, "forget": [*quick, "trainer.lr=1e-4"], "eval": [*world_overrides, "max_new_tokens=8"]}
    fewer = {"runs": {"grad_ascent": []}, "golds": 1}
    return replace(settings, benchmark=replace(settings.benchmark, **small | fewer | changes))


def note_names(ran, run_stage):
    """`run_stage` that also notes the names of the stages in `ran`."""
    return lambda stage, *rest: (ran.append(stage.name), run_stage(stage, *rest))


@pytest.fixture(scope="module")
def finished(world_overrides, tmp_path_factory):
    settings = benchmark(world_overrides, tmp_path_factory.mktemp("results"))
    run_benchmark.main.recipe(settings)
    return settings


@pytest.fixture
def results(finished, tmp_path):
    """A copy of the finished benchmark for a test that changes something."""
    return copy_of_results(finished, tmp_path / "results")


@pytest.fixture
def named(monkeypatch):
    """The names of the stages that are not skipped; none of them runs."""
    names = []
    monkeypatch.setattr(benchmark_stages, "run_stage", lambda stage, *_: names.append(stage.name))
    return names


def test_the_table_has_base_gold_and_every_method_once(finished):
    with open(f"{finished.results_dir}/results.csv", encoding="utf-8") as stream:
        rows = {row["Method"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["base", "gold", "start", "grad_ascent"]
    assert float(rows["gold"]["Forget Quality eval_forget_qa"]) == 1.0
    assert float(rows["gold"]["Distance to gold"]) == 0
    assert float(rows["base"]["Distance to gold"]) == 1
    assert {row["Seed"] for row in rows.values()} == {"0"}
    assert {row["Gate"] for row in rows.values()} <= {"passed", "failed"}
    assert [name for name, row in rows.items() if row["Distance to gold"] == ""] == []


def test_the_start_knows_nobody_and_gold_kept_everything(finished):
    table = pandas.read_parquet(Path(finished.results_dir) / "results.parquet").set_index(["model", "measure"])
    assert table.loc[("start", "kept_taught"), "value"] == 0
    assert table.loc[("gold", "kept_taught"), "value"] == 1
    assert table.loc[("gold", "kept_real"), "value"] == 1


def test_every_stage_keeps_its_log(finished):
    logs = {file.stem: file.read_text() for file in (Path(finished.results_dir) / "logs").glob("*.log")}
    trained = {"finetune_base_seed0", "finetune_gold_seed0", "forget_grad_ascent_seed0"}
    evaluated = {"eval_start", "eval_base_seed0", "eval_gold_seed0", "eval_grad_ascent_seed0"}
    assert set(logs) == trained | evaluated
    assert "epoch 1/1" in logs["finetune_base_seed0"]
    assert "eval_forget_qa: 20 rows" in logs["eval_gold_seed0"]


def test_a_second_run_finds_everything_done_also_where_the_results_were_moved(results, named):
    run_benchmark.main.recipe(results)
    assert named == []


def test_skipping_a_finished_stage_takes_less_than_a_second(results, named):
    started = time.perf_counter()
    run_stages(results.benchmark, Path(results.results_dir))
    assert time.perf_counter() - started < len(plan_stages(results.benchmark, Path(results.results_dir)))


def test_a_changed_method_runs_again_and_nothing_else_does(results, monkeypatch):
    ran = []
    original = benchmark_stages.run_stage
    monkeypatch.setattr(benchmark_stages, "run_stage", note_names(ran, original))
    results.benchmark.runs["grad_ascent"] = ["trainer.lr=2e-4"]
    run_stages(results.benchmark, Path(results.results_dir), overwrite=True)
    assert ran == ["forget grad_ascent_seed0", "eval grad_ascent_seed0"]


def test_a_change_of_a_recipes_code_runs_its_stages_again(results, named, monkeypatch):
    def changed_evaluation(file):
        return code_of(file, __file__) if file.stem == "eval" else code_of(file)

    monkeypatch.setattr(benchmark_stages, "code_of", changed_evaluation)
    run_stages(results.benchmark, Path(results.results_dir), overwrite=True)
    assert named == ["eval start", "eval base_seed0", "eval gold_seed0", "eval grad_ascent_seed0"]


def test_an_output_that_something_else_was_written_over_is_made_again(results, named):
    file = Path(results.results_dir, "models", "gold_seed0", "train_meta.json")
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**record, "key": "another"}), encoding="utf-8")
    run_stages(results.benchmark, Path(results.results_dir), overwrite=True)
    assert named == ["finetune gold_seed0"]


def test_a_changed_base_is_another_input_of_what_is_made_of_it(results, named):
    file = Path(results.results_dir, "models", "base_seed0", "generation_config.json")
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    run_stages(results.benchmark, Path(results.results_dir), overwrite=True)
    assert named == ["eval base_seed0", "forget grad_ascent_seed0"]


# ---- finished work is replaced on request only


def test_a_changed_setting_names_what_would_be_made_anew_and_replaces_nothing(results, named):
    results.benchmark.runs["grad_ascent"] = ["trainer.lr=2e-4"]
    line = (
        r"^2 finished stages would be made anew: forget grad_ascent_seed0 \(trainer\.lr: 0\.0001 -> 0\.0002\); "
        r"eval grad_ascent_seed0 \(forget grad_ascent_seed0 is\)\. overwrite=true replaces what is there; "
    )
    with pytest.raises(SettingsError, match=line):
        run_stages(results.benchmark, Path(results.results_dir))
    assert named == []


def test_a_change_of_the_code_replaces_nothing_unasked(results, named, monkeypatch):
    def changed_evaluation(file):
        return code_of(file, __file__) if file.stem == "eval" else code_of(file)

    monkeypatch.setattr(benchmark_stages, "code_of", changed_evaluation)
    with pytest.raises(SettingsError, match=r"^4 finished stages .* eval start \(the code\); eval base_seed0"):
        run_stages(results.benchmark, Path(results.results_dir))
    assert named == []


def test_a_changed_base_is_named_by_those_that_begin_with_it(results, named):
    file = Path(results.results_dir, "models", "base_seed0", "generation_config.json")
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"forget grad_ascent_seed0 \(the model it begins with\)"):
        run_stages(results.benchmark, Path(results.results_dir))


def test_a_row_more_replaces_nothing_and_runs(results, named, monkeypatch):
    monkeypatch.setattr(benchmark_stages, "cost_of", lambda stage: {"seconds": 0.0, "peak_memory_gb": 0.0})
    results.benchmark.runs["idk"] = []
    run_stages(results.benchmark, Path(results.results_dir))
    assert named == ["forget idk_seed0", "eval idk_seed0"]


def test_a_stage_that_is_missing_is_made_and_what_was_made_of_it_stays(results, monkeypatch):
    """The same base comes out again, so that nothing that was made of the former one is made anew."""
    ran = []
    original = benchmark_stages.run_stage
    monkeypatch.setattr(benchmark_stages, "run_stage", note_names(ran, original))
    folder = Path(results.results_dir)
    (folder / "models" / "base_seed0" / "eval_results").rename(folder / "kept")
    shutil.rmtree(folder / "models" / "base_seed0")
    run_stages(results.benchmark, folder)
    assert ran == ["finetune base_seed0", "eval base_seed0"]


def test_other_libraries_are_said_and_replace_nothing(results, named, monkeypatch, capsys):
    real = record_module.versions()
    monkeypatch.setattr(record_module, "versions", lambda: {**real, "torch": "99"})
    run_stages(results.benchmark, Path(results.results_dir))
    assert named == []
    said = capsys.readouterr().out
    assert "7 finished stages were made with other libraries (torch" in said
    assert "-> 99) and are kept" in said


def test_two_benchmarks_in_one_folder_are_refused(results, monkeypatch):
    def held(*_):
        raise BlockingIOError

    monkeypatch.setattr(runs, "open_locked", held)
    with pytest.raises(SettingsError, match=r"results_dir=.* is being written by another run"):
        run_benchmark.main.recipe(results)


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
    assert progress.stage_label(0) == "[1/2] finetune base"
    assert round(progress.seconds_left()) == 150
    progress.end(200.0, skipped=False)  # twice as long as expected, so the 25 s that are left of the rest will be 50
    progress.begin(1, "forget npo")
    progress.show(0.5, "")
    # 100 + 25 expected seconds took 200: the 25 that are left take 40
    assert round(progress.seconds_left()) == 40


def test_a_terminal_gets_a_bar_that_moves():
    shown = io.StringIO()
    progress = BenchmarkProgress([100.0], Console(file=shown, force_terminal=True, width=100))
    with progress.bar:
        progress.begin(0, "finetune base")
        progress.running[0].begun -= 50  # half of the stage took half of the 100 seconds
        progress.show(0.5, "step 10/20, loss 1.2345")
        progress.end(60.0, skipped=False)
    seen = screens(shown.getvalue())
    assert ["[1/1] finetune base ━━━━━╺━━━━ 0:00:50 left in all, step 10/20, loss 1.2345"] in seen
    assert [line for line in seen[-1] if line] == ["[1/1] finetune base: 60 s"]


def test_without_a_terminal_there_are_plain_lines_and_no_bar(monkeypatch):
    shown = io.StringIO()
    progress = BenchmarkProgress([100.0], Console(file=shown, width=100))
    with progress.bar:
        progress.begin(0, "finetune base")
        progress.running[0].begun -= 50
        progress.show(0.4, "step 8/20, loss 1.3")  # too soon after the line before
        monkeypatch.setattr(benchmark_progress, "SECONDS_BETWEEN_LINES", 0.0)
        progress.show(0.5, "step 10/20, loss 1.2345")
        progress.end(3.0, skipped=False)
    assert shown.getvalue().splitlines() == [
        "[1/1] finetune base: about 1 min 40 s left in all",
        "[1/1] finetune base: step 10/20, loss 1.2345, about 0 min 50 s left in all",
        "[1/1] finetune base: 3 s",
    ]


def test_a_stage_in_this_process_moves_the_progress_and_prints_into_its_log(world_overrides, tmp_path, capsys):
    settings = benchmark(world_overrides, tmp_path).benchmark
    stage = next(stage for stage in plan_stages(settings, tmp_path) if stage.kind == "finetune")
    seen = []
    composed = benchmark_stages.recipe_of(settings, stage).compose(stage.overrides)
    benchmark_stages.run_stage(stage, settings, composed, tmp_path / "a.log", lambda share, words: seen.append(share))
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert seen[-1] == 1.0
    assert "epoch 1/1" in (tmp_path / "a.log").read_text()
    assert "epoch 1/1" not in capsys.readouterr().out


def unheard(share, words):
    """Where nobody wants to know how far a stage is."""


LAUNCHED = Stage("finetune", "base", [], Path("out"))
REPORTS = """
import time
from engine.progress import Work
with Work("step", 4) as work:
    for done in (1, 3):
        work.at(done)
        print("reported", done, flush=True)
        time.sleep(1)
"""


def test_a_launched_stage_moves_the_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    seen = []
    command = [sys.executable, "-c", REPORTS]
    launch_stage(LAUNCHED, command, tmp_path / "a.log", lambda share, words: seen.append((share, words)))
    assert [report for report in dict.fromkeys(seen) if report[1]] == [(0.25, "step 1/4"), (0.75, "step 3/4")]


WAITS = """
import os, signal, subprocess, sys, time
if len(sys.argv) == 1:
    child = subprocess.Popen([sys.executable, sys.argv[0], "training"])
    sys.exit(child.wait())
from settings import runs
runs.is_launcher = lambda words: True
runs.end_with_launcher()
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
print("trains", flush=True)
while not told:
    time.sleep(0.05)
time.sleep(1)
print("SIGTERM: saved step 1 of 2 in 'x'; the same command goes on from there", flush=True)
"""


def test_a_signal_reaches_the_training_and_is_waited_for(tmp_path, monkeypatch):
    """A launcher that ends at once leaves its training behind; the stage ends when that has saved."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "waits.py").write_text(WAITS)
    log = tmp_path / "a.log"

    def interrupt(share, words):
        if log.is_file() and "trains" in log.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch_stage(LAUNCHED, [sys.executable, str(tmp_path / "waits.py")], log, interrupt)
    assert log.read_text().splitlines()[-1].startswith("SIGTERM: saved step 1 of 2")


def test_a_training_that_was_told_to_stop_has_not_failed(tmp_path, monkeypatch):
    code = "import sys; print('SIGTERM: saved step 1 of 2; the same command goes on from there'); sys.exit(1)"
    with pytest.raises(Stopped, match="finetune base was told to stop; SIGTERM: saved step 1 of 2"):
        launch_stage(LAUNCHED, [sys.executable, "-c", code], tmp_path / "a.log", unheard)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_a_benchmark_that_is_killed_takes_its_stage_along(tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    log = tmp_path / "a.log"
    code = (
        "import sys; from pathlib import Path; from benchmark.plan import Stage; from benchmark.stages import *\n"
        f"stage = Stage('finetune', 'base', [], Path('out'))\n"
        f"launch_stage(stage, [sys.executable, {str(tmp_path / 'waits.py')!r}], Path({str(log)!r}), print)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT) as process:
        try:
            wait_for(lambda: log.is_file() and "trains" in log.read_text())
        finally:
            process.kill()
    wait_for(lambda: "SIGTERM: saved step 1 of 2" in log.read_text())


def test_sigterm_ends_a_benchmark_as_ctrl_c_does():
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM: what was finished stays"), benchmark_stages.ended_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) == former


def wait_for(what, seconds=180):
    """Wait until `what()` holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def test_a_launched_stage_leaves_its_log_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    launch_stage(LAUNCHED, [sys.executable, "-c", REPORTS], tmp_path / "a.log", unheard)
    assert [file.name for file in tmp_path.iterdir()] == ["a.log"]
    assert (tmp_path / "a.log").read_text() == "reported 1\nreported 3\n"


@pytest.fixture(scope="module")
def launched(world_overrides, tmp_path_factory):
    """The benchmark of `finished` through `accelerate launch`, and the shares of its stages that were reported."""
    settings = benchmark(world_overrides, tmp_path_factory.mktemp("launched"), launch=True)
    seen = []
    with pytest.MonkeyPatch.context() as patch:

        def show(self, share, words, number=None):
            seen.append((self.running[self.number].name, share))

        patch.setattr(BenchmarkProgress, "show", show)
        run_benchmark.main.recipe(settings)
    return settings, seen


@pytest.mark.slow
def test_launched_stages_give_the_same_rows_as_stages_in_one_process(finished, launched):
    cost = {"Train seconds", "Eval seconds", "Peak memory GB"}
    tables = []
    for settings in (finished, launched[0]):
        lines = Path(settings.results_dir, "results.csv").read_text(encoding="utf-8").splitlines()
        rows = list(csv.DictReader(lines))
        for row in rows:
            for name in cost & row.keys():
                del row[name]
        tables.append(rows)
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_what_was_launched_is_finished_for_a_run_in_one_process(launched, named):
    settings, _ = launched
    run_stages(replace(settings.benchmark, launch=False), Path(settings.results_dir))
    assert named == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune base_seed0", "eval base_seed0"])
def test_the_progress_of_a_recipe_comes_through_accelerate_launch(name, launched):
    _, seen = launched
    assert [share for stage, share in seen if stage == name and 0 < share < 1] != []


def test_a_failing_launched_stage_names_its_log_and_gives_the_scripts_own_line(tmp_path):
    fails = "import sys; print('epoch 1/2'); sys.exit(print('error: no', file=sys.stderr) or 3)"
    with pytest.raises(SettingsError, match=r"finetune base failed with exit code 3: no; its log: .*a\.log"):
        launch_stage(LAUNCHED, [sys.executable, "-c", fails], tmp_path / "a.log", unheard)


def test_a_method_that_fails_gets_a_row_that_says_why_and_the_others_go_on(results, monkeypatch):
    folder = Path(results.results_dir)
    runs = {
        "diverges": ["method=grad_ascent", "trainer.lr=1e30"],
        "grad_ascent": results.benchmark.runs["grad_ascent"],
    }
    settings = replace(results, benchmark=replace(results.benchmark, runs=runs))
    run_benchmark.main.recipe(settings)
    with open(folder / "results.csv", encoding="utf-8") as stream:
        rows = {row["Method"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["base", "gold", "start", "diverges", "grad_ascent"]
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
    alike = {stage.kind if stage.kind in ("eval", "attack") else stage.name: stage for stage in stages}
    for stage in alike.values():
        recipe = benchmark_stages.recipe_of(settings, stage)
        assert recipe.compose(stage.overrides).save_dir == str(stage.output)
    trained = len(settings.seeds) * (1 + settings.golds + len(settings.runs))
    given = len(settings.seeds) * len(settings.models)
    if settings.attack is None:
        attacks = 0
    elif settings.modality == "cv":
        attacks = 2 + len(settings.runs)  # base, gold of the first seed, and every run
    else:
        attacks = trained + given
    assert settings.name == name
    assert len(stages) == 1 + 2 * trained + given + attacks + (settings.pretrain is not None)


def test_a_row_has_the_method_of_its_name_or_the_one_that_it_names(tmp_path):
    settings = compose("run_benchmark", RunBenchmark, []).benchmark
    runs = {"npo": ["trainer.lr=1"], "other": ["method=kl", "trainer.lr=2"]}
    stages = {stage.name: stage.overrides for stage in plan_stages(replace(settings, runs=runs), tmp_path)}
    assert stages["forget npo_seed0"][-2:] == ["method=npo", "trainer.lr=1"]
    assert stages["forget other_seed0"][-2:] == ["method=kl", "trainer.lr=2"]


def test_a_model_made_elsewhere_is_evaluated_with_each_seeds_base(tmp_path):
    settings = compose("run_benchmark", RunBenchmark, []).benchmark
    settings = replace(settings, runs={}, seeds=[0, 3], models={"own": "made/{seed}"})
    stages = {stage.name: stage for stage in plan_stages(settings, tmp_path)}
    assert "model_path=made/3" in stages["eval own_seed3"].overrides
    assert stages["eval own_seed3"].output == tmp_path / "models" / "own_seed3" / "eval_results"
    assert "forget own_seed3" not in stages


def test_one_model_made_elsewhere_is_judged_by_the_base_and_gold_of_each_seed(tmp_path, capsys):
    path = tmp_path / "made"
    shutil.copytree(BASE, path)
    typed = ["benchmark.seeds=[0,1]", f"+benchmark.models.own={path}"]
    settings = compose("run_benchmark", RunBenchmark, typed).benchmark
    stages = {stage.name: stage for stage in plan_stages(settings, tmp_path)}
    for seed in (0, 1):
        assert f"model_path={path}" in stages[f"eval own_seed{seed}"].overrides
    benchmark_stages.check_models(settings)
    assert f"benchmark.models.own='{path}' is one model for the seeds [0, 1]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"forget_split": "forget25+toffee"},
            r"forget retain_ft_seed0: split='forget25\+toffee' is not in .*did you mean",
        ),
        ({"base_split": "everybody"}, r"finetune base_seed0: split='everybody' is not in"),
        ({"forget_split": "forget20", "forget_people": "forget20"}, "split='forget20_perturbed' is not in"),
    ],
)
def test_a_split_that_is_not_there_is_told_before_anything_is_trained(changes, line, world_overrides, tmp_path, named):
    settings = benchmark(world_overrides, tmp_path, runs={"retain_ft": []}, **changes)
    with pytest.raises(SettingsError, match=line):
        run_stages(settings.benchmark, tmp_path)
    assert named == []


def test_a_model_made_elsewhere_that_cannot_be_evaluated_is_its_own_rows_failure(results, tmp_path):
    torn = tmp_path / "torn"
    shutil.copytree(Path(results.results_dir) / "models" / "base_seed0", torn)
    (torn / "model.safetensors").write_bytes(b"torn")
    run_benchmark.main.recipe(replace(results, benchmark=replace(results.benchmark, models={"own": str(torn)})))
    rows = {row["Method"]: row for row in csv.DictReader((Path(results.results_dir) / "results.csv").open())}
    assert "could not be loaded" in rows["own"]["Failed why"]
    assert rows["base"]["Distance to gold"]


def test_rows_to_forget_that_gold_learns_are_told_before_anything_is_trained(world_overrides, tmp_path, named):
    settings = benchmark(world_overrides, tmp_path, runs={"retain_ft": []}, gold_split="full+tofu+replay")
    with pytest.raises(SettingsError, match=r"split=forget25\+tofu and retain_split=full\+tofu\+replay overlap"):
        run_stages(settings.benchmark, tmp_path)
    assert named == []


@pytest.mark.parametrize("name", ["demo", "nlp_demo", "cv_demo"])
def test_a_model_made_elsewhere_that_is_not_there_is_told_before_anything_runs(name, tmp_path, named):
    settings = compose("run_benchmark", RunBenchmark, [f"benchmark={name}"]).benchmark
    with pytest.raises(SettingsError, match=r"benchmark\.models\.own='made/nothing/0'"):
        run_stages(replace(settings, models={"own": "made/nothing/{seed}"}), tmp_path)
    assert named == []


def test_a_model_made_elsewhere_has_a_row_like_the_others(results):
    base = Path(results.results_dir) / "models" / "base_seed0"
    with_own = replace(results, benchmark=replace(results.benchmark, models={"own": str(base)}))
    run_benchmark.main.recipe(with_own)
    rows = {row["Method"]: row for row in csv.DictReader((Path(results.results_dir) / "results.csv").open())}
    assert rows["own"]["Distance to gold"] == rows["base"]["Distance to gold"]
    assert rows["own"]["Hook"] == "no"


def test_what_is_common_goes_to_every_stage_once_and_before_what_one_kind_says(tmp_path):
    settings = compose("run_benchmark", RunBenchmark, ["benchmark=cv_orl"]).benchmark
    told = [stage.overrides for stage in plan_stages(settings, tmp_path)]
    assert {overrides.count("data=orl_faces") for overrides in told} == {1}
    settings = replace(compose("run_benchmark", RunBenchmark, []).benchmark, common=["a=1"], eval=["a=2"])
    evaluation = next(stage for stage in plan_stages(settings, tmp_path) if stage.name == "eval base_seed0")
    assert evaluation.overrides[-2:] == ["a=1", "a=2"]


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ({"common": ["seed=5"]}, "seed"),
        ({"finetune": ["save_dir=elsewhere"]}, "save_dir"),
        ({"forget": ["+split=forget05+tofu"]}, "split"),
        ({"eval": ["save_dir=elsewhere"]}, "save_dir"),
        ({"eval": ["forget=forget05"]}, "forget"),
        ({"runs": {"npo": ["seed=7"]}}, "seed"),
    ],
)
def test_an_override_that_would_undo_what_the_table_says_of_a_row_is_refused(own, name, tmp_path):
    settings = compose("run_benchmark", RunBenchmark, []).benchmark
    with pytest.raises(SettingsError, match=f"cannot stand in a list of overrides; a benchmark sets {name} itself"):
        plan_stages(replace(settings, **own), tmp_path)


def test_base_every_gold_and_every_row_are_attacked_alike(tmp_path):
    settings = compose("run_benchmark", RunBenchmark, ["benchmark=attacks", "benchmark.golds=2"]).benchmark
    settings = replace(settings, runs={"npo": []}, models={"own": "made/own"}, attack=["limit=24"])
    stages = [stage for stage in plan_stages(settings, tmp_path) if stage.kind == "attack"]
    assert [stage.model for stage in stages] == ["base_seed0", "gold_seed0", "gold_seed1000", "npo_seed0", "own_seed0"]
    places = [f"{tmp_path}/models/{stage.model}" for stage in stages[:-1]] + ["made/own"]
    assert [stage.overrides[0] for stage in stages] == [f"model_path={place}" for place in places]
    alike = [f"base_path={tmp_path}/models/base_seed0", "forget=forget25", "limit=24"]
    for stage in stages:
        assert [text for text in stage.overrides if text in alike] == alike
    assert [stage.output for stage in stages] == [
        tmp_path / "models" / stage.model / "attack_results" for stage in stages
    ]


def test_models_are_attacked_with_the_base_of_their_own_seed(tmp_path):
    settings = compose("run_benchmark", RunBenchmark, ["benchmark=attacks", "benchmark.golds=2"]).benchmark
    stages = plan_stages(replace(settings, runs={}, seeds=[0, 3], attack=[]), tmp_path)
    of_golds = {stage.model: stage.overrides for stage in stages if stage.name.startswith("attack gold")}
    assert f"base_path={tmp_path}/models/base_seed3" in of_golds["gold_seed1003"]


@pytest.mark.parametrize("attack", [["base_path=other"], ["forget=forget05"]])
def test_overrides_of_attacks_do_not_name_other_people_or_another_base(attack, tmp_path):
    settings = compose("run_benchmark", RunBenchmark, ["benchmark=attacks", "benchmark.golds=2"]).benchmark
    with pytest.raises(SettingsError, match="cannot stand in a list of overrides"):
        plan_stages(replace(settings, attack=attack), tmp_path)


def test_a_benchmark_that_attacks_faces_needs_a_pretrained_model(tmp_path):
    settings = compose("run_benchmark", RunBenchmark, ["benchmark=cv_demo", f"results_dir={tmp_path}"]).benchmark
    with pytest.raises(SettingsError, match=r"benchmark\.attack needs benchmark\.pretrain"):
        plan_stages(replace(settings, pretrain=None), tmp_path)


def test_the_door_imports_no_torch():
    code = "import sys, run_benchmark; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_methods_that_save_their_adapter_alone_give_the_figures_of_merged_ones(finished, tmp_path, monkeypatch):
    tables, ran = {}, []
    run_stage = benchmark_stages.run_stage
    for saved in ("merged", "adapter"):
        settings = copy_of_results(finished, tmp_path / saved)
        runs = {"npo": ["trainer.lora={r: 4, alpha: 8, dropout: 0.0}", f"trainer.save={saved}"]}
        settings = replace(settings, benchmark=replace(settings.benchmark, runs=runs))
        run_benchmark.main.recipe(settings)
        model = tmp_path / saved / "models" / "npo_seed0"
        assert (model / "model.safetensors").is_file() == (saved == "merged")
        assert (tmp_path / saved / "report.html").stat().st_size > 100_000
        shutil.rmtree(model / "eval_results")  # as if the evaluation had been stopped
        monkeypatch.setattr(benchmark_stages, "run_stage", note_names(ran, run_stage))
        run_benchmark.main.recipe(settings)
        monkeypatch.setattr(benchmark_stages, "run_stage", run_stage)
        table = pandas.read_parquet(tmp_path / saved / "results.parquet")
        tables[saved] = table.set_index(["model", "seed", "task", "measure"])["value"].dropna()
    assert ran == ["eval npo_seed0"] * 2
    merged, adapter = tables["merged"], tables["adapter"]
    untimed = [key for key in merged.index if "seconds" not in key[3] and "memory" not in key[3]]
    assert merged.index.equals(adapter.index) and len(untimed) > 100
    assert adapter[untimed].to_numpy() == pytest.approx(merged[untimed].to_numpy(), abs=1e-6)
