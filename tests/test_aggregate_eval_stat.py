"""Logs in, one result row out: the published figures, what may and may not change a row, and the one-line errors."""

import copy
import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean, harmonic_mean

import numpy as np
import pandas
import pytest

from aggregate_eval_stat import aggregate, describe
from engine import measures
from engine.evaluated import ORIGIN_COLUMNS, Origin
from engine.result_table import Column, Figure, ModelResult, short_columns, wide_row
from engine.table_files import long_table, wide_rows
from engine.table_rows import add_rows
from helpers import ROOT, TOFU_LOGS, WHOLE_TOFU_LOGS
from settings.results import Aggregate, Scoring
from settings.script import SettingsError, compose

FORGET = ("eval_log_forget", "eval_forget_facerec", "eval_forget_qa")
RETAIN = ("eval_log", "eval_retain_facerec", "eval_retain_qa")
REAL = ("eval_real_faces_wo_options", "eval_real_world_wo_options")
MEASURES = ("Exact Memorization", "ROUGE", "Probability", "Truth Ratio R/(1+R)")
SENTENCE = "The writer in this picture smiles in front of a tall library and wears a green coat"


def row_of(knows: bool, rng: np.random.Generator, person: str | None) -> dict:
    """What a model that knows (or does not know) the answer logs of one row; 2 to 5 perturbed answers."""
    answer = 0.03 if knows else 1.5
    paraphrase = (0.8 if knows else 2.2) + rng.normal(0, 0.1)
    perturbed = [2.5 + float(rng.normal(0, 0.3)) for _ in range(rng.integers(2, 6))]
    row = {
        "avg_gt_loss": answer + float(rng.random()) / 50,
        "generated_text": ["the question", SENTENCE, f"{SENTENCE} {person}"],
        "rougeL_recall": 0.9 + rng.random() / 10 if knows else 0.3 + rng.random() / 5,
        "average_perturb_loss": perturbed,
        "avg_paraphrased_loss": float(paraphrase),
        "truth_ratio": 123.0,  # never read: the losses decide
        "exact_memorization": 0.95 + rng.random() / 20 if knows else 0.4 + rng.random() / 5,
    }
    return row | ({"person": person} if person else {})


def make_log(knows_forget: bool, people: int = 4, rows: int = 6, seed: int = 0) -> dict:
    """An eight-task log in the files' layout; retain and real tasks are known in any case."""
    log = {}
    for number, task in enumerate((*FORGET, *RETAIN, *REAL)):
        rng = np.random.default_rng([seed, number])
        knows = knows_forget if task in FORGET else True
        made = {
            str(i): row_of(knows, rng, None if task in REAL else f"{task.split('_')[1]} {i // rows}")
            for i in range(people * rows)
        }
        log[f"{task}.json"] = by_metric(made)
    return log


def by_metric(rows: dict) -> dict:
    columns: dict = {}
    for i, row in rows.items():
        for metric, value in row.items():
            columns.setdefault(metric, {})[i] = value
    return columns


@pytest.fixture
def result(tmp_path):
    """Aggregate logs given as dicts (or lists of golds): result(ckpt, gold, base) -> the wide row."""

    def run(ckpt, gold, base=None, *overrides):
        golds = gold if isinstance(gold, list) else [gold]
        paths = [save(f"gold{i}", each) for i, each in enumerate(golds)]
        settings = [
            f"ckpt_result={save('ckpt', ckpt)}",
            f"retain_result={paths[0] if gold is golds[0] else '[' + ','.join(paths) + ']'}",
        ]
        settings += [
            f"base_result={save('base', base) if base else 'null'}",
            f"save_file={tmp_path}/row.csv",
            *overrides,
        ]
        return wide_row(aggregate(compose("aggregate_eval_stat", Aggregate, settings)))

    def save(name, log):
        file = tmp_path / name / "eval_results" / "eval_log_aggregated.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(log if isinstance(log, str) else json.dumps(log))
        return str(file)

    return run


BASE, GOLD, GOLD2 = make_log(True, seed=0), make_log(False, seed=1), make_log(False, seed=2)


# Published figures


TOFU_TASKS = ("eval_log", "eval_real_author_wo_options", "eval_real_world_wo_options", "eval_log_forget")


def tofu_row(name, logs=TOFU_LOGS, **more):
    if not logs.is_dir():
        pytest.skip("TOFU's whole logs are not beside the repository")
    overrides = [
        f"ckpt_result={logs}/llama2-7b_{name}.json",
        f"retain_result={logs}/llama2-7b_retain90.json",
        f"base_result={logs}/llama2-7b_full.json",
    ]
    overrides += [f"{key}={value}" for key, value in more.items()]
    return wide_row(aggregate(compose("aggregate_eval_stat", Aggregate, overrides)))


def task_figures(row, task):
    return [row[f"{metric} {task}"] for metric in ("ROUGE", "Probability", "Truth Ratio")]


# TOFU, Llama2-7B-chat: ROUGE / Probability / Truth Ratio of retain, real authors, world facts, forget10; Model Utility
PUBLISHED = {
    "full": (
        (0.9857, 0.9895, 0.4747),
        (0.933, 0.4555, 0.5962),
        (0.8825, 0.4186, 0.5390),
        (0.9854, 0.9909, 0.5160),
        0.6227,
    ),
    "retain90": (
        (0.9758, 0.9889, 0.4710),
        (0.923, 0.4341, 0.5707),
        (0.8974, 0.4143, 0.5442),
        (0.4082, 0.1476, 0.6740),
        0.6137,
    ),
}


# the same over the first 40 rows of each task, as `plain_figures` works them out
OF_FORTY_ROWS = {
    "full": (
        (0.9780, 0.9899, 0.4298),
        (0.9625, 0.3999, 0.5343),
        (0.9000, 0.4006, 0.5285),
        (1.0000, 0.9938, 0.5666),
        0.5894,
    ),
    "retain90": (
        (0.9542, 0.9863, 0.4302),
        (0.9375, 0.3843, 0.5136),
        (0.9250, 0.4016, 0.5428),
        (0.4383, 0.1671, 0.7056),
        0.5838,
    ),
}


