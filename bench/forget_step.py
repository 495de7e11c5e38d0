"""A forgetting step of the suite beside a plain one, for npo and kl: its time, and its peak memory above the weights.

The plain way is what published code does. A second copy of the model scores every step, each pass has a forward of its
own, and the logits of all positions are held in fp32. Ours has log-probabilities computed once (npo) or the adapter
switched off (kl with LoRA), logits at answer positions only, and one forward for forget and retain.

Both train all weights (npo, kl) or a LoRA adapter (kl_lora), with AdamW in fp32, on the same batches of words. Sizes:
tiny is the tiny model's decoder; 100m is a randomly initialised Llama of about 100 M parameters, half of them in its
vocabulary of 150,000. Steps of both ways are taken in turn. Ratios are ours over the plain way.

The log-probabilities that npo computes once are outside a step. `start` is what they take for one step's rows, and
`of_1_epochs`, `of_5_epochs` are ratios that count it in a training of so many epochs.
"""

import argparse
import copy
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.clocks import Spent, print_both, processor, timed
from bench.peak_memory import Peak, free_memory, resident_gb
from engine.adapters import add_lora
from engine.encode import Encoded, collate
from engine.frozen_start import FrozenStart, forward_passes
from engine.language_model import compute_activations_again, forward
from engine.pairs import Batch
from settings.training import Lora
from unlearn_losses import IGNORE, Parts, Scored, kl, npo, sequence_logprob

