"""How a model is trained: methods, LoRA, the trainer."""

import functools
import importlib.util
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from settings.script import SettingsError, at_least, choices, cuda_is_there, one_of, share_of

MOST = 1_000_000  # of epochs, rows of a batch, batches of a step: more is a slip of the finger


@dataclass
class Mask:
    """Before training: only the weights with the largest gradients move (SalUn)."""

    loss: str = MISSING  # whose gradient, over all forget rows
    share: float = MISSING  # of the trained weights, the ones that move

    def __post_init__(self) -> None:
        share_of("method.mask.share", self.share)


@dataclass
class Activations:
    """The model ends at a layer: the loss gets hidden states, and nothing above is computed (RMU)."""

    layer: int = MISSING  # decoder layer, from 0, whose output the loss gets
    trained: list[int] = MISSING  # the decoder layers that train
    part: str | None = None  # what trains of each: down_projection, or a module by its name in the layer; null: all

    def __post_init__(self) -> None:
        at_least("method.activations.layer", self.layer, 0)
        if not self.trained or not set(self.trained) <= set(range(self.layer + 1)):
            raise SettingsError(
                f"method.activations.trained={self.trained} must name layers between 0 and layer={self.layer}"
            )


@dataclass
class Multiplier:
    """During training: a multiplier of the retain constraint, moved after each optimizer step (PDU)."""

    start: float = MISSING
    rate: float = MISSING
    target: float = MISSING  # of the retain answers' NLL, in nats
    warmup_epochs: int = MISSING  # it stays at `start` so long


@dataclass
class TaskVector:
    """After training: what was learned is subtracted from the start (SKU)."""

    step: float = MISSING  # theta0 - step * (theta - theta0)


@dataclass
class Method:
    name: str = MISSING  # the name of its file in config/method
    loss: str = MISSING  # a function of unlearn_losses
    args: dict[str, Any] = field(default_factory=dict)  # its keyword-only parameters
    retain: str = "nll"  # the retain term: nll or kl
    other_answers: int = 1  # answers a row in the passes `unrelated` and `shuffled`
    l1: float = 0.0  # weight of the sum of absolute weights, on top of trainer.l1
    mask: Mask | None = None
    activations: Activations | None = None
    multiplier: Multiplier | None = None
    task_vector: TaskVector | None = None

    def __post_init__(self) -> None:
        one_of("method.retain", self.retain, ("nll", "kl"))
        at_least("method.other_answers", self.other_answers, 1)
        at_least("method.l1", self.l1, 0)

    def losses(self) -> list[str]:
        """The functions of unlearn_losses that it names."""
        return [self.loss] if self.mask is None else [self.loss, self.mask.loss]


# how a model learns what it has not met: of finetuning, and of the pretraining of faces
FINETUNING = Method(name="finetune", loss="retain_ft")


@dataclass
class Lora:
    r: int = MISSING
    alpha: int = MISSING
    dropout: float = MISSING

    def __post_init__(self) -> None:
        at_least("trainer.lora.r", self.r, 1)
        at_least("trainer.lora.alpha", self.alpha, 1)
        at_least("trainer.lora.dropout", self.dropout, 0)
        if self.dropout >= 1:
            raise SettingsError(f"trainer.lora.dropout={self.dropout} must be below 1")


@dataclass(frozen=True)
class Interval:
    """How often a checkpoint is written."""

    count: int
    unit: str  # seconds, steps, epochs; never


def read_interval(text: str) -> Interval:
    """The interval that `trainer.save_every` names. Raises SettingsError."""
    if text == "never":
        return Interval(0, "never")
    found = re.fullmatch(r"([0-9]*[1-9][0-9]*)(s|min|h|steps?|epochs?)", text)
    if not found:
        raise SettingsError(f"trainer.save_every={text!r} must be like 30s, 10min, 2h, 200steps, 1epoch or never")
    count, unit = int(found[1]), found[2]
    seconds = {"s": 1, "min": 60, "h": 3600}
    if unit in seconds:
        return Interval(count * seconds[unit], "seconds")
    return Interval(count, f"{unit.removesuffix('s')}s")


def check_report_to(setting: str, value: str) -> None:
    """Raise SettingsError for a tracker that is not known, or whose package is not installed."""
    one_of(setting, value, ("none", "tensorboard", "wandb"))
    if value != "none":
        need_package(f"{setting}={value}", value, "req-track.txt")


