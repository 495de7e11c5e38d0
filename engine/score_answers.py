"""Scores of answers and greedy generations from ONE pass over each prompt (and its picture).

Shapes: R prompts of a batch, L their padded length, S answer tokens behind each, V vocabulary. The prompts' keys and
values are kept; all answers to a
prompt follow it as one sequence of S tokens, kept apart by the attention mask and each counted from the prompt's end,
so that nothing is copied for them; then they are cropped off and the generation goes on from the same keys and values.
Models whose cache cannot be shared are run answer by answer.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from data_module import Example
from engine.encode import collate_prompts
from engine.language_model import LanguageModel, forward
from engine.processor_tensors import Layout
from unlearn_losses import IGNORE


@dataclass(frozen=True)
class AnswerLosses:
    """A teacher-forced answer, end-of-sequence last: of each token the negative log-likelihood and whether it was the
    model's first choice.

    `expected` and `spread` are mean and standard deviation of the log-probability over the whole vocabulary at its
    place (Min-K%++). In nats.
    """

    tokens: list[int]
    losses: list[float]
    correct: list[bool]
    expected: list[float]
    spread: list[float]

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)


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
    tokens: int  # of the prompt, the answers and the generation


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
    """
    results: dict[int, PromptResult] = {}  # by the number of the prompt
    limits = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    why = unshareable(model) if shared else None
    if why:
        say(f"{type(model).__name__} is scored answer by answer: {why}")
    for chosen in prompt_batches(prompts, batch_size):
        batch = [prompts[i] for i in chosen]
        found = run_shared(model, encoder, batch, **limits) if shared and not why else None
        if found is None and shared and not why:
            say(
                f"{type(model).__name__}: {len(batch)} prompts are scored answer by answer: "
                "they reach past the window of its attention, or it keeps more than their tokens"
            )
        if found is None:
            found = run_plain(model, encoder, batch, **limits)
        for i, result in zip(chosen, found, strict=True):
            results[i] = result
        advance(len(chosen))
    return [results[i] for i in range(len(prompts))]


def prompt_batches(prompts: list[Prompt], batch_size: int) -> Iterator[list[int]]:
    """Numbers of at most `batch_size` prompts of like length; words and pictures apart, or words would be padded to the
    length of a picture.

    Length is judged by letters: encoding all at once would hold every picture in memory.
    """
    for pictured in (False, True):
        numbers = [i for i, prompt in enumerate(prompts) if (prompt.example.image is not None) == pictured]
        numbers.sort(key=lambda i: len(prompts[i].example.question))
        yield from (numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size))


# ---- one pass over the prompts


def unshareable(model: LanguageModel) -> str | None:
    """Why this model's prompts cannot be shared, as far as its class and settings tell; None: they can."""
    attention = model.config.get_text_config()._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"model.attention={attention} takes no mask that keeps several answers apart; sdpa does"
    own = model.get_base_model() if isinstance(model, PeftModel) else model  # an adapter's forward names no inputs
    if "position_ids" not in inspect.signature(own.forward).parameters:
        return "it takes no positions"
    return None


