"""How a model is scored: tried on a few rows before an evaluation, so that no family is scored in a way that is wrong
for it.

What is right is what a forward of one row alone says. Sharing a prompt between its answers, and padding prompts to a
batch, are worth their speed only where they give the same.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from data_module import CAPTION_QUESTIONS, TaskRow
from engine.encode import Encoded, collate_prompts
from engine.language_model import forward
from engine.score_answers import Prompt, PromptResult, ends_of, score_prompts
from engine.shared_prompts import CHOICE, CHOICE_IN_HALF, SharedPrompts, unshareable
from engine.start_checks import is_exact, name_of
from engine.token_figures import answer_losses
from settings.script import SettingsError, first_line

TOKENS = 6  # of a generation that is tried
ROWS = 64  # of a task that the shortest and the longest question are chosen from
# What counts as different: nats of a token, times its loss or the logits' spread where those are above 1. A token that
# was generated may be behind the first choice by CHOICE.
LOSS = 1e-4
LOSS_IN_HALF = 0.05  # where numbers have 8 or 11 bits; on average over an answer


@dataclass(frozen=True)
class Way:
    """How prompts are scored: shared by their answers or not, so many of them at once; where they are shared, what
    those about one picture have in common is run once or for each.
    """

    shared: bool
    batch_size: int
    by_picture: bool = True

    @property
    def limits(self) -> dict[str, Any]:
        """As `score_prompts` takes it."""
        return {"shared": self.shared, "batch_size": self.batch_size, "by_picture": self.by_picture}


def way_for(
    model: nn.Module, encoder: Any, tasks: dict[str, list[TaskRow]], batch_size: int, say: Callable[[str], None]
) -> Way:
    """The way in which all tasks are scored: tried on a few rows in words, and on a few with pictures.

    Arguments as `way_of_scoring` has them. Raises SettingsError.
    """
    ways = [way_of_scoring(model, encoder, prompts, batch_size, say) for prompts in prompts_to_try(tasks)]
    return Way(
        all(way.shared for way in ways),
        min((way.batch_size for way in ways), default=batch_size),
        all(way.by_picture for way in ways),
    )


def way_of_scoring(
    model: nn.Module, encoder: Any, prompts: list[Prompt], batch_size: int, say: Callable[[str], None]
) -> Way:
    """The fastest way that scores `prompts` as if each row were alone: one pass over a picture, shared prompts, plain
    batches, or one by one.

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
    by_picture, shared, plain = Way(True, batch_size), Way(True, batch_size, False), Way(False, batch_size)
    together = "scores questions about one picture together otherwise than alone"
    ways = [
        (by_picture, "picture check", together, "question by question"),
        (shared, "shared check", "scores answers behind a shared prompt otherwise than alone", "answer by answer"),
        (plain, "padding check", "scores rows in a batch otherwise than alone", "row by row"),
    ]
    if why := unshareable(model):
        say(f"{name} is scored answer by answer: {why}")
        ways = ways[2:]
    elif all(prompt.example.image is None for prompt in prompts):  # by picture or not is one way
        ways = [(by_picture, *ways[1][1:]), ways[2]]
    with torch.no_grad():
        truths = [losses_alone(model, encoder, prompt) for prompt in prompts]
        for way, check, what, instead in ways:
            why = difference(model, encoder, prompts, truths, way)
            if why is None:
                return way
            say(f"{check}: {name} {what} ({why}): it is scored {instead}")
        alone = Way(False, 1)
        if why := difference(model, encoder, prompts, truths, alone):
            raise SettingsError(
                f"generation check: {name} does not generate what its own forward says ({why}); this kind of model is "
                "not supported"
            )
    return alone


class Alone(NamedTuple):
    """An answer as a forward of its row alone scores it: the losses of its tokens, and the spread of the logits."""

    losses: list[float]
    spread: float


def losses_alone(model: nn.Module, encoder: Any, prompt: Prompt) -> dict[str, Alone]:
    """Each answer behind its prompt, from a forward of that row alone."""
    device = next(model.parameters()).device
    found = {}
    for answer in prompt.answers:
        batch = encoder.collate([encoder.encode(replace(prompt.example, answer=answer))]).to(device)
        scored = forward(model, batch)
        losses = answer_losses(scored.logits[0], scored.labels[0].tolist()).losses
        found[answer] = Alone(losses, scored.logits.float().std().item())
    return found


