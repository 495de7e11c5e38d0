"""Seeds side by side: each worker runs one seed's stages in their order, sees one GPU, and ends with the others."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark import launch
from benchmark import stages as benchmark_stages
from benchmark.plan import Stage
from benchmark.progress import BenchmarkProgress
from benchmark.stages import StagesAtWork, run_side_by_side
from helpers import ROOT
from settings.results import RunBenchmark
from settings.script import SettingsError, compose

SLEEPS = "import sys, time, pathlib; pathlib.Path(sys.argv[1]).write_text('begun'); time.sleep(float(sys.argv[2]))"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Stages of two seeds that only sleep; work(seconds, ...) -> the work, and in which order they began and ended."""
    order = []
    benchmark = compose("run_benchmark", RunBenchmark, ["benchmark.seeds=[0,1]"]).benchmark

    def make(*seconds):
        stages = [Stage("eval", f"m{i}_seed{i % 2}", [], tmp_path / f"m{i}", seed=i % 2) for i in range(len(seconds))]
        commands = {
            stage.name: [sys.executable, "-c", SLEEPS, str(tmp_path / f"{number}.begun"), str(seconds[number])]
            for number, stage in enumerate(stages)
        }
        monkeypatch.setattr(benchmark_stages, "run_facts", lambda settings, code: {"key": "k"})
        monkeypatch.setattr(benchmark_stages, "cost_of", lambda stage: order.append(("end", stage.name)) or {})
        monkeypatch.setattr(benchmark_stages, "launch_command", lambda _, stage, processes: commands[stage.name])
        monkeypatch.setattr(benchmark_stages, "worker_environment", lambda *_: {})
        begin = BenchmarkProgress.begin
        monkeypatch.setattr(
            BenchmarkProgress, "begin", lambda self, n, name: order.append(("begin", name)) or begin(self, n, name)
        )
        progress = BenchmarkProgress([1.0] * len(stages), workers=2)
        codes = {"eval": None}
        nothing = [None] * len(stages)
        made = StagesAtWork(benchmark, tmp_path, stages, nothing, codes, overwrite=True, progress=progress, workers=2)
        return made, order

    return make


def lanes(made):
    numbers = list(range(len(made.stages)))
    return [numbers[0::2], numbers[1::2]]


def test_two_seeds_run_side_by_side_and_each_in_its_order(work):
    made, order = work(0.5, 0.5, 0.1, 0.1)
    started = time.monotonic()
    run_side_by_side(made, lanes(made), 2)
    assert time.monotonic() - started < 60
    names = [stage.name for stage in made.stages]
    assert order[:2] == [("begin", names[0]), ("begin", names[1])]  # the second did not wait for the first to end
    for first, then in ((names[0], names[2]), (names[1], names[3])):
        assert order.index(("end", first)) < order.index(("begin", then))
    assert sorted(made.costs) == sorted(names)


def test_one_worker_runs_one_seed_after_the_other(work):
    made, order = work(0.1, 0.1)
    run_side_by_side(made, lanes(made), 1)
    assert [what for what, _ in order] == ["begin", "end", "begin", "end"]


def test_a_stage_that_fails_ends_the_others(work, tmp_path, monkeypatch):
    made, _ = work(0.1, 600)
    commands = {0: "import sys; print('error: no room'); sys.exit(1)"}
    plain = benchmark_stages.launch_command
    monkeypatch.setattr(
        benchmark_stages,
        "launch_command",
        lambda _, stage, processes: (
            [sys.executable, "-c", commands[0]] if stage.name == made.stages[0].name else plain(_, stage, processes)
        ),
    )
    started = time.monotonic()
    with pytest.raises(SettingsError, match=r"^eval m0_seed0 failed with exit code 1: no room; its log: "):
        run_side_by_side(made, lanes(made), 2)
    assert time.monotonic() - started < 120


def test_each_worker_sees_one_gpu_and_its_share_of_the_threads(monkeypatch):
    monkeypatch.setattr(launch, "visible_gpus", lambda: ["3", "5"])
    monkeypatch.setattr(launch.torch, "get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen = [launch.worker_environment(worker, 3) for worker in range(3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in seen] == ["3", "5", "3"]
    assert [each["OMP_NUM_THREADS"] for each in seen] == ["2", "2", "2"]


def test_a_machine_without_a_gpu_leaves_the_variable_alone_and_told_threads_stay(monkeypatch):
    monkeypatch.setattr(launch, "visible_gpus", list)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch.worker_environment(0, 2) == {}


def test_the_gpus_are_those_that_this_process_may_see(monkeypatch):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert launch.visible_gpus() == ["4", "7"]


def test_more_workers_than_seeds_are_refused():
    with pytest.raises(SettingsError, match=r"^workers=2 is more than benchmark.seeds=\[0\]"):
        compose("run_benchmark", RunBenchmark, ["workers=2"])
    with pytest.raises(SettingsError, match=r"^workers=0 must be at least 1$"):
        compose("run_benchmark", RunBenchmark, ["workers=0"])


def test_what_is_left_is_shared_by_the_workers():
    progress = BenchmarkProgress([100.0, 100.0], workers=2)
    for number in range(2):
        progress.begin(number, f"eval {number}")
        progress.running[number].begun -= 50  # seconds ago
        progress.show(0.5, "", number)
    # 50 s of each are done, as expected; the 50 that are left of each run side by side
    assert round(progress.seconds_left()) == 50
    progress.end(100.0, skipped=False, number=0)
    assert list(progress.running) == [1]


def test_a_worker_launches_one_process_of_its_own():
    settings = compose("run_benchmark", RunBenchmark, []).benchmark
    stage = Stage("eval", "base", ["a=1"], Path("out"))
    command = launch.launch_command(replace(settings), stage, processes=1)
    assert command[-6:] == ["-q", "--num_processes", "1", str(ROOT / "mm" / "eval.py"), "a=1", "overwrite=true"]