class SharedPrompts:
    """A batch of prompts run once.

    `tokens_left` is how many tokens may follow before a sliding window would forget the first (None: any number).
    """

    def __init__(self, model: LanguageModel, batch: dict[str, Tensor], layout: Layout):
        """`batch`: of `collate_prompts`; `layout`: of its tensors."""
        self.model, self.mask = model, batch["attention_mask"]
        # what one more token adds to each per-token tensor, with the dimension that counts tokens
        slices = {name: layout.answer_slice(name, batch[name]) for name in layout.token_dims if name in batch}
        self.slices = {name: (value, layout.token_dims[name]) for name, value in slices.items()}
        positions = prompt_positions(model, batch)
        output = model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)
        self.cache, self.first = output.past_key_values, output.logits[:, -1]
        self.next = (positions if positions.ndim == 2 else positions.amax(0)).amax(
            -1
        ) + 1  # (R,): where the answer's first token stands

    @property
    def tokens_left(self) -> int | None:
        """0 where the cache is of a kind that cannot be shared, or where it holds in a layer what is no token of the
        prompt, as layers that look at a picture do.
        """
        layers: list[Any] = self.cache.layers if type(self.cache) is DynamicCache else [None]
        if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            return 0
        if any(layer.get_seq_length() != self.mask.shape[1] for layer in layers):
            return 0
        windows = [layer.sliding_window for layer in layers if layer.is_sliding]
        return max(0, min(windows) - 1 - self.mask.shape[1]) if windows else None

    def answer_losses(self, answers: list[list[list[int]]]) -> list[list[AnswerLosses]]:
        """Score the answers (token lists, end-of-sequence last) of each prompt, and crop them off again."""
        fed = [all_but_last(group) for group in answers]
        width = max(sum(map(len, group)) for group in fed)
        suffix = self.suffix_logits(fed, width) if width else None
        if width:
            self.cache.crop(-width)
        scores = []
        for row, group in enumerate(answers):
            starts = itertools.accumulate([0, *(len(answer) - 1 for answer in group)])
            first = self.first[row : row + 1]
            logits = [
                first if suffix is None else torch.cat([first, suffix[row, at : at + len(answer) - 1]])
                for at, answer in zip(starts, group, strict=False)
            ]
            scores.append([answer_losses(each, answer) for each, answer in zip(logits, group, strict=True)])
        return scores

    def suffix_logits(self, fed: list[list[list[int]]], width: int) -> Tensor:
        """Logits (R, S, V) of all answers' tokens but their last; each answer sees the prompt and itself."""
        ids = torch.zeros((len(fed), width), dtype=torch.long)
        number, place = (
            torch.full_like(ids, -1),
            torch.zeros_like(ids),
        )  # which answer a token belongs to, and where in it
        for row, group in enumerate(fed):
            tokens = [(token, k, t) for k, answer in enumerate(group) for t, token in enumerate(answer)]
            if tokens:
                ids[row, : len(tokens)], number[row, : len(tokens)], place[row, : len(tokens)] = torch.tensor(tokens).T
        device = self.mask.device
        ids, number, place = ids.to(device), number.to(device), place.to(device)
        own = (number[:, :, None] == number[:, None, :]) & torch.ones(
            width, width, dtype=torch.bool, device=device
        ).tril()
        seen = torch.cat([self.mask.bool()[:, None, :].expand(-1, width, -1), own], -1)[:, None]  # (R, 1, S, L + S)
        dtype = self.model.get_input_embeddings().weight.dtype
        hidden = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)
        positions = self.next[:, None] + place
        inputs = {"input_ids": ids, "attention_mask": hidden, "position_ids": positions, **self.tensors_over(width)}
        return self.model(**inputs, past_key_values=self.cache, use_cache=True).logits

    def tensors_over(self, width: int) -> dict[str, Tensor]:
        """The per-token tensors of the processor over the next `width` tokens."""
        tensors = {}
        for name, (value, dim) in self.slices.items():
            shape = [-1] * value.ndim
            shape[dim] = width
            tensors[name] = value.expand(shape)
        return tensors

    def generate(self, max_new_tokens: int, ends: set[int]) -> list[list[int]]:
        """Continue each prompt greedily up to one of `ends`, which is left out; uses the cache up.

        Rows that have ended are dropped once they are half.
        """
        texts: list[list[int]] = [[] for _ in range(len(self.mask))]
        alive: list[int | None] = list(range(len(texts)))  # whose text a row continues; None: it has ended
        mask, positions, logits = self.mask, self.next, self.first
        for step in range(max_new_tokens):
            chosen = logits.argmax(-1)
            going = []
            for row, (i, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
                if i is not None and token not in ends:
                    texts[i].append(token)
                    going.append(row)
            if not going or step == max_new_tokens - 1:
                break
            if 2 * len(going) <= len(alive):
                kept = torch.tensor(going, device=mask.device)
                self.cache.batch_select_indices(kept)
                self.slices = {name: (value[kept], dim) for name, (value, dim) in self.slices.items()}
                alive = [alive[row] for row in going]
                chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
            else:
                alive = [i if row in going else None for row, i in enumerate(alive)]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            inputs = {"input_ids": chosen[:, None], "attention_mask": mask, "position_ids": positions[:, None]}
            inputs |= self.tensors_over(1)
            logits = self.model(**inputs, past_key_values=self.cache, use_cache=True).logits[:, -1]
            positions = positions + 1
        return texts


def prompt_positions(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Positions (R, L), counted from each prompt's first token; (3, R, L) for pictures under multimodal rotary
    embeddings (Qwen-VL).

    Always given: what a model works out by itself may rest on an earlier batch.
    """
    mask = batch["attention_mask"]
    rotary: Any = next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)
    if rotary is None or "image_grid_thw" not in batch:
        return (mask.cumsum(-1) - 1).clamp(min=0)
    wanted = inspect.signature(rotary.get_rope_index).parameters
    return rotary.get_rope_index(**{name: value for name, value in batch.items() if name in wanted})[0]


def run_shared(
    model: nn.Module, encoder: Any, prompts: list[Prompt], *, batch_size: int, max_new_tokens: int
) -> list[PromptResult] | None:
    """One pass over the prompts for all their answers and generations; None where the cache does not allow it."""
    device = next(model.parameters()).device
    encoded = [encoder.encode(prompt.example) for prompt in prompts]
    inputs = collate_prompts(encoded, encoder.pad)
    lengths = inputs["attention_mask"].sum(1).tolist()
    answers = [encode_answers(encoder, *each) for each in zip(prompts, lengths, strict=True)]
    rounds = in_rounds(answers, max(1, batch_size // len(prompts)))  # so many answers follow each prompt in one pass
    with torch.no_grad():
        on_device = {name: value.to(device) for name, value in inputs.items()}
        shared = SharedPrompts(model, on_device, encoded[0].layout)
        if shared.tokens_left is not None and shared.tokens_left < max(max_new_tokens, longest_suffix(rounds)):
            return None
        losses: list[list[AnswerLosses]] = [[] for _ in prompts]
        for groups in rounds:
            for own, more in zip(losses, shared.answer_losses(groups), strict=True):
                own += more
        texts = shared.generate(max_new_tokens, ends_of(model, encoder))
    by_answer = [dict(zip(prompt.answers, own, strict=True)) for prompt, own in zip(prompts, losses, strict=True)]
    return [prompt_result(encoder, *each) for each in zip(lengths, by_answer, texts, strict=True)]


def encode_answers(encoder: Any, prompt: Prompt, length: int) -> list[list[int]]:
    """The tokens of each answer behind a prompt of `length` tokens."""
    return [encoder.encode_answer(replace(prompt.example, answer=answer), length) for answer in prompt.answers]


def all_but_last(answers: list[list[int]]) -> list[list[int]]:
    """What is fed of each answer: its last token predicts nothing that is scored."""
    return [answer[:-1] for answer in answers]


def in_rounds(answers: list[list[list[int]]], size: int) -> list[list[list[list[int]]]]:
    """The answers of each prompt in rounds of at most `size`; a prompt that has no more is empty in a round."""
    rounds = []
    for start in range(0, max(map(len, answers)), size):
        rounds.append([of_prompt[start : start + size] for of_prompt in answers])
    return rounds


def longest_suffix(rounds: list[list[list[list[int]]]]) -> int:
    """The most tokens that follow any prompt in a round."""
    return max((sum(map(len, group)) for groups in rounds for group in groups), default=0)


def answer_losses(logits: Tensor, tokens: list[int]) -> AnswerLosses:
    """The losses of one answer from the logits (T, V) that predict its tokens."""
    logp = logits.float().log_softmax(-1)
    probability = logp.exp()
    expected = (probability * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)  # 0 * -inf would be NaN
    variance = (probability * (logp.clamp(min=-1e4) - expected[:, None]) ** 2).sum(-1)
    labels = torch.tensor(tokens, device=logits.device)
    losses = -logp.gather(-1, labels[:, None])[:, 0]
    return AnswerLosses(
        tokens, losses.tolist(), (logits.argmax(-1) == labels).tolist(), expected.tolist(), variance.sqrt().tolist()
    )


# ---- the plain way


@torch.no_grad()
def run_plain(
    model: nn.Module, encoder: Any, prompts: list[Prompt], *, batch_size: int, max_new_tokens: int
) -> list[PromptResult]:
    """A forward for each answer, its prompt and picture with it, and the library's generation."""
    device = next(model.parameters()).device
    pairs = [(i, answer) for i, prompt in enumerate(prompts) for answer in prompt.answers]
    losses: list[dict[str, AnswerLosses]] = [{} for _ in prompts]
    for start in range(0, len(pairs), batch_size):
        chosen = pairs[start : start + batch_size]
        encoded = [encoder.encode(replace(prompts[i].example, answer=answer)) for i, answer in chosen]
        scored = forward(model, encoder.collate(encoded).to(device))
        for (i, answer), logits, labels in zip(chosen, scored.logits, scored.labels, strict=True):
            tokens = labels[labels != IGNORE].tolist()
            losses[i][answer] = answer_losses(logits[: len(tokens)], tokens)
    questions = collate_prompts([encoder.encode(prompt.example) for prompt in prompts], encoder.pad)
    texts = generate_plain(model, questions, max_new_tokens, pad=encoder.pad, ends=ends_of(model, encoder))
    lengths = questions["attention_mask"].sum(1).tolist()
    return [prompt_result(encoder, *each) for each in zip(lengths, losses, texts, strict=True)]


def generate_plain(
    model: LanguageModel, inputs: dict[str, Tensor], max_new_tokens: int, *, pad: int, ends: set[int]
) -> list[list[int]]:
    """The library's own greedy generation, without the penalties that a checkpoint's generation settings may hold."""
    options = {"pad_token_id": pad, "eos_token_id": sorted(ends)}
    plain = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, **options)
    device = next(model.parameters()).device
    tokens = model.generate(**{name: value.to(device) for name, value in inputs.items()}, generation_config=plain)
    texts = tokens[:, inputs["input_ids"].shape[1] :].tolist()
    return [list(itertools.takewhile(lambda token: token not in ends, text)) for text in texts]


def ends_of(model: LanguageModel, encoder: Any) -> set[int]:
    """The tokens at which a generation stops.

    They are the end of a turn as the template writes it, the tokenizer's end-of-sequence, and every one that the
    model's generation configuration names.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    every = [*(named if isinstance(named, list) else [named]), encoder.end, encoder.tokenizer.eos_token_id]
    return {token for token in every if token is not None}


def prompt_result(encoder: Any, prompt_length: int, answers: dict[str, AnswerLosses], text: list[int]) -> PromptResult:
    """What one prompt of `prompt_length` tokens came to; `text`: the tokens of its generation."""
    tokens = prompt_length + sum(len(each.tokens) for each in answers.values()) + len(text)
    return PromptResult(answers, encoder.decode(torch.tensor(text, dtype=torch.long)), text, tokens)
