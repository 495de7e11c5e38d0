"""Every loss: a hand number, ignored positions, padding side, accumulation, gradient direction."""

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import unlearn_losses
from engine import methods
from engine.methods import base_pass, bind, known_losses
from helpers import ROOT
from settings.script import SettingsError
from settings.training import Activations, Boundary, Method
from unlearn_losses import (
    IGNORE,
    Hidden,
    Scored,
    altpo,
    ceu,
    cycled,
    dpo,
    entropy,
    flat,
    grad_ascent,
    grad_diff,
    grad_diff_entropy,
    grad_diff_kl,
    idk,
    ihl,
    jensun,
    jsd_from_start,
    jsd_to_token,
    kl,
    kl_from_start,
    learn_forget,
    llmu,
    multiplier_step,
    neggrad,
    nll,
    npo,
    pava,
    pdu,
    retain_ft,
    rmu,
    rmu_adaptive,
    satimp,
    scrub,
    scrub_bio,
    sequence_logprob,
    simnpo,
    sku,
    twins,
    undial,
    unit_direction,
    vgid,
    wga,
    without_first,
)

METHODS = [path for path in sorted(ROOT.glob("config/method/*.yaml")) if OmegaConf.load(path).loss]  # that train


def answers(*rows):
    """Answers in a two-token vocabulary; a row gives the probability of each right token (token 0), shorter rows are
    padded.
    """
    longest = max(map(len, rows))
    logits, labels = torch.zeros(len(rows), longest, 2), torch.full((len(rows), longest), IGNORE)
    for b, row in enumerate(rows):
        for t, p in enumerate(row):
            logits[b, t], labels[b, t] = torch.tensor([math.log(p), math.log(1 - p)]), 0
    return Scored(logits, labels)


def method(path):
    return bind(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Method), OmegaConf.load(path))), faces=True)


def random_scored(rows=3, positions=4, seed=0, vocabulary=5):
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(vocabulary, (rows, positions), generator=source)
    for b in range(rows):
        labels[b, positions - b % positions :] = IGNORE  # ragged: row b lacks its last b positions
    return Scored(torch.randn(rows, positions, vocabulary, generator=source), labels)


def passes_of(bound, rows=3):
    """Random passes of the shapes a batch has: a `ref_` or `untaught_` pass has the labels of its own pass;
    log-probabilities are (B,).
    """
    passes = {name: random_scored(rows, seed=number) for number, name in enumerate(bound.batches)}
    for number, name in enumerate(name for name in bound.passes if name.startswith(("ref_", "untaught_"))):
        start = random_scored(rows, seed=100 + number)._replace(labels=passes[base_pass(name)].labels)
        passes[name] = sequence_logprob(start) if name.endswith("_logprob") else start
    passes |= {f"{name}_labels": passes[name].labels for name in bound.told}
    return {name: passes[name] for name in bound.passes}


def loss_of(bound, passes):
    return bound(passes, epoch=0, multiplier=2.0, target=0.3, never_met=-1.0)


def change(passes, how):
    return {name: how(value) if isinstance(value, Scored) else value for name, value in passes.items()}


def test_sequence_logprob_adds_the_tokens_log_probabilities():
    # log(1/2) + log(1/4) = log(1/8)
    assert sequence_logprob(answers([0.5, 0.25])).tolist() == pytest.approx([math.log(1 / 8)])


def test_nll_is_a_mean_over_examples_of_a_mean_over_tokens():
    # first answer: (log 2 + log 4) / 2; second, of one token: log 8; mean = (1.5 + 3) / 2 * log 2
    assert nll(answers([0.5, 0.25], [0.125])).item() == pytest.approx(2.25 * math.log(2))


def test_retain_ft_is_the_nll_of_the_retain_answers():
    assert retain_ft(answers([0.25])).item() == pytest.approx(math.log(4))


def test_grad_ascent_is_the_negated_nll_of_the_forget_answers():
    assert grad_ascent(answers([0.25])).item() == pytest.approx(-math.log(4))


def test_grad_diff_is_weighted_retain_minus_weighted_forget():
    # -0.5 * log 4 + 3 * log 2 = 2 log 2
    assert grad_diff(answers([0.25]), answers([0.5]), beta=0.5, retain_weight=3.0).total.item() == pytest.approx(
        2 * math.log(2)
    )


def test_idk_is_the_nll_of_the_refusal_plus_that_of_the_retain_answers():
    # log 2 + 2 * log 4 = 5 log 2
    assert idk(answers([0.5]), answers([0.25]), retain_weight=2.0).total.item() == pytest.approx(5 * math.log(2))


def test_npo_at_the_reference_is_two_log_two_over_beta():
    # log ratio 0, sigmoid(0) = 1/2
    same = answers([0.25, 0.5])
    assert npo(same, sequence_logprob(same), answers([0.5]), beta=0.5, retain_weight=0.0).total.item() == pytest.approx(
        2 / 0.5 * math.log(2)
    )


def test_npo_by_hand_away_from_the_reference():
    # r = log(1/8) - log(1/2) = -2 log 2; sigmoid(-1 * r) = 4 / (4 + 1) = 0.8; -(2/1) log 0.8 + 1 * log 2
    value = npo(
        answers([0.125]), sequence_logprob(answers([0.5])), answers([0.5]), beta=1.0, retain_weight=1.0
    ).total.item()
    assert value == pytest.approx(-2 * math.log(0.8) + math.log(2))


