"""Scores of answers and greedy generations, from ONE pass over each prompt (and its picture).

Models whose cache cannot be shared are run answer by answer.
"""

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig

from data_module import Example
from engine.encode import collate_prompts
from engine.language_model import LanguageModel, forward
from engine.shared_prompts import RunStems, SharedPrompts, beginning, doubt_of, unshareable
from engine.stems import WORTH, find_stems
from engine.token_figures import AnswerLosses, TokenFigures, token_figures
from unlearn_losses import IGNORE


@dataclass(frozen=True)
class Prompt:
    """A question (and picture) with the answers to score after it, each once.

    `example.answer` need not be among them.
    """

    example: Example
    answers: list[str]


@dataclass(frozen=True)
class PromptResult:
    answers: dict[str, AnswerLosses]
    generation: str
    said: list[int]  # the tokens of the generation
    tokens: int  # of the prompt, the answers and the generation; what another prompt was run for does not count again


def score_prompts(
    model: nn.Module,
    encoder: Any,
    prompts: list[Prompt],
    *,
    batch_size: int,
    max_new_tokens: int,
    say: Callable[[str], None],
    advance: Callable[[int], None] = lambda count: None,
    shared: bool = True,
    by_picture: bool = True,
    worth: float = WORTH,
    from_answers: bool = True,
) -> list[PromptResult]:
    """Score all answers of each prompt and continue it greedily; results in the order of `prompts`.

    Args:
        model: in eval mode.
        encoder: of its prompts and answers.
        prompts: the questions with their answers.
        batch_size: at most so many prompts, and then as many answers, go through the model at once.
        max_new_tokens: of a generation.
        say: takes a line of progress.
        advance: takes the number of prompts of each batch, when it is scored.
        shared: False: the plain way, a forward for each answer and the library's generation. A model that cannot share
            a prompt is scored that way too, which is said.
        by_picture: Whether what prompts about one picture have in common is run once, where prompts are shared.
        worth: Share of a batch's positions up to which that is done.
        from_answers: False: every token of a generation is generated, also where the scored answers tell it.
    """
    results: dict[int, PromptResult] = {}  # by the number of the prompt
    limits: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "from_answers": from_answers}
    why = unshareable(model) if shared else None
    if why:
        say(f"{type(model).__name__} is scored answer by answer: {why}")
    is_shared = shared and not why
    lengths = word_lengths(encoder, prompts)
    for group in prompt_groups(prompts, lengths, batch_size, by_picture=by_picture and is_shared):
        own, of_own = [prompts[i] for i in group], [lengths[i] for i in group]
        stems = run_stems(model, encoder, own, worth) if by_picture and is_shared else None
        for places in like_answers(own, of_own, batch_size) if stems else prompt_batches(own, of_own, batch_size):
            batch = [own[place] for place in places]
            found = run_shared(model, encoder, batch, places, stems=stems, **limits) if is_shared else None
            if found is None and is_shared:
                say(
                    f"{type(model).__name__}: {len(batch)} prompts are scored answer by answer: "
                    "they reach past the window of its attention, or it keeps more than their tokens"
                )
            if found is None:
                found = run_plain(model, encoder, batch, **limits)
            for place, result in zip(places, found, strict=True):
                results[group[place]] = result
            advance(len(batch))
    return [results[i] for i in range(len(prompts))]


class WordLengths(NamedTuple):
    """Tokens of a prompt's question, without those of its picture and its template, and of all its answers.

    Pictures are not looked at, because encoding all prompts at once would hold every picture in memory.
    """

    question: int
    answers: int


def word_lengths(encoder: Any, prompts: list[Prompt]) -> list[WordLengths]:
    """The lengths of each prompt."""
    questions = encoder.text_lengths([prompt.example.question for prompt in prompts])
    of_answers = iter(encoder.text_lengths([answer for prompt in prompts for answer in prompt.answers]))
    totals = [sum(itertools.islice(of_answers, len(prompt.answers))) for prompt in prompts]
    return [WordLengths(*each) for each in zip(questions, totals, strict=True)]


def prompt_groups(
    prompts: list[Prompt], lengths: list[WordLengths], batch_size: int, *, by_picture: bool
) -> Iterator[list[int]]:
    """Numbers of the prompts whose stems are looked for together: all that ask about half of `batch_size` pictures, or
    one. The keys and values of stems are held beside those of a batch, which has as many prompts or twice as many.

    Those without a picture are one group, and so are all where `by_picture` is False.
    """
    pictures: dict[Hashable, list[int]] = {}
    for number, prompt in enumerate(prompts):
        key = prompt.example.picture_key if by_picture else None
        pictures.setdefault(key, []).append(number)
    if None in pictures:
        yield pictures.pop(None)
    each = sorted(pictures.values(), key=lambda group: max(lengths[i].question for i in group))
    size = max(1, batch_size // 2)
    for start in range(0, len(each), size):
        yield [*itertools.chain.from_iterable(each[start : start + size])]


def prompt_batches(prompts: list[Prompt], lengths: list[WordLengths], batch_size: int) -> Iterator[list[int]]:
    """Numbers of at most `batch_size` prompts of like length; words and pictures apart, or words would be padded to the
    length of a picture.
    """
    for pictured in (False, True):
        numbers = [i for i, prompt in enumerate(prompts) if (prompt.example.image is not None) == pictured]
        numbers.sort(key=lengths.__getitem__)
        yield from (numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size))


