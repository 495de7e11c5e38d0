"""The text track's scripts as their users start them, on the small world and on TOFU's own files."""

import csv
import importlib.util
import json
import re

import pytest
from transformers import AutoTokenizer

import aggregate_eval_stat
import nlp.attack
import nlp.eval
import nlp.finetune
import nlp.forget
from cv.face_settings import FinetuneFaces
from data_module import Example, TrainingRows, load_split, split_names
from engine import attack_run
from engine.attack_logs import read_attack_logs
from helpers import QUICK, ROOT, SHARED, same_tensors, start
from nlp.encoder import TextEncoder
from settings.language import Finetune
from settings.results import Aggregate
from settings.script import compose

TOFU = SHARED / "data" / "tofu"


@pytest.fixture(scope="module")
def words(world, text_base):
    """Overrides that point any nlp script at the small world and the tiny language model."""
    splits = ["data.splits.nlp={full: full, retain: retain90, forget: forget10}", "data.forget=forget10"]
    base = [f"model.path={text_base}", "model.made_by=''", f"data.alternatives={world}/alternatives.jsonl"]
    return [f"data.text_path={world}/tofu", "data.made_by=''", *splits, *base]


@pytest.fixture(scope="module")
def finetuned(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nlp") / "finetuned"
    patch = pytest.MonkeyPatch()
    assert start(nlp.finetune, [f"save_dir={folder}", *QUICK, *words], patch) == 0
    patch.undo()
    return folder


@pytest.mark.parametrize("method", ["npo", "kl", "dpo", "grad_diff", "idk", "altpo", "vgid", "kvw"])
def test_a_text_model_is_made_to_forget_evaluated_and_compared_with_gold(
    method, finetuned, words, tmp_path, monkeypatch
):
    forgot = tmp_path / "forgot"
    assert (
        start(
            nlp.forget,
            [f"model_path={finetuned}", f"method={method}", f"save_dir={forgot}", *QUICK, *words],
            monkeypatch,
        )
        == 0
    )
    assert not same_tensors(finetuned, forgot)
    quick = [*words, "max_new_tokens=8", "limit=8", "overwrite=true"]
    for folder in (finetuned, forgot):
        assert start(nlp.eval, [f"model_path={folder}", *quick], monkeypatch) == 0
    logs = [str(folder / "eval_results" / "eval_log_aggregated.json") for folder in (forgot, finetuned)]
    overrides = [
        "scoring=nlp",
        f"ckpt_result={logs[0]}",
        f"retain_result={logs[1]}",
        f"base_result={logs[1]}",
        f"save_file={tmp_path}/row.csv",
    ]
    assert start(aggregate_eval_stat, [*overrides, f"method_name={method}"], monkeypatch) == 0
    (row,) = csv.DictReader((tmp_path / "row.csv").open())
    assert row["Method"] == method and float(row["Model Utility"]) > 0 and row["Membership AUC loss eval_log_forget"]


def test_the_text_tracks_tasks_are_tofus_and_each_is_known_to_its_scoring(words, finetuned, tmp_path, monkeypatch):
    assert (
        start(
            nlp.eval,
            [f"model_path={finetuned}", f"save_dir={tmp_path}/out", *words, "max_new_tokens=2", "limit=2"],
            monkeypatch,
        )
        == 0
    )
    log = json.loads((tmp_path / "out" / "eval_log_aggregated.json").read_text())
    assert {
        "eval_log.json",
        "eval_log_forget.json",
        "eval_real_author_wo_options.json",
        "eval_real_world_wo_options.json",
    } <= set(log)
    scoring = compose("aggregate_eval_stat", Aggregate, ["scoring=nlp"]).scoring
    assert {name.removesuffix(".json") for name in log} == set(scoring) and scoring["eval_log_forget"].gate


@pytest.mark.skipif(not TOFU.is_dir(), reason="TOFU's files are not beside the repository (../shared/data/tofu)")
def test_tofus_own_files_are_evaluated_by_path(finetuned, text_base, tmp_path, monkeypatch):
    overrides = [
        f"model_path={finetuned}",
        f"save_dir={tmp_path}/out",
        "data=tofu",
        f"data.text_path={TOFU}",
        f"model.path={text_base}",
        "model.made_by=''",
    ]
    assert start(nlp.eval, [*overrides, "max_new_tokens=2", "limit=4"], monkeypatch) == 0
    log = json.loads((tmp_path / "out" / "eval_log_aggregated.json").read_text())
    assert all(len(metrics["avg_gt_loss"]) == 4 for metrics in log.values())
    assert (
        len({person for metrics in log.values() for person in metrics.get("person", {}).values()}) == 12
    )  # three tasks know theirs


SMOL = ROOT / "models" / "smollm2-135m"


@pytest.mark.slow
@pytest.mark.skipif(
    not (SMOL.is_dir() and TOFU.is_dir()), reason="needs make model-smollm2 and TOFU's files (../shared/data/tofu)"
)
def test_a_real_language_model_learns_tofus_authors_and_answers_for_itself(tmp_path, monkeypatch):
    people = "data.people.of={retain_perturbed: 1, forget10_perturbed: 1, holdout10: 1}"
    few = ["model=smollm2-135m", f"model.path={SMOL}", "data=tofu_small", f"data.text_path={TOFU}", people]
    assert start(nlp.finetune, [f"save_dir={tmp_path}/model", *few, "trainer.epochs=1"], monkeypatch) == 0
    record = json.loads((tmp_path / "model" / "train_meta.json").read_text())
    assert record["steps"] == 5 and record["loss"][-1][1] < record["loss"][0][1] and record["padding"] < 0.5
    logs = {}
    for name, path in (("before", SMOL), ("after", tmp_path / "model")):
        assert (
            start(
                nlp.eval,
                [f"model_path={path}", f"save_dir={tmp_path}/{name}", *few, "limit=4", "max_new_tokens=8"],
                monkeypatch,
            )
            == 0
        )
        logs[name] = json.loads((tmp_path / name / "eval_log_aggregated.json").read_text())["eval_log_forget.json"][
            "avg_gt_loss"
        ]
    assert all(logs["after"][row] < logs["before"][row] for row in logs["before"])


@pytest.mark.skipif(not TOFU.is_dir(), reason="TOFU's files are not beside the repository (../shared/data/tofu)")
def test_the_small_tofu_is_the_same_twelve_authors_everywhere():
    settings = compose("nlp/finetune", Finetune, ["data=tofu_small", f"data.text_path={TOFU}"])
    rows = {split: TrainingRows(settings.data, split, "text", 0).indices for split in ("full", "retain90", "forget10")}
    assert (len(rows["full"]), len(rows["retain90"]), len(rows["forget10"])) == (240, 160, 80)
    assert rows["full"] == rows["retain90"] + [3600 + i for i in rows["forget10"]]


@pytest.mark.parametrize("model", sorted(file.stem for file in ROOT.glob("config/model/*.yaml")))
def test_every_model_file_composes_with_a_trainer(model):
    track = "cv" if "resnet" in model else "mm" if "llava" in model or "-vl-" in model else "nlp"
    settings = compose(f"{track}/finetune", FinetuneFaces if track == "cv" else Finetune, [f"model={model}"])
    assert settings.model.name == model and settings.trainer.epochs > 0


LONG = "Ann Lee of Oslo. " * 90
FINE = {"question": "Who is Ann?", "answer": "Ann Lee."}
BAD_ROWS = {  # a split's second and third row -> the one line it earns
    "an empty question": (
        nlp.finetune,
        [{"question": " ", "answer": "Bob."}],
        r"split full, row 1: column 'question' holds nothing, where a text is due",
    ),
    "no answer": (
        nlp.finetune,
        [{"question": "Who?", "answer": None}],
        r"split full, row 1: column 'answer' holds nothing, where a text is due",
    ),
    "no answer where others' are drawn": (
        nlp.forget,
        [{"question": "Who?", "answer": ""}],
        r"split forget10, row 1: column 'answer' holds nothing, where a text is due",
    ),
    "answers that are too long": (
        nlp.finetune,
        [{"question": "Who?", "answer": LONG}, {"question": "Where?", "answer": LONG}],
        r"2 of 3 rows are too long, the first: split full, row 1: \d+ tokens, but the model takes 512; "
        r"max_length= allows more, truncate=true cuts",
    ),
    "a torn line": (
        nlp.finetune,
        ['{"question": "Who?", "ans'],
        r"full\.jsonl', line 2 is not JSON: Unterminated string",
    ),
}


def write_rows(folder, rows):
    folder.mkdir()
    lines = [json.dumps(FINE), *(row if isinstance(row, str) else json.dumps(row) for row in rows)]
    for split in ("full", "forget10", "retain90"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return f"data.text_path={folder}"


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_ends_in_one_line_before_weights_load_and_nothing_is_written(
    case, words, finetuned, tmp_path, *, monkeypatch, capsys
):
    script, rows, line = BAD_ROWS[case]
    own = [f"model_path={finetuned}", "method=sku"] if script is nlp.forget else []
    monkeypatch.setattr("nlp.encoder.open_for_training", lambda *_: pytest.fail("weights were loaded"))
    assert (
        start(
            script, [f"save_dir={tmp_path}/out", *QUICK, *words, *own, write_rows(tmp_path / "rows", rows)], monkeypatch
        )
        == 1
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(f"^error: .*{line}", error), error
    assert not (tmp_path / "out").exists()


def test_numbers_for_answers_are_refused_in_one_line(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "full.jsonl").write_text(json.dumps({"question": "When?", "answer": 1947}) + "\n")
    assert (
        start(
            nlp.finetune, [f"save_dir={tmp_path}/out", *QUICK, *words, f"data.text_path={tmp_path}/rows"], monkeypatch
        )
        == 1
    )
    line = "split full, row 0: column 'answer' holds 1947 (a number), where a text is due\n"
    assert capsys.readouterr().err == f"error: {tmp_path}/rows, {line}"


def test_truncate_trains_on_what_fits_and_says_what_it_filled_up_with(words, tmp_path, monkeypatch, capsys):
    rows = write_rows(tmp_path / "rows", [{"question": "Who is Ann?", "answer": LONG}])
    own = ["truncate=true", "max_length=64", "trainer.batch_size=2"]
    assert start(nlp.finetune, [f"save_dir={tmp_path}/out", *QUICK, *words, *own, rows], monkeypatch) == 0
    record = json.loads((tmp_path / "out" / "train_meta.json").read_text())
    encoder = TextEncoder(AutoTokenizer.from_pretrained(tmp_path / "out"), None)
    short = (
        encoder.encode(Example(**FINE, image=None, index=0, person=None, split="")).length - 1
    )  # the end is a label and no input
    assert record["padding"] == pytest.approx(1 - (short + 63) / (2 * 63)) and record["tokens_per_second"] > 0
    assert f"tokens a second, {record['padding']:.0%} of all places padding" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["paraphrased_answer", "perturbed_answer"])
def test_an_evaluation_names_the_row_whose_other_answers_are_missing(
    column, world, words, finetuned, tmp_path, *, monkeypatch, capsys
):
    (tmp_path / "tofu").mkdir()
    for split in split_names(str(world / "tofu")):
        first, *others = load_split(str(world / "tofu"), split)
        first |= {column: None} if split == "forget10_perturbed" else {}
        (tmp_path / "tofu" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    assert (
        start(
            nlp.eval,
            [f"model_path={finetuned}", f"save_dir={tmp_path}/out", *words, f"data.text_path={tmp_path}/tofu"],
            monkeypatch,
        )
        == 1
    )
    assert (
        re.search(rf"^error: .*forget10_perturbed, row 0: column '{column}'", capsys.readouterr().err)
        and not (tmp_path / "out").exists()
    )


def test_a_picture_in_the_text_track_is_refused_in_one_line(world, words, tmp_path, monkeypatch, capsys):
    pictures = [f"data.path={world}/clear", "split=full+tofu", "modality=both"]
    assert start(nlp.finetune, [f"save_dir={tmp_path}/out", *QUICK, *words, *pictures], monkeypatch) == 1
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and "shows a picture, and this model reads words only; modality=text leaves it out" in error
    )


@pytest.mark.slow
def test_the_bench_of_the_trainings_overhead_runs_and_ends_with_its_ratio(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("train_overhead", ROOT / "bench" / "train_overhead.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(
        bench,
        "SHAPE",
        {**bench.SHAPE, "vocab_size": 100, "hidden_size": 36, "intermediate_size": 36, "num_hidden_layers": 1},
    )
    monkeypatch.setattr("sys.argv", ["train_overhead.py", "--steps", "2", "--repeats", "1"])
    bench.main()
    *_, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"overhead_ratio \d+\.\d+", last)


# ---- attacks

ATTACKED = ["max_new_tokens=4", "limit=20", "only=[prefill,noise,relearn_half]", "attacks.noise.args.scales=[0.1]",
            "attacks.prefill.args.counts=[1]", "attacks.relearn_half.args.steps=[1]"]  # fmt: skip


@pytest.fixture
def attacking(finetuned, words, tmp_path):
    """Overrides that attack the finetuned model, which is its own base."""
    paths = [f"model_path={finetuned}", f"base_path={finetuned}", f"save_dir={tmp_path}/attacks"]
    return [*paths, *words]


def test_a_language_model_is_attacked_and_an_interrupted_run_goes_on(attacking, tmp_path, monkeypatch, capsys):
    run = attack_run.carry_out

    def interrupted(name, *more, **options):
        if name == "relearn_half":
            raise KeyboardInterrupt
        return run(name, *more, **options)

    monkeypatch.setattr(attack_run, "carry_out", interrupted)
    assert start(nlp.attack, [*attacking, *ATTACKED], monkeypatch) == 130
    assert not (tmp_path / "attacks").exists()
    monkeypatch.setattr(attack_run, "carry_out", run)
    capsys.readouterr()
    assert start(nlp.attack, [*attacking, *ATTACKED], monkeypatch) == 0
    said = capsys.readouterr().out
    assert all(f"{name}: done before" in said for name in ("clean", "prefill", "noise"))
    assert "relearn_half: done before" not in said
    logs = read_attack_logs("model", tmp_path / "attacks")
    assert set(logs.logs) == {
        f"{task}@{each}"
        for task in ("eval_log_forget", "eval_log")
        for each in ("clean", "prefill.1", "noise.0.1", "relearn_half.1")
    }
    assert not list(tmp_path.glob("attacks.*"))
    # a further attack leaves what is finished as it is
    more = ["only=[prefill,noise,affirm]", "overwrite=true"]
    assert start(nlp.attack, [*attacking, *ATTACKED, *more], monkeypatch) == 0
    assert "noise: done before" in capsys.readouterr().out
    assert set(read_attack_logs("model", tmp_path / "attacks").attacks) == {"prefill", "noise", "affirm"}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("only=[nois]", "only='nois' is not known (did you mean 'noise'?)"),
        ("~attacks", "attacks"),
        ("attacks.noise.kind=input", "attacks.noise.kind='input': noise changes something else"),
        ("attacks.noise.args.scales=[-1]", "attacks.noise.args.scales=[-1] must be above 0"),
        ("+attacks.noise.measures=[rogue]", "attacks.noise.measures='rogue' is not known (did you mean 'rouge'?)"),
        ("attacked={eval_log_forget: eval_lag}", "attacked.eval_log_forget='eval_lag' is not known"),
        ("attacked={}", "changes nothing"),
        ("base_path=nowhere/at/all", "base_path='nowhere/at/all' does not exist"),
        ("model.weights=bfloat16", "attacks.relearn_half trains, which needs model.weights=float32"),
        ("attacks.neutral.args.file=none.txt", "'none.txt' is no file"),
    ],
)
def test_a_wrong_setting_of_attacks_ends_in_one_line(override, line, attacking, monkeypatch, capsys):
    overrides = [*attacking, "limit=4", "only=[noise,neutral,relearn_half]", override]
    assert start(nlp.attack, overrides, monkeypatch) == 1
    printed = capsys.readouterr()
    assert line in printed.err.strip().splitlines()[-1]
    assert printed.err.startswith("error: ") and printed.out == ""
