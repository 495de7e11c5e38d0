"""How a model is trained: methods, LoRA, the trainer."""

import ast
import functools
import importlib.util
import math
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from settings.script import ROOT, SettingsError, at_least, choices, cuda_is_there, one_of, share_of

COMPARED = ("retain", "forget_words", "retain_words")  # rows that a mask's ratio may be against
IMPORTANCE = "grad_ascent"  # the loss whose squared gradients say how much a weight matters for a row
SCOPES = ("both", "pictures", "words")
MOST = 1_000_000  # of epochs, rows of a batch, batches of a step: more is a slip of the finger


@dataclass
class Mask:
    """Before training: only the weights move that the forget rows ask for most, as a share of all (SalUn), in
    comparison with other rows (MMUnlearner), or those of the neurons that say most of an answer (MIP-Editor).
    """

    loss: str = MISSING  # whose gradient
    # one of the three: the share of the trained weights that moves, those of the largest gradient over all forget rows;
    # how many times larger the mean square of a row's gradient must be on forget rows than on the rows `against`; or
    # how many neurons of each trained layer's MLP move for each forget row, those of the largest attribution
    share: float | None = None
    ratio: float | None = None
    neurons: int | None = None
    against: list[str] = field(default_factory=list)  # retain, forget_words, retain_words
    rows: int = 0  # of each kind that a ratio or an attribution looks at, drawn with the seed; 0: all
    applies_to: str = "all"  # what the mask holds still: all of the gradient, or that of the loss's forget part

    def __post_init__(self) -> None:
        one_of("method.mask.applies_to", self.applies_to, ("all", "forget"))
        ways = {"share": self.share, "ratio": self.ratio, "neurons": self.neurons}
        if sum(value is not None for value in ways.values()) != 1:
            got = " ".join(f"{name}={value}" for name, value in ways.items())
            raise SettingsError(f"method.mask takes one of share, ratio and neurons; got {got}")
        if self.share is not None:
            share_of("method.mask.share", self.share)
        if self.ratio is not None and not 0 < self.ratio < math.inf:
            raise SettingsError(f"method.mask.ratio={self.ratio} must be a number above 0")
        if self.neurons is not None:
            at_least("method.mask.neurons", self.neurons, 1)
        if (self.ratio is None) != (not self.against):
            raise SettingsError(f"method.mask.against={self.against}: a ratio is against some rows, nothing else is")
        for rows in self.against:
            one_of("method.mask.against", rows, COMPARED)
        if len(set(self.against)) < len(self.against):
            raise SettingsError(f"method.mask.against={self.against} names rows twice, which would count double")
        at_least("method.mask.rows", self.rows, 0)
        if self.rows and self.share is not None:
            raise SettingsError(f"method.mask.rows={self.rows}: a share looks at all forget rows; leave rows out")


@dataclass
class Gradient:
    """In each optimizer step: a rule makes one gradient of those of the loss's forget and retain part."""

    rule: str = MISSING  # sam (NPO+SAM), project (GRU)
    args: dict[str, Any] = field(default_factory=dict)  # the rule's keyword-only parameters


@dataclass
class Edit:
    """Before training, or instead of it: a rule makes new weights of what forget and retain rows say of the present
    ones.
    """

    rule: str = MISSING  # ssd, manu, kvw, repselect, lunar, ct, msg
    args: dict[str, Any] = field(default_factory=dict)  # the rule's keyword-only parameters
    rows: int = 0  # of each kind that it looks at, drawn with the seed; 0: all

    def __post_init__(self) -> None:
        at_least("method.edit.rows", self.rows, 0)


@dataclass
class Hook:
    """In place of a training: what steers the states of a layer is kept beside the weights."""

    rule: str = MISSING  # eraser (MLLMEraser)
    args: dict[str, Any] = field(default_factory=dict)  # layer, strength and the rule's keyword-only parameters
    rows: int = 0  # of each kind that it looks at, drawn with the seed; 0: all

    def __post_init__(self) -> None:
        at_least("method.hook.rows", self.rows, 0)


