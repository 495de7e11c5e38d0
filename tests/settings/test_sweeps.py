"""A sweep: a folder for each job, a job that fails does not end the others, and a table of all closes it."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from helpers import BASE, ENVIRONMENT, QUICK, ROOT, same_tensors, start
from settings import sweeps
from settings.language import Forget
from settings.script import FolderExists, SettingsError, Stopped, script
from settings.sweeps import Job, Outcome, Sweep, Task, give_folders, quoted, read_outcome, swept_of, write_outcome

NAME = "models/nlp/mini_clear/tiny-llama/forget25_npo_seed0"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """`sweep(recipe, *typed)` sweeps nlp/forget with another recipe in an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeps, "told", [])

    def run(recipe, *typed):
        main = script("nlp/forget", Forget)(recipe)
        return start(SimpleNamespace(main=main, __name__="forget"), ["-m", *typed], monkeypatch)

    return run


def write(settings):
    """What a training leaves, with a figure that tells which it was."""
    folder = Path(settings.save_dir)
    folder.mkdir(parents=True)
    (folder / "train_meta.json").write_text(json.dumps({"figure": f"beta {settings.method.args['beta']}"}))


def table(output):
    """The rows of the closing table: (job, state, figure or reason), each in its first line."""
    rows = []
    for line in output.splitlines():
        if line.startswith("│"):
            number, _, state, said, *_ = (cell.strip() for cell in line.split("│")[1:-1])
            rows.append((number, state, said))
    return [row for row in rows if row[0]]


def test_each_job_gets_a_folder_named_by_what_the_usual_name_does_not_tell(sweep, capsys):
    assert sweep(write, "method.args.beta=.05,0.1", "trainer.lr=1e-4") == 0
    assert {path.name for path in Path(NAME).parent.iterdir()} == {
        "forget25_npo_seed0_beta_0.05",
        "forget25_npo_seed0_beta_0.1",
    }
    output = capsys.readouterr().out
    assert table(output) == [("0", "done", "beta 0.05"), ("1", "done", "beta 0.1")]
    assert "all jobs: trainer.lr=0.0001" in output
    assert f"job 1 (method.args.beta=0.1) begins: {NAME}_beta_0.1" in output
    assert "2 of 2 jobs are done" in output


def test_folders_that_the_usual_names_tell_apart_keep_them(sweep):
    made = []
    assert sweep(lambda settings: made.append(settings.save_dir), "method=npo,idk", "seed=0,1") == 0
    assert [Path(each).name for each in made] == [
        "forget25_npo_seed0",
        "forget25_npo_seed1",
        "forget25_idk_seed0",
        "forget25_idk_seed1",
    ]


def test_a_job_of_a_sweep_reads_the_settings_that_a_single_run_reads(sweep, monkeypatch):
    read = []
    assert sweep(read.append, "method=npo,idk", "trainer.lr=1e-3", "save_dir=x_${method.name}") == 0
    main = script("nlp/forget", Forget)(read.append)
    typed = ["method=idk", "trainer.lr=1e-3", "save_dir=x_idk"]
    assert start(SimpleNamespace(main=main, __name__="forget"), typed, monkeypatch) == 0
    assert read[1] == read[2]
    assert read[0].method.name == "npo"


def test_two_jobs_of_one_folder_are_refused_before_the_first_begins(sweep, capsys):
    assert sweep(lambda settings: pytest.fail("it ran"), "method.args.beta=.05,.1", "save_dir=out") == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "error: 2 jobs of this sweep would write save_dir='out' (job 0 (method.args.beta=0.05) and job 1 "
        "(method.args.beta=0.1)); leave save_dir out"
    )
    assert error.endswith("save_dir=out_\\${method.args.beta}\n")


def test_two_names_of_one_folder_are_one_folder(sweep, capsys):
    assert sweep(lambda settings: pytest.fail("it ran"), "save_dir=out,./out") == 1
    assert "2 jobs of this sweep would write save_dir='out'" in capsys.readouterr().err


def test_settings_of_one_job_that_are_wrong_are_refused_before_the_first_begins(sweep, capsys):
    assert sweep(lambda settings: pytest.fail("it ran"), "trainer.lr=1e-4,-1") == 1
    assert capsys.readouterr().err == "error: job 1 (trainer.lr=-1): trainer.lr=-1.0 must be at least 0\n"


def test_two_jobs_that_are_the_same_are_refused(sweep, capsys):
    assert sweep(lambda settings: pytest.fail("it ran"), "seed=1,1") == 1
    assert capsys.readouterr().err == "error: jobs 0 and 1 of this sweep are the same (seed=1)\n"


