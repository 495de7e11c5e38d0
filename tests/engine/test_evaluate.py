"""The evaluation loop: logs in the known layout, prompts that are built, generations that see the picture."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from data_module import TaskRow, TrainingRows, load_split, split_names, task_rows
from engine import evaluate as eval_engine
from engine import metrics as eval_metrics
from engine.epoch_evaluation import EpochEvaluation, measures
from engine.evaluate import AGGREGATED, evaluate, evaluate_rows, read_tasks, task_key
from engine.score_answers import Prompt, score_prompts
from engine.scoring_way import Way
from engine.source import code_of
from helpers import BASE, QUICK, example, png, start, task
from settings.language import Eval, Finetune, Forget
from settings.script import SettingsError, compose

TOFU_METRICS = {
    "avg_gt_loss",
    "gt_loss",
    "num_token_gt",
    "generated_text",
    "rouge1_recall",
    "rougeL_recall",
    "average_perturb_loss",
    "avg_paraphrased_loss",
    "truth_ratio",
    "paraphrased_loss",
    "perturb_loss",
    "num_token_paraphrased",
    "num_token_perturb",
}


@torch.no_grad()
def test_a_score_is_the_cross_entropy_of_a_naive_loop(model, encoder):
    """One row at a time, one token at a time, with the whole logits: the independent reference."""
    rows = [
        example(image=png("red"), answer="Ann Lee smiles."),
        example(answer="In Oslo, next to a mill."),
        example(image=png("blue"), answer="No."),
    ]
    prompts = [Prompt(row, [row.answer]) for row in rows]
    for row, result in zip(
        rows, score_prompts(model, encoder, prompts, batch_size=3, max_new_tokens=1, say=print), strict=True
    ):
        scored = result.answers[row.answer]
        encoded = encoder.encode(row)
        prompt = encoded.prompt["input_ids"]
        ids = torch.cat([prompt, torch.tensor([encoded.answer])], 1)
        pixels = {"pixel_values": encoded.prompt["pixel_values"]} if row.image else {}
        logp = model(input_ids=ids, **pixels).logits.log_softmax(-1)[0]
        losses = [-logp[prompt.shape[1] - 1 + t, token].item() for t, token in enumerate(encoded.answer)]
        assert scored.losses == pytest.approx(losses, abs=1e-4)
        assert scored.mean == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_every_distinct_answer_of_a_question_is_scored_once(model, encoder, monkeypatch):
    """Also when two rows ask the same question: all metrics of all rows share one score of an answer."""

    asked, original = [], eval_engine.score_prompts
    monkeypatch.setattr(
        eval_engine,
        "score_prompts",
        lambda m, e, prompts, **rest: (asked.extend(prompts), original(m, e, prompts, **rest))[1],
    )
    rows = [
        TaskRow(example(answer="One."), "Two.", ["Three.", "Two.", "Three."]),
        TaskRow(example(answer="Three.", index=1), None, ["One.", "Four."]),
    ]
    result = evaluate_rows(model, encoder, rows, batch_size=4, max_new_tokens=4)
    assert [prompt.answers for prompt in asked] == [["One.", "Two.", "Three.", "Four."]]
    first, second = result.rows[0], result.rows[1]
    assert (
        first["average_perturb_loss"][0] == first["average_perturb_loss"][2] == second["avg_gt_loss"]
        and len(first["average_perturb_loss"]) == 3
    )
    assert [(token["row"], token["answer"], token["roles"]) for token in result.tokens] == [
        (0, "One.", ["truth"]),
        (0, "Two.", ["paraphrase", "perturbed"]),
        (0, "Three.", ["perturbed"]),
        (1, "Three.", ["truth"]),
        (1, "One.", ["perturbed"]),
        (1, "Four.", ["perturbed"]),
    ]


def test_of_all_affixes_of_a_row_the_one_counts_that_gives_most_away(model, encoder, world_overrides, tmp_path):
    asked = ["Who is this?", "Hello! Who is this?", "Who is this? Thank you."]
    rows = []
    for index, answer in enumerate(["Ann Lee.", "Bo."]):
        rows += [TaskRow(example(question, answer, index=index), None, [], affix=question) for question in asked]
    settings = replace(settings_for(world_overrides, tmp_path), batch_size=4, max_new_tokens=4)
    limits = {"way": Way(True, 4), "say": lambda line: None}
    kept = eval_engine.evaluate_together(model, encoder, {"a": rows}, settings, **limits)["a"].rows
    assert list(kept) == [0, 1]
    for index, log in kept.items():
        alone = [
            eval_engine.evaluate_rows(model, encoder, [row], batch_size=4, max_new_tokens=4).rows[index]
            for row in rows
            if row.example.index == index
        ]
        losses = [each["avg_gt_loss_without_end"] for each in alone]
        assert log["avg_gt_loss_without_end"] == pytest.approx(min(losses), rel=1e-4)
        assert log["affix"] == asked[losses.index(min(losses))]
        assert max(losses) > 1.001 * min(losses)


def test_rows_without_several_affixes_are_asked_as_they_are(model, encoder):
    rows = [TaskRow(example(index=index), None, []) for index in range(3)]
    kept, tokens = eval_engine.most_revealing(model, encoder, rows, batch_size=4, say=lambda line: None)
    assert kept is rows and tokens == 0


def test_perturbed_losses_are_kept_row_by_row_and_may_be_ragged(model, encoder):
    rows = [
        TaskRow(example(index=0, answer="One."), None, ["Two."]),
        TaskRow(example(index=1, answer="Two."), None, ["One.", "Three.", "Four."]),
    ]
    log = evaluate_rows(model, encoder, rows, batch_size=8, max_new_tokens=4).rows
    assert [len(log[i]["average_perturb_loss"]) for i in (0, 1)] == [1, 3]
    assert log[0]["avg_paraphrased_loss"] == log[0]["avg_gt_loss"]


def test_the_logged_truth_ratio_is_paraphrase_against_the_mean_of_the_perturbed(model, encoder):
    log = evaluate_rows(
        model, encoder, [TaskRow(example(answer="One."), "Two.", ["Three.", "Four."])], batch_size=8, max_new_tokens=4
    ).rows[0]
    expected = math.exp(log["avg_paraphrased_loss"] - sum(log["average_perturb_loss"]) / 2)
    assert log["truth_ratio"] == pytest.approx(expected, rel=1e-6)


def test_changing_the_picture_changes_the_generation_and_the_losses(model, encoder, world):
    rows = task_rows(task(world, split="real_faces", answer="answer", perturbed="options", person=""), 0, 0)
    faces = {
        row.example.answer: Prompt(row.example, ["Ann Lee."]) for row in rows
    }  # one question, one answer, other pictures
    results = score_prompts(model, encoder, list(faces.values()), batch_size=8, max_new_tokens=8, say=print)
    assert len({result.generation for result in results}) > len(faces) / 2
    assert len({result.answers["Ann Lee."].mean for result in results}) == len(faces)


def test_the_prompt_is_built_and_never_holds_the_answer(model, encoder):
    row = TaskRow(example(question="Who is this?", answer="Who is this?"), None, ["Ann."])
    prompt, _, truth = evaluate_rows(model, encoder, [row], batch_size=4, max_new_tokens=4).rows[0]["generated_text"]
    assert prompt == encoder.prompt_text(row.example) and truth == "Who is this?" and prompt.count("Who is this?") == 1


def test_a_picture_row_without_its_picture_is_an_error_and_no_question_in_words(world, tmp_path, monkeypatch):
    import data_module

    original = data_module.load_split

    def without(path, split):
        rows = original(path, split)
        return rows.map(lambda row: {"image": None}) if split == "real_faces" else rows

    monkeypatch.setattr(data_module, "load_split", without)
    with pytest.raises(SettingsError, match="row 0: column 'image' holds nothing, where a picture is due"):
        task_rows(task(world, split="real_faces", answer="answer", perturbed="options", person=""), 0, 0)


def settings_for(world_overrides, folder, *more):

    return compose(
        "mm/eval", Eval, [*world_overrides, f"model_path={BASE}", f"save_dir={folder}", "max_new_tokens=8", *more]
    )


@pytest.fixture(scope="module")
def log_folder(world_overrides, encoder, tmp_path_factory):
    from transformers import AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp("eval") / "eval_results"
    settings = settings_for(world_overrides, folder)
    evaluate(
        AutoModelForImageTextToText.from_pretrained(BASE, dtype="float32"),
        encoder,
        read_tasks(settings, 0, "all"),
        settings,
        facts={},
        say=lambda line: None,
    )
    return folder


OTHER_WAYS = {f"eval_forget_qa_{way}.json" for way in ("paraphrased", "any_affix", "prefix", "suffix")} | {
    f"eval_forget_facerec_{way}.json" for way in ("unseen", "prefix", "suffix")
}
OTHER_WAYS |= {f"eval_log_forget_{way}.json" for way in ("prefix", "suffix")}


def test_all_tasks_are_logged_in_tofus_layout(log_folder):
    log = json.loads((log_folder / AGGREGATED).read_text())
    tasks = {
        f"eval_{name}.json"
        for name in (
            "log",
            "log_forget",
            "retain_facerec",
            "forget_facerec",
            "real_faces_wo_options",
            "real_world_wo_options",
        )
    }
    answer_alone = {"eval_holdout_qa.json"} | OTHER_WAYS  # they have no wrong answers
    assert set(log) == tasks | {"eval_retain_qa.json", "eval_forget_qa.json"} | answer_alone
    for name, metrics in log.items():
        if name in answer_alone:
            assert set(metrics) >= {
                "avg_gt_loss",
                "rougeL_recall",
                "generated_text",
                "min_k",
                "min_k_plus_plus",
                "zlib_bytes",
            }
            continue
        assert set(metrics) >= TOFU_METRICS | {"exact_memorization", "extraction_strength"}
        assert json.loads((log_folder / name).read_text()) == metrics
        assert len({tuple(rows) for rows in metrics.values()}) == 1  # every metric covers the same rows
        assert ("normalized_gt_loss" in metrics) == any(part in name for part in ("facerec", "real"))
        for row in metrics["gt_loss"]:
            assert metrics["gt_loss"][row] == pytest.approx(metrics["avg_gt_loss"][row] * metrics["num_token_gt"][row])
            assert metrics["perturb_loss"][row] == pytest.approx(
                [
                    a * n
                    for a, n in zip(
                        metrics["average_perturb_loss"][row], metrics["num_token_perturb"][row], strict=True
                    )
                ]
            )


def test_picture_prompts_hold_the_picture_and_word_prompts_do_not(log_folder):
    log = json.loads((log_folder / AGGREGATED).read_text())
    for name, metrics in log.items():
        assert all(("<image>" in prompt) == ("qa" not in name) for prompt, _, _ in metrics["generated_text"].values())


def test_one_person_has_one_name_in_pictures_and_in_words(log_folder):
    log = json.loads((log_folder / AGGREGATED).read_text())
    faces, words = (set(log[f"eval_forget_{task}.json"]["person"].values()) for task in ("facerec", "qa"))
    assert faces == words and len(faces) == 2 and not any(name.startswith("person ") for name in faces)


def test_options_are_weighed_as_tofu_logs_them(model, encoder):
    log = evaluate_rows(
        model, encoder, [TaskRow(example(answer="One."), None, ["Two.", "Three."])], batch_size=8, max_new_tokens=4
    ).rows[0]
    shares = [math.exp(-loss) for loss in (log["avg_gt_loss"], *log["average_perturb_loss"])]
    assert log["normalized_gt_loss"] == pytest.approx(-math.log(shares[0] / sum(shares)), rel=1e-6)


def test_the_record_beside_the_log_says_which_data_and_how_many_rows(log_folder):
    meta = json.loads((log_folder / "eval_meta.json").read_text())
    assert (
        meta["tasks"]["eval_forget_qa"]["rows"] == 20
        and meta["tokens"] > 1000
        and meta["data"]["eval_log"]["fingerprint"]
        and meta["seconds"] > 0
    )


def test_tasks_that_do_not_fit_their_data_are_an_error_before_any_weights_load(world_overrides, tmp_path):
    settings = compose("mm/eval", Eval, [*world_overrides, "forget=forget07", f"save_dir={tmp_path}/out"])
    with pytest.raises(SettingsError, match=r"split='forget07_perturbed'.*~tasks\.eval_log_forget leaves the task"):
        read_tasks(settings, 0, "all")


# ---- data of one's own

GERMAN = {
    "question": "frage",
    "answer": "antwort",
    "paraphrased_question": "anders_gefragt",
    "paraphrased_answer": "umschreibung",
    "perturbed_answer": "falsch",
}


@pytest.fixture
def german(world, tmp_path):
    """The small world's texts with columns of other names, as lines of JSON; a split may be written without some."""

    def write(*left_out):
        folder = tmp_path / "texte"
        folder.mkdir(exist_ok=True)
        for split in split_names(f"{world}/tofu"):
            rows = load_split(f"{world}/tofu", split)
            kept = [column for column in rows.column_names if column in GERMAN and column not in left_out]
            renamed = rows.select_columns(kept).rename_columns({column: GERMAN[column] for column in kept})
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, renamed)))
        columns = [f"data.columns.{name}={own}" for name, own in GERMAN.items() if name in ("question", "answer")]
        columns += [f"+data.columns.{name}={own}" for name, own in GERMAN.items() if name not in ("question", "answer")]
        return [f"data.text_path={folder}", "data.made_by=''", *columns]

    return write


