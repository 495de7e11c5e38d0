"""Typed settings that all tracks share, how a script reads its own, and the one-line errors a wrong value earns."""

import contextlib
import difflib
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

ROOT = Path(__file__).resolve().parent
CONFIG_DIR = str(ROOT / "config")  # absolute: a relative one is resolved from the caller's file and fails on import
GROUPS = ("forget", "retain", "real", "holdout")  # whom a task is about; holdout: people that no model was trained on

Schema = TypeVar("Schema")


class SettingsError(ValueError):
    """The user's mistake in one line: which field, which value, what is allowed."""


def one_of(name: str, value: Any, allowed: tuple | list) -> None:
    """Raise SettingsError unless `value` is among `allowed`."""
    if value not in allowed:
        raise SettingsError(f"{name}={value!r} is not known{nearest(str(value), allowed)}; choose from {', '.join(map(str, allowed))}")


def nearest(word: str, known: Any) -> str:
    """` (did you mean 'x'?)` for the closest of `known`, or an empty string."""
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def at_least(name: str, value: float, minimum: float) -> None:
    """Raise SettingsError if `value` is below `minimum`."""
    if value < minimum:
        raise SettingsError(f"{name}={value} must be at least {minimum}")


def share_of(name: str, value: float) -> None:
    """Raise SettingsError unless `value` is above 0 and at most 1."""
    if not 0 < value <= 1:
        raise SettingsError(f"{name}={value} must be above 0 and at most 1")


def cuda_is_there() -> bool:
    import torch  # here, because the aggregator reads settings without it

    return torch.cuda.is_available()


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

    def __post_init__(self) -> None:
        at_least("method.activations.layer", self.layer, 0)
        if not self.trained or not set(self.trained) <= set(range(self.layer + 1)):
            raise SettingsError(f"method.activations.trained={self.trained} must name layers between 0 and layer={self.layer}")


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

    scale: float = MISSING


@dataclass
class Method:
    name: str = MISSING  # the name of its file in config/method
    loss: str = MISSING  # a function of unlearn_losses
    args: dict[str, Any] = field(default_factory=dict)  # its keyword-only parameters
    retain: str = "nll"  # the retain term: nll or kl
    other_answers: int = 1  # answers a row in the passes `unrelated` and `shuffled`
    l1: float = 0.0  # weight of the sum of absolute weights, on top of trainer.l1
    restart: bool = False  # faces: begins anew with model.path, the start of the finetuning, in place of model_path: what gold is
    mask: Mask | None = None
    activations: Activations | None = None
    multiplier: Multiplier | None = None
    task_vector: TaskVector | None = None

    def __post_init__(self) -> None:
        one_of("method.retain", self.retain, ("nll", "kl"))
        at_least("method.other_answers", self.other_answers, 1)
        at_least("method.l1", self.l1, 0)


@dataclass
class Lora:
    r: int = MISSING
    alpha: int = MISSING
    dropout: float = MISSING

    def __post_init__(self) -> None:
        at_least("trainer.lora.r", self.r, 1)
        at_least("trainer.lora.dropout", self.dropout, 0)
        if self.dropout >= 1:
            raise SettingsError(f"trainer.lora.dropout={self.dropout} must be below 1")


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
    bucket: int = 0  # examples of like length share a batch, drawn among so many batches; 0: batches are drawn blindly
    l1: float = 0.0  # weight of the sum of absolute weights; with LoRA of the merged update
    report_to: str = "none"  # none or wandb

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation"):
            at_least(f"trainer.{name}", getattr(self, name), 1)
        for name in ("lr", "weight_decay", "warmup_ratio", "max_grad_norm", "bucket", "l1"):
            at_least(f"trainer.{name}", getattr(self, name), 0)
        if self.warmup_ratio >= 1:
            raise SettingsError(f"trainer.warmup_ratio={self.warmup_ratio} must be below 1: it is a share of the steps")
        one_of("trainer.precision", self.precision, ("bf16", "fp32"))
        one_of("trainer.schedule", self.schedule, ("linear", "cosine", "constant", "constant_with_warmup"))
        one_of("trainer.optimizer", self.optimizer, ("adamw_torch", "sgd", "adamw_bnb_8bit", "paged_adamw_8bit"))
        one_of("trainer.report_to", self.report_to, ("none", "wandb"))
        needed = {"wandb": self.report_to == "wandb", "bitsandbytes": "8bit" in self.optimizer}
        for package, wanted in needed.items():
            if wanted and importlib.util.find_spec(package) is None:
                raise SettingsError(f"trainer: {package} is not installed (pip install -r req-gpu.txt)")
        if "8bit" in self.optimizer and not cuda_is_there():
            raise SettingsError(f"trainer.optimizer={self.optimizer} needs a CUDA GPU, and this machine has none; adamw_torch runs anywhere")