def test_what_a_job_fails_by_while_it_looks_at_a_former_run_is_its_reason(sweep, capsys):
    def exists(settings):
        def is_same():
            raise SettingsError("nope.txt cannot be read")

        raise FolderExists("it exists", is_same)

    assert sweep(exists, "seed=0,1") == 1
    assert [said for _, _, said in table(capsys.readouterr().out)] == ["nope.txt cannot be read"] * 2


FAILURES = [
    (SettingsError("x=1 is wrong"), "x=1 is wrong"),
    (RuntimeError("CUDA out of memory.\nmore"), "RuntimeError: CUDA out of memory."),
    (SystemExit(3), "exit code 3"),
    (OSError(28, "No space left on device"), "the disk is full"),
    (FolderExists("save_dir='x' exists", lambda: False), "save_dir='x' exists"),
]


def test_jobs_that_fail_do_not_end_the_others(sweep, capsys):
    def recipe(settings):
        if settings.seed < len(FAILURES):
            raise FAILURES[settings.seed][0]
        write(settings)

    assert sweep(recipe, "seed=0,1,2,3,4,5") == 1
    *failed, last = table(capsys.readouterr().out)
    assert last == ("5", "done", "beta 0.1")
    assert [state for _, state, _ in failed] == ["failed"] * len(FAILURES)
    for (_, _, said), (_, why) in zip(failed, FAILURES, strict=True):
        assert said.startswith(why)


def test_a_job_that_was_done_before_by_the_same_is_not_done_again(sweep, capsys):
    def recipe(settings):
        if settings.seed == 0:
            raise FolderExists("it exists", lambda: True)
        write(settings)

    assert sweep(recipe, "seed=0,1") == 0
    assert [state for _, state, _ in table(capsys.readouterr().out)] == ["done before", "done"]


def test_a_sweep_that_is_told_to_stop_runs_no_further_job_and_says_so(sweep, capsys):
    def recipe(settings):
        if settings.seed == 1:
            raise Stopped("SIGTERM: saved step 2 of 6", 143)
        write(settings)

    assert sweep(recipe, "seed=0,1,2") == 143
    assert [state for _, state, _ in table(capsys.readouterr().out)] == ["done", "stopped", "not run"]


def test_sigterm_between_two_steps_of_a_job_closes_the_table_too(sweep, capsys):
    assert sweep(lambda settings: os.kill(os.getpid(), signal.SIGTERM), "seed=0,1") == 143
    assert [state for _, state, _ in table(capsys.readouterr().out)] == ["stopped", "not run"]


def test_the_table_lies_beside_what_the_jobs_left(sweep, tmp_path):
    assert sweep(write, "seed=0,1") == 0
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert len(table((folder / "table.txt").read_text())) == 2
    assert {path.name for path in folder.iterdir()} == {"job_0", "job_1", "table.txt"}


def test_a_job_that_wrote_nothing_at_its_end_is_not_called_done(tmp_path):
    assert read_outcome(tmp_path, "it was killed") == Outcome("no word", "it was killed")


class Joblib:
    """A launcher that ends all jobs of a launch in which one is killed, as joblib does."""

    def __init__(self, task, killed):
        self.task, self.killed, self.launched = task, killed, []

    def launch(self, overrides, initial_job_idx):
        self.launched.append([initial_job_idx + place for place in range(len(overrides))])
        if self.killed in self.launched[-1]:
            raise type("TerminatedWorkerError", (Exception,), {})
        for number in self.launched[-1]:
            folder = self.task.folder / f"job_{number}"
            folder.mkdir()
            write_outcome(folder, Outcome("done"))


def test_jobs_that_ran_beside_one_that_was_killed_are_run_again_each_by_itself(tmp_path):
    made = object.__new__(Sweep)
    made.task = Task(print, Forget, folder=tmp_path)
    made.launcher = Joblib(made.task, killed=1)
    made.config = OmegaConf.create({"hydra": {"sweeper": {"max_batch_size": None}}})
    why = made.launch_all([["seed=0"], ["seed=1"], ["seed=2"]])
    assert made.launcher.launched == [[0, 1, 2], [0], [1], [2]]
    assert [read_outcome(tmp_path / f"job_{number}", why).state for number in range(3)] == ["done", "no word", "done"]
    assert "killed" in why