@dataclass
class Part:
    """One of several trainings from the same start: a loss with its values."""

    loss: str = MISSING  # a function of unlearn_losses
    args: dict[str, Any] = field(default_factory=dict)  # its keyword-only parameters


@dataclass
class Combine:
    """In place of one training: several from the same start, of whose updates a rule makes one."""

    rule: str = MISSING  # sculpt (SMFA)
    parts: dict[str, Part] = MISSING  # by the names that the rule has for their updates
    args: dict[str, Any] = field(default_factory=dict)  # the rule's keyword-only parameters
    rows: int = 0  # retain rows that the parts train on, drawn with the seed; 0: all

    def __post_init__(self) -> None:
        at_least("method.combine.rows", self.rows, 0)


@dataclass
class Init:
    """Before training: a rule says how adapters begin, by what forget and retain rows say of the weights."""

    rule: str = MISSING  # fila (LoKU)
    rows: int = 0  # of each kind that it looks at, drawn with the seed; 0: all

    def __post_init__(self) -> None:
        at_least("method.init.rows", self.rows, 0)


@dataclass
class Noise:
    """What the pass `noised` hides of a forget row (VGID)."""

    sigma: float = MISSING  # standard deviation of the noise on a picture, in shares of a pixel's range
    instruction: str = MISSING  # stands before the question

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise SettingsError(f"method.noise.sigma={self.sigma} must be a number of at least 0")
        if not self.instruction.strip():
            raise SettingsError("method.noise.instruction is empty: a question in words would stay as it is")


@dataclass
class Visual:
    """What the pass `visual` asks about a forget picture; the start's own answers are those to keep (PAVA)."""

    questions: str = MISSING  # a file of questions that do not ask who is in the picture, one a line
    max_new_tokens: int = MISSING  # of an answer; a longer one is cut

    def __post_init__(self) -> None:
        at_least("method.visual.max_new_tokens", self.max_new_tokens, 1)


@dataclass
class Trace:
    """Before training: of the decoder's MLPs only those train that, given what they wrote for the right picture, bring
    back most of an answer that another picture has taken away (PAVA).
    """

    layers: int = MISSING  # how many
    rows: int = MISSING  # forget rows that are looked at, drawn with the seed; 0: all

    def __post_init__(self) -> None:
        at_least("method.trace.layers", self.layers, 1)
        at_least("method.trace.rows", self.rows, 0)


@dataclass
class Boundary:
    """How far the pass `nearest` goes from a forget picture to the boundary of somebody else (Boundary Shrink)."""

    bound: float = MISSING  # in shares of a pixel's range

    def __post_init__(self) -> None:
        if not 0 < self.bound <= 1:
            raise SettingsError(f"method.boundary.bound={self.bound} must be above 0 and at most 1")


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


NO_METHODS = ("base", "gold", "start", "finetune", "pretrain")  # what models are called that forgot nobody


