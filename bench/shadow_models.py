"""Training many face networks in one stack, beside the best way of training them one after another.

One after another is measured in three ways: fp32, fp32 in channels_last, bf16 in channels_last. The stack (`together`)
is measured in fp32 and bf16, both in channels_last, and compared with the best of the three. All ways take the same
steps on the same noise, so that the networks are measured and not the reading of pictures.

`together_speedup` is that of the largest number of networks; above 1 the stack is faster. `best_together` is the number
of networks per stack that takes the least time per network on this device.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cv.network import FaceNetwork, Shape, forward, stack_networks
from engine.pairs import Batch
from unlearn_losses import nll

BATCH, CLASSES = 32, 24
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Steps:
    """Training steps of one network or of a stack."""

    def __init__(self, models: list[FaceNetwork], size: int, precision: str, channels_last: bool):
        self.model = stack_networks(models).to(DEVICE).train()
        if not channels_last:
            self.model = self.model.to(memory_format=torch.contiguous_format)
        source = torch.Generator().manual_seed(0)
        pixels = torch.randn(BATCH, 3 * len(models), size, size, generator=source)
        labels = torch.randint(CLASSES, (BATCH, len(models)), generator=source)
        self.batch = Batch({"pixels": pixels}, labels).to(DEVICE)
        self.precision = precision
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)

    def __call__(self) -> float:
        begun = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.precision == "bf16"):
            scored = forward(self.model, self.batch, logit_scale=30.0, margin=0.4)
            (nll(scored) * self.model.models).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun


def measure(count: int, width: int, size: int, repeats: int) -> dict[str, float]:
    """Time a step of `count` networks in each way.

    The ways take turns, so that a slow minute of the machine slows all of them.

    Args:
        count: number of networks.
        width: channels of their first stage.
        size: pixels per side.
        repeats: number of turns that count.

    Returns:
        Way -> median seconds for one step of all networks.
    """
    torch.manual_seed(0)
    models = [FaceNetwork(Shape(width=width, embedding=64), CLASSES) for _ in range(count)]
    sequential = {
        "fp32": [Steps([model], size, "fp32", False) for model in models],
        "channels_last_fp32": [Steps([model], size, "fp32", True) for model in models],
        "channels_last_bf16": [Steps([model], size, "bf16", True) for model in models],
    }
    together = {"fp32": Steps(models, size, "fp32", True), "bf16": Steps(models, size, "bf16", True)}
    seconds: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        for name, each in sequential.items():
            seconds.setdefault(f"sequential_{name}", []).append(sum(step() for step in each))
        for name, step in together.items():
            seconds.setdefault(f"together_{name}", []).append(step())
        if not turn:  # the first turn does not count: it makes kernels and the optimizer's state
            seconds = {}
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    each: dict[int, float] = {}
    for count in given.counts:
        seconds = measure(count, given.width, given.size, given.repeats)
        best = {}
        for way in ("sequential", "together"):
            best[way] = min(value for name, value in seconds.items() if name.startswith(way))
        each[count] = best["together"] / count
        for name, value in seconds.items():
            print(f"{name}_seconds_{count} {value:.4f}", flush=True)
        print(f"together_speedup_over_fp32_{count} {seconds['sequential_fp32'] / best['together']:.3f}")
        print(f"together_speedup_{count} {best['sequential'] / best['together']:.3f}", flush=True)
    print(f"best_together {min(each, key=each.get)}")
    print(f"together_speedup {best['sequential'] / best['together']:.3f}")


if __name__ == "__main__":
    main()
