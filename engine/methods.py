"""A method's file -> its loss bound to the passes that it needs."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

import unlearn_losses
from settings.script import SettingsError, nearest, one_of
from settings.training import Method
from unlearn_losses import Anchored, Hidden, multiplier_step

PASSES = ("forget", "retain", "idk", "unrelated", "shuffled", "augmented")
STATE = ("epoch", "step", "multiplier", "target")  # keyword-only parameters that the engine fills in


@dataclass(frozen=True)
class BoundLoss:
    """A method's loss with its hyperparameters, and what it needs by the names of its parameters.

    `ref_` passes are scored by the frozen starting model; those that also end in `_logprob` are log-probabilities, computed once for the run.
    """

    method: Method
    loss: Callable[..., Tensor]
    passes: list[str]

    @property
    def trained(self) -> list[str]:
        return [name for name in self.passes if not name.startswith("ref_")]

    @property
    def cached(self) -> list[str]:
        return [base_pass(name) for name in self.passes if name.endswith("_logprob")]

    @property
    def frozen(self) -> list[str]:
        return [base_pass(name) for name in self.passes if name.startswith("ref_") and not name.endswith("_logprob")]

    @property
    def batches(self) -> list[str]:
        """The batches to draw: the passes without `ref_` and `_logprob`, each once."""
        return list(dict.fromkeys(map(base_pass, self.passes)))

    def __call__(self, passes: dict[str, Any], **state: float) -> Tensor:
        """The loss of scored passes by name; `state`: what STATE names."""
        passes = dict.fromkeys(positional(self.loss.func)) | passes
        if "ref_retain" in self.passes and "ref_retain" not in positional(self.loss.func):
            passes["retain"] = Anchored(passes["retain"], passes.pop("ref_retain"))
        wanted = inspect.signature(self.loss.func).parameters
        if any(wanted[name].annotation is Hidden for name in passes):
            passes = {name: Hidden(*scored) for name, scored in passes.items()}
        return self.loss(**passes, **{name: value for name, value in state.items() if name in wanted})


def base_pass(name: str) -> str:
    return name.removeprefix("ref_").removesuffix("_logprob")


def known_losses() -> dict[str, Callable[..., Tensor]]:
    """The functions of unlearn_losses whose positional parameters are all passes."""
    functions = {
        n: f for n, f in vars(unlearn_losses).items() if inspect.isfunction(f) and f.__module__ == "unlearn_losses"
    }
    return {
        n: f for n, f in functions.items() if (passes := positional(f)) and set(map(base_pass, passes)) <= set(PASSES)
    }


def positional(loss: Callable) -> list[str]:
    return [p.name for p in inspect.signature(loss).parameters.values() if p.kind is not p.KEYWORD_ONLY]


def source_with_helpers(loss: Callable) -> str:
    """The code that a loss runs: its own, and that of every function of unlearn_losses it calls, and they call."""
    own = {n: f for n, f in vars(unlearn_losses).items() if inspect.isfunction(f) and f.__module__ == "unlearn_losses"}
    found, waiting = {}, [loss]
    while waiting:
        function = waiting.pop()
        if function.__name__ not in found:
            found[function.__name__] = inspect.getsource(function)
            waiting += [own[name] for name in function.__code__.co_names if name in own]
    return "\n".join(found[name] for name in sorted(found))


# taken at the start: read later, it would be the text of a file that was edited while the old code ran
LOSS_SOURCES = {
    function.__name__: source_with_helpers(function) for function in (*known_losses().values(), multiplier_step)
}


def method_source(method: Method) -> list[str]:
    """The code that is this method's own: of its loss, its mask's loss and its multiplier."""
    names = [
        method.loss,
        *([method.mask.loss] if method.mask else []),
        *(["multiplier_step"] if method.multiplier else []),
    ]
    return [LOSS_SOURCES[name] for name in names if name in LOSS_SOURCES]


def bind(method: Method) -> BoundLoss:
    """Look up a method's loss and give it its hyperparameters.

    Raises SettingsError for an unknown loss, for hyperparameters that are not exactly the loss's own, and for steps that do not fit it.
    """
    losses = known_losses()
    if method.loss not in losses:
        raise SettingsError(
            f"method.loss={method.loss!r} is not in unlearn_losses.py{nearest(method.loss, losses)}; choose from {', '.join(losses)}"
        )
    loss = losses[method.loss]
    parameters = inspect.signature(loss).parameters
    wanted = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in STATE]
    if unknown := sorted(set(method.args) - set(wanted)):
        raise SettingsError(
            f"method.args.{unknown[0]} is not a hyperparameter of {method.loss}{nearest(unknown[0], wanted)}; it has {wanted}"
        )
    if missing := [name for name in wanted if name not in method.args]:
        raise SettingsError(f"method.args.{missing[0]} is required by {method.loss}; it has {wanted}")
    for name, value in method.args.items():
        if parameters[name].annotation in (float, int) and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise SettingsError(f"method.args.{name}={value!r} must be a number")
    passes = positional(loss)
    for step, given, asked in (
        ("activations", method.activations, parameters[passes[0]].annotation is Hidden),
        ("multiplier", method.multiplier, "multiplier" in parameters),
    ):
        if asked != (given is not None):
            raise SettingsError(f"method.{step}: {method.loss} {'needs it' if asked else 'has no use for it'}")
    if method.mask:
        one_of(
            "method.mask.loss",
            method.mask.loss,
            [n for n, f in losses.items() if list(inspect.signature(f).parameters) == ["forget"]],
        )
    if method.retain == "kl" and "retain_weight" not in wanted:
        raise SettingsError(f"method.retain=kl: {method.loss} has no retain term to change")
    if method.args.get("retain_weight") == 0:  # a pass that counts for nothing is not run
        passes.remove("retain")
    elif method.retain == "kl":
        passes.append("ref_retain")
    return BoundLoss(method, partial(loss, **method.args), passes)
