"""Settings of results: scoring of tasks, the aggregator, benchmarks."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from settings.script import SettingsError, at_least, check_seed, choices, nearest, one_of
from settings.training import check_report_to

GOLD_SEEDS_APART = 1000  # the seeds of two golds of one base
# whom a task is about; holdout: people that no model was trained on; way: a forget task asked in another way
GROUPS = ("forget", "retain", "real", "holdout", "way")


@dataclass
class Scoring:
    group: str = MISSING  # one of GROUPS
    name: str = ""  # what a report calls the task; empty: its key
    multiple_choice: bool = MISSING  # Probability is the right answer's share among the options
    gate: bool = False  # counts for the memorisation gate
    members: str = ""  # of a holdout task: the forget task whose rows a membership attack tells from its own
    way_of: str = ""  # of a way: the forget task that it asks in another way
    way: str = ""  # of a way: what it is called
    leaks_only: bool = False  # of a way: it shows who is remembered; nobody is called forgotten, or not, by it
    modality: str = ""  # of a forget task: text or visual, for methods that forget only one; empty: either
    draws: int = 0  # of a forget task with short answers: in how many drawn answers the right one is looked for
    short: dict[str, str] = field(default_factory=dict)  # measure -> its heading in the short tables

    def __post_init__(self) -> None:
        one_of("scoring.group", self.group, GROUPS)
        if bool(self.members) != (self.group == "holdout"):
            raise SettingsError(
                f"scoring: a holdout task, and no other, names its members; got group={self.group} "
                f"members={self.members!r}"
            )
        if len({bool(self.way_of), bool(self.way), self.group == "way"}) > 1:
            raise SettingsError(
                f"scoring: a task of the group way, and no other, says way_of and way; got group={self.group} "
                f"way_of={self.way_of!r} way={self.way!r}"
            )
        one_of("scoring.modality", self.modality, ("", "text", "visual"))
        if self.leaks_only and self.group != "way":
            raise SettingsError(f"scoring.leaks_only=true is of ways; got group={self.group}")
        at_least("scoring.draws", self.draws, 0)
        if self.draws and self.group != "forget":
            raise SettingsError(f"scoring.draws={self.draws} is of forget tasks; got group={self.group}")


@dataclass
class Aggregate:
    # A log (eval_log_aggregated.json), the folder of an evaluated model, a glob of these, or a list of any of them.
    ckpt_result: Any = MISSING  # the models to judge
    retain_result: Any = MISSING  # gold; of several seeds a list
    base_result: Any = None  # the model before forgetting, of several the one that each began with; null: no gate
    start_result: Any = None  # the model before it was taught anybody; null: kept_taught is not known
    method_name: str | None = None  # null: what the records of the judged models say
    submitted_by: str = MISSING
    save_file: str = MISSING  # .csv, .json or .parquet; a row that is there is replaced, others stay
    show: str = MISSING  # what is printed: headline or all
    report_to: str = "none"  # none, tensorboard or wandb: where the row goes, too
    truth_ratio: str = MISSING
    scoring: dict[str, Scoring] = MISSING  # by task name

    def __post_init__(self) -> None:
        if self.method_name is not None and not self.method_name.strip():
            raise SettingsError(f"method_name={self.method_name!r} must name the method: it is the name of the row")
        one_of("truth_ratio", self.truth_ratio, ("geometric", "arithmetic"))
        one_of("show", self.show, ("headline", "all"))
        check_report_to("report_to", self.report_to)
        forget = [task for task, each in self.scoring.items() if each.group == "forget"]
        for task, each in self.scoring.items():
            if each.group == "way":
                one_of(f"scoring.{task}.way_of", each.way_of, forget)
        if Path(self.save_file).suffix not in (".csv", ".json", ".parquet"):
            raise SettingsError(f"save_file={self.save_file!r} must end in .csv, .json or .parquet")


@dataclass
class Benchmark:
    """A benchmark file. What it calls overrides is what one would type behind a stage's script."""

    name: str = MISSING  # results go to results/<name>
    modality: str = MISSING  # mm, nlp or cv: whose recipes run
    launch: bool = MISSING  # through `accelerate launch` instead of in this process
    seeds: list[int] = MISSING
    # Gold models: how many are trained, or the folders or hub ids of models that are there. The second's distance to
    # the first is the noise floor.
    golds: Any = MISSING
    # A base that is there, as a folder or hub id; {seed} in it stands for the seed. null: one is trained for each seed.
    base: str | None = None
    base_split: str = MISSING
    gold_split: str = MISSING
    forget_split: str = ""  # the rows of the people to forget; empty for faces: the data's division says whom to forget
    forget_people: str = ""  # what evaluation calls these people: forget10, where forget_split is forget10+tofu
    common: list[str] = field(default_factory=list)  # overrides of every stage
    finetune: list[str] = MISSING  # further overrides of every finetune.py
    forget: list[str] = MISSING
    eval: list[str] = MISSING
    pretrain: list[str] | None = None  # null: the base is made from a model that is there
    attack: list[str] | None = None  # overrides of every attack.py; [] changes nothing, null: nothing is attacked
    expected_seconds: dict[str, float] = MISSING  # of a finetune, forget and eval stage, for the time left
    # Row name -> further overrides of its forget.py. The method is the row's name, or what method= says.
    runs: dict[str, list[str]] = MISSING
    # Row name -> a model made elsewhere, which is evaluated as the runs are: a folder or a hub id. {seed} in it stands
    # for the seed of the base that it was made from; without it one model is judged by the base and gold of each seed.
    models: dict[str, str] = field(default_factory=dict)

    @property
    def given_golds(self) -> list[str]:
        """Golds that are there; none: they are trained."""
        return self.golds if isinstance(self.golds, list) else []

    @property
    def trained_golds(self) -> int:
        """How many golds are trained for each seed."""
        return 0 if self.given_golds else self.golds

    @property
    def rows(self) -> list[str]:
        """The rows of one seed beside base, gold and the start."""
        return [*self.runs, *self.models]

    def row_overrides(self, row: str) -> list[str]:
        """The overrides that make a row what it is: its method, and what it changes."""
        changes = self.runs[row]
        names_method = any(change.startswith("method=") for change in changes)
        return changes if names_method else [f"method={row}", *changes]

    def __post_init__(self) -> None:
        one_of("benchmark.modality", self.modality, ("mm", "nlp", "cv"))
        self.check_given()
        if not self.seeds:
            raise SettingsError("benchmark.seeds=[] names no seed; [0] is the usual one")
        if len(set(self.seeds)) < len(self.seeds):
            raise SettingsError(f"benchmark.seeds={self.seeds} names a seed twice: its models would count twice")
        of_golds = [seed + GOLD_SEEDS_APART * number for seed in self.seeds for number in range(self.trained_golds)]
        if len(set(of_golds)) < len(of_golds):
            raise SettingsError(
                f"benchmark.seeds={self.seeds} lie a multiple of {GOLD_SEEDS_APART} apart: golds of two bases would be "
                "one model"
            )
        for seed in self.seeds:
            check_seed("benchmark.seeds", seed + GOLD_SEEDS_APART * max(0, self.trained_golds - 1))
        self.check_people()
        self.check_stages()
        for row in self.runs:
            check_row_name("benchmark.runs", row)
        for row in self.models:
            check_row_name("benchmark.models", row)
        for row in self.runs:
            self.check_method(row)
        for row in self.models:
            self.check_model(row)

    def check_given(self) -> None:
        """Raise SettingsError for golds that are neither a number nor models, or models that cannot serve here."""
        if isinstance(self.golds, list):
            if not self.golds or not all(isinstance(path, str) and path.strip() for path in self.golds):
                raise SettingsError(f"benchmark.golds={self.golds!r} must name models that are there, or say how many")
        elif isinstance(self.golds, bool) or not isinstance(self.golds, int):
            raise SettingsError(
                f"benchmark.golds={self.golds!r} must be a number of models, or a list of their folders"
            )
        else:
            at_least("benchmark.golds", self.golds, 1)
        if self.base is not None and not self.base.strip():
            raise SettingsError("benchmark.base='' must name a model that is there; null trains one")
        if self.attack is not None:
            self.check_attacked()

    def check_attacked(self) -> None:
        """Raise SettingsError where base and golds cannot serve attacks."""
        is_given = bool(self.given_golds) or self.base is not None
        if self.modality == "cv" and is_given:
            raise SettingsError(
                "benchmark.attack trains networks as benchmark.finetune says, and models that are there may have been "
                "taught otherwise: set benchmark.attack=null, or leave out benchmark.base and benchmark.golds"
            )
        if self.modality == "cv":
            return
        count = len(self.given_golds) or self.trained_golds
        if count < 2:
            raise SettingsError(
                f"benchmark.golds={self.golds!r}: attacks are judged by two golds, and the row gold by two others; set "
                "3, or 2, or benchmark.attack=null"
            )
        if self.given_golds and (self.base is None or "{seed}" in self.base):
            raise SettingsError(
                "benchmark.attack moves golds towards their base, and golds that are there serve every seed: name one "
                "benchmark.base that is there, or set benchmark.attack=null"
            )

    def check_people(self) -> None:
        """Raise SettingsError unless training and evaluation are told of the same people to forget."""
        told = {"forget_split": self.forget_split, "forget_people": self.forget_people}
        for name, value in told.items():
            if bool(value) == (self.modality == "cv"):
                faces = "be '', because the data's division says whom to forget"
                allowed = faces if self.modality == "cv" else "name the people to forget"
                raise SettingsError(f"benchmark.{name}={value!r} must {allowed} (modality={self.modality})")
        if not self.forget_split.startswith(self.forget_people):
            raise SettingsError(
                f"benchmark.forget_people={self.forget_people!r} must be the people of "
                f"forget_split={self.forget_split!r}: its name, or how its name begins"
            )

    def check_stages(self) -> None:
        """Raise SettingsError for a kind of stage that this modality lacks, or whose seconds nobody guessed."""
        further = {"pretrain": self.pretrain, "attack": self.attack}
        if self.pretrain is not None and self.modality != "cv":
            raise SettingsError("benchmark.pretrain: only faces have it (modality=cv); set it to null")
        kinds = ("finetune", "forget", "eval", *(kind for kind, overrides in further.items() if overrides is not None))
        if missing := [kind for kind in kinds if kind not in self.expected_seconds]:
            raise SettingsError(f"benchmark.expected_seconds.{missing[0]} is required: a rough guess will do")

    def check_model(self, row: str) -> None:
        """Raise SettingsError for a model made elsewhere that has the name of a run."""
        if row in self.runs:
            raise SettingsError(f"benchmark.models.{row}: a row of this name is there already; give it another")

    def check_method(self, row: str) -> None:
        """Raise SettingsError for a run of no known method."""
        method = next(text for text in self.row_overrides(row) if text.startswith("method=")).removeprefix("method=")
        if method not in (known := choices("method")):
            raise SettingsError(
                f"benchmark.runs.{row}: method={method!r} is not known{nearest(method, known)}; a row is called like "
                f"its method, or names it ({row}: [method=npo]); choose from {', '.join(known)}"
            )


def check_row_name(setting: str, row: str) -> None:
    """Raise SettingsError for a row that has another model's name, or one that no folder can have."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", row):
        raise SettingsError(
            f"{setting}: a row's name is part of its model's folder, and {row!r} is none; use letters, digits "
            "and _ . + -"
        )
    if row in ("base", "gold", "start"):
        raise SettingsError(f"{setting}.{row}: a row of this name is there already; give it another")


@dataclass
class RunBenchmark:
    benchmark: Benchmark = MISSING
    results_dir: str = MISSING
    overwrite: bool = False  # whether finished stages may be replaced that were made of something else
    workers: int = 1  # seeds that run side by side, each on a GPU of its own where there are several

    def __post_init__(self) -> None:
        at_least("workers", self.workers, 1)
        if self.workers > len(self.benchmark.seeds):
            raise SettingsError(
                f"workers={self.workers} is more than benchmark.seeds={self.benchmark.seeds}: a worker runs the stages "
                "of one seed"
            )
