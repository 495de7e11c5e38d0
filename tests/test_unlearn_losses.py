"""Every loss: a hand number, ignored positions, padding side, accumulation, gradient direction."""

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import unlearn_losses
from run_settings import Method, SettingsError
from train_engine import bind, known_losses
from unlearn_losses import IGNORE, Scored, grad_ascent, grad_diff, idk, nll, npo, retain_ft, sequence_logprob

METHODS = sorted(Path(__file__).parents[1].glob("config/method/*.yaml"))


def answers(*rows):
    """Answers in a two-token vocabulary; a row gives the probability of each right token (token 0), shorter rows are padded."""
    longest = max(map(len, rows))
    logits, labels = torch.zeros(len(rows), longest, 2), torch.full((len(rows), longest), IGNORE)
    for b, row in enumerate(rows):
        for t, p in enumerate(row):
            logits[b, t], labels[b, t] = torch.tensor([math.log(p), math.log(1 - p)]), 0
    return Scored(logits, labels)


def method(path):
    return bind(Method(**OmegaConf.to_container(OmegaConf.load(path))))


def random_scored(rows=3, positions=4, seed=0, vocabulary=5):
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(vocabulary, (rows, positions), generator=source)
    for b in range(rows):
        labels[b, positions - b % positions :] = IGNORE  # ragged: row b lacks its last b positions
    return Scored(torch.randn(rows, positions, vocabulary, generator=source), labels)


def passes_of(bound, seed=0):
    return {name: random_scored(seed=seed + number) for number, name in enumerate(bound.passes)}


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
    assert grad_diff(answers([0.25]), answers([0.5]), beta=0.5, retain_weight=3.0).item() == pytest.approx(2 * math.log(2))


def test_idk_is_the_nll_of_the_refusal_plus_that_of_the_retain_answers():
    # log 2 + 2 * log 4 = 5 log 2
    assert idk(answers([0.5]), answers([0.25]), retain_weight=2.0).item() == pytest.approx(5 * math.log(2))


def test_npo_at_the_reference_is_two_log_two_over_beta():
    # log ratio 0, sigmoid(0) = 1/2
    same = answers([0.25, 0.5])
    assert npo(same, same, answers([0.5]), beta=0.5, retain_weight=0.0).item() == pytest.approx(2 / 0.5 * math.log(2))


def test_npo_by_hand_away_from_the_reference():
    # r = log(1/8) - log(1/2) = -2 log 2; sigmoid(-1 * r) = 4 / (4 + 1) = 0.8; -(2/1) log 0.8 + 1 * log 2
    value = npo(answers([0.125]), answers([0.5]), answers([0.5]), beta=1.0, retain_weight=1.0).item()
    assert value == pytest.approx(-2 * math.log(0.8) + math.log(2))


def test_npo_uses_the_whole_answers_log_probability_not_its_mean():
    # two tokens at 1/4 against 1/2 each: r = -2 log 2 as a sum (the mean would be -log 2)
    value = npo(answers([0.25, 0.25]), answers([0.5, 0.5]), answers([0.5]), beta=1.0, retain_weight=0.0).item()
    assert value == pytest.approx(-2 * math.log(0.8))


def test_logits_and_labels_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        nll(Scored(torch.zeros(1, 3, 2), torch.zeros(1, 2, dtype=torch.long)))


def test_nll_equals_torchs_cross_entropy_on_answers_of_one_length():
    scored = Scored(torch.randn(3, 4, 5), torch.randint(5, (3, 4)))
    assert nll(scored).item() == pytest.approx(nn.functional.cross_entropy(scored.logits.flatten(0, 1), scored.labels.flatten()).item(), rel=1e-5)


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_a_method_file_names_itself_and_a_loss_with_all_its_hyperparameters(path):
    assert OmegaConf.load(path).name == path.stem
    assert method(path).passes


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_ignored_positions_do_not_count(path):
    bound = method(path)
    passes = passes_of(bound)
    noisy = {n: Scored(torch.where((s.labels == IGNORE)[..., None], 100 * torch.randn_like(s.logits), s.logits), s.labels) for n, s in passes.items()}
    assert bound.loss(**noisy).item() == pytest.approx(bound.loss(**passes).item(), rel=1e-5)


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_the_padding_side_does_not_matter(path):
    bound = method(path)
    passes = passes_of(bound)

    def pad(scored, left):
        shape = (scored.labels.shape[0], 2)
        logits, labels = torch.randn(*shape, scored.logits.shape[-1]), torch.full(shape, IGNORE)
        parts = ((logits, scored.logits), (labels, scored.labels)) if left else ((scored.logits, logits), (scored.labels, labels))
        return Scored(*(torch.cat(part, 1) for part in parts))

    left = bound.loss(**{n: pad(s, True) for n, s in passes.items()})
    right = bound.loss(**{n: pad(s, False) for n, s in passes.items()})
    assert left.item() == pytest.approx(right.item(), rel=1e-5)


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_the_mean_over_small_batches_is_the_loss_of_the_large_one(path):
    bound = method(path)
    passes = {name: random_scored(rows=4, seed=n) for n, name in enumerate(bound.passes)}
    halves = [bound.loss(**{n: Scored(s.logits[part], s.labels[part]) for n, s in passes.items()}) for part in (slice(0, 2), slice(2, 4))]
    assert torch.stack(halves).mean().item() == pytest.approx(bound.loss(**passes).item(), rel=1e-5)


DIRECTIONS = {"retain_ft": None, "grad_ascent": "down", "grad_diff": "down", "npo": "down", "idk": "idk up"}


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_a_small_step_moves_the_memorised_answers_in_the_methods_direction(path):
    """Start from memorised forget rows at p != p0; a step lowers log p(forget), or raises log p(idk), or raises log p(retain) where that is all."""
    bound, direction = method(path), DIRECTIONS[path.stem]
    passes = passes_of(bound)
    if "forget" in passes:
        passes["forget"].logits.scatter_add_(2, passes["forget"].labels.clamp(min=0)[..., None], torch.full((3, 4, 1), 3.0))
    watched = {"down": "forget", "idk up": "idk", None: "retain"}[direction]
    logits = passes[watched].logits.requires_grad_()
    before = sequence_logprob(passes[watched])
    bound.loss(**passes).backward()
    after = sequence_logprob(Scored(logits.detach() - 1e-2 * logits.grad, passes[watched].labels))
    moved = (after - before.detach())[unlearn_losses.answer_lengths(passes[watched]) > 0]
    assert (moved < 0).all() if direction == "down" else (moved > 0).all()


def test_passes_and_reference_follow_from_the_parameters():
    bound = bind(Method(name="npo", loss="npo", args={"beta": 0.1, "retain_weight": 1.0}))
    assert bound.passes == ["forget", "ref_forget", "retain"] and bound.batches == ["forget", "retain"] and bound.needs_reference
    assert not bind(Method(name="grad_ascent", loss="grad_ascent")).needs_reference


def test_every_loss_has_a_method_file():
    assert {OmegaConf.load(path).loss for path in METHODS} == set(known_losses())


def test_one_loss_serves_a_language_model_and_a_classifier():
    classifier = Scored(torch.randn(3, 1, 7), torch.randint(7, (3, 1)))
    assert npo(classifier, classifier, classifier, beta=0.1, retain_weight=1.0).shape == ()


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
