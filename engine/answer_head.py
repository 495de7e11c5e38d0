"""Losses of answers from the states that go into the output head, where logits of all positions would be large.

The losses that look at the probability of the right tokens alone need no logits of all positions at once, nor a softmax
of them. Parts of the vocabulary follow each other, and the backward pass makes each part again. Losses that compare
distributions get the logits, which are then made whole.
"""

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.module import _global_forward_hooks
from transformers import PreTrainedModel

from engine.layer_output import PROBE
from engine.record import say_line
from engine.start_checks import in_eval_mode
from unlearn_losses import IGNORE

MOST_BYTES = 64 * 2**20  # of a forward's logits in fp32, up to which they are held whole
AT_ONCE, AT_ONCE_ON_GPU = 2**20, 2**26  # logits of a part
POWERS = range(-12, 21)  # of 2, with both signs: the logits at which a family is asked what it makes of them
SAME = 1e-5  # relative; what a family makes of them in fp32 in another order of operations


@dataclass(frozen=True)
class After:
    """What a family does with what its head gives: cap * tanh(scale * z / cap), or scale * z without a cap."""

    scale: float = 1.0
    cap: float = 0.0  # 0: none

    def __call__(self, made: Tensor) -> Tensor:
        """The logits of what the head made."""
        if self.cap:
            return self.cap * torch.tanh(made * (self.scale / self.cap))
        return made if self.scale == 1 else made * self.scale

    def slope_(self, gradient: Tensor, logits: Tensor) -> None:
        """Make the gradient of what the head made from that of the logits, in place."""
        if self.cap:
            gradient.mul_(1 - (logits / self.cap).square())
        if self.scale != 1:
            gradient.mul_(self.scale)


class OnDemand:
    """Logits (B, T, V) that are made where a loss asks for them whole."""

    def __init__(self, states: Tensor, head: "Head", entrance: Tensor | None = None, first: Tensor | None = None):
        """`states`: (B, T, H), what goes into the head. `entrance`, (B, T), and `first`, (B, T), are what the parts of
        one forward share: where their gradients meet, and the place of each position in it.
        """
        self.states, self.head = states, head
        self.entrance = head.enter(states.flatten(0, 1)).view(states.shape[:2]) if entrance is None else entrance
        count = self.entrance.numel()
        self.places = torch.arange(count, device=states.device).view_as(self.entrance) if first is None else first
        self.made: Tensor | None = None
        self.losses: tuple[Tensor, Tensor] | None = None  # labels and what `token_nll` gave for them

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.states.shape[:-1], len(self.head.weight)))

    def split(self, sizes: Sequence[int]) -> list["OnDemand"]:
        """Those of so many rows each."""
        parts = (each.split(list(sizes)) for each in (self.states, self.entrance, self.places))
        return [OnDemand(states, self.head, *shared) for states, *shared in zip(*parts, strict=True)]

    def __getitem__(self, place: Any) -> "OnDemand":
        return OnDemand(self.states[place], self.head, self.entrance[place], self.places[place])

    def whole(self) -> Tensor:
        """The logits, made once."""
        if self.made is None:
            with torch.set_grad_enabled(self.head.has_graph):
                self.made = self.head(self.states)
        return self.made

    def token_nll(self, labels: Tensor) -> Tensor:
        """Negative log-likelihood (B, T) of each answer token in float32, 0 where the label (B, T) is IGNORE."""
        if self.losses is None or self.losses[0] is not labels:
            with torch.set_grad_enabled(self.head.has_graph):
                about = (self.states.detach().flatten(0, 1), self.places.flatten(), labels.flatten())
                losses = TokenNLL.apply(self.entrance.flatten(), self.head, about)
                self.losses = labels, losses.view(labels.shape)
        return self.losses[1]


@dataclass
class Asked:
    """What a forward keeps of N tokens whose losses were asked for."""

    places: Tensor  # (N,), of all positions of the forward
    labels: Tensor  # (N,)
    best: Tensor  # (N,), the largest logit
    total: Tensor  # (N,), the sum of exp(logit - best)
    gradient: Tensor | None = None  # (N,), of the losses, while a backward pass goes from them to the entrance


