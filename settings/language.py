"""Typed settings of the tracks that see and read: models, rows, tasks, finetuning, forgetting, evaluation."""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import MISSING

from settings.inputs import Inputs, Maker
from settings.script import ROOT, SettingsError, at_least, check_seed, one_of, share_of
from settings.training import (
    FINETUNING,
    Activations,
    Method,
    Trainer,
    check_adapters,
    check_forgets,
    check_mask,
    check_report_to,
    need_cuda_for,
    passes_named,
)


@dataclass
class Tags:
    """What stands before a question and before its answer, for a model without a chat template."""

    question: str = MISSING
    answer: str = MISSING


@dataclass
class Model:
    name: str = MISSING  # the name of its file in config/model
    path: str = MISSING  # hub id or folder of the base model
    freeze: list[str] = MISSING  # parts (by name) that never train, e.g. vision_tower
    lora_targets: str = MISSING  # "language_model": its linear layers; else a regular expression on module names
    attention: str = MISSING  # auto (sdpa, or eager where the model has no sdpa), sdpa, eager, flash_attention_2
    # dtype of weights that do not train: float32, or bfloat16, which rounds away small updates of a merged adapter
    weights: str = MISSING
    quantize: str = "none"  # none, 8bit, 4bit: frozen weights under LoRA, by bitsandbytes on a CUDA GPU
    trust_remote_code: bool = False
    tags: Tags | None = None  # null: the tokenizer's or processor's chat template
    # what stands over an answer in a per-token tensor of the processor; others go on as the prompt ends
    answer_values: dict[str, int] = field(default_factory=dict)
    made_by: str = ""  # `python -m <made_by> --out <path>` makes the model when its folder is missing
    keep_mib: int = 512  # of encoded prompts that each process keeps; their pictures in 8 bits where 32 have no room

    def __post_init__(self) -> None:
        at_least("model.keep_mib", self.keep_mib, 0)
        one_of("model.weights", self.weights, ("float32", "bfloat16"))
        one_of("model.quantize", self.quantize, ("none", "8bit", "4bit"))
        one_of("model.attention", self.attention, ("auto", "sdpa", "eager", "flash_attention_2"))
        try:
            re.compile(self.lora_targets)
        except re.error as error:
            said = f"model.lora_targets={self.lora_targets!r} is no regular expression: {error}"
            raise SettingsError(said) from None

    def makers(self, path: str) -> list[Maker]:
        """What makes the model at `path`, if that is the base model and is made by a module."""
        return [Maker("model.made_by", self.made_by, path)] if self.made_by and path == self.path else []


@dataclass
class Columns:
    """Names of the columns of a dataset; an empty name: the data has no such column."""

    image: str = ""
    caption: str = ""
    question: str = ""
    answer: str = ""
    person: str = ""
    # what an evaluation reads besides; config/tasks says which task reads what
    paraphrased_caption: str = "paraphrased_caption"
    perturbed_captions: str = "perturbed_captions"
    perturbed_names: str = "perturbed_names"
    paraphrased_answer: str = "paraphrased_answer"
    perturbed_answer: str = "perturbed_answer"
    options: str = "options"
    paraphrased_question: str = "paraphrased_question"


@dataclass
class ChosenPeople:
    """A smaller world: so many people of each split named, drawn from the seed; of every other split the rows about
    them.
    """

    seed: int = MISSING
    of: dict[str, int] = MISSING

    def __post_init__(self) -> None:
        for split, count in self.of.items():
            at_least(f"data.people.of.{split}", count, 1)


@dataclass
class Splits:
    """What the scripts of one modality train on where nobody names a split."""

    full: str = MISSING  # everybody
    retain: str = MISSING  # everybody but the people to forget
    forget: str = MISSING  # the people to forget


