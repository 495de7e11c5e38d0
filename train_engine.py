"""The one training loop: a loss bound to its passes, run over pairs by the Hugging Face trainer on accelerate."""

import inspect
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainingArguments

import unlearn_losses
from data_module import EpochSampler, PassCollator
from model_module import FrozenStart, save, score
from run_record import TRAIN_RECORD, peak_memory_gb, say_line, start_of_peak, versions, write_json, written_whole
from run_settings import Method, SettingsError, Trainer, nearest

PASSES = ("forget", "retain", "idk")


@dataclass(frozen=True)
class BoundLoss:
    """A loss with its hyperparameters: `loss(**{pass: Scored})`; `ref_` passes are scored by the frozen starting model."""

    loss: Callable[..., Tensor]
    passes: list[str]

    @property
    def batches(self) -> list[str]:
        """The batches to draw: the passes without `ref_`, each once."""
        return list(dict.fromkeys(name.removeprefix("ref_") for name in self.passes))

    @property
    def needs_reference(self) -> bool:
        return any(name.startswith("ref_") for name in self.passes)


def known_losses() -> dict[str, Callable[..., Tensor]]:
    """The functions of unlearn_losses whose positional parameters are all passes."""
    functions = {n: f for n, f in vars(unlearn_losses).items() if inspect.isfunction(f) and f.__module__ == "unlearn_losses"}
    return {n: f for n, f in functions.items() if (passes := positional(f)) and {p.removeprefix("ref_") for p in passes} <= set(PASSES)}


def positional(loss: Callable) -> list[str]:
    return [p.name for p in inspect.signature(loss).parameters.values() if p.kind is not p.KEYWORD_ONLY]


# taken at the start: read later, it would be the text of a file that was edited while the old code ran
LOSS_SOURCES = {name: inspect.getsource(loss) for name, loss in known_losses().items()}


def bind(method: Method) -> BoundLoss:
    """Look up a method's loss and give it its hyperparameters.

    Raises SettingsError for an unknown loss and for hyperparameters that are not exactly the loss's own.
    """
    losses = known_losses()
    if method.loss not in losses:
        raise SettingsError(f"method.loss={method.loss!r} is not in unlearn_losses.py{nearest(method.loss, losses)}; choose from {', '.join(losses)}")
    loss = losses[method.loss]
    wanted = [p.name for p in inspect.signature(loss).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(method.args) - set(wanted)):
        raise SettingsError(f"method.args.{unknown[0]} is not a hyperparameter of {method.loss}{nearest(unknown[0], wanted)}; it has {wanted}")
    if missing := [name for name in wanted if name not in method.args]:
        raise SettingsError(f"method.args.{missing[0]} is required by {method.loss}; it has {wanted}")
    for name, value in method.args.items():
        if inspect.signature(loss).parameters[name].annotation is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise SettingsError(f"method.args.{name}={value!r} must be a number")
    return BoundLoss(partial(loss, **method.args), positional(loss))


class LossTrainer(transformers.Trainer):
    """Hugging Face's trainer with a bound loss in place of the model's own."""

    def __init__(self, bound: BoundLoss, reference: FrozenStart | None, seed: int, **options: Any):
        super().__init__(**options)
        self.bound, self.reference, self.draw_seed = bound, reference, seed
        # super().__init__ overwrites the class attribute; left true, the loss is not divided by the accumulation steps
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return EpochSampler(len(self.train_dataset), self.draw_seed)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        # the library would round a share up, and a run of one step would have no step but the one at rate 0
        if self.args.warmup_steps < 1:
            self.args.warmup_steps = round(self.args.warmup_steps * num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def floating_point_ops(self, inputs: dict) -> int:
        return 0  # the library's estimate looks for one flat batch; cost is measured in seconds instead

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None) -> Tensor:
        scored = {name: score(model, inputs[name]) for name in self.bound.passes if not name.startswith("ref_")}
        if self.reference is not None:
            # the library puts autocast into the forward of the model it trains only; the reference must be computed as that one is
            with self.reference.model(self.accelerator.unwrap_model(model)) as frozen, self.accelerator.autocast():
                scored |= {name: score(frozen, inputs[name.removeprefix("ref_")]) for name in self.bound.passes if name.startswith("ref_")}
        loss = self.bound.loss(**scored)
        if isinstance(model, DistributedDataParallel):
            # a batch without pictures leaves the vision tower without a gradient, which DDP waits for: give it a zero one
            loss = loss + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)
        return loss


class Progress(TrainerCallback):
    """A line an epoch, in plain text, and the loss of every step for the curve."""

    def __init__(self, describe: Callable[[str], None]):
        self.describe, self.losses, self.started = describe, [], time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append((state.global_step, logs["loss"]))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = f", loss {self.losses[-1][1]:.4f}" if self.losses else ""
        self.describe(f"epoch {round(state.epoch)}/{args.num_train_epochs:g}{last}, {time.perf_counter() - self.started:.0f} s")


def training_arguments(trainer: Trainer, seed: int, scratch: str) -> TrainingArguments:
    """The Hugging Face arguments that our settings stand for; `scratch` is where the library may write, which it does not."""
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
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_nan_inf_filter=False,  # else a diverged loss is recorded as 0
    )
    if trainer.precision == "fp32":
        arguments.mixed_precision = "no"  # else the user's accelerate configuration would decide
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several GPUs take a launcher: DataParallel would part pictures and rows at different places
    return arguments


def train(
    model: nn.Module,
    bound: BoundLoss,
    pairs: Any,
    encoder: Any,
    settings: Trainer,
    seed: int,
    save_dir: str,
    record: dict[str, Any],
    say: Callable[[str], None] = say_line,
) -> None:
    """Train `model` in place on `pairs` and write it to `save_dir`, whole or not at all, with train_meta.json beside the weights.

    `record` is what else to say of the run (settings, fingerprints). The loss is a mean over examples; where an epoch's last step has fewer
    examples than the others, or micro-batches of different size, those examples weigh more (as in the library).
    """
    start_of_peak()
    transformers.set_seed(seed)
    progress = Progress(say)
    reference = FrozenStart(model) if bound.needs_reference else None
    with tempfile.TemporaryDirectory() as scratch:  # the library makes its output folder at once; ours must not appear before it is whole
        trainer = LossTrainer(
            bound,
            reference,
            seed,
            model=model,
            args=training_arguments(settings, seed, scratch),
            train_dataset=pairs,
            data_collator=PassCollator(encoder),
            callbacks=[progress],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    if trainer.is_world_process_zero():
        with written_whole(Path(save_dir)) as aside:
            save(trainer.accelerator.unwrap_model(trainer.model), encoder.processor, aside)
            cost = {"seconds": seconds, "steps": trainer.state.global_step, "peak_memory_gb": peak_memory_gb(), "loss": progress.losses}
            write_json(aside / TRAIN_RECORD, {"seed": seed, **record, **cost, "versions": versions()})
    trainer.accelerator.wait_for_everyone()
