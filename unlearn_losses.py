"""Unlearning losses: pure functions from scored answers to one scalar.

Shapes: B examples, T answer positions (1 for a classifier), V tokens or classes.

Positional parameters name the forward passes a loss needs: `forget`, `retain`, `idk` (the forget question with an "I don't know"
answer), and with `ref_` before them the same passes of the frozen starting model. Keyword-only parameters are the
hyperparameters; they have no defaults, because config/method/<name>.yaml is the one place for values.

Every loss is a mean over examples of a per-example value, so that accumulation and several processes give exactly the loss
of one large batch.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


class Scored(NamedTuple):
    """A batch of answers with the logits that predict them.

    logits: (B, T, V), `logits[:, t]` predicts `labels[:, t]`; labels: (B, T), IGNORE at positions that are no answer.
    """

    logits: Tensor
    labels: Tensor


def token_nll(batch: Scored) -> Tensor:
    """Negative log-likelihood of each answer token, shape (B, T) in float32; zero where the label is IGNORE.

    Raises ValueError if logits and labels do not belong together.
    """
    if batch.logits.shape[:2] != batch.labels.shape:
        raise ValueError(f"logits {tuple(batch.logits.shape)} and labels {tuple(batch.labels.shape)} do not fit: (B, T, V) and (B, T)")
    return F.cross_entropy(batch.logits.float().transpose(1, 2), batch.labels, ignore_index=IGNORE, reduction="none")


def answer_lengths(batch: Scored) -> Tensor:
    """Number of answer tokens |y| of each example, end-of-sequence included, shape (B,)."""
    return (batch.labels != IGNORE).sum(-1)


def sequence_logprob(batch: Scored) -> Tensor:
    """log p(y|x) of each whole answer, the sum over its tokens, shape (B,)."""
    return -token_nll(batch).sum(-1)


def nll(batch: Scored) -> Tensor:
    """NLL(B): mean over examples of -log p(y|x) / |y|, a scalar (TOFU, arXiv 2401.06121)."""
    return (token_nll(batch).sum(-1) / answer_lengths(batch)).mean()


def retain_ft(retain: Scored) -> Tensor:
    """Fine-tuning on the retain set only: NLL(R) (CLEAR, arXiv 2410.18057)."""
    return nll(retain)


def grad_ascent(forget: Scored) -> Tensor:
    """Gradient ascent on the forget set: -NLL(F) (TOFU, arXiv 2401.06121)."""
    return -nll(forget)


def grad_diff(forget: Scored, retain: Scored, *, beta: float, retain_weight: float) -> Tensor:
    """Gradient difference: -beta * NLL(F) + retain_weight * NLL(R) (TOFU, arXiv 2401.06121; Liu et al., arXiv 2203.12817)."""
    return -beta * nll(forget) + retain_weight * nll(retain)


def idk(idk: Scored, retain: Scored, *, retain_weight: float) -> Tensor:
    """Answer "I don't know" to the forget questions: NLL(F with y_idk) + retain_weight * NLL(R) (TOFU, arXiv 2401.06121)."""
    return nll(idk) + retain_weight * nll(retain)


def npo(forget: Scored, ref_forget: Scored, retain: Scored, *, beta: float, retain_weight: float) -> Tensor:
    """Negative preference optimization with a retain term (Zhang et al., arXiv 2404.05868).

    `ref_forget` is scored by the frozen starting model; at p = p0 the forget term is 2 * log(2) / beta.
    """
    # -(2/beta) * mean log sigmoid(-beta * (log p(y|x) - log p0(y|x))) + retain_weight * NLL(R)
    log_ratio = sequence_logprob(forget) - sequence_logprob(ref_forget)
    return -2 / beta * F.logsigmoid(-beta * log_ratio).mean() + retain_weight * nll(retain)
