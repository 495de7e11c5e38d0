"""Unlearning losses: pure functions from scored answers to one scalar.

Shapes: B examples, T answer positions (1 for a classifier), V tokens or classes, H hidden features. p is the model in
training, p0 the frozen starting model. F and R are the forget and the retain batch. y_f is the true answer to a forget
question, y_idk an "I don't know" answer to it, and |y| the number of an answer's tokens.

Positional parameters name the forward passes that a loss needs:

- `forget`: forget rows with their true answers.
- `retain`: retain rows with their true answers.
- `idk`: forget rows with an "I don't know" answer. In face recognition that is the name of a kept person.
- `unrelated`: forget rows with the answer of a retain row.
- `shuffled`: forget rows with the answer of another forget row.
- `alternate`: forget rows with an invented answer.
- `noised`: forget rows with an instruction before the question and a noised picture.
- `augmented`: forget pictures of which a part is hidden.
- `sibling`: another picture of the same person for each forget picture.
- `nearest`: forget pictures with the name of the kept person whose boundary is near.
- `nobody`: forget pictures with the name of a class that the network has for the training alone.

`ref_` before a name means the same pass of the frozen start, `untaught_` that of a network that never learned anything.
`_logprob` behind such a name means the log-probabilities
(B,) of its answers alone, which are computed once for a whole run. `_labels` behind a name means its answers' labels
(B, T) alone: no model scores that pass.

Keyword-only parameters are the hyperparameters. They have no defaults: config/method/<name>.yaml is the one place for
values. The engine fills in four of them. `epoch` says how many epochs are finished. `multiplier` and `target` come
from the `multiplier` step of the method's file. `never_met` is what face recognition measures before training.

Every loss is a mean over examples of one value per example. Gradient accumulation and several processes therefore give
the loss of one large batch. The value of an example is a mean over its answer tokens, the end-of-sequence included;
prompt, picture and padding never count.

The forget term has the weight 1, unless a hyperparameter weighs it. Where a source gives it another weight, the file
has the source's other weights divided by that one.

Most losses end in a retain term, retain_weight * NLL(R). A method file with `retain: kl` has KL_R in its place. With
retain_weight 0 the retain pass is not run. A loss of forget and of retain rows returns its two Parts, whose sum it is.
"""

import math
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


class Unmade(Protocol):
    """Logits (B, T, V) that are made where a loss asks for them: what the engine gives in the place of large ones."""

    @property
    def shape(self) -> torch.Size: ...

    def whole(self) -> Tensor:
        """The logits, made once."""

    def token_nll(self, labels: Tensor) -> Tensor:
        """What `token_nll` gives for labels (B, T), without all logits at once."""


class Scored(NamedTuple):
    """A batch of answers with the logits that predict them.

    given: the logits (B, T, V), or what makes them. `logits[:, t]` predicts `labels[:, t]`.
    labels: (B, T); IGNORE at positions that hold no answer token.
    margin: taken from the right token's logit before NLL is computed, 0 or more. It is above 0 for models trained with
        AM-softmax (arXiv 1801.05599). Probabilities p never contain it.
    """

    given: Tensor | Unmade
    labels: Tensor
    margin: float = 0.0

    @property
    def logits(self) -> Tensor:
        """The logits (B, T, V). A loss that needs no more than `token_nll` does better without them."""
        return self.given if isinstance(self.given, Tensor) else self.given.whole()


class Hidden(NamedTuple):
    """A batch of answers with the hidden states that predict them, taken at the layer that `activations` names.

    states: (B, T, H); `states[:, t]` predicts `labels[:, t]`.
    labels: (B, T); IGNORE at positions that hold no answer token.
    """

    states: Tensor
    labels: Tensor


class Parts(NamedTuple):
    """A loss in two parts, which a method's `gradient` and `mask` steps treat apart.

    forget: what makes the model forget.
    retain: what keeps the rest; 0.0 where there is no such term.
    """

    forget: Tensor | float
    retain: Tensor | float

    @property
    def total(self) -> Tensor:
        """The loss: their sum, a scalar."""
        total = self.forget + self.retain
        assert isinstance(total, Tensor)  # a loss without any term is none
        return total


class Anchored(NamedTuple):
    """The retain pass of a method file with `retain: kl`: the same answers scored by p and by p0."""

    now: Scored
    start: Scored


# ---- per token, per example


def token_nll(batch: Scored) -> Tensor:
    """Negative log-likelihood of each answer token.

    Args:
        batch: scored answers; the margin is not used.

    Returns:
        (B, T) in float32, in nats; zero where the label is IGNORE.

    Raises:
        ValueError: logits and labels do not have the same examples and positions.
    """
    if batch.given.shape[:2] != batch.labels.shape:
        raise ValueError(
            f"logits {tuple(batch.given.shape)} and labels {tuple(batch.labels.shape)} do not fit: (B, T, V) and (B, T)"
        )
    if not isinstance(batch.given, Tensor):
        return batch.given.token_nll(batch.labels)
    return F.cross_entropy(batch.logits.float().transpose(1, 2), batch.labels, ignore_index=IGNORE, reduction="none")


def answer_lengths(batch: Scored | Hidden) -> Tensor:
    """Number of answer tokens |y| of each example, end-of-sequence included.

    Args:
        batch: answers with labels (B, T).

    Returns:
        (B,), whole numbers.
    """
    return (batch.labels != IGNORE).sum(-1)


def sequence_logprob(batch: Scored) -> Tensor:
    """log p(y|x) of each whole answer: the sum over its tokens.

    Args:
        batch: scored answers; the margin is not used.

    Returns:
        (B,) in float32, in nats, 0 or less.

    Raises:
        ValueError: logits and labels do not have the same examples and positions.
    """
    return -token_nll(batch).sum(-1)


def mean_over_answers(values: Tensor, batch: Scored | Hidden) -> Tensor:
    """Mean over examples of the mean over each example's answer positions.

    Args:
        values: (B, T). Values at other positions do not count, whatever they are.
        batch: the answers whose labels (B, T) say which positions count. Each example has at least one.

    Returns:
        A scalar in the unit of `values`.
    """
    return (values.masked_fill(batch.labels == IGNORE, 0.0).sum(-1) / answer_lengths(batch)).mean()


