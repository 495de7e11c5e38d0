"""Checkpoints of a training: all that it needs to go on with the same bits, written aside and renamed whole.

They lie in `<save_dir>.checkpoints` beside the folder that the training will write, each in a folder of its own, and
are removed when that folder is whole. A folder without progress.json is no checkpoint.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from engine.folders import beside, check_space, full_disk_said, marked, remove_ours, written_whole
from engine.language_model import trained_weights
from engine.parted import in_parts, load_part_of_optimizer, part_of_optimizer, parted_like, put, whole
from engine.progress import start_of_line
from engine.record import METRICS, other_versions, peak_memory_gb, read_json, versions, why_another, write_json
from settings.script import GOES_ON, MAKE_ROOM, SettingsError, Stopped, processes
from settings.training import Interval, Trainer, read_interval

PROGRESS = "progress.json"
STATE = "trainer_state.json"  # the library's own: how many steps are done
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
OWN = "method.safetensors"  # what a method's gradient step keeps from step to step
SIGNALS = (signal.SIGTERM, signal.SIGINT)
MADE_OF = ("key", "settings", "inputs", "code")  # what a run's record says of what it was made of
# bytes that an optimizer keeps for each trained weight
KEPT = {"adamw_torch": 8, "adamw_torch_fused": 8, "sgd": 0, "adamw_bnb_8bit": 3, "paged_adamw_8bit": 3}


class Diverged(SettingsError):
    """A training whose loss or weights are no longer finite: to go on would be to diverge again."""


class Checkpoints(TrainerCallback):
    """Decides after each optimizer step whether to save, and ends a run that a signal told to stop.

    The first process alone reads the clock, and tells the others. What a step's place in the epoch is follows from the
    number of steps, because every draw is a function of seed, epoch and row.
    """

    def __init__(
        self, trainer: Any, save_dir: str, settings: Trainer, record: dict[str, Any], say: Callable[..., None]
    ):
        """`record`: what the run's record will say of it; `trainer`: a LossTrainer."""
        self.trainer, self.save_dir, self.record, self.say = trainer, Path(save_dir), record, say
        self.every: Interval = read_interval(settings.save_every)
        self.folder = beside(self.save_dir, "checkpoints")
        self.parts: dict[str, Any] = {}  # what has `state()` and `go_on(state)`, by name
        self.saved = self.started = time.monotonic()  # when the last checkpoint was written, and when the run began
        self.steps = 0  # since then
        self.own: Path | None = None  # the last checkpoint of this run, which may have gone on from one
        self.before = 0.0  # seconds of earlier attempts
        self.peak = 0.0  # their largest peak of memory, in GB
        self.told: signal.Signals | None = None  # the signal that told to stop

    @property
    def is_off(self) -> bool:
        return self.every.unit == "never"

    # ---- when

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # of several processes that go on within an epoch, the library does not tell the sampler which one it is
        self.trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps += 1
        if state.epoch != int(state.epoch):  # else the end of the epoch comes first, with its figures
            self.decide(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.decide(state, control)

    def decide(self, state: Any, control: Any) -> None:
        """Have the trainer save, where it is time to or a signal came; the last step's model is saved anyway."""
        if self.is_off or state.global_step >= state.max_steps:
            return
        due, told = self.agreed(self.is_due(state), self.told.value if self.told else 0)
        control.should_save = bool(due or told)
        if told:
            self.told = signal.Signals(told)

    def is_due(self, state: Any) -> bool:
        """Whether the interval is over."""
        if self.every.unit == "seconds":
            return time.monotonic() - self.saved >= self.every.count
        if self.every.unit == "steps":
            return self.steps >= self.every.count
        return state.epoch == int(state.epoch) and int(state.epoch) % self.every.count == 0

    def agreed(self, due: bool, told: int) -> tuple[bool, int]:
        """The same answer on every process: due where the first says so, told where any was."""
        if processes().num_processes == 1:
            return due, told
        mine = torch.tensor([float(due and processes().is_main_process), float(told)], device=processes().device)
        torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
        return bool(mine[0]), int(mine[1])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.told:
            line = f"{self.told.name}: saved step {state.global_step} of {state.max_steps} in {str(self.folder)!r}; "
            raise Stopped(f"{line}{GOES_ON}", 128 + self.told)

    @contextlib.contextmanager
    def signals_heard(self) -> Iterator[None]:
        """Have SIGTERM and SIGINT save and stop after the step that is being taken; a second SIGINT stops at once.

        A launcher may send SIGTERM besides the SIGINT of a terminal, so that a second SIGTERM says nothing new.

        Signals reach the main thread only; where a run is in another, or saves nothing, they do what they always do.
        """
        if self.is_off or threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self.hear)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        if self.told is None and processes().is_main_process:
            # not print, which may be in the middle of a line
            line = f"{signal.Signals(number).name}: saving after this step (Ctrl+C once more: at once)\n"
            os.write(2, f"{start_of_line()}{line}".encode())
        self.told = self.told or signal.Signals(number)

    # ---- writing

    @property
    def seconds(self) -> float:
        """Of all attempts so far."""
        return self.before + time.monotonic() - self.started

    def save(self) -> None:
        """Write a checkpoint of the present step and remove the former one. All processes call it.

        Raises SettingsError where the disk is full; the former checkpoint stays.
        """
        trainer = self.trainer
        step = trainer.state.global_step
        weights = {name: whole(value) for name, value in kept_weights(unwrapped(trainer)).items()}
        is_part = trainer.is_deepspeed_enabled  # DeepSpeed keeps of the optimizer a part on each process
        state = part_of_optimizer(trainer.optimizer.optimizer) if is_part else trainer.optimizer.state_dict()
        tensors, facts = parted(state, is_part=is_part)
        own = {name: whole(value) for name, value in trainer.own_tensors().items()}
        each = gather_object([{"draws": state_of_draws(), "optimizer": facts, **trainer.own_state()}])
        place = self.folder / f"step_{step}"
        if processes().is_main_process:
            progress = {
                **{name: self.record[name] for name in MADE_OF if name in self.record},
                "versions": versions(),
                "step": step,
                "seconds": self.seconds,
                "peak_memory_gb": max(self.peak, peak_memory_gb()),
                "scheduler": trainer.lr_scheduler.state_dict(),
                "launch": launch_of(trainer),
                "processes": each,
                "parts": {name: part.state() for name, part in self.parts.items()},
            }
            marked(self.folder)
            then = self.what_stays()
            with written_whole(place, then) as aside:
                save_file(weights, aside / WEIGHTS)
                self.write_optimizer(tensors, aside, is_part=is_part)
                save_file(own, aside / OWN)
                trainer.state.log_history = []  # ours stands in the parts
                trainer.state.save_to_json(str(aside / STATE))
                write_json(aside / PROGRESS, progress)
            for former in self.folder.glob("step_*"):
                if former.name != f"step_{step}":
                    shutil.rmtree(former, ignore_errors=True)
        elif is_part:
            self.write_optimizer(tensors, beside(place, "partial"), is_part=True)
        trainer.accelerator.wait_for_everyone()
        self.own = place
        self.saved, self.steps = time.monotonic(), 0

    def write_optimizer(self, tensors: dict[str, Tensor], aside: Path, *, is_part: bool) -> None:
        """Write the optimizer's tensors; where each process has a part, all call this, and each writes its own."""
        if not is_part:
            return save_file(tensors, aside / OPTIMIZER)
        self.trainer.accelerator.wait_for_everyone()  # the first process has made the folder
        with full_disk_said(aside, self.what_stays()):
            save_file(tensors, aside / optimizer_file(True))
        self.trainer.accelerator.wait_for_everyone()  # and renames it when all is there

    def what_stays(self) -> str:
        """What to say where the disk is full."""
        last = self.own
        stays = f"the last checkpoint stays ({last.name.replace('_', ' ')}): " if last else ""
        return f"{stays}{MAKE_ROOM}"

    def finish(self) -> None:
        """Remove what is no longer needed: the trained model is whole."""
        if processes().is_main_process:
            remove_ours(self.folder)

    def stop_if_told(self) -> None:
        """End a run after a training that another one follows, where a signal came in its last step."""
        _, told = self.agreed(False, self.told.value if self.told else 0)
        if told:
            name = signal.Signals(told).name
            raise Stopped(f"{name}: {str(self.save_dir)!r} is a finished part of the run; {GOES_ON}", 128 + told)

    @contextlib.contextmanager
    def kept_only_with_use(self) -> Iterator[None]:
        """Remove the folder after an error, where it holds no checkpoint or the training would only diverge again."""
        try:
            yield
        except BaseException as error:
            if processes().is_main_process and (isinstance(error, Diverged) or last_checkpoint(self.folder) is None):
                remove_ours(self.folder)
            raise

    # ---- going on

    def find(self) -> Path | None:
        """The checkpoint to go on from, the same for every process; None: the training begins anew, and a line says so
        where there is one of another run.

        Raises SettingsError where the folder of the checkpoints is somebody else's.
        """
        found, line = None, ""
        if processes().is_main_process:
            marked(self.folder)
            last = last_checkpoint(self.folder)
            if last and not self.is_off:
                with readable(last):
                    found, line = self.fitting(last)
        if line:
            self.say(line)
        self.own = gather_object([found])[0]
        return self.own

    def fitting(self, last: Path) -> tuple[Path | None, str]:
        """`last` if it is of this run, and what to say of it."""
        progress = read_json(last / PROGRESS)
        if why := why_another(progress, self.record):
            differs = ", ".join(why[:5])
            return None, f"{str(last)!r} is of another run ({differs}): this training begins anew"
        count = len(progress["processes"])
        if count != processes().num_processes:
            now_count = processes().num_processes
            return None, f"{str(last)!r} is of {count} processes and this run has {now_count}: training begins anew"
        launched = launch_of(self.trainer)
        if progress["launch"] != launched:
            return None, f"{str(last)!r} is of {progress['launch']} and this run of {launched}: training begins anew"
        changed = other_versions(progress)
        bits = f"; libraries have changed ({changed}), so the bits may differ" if changed else ""
        return last, f"going on from step {progress['step']}, as {str(last)!r} has it{bits}"

    def go_on(self, folder: Path) -> None:
        """Give every part its state back."""
        with readable(folder):
            progress = read_json(folder / PROGRESS)
            self.before, self.peak = progress["seconds"], progress["peak_memory_gb"]
            self.trainer.go_on(progress["processes"][processes().process_index])
            for name, part in self.parts.items():
                part.go_on(progress["parts"][name])


