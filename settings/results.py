"""Settings of results: scoring of tasks, the aggregator, benchmarks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from settings.script import SettingsError, at_least, one_of

GROUPS = ("forget", "retain", "real", "holdout")  # whom a task is about; holdout: people that no model was trained on


@dataclass
class Scoring:
    group: str = MISSING  # forget, retain or real
    multiple_choice: bool = MISSING  # Probability is the right answer's share among the options
    gate: bool = False  # counts for the memorisation gate
    members: str = ""  # of a holdout task: the forget task whose rows a membership attack tells from its own
    short: dict[str, str] = field(default_factory=dict)  # measure -> its heading in the short tables

    def __post_init__(self) -> None:
        one_of("scoring.group", self.group, GROUPS)
        if bool(self.members) != (self.group == "holdout"):
            raise SettingsError(
                f"scoring: a holdout task, and no other, names its members; got group={self.group} "
                f"members={self.members!r}"
            )


@dataclass
class Aggregate:
    ckpt_result: str = MISSING  # eval_log_aggregated.json of the model to judge
    retain_result: Any = MISSING  # the same of the gold model; a list: golds of several seeds
    base_result: str | None = None  # the same of the model before forgetting; null: no gate, no distance to gold
    method_name: str = MISSING
    submitted_by: str = MISSING
    save_file: str = MISSING  # .csv, .json or .parquet
    show: str = MISSING  # what is printed: headline or all
    truth_ratio: str = MISSING
    scoring: dict[str, Scoring] = MISSING  # by task name

    def __post_init__(self) -> None:
        one_of("truth_ratio", self.truth_ratio, ("geometric", "arithmetic"))
        one_of("show", self.show, ("headline", "all"))
        if Path(self.save_file).suffix not in (".csv", ".json", ".parquet"):
            raise SettingsError(f"save_file={self.save_file!r} must end in .csv, .json or .parquet")


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

    def __post_init__(self) -> None:
        one_of("benchmark.modality", self.modality, ("mm", "nlp", "cv"))
        at_least("benchmark.golds", self.golds, 1)
        if not self.seeds:
            raise SettingsError("benchmark.seeds=[] names no seed; [0] is the usual one")
        further = {"pretrain": self.pretrain, "attack": self.attack}
        for kind, overrides in further.items():
            if overrides is not None and self.modality != "cv":
                raise SettingsError(f"benchmark.{kind}: only faces have it (modality=cv); set it to null")
        kinds = ("finetune", "forget", "eval", *(kind for kind, overrides in further.items() if overrides is not None))
        if missing := [kind for kind in kinds if kind not in self.expected_seconds]:
            raise SettingsError(f"benchmark.expected_seconds.{missing[0]} is required: a rough guess will do")


@dataclass
class RunBenchmark:
    benchmark: Benchmark = MISSING
    results_dir: str = MISSING