def nll(batch: Scored) -> Tensor:
    """NLL(B): the mean over examples of -log p(y|x) / |y|.

    Args:
        batch: scored answers. A margin above 0 is taken from the right tokens' logits first, so that the result is the
            loss that the model was trained on.

    Returns:
        A scalar in nats per token, 0 or more.

    Raises:
        ValueError: logits and labels do not have the same examples and positions.

    Source: TOFU (arXiv 2401.06121); the margin is AM-softmax (arXiv 1801.05599).
    """
    return mean_over_answers(token_nll(lowered(batch)), batch)


def lowered(batch: Scored) -> Scored:
    """The same answers with the margin taken from the right tokens' logits.

    Args:
        batch: scored answers.

    Returns:
        The batch itself where its margin is 0; else a batch with new logits (B, T, V).
    """
    if not batch.margin:
        return batch
    return batch._replace(given=less_at_the_right(batch.logits, batch, batch.margin))


def less_at_the_right(logits: Tensor, batch: Scored, amount: float) -> Tensor:
    """Logits in which those of the right tokens are lower by `amount`.

    Args:
        logits: (B, T, V).
        batch: the answers whose labels (B, T) say which tokens are right.
        amount: how much is subtracted, in nats.

    Returns:
        New logits (B, T, V). Positions without an answer change too (token 0); no loss looks at them.
    """
    return logits.scatter_add(-1, right_token(batch), torch.full_like(logits[..., :1], -amount))


def entropy(batch: Scored) -> Tensor:
    """H(B): the mean over examples of the mean entropy of p at answer positions.

    Args:
        batch: scored answers; of the labels only their places matter.

    Returns:
        A scalar in nats, between 0 and log V.

    Source: CLEAR (arXiv 2410.18057).
    """
    logs = batch.logits.float().log_softmax(-1)
    return mean_over_answers(-(logs.exp() * logs).sum(-1), batch)


def kl_from_start(batch: Scored, start: Scored, *, temperature: float = 1.0) -> Tensor:
    """KL_B: the mean over examples of the mean over answer positions of KL(p0 || p).

    At p = p0 the value and its gradient are both zero.

    Args:
        batch: answers scored by p.
        start: the same answers scored by p0, logits (B, T, V). No gradient flows into them.
        temperature: divides the logits of p and of p0, above 0. The KL is then multiplied by its square, so that the
            gradients keep their size (Hinton et al., arXiv 1503.02531). 1 is the plain KL.

    Returns:
        A scalar in nats, 0 or more.

    Source: TOFU (arXiv 2401.06121), whose code uses this direction.
    """
    now = log_probabilities(batch.logits, temperature)
    then = log_probabilities(start.logits.detach(), temperature)
    kl_of_tokens = F.kl_div(now, then, reduction="none", log_target=True).sum(-1)
    return temperature**2 * mean_over_answers(kl_of_tokens, batch)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """log softmax of logits divided by a temperature.

    Args:
        logits: (B, T, V).
        temperature: above 0. At 1 nothing is divided, which saves a copy of the logits.

    Returns:
        (B, T, V) in float32, in nats.
    """
    logits = logits.float()
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def cross_entropy_against(batch: Scored, target_logits: Tensor) -> Tensor:
    """Mean over examples of the mean over answer positions of the cross-entropy of p against a target distribution.

    Args:
        batch: scored answers; of the labels only their places matter.
        target_logits: (B, T, V); the target is their softmax. -inf gives a token the target probability 0. No gradient
            flows into them.

    Returns:
        A scalar in nats, 0 or more.
    """
    # F.cross_entropy takes probabilities as targets; a target of 0 where the logit is -inf stays out of the sum
    target = target_logits.detach().float().softmax(-1)
    return mean_over_answers(
        F.cross_entropy(batch.logits.float().transpose(1, 2), target.transpose(1, 2), reduction="none"), batch
    )


def without_first(batch: Scored, count: int) -> Scored:
    """The same answers without their first tokens.

    Args:
        batch: scored answers.
        count: how many tokens are left out of each answer, 0 or more. An answer's last token never is.

    Returns:
        The batch with labels (B, T) that are IGNORE at those tokens.
    """
    answered = batch.labels != IGNORE
    place = answered.cumsum(-1)  # 1 at an answer's first token, |y| at its last
    is_last = place == answer_lengths(batch)[:, None]
    return batch._replace(labels=batch.labels.masked_fill((place <= count) & ~is_last, IGNORE))


def right_token(batch: Scored) -> Tensor:
    """The labels as an index into the last axis of the logits.

    Args:
        batch: answers with labels (B, T).

    Returns:
        (B, T, 1), whole numbers from 0 to V - 1; 0 where there is no answer token.
    """
    return batch.labels.clamp(min=0)[..., None]


def retain_term(batch: Scored | Anchored | None) -> Tensor | float:
    """NLL(R), or KL_R where the method's file says `retain: kl`.

    Args:
        batch: the retain pass. Scored asks for NLL(R), Anchored for KL_R. None: the pass was left out, because its
            weight is 0.

    Returns:
        A scalar in nats; 0.0 for None.
    """
    if batch is None:
        return 0.0
    return kl_from_start(batch.now, batch.start) if isinstance(batch, Anchored) else nll(batch)


def unit_direction(size: int, seed: int) -> Tensor:
    """The fixed direction u of RMU: every feature is drawn uniformly from [0, 1), and the vector is scaled to length 1.

    Args:
        size: number of hidden features H.
        seed: of the draw; the same seed gives the same direction.

    Returns:
        (size,) on the CPU, of length 1, without negative entries.

    Source: Li et al. (arXiv 2403.03218).
    """
    direction = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return direction / direction.norm()


def multiplier_step(multiplier: float, constraint: float, *, rate: float, target: float) -> float:
    """One dual step of `pdu`: max(0, multiplier + rate * (constraint - target)).

    Args:
        multiplier: its present value, 0 or more.
        constraint: NLL(R) of the optimizer step just taken, in nats.
        rate: size of the step, above 0. config/method/pdu.yaml has 1.0, as OpenUnlearning has; the authors have 5 for
            TOFU.
        target: the NLL(R) that is allowed, in nats. config/method/pdu.yaml has 0.3, as the authors have for TOFU.

    Returns:
        The new multiplier, 0 or more.

    Source: Entesari et al. (arXiv 2506.05314).
    """
    return max(0.0, multiplier + rate * (constraint - target))


# ---- the methods


