"""Face networks: a ResNet-18 topology of any width with AM-softmax. Make, load, train, save one, or stack many in one.

Shapes: B pictures, N networks of a stack, S pixels per side, E embedding features, C classes. One network is N = 1.
The networks of a stack lie along the channels, one after the other. Each convolution has N groups, and what follows it
works channel by channel, so that no network's numbers depend on another's.
"""

import copy
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cv.face_settings import FaceModel
from engine.frozen_start import Forward, Start
from engine.pairs import Batch
from settings.script import SettingsError, first_line
from settings.training import Activations
from unlearn_losses import Scored

# what method.activations counts
PARTS = ("the stem", "stage 1", "stage 2", "stage 3", "stage 4", "the embedding")
EMBEDDING = PARTS.index("the embedding")
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True)
class Shape:
    """What makes two networks' weights fit each other."""

    width: int
    embedding: int


def shape_of(settings: FaceModel) -> Shape:
    return Shape(settings.width, settings.embedding)


class Block(nn.Module):
    """Two 3 x 3 convolutions and a way around them (He et al., arXiv 1512.03385); names are torchvision's.

    The way around takes every `stride`-th pixel before its 1 x 1 convolution instead of in it, which is the same. The
    gradient of a strided 1 x 1 convolution of few channels in channels_last writes past its memory on CPUs
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, before: int, after: int, stride: int, models: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before * models, after * models, 3, stride, 1, groups=models, bias=False)
        self.bn1 = nn.BatchNorm2d(after * models)
        self.conv2 = nn.Conv2d(after * models, after * models, 3, 1, 1, groups=models, bias=False)
        self.bn2 = nn.BatchNorm2d(after * models)
        self.stride = stride
        self.downsample = None
        if stride != 1 or before != after:
            around = nn.Conv2d(before * models, after * models, 1, groups=models, bias=False)
            self.downsample = nn.Sequential(around, nn.BatchNorm2d(after * models))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        around = x if self.downsample is None else self.downsample(x[:, :, :: self.stride, :: self.stride])
        return F.relu(y + around)


class FaceNetwork(nn.Module):
    """Pictures (B, N * 3, S, S) -> cosines to the class weights (B, N, C).

    Embeddings and class weights both have length 1. With `ends_at` set the network gives the states of that part
    instead, (B, N, features): the mean over the picture, or the embedding itself.
    """

    def __init__(self, shape: Shape, classes: int, models: int = 1):
        super().__init__()
        w = shape.width
        self.shape = shape
        self.models = models
        self.ends_at: int | None = None  # a place in PARTS
        self.conv1 = nn.Conv2d(3 * models, w * models, 7, 2, 3, groups=models, bias=False)
        self.bn1 = nn.BatchNorm2d(w * models)
        self.pool = nn.MaxPool2d(3, 2, 1)
        for number, (before, after) in enumerate(((w, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w)), start=1):
            blocks = Block(before, after, 1 if number == 1 else 2, models), Block(after, after, 1, models)
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.embed = nn.Conv2d(8 * w * models, shape.embedding * models, 1, groups=models, bias=False)
        self.classes = nn.Parameter(torch.randn(models, classes, shape.embedding))
        self.to(memory_format=torch.channels_last)  # halves a step's time on a CPU, most of all with groups

    def parts(self) -> list[list[nn.Module]]:
        """The modules of each of PARTS."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4], [self.embed]]

    def head_weights(self) -> list[nn.Parameter]:
        """Those that name the people; embeddings do not depend on them."""
        return [self.classes]

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(pixels))))
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        for stage in stages[: self.ends_at]:  # all of them where it is None
            x = stage(x)
        x = x.mean((2, 3), keepdim=True)
        if self.ends_at is not None and self.ends_at < EMBEDDING:
            return self.split_channels(x)
        embeddings = F.normalize(self.split_channels(self.embed(x)), dim=-1)
        return embeddings if self.ends_at is not None else self.cosines(embeddings)

    def embeddings(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, N, E) of length 1."""
        former = self.ends_at
        self.ends_at = EMBEDDING
        try:
            return self(pixels)
        finally:
            self.ends_at = former

    def split_channels(self, x: Tensor) -> Tensor:
        """(B, N * features, 1, 1) -> (B, N, features), in the precision of the weights.

        In bf16 a cosine would be off by .1 once it is multiplied by s = 30.
        """
        return x.flatten(1).view(len(x), self.models, -1).to(self.classes.dtype)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, C)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return torch.einsum("bne,nce->bnc", embeddings, F.normalize(self.classes, dim=-1))


# ---- training


def forward(model: nn.Module, batch: Batch, *, logit_scale: float, margin: float) -> Scored:
    """A batch of pictures as answers of one token each.

    This is the only place that turns cosines into logits, s * cos. Their softmax is what the network believes. The loss
    that trains a network, NLL, first takes s * m from the right class's logit: AM-softmax (Wang et al., arXiv
    1801.05599).

    Args:
        model: a face network, wrapped or not.
        batch: its inputs are `pixels` (B, N * 3, S, S) in [-1, 1], its labels (B, N).
        logit_scale: s, above 0.
        margin: m, a cosine, 0 or more.

    Returns:
        Logits (B, N, C), or the states (B, N, features) where the network ends before its classes.
    """
    output = model(batch.inputs["pixels"])
    if getattr(model, "module", model).ends_at is not None:
        return Scored(output, batch.labels)
    return Scored(logit_scale * output, batch.labels, logit_scale * margin)


def forward_of(settings: FaceModel) -> Forward:
    """`forward` with s and m of the settings."""
    return partial(forward, logit_scale=settings.logit_scale, margin=settings.margin)


def start_of(model: FaceNetwork, settings: FaceModel, classes: list[str]) -> Start:
    """A network ready to train; `classes` are the people's names in the order of the class weights."""
    return Start(model, forward_of(settings), partial(save_network, settings=settings, classes=classes))


