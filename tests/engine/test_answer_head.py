"""Losses that are made from what goes into the output head are those of its logits."""

import copy

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)
from transformers.modeling_utils import slice_logits_to_keep

from engine import answer_head
from engine.adapters import add_lora
from engine.answer_head import After, OnDemand
from engine.encode import Encoded, collate
from engine.frozen_start import FrozenStart, forward_passes
from engine.language_model import forward
from engine.pairs import Batch
from settings.training import Lora
from unlearn_losses import Scored, kl, nll, npo, sequence_logprob, token_nll

WORDS = 701  # more than two parts of the vocabulary
SMALL = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
FAMILIES = {
    "tied": (LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True), After()),
    "bias": (PhiForCausalLM, PhiConfig(**SMALL), After()),
    "scaled": (CohereForCausalLM, CohereConfig(**SMALL, logit_scale=0.25), After(0.25)),
    "divided": (GraniteForCausalLM, GraniteConfig(**SMALL, logits_scaling=8.0), After(0.125)),
    "bounded": (Gemma2ForCausalLM, Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0), After(1.0, 2.0)),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Every forward's logits count as large, and a part has 256 tokens."""
    monkeypatch.setattr(answer_head, "MOST_BYTES", 0)
    monkeypatch.setattr(answer_head, "AT_ONCE", 1)


def made(family):
    """A model with logits of some size, in eval mode."""
    torch.manual_seed(0)
    kind, config, _ = FAMILIES[family]
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def batch():
    """Two rows of the pass forget and one of retain, of answers of 3, 1 and 2 tokens."""
    rows = [([5, 6, 7], [8, 700, 9]), ([5, 9], [300]), ([11, 12, 13, 14], [699, 2])]
    encoded = [Encoded({"input_ids": torch.tensor([question])}, answer) for question, answer in rows]
    own = collate(encoded, 0)
    return Batch(own.inputs, own.labels, own.positions, ("forget", "retain"), (2, 1), (3, 2))


def passes(model, monkeypatch, *, whole, asked=None):
    """Both passes, from logits or from what makes them."""
    monkeypatch.setattr(answer_head, "MOST_BYTES", 10**9 if whole else 0)
    scored = forward_passes(model, [asked or batch()], forward)
    assert isinstance(scored["forget"].given, OnDemand) is not whole
    return scored


def gradients(model, loss):
    """Of all weights that train."""
    return dict(zip(names(model), torch.autograd.grad(loss, own(model), retain_graph=True), strict=True))


def own(model):
    return [weight for weight in model.parameters() if weight.requires_grad]


def names(model):
    return [name for name, weight in model.named_parameters() if weight.requires_grad]


def npo_loss(scored):
    return npo(scored["forget"], torch.tensor([-20.0, -6.0]), scored["retain"], beta=0.1, retain_weight=1.0)