def retain_ft(retain: Scored) -> Tensor:
    """Fine-tune on the retain rows alone.

    NLL(R)

    Args:
        retain: scored retain answers, logits (B, T, V).

    Returns:
        A scalar in nats.

    Source: CLEAR (arXiv 2410.18057).
    """
    return nll(retain)


def grad_ascent(forget: Scored) -> Tensor:
    """Gradient ascent on the forget answers.

    -NLL(F)

    The loss has no lower bound and no retain term. Long runs destroy the model.

    Args:
        forget: scored forget answers, logits (B, T, V).

    Returns:
        A scalar in nats, 0 or less.

    Source: TOFU (arXiv 2401.06121).
    """
    return -nll(forget)


def learn_forget(forget: Scored) -> Tensor:
    """Learn the forget rows further, of which a `task_vector` step then takes the opposite.

    NLL(F)

    Args:
        forget: scored forget answers, logits (B, T, V).

    Returns:
        A scalar in nats.

    Source: Ilharco et al. (arXiv 2212.04089).
    """
    return nll(forget)


def grad_diff(forget: Scored, retain: Scored, *, beta: float, retain_weight: float) -> Parts:
    """Gradient difference: ascend on the forget answers and descend on the retain answers.

    -beta * NLL(F) + retain_weight * NLL(R)

    Args:
        forget: scored forget answers, logits (B, T, V).
        retain: scored retain answers, logits (B, T, V).
        beta: weight of the ascent, above 0. The file has 1.0, as TOFU and CLEAR have.
        retain_weight: weight of the retain term, 0 or more. The file has 1.0; published searches use 0.5 to 5.

    Returns:
        Two scalars in nats.

    Source: Liu et al. (arXiv 2203.12817); TOFU (arXiv 2401.06121).
    """
    return Parts(-beta * nll(forget), retain_weight * retain_term(retain))


def grad_diff_entropy(forget: Scored, retain: Scored, *, beta: float, retain_weight: float) -> Parts:
    """Raise the entropy of p at the positions of the forget answers.

    -beta * H(F) + retain_weight * NLL(R)

    The forget term is bounded: it ends at -beta * log V, where p is uniform.

    Args:
        forget: scored forget answers, logits (B, T, V).
        retain: scored retain answers, logits (B, T, V).
        beta: weight of the entropy, above 0. The file has 1.0, as CLEAR has.
        retain_weight: weight of the retain term, 0 or more. The file has 1.0, as CLEAR has.

    Returns:
        Two scalars in nats.

    Source: CLEAR (arXiv 2410.18057).
    """
    return Parts(-beta * entropy(forget), retain_weight * retain_term(retain))


def grad_diff_kl(forget: Scored, ref_forget: Scored, retain: Scored, *, beta: float, retain_weight: float) -> Parts:
    """Move p away from the start on the forget answers.

    -beta * KL_F + retain_weight * NLL(R)

    KL_F has no gradient at p = p0. The retain term has to take the first step; with `retain: kl` it cannot, and
    nothing moves.

    Args:
        forget: forget answers scored by p, logits (B, T, V).
        ref_forget: the same answers scored by p0, logits (B, T, V).
        retain: scored retain answers, logits (B, T, V).
        beta: weight of the distance, above 0. The file has 1.0, as CLEAR has.
        retain_weight: weight of the retain term, 0 or more. The file has 1.0, as CLEAR has.

    Returns:
        Two scalars in nats.

    Source: CLEAR (arXiv 2410.18057).
    """
    return Parts(-beta * kl_from_start(forget, ref_forget), retain_weight * retain_term(retain))


def kl(forget: Scored, retain: Scored, ref_retain: Scored) -> Parts:
    """KL minimization: ascend on the forget answers and stay near the start on the retain answers.

    -NLL(F) + KL_R

    Args:
        forget: scored forget answers, logits (B, T, V).
        retain: retain answers scored by p, logits (B, T, V).
        ref_retain: the same answers scored by p0, logits (B, T, V).

    Returns:
        Two scalars in nats.

    Source: TOFU (arXiv 2401.06121). CLEAR (arXiv 2410.18057) prints the reverse direction of KL.
    """
    return Parts(-nll(forget), kl_from_start(retain, ref_retain))


def idk(idk: Scored, retain: Scored, *, retain_weight: float) -> Parts:
    """Train "I don't know" answers to the forget questions and true answers to the retain questions.

    NLL(F with y_idk) + retain_weight * NLL(R)

    Args:
        idk: scored "I don't know" answers to the forget questions, logits (B, T, V).
        retain: scored retain answers, logits (B, T, V).
        retain_weight: weight of the retain term, 0 or more. The file has 1.0, as TOFU has; published searches use 1
            to 5.

    Returns:
        Two scalars in nats.

    Source: TOFU (arXiv 2401.06121).
    """
    return Parts(nll(idk), retain_weight * retain_term(retain))


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
) -> Parts:
    """Direct preference optimization: prefer "I don't know" over the true forget answer.

    -mean log sigmoid(beta * (r(y_idk) - r(y_f))) + task_weight * NLL(F with y_idk) + retain_weight * NLL(R)
    with r(y) = log p(y|x) - log p0(y|x)

    Args:
        forget: scored true forget answers, logits (B, T, V).
        ref_forget_logprob: their log-probabilities under p0, (B,) in nats.
        idk: scored "I don't know" answers to the same questions, logits (B, T, V).
        ref_idk_logprob: their log-probabilities under p0, (B,) in nats.
        retain: scored retain answers, logits (B, T, V).
        beta: strength of the preference, above 0. A smaller beta lets p move farther from p0. The file has 0.1, as
            CLEAR and published searches have; preference tuning uses 0.1 to 0.5.
        task_weight: weight of the "I don't know" answers' own NLL, 0 or more. The file has 1.0, as CLEAR has; 0 leaves
            the pure preference.
        retain_weight: weight of the retain term, 0 or more. The file has 0.0, as CLEAR has; published searches use 1
            to 5.

    Returns:
        Two scalars in nats.

    Source: Rafailov et al. (arXiv 2305.18290); CLEAR (arXiv 2410.18057), whose reference is first tuned on y_idk.
    """
    preferred = sequence_logprob(idk) - ref_idk_logprob
    rejected = sequence_logprob(forget) - ref_forget_logprob
    forgetting = -F.logsigmoid(beta * (preferred - rejected)).mean() + task_weight * nll(idk)
    return Parts(forgetting, retain_weight * retain_term(retain))


