"""How near finetuning, forgetting and scoring come to what this machine's matrix products allow.

The shapes of all linear layers of a step are noted, and a matrix product of each shape is timed alone, in the same
dtype: forward, and in training the two of the backward pass. Their sum is the time that the step cannot go below.
`*_share` is that sum over the step's time, both by the processor's clock. The rest is told by part, in seconds:

- `forward` and `backward`: of the model, beyond the products: attention, norms, activations, and the gradient's sums.
  In scoring, all calls of the model.
- `optimizer`: AdamW.
- `outside`: batches, losses, figures of tokens.

The model is a randomly initialised Llama in fp32. A step of finetuning has ROWS rows, one of forgetting (npo, start
log-probabilities known) twice as many, and scoring has ROWS questions with 7 answers each and one generated token.
"""

import argparse
import inspect
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.clocks import processor
from bench.forget_step import total_of
from bench.plain_openunlearning import RandomWords, make_row
from engine.encode import collate
from engine.frozen_start import forward_passes
from engine.language_model import forward
from engine.pairs import Batch
from engine.score_answers import Prompt, score_prompts
from unlearn_losses import npo, retain_ft, sequence_logprob

SIZES = {"18m": (256, 688, 12, 4), "100m": (640, 1728, 16, 10)}  # width, inner width, layers, heads


class Product(NamedTuple):
    """A linear layer's work: (rows, inner) times (inner, columns)."""

    rows: int
    inner: int
    columns: int


def make_model(size: str) -> LlamaForCausalLM:
    """A randomly initialised Llama of one of SIZES."""
    torch.manual_seed(0)
    hidden, inner, layers, heads = SIZES[size]
    shape = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    config = LlamaConfig(
        **shape,
        num_attention_heads=heads,
        vocab_size=32_000,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config)


