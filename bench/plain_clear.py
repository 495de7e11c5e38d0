"""CLEAR's evaluation as published, forward for forward, beside ours of the same questions: both clocks and memory.

The plain way is our own code that does what `mm/eval.py` of the CLEAR paper does. Of each question about a picture:

- a forward of the paraphrased answer and one of each of five wrong answers, the latter as one batch in which the
  picture is encoded five times; then one of the right answer: 7 forwards with the picture.
- the model gets the labels and so makes its own loss over all positions; a second cross-entropy is taken of the same
  logits of all positions over the whole vocabulary.
- a greedy generation, for which the published code leaves the picture out. Ours has the picture.

Ours is the suite's evaluation of both tasks, which also has each token's figures. The model is that of
bench/eval_speed.py: a randomly initialised LLaVA in fp32, of 25 M or 100 M parameters, with pictures of 576 tokens.
Each picture is asked for its caption (answers of 36 to 40 tokens) and for its name (4 tokens), as CLEAR asks. The model
knows no answer, so that no answer tells its generation.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.clocks import Spent, print_both, processor, timed
from bench.eval_speed import ANSWERS, END, PAD, PICTURE, SIZES, VOCABULARY, WORDS, RandomRows, make_model
from bench.peak_memory import Peak, free_memory, resident_gb
from data_module import Example, TaskRow
from engine.encode import Encoded
from engine.evaluate import evaluate_tasks
from unlearn_losses import IGNORE

NAME, WORDS_OF_NAME = 3, 8  # tokens of a name without its end, and of the question for it


class PictureRows(RandomRows):
    """Rows of words and a picture that has no other row's pixels; both questions begin with the same picture."""

    def encode(self, example: Example) -> Encoded:
        whole = super().encode(Example("0", example.answer, example.image, example.index, None, "bench"))
        source = torch.Generator().manual_seed(example.index)
        pixels = torch.randn(1, 3, 336, 336, generator=source)
        asked = torch.Generator().manual_seed(len(example.question))
        count = WORDS_OF_NAME if is_name(example) else WORDS
        words = torch.randint(5, VOCABULARY - 5, (1, count), generator=asked)
        ids = torch.cat([whole.prompt["input_ids"][:, : 4 + PICTURE], words], 1)
        return Encoded({"input_ids": ids, "pixel_values": pixels}, self.encode_answer(example, ids.shape[1]))

    def encode_answer(self, example: Example, asked: int) -> list[int]:
        tokens = super().encode_answer(example, asked)
        return [*tokens[:NAME], END] if is_name(example) else tokens

    def prompt_text(self, example: Example) -> str:
        return example.question


def is_name(example: Example) -> bool:
    return example.question == "name"


def make_row(picture: int, question: str) -> TaskRow:
    """A question about a picture with a right answer, a paraphrase and five wrong ones."""
    first = (2 * picture + (question == "name")) * ANSWERS
    image = {"bytes": str(picture).encode(), "path": None}
    answers = [str(first + number) for number in range(ANSWERS)]
    return TaskRow(Example(question, answers[0], image, picture, None, "bench"), answers[1], answers[2:])


# ---- the plain way


def plain_batch(encoder: PictureRows, example: Example, answers: list[str]) -> dict[str, Tensor]:
    """The rows of a question with some answers, padded on the left; the picture is there once for each."""
    rows = []
    for answer in answers:
        made = encoder.encode(Example(example.question, answer, example.image, example.index, None, "bench"))
        rows.append((made.prompt, [*made.answer]))
    width = max(prompt["input_ids"].shape[1] + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), PAD)
    labels = torch.full((len(rows), width), IGNORE)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, (prompt, answer) in enumerate(rows):
        own = torch.cat([prompt["input_ids"][0], torch.tensor(answer)])
        ids[number, -len(own) :], mask[number, -len(own) :] = own, 1
        labels[number, -len(answer) :] = torch.tensor(answer)
    pixels = torch.cat([prompt["pixel_values"] for prompt, _ in rows])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "labels": labels}


