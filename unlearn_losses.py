"""Unlearning losses: pure functions from scored answers to one scalar.

Shapes: B examples, T answer positions (1 for a classifier), V tokens or classes, H hidden features.

Positional parameters name the forward passes a loss needs: `forget`, `retain`, `idk` (the forget question with an "I don't know"
answer), `unrelated` (the forget question with the answer of a retain row), `shuffled` (with the answer of another forget row), `augmented` (the forget
picture, part of it hidden); with
`ref_` before them the same passes of the frozen starting model, and with `_logprob` behind that only its answers' log-probabilities
(B,), which are computed once for a whole run. Keyword-only parameters are the hyperparameters; they have no defaults, because
config/method/<name>.yaml is the one place for values. `epoch` and `step` among them are where the run stands (both from 0), `multiplier` and `target`
come from the file's `multiplier`.

Every loss is a mean over examples of a per-example value, so that accumulation and several processes give exactly the loss
of one large batch. p is the model in training, p0 the frozen start, F and R the forget and retain batches.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


class Scored(NamedTuple):
    """A batch of answers with the logits that predict them.

    logits: (B, T, V), `logits[:, t]` predicts `labels[:, t]`.
    labels: (B, T), IGNORE at positions that are no answer.
    margin: what NLL takes from the right token's logit first, where the model was trained so (AM-softmax,
        arXiv 1801.05599); p is without it.
    """

    logits: Tensor
    labels: Tensor
    margin: float = 0.0


class Hidden(NamedTuple):
    """A batch of answers with the hidden states that predict them, at the layer that `activations` names.

    states: (B, T, H), `states[:, t]` predicts `labels[:, t]`.
    labels: (B, T), IGNORE at positions that are no answer.
    """

    states: Tensor
    labels: Tensor


class Anchored(NamedTuple):
    """The retain pass of a method file with `retain: kl`: scored by p, and by p0."""

    now: Scored
    start: Scored


# ---- per token, per example


def token_nll(batch: Scored) -> Tensor:
    """Negative log-likelihood of each answer token, shape (B, T) in float32; zero where the label is IGNORE.

    Raises ValueError if logits and labels do not belong together.
    """
    if batch.logits.shape[:2] != batch.labels.shape:
        raise ValueError(
            f"logits {tuple(batch.logits.shape)} and labels {tuple(batch.labels.shape)} do not fit: (B, T, V) and (B, T)"
        )
    return F.cross_entropy(batch.logits.float().transpose(1, 2), batch.labels, ignore_index=IGNORE, reduction="none")


def answer_lengths(batch: Scored | Hidden) -> Tensor:
    """Number of answer tokens |y| of each example, end-of-sequence included, shape (B,)."""
    return (batch.labels != IGNORE).sum(-1)


def sequence_logprob(batch: Scored) -> Tensor:
    """log p(y|x) of each whole answer, the sum over its tokens, shape (B,)."""
    return -token_nll(batch).sum(-1)


def mean_over_answers(values: Tensor, batch: Scored | Hidden) -> Tensor:
    """Mean over examples of the mean over answer positions of `values` (B, T), a scalar; whatever stands at other positions does not count."""
    return (values.masked_fill(batch.labels == IGNORE, 0.0).sum(-1) / answer_lengths(batch)).mean()


def nll(batch: Scored) -> Tensor:
    """NLL(B): mean over examples of -log p(y|x) / |y|, a scalar (TOFU, arXiv 2401.06121); with a margin, of the loss that the model was trained on."""
    return mean_over_answers(token_nll(lowered(batch)), batch)


def lowered(batch: Scored) -> Scored:
    """The right tokens' logits less the margin; all others as they are."""
    if not batch.margin:
        return batch
    return batch._replace(logits=less_at_the_right(batch.logits, batch, batch.margin))


def less_at_the_right(logits: Tensor, batch: Scored, amount: float) -> Tensor:
    """`logits` (B, T, V) with `amount` taken from those of the right tokens."""
    return logits.scatter_add(-1, right_token(batch), torch.full_like(logits[..., :1], -amount))


def entropy(batch: Scored) -> Tensor:
    """H(B): mean over examples of the mean entropy of p at answer positions, in nats, a scalar."""
    logs = batch.logits.float().log_softmax(-1)
    return mean_over_answers(-(logs.exp() * logs).sum(-1), batch)