def apart(one, two):
    """The largest difference of two sets of gradients, as a share of the largest of each weight's."""
    return max(float((one[name] - two[name]).abs().max() / one[name].abs().max().clamp(min=1e-9)) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_and_its_gradients_are_those_of_the_logits(family, monkeypatch):
    model = made(family)
    plain, ours = (npo_loss(passes(model, monkeypatch, whole=whole)).total for whole in (True, False))
    assert torch.allclose(plain, ours, rtol=1e-6, atol=0)
    assert apart(gradients(model, plain), gradients(model, ours)) < 5e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_does_behind_its_head_is_found(family):
    model = made(family)
    found = answer_head.found_after(model, model.get_output_embeddings())
    assert found.scale == pytest.approx(FAMILIES[family][2].scale)
    assert found.cap == pytest.approx(FAMILIES[family][2].cap)


@pytest.mark.parametrize(
    "change", ["adds a number", "hides a token", "cuts a token", "asks its head twice", "chooses positions"]
)
def test_a_model_that_does_something_else_behind_its_head_gives_its_logits(change, monkeypatch, capsys):
    model = made("tied")
    inner = model.forward

    def changed(*arguments, **options):
        output = inner(*arguments, **options)
        if change == "adds a number":
            output.logits = output.logits + 0.1
        if change == "hides a token":
            output.logits[..., 400] = -100
        if change == "cuts a token":
            output.logits = output.logits[..., :-1]
        if change == "asks its head twice":
            model.lm_head(torch.zeros(1, 1, 16))
        return output

    def chooses(*arguments, logits_to_keep, **options):
        output = inner(*arguments, **options)
        output.logits = slice_logits_to_keep(output.logits, logits_to_keep)
        return output

    model.forward = chooses if change == "chooses positions" else changed
    scored = forward(model, batch())
    assert isinstance(scored.given, torch.Tensor)
    assert "a step holds all its logits" in capsys.readouterr().out


def test_an_adapter_on_the_head_gives_logits():
    model = add_lora(made("bias"), Lora(r=2, alpha=4, dropout=0.0), "lm_head", 0)
    assert isinstance(forward(model, batch()).given, torch.Tensor)


def test_a_wrapped_model_gives_logits():
    class Wrapped(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **inputs):
            return self.module(**inputs)

    assert isinstance(forward(Wrapped(made("tied")), batch()).given, torch.Tensor)


def test_small_logits_are_whole(monkeypatch):
    monkeypatch.setattr(answer_head, "MOST_BYTES", 3 * 3 * WORDS * 4)  # of three answers as wide as the longest
    assert isinstance(forward(made("tied"), batch()).given, torch.Tensor)


def test_a_frozen_head_gets_no_gradient_and_hands_on_that_of_the_states(monkeypatch):
    model = made("bias")
    model.lm_head.requires_grad_(False)
    plain, ours = (npo_loss(passes(model, monkeypatch, whole=whole)).total for whole in (True, False))
    assert apart(gradients(model, plain), gradients(model, ours)) < 5e-6


def test_both_parts_of_a_loss_have_gradients_of_their_own(monkeypatch):
    model = made("tied")
    plain, ours = (npo_loss(passes(model, monkeypatch, whole=whole)) for whole in (True, False))
    for one, two in zip(plain, ours, strict=True):
        assert apart(gradients(model, one), gradients(model, two)) < 5e-6
    # and again, now of the sum
    assert apart(gradients(model, plain.total), gradients(model, ours.total)) < 5e-6


def test_a_loss_of_distributions_gets_logits_beside_one_of_tokens(monkeypatch):
    model = made("bounded")
    with torch.no_grad():
        start = forward_passes(copy.deepcopy(made("bounded")), [batch()], forward)["retain"]
        start = start._replace(given=start.logits + torch.randn(start.logits.shape))
    losses = []
    for whole in (True, False):
        scored = passes(model, monkeypatch, whole=whole)
        losses.append(kl(scored["forget"], scored["retain"], start).total + nll(scored["retain"]))
    assert torch.allclose(*losses, rtol=0, atol=1e-5)  # of terms of some nats
    assert apart(gradients(model, losses[0]), gradients(model, losses[1])) < 5e-6


def test_the_same_positions_can_be_asked_for_other_answers(monkeypatch):
    model = made("tied")
    losses = []
    for whole in (True, False):
        forget = passes(model, monkeypatch, whole=whole)["forget"]
        others = torch.tensor([[1, 2, 3], [4, -100, -100]])
        losses.append(nll(forget) - 2 * nll(forget._replace(labels=others)) + sequence_logprob(forget).sum())
    assert torch.allclose(*losses, rtol=0, atol=1e-5)  # of terms of some nats
    assert apart(gradients(model, losses[0]), gradients(model, losses[1])) < 5e-6


def test_losses_under_autocast_are_those_of_its_logits(monkeypatch):
    model = made("tied")
    with torch.autocast("cpu", torch.bfloat16):
        plain, ours = (passes(model, monkeypatch, whole=whole)["forget"] for whole in (True, False))
    assert torch.allclose(token_nll(plain), token_nll(ours), rtol=1e-6, atol=1e-6)
    assert torch.equal(plain.logits, ours.logits)


@pytest.mark.parametrize("family", ["bounded", "bias"])  # the second has a norm that gives fp32 under autocast
def test_a_start_in_bf16_has_the_logits_of_its_own_forward(family, monkeypatch):
    start = FrozenStart(made(family), "bf16")
    assert start.copy.lm_head.weight.dtype == (torch.float32 if family == "bounded" else torch.bfloat16)
    with start.model(start.copy) as frozen, torch.autocast("cpu", torch.bfloat16):
        plain, ours = (passes(frozen, monkeypatch, whole=whole)["retain"] for whole in (True, False))
    assert torch.equal(plain.logits, ours.logits)
    assert torch.allclose(token_nll(plain), token_nll(ours), rtol=1e-6, atol=1e-6)


def test_what_is_first_asked_for_without_gradients_has_them_later(monkeypatch):
    model = made("tied")
    scored = passes(model, monkeypatch, whole=False)
    with torch.no_grad():
        values = npo_loss(scored).total, scored["forget"].logits
    plain = npo_loss(passes(model, monkeypatch, whole=True)).total
    assert torch.allclose(values[0], plain, rtol=1e-6, atol=0)
    assert apart(gradients(model, plain), gradients(model, npo_loss(scored).total)) < 5e-6
    assert scored["forget"].logits.requires_grad


@pytest.mark.parametrize("asked", [lambda scored: scored.logits, token_nll], ids=["logits", "losses"])
def test_nothing_is_made_by_a_head_that_has_changed_since_the_forward(asked):
    model = made("tied")
    scored = forward(model, batch())
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    with pytest.raises(AssertionError):
        asked(scored)


def test_gradients_under_autocast_are_at_least_as_exact_as_its_own(monkeypatch):
    model = made("tied")
    exact = gradients(model, npo_loss(passes(model, monkeypatch, whole=True)).total)
    found = []
    for whole in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            scored = passes(model, monkeypatch, whole=whole)
        found.append(apart(exact, gradients(model, npo_loss(scored).total)))
    assert found[1] < 1.5 * found[0]


def test_large_logits_and_unlikely_tokens_keep_their_losses(monkeypatch):
    model = made("tied")
    with torch.no_grad():
        model.lm_head.weight.mul_(300)
    plain, ours = (passes(model, monkeypatch, whole=whole)["forget"] for whole in (True, False))
    assert token_nll(plain).max().item() > 1000
    assert torch.allclose(token_nll(plain), token_nll(ours), rtol=1e-6, atol=1e-4)


def test_labels_that_do_not_fit_are_refused():
    scored = forward(made("tied"), batch())
    with pytest.raises(ValueError, match="do not fit"):
        token_nll(Scored(scored.given, scored.labels[:, :1]))


def test_the_head_is_as_before_after_a_forward_that_fails():
    model = made("tied")
    forward(model, batch())
    inner, model.model.forward = model.model.forward, None
    with pytest.raises(TypeError):
        forward(model, batch())
    model.model.forward = inner
    assert "forward" not in vars(model.lm_head)