def npo(forget: Scored, ref_forget_logprob: Tensor, retain: Scored, *, beta: float, retain_weight: float) -> Parts:
    """Negative preference optimization: make the forget answers less likely than they are under the start.

    -(2 / beta) * mean log sigmoid(-beta * (log p(y|x) - log p0(y|x))) + retain_weight * NLL(R)

    The forget term is 2 * log(2) / beta at p = p0. It falls to 0 as the answers become unlikely.

    Args:
        forget: scored forget answers, logits (B, T, V).
        ref_forget_logprob: their log-probabilities under p0, (B,) in nats.
        retain: scored retain answers, logits (B, T, V).
        beta: how soon the push on an answer fades once the answer is less likely than at the start, above 0. Toward 0
            the push stays and the loss becomes gradient ascent. The file has 0.1, as the paper has; Open-MMUnlearning
            searches 0.6 to 1.2.
        retain_weight: weight of the retain term, 0 or more. The file has 1.0, as the paper has; published searches use
            0 to 5.

    Returns:
        Two scalars in nats.

    Source: Zhang et al. (arXiv 2404.05868).
    """
    log_ratio = sequence_logprob(forget) - ref_forget_logprob
    return Parts(-2 / beta * F.logsigmoid(-beta * log_ratio).mean(), retain_weight * retain_term(retain))


def pava(forget: Scored, ref_forget_logprob: Tensor, visual: Scored, *, beta: float, visual_weight: float) -> Parts:
    """PAVA: make the forget answers less likely by NPO, and keep what the model says of the same pictures otherwise.

    -(2 / beta) * mean log sigmoid(-beta * (log p(y|x) - log p0(y|x))) + visual_weight * NLL(V)

    V are the forget pictures with questions that do not ask who is in them, and the answers that p0 gives. No retain
    rows are asked for.

    Args:
        forget: scored forget answers, logits (B, T, V).
        ref_forget_logprob: their log-probabilities under p0, (B,) in nats.
        visual: scored answers of p0 about the same pictures, logits (B, T, V).
        beta: how soon the push on an answer fades, above 0. See `npo`.
        visual_weight: weight of the other answers, 0 or more. The file has 3.0, as the paper has.

    Returns:
        Two scalars in nats.

    Source: PAVA (arXiv 2608.30649).
    """
    log_ratio = sequence_logprob(forget) - ref_forget_logprob
    return Parts(-2 / beta * F.logsigmoid(-beta * log_ratio).mean(), visual_weight * nll(visual))


def altpo(
    forget: Scored,
    ref_forget_logprob: Tensor,
    alternate: Scored,
    ref_alternate_logprob: Tensor,
    retain: Scored,
    *,
    beta: float,
    retain_weight: float,
) -> Parts:
    """AltPO: prefer an invented answer over the true forget answer.

    -(2 / beta) * mean log sigmoid(beta * (r(y_alt) - r(y_f))) + retain_weight * NLL(R)
    with r(y) = log p(y|x) - log p0(y|x)

    The forget term is 2 * log(2) / beta at p = p0.

    Args:
        forget: scored true forget answers, logits (B, T, V).
        ref_forget_logprob: their log-probabilities under p0, (B,) in nats.
        alternate: scored invented answers to the same questions, logits (B * K, T', V): K to each, one after the other.
        ref_alternate_logprob: their log-probabilities under p0, (B * K,) in nats.
        retain: scored retain answers, logits (B, T, V).
        beta: strength of the preference, above 0. A smaller beta lets p move farther from p0. The file has 0.1, as the
            authors have.
        retain_weight: weight of the retain term, 0 or more. The file has 1.0, as the authors have; published searches
            use 1 to 5.

    Returns:
        Two scalars in nats.

    Source: Mekala et al. (arXiv 2409.13474).
    """
    preferred = sequence_logprob(alternate) - ref_alternate_logprob
    rejected = sequence_logprob(forget) - ref_forget_logprob
    each = len(preferred) // len(rejected)
    margins = preferred - rejected.repeat_interleave(each)
    return Parts(-2 / beta * F.logsigmoid(beta * margins).mean(), retain_weight * retain_term(retain))


def simnpo(forget: Scored, retain: Scored, *, beta: float, gamma: float, retain_weight: float) -> Parts:
    """NPO without a reference: the answer's length stands in the place of the start.

    -(2 / beta) * mean log sigmoid(-(beta / |y|) * log p(y|x) - gamma) + retain_weight * NLL(R)

    Args:
        forget: scored forget answers, logits (B, T, V).
        retain: scored retain answers, logits (B, T, V).
        beta: how soon the push on an answer fades as its mean token becomes unlikely, above 0. The file has 4.5;
            published searches use 3.5 and 4.5.
        gamma: margin in nats, 0 or more. With a larger gamma the push fades later. The file has 0.0; OpenUnlearning,
            which calls it delta, uses 0 and 1.
        retain_weight: weight of the retain term, 0 or more. The file has 8: the authors and OpenUnlearning give the
            forget term the weight 0.125 and the retain term 1.

    Returns:
        Two scalars in nats.

    Source: Fan et al. (arXiv 2410.07163).
    """
    mean_logprob = sequence_logprob(forget) / answer_lengths(forget)
    return Parts(-2 / beta * F.logsigmoid(-beta * mean_logprob - gamma).mean(), retain_weight * retain_term(retain))