def test_one_process_of_several_ends_when_its_job_fails(sweep, monkeypatch, capsys):
    """The other processes of the launch would wait for it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = []

    def recipe(settings):
        ran.append(settings.seed)
        raise SettingsError("x")

    assert sweep(recipe, "seed=0,1") == 1
    assert ran == [0]
    assert [state for _, state, _ in table(capsys.readouterr().out)] == ["failed", "no word"]


def test_another_process_than_the_first_says_nothing(sweep, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert sweep(lambda settings: None, "seed=0,1") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["hydra/launcher=slurm"], "error: hydra/launcher='slurm' is not there; choose from basic, joblib\n"),
        (["hydra/sweeper=nothing"], "error: hydra/sweeper='nothing' is not there; choose from basic\n"),
        (["method=idk,nppo"], "error: method='nppo' is not known (did you mean 'npo'?)"),
        (["--cfg", "job"], "error: --cfg and --multirun ask for different things; leave one out"),
        (["seed=range(0,2.5"], "error: 'seed=range(0,2.5' is no setting"),
        (["seed=interval(0,1)"], "error: BasicSweeper does not support sweep type : INTERVAL_SWEEP"),
    ],
)
def test_a_mistake_in_a_sweep_is_one_line(typed, line, sweep, capsys):
    assert sweep(lambda settings: pytest.fail("it ran"), *typed) == 1
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert error.count("\n") == 1


# ---- names


def jobs_of(*swept, place="out"):
    return [Job(number, list(texts), list(texts), "save_dir", place) for number, texts in enumerate(swept)]


def test_a_name_has_the_whole_setting_where_two_end_alike():
    jobs = jobs_of(["a.x=1", "b.x=1"], ["a.x=1", "b.x=2"], ["a.x=2", "b.x=1"])
    give_folders(jobs)
    assert [job.place for job in jobs] == ["out_a.x_1_b.x_1", "out_a.x_1_b.x_2", "out_a.x_2_b.x_1"]


def test_a_name_is_fit_for_a_folder():
    jobs = jobs_of(["split=a/b"], ["split=[c,d]"], ["split='e f'"])
    give_folders(jobs)
    assert [job.place for job in jobs] == ["out_split_a_b", "out_split__c_d_", "out_split_e_f"]


def test_jobs_whose_names_would_become_one_are_refused():
    with pytest.raises(SettingsError, match="2 jobs of this sweep would write"):
        give_folders(jobs_of(["split=a/b"], ["split=a_b"]))


def test_what_all_jobs_have_is_not_swept():
    assert swept_of([["a=1", "b=1", "hydra/launcher=joblib"], ["a=1", "b=2", "hydra/launcher=joblib"]]) == [
        ["b=1"],
        ["b=2"],
    ]
    assert swept_of([["a=1"]]) == [[]]


def test_a_folder_reaches_its_job_whatever_its_name(sweep):
    names = ["a", "a b", "it's", "a=b,c", "a\\b", "a\\'b", "[1]", "ünï"]
    made = []
    assert sweep(lambda settings: made.append(settings.save_dir), f"save_dir={','.join(map(quoted, names))}") == 0
    assert made == names


# ---- the recipes themselves


@pytest.fixture
def of_track(world_overrides, world, text_base, face_overrides):
    """`of_track(track)`: overrides that point its recipes at a small world, and that let them run in seconds."""
    words = [f"data.text_path={world}/tofu", "data.made_by=''", f"model.path={text_base}", "model.made_by=''"]
    splits = ["data.splits.nlp={full: full, retain: retain90, forget: forget10}", "data.forget=forget10"]
    made = {"mm": world_overrides, "nlp": [*words, *splits], "cv": face_overrides}
    return made.__getitem__


@pytest.mark.slow
@pytest.mark.parametrize("track", ["mm", "nlp", "cv"])
def test_finetune_forget_and_eval_of_each_track_are_swept(track, of_track, tmp_path, monkeypatch, capsys):
    """Two bases; a forgetting that diverges beside one that does not; a model that is not there beside one that is."""
    monkeypatch.setattr(sweeps, "WIDTH", 1000)  # no cell is broken
    finetune, forget, evaluate = (importlib.import_module(f"{track}.{name}") for name in ("finetune", "forget", "eval"))
    common = [*of_track(track), f"hydra.sweep.dir={tmp_path}/sweep"]
    quick = ["trainer.epochs=1", "trainer.batch_size=8"]
    if track == "cv":
        pretrain = importlib.import_module("cv.pretrain")
        own = [*of_track(track), *quick, f"save_dir={tmp_path}/pretrained"]
        assert start(pretrain, own, monkeypatch) == 0
        common.append(f"model.path={tmp_path}/pretrained")

    def swept(recipe, *typed):
        capsys.readouterr()
        code = start(recipe, ["-m", *common, *typed], monkeypatch)
        return code, table(capsys.readouterr().out)

    code, rows = swept(finetune, *quick, "seed=0,1", f"save_dir={tmp_path}/base_${{seed}}")
    assert code == 0
    assert [(state, figure.split()[0]) for _, state, figure in rows] == [("done", "loss"), ("done", "loss")]
    start_at = f"model_path={tmp_path}/base_0"
    method = "grad_ascent" if track == "cv" else "npo"
    if track == "cv":  # whose logits are cosines: no rate makes its loss infinite
        (tmp_path / "forgot_1e+30").mkdir()
    rates = ["trainer.lr=1e-4,1e30", f"save_dir={tmp_path}/forgot_${{trainer.lr}}"]
    code, rows = swept(forget, *quick, f"method={method}", start_at, *rates)
    assert code == 1
    assert [state for _, state, _ in rows] == ["done", "failed"]
    assert ("exists; overwrite=true" if track == "cv" else f"method {method}, step ") in rows[1][2]
    limits = [] if track == "cv" else ["max_new_tokens=4", "limit=4"]
    code, rows = swept(evaluate, *limits, f"model_path={tmp_path}/forgot_0.0001,{tmp_path}/nowhere")
    assert code == 1
    assert [state for _, state, _ in rows] == ["done", "failed"]
    assert rows[0][2].startswith("accuracy of " if track == "cv" else "exact memorization of ")
    assert (tmp_path / "forgot_0.0001" / "eval_results" / "eval_meta.json").is_file()
    code, rows = swept(evaluate, *limits, f"model_path={tmp_path}/forgot_0.0001,{tmp_path}/base_1")
    assert code == 0
    assert [state for _, state, _ in rows] == ["done before", "done"]


@pytest.mark.slow
def test_jobs_beside_each_other_make_what_single_runs_make(world_overrides, tmp_path):
    """The joblib launcher: a process for each job, whose lines lie in files of their own."""
    command = [sys.executable, str(ROOT / "mm" / "forget.py")]
    common = [*world_overrides, *QUICK, f"model_path={BASE}", "method=npo"]
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 1200}
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    swept = subprocess.run([*command, "-m", *common, "method.args.beta=.05,.1,.4", *launcher], **options)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert [state for _, state, _ in table(swept.stdout)] == ["done", "done", "done"]
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert all("forgot " in (folder / f"job_{number}" / "log.txt").read_text() for number in range(3))
    assert "forgot " not in swept.stdout
    made = tmp_path / "models" / "mm" / "mini_clear" / "tiny-llava"
    single = tmp_path / "single"
    subprocess.run([*command, *common, "method.args.beta=.1", f"save_dir={single}"], check=True, **options)
    for beta, alike in (("0.05", False), ("0.1", True), ("0.4", False)):
        assert same_tensors(single, made / f"forget25+tofu_npo_seed0_beta_{beta}") is alike


SAVES = """
import signal
import time
from pathlib import Path

