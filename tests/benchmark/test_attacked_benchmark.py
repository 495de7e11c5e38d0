"""A benchmark whose models are attacked, to its end: every model attacked once, a verdict each, a table and a page."""

from pathlib import Path

import pandas
import pytest
from test_run_benchmark import benchmark

import run_benchmark
from benchmark import stages as benchmark_stages

ATTACK = [
    "only=[noise,prefill]",
    "attacks.noise.args.scales=[0.05]",
    "attacks.prefill.args.counts=[1]",
    "limit=4",
    "max_new_tokens=2",
]


@pytest.fixture(scope="module")
def attacked(world_overrides, tmp_path_factory):
    attack = [*ATTACK, *world_overrides]
    seconds = {"finetune": 1.0, "forget": 1.0, "eval": 1.0, "attack": 1.0}
    changes = {"golds": 2, "attack": attack, "expected_seconds": seconds}
    settings = benchmark(world_overrides, tmp_path_factory.mktemp("attacked"), **changes)
    run_benchmark.main.recipe(settings)
    return settings


@pytest.mark.slow
def test_base_golds_and_methods_are_attacked_and_the_table_has_a_line_per_attack(attacked):
    lines = (Path(attacked.results_dir) / "attacks.md").read_text(encoding="utf-8").splitlines()
    models = [cell.strip() for cell in lines[0].split("|")[2:-1]]
    assert models == ["gold", "base", "grad_ascent", "gold_seed1000"]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["all attacks", "prefill", "noise"]
    folders = [path.parent.name for path in Path(attacked.results_dir).glob("models/*/attack_results")]
    assert sorted(folders) == ["base_seed0", "gold_seed0", "gold_seed1000", "grad_ascent_seed0"]


@pytest.mark.slow
def test_every_attacked_model_has_its_levels_and_a_verdict_that_says_why(attacked):
    table = pandas.read_parquet(Path(attacked.results_dir) / "results.parquet")
    verdicts = table[table.measure == "attack_verdict"].set_index("model")
    assert set(verdicts.index) == {"base", "gold", "grad_ascent"}
    assert verdicts.loc["gold", "why"] == "other golds that were attacked: 1, and two golds judge"
    said = table[table.measure == "attack_said"]
    tasks = ("eval_forget_qa", "eval_log_forget", "eval_forget_facerec")
    expected = {f"{task}@{attack}" for task in tasks for attack in ("noise.0.05", "prefill.1")}
    for model in ("base", "grad_ascent"):
        assert set(said[said.model == model].task) == expected
    assert said[said.value.isna()].empty


@pytest.mark.slow
def test_the_page_has_a_section_of_attacks(attacked):
    page = (Path(attacked.results_dir) / "report.html").read_text(encoding="utf-8")
    assert "Under attack" in page
    assert "prefill" in page


@pytest.mark.slow
def test_a_second_run_attacks_nobody_again(attacked, monkeypatch):
    names = []
    monkeypatch.setattr(benchmark_stages, "run_stage", lambda stage, *_: names.append(stage.name))
    run_benchmark.main.recipe(attacked)
    assert names == []