def kl_from_start(batch: Scored, start: Scored) -> Tensor:
    """KL_B: mean over examples of the mean over answer positions of KL(p0 || p), in nats, a scalar. Zero, with zero gradient, at p = p0."""
    now, then = batch.logits.float().log_softmax(-1), start.logits.detach().float().log_softmax(-1)
    return mean_over_answers(F.kl_div(now, then, reduction="none", log_target=True).sum(-1), batch)


def cross_entropy_against(batch: Scored, target_logits: Tensor) -> Tensor:
    """Mean over examples of the mean over answer positions of the cross-entropy of p against softmax(target_logits) (B, T, V), a scalar."""
    # F.cross_entropy takes probabilities as targets; a target of 0 where the logit is -inf stays out of the sum
    target = target_logits.detach().float().softmax(-1)
    return mean_over_answers(
        F.cross_entropy(batch.logits.float().transpose(1, 2), target.transpose(1, 2), reduction="none"), batch
    )


def right_token(batch: Scored) -> Tensor:
    """The labels as an index into V, shape (B, T, 1): 0 stands where there is none."""
    return batch.labels.clamp(min=0)[..., None]


def retain_term(batch: Scored | Anchored | None) -> Tensor | float:
    """NLL(R), or KL_R where the method's file says `retain: kl`; 0 where the pass was left out, because its weight is 0."""
    if batch is None:
        return 0.0
    return kl_from_start(batch.now, batch.start) if isinstance(batch, Anchored) else nll(batch)


def unit_direction(size: int, seed: int) -> Tensor:
    """The fixed direction u of RMU: uniform on [0, 1) in every feature, divided by its length, shape (size,) (Li et al., arXiv 2403.03218)."""
    direction = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return direction / direction.norm()


def multiplier_step(multiplier: float, constraint: float, *, rate: float, target: float) -> float:
    """max(0, lambda + rate * (constraint - target)): one dual step of `pdu` (Entesari et al., arXiv 2506.05314)."""
    return max(0.0, multiplier + rate * (constraint - target))


# ---- the methods


def retain_ft(retain: Scored) -> Tensor:
    """Fine-tuning on the retain set only: NLL(R) (CLEAR, arXiv 2410.18057)."""
    return nll(retain)


def grad_ascent(forget: Scored) -> Tensor:
    """Gradient ascent on the forget set: -NLL(F) (TOFU, arXiv 2401.06121)."""
    return -nll(forget)


def grad_diff(forget: Scored, retain: Scored, *, beta: float, retain_weight: float) -> Tensor:
    """Gradient difference: -beta * NLL(F) + retain_weight * NLL(R) (TOFU, arXiv 2401.06121; Liu et al., arXiv 2203.12817)."""
    return -beta * nll(forget) + retain_weight * retain_term(retain)


def grad_diff_entropy(forget: Scored, retain: Scored, *, beta: float, retain_weight: float) -> Tensor:
    """Raise the entropy on the forget answers: -beta * H(F) + retain_weight * NLL(R) (CLEAR, arXiv 2410.18057)."""
    return -beta * entropy(forget) + retain_weight * retain_term(retain)


def grad_diff_kl(forget: Scored, ref_forget: Scored, retain: Scored, *, beta: float, retain_weight: float) -> Tensor:
    """Leave the start on the forget answers: -beta * KL_F + retain_weight * NLL(R) (CLEAR, arXiv 2410.18057)."""
    return -beta * kl_from_start(forget, ref_forget) + retain_weight * retain_term(retain)


def kl(forget: Scored, retain: Scored, ref_retain: Scored) -> Tensor:
    """KL minimization: -NLL(F) + KL_R (TOFU, arXiv 2401.06121)."""
    return -nll(forget) + kl_from_start(retain, ref_retain)


def idk(idk: Scored, retain: Scored, *, retain_weight: float) -> Tensor:
    """Answer "I don't know" to the forget questions: NLL(F with y_idk) + retain_weight * NLL(R) (TOFU, arXiv 2401.06121)."""
    return nll(idk) + retain_weight * retain_term(retain)