@dataclass
class Scoring:
    group: str = MISSING  # forget, retain or real
    multiple_choice: bool = MISSING  # Probability is the right answer's share among the options
    gate: bool = False  # counts for the memorisation gate
    members: str = ""  # of a holdout task: the forget task whose rows a membership attack tells from its own

    def __post_init__(self) -> None:
        one_of("scoring.group", self.group, GROUPS)
        if bool(self.members) != (self.group == "holdout"):
            raise SettingsError(f"scoring: a holdout task, and no other, names its members; got group={self.group} members={self.members!r}")


@dataclass
class Aggregate:
    ckpt_result: str = MISSING  # eval_log_aggregated.json of the model to judge
    retain_result: Any = MISSING  # the same of the gold model; a list: golds of several seeds
    base_result: str | None = None  # the same of the model before forgetting; null: no gate, no distance to gold
    method_name: str = MISSING
    submitted_by: str = MISSING
    save_file: str = MISSING  # .csv or .json
    truth_ratio: str = MISSING
    scoring: dict[str, Scoring] = MISSING  # by task name

    def __post_init__(self) -> None:
        one_of("truth_ratio", self.truth_ratio, ("geometric", "arithmetic"))
        if Path(self.save_file).suffix not in (".csv", ".json"):
            raise SettingsError(f"save_file={self.save_file!r} must end in .csv or .json")


@dataclass
class Run:
    """One forgetting run of a benchmark: a method with what it changes in its settings."""

    method: str = MISSING
    overrides: list[str] = field(default_factory=list)


@dataclass
class Benchmark:
    name: str = MISSING  # results go to results/<name>
    modality: str = MISSING  # mm, nlp or cv: whose recipes run
    launch: bool = MISSING  # through `accelerate launch` instead of in this process
    seeds: list[int] = MISSING
    golds: int = MISSING  # gold models; the second's seed is another, its distance to the first the noise floor
    base_split: str = MISSING
    gold_split: str = MISSING
    forget_split: str = MISSING  # empty: the data's own division says whom to forget
    finetune: list[str] = MISSING  # overrides of every finetune.yaml run
    forget: list[str] = MISSING  # overrides of every forget.yaml run
    eval: list[str] = MISSING
    expected_seconds: dict[str, float] = MISSING  # of a finetune, forget and eval stage, for the time left
    runs: dict[str, Run] = MISSING  # row name -> run
    pretrain: list[str] | None = None  # overrides of pretrain.yaml; null: the base is made from a model that is there
    attack: list[str] | None = None  # overrides of every attack.yaml run; null: nothing is attacked


@dataclass
class RunBenchmark:
    benchmark: Benchmark = MISSING
    results_dir: str = MISSING


def read(cfg: DictConfig, schema: type[Schema]) -> Schema:
    """Return `cfg` as a `schema` object; raise SettingsError naming field, value and what is allowed."""
    try:
        OmegaConf.resolve(cfg)
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), cfg))
    except MissingMandatoryValue as error:
        raise SettingsError(f"{error.full_key} is required: set it in its YAML file or as {error.full_key}=...") from None
    except ConfigKeyError as error:
        raise SettingsError(unknown_setting(error.full_key, schema)) from None
    except OmegaConfBaseException as error:
        raise SettingsError(f"{error.full_key or 'config'}: {one_line(error)}") from None
    if missing := next(missing_fields(settings), None):
        raise SettingsError(f"{missing} is required: set it in its YAML file or as {missing}=...")
    return settings


