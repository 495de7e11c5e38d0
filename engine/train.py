"""The one training loop: a loss bound to its passes, run over pairs by the Hugging Face trainer on accelerate."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from engine.checkpoints import Checkpoints, Metrics, check_room
from engine.combine_step import train_parts
from engine.edit_step import edit
from engine.folders import written_whole
from engine.frozen_start import Start, silence_dropout
from engine.gradient_step import without_autocast
from engine.hook_step import keep_hook
from engine.init_step import begin_adapters
from engine.language_model import merged, subtract_update, trained_weights
from engine.loss_trainer import LossTrainer, MultiplierCallback
from engine.mask_step import hold_all_but
from engine.methods import BoundLoss
from engine.own_answers import answer_as_the_start
from engine.pairs import PassCollator
from engine.parted import PLAIN, check_parts, check_whole, check_whole_weights, make_whole, name_layers, shapes_of
from engine.progress import Work
from engine.record import (
    METRICS,
    TRAIN_RECORD,
    peak_memory_gb,
    say_line,
    start_of_peak,
    write_record,
)
from engine.start_checks import rows_to_check
from engine.trace_step import train_traced_alone
from engine.tracking import Log, run_of, tracked
from engine.unshown import UnshownSteps, has_unshown_steps
from settings.script import SettingsError, first_line, processes
from settings.training import Method, Trainer

MOST_WORKERS = 4
FROM_WORKER = "in DataLoader worker process"  # what torch says of an error that it hands on
VANISHING = 1e-5  # a first gradient below this norm is rounding


class EachEpoch(TrainerCallback):
    """Has the model judged at the end of every epoch, as it would be saved: in eval mode, without the trainer's
    autocast.
    """

    def __init__(self, trainer: LossTrainer, judge: Any, say: Callable[[str], None]):
        """`judge`: what `train` calls each_epoch."""
        self.trainer, self.judge, self.say = trainer, judge, say
        self.results: list[dict[str, dict[str, float]]] = []
        self.seconds = 0.0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        started = time.perf_counter()
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        model.eval()
        try:
            with without_autocast(model):
                self.results.append(self.judge(model))
        finally:
            model.train()
        self.seconds += time.perf_counter() - started
        figures = ", ".join(f"{task} {means['Exact Memorization']:.2f}" for task, means in self.results[-1].items())
        self.say(f"  exact memorization on the validation fold: {figures}")

    def state(self) -> dict[str, Any]:
        return {"results": self.results, "seconds": self.seconds}

    def go_on(self, state: dict[str, Any]) -> None:
        self.results, self.seconds = state["results"], state["seconds"]


class TrainProgress(TrainerCallback):
    """A line per epoch, in plain text, how far each step is, and its loss for the curve."""

    def __init__(self, say: Callable[[str], None]):
        self.say, self.started = say, time.perf_counter()
        self.losses: list[tuple[int, float]] = []  # (step, loss)
        self.first_gradient: float | None = None
        self.trainer: LossTrainer | None = None
        self.works = contextlib.ExitStack()  # what is open while the training runs: `steps`
        self.begun: tuple[float, float] | None = None  # moment and tokens after this attempt's first step

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        steps = Work("step", state.max_steps, about=self.loss_and_speed, say=self.say)
        self.steps = self.works.enter_context(steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append((state.global_step, logs["loss"]))
            if self.first_gradient is None:
                self.first_gradient = logs.get("grad_norm")
            if self.begun is None:  # the first step takes longer than the others
                self.begun = (time.perf_counter(), self.tokens())
            self.steps.at(state.global_step)

    def tokens(self) -> float:
        """Those of this process so far; 0 where there are none."""
        return float(self.trainer.tokens) if self.trainer else 0.0

    def loss_and_speed(self) -> str:
        """The last loss, and the tokens of this process in a second, where there are any."""
        assert self.begun is not None  # a line is made of a step
        moment, tokens = self.begun
        counted = self.tokens() - tokens
        loss = [f"loss {self.losses[-1][1]:.4f}"] if self.losses else []
        rate = [f"{counted / (time.perf_counter() - moment):.0f} tokens/s"] if counted else []
        return ", ".join(loss + rate)

    def state(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self.started
        return {"losses": self.losses, "first_gradient": self.first_gradient, "seconds": seconds}

    def go_on(self, state: dict[str, Any]) -> None:
        self.losses = [(step, loss) for step, loss in state["losses"]]
        self.first_gradient = state["first_gradient"]
        self.started -= state["seconds"]

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = f", loss {self.losses[-1][1]:.4f}" if self.losses else ""
        seconds = time.perf_counter() - self.started
        self.say(f"epoch {round(state.epoch)}/{args.num_train_epochs:g}{last}, {seconds:.0f} s")


def workers_of(trainer: Trainer) -> int:
    """How many processes make the batches of this one: those of the settings, or as many as a GPU should not wait for.

    Each keeps prompts of its own, up to the encoder's limit.
    """
    if trainer.workers >= 0:
        return trainer.workers
    if not torch.cuda.is_available():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(MOST_WORKERS, cores // processes().num_processes - 1))


def training_arguments(trainer: Trainer, seed: int, scratch: str) -> TrainingArguments:
    """The Hugging Face arguments that our settings stand for.

    `scratch` is where the library may write, which it does not.
    """
    workers = workers_of(trainer)
    if workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else the library warns of each process
    arguments = TrainingArguments(
        output_dir=scratch,
        num_train_epochs=trainer.epochs,
        per_device_train_batch_size=trainer.batch_size,
        gradient_accumulation_steps=trainer.accumulation,
        learning_rate=trainer.lr,
        weight_decay=trainer.weight_decay,
        warmup_steps=trainer.warmup_ratio,  # a share of the steps, made a number in create_scheduler
        lr_scheduler_type=trainer.schedule,
        max_grad_norm=trainer.max_grad_norm,
        optim=trainer.optimizer,
        bf16=trainer.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",  # ours: engine.tracking
        logging_steps=1,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        # running statistics of faces stay each process's own
        ddp_broadcast_buffers=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=2 if workers else None,
        dataloader_persistent_workers=workers > 0,  # they keep the prompts that they have encoded
        logging_nan_inf_filter=False,  # else a diverged loss is recorded as 0
    )
    if trainer.precision == "fp32":
        arguments.mixed_precision = "no"  # else the user's accelerate configuration would decide
    if arguments.n_gpu > 1:
        # several GPUs take a launcher: DataParallel would part pictures and rows at different places
        arguments._n_gpu = 1
    return arguments


def train(
    start: Start,
    bound: BoundLoss,
    pairs: Any,
    encoder: Any,
    settings: Trainer,
    *,
    seed: int,
    save_dir: str,
    record: dict[str, Any],
    each_epoch: Any = None,
    say: Callable[[str], None] = say_line,
) -> None:
    """Train `start.model` in place and write it to `save_dir`, whole or not at all, with train_meta.json beside it.

    The loss is a mean over examples. Where an epoch's last step has fewer examples than the others, or micro-batches of
    different size, those examples weigh more (as in the library).

    Args:
        start: the model with its forward and its save.
        bound: the method's loss.
        pairs: what to draw, see engine.pairs.
        encoder: examples -> batches.
        settings: of the trainer.
        seed: of every draw.
        save_dir: the folder to write.
        record: what else to say of the run (settings, fingerprints).
        each_epoch: `each_epoch(model)` judges the model at the end of every epoch; `each_epoch.best(results)` says
            which epoch was best. Both go to the record. None: nobody judges.
        say: takes a line of progress.

    The same call goes on from the last checkpoint where an earlier one was interrupted.

    Raises:
        SettingsError: the training diverged, or the disk has no room.
        Stopped: a signal ended it, after a checkpoint.
    """
    if bound.trainings:
        assert each_epoch is None  # the settings refuse it
        where: dict[str, Any] = {"seed": seed, "save_dir": save_dir, "record": record, "say": say}
        return train_parts(start, bound, pairs, encoder, settings, train=train, **where)
    start_of_peak()
    transformers.set_seed(seed)
    check_room(start.model, save_dir, settings, own=4 if bound.rule and bound.rule.needs_retain else 0)
    if settings.lr == 0 and bound.loss:
        say("trainer.lr=0: no weight will change")
    progress = TrainProgress(say)
    if bound.frozen or bound.cached:
        silence_dropout(start.model)
    kernels = deterministic_kernels(settings.deterministic)
    # the library makes its output folder at once; ours must be whole
    with kernels, tempfile.TemporaryDirectory() as scratch:
        alone = processes().num_processes == 1
        collator = PassCollator(encoder, bound.trained, bound.compared, by_length=alone, told=bound.told)
        options = {"train_dataset": pairs, "data_collator": collator, "callbacks": [progress]}
        arguments = training_arguments(settings, seed, scratch)
        trainer = LossTrainer(start, bound, settings, seed=seed, args=arguments, **options)
        check_parts(trainer.accelerator, settings)
        of_training = {"each_epoch": bool(each_epoch), "is_part": bound.is_part}
        check_whole_weights(trainer.accelerator, bound.method, settings, **of_training)
        name_layers(trainer.accelerator, start.model)
        if trainer.accelerator.distributed_type not in PLAIN:
            collator.beside = pairs.a_picture_row()
        if has_unshown_steps(trainer, pairs):
            trainer.add_callback(UnshownSteps(trainer))
        trainer.remove_callback(transformers.PrinterCallback)
        progress.trainer = trainer
        if bound.method.visual:  # before rows are drawn, which it makes whole
            answer_as_the_start(trainer, pairs, encoder, bound.method.visual.max_new_tokens)
        check_before_training(trainer, start, pairs, encoder, say)
        checkpoints = Checkpoints(trainer, save_dir, settings, record, say)
        judged = prepare(trainer, pairs, encoder, each_epoch, say)
        first_weights = weights_to_subtract_from(start.model, bound.method, settings)
        with checkpoints.kept_only_with_use(), checkpoints.signals_heard():
            last = follow(trainer, checkpoints, {"progress": progress, "judged": judged})
            with (
                steps_tracked(trainer, settings, Path(save_dir), record, last),
                progress.works,
                workers_of_run(trainer),
            ):
                trained = run(trainer, first_weights, last)
            say_if_vanished(progress.first_gradient, bound.method.name, say)
            cost = cost_of(trainer, progress, judged, checkpoints)
            if trainer.is_world_process_zero():
                write(start, trained, Path(save_dir), {"seed": seed, **record, **cost}, checkpoints)
            trainer.accelerator.wait_for_everyone()
            checkpoints.finish()
    if bound.is_part:
        checkpoints.stop_if_told()


@contextlib.contextmanager
def workers_of_run(trainer: LossTrainer) -> Iterator[None]:
    """The processes that make batches end with the training, also where an error or a signal ends it."""
    try:
        yield
    finally:
        trainer.end_workers()


def follow(trainer: LossTrainer, checkpoints: Checkpoints, parts: dict[str, Any]) -> str | None:
    """Have the training watched, and its parts put where the last checkpoint left them; returns that checkpoint."""
    metrics = Metrics(checkpoints)
    checkpoints.parts = {**parts, "metrics": metrics}
    trainer.checkpoints = checkpoints
    trainer.add_callback(metrics)
    trainer.add_callback(checkpoints)
    last = checkpoints.find()
    if last:
        checkpoints.go_on(last)
    metrics.begin()
    return str(last) if last else None


class TrackedSteps(TrainerCallback):
    """Sends every step's figures to a tracker."""

    def __init__(self, log: Log):
        self.log = log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.log({f"train/{name}": value for name, value in logs.items()}, state.global_step)


