"""What each of several GPUs holds of what a training needs, by the way in which it is parted."""

from dataclasses import dataclass

from engine.memory_page import Row

# where DeepSpeed's configuration does not say otherwise: gradients that its bucket has room for, however few there are,
# and weights that ZeRO-3 holds whole at once, at most
BUCKET, LIVE = 5 * 10**8, 10**9


@dataclass(frozen=True)
class Need:
    """Bytes that a training on one GPU needs, by part."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int  # most at once, without gradients
    step: int  # most at once in forward and backward, gradients that are there included
    update: int  # what the optimizer's step needs besides
    all_weights: int  # how many there are
    trained: int  # how many of them train
    gathered: int  # weights of two layers and of all that is in no layer, which a sharded model has whole

    @property
    def peak(self) -> int:
        """Most bytes at any moment."""
        held = self.weights + self.optimizer + self.reference
        return held + max(self.step, self.gradients + self.update)


def parts_alone(need: Need) -> dict[str, float]:
    """Bytes of each part on one GPU."""
    return {
        "weights": need.weights,
        "gradients": need.gradients,
        "optimizer": need.optimizer,
        "reference": need.reference,
        "activations": need.activations,
        "peak": need.peak,
    }


def parts_ddp(need: Need) -> dict[str, float]:
    """DDP holds a second copy of the gradients, in the buckets that it sends."""
    parts = parts_alone(need)
    return parts | {"gradients": 2 * need.gradients, "peak": need.peak + need.gradients}


def parts_fsdp2(own: Need, shared: Need, count: int, half: bool) -> dict[str, float]:
    """Each process has its share, and two layers whole with what is in no layer, of a reference too."""
    whole = shared.gathered * (2 if half else 4)
    parts: dict[str, float] = {
        "weights": own.weights / count + whole,
        "gradients": own.gradients / count,
        "optimizer": own.optimizer / count,
        "reference": own.reference / count + (whole if own.reference else 0),
        "activations": shared.activations,
    }
    return with_peak(parts, own.update / count)


def parts_zero2(own: Need, shared: Need, count: int, half: bool) -> dict[str, float]:
    """The weights are whole, in bf16 where training is; fp32 weights, optimizer and gradients are shared out."""
    width = 2 if half else 4
    parts: dict[str, float] = {
        "weights": own.all_weights * width,
        "gradients": own.trained * width / count + BUCKET * width,
        "optimizer": (own.optimizer + 4 * own.trained) / count,
        "reference": own.reference,
        "activations": shared.activations,
    }
    return with_peak(parts, own.update / count)


def parts_zero3(own: Need, shared: Need, count: int, half: bool) -> dict[str, float]:
    """The same, and the weights are shared out too, but for those that are in use, of a reference likewise."""
    width = 2 if half else 4
    parts = parts_zero2(own, shared, count, half)
    parts["weights"] = (own.all_weights / count + min(own.all_weights, LIVE)) * width
    if own.reference:
        parts["reference"] = own.reference / count + min(own.all_weights, LIVE) * width
    return with_peak(parts, own.update / count)


def parts_offload(shared: Need, half: bool) -> dict[str, float]:
    """Weights, gradients and optimizer lie in main memory, but for those that are in use."""
    width = 2 if half else 4
    parts: dict[str, float] = {
        "weights": min(shared.all_weights, LIVE) * width,
        "gradients": BUCKET * width,
        "optimizer": 0,
        "reference": shared.reference,
        "activations": shared.activations,
    }
    return with_peak(parts, 0)


def with_peak(parts: dict[str, float], update: float) -> dict[str, float]:
    """The parts with their sum at the largest moment: activations are gone when the optimizer steps."""
    held = sum(value for name, value in parts.items() if name not in ("activations", "peak"))
    return parts | {"peak": held + max(parts["activations"], update)}


def row(name: str, count: int, kept: dict[str, float], again: dict[str, float]) -> Row:
    """One line of the table; `kept`, `again`: its parts without and with checkpointing."""
    shown = {part: kept[part] for part in ("weights", "gradients", "optimizer", "reference")}
    activations = (kept["activations"], again["activations"])
    return Row(name, count, shown, activations, (kept["peak"], again["peak"]))
