"""What a method asks of a face network before it forgets: pairs of pictures, names of others, what is compared with."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from cv.division import Division, Met
from cv.face_settings import FaceModel, Faces
from cv.network import FaceNetwork, forward_of, new_network, with_nobody
from cv.pictures import NOBODY, FaceEncoder, FacePairs, FaceRows, read_pictures, to_pixels, training_rows
from engine.draws import draw
from engine.methods import BoundLoss
from engine.pairs import Batch
from settings.script import SettingsError, processes
from unlearn_losses import nll

AT_ONCE = 64  # pictures of a forward before training


@dataclass(frozen=True)
class Prepared:
    """A network that is ready to forget, and what it forgets with."""

    model: FaceNetwork
    pairs: FacePairs
    encoder: FaceEncoder
    untaught: FaceNetwork | None = None  # random weights, where the loss compares with them
    measured: dict[str, float] = field(default_factory=dict)  # what the loss asks for


@dataclass(frozen=True)
class People:
    """Whom a network met and what it calls them."""

    division: Division
    met: Met
    classes: list[str]  # in the order of the network's class weights


def prepare(
    bound: BoundLoss, model: FaceNetwork, people: People, *, data: Faces, shape: FaceModel, seed: int
) -> Prepared:
    """Give a network all that the loss asks for.

    Args:
        bound: the method's loss.
        model: the network that is to forget, which stays as it is.
        people: whom it met.
        data: where pictures stand.
        shape: the settings of the network.
        seed: of all draws.

    Returns:
        The network to train, which may have one more class, and what goes with it.

    Raises:
        SettingsError: somebody has too few pictures for the loss, or there is nobody whom the network never met.
    """
    method, met = bound.method, people.met
    forget = training_rows(people.division, met.forget, "forget")
    retain = training_rows(people.division, met.retain, "retain")
    for_nobody = "nobody" in bound.batches
    classes = [*people.classes, NOBODY] if for_nobody else people.classes
    encoder = FaceEncoder(classes, data.people, shape.size)
    encoder.read([*forget.files, *retain.files])
    draws = {"seed": seed, "other_answers": method.other_answers, "scope": method.scope}
    nearest = None
    if method.boundary:
        nearest = nearest_kept(model, forget, people, data=data, shape=shape, bound=method.boundary.bound)
    pairs = FacePairs(bound.batches, forget, retain, size=shape.size, nearest=nearest, **draws)
    measured = {}
    if "sibling" in bound.batches:
        assert method.activations is not None  # bind asks for it where a loss gets states
        measured["never_met"] = likeness(model, people, data=data, size=shape.size, part=method.activations.layer)
    untaught = None
    if bound.untaught:  # of a seed of its own: that of the run may be the one that the network itself once began with
        own_seed = draw(seed, "untaught").getrandbits(32)
        untaught = new_network(shape, len(classes), own_seed).to(model.classes)
    return Prepared(with_nobody(model, seed) if for_nobody else model, pairs, encoder, untaught, measured)


def pixels_of(files: list[str], *, data: Faces, model: FaceNetwork, size: int) -> Tensor:
    """Pictures as they are stored, (B, 3, S, S), where the network is."""
    read = read_pictures(data.people, files, size)
    return to_pixels(torch.stack([read[file] for file in files])).to(model.classes)


def nearest_kept(
    model: FaceNetwork, rows: FaceRows, people: People, *, data: Faces, shape: FaceModel, bound: float
) -> list[str]:
    """Of each picture the kept person that the network sees in it after one step of size `bound` away from its own.

    The step goes by the sign of the gradient of NLL to the pixels, in eval mode, and stays among colours that there
    are. Who is to be forgotten is not among those that are chosen from, the picture's own person least of all.
    """
    model = model.to(processes().device).eval()
    forward = forward_of(shape)
    kept = [number for number, name in enumerate(people.classes) if name in set(people.met.retain)]
    found: list[str] = []
    for first in range(0, len(rows), AT_ONCE):
        files, names = rows.files[first : first + AT_ONCE], rows.answers[first : first + AT_ONCE]
        labels = torch.tensor([[people.classes.index(name)] for name in names], device=model.classes.device)
        pixels = pixels_of(files, data=data, model=model, size=shape.size).requires_grad_()
        (gradient,) = torch.autograd.grad(nll(forward(model, Batch({"pixels": pixels}, labels))), pixels)
        moved = (pixels.detach() + 2 * bound * gradient.sign()).clamp(-1, 1)  # pixels run from -1 to 1
        with torch.no_grad():
            logits = forward(model, Batch({"pixels": moved}, labels)).logits[:, 0, kept]
        found += [people.classes[kept[place]] for place in logits.argmax(-1).tolist()]
    return found


@torch.no_grad()
def likeness(model: FaceNetwork, people: People, *, data: Faces, size: int, part: int) -> float:
    """The mean cosine between two pictures of a person whom the network never met: over pairs, then over people.

    It is of the states of the part of the network at which the loss looks. Raises SettingsError where nobody has two
    pictures to compare.
    """
    model = model.to(processes().device).eval()
    means = []
    for name in people.met.holdout:
        files = people.division.people[name].train  # no picture that an evaluation enrols or asks about
        if len(files) > 1:
            states = model.states(pixels_of(files, data=data, model=model, size=size), part)[:, 0]
            pairs = torch.combinations(torch.arange(len(files)))
            means.append(float(F.cosine_similarity(states[pairs[:, 0]], states[pairs[:, 1]], dim=-1).mean()))
    if not means:
        raise SettingsError(
            f"data.train={data.train}: the method measures how alike two pictures are of somebody whom the network "
            "never met, and nobody whom it never met has two that could be learned"
        )
    return sum(means) / len(means)