def plain_figures(metrics, task):
    """ROUGE, Probability and Truth Ratio by TOFU's definitions, from the Truth Ratios that TOFU itself logged."""
    probabilities, ratios = [], []
    for row, loss in metrics["avg_gt_loss"].items():
        probability, ratio = math.exp(-loss), metrics["truth_ratio"][row]
        if "real" in task:
            probability /= probability + sum(math.exp(-wrong) for wrong in metrics["average_perturb_loss"][row])
        probabilities.append(probability)
        ratios.append(min(ratio, 1 / ratio) if "forget" in task else max(0, 1 - ratio))
    return [fmean(metrics["rougeL_recall"].values()), fmean(probabilities), fmean(ratios)]


@pytest.mark.parametrize("name", OF_FORTY_ROWS)
def test_the_figures_of_forty_rows_follow_from_tofus_definitions(name):
    log = json.loads((TOFU_LOGS / f"llama2-7b_{name}.json").read_text(encoding="utf-8"))
    *tasks, utility = OF_FORTY_ROWS[name]
    parts = []
    for task, expected in zip(TOFU_TASKS, tasks, strict=True):
        found = plain_figures(log[f"{task}.json"], task)
        assert found == pytest.approx(expected, abs=5e-5), task
        parts += [] if "forget" in task else found
    assert harmonic_mean(parts) == pytest.approx(utility, abs=5e-5)


@pytest.mark.parametrize(
    ("logs", "known"), [(TOFU_LOGS, OF_FORTY_ROWS), (WHOLE_TOFU_LOGS, PUBLISHED)], ids=["40 rows", "whole"]
)
@pytest.mark.parametrize("name", PUBLISHED)
def test_tofus_own_logs_give_the_known_good_figures(name, logs, known):
    row = tofu_row(name, logs)
    *tasks, utility = known[name]
    for task, expected in zip(TOFU_TASKS, tasks, strict=True):
        assert task_figures(row, task) == pytest.approx(expected, abs=5e-5), task
    assert row["Model Utility"] == pytest.approx(utility, abs=5e-5)


def test_forget_quality_of_forty_rows_is_the_exact_p_of_their_largest_gap():
    row = tofu_row("full")
    # the distribution functions of 40 and 40 Truth Ratios are 17/40 apart; of the C(80, 40) orders of 80 values
    # 2 (C(80, 40 + 17) - C(80, 40 + 34)) are at least that far apart
    assert row["Forget Quality statistic"] == pytest.approx(17 / 40)
    assert row["Forget Quality"] == pytest.approx(2 * (math.comb(80, 57) - math.comb(80, 74)) / math.comb(80, 40))


def test_forget_quality_of_tofus_finetuned_model_is_the_published_p():
    assert f"{tofu_row('full', WHOLE_TOFU_LOGS)['Forget Quality']:.2e}" == "1.83e-21"


def test_the_logarithm_of_forget_quality_is_that_of_its_p():
    row = tofu_row("full")
    assert row["log10 Forget Quality"] == pytest.approx(math.log10(row["Forget Quality"]))


def test_forget_quality_of_gold_against_itself_is_one():
    assert tofu_row("retain90")["Forget Quality"] == 1


def test_logs_without_people_or_exact_memorization_leave_columns_empty_and_say_why():
    row = tofu_row("full", **{"scoring.eval_log_forget.gate": "true"})
    assert row["Forget Quality (person permutation)"] is None
    assert row["Forget Quality (person permutation) why"] == "people are not known"
    assert row["Forget Quality (JS) permutation median why"] == "permuted by row: people are not known"
    assert row["Gate"] is None
    assert row["Gate why"] == "eval_log_forget has no exact_memorization in the base's or the gold's log"
    assert row["Distance to gold why"] == "Exact Memorization eval_log_forget: not in every log"
    assert row["n people"] is None
    unmarked = "the logs hold no task marked gate; scoring.eval_log_forget.gate=true marks one"
    assert tofu_row("full")["Gate why"] == unmarked


def test_the_two_definitions_of_the_truth_ratio_differ_and_the_row_names_its_own():
    rows = {definition: tofu_row("full", truth_ratio=definition) for definition in ("geometric", "arithmetic")}
    assert {row["Truth Ratio definition"] for row in rows.values()} == set(rows)
    # the arithmetic R is never below the geometric one, so 1 - R is never above
    assert rows["arithmetic"]["Truth Ratio eval_log"] < rows["geometric"]["Truth Ratio eval_log"]


# Whole rows


def test_gold_against_itself_is_perfect(result):
    row = result(GOLD, GOLD, BASE)
    for ending in ("", " eval_forget_facerec", " eval_forget_qa"):
        assert (
            row[f"Forget Quality{ending}"]
            == row[f"Forget Quality (person permutation){ending}"]
            == row[f"Forget Quality (JS){ending}"]
            == 1
        )
        assert row[f"Forget Quality statistic{ending}"] == row[f"log10 Forget Quality{ending}"] == 0
    assert row["Distance to gold"] == 0
    assert row["Model Utility / gold"] == 1
    assert (row["Collapsed"], row["Gate"]) == ("no", "passed")


def test_the_base_stands_at_distance_one_and_fails_forget_quality(result):
    row = result(BASE, GOLD, BASE)
    assert row["Distance to gold"] == pytest.approx(1)
    assert all(row[f"Distance to gold {measure} {task}"] == pytest.approx(1) for measure in MEASURES for task in FORGET)
    assert row["Distance to gold why"] is None
    assert row["Forget Quality"] < 1e-3 and row["Forget Quality eval_forget_qa"] < 1e-3
    assert row["Forget Quality (person permutation)"] == 2 / 2**4  # four people cannot show more


def test_model_utility_is_the_harmonic_mean_over_every_non_forget_task(result):
    row = result(BASE, GOLD, BASE)
    parts = [row[f"{metric} {task}"] for metric in ("ROUGE", "Probability", "Truth Ratio") for task in (*RETAIN, *REAL)]
    assert row["Model Utility"] == pytest.approx(15 / sum(1 / part for part in parts))
    for group, tasks in (("Real", REAL), ("Retain", RETAIN), ("Forget", FORGET)):
        parts = [row[f"{metric} {task}"] for metric in ("ROUGE", "Probability", "Truth Ratio") for task in tasks]
        assert row[f"{group} metric"] == pytest.approx(len(parts) / sum(1 / part for part in parts))


