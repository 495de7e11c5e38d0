"""Typed settings of attacks on models that see and read: what is tried, on which tasks, and against which base."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from settings.inputs import Inputs
from settings.language import Data, EvalLimits, Model, need_half_weights
from settings.script import ROOT, SettingsError, check_seed, one_of

KINDS = ("input", "weights", "reader")  # what an attack changes: the question, the model, or how it is read
KEY_TOKENS, HITS, READ = "key_tokens", "hits_in_draws", "read"
OF_ANSWERS = ("exact_memorization", "rouge", "probability_without_end", KEY_TOKENS)  # what answers are judged on
MEASURES_OF_ATTACKS = (*OF_ANSWERS, HITS, READ)  # the last two are only of attacks that name them
CLEAN = "clean"  # the same rows without an attack, which every run asks first


@dataclass
class Attack:
    """One file of config/attack: a function of engine/attacks.py with its values."""

    name: str = MISSING  # the name of its file
    kind: str = MISSING  # one of KINDS
    attack: str = MISSING  # the function
    args: dict[str, Any] = field(default_factory=dict)  # its keyword-only parameters
    # what it varies are several tries of one attack: of each row the try counts that gives most away
    worst_of_tries: bool = False
    measures: list[str] = field(default_factory=list)  # what it is judged on; empty: every measure of answers

    def __post_init__(self) -> None:
        one_of(f"attacks.{self.name}.kind", self.kind, KINDS)
        for measure in self.measures:
            one_of(f"attacks.{self.name}.measures", measure, MEASURES_OF_ATTACKS)
        if self.name == CLEAN:
            raise SettingsError(f"attacks.{CLEAN}: this name is that of the rows without an attack")

    def files(self) -> list[str]:
        """What it reads besides."""
        file = self.args.get("file")
        return [str(ROOT / file)] if isinstance(file, str) else []


@dataclass
class AttackRun(EvalLimits):
    model_path: str = MISSING
    base_path: str = MISSING  # the model before forgetting, to which weights are compared
    save_dir: str = MISSING
    forget: str = MISSING  # whose people were forgotten, as the data calls them
    seed: int = MISSING  # decides every draw; must be the same for all models that are compared
    attacked: dict[str, str] = MISSING  # task about the forgotten -> the same questions about kept people
    attacks: dict[str, Attack] = MISSING
    only: list[str] = field(default_factory=list)  # names of the attacks to run; empty: all
    overwrite: bool = MISSING
    model: Model = MISSING
    data: Data = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed("seed", self.seed)
        need_half_weights(self.model)
        if not self.attacked:
            raise SettingsError("attacked={} names no task: there is nothing to attack")
        for forget, control in self.attacked.items():
            one_of("attacked", forget, list(self.tasks))
            one_of(f"attacked.{forget}", control, list(self.tasks))
            places = [(self.tasks[name].dataset, self.tasks[name].split) for name in (forget, control)]
            if control in self.attacked or places[0] == places[1]:
                raise SettingsError(f"attacked.{forget}={control!r} asks about the forgotten, too: it is no control")
        for key, attack in self.attacks.items():
            if key != attack.name:
                raise SettingsError(f"attacks.{key}.name={attack.name!r} must be {key!r}, its place")
        for name in self.only:
            one_of("only", name, list(self.attacks))
        if not self.chosen:
            raise SettingsError("attacks is empty: there is nothing to try")
        asked = {*self.attacked, *self.attacked.values()}
        self.tasks = {name: task for name, task in self.tasks.items() if name in asked}

    @property
    def chosen(self) -> dict[str, Attack]:
        """The attacks that are run, by name."""
        return {name: each for name, each in self.attacks.items() if not self.only or name in self.only}

    def inputs(self) -> Inputs:
        files = [file for attack in self.chosen.values() for file in attack.files()]
        makers = [*self.model.makers(self.model_path), *self.data.makers()]
        models = [self.model_path, self.base_path]
        return Inputs(self.datasets(), models, [*self.files(), *files], makers=makers)