def read_nlp_tasks(overrides, *more):
    settings = compose("nlp/eval", Eval, [*overrides, "model_path=a/b", *more])
    return read_tasks(settings, 0, "all")


def test_data_columns_names_columns_for_training_and_for_evaluation(german, world):
    plain = [f"data.text_path={world}/tofu", "data.made_by=''"]
    tasks, expected = read_nlp_tasks(german()), read_nlp_tasks(plain)
    assert tasks == expected
    assert all(row.perturbed for row in tasks["eval_log"])
    assert all(row.paraphrase for row in tasks["eval_log"])
    own, usual = (compose("nlp/finetune", Finetune, overrides).data for overrides in (german(), plain))
    trained, plainly = TrainingRows(own, "full", "text", 0), TrainingRows(usual, "full", "text", 0)
    assert [trained[i] for i in range(len(trained))] == [plainly[i] for i in range(len(plainly))]


def test_data_without_wrong_answers_is_evaluated_on_what_it_has_and_what_is_missing_is_said(german, capsys):
    tasks = read_nlp_tasks(german("perturbed_answer", "paraphrased_answer"))
    rows = tasks["eval_log_forget"]
    assert len(rows) > 0
    assert {(row.paraphrase, len(row.perturbed)) for row in rows} == {(None, 0)}
    said = capsys.readouterr().out.splitlines()
    without = [line.split(":")[0] for line in said if line.endswith("no column 'falsch': no Truth Ratio is computed")]
    # the others ask for no wrong answers
    assert without == ["eval_log", "eval_log_forget", "eval_real_author_wo_options", "eval_real_world_wo_options"]


