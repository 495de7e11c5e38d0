"""OpenUnlearning's nine metrics and its forgetting step, forward for forward, beside ours: both clocks and memory.

The plain way is our own code that does what OpenUnlearning (https://github.com/locuslab/open-unlearning) does:

- **evaluation**: each metric has forwards of its own, logits of all positions, and the labels go into the model, which
  makes its own loss of them. With each row to forget: Probability 1, Truth Ratio 6, Exact Memorization 1, Extraction
  Strength 1, and one each for the membership attacks loss, zlib, Min-K% and Min-K%++, which have one each with a held
  out row, too: 17 forwards, counted as they are made. ROUGE is a generation.
- **forgetting**: NPO by Hugging Face's trainer. A second copy of the model scores every forget batch, forget and retain
  rows have a forward each, and logits are made at all positions.

Ours is the suite's evaluation of the same rows, and `engine.train.train`. Both train all weights with AdamW in fp32.
The steps of the two trainings are taken in turn, each in a thread of its own while the other waits. The first step of
each does not count. Ours scores the start's log-probabilities once before its first step: `start_*` is that time for
each step of one epoch, and `forget_1_epoch_*` and `forget_5_epochs_*` count it.

The model is a randomly initialised Llama of 18 M parameters. Prompts have 82 tokens, answers 44. It knows no answer, so
that no answer tells its generation.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.clocks import Spent, print_both, processor, timed
from bench.peak_memory import Peak, free_memory, resident_gb
from data_module import Example, TaskRow
from engine import metrics
from engine.encode import Encoded, collate
from engine.evaluate import evaluate_tasks
from engine.frozen_start import Start
from engine.language_model import forward
from engine.loss_trainer import LossTrainer
from engine.methods import bind
from engine.pairs import Batch, Pairs
from engine.train import train
from settings.training import Method, Trainer
from unlearn_losses import IGNORE

PROMPT, ANSWER, PAD, END = 82, 44, 0, 2
SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
}
BETA = 0.1


def make_model() -> LlamaForCausalLM:
    """A randomly initialised Llama of SHAPE."""
    torch.manual_seed(0)
    options = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": 1, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **options, max_position_embeddings=256, initializer_range=0.05))


class RandomWords:
    """Stands in for a tokenizer: question and answer of an example are seeds of random tokens."""

    processor = None

    def __init__(self) -> None:
        self.tokenizer, self.pad, self.end = argparse.Namespace(eos_token_id=END), PAD, END

    def encode(self, example: Example) -> Encoded:
        return Encoded({"input_ids": tokens_of(example.question, PROMPT)[None]}, self.encode_answer(example, PROMPT))

    def encode_answer(self, example: Example, asked: int) -> list[int]:
        return [*tokens_of(example.answer, ANSWER - 1).tolist(), END]

    def text_lengths(self, texts: list[str]) -> list[int]:
        """What prompts are sorted by: all are of one length."""
        return [0] * len(texts)

    def collate(self, encoded: list[Encoded]) -> Batch:
        return collate(encoded, PAD)

    def decode(self, tokens: Tensor) -> str:
        return " ".join(map(str, tokens.tolist()))

    def prompt_text(self, example: Example) -> str:
        return example.question


def tokens_of(seed: str, count: int) -> Tensor:
    return torch.randint(5, SHAPE["vocab_size"], (count,), generator=torch.Generator().manual_seed(int(seed)))


def make_row(number: int, wrong: bool) -> TaskRow:
    """A row with a right answer, and with a paraphrase and five wrong answers where it is to be forgotten."""
    first = 100 * number
    example = Example(str(first + 99), str(first), None, number, None, "bench")
    if not wrong:
        return TaskRow(example, None, [])
    return TaskRow(example, str(first + 1), [str(first + 2 + place) for place in range(5)])


# ---- nine metrics, each for itself


def labelled(encoder: RandomWords, pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Rows of (question, answer) as input ids with labels, all of one length."""
    ids, labels = [], []
    for question, answer in pairs:
        encoded = encoder.encode(Example(question, answer, None, 0, None, "bench"))
        own = torch.tensor(encoded.answer)
        ids.append(torch.cat([encoded.prompt["input_ids"][0], own]))
        labels.append(torch.cat([torch.full((PROMPT,), IGNORE), own]))
    made = torch.stack(ids)
    return {"input_ids": made, "attention_mask": torch.ones_like(made), "labels": torch.stack(labels)}