@dataclass
class Method:
    name: str = MISSING  # the name of its file in config/method
    loss: str | None = (
        MISSING  # a function of unlearn_losses; null: nothing trains, the edit is all, or what is combined
    )
    args: dict[str, Any] = field(default_factory=dict)  # its keyword-only parameters
    retain: str = "nll"  # the retain term: nll or kl
    other_answers: int = 1  # answers a row in the passes `unrelated`, `shuffled` and `alternate`
    l1: float = 0.0  # weight of the sum of absolute weights, on top of trainer.l1
    scope: str = "both"  # of the rows to forget and to keep, those it trains on: both, pictures, words
    noise: Noise | None = None
    boundary: Boundary | None = None
    visual: Visual | None = None
    trace: Trace | None = None
    edit: Edit | None = None
    hook: Hook | None = None
    combine: Combine | None = None
    init: Init | None = None
    mask: Mask | None = None
    gradient: Gradient | None = None
    activations: Activations | None = None
    multiplier: Multiplier | None = None
    task_vector: TaskVector | None = None

    def __post_init__(self) -> None:
        one_of("method.retain", self.retain, ("nll", "kl"))
        at_least("method.other_answers", self.other_answers, 1)
        at_least("method.l1", self.l1, 0)
        one_of("method.scope", self.scope, SCOPES)
        self.check_untrained()
        self.check_init()
        self.check_against()
        self.check_trace()
        if self.gradient and self.mask and self.mask.applies_to == "forget":
            raise SettingsError(
                f"method={self.name}: method.gradient and method.mask.applies_to=forget both say what becomes of the "
                "forget gradient; leave one out"
            )

    def check_untrained(self) -> None:
        """Raise SettingsError where nothing trains and nothing else is done, or a step of a training is named."""
        if self.hook and (self.loss is not None or self.edit):
            raise SettingsError(f"method={self.name}: method.hook stands in place of method.loss and method.edit")
        if self.combine and (self.loss is not None or self.edit or self.hook):
            raise SettingsError(
                f"method={self.name}: method.combine stands in place of method.loss, method.edit and method.hook"
            )
        if self.loss is not None:
            return
        if self.edit is None and self.hook is None and self.combine is None:
            raise SettingsError(f"method={self.name}: method.loss=null trains nothing; it needs a method.edit")
        if self.hook and self.noise is None:
            raise SettingsError(f"method={self.name}: method.hook needs a method.noise, towards which it steers")
        why = "a part of method.combine is a loss with its args" if self.combine else "method.loss=null trains nothing"
        steps = ("noise", "boundary", "visual", "trace", "init", "mask", "gradient", "activations", "multiplier")
        for name in ("args", "l1", *steps, "task_vector"):
            if getattr(self, name) and not (self.hook and name == "noise"):
                raise SettingsError(f"method={self.name}: {why}; leave method.{name} out")
        for name, value, plain in (("retain", self.retain, "nll"), ("other_answers", self.other_answers, 1)):
            if value != plain:
                raise SettingsError(f"method={self.name}: {why}; leave method.{name}={value} out")

    def check_init(self) -> None:
        """Raise SettingsError where a step takes all that an adapter adds for what was learned."""
        taken = [name for name in ("l1", "task_vector") if getattr(self, name)]
        if self.init and taken:
            raise SettingsError(
                f"method={self.name}: with method.init adapters begin with weights of the start, and "
                f"method.{taken[0]} takes all that an adapter adds for what was learned; leave one out"
            )

    def check_against(self) -> None:
        """Raise SettingsError where rows in words would count twice in what a mask compares."""
        against = self.mask.against if self.mask else []
        if self.scope != "pictures" and {"retain", "retain_words"} <= set(against):
            raise SettingsError(
                f"method.mask.against={against} with method.scope={self.scope}: retain holds retain_words, which would "
                "count double; leave one out"
            )
        if self.scope == "words" and "forget_words" in against:
            raise SettingsError(
                f"method.mask.against={against} with method.scope=words: forget rows would be compared with themselves"
            )

    def check_trace(self) -> None:
        """Raise SettingsError where layers are to be traced, or answers to be given, in a way that does not go."""
        for step in ("edit", "mask", "gradient", "init", "activations"):
            if self.trace and getattr(self, step):
                raise SettingsError(
                    f"method={self.name}: method.trace and method.{step} both say what trains; leave one out"
                )
        for step in ("trace", "visual"):
            if getattr(self, step) and self.scope != "pictures":
                raise SettingsError(f"method={self.name}: method.{step} is about pictures: set method.scope=pictures")

    def losses(self) -> list[str]:
        """The functions of unlearn_losses that it names."""
        looks = IMPORTANCE if self.edit or self.init else None
        return [each for each in (*self.trained_losses(), self.mask and self.mask.loss, looks) if each]

    def trained_losses(self) -> list[str]:
        """Those that something trains by."""
        parts = [part.loss for part in self.combine.parts.values()] if self.combine else []
        return [each for each in (self.loss, *parts) if each]