def test_npo_uses_the_whole_answers_log_probability_not_its_mean():
    # two tokens at 1/4 against 1/2 each: r = -2 log 2 as a sum (the mean would be -log 2)
    value = npo(
        answers([0.25, 0.25]), sequence_logprob(answers([0.5, 0.5])), answers([0.5]), beta=1.0, retain_weight=0.0
    ).total.item()
    assert value == pytest.approx(-2 * math.log(0.8))


def test_logits_and_labels_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        nll(Scored(torch.zeros(1, 3, 2), torch.zeros(1, 2, dtype=torch.long)))


def test_nll_equals_torchs_cross_entropy_on_answers_of_one_length():
    scored = Scored(torch.randn(3, 4, 5), torch.randint(5, (3, 4)))
    assert nll(scored).item() == pytest.approx(
        nn.functional.cross_entropy(scored.logits.flatten(0, 1), scored.labels.flatten()).item(), rel=1e-5
    )


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_a_method_file_names_itself_and_a_loss_with_all_its_hyperparameters(path):
    assert OmegaConf.load(path).name == path.stem
    assert method(path).passes


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_ignored_positions_do_not_count(path):
    bound = method(path)
    passes = passes_of(bound)
    noisy = change(
        passes,
        lambda s: Scored(
            torch.where((s.labels == IGNORE)[..., None], 100 * torch.randn_like(s.logits), s.logits), s.labels
        ),
    )
    assert loss_of(bound, noisy).item() == pytest.approx(loss_of(bound, passes).item(), rel=1e-5)


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_the_padding_side_does_not_matter(path):
    bound = method(path)
    passes = passes_of(bound)

    def pad(scored, left):
        shape = (scored.labels.shape[0], 2)
        logits, labels = torch.randn(*shape, scored.logits.shape[-1]), torch.full(shape, IGNORE)
        parts = (
            ((logits, scored.logits), (labels, scored.labels))
            if left
            else ((scored.logits, logits), (scored.labels, labels))
        )
        return Scored(*(torch.cat(part, 1) for part in parts))

    left, right = (loss_of(bound, change(passes, lambda s, side=side: pad(s, side))) for side in (True, False))
    assert left.item() == pytest.approx(right.item(), rel=1e-5)


def rows_of(passes, part):
    """Some rows of every pass."""
    cut = {}
    for name, value in passes.items():
        cut[name] = Scored(value.logits[part], value.labels[part]) if isinstance(value, Scored) else value[part]
    return cut


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_the_mean_over_small_batches_is_the_loss_of_the_large_one(path):
    bound = method(path)
    passes = passes_of(bound, rows=4)
    halves = [rows_of(passes, slice(0, 2)), rows_of(passes, slice(2, 4))]
    assert torch.stack([loss_of(bound, half) for half in halves]).mean().item() == pytest.approx(
        loss_of(bound, passes).item(), rel=1e-5
    )


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_ignored_positions_get_no_gradient_and_answers_get_a_finite_one(path):
    bound = method(path)
    passes = passes_of(bound)
    trained = (passes[name] for name in bound.trained)
    watched = [value for value in trained if isinstance(value, Scored)]
    for scored in watched:
        scored.logits.requires_grad_()
    loss_of(bound, passes).backward()
    for scored in watched:
        ignored = scored.labels == IGNORE
        assert (
            scored.logits.grad.isfinite().all()
            and scored.logits.grad[ignored].abs().sum() == 0
            and scored.logits.grad[~ignored].abs().sum() > 0
        )


def right_answers(passes, name):
    return sequence_logprob(passes[name]).sum()


def away(passes, name, start):
    """1 - cosine at the answers' positions, summed."""
    return (1 - nn.functional.cosine_similarity(passes[name].logits, passes[start].logits, dim=-1))[
        passes[name].labels != IGNORE
    ].sum()


def gap(passes, name, start):
    """Distance at the answers' positions, summed."""
    return (passes[name].logits - passes[start].logits).norm(dim=-1)[passes[name].labels != IGNORE].sum()


def refusals(passes, name):
    """Log-probability of the tokens of a refusal at the answers' positions, summed."""
    logs = passes[name].logits.log_softmax(-1)
    wanted = cycled(passes["idk_labels"], passes[name])
    return logs.gather(-1, wanted[..., None])[passes[name].labels != IGNORE].sum()


def to_adaptive_target(passes):
    """Distance of forget states from twice the start's length along the one direction, summed."""
    forget, start = passes["forget"], passes["ref_forget"].logits
    target = 2 * start.norm(dim=-1, keepdim=True) * unit_direction(5, 0)
    return (forget.logits - target)[forget.labels != IGNORE].norm()


