"""A model's evaluation with one pass over each picture for all questions about it, of whatever task, beside one pass
over each question: both clocks, tokens, and the largest difference.

Tasks about the same pictures are taken as the evaluation takes them. Both ways run one after the other for each group
of tasks, so that a machine that gets slower is slower for both. `all` is the sum over the groups of tasks that ask
about pictures. Of a row that is asked with many affixes the one is taken that an evaluation generates for.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from torch import Tensor

from bench.clocks import Spent, print_both, processor, timed
from bench.generation import open_both
from data_module import Example
from engine.evaluate import TaskResult, evaluate_rows, evaluate_tasks, most_revealing, read_tasks, tasks_by_picture


def largest_difference(one: dict[str, TaskResult], other: dict[str, TaskResult]) -> float:
    """Of the losses of all tokens of all answers, in nats."""
    found = 0.0
    for name, result in one.items():
        for own, its in zip(result.tokens, other[name].tokens, strict=True):
            assert own["answer"] == its["answer"]
            found = max(found, *(abs(a - b) for a, b in zip(own["losses"], its["losses"], strict=True)))
    return found


def same_words(one: dict[str, TaskResult], other: dict[str, TaskResult]) -> bool:
    """Whether all generations are the same."""
    return all(
        row["generated_text"] == other[name].rows[index]["generated_text"]
        for name, result in one.items()
        for index, row in result.rows.items()
    )


def in_double(model: Any, encoder: Any) -> None:
    """Have the model compute in 64 bits, and its encoder make pictures of 64."""
    model.double()
    encoder.forget_kept()
    made = encoder.prompt_inputs

    def prompt_inputs(example: Example) -> dict[str, Tensor]:
        return {name: value.double() if value.is_floating_point() else value for name, value in made(example).items()}

    encoder.prompt_inputs = prompt_inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a trained vision-language model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0, help="of each task, the first ones; 0: all")
    parser.add_argument(
        "--double", action="store_true", help="the model computes in 64 bits; losses are taken in 32 from its logits"
    )
    parser.add_argument("overrides", nargs="*", help="of the evaluation's settings")
    asked = parser.parse_args()
    asked.modality = "mm"
    model, encoder, settings = open_both(asked)
    if asked.double:
        in_double(model, encoder)
    print(processor())
    limits: dict[str, Any] = {"batch_size": settings.batch_size, "say": print}
    tasks = {}
    for name, rows in read_tasks(settings, settings.seed, settings.fold).items():
        rows, _ = most_revealing(model, encoder, rows[: asked.rows or None], **limits)
        if any(row.example.image is not None for row in rows):
            tasks[name] = rows
    limits["max_new_tokens"] = settings.max_new_tokens
    totals: tuple[list[Spent], list[Spent]] = ([Spent(0, 0)] * asked.repeats, [Spent(0, 0)] * asked.repeats)
    worst, same, counts = 0.0, True, [0, 0]
    for names in tasks_by_picture(tasks):
        group = {name: tasks[name] for name in names}
        spent: tuple[list[Spent], list[Spent]] = ([], [])
        for _ in range(asked.repeats):
            seconds, alone = timed(
                lambda: {
                    name: evaluate_rows(model, encoder, rows, by_picture=False, **limits)
                    for name, rows in group.items()  # noqa: B023 - called at once
                }
            )
            spent[0].append(seconds)
            seconds, together = timed(lambda: evaluate_tasks(model, encoder, group, **limits))  # noqa: B023
            spent[1].append(seconds)
        print_both("+".join(names), *spent)
        worst, same = max(worst, largest_difference(together, alone)), same and same_words(together, alone)
        for way, results in enumerate((alone, together)):
            counts[way] += sum(result.token_count for result in results.values())
            for turn, seconds in enumerate(spent[way]):
                totals[way][turn] += seconds
    print_both("all", *totals)
    print(f"all_plain_tokens {counts[0]}\nall_ours_tokens {counts[1]}")
    print(f"largest_difference_in_nats {worst:.1e}\nsame_generations {int(same)}")


if __name__ == "__main__":
    main()