def test_data_without_paraphrases_has_the_right_answer_in_their_place_and_that_is_said(german, capsys):
    rows = read_nlp_tasks(german("paraphrased_answer"))["eval_log"]
    assert {row.paraphrase for row in rows} == {None}
    assert all(row.perturbed for row in rows)
    said = capsys.readouterr().out.splitlines()
    ending = "'umschreibung': the right answer stands in for its paraphrase"
    assert [line.split(":")[0] for line in said if line.endswith(ending)] == ["eval_log", "eval_log_forget"]


def test_a_task_that_is_left_out_is_not_read(german):
    every, fewer = read_nlp_tasks(german()), read_nlp_tasks(german(), "~tasks.eval_log", "~tasks.eval_log_holdout")
    assert every.keys() - fewer.keys() == {"eval_log", "eval_log_holdout"}


def test_a_task_whose_column_the_data_has_not_is_named_with_the_way_out(german):
    line = r"tasks.eval_log.answer is empty in data.columns: ~tasks.eval_log leaves the task out"
    with pytest.raises(SettingsError, match=line):
        read_nlp_tasks(german(), "data.columns.answer=''")


def test_rows_without_wrong_answers_are_logged_without_what_needs_them(model, encoder):
    rows = [TaskRow(example(answer="One."), "Two.", []), TaskRow(example(answer="Three.", index=1), None, [])]
    for row in evaluate_rows(model, encoder, rows, batch_size=4, max_new_tokens=4).rows.values():
        assert {"avg_gt_loss", "rougeL_recall", "exact_memorization"} < row.keys()
        assert not {"truth_ratio", "average_perturb_loss", "normalized_gt_loss"} & row.keys()