# what a small step on the scored passes must raise (+1) or lower (-1), measured on which pass
DIRECTIONS = {
    **{
        name: [(-1, "forget", right_answers)]
        for name in ("grad_ascent", "grad_diff", "npo", "simnpo", "kl", "undial", "wga", "satimp", "ceu")
    },
    "retain_ft": [(+1, "retain", right_answers)],
    "idk": [(+1, "idk", right_answers), (+1, "retain", right_answers)],
    "salun": [(+1, "idk", right_answers)],
    "flat": [(+1, "idk", right_answers), (-1, "forget", right_answers)],
    "jensun": [(+1, "forget", refusals)],
    "dpo": [(+1, "idk", right_answers), (-1, "forget", right_answers)],
    "altpo": [(+1, "alternate", right_answers), (-1, "forget", right_answers)],
    "vgid": [
        (-1, "forget", lambda passes, name: unlearn_losses.kl_from_start(passes[name], passes["ref_noised"])),
        (-1, "retain", lambda passes, name: unlearn_losses.kl_from_start(passes[name], passes["ref_retain"])),
    ],
    "negation": [(+1, "forget", right_answers)],  # what is learned, to be subtracted
    "llmu": [(-1, "forget", right_answers), (+1, "unrelated", right_answers)],
    "sku": [(+1, "forget", right_answers), (+1, "shuffled", right_answers)],  # what is learned, to be subtracted
    "grad_diff_entropy": [(+1, "forget", lambda passes, name: unlearn_losses.entropy(passes[name]))],
    "grad_diff_kl": [
        (+1, "forget", lambda passes, name: unlearn_losses.kl_from_start(passes[name], passes[f"ref_{name}"]))
    ],
    "scrub": [(+1, "forget", lambda passes, name: unlearn_losses.kl_from_start(passes[name], passes[f"ref_{name}"]))],
    "rmu": [
        (
            -1,
            "forget",
            lambda passes, name: (passes[name].logits - 6.5 * unit_direction(5, 0))[
                passes[name].labels != IGNORE
            ].norm(),
        )
    ],
    "mip_editor": [
        (-1, "forget", lambda passes, name: to_adaptive_target(passes)),
        (-1, "retain", lambda passes, name: gap(passes, name, "ref_retain")),
    ],
    "pava": [(-1, "forget", right_answers), (+1, "visual", right_answers)],
    "neggrad": [(-1, "forget", right_answers), (+1, "retain", right_answers)],
    "sparsity": [(+1, "retain", right_answers)],
    "bad_teacher": [
        (-1, "forget", lambda passes, name: unlearn_losses.kl_from_start(passes[name], passes["untaught_forget"])),
        (-1, "retain", lambda passes, name: unlearn_losses.kl_from_start(passes[name], passes["ref_retain"])),
    ],
    "dispersion": [
        (+1, "forget", lambda passes, name: away(passes, name, "sibling")),
        (+1, "sibling", lambda passes, name: away(passes, name, "forget")),
        (-1, "retain", lambda passes, name: away(passes, name, "ref_retain")),
    ],
    "scrub_bio": [
        (+1, "forget", lambda passes, name: away(passes, name, "ref_forget")),
        (-1, "retain", lambda passes, name: away(passes, name, "ref_retain")),
    ],
    "twins": [
        (-1, "forget", lambda passes, name: gap(passes, name, "ref_augmented")),
        (-1, "retain", lambda passes, name: gap(passes, name, "ref_retain")),
    ],
    "pdu": [
        (
            -1,
            "forget",
            lambda passes, name: (passes[name].logits.amax(-1) - passes[name].logits.mean(-1))[
                passes[name].labels != IGNORE
            ].sum(),
        )
    ],
}


def directions_of(bound):
    """What DIRECTIONS says of a method; of one that is not there: forget answers fall, else those it trains on rise."""
    forgets = "forget" in bound.trained
    of_a_new_one = (-1, "forget", right_answers) if forgets else (+1, bound.trained[0], right_answers)
    return DIRECTIONS.get(bound.method.name, [of_a_new_one])


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_a_small_step_moves_memorised_answers_in_the_methods_own_direction(path):
    """Start from memorised forget rows at p != p0 and step down the loss's gradient."""
    bound = method(path)
    for sign, name, measure in directions_of(bound):
        passes = passes_of(bound)
        if "forget" in passes:
            passes["forget"].logits.scatter_add_(
                2, unlearn_losses.right_token(passes["forget"]), torch.full((3, 4, 1), 3.0)
            )
        logits = passes[name].logits.requires_grad_()
        loss_of(bound, passes).backward()
        before = measure(passes, name)
        # a thousandth of the gradient's size, because rmu's and a sum's gradients differ by orders
        stepped = logits.detach() - 1e-3 * logits.grad / logits.grad.norm()
        after = measure(passes | {name: passes[name]._replace(given=stepped)}, name)
        assert sign * (after - before).item() > 0


# ---- hand numbers of the other methods, in a vocabulary of two


def test_entropy_is_that_of_the_distribution_not_of_the_label():
    # H(.25) = .25 log 4 + .75 log 4/3; with H(.5) = log 2 the mean over the two positions
    expected = (math.log(2) + 0.25 * math.log(4) + 0.75 * math.log(4 / 3)) / 2
    assert entropy(answers([0.5, 0.25])).item() == pytest.approx(expected)
    value = grad_diff_entropy(answers([0.5, 0.25]), answers([0.5]), beta=2.0, retain_weight=3.0).total
    assert value.item() == pytest.approx(-2 * expected + 3 * math.log(2))


KL_HALF_QUARTER = 0.5 * math.log(4 / 3)  # KL(.5 || .25) = .5 log(.5/.25) + .5 log(.5/.75) = .5 log(4/3)


def test_kl_runs_from_the_start_to_the_model():
    assert kl_from_start(answers([0.25]), answers([0.5])).item() == pytest.approx(KL_HALF_QUARTER)


def test_kl_at_a_temperature_is_that_of_the_softened_distributions_times_its_square():
    # at temperature 2 odds become their square roots: .2 has odds 1/4, then 1/2, which is 1/3; .5 stays .5
    # KL(1/2 || 1/3) = .5 log(3/2) + .5 log(3/4) = .5 log(9/8); times 2^2
    value = kl_from_start(answers([0.2]), answers([0.5]), temperature=2.0)
    assert value.item() == pytest.approx(2 * math.log(9 / 8))


def test_kl_equals_a_loop_over_answer_positions():
    now, start = random_scored(seed=1), random_scored(seed=2)
    means = []
    for b in range(3):
        each = []
        for t in range(4):
            if now.labels[b, t] != IGNORE:
                p, p0 = now.logits[b, t].softmax(-1).tolist(), start.logits[b, t].softmax(-1).tolist()
                each.append(sum(q * math.log(q / r) for q, r in zip(p0, p, strict=True)))
        means.append(sum(each) / len(each))
    assert kl_from_start(now, start).item() == pytest.approx(sum(means) / 3, rel=1e-5)