class Metrics(TrainerCallback):
    """Writes a line for every step to metrics.jsonl while the training runs."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.lines: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs or not processes().is_main_process:
            return
        named = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
        line = {"step": state.global_step, "epoch": state.epoch, **named, "seconds": self.checkpoints.seconds}
        self.lines.append(line)
        with full_disk_said(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    @property
    def file(self) -> Path:
        return self.checkpoints.folder / METRICS

    def begin(self) -> None:
        """Write the lines so far in place of those of an attempt that was killed later."""
        if processes().is_main_process:
            self.write(self.file)

    def write(self, file: Path) -> None:
        """All lines so far to `file`."""
        file.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    def state(self) -> list[dict[str, Any]]:
        return self.lines

    def go_on(self, state: list[dict[str, Any]]) -> None:
        self.lines = state


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step; None: there is none. A folder without progress.json is none."""
    whole_ones = [file.parent for file in folder.glob(f"step_*/{PROGRESS}") if file.parent.suffix == ""]
    return max(whole_ones, key=lambda each: int(each.name.removeprefix("step_")), default=None)


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn a checkpoint that cannot be read into a SettingsError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise SettingsError(
            f"the checkpoint {str(folder)!r} cannot be read ({error}); without its folder the training begins anew"
        ) from None


# ---- weights and optimizer