@contextlib.contextmanager
def steps_tracked(
    trainer: LossTrainer, settings: Trainer, save_dir: Path, record: dict[str, Any], last: str | None
) -> Iterator[None]:
    """Have the training tracked where the settings say so, by the name of its folder; `last`: what it goes on from."""
    first = int(Path(last).name.removeprefix("step_")) + 1 if last else 0
    run = run_of(save_dir)
    about: dict[str, Any] = {"job": "train", "first_step": first, "settings": record.get("settings")}
    with tracked(settings.report_to, run.parent, run.name, **about) as log:
        trainer.add_callback(TrackedSteps(log))
        yield


def write(start: Start, trained: nn.Module, folder: Path, facts: dict[str, Any], checkpoints: Checkpoints) -> None:
    """Write the trained model, its record and its curve to `folder`, whole or not at all."""
    with written_whole(folder, checkpoints.what_stays()) as aside:
        start.save(trained, aside)
        checkpoints.parts["metrics"].write(aside / METRICS)
        write_record(aside / TRAIN_RECORD, **facts)


@contextlib.contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Let torch choose only kernels that give the same bits for the same input, where `wanted`.

    Raises SettingsError where an operation has no such kernel.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA's matrix products need for it
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise SettingsError(f"trainer.deterministic=true: {first_line(error)}") from None
    finally:
        torch.use_deterministic_algorithms(before)


