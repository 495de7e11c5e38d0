"""Losses, first choices, mean and deviation of the log-probability: all answers of a batch at once, beside one by one.


The plain way takes the softmax of one answer's logits, and reads its figures from it, answer by answer. Logits are
random, of 40 tokens an answer. `*_error` is the largest difference from double precision, in nats, over losses, means
and deviations. Both clocks; ratios are medians over the repeats, at once over one by one.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engine.token_figures import token_figures

TOKENS = 40  # of an answer
SIZES = {2_100: 200, 32_000: 28, 150_000: 7}  # vocabulary -> answers


def plain_figures(logits: Tensor, tokens: list[int]) -> list[list[float]]:
    """Losses, means and deviations of one answer."""
    logp = logits.float().log_softmax(-1)
    probability = logp.exp()
    expected = (probability * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)
    variance = (probability * (logp.clamp(min=-1e4) - expected[:, None]) ** 2).sum(-1)
    labels = torch.tensor(tokens)
    losses = -logp.gather(-1, labels[:, None])[:, 0]
    (logits.argmax(-1) == labels).tolist()
    return [losses.tolist(), expected.tolist(), variance.sqrt().tolist()]


def one_by_one(logits: Tensor, tokens: Tensor) -> list[list[float]]:
    """The figures of all answers, answer by answer."""
    found: list[list[float]] = [[], [], []]
    for own, labels in zip(logits.split(TOKENS), tokens.split(TOKENS), strict=True):
        for every, more in zip(found, plain_figures(own, labels.tolist()), strict=True):
            every += more
    return found


def at_once(logits: Tensor, tokens: Tensor) -> list[list[float]]:
    """The same in one pass."""
    figures = token_figures(logits, torch.arange(len(tokens)), tokens)
    return [figures.losses, figures.expected, figures.spread]


def in_double(logits: Tensor, tokens: Tensor) -> Tensor:
    """The same in double precision, (3, N)."""
    logp = logits.double().log_softmax(-1)
    probability = logp.exp()
    expected = (probability * logp).sum(-1)
    variance = (probability * (logp - expected[:, None]) ** 2).sum(-1)
    return torch.stack([-logp.gather(-1, tokens[:, None])[:, 0], expected, variance.sqrt()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    source = torch.Generator().manual_seed(0)
    for vocabulary, answers in SIZES.items():
        logits = 4 * torch.randn(answers * TOKENS, vocabulary, generator=source)
        tokens = torch.randint(0, vocabulary, (len(logits),), generator=source)
        right = in_double(logits, tokens)
        ratios: dict[str, list[float]] = {"cpu": [], "wall": []}
        seconds: dict[str, list[float]] = {"one_by_one": [], "at_once": []}
        for _ in range(asked.repeats):
            spent = {}
            for way in (one_by_one, at_once):
                cpu, wall = time.process_time(), time.perf_counter()
                found = way(logits, tokens)
                spent[way.__name__] = (time.process_time() - cpu, time.perf_counter() - wall)
                seconds[way.__name__].append(spent[way.__name__][0])
                error = (torch.tensor(found, dtype=torch.double) - right).abs().max().item()
                if len(ratios["cpu"]) == 0:
                    print(f"{vocabulary}_{way.__name__}_error {error:.1e}")
            for place, clock in enumerate(ratios):
                ratios[clock].append(spent["at_once"][place] / spent["one_by_one"][place])
        for way_name, own in seconds.items():
            print(f"{vocabulary}_{way_name}_cpu_seconds {statistics.median(own):.4f}")
        for clock, own in ratios.items():
            print(f"{vocabulary}_{clock}_ratio {statistics.median(own):.3f}")


if __name__ == "__main__":
    main()
