"""The Hugging Face trainer with a method's loss: what one step scores, compares and adds up, and what a method's steps
change before it and after it.
"""

import contextlib
import math
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from data_module import Example
from engine import checkpoints
from engine.frozen_start import FrozenStart, Start, forward_passes
from engine.gradient_step import PartedGradient, State, moved, statistics_kept, without_autocast
from engine.language_model import l1_norm, packs, trained_weights
from engine.methods import UNTAUGHT, BoundLoss
from engine.pairs import Batch, EpochSampler, answer_key
from engine.parted import parted_alike
from engine.progress import Work
from engine.record import read_json
from engine.row_lengths import row_lengths
from settings.script import SettingsError
from settings.training import Trainer
from unlearn_losses import Parts, Scored, multiplier_step, nll, sequence_logprob


class LossTrainer(transformers.Trainer):
    """Hugging Face's trainer with a bound loss in place of the model's own."""

    # always given; the library's own annotations allow None
    model: nn.Module
    train_dataset: Any
    data_collator: Any

    def __init__(self, start: Start, bound: BoundLoss, settings: Trainer, *, seed: int, **options: Any):
        """`options`: those of the library's trainer."""
        super().__init__(model=start.model, **options)
        self.forward, self.bound, self.draw_seed = start.forward, bound, seed
        place = partial(parted_alike, self.accelerator)
        self.reference = FrozenStart(start.model, settings.precision, place) if bound.frozen else None
        assert start.untaught is not None or not bound.untaught  # bind refuses such a loss elsewhere
        self.untaught = FrozenStart(start.untaught, settings.precision, place) if start.untaught else None
        self.measured = start.measured
        self.l1 = settings.l1 + bound.method.l1
        self.bucket = settings.bucket
        if settings.bucket_retain:
            self.train_dataset.match_lengths(partial(row_lengths, self.data_collator.encoder))
        self.start_logprobs: dict[int, float] = {}  # by answer_key
        self.checkpoints: checkpoints.Checkpoints | None = None
        self.epoch = 0  # of the step being taken
        self.is_shown = False  # whether a row of it has a picture, on this process
        self.batches_from: Any = None  # the loader of the training's batches
        self.multiplier = bound.method.multiplier.start if bound.method.multiplier else 0.0
        self.constraints: list[Tensor] = []  # retain NLL of each pass since the last optimizer step
        self.parted = PartedGradient(trained_weights(start.model).values()) if bound.rule else None
        self.rule_args: dict[str, Any] = dict(bound.method.gradient.args) if bound.method.gradient else {}
        self.rule_state: State = {}
        self.edited: dict[str, Any] = {}  # what the record says of an edit
        self.slowed: dict[str, Tensor] = {}  # by name, the shares of their steps that an edit lets weights move by
        # kept where a rule looks at them twice, each with the generators' state at the first look
        self.batches_of_step: list[tuple[dict[str, Any], dict[str, Any]]] = []
        # of the trained passes on this process; they stay on the batches' device, so that nobody waits to count
        self.tokens: Tensor | float = 0.0
        self.places: Tensor | float = 0.0  # the same with the padding that the model computes
        # super().__init__ overwrites the class attribute; left true, the loss is not divided by the accumulation steps
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        lengths = row_lengths(self.data_collator.encoder, self.train_dataset.leading) if self.bucket else ()
        # of all processes together, so that their number changes no step's rows
        size = self.args.per_device_train_batch_size * self.args.world_size
        self.sampler = EpochSampler(len(self.train_dataset), self.draw_seed, lengths, size, self.bucket)
        return self.sampler

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        own = getattr(loader, "base_dataloader", loader)  # accelerate holds the one that starts the workers
        own.worker_init_fn = partial(begin_worker, own.worker_init_fn)
        self.batches_from = own
        return loader

    def end_workers(self) -> None:
        """End the processes that make batches. They do not hear the signal by which this one would end them."""
        batches = getattr(self.batches_from, "_iterator", None)  # torch keeps persistent workers there
        if batches is not None:
            batches._shutdown_workers()

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
        loss = self.parts_of(model, inputs).total
        if isinstance(model, DistributedDataParallel):
            # a batch without pictures leaves the vision tower without a gradient, which DDP waits for
            loss = loss + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)
        return loss

    def parts_of(self, model: nn.Module, inputs: dict[str, Any], *, again: bool = False) -> Parts:
        """The two parts of the loss of what a PassCollator made; `again`: it was counted before."""
        scored = forward_passes(model, inputs["trained"], self.forward)
        self.is_shown |= any(batch.is_shown for batch in inputs["trained"])
        if not again:
            self.count_places(model, inputs["trained"])
        passes = {name: scored[name] for name in self.bound.trained} | self.reference_passes(model, inputs)
        passes |= {f"{name}_labels": labels for name, labels in inputs["labels"].items()}
        parts = self.loss_of(passes, again=again)
        return parts._replace(retain=parts.retain + self.l1_penalty(model)) if self.l1 else parts

    def loss_of(self, passes: dict[str, Any], *, again: bool = False) -> Parts:
        """The method's loss; ends the run where it is not finite."""
        self.epoch = int(self.state.epoch + 1e-6)  # the library's is a float that reaches 1 by small steps
        state = {"epoch": self.epoch, "multiplier": self.multiplier, **self.measured}
        if self.bound.method.multiplier:
            state["target"] = self.bound.method.multiplier.target
            if not again:
                self.constraints.append(nll(passes["retain"]).detach())
        try:
            parts = self.bound.parts(passes, **state)
        except ValueError as error:  # passes that do not fit each other
            raise SettingsError(f"method={self.bound.method.name}: {error}") from None
        if not torch.isfinite(parts.total):
            broken = next((name for name, value in passes.items() if not is_finite(value)), None)
            why = f"the logits of its {broken} pass are not finite" if broken else "made of finite passes"
            self.stop(f"the loss is {parts.total.item()}", why)
        return parts

    # ---- a step whose gradient a rule makes

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One batch. Where the method has a rule, the gradients of the two parts add up apart, and the last batch of an
        optimizer step puts them together.
        """
        if self.parted is None or self.bound.rule is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        if self.bound.rule.perturb:
            self.batches_of_step.append((inputs, checkpoints.state_of_draws()))
        # DDP has no part in it: the processes' gradients are averaged when the step has all of them
        with self.accelerator.no_sync(model), self.compute_loss_context_manager():
            parts = self.share_of_step(self.parts_of(model, inputs))
        self.parted.add(parts)
        if self.accelerator.sync_gradients:
            self.put_gradient(model)
        return parts.total.detach()

    def share_of_step(self, parts: Parts) -> Parts:
        """The parts of one batch as they count in the mean over those of an optimizer step."""
        count = self.current_gradient_accumulation_steps
        return Parts(parts.forget / count, parts.retain / count)

    def put_gradient(self, model: nn.Module) -> None:
        """Have the rule make the step's gradient of those of the two parts."""
        rule, parted = self.bound.rule, self.parted
        assert rule is not None and parted is not None
        count = self.args.world_size
        parted.agree_on_met(count)
        parted.average_over_processes(parted.forget, count)
        parted.average_over_processes(parted.retain, count)
        if rule.perturb:
            by = rule.perturb(parted.forget, **self.rule_args)
            with moved(parted.weights, by), statistics_kept(model), self.precise(model):
                self.take_forget_anew(model)
            parted.average_over_processes(parted.forget, count)
        settings = {} if rule.perturb else self.rule_args
        made, self.rule_state = rule.combine(parted.forget, parted.retain, self.rule_state, **settings)
        parted.put(made)

    def take_forget_anew(self, model: nn.Module) -> None:
        """The forget gradient of the step's batches where the weights are now, with the dropout of their first look."""
        assert self.parted is not None
        self.parted.clear_forget()
        now = checkpoints.state_of_draws()
        for inputs, draws in self.batches_of_step:
            checkpoints.load_draws(draws)
            with self.accelerator.no_sync(model):
                parts = self.share_of_step(self.parts_of(model, inputs, again=True))
            self.parted.add(parts._replace(retain=0.0))
        checkpoints.load_draws(now)
        self.batches_of_step.clear()

    @contextlib.contextmanager
    def precise(self, model: nn.Module) -> Iterator[None]:
        """The model as it computes in fp32: a perturbation is far smaller than what autocast rounds a weight by.

        Weights that are held in bf16 beside an adapter need autocast.
        """
        inner = self.accelerator.unwrap_model(model)
        with self.compute_loss_context_manager() if self.looks_coarsely else without_autocast(inner):
            yield

    @property
    def looks_coarsely(self) -> bool:
        """Whether a rule looks at perturbed weights through the rounding of bf16."""
        looks_twice = self.bound.rule is not None and self.bound.rule.perturb is not None
        return (
            looks_twice and self.args.bf16 and any(weight.dtype != torch.float32 for weight in self.model.parameters())
        )

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
                tokens = mask[: sum(batch.rows)].sum()
                self.tokens = self.tokens + tokens
                self.places = self.places + (tokens if packs(model, batch.inputs) else mask.numel())

    def reference_passes(self, model: nn.Module, inputs: dict[str, list[Batch]]) -> dict[str, Any]:
        """What the frozen start says of the batches, and what a network does that never learned anything.

        Log-probabilities come from the cache, distributions and hidden states from a pass of the start's own.
        """
        passes: dict[str, Any] = {}
        wanted = set(self.bound.compared)
        batches = inputs["frozen"] or [batch for batch in inputs["trained"] if set(batch.passes) <= wanted]
        asked = (("ref_", self.reference, self.bound.frozen), (UNTAUGHT, self.untaught, self.bound.untaught))
        for prefix, reference, names in asked:
            if reference is None:
                continue
            # the library puts autocast into the forward of the model that it trains, and the start must be computed
            # alike
            with reference.model(self.accelerator.unwrap_model(model)) as frozen, self.accelerator.autocast():
                scored = forward_passes(frozen, batches, self.forward)
            passes |= {f"{prefix}{name}": scored[name] for name in names}
        for name in self.bound.cached:
            batch = next(batch for batch in inputs["trained"] if name in batch.passes)
            values = [self.start_logprobs[key] for key in batch.keys_of(name)]
            passes[f"ref_{name}_logprob"] = torch.tensor(values, device=batch.labels.device)
        return passes

    # ---- checkpoints, in place of the library's own

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.checkpoints is not None  # else nobody asks for one
        self.checkpoints.save()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoints.load_weights(checkpoints.unwrapped(self), Path(resume_from_checkpoint))
        self.take_back(checkpoints.load_own(Path(resume_from_checkpoint)))

    def own_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of a gradient's rule, the same on every process."""
        kept: dict[str, Tensor] = {}
        for name, gradients in self.rule_state.items():
            kept |= {f"{name}.{number}": gradient for number, gradient in enumerate(gradients)}
        return kept

    def take_back(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `own_tensors` gave."""
        assert self.parted is not None or not tensors
        names = {name.rpartition(".")[0] for name in tensors}
        for name in names:
            weights = enumerate(self.parted.weights) if self.parted else ()
            self.rule_state[name] = [tensors[f"{name}.{number}"].to(weight.device) for number, weight in weights]

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        # under DeepSpeed the library would look for a checkpoint of DeepSpeed's own
        own = resume_from_checkpoint if self.is_deepspeed_enabled else None
        made = super()._prepare_for_training(max_steps, train_dataloader, None if own else resume_from_checkpoint)
        if own:
            self._load_from_checkpoint(own, self.model_wrapped)
            self._load_optimizer_and_scheduler(own)
        return made

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.lr_scheduler is not None  # the library has made it
            checkpoints.load_optimizer(self, Path(checkpoint))
            self.lr_scheduler.load_state_dict(read_json(Path(checkpoint) / checkpoints.PROGRESS)["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            of_processes = read_json(Path(checkpoint) / checkpoints.PROGRESS)["processes"]
            checkpoints.load_draws(of_processes[self.args.process_index]["draws"])

    def own_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this process besides weights and optimizer."""
        open_constraints = [each.item() for each in self.constraints]
        counts = {"tokens": float(self.tokens), "places": float(self.places)}
        return {"multiplier": self.multiplier, "constraints": open_constraints, **counts}

    def go_on(self, state: dict[str, Any]) -> None:
        """Take back what `own_state` gave."""
        self.multiplier, self.tokens, self.places = state["multiplier"], state["tokens"], state["places"]
        self.constraints = [torch.tensor(each, device=self.args.device) for each in state["constraints"]]

    def stop(self, what: str, term: str) -> NoReturn:
        """End a run that diverged, with one line on method, step and term."""
        where = f"method {self.bound.method.name}, step {self.state.global_step}: {what}; {term}"
        raise checkpoints.Diverged(f"{where}. Nothing was written; a lower trainer.lr or weight may hold it")

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
        with Work("answer that the start scores", len(wanted), prepares=True) as work:
            for first in range(0, len(shares[0]), size):  # the first share is the longest
                chosen = own[first : first + size] or own[-1:] or wanted[:1]
                batch = encoder.collate([encoder.encode(example) for _, example in chosen]).to(self.args.device)
                with torch.no_grad(), self.accelerator.autocast():
                    logprobs += sequence_logprob(self.forward(self.model, batch)).tolist()
                work.advance(size * count)
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

    def move_multiplier(self) -> None:
        """After an optimizer step: the multiplier follows the retain NLL of that step, once the warm-up is over."""
        settings = self.bound.method.multiplier
        assert settings is not None  # else MultiplierCallback is not there
        constraint = torch.stack(self.constraints).mean()
        self.constraints.clear()
        if self.epoch >= settings.warmup_epochs:
            measured = self.accelerator.reduce(constraint, "mean").item()
            self.multiplier = multiplier_step(self.multiplier, measured, rate=settings.rate, target=settings.target)


def begin_worker(seed: Any, number: int) -> None:
    """Begin a process that makes batches: it leaves signals to the one that trains, which has it end with itself.

    A signal to the whole group, as of a terminal or a job scheduler, would end it, and with it the step after which the
    run is to be saved. `seed`: what the library has it do first.
    """
    for each in checkpoints.SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    if seed is not None:
        seed(number)


def is_finite(scored: Scored | Tensor) -> bool:
    """Whether a pass is made of numbers."""
    values = scored if isinstance(scored, Tensor) else scored.logits
    return bool(torch.isfinite(values).all())


class MultiplierCallback(TrainerCallback):
    """Moves the multiplier of a method that has one after each optimizer step."""

    def __init__(self, trainer: LossTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.move_multiplier()
