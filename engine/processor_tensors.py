"""What a processor makes besides token ids: which of its tensors go by tokens, which by rows, and how those of single
rows become those of a batch.

Nothing here knows a family of models. Two prompts that differ in their text show which dimension of a tensor counts
tokens; a prompt with two pictures shows which tensors hold one entry for each row, whatever its pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from settings.script import SettingsError

Read = Callable[[list[str], list[list[Image.Image]]], dict[str, Tensor]]
SHORT, LONG = "Who?", "Who is this, and what do you see behind them?"


@dataclass(frozen=True)
class Layout:
    """How the tensors of a processor are laid out, by their names; token ids and their mask are not among them."""

    token_dims: dict[str, int] = field(default_factory=dict)  # the dimension that counts tokens
    by_row: frozenset[str] = frozenset()  # tensors without such a dimension that hold one entry for each row
    answer_values: dict[str, int] = field(default_factory=dict)  # what stands over an answer; else as the prompt ends

    def answer_slice(self, name: str, value: Tensor) -> Tensor:
        """What one more token behind the prompt adds to the per-token tensor `value`."""
        dim = self.token_dims[name]
        last = value.narrow(dim, value.shape[dim] - 1, 1)
        return torch.full_like(last, self.answer_values[name]) if name in self.answer_values else last


def layout_of(read: Read, answer_values: dict[str, int], name: str) -> Layout:
    """The layout of what a processor of pictures makes.

    Args:
        read: (questions, pictures of each) -> what the processor makes of those prompts.
        answer_values: as the model file has them.
        name: of the processor, for errors.

    Raises:
        SettingsError: the prompt loses its picture, a tensor goes by tokens in a way that is not known, or
            `answer_values` names no per-token tensor.
    """
    short, long = read([SHORT], [pictures(1)]), read([LONG], [pictures(1)])
    bare = tried(read, [SHORT], [[]])
    if bare is not None and short["input_ids"].shape == bare["input_ids"].shape:
        raise SettingsError(f"{name}: its chat template drops the picture")
    dims = {}
    for each in others(short):
        if (dim := token_dim(each, short, long, name)) is not None:
            dims[each] = dim
    if unknown := [each for each in answer_values if each not in dims]:
        raise SettingsError(
            f"model.answer_values: {name} makes no {unknown[0]!r} for each token; it makes {', '.join(dims) or 'none'}"
        )
    rest = [each for each in others(short) if each not in dims]
    return Layout(dims, by_row(read, short, rest) if rest else frozenset(), dict(answer_values))


def others(made: dict[str, Tensor]) -> list[str]:
    """Names of what a processor made besides token ids and their mask."""
    return [name for name in made if name not in ("input_ids", "attention_mask")]


def token_dim(each: str, short: dict[str, Tensor], long: dict[str, Tensor], name: str) -> int | None:
    """The dimension of a tensor that counts tokens; None: none does. Raises SettingsError."""
    sizes = list(zip(short[each].shape, long[each].shape, strict=True))
    changed = [dim for dim, (one, other) in enumerate(sizes) if one != other]
    if not changed:
        return None
    tokens = (short["input_ids"].shape[1], long["input_ids"].shape[1])
    if len(changed) > 1 or changed[0] == 0 or sizes[changed[0]] != tokens:
        raise SettingsError(
            f"{name}: its {each!r} has shape {tuple(short[each].shape)} for {tokens[0]} tokens and "
            f"{tuple(long[each].shape)} for {tokens[1]}; only one dimension may go by tokens"
        )
    return changed[0]


def by_row(read: Read, one: dict[str, Tensor], names: list[str]) -> frozenset[str]:
    """Those of `names` whose first dimension is 1 for a prompt with two pictures too."""
    two = tried(read, [SHORT], [pictures(2)])  # None: a processor of one picture a prompt
    if two is None:
        return frozenset()
    return frozenset(each for each in names if each in two and len(one[each]) == len(two[each]) == 1)


def tried(read: Read, questions: list[str], shown: list[list[Image.Image]]) -> dict[str, Tensor] | None:
    """What the processor makes of prompts; None where it takes no such prompts."""
    try:
        return read(questions, shown)
    except Exception:  # what a processor raises depends on the processor
        return None


def pictures(count: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """Pictures for the probes, which are not of one colour."""
    return [Image.linear_gradient("L").resize(size).convert("RGB")] * count


def check_joined(read: Read, layout: Layout, name: str) -> None:
    """Check on two rows of different picture size that joining rows gives what the processor makes of the batch.

    Arguments as in `layout_of`. Raises SettingsError.
    """
    rows = [(SHORT, pictures(1)), (LONG, pictures(1, (40, 150)))]
    whole = read([question for question, _ in rows], [shown for _, shown in rows])
    prompts = [read([question], [shown]) for question, shown in rows]
    lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
    joined = join_rows(prompts, lengths, layout, left=False)
    joined["input_ids"] = torch.nn.utils.rnn.pad_sequence([prompt["input_ids"][0] for prompt in prompts], True)
    dims = {"input_ids": 1, **layout.token_dims}
    for each in ["input_ids", *others(whole)]:
        one, other = whole.get(each), joined.get(each)
        if each in dims and one is not None and other is not None:
            one, other = real_tokens(one, dims[each], lengths), real_tokens(other, dims[each], lengths)
        if one is None or other is None or not same_tensor(one, other):
            raise SettingsError(
                f"batch check: {name} makes another {each!r} of two rows together than of each alone, which is how "
                "this suite reads rows"
            )


def real_tokens(value: Tensor, dim: int, lengths: list[int]) -> Tensor:
    """The values of a per-token tensor of a batch without its padding on the right."""
    rows = [value[row : row + 1].narrow(dim, 0, length) for row, length in enumerate(lengths)]
    return torch.cat([row.flatten() for row in rows])


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    if one.shape != other.shape:
        return False
    return torch.allclose(one.float(), other.float(), atol=1e-4)


def join_rows(prompts: list[dict[str, Tensor]], lengths: list[int], layout: Layout, left: bool) -> dict[str, Tensor]:
    """The tensors of single rows as those of a batch, without token ids.

    Per-token tensors go on over the answer and are padded with 0 like the ids. The others are padded with 0 to their
    common shape. All are joined along their first dimension, which is what processors make of a whole batch.

    Args:
        prompts: what the processor made of each row, a batch of one each.
        lengths: tokens of each row with its answer.
        layout: of these tensors.
        left: pad tokens on the left, else on the right.
    """
    joined = {}
    for name in {name: None for prompt in prompts for name in others(prompt)}:
        known = next(prompt[name] for prompt in prompts if name in prompt)
        if name in layout.token_dims:
            dim = layout.token_dims[name]
            values = [per_token(name, prompt, known, layout) for prompt in prompts]
            values = [extended(name, value, n, layout) for value, n in zip(values, lengths, strict=True)]
            values = [padded(value, dim, max(lengths), left) for value in values]
        elif name in layout.by_row:
            values = [prompt.get(name, torch.zeros_like(known)) for prompt in prompts]
        else:
            values = [prompt[name] for prompt in prompts if name in prompt]
        joined[name] = torch.cat(to_common_shape(values))
    return joined


def per_token(name: str, prompt: dict[str, Tensor], known: Tensor, layout: Layout) -> Tensor:
    """A row's per-token tensor; zeros in the shape of `known` where the processor made none of a row in words."""
    if name in prompt:
        return prompt[name]
    shape = list(known.shape)
    shape[layout.token_dims[name]] = prompt["input_ids"].shape[1]
    return known.new_zeros(shape)


def extended(name: str, value: Tensor, length: int, layout: Layout) -> Tensor:
    """A per-token tensor of a prompt, gone on to `length` tokens."""
    dim = layout.token_dims[name]
    more = length - value.shape[dim]
    return torch.cat([value, *[layout.answer_slice(name, value)] * more], dim) if more else value


def padded(value: Tensor, dim: int, size: int, left: bool = False) -> Tensor:
    """`value` with zeros up to `size` along `dim`."""
    more = size - value.shape[dim]
    if not more:
        return value
    shape = list(value.shape)
    shape[dim] = more
    zeros = value.new_zeros(shape)
    return torch.cat([zeros, value] if left else [value, zeros], dim)


def to_common_shape(values: list[Tensor]) -> list[Tensor]:
    """The same tensors with zeros behind them up to their largest size in every dimension but the first."""
    for dim in range(1, values[0].ndim):
        size = max(value.shape[dim] for value in values)
        values = [padded(value, dim, size) for value in values]
    return values