def mean_losses(model: nn.Module, batch: dict[str, Tensor]) -> list[float]:
    """Nats per token of each row's answer."""
    logits, shifted = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    losses = nn.functional.cross_entropy(logits.transpose(-1, -2), shifted, reduction="none").sum(-1)
    return (losses / (shifted != IGNORE).sum(-1)).tolist()


def token_logprobs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities of the tokens of the answers without their ends."""
    every = model(**batch).logits.log_softmax(-1)[:, :-1]
    return every.gather(-1, batch["input_ids"][:, 1:, None])[:, PROMPT - 1 : -1, 0]


def vocabulary_logprobs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities of all words at each of these tokens' places."""
    return model(**batch).logits.log_softmax(-1)[:, PROMPT - 1 : -2]


def min_k(logprobs: Tensor) -> list[float]:
    """Minus the mean of the lowest 40 % of each row."""
    count = max(1, int(0.4 * logprobs.shape[1]))
    return (-logprobs.sort(-1).values[:, :count].mean(-1)).tolist()


def min_k_plus_plus(model: nn.Module, batch: dict[str, Tensor]) -> list[float]:
    every = vocabulary_logprobs(model, batch)
    own = every.gather(-1, batch["labels"][:, PROMPT:-1, None])[..., 0]
    mean = (every.exp() * every).sum(-1)
    spread = (every.exp() * every.square()).sum(-1) - mean.square()
    return min_k((own - mean) / spread.clamp(min=1e-6).sqrt())


def correct(model: nn.Module, batch: dict[str, Tensor]) -> list[list[bool]]:
    """Which tokens of each answer are the first choice."""
    return (vocabulary_logprobs(model, batch).argmax(-1) == batch["labels"][:, PROMPT:-1]).tolist()


@torch.no_grad()
def nine_metrics(
    model: Any, encoder: RandomWords, forget: list[TaskRow], holdout: list[TaskRow], new: int
) -> dict[str, Any]:
    """Each metric with passes of its own over all rows, as one batch."""

    def batch(rows: list[TaskRow], answers: Callable[[TaskRow], str] = lambda row: row.example.answer) -> dict:
        return labelled(encoder, [(row.example.question, answers(row)) for row in rows])

    found: dict[str, Any] = {"probability": mean_losses(model, batch(forget))}
    found["paraphrase"] = mean_losses(model, batch(forget, lambda row: str(row.paraphrase)))
    found["wrong"] = [mean_losses(model, batch(forget, lambda row, n=n: row.perturbed[n])) for n in range(5)]
    found["exact"] = [metrics.exact_memorization(each) for each in correct(model, batch(forget))]
    found["extraction"] = [metrics.extraction_strength(each) for each in correct(model, batch(forget))]
    for rows in (forget, holdout):
        found.setdefault("loss", []).append(mean_losses(model, batch(rows)))
        sizes = [metrics.zlib_bytes(row.example.answer) for row in rows]
        losses = mean_losses(model, batch(rows))
        found.setdefault("zlib", []).append([loss / size for loss, size in zip(losses, sizes, strict=True)])
        found.setdefault("min_k", []).append(min_k(token_logprobs(model, batch(rows))))
        found.setdefault("min_k_plus_plus", []).append(min_k_plus_plus(model, batch(rows)))
    questions = batch(forget)["input_ids"][:, :PROMPT]
    options = {"attention_mask": torch.ones_like(questions), "do_sample": False, "pad_token_id": PAD}
    said = model.generate(questions, max_new_tokens=new, **options)[:, PROMPT:]
    found["rouge"] = [
        metrics.rouge_recall(encoder.decode(text), row.example.answer) for text, row in zip(said, forget, strict=True)
    ]
    return found