from settings.language import Forget
from settings.script import Stopped, script


@script("nlp/forget", Forget)
def main(settings):
    def save(number, frame):
        Path(f"saved_{settings.seed}").touch()
        raise Stopped("saved", 143)

    signal.signal(signal.SIGTERM, save)
    Path(f"began_{settings.seed}").touch()
    time.sleep(60)


if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux to tell the jobs")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_jobs_beside_each_other_save_when_the_sweep_is_ended(number, code, tmp_path):
    (tmp_path / "saves.py").write_text(SAVES)
    typed = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2,3"]
    with (tmp_path / "said").open("w") as stream:  # a pipe would stay open until the last job has ended
        options = {"cwd": tmp_path, "env": ENVIRONMENT, "stdout": stream, "stderr": stream}
        sweep = subprocess.Popen([sys.executable, "saves.py", *typed], **options)
    assert wait_for(lambda: len(list(tmp_path.glob("began_*"))) == 2)
    sweep.send_signal(number)
    assert sweep.wait(timeout=60) == code
    assert wait_for(lambda: len(list(tmp_path.glob("saved_*"))) == 2)
    time.sleep(1)
    assert len(list(tmp_path.glob("began_*"))) == 2  # no further one


def wait_for(condition, seconds=120):
    """Whether a condition holds within so many seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()