def dpo(
    forget: Scored,
    ref_forget_logprob: Tensor,
    idk: Scored,
    ref_idk_logprob: Tensor,
    retain: Scored,
    *,
    beta: float,
    task_weight: float,
    retain_weight: float,
) -> Tensor:
    """Direct preference optimization of "I don't know" over the truth (Rafailov et al., arXiv 2305.18290; CLEAR, arXiv 2410.18057)."""
    # -mean log sigmoid(beta * (r(y_idk) - r(y_f))) + task_weight * NLL(F with y_idk) + retain_weight * NLL(R), r = log p - log p0
    preferred = sequence_logprob(idk) - ref_idk_logprob
    rejected = sequence_logprob(forget) - ref_forget_logprob
    return (
        -F.logsigmoid(beta * (preferred - rejected)).mean()
        + task_weight * nll(idk)
        + retain_weight * retain_term(retain)
    )


def npo(forget: Scored, ref_forget_logprob: Tensor, retain: Scored, *, beta: float, retain_weight: float) -> Tensor:
    """Negative preference optimization with a retain term (Zhang et al., arXiv 2404.05868); at p = p0 its forget term is 2 * log(2) / beta."""
    # -(2/beta) * mean log sigmoid(-beta * (log p(y|x) - log p0(y|x))) + retain_weight * NLL(R)
    log_ratio = sequence_logprob(forget) - ref_forget_logprob
    return -2 / beta * F.logsigmoid(-beta * log_ratio).mean() + retain_weight * retain_term(retain)


def simnpo(forget: Scored, retain: Scored, *, beta: float, gamma: float, retain_weight: float) -> Tensor:
    """NPO with the answer's length in place of a reference (Fan et al., arXiv 2410.07163)."""
    # -(2/beta) * mean log sigmoid(-(beta/|y|) * log p(y|x) - gamma) + retain_weight * NLL(R)
    mean_logprob = sequence_logprob(forget) / answer_lengths(forget)
    return -2 / beta * F.logsigmoid(-beta * mean_logprob - gamma).mean() + retain_weight * retain_term(retain)


def scrub(
    forget: Scored,
    ref_forget: Scored,
    retain: Scored,
    ref_retain: Scored,
    *,
    alpha: float,
    gamma: float,
    max_epochs: int,
    epoch: int,
    step: int,
) -> Tensor:
    """Leave the start on F, stay with it on R (Kurmanji et al., arXiv 2302.09880).

    In the first `max_epochs` epochs steps alternate between -KL_F and alpha * KL_R + gamma * NLL(R), later ones take the second alone;
    max_epochs 0 is CLEAR's plain sum of the three in every step.
    """
    alternating = epoch < max_epochs
    leave = -kl_from_start(forget, ref_forget) if max_epochs == 0 or (alternating and step % 2 == 0) else 0.0
    stay = (
        alpha * kl_from_start(retain, ref_retain) + gamma * nll(retain) if not (alternating and step % 2 == 0) else 0.0
    )
    return leave + stay


def llmu(
    forget: Scored,
    unrelated: Scored,
    retain: Scored,
    ref_retain: Scored,
    *,
    forget_weight: float,
    unrelated_weight: float,
    kl_weight: float,
) -> Tensor:
    """Ascend on F, answer it with something unrelated, stay with the start on R (Yao et al., arXiv 2310.10683)."""
    return (
        -forget_weight * nll(forget) + unrelated_weight * nll(unrelated) + kl_weight * kl_from_start(retain, ref_retain)
    )


def rmu(forget: Hidden, retain: Hidden, ref_retain: Hidden, *, c: float, alpha: float, direction_seed: int) -> Tensor:
    """Steer the hidden states h of F to c * u and keep those of R where they were (Li et al., arXiv 2403.03218).

    h (B, T, H) stands at the positions that predict answer tokens (the paper: all tokens).
    """
    # mean_d (h - c*u)^2 on F + alpha * mean_d (h - h0)^2 on R
    target = c * unit_direction(forget.states.shape[-1], direction_seed).to(forget.states.device)
    steered = (forget.states.float() - target).square().mean(-1)
    kept = (retain.states.float() - ref_retain.states.detach().float()).square().mean(-1)
    return mean_over_answers(steered, forget) + alpha * mean_over_answers(kept, retain)


