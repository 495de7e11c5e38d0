"""The evaluation loop: logs in the known layout, prompts that are built, generations that see the picture."""

import json
import math

import pytest
import torch

from answer_scoring import Prompt, score_prompts
from data_module import TaskRow, task_rows
from eval_engine import AGGREGATED, evaluate, evaluate_rows, read_tasks
from run_settings import Eval, SettingsError, compose
from test_data_module import example, png, task

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
    rows = [example(image=png("red"), answer="Ann Lee smiles."), example(answer="In Oslo, next to a mill."), example(image=png("blue"), answer="No.")]
    prompts = [Prompt(row, [row.answer]) for row in rows]
    for row, result in zip(rows, score_prompts(model, encoder, prompts, 3, 1, print), strict=True):
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
    import eval_engine

    asked, original = [], eval_engine.score_prompts
    monkeypatch.setattr(eval_engine, "score_prompts", lambda m, e, prompts, *rest: (asked.extend(prompts), original(m, e, prompts, *rest))[1])
    rows = [TaskRow(example(answer="One."), "Two.", ["Three.", "Two.", "Three."]), TaskRow(example(answer="Three.", index=1), None, ["One.", "Four."])]
    result = evaluate_rows(model, encoder, rows, 4, 4)
    assert [prompt.answers for prompt in asked] == [["One.", "Two.", "Three.", "Four."]]
    first, second = result.rows[0], result.rows[1]
    assert first["average_perturb_loss"][0] == first["average_perturb_loss"][2] == second["avg_gt_loss"] and len(first["average_perturb_loss"]) == 3
    assert [(token["row"], token["answer"], token["roles"]) for token in result.tokens] == [
        (0, "One.", ["truth"]),
        (0, "Two.", ["paraphrase", "perturbed"]),
        (0, "Three.", ["perturbed"]),
        (1, "Three.", ["truth"]),
        (1, "One.", ["perturbed"]),
        (1, "Four.", ["perturbed"]),
    ]


def test_perturbed_losses_are_kept_row_by_row_and_may_be_ragged(model, encoder):
    rows = [TaskRow(example(index=0, answer="One."), None, ["Two."]), TaskRow(example(index=1, answer="Two."), None, ["One.", "Three.", "Four."])]
    log = evaluate_rows(model, encoder, rows, 8, 4).rows
    assert [len(log[i]["average_perturb_loss"]) for i in (0, 1)] == [1, 3]
    assert log[0]["avg_paraphrased_loss"] == log[0]["avg_gt_loss"]


def test_the_logged_truth_ratio_is_paraphrase_against_the_mean_of_the_perturbed(model, encoder):
    log = evaluate_rows(model, encoder, [TaskRow(example(answer="One."), "Two.", ["Three.", "Four."])], 8, 4).rows[0]
    expected = math.exp(log["avg_paraphrased_loss"] - sum(log["average_perturb_loss"]) / 2)
    assert log["truth_ratio"] == pytest.approx(expected, rel=1e-6)


def test_changing_the_picture_changes_the_generation_and_the_losses(model, encoder, world):
    rows = task_rows(task(world, split="real_faces", answer="answer", perturbed="options", person=""), 0, 0)
    faces = {row.example.answer: Prompt(row.example, ["Ann Lee."]) for row in rows}  # one question, one answer, other pictures
    results = score_prompts(model, encoder, list(faces.values()), 8, 8, print)
    assert len({result.generation for result in results}) > len(faces) / 2
    assert len({result.answers["Ann Lee."].mean for result in results}) == len(faces)


def test_the_prompt_is_built_and_never_holds_the_answer(model, encoder):
    row = TaskRow(example(question="Who is this?", answer="Who is this?"), None, ["Ann."])
    prompt, _, truth = evaluate_rows(model, encoder, [row], 4, 4).rows[0]["generated_text"]
    assert prompt == encoder.prompt_text(row.example) and truth == "Who is this?" and prompt.count("Who is this?") == 1