def test_kl_minimization_and_grad_diff_kl_by_hand():
    # -log 4 + KL; and -2 KL + 3 log 2
    assert kl(answers([0.25]), answers([0.25]), answers([0.5])).total.item() == pytest.approx(
        -math.log(4) + KL_HALF_QUARTER
    )
    value = grad_diff_kl(answers([0.25]), answers([0.5]), answers([0.5]), beta=2.0, retain_weight=3.0).total
    assert value.item() == pytest.approx(-2 * KL_HALF_QUARTER + 3 * math.log(2))


def test_dpo_prefers_the_refusal_over_the_truth_each_against_the_start():
    # r(idk) = log(.5/.25) = log 2, r(forget) = log(.25/.5) = -log 2: sigmoid(2 log 2) = .8; + 1 * log 2 + 2 * log 4
    start = [sequence_logprob(answers([p])) for p in (0.5, 0.25)]
    value = dpo(
        answers([0.25]),
        start[0],
        answers([0.5]),
        start[1],
        answers([0.25]),
        beta=1.0,
        task_weight=1.0,
        retain_weight=2.0,
    ).total
    assert value.item() == pytest.approx(-math.log(0.8) + 5 * math.log(2))


def test_dpos_preference_is_the_published_sigmoid_loss_of_chosen_and_rejected():
    parts = [random_scored(seed=n) for n in range(5)]
    chosen, chosen0, rejected, rejected0 = (sequence_logprob(part) for part in parts[:4])
    # Rafailov et al. (2023), equation 7: -E log sigmoid(beta log pi(y_w)/ref(y_w) - beta log pi(y_l)/ref(y_l))
    published = -torch.log(1 / (1 + torch.exp(-(0.3 * (chosen - chosen0) - 0.3 * (rejected - rejected0))))).mean()
    value = dpo(parts[2], rejected0, parts[0], chosen0, parts[4], beta=0.3, task_weight=0.0, retain_weight=0.0).total
    assert value.item() == pytest.approx(published.item(), rel=1e-5)


def test_what_negation_learns_is_the_nll_of_the_forget_answers():
    # (log 2 + log 4) / 2
    assert learn_forget(answers([0.5, 0.25])).item() == pytest.approx(1.5 * math.log(2))


def test_altpo_prefers_each_invented_answer_over_the_truth_and_has_npos_scale():
    # r(alt) - r(f) = 0: -(2 / .1) log .5 = 20 log 2; + 1 * log 2
    half = sequence_logprob(answers([0.5]))
    value = altpo(answers([0.5]), half, answers([0.5]), half, answers([0.5]), beta=0.1, retain_weight=1.0).total
    assert value.item() == pytest.approx(21 * math.log(2))
    # r(f) = -log 2; r of the two invented answers log 2 and 0: sigmoid(2 log 2) = .8, sigmoid(log 2) = 2/3
    start, rejected = sequence_logprob(answers([0.25], [0.25])), sequence_logprob(answers([0.5]))
    invented, forget = answers([0.5], [0.25]), answers([0.25])
    value = altpo(forget, rejected, invented, start, answers([0.5]), beta=1.0, retain_weight=0.0).total
    assert value.item() == pytest.approx(-math.log(0.8) - math.log(2 / 3))


def test_altpo_pairs_each_row_with_its_own_invented_answers():
    forget, retain = answers([0.5], [0.25]), answers([0.5])
    rejected, zeros = sequence_logprob(answers([0.5], [0.5])), torch.zeros(4)  # r(f): 0 and -log 2
    invented = answers([0.5], [0.5], [0.25], [0.25])  # two of each row
    whole = altpo(forget, rejected, invented, zeros, retain, beta=1.0, retain_weight=0.0).total
    rows = [
        altpo(answers([p]), rejected[:1], answers([q], [q]), zeros[:2], retain, beta=1.0, retain_weight=0.0).total
        for p, q in ((0.5, 0.5), (0.25, 0.25))
    ]
    assert whole.item() == pytest.approx((rows[0] + rows[1]).item() / 2)


def test_vgid_is_the_kl_from_the_teacher_that_sees_noise():
    value = vgid(answers([0.25]), answers([0.5]), answers([0.25]), retain_weight=3.0).total
    assert value.item() == pytest.approx(KL_HALF_QUARTER + 3 * math.log(4))
    with pytest.raises(ValueError, match=r"leaves less room for answers; a larger max_length does"):
        vgid(answers([0.25, 0.5]), answers([0.5]), answers([0.25]), retain_weight=1.0)


def test_simnpo_by_hand():
    # mean log p = -2 log 2; sigmoid(2 log 2 - log 2) = 2/3; -(2/1) log(2/3)
    value = simnpo(answers([0.25, 0.25]), answers([0.5]), beta=1.0, gamma=math.log(2), retain_weight=0.0).total
    assert value.item() == pytest.approx(-2 * math.log(2 / 3))


def test_scrub_adds_its_terms_or_alternates_between_them_by_whole_epochs():
    forget, start, retain = answers([0.25]), answers([0.5]), answers([0.25])
    away, keep = -KL_HALF_QUARTER, 2 * KL_HALF_QUARTER + 3 * math.log(4)

    def value(epoch, max_epochs):
        own = {"alpha": 2.0, "gamma": 3.0, "temperature": 1.0, "max_epochs": max_epochs}
        return scrub(forget, start, retain, start, epoch=epoch, **own).total.item()

    assert [value(epoch, max_epochs=0) for epoch in range(3)] == pytest.approx([away + keep] * 3)
    assert [value(epoch, max_epochs=2) for epoch in range(6)] == pytest.approx([away, keep, away, keep, keep, keep])


