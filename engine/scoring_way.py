"""How a model is scored: tried on a few rows before an evaluation, so that no family is scored in a way that is wrong
for it.

What is right is what a forward of one row alone says. Sharing a prompt between its answers, and padding prompts to a
batch, are worth their speed only where they give the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from data_module import TaskRow
from engine.encode import Encoded
from engine.language_model import forward
from engine.score_answers import Prompt, PromptResult, answer_losses, ends_of, score_prompts, unshareable
from engine.start_checks import is_exact, name_of
from settings.script import SettingsError

TOKENS = 6  # of a generation that is tried
ROWS = 64  # of a task that the shortest and the longest question are chosen from
# in fp32: nats of a token, and of its loss where that is larger than 1; share of the logits' spread
LOSS, CHOICE = 1e-4, 1e-3
# where numbers have 8 or 11 bits: nats of a token on average over an answer; share of the logits' spread
LOSS_IN_HALF, CHOICE_IN_HALF = 0.1, 0.2


@dataclass(frozen=True)
class Way:
    """How prompts are scored: shared by their answers or not, so many of them at once."""

    shared: bool
    batch_size: int


def way_for(
    model: nn.Module, encoder: Any, tasks: dict[str, list[TaskRow]], batch_size: int, say: Callable[[str], None]
) -> Way:
    """The way that is right for the rows of all tasks, those in words and those with pictures.

    Arguments as `way_of_scoring` has them. Raises SettingsError.
    """
    ways = [way_of_scoring(model, encoder, prompts, batch_size, say) for prompts in prompts_to_try(tasks)]
    return Way(all(way.shared for way in ways), min((way.batch_size for way in ways), default=batch_size))


def way_of_scoring(
    model: nn.Module, encoder: Any, prompts: list[Prompt], batch_size: int, say: Callable[[str], None]
) -> Way:
    """The fastest way that scores `prompts` as if each row were alone: shared prompts, plain batches, or one by one.

    Args:
        model: in eval mode.
        encoder: of the prompts and their answers.
        prompts: a few, of different lengths, all in words or all with pictures.
        batch_size: of the evaluation.
        say: takes a line where sharing or batches are given up.

    Raises:
        SettingsError: even one by one the model does not say what its own forward says.
    """
    name = name_of(model)
    shared, plain = Way(True, batch_size), Way(False, batch_size)
    ways = [
        (shared, "shared check", "scores answers behind a shared prompt otherwise than alone", "answer by answer"),
        (plain, "padding check", "scores rows in a batch otherwise than alone", "row by row"),
    ]
    if why := unshareable(model):
        say(f"{name} is scored answer by answer: {why}")
        ways = ways[1:]
    with torch.no_grad():
        losses = [losses_alone(model, encoder, prompt) for prompt in prompts]
        for way, check, what, instead in ways:
            why = difference(model, encoder, prompts, losses, way)
            if why is None:
                return way
            say(f"{check}: {name} {what} ({why}): it is scored {instead}")
        alone = Way(False, 1)
        if why := difference(model, encoder, prompts, losses, alone):
            raise SettingsError(
                f"generation check: {name} does not generate what its own forward says ({why}); this kind of model is "
                "not supported"
            )
    return alone


def losses_alone(model: nn.Module, encoder: Any, prompt: Prompt) -> dict[str, list[float]]:
    """The losses of each answer behind its prompt, from a forward of that row alone."""
    device = next(model.parameters()).device
    found = {}
    for answer in prompt.answers:
        batch = encoder.collate([encoder.encode(replace(prompt.example, answer=answer))]).to(device)
        scored = forward(model, batch)
        found[answer] = answer_losses(scored.logits[0], scored.labels[0].tolist()).losses
    return found


def difference(
    model: nn.Module, encoder: Any, prompts: list[Prompt], losses: list[dict[str, list[float]]], way: Way
) -> str | None:
    """What `prompts` scored in this way have that is not as `losses` and plain passes have it; None: nothing."""
    limits = {"batch_size": way.batch_size, "max_new_tokens": TOKENS}
    try:
        results = score_prompts(model, encoder, prompts, **limits, shared=way.shared, say=lambda line: None)
    except SettingsError:
        raise
    except Exception as error:  # what a family's forward raises depends on the family
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    exact = is_exact(model)
    for prompt, result, own in zip(prompts, results, losses, strict=True):
        for answer, alone in own.items():
            moved = torch.tensor(result.answers[answer].losses) - torch.tensor(alone)
            allowed = LOSS * torch.tensor(alone).clamp(min=1)
            if (moved.abs() > allowed).any() if exact else moved.abs().mean() > LOSS_IN_HALF:
                return f"losses by {moved.abs().max().item():.2g}"
        if behind(model, encoder, prompt, result) > (CHOICE if exact else CHOICE_IN_HALF):
            return "generations"
    return None


def behind(model: nn.Module, encoder: Any, prompt: Prompt, result: PromptResult) -> float:
    """How far the worst token of a generation is behind the first choice of a plain pass, as a share of the logits'
    spread; the end of a generation is a choice too.
    """
    ends = torch.tensor(sorted(ends_of(model, encoder)))
    encoded = encoder.encode(prompt.example)
    said = Encoded(encoded.prompt, [*result.said, int(ends[0])], encoded.layout)
    batch = encoder.collate([said]).to(next(model.parameters()).device)
    logits = forward(model, batch).logits[0].float().cpu()
    chosen = logits[: len(result.said)].gather(-1, torch.tensor(result.said, dtype=torch.long)[:, None])[:, 0]
    if len(result.said) < TOKENS:  # it ended
        chosen = torch.cat([chosen, logits[-1, ends].max()[None]])
    best = logits[: len(chosen)].max(-1).values
    return ((best - chosen).max() / logits.std()).item()


def prompts_to_try(tasks: dict[str, list[TaskRow]]) -> list[list[Prompt]]:
    """Of the rows in words, and of those with a picture, the shortest and the longest question of the first task that
    has any, each with the answers of both.
    """
    found: dict[bool, list[Prompt]] = {}
    for rows in tasks.values():
        for pictured in (False, True):
            examples = [row.example for row in rows[:ROWS] if (row.example.image is not None) == pictured]
            if examples and pictured not in found:
                examples.sort(key=lambda example: len(example.question))
                two = {example.prompt_key: example for example in (examples[0], examples[-1])}
                answers = [*dict.fromkeys(example.answer for example in two.values())]
                found[pictured] = [Prompt(example, answers) for example in two.values()]
    return list(found.values())
