"""Face networks: a ResNet-18 topology of any width with AM-softmax, one network or many side by side in one; load, score, save.

Shapes: B pictures, N networks side by side, S pixels a side, E embedding features, C classes. One network is N = 1. Networks stand side by side along
the channels (network-major): each convolution has N groups, batch normalisation and what follows know no network but their own.
"""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cv.face_settings import FaceModel
from settings.script import SettingsError
from settings.training import Activations
from unlearn_losses import Scored

PARTS = ("the stem", "stage 1", "stage 2", "stage 3", "stage 4", "the embedding")  # what method.activations counts
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Shape:
    """What makes two networks' weights fit each other."""

    width: int
    embedding: int


def shape_of(settings: FaceModel) -> Shape:
    return Shape(settings.width, settings.embedding)


class Block(nn.Module):
    """Two 3 x 3 convolutions and a way around them (He et al., arXiv 1512.03385); names are torchvision's.

    The way around takes every `stride`-th pixel before its 1 x 1 convolution instead of in it, which is the same: the gradient of a strided 1 x 1
    convolution of few channels in channels_last writes past its memory on CPUs (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, before: int, after: int, stride: int, models: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before * models, after * models, 3, stride, 1, groups=models, bias=False)
        self.bn1 = nn.BatchNorm2d(after * models)
        self.conv2 = nn.Conv2d(after * models, after * models, 3, 1, 1, groups=models, bias=False)
        self.bn2 = nn.BatchNorm2d(after * models)
        self.stride, self.downsample = stride, None
        if stride != 1 or before != after:
            around = nn.Conv2d(before * models, after * models, 1, groups=models, bias=False)
            self.downsample = nn.Sequential(around, nn.BatchNorm2d(after * models))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(
            self.bn2(self.conv2(y))
            + (x if self.downsample is None else self.downsample(x[:, :, :: self.stride, :: self.stride]))
        )


class FaceNetwork(nn.Module):
    """Pictures (B, N * 3, S, S) -> cosines to the class weights (B, N, C); embeddings and class weights both have length 1.

    With `ends_at` set it gives the states of that part instead, (B, N, features): the mean over the picture, or the embedding itself.
    """

    def __init__(self, shape: Shape, classes: int, models: int = 1):
        super().__init__()
        w = shape.width
        self.shape, self.models, self.ends_at = shape, models, None
        self.conv1 = nn.Conv2d(3 * models, w * models, 7, 2, 3, groups=models, bias=False)
        self.bn1 = nn.BatchNorm2d(w * models)
        self.pool = nn.MaxPool2d(3, 2, 1)
        for number, (before, after) in enumerate(((w, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w)), start=1):
            blocks = Block(before, after, 1 if number == 1 else 2, models), Block(after, after, 1, models)
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.embed = nn.Conv2d(8 * w * models, shape.embedding * models, 1, groups=models, bias=False)
        self.classes = nn.Parameter(torch.randn(models, classes, shape.embedding))
        self.to(memory_format=torch.channels_last)  # half as long a step on a CPU, grouped ones above all

    def parts(self) -> list[list[nn.Module]]:
        """The modules of each of PARTS."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4], [self.embed]]

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(pixels))))
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        for number in range(4 if self.ends_at is None else min(4, self.ends_at)):
            x = stages[number](x)
        x = x.mean((2, 3), keepdim=True)
        if self.ends_at is not None and self.ends_at < 5:
            return self.each_network(x)
        embeddings = F.normalize(self.each_network(self.embed(x)), dim=-1)
        return embeddings if self.ends_at is not None else self.cosines(embeddings)

    def embeddings(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, N, E) of length 1."""
        ends_at, self.ends_at = self.ends_at, 5
        try:
            return self(pixels)
        finally:
            self.ends_at = ends_at

    def each_network(self, x: Tensor) -> Tensor:
        """(B, N * features, 1, 1) as (B, N, features), in the weights' own precision: at s = 30 a bf16 cosine would be off by .1."""
        return x.flatten(1).view(len(x), self.models, -1).to(self.classes.dtype)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, C)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return torch.einsum("bne,nce->bnc", embeddings, F.normalize(self.classes, dim=-1))