def bench_evaluation(rows: int, new: int, repeats: int) -> None:
    """Print what nine metrics of `rows` rows to forget and as many held out take both ways."""
    model, encoder = make_model().eval(), RandomWords()
    forget = [make_row(number, True) for number in range(rows)]
    holdout = [make_row(number, False) for number in range(rows, 2 * rows)]
    forwards: list[int] = []
    counting = model.register_forward_pre_hook(
        lambda module, args, inputs: forwards.append(1) if inputs.get("labels") is not None else None, with_kwargs=True
    )

    def plain() -> Any:
        return nine_metrics(model, encoder, forget, holdout, new)

    def ours() -> Any:
        tasks = {"forget": forget, "holdout": holdout}
        return evaluate_tasks(model, encoder, tasks, batch_size=32, max_new_tokens=new)

    memory = {name: extra_memory(work) for name, work in (("plain", plain), ("ours", ours))}  # it also warms up
    print(f"nine_metrics_forwards {len(forwards)}")
    counting.remove()
    spent: dict[str, list[Spent]] = {"plain": [], "ours": []}
    for _ in range(repeats):
        seconds, found = timed(plain)
        spent["plain"].append(seconds)
        seconds, made = timed(ours)
        spent["ours"].append(seconds)
    losses = [row["avg_gt_loss"] for row in made["forget"].rows.values()]
    worst = max(abs(a - b) for a, b in zip(losses, found["probability"], strict=True))
    print_both("nine_metrics", spent["plain"], spent["ours"])
    print_memory("nine_metrics", memory)
    print(f"nine_metrics_largest_difference_in_nats {worst:.1e}", flush=True)


def extra_memory(work: Callable[[], Any]) -> float:
    """Most memory above what was there before, in GB."""
    free_memory()
    before = resident_gb()
    with Peak() as peak:
        work()
    return peak.most - before


def print_memory(name: str, memory: dict[str, float]) -> None:
    print(f"{name}_plain_extra_gb {memory['plain']:.3f}\n{name}_ours_extra_gb {memory['ours']:.3f}")
    print(f"{name}_memory_ratio {memory['ours'] / memory['plain']:.3f}", flush=True)


# ---- a forgetting step


class PlainTrainer(transformers.Trainer):
    """NPO with a second copy of the model in every step, as OpenUnlearning has it."""

    def __init__(self, model: nn.Module, **options: Any):
        super().__init__(model=model, **options)
        self.copy = copy.deepcopy(model).requires_grad_(False).eval()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Tensor:
        forget = summed_losses(model, inputs["forget"])
        with torch.no_grad():
            start = summed_losses(self.copy, inputs["forget"])
        loss = -2 / BETA * nn.functional.logsigmoid(BETA * (forget - start)).mean()
        return loss + model(**inputs["retain"]).loss


def summed_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Nats of each row's answer."""
    logits, shifted = model(**batch).logits[:, :-1].contiguous(), batch["labels"][:, 1:]
    return nn.functional.cross_entropy(logits.transpose(-1, -2), shifted, reduction="none").sum(-1)


class Turns:
    """Two trainings take their steps in turn, each in a thread of its own."""

    def __init__(self, ways: list[str]):
        self.ways, self.turn, self.changed = ways, ways[0], threading.Condition()
        self.spent: dict[str, list[Spent]] = {way: [] for way in ways}
        self.own = threading.local()

    def begin(self, way: str) -> None:
        self.own.way = way
        self.wait()

    def wait(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.turn in (self.own.way, "anyone"))
        self.clocks = timed_from()

    def step_is_done(self, *_: Any) -> None:
        self.spent[self.own.way].append(self.clocks())
        self.hand_on(next(way for way in self.ways if way != self.own.way))
        self.wait()

    def hand_on(self, way: str) -> None:
        with self.changed:
            if self.turn != "anyone":
                self.turn = way
            self.changed.notify_all()

    def end(self) -> None:
        """This training is over: the other one need not wait again."""
        with self.changed:
            self.turn = "anyone"
            self.changed.notify_all()


def timed_from() -> Callable[[], Spent]:
    """Says what was spent since now."""

    wall, cpu = time.perf_counter(), time.process_time()
    return lambda: Spent(time.process_time() - cpu, time.perf_counter() - wall)


class Rows(list):
    """Examples, with their answers."""

    @property
    def answers(self) -> list[str]:
        return [example.answer for example in self]