def scrub(
    forget: Scored,
    ref_forget: Scored,
    retain: Scored,
    ref_retain: Scored,
    *,
    alpha: float,
    gamma: float,
    temperature: float,
    max_epochs: int,
    epoch: int,
) -> Parts:
    """Move p away from the start on the forget answers and keep it near the start on the retain answers.

    -KL_F in a max epoch, alpha * KL_R + gamma * NLL(R) in a min epoch

    Whole epochs alternate, beginning with a max epoch, until there were `max_epochs` of these. All later epochs are min
    epochs. With max_epochs 0 every step takes the sum of all three terms, as CLEAR does.

    Args:
        forget: forget answers scored by p, logits (B, T, V).
        ref_forget: the same answers scored by p0, logits (B, T, V).
        retain: retain answers scored by p, logits (B, T, V).
        ref_retain: the same answers scored by p0, logits (B, T, V).
        alpha: weight of KL_R, 0 or more. The file has 1.0; published code uses 0.001 to 0.5.
        gamma: weight of NLL(R), 0 or more. The file has 1.0; published code uses 0.99 to 1.
        temperature: of both KL terms, above 0. The file has 1.0, as CLEAR has; the authors' code uses 2 and 4.
        max_epochs: number of max epochs, 0 or more. The file has 0; the authors' code uses 2 and 3, each followed by a
            min epoch, and then 1 to 7 more min epochs.
        epoch: epochs finished so far; the engine fills it in.

    Returns:
        Two scalars in nats.

    Source: Kurmanji et al. (arXiv 2302.09880); CLEAR (arXiv 2410.18057) for the plain sum.
    """
    is_max_epoch = epoch % 2 == 0 and epoch < 2 * max_epochs
    if is_max_epoch:
        return Parts(-kl_from_start(forget, ref_forget, temperature=temperature), 0.0)
    stay = alpha * kl_from_start(retain, ref_retain, temperature=temperature) + gamma * nll(retain)
    return Parts(-kl_from_start(forget, ref_forget, temperature=temperature) if max_epochs == 0 else 0.0, stay)


def llmu(
    forget: Scored,
    unrelated: Scored,
    retain: Scored,
    ref_retain: Scored,
    *,
    forget_weight: float,
    unrelated_weight: float,
    kl_weight: float,
) -> Parts:
    """Ascend on the forget answers, train unrelated answers in their place, and stay near the start on the retain rows.

    -forget_weight * NLL(F) + unrelated_weight * NLL(F with an unrelated answer) + kl_weight * KL_R

    Args:
        forget: scored forget answers, logits (B, T, V).
        unrelated: the forget questions with answers of retain rows, scored, logits (B', T, V). B' is B times
            `other_answers` of the method's file.
        retain: retain answers scored by p, logits (B, T, V).
        ref_retain: the same answers scored by p0, logits (B, T, V).
        forget_weight: weight of the ascent, 0 or more. The file has 0.5.
        unrelated_weight: weight of the unrelated answers, 0 or more. The file has 1.0.
        kl_weight: weight of KL_R, 0 or more. The file has 1.0. Values around 1 are usual for all three weights, which
            the paper searches for each data set.

    Returns:
        Two scalars in nats.

    Source: Yao et al. (arXiv 2310.10683).
    """
    forgetting = -forget_weight * nll(forget) + unrelated_weight * nll(unrelated)
    return Parts(forgetting, kl_weight * kl_from_start(retain, ref_retain))


def rmu(forget: Hidden, retain: Hidden, ref_retain: Hidden, *, c: float, alpha: float, direction_seed: int) -> Parts:
    """Steer the hidden states of the forget rows to one fixed vector and keep those of the retain rows where they were.

    mean over features of (h - c * u)^2 on F + alpha * mean over features of (h - h0)^2 on R

    h and h0 are the states of p and of p0 at the positions that predict answer tokens. The paper takes all tokens.

    Args:
        forget: states of the forget rows under p, (B, T, H).
        retain: states of the retain rows under p, (B, T, H).
        ref_retain: states of the same retain rows under p0, (B, T, H).
        c: length of the target vector c * u, above 0. The file has 6.5, published for Zephyr-7B; published searches use
            1 to 100.
        alpha: weight of the retain part, 0 or more. The file has 1200, published for Zephyr-7B. Small models need far
            less: the benchmarks cv_demo and tofu_smollm2 use 1.
        direction_seed: of the draw of u, 0 or more. The file has 0. Any value serves.

    Returns:
        Two scalars in squared units of the states.

    Source: Li et al. (arXiv 2403.03218).
    """
    target = c * unit_direction(forget.states.shape[-1], direction_seed).to(forget.states.device)
    steered = (forget.states.float() - target).square().mean(-1)
    kept = (retain.states.float() - ref_retain.states.detach().float()).square().mean(-1)
    return Parts(mean_over_answers(steered, forget), alpha * mean_over_answers(kept, retain))


def rmu_adaptive(
    forget: Hidden,
    ref_forget: Hidden,
    retain: Hidden,
    ref_retain: Hidden,
    *,
    scale: float,
    alpha: float,
    direction_seed: int,
) -> Parts:
    """RMU whose target is as long as the state itself was: steer each forget state to `scale` times its own length.

    mean over features of (h - scale * |h0| * u)^2 on F + alpha * mean over features of (h - h0)^2 on R

    h and h0 are the states of p and of p0 at the positions that predict answer tokens.

    Args:
        forget: states of the forget rows under p, (B, T, H).
        ref_forget: states of the same forget rows under p0, (B, T, H).
        retain: states of the retain rows under p, (B, T, H).
        ref_retain: states of the same retain rows under p0, (B, T, H).
        scale: length of the target in lengths of the start's own state, above 0. Adaptive RMU has 5, searches of
            MIP-Editor 0.5 to 2.
        alpha: weight of the retain part, 0 or more.
        direction_seed: of the draw of u, 0 or more. Any value serves.

    Returns:
        Two scalars in squared units of the states.

    Source: Huu-Tien et al. (arXiv 2408.06223); MIP-Editor (arXiv 2511.06793) names the same loss.
    """
    start = ref_forget.states.detach().float()
    direction = unit_direction(start.shape[-1], direction_seed).to(start.device)
    steered = (forget.states.float() - scale * start.norm(dim=-1, keepdim=True) * direction).square().mean(-1)
    kept = (retain.states.float() - ref_retain.states.detach().float()).square().mean(-1)
    return Parts(mean_over_answers(steered, forget), alpha * mean_over_answers(kept, retain))


def sku(
    forget: Scored,
    shuffled: Scored,
    retain: Scored,
    ref_retain: Scored,
    *,
    forget_weight: float,
    shuffled_weight: float,
    kl_weight: float,
) -> Parts:
    """First stage of SKU: learn the forget rows well and leave the start on the retain rows.

    forget_weight * NLL(F) + shuffled_weight * NLL(F with answers of other forget rows) - kl_weight * KL_R

    This loss learns what is to be forgotten. The step `task_vector` of the method's file then subtracts it.

    Args:
        forget: scored forget answers, logits (B, T, V).
        shuffled: the forget questions with answers of other forget rows, scored, logits (B', T, V). B' is B times
            `other_answers` of the method's file.
        retain: retain answers scored by p, logits (B, T, V).
        ref_retain: the same answers scored by p0, logits (B, T, V).
        forget_weight: weight of the true answers, 0 or more. The file has 2.5, as the authors have.
        shuffled_weight: weight of the other answers, 0 or more. The file has 2.5, as the authors have.
        kl_weight: weight of the distance from the start on R, 0 or more. The file has 1.0, as the authors have.

    Returns:
        Two scalars in nats.

    Source: Liu et al. (arXiv 2402.10058).
    """
    learning = forget_weight * nll(forget) + shuffled_weight * nll(shuffled)
    return Parts(learning, -kl_weight * kl_from_start(retain, ref_retain))