def check_parts(activations: Activations | None) -> None:
    """Raise SettingsError where a method names a part that a face network does not have, or something within a part."""
    if activations is None:
        return
    if activations.layer >= len(PARTS):
        raise SettingsError(
            f"method.activations.layer={activations.layer}: a face network has parts 0 ({PARTS[0]}) "
            f"to {len(PARTS) - 1} ({PARTS[-1]})"
        )
    if activations.part is not None:
        raise SettingsError(
            f"method.activations.part={activations.part!r} must be null: a face network trains all of what "
            "method.activations.trained names"
        )


def end_at(model: FaceNetwork, activations: Activations) -> None:
    """Make the network give the states of part `activations.layer`, and train the named parts only.

    Raises SettingsError for a part that there is not, or something within a part.
    """
    check_parts(activations)
    model.ends_at = activations.layer
    model.requires_grad_(False)
    parts = model.parts()
    for module in (module for number in activations.trained for module in parts[number]):
        module.requires_grad_(True)


def new_network(settings: FaceModel, classes: int, seed: int) -> FaceNetwork:
    """A network of random weights, a function of the seed."""
    torch.manual_seed(seed)
    return FaceNetwork(shape_of(settings), classes)


def with_new_classes(model: FaceNetwork, classes: int, seed: int) -> FaceNetwork:
    """A copy of the network with random class weights, a function of the seed, in place of its own."""
    renewed = copy.deepcopy(model)
    source = torch.Generator().manual_seed(seed)
    renewed.classes = nn.Parameter(torch.randn(1, classes, model.shape.embedding, generator=source).to(model.classes))
    return renewed


# ---- files


