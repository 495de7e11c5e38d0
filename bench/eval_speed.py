"""Evaluation of picture rows, one pass over the prompt beside one forward per answer: both clocks, memory, differences.

The plain way runs prompt and picture anew for each of a row's 7 answers, and once more for the generation. Both ways
take logits at answer positions only. The model is a randomly initialised LLaVA of about 100 M parameters in fp32, with
576 picture tokens (336 pixels in patches of 14).

`scoring_*` are figures of the seven answers alone, `task_*` of answers and a greedy generation of 48 tokens. The model
knows no answer, so that no answer tells its generation; bench/generation.py measures what that saves. Peaks are above
the weights. `cpu` is the processor's time, `wall` the clock's. `*_speedup` above 1: one pass is faster, the median over
the repeats, in each of which both ways run one after the other.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.peak_memory import Peak, free_memory, resident_gb
from data_module import Example
from engine.encode import Encoded, collate
from engine.pairs import Batch
from engine.score_answers import Prompt, PromptResult, score_prompts

ANSWERS, ANSWER, NEW, WORDS, PICTURE = 7, 40, 48, 24, 576  # answers per row; the others count tokens
VOCABULARY, IMAGE_TOKEN, PAD, END = 32_000, 31_999, 0, 1
SIZES = {"25m": (256, 688, 12, 4), "100m": (640, 1728, 12, 10)}  # of the decoder: width, inner width, layers, heads


class RandomRows:
    """Stands in for a tokenizer and its rows.

    Question and answer of an example are seeds of random tokens; its picture is random pixels.
    """

    def __init__(self):
        self.tokenizer, self.pad, self.end = argparse.Namespace(eos_token_id=END), PAD, END

    def encode(self, example: Example) -> Encoded:
        source = torch.Generator().manual_seed(int(example.question))
        words = torch.randint(5, VOCABULARY - 5, (1, WORDS), generator=source)
        pixels = torch.randn(1, 3, 336, 336, generator=source)
        ids = torch.cat([words[:, :4], torch.full((1, PICTURE), IMAGE_TOKEN), words[:, 4:]], 1)
        return Encoded({"input_ids": ids, "pixel_values": pixels}, self.encode_answer(example, ids.shape[1]))

    def collate(self, encoded: list[Encoded]) -> Batch:
        return collate(encoded, PAD)

    def encode_answer(self, example: Example, asked: int) -> list[int]:
        source = torch.Generator().manual_seed(1000 + int(example.answer))
        length = ANSWER - 1 - int(example.answer) % 5  # of different lengths
        return [*torch.randint(5, VOCABULARY - 5, (length,), generator=source).tolist(), END]

    def text_lengths(self, texts: list[str]) -> list[int]:
        """What prompts are sorted by: letters, as a seed says nothing of its tokens."""
        return [*map(len, texts)]

    def decode(self, tokens: torch.Tensor) -> str:
        return str(tokens.tolist())


def make_model(size: str = "100m") -> LlavaForConditionalGeneration:
    """A model of one of SIZES, randomly initialised and in eval mode."""
    torch.manual_seed(0)
    hidden, inner, layers, heads = SIZES[size]
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    sizes["initializer_range"] = 0.05  # makes answers differ: near-uniform logits would hide a wrong position
    vision = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "image_size": 336,
        "patch_size": 14,
    }
    text = LlamaConfig(
        **sizes,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=2,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**vision, projection_dim=256), text_config=text, image_token_id=IMAGE_TOKEN
        )
    )
    return model.eval()


def measure(
    model: torch.nn.Module, prompts: list[Prompt], new: int, shared: bool, batch_size: int
) -> tuple[dict[str, float], float, list]:
    """Seconds by clock, peak memory in GB and results of scoring the prompts one way; `new`: tokens to generate."""
    free_memory()
    before = resident_gb()
    with Peak() as peak:
        wall, cpu = time.perf_counter(), time.process_time()
        results = score_prompts(
            model, RandomRows(), prompts, batch_size=batch_size, max_new_tokens=new, say=print, shared=shared
        )
        seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return seconds, peak.most - before, results


def make_prompt(row: int) -> Prompt:
    """A question about a picture, with answers that no other row has."""
    example = Example(str(row), str(row), {"bytes": str(row).encode(), "path": None}, row, None, "bench")
    return Prompt(example, [str(row * ANSWERS + number) for number in range(ANSWERS)])


def losses_of(rows: list[PromptResult]) -> list[float]:
    """The loss of each token of each answer of each row."""
    return [loss for row in rows for answer in row.answers.values() for loss in answer.losses]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8, help="prompts, or answers, of one pass")
    asked = parser.parse_args()
    model = make_model()
    prompts = [make_prompt(i) for i in range(asked.rows)]
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters, "
        f"{asked.rows} rows of {PICTURE + WORDS} prompt tokens, {ANSWERS} answers each"
    )
    for name, new in (("scoring", 1), ("task", NEW)):  # the first generated token follows from the prompt's own pass
        seconds, peaks, results = {True: [], False: []}, {True: [], False: []}, {}
        for _ in range(asked.repeats):
            for shared in (False, True):
                spent, peak, results[shared] = measure(model, prompts, new, shared, asked.batch_size)
                seconds[shared].append(spent)
                peaks[shared].append(peak)
        for clock in ("cpu", "wall"):
            plain = [each[clock] for each in seconds[False]]
            ours = [each[clock] for each in seconds[True]]
            speedups = [one / other for one, other in zip(plain, ours, strict=True)]
            print(f"{name}_plain_{clock}_seconds {statistics.median(plain):.2f}")
            print(f"{name}_shared_{clock}_seconds {statistics.median(ours):.2f}")
            print(f"{name}_{clock}_speedup {statistics.median(speedups):.2f}")
        losses = [losses_of(rows) for rows in results.values()]
        for label, shared in (("plain", False), ("shared", True)):
            print(f"{name}_{label}_peak_gb {statistics.median(peaks[shared]):.2f}")
        print(f"{name}_largest_logprob_difference {max(abs(a - b) for a, b in zip(*losses, strict=True)):.1e}")
        print(
            f"{name}_same_generations "
            f"{int(all(one.generation == other.generation for one, other in zip(*results.values(), strict=True)))}"
        )


if __name__ == "__main__":
    main()
