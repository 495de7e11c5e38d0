"""What memory a training needs, counted before any weights are loaded.

A step is run on tensors without numbers (torch's fake tensors), by the code that trains: the model of its
configuration, frozen, cut and adapted as the settings say, the method's loss with its passes and its reference. Every
tensor that is made counts until it is freed. Shares of several GPUs follow from these counts.
"""

import contextlib
import copy
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from data_module import TrainingRows
from engine.adapters import LanguageModel
from engine.checkpoints import KEPT, size_on_disk
from engine.edit_statistics import decoder_mlps
from engine.frozen_start import FrozenStart, forward_passes, silence_dropout
from engine.language_model import (
    check_model_path,
    forward,
    l1_norm,
    made_ready,
    quiet_library,
    read,
    trained_weights,
    training_dtype,
)
from engine.memory_page import Plan, say_plan
from engine.memory_shares import (
    Need,
    parts_alone,
    parts_ddp,
    parts_fsdp2,
    parts_offload,
    parts_zero2,
    parts_zero3,
    row,
)
from engine.methods import OF_FACES, BoundLoss, bind
from engine.pairs import Batch
from engine.row_lengths import row_lengths
from engine.trace_step import check_layers, train_mlps_alone
from settings.language import Finetune, Forget
from settings.script import SettingsError, first_line
from settings.training import FINETUNING
from unlearn_losses import Scored

WORDS, ANSWER = 256, 128  # tokens of question and answer, and of the answer alone, where no row can be read
PICTURE = 576  # tokens of a picture of a model that does not say it: LLaVA's
PICTURES_READ = 16  # picture rows, those that seem the longest, whose tokens are counted
COUNTS = (2, 4, 8)  # GPUs
QUANTIZED = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}  # bytes a weight, with the scales of its blocks


@dataclass(frozen=True)
class Shape:
    """The largest batch: tokens of the longest row, those of the longest answer, and where both are from."""

    length: int
    answer: int
    source: str


def plan(settings: Finetune, auto_class: Any, open_encoder: Any) -> None:
    """Print what memory the training of `settings` needs, and on which GPUs it fits; nothing is loaded or written.

    Args:
        settings: of the training.
        auto_class: of the model.
        open_encoder: opens the tokenizer or processor of a model's folder.

    Raises:
        SettingsError: the model's configuration is not there, or a step cannot be run without weights.
    """
    path = path_of(settings)
    settings = replace(settings, model_path=path)
    config = read(transformers.AutoConfig, path, settings.model)
    shape = shape_of(settings, config, open_encoder)
    say_plan(plan_of(settings, auto_class, config, shape))


def path_of(settings: Finetune) -> str:
    """Where the model's configuration stands: in model_path, or in model.path while that is still to be trained."""
    for path in (settings.model_path, settings.model.path):
        if (Path(path) / "config.json").is_file():
            return path
    for path in (settings.model_path, settings.model.path):
        with contextlib.suppress(SettingsError):
            check_model_path(path)
            return path
    check_model_path(settings.model_path)
    raise AssertionError("it was refused before")


# ---- the largest batch


def shape_of(settings: Finetune, config: Any, open_encoder: Any) -> Shape:
    """The longest row of the data where it and the tokenizer can be read, else what is stated."""
    names = [settings.split, *([settings.retain_split] if isinstance(settings, Forget) else [])]
    sees = getattr(config, "vision_config", None) is not None
    if Path(settings.model_path).is_dir() and Path(settings.data.path).is_dir():
        limits = {"max_length": settings.max_length, "truncate": settings.truncate}
        with contextlib.suppress(SettingsError):
            encoder = open_encoder(settings.model_path, settings.model, **limits)
            splits = [TrainingRows(settings.data, name, settings.modality, settings.seed) for name in names]
            found = [each for rows in splits for each in lengths_of(encoder, rows)]
            length, answer = max(all_of for all_of, _ in found), max(own for _, own in found)
            return Shape(length, answer, f"the longest rows of {' and '.join(names)}")
    picture = picture_tokens(config) if sees and settings.modality != "text" else 0
    length = settings.max_length or WORDS + picture
    seen = f", {picture} of a picture" if picture and not settings.max_length else ""
    return Shape(length, min(ANSWER, length), f"stated{seen}: no row was read; max_length= states another")