def load_network(path: str, settings: FaceModel) -> tuple[FaceNetwork, list[str]]:
    """The network at `model_path` and the names of its classes.

    Raises SettingsError if there is none, one that is not whole, or one of another shape, picture size, logit scale or
    margin than `settings` say.
    """
    folder = Path(path)
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise SettingsError(
            f"model_path={path!r} holds no face network ({WEIGHTS} and {CONFIG}); "
            "cv/pretrain.py and cv/finetune.py make one, and no other weights are read"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = (Shape(**config["shape"]), config["size"], config["logit_scale"], config["margin"])
        model = FaceNetwork(found[0], len(config["classes"]))
        weights = load_file(folder / WEIGHTS)
    except KeyError as error:
        raise SettingsError(f"model_path={path!r}: its {CONFIG} does not say {error}; train it again") from None
    except (ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise SettingsError(f"model_path={path!r} could not be loaded: {first_line(error)}") from None
    check_classes(path, config["classes"])
    check_whole(path, weights, model)
    model.load_state_dict(weights)
    wanted = (shape_of(settings), settings.size, settings.logit_scale, settings.margin)
    if found != wanted:
        is_of = "{} for {} pixels with logit_scale {} and margin {}"
        raise SettingsError(
            f"model_path={path!r} is a network of {is_of.format(*found)}, "
            f"but model={settings.name} is {is_of.format(*wanted)}"
        )
    return model, config["classes"]


def check_classes(path: str, classes: Any) -> None:
    """Raise SettingsError unless the classes of a network are different names."""
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not named or len({*classes}) < len(classes):
        raise SettingsError(f"model_path={path!r}: classes in its {CONFIG} must be different names")


def check_whole(path: str, weights: dict[str, Tensor], model: FaceNetwork) -> None:
    """Raise SettingsError unless the file holds each tensor of the network, in its shape, nothing else, and numbers."""
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | weights.keys()):
        if name not in weights:
            raise SettingsError(f"model_path={path!r}: {WEIGHTS} lacks tensor {name!r}")
        if name not in wanted:
            raise SettingsError(f"model_path={path!r}: {WEIGHTS} holds tensor {name!r}, which no face network has")
        shapes = [tuple(tensors[name].shape) for tensors in (weights, wanted)]
        if shapes[0] != shapes[1]:
            raise SettingsError(
                f"model_path={path!r}: tensor {name!r} has shape {shapes[0]}, and {CONFIG} makes it {shapes[1]}"
            )
        if not torch.isfinite(weights[name]).all():
            raise SettingsError(f"model_path={path!r}: tensor {name!r} holds NaN or infinity; the network is broken")


def save_network(model: FaceNetwork, folder: Path, *, settings: FaceModel, classes: list[str]) -> None:
    """Write weights and configuration to `folder`; `classes` are in the order of the class weights."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    config = {
        "shape": asdict(model.shape),
        "size": settings.size,
        "logit_scale": settings.logit_scale,
        "margin": settings.margin,
        "classes": classes,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


# ---- stacks


def stack_networks(models: list[FaceNetwork]) -> FaceNetwork:
    """Networks of one shape and one number of classes as one network."""
    first = models[0]
    stack = FaceNetwork(first.shape, first.classes.shape[1], len(models)).to(first.classes)
    states = [model.state_dict() for model in models]
    stacked = {}
    for name, value in states[0].items():
        # the counts of batch normalisation are scalars, and the same for all
        stacked[name] = torch.cat([state[name] for state in states]) if value.dim() else value
    stack.load_state_dict(stacked)
    return stack


def split_stack(stack: FaceNetwork) -> list[FaceNetwork]:
    """The networks of a stack, each by itself."""
    models = [FaceNetwork(stack.shape, stack.classes.shape[1]).to(stack.classes) for _ in range(stack.models)]
    parts = {name: value.chunk(stack.models) if value.dim() else value for name, value in stack.state_dict().items()}
    for number, model in enumerate(models):
        model.load_state_dict({name: part[number] if isinstance(part, tuple) else part for name, part in parts.items()})
    return models
