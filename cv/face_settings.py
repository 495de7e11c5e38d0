"""Typed settings of face recognition: what config/cv and the groups it uses may hold."""

from dataclasses import dataclass

from omegaconf import MISSING

from settings.inputs import Inputs, Maker
from settings.script import SettingsError, at_least, check_seed, check_shadows_apart, one_of
from settings.training import FINETUNING, Method, Trainer, check_adapters, check_forgets, check_mask, check_report_to

# whom a network learns: everyone it meets, or all of them but those to be forgotten (gold)
FINETUNE_SPLITS = ("full", "retain")
LEAST_SHADOW_MODELS = 8
# what a trainer may be told where many networks train in one stack
STACKABLE = {
    "accumulation": (1,),
    "optimizer": ("adamw_torch", "sgd"),
    "report_to": ("none",),
    "deterministic": (False,),
}


@dataclass
class Album:
    """Where pictures of people stand: a folder with one directory per person, or a dataset with a column of names."""

    path: str = MISSING  # folder, dataset folder or hub id
    split: str = ""  # config of the dataset; empty: a folder with one directory per person
    image: str = "image"  # columns of the dataset
    person: str = "name"


@dataclass
class Faces:
    name: str = MISSING  # the name of its file in config/data
    people: Album = MISSING
    pretraining: Album | None = MISSING  # people of their own; null: `pretraining_people` of `people`
    pretraining_people: int = MISSING
    # People of whom each model meets one half and forgets it. It also meets half of the others, and keeps them.
    forget_pool: int = MISSING
    train: int = MISSING  # pictures per person that are learned
    # Pictures per person that make the centre others are compared with; all that are left are asked about.
    enrol: int = MISSING
    split_seed: int = MISSING
    min_pictures: int = 0  # people with fewer are left out; 0: somebody with too few is an error
    split_file: str = MISSING  # JSON: who is who and which picture is what, written once
    made_by: str = ""  # `python -m <made_by> --out <made_at>` makes the folder when it is missing
    made_at: str = ""

    def __post_init__(self) -> None:
        for name, least in (("forget_pool", 2), ("train", 1), ("enrol", 1), ("pretraining_people", 0)):
            at_least(f"data.{name}", getattr(self, name), least)
        if self.min_pictures:
            at_least("data.min_pictures", self.min_pictures, self.train + self.enrol + 1)
        if self.forget_pool % 2:
            raise SettingsError(f"data.forget_pool={self.forget_pool} must be even: each model meets one half of them")
        if (self.pretraining is None) != (self.pretraining_people > 0):
            raise SettingsError(
                f"data.pretraining_people={self.pretraining_people} counts people of data.people, "
                "so data.pretraining must be null, and only then"
            )

    def inputs(self, *, models: list[str], losses: list[str]) -> Inputs:
        """What a run on these faces reads that has such models and losses."""
        albums = [album.path for album in (self.people, self.pretraining) if album is not None]
        makers = [Maker("data.made_by", self.made_by, self.made_at)] if self.made_by else []
        return Inputs(albums, models, [self.split_file], losses, makers)


@dataclass
class FaceModel:
    """A ResNet-18 topology with AM-softmax."""

    name: str = MISSING  # the name of its file in config/model
    path: str = MISSING  # folder of the pretrained network
    size: int = MISSING  # pixels per side
    width: int = MISSING  # channels of the first stage; torchvision's resnet18 has 64
    embedding: int = MISSING  # features
    logit_scale: float = MISSING  # s of AM-softmax: logits are s times cosines
    margin: float = MISSING  # m of AM-softmax, taken from the right class's cosine in the loss that trains a network

    def __post_init__(self) -> None:
        # Fewer pixels leave one at the last stage: batch normalisation of a batch of one picture is undefined there.
        at_least("model.size", self.size, 33)
        for name in ("width", "embedding", "logit_scale"):
            at_least(f"model.{name}", getattr(self, name), 1)
        at_least("model.margin", self.margin, 0)


@dataclass
class Pretrain:
    save_dir: str = MISSING
    seed: int = MISSING
    overwrite: bool = MISSING
    model: FaceModel = MISSING
    data: Faces = MISSING
    trainer: Trainer = MISSING

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        need_whole_training("trainer", self.trainer)

    def inputs(self) -> Inputs:
        return self.data.inputs(models=[], losses=FINETUNING.losses())


