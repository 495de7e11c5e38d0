"""Training many face networks: together in one, beside the best way of training them one after another, for 1, 4 and 16 networks.

One after another is measured three ways: fp32, fp32 in channels_last, bf16 in channels_last; the best of them is what together is compared with.
Together is fp32 and bf16, both in channels_last. All take the same steps on the same noise: what is measured is the network, not the reading of pictures.
`together_speedup` is of the largest number of networks: above 1 is better; `best_together` is how many at once are fastest a network on this device.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cv.network import FaceNetwork, Shape, score_faces, side_by_side
from unlearn_losses import nll

BATCH, CLASSES = 32, 24
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Steps:
    """Training steps of one network or several side by side."""

    def __init__(self, models: list[FaceNetwork], size: int, precision: str, channels_last: bool):
        self.model = side_by_side(models).to(DEVICE).train()
        if not channels_last:
            self.model = self.model.to(memory_format=torch.contiguous_format)
        source = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(BATCH, 3 * len(models), size, size, generator=source).to(DEVICE)
        self.labels = torch.randint(CLASSES, (BATCH, len(models)), generator=source).to(DEVICE)
        self.precision, self.optimizer = precision, torch.optim.AdamW(self.model.parameters(), 1e-3)

    def __call__(self) -> float:
        begun = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.precision == "bf16"):
            scored = score_faces(self.model, {"pixels": self.pixels, "labels": self.labels}, scale=30.0, margin=0.4)
            (nll(scored) * self.model.models).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun


def measure(count: int, width: int, size: int, repeats: int) -> dict[str, float]:
    """Median seconds of a step of `count` networks by each way; the ways take turns, so that a slower minute slows them all."""
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
        if not turn:  # the first step makes kernels and the optimizer's state
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
        best = {
            way: min(value for name, value in seconds.items() if name.startswith(way))
            for way in ("sequential", "together")
        }
        each[count] = best["together"] / count
        for name, value in seconds.items():
            print(f"{name}_seconds_{count} {value:.4f}", flush=True)
        print(f"together_speedup_over_fp32_{count} {seconds['sequential_fp32'] / best['together']:.3f}")
        print(f"together_speedup_{count} {best['sequential'] / best['together']:.3f}", flush=True)
    print(f"best_together {min(each, key=each.get)}")
    print(f"together_speedup {best['sequential'] / best['together']:.3f}")


if __name__ == "__main__":
    main()