def need_package(setting: str, package: str, file: str) -> None:
    """Raise SettingsError where a package is missing that `setting` needs; `file` names it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # a folder of that name, as trackers write one, is no package
        raise SettingsError(f"{setting}: {package} is not installed (pip install -r {file})")


def need_cuda_for(setting: str) -> None:
    """Raise SettingsError where this machine lacks the CUDA GPU or the package that quantized weights need."""
    if not cuda_is_there():
        raise SettingsError(f"{setting} needs a CUDA GPU, and this machine has none")
    need_package(setting, "bitsandbytes", "req-gpu.txt")


@dataclass
class Trainer:
    epochs: int = MISSING
    batch_size: int = MISSING  # examples of one pass on one process
    accumulation: int = MISSING  # passes an optimizer step
    lr: float = MISSING  # the schedule's peak
    weight_decay: float = MISSING
    warmup_ratio: float = MISSING
    schedule: str = MISSING  # linear, cosine, constant, constant_with_warmup
    max_grad_norm: float = MISSING  # 0: no clipping
    optimizer: str = MISSING  # adamw_torch, sgd (no momentum), adamw_bnb_8bit, paged_adamw_8bit
    precision: str = MISSING  # bf16: autocast over fp32 weights; fp32
    lora: Lora | None = MISSING  # null: every weight that is not frozen trains
    gradient_checkpointing: bool = False  # activations of each layer are computed again in the backward pass
    save: str = "merged"  # merged: the whole model; adapter: the adapter alone, with the fingerprint of its base
    bucket: int = 0  # examples of like length share a batch, drawn among so many batches; 0: batches are drawn blindly
    l1: float = 0.0  # weight of the sum of absolute weights; with LoRA of the merged update
    report_to: str = "none"  # none, tensorboard or wandb
    save_every: str = "10min"  # how often a checkpoint is written: 30s, 10min, 200steps, 1epoch, never
    deterministic: bool = False  # only kernels that give the same bits again; one that has none ends the run

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation"):
            at_least(f"trainer.{name}", getattr(self, name), 1)
            if getattr(self, name) > MOST:
                raise SettingsError(f"trainer.{name}={getattr(self, name)} must be at most {MOST}")
        for name in ("lr", "weight_decay", "warmup_ratio", "max_grad_norm", "bucket", "l1"):
            at_least(f"trainer.{name}", getattr(self, name), 0)
        if self.warmup_ratio >= 1:
            raise SettingsError(f"trainer.warmup_ratio={self.warmup_ratio} must be below 1: it is a share of the steps")
        one_of("trainer.precision", self.precision, ("bf16", "fp32"))
        one_of("trainer.schedule", self.schedule, ("linear", "cosine", "constant", "constant_with_warmup"))
        one_of("trainer.optimizer", self.optimizer, ("adamw_torch", "sgd", "adamw_bnb_8bit", "paged_adamw_8bit"))
        one_of("trainer.save", self.save, ("merged", "adapter"))
        if self.save == "adapter" and not self.lora:
            raise SettingsError("trainer.save=adapter needs trainer.lora: without it there is no adapter to write")
        check_report_to("trainer.report_to", self.report_to)
        read_interval(self.save_every)
        if "8bit" in self.optimizer:
            need_package(f"trainer.optimizer={self.optimizer}", "bitsandbytes", "req-gpu.txt")
        if "8bit" in self.optimizer and not cuda_is_there():
            raise SettingsError(
                f"trainer.optimizer={self.optimizer} needs a CUDA GPU, and this machine has none; adamw_torch "
                "runs anywhere"
            )


@functools.cache  # says its line once
def trainer_of(stage: str, model: str, preset: str) -> str:
    """Choose how a model trains: a primary config writes `/trainer: ${trainer_of:finetune,${model},tofu_lora}`.

    Args:
        stage: pretrain, finetune or forget.
        model: The name of its file in config/model.
        preset: The file of config/trainer for a model without a file in config/trainer/<stage>.

    Returns:
        The choice in the group `trainer`. A line on stderr says so where it is the preset: the name of the model's own
        file may be mistyped.
    """
    if model in choices(f"trainer/{stage}"):
        return f"{stage}/{model}"
    print(f"config/trainer/{stage}/{model}.yaml is not there: the model trains as trainer={preset}", file=sys.stderr)
    return preset


OmegaConf.register_new_resolver("trainer_of", trainer_of, replace=True)