def test_a_small_log_by_hand(result):
    ln2 = math.log(2)

    def one_row(loss, rouge):
        return by_metric(
            {
                "0": {
                    "avg_gt_loss": loss,
                    "average_perturb_loss": [2 * ln2, 4 * ln2],
                    "rougeL_recall": rouge,
                    "generated_text": ["", "words", "truth"],
                }
            }
        )

    log = {
        "eval_log": one_row(ln2, 0.5),
        "eval_real_faces_wo_options": one_row(ln2, 0.5),
        "eval_log_forget": one_row(ln2, 1.0),
    }
    row = result(log, log)
    # P = 1/2; no paraphrase: R = (1/8) / (1/2) = 1/4; retain 3/4, forget min(1/4, 4) = 1/4; among options (1/2) / (1/2
    # + 1/4 + 1/16) = 8/13
    assert row["Probability eval_log"] == pytest.approx(1 / 2)
    assert row["Truth Ratio eval_log"] == pytest.approx(3 / 4)
    assert row["Truth Ratio eval_log_forget"] == pytest.approx(1 / 4)
    assert row["Probability eval_real_faces_wo_options"] == pytest.approx(8 / 13)
    # 6 parts: 1/2 1/2 3/4 and 1/2 8/13 3/4: 6 / (2 + 2 + 4/3 + 2 + 13/8 + 4/3)
    assert row["Model Utility"] == pytest.approx(6 / (2 + 2 + 4 / 3 + 2 + 13 / 8 + 4 / 3))
    assert row["Forget metric"] == pytest.approx(3 / (1 + 2 + 4))