def missing_fields(settings: Any, prefix: str = "") -> Any:
    """Yield the dotted names of the fields nobody set."""
    inside = {item.name: getattr(settings, item.name) for item in fields(settings)} if is_dataclass(settings) else settings
    if isinstance(inside, dict):
        for key, value in inside.items():
            yield from missing_fields(value, f"{prefix}{key}.")
    elif settings == MISSING:
        yield prefix.rstrip(".")


def unknown_setting(full_key: str, schema: type) -> str:
    """One line about a setting that `schema` does not have, with the nearest one it has."""
    node, *path = schema, *full_key.split(".")
    for name in path[:-1]:
        node = next((t for t in (get_type_hints(node).get(name, node), *get_args(get_type_hints(node).get(name))) if is_dataclass(t)), node)
    known = [item.name for item in fields(node)]
    if path[-1] in known:
        return f"{full_key} does not stand in its YAML file: write it there, or +{full_key}=... on the command line"
    return f"unknown setting {full_key}{nearest(path[-1], known)}; here one may set {', '.join(known)}"


def one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error).split("\n    full_key")[0]).strip()


def hydra_line(error: Exception, schema: type) -> str:
    """Hydra's own many-line errors, said in one."""
    text = str(error)
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return unknown_setting(unknown[1], schema)
    if choice := re.search(r"Could not find '([^']+)'", text):
        group, _, name = choice[1].rpartition("/")
        known = sorted(path.stem for path in Path(CONFIG_DIR, group).glob("*.yaml"))
        return f"{group}={name!r} is not known{nearest(name, known)}; choose from {', '.join(known)}"
    if missing_group := re.search(r"Could not override '?([\w./-]+)'?\.?\s", text):
        return unknown_setting(missing_group[1], schema)
    return one_line(error)


@contextlib.contextmanager
def one_line_errors(schema: type) -> Iterator[None]:
    """End the process with one line on stderr and exit code 1 when the user's settings or data are at fault."""
    try:
        yield
    except (SettingsError, HydraException, OmegaConfBaseException) as error:
        # each process of a launch says its own: a row that cannot be read is met by one of them only
        print(f"error: {str(error) if isinstance(error, SettingsError) else hydra_line(error, schema)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; what was finished stays", file=sys.stderr)
        sys.exit(130)


def script(config_name: str, schema: type[Schema]) -> Callable:
    """Turn a recipe `f(settings)` into the `main()` of a script that reads config/<config_name>.yaml and the command line.

    A user's mistake ends in one line on stderr and exit code 1. The recipe itself stays at hand as `main.recipe`, and how to read its settings
    as `main.compose(overrides)`, for whoever runs recipes in one process.
    """

    def decorate(recipe: Callable[[Schema], None]) -> Callable[[], None]:
        @functools.wraps(recipe)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # else hydra prints its own many lines and exits by itself
            run = hydra.main(version_base=None, config_path=CONFIG_DIR, config_name=config_name)
            with one_line_errors(schema):
                run(one_line_errors(schema)(lambda cfg: recipe(read(cfg, schema))))()

        main.recipe, main.compose = recipe, functools.partial(compose, config_name, schema)
        return main

    return decorate


def compose(config_name: str, schema: type[Schema], overrides: list[str]) -> Schema:
    """The settings that `config_name` gives with `overrides`, as the script itself would read them.

    Raises SettingsError.
    """
    GlobalHydra.instance().clear()  # a script that composes others' settings is itself inside hydra's
    with hydra.initialize_config_dir(CONFIG_DIR, version_base=None):
        try:
            return read(hydra.compose(config_name, overrides), schema)
        except HydraException as error:
            raise SettingsError(hydra_line(error, schema)) from None
