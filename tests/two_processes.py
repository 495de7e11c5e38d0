"""Trainings by two processes on a CPU, under each way in which weights may be parted.

No setting engages FSDP2 or DeepSpeed on a CPU. How it is done stands here, and only here; the code that trains does not
know of it. `launch` runs this file by torchrun; each process then runs the cases that it is given.
"""

import contextlib
import faulthandler
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, gather_object
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

if __name__ == "__main__":  # one of the processes
    sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

from engine import train as train_module
from engine.frozen_start import Start
from engine.language_model import forward, load_for_training, save
from engine.loss_trainer import LossTrainer
from engine.methods import bind
from engine.pairs import PassCollator
from helpers import MODEL, NPO, ROOT, TRAINER, Few, pairs, training_settings, without_dropout
from mm.encoder import PictureEncoder
from nlp.encoder import TextEncoder
from settings.language import Columns, Data
from settings.script import end_processes, processes
from settings.training import Activations, Lora, Method

SECONDS = 600  # a launch that takes longer hangs: it takes a minute or two on an idle machine
BACKENDS = ("ddp", "fsdp2", "zero2", "zero3")

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}

# ---- engaging


def engage_fsdp2(monkeypatch):
    """Have trainings of this process shard the model by FSDP2 on the CPU.

    accelerate takes FSDP on devices of a list that lacks the CPU, and runs DDP there without a word. It asks for the
    kind of launch after the arguments of the trainer have joined it: that is where it is told of GPUs.
    """
    made = train_module.training_arguments

    def with_shards(*settings):
        arguments = made(*settings)
        assert arguments.device.type == "cpu"  # joins the processes
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return arguments

    monkeypatch.setattr(train_module, "training_arguments", with_shards)


def deepspeed_environment(folder, stage):
    """What has accelerate take DeepSpeed on the CPU; its configuration is written to `folder`."""
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_force_ds_cpu_optimizer": False,  # else it builds an Adam of its own
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
    }
    if stage == 3:
        # by default a weight of fewer entries than 100,000 stays whole, which most of a tiny model has
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    file = Path(folder) / f"zero{stage}.json"
    file.write_text(json.dumps(config))
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file),
        "DS_ACCELERATOR": "cpu",
    }


def environment_of(backend, folder):
    """What the processes of a launch find in their environment."""
    own = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    if backend == "fsdp2":
        own |= FSDP2
    if backend.startswith("zero"):
        own |= deepspeed_environment(folder, int(backend[-1]))
    return {**os.environ, **own}


def why_not(backend):
    """What a backend lacks here; empty: nothing."""
    if not backend.startswith("zero"):
        return ""
    lacking = [name for name in ("deepspeed", "einops", "ninja") if importlib.util.find_spec(name) is None]
    lacking += [] if shutil.which("g++") else ["g++"]  # it builds how its processes speak to each other
    return f"DeepSpeed on a CPU needs {' and '.join(lacking)}" if lacking else ""


def engaged(trainer):
    """Which backend has wrapped the model, and that each process has its part alone where it is one that parts."""
    wrapped = trainer.model_wrapped
    weights = list(wrapped.parameters())
    if isinstance(wrapped, DistributedDataParallel):
        return "ddp"
    if isinstance(wrapped, FSDPModule):
        assert type(wrapped).__name__.startswith("FSDP") and all(isinstance(each, DTensor) for each in weights)
        return "fsdp2"
    assert type(wrapped).__name__ == "DeepSpeedEngine"
    stage = wrapped.zero_optimization_stage()
    if stage == 3:
        assert all(each.ds_tensor.numel() < each.ds_numel or each.ds_numel == 1 for each in weights)
    return f"zero{stage}"