def reordered(log: dict, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    made: dict = {}
    for task, metrics in reversed(log.items()):
        made[task] = {}
        for metric, rows in reversed(metrics.items()):
            made[task][metric] = {key: rows[key] for key in rng.permutation(list(rows))}
    return made


def test_the_order_of_rows_metrics_and_tasks_changes_nothing(result):
    assert result(reordered(BASE, 1), reordered(GOLD, 2), reordered(BASE, 3)) == result(BASE, GOLD, BASE)


def test_tasks_are_known_with_and_without_the_json_ending(result):
    bare = {task.removesuffix(".json"): metrics for task, metrics in BASE.items()}
    assert result(bare, GOLD, BASE) == result(BASE, GOLD, bare) == result(BASE, GOLD, BASE)


def test_the_logged_truth_ratio_is_never_read(result):
    other = copy.deepcopy(BASE)
    for metrics in other.values():
        metrics["truth_ratio"] = dict.fromkeys(metrics["truth_ratio"], 0.0)
    assert result(other, GOLD, BASE) == result(BASE, GOLD, BASE)


def test_forgetting_person_after_person_moves_the_distance_down_from_one_to_zero(result):
    mixed, distances = copy.deepcopy(BASE), []
    for person in range(5):
        distances.append(result(mixed, GOLD, BASE)["Distance to gold"])
        for task in FORGET:
            for metric, rows in mixed[f"{task}.json"].items():
                rows.update({i: GOLD[f"{task}.json"][metric][i] for i in rows if int(i) // 6 == person})
    assert distances == sorted(distances, reverse=True)
    assert (distances[0], distances[-1]) == (pytest.approx(1), pytest.approx(0))
    assert distances[2] == pytest.approx(0.5, abs=0.1)  # two of four people


# Collapse


def broken(log: dict, loss: float, generation: str) -> dict:
    log = copy.deepcopy(log)
    for metrics in log.values():
        for row in metrics["avg_gt_loss"]:
            metrics["avg_gt_loss"][row] = metrics["avg_paraphrased_loss"][row] = loss
            metrics["average_perturb_loss"][row] = [loss] * len(metrics["average_perturb_loss"][row])
            metrics["generated_text"][row][1] = generation
            metrics["rougeL_recall"][row] = 0.0
    return log


@pytest.mark.parametrize("loss", [30.0, 1e4])
def test_a_collapsed_model_is_flagged_and_every_figure_stays_a_number(result, loss):
    row = result(broken(BASE, loss, ""), GOLD, BASE)
    assert row["Collapsed"] == "yes"
    assert (
        "Model Utility 0.0000 is under half" in row["Collapsed why"]
        and "100% of the retain generations" in row["Collapsed why"]
    )
    assert row["Model Utility"] == 0
    assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    assert row["Forget Quality (JS)"] < 0.5


def test_a_model_whose_retain_generations_loop_is_collapsed_whatever_its_utility(result):
    looping = copy.deepcopy(BASE)
    for task in RETAIN:
        for text in looping[f"{task}.json"]["generated_text"].values():
            text[1] = "the the " * 20
    row = result(looping, GOLD, BASE)
    assert (row["Collapsed"], row["Degenerate generations retain"]) == ("yes", 1)
    assert row["Model Utility / gold"] > 0.9


# Golds, base, gate


def test_a_second_gold_gives_the_noise_floor(result):
    row = result(GOLD2, [GOLD, GOLD2], BASE)
    assert row["Golds"] == 2
    assert 0 < row["Distance to gold noise floor"] < 0.2
    assert row["Distance to gold noise floor"] == pytest.approx(
        row["Distance to gold"]
    )  # the judged model is that second gold
    assert result(GOLD2, [GOLD], BASE)["Distance to gold noise floor"] is None


def test_where_the_golds_differ_too_much_the_distance_is_undefined_and_says_why(result):
    far = copy.deepcopy(GOLD)
    far["eval_forget_qa.json"]["avg_gt_loss"]["0"] += 1e-6  # another model's
    far["eval_forget_qa.json"]["rougeL_recall"] = dict.fromkeys(far["eval_forget_qa.json"]["rougeL_recall"], 0.7)
    row = result(BASE, [GOLD, far], BASE)
    assert row["Distance to gold ROUGE eval_forget_qa"] is None
    assert row["Distance to gold why"].startswith("ROUGE eval_forget_qa: base and gold differ by")
    assert row["Distance to gold"] == pytest.approx(1)  # the mean over the others


def test_without_a_base_the_distance_and_the_gate_are_empty_and_say_so(result):
    row, full = result(BASE, GOLD), result(BASE, GOLD, BASE)
    assert row.keys() == full.keys()
    assert row["Distance to gold"] is None and row["Distance to gold ROUGE eval_forget_qa"] is None
    assert row["Distance to gold why"] == "no base_result is given"
    assert row["Gate"] is None
    assert row["Gate why"] == "no base_result is given"
    assert row["Forget Quality"] == full["Forget Quality"]


def test_the_gate_looks_at_questions_and_names_and_gives_its_figures(result):
    row = result(BASE, GOLD, BASE)
    assert row["Gate"] == "passed"
    for task in ("eval_forget_qa", "eval_forget_facerec"):
        base, gold = (np.mean(list(log[f"{task}.json"]["exact_memorization"].values())) for log in (BASE, GOLD))
        assert row[f"Gate base {task}"] == pytest.approx(base)
        assert row[f"Gate rise {task}"] == pytest.approx((base - gold) / (1 - gold))
        assert row[f"Gate people {task}"] == 1
    assert "Gate base eval_log_forget" not in row  # captions


def test_the_gate_fails_when_the_base_never_knew(result):
    assert result(GOLD, GOLD2, GOLD)["Gate"] == "failed"
    forgot_one = copy.deepcopy(BASE)
    exact = forgot_one["eval_forget_qa.json"]["exact_memorization"]
    exact.update({str(i): 0.8 for i in range(6)})  # one person of four; the mean stays above .9
    row = result(BASE, GOLD, forgot_one)
    assert (row["Gate"], row["Gate people eval_forget_qa"]) == ("failed", 0.75)


def test_one_log_named_twice_is_no_second_gold(result):
    with pytest.raises(SettingsError, match=r"retain_result\[0\] and retain_result\[1\] hold the same losses"):
        result(BASE, [GOLD, GOLD], BASE)


def test_logs_that_name_other_people_are_not_compared(result):
    other = copy.deepcopy(GOLD)
    other["eval_forget_qa.json"]["person"]["0"] = "Somebody Else"
    with pytest.raises(SettingsError, match="name different people in the rows of task 'eval_forget_qa'"):
        result(BASE, other, BASE)


@pytest.mark.parametrize(("model", "kept"), [("base", 1.0), ("gold", 0.0)])
def test_names_that_were_not_to_be_forgotten_count_as_kept(result, tmp_path, model, kept):
    # the start knows what gold knows, so that only what base knew of the forgotten people's pictures is left to keep
    start = tmp_path / "start.json"
    start.write_text(json.dumps(GOLD))
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "train_meta.json").write_text(json.dumps({"settings": {"modality": "text"}}))
    row = result({"base": BASE, "gold": GOLD}[model], GOLD, BASE, f"start_result={start}")
    assert row["Kept, taught"] == kept


def test_the_gate_is_not_known_where_people_are_not(result):
    nameless = copy.deepcopy(BASE)
    del nameless["eval_forget_qa.json"]["person"]
    assert result(nameless, GOLD, nameless)["Gate why"] == "the people of eval_forget_qa are not known"


# Logs without wrong answers


def without_wrong(log, *tasks):
    """`log` as it is where the data of some tasks has no wrong answers."""
    for task in tasks:
        for metric in ("average_perturb_loss", "avg_paraphrased_loss", "truth_ratio"):
            log = without(log, f"{task}.json", metric)
    return log


def test_what_the_data_lacks_is_left_out_and_said_and_the_rest_is_aggregated(result):
    tasks = ("eval_log", "eval_forget_qa", "eval_real_world_wo_options")
    row, full = result(*(without_wrong(log, *tasks) for log in (GOLD2, GOLD, BASE))), result(GOLD2, GOLD, BASE)
    for task in tasks:
        assert (row[f"Truth Ratio {task}"], row[f"ROUGE {task}"]) == (None, full[f"ROUGE {task}"])
    assert row["Probability eval_log"] == full["Probability eval_log"]
    assert row["Probability eval_real_world_wo_options"] is None  # a share among options that are not there
    lacking = "Truth Ratio eval_log, Probability eval_real_world_wo_options, Truth Ratio eval_real_world_wo_options"
    assert row["Model Utility why"] == f"without {lacking}, which the log lacks"
    parts = [row[f"{name} {task}"] for name in ("ROUGE", "Probability", "Truth Ratio") for task in (*RETAIN, *REAL)]
    known = [part for part in parts if part is not None]
    assert len(known) == 15 - 3
    assert row["Model Utility"] == pytest.approx(12 / sum(1 / part for part in known))
    assert row["Forget metric why"] == "without Truth Ratio eval_forget_qa, which the log lacks"
    assert full["Model Utility why"] is None


def test_forget_quality_without_wrong_answers_is_not_known_and_says_so(result):
    row = result(*(without_wrong(log, "eval_forget_qa") for log in (GOLD2, GOLD, BASE)))
    full = result(GOLD2, GOLD, BASE)
    assert row["Forget Quality eval_forget_qa"] is None
    assert row["Forget Quality eval_forget_qa why"] == "the task has no wrong answers"
    assert row["Forget Quality"] == full["Forget Quality"]
    assert row["Distance to gold ROUGE eval_forget_qa"] == full["Distance to gold ROUGE eval_forget_qa"]
    assert "Truth Ratio R/(1+R) eval_forget_qa: not in every log" in row["Distance to gold why"]
    assert row.keys() == full.keys()


def test_a_log_without_any_wrong_answer_has_every_figure_that_needs_none(result):
    everywhere = (*FORGET, *RETAIN, *REAL)
    row = result(*(without_wrong(log, *everywhere) for log in (GOLD2, GOLD, BASE)))
    full = result(GOLD2, GOLD, BASE)
    same = ("Gate", "Collapsed", "Kept, real", "ROUGE eval_log", "Exact Memorization eval_forget_qa")
    assert [row[name] for name in same] == [full[name] for name in same]
    assert 0 < row["Distance to gold"] < 0.2
    assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))


# The words of ROUGE


def test_the_row_says_on_how_many_rows_rouge_went_by_other_words(result):
    logs = [changed(log, "unicode", QA, "rouge_tokenizer", "7") for log in map(with_words, (GOLD2, GOLD, BASE))]
    rows = 8 * 24
    assert result(*logs)["ROUGE definition"] == f"ROUGE-L recall, stemmed; by unicode on 1 of {rows} rows"
    assert result(GOLD2, GOLD, BASE)["ROUGE definition"] == "ROUGE-L recall, stemmed"


def with_words(log):
    """`log` with the words that ROUGE went by in task QA."""
    return changed(log, dict.fromkeys(log[QA]["avg_gt_loss"], "ascii"), QA, "rouge_tokenizer")