@dataclass
class FinetuneFaces(Pretrain):
    split: str = MISSING  # one of FINETUNE_SPLITS
    model_path: str = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("split", self.split, FINETUNE_SPLITS)

    def inputs(self) -> Inputs:
        return self.data.inputs(models=[self.model_path], losses=FINETUNING.losses())


@dataclass
class ForgetFaces(Pretrain):
    model_path: str = MISSING
    method: Method = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        check_forgets(self.method)
        check_mask(self.method, self.trainer)
        check_adapters(self.method, self.trainer)

    def inputs(self) -> Inputs:
        return self.data.inputs(models=[self.model_path], losses=self.method.losses())


@dataclass
class EvalFaces:
    model_path: str = MISSING
    save_dir: str = MISSING
    batch_size: int = MISSING
    overwrite: bool = MISSING
    model: FaceModel = MISSING
    data: Faces = MISSING
    report_to: str = "none"  # none, tensorboard or wandb: where the means of every task go, too

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        check_report_to("report_to", self.report_to)

    def inputs(self) -> Inputs:
        return self.data.inputs(models=[self.model_path], losses=[])


@dataclass
class AttackFaces:
    save_dir: str = MISSING
    model_path: str = MISSING  # the pretrained network that every model begins with
    shadows_dir: str = MISSING  # finetuned models; made by the first attack, found by the others
    models: int = MISSING  # all of them are attacked
    targets: int = MISSING  # so many at a time; the others are their shadow models
    together: int = MISSING  # models trained at once
    seed: int = MISSING  # model number i has a seed of its own made of it
    split: str = MISSING  # one of FINETUNE_SPLITS, whom the models learn: `retain` attacks gold models
    overwrite: bool = MISSING
    model: FaceModel = MISSING
    data: Faces = MISSING
    finetune: Trainer = MISSING  # how the models learn
    trainer: Trainer = MISSING  # how they forget
    method: Method | None = None  # null: models that learned and forgot nothing

    def __post_init__(self) -> None:
        for name in ("models", "targets"):
            need_pairs_of_models(name, getattr(self, name))
        check_seed("seed", self.seed)
        check_shadows_apart(self.save_dir, self.shadows_dir)
        at_least("together", self.together, 1)
        one_of("split", self.split, FINETUNE_SPLITS)
        if self.method is not None:
            check_forgets(self.method)
        if self.split == "retain" and self.method is not None:
            raise SettingsError(
                f"method={self.method.name}: models of split=retain never met the people to be forgotten; "
                "leave method out, or set split=full"
            )
        if self.targets > self.models - LEAST_SHADOW_MODELS:
            raise SettingsError(
                f"targets={self.targets} leaves {self.models - self.targets} shadow models of models={self.models}; "
                f"at least {LEAST_SHADOW_MODELS} are needed"
            )
        for name in ("finetune", "trainer"):
            need_whole_training(name, getattr(self, name))
            need_stackable_training(name, getattr(self, name))

    def inputs(self) -> Inputs:
        forgetting = [] if self.method is None else self.method.losses()
        return self.data.inputs(models=[self.model_path], losses=[*FINETUNING.losses(), *forgetting])


def need_pairs_of_models(name: str, count: int) -> None:
    """Raise SettingsError for a number of models below two, or an odd one."""
    at_least(name, count, 2)
    if count % 2:
        raise SettingsError(f"{name}={count} must be even: models come in pairs that met opposite halves of the people")


def need_stackable_training(name: str, trainer: Trainer) -> None:
    """Raise SettingsError for trainer settings that many networks in one stack cannot have."""
    for setting, allowed in STACKABLE.items():
        value = getattr(trainer, setting)
        if value not in allowed:
            choices = " or ".join(map(str, allowed))
            raise SettingsError(f"{name}.{setting}={value} must be {choices} where many models train together")


def need_whole_training(name: str, trainer: Trainer) -> None:
    """Raise SettingsError for trainer settings that a network without a language model cannot have."""
    if trainer.bucket:
        raise SettingsError(
            f"{name}.bucket={trainer.bucket} sorts words by length; pictures have one size: set it to 0"
        )
    if trainer.lora is not None:
        raise SettingsError(
            f"{name}.lora={trainer.lora} needs a language model; a face network trains all its weights: set it to null"
        )
    if trainer.gradient_checkpointing:
        raise SettingsError(
            f"{name}.gradient_checkpointing=true needs a language model; a face network keeps its activations: set it "
            "to false"
        )