def test_a_picture_row_without_its_picture_is_an_error_and_no_question_in_words(world, tmp_path, monkeypatch):
    import data_module

    original = data_module.load_split

    def without(path, split):
        rows = original(path, split)
        return rows.map(lambda row: {"image": None}) if split == "real_faces" else rows

    monkeypatch.setattr(data_module, "load_split", without)
    with pytest.raises(SettingsError, match="row 0: no picture in column 'image'"):
        task_rows(task(world, split="real_faces", answer="answer", perturbed="options", person=""), 0, 0)


@pytest.fixture(scope="module")
def log_folder(world_overrides, encoder, tmp_path_factory):
    from transformers import AutoModelForImageTextToText

    from conftest import BASE

    folder = tmp_path_factory.mktemp("eval") / "eval_results"
    settings = compose("mm/eval", Eval, [*world_overrides, f"model_path={BASE}", f"save_dir={folder}", "max_new_tokens=8"])
    evaluate(
        AutoModelForImageTextToText.from_pretrained(BASE, dtype="float32"),
        encoder,
        read_tasks(settings, 0, "all"),
        settings,
        {"model": "base"},
        say=lambda line: None,
    )
    return folder


def test_all_tasks_are_logged_in_tofus_layout(log_folder):
    log = json.loads((log_folder / AGGREGATED).read_text())
    tasks = {f"eval_{name}.json" for name in ("log", "log_forget", "retain_facerec", "forget_facerec", "real_faces_wo_options", "real_world_wo_options")}
    assert set(log) == tasks | {"eval_retain_qa.json", "eval_forget_qa.json", "eval_holdout_qa.json"}
    for name, metrics in log.items():
        if name == "eval_holdout_qa.json":  # nobody learned those people, and they have no wrong answers
            assert set(metrics) >= {"avg_gt_loss", "rougeL_recall", "generated_text", "min_k", "min_k_plus_plus", "zlib_bytes"}
            continue
        assert set(metrics) >= TOFU_METRICS | {"exact_memorization", "extraction_strength"}
        assert json.loads((log_folder / name).read_text()) == metrics
        assert len({tuple(rows) for rows in metrics.values()}) == 1  # every metric covers the same rows
        assert ("normalized_gt_loss" in metrics) == any(part in name for part in ("facerec", "real"))
        for row in metrics["gt_loss"]:
            assert metrics["gt_loss"][row] == pytest.approx(metrics["avg_gt_loss"][row] * metrics["num_token_gt"][row])
            assert metrics["perturb_loss"][row] == pytest.approx(
                [a * n for a, n in zip(metrics["average_perturb_loss"][row], metrics["num_token_perturb"][row], strict=True)]
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
    log = evaluate_rows(model, encoder, [TaskRow(example(answer="One."), None, ["Two.", "Three."])], 8, 4).rows[0]
    shares = [math.exp(-loss) for loss in (log["avg_gt_loss"], *log["average_perturb_loss"])]
    assert log["normalized_gt_loss"] == pytest.approx(-math.log(shares[0] / sum(shares)), rel=1e-6)


def test_the_record_beside_the_log_says_which_data_and_how_many_rows(log_folder):
    meta = json.loads((log_folder / "eval_meta.json").read_text())
    assert meta["tasks"]["eval_forget_qa"]["rows"] == 20 and meta["tokens"] > 1000 and meta["data"]["eval_log"]["fingerprint"] and meta["seconds"] > 0


def test_tasks_that_do_not_fit_their_data_are_an_error_before_any_weights_load(world_overrides, tmp_path):
    settings = compose("mm/eval", Eval, [*world_overrides, "forget=forget07", f"save_dir={tmp_path}/out"])
    with pytest.raises(SettingsError, match="split='forget07_perturbed'"):
        read_tasks(settings, 0, "all")
