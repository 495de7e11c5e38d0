"""Training by the suite beside a plain PyTorch loop with the same forward and backward passes on the same batches.

The model has SmolLM2-135M's shape with random weights, under LoRA r 8. Each step takes 8 rows of 38 tokens. Both ways
take the same number of optimizer steps in one process, in turn; the first turn of each does not count. Ours is timed
inside `train`, from the first step to the last, without loading and saving.

The plain loop has the suite's own batches, scoring and loss. The comparison is therefore of everything around them: the
library's trainer and the suite's hooks in it. Tokenising, padding, accumulation and frozen starts are in neither.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_module import Example
from engine.adapters import add_lora
from engine.encode import Encoded, collate
from engine.frozen_start import Start
from engine.language_model import forward
from engine.methods import bind
from engine.pairs import Batch, EpochSampler, Pairs, PassCollator
from engine.record import TRAIN_RECORD, read_json
from engine.train import train
from settings.training import Lora, Method, Trainer
from unlearn_losses import retain_ft

SHAPE = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
ROWS, PROMPT, ANSWER, PAD, END = 8, 14, 24, 0, 2
LORA = Lora(r=8, alpha=32, dropout=0.0)


class RandomRows(list):
    """Examples whose question and answer are seeds of random tokens."""

    answers = ("0", "1")


class RandomEncoder:
    """Encodes an example as random tokens."""

    processor = None

    def encode(self, example: Example) -> Encoded:
        source = torch.Generator().manual_seed(example.index)
        ids = torch.randint(5, SHAPE["vocab_size"], (PROMPT + ANSWER - 1,), generator=source)
        return Encoded({"input_ids": ids[None, :PROMPT]}, [*ids[PROMPT:].tolist(), END])

    def collate(self, encoded: list[Encoded]) -> Batch:
        return collate(encoded, PAD)


def make_model() -> torch.nn.Module:
    """A randomly initialised Llama of SHAPE with a LoRA adapter."""
    torch.manual_seed(0)
    return add_lora(
        LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True, max_position_embeddings=256)),
        LORA,
        "language_model",
        0,
    )


def settings() -> Trainer:
    """The trainer's settings for one epoch."""
    optimizer = {
        "lr": 1e-4,
        "weight_decay": 0.0,
        "warmup_ratio": 0.0,
        "schedule": "constant",
        "max_grad_norm": 1.0,
        "optimizer": "adamw_torch",
    }
    return Trainer(epochs=1, batch_size=ROWS, accumulation=1, precision="fp32", lora=LORA, **optimizer)


def ours(pairs: Pairs) -> float:
    """Seconds of the steps of `train`, by its own record."""
    bound = bind(Method(name="finetune", loss="retain_ft"))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "out")
        start = Start(make_model(), forward, lambda model, folder: None)
        run = {"seed": 0, "save_dir": str(out), "record": {}, "say": lambda line: None}
        train(start, bound, pairs, RandomEncoder(), settings(), **run)
        return read_json(out / TRAIN_RECORD)["seconds"]


def plain(pairs: Pairs) -> float:
    """Seconds of a loop of batch, forward, backward, clip and step. It reads the loss of every step, as a log does."""
    model, collator = make_model().train(), PassCollator(RandomEncoder(), ["retain"], [], by_length=True)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0)
    keys = list(EpochSampler(len(pairs), 0))
    started = time.perf_counter()
    for start in range(0, len(keys), ROWS):
        (batch,) = collator([pairs[key] for key in keys[start : start + ROWS]])["trained"]
        loss = retain_ft(forward(model, batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    rows = RandomRows(Example(str(i), str(i), None, i, None, "bench") for i in range(asked.steps * ROWS))
    pairs = Pairs(["retain"], None, rows, idk={}, seed=0)
    taken = {way: [] for way in (plain, ours)}
    for turn in range(asked.repeats + 1):
        for way in (plain, ours) if turn % 2 else (ours, plain):
            taken[way].append(way(pairs))
    counted = {way: seconds[1:] for way, seconds in taken.items()}  # the first turn makes kernels and memory
    for way, seconds in counted.items():
        print(f"{way.__name__}_seconds_per_step {statistics.median(seconds) / asked.steps:.3f}")
    print(f"overhead_ratio {statistics.median(a / b for a, b in zip(counted[ours], counted[plain], strict=True)):.3f}")


if __name__ == "__main__":
    main()