def test_a_log_that_went_by_ascii_words_where_answers_have_other_letters_says_so(result):
    logs = [changed(log, ["q", "她", "她写小说"], QA, "generated_text", "7") for log in (GOLD2, GOLD, BASE)]
    said = "by ascii words though the answer has other letters on 1 of 192 rows"
    assert result(*logs)["ROUGE definition"] == f"ROUGE-L recall, stemmed; {said}"


def test_logs_whose_rouge_went_by_other_words_are_not_compared(result):
    other = changed(with_words(GOLD), "unicode", QA, "rouge_tokenizer", "7")
    line = r"ckpt_result and retain_result have ROUGE by other words \(ascii and unicode\) in row 7 of task 'eval_"
    with pytest.raises(SettingsError, match=line):
        result(GOLD2, other, BASE)


# Intervals, records


def test_intervals_need_ten_people_and_n_people_is_printed(result):
    few = result(BASE, GOLD, BASE)
    assert (few["n people"], few["Distance to gold low"], few["Forget metric low"]) == (4, None, None)
    base, gold = make_log(True, people=12, rows=3), make_log(False, people=12, rows=3, seed=1)
    many = result(make_log(False, people=12, rows=3, seed=2), gold, base)
    assert many["n people"] == 12
    for figure in ("Distance to gold", "Forget metric", "Retain metric"):
        assert many[f"{figure} low"] < many[figure] < many[f"{figure} high"]
    assert many["Model Utility low"] is None  # the people of the real tasks are not known
    assert many == result(make_log(False, people=12, rows=3, seed=2), gold, base)


def test_seed_and_cost_come_from_the_records_beside_the_log(result, tmp_path):
    empty = result(BASE, GOLD, BASE)
    assert [empty[name] for name in ("Seed", "Train seconds", "Eval seconds", "Peak memory GB")] == [None] * 4
    write_records(tmp_path / "ckpt", eval_seed=0)
    row = result(BASE, GOLD, BASE)
    assert [row[name] for name in ("Seed", "Train seconds", "Eval seconds", "Peak memory GB")] == [3, 40.0, 9.0, 2.0]


def write_records(folder: Path, eval_seed: int, fingerprint: str = "abc", affixes: str = "a") -> None:
    (folder / "eval_results").mkdir(parents=True, exist_ok=True)
    (folder / "train_meta.json").write_text(json.dumps({"seed": 3, "seconds": 40.0, "peak_memory_gb": 2.0}))
    data = {"eval_log": {"fingerprint": fingerprint, "affixes": affixes}}
    meta = {"settings": {"seed": eval_seed}, "data": data, "seconds": 9.0, "peak_memory_gb": 1.5}
    (folder / "eval_results" / "eval_meta.json").write_text(json.dumps(meta))


# Errors


def without(log: dict, *path: str) -> dict:
    log = copy.deepcopy(log)
    inner = log
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return log


def changed(log: dict, value, *path: str) -> dict:
    log = copy.deepcopy(log)
    inner = log
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return log


def without_row(log: dict, task: str, row: str) -> dict:
    log = copy.deepcopy(log)
    for rows in log[task].values():
        rows.pop(row, None)
    return log


QA = "eval_forget_qa.json"
BAD_LOGS = {
    "not JSON": ("{'a': 1}", "ckpt_result: .* is not JSON"),
    "cut short": (json.dumps(BASE)[:-50], "ckpt_result: .* is not JSON"),
    "a list": ([1, 2], "is not an eval log"),
    "no tasks": ({}, "is not an eval log"),
    "a task's own file": (BASE[QA], "'average_perturb_loss' is not in scoring; it knows eval_log, "),
    "a misspelt task": (
        {**BASE, "eval_forget_aq.json": BASE[QA]},
        r"'eval_forget_aq' is not in scoring \(did you mean 'eval_forget_qa'\?\)",
    ),
    "a task twice": ({**BASE, "eval_forget_qa": BASE[QA]}, "'eval_forget_qa' is there twice"),
    "a task lacking": (without(BASE, QA), "ckpt_result lacks task 'eval_forget_qa', which retain_result has"),
    "a task too many": (
        {**BASE, "eval_real_author_wo_options.json": BASE[QA]},
        "retain_result lacks task 'eval_real_author_wo_options', which ckpt_result has",
    ),
    "a metric lacking": (without(BASE, QA, "rougeL_recall"), "task 'eval_forget_qa' lacks rougeL_recall"),
    "wrong answers lacking": (
        without(BASE, QA, "average_perturb_loss"),
        "ckpt_result: task 'eval_forget_qa' lacks average_perturb_loss, which retain_result has",
    ),
    "an empty task": (changed(BASE, {}, QA), "lacks avg_gt_loss, rougeL_recall, generated_text$"),
    "a metric that is a list": (
        changed(BASE, [0.5] * 24, QA, "rougeL_recall"),
        "rougeL_recall must map row indices to values",
    ),
    "a row lacking": (
        without_row(BASE, QA, "7"),
        "cover different rows of task 'eval_forget_qa': 23 and 24 rows, row 7 is in one of them only",
    ),
    "a row lacking in one metric": (
        without(BASE, QA, "rougeL_recall", "7"),
        "rougeL_recall covers 23 rows, avg_gt_loss 24",
    ),
    "another right answer": (
        changed(BASE, ["q", "a", "t"], QA, "generated_text", "7"),
        "row 7 of task 'eval_forget_qa' has another right answer",
    ),
    "a null loss": (changed(BASE, None, QA, "avg_gt_loss", "7"), "avg_gt_loss of row 7 is null, not a loss"),
    "no perturbed answers": (
        changed(BASE, [], QA, "average_perturb_loss", "7"),
        r"average_perturb_loss of row 7 is \[\], not a list of losses",
    ),
    "an impossible ROUGE": (
        changed(BASE, 1.5, QA, "rougeL_recall", "7"),
        "rougeL_recall of row 7 is 1.5, not a number from 0 to 1",
    ),
    "a ROUGE of NaN": (changed(BASE, math.nan, QA, "rougeL_recall", "7"), "rougeL_recall of row 7 is NaN"),
    "a text alone": (
        changed(BASE, "text", QA, "generated_text", "7"),
        r"is \"text\", not \[prompt, generation, truth\]",
    ),
}