def sku(
    forget: Scored,
    shuffled: Scored,
    retain: Scored,
    ref_retain: Scored,
    *,
    forget_weight: float,
    shuffled_weight: float,
    kl_weight: float,
) -> Tensor:
    """What SKU first learns: F, also with the answers of other forget rows, away from the start on R (Liu et al., arXiv 2402.10058).

    Needs `task_vector` in the method's file: what was learned is then subtracted.
    """
    return forget_weight * nll(forget) + shuffled_weight * nll(shuffled) - kl_weight * kl_from_start(retain, ref_retain)


def undial(forget: Scored, ref_forget: Scored, retain: Scored, *, gamma: float, retain_weight: float) -> Tensor:
    """Distil the start with its logit of the true token lowered by gamma (Dong et al., arXiv 2402.10052)."""
    target = less_at_the_right(ref_forget.logits.float(), forget, gamma)
    return cross_entropy_against(forget, target) + retain_weight * retain_term(retain)


def wga(forget: Scored, retain: Scored, *, a: float, retain_weight: float) -> Tensor:
    """Gradient ascent whose tokens count by their confidence p^a (Wang et al., arXiv 2502.19301)."""
    losses = token_nll(forget)
    weights = (-a * losses).detach().exp()
    return -mean_over_answers(weights * losses, forget) + retain_weight * retain_term(retain)


def satimp(forget: Scored, retain: Scored, *, b1: float, b2: float, retain_weight: float) -> Tensor:
    """Gradient ascent whose tokens count by p^b1 * (1 - p)^b2 (Yang et al., arXiv 2505.11953)."""
    losses = token_nll(forget)
    p = (-losses).detach().exp()
    return -mean_over_answers(p**b1 * (1 - p).clamp(min=0) ** b2 * losses, forget) + retain_weight * retain_term(retain)


def ceu(forget: Scored) -> Tensor:
    """Cross-entropy of p against its own softmax without the true token (Yang, arXiv 2503.01224)."""
    without = forget.logits.detach().float().scatter(-1, right_token(forget), float("-inf"))
    return cross_entropy_against(forget, without)


def neggrad(forget: Scored, retain: Scored, *, beta: float) -> Tensor:
    """NegGrad+: beta * L(R) - (1 - beta) * L(F), L = NLL (Kurmanji et al., arXiv 2302.09880)."""
    return beta * nll(retain) - (1 - beta) * nll(forget)


def scrub_bio(forget: Hidden, ref_forget: Hidden, retain: Hidden, ref_retain: Hidden) -> Tensor:
    """SCRUB on embeddings: (1 - d)(F) + d(R), d = cosine distance between the new and the starting embedding (CLEAR, arXiv 2410.18057)."""
    return (
        1
        - mean_over_answers(cosine_distance(forget, ref_forget), forget)
        + mean_over_answers(cosine_distance(retain, ref_retain), retain)
    )


def twins(forget: Hidden, ref_augmented: Hidden, retain: Hidden, ref_retain: Hidden) -> Tensor:
    """Answer a forget picture as the start answers one it was not trained on: d(f(x_f), f0(augment(x_f))) + d(f(x_r), f0(x_r)), d = L2 (CLEAR, 2410.18057)."""
    away = (forget.states.float() - ref_augmented.states.detach().float()).norm(dim=-1)
    kept = (retain.states.float() - ref_retain.states.detach().float()).norm(dim=-1)
    return mean_over_answers(away, forget) + mean_over_answers(kept, retain)


def cosine_distance(batch: Hidden, start: Hidden) -> Tensor:
    """1 - cosine between the states of p and of p0, shape (B, T); zero, with zero gradient, where they are the same."""
    return 1 - F.cosine_similarity(batch.states.float(), start.states.detach().float(), dim=-1)


def pdu(forget: Scored, retain: Scored, *, multiplier: float, target: float) -> Tensor:
    """Flatten the logits on F under the constraint NLL(R) <= target (Entesari et al., arXiv 2506.05314); `multiplier_step` moves the multiplier."""
    # mean over answer positions of (max_v z - mean_v z)^2 + multiplier * (NLL(R) - target)
    logits = forget.logits.float()
    flatness = (logits.amax(-1) - logits.mean(-1)).square()
    return mean_over_answers(flatness, forget) + multiplier * (nll(retain) - target)