def difference(
    model: nn.Module, encoder: Any, prompts: list[Prompt], truths: list[dict[str, Alone]], way: Way
) -> str | None:
    """What `prompts` scored in this way have that is not as `truths` and plain passes have it; None: nothing."""
    limits: dict[str, Any] = {"max_new_tokens": TOKENS, "worth": math.inf, **way.limits}
    try:  # every token is generated: what the answers tell of a generation must be what is tried
        results = score_prompts(model, encoder, prompts, **limits, from_answers=False, say=lambda line: None)
        continued = begun_with_answers(model, encoder, prompts, results) if way.shared else []
    except SettingsError:
        raise
    except Exception as error:  # what a family's forward raises depends on the family
        return first_line(error)
    exact = is_exact(model)
    for result, truth in zip(results, truths, strict=True):
        for answer, alone in truth.items():
            right = torch.tensor(alone.losses)
            moved = (torch.tensor(result.answers[answer].losses) - right).abs()
            scale = max(1.0, alone.spread)  # rounding grows with the logits, as those of a broken model do
            # asked in the positive, so that a loss that is no number agrees with nothing
            agrees = (moved <= LOSS * right.clamp(min=scale)).all() if exact else moved.mean() <= LOSS_IN_HALF * scale
            if not agrees:
                return f"losses by {moved.max().item():.2g}"
    for prompt, result in [*zip(prompts, results, strict=True), *continued]:
        if not behind(model, encoder, prompt, result.said) <= (CHOICE if exact else CHOICE_IN_HALF):
            return "generations"
    return None


def begun_with_answers(
    model: nn.Module, encoder: Any, prompts: list[Prompt], results: list[PromptResult]
) -> list[tuple[Prompt, PromptResult]]:
    """`prompts` with their generations once more, begun behind an answer that is their own first tokens: one token of
    the first prompt, two of the second, so that there is a gap behind the shorter one.

    Empty where their cache does not allow it.
    """
    encoded = [encoder.encode(prompt.example) for prompt in prompts]
    inputs = collate_prompts(encoded, encoder.pad)
    on_device = {name: value.to(next(model.parameters()).device) for name, value in inputs.items()}
    shared = SharedPrompts(model, on_device, encoded[0].layout, ends=ends_of(model, encoder))
    if not shared.has_room(2 * TOKENS):
        return []
    shared.answer_losses([[[*result.said[: 1 + row], encoder.end]] for row, result in enumerate(results)])
    texts = shared.generate(TOKENS)
    return [(prompt, replace(result, said=text)) for prompt, result, text in zip(prompts, results, texts, strict=True)]


def behind(model: nn.Module, encoder: Any, prompt: Prompt, text: list[int]) -> float:
    """How far the worst token of a generation is behind the first choice of a plain pass, as a share of the logits'
    spread; the end of a generation is a choice too.

    From the first token on that stands for a picture nothing is compared: a plain pass would look for that picture.
    """
    pictured = picture_tokens(model)
    whole = text
    text = list(itertools.takewhile(lambda token: token not in pictured, whole))
    ends = torch.tensor(sorted(ends_of(model, encoder)))
    encoded = encoder.encode(prompt.example)
    said = Encoded(encoded.prompt, [*text, int(ends[0])], encoded.layout)
    batch = encoder.collate([said]).to(next(model.parameters()).device)
    logits = forward(model, batch).logits[0].float().cpu()
    chosen = logits[: len(text)].gather(-1, torch.tensor(text, dtype=torch.long)[:, None])[:, 0]
    if len(text) == len(whole) < TOKENS:  # it ended
        chosen = torch.cat([chosen, logits[-1, ends].max()[None]])
    if not len(chosen):
        return 0.0
    best = logits[: len(chosen)].max(-1).values
    return ((best - chosen).max() / logits.std()).item()


def picture_tokens(model: nn.Module) -> set[int]:
    """The tokens that stand for a picture in a prompt, as the model's configuration names them."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    found = [getattr(getattr(model, "config", None), name, None) for name in names]
    return {token for token in found if isinstance(token, int)}


def prompts_to_try(tasks: dict[str, list[TaskRow]]) -> list[list[Prompt]]:
    """Of the rows in words, and of those with a picture, the shortest and the longest question of the first task that
    has any, each with the answers of both; and a second question about the first picture.
    """
    found: dict[bool, list[Prompt]] = {}
    for rows in tasks.values():
        for pictured in (False, True):
            examples = [row.example for row in rows[:ROWS] if (row.example.image is not None) == pictured]
            if examples and pictured not in found:
                examples.sort(key=lambda example: len(example.question))
                tried = [examples[0], examples[-1]]
                if pictured:
                    tried.append(replace(examples[0], question=another_question(examples[0].question)))
                each = {example.prompt_key: example for example in tried}
                answers = [*dict.fromkeys(example.answer for example in each.values())]
                found[pictured] = [Prompt(example, answers) for example in each.values()]
    return list(found.values())


def another_question(question: str) -> str:
    """A question about a picture that is not this one."""
    return next(each for each in CAPTION_QUESTIONS if each != question)
