"""Losses of answers with their gradients: from all logits of a step, and part by part of the vocabulary.

Both begin with what goes into an output head: 192 positions of 256 features, of two passes. The loss is one of token
log-probabilities, as npo's is. The head trains (full) or is frozen, as it is under LoRA. Each prints both clocks and
the most memory of one forward and backward above what was there before.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.clocks import print_both, processor, timed
from bench.peak_memory import Peak, free_memory, resident_gb
from engine.answer_head import After, Head, OnDemand
from engine.pairs import Batch
from unlearn_losses import Scored, npo

ROWS, ANSWER, FEATURES = 8, 24, 256


def loss_of(head: nn.Linear, states: torch.Tensor, labels: torch.Tensor, *, whole: bool) -> float:
    """One forward and backward of npo's loss."""
    given = head(states) if whole else OnDemand(states, Head(head, After(), states.dtype))
    half = ROWS // 2
    about = Batch({}, labels, passes=("forget", "retain"), rows=(half, half), widths=(ANSWER, ANSWER))
    passes = about.split(Scored(given, labels))
    del given
    loss = npo(passes["forget"], torch.full((half,), -200.0), passes["retain"], beta=0.1, retain_weight=1.0).total
    del passes
    loss.backward()
    head.zero_grad()
    states.grad = None
    return loss.item()


def measure(vocabulary: int, repeats: int, *, trains: bool) -> None:
    """Print what both ways take for a vocabulary."""
    torch.manual_seed(0)
    head = nn.Linear(FEATURES, vocabulary, bias=False).requires_grad_(trains)
    states = torch.randn(ROWS, ANSWER, FEATURES, requires_grad=True)
    labels = torch.randint(0, vocabulary, (ROWS, ANSWER))
    ways = {"whole": True, "parts": False}
    spent: dict[str, list] = {name: [] for name in ways}
    memory, losses = {}, {}
    for name, whole in ways.items():
        free_memory()
        before = resident_gb()
        with Peak() as peak:
            losses[name] = loss_of(head, states, labels, whole=whole)
        memory[name] = peak.most - before
    for _ in range(repeats):
        for name, whole in ways.items():
            spent[name].append(timed(lambda whole=whole: loss_of(head, states, labels, whole=whole))[0])
    assert abs(losses["whole"] - losses["parts"]) < 1e-6 * abs(losses["whole"]), losses
    title = f"answer_losses_{vocabulary}_{'full' if trains else 'frozen'}"
    print_both(title, spent["whole"], spent["parts"])
    print(f"{title}_whole_extra_gb {memory['whole']:.3f}\n{title}_parts_extra_gb {memory['parts']:.3f}")
    print(f"{title}_memory_ratio {memory['parts'] / memory['whole']:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[2100, 32_000, 150_000])
    asked = parser.parse_args()
    print(processor(), f"{torch.get_num_threads()} threads")
    for vocabulary in asked.vocabularies:
        for trains in (True, False):
            measure(vocabulary, asked.repeats, trains=trains)


if __name__ == "__main__":
    main()