@dataclass
class Data:
    name: str = MISSING  # the name of its file in config/data
    path: str = MISSING  # pictures, captions and questions: hub id, dataset folder, or folder of <split>.jsonl
    text_path: str = MISSING  # the same people in TOFU's layout
    columns: Columns = MISSING
    rows_per_person: int = MISSING  # rows of text_path stand grouped by person, this many each
    holdout_split: str = MISSING  # split of text_path about people whom no model was trained on
    idk_questions: str = MISSING  # files of "I don't know" answers, one a line
    idk_pictures: str = MISSING
    alternatives: str = ""  # file of invented answers to the rows to forget; empty: there are none
    people: ChosenPeople | None = None  # null: all; else of the splits of text_path that stand grouped by person
    splits: dict[str, Splits] = field(default_factory=dict)  # by modality
    forget: str = ""  # what evaluation calls the people to forget, where nobody says it
    made_by: str = ""  # `python -m <made_by> --out <root>` makes the folders when they are missing
    made_at: str = ""  # the root it writes
    made_with: dict[str, int] = field(default_factory=dict)  # further options of that module: people: 100

    def __post_init__(self) -> None:
        at_least("data.rows_per_person", self.rows_per_person, 1)

    def makers(self) -> list[Maker]:
        return [Maker("data.made_by", self.made_by, self.made_at, self.made_with)] if self.made_by else []


@dataclass
class People:
    """A split with a column of names."""

    dataset: str = MISSING
    split: str = MISSING
    person: str = MISSING


ANY = "any"


@dataclass
class Affix:
    """Innocent words around every question of a task, from a file."""

    file: str = MISSING  # one affix per line, in which {question} stands for the question
    seed: int = 0  # another seed draws another one
    # of the words: before or behind the question; any: all of the file are tried, and those count that give most away
    place: str = MISSING

    def __post_init__(self) -> None:
        one_of("tasks: affix.place", self.place, ("before", "behind", ANY))


@dataclass
class Task:
    dataset: str = MISSING  # hub id or folder
    split: str = MISSING
    answer: str = MISSING  # column of the right answer
    image: str = ""  # column of the picture; empty: a question in words
    question: str = ""  # column of the question; empty: `ask`
    reworded: str = ""  # column of the question in other words, which is then asked; empty: the question as it is
    affix: Affix | None = None  # null: nothing around the question
    ask: str = ""  # "caption" or "name": the questions for rows without one
    paraphrase: str = ""  # column of the paraphrased answer; empty: the answer itself
    perturbed: str = ""  # column of the list of wrong answers; empty: the answer alone is scored
    person: str = ""  # column of the person; empty: by rows_per_person
    rows_per_person: int = 0  # rows stand grouped by person, this many each; 0: not known
    asked_of_each: int = 0  # rows of each person that are asked; 0: all
    optional: bool = False  # left out, and that is said, where the data lacks the split or the question in other words
    chosen: ChosenPeople | None = None  # null: all people
    people: People | None = (
        None  # where the names of those persons stand, so that one person is the same in pictures and in words
    )

    def __post_init__(self) -> None:
        if bool(self.question) == bool(self.ask):
            raise SettingsError(
                "tasks: a task names either question (a column) or ask (caption, name); got "
                f"question={self.question!r} ask={self.ask!r}"
            )
        at_least("tasks: asked_of_each", self.asked_of_each, 0)
        if self.reworded and not self.question:
            raise SettingsError(f"tasks: reworded={self.reworded!r} has no effect on a task that names no question")

    def files(self) -> list[str]:
        """What it reads besides."""
        return [str(ROOT / self.affix.file)] if self.affix else []

    def datasets(self) -> list[str]:
        """Where its rows and the names of their people stand."""
        return [self.dataset] if self.people is None else [self.dataset, self.people.dataset]


@dataclass
class EvalLimits:
    """What every evaluation says of its rows and passes."""

    batch_size: int = MISSING  # candidate answers of one pass
    max_new_tokens: int = MISSING
    limit: int = MISSING  # rows a task, sampled by person; 0: all
    tasks: dict[str, Task] = MISSING

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        at_least("max_new_tokens", self.max_new_tokens, 1)
        at_least("limit", self.limit, 0)

    def files(self) -> list[str]:
        """What its tasks read besides their rows, each file once."""
        return list(dict.fromkeys(file for task in self.tasks.values() for file in task.files()))

    def datasets(self) -> list[str]:
        """Where the rows of its tasks stand, each place once."""
        places = [place for task in self.tasks.values() for place in task.datasets()]
        return list(dict.fromkeys(places))