def noted_products(model: nn.Module, work: Callable[[], Any]) -> Counter[Product]:
    """The products of all linear layers while `work` runs."""
    found: Counter[Product] = Counter()

    def note(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        rows = args[0].numel() // module.in_features
        found[Product(rows, module.in_features, module.out_features)] += 1

    hooks = [each.register_forward_hook(note) for each in model.modules() if isinstance(each, nn.Linear)]
    work()
    for hook in hooks:
        hook.remove()
    return found


def seconds_of(work: Callable[[], Any], repeats: int) -> float:
    """The processor's time of `work`, the median over the repeats; once before them does not count."""
    work()
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


def product_seconds(product: Product, repeats: int) -> tuple[float, float]:
    """Of a layer's product alone: forward, and both of the backward pass."""
    inputs = torch.randn(product.rows, product.inner)
    weight, gradient = torch.randn(product.columns, product.inner), torch.randn(product.rows, product.columns)
    ahead = seconds_of(lambda: nn.functional.linear(inputs, weight), repeats)
    back = seconds_of(lambda: (gradient @ weight, gradient.T @ inputs), repeats)
    return ahead, back


def least_seconds(products: Counter[Product], repeats: int, *, backward: bool) -> tuple[float, float]:
    """Of all products together, forward and backward."""
    ahead = back = 0.0
    for product, count in products.items():
        own = product_seconds(product, repeats)
        ahead += count * own[0]
        back += count * own[1] * backward
    return ahead, back


class Step:
    """One training step, its parts timed by the processor's clock."""

    def __init__(self, model: nn.Module, batch: Batch, loss: Callable[[dict[str, Any]], Tensor]):
        self.model, self.batch, self.loss = model, batch, loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        self.taken: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": [], "outside": []}

    def part(self, name: str, work: Callable[[], Any]) -> Any:
        begun = time.process_time()
        result = work()
        self.taken[name].append(time.process_time() - begun)
        return result

    def __call__(self) -> None:
        scored = self.part("forward", lambda: forward_passes(self.model, [self.batch], forward))
        loss = self.part("outside", lambda: self.loss(scored))
        self.part("backward", loss.backward)
        self.part("optimizer", lambda: (self.optimizer.step(), self.optimizer.zero_grad()))


def bench_training(name: str, model: nn.Module, rows: int, repeats: int) -> None:
    """Print the share and the parts of a step of finetune or forget."""
    encoder = RandomWords()
    passes = ("retain",) if name == "finetune" else ("forget", "retain")
    encoded = [encoder.encode(make_row(number, False).example) for number in range(rows * len(passes))]
    width = len(encoded[0].answer)
    about = {"passes": passes, "rows": (rows,) * len(passes), "widths": (width,) * len(passes)}
    made = collate(encoded, encoder.pad)
    batch = Batch(made.inputs, made.labels, made.positions, **about)
    with torch.no_grad():
        start = sequence_logprob(forward_passes(model, [batch], forward)[passes[0]])

    def loss(scored: dict[str, Any]) -> Tensor:
        if name == "finetune":
            return total_of(retain_ft(scored["retain"]))
        return total_of(npo(scored["forget"], start, scored["retain"], beta=0.1, retain_weight=1.0))

    step = Step(model.train(), batch, loss)
    products = noted_products(model, step)  # the first step makes the optimizer's state, and does not count
    for part in step.taken.values():
        part.clear()
    for _ in range(repeats):
        step()
    taken = {part: statistics.median(seconds) for part, seconds in step.taken.items()}
    ahead, back = least_seconds(products, repeats, backward=True)
    rest = {"forward": taken["forward"] - ahead, "backward": taken["backward"] - back}
    print_parts(name, products, ahead + back, sum(taken.values()), taken | rest, backward=True)


def bench_scoring(model: nn.Module, rows: int, repeats: int) -> None:
    """Print the same of scoring questions with seven answers each."""
    prompts = []
    for number in range(rows):
        row = make_row(number, True)
        prompts.append(Prompt(row.example, [row.example.answer, str(row.paraphrase), *row.perturbed]))
    within: list[float] = []
    original = model.forward

    def timed_forward(*args: Any, **inputs: Any) -> Any:
        begun = time.process_time()
        output = original(*args, **inputs)
        within.append(time.process_time() - begun)
        return output

    def work() -> None:
        score_prompts(model, RandomWords(), prompts, batch_size=7 * rows, max_new_tokens=1, say=print)

    model.eval()
    products = noted_products(model, work)
    timed_forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    model.forward = timed_forward
    whole, calls = [], []
    for _ in range(repeats):
        within.clear()
        begun = time.process_time()
        work()
        whole.append(time.process_time() - begun)
        calls.append(sum(within))
    model.forward = original
    ahead, _ = least_seconds(products, repeats, backward=False)
    every, inside = statistics.median(whole), statistics.median(calls)
    print_parts("scoring", products, ahead, every, {"forward": inside - ahead, "outside": every - inside})


def print_parts(
    name: str, products: Counter[Product], least: float, taken: float, rest: dict[str, float], *, backward: bool = False
) -> None:
    work = sum(2 * count * each.rows * each.inner * each.columns for each, count in products.items())
    work *= 3 if backward else 1
    print(f"{name}_seconds {taken:.3f}\n{name}_products_seconds {least:.3f}\n{name}_share {least / taken:.3f}")
    print(f"{name}_products_gflops {work / least / 1e9:.0f}\n{name}_gflops {work / taken / 1e9:.0f}")
    for part, seconds in rest.items():
        print(f"{name}_rest_{part}_seconds {seconds:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="100m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    model = make_model(asked.size)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{processor()}, {torch.get_num_threads()} threads, {count / 1e6:.0f} M parameters")
    bench_scoring(model, asked.rows, asked.repeats)
    for name in ("finetune", "forget"):
        bench_training(name, model, asked.rows, asked.repeats)


if __name__ == "__main__":
    main()