def test_scrubs_temperature_softens_both_of_its_kl_terms_and_not_the_loss_of_the_retain_rows():
    # each KL is 2 log(9/8) at temperature 2 (see above); NLL(R) of .2 is log 5
    moved, start, own = answers([0.2]), answers([0.5]), {"alpha": 0.5, "gamma": 3.0, "temperature": 2.0}
    away, keep = (scrub(moved, start, moved, start, max_epochs=1, epoch=epoch, **own).total.item() for epoch in (0, 1))
    assert away == pytest.approx(-2 * math.log(9 / 8))
    assert keep == pytest.approx(0.5 * 2 * math.log(9 / 8) + 3 * math.log(5))
    added = scrub(moved, start, moved, start, max_epochs=0, epoch=0, **own).total.item()
    assert added == pytest.approx(away + keep)


def test_llmu_and_sku_by_hand():
    forget, other, retain, start = answers([0.25]), answers([0.5]), answers([0.25]), answers([0.5])
    # -.5 log 4 + 2 log 2 + 3 KL; and .5 log 4 + 2 log 2 - 3 KL
    value = llmu(forget, other, retain, start, forget_weight=0.5, unrelated_weight=2.0, kl_weight=3.0).total
    assert value.item() == pytest.approx(math.log(2) + 3 * KL_HALF_QUARTER)
    value = sku(forget, other, retain, start, forget_weight=0.5, shuffled_weight=2.0, kl_weight=3.0).total
    assert value.item() == pytest.approx(3 * math.log(2) - 3 * KL_HALF_QUARTER)


def test_rmu_by_hand():
    # one answer token, h = u + (3, 1): against 1 * u the mean over two features is (9 + 1) / 2; retain moved by (2, 0):
    # 4 / 2
    u, label = unit_direction(2, 0), torch.zeros(1, 1, dtype=torch.long)
    forget, retain, start = (
        Hidden((u + torch.tensor(d)).view(1, 1, 2), label) for d in ((3.0, 1.0), (2.0, 0.0), (0.0, 0.0))
    )
    assert rmu(forget, retain, start, c=1.0, alpha=0.5, direction_seed=0).total.item() == pytest.approx(5 + 0.5 * 2)


def test_adaptive_rmu_by_hand():
    # u of one feature is 1; |h0| = 3: (1 - 2 * 3)^2 = 25; .5 * (5 - 3)^2 = 2
    one, three, five = (embedded([value]) for value in (1.0, 3.0, 5.0))
    parts = rmu_adaptive(one, three, five, three, scale=2.0, alpha=0.5, direction_seed=0)
    assert (parts.forget.item(), parts.retain.item()) == pytest.approx((25.0, 2.0))


def test_pava_is_npo_and_what_the_start_says_of_the_same_pictures():
    # as npo by hand: -2 log .8; + 3 * log 4
    parts = pava(answers([0.125]), sequence_logprob(answers([0.5])), answers([0.25]), beta=1.0, visual_weight=3.0)
    assert parts.forget.item() == pytest.approx(-2 * math.log(0.8))
    assert parts.retain.item() == pytest.approx(3 * math.log(4))


def test_rmus_direction_is_one_fixed_unit_vector_of_no_negative_features():
    one, again, other = unit_direction(64, 0), unit_direction(64, 0), unit_direction(64, 1)
    assert (
        torch.equal(one, again)
        and not torch.equal(one, other)
        and one.norm().item() == pytest.approx(1)
        and (one >= 0).all()
    )


def test_neggrad_by_hand():
    # .75 * log 2 - .25 * log 4 = .25 log 2
    assert neggrad(answers([0.25]), answers([0.5]), beta=0.75).total.item() == pytest.approx(0.25 * math.log(2))


def test_scrub_bio_by_hand():
    # forget turned by 90 degrees: d = 1, 1 - d = 0; retain (3, 4) against (1, 0): cosine 3/5, d = 2/5, whatever the
    # lengths
    label = torch.zeros(1, 1, dtype=torch.long)
    states = [
        Hidden(torch.tensor(values).view(1, 1, 2), label) for values in ((0.0, 2.0), (1.0, 0.0), (3.0, 4.0), (1.0, 0.0))
    ]
    assert scrub_bio(*states).total.item() == pytest.approx(0.4)


def embedded(*values):
    return Hidden(torch.tensor(values).unsqueeze(1), torch.zeros(len(values), 1, dtype=torch.long))


def test_two_pictures_of_a_person_are_spread_as_far_as_those_of_somebody_never_met_and_no_farther():
    # cosines .8 and 0 against .3: (.5 + 0) / 2; the retain picture turned by a right angle: 1
    forget, sibling = embedded([4.0, 3.0], [0.0, 1.0]), embedded([2.0, 0.0], [1.0, 0.0])
    retain, start = embedded([0.0, 1.0]), embedded([1.0, 0.0])
    parts = unlearn_losses.dispersion(forget, sibling, retain, start, never_met=0.3)
    assert [part.item() for part in parts] == pytest.approx([0.25, 1.0])
    # who is as unlike as that already, stays
    forget.states.requires_grad_()
    unlearn_losses.dispersion(forget, sibling, retain, start, never_met=0.3).forget.backward()
    assert forget.states.grad[0].abs().sum() > 0 and not forget.states.grad[1].any()


