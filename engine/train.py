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

from engine.frozen_start import Start, silence_dropout
from engine.language_model import subtract_update, trained_weights
from engine.loss_trainer import LossTrainer, MultiplierCallback
from engine.methods import BoundLoss
from engine.pairs import PassCollator
from engine.record import (
    TRAIN_RECORD,
    peak_memory_gb,
    report_progress,
    say_line,
    start_of_peak,
    write_record,
    written_whole,
)
from engine.start_checks import rows_to_check
from settings.script import SettingsError, processes
from settings.training import Method, Trainer

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
        wrapped = model.__dict__.pop("forward", None)  # the trainer's, with autocast; the class's own is below it
        model.eval()
        try:
            self.results.append(self.judge(model))
        finally:
            model.train()
            if wrapped:
                model.forward = wrapped
        self.seconds += time.perf_counter() - started
        figures = ", ".join(f"{task} {means['Exact Memorization']:.2f}" for task, means in self.results[-1].items())
        self.say(f"  exact memorization on the validation fold: {figures}")


class TrainProgress(TrainerCallback):
    """A line per epoch, in plain text, how far each step is, and its loss for the curve."""

    def __init__(self, say: Callable[[str], None]):
        self.say, self.started = say, time.perf_counter()
        self.losses: list[tuple[int, float]] = []  # (step, loss)
        self.first_gradient: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append((state.global_step, logs["loss"]))
            if self.first_gradient is None:
                self.first_gradient = logs.get("grad_norm")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        report_progress(state.global_step, state.max_steps)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = f", loss {self.losses[-1][1]:.4f}" if self.losses else ""
        seconds = time.perf_counter() - self.started
        self.say(f"epoch {round(state.epoch)}/{args.num_train_epochs:g}{last}, {seconds:.0f} s")


def training_arguments(trainer: Trainer, seed: int, scratch: str) -> TrainingArguments:
    """The Hugging Face arguments that our settings stand for.

    `scratch` is where the library may write, which it does not.
    """
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
        report_to=trainer.report_to,
        logging_steps=1,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        # running statistics of faces stay each process's own
        ddp_broadcast_buffers=False,
        dataloader_pin_memory=torch.cuda.is_available(),
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

    Raises:
        SettingsError: the training diverged.
    """
    start_of_peak()
    transformers.set_seed(seed)
    progress = TrainProgress(say)
    if bound.frozen or bound.cached:
        silence_dropout(start.model)
    first_weights = weights_to_subtract_from(start.model, bound.method, settings)
    with tempfile.TemporaryDirectory() as scratch:  # the library makes its output folder at once; ours must be whole
        collator = PassCollator(encoder, bound.trained, bound.frozen, by_length=processes().num_processes == 1)
        options = {"train_dataset": pairs, "data_collator": collator, "callbacks": [progress]}
        arguments = training_arguments(settings, seed, scratch)
        trainer = LossTrainer(start, bound, settings, seed=seed, args=arguments, **options)
        trainer.remove_callback(transformers.PrinterCallback)
        check_before_training(trainer, start, pairs, encoder, say)
        started = time.perf_counter()
        judged = prepare(trainer, pairs, encoder, each_epoch, say)
        trained = run(trainer, first_weights, settings)
        seconds = time.perf_counter() - started - judged.seconds
    say_if_vanished(progress.first_gradient, bound.method.name, say)
    cost = cost_of(trainer, progress, judged, seconds)
    if trainer.is_world_process_zero():
        with written_whole(Path(save_dir)) as aside:
            start.save(trained, aside)
            write_record(aside / TRAIN_RECORD, **{"seed": seed, **record, **cost})
    trainer.accelerator.wait_for_everyone()


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
        raise SettingsError(f"trainer.deterministic=true: {str(error).splitlines()[0]}") from None
    finally:
        torch.use_deterministic_algorithms(before)


def run(trainer: LossTrainer, first_weights: dict[str, Tensor], settings: Trainer) -> nn.Module:
    """Train, and subtract what was learned where the method says so; returns the trained model, unwrapped.

    `first_weights`: what `weights_to_subtract_from` gives. Raises SettingsError where the weights diverged.
    """
    with deterministic_kernels(settings.deterministic):
        trainer.train()
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if not all(torch.isfinite(weight).all() for weight in trained_weights(trained).values()):
        trainer.stop("the weights are not finite", "the last step's update")
    if task_vector := trainer.bound.method.task_vector:
        subtract_update(trained, first_weights, task_vector.step)
    return trained


def cost_of(trainer: LossTrainer, progress: TrainProgress, judged: EachEpoch, seconds: float) -> dict[str, Any]:
    """What the record says of a finished training: its cost, the loss of every step, how its epochs were judged."""
    cost: dict[str, Any] = {"seconds": seconds, "steps": trainer.state.global_step, "peak_memory_gb": peak_memory_gb()}
    cost |= {"loss": progress.losses, **token_counts(trainer, seconds, progress.say)}
    if trainer.bound.method.multiplier:
        cost["multiplier"] = trainer.multiplier
    if judged.judge:
        best = judged.judge.best(judged.results)
        cost |= {"epochs": judged.results, "best_epoch": best, "epoch_eval_seconds": judged.seconds}
    return cost


def weights_to_subtract_from(model: nn.Module, method: Method, settings: Trainer) -> dict[str, Tensor]:
    """theta0 by name, for a task vector of the model's own weights; under LoRA the update stands by itself."""
    if not method.task_vector or settings.lora:
        return {}
    return {name: weight.detach().clone() for name, weight in trained_weights(model).items()}


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
    """Run the checks of `start` on two rows. Raises SettingsError."""
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
    if method.mask:
        trainer.hold_all_but(method.mask, pairs, encoder)
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