# ---- finished tasks


FEW = ["limit=2", "max_new_tokens=2"]


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


def run_eval(model, encoder, settings, fingerprint="base"):
    said = []
    tasks = read_tasks(settings, settings.seed, settings.fold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.record.model_fingerprint", lambda path: fingerprint)
        evaluate(model, encoder, tasks, settings, facts={}, say=said.append)
    return said


def files_of(folder):
    return {
        file.name: file.read_bytes() for file in folder.iterdir() if file.name != "eval_meta.json"
    }  # whose seconds differ


def test_a_run_killed_in_any_task_goes_on_and_ends_with_the_same_bytes(
    model, encoder, world_overrides, tmp_path, monkeypatch
):

    run_eval(model, encoder, settings_for(world_overrides, tmp_path / "whole", *FEW))
    settings = settings_for(world_overrides, tmp_path / "out", *FEW)
    original, begun = eval_engine.write_task, []

    def dies(place, name, *rest):
        begun.append(name)
        if len(begun) % 2:  # every second task's results are never written
            raise Killed
        original(place, name, *rest)

    monkeypatch.setattr(eval_engine, "write_task", dies)
    deaths = 0
    while not (tmp_path / "out").exists():
        try:
            said = run_eval(model, encoder, settings)
        except Killed:
            deaths += 1
            assert not (tmp_path / "out").exists()
    assert deaths >= len(settings.tasks) - 1 and sum("done before" in line for line in said) == len(settings.tasks) - 1
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not (tmp_path / "out.tasks").exists()


def test_overwriting_computes_only_what_depends_on_the_change(model, encoder, world_overrides, tmp_path):
    def computed(fingerprint="base", *more):
        said = run_eval(model, encoder, settings_for(world_overrides, tmp_path / "out", *FEW, *more), fingerprint)
        return {line.split(":")[0] for line in said if "done before" not in line}

    every = computed()
    assert len(every) == 18
    assert computed() == set()
    assert computed("base", "tasks.eval_forget_qa.paraphrase=''") == {"eval_forget_qa"}
    assert computed("other", "tasks.eval_forget_qa.paraphrase=''") == every
    assert computed("other", "seed=1") == every
    assert computed("other", "seed=1", "limit=3") == every


def test_a_tasks_key_follows_the_data_files(world_overrides, world, tmp_path):
    shutil.copytree(world, tmp_path / "world")
    overrides = [*world_overrides, f"data.text_path={tmp_path}/world/tofu"]
    settings = settings_for(overrides, tmp_path / "out")
    code = code_of(eval_engine.__file__)
    keys = {name: task_key(name, settings, code, "cpu") for name in settings.tasks}
    (tmp_path / "world" / "tofu" / "README.md").write_text("other")
    again = {name: task_key(name, settings, code, "cpu") for name in settings.tasks}
    assert {name for name in keys if keys[name] != again[name]} == {
        "eval_retain_qa",
        "eval_forget_qa",
        "eval_forget_qa_paraphrased",
        "eval_forget_qa_any_affix",
        "eval_forget_qa_prefix",
        "eval_forget_qa_suffix",
        "eval_holdout_qa",
    }


def test_the_parquet_beside_the_log_holds_every_tokens_loss_so_that_metrics_need_no_model(log_folder):
    from pyarrow import parquet

    log = json.loads((log_folder / "eval_forget_qa.json").read_text())
    table = parquet.read_table(log_folder / "eval_forget_qa.parquet").to_pylist()
    for index, loss in log["avg_gt_loss"].items():
        answers = [row for row in table if str(row["row"]) == index]
        (truth,) = (row for row in answers if "truth" in row["roles"])
        assert (
            sum(truth["losses"]) / len(truth["losses"]) == pytest.approx(loss, rel=1e-5)
            and truth["answer"] == log["generated_text"][index][2]
        )
        assert eval_metrics.min_k_plus_plus(
            truth["losses"], truth["expected_logprob"], truth["logprob_spread"]
        ) == pytest.approx(log["min_k_plus_plus"][index], rel=1e-4)
        wrong = [sum(row["losses"]) / len(row["losses"]) for row in answers if "perturbed" in row["roles"]]
        assert sorted(wrong) == pytest.approx(sorted(set(log["average_perturb_loss"][index])), rel=1e-5)


def test_permuting_the_rows_of_a_task_changes_nothing(model, encoder, world):
    rows = task_rows(
        task(world, split="forget10_perturbed", answer="name", perturbed="perturbed_names", person="name"), 0, 0
    )
    one, other = (
        evaluate_rows(model, encoder, given, batch_size=3, max_new_tokens=4).rows for given in (rows, rows[::-1])
    )
    for index, row in one.items():
        assert row["generated_text"] == other[index]["generated_text"]
        assert row["avg_gt_loss"] == pytest.approx(other[index]["avg_gt_loss"], abs=1e-5)


# ---- folds and epochs


def test_the_validation_and_the_test_fold_part_the_people_and_not_their_rows(world):
    asked = task(world, split="retain_perturbed", answer="name", perturbed="perturbed_names", person="name")
    folds = {fold: task_rows(asked, 0, 0, fold, 0.25) for fold in ("all", "validation", "test")}
    people = {}
    for fold, rows in folds.items():
        people[fold] = {row.example.person for row in rows}
    assert not people["validation"] & people["test"] and people["validation"] | people["test"] == people["all"]
    assert len(people["validation"]) == round(0.25 * len(people["all"]))
    assert len(folds["validation"]) + len(folds["test"]) == len(folds["all"])


def test_two_tasks_about_the_same_people_part_them_alike():
    from engine.draws import rows_of_fold

    names = [f"person {i}" for i in range(8)]
    backwards = names[::-1]
    drawn = {names[i] for i in rows_of_fold(names, "validation", 0.25, 0)}
    assert len(drawn) == 2
    assert {backwards[i] for i in rows_of_fold(backwards, "validation", 0.25, 0)} == drawn
    assert rows_of_fold([None] * 8, "validation", 0.25, 0) != [] and len(rows_of_fold([None] * 8, "test", 0.25, 0)) == 6


def epoch_settings(world_overrides, *more):
    return compose(
        "mm/forget",
        Forget,
        [*world_overrides, "epoch_eval=mm", "epoch_eval.limit=2", "epoch_eval.max_new_tokens=2", *more],
    ).epoch_eval


def test_the_best_epoch_is_the_one_nearest_to_gold(encoder, world_overrides, log_folder, model):
    settings = epoch_settings(
        world_overrides, f"epoch_eval.gold_result={log_folder}/eval_log_aggregated.json", "epoch_eval.max_new_tokens=8"
    )
    judge = EpochEvaluation(read_tasks(settings, 0, "validation"), encoder, settings, forgetting=True)
    as_gold = judge(model)  # the log is the same model's
    for name, means in as_gold.items():
        assert means == pytest.approx(judge.gold[name], abs=1e-4)
    away = {}
    for name, means in as_gold.items():
        away[name] = {measure: value + 0.1 for measure, value in means.items()}
    best = judge.best([away, as_gold, away])
    assert best["epoch"] == 2 and best["badness"] == pytest.approx([0.1, 0, 0.1], abs=1e-4)


def test_without_gold_a_finetuning_takes_the_lowest_loss_and_a_forgetting_says_it_cannot_know(encoder, world_overrides):
    settings = epoch_settings(world_overrides)
    tasks = read_tasks(settings, 0, "validation")
    epochs = []
    for loss in (2.0, 1.0, math.nan):  # the last one diverged
        epochs.append({name: {"loss": loss} for name in tasks})
    assert EpochEvaluation(tasks, encoder, settings, forgetting=False).best(epochs)["epoch"] == 2
    best = EpochEvaluation(tasks, encoder, settings, forgetting=True).best(epochs)
    assert best["epoch"] is None and "gold_result" in best["rule"]


def test_a_gold_log_of_data_with_wrong_answers_where_the_data_has_none_is_refused(encoder, world_overrides, log_folder):
    settings = epoch_settings(world_overrides, f"epoch_eval.gold_result={log_folder}/eval_log_aggregated.json")
    tasks = read_tasks(settings, 0, "validation")
    tasks["eval_log"] = [replace(row, perturbed=[]) for row in tasks["eval_log"]]
    with pytest.raises(SettingsError, match="task 'eval_log' has wrong answers in the log and none in the data"):
        EpochEvaluation(tasks, encoder, settings, forgetting=True)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"eval_log.json": ', "is not JSON"),
        ("[1]", "is not an eval log"),
        (math.nan, "task 'eval_log': avg_gt_loss of row 0 is NaN, not a loss"),
        (-1.0, "task 'eval_log': avg_gt_loss of row 0 is -1.0, not a loss"),
    ],
    ids=["torn", "no log", "NaN", "negative"],
)
def test_a_gold_log_that_cannot_be_compared_with_is_one_line(
    content, line, encoder, world_overrides, log_folder, *, tmp_path
):
    log = json.loads((log_folder / AGGREGATED).read_text())
    if not isinstance(content, str):
        log["eval_log.json"]["avg_gt_loss"]["0"] = content
    (tmp_path / "gold.json").write_text(content if isinstance(content, str) else json.dumps(log))
    settings = epoch_settings(world_overrides, f"epoch_eval.gold_result={tmp_path}/gold.json")
    with pytest.raises(SettingsError, match=f"epoch_eval.gold_result.*{line}"):
        EpochEvaluation(read_tasks(settings, 0, "validation"), encoder, settings, forgetting=True)