def undial(forget: Scored, ref_forget: Scored, retain: Scored, *, gamma: float, retain_weight: float) -> Parts:
    """Distil the start into p, with the true token's logit lowered.

    cross-entropy of p against softmax(z0 - gamma * onehot(y)) on F + retain_weight * NLL(R), z0 = logits of p0

    Args:
        forget: forget answers scored by p, logits (B, T, V).
        ref_forget: the same answers scored by p0, logits (B, T, V).
        retain: scored retain answers, logits (B, T, V).
        gamma: how much the true token's logit is lowered, in nats, 0 or more. The file has 10, as OpenUnlearning has
            (which calls it beta); published searches use 3 to 30.
        retain_weight: weight of the retain term, 0 or more. The file has 0.0, as OpenUnlearning has; published searches
            use 1 to 5.

    Returns:
        Two scalars in nats.

    Source: Dong et al. (arXiv 2402.10052).
    """
    target = less_at_the_right(ref_forget.logits.float(), forget, gamma)
    return Parts(cross_entropy_against(forget, target), retain_weight * retain_term(retain))


def wga(forget: Scored, retain: Scored, *, a: float, retain_weight: float) -> Parts:
    """Gradient ascent in which each token counts by its own probability.

    -mean over tokens of p^a * (-log p) on F + retain_weight * NLL(R); no gradient flows through the weight p^a

    Args:
        forget: scored forget answers, logits (B, T, V).
        retain: scored retain answers, logits (B, T, V).
        a: exponent of the weight, 0 or more. 0 is plain gradient ascent. With a larger a, tokens that are already
            forgotten count less. The file has 1.0, as OpenUnlearning has (which calls it beta).
        retain_weight: weight of the retain term, 0 or more. The file has 1.0, as OpenUnlearning has.

    Returns:
        Two scalars in nats.

    Source: Wang et al. (arXiv 2502.19301).
    """
    losses = token_nll(forget)
    weights = (-a * losses).detach().exp()
    return Parts(-mean_over_answers(weights * losses, forget), retain_weight * retain_term(retain))


def satimp(forget: Scored, retain: Scored, *, b1: float, b2: float, retain_weight: float) -> Parts:
    """Gradient ascent in which each token counts by how well it is known and how much it matters.

    -mean over tokens of p^b1 * (1 - p)^b2 * (-log p) on F + retain_weight * NLL(R);
    no gradient flows through the weight p^b1 * (1 - p)^b2

    Args:
        forget: scored forget answers, logits (B, T, V).
        retain: scored retain answers, logits (B, T, V).
        b1: exponent of p, 0 or more. With a larger b1, tokens that are already forgotten count less. The file has 5, as
            OpenUnlearning has.
        b2: exponent of 1 - p, 0 or more. With a larger b2, tokens that are nearly certain count less. The file has 1,
            as OpenUnlearning has.
        retain_weight: weight of the retain term, 0 or more. The file has 10: OpenUnlearning gives the forget term the
            weight 0.1 and the retain term 1. The authors' own code gives them 1 and 0.1, which would be 0.1 here.

    Returns:
        Two scalars in nats.

    Source: Yang et al. (arXiv 2505.11953).
    """
    losses = token_nll(forget)
    p = (-losses).detach().exp()
    weights = p**b1 * (1 - p).clamp(min=0) ** b2
    return Parts(-mean_over_answers(weights * losses, forget), retain_weight * retain_term(retain))


def ceu(forget: Scored, *, skipped_tokens: int) -> Tensor:
    """Train p toward its own distribution without the true token.

    cross-entropy of p against softmax(z without the true token's logit) on F, z = logits of p

    No gradient flows into the target. There is no retain term.

    Args:
        forget: scored forget answers, logits (B, T, V) with V of at least 2.
        skipped_tokens: how many tokens at the beginning of each answer do not count, 0 or more. An answer's last token
            always counts. The file has 1, as the paper has.

    Returns:
        A scalar in nats.

    Source: Yang (arXiv 2503.01224).
    """
    without = forget.logits.detach().float().scatter(-1, right_token(forget), float("-inf"))
    return cross_entropy_against(without_first(forget, skipped_tokens), without)


def neggrad(forget: Scored, retain: Scored, *, beta: float) -> Parts:
    """NegGrad+: descend on the retain answers and ascend a little on the forget answers.

    beta * NLL(R) - (1 - beta) * NLL(F)

    Args:
        forget: scored forget answers, logits (B, T, V).
        retain: scored retain answers, logits (B, T, V).
        beta: share of the retain part, between 0 and 1. The file has 0.95; the authors search 0.9 to 1 for each data
            set.

    Returns:
        Two scalars in nats.

    Source: Kurmanji et al. (arXiv 2302.09880).
    """
    return Parts(-(1 - beta) * nll(forget), beta * nll(retain))


def scrub_bio(forget: Hidden, ref_forget: Hidden, retain: Hidden, ref_retain: Hidden) -> Parts:
    """SCRUB on embeddings: turn the forget embeddings away from the start's and keep the retain embeddings.

    (1 - d)(F) + d(R), d = cosine distance between the embedding under p and under p0

    Args:
        forget: embeddings of the forget pictures under p, (B, 1, H).
        ref_forget: embeddings of the same pictures under p0, (B, 1, H).
        retain: embeddings of the retain pictures under p, (B, 1, H).
        ref_retain: embeddings of the same pictures under p0, (B, 1, H).

    Returns:
        Two scalars, between -1 and 1 and between 0 and 2.

    Source: CLEAR (arXiv 2410.18057).
    """
    away = 1 - mean_over_answers(cosine_distance(forget, ref_forget), forget)
    return Parts(away, mean_over_answers(cosine_distance(retain, ref_retain), retain))