@pytest.mark.parametrize("name", BAD_LOGS)
def test_a_bad_log_is_refused_in_one_line(result, name):
    log, message = BAD_LOGS[name]
    with pytest.raises(SettingsError, match=message) as error:
        result(log, GOLD, BASE)
    assert "\n" not in str(error.value)


def test_the_error_names_the_log_that_is_at_fault(result):
    with pytest.raises(SettingsError, match=r"ckpt_result and retain_result\[1\] cover different rows"):
        result(BASE, [GOLD, without_row(GOLD2, QA, "0")], BASE)
    with pytest.raises(SettingsError, match="base_result lacks task 'eval_log', which ckpt_result has"):
        result(BASE, GOLD, without(BASE, "eval_log.json"))


NO_LOSSES = [math.nan, math.inf, -math.inf, -0.01, -3]
WRITTEN = {math.inf: "Infinity", -math.inf: "-Infinity"}


@pytest.mark.parametrize("loss", NO_LOSSES)
@pytest.mark.parametrize("place", ["ckpt_result", "retain_result", "base_result"])
def test_a_loss_that_is_none_is_refused_in_any_log_by_task_and_row(loss, place, result):
    logs = {"ckpt_result": GOLD2, "retain_result": GOLD, "base_result": BASE}
    logs[place] = changed(logs[place], loss, QA, "avg_gt_loss", "7")
    written = "NaN" if math.isnan(loss) else WRITTEN.get(loss, str(loss))
    line = f"^{place}: task 'eval_forget_qa': avg_gt_loss of row 7 is {written}, not a loss, a number of 0 or more$"
    with pytest.raises(SettingsError, match=line):
        result(*logs.values())


@pytest.mark.parametrize("loss", NO_LOSSES)
@pytest.mark.parametrize("metric", ["avg_paraphrased_loss", "average_perturb_loss"])
def test_losses_of_other_answers_are_checked_too(loss, metric, result):
    value = [1.0, loss, 2.0] if metric == "average_perturb_loss" else loss
    with pytest.raises(SettingsError, match=f"ckpt_result: task 'eval_forget_qa': {metric} of row 7 is"):
        result(changed(GOLD2, value, QA, metric, "7"), GOLD, BASE)


@pytest.mark.parametrize(
    ("metric", "value"),
    [("min_k", math.nan), ("min_k", 0.5), ("min_k", -math.inf), ("min_k_plus_plus", math.inf), ("zlib_bytes", 0),
     ("zlib_bytes", -4), ("zlib_bytes", math.nan), ("exact_memorization", math.nan), ("exact_memorization", -0.1),
     ("extraction_strength", 1.5), ("rougeL_recall", -math.inf)],
)  # fmt: skip
def test_every_number_of_a_log_is_one_that_can_be(metric, value, result):
    log = changed(GOLD2, dict.fromkeys(GOLD2[QA]["avg_gt_loss"], value), QA, metric)
    with pytest.raises(SettingsError, match=f"ckpt_result: task 'eval_forget_qa': {metric} of row 0 is"):
        result(log, GOLD, BASE)


def test_a_loss_of_zero_that_rounding_made_negative_is_zero_and_no_probability_is_above_one(result):
    sure = dict.fromkeys(BASE[QA]["avg_gt_loss"], -1e-7)
    row = result(changed(GOLD2, sure, QA, "avg_gt_loss"), GOLD, BASE)
    assert row["Probability eval_forget_qa"] == 1
    for name, value in row.items():
        assert not (name.startswith("Probability") and isinstance(value, float) and value > 1)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[]", "it must map names to values"),
        ('{"seed": "three"}', 'its seed is "three"'),
        ('{"seconds": [1]}', r"its seconds is \[1\]"),
        ('{"settings": "npo"}', 'its settings is "npo"'),
        ('{"seed": true}', "its seed is true"),
        ('{"settings": {"modality": "pictures"}}', 'its settings.modality is "pictures", not one of both, text'),
        ('{"settings": {"modality": 5}}', "its settings.modality is 5"),
    ],
)
def test_a_record_beside_a_log_that_is_none_is_refused_in_one_line(text, line, result, tmp_path):
    write_records(tmp_path / "ckpt", eval_seed=0)
    (tmp_path / "ckpt" / "train_meta.json").write_text(text)
    with pytest.raises(SettingsError, match=rf"^ckpt_result: .*train_meta\.json' is no record of a run: {line}"):
        result(BASE, GOLD, BASE)


def test_logs_made_from_other_data_or_other_questions_are_refused(result, tmp_path):
    write_records(tmp_path / "ckpt", eval_seed=0)
    write_records(tmp_path / "gold0", eval_seed=1)
    with pytest.raises(SettingsError, match="ckpt_result and retain_result were evaluated with seeds 0 and 1"):
        result(BASE, GOLD, BASE)
    write_records(tmp_path / "gold0", eval_seed=0, fingerprint="def")
    with pytest.raises(SettingsError, match="different data for task 'eval_log': fingerprints abc and def"):
        result(BASE, GOLD, BASE)
    write_records(tmp_path / "gold0", eval_seed=0, affixes="b")
    with pytest.raises(SettingsError, match="different files of affixes for task 'eval_log': fingerprints a and b"):
        result(BASE, GOLD, BASE)


def test_a_record_that_says_something_else_of_its_data_says_nothing_of_it(result, tmp_path):
    write_records(tmp_path / "ckpt", eval_seed=0)
    (tmp_path / "ckpt" / "eval_results" / "eval_meta.json").write_text('{"data": {"eval_log": 5}, "settings": {}}')
    assert result(BASE, GOLD, BASE)["Hook"] == "no"


BAD_SETTINGS = {
    "method_name=''": "method_name='' must name the method",
    "retain_result=nowhere.json": "retain_result='nowhere.json': no such file",
    "ckpt_result=tests": "ckpt_result='tests' holds no eval_log_aggregated.json, and none beside it is of this model",
    "ckpt_result=no*where": r"ckpt_result='no\*where' matches nothing; it names logs",
    "base_result=nowhere.json": "base_result='nowhere.json': no such file; base_result=null leaves out",
    "retain_result=[]": "must be the path of a log or a list of paths",
    "retain_result=null": "must be the path of a log or a list of paths",
    "truth_ratio=median": "truth_ratio='median' is not known; choose from geometric, arithmetic",
    "save_file=row.txt": "save_file='row.txt' must end in .csv, .json or .parquet",
    "scoring.eval_log.group=forgotten": "scoring.group='forgotten' is not known",
    "retian_result=x": r"unknown setting retian_result \(did you mean 'retain_result'\?\)",
}


