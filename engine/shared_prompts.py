"""A batch of prompts run once: answers are scored behind them, and greedy generations go on from them.

Shapes: R prompts of a batch, L their padded length, S answer tokens behind each, V vocabulary. The prompts' keys and
values are kept; all answers to a prompt follow it as one sequence of S tokens, kept apart by the attention mask and
each counted from the prompt's end, so that nothing is copied for them; then they are cropped off.

Prompts about one picture share its keys and values too, see engine.stems.

Up to the first token that the model would not have chosen, a scored answer is what greedy generation says. So a
generation begins there, behind the keys and values of these tokens, and not at the prompt.
"""

import copy
import inspect
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from engine.language_model import LanguageModel
from engine.processor_tensors import Layout
from engine.start_checks import is_exact
from engine.stems import Stems
from engine.token_figures import AnswerLosses, TokenFigures, token_figures

# How far a token may be behind the first choice, as a share of the logits' spread, and rounding still be all that keeps
# it from being the first. A first choice that is ahead by more is the same in any pass.
CHOICE, CHOICE_IN_HALF = 1e-3, 0.2  # in half: where numbers have 8 or 11 bits


class Beginning(NamedTuple):
    """What a greedy generation begins with, and whether nothing follows; `ends` are left out of it."""

    said: list[int]
    ended: bool


def beginning(answer: list[int], figures: TokenFigures, ends: set[int], doubt: float) -> Beginning:
    """How greedy generation begins, as far as a scored answer tells.

    Args:
        answer: Its tokens.
        figures: Of each of them.
        ends: The tokens at which a generation stops.
        doubt: A first choice whose margin is not above it may be another in another pass: the beginning stops before
            it. NaN: all of them may.
    """
    for place, token in enumerate(answer):
        choice = figures.choices[place]
        if not figures.margins[place] > doubt:
            return Beginning(answer[:place], False)
        if choice in ends:
            return Beginning(answer[:place], True)
        if choice != token:
            return Beginning([*answer[:place], choice], False)
    return Beginning(answer, False)


def doubt_of(model: nn.Module, logits: Tensor) -> Tensor:
    """Margins (N,) up to which a first choice may be another in another pass, of logits (N, V)."""
    return (CHOICE if is_exact(model) else CHOICE_IN_HALF) * logits.float().std(-1)


def unshareable(model: LanguageModel) -> str | None:
    """Why this model's prompts cannot be shared, as far as its class and settings tell; None: they can."""
    attention = model.config.get_text_config()._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"model.attention={attention} takes no mask that keeps several answers apart; sdpa does"
    own = model.get_base_model() if isinstance(model, PeftModel) else model  # an adapter's forward names no inputs
    if "position_ids" not in inspect.signature(own.forward).parameters:
        return "it takes no positions"
    return None


def room_behind(cache: Any, width: int) -> int | None:
    """How many tokens may follow the `width` that a cache holds; None: any number.

    0 where the cache is of a kind that cannot be shared, or where it holds in a layer what is no token of the prompt,
    as layers that look at a picture do.
    """
    layers: list[Any] = cache.layers if type(cache) is DynamicCache else [None]
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return 0
    if any(layer.get_seq_length() != width for layer in layers):
        return 0
    windows = [layer.sliding_window for layer in layers if layer.is_sliding]
    return max(0, min(windows) - 1 - width) if windows else None


class BehindStems(NamedTuple):
    """Where some prompts go on: the keys and values of their stems with the mask (R, S) of these, and how many tokens
    of each prompt follow.
    """

    cache: DynamicCache
    mask: Tensor
    rests: list[int]


class RunStems:
    """Stems that are run once, for all prompts that begin with them."""

    def __init__(self, model: LanguageModel, stems: Stems):
        self.stems, inputs = stems, stems.inputs
        options = {"position_ids": prompt_positions(model, inputs), "use_cache": True, "logits_to_keep": 1}
        self.cache = model(**inputs, **options).past_key_values

    def has_room(self) -> bool:
        """Whether anything may follow."""
        return room_behind(self.cache, self.stems.inputs["input_ids"].shape[1]) != 0

    def behind(self, chosen: list[int]) -> BehindStems:
        """Where these prompts go on."""
        mask = self.stems.inputs["attention_mask"]
        of = torch.tensor([self.stems.of[prompt] for prompt in chosen], device=mask.device)
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]  # which hold the same tensors
        cache.batch_select_indices(of)
        return BehindStems(cache, mask[of], [self.stems.rests[prompt] for prompt in chosen])


