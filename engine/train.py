"""The one training loop: a loss bound to its passes, run over pairs by the Hugging Face trainer on accelerate."""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainingArguments

from data_module import Example
from engine.frozen_start import FrozenStart, Start, forward_passes, silence_dropout
from engine.language_model import l1_norm, packs, subtract_update, trained_weights
from engine.methods import BoundLoss, bind
from engine.pairs import Batch, EpochSampler, PassCollator, answer_key
from engine.record import (
    TRAIN_RECORD,
    peak_memory_gb,
    report_progress,
    say_line,
    start_of_peak,
    write_record,
    written_whole,
)
from settings.script import SettingsError, processes
from settings.training import Mask, Method, Trainer
from unlearn_losses import Scored, multiplier_step, nll, sequence_logprob

VANISHING = 1e-5  # a first gradient below this norm is rounding


class LossTrainer(transformers.Trainer):
    """Hugging Face's trainer with a bound loss in place of the model's own."""

    # always given; the library's own annotations allow None
    model: nn.Module
    train_dataset: Any

    def __init__(self, start: Start, bound: BoundLoss, settings: Trainer, *, seed: int, **options: Any):
        """`options`: those of the library's trainer."""
        super().__init__(model=start.model, **options)
        self.forward, self.bound, self.draw_seed = start.forward, bound, seed
        self.reference = FrozenStart(start.model, settings.precision) if bound.frozen else None
        self.l1 = settings.l1 + bound.method.l1
        self.bucket = settings.bucket
        self.start_logprobs: dict[int, float] = {}  # by answer_key
        self.epoch = 0  # of the step being taken
        self.multiplier = bound.method.multiplier.start if bound.method.multiplier else 0.0
        self.constraints: list[Tensor] = []  # retain NLL of each pass since the last optimizer step
        # of the trained passes on this process; they stay on the batches' device, so that nobody waits to count
        self.tokens: Tensor | float = 0.0
        self.places: Tensor | float = 0.0  # the same with the padding that the model computes
        # super().__init__ overwrites the class attribute; left true, the loss is not divided by the accumulation steps
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        lengths = self.train_dataset.leading.lengths if self.bucket else ()
        size = self.args.per_device_train_batch_size
        return EpochSampler(len(self.train_dataset), self.draw_seed, lengths, size, self.bucket)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        # the library would round a share up, and a run of one step would have no step but the one at rate 0
        if self.args.warmup_steps < 1:
            self.args.warmup_steps = round(self.args.warmup_steps * num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _prepare_input(self, data: Any) -> Any:
        # the library looks into mappings and lists only; under DeepSpeed it also gives pictures the weights' dtype
        if isinstance(data, Batch):
            moved = data.to(self.args.device)
            inputs: Any = super()._prepare_input(moved.inputs)
            return replace(moved, inputs=inputs)
        return super()._prepare_input(data)

    def floating_point_ops(self, inputs: dict) -> int:
        return 0  # the library's estimate looks for one flat batch; cost is measured in seconds instead

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of what a PassCollator made."""
        scored = forward_passes(model, inputs["trained"], self.forward)
        self.count_places(model, inputs["trained"])
        passes = {name: scored[name] for name in self.bound.trained} | self.reference_passes(model, inputs)
        loss = self.loss_of(passes)
        if self.l1:
            loss = loss + self.l1_penalty(model)
        if isinstance(model, DistributedDataParallel):
            # a batch without pictures leaves the vision tower without a gradient, which DDP waits for
            loss = loss + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)
        return loss

    def loss_of(self, passes: dict[str, Any]) -> Tensor:
        """The method's loss; ends the run where it is not finite."""
        self.epoch = int(self.state.epoch + 1e-6)  # the library's is a float that reaches 1 by small steps
        state = {"epoch": self.epoch, "step": self.state.global_step, "multiplier": self.multiplier}
        if self.bound.method.multiplier:
            state["target"] = self.bound.method.multiplier.target
            self.constraints.append(nll(passes["retain"]).detach())
        loss = self.bound(passes, **state)
        if not torch.isfinite(loss):
            broken = next((name for name, value in passes.items() if not is_finite(value)), None)
            why = f"the logits of its {broken} pass are not finite" if broken else "made of finite passes"
            self.stop(f"the loss is {loss.item()}", why)
        return loss

    def l1_penalty(self, model: nn.Module) -> Tensor:
        penalty = self.l1 * l1_norm(self.accelerator.unwrap_model(model))
        if not torch.isfinite(penalty):
            self.stop(f"the loss is {penalty.item()}", "its trainer.l1 penalty is not finite")
        return penalty

    def count_places(self, model: nn.Module, batches: list[Batch]) -> None:
        """Count the tokens of a step, and the places with padding that it computes; pictures of faces have neither."""
        for batch in batches:
            mask = batch.inputs.get("attention_mask")
            if mask is not None:
                tokens = mask.sum()
                self.tokens = self.tokens + tokens
                self.places = self.places + (tokens if packs(model, batch.inputs) else mask.numel())

    def reference_passes(self, model: nn.Module, inputs: dict[str, list[Batch]]) -> dict[str, Any]:
        """What the frozen start says of the batches.

        Log-probabilities come from the cache, distributions and hidden states from a pass of the start's own.
        """
        passes: dict[str, Any] = {}
        if self.reference:
            wanted = set(self.bound.frozen)
            batches = inputs["frozen"] or [batch for batch in inputs["trained"] if set(batch.passes) <= wanted]
            # the library puts autocast into the forward of the model that it trains, and the start must be computed
            # alike
            with self.reference.model(self.accelerator.unwrap_model(model)) as frozen, self.accelerator.autocast():
                scored = forward_passes(frozen, batches, self.forward)
            passes = {f"ref_{name}": scored[name] for name in self.bound.frozen}
        for name in self.bound.cached:
            batch = next(batch for batch in inputs["trained"] if name in batch.passes)
            values = [self.start_logprobs[key] for key in batch.keys_of(name)]
            passes[f"ref_{name}_logprob"] = torch.tensor(values, device=batch.labels.device)
        return passes

    def stop(self, what: str, term: str) -> NoReturn:
        """End a run that diverged, with one line on method, step and term."""
        where = f"method {self.bound.method.name}, step {self.state.global_step}: {what}; {term}"
        raise SettingsError(f"{where}. Nothing was written; a lower trainer.lr or weight may hold it")

    def keep_start_logprobs(self, pairs: Any, encoder: Any) -> None:
        """Score, once and as the start does, every answer whose log-probability under p0 the loss will ask for.

        Processes share the work. Each takes the same number of forwards: in a sharded run one that took fewer would
        leave the others waiting.
        """
        wanted = self.answers_to_score(pairs.pairs_for(self.bound.cached))
        size, count = self.args.per_device_train_batch_size, self.args.world_size
        shares = [wanted[rank::count] for rank in range(count)]
        own = shares[self.args.process_index]
        logprobs: list[float] = []
        self.model.eval()
        for first in range(0, len(shares[0]), size):  # the first share is the longest
            chosen = own[first : first + size] or own[-1:] or wanted[:1]
            batch = encoder.collate([encoder.encode(example) for _, example in chosen]).to(self.args.device)
            with torch.no_grad(), self.accelerator.autocast():
                logprobs += sequence_logprob(self.forward(self.model, batch)).tolist()
        found = [(key, value) for (key, _), value in zip(own, logprobs, strict=False)]  # beyond them: rows taken twice
        self.start_logprobs = dict(gather_object(found))

    def answers_to_score(self, pairs: Any) -> list[tuple[int, Example]]:
        """Every answer of the run with its key, once, those of like length together."""
        wanted: dict[int, Example] = {}
        for key in range(len(pairs) * math.ceil(self.args.num_train_epochs)):
            for examples in pairs[key].values():
                wanted |= {answer_key(example): example for example in examples}

        def by_length(item: tuple[int, Example]) -> tuple[bool, int]:
            _, example = item
            return example.image is not None, len(example.question) + len(example.answer)

        return sorted(wanted.items(), key=by_length)

    def hold_all_but(self, mask: Mask, pairs: Any, encoder: Any) -> None:
        """Let only the share of the weights move whose gradient of `mask.loss` over all forget rows is largest."""
        bound = bind(Method(name=mask.loss, loss=mask.loss))
        collator = PassCollator(encoder, bound.trained, [], by_length=True)  # one pass, so that nothing is shared
        own = pairs.pairs_for(bound.batches)
        self.model.eval()
        size = self.args.per_device_train_batch_size
        for first in range(0, len(own), size):
            items = [own[key] for key in range(first, min(first + size, len(own)))]
            batches = [batch.to(self.args.device) for batch in collator(items)["trained"]]
            with self.accelerator.autocast():
                loss = bound(forward_passes(self.model, batches, self.forward), epoch=0, step=0)
            (loss * len(items)).backward()
        weights = list(trained_weights(self.model).values())
        sizes = [torch.zeros_like(weight) if weight.grad is None else weight.grad.abs_() for weight in weights]
        for weight, moves in zip(weights, largest(sizes, mask.share), strict=True):
            weight.grad = None
            weight.register_hook(partial(torch.mul, moves))

    def move_multiplier(self) -> None:
        """After an optimizer step: the multiplier follows the retain NLL of that step, once the warm-up is over."""
        settings = self.bound.method.multiplier
        assert settings is not None  # else MultiplierCallback is not there
        constraint = torch.stack(self.constraints).mean()
        self.constraints.clear()
        if self.epoch >= settings.warmup_epochs:
            measured = self.accelerator.reduce(constraint, "mean").item()
            self.multiplier = multiplier_step(self.multiplier, measured, rate=settings.rate, target=settings.target)


def is_finite(scored: Scored | Tensor) -> bool:
    values = scored if isinstance(scored, Tensor) else scored.logits
    return bool(torch.isfinite(values).all())


def largest(values: list[Tensor], share: float) -> list[Tensor]:
    """Where the `share` of all entries stands that is largest, as bool masks; an entry of 0 is never among them."""
    flat = torch.cat([value.flatten() for value in values])
    least = flat.kthvalue(flat.numel() - max(1, round(share * flat.numel())) + 1).values
    return [(value >= least) & (value > 0) for value in values]


class MultiplierCallback(TrainerCallback):
    """Moves the multiplier of a method that has one after each optimizer step."""

    def __init__(self, trainer: LossTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.move_multiplier()


class EachEpoch(TrainerCallback):
    """Has the model judged at the end of every epoch, as it would be saved: in eval mode, without the trainer's
    autocast.
    """

    def __init__(self, trainer: LossTrainer, judge: Callable[[nn.Module], dict], say: Callable[[str], None]):
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
        arguments._n_gpu = (
            1  # several GPUs take a launcher: DataParallel would part pictures and rows at different places
        )
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
        which
            epoch was best. Both go to the record. None: nobody judges.
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
        started = time.perf_counter()
        judged = prepare(trainer, pairs, encoder, each_epoch, say)
        trainer.train()
        trained = trainer.accelerator.unwrap_model(trainer.model)
        if not all(torch.isfinite(weight).all() for weight in trained_weights(trained).values()):
            trainer.stop("the weights are not finite", "the last step's update")
        if bound.method.task_vector:
            subtract_update(trained, first_weights, bound.method.task_vector.step)
        seconds = time.perf_counter() - started - judged.seconds
    say_if_vanished(progress.first_gradient, bound.method.name, say)
    cost: dict[str, Any] = {"seconds": seconds, "steps": trainer.state.global_step, "peak_memory_gb": peak_memory_gb()}
    cost |= {"loss": progress.losses, **token_counts(trainer, seconds, say)}
    if bound.method.multiplier:
        cost["multiplier"] = trainer.multiplier
    if each_epoch:
        best = each_epoch.best(judged.results)
        cost |= {"epochs": judged.results, "best_epoch": best, "epoch_eval_seconds": judged.seconds}
    if trainer.is_world_process_zero():
        with written_whole(Path(save_dir)) as aside:
            start.save(trained, aside)
            write_record(aside / TRAIN_RECORD, **{"seed": seed, **record, **cost})
    trainer.accelerator.wait_for_everyone()


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