def test_the_bad_teacher_is_followed_on_forget_pictures_and_the_start_on_others():
    # KL(1/4 || 1/2) = 1/4 log(1/2) + 3/4 log(3/2); one of KL(1/2 || 1/4) for the retain picture
    teacher, now, start = answers([0.25]), answers([0.5]), answers([0.5])
    forget = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    bound = method(ROOT / "config/method/bad_teacher.yaml")
    assert (bound.untaught, bound.frozen, bound.batches) == (["forget"], ["retain"], ["forget", "retain"])
    passes = {"forget": now, "untaught_forget": teacher, "retain": answers([0.25]), "ref_retain": start}
    assert bound(passes).item() == pytest.approx(forget + 0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-5)


def test_a_network_that_never_learned_anything_is_refused_where_there_is_none():
    bad_teacher = method(ROOT / "config/method/bad_teacher.yaml").method
    with pytest.raises(SettingsError, match="method=bad_teacher compares with a network that never learned anything"):
        bind(bad_teacher)


def test_the_names_of_boundary_methods_are_learned():
    # -log(1/4) each
    assert unlearn_losses.boundary_shrink(answers([0.25])).item() == pytest.approx(math.log(4))
    assert unlearn_losses.boundary_expand(answers([0.25])).item() == pytest.approx(math.log(4))


def test_a_boundary_is_needed_by_the_loss_that_crosses_it_and_by_no_other():
    with pytest.raises(SettingsError, match=r"method.boundary: boundary_shrink needs it"):
        bind(Method("x", "boundary_shrink"))
    with pytest.raises(SettingsError, match=r"method.boundary: grad_ascent has no use for it"):
        bind(Method("x", "grad_ascent", boundary=Boundary(0.1)))
    with pytest.raises(SettingsError, match=r"method.boundary.bound=0 must be above 0 and at most 1"):
        Boundary(0)


def test_twins_by_hand_keeps_the_retain_pictures_where_they_were():
    # forget (3, 4) from what the start makes of the hidden view: 5; retain (1, 0) from the start's own (0, 0): 1
    label = torch.zeros(1, 1, dtype=torch.long)
    states = [
        Hidden(torch.tensor(values).view(1, 1, 2), label) for values in ((3.0, 4.0), (0.0, 0.0), (1.0, 0.0), (0.0, 0.0))
    ]
    assert twins(*states).total.item() == pytest.approx(6.0)
    moved = Hidden(states[2].states.clone().requires_grad_(), label)
    twins(*states[:2], moved, states[3]).total.backward()
    assert moved.states.grad.abs().sum() > 0


@pytest.mark.parametrize(("p", "expected"), [([0.7, 0.2, 0.1], 1.5), ([0.1, 0.8, 0.1], 0.3), ([0.0, 1.0, 0.0], 0.0)])
def test_ihl_by_hand(p, expected):
    # 1 + p(y) - the largest other: 1 + .7 - .2, 1 + .1 - .8, 1 + 0 - 1; of nothing retained
    logits = torch.tensor([[p]]).clamp(min=1e-30).log()
    loss = ihl(Scored(logits, torch.tensor([[0]])), None, retain_weight=0.0).total
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_ihl_adds_the_loss_of_the_retain_rows():
    # the answer has .5 and its only rival .5: 1 + .5 - .5 = 1; 2 * log 2 of the retain row
    loss = ihl(answers([0.5]), answers([0.5]), retain_weight=2.0).total
    assert loss.item() == pytest.approx(1 + 2 * math.log(2))


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("tv", (math.tanh(0.8) - math.tanh(0.1)) / 2),  # .28218
        ("kl", math.exp(0.8 - 1) - 0.1),  # .71873
        ("pearson", 0.8**2 / 4 + 0.8 - 0.1),  # .86
        ("js", math.log(1 + math.exp(-0.1)) + 0.8 + math.log(1 + math.exp(-0.8)) - 2 * math.log(2)),
    ],
)
def test_flat_by_hand(divergence, expected):
    # of the forget answer's two tokens the mean probability is .8, of the refusal's .1
    assert flat(answers([0.7, 0.9]), answers([0.1]), divergence=divergence).item() == pytest.approx(expected, rel=1e-5)


def test_flats_divergence_is_one_of_four():
    with pytest.raises(SettingsError, match=r"method.args.divergence='kll' is not known .*did you mean 'kl'"):
        bind(Method("flat", "flat", {"divergence": "kll"}))


def test_the_divergence_from_one_token_is_that_of_the_two_distributions():
    # q = .5: (log 4/3 + .5 log 2/3 + .5 log 2) / 2
    assert jsd_to_token(torch.tensor(0.5).log()).item() == pytest.approx(0.21576, abs=1e-5)
    assert jsd_to_token(torch.tensor([0.0, -200.0])).tolist() == pytest.approx([0.0, math.log(2)], abs=1e-6)
    one, p = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.2, 0.3, 0.5])
    middle = (one + p) / 2
    both = [torch.special.xlogy(each, each / middle).sum().item() for each in (one, p)]
    assert jsd_to_token(p[1].log()).item() == pytest.approx(sum(both) / 2, rel=1e-5)