class SharedPrompts:
    """A batch of prompts run once.

    `tokens_left` is how many tokens may follow before a sliding window would forget the first (None: any number).
    """

    def __init__(
        self,
        model: LanguageModel,
        batch: dict[str, Tensor],
        layout: Layout,
        *,
        ends: set[int],
        from_answers: bool = True,
        behind: BehindStems | None = None,
    ):
        """Run the prompts.

        Args:
            model: In eval mode.
            batch: Of `collate_prompts`.
            layout: Of its tensors.
            ends: The tokens at which a generation stops.
            from_answers: Whether a generation begins with what the scored answers tell of it.
            behind: The stems of the prompts, which are run; None: each prompt is run whole.
        """
        self.model, self.mask, self.ends, self.from_answers = model, batch["attention_mask"], ends, from_answers
        # what one more token adds to each per-token tensor, with the dimension that counts tokens
        slices = {name: layout.answer_slice(name, batch[name]) for name in layout.token_dims if name in batch}
        self.slices = {name: (value, layout.token_dims[name]) for name, value in slices.items()}
        positions = prompt_positions(model, batch)
        if behind is None:
            output = model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)
        else:
            output = self.run_rests(batch, layout, positions, behind)
        self.cache, self.first = output.past_key_values, output.logits[:, -1]
        self.next = (positions if positions.ndim == 2 else positions.amax(0)).amax(
            -1
        ) + 1  # (R,): where the answer's first token stands
        self.doubts = doubt_of(model, self.first).tolist()
        self.beginnings = [
            Beginning([], True) if token in ends else Beginning([token], False)
            for token in self.first.argmax(-1).tolist()
        ]
        # of each layer the keys and values (R, heads, K, d) of what generations begin with, but for the last token
        self.kept: list[tuple[Tensor, Tensor]] = []

    def run_rests(self, batch: dict[str, Tensor], layout: Layout, positions: Tensor, behind: BehindStems) -> Any:
        """Run what follows the prompts' stems. Gives what the model says of it.

        Between a stem and what follows it `mask` has padding.
        """
        width = max(behind.rests)
        counts = torch.tensor(behind.rests, device=self.mask.device)
        follows = torch.arange(width, device=self.mask.device) >= width - counts[:, None]
        self.mask = torch.cat([behind.mask, follows.to(behind.mask.dtype)], 1)
        rest = {"input_ids": batch["input_ids"][:, -width:], "attention_mask": self.mask}
        for name, dim in layout.token_dims.items():
            if name in batch:
                rest[name] = batch[name].narrow(dim, batch[name].shape[dim] - width, width)
        inputs = {**rest, "position_ids": positions[..., -width:]}
        return self.model(**inputs, past_key_values=behind.cache, use_cache=True, logits_to_keep=1)

    @property
    def tokens_left(self) -> int | None:
        """How many tokens may follow, see `room_behind`."""
        return room_behind(self.cache, self.mask.shape[1])

    def has_room(self, wanted: int) -> bool:
        """Whether so many tokens may follow."""
        return self.tokens_left is None or self.tokens_left >= wanted

    def answer_losses(self, answers: list[list[list[int]]]) -> list[list[AnswerLosses]]:
        """Score the answers (token lists, end-of-sequence last) of each prompt, and crop them off again.

        What they tell of the greedy generation is kept for `generate`.
        """
        fed = [all_but_last(group) for group in answers]
        width = max(sum(map(len, group)) for group in fed)
        suffix = self.suffix_logits(fed, width) if width else self.first[:, None][:, :0]
        firsts, behind = self.figures(answers, suffix)
        scores: list[list[AnswerLosses]] = [[] for _ in answers]
        found: dict[int, int] = {}  # prompt -> where the answer that tells most of its generation begins
        number = done = 0
        for row, group in enumerate(answers):
            at = 0
            for answer in group:
                count = len(answer) - 1
                figures = firsts.part(slice(number, number + 1)).and_then(behind.part(slice(done, done + count)))
                scores[row].append(figures.of_answer(answer))
                if self.from_answers and self.tells_more(row, beginning(answer, figures, self.ends, self.doubts[row])):
                    found[row] = at
                number, done, at = number + 1, done + count, at + count
        if width:
            self.keep(found, width)
            self.cache.crop(-width)
        return scores

    def figures(self, answers: list[list[list[int]]], suffix: Tensor) -> tuple[TokenFigures, TokenFigures]:
        """The figures of all answers' first tokens, and of all their others, which the logits `suffix` (R, S, V)
        predict.
        """
        rows: list[int] = []
        firsts: list[int] = []
        places: list[int] = []
        others: list[int] = []
        for row, group in enumerate(answers):
            behind = [token for answer in group for token in answer[1:]]
            places += range(row * suffix.shape[1], row * suffix.shape[1] + len(behind))
            others += behind
            rows += [row] * len(group)
            firsts += [answer[0] for answer in group]
        numbers = [
            torch.tensor(each, dtype=torch.long, device=suffix.device) for each in (rows, firsts, places, others)
        ]
        return token_figures(self.first, *numbers[:2]), token_figures(suffix.flatten(0, 1), *numbers[2:])

    def tells_more(self, row: int, found: Beginning) -> bool:
        """Take over `found` as the beginning of a prompt's generation where it says more than the one so far."""
        before = self.beginnings[row]
        if before.ended or not (found.ended or len(found.said) > len(before.said)):
            return False
        self.beginnings[row] = found
        return True

    def keep(self, found: dict[int, int], width: int) -> None:
        """Keep the keys and values of the answers that tell more than earlier ones (prompt -> where the answer begins
        among the `width` tokens behind its prompt).
        """
        counts = [0 if each.ended else len(each.said) - 1 for each in self.beginnings]
        if not any(counts[row] for row in found):
            return
        earlier = self.kept[0][0].shape[2] if self.kept else 0
        slots = torch.zeros((len(counts), max(counts)), dtype=torch.long)
        for row, count in enumerate(counts):
            start = earlier + found[row] if row in found else 0
            slots[row, :count] = torch.arange(start, start + count)
        kept = []
        for number, layer in enumerate(self.cache.layers):
            tensors = [layer.keys[:, :, -width:], layer.values[:, :, -width:]]
            if self.kept:
                tensors = [torch.cat(each, 2) for each in zip(self.kept[number], tensors, strict=True)]
            keys, values = (each.gather(2, spread_over(slots, each)) for each in tensors)
            kept.append((keys, values))
        self.kept = kept

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

    def generate(self, max_new_tokens: int) -> list[list[int]]:
        """Continue each prompt greedily up to one of the ends, which is left out; uses the cache up.

        Rows that have ended are dropped once they are half.
        """
        texts = [each.said[:max_new_tokens] for each in self.beginnings]
        pairs = zip(texts, self.beginnings, strict=True)
        open_ones = [i for i, (text, each) in enumerate(pairs) if not each.ended and len(text) < max_new_tokens]
        if not open_ones:
            return texts
        mask, positions = self.go_behind(texts, open_ones, max_new_tokens)
        chosen = mask.new_tensor([texts[i][-1] for i in open_ones])
        alive: list[int | None] = [*open_ones]  # whose text a row continues; None: it has ended
        while True:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            inputs = {"input_ids": chosen[:, None], "attention_mask": mask, "position_ids": positions[:, None]}
            inputs |= self.tensors_over(1)
            logits = self.model(**inputs, past_key_values=self.cache, use_cache=True).logits[:, -1]
            chosen, positions = logits.argmax(-1), positions + 1
            going = []
            for row, (i, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
                if i is not None and token not in self.ends:
                    texts[i].append(token)
                    if len(texts[i]) < max_new_tokens:
                        going.append(row)
            if not going:
                return texts
            if 2 * len(going) <= len(alive):
                kept = self.select(going)
                alive = [alive[row] for row in going]
                chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
            else:
                alive = [i if row in going else None for row, i in enumerate(alive)]

    def go_behind(self, texts: list[list[int]], chosen: list[int], max_new_tokens: int) -> tuple[Tensor, Tensor]:
        """Put what is kept of the texts of some prompts behind them in the cache, and drop the other prompts.

        Where a sliding window would be reached, the texts are cut to their first token, which the prompt itself tells.

        Returns:
            The mask of what stands in the cache, and the position (R,) of each text's last token, which does not.
        """
        counts = [len(texts[i]) - 1 for i in chosen]
        if self.tokens_left is not None and self.tokens_left < max(counts) + max_new_tokens:
            for i in chosen:
                del texts[i][1:]
            counts = [0] * len(chosen)
        rows = torch.tensor(chosen, device=self.mask.device)
        if len(chosen) < len(texts):
            self.select(chosen)
        width = max(counts)
        if width:
            for number, (keys, values) in enumerate(self.kept):
                self.cache.update(keys[rows, :, :width], values[rows, :, :width], number)
        lengths = torch.tensor(counts, device=self.mask.device)
        filled = torch.arange(width, device=self.mask.device) < lengths[:, None]
        mask = self.mask[rows]
        return torch.cat([mask, filled.to(mask.dtype)], 1), self.next[rows] + lengths

    def select(self, rows: list[int]) -> Tensor:
        """Keep only these rows of the cache and of the per-token tensors; gives them as a tensor."""
        kept = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(kept)
        self.slices = {name: (value[kept], dim) for name, (value, dim) in self.slices.items()}
        return kept


def spread_over(slots: Tensor, tensor: Tensor) -> Tensor:
    """`slots` (R, K) for each head and dimension of keys or values (R, heads, S, d), as `gather` takes them."""
    return slots.to(tensor.device)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])


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


def all_but_last(answers: list[list[int]]) -> list[list[int]]:
    """What is fed of each answer: its last token predicts nothing that is scored."""
    return [answer[:-1] for answer in answers]
