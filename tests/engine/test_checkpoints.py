"""A training that is killed goes on from its last checkpoint and ends with the same bytes; what is no checkpoint of
this run is never taken for one.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoModelForImageTextToText, TrainerCallback

from engine import checkpoints, folders, parted, progress
from engine import train as train_module
from engine.checkpoints import PROGRESS, Checkpoints, last_checkpoint
from engine.folders import MARK
from engine.frozen_start import Start
from engine.language_model import forward, load_for_training, save
from engine.loss_trainer import LossTrainer
from engine.methods import bind
from engine.record import read_json
from engine.train import train
from helpers import NPO, ROOT, TRAINER, Few, pairs, training_settings
from settings.script import SettingsError, Stopped
from settings.training import Lora, Mask, Method, Multiplier, TaskVector, read_interval
from two_processes import FSDP2

EACH_STEP = replace(TRAINER, epochs=2, batch_size=2, save_every="1step", schedule="linear", max_grad_norm=1.0)
SKU = {"forget_weight": 1.0, "shuffled_weight": 1.0, "kl_weight": 1.0}
METHODS = {
    "multiplier": Method("pdu", "pdu", multiplier=Multiplier(start=1.0, rate=0.5, target=0.1, warmup_epochs=0)),
    "mask": Method("salun", "idk", {"retain_weight": 1.0}, mask=Mask(loss="grad_ascent", share=0.25)),
    "task vector": Method("sku", "sku", SKU, task_vector=TaskVector(1.0)),
    "frozen copy": Method("kl", "kl"),
    "cached log-probabilities": NPO,
    "dropout": Method("retain_ft", "retain_ft"),
}


def run(
    data, encoder, folder, settings=EACH_STEP, method=NPO, *, record=None, each_epoch=None, modality="both", say=str
):
    """Train on six rows: three steps an epoch, six in all."""
    bound = bind(method)
    own = training_settings(lora=settings.lora, activations=method.activations)
    network = load_for_training(AutoModelForImageTextToText, own)
    start = Start(network, forward, partial(save, encoder.processor))
    few = Few(pairs(data, bound.batches, modality=modality), 6)
    options = {"record": record or {}, "each_epoch": each_epoch, "say": say}
    train(start, bound, few, encoder, settings, seed=0, save_dir=str(folder), **options)
    return (folder / "model.safetensors").read_bytes(), read_json(folder / "train_meta.json")


class Killed(BaseException):
    """Ends a run at once, as kill -9 would."""


class KillAfter(TrainerCallback):
    """Kills the run in a step, or does something else there."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            self.act()