def test_jensun_by_hand():
    # the refusal is token 1 (its end is no target), which has .5 and then .75; q = .75: .5 * (log 8/7 + .75 log 6/7 +
    # .25 log 2) = .0956; the retain part: p = .25, p0 = .5, middle .375 and .625
    forget, refusal = answers([0.5, 0.25]), torch.tensor([[1, 0]])
    drawn = (0.21576 + 0.5 * (math.log(8 / 7) + 0.75 * math.log(6 / 7) + 0.25 * math.log(2))) / 2
    of_p = 0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)
    of_start = 0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)
    parts = jensun(forget, refusal, answers([0.25]), answers([0.5]), jsd_weight=3.0)
    assert parts.forget.item() == pytest.approx(drawn, abs=1e-5)
    assert parts.retain.item() == pytest.approx(3 * (of_p + of_start) / 2, rel=1e-5)
    assert jsd_from_start(answers([0.25]), answers([0.25])).item() == pytest.approx(0.0, abs=1e-7)


def test_a_refusal_is_repeated_along_an_answer_without_its_end_wherever_the_padding_stands():
    labels = torch.tensor([[7, 8, 2, IGNORE], [IGNORE, IGNORE, 9, 2], [IGNORE, 4, IGNORE, IGNORE]])
    along = Scored(torch.zeros(3, 5, 2), torch.tensor([[IGNORE, 1, 1, 1, 1], [1, 1, 1, IGNORE, IGNORE], [1] * 5]))
    made = cycled(labels, along)
    assert made[0, 1:].tolist() == [7, 8, 7, 8]
    assert made[1, :3].tolist() == [9, 9, 9]
    assert made[2].tolist() == [4] * 5  # an answer of one token, as in face recognition, is its own end


def test_the_two_parts_of_a_loss_add_up_to_it_and_a_loss_of_one_part_is_its_forget_part():
    bound = bind(Method("npo", "npo", {"beta": 0.5, "retain_weight": 2.0}))
    same = answers([0.25])
    parts = bound.parts({"forget": same, "ref_forget_logprob": sequence_logprob(same), "retain": answers([0.5])})
    assert parts.forget.item() == pytest.approx(4 * math.log(2))
    assert parts.retain.item() == pytest.approx(2 * math.log(2))
    assert bind(Method("grad_ascent", "grad_ascent")).parts({"forget": same}).retain == 0.0


def test_undial_by_hand():
    # a start of .5 with log 3 taken from the true token: (1/4, 3/4); against p = (.5, .5) that is log 2, against itself
    # its entropy
    start = answers([0.5])
    assert undial(
        answers([0.5]), start, answers([0.5]), gamma=math.log(3), retain_weight=1.0
    ).total.item() == pytest.approx(2 * math.log(2))
    own = undial(answers([0.25]), start, answers([0.5]), gamma=math.log(3), retain_weight=0.0).total.item()
    assert own == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))


def test_wga_and_satimp_weigh_tokens_by_confidence_and_let_no_gradient_through_the_weight():
    # -(1/4)^2 log 4; and -(1/4)(3/4)^2 log 4
    assert wga(answers([0.25]), answers([0.5]), a=2.0, retain_weight=0.0).total.item() == pytest.approx(
        -(0.25**2) * math.log(4)
    )
    assert satimp(answers([0.25]), answers([0.5]), b1=1.0, b2=2.0, retain_weight=0.0).total.item() == pytest.approx(
        -0.25 * 0.75**2 * math.log(4)
    )
    forget = answers([0.25])
    wga(
        Scored(forget.logits.requires_grad_(), forget.labels), answers([0.5]), a=2.0, retain_weight=0.0
    ).total.backward()
    # the gradient of the log-likelihood on the right token's logit is 1 - p, here times the weight
    assert forget.logits.grad[0, 0, 0].item() == pytest.approx(0.25**2 * 0.75)


def test_ceu_by_hand():
    # three tokens at (1/2, 1/4, 1/4), the first is true: target (0, 1/2, 1/2), cross-entropy log 4
    scored = Scored(torch.tensor([[[0.5, 0.25, 0.25]]]).log(), torch.zeros(1, 1, dtype=torch.long))
    assert ceu(scored, skipped_tokens=0).item() == pytest.approx(math.log(4))


def test_ceu_leaves_the_first_tokens_of_an_answer_out_and_never_its_last():
    # in a vocabulary of two the target is the other token: cross-entropy -log(1 - p), which is log 2, log 4, log 8
    three, one = [0.5, 0.75, 0.875], [0.5]
    assert ceu(answers(three), skipped_tokens=0).item() == pytest.approx((1 + 2 + 3) / 3 * math.log(2))
    assert ceu(answers(three), skipped_tokens=1).item() == pytest.approx((2 + 3) / 2 * math.log(2))
    assert ceu(answers(three), skipped_tokens=5).item() == pytest.approx(3 * math.log(2))
    assert ceu(answers(three, one), skipped_tokens=1).item() == pytest.approx((2.5 + 1) / 2 * math.log(2))


def test_the_first_token_of_an_answer_is_not_its_first_position():
    batch = Scored(torch.zeros(2, 4, 5), torch.tensor([[IGNORE, 3, 4, 2], [1, 2, IGNORE, IGNORE]]))
    expected = [[IGNORE, IGNORE, 4, 2], [IGNORE, 2, IGNORE, IGNORE]]
    assert without_first(batch, 1).labels.tolist() == expected


def test_pdu_by_hand():
    # logits (2, 0): max - mean = 1, squared 1; + 2 * (log 2 - .5)
    forget = Scored(torch.tensor([[[2.0, 0.0]]]), torch.zeros(1, 1, dtype=torch.long))
    assert pdu(forget, answers([0.5]), multiplier=2.0, target=0.5).total.item() == pytest.approx(
        1 + 2 * (math.log(2) - 0.5)
    )


def test_the_multiplier_never_falls_below_zero():
    # 1 + 2 * (.75 - .5) = 1.5; 1 + 2 * (0 - .75) < 0
    assert multiplier_step(1.0, 0.75, rate=2.0, target=0.5) == pytest.approx(1.5)
    assert multiplier_step(1.0, 0.0, rate=2.0, target=0.75) == 0