def train_plain(rows: int, size: int) -> None:
    """Train once over `rows` forget rows, each with a retain row, `size` of them a step."""
    encoder = RandomWords()
    pairs = [(make_row(n, False).example, make_row(rows + n, False).example) for n in range(rows)]

    def collated(items: list[tuple[Example, Example]]) -> dict[str, dict[str, Tensor]]:
        forget, retain = zip(*items, strict=True)
        return {"forget": of_examples(forget), "retain": of_examples(retain)}

    def of_examples(own: tuple[Example, ...]) -> dict[str, Tensor]:
        return labelled(encoder, [(each.question, each.answer) for each in own])

    with tempfile.TemporaryDirectory() as scratch:
        options = {"per_device_train_batch_size": size, "num_train_epochs": 1, "learning_rate": 1e-5}
        quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False}
        arguments = transformers.TrainingArguments(
            scratch, **options, **quiet, use_cpu=True, logging_strategy="no", weight_decay=0.01
        )
        trainer = PlainTrainer(make_model(), args=arguments, train_dataset=pairs, data_collator=collated)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def train_ours(rows: int, size: int) -> None:
    """The same by the suite's training."""
    every = [make_row(number, False).example for number in range(2 * rows)]
    method = Method(name="npo", loss="npo", args={"beta": BETA, "retain_weight": 1.0})
    bound = bind(method)
    pairs = Pairs(bound.batches, Rows(every[:rows]), Rows(every[rows:]), idk={}, seed=0)
    settings = Trainer(
        epochs=1,
        batch_size=size,
        accumulation=1,
        lr=1e-5,
        weight_decay=0.01,
        warmup_ratio=0.0,
        schedule="linear",
        max_grad_norm=1.0,
        optimizer="adamw_torch",
        precision="fp32",
        lora=None,
        save_every="never",
    )
    with tempfile.TemporaryDirectory() as scratch:
        start = Start(make_model(), forward, lambda model, folder: None)
        run = {"seed": 0, "save_dir": str(Path(scratch, "out")), "record": {}, "say": lambda line: None}
        train(start, bound, pairs, RandomWords(), settings, **run)


def bench_forgetting(steps: int, size: int) -> None:
    """Print what a step of NPO takes both ways, and its memory above the weights."""
    weights = sum(p.numel() * p.element_size() for p in make_model().parameters()) / 1e9
    memory = {}
    for name, work in (("plain", train_plain), ("ours", train_ours)):
        memory[name] = extra_memory(lambda: work(2 * size, size)) - weights  # noqa: B023 - called at once
    turns, scoring = Turns(["ours", "plain"]), []
    original = LossTrainer.keep_start_logprobs

    def timed_scoring(self: LossTrainer, *arguments: Any) -> None:
        seconds, _ = timed(lambda: original(self, *arguments))
        scoring.append(seconds)

    def in_thread() -> None:
        turns.begin("plain")
        try:
            train_plain(steps * size, size)
        finally:
            turns.end()

    hook = register_optimizer_step_post_hook(turns.step_is_done)
    LossTrainer.keep_start_logprobs = timed_scoring  # type: ignore[method-assign]
    other = threading.Thread(target=in_thread)
    try:
        other.start()
        turns.begin("ours")
        train_ours(steps * size, size)
        turns.end()
        other.join()
    finally:
        hook.remove()
        LossTrainer.keep_start_logprobs = original  # type: ignore[method-assign]
    plain, ours = (turns.spent[way][1:] for way in ("plain", "ours"))
    print_both("forget_step", plain, ours)
    start = Spent(*(each / steps for each in scoring[0]))
    print(f"start_cpu_seconds_per_step {start.cpu:.3f}\nstart_wall_seconds_per_step {start.wall:.3f}")
    for epochs, name in ((1, "1_epoch"), (5, "5_epochs")):
        for clock in ("cpu", "wall"):
            more = getattr(start, clock) / epochs
            pairs = [(getattr(a, clock), getattr(b, clock)) for a, b in zip(plain, ours, strict=True)]
            print(f"forget_{name}_{clock}_ratio {statistics.median((b + more) / a for a, b in pairs):.3f}")
    print_memory("forget_step", memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8, help="to forget, and as many held out")
    parser.add_argument("--new", type=int, default=ANSWER, help="tokens of each generation")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4, help="forget rows of a step, and retain rows")
    parser.add_argument("--part", choices=("both", "evaluation", "forgetting"), default="both")
    asked = parser.parse_args()
    print(processor(), f"{torch.get_num_threads()} threads")
    if asked.part != "forgetting":
        bench_evaluation(asked.rows, asked.new, asked.repeats)
    if asked.part != "evaluation":
        bench_forgetting(asked.steps, asked.batch_size)


if __name__ == "__main__":
    main()