def run(trainer: LossTrainer, first_weights: dict[str, Tensor], last: str | None = None) -> nn.Module:
    """Train, and subtract what was learned where the method says so; returns the trained model, unwrapped.

    `first_weights`: what `weights_to_subtract_from` gives. `last`: the checkpoint to go on from.
    Raises SettingsError where the weights diverged.
    """
    shapes = shapes_of(trainer.model)
    if trainer.bound.loss:
        try:
            trainer.train(resume_from_checkpoint=last)
        except SettingsError as error:
            if FROM_WORKER not in str(error):
                raise
            raise SettingsError(line_of_worker(error)) from None
    trained = trainer.accelerator.unwrap_model(trainer.model)
    make_whole(trained)
    check_whole(trained, shapes, trainer.is_world_process_zero())
    finite = all(torch.isfinite(weight).all() for weight in trained_weights(trained).values())
    if not all(gather_object([finite])):  # after `make_whole` the first process alone may have the weights
        trainer.stop("the weights are not finite", "the last step's update")
    task_vector = trainer.bound.method.task_vector
    if task_vector and trainer.is_world_process_zero():  # who writes the model
        subtract_update(trained, first_weights, task_vector.step)
    # what an adapter adds is then not what was learned, and nobody is to add it to the start
    begun = trainer.bound.method.init and trainer.is_world_process_zero()
    return merged(trained) if begun else trained