def like_answers(prompts: list[Prompt], lengths: list[WordLengths], batch_size: int) -> Iterator[list[int]]:
    """Numbers of at most `batch_size` prompts that are followed by as many answers, and about as many tokens of them;
    what they begin with is run.
    """
    counts: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        counts.setdefault(len(prompt.answers), []).append(number)
    for numbers in counts.values():
        numbers.sort(key=lengths.__getitem__)
        yield from (numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size))


# ---- one pass over the prompts


@torch.no_grad()
def run_stems(model: nn.Module, encoder: Any, prompts: list[Prompt], worth: float) -> RunStems | None:
    """What prompts about the same pictures have in common, run once; None where that is not worth it, or nothing may
    follow it.
    """
    pictures = [prompt.example.picture_key for prompt in prompts]
    if len({*pictures} - {None}) + pictures.count(None) == len(prompts):
        return None
    encoded = [encoder.encode(prompt.example) for prompt in prompts]
    stems = find_stems(encoded, pictures, encoder.pad, worth)
    if stems is None:
        return None
    run = RunStems(model, stems.to(next(model.parameters()).device))
    return run if run.has_room() else None


@torch.no_grad()
def run_shared(
    model: nn.Module,
    encoder: Any,
    prompts: list[Prompt],
    places: list[int],
    *,
    stems: RunStems | None,
    batch_size: int,
    max_new_tokens: int,
    from_answers: bool,
) -> list[PromptResult] | None:
    """One pass over the prompts for all their answers and generations; None where the cache does not allow it.

    `stems` are those of a group in which the prompts stand at `places`; None: each prompt is run whole.
    """
    device = next(model.parameters()).device
    encoded = [encoder.encode(prompt.example) for prompt in prompts]
    inputs = collate_prompts(encoded, encoder.pad)
    lengths = inputs["attention_mask"].sum(1).tolist()
    answers = [encode_answers(encoder, *each) for each in zip(prompts, lengths, strict=True)]
    rounds = in_rounds(answers, max(1, batch_size // len(prompts)))  # so many answers follow each prompt in one pass
    wanted = max(max_new_tokens, longest_suffix(rounds))
    on_device = {name: value.to(device) for name, value in inputs.items()}
    options: dict[str, Any] = {"ends": ends_of(model, encoder), "from_answers": from_answers}
    shared = None
    if stems:
        counts = stems.stems.tokens()
        run = [counts[place] for place in places]
        shared = SharedPrompts(model, on_device, encoded[0].layout, behind=stems.behind(places), **options)
    if shared is None or not shared.has_room(wanted):  # padding behind a stem takes room, too
        run = lengths
        shared = SharedPrompts(model, on_device, encoded[0].layout, **options)
    if not shared.has_room(wanted):
        return None
    losses: list[list[AnswerLosses]] = [[] for _ in prompts]
    for groups in rounds:
        for own, more in zip(losses, shared.answer_losses(groups), strict=True):
            own += more
    texts = shared.generate(max_new_tokens)
    by_answer = [dict(zip(prompt.answers, own, strict=True)) for prompt, own in zip(prompts, losses, strict=True)]
    return [prompt_result(encoder, *each) for each in zip(run, by_answer, texts, strict=True)]


def encode_answers(encoder: Any, prompt: Prompt, length: int) -> list[list[int]]:
    """The tokens of each answer behind a prompt of `length` tokens."""
    return [encoder.encode_answer(replace(prompt.example, answer=answer), length) for answer in prompt.answers]


def in_rounds(answers: list[list[list[int]]], size: int) -> list[list[list[list[int]]]]:
    """The answers of each prompt in rounds of at most `size`; a prompt that has no more is empty in a round."""
    rounds = []
    for start in range(0, max(map(len, answers)), size):
        rounds.append([of_prompt[start : start + size] for of_prompt in answers])
    return rounds


def longest_suffix(rounds: list[list[list[list[int]]]]) -> int:
    """The most tokens that follow any prompt in a round."""
    return max((sum(map(len, group)) for groups in rounds for group in groups), default=0)


# ---- the plain way


@torch.no_grad()
def run_plain(
    model: nn.Module,
    encoder: Any,
    prompts: list[Prompt],
    *,
    batch_size: int,
    max_new_tokens: int,
    from_answers: bool,
) -> list[PromptResult]:
    """A forward for each answer, its prompt and picture with it, and the library's generation.

    What the answers tell whole is not generated.
    """
    device, ends = next(model.parameters()).device, ends_of(model, encoder)
    pairs = [(i, answer) for i, prompt in enumerate(prompts) for answer in prompt.answers]
    losses: list[dict[str, AnswerLosses]] = [{} for _ in prompts]
    texts: dict[int, list[int]] = {}
    for start in range(0, len(pairs), batch_size):
        chosen = pairs[start : start + batch_size]
        encoded = [encoder.encode(replace(prompts[i].example, answer=answer)) for i, answer in chosen]
        scored = forward(model, encoder.collate(encoded).to(device))
        doubts = doubt_of(model, scored.logits[:, 0]).tolist()
        of_answers = figures_of_answers(scored.logits, scored.labels)
        for (i, answer), (tokens, figures), doubt in zip(chosen, of_answers, doubts, strict=True):
            losses[i][answer] = figures.of_answer(tokens)
            begun = beginning(tokens, figures, ends, doubt)
            if from_answers and (begun.ended or len(begun.said) >= max_new_tokens):
                texts[i] = begun.said[:max_new_tokens]
    questions = [encoder.encode(prompt.example) for prompt in prompts]
    if unknown := [i for i in range(len(prompts)) if i not in texts]:
        inputs = collate_prompts([questions[i] for i in unknown], encoder.pad)
        generated = generate_plain(model, inputs, max_new_tokens, pad=encoder.pad, ends=ends)
        texts |= zip(unknown, generated, strict=True)
    lengths = [each.prompt["input_ids"].shape[1] for each in questions]
    said = [texts[i] for i in range(len(prompts))]
    return [prompt_result(encoder, *each) for each in zip(lengths, losses, said, strict=True)]


def figures_of_answers(logits: Tensor, labels: Tensor) -> list[tuple[list[int], TokenFigures]]:
    """The tokens of each row's answer with their figures, from logits (B, T, V) and labels (B, T)."""
    answered = labels != IGNORE
    figures = token_figures(logits.flatten(0, 1), answered.flatten().nonzero()[:, 0], labels[answered])
    counts = answered.sum(1).tolist()
    starts = itertools.accumulate(counts, initial=0)
    parts = [figures.part(slice(start, start + count)) for start, count in zip(starts, counts, strict=False)]
    tokens = [row[:count] for row, count in zip(labels.tolist(), counts, strict=True)]
    return list(zip(tokens, parts, strict=True))


def generate_plain(
    model: LanguageModel, inputs: dict[str, Tensor], max_new_tokens: int, *, pad: int, ends: set[int]
) -> list[list[int]]:
    """The library's own greedy generation, without the penalties that a checkpoint's generation settings may hold."""
    options = {"pad_token_id": pad, "eos_token_id": sorted(ends)}
    plain = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, **options)
    device = next(model.parameters()).device
    with generation_settings(model, plain):
        tokens = model.generate(**{name: value.to(device) for name, value in inputs.items()}, generation_config=plain)
    texts = tokens[:, inputs["input_ids"].shape[1] :].tolist()
    return [list(itertools.takewhile(lambda token: token not in ends, text)) for text in texts]


@contextlib.contextmanager
def generation_settings(model: LanguageModel, settings: GenerationConfig) -> Iterator[None]:
    """The model with other generation settings.

    The library takes from the model's own whatever those of a call leave open: penalties, suppressed and forced tokens.
    """
    # an adapter hands its own settings on to the model inside it, and leaves them there
    models = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    own = [each.generation_config for each in models]
    for each in models:
        each.generation_config = settings
    try:
        yield
    finally:
        for each, before in zip(models, own, strict=True):
            each.generation_config = before


def ends_of(model: LanguageModel, encoder: Any) -> set[int]:
    """The tokens at which a generation stops.

    They are the end of a turn as the template writes it, the tokenizer's end-of-sequence, and every one that the
    model's generation configuration names.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    every = [*(named if isinstance(named, list) else [named]), encoder.end, encoder.tokenizer.eos_token_id]
    return {token for token in every if token is not None}


def prompt_result(encoder: Any, run: int, answers: dict[str, AnswerLosses], text: list[int]) -> PromptResult:
    """What one prompt came to of which `run` tokens went through the model; `text`: the tokens of its generation."""
    tokens = run + sum(len(each.tokens) for each in answers.values()) + len(text)
    return PromptResult(answers, encoder.decode(torch.tensor(text, dtype=torch.long)), text, tokens)