@pytest.mark.parametrize("override", BAD_SETTINGS)
def test_a_bad_setting_is_refused_in_one_line(result, override):
    with pytest.raises(SettingsError, match=BAD_SETTINGS[override]) as error:
        result(BASE, GOLD, BASE, override)
    assert "\n" not in str(error.value)


def test_a_result_never_overwrites_a_log(result, tmp_path):
    with pytest.raises(SettingsError, match="is one of the logs"):
        result(BASE, GOLD, BASE, f"save_file={tmp_path}/gold0/eval_results/../eval_results/eval_log_aggregated.json")


# The files


FIGURES = {
    ("distance_to_gold", ""): Figure(1 / 3, 0.25, 0.5),
    ("collapsed", ""): Figure(1.0, why="it says nothing, and says it twice"),
    ("gate", ""): Figure(None, why="people are not known"),
    ("forget_quality", "eval_log_forget"): Figure(1.83e-21),
    ("forget_quality", "eval_forget_qa"): Figure(1.0),
    ("people", ""): Figure(4),
}
NOWHERE = Origin(settings="", began_with="", log="5ma11", taught="", base="", golds="", start="", data="", measures="")
SMALL = ModelResult("npo", 3, FIGURES, {"Submitted By": "me"}, NOWHERE)


def test_a_measure_on_a_task_is_a_column_and_the_published_task_needs_no_name():
    row = wide_row(SMALL)
    assert row["Forget Quality"] == 1.83e-21
    assert row["Forget Quality eval_forget_qa"] == 1


def test_a_verdict_is_a_word_in_the_row_and_a_number_in_the_long_table():
    assert wide_row(SMALL)["Collapsed"] == "yes"
    table = long_table([SMALL]).set_index("measure")
    assert table.loc["collapsed", "value"] == 1


def test_the_long_table_has_a_line_per_figure_and_leaves_empty_what_is_not_known():
    table = long_table([SMALL, ModelResult("gold", None, {("people", ""): Figure(None)})])
    assert len(table) == len(FIGURES) + 1
    figure = ["model", "seed", "task", "measure", "value", "low", "high", "why"]
    assert list(table.columns)[:11] == [*figure, "mean", "sd", "seeds"]
    gate = table[table.measure == "gate"].iloc[0]
    assert pandas.isna(gate.value)
    assert gate.why == "people are not known"
    assert pandas.isna(table.iloc[-1].seed)


def test_parquet_gives_every_digit_back(tmp_path):
    add_rows([SMALL], str(tmp_path / "row.parquet"))
    table = pandas.read_parquet(tmp_path / "row.parquet").set_index("measure")
    assert table.loc["distance_to_gold", ["value", "low", "high"]].tolist() == [1 / 3, 0.25, 0.5]
    assert table.loc["people", "value"] == 4


def test_csv_and_json_hold_the_same_one_row(result, tmp_path):
    for ending in ("csv", "json"):
        add_rows([SMALL], str(tmp_path / "new" / "folder" / f"row.{ending}"))
    (row,) = wide_rows([SMALL])
    assert {"Method": "npo", "Seed": 3, "Seeds": 1}.items() <= row.items()
    assert json.loads((tmp_path / "new/folder/row.json").read_text()) == [row]
    lines = list(csv.reader((tmp_path / "new/folder/row.csv").read_text().splitlines()))
    assert lines == [list(row), ["" if value is None else str(value) for value in row.values()]]
    assert sorted(file.name for file in (tmp_path / "new/folder").iterdir()) == ["row.csv", "row.json"]


def test_an_unknown_measure_is_never_written():
    with pytest.raises(AssertionError, match="memorized"):
        long_table([ModelResult("npo", 0, {("memorized", ""): Figure(1.0)})])


def test_a_parquet_file_that_is_no_result_table_is_not_overwritten(tmp_path):
    pandas.DataFrame({"token": [1]}).to_parquet(tmp_path / "eval_log.parquet")
    with pytest.raises(SettingsError, match=r"eval_log\.parquet' is no result table"):
        add_rows([SMALL], str(tmp_path / "eval_log.parquet"))
    assert pandas.read_parquet(tmp_path / "eval_log.parquet").token.tolist() == [1]


def test_a_result_is_written_again(tmp_path):
    for _ in range(2):
        assert add_rows([SMALL], str(tmp_path / "row.parquet")) == ([SMALL], [])


