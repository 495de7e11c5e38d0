"""Typed settings of membership inference about people, through shadow language models that learned some of them."""

from dataclasses import dataclass, replace

from omegaconf import MISSING

from settings.inputs import Inputs
from settings.language import Data, Finetune, Forget, Model, need_half_weights, refuse_quantize
from settings.script import SettingsError, at_least, check_seed, check_shadows_apart
from settings.training import FINETUNING, Method, Trainer

LEAST_BLOCKS = 3  # one is attacked, and of every person the others must have two models of each role
LEARNED, FORGET, RETAIN = "learned", "forget", "retain"  # the splits of a shadow model's own rows


@dataclass
class Membership:
    model_path: str = MISSING  # the model that every shadow model begins with
    save_dir: str = MISSING
    shadows_dir: str = MISSING  # what learned or was trained anew is found there by the next method
    split: str = MISSING  # the rows that base is taught
    people: str = MISSING  # the split whose rows stand grouped by person
    reworded: str = MISSING  # the same rows, asked in other words; empty: there are none
    models: int = MISSING
    parts: int = MISSING  # one of so many parts of a model's people is forgotten
    batch_size: int = MISSING  # rows that are scored at once
    seed: int = MISSING  # decides who learns whom, and each model's own seed
    overwrite: bool = MISSING
    model: Model = MISSING
    data: Data = MISSING
    finetune: Trainer = MISSING  # how the models learn
    trainer: Trainer = MISSING  # how they forget
    method: Method = MISSING

    @property
    def block(self) -> int:
        """So many models have every role about every person in the same numbers, and are attacked together."""
        return 2 * self.parts

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        check_shadows_apart(self.save_dir, self.shadows_dir)
        at_least("parts", self.parts, 2)
        at_least("batch_size", self.batch_size, 1)
        at_least("models", self.models, LEAST_BLOCKS * self.block)
        if self.models % self.block:
            raise SettingsError(
                f"models={self.models} must be a multiple of {self.block} (2 * parts): then every person was forgotten "
                "by as many models"
            )
        if self.data.people is not None:
            raise SettingsError("data.people: the shadow models choose among all people of a split; set it to null")
        if self.people == self.reworded:
            raise SettingsError(f"reworded={self.reworded!r} is the split of people, too: it asks in the same words")
        need_half_weights(self.model)
        refuse_quantize(self.model, "shadow models, which are evaluated")
        self.learning("rows", LEARNED, "learned", 0)
        self.forgetting("rows", "learned", "forgot", 0)

    def learning(self, rows: str, split: str, save_dir: str, seed: int) -> Finetune:
        """What nlp/finetune.py is told of a shadow model.

        Args:
            rows: the folder of the model's own rows.
            split: LEARNED, or RETAIN for a model that never met those whom the others forget.
            save_dir: where the model is written.
            seed: the model's own.
        """
        return Finetune(trainer=self.finetune, **self.training(rows, split, save_dir, seed, self.model_path))

    def forgetting(self, rows: str, learned: str, save_dir: str, seed: int) -> Forget:
        """What nlp/forget.py is told of it, as `learning` says; `learned`: the folder of the model that learned."""
        told = self.training(rows, FORGET, save_dir, seed, learned)
        return Forget(trainer=self.trainer, method=self.method, retain_split=RETAIN, **told)

    def training(self, rows: str, split: str, save_dir: str, seed: int, model_path: str) -> dict:
        data = replace(self.data, path=rows)  # text_path stays: people whom no model met stand there
        told = {"split": split, "save_dir": save_dir, "seed": seed, "model_path": model_path, "data": data}
        return {**told, "modality": "text", "model": self.model, "overwrite": True}

    def inputs(self) -> Inputs:
        files = self.forgetting("rows", "learned", "forgot", 0).inputs().files
        losses = [*FINETUNING.losses(), *self.method.losses()]
        makers = [*self.model.makers(self.model_path), *self.data.makers()]
        return Inputs([self.data.path, self.data.text_path], [self.model_path], files, losses, makers)
