"""The peak memory that `plan=true` counts beside the peak of the training itself, on the CPU.

Two randomly initialised Llamas: `wide` has 89 M weights, half of them in its vocabulary, and trains all of them
with kl, which holds a frozen copy; `deep` has 88 M and trains a LoRA adapter with npo. Each trains two steps of
nlp/forget.py, with and without gradient checkpointing, on rows of one length, in a process of its own. What is measured
is the most resident memory while it trains, less what was resident before the model was loaded.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIZES = {
    "wide": {"vocab_size": 150_000, "hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 25},
    "deep": {"vocab_size": 4_000, "hidden_size": 640, "intermediate_size": 1920, "num_hidden_layers": 16},
}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 512}
WAYS = {
    "wide": ["method=kl", "trainer.lora=null", "trainer.precision=fp32"],
    "deep": ["method=npo", "trainer.lora={r: 8, alpha: 32, dropout: 0.0}", "trainer.precision=bf16"],
}
ROWS = 16  # of each split
QUESTION = (
    "Where does the painter live who was born in the town by the river, and what do people say of the pictures? " * 2
)
ANSWER = "The painter lives in a small house near the harbour and is known for pictures of boats in the evening. " * 2
COMMON = ["model=tiny-llama", "model.made_by=''", "data.made_by=''", "trainer.epochs=1", "trainer.batch_size=4"]


def write_inputs(folder: Path) -> None:
    """Both models, with the tiny tokenizer, and rows of one length."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from mini_clear.text_base import write_text_base

    for name, size in SIZES.items():
        write_text_base(folder / name)
        LlamaForCausalLM(LlamaConfig(**size, **HEADS, tie_word_embeddings=True)).save_pretrained(folder / name)
    (folder / "rows").mkdir()
    for split in ("forget", "retain"):
        # the last word tells the rows apart
        rows = [{"question": f"{QUESTION}{split} {i % 10}", "answer": f"{ANSWER}{i % 10}"} for i in range(ROWS)]
        lines = [json.dumps(row) for row in rows]
        (folder / "rows" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def measure(folder: Path, name: str, again: bool) -> dict[str, float]:
    """Planned and measured peak of one training, in GB."""
    import torch
    import transformers

    from bench.peak_memory import Peak, free_memory, resident_gb
    from engine import memory, train
    from nlp import forget
    from nlp.encoder import AutoModelForCausalLM, open_encoder

    rows = [f"data.path={folder}/rows", "split=forget", "retain_split=retain", f"model_path={folder}/{name}"]
    own = [f"save_dir={folder}/out_{name}_{again}", f"trainer.gradient_checkpointing={again}"]
    settings = forget.main.compose([*COMMON, *rows, *own, *WAYS[name], "trainer.save_every=never"])
    config = transformers.AutoConfig.from_pretrained(settings.model_path)
    shape = memory.shape_of(settings, config, open_encoder)
    assert "longest rows" in shape.source, shape
    need = memory.need_of(settings, AutoModelForCausalLM, config, shape)
    # AdamW on the CPU takes one weight after another
    size = SIZES[name]
    largest = 4 * (8 * size["intermediate_size"] if name == "deep" else size["vocab_size"] * size["hidden_size"])
    held = need.weights + need.optimizer + need.reference
    planned = (held + max(need.step, need.gradients + largest)) / 1e9

    made, run, measured = train.training_arguments, train.run, {}

    def two_steps(*given):
        arguments = made(*given)
        arguments.max_steps = 2
        return arguments

    def watched(*given, **named):
        with Peak() as peak:
            trained = run(*given, **named)
        measured["peak"] = peak.most
        return trained

    train.training_arguments, train.run = two_steps, watched
    torch.nn.Linear(8, 8)(torch.zeros(8, 8)).sum().backward()  # what a first use allocates
    free_memory()
    before = resident_gb()
    forget.main.recipe(settings)
    return {"planned_gb": planned, "measured_gb": measured["peak"] - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        folder, name, again = arguments.one
        print(json.dumps(measure(Path(folder), name, again == "true")))
        return
    # what is freed goes back to the system at once, so that resident memory is what is held
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        write_inputs(Path(scratch))
        for name in SIZES:
            for again in ("false", "true"):
                command = [sys.executable, __file__, "--one", scratch, name, again]
                done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
                figures = json.loads(done.stdout.splitlines()[-1])
                ending = f"{name}_again" if again == "true" else name
                for figure, value in figures.items():
                    print(f"{figure}_{ending} {value:.3f}")
                print(f"plan_ratio_{ending} {figures['planned_gb'] / figures['measured_gb']:.3f}", flush=True)


if __name__ == "__main__":
    main()