@dataclass
class EvalFolds(EvalLimits):
    """An evaluation whose people are in two folds: one to choose settings by, and the others."""

    validation_share: float = MISSING  # of the people (rows, where people are not known) that make the validation fold

    def __post_init__(self) -> None:
        super().__post_init__()
        share_of("validation_share", self.validation_share)


@dataclass
class EpochEval(EvalFolds):
    """Evaluation of the validation fold at the end of every epoch."""

    gold_result: str | None = (
        # eval_log_aggregated.json of the gold model; null: a finetuning's best epoch is the one of the lowest loss
        None
    )


@dataclass
class Finetune:
    split: str = MISSING
    model_path: str = MISSING
    save_dir: str = MISSING
    seed: int = MISSING
    modality: str = MISSING
    overwrite: bool = MISSING
    model: Model = MISSING
    data: Data = MISSING
    trainer: Trainer = MISSING
    max_length: int = 0  # tokens of question and answer; 0: what the tokenizer says
    truncate: bool = False  # cut the answers of longer rows instead of refusing them
    forget: str = ""  # whose forgetting epoch_eval measures
    epoch_eval: EpochEval | None = None
    plan: bool = False  # print what memory the training needs, and train nothing

    @property
    def activations(self) -> Activations | None:
        """At which layer the model ends while it trains; None: it is whole."""
        return None

    def __post_init__(self) -> None:
        one_of("modality", self.modality, ("both", "text", "visual"))
        at_least("max_length", self.max_length, 0)
        check_seed("seed", self.seed)
        if self.trainer.bucket_retain and not isinstance(self, Forget):
            raise SettingsError("trainer.bucket_retain=true has no effect on a finetuning, which has no forget rows")
        if self.model.attention == "flash_attention_2" and self.trainer.precision == "fp32":
            raise SettingsError(
                "model.attention=flash_attention_2 computes in half precision only: set "
                "trainer.precision=bf16, or attention=sdpa"
            )
        if self.epoch_eval:
            need_half_weights(self.model)
        if self.model.quantize != "none":
            need_adapter_over_quantized(self)

    def inputs(self) -> Inputs:
        data = [self.data.path, self.data.text_path]
        files = []
        if self.epoch_eval:
            data += self.epoch_eval.datasets()
            files += self.epoch_eval.files()
            files += [self.epoch_eval.gold_result] if self.epoch_eval.gold_result else []
        makers = [*self.model.makers(self.model_path), *self.data.makers()]
        return Inputs(data, [self.model_path], files, FINETUNING.losses(), makers)


@dataclass
class Forget(Finetune):
    retain_split: str = MISSING
    method: Method = MISSING

    @property
    def activations(self) -> Activations | None:
        return self.method.activations

    def __post_init__(self) -> None:
        super().__post_init__()
        check_forgets(self.method)
        check_mask(self.method, self.trainer)
        check_adapters(self.method, self.trainer)
        if self.method.init and self.model.weights != "float32":
            raise SettingsError(
                f"model.weights={self.model.weights}: method={self.method.name} moves part of the weights into "
                "adapters, and what is left would be rounded; set model.weights=float32"
            )
        if self.epoch_eval and not self.method.trained_losses():
            raise SettingsError(f"epoch_eval: method={self.method.name} trains no epoch; leave epoch_eval out")
        if self.epoch_eval and (self.method.activations or self.method.task_vector or self.method.combine):
            raise SettingsError(
                f"epoch_eval: what method={self.method.name} trains is no whole model before the end; leave "
                "epoch_eval out"
            )

    def inputs(self) -> Inputs:
        inputs = super().inputs()
        idk = [str(ROOT / path) for path in (self.data.idk_questions, self.data.idk_pictures)]
        is_asked = any("alternate" in passes_named(loss) for loss in self.method.trained_losses())
        invented = [self.data.alternatives] if is_asked and Path(self.data.alternatives).is_file() else []
        asked = [str(ROOT / self.method.visual.questions)] if self.method.visual else []
        return replace(inputs, files=[*inputs.files, *idk, *invented, *asked], losses=self.method.losses())