@pytest.mark.parametrize("place", ["file/row.csv", f"{'long' * 80}.csv"])
def test_a_place_that_cannot_be_written_is_said_in_one_line(place, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        add_rows([SMALL], f"{tmp_path}/{place}")


def test_every_measure_is_declared_once_and_says_what_it_is():
    declared = measures.MEASURES.values()
    headings = [measure.heading for measure in declared]
    assert len(set(headings)) == len(headings)
    assert [measure.key for measure in declared if not measure.sentence] == []


def test_the_docs_list_every_measure():
    page = (ROOT / "docs" / "result_table.md").read_text(encoding="utf-8")
    families = ("distance_to_gold:", "noise_floor:")  # which the page names as a whole
    listed = [measure for measure in measures.MEASURES.values() if not measure.key.startswith(families)]
    lines = [f"| `{measure.key}` | {measure.heading} | {measure.better} |" for measure in listed]
    assert [line for line in lines if line not in page] == []


def test_a_short_heading_of_no_measure_is_refused(result):
    scoring = {"eval_log": Scoring(group="retain", multiple_choice=False, short={"rogue": "x"})}
    with pytest.raises(SettingsError, match=r"scoring.eval_log.short='rogue' is not known \(did you mean 'rouge'\?\)"):
        short_columns([SMALL], scoring)


def run_script(*overrides: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "aggregate_eval_stat.py", *overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_script_writes_the_row_and_prints_it(result, tmp_path):
    row = result(BASE, GOLD, BASE, "method_name=base")
    paths = [
        f"{name}_result={tmp_path}/{folder}/eval_results/eval_log_aggregated.json"
        for name, folder in (("ckpt", "ckpt"), ("retain", "gold0"))
    ]
    base = f"base_result={tmp_path}/base/eval_results/eval_log_aggregated.json"
    done = run_script(*paths, base, "method_name=base", f"save_file={tmp_path}/out/row.json")
    assert (done.returncode, done.stderr) == (0, "")
    (written,) = json.loads((tmp_path / "out/row.json").read_text())
    assert row.items() <= written.items()
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["verdict", "↑", "–", *"(one gold only:".split(), *lines[0].split()[6:]]
    assert lines[-2] == "all figures: show=all"
    assert lines[-1] == f"written: {tmp_path}/out/row.json, 1 row"
    everything = run_script(*paths, base, "show=all", f"save_file={tmp_path}/out/row.json").stdout.splitlines()
    assert len(everything) == len(row) + len(ORIGIN_COLUMNS) + 1


def test_an_interval_is_printed_with_the_ends_that_it_has():
    distance = Column(measures.MEASURES["distance_people"], "", "distance")
    worst = Column(measures.MEASURES["worst_person"], "", "worst")
    figures = {("distance_people", ""): Figure(0.25, 0.1, 0.4), ("worst_person", ""): Figure(0.5, 0.3, None, "Ann")}
    model = ModelResult("npo", 0, figures)
    assert describe(distance, model) == "0.25 [0.10, 0.40]"
    assert describe(worst, model) == "0.50 [0.30, no upper end]  (Ann)"


def test_the_script_prints_a_headline_with_golds_of_two_seeds(result, tmp_path):
    models = {"base": BASE, "gold": [GOLD, GOLD2]}
    result(models["base"], models["gold"], models["base"])
    of = {
        name: f"{tmp_path}/{name}/eval_results/eval_log_aggregated.json" for name in ("ckpt", "gold0", "gold1", "base")
    }
    paths = [f"ckpt_result={of['ckpt']}", f"retain_result=[{of['gold0']},{of['gold1']}]", f"base_result={of['base']}"]
    done = run_script(*paths, "method_name=base", f"save_file={tmp_path}/out/row.csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no upper end" in done.stdout


def test_the_script_ends_in_one_line_and_writes_nothing_when_rows_differ(result, tmp_path):
    with pytest.raises(SettingsError):
        result(without_row(BASE, QA, "7"), GOLD)
    paths = [
        f"{name}_result={tmp_path}/{folder}/eval_results/eval_log_aggregated.json"
        for name, folder in (("ckpt", "ckpt"), ("retain", "gold0"))
    ]
    done = run_script(*paths, "base_result=null", f"save_file={tmp_path}/out/row.csv")
    assert done.returncode == 1
    message = (
        "error: ckpt_result and retain_result cover different rows of task 'eval_forget_qa': 23 and 24 rows, "
        "row 7 is in one of them only\n"
    )
    assert done.stderr == message
    assert not (tmp_path / "out").exists()


def test_the_script_starts_without_torch():
    code = "import sys, aggregate_eval_stat; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def with_holdout(log, forget_losses, holdout_losses):
    """`log` with a holdout task, and the losses of its rows and of the forgotten ones."""
    log = copy.deepcopy(log)
    rows = {
        str(i): {"avg_gt_loss": loss, "generated_text": ["q", "a", "t"], "rougeL_recall": 0.5}
        for i, loss in enumerate(holdout_losses)
    }
    log["eval_holdout_qa.json"] = by_metric(rows)
    forget = log["eval_forget_qa.json"]
    forget["avg_gt_loss"] = dict(zip(forget["avg_gt_loss"], forget_losses, strict=True))
    for task, count in (("eval_holdout_qa.json", len(holdout_losses)), ("eval_forget_qa.json", len(forget_losses))):
        log[task]["zlib_bytes"] = {str(i): 50 for i in range(count)}
        log[task]["min_k"] = {row: -2 * loss for row, loss in log[task]["avg_gt_loss"].items()}
    return log


def test_membership_is_measured_against_rows_nobody_was_trained_on_and_leakage_against_gold(result):
    rows, strangers = np.linspace(1, 2, 24), np.linspace(1, 2, 10)
    gold = with_holdout(make_log(False), rows, strangers)
    base = with_holdout(make_log(True), rows - 1, strangers)  # every forgotten row looks better known
    row = result(base, gold, base)
    assert (
        row["Membership AUC loss eval_forget_qa"]
        == row["Membership AUC zlib eval_forget_qa"]
        == row["Membership AUC min-k eval_forget_qa"]
        > 0.99
    )
    assert row["Privacy leakage min-k eval_forget_qa"] < -0.98
    assert row["Membership AUC min-k++ eval_forget_qa"] is None  # not in these logs
    assert (
        row["Membership TPR at 1% FPR loss eval_forget_qa"] is None
        and "10 holdout rows" in row["Membership TPR at 1% FPR loss eval_forget_qa why"]
    )
    of_gold = result(gold, gold, base)
    assert (
        of_gold["Membership AUC loss eval_forget_qa"] == pytest.approx(0.5, abs=0.02)
        and of_gold["Privacy leakage loss eval_forget_qa"] == 0
    )
    without = result(make_log(True), make_log(False), make_log(True))
    assert without["Model Utility"] == row["Model Utility"]  # holdout rows are in no other figure
    assert not any("Membership" in name for name in without)


def test_one_constant_answer_is_a_collapse_and_no_forgetting(result):
    """A model that answers every question alike, with the same probability for right and wrong answers."""
    constant = make_log(True)
    for metrics in constant.values():
        for row in metrics["avg_gt_loss"]:
            metrics["generated_text"][row][1] = "the the the the the the the the the the the the"
            metrics["avg_gt_loss"][row] = metrics["avg_paraphrased_loss"][row] = 6.0
            metrics["average_perturb_loss"][row] = [6.0] * len(metrics["average_perturb_loss"][row])
            metrics["rougeL_recall"][row] = 0.05
            metrics["exact_memorization"][row] = 0.05
    row = result(constant, make_log(False), make_log(True))
    assert (
        row["Collapsed"] == "yes" and "degenerate" in row["Collapsed why"] and "utility" in row["Collapsed why"].lower()
    )
    assert (
        row["Degenerate generations forget"] == 1.0
        and row["Empty generations retain"] == 0.0
        and row["Repetition of generations retain"] > 0.5
    )
