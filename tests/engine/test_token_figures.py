"""Losses, first choices, margins, and mean and deviation of the log-probability, of many tokens at once."""

import math

import pytest
import torch

from engine import token_figures as module
from engine.token_figures import TokenFigures, answer_losses, token_figures


def test_the_logits_mean_and_deviation_by_hand():
    # p = (1/2, 1/4, 1/4): mean log p = -(1.5 ln 2) = -1.0397, deviations +.3466 (p 1/2) and -.3466 (p 1/2): spread
    # ln(2)/2 = .3466
    score = answer_losses(torch.log(torch.tensor([[0.5, 0.25, 0.25]])), [1])
    assert score.losses == pytest.approx([2 * math.log(2)]) and score.correct == [False]
    assert score.expected == pytest.approx([-1.5 * math.log(2)]) and score.spread == pytest.approx([math.log(2) / 2])


def test_a_token_that_cannot_be_said_leaves_mean_and_deviation_finite():
    score = answer_losses(torch.tensor([[0.0, -float("inf")]]), [0])
    assert score.losses == [0.0] and score.expected == [0.0] and score.spread == [0.0]


def test_the_loss_of_a_token_that_cannot_be_said_is_infinite():
    assert answer_losses(torch.tensor([[0.0, -float("inf")]]), [1]).losses == [math.inf]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_no_numbers_give_no_numbers(broken):
    figures = token_figures(torch.tensor([[broken, 1.0, 0.0]]), torch.tensor([0]), torch.tensor([1]))
    assert not any(map(math.isfinite, [*figures.losses, *figures.expected, *figures.spread]))
    assert not figures.margins[0] < math.inf


def test_the_margin_is_how_far_the_second_choice_is_behind():
    logits = torch.tensor([[1.0, 4.0, 3.5], [2.0, 2.0, 0.0], [0.0, -math.inf, -math.inf]])
    figures = token_figures(logits, torch.arange(3), torch.zeros(3, dtype=torch.long))
    assert figures.margins == [0.5, 0.0, math.inf] and figures.choices == [1, 0, 0]


def test_the_logits_are_left_as_they_are():
    logits = torch.randn(4, 7)
    before = logits.clone()
    token_figures(logits, torch.tensor([0, 0, 3]), torch.tensor([1, 2, 3]))
    assert torch.equal(logits, before)


def in_double(logits, places, tokens):
    """Losses, expected and spread by the plain formulas, in double precision."""
    logp = logits.double().log_softmax(-1)[places]
    probability = logp.exp()
    expected = (probability * logp).sum(-1)
    variance = (probability * (logp - expected[:, None]) ** 2).sum(-1)
    return -logp.gather(-1, tokens[:, None])[:, 0], expected, variance.sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at_once", [1, 300, 2**20])
@pytest.mark.parametrize("size", [0.1, 1.0, 8.0])
def test_all_parts_and_precisions_give_what_double_precision_gives(dtype, at_once, size, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    source = torch.Generator().manual_seed(0)
    logits = (size * torch.randn(9, 101, generator=source)).to(dtype)
    places, tokens = torch.randint(0, 9, (40,), generator=source), torch.randint(0, 101, (40,), generator=source)
    figures = token_figures(logits, places, tokens)
    right = in_double(logits, places, tokens)
    for own, other in zip((figures.losses, figures.expected, figures.spread), right, strict=True):
        assert own == pytest.approx(other.tolist(), rel=1e-6, abs=1e-6)
    assert figures.choices == logits.argmax(-1)[places].tolist()


def test_no_token_has_no_figures():
    none = torch.zeros(0, dtype=torch.long)
    assert token_figures(torch.zeros(0, 5), none, none) == TokenFigures([], [], [], [], [])