def forget_settings_of_launch():
    """Accelerate keeps one state for all trainings of a process."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    if importlib.util.find_spec("deepspeed"):
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


# ---- launching


def launch(backend, folder, job):
    """Run `job` by two processes under a backend; a launch that hangs fails."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.json"
    file.write_text(json.dumps({"backend": backend, "folder": str(folder), "seconds": SECONDS, **job}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(
        [*command, str(file)],
        cwd=ROOT,
        env=environment_of(backend, folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{backend}:\n{done.stdout[-20000:]}"


# ---- cases


@dataclass(frozen=True)
class Case:
    method: Method
    lora: Lora | None = None


CASES = {
    "npo": Case(NPO, Lora(r=4, alpha=8, dropout=0.0)),
    "kl": Case(Method("kl", "kl")),
    "rmu": Case(
        Method(
            "rmu",
            "rmu",
            {"c": 6.5, "alpha": 10.0, "direction_seed": 0},
            activations=Activations(layer=2, trained=[1, 2], part="down_projection"),
        )
    ),
}
TRACKS = ("mm", "nlp")
ACCUMULATION = {"mm": 1, "nlp": 2}  # words also have their activations computed again, but under ZeRO-3
ROWS = 8  # two steps of four rows in each of two epochs
SETTINGS = replace(TRAINER, epochs=2, schedule="linear", max_grad_norm=1.0)


def data_of(world):
    columns = Columns(image="image", caption="caption", question="question", answer="answer", person="name")
    return Data("mini", f"{world}/clear", f"{world}/tofu", columns, 10, "never_seen", "", "")


def opened(track, base):
    """The class that loads a model of a track, and its encoder."""
    if track == "mm":
        return AutoModelForImageTextToText, PictureEncoder(AutoProcessor.from_pretrained(base))
    return AutoModelForCausalLM, TextEncoder(AutoTokenizer.from_pretrained(base))


def loaded(track, case, base):
    """The model of a case as it trains."""
    auto_class, encoder = opened(track, base)
    zero3 = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "").endswith("zero3.json")
    again = track == "nlp" and not zero3  # which the suite refuses
    own = {"lora": case.lora, "activations": case.method.activations, "checkpointed": again}
    settings = training_settings(replace(MODEL, path=str(base)), **own)
    return without_dropout(load_for_training(auto_class, settings)), encoder


def first_rows(world, track, encoder):
    """A batch that every model of a track can be asked: four rows, of which some have pictures in mm."""
    drawn = pairs(data_of(world), ["forget"], modality="both" if track == "mm" else "text")
    collate = PassCollator(encoder, ["forget"], [], by_length=True)
    return collate([drawn[key] for key in range(4)])["trained"][0]


@torch.no_grad()
def says(model, batch):
    """What a model gives for a batch in eval mode."""
    was = model.training
    model.eval()
    given = forward(model, batch).logits
    model.train(was)
    return given.float().clone()


class KilledError(BaseException):
    """Ends a training at once."""


def run_case(track, name, base, world, folder, *, batch_size, settings=SETTINGS, at_step=None, say=str):
    """Train a case on eight rows; `batch_size`: rows of a step on each process.

    `at_step(trainer, step)` is called before each step.
    """
    from transformers import TrainerCallback

    forget_settings_of_launch()
    case = CASES[name]
    network, encoder = loaded(track, case, base)
    start = Start(network, forward, partial(save, encoder.processor))
    bound = bind(case.method)
    few = Few(pairs(data_of(world), bound.batches, modality="both" if track == "mm" else "text"), ROWS)

    class AtStep(TrainerCallback):
        def __init__(self, trainer):
            self.trainer = trainer

        def on_step_begin(self, args, state, control, **_):
            at_step(self.trainer, state.global_step)

    made = LossTrainer.__init__

    def watched(self, *args, **options):
        made(self, *args, **options)
        if at_step:
            self.add_callback(AtStep(self))

    LossTrainer.__init__ = watched
    try:
        parts = ACCUMULATION[track]
        own = replace(settings, batch_size=batch_size // parts, accumulation=parts, lora=case.lora)
        train_module.train(start, bound, few, encoder, own, seed=0, save_dir=str(folder), record={}, say=say)
    finally:
        LossTrainer.__init__ = made


# ---- what one of the processes does


def shows_picture(items, name) -> bool:
    """Whether a pass of a batch has a picture."""
    return any(example.image is not None for item in items for example in item[name])


@contextlib.contextmanager
def pictures_watched() -> Iterator[list[list[bool]]]:
    """For each step of this process which of its trained passes show a picture."""
    seen: list[list[bool]] = []
    collate = PassCollator.__call__

    def watched(self, items):
        seen.append([shows_picture(items, name) for name in self.trained])
        return collate(self, items)

    PassCollator.__call__ = watched
    try:
        yield seen
    finally:
        PassCollator.__call__ = collate


def train_case(job: dict[str, Any], track: str, name: str) -> None:
    """Train a case, look at its wrapper, and write what its model said last, as it was still in parts."""
    folder = Path(job["folder"], track, name)
    base, world = job["bases"][track], job["world"]
    wrappers: set[str] = set()
    _, encoder = opened(track, base)
    batch = first_rows(world, track, encoder)
    make_whole, said_last = train_module.make_whole, []

    def look(trainer, step):
        wrappers.add(engaged(trainer))

    def ask_first(*given):
        said_last.append(says(given[0], batch))
        make_whole(*given)

    train_module.make_whole = ask_first
    try:
        with pictures_watched() as seen:
            run_case(track, name, base, world, folder, batch_size=2, at_step=look)
    finally:
        train_module.make_whole = make_whole
    assert wrappers == {job["backend"]}, f"{wrappers} in place of {job['backend']}"
    (one, other), rank = gather_object([seen]), processes().process_index
    if track == "mm":
        assert any(a != b for a, b in zip(one, other, strict=True)), "both processes always see pictures or none"
    if rank == 0:
        torch.save(said_last[0], folder / "said_last.pt")


def resume_case(job: dict[str, Any], track: str, name: str) -> None:
    """Kill a training before its third step, and run it again."""
    folder = Path(job["folder"], track, f"{name}_resumed")
    settings = replace(SETTINGS, save_every="1step")
    given = {"batch_size": 2, "settings": settings}

    def kill(trainer, step):
        if step == 2:
            raise KilledError

    with contextlib.suppress(KilledError):
        run_case(track, name, job["bases"][track], job["world"], folder, at_step=kill, **given)
    processes().wait_for_everyone()
    lines: list[str] = []
    run_case(track, name, job["bases"][track], job["world"], folder, say=lines.append, **given)
    if processes().is_main_process:
        assert any("going on from step 2" in line for line in lines), lines


def bytes_of(tensors) -> int:
    """What this process holds of tensors; of a parted one its part."""
    own = (each.to_local() if isinstance(each, DTensor) else each for each in tensors)
    return sum(each.numel() * each.element_size() for each in own)


def in_use(model) -> int:
    """What this process holds now of weights that others have a part of, too: those that are gathered for a pass."""
    weights = [each for each in model.parameters() if not isinstance(each, DTensor)]
    return sum(each.numel() * each.element_size() for each in weights)  # of ZeRO-3 the others are empty


class Held:
    """Bytes that this process holds of each part of what a training needs: the most that is seen of each."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.most = dict.fromkeys(("weights", "used", "gradients", "bucket", "optimizer", "reference", "used_of_it"), 0)
        self.zero = getattr(trainer.optimizer.optimizer, "ipg_buckets", None) and trainer.optimizer.optimizer
        for model, name in ((trainer.model, "used"), (trainer.reference.copy, "used_of_it")):
            for module in model.modules():
                module.register_forward_hook(lambda *_, model=model, name=name: self.note(name, in_use(model)))
        for weight in trainer.model.parameters():
            weight.register_hook(lambda *_: self.note("bucket", bytes_of(self.buckets())))
        optimizer = self.zero or trainer.optimizer
        step = optimizer.step

        def noted(*given, **named):
            self.note("gradients", bytes_of(self.gradients()))
            result = step(*given, **named)
            self.note("optimizer", bytes_of(self.moments()))
            return result

        optimizer.step = noted
        self.note("weights", bytes_of(self.parts(trainer.model)))
        self.note("reference", bytes_of(self.parts(trainer.reference.copy)))

    def note(self, part, count):
        self.most[part] = max(self.most[part], count)

    def parts(self, model):
        """What stays of a model between passes."""
        return [each.ds_tensor if hasattr(each, "ds_tensor") else each for each in model.parameters()]

    def buckets(self):
        """In which DeepSpeed sums gradients."""
        kept = [bucket.buffer for bucket in self.zero.ipg_buckets.values()] if self.zero else []
        return [each for found in kept for each in (found if isinstance(found, list) else [found])]

    def gradients(self):
        if self.zero is None:
            return [each.grad for each in self.trainer.model.parameters() if each.grad is not None]
        whole = getattr(self.zero, "grad_partitions_flat_buffer", None)
        return [each for own in self.zero.averaged_gradients.values() for each in own] if whole is None else [whole]

    def moments(self):
        """The state of the optimizer, and the fp32 weights that DeepSpeed keeps beside."""
        inner = self.zero.optimizer if self.zero else self.trainer.optimizer
        found = [value for own in inner.state.values() for value in own.values() if torch.is_tensor(value)]
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
            found += getattr(self.zero, name, [])
        return found


def hold_case(job: dict[str, Any], track: str, name: str) -> None:
    """Train a case, and write what each process held of it."""
    seen: list[Held] = []

    def watch(trainer, step):
        if step == 1:  # the reference is there
            seen.append(Held(trainer))

    folder = Path(job["folder"], track, f"{name}_held")
    run_case(track, name, job["bases"][track], job["world"], folder, batch_size=2, at_step=watch)
    (folder / f"held_{processes().process_index}.json").write_text(json.dumps(seen[0].most))


def evaluate_base(job: dict[str, Any], track: str) -> None:
    """Evaluate the base model of a track as its recipe does."""
    evaluate_model(job["bases"][track], track, job["evaluation"], Path(job["folder"], f"evaluated_{track}"))


def evaluate_model(base, track, overrides, folder):
    import mm.encoder
    import mm.eval
    import nlp.encoder
    import nlp.eval
    from engine.evaluate import evaluate, read_tasks

    forget_settings_of_launch()
    recipe, kind = (mm.eval, mm.encoder) if track == "mm" else (nlp.eval, nlp.encoder)
    settings = recipe.main.compose([f"model_path={base}", f"save_dir={folder}", *overrides])
    tasks = read_tasks(settings, settings.seed, settings.fold)
    encoder = kind.open_encoder(settings.model_path, settings.model)
    evaluate(kind.open_model(settings.model_path, settings.model), encoder, tasks, settings, facts={}, say=str)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    faulthandler.dump_traceback_later(job["seconds"], exit=True)  # a hang says where it is, and fails
    assert processes().num_processes == 2
    if job["backend"] == "fsdp2":
        import pytest

        engage_fsdp2(pytest.MonkeyPatch())
    for kind, *case in job["parts"]:
        {"train": train_case, "resume": resume_case, "hold": hold_case, "evaluate": evaluate_base}[kind](job, *case)
    end_processes()


if __name__ == "__main__":
    main()