class Head:
    """An output head in one forward: its weights, how it computes, and what of it was asked for."""

    def __init__(self, module: nn.Linear, after: After, dtype: torch.dtype):
        """`dtype`: in which the head computes; that of its weights, or autocast's."""
        self.after, self.dtype = after, dtype
        self.weight, self.bias = module.weight, module.bias
        self.asked: list[Asked] = []
        # what is made later is kept: it has gradients where the forward has, wherever it is asked for first
        self.has_graph = torch.is_grad_enabled()
        self.state = self.weight._version

    def __call__(self, states: Tensor) -> Tensor:
        """The logits of states."""
        return self.made_by(self.weight, self.bias, states)

    def made_by(self, weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
        """The logits (..., V') that weights (V', H) make of states (..., H), in the head's dtype.

        States may come in another: under autocast norms give fp32, also where the weights are held in bf16.
        """
        assert self.weight._version == self.state  # else it would be another model's head
        own = None if bias is None else bias.to(self.dtype)
        with torch.autocast(states.device.type, enabled=False):
            return self.after(F.linear(states.to(self.dtype), weight.to(self.dtype), own))

    def enter(self, states: Tensor) -> Tensor:
        """Zeros (N,) of states (N, H), whose gradient is that of the losses made of them, one for each."""
        entrance: Tensor = Entrance.apply(states, self.weight, self.bias, self)
        return entrance

    def part(self, states: Tensor, first: int, last: int) -> Tensor:
        """The logits (N, V') of states (N, H) for the tokens from `first` to `last`, in float32."""
        bias = None if self.bias is None else self.bias[first:last]
        return self.made_by(self.weight[first:last], bias, states).float()


class TokenNLL(torch.autograd.Function):
    """Losses (N,) of labels (N,) from states (N, H), part by part of the vocabulary.

    What the gradient of a loss means for states and weights is for `Entrance` to say, which is reached when all losses
    of the forward have theirs: the gradient of the weights, as large as these, is then made once.
    """

    @staticmethod
    @torch.no_grad()
    def forward(ctx: Any, entrance: Tensor, head: Head, about: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        states, places, labels = about
        own = states.to(head.dtype)
        best = torch.full((len(labels),), -torch.inf, device=states.device)
        total, right = torch.zeros_like(best), torch.zeros_like(best)
        for first, last in parts_of(len(labels), head.weight):
            logits = head.part(own, first, last)
            before, best = best, torch.maximum(best, logits.amax(-1))
            inside, place = where(labels, first, last)
            right = torch.where(inside, logits.gather(-1, place[:, None])[:, 0], right)
            total = total * (before - best).exp() + logits.sub_(best[:, None]).exp_().sum(-1)
        if ctx.needs_input_grad[0]:
            ctx.asked = Asked(places, labels, best, total)
            head.asked.append(ctx.asked)
        return torch.where(labels != IGNORE, total.log() - (right - best), 0.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.asked.gradient = torch.where(ctx.asked.labels != IGNORE, gradients[0], 0.0)
        return torch.zeros_like(gradients[0]), None, None


class Entrance(torch.autograd.Function):
    """Where the losses of a forward's positions come from states (N, H), weights (V, H) and bias (V,) of a head."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, head: Head) -> Tensor:
        ctx.save_for_backward(states, weight, bias)
        ctx.head = head
        return states.new_zeros(len(states), dtype=torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        states, weight, bias = ctx.saved_tensors
        of_states, of_weight, of_bias = ctx.needs_input_grad[:3]
        head, after = ctx.head, ctx.head.after
        places, labels, best, total, counted = taken(head.asked)
        own = states[places].to(head.dtype)
        share = (counted / total)[:, None]
        to_states = torch.zeros_like(own, dtype=torch.float32) if of_states else None
        to_weight = torch.empty_like(weight) if of_weight else None
        to_bias = torch.empty_like(bias) if of_bias else None
        for first, last in parts_of(len(labels), weight):
            logits = head.part(own, first, last)
            slope = logits.clone() if after.cap else logits
            slope.sub_(best[:, None]).exp_().mul_(share)
            inside, place = where(labels, first, last)
            slope.scatter_add_(-1, place[:, None], torch.where(inside, -counted, 0.0)[:, None])
            after.slope_(slope, logits)
            slope = slope.to(head.dtype)
            if to_weight is not None:
                to_weight[first:last] = slope.T @ own
            if to_bias is not None:
                to_bias[first:last] = slope.sum(0)
            if to_states is not None:
                to_states += slope @ weight[first:last].to(head.dtype)
        if to_states is not None:
            to_states = torch.zeros_like(states).index_add_(0, places, to_states.to(states.dtype))
        return to_states, to_weight, to_bias, None


def taken(asked: list[Asked]) -> tuple[Tensor, ...]:
    """The fields of all tokens that a backward pass came from, one field after the other. The next pass begins anew."""
    own = [each for each in asked if each.gradient is not None]
    fields = [(each.places, each.labels, each.best, each.total, each.gradient) for each in own]
    for each in own:
        each.gradient = None
    return tuple(map(torch.cat, zip(*fields, strict=True)))


def parts_of(count: int, weight: Tensor) -> Iterator[tuple[int, int]]:
    """First and last token of each part of the vocabulary, for `count` positions."""
    at_once = AT_ONCE_ON_GPU if weight.is_cuda else AT_ONCE
    size = max(256, at_once // max(1, count))
    for first in range(0, len(weight), size):
        yield first, min(first + size, len(weight))


def where(labels: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Whether labels are tokens from `first` to `last`, and their places among these, 0 where they are not."""
    inside = (labels >= first) & (labels < last)
    return inside, torch.where(inside, labels - first, 0)


# ---- which models can be asked so


class Listener:
    """Stands for the head while a model runs, keeps what goes into it, and computes nothing."""

    def __init__(self, head: nn.Linear, given: Tensor | None = None):
        """`given`: what it returns in the place of the head's output; None: something small."""
        self.head, self.given = head, given
        self.states: list[Tensor] = []
        self.dtype = head.weight.dtype

    def __call__(self, states: Tensor) -> Tensor:
        kind = states.device.type
        if torch.is_autocast_enabled(kind):
            self.dtype = torch.get_autocast_dtype(kind)
        self.states.append(states)
        return states[..., :1].detach() if self.given is None else self.given


@contextlib.contextmanager
def listening(head: nn.Linear, given: Tensor | None = None) -> Iterator[Listener]:
    """A listener in the head's place."""
    listener = Listener(head, given)
    head.__dict__["forward"] = listener
    try:
        yield listener
    finally:
        del head.__dict__["forward"]


KNOWN: weakref.WeakKeyDictionary[nn.Module, After | None] = weakref.WeakKeyDictionary()  # by head


def head_apart(model: nn.Module, count: int) -> tuple[nn.Linear, After] | None:
    """The head of a model whose losses can be made from what goes into it, and what the family does behind it.

    Args:
        model: as it is called. One that is wrapped, and any where several processes train, is asked for its logits:
            they would wait for one that takes another number of forwards.
        count: positions of the forward, which decide whether the logits would be large.

    Returns:
        None where the logits are small, or where a model of this kind cannot be asked so.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several or isinstance(model, FSDPModule):
        return None
    head: Any = model.get_output_embeddings() if isinstance(model, PreTrainedModel | PeftModel) else None
    if head is None or count * getattr(head, "out_features", 0) * 4 <= MOST_BYTES:
        return None
    if isinstance(head.weight, FakeTensor):  # a plan counts logits, which any model and several processes can need
        return None
    if head not in KNOWN:
        KNOWN[head] = found_after(model, head) if is_plain(head) else None
        if KNOWN[head] is None:
            name = type(model).__name__
            say_line(f"{name}: a step holds all its logits, as its output head is not one that is asked part by part")
    after = KNOWN[head]
    return (head, after) if after and is_plain(head) else None


def is_plain(head: nn.Module) -> bool:
    """Whether a head is nothing but a linear layer, whole on this process."""
    if type(head) is not nn.Linear or hasattr(head.weight, "ds_id"):  # the latter under ZeRO-3
        return False
    touched = head._forward_hooks or head._forward_pre_hooks or _global_forward_hooks or "forward" in vars(head)
    return not touched and head.weight.shape == (head.out_features, head.in_features)


@torch.no_grad()
def found_after(model: nn.Module, head: nn.Linear) -> After | None:
    """What a family does with what its head gives, or None where it is something else, or cannot be found.

    The head is made to give known numbers, small and large ones, for every token of the vocabulary.
    """
    device = head.weight.device
    places = torch.arange(head.out_features, device=device)
    powers = 2.0 ** torch.tensor(POWERS, device=device)
    given = powers[places // 2 % len(powers)] * (1 - 2 * (places % 2))
    try:
        with in_eval_mode(model):
            with listening(head, given[None, None]) as listener:
                made = model(input_ids=PROBE.to(device), use_cache=False, logits_to_keep=1).logits
            with listening(head):  # what has another width must not be in its way
                model(input_ids=PROBE.to(device), use_cache=False, logits_to_keep=1)
    except Exception:  # what a family's forward raises depends on the family
        return None
    if len(listener.states) != 1 or made.shape != (1, 1, head.out_features):
        return None
    if listener.states[0].shape[:-1].numel() != 1:  # positions are chosen behind the head
        return None
    made = made[0, 0].float()
    scale = (made[0] / given[0]).item()
    most = made[2 * len(powers) - 2].item()  # where the largest of `given` stands
    after = After(scale, 0.0 if abs(most - scale * powers[-1].item()) <= SAME * abs(most) else most)
    return after if torch.allclose(after(given), made, rtol=SAME, atol=0.0) else None