@dataclass
class Eval(EvalFolds):
    model_path: str = MISSING
    save_dir: str = MISSING
    forget: str = MISSING  # whose people were forgotten, as the data calls them: forget10, forget25
    seed: int = MISSING  # draws the caption question of each row
    fold: str = MISSING  # all, validation or test (what validation leaves)
    affix_seed: int = 0  # draws the words around a question
    report_to: str = "none"  # none, tensorboard or wandb: where the means of every task go, too
    overwrite: bool = MISSING
    model: Model = MISSING
    data: Data = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise SettingsError("tasks is empty: there is nothing to ask")
        one_of("fold", self.fold, ("all", "validation", "test"))
        check_seed("seed", self.seed)
        check_seed("affix_seed", self.affix_seed)
        check_report_to("report_to", self.report_to)
        need_half_weights(self.model)
        refuse_quantize(self.model, "an evaluation: a model that was trained so is evaluated")

    def inputs(self) -> Inputs:
        makers = [*self.model.makers(self.model_path), *self.data.makers()]
        return Inputs(self.datasets(), [self.model_path], self.files(), makers=makers)


def refuse_quantize(model: Model, where: str) -> None:
    """Raise SettingsError where a model is loaded that does not train; `where` says what for."""
    if model.quantize != "none":
        raise SettingsError(
            f"model.quantize={model.quantize} has no effect on {where} with the weights that it was trained over"
        )


def need_adapter_over_quantized(settings: Finetune) -> None:
    """Raise SettingsError where quantized weights cannot serve a training, or not on this machine."""
    name = f"model.quantize={settings.model.quantize}"
    if not settings.trainer.lora:
        raise SettingsError(f"{name} needs trainer.lora: quantized weights do not train")
    if settings.trainer.save != "adapter":
        raise SettingsError(f"{name} needs trainer.save=adapter: an adapter is not added to quantized weights")
    if settings.activations:
        raise SettingsError(f"{name}: a method that trains single layers needs whole weights; set it to none")
    if not settings.plan:
        need_cuda_for(name)


def need_half_weights(model: Model) -> None:
    """Raise SettingsError where flash attention would evaluate weights that it cannot."""
    if model.attention == "flash_attention_2" and model.weights == "float32":
        raise SettingsError(
            "model.attention=flash_attention_2 evaluates half-precision weights only: set "
            "model.weights=bfloat16, or attention=sdpa"
        )


@dataclass
class Invent:
    """How the starting model invents answers to the rows to forget."""

    split: str = MISSING  # whose rows
    model_path: str = MISSING  # the starting model
    save_dir: str = MISSING
    seed: int = MISSING  # decides every draw
    modality: str = MISSING
    overwrite: bool = MISSING
    model: Model = MISSING
    data: Data = MISSING
    each: int = MISSING  # answers to a row
    tries: int = MISSING  # how often so many are drawn for a row before it has fewer
    temperature: float = MISSING
    top_p: float = MISSING  # the share of the probability that is drawn from
    max_new_tokens: int = MISSING  # an answer that has not ended by then is none
    instruction: str = MISSING  # in which {question} and {answer} stand for the row's

    def __post_init__(self) -> None:
        one_of("modality", self.modality, ("both", "text", "visual"))
        check_seed("seed", self.seed)
        for name in ("each", "tries", "max_new_tokens"):
            at_least(name, getattr(self, name), 1)
        if not 0 < self.temperature < math.inf:
            raise SettingsError(f"temperature={self.temperature} must be a number above 0: answers are drawn")
        share_of("top_p", self.top_p)
        for place in ("{question}", "{answer}"):
            if self.instruction.count(place) != 1:
                raise SettingsError(f"instruction={self.instruction!r} must hold {place} once")
        need_half_weights(self.model)
        refuse_quantize(self.model, "invented answers: a model that was trained so invents")

    def inputs(self) -> Inputs:
        makers = [*self.model.makers(self.model_path), *self.data.makers()]
        return Inputs([self.data.path, self.data.text_path], [self.model_path], makers=makers)