def line_of_worker(error: SettingsError) -> str:
    """What an error of a worker says, without the traceback that torch puts before it."""
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()


def cost_of(
    trainer: LossTrainer, progress: TrainProgress, judged: EachEpoch, checkpoints: Checkpoints
) -> dict[str, Any]:
    """What the record says of a finished training: its cost in all attempts, the loss of every step, how its epochs
    were judged.
    """
    seconds = checkpoints.seconds - judged.seconds
    cost: dict[str, Any] = {"seconds": seconds, "steps": trainer.state.global_step}
    cost["peak_memory_gb"] = max(checkpoints.peak, peak_memory_gb())
    if progress.losses:  # else nothing trained
        cost |= {"figure": f"loss {progress.losses[-1][1]:.4f}", "loss": progress.losses}
    cost |= {**trainer.edited, **token_counts(trainer, seconds, progress.say)}
    if trainer.bound.method.multiplier:
        cost["multiplier"] = trainer.multiplier
    if judged.judge:
        best = judged.judge.best(judged.results)
        cost |= {"epochs": judged.results, "best_epoch": best, "epoch_eval_seconds": judged.seconds}
    return cost


def weights_to_subtract_from(model: nn.Module, method: Method, settings: Trainer) -> dict[str, Tensor]:
    """theta0 by name, for a task vector of the model's own weights; under LoRA the update stands by itself.

    It is taken after an edit, which is not what the training learned, and waits in main memory.
    """
    if not method.task_vector or settings.lora:
        return {}
    return {name: weight.detach().to("cpu", copy=True) for name, weight in trained_weights(model).items()}