def die():
    raise Killed


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(number, act)`: the next trainings act after so many steps; None: they do not."""

    def arrange(number, act=die):
        made = LossTrainer.__init__

        def with_callback(self, *args, **options):
            made(self, *args, **options)
            self.add_callback(KillAfter(number, act))

        patch = pytest.MonkeyPatch()
        patch.setattr(LossTrainer, "__init__", with_callback)
        patches.append(patch)
        return patch.undo

    patches = []
    yield arrange
    for patch in patches:
        patch.undo()


def killed_and_resumed(data, encoder, folder, at_step, *, step, **options):
    """The bytes and the record of a run that was killed after `step` steps and begun again."""
    undo = at_step(step)
    with pytest.raises(Killed):
        run(data, encoder, folder, **options)
    undo()
    assert not folder.exists()
    return run(data, encoder, folder, **options)


def without_cost(record):
    cost = ("seconds", "peak_memory_gb", "tokens_per_second", "epoch_eval_seconds", "files")  # the curve has seconds
    return {name: value for name, value in record.items() if name not in cost}


@pytest.mark.parametrize("killed", [*((name, 4) for name in METHODS), ("frozen copy", 2), ("mask", 3)], ids=str)
def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(killed, data, encoder, tmp_path, at_step):
    """Six steps in two epochs: killed in the second epoch, in the first, and between them."""
    mechanism, step = killed
    method = METHODS[mechanism]
    plain, record = run(data, encoder, tmp_path / "plain", method=method)
    again, record_again = killed_and_resumed(data, encoder, tmp_path / "again", at_step, step=step, method=method)
    assert again == plain
    assert without_cost(record_again) == without_cost(record)
    assert [step for step, _ in record["loss"]] == [1, 2, 3, 4, 5, 6]


SETTINGS = {
    "dropout of an adapter": {"lora": Lora(r=4, alpha=8, dropout=0.5), "precision": "bf16"},
    "buckets": {"bucket": 2},
    "accumulation": {"batch_size": 1, "accumulation": 2},
    "sgd": {"optimizer": "sgd"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_killed_training_goes_on_under_other_settings_too(name, data, encoder, tmp_path, at_step):
    settings = replace(EACH_STEP, **SETTINGS[name])
    plain, _ = run(data, encoder, tmp_path / "plain", settings)
    again, _ = killed_and_resumed(data, encoder, tmp_path / "again", at_step, step=4, settings=settings)
    assert again == plain


def test_saving_changes_nothing(data, encoder, tmp_path):
    saving, _ = run(data, encoder, tmp_path / "saving")
    never, _ = run(data, encoder, tmp_path / "never", replace(EACH_STEP, save_every="never"))
    assert saving == never


class Judge:
    """Counts how often it was asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, model):
        self.asked += 1
        return {"task": {"Exact Memorization": 0.5}}

    def best(self, results):
        return {"epoch": len(results)}


def test_the_epochs_before_a_kill_are_judged_once_and_stay_in_the_record(data, encoder, tmp_path, at_step):
    judge = Judge()
    settings = replace(EACH_STEP, save_every="1epoch")
    options = {"settings": settings, "each_epoch": judge}
    _, record = killed_and_resumed(data, encoder, tmp_path / "out", at_step, step=4, **options)
    assert judge.asked == 2
    assert record["best_epoch"] == {"epoch": 2}


def test_seconds_and_peak_count_all_attempts(data, encoder, tmp_path, at_step):
    undo = at_step(4)
    with pytest.raises(Killed):
        run(data, encoder, tmp_path / "out")
    undo()
    file = last_checkpoint(tmp_path / "out.checkpoints") / PROGRESS
    progress = read_json(file)
    file.write_text(json.dumps({**progress, "seconds": 1000.0, "peak_memory_gb": 500.0}))
    _, record = run(data, encoder, tmp_path / "out")
    assert 1000 < record["seconds"] < 1600
    assert record["peak_memory_gb"] == 500


def test_the_curve_grows_while_it_trains_and_ends_beside_the_weights(data, encoder, tmp_path, at_step):
    seen = []
    at_step(3, lambda: seen.extend((tmp_path / "out.checkpoints" / "metrics.jsonl").read_text().splitlines()))
    _, record = run(data, encoder, tmp_path / "out")
    assert [json.loads(line)["step"] for line in seen] == [1, 2, 3]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [[line["step"], line["loss"]] for line in lines] == record["loss"]


def test_the_curve_of_a_killed_run_has_each_step_once(data, encoder, tmp_path, at_step):
    settings = replace(EACH_STEP, save_every="2steps")
    killed_and_resumed(data, encoder, tmp_path / "out", at_step, step=5, settings=settings)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_nothing_stays_beside_a_finished_training(data, encoder, tmp_path, at_step):
    killed_and_resumed(data, encoder, tmp_path / "out", at_step, step=2)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_under_lora_a_checkpoint_holds_the_adapter_alone(data, encoder, tmp_path, at_step):
    undo = at_step(2)
    with pytest.raises(Killed):
        run(data, encoder, tmp_path / "out", replace(EACH_STEP, lora=Lora(r=4, alpha=8, dropout=0.0)))
    undo()
    names = checkpoints.load_file(last_checkpoint(tmp_path / "out.checkpoints") / checkpoints.WEIGHTS).keys()
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)


# ---- what is no checkpoint of this run


def interrupted(data, encoder, folder, at_step, **options):
    undo = at_step(2)
    with pytest.raises(Killed):
        run(data, encoder, folder, **options)
    undo()


def test_a_folder_without_progress_is_no_checkpoint(tmp_path):
    for name in ("step_1", "step_3", "step_2.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_1" / PROGRESS).write_text("{}")
    (tmp_path / "step_2.partial" / PROGRESS).write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "step_1"


def test_a_run_with_another_key_begins_anew_and_says_what_differs(data, encoder, tmp_path, at_step):
    made_of = {"inputs": {"data": [], "models": [], "files": []}, "code": "c"}
    record = {"key": "one", "settings": {"trainer": {"lr": 1.0}}, **made_of}
    interrupted(data, encoder, tmp_path / "out", at_step, record=record)
    lines = []
    other = {"key": "two", "settings": {"trainer": {"lr": 2.0}}, **made_of}
    again, _ = run(data, encoder, tmp_path / "out", record=other, say=lines.append)
    assert any("is of another run (trainer.lr: 1.0 -> 2.0): this training begins anew" in line for line in lines)
    plain, _ = run(data, encoder, tmp_path / "plain")
    assert again == plain


def test_going_on_is_said_with_its_step_and_with_libraries_that_changed(data, encoder, tmp_path, at_step):
    interrupted(data, encoder, tmp_path / "out", at_step)
    file = last_checkpoint(tmp_path / "out.checkpoints") / PROGRESS
    progress = read_json(file)
    file.write_text(json.dumps({**progress, "versions": {**progress["versions"], "torch": "1.0"}}))
    lines = []
    run(data, encoder, tmp_path / "out", say=lines.append)
    said = next(line for line in lines if line.startswith("going on from step 2"))
    assert "libraries have changed (torch 1.0 -> " in said


def test_a_checkpoint_that_cannot_be_read_is_one_line(data, encoder, tmp_path, at_step):
    interrupted(data, encoder, tmp_path / "out", at_step)
    file = last_checkpoint(tmp_path / "out.checkpoints") / checkpoints.WEIGHTS
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SettingsError, match=r"the checkpoint '.*step_2' cannot be read"):
        run(data, encoder, tmp_path / "out")
    assert file.is_file()


def test_a_folder_of_checkpoints_that_the_suite_did_not_make_is_left_alone(data, encoder, tmp_path):
    (tmp_path / "out.checkpoints").mkdir()
    (tmp_path / "out.checkpoints" / "mine").write_text("x")
    with pytest.raises(SettingsError, match=rf"was not made by one \({MARK} is missing\)"):
        run(data, encoder, tmp_path / "out")
    assert (tmp_path / "out.checkpoints" / "mine").read_text() == "x"


def test_a_training_that_diverged_leaves_no_checkpoint(data, encoder, tmp_path):
    with pytest.raises(SettingsError, match="Nothing was written"):
        run(data, encoder, tmp_path / "out", replace(EACH_STEP, lr=1e30), Method("grad_ascent", "grad_ascent"))
    assert list(tmp_path.iterdir()) == []


# ---- signals, clock, room


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_and_the_same_call_goes_on(number, data, encoder, tmp_path, at_step):
    settings = replace(EACH_STEP, save_every="1h")
    undo = at_step(1, lambda: os.kill(os.getpid(), number))
    former = signal.getsignal(number)
    with pytest.raises(Stopped, match=rf"{number.name}: saved step 2 of 6 in .*the same command goes on from there"):
        run(data, encoder, tmp_path / "out", settings)
    assert signal.getsignal(number) == former
    undo()
    lines = []
    again, _ = run(data, encoder, tmp_path / "out", settings, say=lines.append)
    assert any(line.startswith("going on from step 2") for line in lines)
    plain, _ = run(data, encoder, tmp_path / "plain", settings)
    assert again == plain


def test_a_signal_in_the_last_step_of_an_epoch_waits_for_the_epochs_figures(data, encoder, tmp_path, at_step):
    settings, judge = replace(EACH_STEP, save_every="1h"), Judge()
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="saved step 3 of 6"):
        run(data, encoder, tmp_path / "out", settings, each_epoch=judge)
    progress = read_json(last_checkpoint(tmp_path / "out.checkpoints") / PROGRESS)
    assert len(progress["parts"]["judged"]["results"]) == judge.asked == 1


def test_a_signal_after_the_last_step_lets_the_run_finish(data, encoder, tmp_path, at_step):
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(data, encoder, tmp_path / "out", replace(EACH_STEP, save_every="1h"))
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("often", [("2steps", [2, 4]), ("1epoch", [3]), ("1h", []), ("never", [])], ids=str)
def test_checkpoints_are_written_as_often_as_said(often, data, encoder, tmp_path, monkeypatch):
    every, saved = often
    steps = []
    real = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self: (steps.append(self.trainer.state.global_step), real(self)))
    run(data, encoder, tmp_path / "out", replace(EACH_STEP, save_every=every))
    assert steps == saved


def test_the_clock_says_when_seconds_are_over(data, encoder, tmp_path, monkeypatch):
    steps, moment = [], [0.0]
    taken = Checkpoints.on_step_end

    def take(self, args, state, control, **rest):  # each step takes 20 seconds
        moment[0] = 20.0 * state.global_step
        taken(self, args, state, control, **rest)

    def save(self):
        steps.append(self.trainer.state.global_step)
        self.saved = moment[0]

    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: moment[0])
    monkeypatch.setattr(Checkpoints, "on_step_end", take)
    monkeypatch.setattr(Checkpoints, "save", save)
    run(data, encoder, tmp_path / "out", replace(EACH_STEP, save_every="30s"))
    assert steps == [2, 4]  # of six; behind the last step the model itself is saved


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [("30s", 30, "seconds"), ("10min", 600, "seconds"), ("2h", 7200, "seconds"), ("200steps", 200, "steps"),
     ("1step", 1, "steps"), ("1epoch", 1, "epochs"), ("never", 0, "never")],
)  # fmt: skip
def test_an_interval_is_a_number_with_its_unit(text, count, unit):
    interval = read_interval(text)
    assert (interval.count, interval.unit) == (count, unit)


@pytest.mark.parametrize("text", ["", "10", "0s", "-1s", "1.5epochs", "10 min", "often", "1minute"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(SettingsError, match=r"trainer\.save_every=.* must be like 30s, 10min"):
        read_interval(text)


def test_a_full_disk_leaves_the_last_checkpoint_and_one_line(data, encoder, tmp_path, monkeypatch):
    real = checkpoints.save_file
    count = []

    def full(tensors, file):
        count.append(file)
        if len(count) > 6:  # the third checkpoint's first file: weights, optimizer, what the method keeps
            raise OSError(28, "No space left on device")
        real(tensors, file)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(SettingsError, match=r"the disk is full; the last checkpoint stays \(step 2\): make room"):
        run(data, encoder, tmp_path / "out")
    assert last_checkpoint(tmp_path / "out.checkpoints").name == "step_2"
    assert {file.name for file in (tmp_path / "out.checkpoints").iterdir()} == {"step_2", "metrics.jsonl", MARK}
    monkeypatch.setattr(checkpoints, "save_file", real)
    again, _ = run(data, encoder, tmp_path / "out")
    plain, _ = run(data, encoder, tmp_path / "plain")
    assert again == plain


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 100 MB, which a test may fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("a small disk is mounted by root alone")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("left", [0, 1_000_000], ids=["nothing is free", "one MB is free"])
def test_a_disk_that_really_fills_up_leaves_the_last_checkpoint_and_one_line(
    left, data, encoder, tmp_path, at_step, *, small_disk
):
    """Step 3 fills the disk: the curve no longer finds room, or the checkpoint does not."""

    def fill():
        free = shutil.disk_usage(small_disk).free - left
        with (small_disk / "others").open("wb") as stream:
            stream.write(bytes(free))

    undo = at_step(2, fill)
    with pytest.raises(SettingsError) as stop:
        run(data, encoder, small_disk / "out")
    undo()
    line = str(stop.value)
    assert "could not be written: the disk is full; " in line
    assert line.endswith("make room, and the same command goes on")
    assert left == 0 or "the last checkpoint stays (step 2)" in line
    assert last_checkpoint(small_disk / "out.checkpoints").name == "step_2"
    (small_disk / "others").unlink()
    again, _ = run(data, encoder, small_disk / "out")
    plain, _ = run(data, encoder, tmp_path / "plain")
    assert again == plain


def test_too_little_room_is_told_before_the_first_step(data, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1_000_000}))
    monkeypatch.setattr(train_module, "run", lambda *_: pytest.fail("it trained"))
    with pytest.raises(SettingsError, match=r"needs about 0\.\d\d GB \(.* for the model, .* for checkpoints\), and .*"):
        run(data, encoder, tmp_path / "out")


def test_elsewhere_than_on_a_terminal_a_line_says_how_far_it_is(data, encoder, tmp_path, monkeypatch):
    for name in ("SECONDS_BETWEEN_FRAMES", "SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(progress, name, 0.0)
    lines = []
    run(data, encoder, tmp_path / "out", say=lines.append)
    said = [line for line in lines if line.startswith("step ")]
    assert [line.split(",")[0] for line in said] == [f"step {step}/6" for step in range(1, 7)]
    # the first step takes longer than the others: nothing is told of the speed by it
    assert re.fullmatch(r"step 1/6, loss \d+\.\d{4}", said[0])
    pattern = r"step \d/6, loss \d+\.\d{4}, \d+ tokens/s, about 0 min \d+ s left"
    assert [line for line in said[1:] if not re.fullmatch(pattern, line)] == []


# ---- parts of tensors, as FSDP2 has them


def test_a_tensor_of_which_a_process_has_a_part_is_saved_whole_and_parted_again(tmp_path):
    mesh_store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=mesh_store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        values = torch.arange(6.0).view(3, 2)
        sharded = torch.distributed.tensor.distribute_tensor(values, mesh, [torch.distributed.tensor.Shard(0)])
        assert type(parted.whole(sharded)) is torch.Tensor
        assert torch.equal(parted.whole(sharded), values)
        again = parted.parted_like(values, sharded)
        assert again.placements == sharded.placements
        assert torch.equal(again.full_tensor(), values)
        assert parted.parted_like(torch.tensor(3.0), sharded).ndim == 0  # as the count of an optimizer's steps
    finally:
        torch.distributed.destroy_process_group()


# ---- several processes

TWO_SECONDS = 600  # a run that takes longer hangs: seconds on an idle machine

TWO = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests", {root!r} + "/tests/engine"]
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoProcessor

import test_checkpoints
from engine.loss_trainer import LossTrainer
from helpers import BASE
from mm.encoder import PictureEncoder
from settings.language import Columns, Data
from settings.script import end_processes, processes
from settings.training import Lora
from two_processes import engage_fsdp2

folder, kill_at, backend = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
assert processes().num_processes == 2
if backend == "fsdp2":
    engage_fsdp2(pytest.MonkeyPatch())
columns = Columns(image="image", caption="caption", question="question", answer="answer", person="name")
data = Data("mini", {world!r} + "/clear", {world!r} + "/tofu", columns, 10, "never_seen", "", "")
made, wrappers = LossTrainer.__init__, set()


def look(trainer):
    kinds = (FSDPModule, DistributedDataParallel)
    wrappers.update(kind.__name__ for kind in kinds if isinstance(trainer.model_wrapped, kind))


def watched(self, *args, **options):
    made(self, *args, **options)
    self.add_callback(test_checkpoints.KillAfter(kill_at, test_checkpoints.die))
    self.add_callback(test_checkpoints.KillAfter(5, lambda: look(self)))


LossTrainer.__init__ = watched
encoder = PictureEncoder(AutoProcessor.from_pretrained(BASE))
lora = None if backend == "fsdp2" else Lora(r=4, alpha=8, dropout=0.5)
settings = replace(test_checkpoints.EACH_STEP, batch_size=1, lora=lora)
said = []
test_checkpoints.run(data, encoder, folder, settings, test_checkpoints.METHODS["multiplier"], say=said.append)
assert wrappers == {{"FSDPModule" if backend == "fsdp2" else "DistributedDataParallel"}}, wrappers
if processes().is_main_process and kill_at == 100:
    assert any("going on from step 4" in line for line in said)
end_processes()
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "fsdp2"])
def test_two_processes_go_on_with_the_same_bytes_too(backend, world, tmp_path):
    """The multiplier, under DDP with the dropout of an adapter: each process has draws of its own. The script asserts
    that the model was wrapped by the backend.
    """
    script = tmp_path / "two.py"
    script.write_text(TWO.format(root=str(ROOT), world=str(world)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= FSDP2 if backend == "fsdp2" else {}

    def run_two(name, kill_at):
        command = [*launch, str(tmp_path / name), str(kill_at), backend]
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=TWO_SECONDS).returncode

    assert run_two("plain", 99) == 0
    assert run_two("again", 4) != 0
    assert last_checkpoint(tmp_path / "again.checkpoints").name == "step_4"
    assert run_two("again", 100) == 0
    plain, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "again"))
    assert again == plain
    records = [without_cost(read_json(tmp_path / name / "train_meta.json")) for name in ("plain", "again")]
    assert records[0] == records[1]