def score_faces(model: nn.Module, batch: dict[str, Tensor], *, scale: float, margin: float) -> Scored:
    """A batch of pictures as answers of one token: logits (B, N, C) over the classes, or states (B, N, features) where the network ends before them.

    The only place that turns cosines into logits, s * cos: their softmax is what the network believes. The loss it is trained on, NLL, lowers the right
    class's by s * m first: AM-softmax (Wang et al., arXiv 1801.05599).
    """
    output = model(batch["pixels"])
    if getattr(model, "module", model).ends_at is not None:
        return Scored(output, batch["labels"], batch.get("pictured"))
    return Scored(scale * output, batch["labels"], batch.get("pictured"), scale * margin)


def check_parts(activations: Activations | None) -> None:
    """Raise SettingsError for a part that there is not."""
    if activations and activations.layer >= len(PARTS):
        raise SettingsError(
            f"method.activations.layer={activations.layer}: a face network has parts 0 ({PARTS[0]}) to {len(PARTS) - 1} ({PARTS[-1]})"
        )


def end_at(model: FaceNetwork, activations: Activations) -> None:
    """Give the states of part `activations.layer`, and train the named parts only. Raises SettingsError for a part that there is not."""
    check_parts(activations)
    model.ends_at = activations.layer
    model.requires_grad_(False)
    for part in (model.parts()[number] for number in activations.trained):
        for module in part:
            module.requires_grad_(True)


# ---- files


def fresh(settings: FaceModel, classes: int, seed: int) -> FaceNetwork:
    """A network of random weights, a function of the seed."""
    torch.manual_seed(seed)
    return FaceNetwork(shape_of(settings), classes)


def with_new_classes(model: FaceNetwork, classes: int, seed: int) -> FaceNetwork:
    """The same network with random class weights in place of its own."""
    renewed = copy.deepcopy(model)
    source = torch.Generator().manual_seed(seed)
    renewed.classes = nn.Parameter(torch.randn(1, classes, model.shape.embedding, generator=source).to(model.classes))
    return renewed


def load_network(path: str, settings: FaceModel, name: str = "model_path") -> tuple[FaceNetwork, list[str]]:
    """The network in a folder and the names of its classes. Raises SettingsError if there is none, or one of another shape than `settings`."""
    folder = Path(path)
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise SettingsError(
            f"{name}={path!r} holds no face network ({WEIGHTS} and {CONFIG}); cv/pretrain.py and cv/finetune.py make one"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        made, size, scale = Shape(**config["shape"]), config["size"], config["scale"]
        model = FaceNetwork(made, len(config["classes"]))
        model.load_state_dict(load_file(folder / WEIGHTS))
    except KeyError as error:
        raise SettingsError(f"{name}={path!r}: its {CONFIG} does not say {error}; train it again") from None
    except (ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise SettingsError(f"{name}={path!r} could not be loaded: {str(error).splitlines()[0]}") from None
    if (made, size, scale) != (shape_of(settings), settings.size, settings.scale):
        own = f"{shape_of(settings)} for {settings.size} at scale {settings.scale:g}"
        raise SettingsError(
            f"{name}={path!r} is a network of {made} for {size} pixels at scale {scale:g}, but model={settings.name} is {own}"
        )
    return model, config["classes"]


def save_network(model: FaceNetwork, classes: Any, folder: Path, *, settings: FaceModel) -> None:
    """Write weights and configuration to `folder`; `classes.names` are in the order of the class weights."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    config = {
        "shape": asdict(model.shape),
        "size": settings.size,
        "scale": settings.scale,
        "margin": settings.margin,
        "classes": classes.names,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


# ---- side by side


def side_by_side(models: list[FaceNetwork]) -> FaceNetwork:
    """Networks of one shape and number of classes as one."""
    first = models[0]
    stack = FaceNetwork(first.shape, first.classes.shape[1], len(models)).to(first.classes)
    states = [model.state_dict() for model in models]
    stack.load_state_dict(
        {
            name: torch.cat([state[name] for state in states]) if value.dim() else value
            for name, value in states[0].items()
        }
    )
    return stack


def apart(stack: FaceNetwork) -> list[FaceNetwork]:
    """The networks that stand side by side in one, each by itself."""
    models = [FaceNetwork(stack.shape, stack.classes.shape[1]).to(stack.classes) for _ in range(stack.models)]
    state = stack.state_dict()
    for number, model in enumerate(models):
        model.load_state_dict(
            {name: value.chunk(stack.models)[number] if value.dim() else value for name, value in state.items()}
        )
    return models