def twins(forget: Hidden, ref_augmented: Hidden, retain: Hidden, ref_retain: Hidden) -> Parts:
    """Embed a forget picture as the start embeds one that it was not trained on.

    d(f(x_f), f0(augment(x_f))) on F + d(f(x_r), f0(x_r)) on R, d = L2 distance, f and f0 = embeddings of p and p0

    Args:
        forget: embeddings of the forget pictures under p, (B, 1, H).
        ref_augmented: embeddings under p0 of the same pictures with a part hidden, (B, 1, H).
        retain: embeddings of the retain pictures under p, (B, 1, H).
        ref_retain: embeddings of the same pictures under p0, (B, 1, H).

    Returns:
        Two scalars, 0 or more.

    Source: CLEAR (arXiv 2410.18057).
    """
    away = (forget.states.float() - ref_augmented.states.detach().float()).norm(dim=-1)
    kept = (retain.states.float() - ref_retain.states.detach().float()).norm(dim=-1)
    return Parts(mean_over_answers(away, forget), mean_over_answers(kept, retain))


def bad_teacher(forget: Scored, untaught_forget: Scored, retain: Scored | Anchored, *, retain_weight: float) -> Parts:
    """Learn what to say of forget pictures from a network that never learned anything, and of others from the start.

    KL(p_untaught || p)(F) + retain term, which is KL_R with `retain: kl`, as the authors have.

    Args:
        forget: forget pictures under p.
        untaught_forget: the same under a network of random weights, a function of the seed.
        retain: retain pictures under p.
        retain_weight: weight of the retain term, 0 or more. The authors have 1.

    Returns:
        Two scalars, 0 or more.

    Source: Chundawat et al. (arXiv 2205.08096).
    """
    return Parts(kl_from_start(forget, untaught_forget), retain_weight * retain_term(retain))


def boundary_shrink(nearest: Scored) -> Tensor:
    """Learn forget pictures as pictures of the kept person whose boundary is near.

    NLL(F with the nearest other name)

    Args:
        nearest: forget pictures with those names; the `boundary` step of the method's file finds them.

    Returns:
        Scalar, 0 or more.

    Source: Chen et al. (CVPR 2023, arXiv 2303.11570).
    """
    return nll(nearest)


def boundary_expand(nobody: Scored) -> Tensor:
    """Learn forget pictures as those of a class of nobody, which is dropped after training.

    NLL(F with the name of nobody)

    Args:
        nobody: forget pictures with that name; the logits have one class more than the network has people.

    Returns:
        Scalar, 0 or more.

    Source: Chen et al. (CVPR 2023, arXiv 2303.11570).
    """
    return nll(nobody)


def dispersion(forget: Hidden, sibling: Hidden, retain: Hidden, ref_retain: Hidden, *, never_met: float) -> Parts:
    """Spread a forgotten person's embeddings as far as those of people whom the start never met.

    mean max(0, cos(e_i, e_j) - never_met) on F + d(R), e_i and e_j = embeddings of two pictures of a person, d = cosine
    distance between the embedding under p and under p0

    Args:
        forget: embeddings of the forget pictures under p, (B, 1, H).
        sibling: embeddings of another picture of the same person each, (B, 1, H).
        retain: embeddings of the retain pictures under p, (B, 1, H).
        ref_retain: embeddings of the same pictures under p0, (B, 1, H).
        never_met: mean cosine of two pictures of a person whom the start never met, under p0. The engine fills it in.

    Returns:
        Two scalars, each between 0 and 2.

    Source: after arXiv 2512.13317, with the likeness of people who were never met in place of none at all.
    """
    likeness = F.cosine_similarity(forget.states.float(), sibling.states.float(), dim=-1)
    spread = mean_over_answers((likeness - never_met).clamp(min=0), forget)
    return Parts(spread, mean_over_answers(cosine_distance(retain, ref_retain), retain))


def cosine_distance(batch: Hidden, start: Hidden) -> Tensor:
    """1 - cosine between the states of p and of p0.

    Where the two are equal, the value and its gradient are both zero.

    Args:
        batch: states under p, (B, T, H).
        start: states of the same positions under p0, (B, T, H). No gradient flows into them.

    Returns:
        (B, T), between 0 and 2.
    """
    return 1 - F.cosine_similarity(batch.states.float(), start.states.detach().float(), dim=-1)


def pdu(forget: Scored, retain: Scored, *, multiplier: float, target: float) -> Parts:
    """Flatten the logits at the forget answers while NLL(R) has to stay at or below a target.

    mean over answer positions of (max_v z - mean_v z)^2 on F + multiplier * (NLL(R) - target), z = logits of p

    `multiplier_step` moves the multiplier after each optimizer step. Values below are those of the file's step
    `multiplier`; the engine fills in both arguments.

    Args:
        forget: scored forget answers, logits (B, T, V).
        retain: scored retain answers, logits (B, T, V).
        multiplier: price of each nat of NLL(R) above the target, 0 or more. It starts at 1.0.
        target: NLL(R) that is allowed, in nats. The file has 0.3, as the authors have for TOFU; they choose it for each
            data set, and OpenUnlearning has no value for it.

    Returns:
        Two scalars.

    Source: Entesari et al. (arXiv 2506.05314).
    """
    logits = forget.logits.float()
    flatness = (logits.amax(-1) - logits.mean(-1)).square()
    return Parts(mean_over_answers(flatness, forget), multiplier * (nll(retain) - target))


def ihl(forget: Scored, retain: Scored, *, retain_weight: float) -> Parts:
    """Inverted hinge loss: put another token's probability above the right one's, and no further than that.

    mean of max(0, 1 + p(y) - max over v != y of p(v)) over F + retain_weight * NLL(R). Unlike an ascent it is bounded,
    and its gradient moves probability to one rival token instead of to the whole vocabulary.

    Args:
        forget: the forget rows, logits (B, T, V).
        retain: the retain rows; None where `retain_weight` is 0.
        retain_weight: weight of the retain term, 0 or more. The authors and the file have 1.

    Returns:
        Two scalars. The forget term is in [0, 2]; the retain term is in nats.

    Source: Cha et al. (arXiv 2408.06621).
    """
    probabilities = forget.logits.float().softmax(-1)
    place = right_token(forget)
    right = probabilities.gather(-1, place).squeeze(-1)
    rival = probabilities.scatter(-1, place, 0.0).amax(-1)
    hinge = mean_over_answers((1 + right - rival).clamp(min=0), forget)
    return Parts(hinge, retain_weight * retain_term(retain))