def lengths_of(encoder: Any, rows: TrainingRows) -> Iterator[tuple[int, int]]:
    """Tokens of rows, and of their answers: all in words, and the picture rows that seem the longest."""
    words, lengths = set(rows.in_words), row_lengths(encoder, rows)
    pictured = sorted((i for i in range(len(rows)) if i not in words), key=lengths.__getitem__)
    for place in [*words, *pictured[-PICTURES_READ:]]:
        encoded = encoder.encode(rows[place])
        yield encoded.length, len(encoded.answer)


def picture_tokens(config: Any) -> int:
    """How many tokens a picture takes, by the configuration."""
    said = getattr(config, "image_seq_length", None) or getattr(config, "mm_tokens_per_image", None)
    return int(said or PICTURE)


def batch_of(bound: BoundLoss, settings: Finetune, shape: Shape, names: list[str]) -> Batch:
    """The largest batch of the named passes, without numbers that mean anything."""
    many = ("unrelated", "shuffled", "alternate")
    size = settings.trainer.batch_size
    rows = tuple(size * (bound.method.other_answers if name in many else 1) for name in names)
    ids = torch.zeros(sum(rows), shape.length, dtype=torch.long)
    labels = torch.zeros(sum(rows), shape.answer, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    widths = (shape.answer,) * len(names)
    return Batch(inputs, labels, torch.zeros_like(labels), passes=tuple(names), rows=rows, widths=widths)


# ---- a step without numbers


class Counted(TorchDispatchMode):
    """Counts the bytes of every tensor that is made, until it is freed."""

    def __init__(self, held: list[Tensor]):
        """`held`: tensors that do not count."""
        super().__init__()
        self.known = weakref.WeakSet(each.untyped_storage() for each in held)
        self.live = self.most = self.gradients = self.most_without = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.equal.default:
            return True  # all answers of a batch without numbers are alike
        made = function(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(Tensor, self.count, made)
        self.note()
        return made

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known.add(storage)
            size = storage.nbytes()
            self.live += size
            weakref.finalize(storage, self.free, size)

    def free(self, size: int) -> None:
        self.live -= size

    def note(self) -> None:
        self.most = max(self.most, self.live)
        self.most_without = max(self.most_without, self.live - self.gradients)

    def note_gradient(self, weight: Tensor) -> None:
        """A gradient is whole; the first time it comes to stay."""
        assert weight.grad is not None
        self.gradients += weight.grad.untyped_storage().nbytes()


def model_without_weights(settings: Finetune, auto_class: Any, config: Any, dtype: str) -> LanguageModel:
    """The model as it trains, on the meta device. Raises SettingsError."""
    config = copy.deepcopy(config)
    # flash attention needs a GPU; sdpa keeps as little
    attention = "eager" if settings.model.attention == "eager" else "sdpa"
    options = {"dtype": getattr(torch, dtype), "trust_remote_code": settings.model.trust_remote_code}
    with torch.device("meta"), quiet_library():
        try:
            model = auto_class.from_config(config, attn_implementation=attention, **options)
        except ValueError as error:
            if "attention" not in str(error):
                name = type(config).__name__
                raise SettingsError(f"model_path={settings.model_path!r}: no model is made of a {name}") from None
            model = auto_class.from_config(config, attn_implementation="eager", **options)
        ready = made_ready(model, settings)
    method = settings.method if isinstance(settings, Forget) else FINETUNING
    if method.trace:  # the first layers stand for those that it would find: no others keep more for the backward pass
        mlps = decoder_mlps(ready, method.name)
        check_layers(ready, method.trace, mlps)
        train_mlps_alone(ready, mlps[: method.trace.layers])
    return ready


def as_if_held(model: nn.Module) -> None:
    """Put fake tensors in place of those on the meta device, as if they lay in memory; shared ones stay shared."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for name, value in kept.items():
                if value is not None:
                    if id(value) not in made:
                        held = torch.empty(value.shape, dtype=value.dtype, device="cpu")
                        is_weight = isinstance(value, nn.Parameter)
                        made[id(value)] = nn.Parameter(held, value.requires_grad) if is_weight else held
                    kept[name] = made[id(value)]


def need_of(settings: Finetune, auto_class: Any, config: Any, shape: Shape, *, dtype: str = "") -> Need:
    """What a training on one GPU needs.

    Args:
        settings: of the training.
        auto_class: of the model.
        config: of the model.
        shape: of the largest batch.
        dtype: of the weights; empty: that in which they train.
    """
    bound = bind(settings.method if isinstance(settings, Forget) else FINETUNING)
    if bound.trainings:  # trained one behind the other
        assert isinstance(settings, Forget)
        of_parts = [replace(settings, method=part.method) for part in bound.trainings.values()]
        return max((need_of(part, auto_class, config, shape, dtype=dtype) for part in of_parts), key=lambda n: n.peak)
    if bound.method.init:
        raise SettingsError(
            f"plan: what method={bound.method.name} measures before it trains is not counted; method.init=null plans "
            "the training alone"
        )
    if bound.method.activations and bound.method.mask:
        raise SettingsError(
            f"plan: the whole model, at which the mask of method={bound.method.name} looks before it trains a part, is "
            "not counted; method.mask=null plans the training alone"
        )
    if bound.loss is None:
        raise SettingsError(
            f"plan: method={bound.method.name} trains nothing; what its edit or hook needs is not counted"
        )
    if named := [name for name in bound.batches if name in OF_FACES]:
        raise SettingsError(
            f"plan: method={bound.method.name} asks for {named[0]} pictures, which there are in face recognition only"
        )
    quantized = settings.model.quantize
    dtype = dtype or ("bfloat16" if quantized != "none" else training_dtype(settings))
    model = model_without_weights(settings, auto_class, config, dtype)
    if bound.frozen or bound.cached:
        silence_dropout(model)
    reference = FrozenStart(model, settings.trainer.precision) if bound.frozen else None
    start = reference.copy if reference else None
    model.train()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            counted = step_counted(model, bound, start, settings, shape)
    except SettingsError:
        raise
    except Exception as error:  # what a family's forward raises depends on the family
        name, why = type(model).__name__, first_line(error)
        raise SettingsError(f"plan: {name} cannot take a step without weights: {why}") from None
    weights = list(model.parameters())
    trained = [*trained_weights(model).values()]
    count, size = sum(each.numel() for each in trained), sum(map(bytes_of, trained))
    masks = count if bound.method.mask else 0
    apart = 2 * size if bound.rule else 0  # gradients of the two parts of the loss, which a rule puts together
    return Need(
        weights=weight_bytes(model, quantized),
        gradients=size + apart,
        optimizer=count * KEPT[settings.trainer.optimizer],
        reference=sum(map(bytes_of, start.parameters() if start else ())) + masks,
        activations=counted.most_without,
        # all gradients are there in the second of several batches
        step=counted.most + apart if settings.trainer.accumulation == 1 else counted.most_without + size + apart,
        # one more copy, made for all weights at once
        update=0 if "8bit" in settings.trainer.optimizer or "fused" in settings.trainer.optimizer else size,
        all_weights=sum(each.numel() for each in weights),
        trained=count,
        gathered=gathered_weights(model),
    )


def step_counted(
    model: LanguageModel, bound: BoundLoss, start: nn.Module | None, settings: Finetune, shape: Shape
) -> Counted:
    """The count of the first of the batches that make a step.

    `start`: the frozen copy, where there is one.
    """
    networks = [model, start] if start else [model]
    held: list[Tensor] = []
    for network in networks:
        as_if_held(network)
        held += [*network.parameters(), *network.buffers()]
    counted = Counted(held)
    seen: set[int] = set()

    def note(weight: Tensor) -> None:
        if id(weight) not in seen:
            seen.add(id(weight))
            counted.note_gradient(weight)

    for weight in trained_weights(model).values():
        weight.register_post_accumulate_grad_hook(note)
    with counted:
        loss_without_numbers(model, bound, start, settings, shape).backward()
    return counted


def loss_without_numbers(
    model: LanguageModel, bound: BoundLoss, start: nn.Module | None, settings: Finetune, shape: Shape
) -> Tensor:
    """The loss of a step, as LossTrainer.compute_loss makes it."""
    half = settings.trainer.precision == "bf16"

    def scored_by(network: nn.Module, names: list[str]) -> dict[str, Any]:
        batch = batch_of(bound, settings, shape, names)
        # accelerate gives back what autocast made in float32
        return {name: as_float32(each) for name, each in forward_passes(network, [batch], forward).items()}

    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        passes = scored_by(model, bound.trained)
        if bound.frozen:
            with torch.no_grad(), without_adapter(model, start) as frozen:
                of_start = scored_by(frozen, bound.frozen)
            passes |= {f"ref_{name}": of_start[name] for name in bound.frozen}
    for name in bound.told:
        passes[f"{name}_labels"] = batch_of(bound, settings, shape, [name]).labels
    for name in bound.cached:
        passes[f"ref_{name}_logprob"] = torch.zeros(len(passes[name].labels))
    multiplier = bound.method.multiplier
    state: dict[str, float] = {"epoch": 0, "multiplier": 1.0} | ({"target": multiplier.target} if multiplier else {})
    loss = bound(passes, **state)
    weight = settings.trainer.l1 + bound.method.l1
    return loss + weight * l1_norm(model) if weight else loss


@contextlib.contextmanager
def without_adapter(model: LanguageModel, start: nn.Module | None) -> Iterator[nn.Module]:
    """What FrozenStart.model gives, which would move a copy to where it is."""
    if start is not None:
        yield start
        return
    model.eval()
    with model.disable_adapter():
        yield model
    model.train()


def as_float32(scored: Scored) -> Scored:
    return scored._replace(given=scored.logits.float())


def bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def weight_bytes(model: LanguageModel, quantized: str) -> int:
    """Bytes of a model's weights; where they are quantized, linear layers but the head take less."""
    total = sum(map(bytes_of, model.parameters()))
    if quantized == "none":
        return total
    head = model.get_output_embeddings()
    layers = [each for each in model.modules() if isinstance(each, nn.Linear) and each is not head]
    small = [each.weight for each in layers if not each.weight.requires_grad]
    saved = sum(bytes_of(weight) - weight.numel() * QUANTIZED[quantized] for weight in small)
    return round(total - saved)


def gathered_weights(model: LanguageModel) -> int:
    """How many weights a sharded model has whole at once: those of the two largest layers, and all in no layer."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    names = set(cast("list[str] | None", inner._no_split_modules) or ())
    layers = [module for module in inner.modules() if type(module).__name__ in names]
    sizes = sorted(map(weights_in, layers))
    return weights_in(model) - sum(sizes[:-2])


def weights_in(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


# ---- several GPUs


def plan_of(settings: Finetune, auto_class: Any, config: Any, shape: Shape) -> Plan:
    """The whole plan."""
    options = {"auto_class": auto_class, "config": config, "shape": shape}
    half = settings.trainer.precision == "bf16"
    ways = [with_checkpointing(settings, again) for again in (False, True)]
    needs = [need_of(each, **options) for each in ways]
    # sharded models have bf16 weights in forward and backward, of which autocast makes no copies
    sharded = [need_of(each, **options, dtype="bfloat16") for each in ways] if half else needs
    rows = [row("one GPU", 1, *map(parts_alone, needs))]
    rows += [row("DDP", count, *map(parts_ddp, needs)) for count in COUNTS]
    for name, parts in (("FSDP2", parts_fsdp2), ("ZeRO-2", parts_zero2), ("ZeRO-3", parts_zero3)):
        for count in COUNTS:
            pair = zip(needs, sharded, strict=True)
            rows.append(row(name, count, *(parts(own, shared, count, half) for own, shared in pair)))
    for count in (1, *COUNTS):
        rows.append(row("ZeRO-3 offload", count, *(parts_offload(shared, half) for shared in sharded)))
    alone = [row("as asked", 1, *map(parts_alone, needs))]
    if settings.trainer.lora and training_dtype(settings) == "float32" and half:
        alone.append(row("model.weights=bfloat16", 1, *map(parts_alone, sharded)))
    model = model_without_weights(settings, auto_class, config, training_dtype(settings))
    result, checkpoint = size_on_disk(model, settings.trainer)
    method = settings.method if isinstance(settings, Forget) else FINETUNING
    about = {
        "model": f"{settings.model_path}, {needs[0].all_weights / 1e6:.0f} M weights, {needs[0].trained / 1e6:.1f} M "
        "of them train",
        "training": training_line(settings, method.name),
        "batch": f"{settings.trainer.batch_size} rows a pass of {shape.length} tokens, {shape.answer} of the answer "
        f"({shape.source})",
        "on disk": f"{result / 1e9:.2f} GB for the model, {checkpoint / 1e9:.2f} GB for each of two checkpoints",
    }
    return Plan(about, rows, alone)


def training_line(settings: Finetune, method: str) -> str:
    """The settings that decide the plan."""
    trainer = settings.trainer
    adapter = f"LoRA r {trainer.lora.r} over {settings.model.weights} weights" if trainer.lora else "all weights"
    if settings.model.quantize != "none":
        adapter = f"LoRA r {trainer.lora.r if trainer.lora else 0} over {settings.model.quantize} weights"
    return f"{method}, {adapter}, {trainer.precision}, {trainer.optimizer}, accumulation {trainer.accumulation}"


def with_checkpointing(settings: Finetune, again: bool) -> Finetune:
    return replace(settings, trainer=replace(settings.trainer, gradient_checkpointing=again))