def test_a_gold_log_that_lacks_rows_is_named(encoder, world_overrides, log_folder, tmp_path):
    log = json.loads((log_folder / AGGREGATED).read_text())
    log["eval_log.json"]["exact_memorization"].clear()
    (tmp_path / "gold.json").write_text(json.dumps(log))
    settings = epoch_settings(world_overrides, f"epoch_eval.gold_result={tmp_path}/gold.json")
    with pytest.raises(SettingsError, match=r"lacks row .* of task 'eval_log'"):
        EpochEvaluation(read_tasks(settings, 0, "validation"), encoder, settings, forgetting=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_in_memory_after_the_last_epoch_scores_as_its_saved_checkpoint(
    encoder, world_overrides, tmp_path, monkeypatch, precision
):
    import mm.eval
    import mm.finetune

    common = [
        *QUICK,
        *world_overrides,
        f"trainer.precision={precision}",
        "trainer.lora=null",
        "split=forget10+tofu",
        "trainer.epochs=2",
    ]
    epochs = ["epoch_eval=mm", "epoch_eval.limit=4", "epoch_eval.max_new_tokens=4", "epoch_eval.validation_share=0.5"]
    assert start(mm.finetune, [f"save_dir={tmp_path}/watched", *common, *epochs], monkeypatch) == 0
    assert start(mm.finetune, [f"save_dir={tmp_path}/alone", *common], monkeypatch) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("watched", "alone")]
    assert weights[0] == weights[1]  # looking changes nothing
    meta = json.loads((tmp_path / "watched" / "train_meta.json").read_text())
    assert len(meta["epochs"]) == 2 and meta["epochs"][0] != meta["epochs"][1] and meta["best_epoch"]["epoch"] in (1, 2)
    evaluation = [
        f"model_path={tmp_path}/watched",
        "limit=4",
        "max_new_tokens=4",
        "validation_share=0.5",
        "fold=validation",
        *world_overrides,
    ]
    assert start(mm.eval, evaluation, monkeypatch) == 0
    log = json.loads((tmp_path / "watched" / "eval_results" / AGGREGATED).read_text())
    for name, means in meta["epochs"][-1].items():
        columns = log[f"{name}.json"]
        rows = {}
        for index in columns["avg_gt_loss"]:
            rows[index] = {metric: column[index] for metric, column in columns.items()}
        assert measures(rows) == pytest.approx(means, abs=1e-6)


