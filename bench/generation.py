"""A model's evaluation with generations that begin with what the scored answers tell, beside ones that are generated
whole: seconds of the processor and of the clock, and tokens that are generated one by one.

Both ways run task by task, one after the other, so that a machine that gets slower is slower for both. `all` is the sum
over the tasks. Of a row that is asked with many affixes the one is taken that an evaluation generates for; that it is
looked for is not timed. `*_ratio`: begun over whole.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_module import TaskRow
from engine.evaluate import most_revealing, read_tasks, roles_of
from engine.score_answers import Prompt, PromptResult, score_prompts
from settings.language import Eval
from settings.script import compose


def prompts_of(rows: list[TaskRow]) -> list[Prompt]:
    """Each question once, with all answers to it."""
    prompts: dict[tuple, Prompt] = {}
    for row in rows:
        prompt = prompts.setdefault(row.example.prompt_key, Prompt(row.example, []))
        prompt.answers.extend(answer for answer in roles_of(row) if answer not in prompt.answers)
    return list(prompts.values())


class Steps:
    """How many tokens a model was called with one by one."""

    def __init__(self, model: Any):
        self.count = 0
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module: Any, args: tuple, inputs: dict[str, Any]) -> None:
        if inputs["input_ids"].shape[1] == 1:
            self.count += len(inputs["input_ids"])


def open_both(asked: argparse.Namespace) -> tuple[Any, Any, Eval]:
    """The model, its encoder and the settings of its evaluation."""
    settings = compose(f"{asked.modality}/eval", Eval, [f"model_path={asked.model}", *asked.overrides])
    if asked.modality == "mm":
        from mm.encoder import open_encoder, open_model
    else:
        from nlp.encoder import open_encoder, open_model
    return open_model(asked.model, settings.model).eval(), open_encoder(asked.model, settings.model), settings


def print_figures(name: str, seconds: dict[bool, list[tuple[float, float]]], steps: dict[bool, int]) -> None:
    """Medians of both clocks and the tokens; the ratios are medians over the repeats."""
    for place, clock in enumerate(("cpu", "wall")):
        for begun, label in ((False, "whole"), (True, "begun")):
            middle = statistics.median(each[place] for each in seconds[begun])
            print(f"{name}_{label}_{clock}_seconds {middle:.3f}")
        pairs = zip(seconds[True], seconds[False], strict=True)
        print(f"{name}_{clock}_ratio {statistics.median(own[place] / other[place] for own, other in pairs):.3f}")
    print(f"{name}_whole_steps {steps[False]}\n{name}_begun_steps {steps[True]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a trained model")
    parser.add_argument("--modality", choices=("mm", "nlp"), default="nlp")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0, help="of each task, the first ones; 0: all")
    parser.add_argument("overrides", nargs="*", help="of the evaluation's settings")
    asked = parser.parse_args()
    model, encoder, settings = open_both(asked)
    steps = Steps(model)
    totals: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    counts = {True: 0, False: 0}
    same = True
    limits: dict[str, Any] = {"batch_size": settings.batch_size, "max_new_tokens": settings.max_new_tokens}
    for name, rows in read_tasks(settings, settings.seed, settings.fold).items():
        rows, _ = most_revealing(model, encoder, rows[: asked.rows or None], batch_size=settings.batch_size, say=print)
        prompts = prompts_of(rows)
        seconds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        made: dict[bool, int] = {}
        results: dict[bool, list[PromptResult]] = {}
        for _ in range(asked.repeats):
            for begun in (False, True):
                steps.count, cpu, wall = 0, time.process_time(), time.perf_counter()
                results[begun] = score_prompts(model, encoder, prompts, **limits, from_answers=begun, say=print)
                seconds[begun].append((time.process_time() - cpu, time.perf_counter() - wall))
                made[begun] = steps.count
        print_figures(name, seconds, made)
        same &= [each.said for each in results[True]] == [each.said for each in results[False]]
        for begun, own in seconds.items():
            before = totals[begun] or [(0.0, 0.0)] * len(own)
            totals[begun] = [(a + c, b + d) for (a, b), (c, d) in zip(before, own, strict=True)]
            counts[begun] += made[begun]
    print_figures("all", totals, counts)
    print(f"same_generations {int(same)}")


if __name__ == "__main__":
    main()