def jensun(forget: Scored, idk_labels: Tensor, retain: Scored, ref_retain: Scored, *, jsd_weight: float) -> Parts:
    """JensUn: draw p at the forget answers to the tokens of a refusal, and keep it near the start on the retain rows.

    JSD(p || onehot(c)) on F + jsd_weight * JSD(p || p0) on R, JSD = Jensen-Shannon divergence of each answer token

    c runs through the tokens of an "I don't know" answer, again and again, along the true answer. Each divergence is at
    most log 2, and the push on a token fades as the refusal takes its place.

    Args:
        forget: scored forget answers, logits (B, T, V).
        idk_labels: labels (B, T') of an "I don't know" answer to each; its end-of-sequence is no target, unless it
            stands alone.
        retain: retain answers scored by p, logits (B, T, V).
        ref_retain: the same answers scored by p0, logits (B, T, V).
        jsd_weight: weight of the retain part, 0 or more. The file has 1.0, as the authors have.

    Returns:
        Two scalars in nats; the first is at most log 2.

    Source: Singh et al. (arXiv 2509.02820).
    """
    logs = forget.logits.float().log_softmax(-1)
    drawn = mean_over_answers(jsd_to_token(logs.gather(-1, cycled(idk_labels, forget)[..., None]).squeeze(-1)), forget)
    return Parts(drawn, jsd_weight * jsd_from_start(retain, ref_retain))


def vgid(forget: Scored, ref_noised: Scored, retain: Scored, *, retain_weight: float) -> Parts:
    """VGID: answer a forget question as the start does that does not see the picture and is told not to know.

    KL(pT || p) on F + retain_weight * NLL(R), pT = p0 given a noised picture and an instruction before the question

    Both score the true answer's tokens. Behind the first of a name the teacher reads the rest off the answer itself,
    and is confident again.

    Args:
        forget: scored forget answers, logits (B, T, V).
        ref_noised: the same answers to the noised rows scored by p0, logits (B, T, V).
        retain: scored retain answers, logits (B, T, V).
        retain_weight: weight of the retain term, 0 or more. The file has 1.0 and `retain: kl`, so that it is KL_R.

    Returns:
        Two scalars in nats.

    Raises:
        ValueError: the answers to noised rows are cut differently, for lack of room behind the longer question.

    Source: VGID (arXiv 2606.00105).
    """
    if not torch.equal(answer_lengths(forget), answer_lengths(ref_noised)):
        raise ValueError("the instruction of method.noise leaves less room for answers; a larger max_length does")
    return Parts(kl_from_start(forget, ref_noised), retain_weight * retain_term(retain))


def jsd_to_token(logprob: Tensor) -> Tensor:
    """Jensen-Shannon divergence of a distribution from the one that is all on one token.

    Args:
        logprob: log-probability of that token, in nats, of any shape.

    Returns:
        Of the same shape, between 0 and log 2: with q = exp(logprob),
        (log(2 / (1 + q)) + q log(2 q / (1 + q)) + (1 - q) log 2) / 2.
    """
    q = logprob.exp()
    log_of_sum = q.log1p() - math.log(2)
    return (-log_of_sum + q * (logprob - log_of_sum) + (1 - q) * math.log(2)) / 2


def jsd_from_start(batch: Scored, start: Scored) -> Tensor:
    """The mean over examples of the mean over answer positions of the Jensen-Shannon divergence of p from p0.

    At p = p0 the value and its gradient are both zero.

    Args:
        batch: answers scored by p.
        start: the same answers scored by p0, logits (B, T, V). No gradient flows into them.

    Returns:
        A scalar in nats, between 0 and log 2.
    """
    now, then = log_probabilities(batch.logits, 1.0), log_probabilities(start.logits.detach(), 1.0)
    middle = torch.logaddexp(now, then) - math.log(2)
    apart = now.exp() * (now - middle) + then.exp() * (then - middle)
    return mean_over_answers(apart.sum(-1) / 2, batch)


def cycled(labels: Tensor, along: Scored) -> Tensor:
    """The tokens of other answers, each repeated along an answer without its last, which ends it.

    Args:
        labels: of the other answers, (B, T'), IGNORE where there is none. Each has at least one.
        along: the answers (B, T) along which they are repeated.

    Returns:
        (B, T); what stands at positions without an answer means nothing.
    """
    present = labels != IGNORE
    first = labels.gather(1, (~present).int().argsort(dim=1, stable=True))  # wherever the padding stands
    count = (present.sum(1, keepdim=True) - 1).clamp(min=1)
    place = ((along.labels != IGNORE).cumsum(1) - 1).clamp(min=0)
    return first.gather(1, place % count)


def flat(forget: Scored, idk: Scored, *, divergence: Literal["tv", "kl", "pearson", "js"]) -> Tensor:
    """FLAT: an f-divergence between the "I don't know" answers and the forget answers is made large.

    mean over forget rows of f*(g(P(y_f))) - g(P(y_idk)), P(y) = mean probability of an answer's tokens

    tv: (tanh P_f - tanh P_idk) / 2; kl: exp(P_f - 1) - P_idk; pearson: P_f^2 / 4 + P_f - P_idk;
    js: log(1 + exp P_f) + log(1 + exp -P_idk) - 2 log 2. There is no retain term and no reference. All are bounded.

    Args:
        forget: scored forget answers, logits (B, T, V).
        idk: scored "I don't know" answers to the same questions, logits (B, T', V).
        divergence: tv, kl, pearson or js. The file has tv, as the authors have.

    Returns:
        A scalar.

    Source: Wang et al. (arXiv 2410.11143).
    """
    wrong, right = mean_probability(forget), mean_probability(idk)
    values = {
        "tv": (wrong.tanh() - right.tanh()) / 2,
        "kl": (wrong - 1).exp() - right,
        "pearson": wrong.square() / 4 + wrong - right,
        "js": F.softplus(wrong) + F.softplus(-right) - 2 * math.log(2),
    }
    return values[divergence].mean()


def mean_probability(batch: Scored) -> Tensor:
    """Mean probability of each answer's tokens.

    Args:
        batch: scored answers; the margin is not used.

    Returns:
        (B,), between 0 and 1.
    """
    p = (-token_nll(batch)).exp().masked_fill(batch.labels == IGNORE, 0.0)
    return p.sum(-1) / answer_lengths(batch)