def test_a_retain_term_by_kl_takes_the_place_of_the_nll():
    bound = bind(Method("npo", "npo", {"beta": 1.0, "retain_weight": 2.0}, retain="kl"))
    same = answers([0.25])
    passes = {
        "forget": same,
        "ref_forget_logprob": sequence_logprob(same),
        "retain": answers([0.25]),
        "ref_retain": answers([0.5]),
    }
    assert bound.frozen == ["retain"] and bound(passes).item() == pytest.approx(2 * math.log(2) + 2 * KL_HALF_QUARTER)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (Method("rmu", "rmu", {"c": 1.0, "alpha": 1.0, "direction_seed": 0}), "method.activations: rmu needs it"),
        (
            Method("npo", "npo", {"beta": 1.0, "retain_weight": 1.0}, activations=Activations(1, [1])),
            "method.activations: npo has no use for it",
        ),
        (Method("pdu", "pdu"), "method.multiplier: pdu needs it"),
        (Method("kl", "kl", retain="kl"), "method.retain=kl: kl has no retain term to change"),
    ],
)
def test_a_step_that_does_not_fit_the_loss_is_refused(method, line):
    with pytest.raises(SettingsError, match=line):
        bind(method)


def test_passes_and_reference_follow_from_the_parameters():
    bound = bind(Method(name="npo", loss="npo", args={"beta": 0.1, "retain_weight": 1.0}))
    assert bound.passes == ["forget", "ref_forget_logprob", "retain"] and bound.batches == bound.trained == [
        "forget",
        "retain",
    ]
    assert bound.cached == ["forget"] and bound.frozen == []
    assert (
        bind(Method(name="kl", loss="kl")).frozen == ["retain"]
        and not bind(Method(name="grad_ascent", loss="grad_ascent")).frozen
    )


@pytest.mark.parametrize(
    ("name", "forget", "retain"),
    [("npo", 1.0, 1.0), ("simnpo", 0.125, 1.0), ("wga", 1.0, 1.0), ("satimp", 0.1, 1.0), ("undial", 1.0, 0.0)],
)
def test_a_files_retain_weight_is_the_one_of_openunlearning_where_the_forget_term_has_the_weight_one(
    name, forget, retain
):
    """`forget` and `retain` are gamma and alpha of its configs/trainer/<name>.yaml."""
    (path,) = [path for path in METHODS if path.stem == name]
    assert OmegaConf.load(path).args.retain_weight == pytest.approx(retain / forget)


@pytest.mark.parametrize("name", ["llmu", "sku"])
def test_a_forget_row_gets_as_many_other_answers_as_in_the_authors_code(name):
    (path,) = [path for path in METHODS if path.stem == name]
    assert OmegaConf.load(path).other_answers == 5  # K of get_rand_ans_loss


def test_every_loss_has_a_method_file():
    assert {OmegaConf.load(path).loss for path in METHODS} == set(known_losses())


def test_one_loss_serves_a_language_model_and_a_classifier():
    classifier = Scored(torch.randn(3, 1, 7), torch.randint(7, (3, 1)))
    assert npo(classifier, sequence_logprob(classifier), classifier, beta=0.1, retain_weight=1.0).total.shape == ()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"beta": 0.1, "retain_weigt": 1.0}, r"method.args.retain_weigt .* \(did you mean 'retain_weight'\?\)"),
        ({"beta": 0.1}, r"method.args.retain_weight is required by npo"),
    ],
)
def test_wrong_hyperparameters_name_the_right_ones(args, line):
    with pytest.raises(SettingsError, match=line):
        bind(Method(name="npo", loss="npo", args=args))


def test_an_unknown_loss_names_the_nearest_known_one():
    with pytest.raises(SettingsError, match=r"method.loss='nppo' .* \(did you mean 'npo'\?\)"):
        bind(Method(name="x", loss="nppo", args={}))


def test_a_loss_library_with_annotations_as_text_is_read_the_same(monkeypatch):
    """`from __future__ import annotations` turns every annotation into text; what a loss gets may not hang on it."""
    source = Path(unlearn_losses.__file__).read_text(encoding="utf-8")
    doc_end = source.index('"""', 3) + 3
    module = ModuleType("unlearn_losses")
    text = source[:doc_end] + "\nfrom __future__ import annotations\n" + source[doc_end:]
    exec(compile(text, unlearn_losses.__file__, "exec"), vars(module))
    monkeypatch.setattr(methods, "Hidden", module.Hidden)
    assert module.rmu.__annotations__["forget"] == "Hidden"
    assert methods.takes_states(module.rmu)
    assert not methods.takes_states(module.npo)
    method = Method("rmu", "rmu", {"c": "high", "alpha": 1.0, "direction_seed": 0})
    with pytest.raises(SettingsError, match=r"method.args.c='high' must be a number"):
        methods.check_hyperparameters(method, module.rmu)


def test_a_method_with_activations_gets_states_in_the_place_of_logits():
    args = {"c": 2.0, "alpha": 1.0, "direction_seed": 0}
    bound = bind(Method("rmu", "rmu", args, activations=Activations(layer=0, trained=[0])))
    labels = torch.zeros(1, 1, dtype=torch.long)
    states = {name: torch.randn(1, 1, 4) for name in bound.passes}
    scored = {name: Scored(values, labels) for name, values in states.items()}
    hidden = {name: Hidden(values, labels) for name, values in states.items()}
    assert torch.equal(bound(scored), rmu(**hidden, **args).total)