@functools.cache
def passes_named(loss: str) -> frozenset[str]:
    """The passes that a function of unlearn_losses names as its parameters, read without torch; none of no such one."""
    tree = ast.parse((ROOT / "unlearn_losses.py").read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    return frozenset(each.arg for each in functions[loss].args.args) if loss in functions else frozenset()


def check_forgets(method: Method) -> None:
    """Raise SettingsError for a method that is called like a model that forgot nobody, for which a table would take its
    models.
    """
    if method.name in NO_METHODS:
        raise SettingsError(
            f"method.name={method.name!r} is what a model is called that forgot nobody; name it otherwise"
        )


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


OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adamw_bnb_8bit", "paged_adamw_8bit")


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
    optimizer: str = MISSING  # one of OPTIMIZERS; sgd is without momentum
    precision: str = MISSING  # bf16: autocast over fp32 weights; fp32
    lora: Lora | None = MISSING  # null: every weight that is not frozen trains
    gradient_checkpointing: bool = False  # activations of each layer are computed again in the backward pass
    save: str = "merged"  # merged: the whole model; adapter: the adapter alone, with the fingerprint of its base
    bucket: int = 0  # examples of like length share a batch, drawn among so many batches; 0: batches are drawn blindly
    bucket_retain: bool = (
        False  # of a forgetting, with bucket: an epoch's retain rows go beside forget rows of like length
    )
    workers: int = -1  # processes that make batches ahead of the step; -1: up to 4 beside a CUDA GPU, else none
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
        one_of("trainer.optimizer", self.optimizer, OPTIMIZERS)
        one_of("trainer.save", self.save, ("merged", "adapter"))
        at_least("trainer.workers", self.workers, -1)
        if self.bucket_retain and not self.bucket:
            raise SettingsError("trainer.bucket_retain=true has no effect with trainer.bucket=0; 8 is usual")
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


def check_mask(method: Method, trainer: Trainer) -> None:
    """Raise SettingsError where a trainer would move weights that a method's mask holds still, has an adapter where
    the method edits or masks the model's own, or would move nothing after an edit.
    """
    if method.edit and method.loss is not None and trainer.lr == 0:
        raise SettingsError(
            f"trainer.lr=0: what method={method.name} trains after its edit would move nothing; a rate above 0 trains"
        )
    if method.edit and trainer.lora:
        raise SettingsError(f"method={method.name} edits the model's own weights: set trainer.lora=null")
    if method.hook and trainer.lora:
        raise SettingsError(f"method={method.name} keeps a hook beside the model's own weights: set trainer.lora=null")
    if method.mask and trainer.lora:
        raise SettingsError(f"method={method.name} masks the model's own weights: set trainer.lora=null")
    if method.mask and trainer.weight_decay:
        raise SettingsError(
            f"trainer.weight_decay={trainer.weight_decay} would move the weights that method={method.name} holds "
            "still: set it to 0"
        )


def check_adapters(method: Method, trainer: Trainer) -> None:
    """Raise SettingsError where adapters are missing that a method begins, or an adapter would be taken for what was
    learned, which it is not.
    """
    if method.combine and trainer.save == "adapter":
        raise SettingsError(
            f"trainer.save=adapter: what method={method.name} combines is no adapter; set trainer.save=merged"
        )
    if not method.init:
        return
    if not trainer.lora:
        raise SettingsError(f"method={method.name} says how adapters begin: it needs trainer.lora")
    for name, value, plain in (("save", trainer.save, "merged"), ("l1", trainer.l1, 0)):
        if value != plain:
            raise SettingsError(
                f"trainer.{name}={value}: with method={method.name} adapters begin with weights of the start, so that "
                f"an adapter alone is not what was learned; set trainer.{name}={plain}"
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