def mean_losses(model: nn.Module, batch: dict[str, Tensor]) -> list[float]:
    """Nats per token of each row's answer, from the logits of all positions."""
    logits = model(**batch, use_cache=True).logits
    shifted = batch["labels"][:, 1:]
    every = nn.functional.cross_entropy(logits[:, :-1].transpose(-1, -2), shifted, reduction="none")
    return (every.sum(-1) / (shifted != IGNORE).sum(-1)).tolist()


@torch.no_grad()
def plain_losses(model: nn.Module, encoder: PictureRows, row: TaskRow, new: int) -> list[float]:
    """The losses of the right answer, its paraphrase and the wrong ones; `new`: tokens to generate besides."""
    paraphrase = mean_losses(model, plain_batch(encoder, row.example, [row.paraphrase]))
    wrong = mean_losses(model, plain_batch(encoder, row.example, row.perturbed))
    right = mean_losses(model, plain_batch(encoder, row.example, [row.example.answer]))
    if new:
        ids = encoder.encode(row.example).prompt["input_ids"]
        ids = ids[ids != model.config.image_token_id][None]
        options = {"do_sample": False, "pad_token_id": PAD, "use_cache": True}
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **options)
    return [*right, *paraphrase, *wrong]


# ---- ours


def our_losses(
    model: nn.Module, encoder: PictureRows, tasks: dict[str, list[TaskRow]], new: int, by_picture: bool
) -> list[list[float]]:
    """The same of all rows, task by task, from the suite's evaluation."""
    limits = {"batch_size": 8, "max_new_tokens": max(1, new), "by_picture": by_picture}
    groups = [tasks] if by_picture else [{name: rows} for name, rows in tasks.items()]
    found = []
    for group in groups:
        for result in evaluate_tasks(model, encoder, group, **limits).values():
            for row in result.rows.values():
                found.append([row["avg_gt_loss"], row["avg_paraphrased_loss"], *row["average_perturb_loss"]])
    return found


def largest(one: list[list[float]], other: list[list[float]]) -> float:
    return (torch.tensor(one) - torch.tensor(other)).abs().max().item()


def measure_memory(work: Callable[[], object]) -> float:
    """Most memory above what was there before, in GB."""
    free_memory()
    before = resident_gb()
    with Peak() as peak:
        work()
    return peak.most - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new", type=int, default=48, help="tokens of each generation; 0: none")
    parser.add_argument("--size", choices=list(SIZES), default="25m")
    asked = parser.parse_args()
    model, encoder = make_model(asked.size), PictureRows()
    tasks: dict[str, list[TaskRow]] = {"caption": [], "name": []}
    for name, rows in tasks.items():
        rows += [make_row(picture, name) for picture in range(asked.pictures)]
    print(processor(), f"{torch.get_num_threads()} threads")

    def plain() -> list[list[float]]:
        return [plain_losses(model, encoder, row, asked.new) for rows in tasks.values() for row in rows]

    def ours(by_picture: bool) -> list[list[float]]:
        return our_losses(model, encoder, tasks, asked.new, by_picture)

    spent: dict[str, list[Spent]] = {"plain": [], "by_question": [], "by_picture": []}
    works = {"plain": plain, "by_question": lambda: ours(False), "by_picture": lambda: ours(True)}
    memory: dict[str, float] = {}
    results: dict[str, list[list[float]]] = {}
    for way, work in works.items():
        memory[way] = measure_memory(work)  # it also warms up
    for _ in range(asked.repeats):
        for way, work in works.items():
            seconds, results[way] = timed(work)
            spent[way].append(seconds)
    for way in ("by_question", "by_picture"):
        print_both(f"clear_{way}", spent["plain"], spent[way])
        print(f"clear_{way}_memory_ratio {memory[way] / memory['plain']:.3f}")
        print(f"clear_{way}_largest_difference_in_nats {largest(results[way], results['plain']):.1e}")
    for way, value in memory.items():
        print(f"clear_{way}_extra_gb {value:.2f}")


if __name__ == "__main__":
    main()