SIZES = {
    "tiny": {
        "vocab_size": 2000,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    "100m": {
        "vocab_size": 150_000,
        "hidden_size": 320,
        "intermediate_size": 1280,
        "num_hidden_layers": 25,
        "num_attention_heads": 8,
    },
}
ROWS, PROMPT, ANSWER = 4, 48, 24  # rows per pass; tokens of a prompt and of an answer


def make_model(size: str) -> LlamaForCausalLM:
    """A randomly initialised Llama of one of SIZES, in train mode."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES[size], tie_word_embeddings=True, max_position_embeddings=256)).train()


def examples(vocabulary: int, seed: int) -> list[Encoded]:
    """ROWS examples of random tokens."""
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocabulary, (ROWS, PROMPT + ANSWER), generator=source)
    return [Encoded({"input_ids": row[None, :PROMPT]}, row[PROMPT:].tolist()) for row in ids]


def batches(vocabulary: int) -> dict[str, Batch]:
    """The forget batch, the retain batch, and both as one."""
    forget, retain = examples(vocabulary, 1), examples(vocabulary, 2)
    about = {"passes": ("forget", "retain"), "rows": (ROWS, ROWS), "widths": (ANSWER, ANSWER)}
    joint = replace(collate([*forget, *retain], 0), **about)
    return {"forget": collate(forget, 0), "retain": collate(retain, 0), "forget+retain": joint}


def plain_scored(model: torch.nn.Module, batch: Batch) -> Scored:
    """Logits of all positions in fp32, with labels that are IGNORE outside the answer, shifted by one."""
    logits = model(**batch.inputs, use_cache=False).logits.float()
    labels = torch.full(batch.inputs["input_ids"].shape, IGNORE)
    labels.scatter_(1, batch.positions, batch.labels)
    return Scored(logits, labels)


def total_of(loss: torch.Tensor | Parts) -> torch.Tensor:
    """A loss that may come in parts, as one number."""
    return loss.total if isinstance(loss, Parts) else loss


class PlainStep:
    """One training step of the plain way."""

    def __init__(self, method: str, model: torch.nn.Module, made: dict[str, Batch]):
        self.method, self.model, self.made = method, model, made
        self.copy = copy.deepcopy(model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def __call__(self) -> float:
        forget, retain = (plain_scored(self.model, self.made[name]) for name in ("forget", "retain"))
        with torch.no_grad():
            start = plain_scored(self.copy, self.made["forget" if self.method == "npo" else "retain"])
        arguments = (forget, sequence_logprob(start), retain) if self.method == "npo" else (forget, retain, start)
        loss = npo(*arguments, beta=0.1, retain_weight=1.0) if self.method == "npo" else kl(*arguments)
        total = total_of(loss)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total.item()


class OurStep:
    """One training step of the suite's way; with `checkpointing` its activations are computed again in the backward
    pass.
    """

    checkpointing = False

    def __init__(self, method: str, model: torch.nn.Module, made: dict[str, Batch]):
        self.method, self.model, self.made = method, model, made
        if self.checkpointing:
            compute_activations_again(model)
        self.start_seconds = Spent(0.0, 0.0)  # of log-probabilities that are made once, for one step's rows
        if method == "npo":
            with torch.no_grad():
                self.start_seconds, self.start = timed(lambda: sequence_logprob(forward(model.eval(), made["forget"])))
            model.train()
        else:
            self.reference = FrozenStart(model, "fp32")
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def __call__(self) -> float:
        scored = forward_passes(self.model, [self.made["forget+retain"]], forward)
        if self.method == "npo":
            loss = npo(scored["forget"], self.start, scored["retain"], beta=0.1, retain_weight=1.0)
        else:
            with self.reference.model(self.model) as frozen:
                start = forward(frozen, self.made["retain"])
            loss = kl(scored["forget"], scored["retain"], start)
        total = total_of(loss)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total.item()


def make_step(step_class: Any, size: str, method: str, lora: bool, made: dict[str, Batch]) -> Any:
    """A step with a model of its own."""
    model: Any = make_model(size)
    if lora:
        model = add_lora(model, Lora(r=8, alpha=32, dropout=0.0), "language_model", 0).train()
    return step_class(method, model, made)


def extra_memory(step_class: Any, size: str, method: str, lora: bool, made: dict[str, Batch]) -> float:
    """The peak of two steps above the model's weights, in GB."""
    free_memory()  # memory that the other way freed must not hide what this one takes
    before = resident_gb()
    with Peak() as peak:
        step = make_step(step_class, size, method, lora, made)
        weights = sum(p.numel() * p.element_size() for p in step.model.parameters()) / 1e9
        step(), step()  # the first allocates the optimizer's state
    return peak.most - before - weights


def measure(size: str, method: str, lora: bool, repeats: int, name: str) -> None:
    """Print what the steps of both ways take, one of each in turn, and their memory.

    Args:
        size: one of SIZES.
        method: npo or kl.
        lora: whether an adapter trains in place of all weights.
        repeats: number of steps; the first does not count.
        name: what the figures are called.
    """
    made = batches(SIZES[size]["vocab_size"])
    ways = {"plain": PlainStep, "ours": OurStep}
    memory = {way: extra_memory(each, size, method, lora, made) for way, each in ways.items()}
    free_memory()
    steps = {way: make_step(each, size, method, lora, made) for way, each in ways.items()}
    spent: dict[str, list[Spent]] = {"plain": [], "ours": []}
    losses: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(repeats):
        for way, step in steps.items():
            seconds, loss = timed(step)
            spent[way].append(seconds)
            losses[way].append(loss)
    plain, ours = (losses[way][0] for way in ("plain", "ours"))
    assert abs(plain - ours) < 2e-2 * max(1.0, abs(plain)), losses
    print_both(name, spent["plain"][1:], spent["ours"][1:])
    for clock in ("cpu", "wall"):
        start = getattr(steps["ours"].start_seconds, clock)
        pairs = [(getattr(a, clock), getattr(b, clock)) for a, b in zip(spent["plain"], spent["ours"], strict=True)][1:]
        print(f"{name}_start_{clock}_seconds {start:.3f}")
        for epochs in (1, 5):
            ratio = statistics.median((b + start / epochs) / a for a, b in pairs)
            print(f"{name}_of_{epochs}_epochs_{clock}_ratio {ratio:.3f}")
    print(f"{name}_plain_extra_gb {memory['plain']:.3f}\n{name}_ours_extra_gb {memory['ours']:.3f}")
    print(f"{name}_memory_ratio {memory['ours'] / memory['plain']:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--checkpointing", action="store_true", help="as trainer.gradient_checkpointing=true, for ours")
    arguments = parser.parse_args()
    OurStep.checkpointing = arguments.checkpointing
    print(processor(), f"{torch.get_num_threads()} threads")
    for size in arguments.sizes:
        for name, method, lora in (("npo", "npo", False), ("kl", "kl", False), ("kl_lora", "kl", True)):
            measure(size, method, lora, arguments.repeats, name if size == "100m" else f"{name}_{size}")


if __name__ == "__main__":
    main()