def test_an_optional_task_is_left_out_and_said_where_the_data_lacks_its_split(world_overrides, tmp_path, capsys):
    settings = settings_for(world_overrides, tmp_path / "out")
    settings.tasks["eval_forget_facerec_unseen"].split = "no_such_views"
    settings.tasks["eval_forget_qa_paraphrased"].reworded = "no_such_column"
    tasks = eval_engine.read_tasks(settings, 0, "all")
    assert settings.tasks.keys() - tasks.keys() == {"eval_forget_facerec_unseen", "eval_forget_qa_paraphrased"}
    said = capsys.readouterr().out
    assert "eval_forget_facerec_unseen is left out" in said
    assert "no column 'no_such_column'" in said


def test_optional_tasks_about_names_are_left_out_and_said_where_the_data_has_no_names(world_overrides, capsys):
    needed = ["~tasks.eval_retain_facerec", "~tasks.eval_forget_facerec"]
    overrides = [*world_overrides, *needed, "data.columns.person=''", "model_path=a/b", "forget=forget10"]
    tasks = eval_engine.read_tasks(compose("mm/eval", Eval, overrides), 0, "all")
    assert not any("facerec" in name for name in tasks)
    said = capsys.readouterr().out.splitlines()
    ending = " is left out: data.columns names no column of its answers"
    without = [line.removesuffix(ending) for line in said if line.endswith(ending)]
    assert without == [f"eval_forget_facerec_{way}" for way in ("unseen", "prefix", "suffix")]