def unwrapped(trainer: Any) -> nn.Module:
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
    return model


def kept_weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: the weights that train (of an adapter alone under LoRA) and running statistics."""
    saved = model.state_dict(keep_vars=True).keys()
    buffers = {name: value for name, value in model.named_buffers() if name in saved}
    return {**trained_weights(model), **buffers}


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put the weights of a checkpoint in place of the model's."""
    with readable(folder):
        saved = load_file(folder / WEIGHTS)
        for name, weight in kept_weights(model).items():
            put(weight, saved[name])


def load_own(folder: Path) -> dict[str, Tensor]:
    """What a checkpoint keeps of a method's gradient step."""
    with readable(folder):
        return load_file(folder / OWN)


def launch_of(trainer: Any) -> str:
    """By what the processes of a run part weights or optimizer; a checkpoint of another way does not fit."""
    accelerator = trainer.accelerator
    if not trainer.is_deepspeed_enabled:
        return "FSDP2" if in_parts(accelerator) else "whole weights"
    return f"ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"


def optimizer_file(is_part: bool) -> str:
    """The file of the optimizer's tensors; `is_part`: of those that this process alone has."""
    return f"optimizer_{processes().process_index}.safetensors" if is_part else OPTIMIZER


def parted(state: dict[str, Any], *, is_part: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors by `<number>.<name>`, and the rest of it for JSON.

    `is_part`: its tensors are this process's own, and are not put together.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for number, own in state["state"].items():
        values[str(number)] = {name: value for name, value in own.items() if not isinstance(value, Tensor)}
        for name, value in own.items():
            if isinstance(value, Tensor):
                # two weights may share one, and a file of safetensors holds none that is shared
                tensors[f"{number}.{name}"] = (value.detach().cpu() if is_part else whole(value)).clone()
    return tensors, {"values": values, "groups": state["param_groups"]}


def load_optimizer(trainer: Any, folder: Path) -> None:
    """Put the optimizer's state of a checkpoint in place of the trainer's."""
    is_part, optimizer = trainer.is_deepspeed_enabled, trainer.optimizer
    with readable(folder):
        of_processes: list[dict[str, Any]] = read_json(folder / PROGRESS)["processes"]
        facts = of_processes[processes().process_index]["optimizer"]
        state: dict[int, dict[str, Any]] = {int(number): dict(own) for number, own in facts["values"].items()}
        for name, value in load_file(folder / optimizer_file(is_part)).items():
            number, _, key = name.partition(".")
            state[int(number)][key] = value
        groups = [as_given(group) for group in facts["groups"]]
        if is_part:
            return load_part_of_optimizer(optimizer.optimizer, {"state": state, "param_groups": groups})
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for place, own in state.items():
            tensors = {key: value for key, value in own.items() if torch.is_tensor(value)}
            own.update({key: parted_like(value, weights[place]) for key, value in tensors.items()})
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def as_given(group: dict[str, Any]) -> dict[str, Any]:
    """A group of an optimizer read from JSON, where pairs like betas have become lists."""
    pairs = {name: tuple(value) for name, value in group.items() if isinstance(value, list) and name != "params"}
    return group | pairs


# ---- draws


def state_of_draws() -> dict[str, Any]:
    """The state of every generator that a library may draw from, for JSON."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {"python": [version, list(words), gauss], "numpy": [name, np.asarray(keys).tolist(), *rest]}
    state["torch"] = torch.get_rng_state().numpy().tobytes().hex()
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return state


def load_draws(state: dict[str, Any]) -> None:
    """Set every generator to a state that `state_of_draws` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(tensor_of(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensor_of(state["cuda"]))


def tensor_of(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


# ---- room


def size_on_disk(model: nn.Module, settings: Trainer, *, own: int = 0) -> tuple[int, int]:
    """Bytes of the trained model, and of one checkpoint; `own`: what the method keeps for each trained weight."""
    trained = trained_weights(model).values()
    checkpoint = 0
    if settings.save_every != "never":
        kept = KEPT[settings.optimizer] + own
        checkpoint = sum(weight.numel() * (weight.element_size() + kept) for weight in trained)
    if settings.save == "adapter":
        return sum(weight.numel() * weight.element_size() for weight in trained), checkpoint
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    parts = [model, *(part for _, _, part in inner.__dict__.get("removed_parts", []))]
    weights = {id(weight): weight for part in parts for weight in part.parameters()}
    width = 4 if isinstance(model, PeftModel) else 0  # an adapter is merged in fp32
    return sum(weight.numel() * max(width, weight.element_size()) for weight in weights.values()), checkpoint


def check_room(model: nn.Module, save_dir: str, settings: Trainer, *, own: int = 0, parts: int = 0) -> None:
    """Raise SettingsError where the disk lacks room for the trained model and for two checkpoints.

    There are two while the second replaces the first. What an interrupted run has left of them needs no further room.
    `own`: bytes that the method keeps for each trained weight besides. `parts`: trainings whose weights stay until all
    are done.
    """
    result, checkpoint = size_on_disk(model, settings, own=own)
    trained = sum(weight.numel() * weight.element_size() for weight in trained_weights(model).values())
    kept = 2 * checkpoint + parts * trained
    how = f"{result / 1e9:.2f} for the model, {kept / 1e9:.2f} for checkpoints"
    left = beside(Path(save_dir), "checkpoints").rglob("*")
    there = min(kept, sum(file.stat().st_size for file in left if file.is_file()))
    how += f", {there / 1e9:.2f} of it there already" if there else ""
    if processes().is_main_process:
        check_space(Path(save_dir), result + kept - there, how)
