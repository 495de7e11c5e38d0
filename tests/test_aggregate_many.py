"""Many runs, one table: folders and globs in, rows upserted, seeds together, and nothing mixed that was measured
against something else.
"""

import csv
import json
import shutil
import threading
import time

import pandas
import pytest

import aggregate_eval_stat
from aggregate_eval_stat import aggregate_all
from engine import table_rows
from engine.evaluated import find_logs, training_settings
from engine.logs import read_eval_log
from engine.record import model_fingerprint, write_json
from helpers import TASKS, start, tiny_log, write_evaluated, write_study
from settings import runs
from settings.results import Aggregate
from settings.script import SettingsError, compose

LOG = "eval_results/eval_log_aggregated.json"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


def told(study, *judged, golds="gold_*", base="base", start_="start"):
    """The overrides that judge some models of a study."""
    names = [f"{study}/{name}" for name in judged]
    overrides = ["scoring=nlp", f"ckpt_result=[{','.join(names)}]", f"retain_result={study}/{golds}"]
    return [*overrides, f"base_result={study}/{base}", f"start_result={study}/{start_}"]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the script; returns its exit code and what it printed."""

    def script(*overrides, file="table.csv"):
        code = start(aggregate_eval_stat, [*overrides, f"save_file={tmp_path}/{file}"], monkeypatch)
        said = capsys.readouterr()
        return code, said.out + said.err

    return script


def rows_of(file):
    return [(row["Method"], row["Seed"], row["Seeds"]) for row in csv.DictReader(file.open(encoding="utf-8"))]


def line_of(said, heading):
    """The cells of one line of the printed table, which is turned."""
    (line,) = [line for line in said.splitlines() if line.split("│")[1:2] and line.split("│")[1].strip() == heading]
    return [cell.strip() for cell in line.split("│")[2:-1]]


# ---- what may be named


@pytest.mark.parametrize("named", ["npo_0", f"npo_0/{LOG}", "npo_0/eval_results", "npo_[0]", "*po_0"])
def test_a_log_a_model_and_a_glob_name_the_same(named, study):
    assert [log.resolve() for log in find_logs("ckpt_result", f"{study}/{named}")] == [
        (study / "npo_0" / LOG).resolve()
    ]


def test_a_glob_names_all_that_it_matches_in_natural_order(tmp_path):
    for seed in (10, 2, 1):
        write_evaluated(tmp_path / f"npo_{seed}", {})
    assert [log.parts[-3] for log in find_logs("x", f"{tmp_path}/npo_*")] == ["npo_1", "npo_2", "npo_10"]


def test_a_model_of_a_glob_that_was_not_evaluated_is_said(tmp_path, capsys):
    write_evaluated(tmp_path / "npo_0", {})
    write_json(tmp_path / "npo_1" / "train_meta.json", {})
    assert len(find_logs("ckpt_result", f"{tmp_path}/npo_*")) == 1
    assert capsys.readouterr().err == f"ckpt_result: {tmp_path}/npo_1 is left out: it was not evaluated\n"


def test_a_log_beside_its_model_is_found_by_its_record(tmp_path):
    (tmp_path / "npo").mkdir()
    (tmp_path / "npo" / "model.safetensors").write_bytes(b"weights")
    from engine.record import model_fingerprint

    for name, model in (("evaluation", model_fingerprint(str(tmp_path / "npo"))), ("other", "another")):
        write_json(tmp_path / name / "eval_log_aggregated.json", {})
        write_json(tmp_path / name / "eval_meta.json", {"model": model})
    assert find_logs("ckpt_result", str(tmp_path / "npo")) == [tmp_path / "evaluation" / "eval_log_aggregated.json"]


def test_a_folder_with_several_logs_is_refused_by_name(tmp_path):
    for name in ("all", "test"):
        write_json(tmp_path / "npo" / name / "eval_log_aggregated.json", {})
    with pytest.raises(SettingsError, match=r"holds several logs: name one of .*all/eval_log.*, .*test/eval_log"):
        find_logs("ckpt_result", str(tmp_path / "npo"))


def test_a_model_evaluated_into_another_models_folder_does_not_take_its_record(tmp_path):
    """The log of one model lies in the folder of another, whose seed and method it must not get."""
    write_evaluated(tmp_path / "idk", tiny_log(people=2), method="idk", seed=5, lr=1)
    write_evaluated(tmp_path / "elsewhere", tiny_log(people=2))
    shutil.copytree(tmp_path / "elsewhere" / "eval_results", tmp_path / "idk" / "second")
    log = read_eval_log("x", str(tmp_path / "idk" / "second" / "eval_log_aggregated.json"), ["eval_log", *TASKS_KNOWN])
    assert log.train_meta == {}
    own = read_eval_log("x", str(tmp_path / "idk" / LOG), ["eval_log", *TASKS_KNOWN])
    assert own.train_meta["seed"] == 5


def test_models_of_one_name_are_told_apart_by_their_weights(tmp_path):
    """`b/npo` was evaluated into the folder of `a/npo`."""
    for parent, seed in (("a", 1), ("b", 2)):
        folder = write_evaluated(tmp_path / parent / "npo", tiny_log(people=2), method="npo", seed=seed, lr=1)
        (folder / "model.safetensors").write_text(parent)
    meta = {"settings": {"model_path": str(tmp_path / "b/npo")}, "model": model_fingerprint(str(tmp_path / "b/npo"))}
    write_json(tmp_path / "a/npo/eval_results/eval_meta.json", meta)
    log = read_eval_log("x", str(tmp_path / "a/npo" / LOG), ["eval_log", *TASKS_KNOWN])
    assert log.train_meta["seed"] == 2


def test_a_glob_passes_over_what_an_interrupted_run_left_and_finds_logs_beside_models(tmp_path, capsys):
    for name in ("npo", "npo.former", "idk.partial"):
        write_evaluated(tmp_path / "models.former" / name, tiny_log(people=2))
    # a folder that somebody typed is meant
    (found,) = find_logs("ckpt_result", str(tmp_path / "models.former" / "*"))
    assert found.parent.parent.name == "npo"
    beside = write_evaluated(tmp_path / "own" / "rmu", tiny_log(people=2), method="rmu", seed=0, lr=1)
    (beside / "model.safetensors").write_text("weights")
    shutil.move(beside / "eval_results", tmp_path / "own" / "rmu_log")
    write_json(tmp_path / "own" / "rmu_log" / "eval_meta.json", {"model": model_fingerprint(str(beside))})
    for value in ("rmu", "rm[u]"):
        assert [log.parent.name for log in find_logs("ckpt_result", str(tmp_path / "own" / value))] == ["rmu_log"]
    assert capsys.readouterr().err == ""


TASKS_KNOWN = ["eval_log_forget", "eval_real_world_wo_options"]


def test_settings_that_only_say_where_are_no_settings():
    told = {
        "seed": 3,
        "lr": 1e-3,
        "save_dir": "x",
        "data": {"path": "y", "name": "z"},
        "trainer": {"save_every": "1h", "epochs": 2},
    }
    record = {"settings": told, "inputs": {"data": ["d"], "models": ["m"], "files": []}, "code": "c"}
    expected = {
        "lr": 1e-3,
        "data.name": "z",
        "trainer.epochs": 2,
        "fingerprint of the data": ["d"],
        "fingerprint of the code": "c",
    }
    assert training_settings(record) == expected


# ---- seeds


def test_three_commands_make_one_line_with_mean_and_deviation(study, run, tmp_path):
    for seed in range(3):
        code, said = run(*told(study, f"npo_{seed}"))
        assert code == 0, said
    assert rows_of(tmp_path / "table.csv") == [
        *(("npo", str(seed), "3") for seed in range(3)), *(("npo", part, "3") for part in ("mean", "sd", "n")),
    ]  # fmt: skip
    assert line_of(said, "seeds") == ["3"]
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    values = pandas.Series([float(row["Distance (people)"]) for row in rows[:3]])
    assert float(rows[3]["Distance (people)"]) == pytest.approx(values.mean())
    assert float(rows[4]["Distance (people)"]) == pytest.approx(values.std())
    assert line_of(said, "distance (people) ↓") == [f"{values.mean():.2f} ± {values.std():.2f}"]


def test_the_same_rows_come_in_one_command_and_in_every_format(study, run, tmp_path):
    code, said = run(*told(study, "npo_*", "idk_*"))
    assert code == 0, said
    assert said.splitlines()[-1] == f"written: {tmp_path}/table.csv, 6 rows"
    assert line_of(said, "place ↓") == ["1", "2"]
    for ending in ("json", "parquet"):
        assert run(*told(study, "npo_*", "idk_*"), file=f"table.{ending}")[0] == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["table.csv", "table.json", "table.parquet"]
    table = pandas.read_parquet(tmp_path / "table.parquet")
    assert table[(table.model == "npo") & (table.measure == "distance_people")].seeds.tolist() == [3, 3, 3]
    assert len(json.loads((tmp_path / "table.json").read_text())) == 6 + 6


def test_a_sweep_has_a_line_for_each_setting(study, run, tmp_path):
    for lr in (1e-3, 2e-3):
        for seed in (0, 1):
            folder = tmp_path / f"kl_{lr}_{seed}"
            made = {"began": "base", "method": "kl", "seed": seed}
            write_evaluated(folder, tiny_log(0.2, seed=seed + int(1e4 * lr)), **made, lr=lr)
    overrides = [f"ckpt_result={tmp_path}/kl_*", *told(study, "npo_0")[2:], "scoring=nlp"]
    code, said = run(*overrides)
    assert code == 0, said
    assert "kl (lr=0.001)" in said
    assert "kl (lr=0.002)" in said
    assert line_of(said, "seeds") == ["2", "2"]


def test_two_seeds_with_the_same_answers_are_no_spread_and_that_is_said(study, run, tmp_path):
    for seed in (0, 1):
        write_evaluated(tmp_path / f"kl_{seed}", tiny_log(0.2), began="base", method="kl", seed=seed, lr=1)
    code, said = run(f"ckpt_result={tmp_path}/kl_*", *told(study, "npo_0")[2:], "scoring=nlp")
    assert code == 0
    assert "seeds 0 and 1 of kl gave the same answers: no spread" in said


def test_a_log_without_records_stands_alone_and_is_said(study, run, tmp_path):
    for name in ("mine", "yours"):
        write_evaluated(tmp_path / name, tiny_log(0.3, seed=len(name)))
    code, said = run(f"ckpt_result=[{tmp_path}/mine,{tmp_path}/yours]", *told(study, "npo_0")[2:], "scoring=nlp")
    assert code == 0, said
    assert rows_of(tmp_path / "table.csv") == [("mine", "", "1"), ("yours", "", "1")]
    assert f"mine: no record beside {tmp_path}/mine/{LOG} says its settings and its seed; it stands alone" in said


def test_base_and_golds_among_the_judged_have_their_names(study):
    settings = compose("aggregate_eval_stat", Aggregate, told(study, "base", "gold_0", "start", "npo_0"))
    results, _ = aggregate_all(settings)
    assert [result.method for result in results] == ["base", "gold", "start", "npo"]


def test_one_run_in_two_folders_is_refused(study, run, tmp_path):
    shutil.copytree(study / "npo_0", tmp_path / "npo_0")
    code, said = run(*told(study, "npo_0")[2:], "scoring=nlp", f"ckpt_result=[{study}/npo_0,{tmp_path}/npo_0]")
    assert code == 1
    assert said.startswith("error: ckpt_result: ")
    assert "are one run by their records (npo, seed 0, with the same settings); name one of them" in said


def test_one_name_for_several_methods_is_refused(study, run):
    code, said = run(*told(study, "npo_0", "idk_0"), "method_name=ours")
    assert code == 1
    assert said == (
        "error: method_name='ours' names one method, and the records of ckpt_result name idk, npo: method_name=null "
        "takes these names\n"
    )


# ---- bases


def test_of_several_bases_each_model_is_measured_against_its_own(study, tmp_path):
    write_evaluated(tmp_path / "base_b", tiny_log(1.0, seed=81), began="start", method="finetune", seed=1, split="full")
    write_evaluated(tmp_path / "npo_b", tiny_log(0.1, seed=5), began="base_b", method="npo", seed=1)
    both = f"base_result=[{study}/base,{tmp_path}/base_b]"
    overrides = [*told(study, "npo_0")[2:3], both, "scoring=nlp", f"ckpt_result=[{study}/npo_0,{tmp_path}/npo_b]"]
    results, notes = aggregate_all(compose("aggregate_eval_stat", Aggregate, overrides))
    alone = [
        *told(study, "npo_0")[2:3],
        f"base_result={tmp_path}/base_b",
        "scoring=nlp",
        f"ckpt_result={tmp_path}/npo_b",
    ]
    (expected,), _ = aggregate_all(compose("aggregate_eval_stat", Aggregate, alone))
    assert results[1].figures == expected.figures
    assert notes == []
    assert results[0].origin.against == results[1].origin.against


def test_a_model_of_none_of_several_bases_is_refused(study, tmp_path):
    write_evaluated(tmp_path / "base_b", tiny_log(1.0, seed=81))
    write_evaluated(tmp_path / "npo_b", tiny_log(0.1, seed=5), began="base_c", method="npo", seed=1)
    overrides = [*told(study, "npo_0")[2:3], f"base_result=[{study}/base,{tmp_path}/base_b]", "scoring=nlp"]
    with pytest.raises(SettingsError, match=r"no record says that it began with one of the 2 models of base_result"):
        aggregate_all(compose("aggregate_eval_stat", Aggregate, [*overrides, f"ckpt_result={tmp_path}/npo_b"]))


def test_a_model_made_from_another_judged_one_has_the_base_of_that(study, tmp_path):
    write_evaluated(tmp_path / "base_b", tiny_log(1.0, seed=81), began="start", method="finetune", seed=1, split="full")
    write_evaluated(tmp_path / "npo_b", tiny_log(0.1, seed=5), began="base_b", method="npo", seed=1)
    write_evaluated(tmp_path / "idk_b", tiny_log(0.2, seed=6), began="npo_b", method="idk", seed=1)
    judged = f"ckpt_result=[{tmp_path}/npo_b,{tmp_path}/idk_b]"

    def results_with(bases):
        overrides = [*told(study, "npo_0")[2:3], f"base_result={bases}", "scoring=nlp", judged]
        return aggregate_all(compose("aggregate_eval_stat", Aggregate, overrides))

    results, notes = results_with(f"[{study}/base,{tmp_path}/base_b]")
    expected, notes_of_one = results_with(f"{tmp_path}/base_b")
    assert [each.figures for each in results] == [each.figures for each in expected]
    assert notes == notes_of_one == []


@pytest.mark.parametrize(("lr", "lines"), [(2.0, 1), (5.0, 2)])
def test_seeds_from_bases_that_were_taught_otherwise_are_no_one_line(lr, lines, study, run, tmp_path):
    taught = {"began": "start", "method": "finetune", "split": "full"}
    for number, own_lr in enumerate((2.0, lr)):
        write_evaluated(tmp_path / f"base_{number}", tiny_log(1.0, seed=81 + number), **taught, seed=number, lr=own_lr)
        made = {"began": f"base_{number}", "method": "kl", "seed": number, "lr": 1}
        write_evaluated(tmp_path / f"kl_{number}", tiny_log(0.3, seed=number), **made)
    bases = f"base_result=[{tmp_path}/base_0,{tmp_path}/base_1]"
    code, said = run(f"ckpt_result={tmp_path}/kl_*", bases, *told(study, "npo_0")[2:3], "scoring=nlp")
    assert code == 0, said
    assert {row["Seeds"] for row in csv.DictReader((tmp_path / "table.csv").open())} == {str(3 - lines)}
    summaries = [seed for _, seed, _ in rows_of(tmp_path / "table.csv") if not seed.isdecimal()]
    assert summaries == (["mean", "sd", "n"] if lines == 1 else [])


def test_base_and_gold_keep_their_names_whatever_the_settings_call_the_rows(study, run, tmp_path):
    code, said = run(*told(study, "base", "gold_0", "npo_0"), "method_name=ours")
    assert code == 0, said
    assert [method for method, _, _ in rows_of(tmp_path / "table.csv")] == ["base", "gold", "ours"]
    assert f"{study}/base/{LOG} is base, and its row is called so, not 'ours'" in said.splitlines()


@pytest.mark.parametrize("name", ["base", "gold", "start"])
def test_no_other_model_is_called_base_or_gold(name, study, run, tmp_path):
    write_evaluated(tmp_path / name, tiny_log(0.3, seed=5))
    shutil.copytree(tmp_path / name, tmp_path / "theirs")
    write_json(tmp_path / "theirs/eval_results/eval_meta.json", {"model": "theirs", "settings": {}})
    write_json(tmp_path / name / "eval_results/eval_meta.json", {"model": "another", "settings": {}})
    others = [*told(study, "npo_0")[2:], "scoring=nlp"]
    for judged in ([f"ckpt_result={tmp_path}/{name}"], [f"ckpt_result={tmp_path}/theirs", f"method_name={name}"]):
        code, said = run(*others, *judged)
        assert code == 1
        assert f"is not given as the {name}, and its row would be called so" in said
    assert run(*others, f"ckpt_result={tmp_path}/{name}", "method_name=ours")[0] == 0


@pytest.mark.parametrize("plan", ["benchmark.json", "own_runs.json"])
@pytest.mark.parametrize("file", ["results.csv", "results.parquet"])
def test_the_table_of_a_benchmark_or_a_page_is_not_added_to(plan, file, study, run, tmp_path):
    (tmp_path / plan).write_text("{}")
    (tmp_path / file).write_text("places by repeated runs")
    code, said = run(*told(study, "npo_0"), file=file)
    assert code == 1
    assert "is a table that python -m report writes, with places by repeated runs; name another file" in said
    assert (tmp_path / file).read_text() == "places by repeated runs"
    assert run(*told(study, "npo_0"), file="mine.csv")[0] == 0


def test_a_model_that_began_with_another_base_is_said(study, tmp_path):
    write_evaluated(tmp_path / "npo_b", tiny_log(0.1, seed=5), began="base_c", method="npo", seed=1)
    overrides = [*told(study, "npo_0")[2:], "scoring=nlp", f"ckpt_result={tmp_path}/npo_b"]
    _, notes = aggregate_all(compose("aggregate_eval_stat", Aggregate, overrides))
    assert notes == ["npo, seed 1 began with another model (base_c) than base_result (base)"]


# ---- one file


def test_a_row_is_replaced_and_those_of_others_stay(study, run, tmp_path):
    run(*told(study, "npo_0"), "submitted_by=ann")
    run(*told(study, "npo_0"), "submitted_by=bob")
    run(*told(study, "npo_0"), "submitted_by=ann")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["Method"], row["Submitted By"]) for row in rows] == [("npo", "ann"), ("npo", "bob")]


def test_a_row_that_somebody_wrote_by_hand_stays(study, run, tmp_path):
    (tmp_path / "table.csv").write_text("Method,Seed,Paper\nours,7,Lee 2026\nours,7,Kim 2026\n")
    code, said = run(*told(study, "npo_0"))
    assert code == 0, said
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["Method"], row["Paper"]) for row in rows] == [
        ("ours", "Lee 2026"), ("ours", "Kim 2026"), ("npo", ""),
    ]  # fmt: skip
    assert "nothing says what A was measured against" in said


@pytest.mark.parametrize(
    "changed",
    [
        ({"golds": "gold_0"}, "other golds", None),  # one gold ranks nobody
        ({"base": "npo_1"}, "another base", 1.0),
        ({"start_": "npo_1"}, "another start", None),
    ],
)
def test_rows_that_were_measured_against_something_else_are_told_apart_and_not_ranked_together(
    changed, study, run, tmp_path
):
    change, what, own_place = changed
    run(*told(study, "npo_*"), file="table.json")
    code, said = run(*told(study, "idk_*", **change), file="table.json")
    assert code == 0, said
    assert f"B was measured against {what} than A" in said.splitlines()
    assert "places are given within A and within B, and never across" in said
    assert line_of(said, "against") == ["A", "B"]
    rows = json.loads((tmp_path / "table.json").read_text())
    places = {row["Method"]: row["Place"] for row in rows if isinstance(row["Seed"], int)}
    assert places == {"npo": 1.0, "idk": own_place}  # its own, or none: never second to npo


def test_another_version_of_the_measures_is_told_apart(study, run):
    run(*told(study, "npo_*"))
    code, said = run(*told(study, "idk_*"), "truth_ratio=arithmetic")
    assert code == 0, said
    assert "B was measured against another version of the measures than A" in said


def test_other_data_is_told_apart(study, run, tmp_path):
    run(*told(study, "npo_*"))
    fewer = write_study(tmp_path / "fewer", seeds=(0,))
    for folder in fewer.iterdir():
        log = json.loads((folder / LOG).read_text())
        for task in log.values():
            for metric in task.values():
                metric.pop("0")
        (folder / LOG).write_text(json.dumps(log))
    code, said = run(*told(fewer, "idk_0"))
    assert code == 0, said
    assert "B was measured against other data or questions than A" in said


@pytest.mark.parametrize("what", ["affixes", "weights"])
def test_other_affixes_and_weights_of_another_precision_are_told_apart(what, study, run, tmp_path):
    run(*told(study, "npo_*"))
    others = tmp_path / "others"
    shutil.copytree(study, others)
    for folder in others.iterdir():
        meta = json.loads((folder / "eval_results/eval_meta.json").read_text())
        if what == "affixes":
            meta["data"] = {task: {"fingerprint": "f", "affixes": "another list"} for task in TASKS}
        else:
            meta["settings"]["model"] = {"weights": "bfloat16"}
        write_json(folder / "eval_results/eval_meta.json", meta)
    code, said = run(*told(others, "idk_0"))
    assert code == 0, said
    assert "B was measured against other data or questions than A" in said


def test_weights_of_another_precision_are_not_set_against_gold(study, run, tmp_path):
    for name, weights in (("npo_0", "bfloat16"), ("gold_0", "float32")):
        shutil.copytree(study / name, tmp_path / name)
        file = tmp_path / name / "eval_results/eval_meta.json"
        meta = json.loads(file.read_text())
        meta["settings"]["model"] = {"weights": weights}
        write_json(file, meta)
    code, said = run(f"ckpt_result={tmp_path}/npo_0", f"retain_result={tmp_path}/gold_0", "scoring=nlp")
    assert code == 1
    assert "were evaluated with model.weights bfloat16 and float32" in said


def test_a_row_that_is_replaced_though_it_was_measured_against_something_else_is_said(study, run):
    run(*told(study, "npo_0"))
    _, said = run(*told(study, "npo_0", golds="gold_0"))
    assert "npo, seed 0 is replaced; it had been measured against something else" in said
    _, said = run(*told(study, "npo_0", golds="gold_0"))
    assert "is replaced;" not in said


def test_two_tables_of_one_name_share_nothing(study, run, tmp_path):
    run(*told(study, "npo_0"), file="x.csv")
    run(*told(study, "idk_0"), file="x.json")
    assert rows_of(tmp_path / "x.csv") == [("npo", "0", "1")]
    assert [row["Method"] for row in json.loads((tmp_path / "x.json").read_text())] == ["idk"]


def test_a_second_command_waits_for_the_first_to_have_written(study, run, tmp_path, monkeypatch):
    held = runs.open_locked(tmp_path / "table.csv.lock")
    waited = []

    def give_back():
        time.sleep(0.3)
        waited.append(True)
        (tmp_path / "table.csv.lock").unlink()
        runs.os.close(held)

    thread = threading.Thread(target=give_back)
    thread.start()
    code, said = run(*told(study, "npo_0"))
    thread.join()
    assert code == 0, said
    assert waited
    monkeypatch.setattr(table_rows, "PATIENCE", 0.1)
    held = runs.open_locked(tmp_path / "table.csv.lock")
    code, said = run(*told(study, "idk_0"))
    runs.os.close(held)
    assert code == 1
    assert said.startswith("error: save_file=") and "is being written by another run" in said
    assert rows_of(tmp_path / "table.csv") == [("npo", "0", "1")]
