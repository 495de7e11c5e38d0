"""What logits say of the tokens of answers: losses and first choices, for all answers of a batch at once."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# How many logits are looked at in one go: what fits a processor's cache, or is worth a GPU's while.
AT_ONCE, AT_ONCE_ON_GPU = 2**17, 2**26
IMPOSSIBLE = -1e4  # log-probability that stands for that of a token that cannot be said: 0 * -inf would be NaN


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


class TokenFigures(NamedTuple):
    """Of each of N places with its token, a list of N values.

    `losses`: -log p of the token. `choices`: the first choice, the lowest of them where several are alike. `margins`:
    how far the logit of the second choice is behind that of the first. `expected`, `spread`: as in `AnswerLosses`.
    """

    losses: list[float]
    choices: list[int]
    margins: list[float]
    expected: list[float]
    spread: list[float]

    def part(self, place: slice) -> "TokenFigures":
        """The figures of some of the places."""
        losses, choices, margins, expected, spread = self
        return TokenFigures(losses[place], choices[place], margins[place], expected[place], spread[place])

    def and_then(self, others: "TokenFigures") -> "TokenFigures":
        """These figures, and others behind them."""
        losses, choices, margins, expected, spread = self
        return TokenFigures(
            losses + others.losses,
            choices + others.choices,
            margins + others.margins,
            expected + others.expected,
            spread + others.spread,
        )

    def of_answer(self, tokens: list[int]) -> AnswerLosses:
        """The answer whose tokens these are."""
        correct = [choice == token for choice, token in zip(self.choices, tokens, strict=True)]
        return AnswerLosses(tokens, self.losses, correct, self.expected, self.spread)


def token_figures(logits: Tensor, places: Tensor, tokens: Tensor) -> TokenFigures:
    """The figures of tokens, from the logits that predict them.

    Args:
        logits: (M, V), of any precision; they are computed with in fp32.
        places: (N,), of each token the row of `logits` that predicts it.
        tokens: (N,), from 0 to V - 1.

    Returns:
        N values of each figure.
    """
    size = max(1, (AT_ONCE_ON_GPU if logits.is_cuda else AT_ONCE) // logits.shape[-1])
    parts = []
    for chosen, own in zip(places.split(size), tokens.split(size), strict=True):
        parts.append(figures_of_rows(logits[chosen].float(), own[:, None]))
    figures, choices = zip(*parts, strict=True)
    losses, margins, expected, spread = torch.cat(figures, 1).tolist()  # a GPU is waited for here alone
    return TokenFigures(losses, torch.cat(choices).tolist(), margins, expected, spread)


def figures_of_rows(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Losses, margins, expected and spread (4, N), and first choices (N,), of fp32 `logits` (N, V), which are used up.

    `tokens`: (N, 1).
    """
    best, choices = logits.max(-1, keepdim=True)
    below = logits.sub_(best)
    own = below.gather(-1, tokens)[:, 0]
    second = below.scatter_(-1, choices, -torch.inf).amax(-1)
    below.scatter_(-1, choices, 0.0 * best)  # NaN where all is NaN
    below.clamp_(min=IMPOSSIBLE)
    weights = below.exp()  # probability, times their sum
    total = weights.sum(-1)
    log_total = total.log()
    expected = torch.linalg.vecdot(weights, below) / total - log_total
    deviations = below.sub_((log_total + expected)[:, None]).square_()
    spread = (torch.linalg.vecdot(weights, deviations) / total).sqrt()
    return torch.stack([log_total - own, -second, expected, spread]), choices[:, 0]


def answer_losses(logits: Tensor, tokens: list[int]) -> AnswerLosses:
    """The losses of one answer from the logits (T, V) that predict its tokens."""
    labels = torch.tensor(tokens, device=logits.device)
    return token_figures(logits, torch.arange(len(tokens), device=logits.device), labels).of_answer(tokens)