def test_figures_without_the_end_leave_the_last_token_out(log_folder):
    from pyarrow import parquet

    log = json.loads((log_folder / "eval_forget_qa.json").read_text())
    for row in parquet.read_table(log_folder / "eval_forget_qa.parquet").to_pylist():
        if "truth" in row["roles"]:
            index = str(row["row"])
            losses, chosen = row["losses"][:-1], row["first_choice"][:-1]
            assert log["avg_gt_loss_without_end"][index] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
            assert log["exact_memorization"][index] == pytest.approx(sum(chosen) / len(chosen))


def test_another_line_in_a_file_of_affixes_asks_again_what_reads_it(world_overrides, tmp_path):
    file = tmp_path / "affixes.txt"
    code = code_of(eval_engine.__file__)
    keys = []
    for line in ("Hello! {question}", "Please, {question}"):
        file.write_text(line)
        settings = settings_for(world_overrides, tmp_path / "out", f"tasks.eval_forget_qa_prefix.affix.file={file}")
        keys.append({name: task_key(name, settings, code, "cpu") for name in settings.tasks})
        assert str(file) in settings.inputs().files
    assert {name for name in keys[0] if keys[0][name] != keys[1][name]} == {"eval_forget_qa_prefix"}


def test_the_figure_of_a_sweep_is_of_the_people_to_forget_alone(world_overrides, tmp_path):
    assert eval_engine.is_of("forget10", "forget10")
    assert eval_engine.is_of("forget10_perturbed", "forget10")
    assert eval_engine.is_of("forget10+tofu", "forget10")
    assert not eval_engine.is_of("forget100", "forget10")
    assert not eval_engine.is_of("retain90", "")
