"""The scripts as their users start them: end to end, the same files in process and through accelerate, one line for a
mistake.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import mm.attack
import mm.eval
import mm.finetune
import mm.forget
from engine import encode
from engine.attack_logs import read_attack_logs
from helpers import ACCELERATE, BASE, ENVIRONMENT, QUICK, ROOT, fresh_copy, same_tensors, start


@pytest.fixture(scope="module")
def finetuned(world_overrides, tmp_path_factory):
    """A model finetuned in this process."""
    folder = tmp_path_factory.mktemp("scripts") / "finetuned"
    patch = pytest.MonkeyPatch()
    assert start(mm.finetune, [f"save_dir={folder}", *QUICK, *world_overrides], patch) == 0
    patch.undo()
    return folder


@pytest.mark.slow
def test_accelerate_launch_gives_the_same_files_as_a_run_in_one_process(
    finetuned, world_overrides, tmp_path, monkeypatch
):
    launched = tmp_path / "launched"
    subprocess.run(
        [*ACCELERATE, "mm/finetune.py", f"save_dir={launched}", *QUICK, *world_overrides],
        check=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    assert same_tensors(finetuned, launched)
    assert {p.name for p in finetuned.iterdir()} - {"eval_results"} == {p.name for p in launched.iterdir()}
    evaluation = [*world_overrides, "max_new_tokens=8"]
    subprocess.run(
        [*ACCELERATE, "mm/eval.py", f"model_path={launched}", *evaluation], check=True, cwd=ROOT, env=ENVIRONMENT
    )
    assert start(mm.eval, [f"model_path={finetuned}", f"save_dir={tmp_path}/own", *evaluation], monkeypatch) == 0
    logs = [
        (folder / "eval_log_aggregated.json").read_bytes() for folder in (launched / "eval_results", tmp_path / "own")
    ]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_two_processes_evaluate_to_the_same_log_as_one(world_overrides, tmp_path):
    common = ["mm/eval.py", f"model_path={BASE}", *world_overrides, "max_new_tokens=8"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    for count in (1, 2):
        command = [*torchrun, str(count), *common, f"save_dir={tmp_path}/{count}"]
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert (
            done.stdout.count("eval_log: ") == done.stdout.count("evaluated: ") == 1
        )  # processes that do not know each other speak twice
    one, two = (json.loads((tmp_path / str(count) / "eval_log_aggregated.json").read_text()) for count in (1, 2))
    for task, metrics in one.items():
        assert {m: list(rows) for m, rows in metrics.items()} == {m: list(rows) for m, rows in two[task].items()}
        assert metrics["generated_text"] == two[task]["generated_text"]
        assert list(metrics["avg_gt_loss"].values()) == pytest.approx(list(two[task]["avg_gt_loss"].values()), abs=1e-4)


def test_the_stages_of_a_benchmark_share_the_prompts_that_were_encoded(
    finetuned, world_overrides, tmp_path, monkeypatch
):
    """Whatever saving a processor anew changes in its files, and whatever a run holds beside them."""
    model = tmp_path / "model"
    shutil.copytree(finetuned, model)
    quick = [*world_overrides, "limit=2", "max_new_tokens=2"]
    assert start(mm.eval, [f"model_path={BASE}", f"save_dir={tmp_path}/base", *quick], monkeypatch) == 0
    kept = encode.OF_LAST["prompts"]
    count = len(kept.prompts)
    assert count
    assert start(mm.eval, [f"model_path={model}", *quick], monkeypatch) == 0  # into the model's own folder
    assert encode.OF_LAST["prompts"] is kept and len(kept.prompts) == count
    for script, told in ((mm.finetune, []), (mm.forget, [f"model_path={model}"])):
        told += [f"save_dir={tmp_path}/{script.__name__}", *QUICK, *world_overrides]
        assert start(script, told, monkeypatch) == 0
        assert encode.OF_LAST["prompts"] is kept


# parts of a ResNet, convolutions, pictures with a part hidden, networks that never learned anything
FACES_ONLY = {"scrub_bio", "twins", "ct", "msg", "bad_teacher", "boundary_shrink", "boundary_expand", "dispersion"}


# one for each kind of loss and step; the others are slow
QUICK_METHODS = {"npo", "kl", "rmu", "sku", "pdu", "salun", "npo_sam", "kvw", "mllmeraser", "pava", "smfa", "fila"}
METHODS = sorted({file.stem for file in ROOT.glob("config/method/*.yaml")} - FACES_ONLY)


@pytest.mark.parametrize(
    "method", [pytest.param(each, marks=[] if each in QUICK_METHODS else pytest.mark.slow) for each in METHODS]
)
def test_every_method_makes_a_checkpoint_that_can_be_the_start_of_the_next(
    method, finetuned, world_overrides, tmp_path, monkeypatch
):
    steps = OmegaConf.load(ROOT / f"config/method/{method}.yaml")
    hooked = "hook" in steps  # the weights stay
    whole = "mask" in steps or "edit" in steps or hooked  # all are of the model's own weights
    merged = whole or "combine" in steps or "init" in steps  # what is learned is no adapter over the start
    lora = f"trainer.lora={'null' if whole else '{r: 4, alpha: 8, dropout: 0.0}'}"
    # what a method needs on a model of this size stands in the benchmark of all of them
    own = OmegaConf.select(OmegaConf.load(ROOT / "config/benchmark/all_methods.yaml"), f"runs.{method}") or []
    overrides = [
        f"model_path={finetuned}",
        f"method={method}",
        f"save_dir={tmp_path}/out",
        *QUICK,
        *world_overrides,
        lora,
        *own,
    ]
    assert start(mm.forget, overrides, monkeypatch) == 0
    assert (tmp_path / "out" / "hook.json").is_file() == hooked
    assert (
        same_tensors(finetuned, tmp_path / "out") == hooked
        and (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file() != merged
    )
    meta = json.loads((tmp_path / "out" / "train_meta.json").read_text())
    assert meta["method"] == method and meta["settings"]["method"]["args"] == (
        OmegaConf.load(ROOT / f"config/method/{method}.yaml").get("args") or {}
    )
    again = [f"model_path={tmp_path}/out", f"save_dir={tmp_path}/again", *QUICK, *world_overrides]
    assert method != "npo" or start(mm.forget, again, monkeypatch) == 0


@pytest.mark.parametrize("modality", ["text", "visual"])
def test_forgetting_may_be_restricted_to_a_modality(modality, finetuned, world_overrides, tmp_path, monkeypatch):
    overrides = [
        f"model_path={finetuned}",
        "method=grad_diff",
        f"modality={modality}",
        f"save_dir={tmp_path}/out",
        *QUICK,
        *world_overrides,
    ]
    assert start(mm.forget, overrides, monkeypatch) == 0
    assert not same_tensors(finetuned, tmp_path / "out")


MISTAKES = {
    "an unknown setting": (mm.forget, ["trainer.lrr=1"], r"unknown setting trainer\.lrr \(did you mean 'lr'\?\)"),
    "a wrong type": (mm.forget, ["trainer.lr=fast"], r"trainer\.lr: Value 'fast'"),
    "an unknown method": (mm.forget, ["method=nppo"], r"method='nppo' is not known \(did you mean 'npo'\?\)"),
    "a missing model_path": (mm.forget, ["model_path=models/none"], r"model_path='models/none' does not exist"),
    "a folder that is no model": (mm.eval, ["model_path=tests"], r"model_path='tests' holds no model"),
    "an unknown split": (
        mm.forget,
        ["split=forget11+tofu", f"model_path={BASE}"],
        r"split='forget11\+tofu' is not in .* it has .*forget10\+tofu",
    ),
    "an unknown evaluation split": (
        mm.eval,
        ["forget=forget11", f"model_path={BASE}"],
        r"split='forget11_perturbed' is not in",
    ),
    "a dataset without a needed column": (
        mm.eval,
        ["tasks.eval_log.answer=captoin", f"model_path={BASE}"],
        r"no column 'captoin' \(did you mean 'caption'\?\); it has image, caption",
    ),
    "a hyperparameter the method does not have": (
        mm.forget,
        ["+method.args.gama=1", f"model_path={BASE}"],
        r"method\.args\.gama is not a hyperparameter of npo",
    ),
    "a method of face recognition": (mm.forget, ["method=twins", f"model_path={BASE}"], "asks for augmented pictures"),
    "a method that compares with a network without knowledge": (
        mm.forget,
        ["method=bad_teacher", f"model_path={BASE}"],
        r"method=bad_teacher compares with a network that never learned anything, which there is in face",
    ),
    "a hyperparameter of the wrong type": (
        mm.forget,
        ["method.args.beta=high", f"model_path={BASE}"],
        r"method\.args\.beta='high' must be a number",
    ),
    "a kind of attention that does not exist": (
        mm.eval,
        ["model.attention=flesh", f"model_path={BASE}"],
        r"model\.attention='flesh' is not known",
    ),
    "flash attention over fp32 weights": (
        mm.eval,
        ["model.attention=flash_attention_2"],
        r"set model\.weights=bfloat16",
    ),
    "a negative seed": (mm.finetune, ["seed=-1"], r"seed=-1 must be at least 0"),
    "a data path that is not there": (
        mm.finetune,
        ["data.path=no/such/folder"],
        r"data path 'no/such/folder' does not exist",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_in_one_line_and_exit_code_one_with_nothing_written(
    case, world_overrides, tmp_path, monkeypatch, capsys
):
    script, overrides, line = MISTAKES[case]
    capsys.readouterr()
    assert start(script, [*world_overrides, f"save_dir={tmp_path}/out", *overrides], monkeypatch) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and re.search(line, error), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [mm.finetune, mm.forget, mm.eval], ids=["finetune", "forget", "eval"])
def test_an_existing_output_folder_names_overwrite(script, world_overrides, tmp_path, monkeypatch, capsys):
    common = [*world_overrides, f"save_dir={tmp_path}", f"model_path={BASE}"]
    assert start(script, common, monkeypatch) == 1
    assert capsys.readouterr().err == f"error: save_dir='{tmp_path}' exists; overwrite=true replaces it\n"
    assert start(script, [*common, "overwrite=true"], monkeypatch) == 1  # what is no former run is never deleted
    assert "holds something else than a former run" in capsys.readouterr().err and tmp_path.is_dir()


def test_a_corrupt_picture_in_the_data_is_named_by_its_row_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    import datasets

    rows = [
        {"image": {"bytes": b"not a picture", "path": None}, "caption": "Ann smiles.", "question": None, "answer": None}
    ]
    (tmp_path / "data").mkdir()
    features = datasets.Features(
        {"image": datasets.Image(), **dict.fromkeys(("caption", "question", "answer"), datasets.Value("string"))}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data" / "full.parquet")
    (tmp_path / "data" / "README.md").write_text(
        "---\nconfigs:\n- config_name: full\n  data_files:\n  - split: train\n    path: full.parquet\n---\n"
    )
    overrides = [f"data.path={tmp_path}/data", "data.made_by=''", "split=full", f"save_dir={tmp_path}/out", *QUICK]
    assert start(mm.finetune, overrides, monkeypatch) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: split full, row 0: the picture cannot be read: it begins with b'not a picture';")
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_real_command_prints_exactly_one_line_of_its_own(tmp_path):
    named = (
        "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    )  # else accelerate lists its own defaults
    command = [*ACCELERATE, *named, "mm/forget.py", "trainer.lrr=1", f"save_dir={tmp_path}/out"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "out").exists()
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: unknown setting trainer.lrr")


PAGES_WITH_COMMANDS = ("README.md", "docs/commands.md", "cv/README.md")  # in the order in which their commands run

IN_A_COPY = (
    "accelerate launch -q mm/",
    "python mm/",
    "accelerate launch -q nlp/",
    "accelerate launch -q cv/",
    "accelerate launch -q --num_processes 1 cv/",
    "python aggregate",
    "python run_benchmark.py benchmark=",
)


def readme_commands():
    """The commands of all pages; a line that ends in a backslash goes on with the next."""
    commands = []
    for page in PAGES_WITH_COMMANDS:
        text = (ROOT / page).read_text(encoding="utf-8")
        blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
        lines = re.sub(r"\s*\\\n\s*", " ", "".join(blocks)).splitlines()
        commands += [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    return commands


def test_no_readme_command_stands_twice():
    commands = readme_commands()
    assert sorted(set(commands)) == sorted(commands)


def test_every_readme_command_is_run_by_ci_or_by_the_test_below():
    by_ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    by_make = ["make test"] if "make test-all" in by_ci and "\ntest-all: test\n" in makefile else []
    by_make += ["pip install -r req.txt -e ."] if "pip install -q -r req.txt -r req-test.txt" in makefile else []
    for command in readme_commands():
        assert command in by_ci + by_make or command.startswith(IN_A_COPY), command


@pytest.mark.begins_first
@pytest.mark.slow
def test_the_readmes_commands_run_in_their_order_in_a_fresh_copy(tmp_path):
    """The commands verbatim, with only `export PYTHONPATH=.`; one epoch instead of many and 10 networks of 128, set
    where a user would set it.
    """
    copy = tmp_path / "copy"
    fresh_copy(copy)
    trainers = list(copy.glob("config/trainer/*/tiny-*.yaml"))
    assert len(trainers) == 4
    for file in trainers:
        text, changed = re.subn(r"^epochs: \d+", "epochs: 1", file.read_text(), flags=re.M)
        assert changed == 1
        file.write_text(text)
    attack = copy / "config" / "cv" / "attack.yaml"
    few = {"models": 10, "targets": 2}
    text, changed = re.subn(
        r"^(models|targets): \d+", lambda found: f"{found[1]}: {few[found[1]]}", attack.read_text(), flags=re.M
    )
    assert changed == len(few)
    attack.write_text(text)
    environment = {**ENVIRONMENT, "PYTHONPATH": ".", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = [command for command in readme_commands() if command.startswith(IN_A_COPY)]
    assert len(commands) >= 21
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    for benchmark in ("nlp_demo", "cv_demo"):
        page = (copy / "results" / benchmark / "report.html").read_text(encoding="utf-8")
        assert all(row in page for row in ("gold", "npo" if benchmark == "nlp_demo" else "scrub"))


def test_a_model_that_sees_is_attacked_in_words_and_in_pictures(world_overrides, tmp_path, monkeypatch):
    overrides = [f"model_path={BASE}", f"base_path={BASE}", f"save_dir={tmp_path}/out", "forget=forget25", "limit=4"]
    overrides += ["max_new_tokens=2", "attacks.noise.args.scales=[0.1]", "attacks.prefill.args.counts=[1]"]
    overrides += [
        "only=[prefill,noise,relearn_half,unseen_views,either,draws,probe_people,picture_changes,lens,samples]"
    ]
    overrides += ["attacks=full", "attacks.picture_changes.args.changes=[noise 0.1,flip]", *world_overrides]
    overrides += [f"attacks.samples.args.{value}" for value in ("samples=2", "best_of=1", "max_new_tokens=2")]
    assert start(mm.attack, [*overrides, "attacks.relearn_half.args.steps=[1]"], monkeypatch) == 0
    logs = read_attack_logs("model", tmp_path / "out")
    tasks = ("eval_forget_qa", "eval_log_forget", "eval_forget_facerec")
    for attack in ("clean", "prefill.1", "noise.0.1", "relearn_half.1"):
        assert all(f"{task}@{attack}" in logs.logs for task in tasks)
    shown = logs.logs["eval_forget_facerec@noise.0.1"]
    assert shown.people and "<image>" in shown.prompts[0]
    assert "eval_forget_facerec@unseen_views" in logs.logs and "eval_log_forget@unseen_views" not in logs.logs
    by_face, by_name = (logs.logs[f"eval_forget_qa@either.{way}"] for way in ("face", "words"))
    assert by_face.rows == by_name.rows
    assert "<image>" in by_face.prompts[0] and "<image>" not in by_name.prompts[0]
    assert logs.read.keys() >= {"eval_forget_facerec@probe_people", "eval_log_forget@probe_people"}
    assert "eval_forget_facerec@draws" in logs.logs
    changes = {key for key in logs.logs if key.startswith("eval_forget_facerec@picture_changes.")}
    assert changes == {f"eval_forget_facerec@picture_changes.{change}" for change in ("noise_0.1", "flip")}
    assert logs.logs["eval_forget_qa@lens"].rows == logs.logs["eval_forget_qa@clean"].rows
    assert logs.read["eval_log_forget@samples"].keys() == set(logs.logs["eval_log_forget@samples"].rows)


@pytest.mark.slow
def test_two_processes_attack_to_the_same_logs_as_one(world_overrides, tmp_path):
    common = ["mm/attack.py", f"model_path={BASE}", f"base_path={BASE}", "forget=forget10", "limit=4", *world_overrides]
    common += ["max_new_tokens=2", "only=[noise,relearn_half]", "attacks.relearn_half.args.steps=[1]"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    for count in (1, 2):
        command = [*torchrun, str(count), *common, f"save_dir={tmp_path}/{count}"]
        subprocess.run(command, check=True, cwd=ROOT, env=ENVIRONMENT)
    one, two = (read_attack_logs("model", tmp_path / str(count)) for count in (1, 2))
    assert one.logs.keys() == two.logs.keys()
    for key, log in one.logs.items():
        assert log.generations == two.logs[key].generations
        assert log.losses == pytest.approx(two.logs[key].losses, abs=1e-4)
