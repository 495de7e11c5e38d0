"""The one training loop: a loss bound to its passes, run over pairs by the Hugging Face trainer on accelerate."""

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainingArguments

from engine.frozen_start import FrozenStart, silence_dropout
from engine.language_model import l1_norm, packs, save, score, score_passes, subtract_update, trained_weights
from engine.methods import BoundLoss, bind
from engine.pairs import EpochSampler, PassCollator, answer_key
from engine.record import TRAIN_RECORD, peak_memory_gb, say_line, start_of_peak, versions, write_json, written_whole
from settings.script import SettingsError
from settings.training import Mask, Method, Trainer
from unlearn_losses import Scored, multiplier_step, nll, sequence_logprob

Score = Callable[[nn.Module, dict[str, Tensor]], Scored]


VANISHING = 1e-5  # a first gradient below this norm is rounding


class LossTrainer(transformers.Trainer):
    """Hugging Face's trainer with a bound loss in place of the model's own; `score` makes Scored of a model and a batch."""

    def __init__(
        self,
        bound: BoundLoss,
        reference: FrozenStart | None,
        seed: int,
        settings: Trainer,
        score: Score = score,
        **options: Any,
    ):
        super().__init__(**options)
        self.bound, self.reference, self.draw_seed, self.score = bound, reference, seed, score
        self.l1, self.bucket = settings.l1 + bound.method.l1, settings.bucket
        self.start_logprobs: dict[int, float] = {}  # by answer_key
        self.epoch = 0  # of the step being taken
        self.multiplier = bound.method.multiplier.start if bound.method.multiplier else 0.0
        self.constraints: list[Tensor] = []  # retain NLL of each pass since the last optimizer step
        self.tokens: Tensor | float = (
            0.0  # of the trained passes, on this process; kept where the batches are, so that nobody waits to count
        )
        self.places: Tensor | float = 0.0  # the same with what padding the model computes
        # super().__init__ overwrites the class attribute; left true, the loss is not divided by the accumulation steps
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        lengths = self.train_dataset.leading.lengths if self.bucket else ()
        return EpochSampler(
            len(self.train_dataset), self.draw_seed, lengths, self.args.per_device_train_batch_size, self.bucket
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        # the library would round a share up, and a run of one step would have no step but the one at rate 0
        if self.args.warmup_steps < 1:
            self.args.warmup_steps = round(self.args.warmup_steps * num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def floating_point_ops(self, inputs: dict) -> int:
        return 0  # the library's estimate looks for one flat batch; cost is measured in seconds instead

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        scored = score_passes(model, inputs["trained"], self.score)
        for batch in inputs["trained"].values():
            if "attention_mask" in batch:  # pictures of faces are no tokens
                self.tokens = self.tokens + batch["attention_mask"].sum()
                self.places = self.places + (
                    batch["attention_mask"].sum() if packs(model, batch) else batch["attention_mask"].numel()
                )
        passes = {name: scored[name] for name in self.bound.trained} | self.reference_passes(model, inputs)
        self.epoch = int(self.state.epoch + 1e-6)  # the library's is a float that reaches 1 by small steps
        state = {"epoch": self.epoch, "step": self.state.global_step, "multiplier": self.multiplier}
        if self.bound.method.multiplier:
            state["target"] = self.bound.method.multiplier.target
            self.constraints.append(nll(scored["retain"]).detach())
        loss = self.bound(passes, **state)
        if not torch.isfinite(loss):
            broken = [
                name
                for name, value in passes.items()
                if not torch.isfinite(value if isinstance(value, Tensor) else value.logits).all()
            ]
            self.stop(
                f"the loss is {loss.item()}",
                f"the logits of its {broken[0]} pass are not finite" if broken else "made of finite passes",
            )
        if self.l1:
            penalty = self.l1 * l1_norm(self.accelerator.unwrap_model(model))
            if not torch.isfinite(penalty):
                self.stop(f"the loss is {penalty.item()}", "its trainer.l1 penalty is not finite")
            loss = loss + penalty
        if isinstance(model, DistributedDataParallel):
            # a batch without pictures leaves the vision tower without a gradient, which DDP waits for: give it a zero one
            loss = loss + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)
        return loss

    def reference_passes(self, model: nn.Module, inputs: dict) -> dict[str, Any]:
        """What the frozen start says of the batch: log-probabilities from the cache, distributions or hidden states from its own pass."""
        passes: dict[str, Any] = {}
        if self.bound.frozen:
            groups = inputs["frozen"] or {
                names: batch
                for names, batch in inputs["trained"].items()
                if set(names.split("+")) <= set(self.bound.frozen)
            }
            # the library puts autocast into the forward of the model it trains only; the reference must be computed as that one is
            with self.reference.model(self.accelerator.unwrap_model(model)) as frozen, self.accelerator.autocast():
                scored = score_passes(frozen, groups, self.score)
            passes = {f"ref_{name}": scored[name] for name in self.bound.frozen}
        for name in self.bound.cached:
            names, batch = next(
                (names, batch) for names, batch in inputs["trained"].items() if name in names.split("+")
            )
            place = names.split("+").index(name)
            start = sum(batch["sizes"][:place])
            keys = batch["keys"][start : start + batch["sizes"][place]]
            passes[f"ref_{name}_logprob"] = torch.tensor(
                [self.start_logprobs[key] for key in keys], device=batch["labels"].device
            )
        return passes

    def stop(self, what: str, term: str) -> NoReturn:
        """End a run that diverged, with one line on method, step and term."""
        where = f"method {self.bound.method.name}, step {self.state.global_step}: {what}; {term}"
        raise SettingsError(f"{where}. Nothing was written; a lower trainer.lr or weight may hold it")

    def keep_start_logprobs(self, pairs: Any, encoder: Any) -> None:
        """Score, once and as the start does, every answer whose log-probability under p0 the loss will ask for; processes share the work."""
        own = pairs.of(self.bound.cached)
        wanted = {
            answer_key(e): e
            for key in range(len(own) * math.ceil(self.args.num_train_epochs))
            for es in own[key].values()
            for e in es
        }
        wanted = sorted(
            wanted.items(), key=lambda item: (item[1].image is not None, len(item[1].question) + len(item[1].answer))
        )
        shared, logprobs = wanted[self.args.process_index :: self.args.world_size], []
        self.model.eval()
        for start in range(0, len(shared), self.args.per_device_train_batch_size):
            batch = encoder.collate(
                [encoder.encode(e) for _, e in shared[start : start + self.args.per_device_train_batch_size]]
            )
            with torch.no_grad(), self.accelerator.autocast():
                scored = self.score(self.model, {name: value.to(self.args.device) for name, value in batch.items()})
            logprobs += sequence_logprob(scored).tolist()
        self.start_logprobs = dict(
            gather_object([(key, value) for (key, _), value in zip(shared, logprobs, strict=True)])
        )

    def hold_all_but(self, mask: Mask, pairs: Any, encoder: Any) -> None:
        """Let only the share of the weights move whose gradient of `mask.loss` over all forget rows is largest."""
        bound = bind(Method(name=mask.loss, loss=mask.loss))
        collator, own = PassCollator(encoder, bound.trained, []), pairs.of(bound.batches)
        self.model.eval()
        size = self.args.per_device_train_batch_size
        for start in range(0, len(own), size):
            items = [own[key] for key in range(start, min(start + size, len(own)))]
            batches = self._prepare_inputs(collator(items))["trained"]
            with self.accelerator.autocast():
                (bound(score_passes(self.model, batches, self.score), epoch=0, step=0) * len(items)).backward()
        weights = list(trained_weights(self.model).values())
        sizes = [torch.zeros_like(weight) if weight.grad is None else weight.grad.abs_() for weight in weights]
        for weight, moves in zip(weights, largest(sizes, mask.share), strict=True):
            weight.grad = None
            weight.register_hook(partial(torch.mul, moves))

    def move_multiplier(self) -> None:
        """After an optimizer step: the multiplier follows the retain NLL of that step, of all processes, once the warm-up is over."""
        settings, constraint = self.bound.method.multiplier, torch.stack(self.constraints).mean()
        self.constraints.clear()
        if self.epoch >= settings.warmup_epochs:
            measured = self.accelerator.reduce(constraint, "mean").item()
            self.multiplier = multiplier_step(self.multiplier, measured, rate=settings.rate, target=settings.target)


def largest(values: list[Tensor], share: float) -> list[Tensor]:
    """Where the `share` of all entries stands that is largest, as bool masks; an entry of 0 is never among them."""
    flat = torch.cat([value.flatten() for value in values])
    least = flat.kthvalue(flat.numel() - max(1, round(share * flat.numel())) + 1).values
    return [(value >= least) & (value > 0) for value in values]


class Multiplier(TrainerCallback):
    """Moves the multiplier of a method that has one after each optimizer step."""

    def __init__(self, trainer: LossTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.move_multiplier()


class EachEpoch(TrainerCallback):
    """Has the model judged at the end of every epoch, as it would be saved: in eval mode and without the trainer's autocast."""

    def __init__(self, trainer: LossTrainer, judge: Callable[[nn.Module], dict], say: Callable[[str], None]):
        self.trainer, self.judge, self.say = trainer, judge, say
        self.results: list[dict[str, dict[str, float]]] = []
        self.seconds = 0.0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        started, model = time.perf_counter(), self.trainer.accelerator.unwrap_model(self.trainer.model)
        wrapped = model.__dict__.pop("forward", None)  # the trainer's, with autocast; the class's own is below it
        model.eval()
        try:
            self.results.append(self.judge(model))
        finally:
            model.train()
            if wrapped:
                model.forward = wrapped
        self.seconds += time.perf_counter() - started
        shown = ", ".join(f"{task} {means['Exact Memorization']:.2f}" for task, means in self.results[-1].items())
        self.say(f"  exact memorization on the validation fold: {shown}")


class Progress(TrainerCallback):
    """A line an epoch, in plain text, and the loss of every step for the curve."""

    def __init__(self, describe: Callable[[str], None]):
        self.describe, self.losses, self.started = describe, [], time.perf_counter()
        self.first_gradient: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append((state.global_step, logs["loss"]))
            if self.first_gradient is None:
                self.first_gradient = logs.get("grad_norm")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = f", loss {self.losses[-1][1]:.4f}" if self.losses else ""
        self.describe(
            f"epoch {round(state.epoch)}/{args.num_train_epochs:g}{last}, {time.perf_counter() - self.started:.0f} s"
        )


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
        ddp_broadcast_buffers=False,  # processes may take different numbers of passes a step; running statistics of faces stay each process's own
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
    model: nn.Module,
    bound: BoundLoss,
    pairs: Any,
    encoder: Any,
    settings: Trainer,
    seed: int,
    save_dir: str,
    record: dict[str, Any],
    each_epoch: Any = None,
    say: Callable[[str], None] = say_line,
    score: Score = score,
    save: Callable[[nn.Module, Any, Path], None] = save,
) -> None:
    """Train `model` in place on `pairs` and write it to `save_dir`, whole or not at all, with train_meta.json beside the weights.

    `score` and `save` are the language models' unless the recipe brings others. `record` is what else to say of the run (settings,
    fingerprints). `each_epoch(model)` judges the model at the end of every epoch, and
    `each_epoch.best(judged)` says which was best; both go to the record. The loss is a mean over examples; where an epoch's last step has fewer
    examples than the others, or micro-batches of different size, those examples weigh more (as in the library).
    """
    start_of_peak()
    transformers.set_seed(seed)
    progress = Progress(say)
    method = bound.method
    reference = FrozenStart(model, settings.precision) if bound.frozen else None
    if bound.frozen or bound.cached:
        silence_dropout(model)
    start = (
        {name: weight.detach().clone() for name, weight in trained_weights(model).items()}
        if method.task_vector and not settings.lora
        else {}
    )
    with (
        tempfile.TemporaryDirectory() as scratch
    ):  # the library makes its output folder at once; ours must not appear before it is whole
        trainer = LossTrainer(
            bound,
            reference,
            seed,
            settings,
            score,
            model=model,
            args=training_arguments(settings, seed, scratch),
            train_dataset=pairs,
            data_collator=PassCollator(encoder, bound.trained, bound.frozen),
            callbacks=[progress],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        started = time.perf_counter()
        if bound.cached:
            trainer.keep_start_logprobs(pairs, encoder)
        if method.mask:
            trainer.hold_all_but(method.mask, pairs, encoder)
        if method.multiplier:
            trainer.add_callback(Multiplier(trainer))
        judged = EachEpoch(trainer, each_epoch, say)
        if each_epoch:
            trainer.add_callback(judged)
        trainer.train()
        trained = trainer.accelerator.unwrap_model(trainer.model)
        if not all(torch.isfinite(weight).all() for weight in trained_weights(trained).values()):
            trainer.stop("the weights are not finite", "the last step's update")
        if method.task_vector:
            subtract_update(trained, start, method.task_vector.scale)
        seconds = time.perf_counter() - started - judged.seconds
    if progress.first_gradient is not None and progress.first_gradient < VANISHING:
        say(
            f"the first step's gradient vanished (norm {progress.first_gradient:.1e}): where it starts {method.name} has no direction, what moved is rounding"
        )
    tokens = sum(gather_object([float(trainer.tokens)]))
    padding = 1 - float(trainer.tokens) / max(1.0, float(trainer.places))
    counts = (
        {"tokens_per_second": tokens / seconds, "padding": padding} if float(trainer.places) else {}
    )  # pictures of faces are no tokens
    if counts:
        say(f"{tokens / seconds:.0f} tokens a second, {padding:.0%} of all places padding")
    if trainer.is_world_process_zero():
        with written_whole(Path(save_dir)) as aside:
            save(trained, encoder.processor, aside)
            cost = {
                "seconds": seconds,
                "steps": trainer.state.global_step,
                "peak_memory_gb": peak_memory_gb(),
                "loss": progress.losses,
            }
            cost |= counts
            if method.multiplier:
                cost["multiplier"] = trainer.multiplier
            if each_epoch:
                cost |= {
                    "epochs": judged.results,
                    "best_epoch": each_epoch.best(judged.results),
                    "epoch_eval_seconds": judged.seconds,
                }
            write_json(aside / TRAIN_RECORD, {"seed": seed, **record, **cost, "versions": versions()})
    trainer.accelerator.wait_for_everyone()