def say_if_vanished(first_gradient: float | None, method: str, say: Callable[[str], None]) -> None:
    """Say so where the first step's gradient was rounding, as at p = p0 where a KL term stands alone."""
    if first_gradient is not None and first_gradient < VANISHING:
        say(
            f"the first step's gradient vanished (norm {first_gradient:.1e}): where it starts {method} "
            "has no direction, what moved is rounding"
        )


def check_before_training(
    trainer: LossTrainer, start: Start, pairs: Any, encoder: Any, say: Callable[[str], None]
) -> None:
    """Run the checks of `start` on up to four rows. Raises SettingsError."""
    if start.check is None or start.check_silent is None:
        return
    rows = rows_to_check(pairs)
    with trainer.accelerator.autocast():
        start.check(trainer.model, encoder, rows, start.forward, say)
        if trainer.bound.frozen or trainer.bound.cached:
            start.check_silent(trainer.model, encoder, rows, start.forward, say)


def prepare(trainer: LossTrainer, pairs: Any, encoder: Any, each_epoch: Any, say: Callable[[str], None]) -> EachEpoch:
    """What a method's steps do before the first update; returns who judges the epochs."""
    method = trainer.bound.method
    if trainer.bound.cached:
        trainer.keep_start_logprobs(pairs, encoder)
    if method.trace:
        trainer.edited = train_traced_alone(trainer, method.trace, pairs, encoder)
        say(f"{method.name}: of the decoder's MLPs those of layers {trainer.edited['traced_layers']} train")
    if method.edit:
        trainer.edited = edit(trainer, pairs, encoder)
        say(f"{method.name}: the edit changes {trainer.edited['edited']:.1%} of what it looks at")
    if method.hook:
        trainer.edited = keep_hook(trainer, pairs, encoder)
        far = f"{trainer.edited['steered_forget']:.2f} of the way, retain rows {trainer.edited['steered_retain']:.2f}"
        say(f"{method.name}: a hook beside the weights steers forget rows {far}; the weights forget nothing")
    if method.init:
        trainer.edited = begin_adapters(trainer, pairs, encoder)
        say(f"{method.name}: {trainer.edited['begun']:.0%} of the adapters begin with weights of the start")
    if method.mask:
        share = hold_all_but(trainer, method.mask, pairs, encoder)
        say(f"{method.name}: the mask lets {share:.1%} of the trained weights move")
    if trainer.looks_coarsely:
        say(
            f"{method.name}: the weights beside the adapter are in bf16, whose rounding hides most of the way that the "
            "forget gradient is taken up; model.weights=float32 shows it"
        )
    if method.multiplier:
        trainer.add_callback(MultiplierCallback(trainer))
    judged = EachEpoch(trainer, each_epoch, say)
    if each_epoch:
        trainer.add_callback(judged)
    return judged


def token_counts(trainer: LossTrainer, seconds: float, say: Callable[[str], None]) -> dict[str, float]:
    """Tokens per second and the share of padding, for the record; nothing for pictures of faces, which are no
    tokens.
    """
    tokens = sum(gather_object([float(trainer.tokens)]))
    places = float(trainer.places)
    if not places:
        return {}
    padding = 1 - float(trainer.tokens) / places
    say(f"{tokens / seconds:.0f} tokens a second, {padding:.0%} of all places padding")
    return {"tokens_per_second": tokens / seconds, "padding": padding}
