"""A benchmark whose models are attacked, to its end: every model attacked once, a verdict each, a table and a page."""

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


@pytest.mark.slow  # one test, because tests that run beside each other would each make the models
def test_base_golds_and_methods_are_attacked_once_and_each_has_a_verdict_a_line_and_its_place_on_the_page(
    world_overrides, tmp_path, monkeypatch
):
    seconds = {"finetune": 1.0, "forget": 1.0, "eval": 1.0, "attack": 1.0}
    changes = {"golds": 2, "attack": [*ATTACK, *world_overrides], "expected_seconds": seconds}
    settings = benchmark(world_overrides, tmp_path, **changes)
    run_benchmark.main.recipe(settings)
    check_attacks(tmp_path)
    check_verdicts(pandas.read_parquet(tmp_path / "results.parquet"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Under attack" in page
    assert "prefill" in page
    names = []
    monkeypatch.setattr(benchmark_stages, "run_stage", lambda stage, *_: names.append(stage.name))
    run_benchmark.main.recipe(settings)
    assert names == []  # a second run attacks nobody again


def check_attacks(folder):
    lines = (folder / "attacks.md").read_text(encoding="utf-8").splitlines()
    models = [cell.strip() for cell in lines[0].split("|")[2:-1]]
    assert models == ["gold", "base", "grad_ascent", "gold_seed1000"]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["all attacks", "prefill", "noise"]
    attacked = [path.parent.name for path in folder.glob("models/*/attack_results")]
    assert sorted(attacked) == ["base_seed0", "gold_seed0", "gold_seed1000", "grad_ascent_seed0"]


def check_verdicts(table):
    verdicts = table[table.measure == "attack_verdict"].set_index("model")
    assert set(verdicts.index) == {"base", "gold", "grad_ascent"}
    assert verdicts.loc["gold", "why"] == "other golds that were attacked: 1, and two golds judge"
    said = table[table.measure == "attack_said"]
    tasks = ("eval_forget_qa", "eval_log_forget", "eval_forget_facerec")
    expected = {f"{task}@{attack}" for task in tasks for attack in ("noise.0.05", "prefill.1")}
    for model in ("base", "grad_ascent"):
        assert set(said[said.model == model].task) == expected
    assert said[said.value.isna()].empty
