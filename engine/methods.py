"""A method's file -> its loss bound to the passes that it needs."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

import unlearn_losses
from engine import combine_sculpt, gradient_mask, gradient_project, gradient_sam, hook_eraser, init_fila
from engine.edits import EDITS
from settings.script import SettingsError, nearest, one_of
from settings.training import Edit, Hook, Method
from unlearn_losses import Anchored, Hidden, Parts, Scored

PASSES = ("forget", "retain", "idk", "unrelated", "shuffled", "alternate", "noised", "visual")
OF_FACES = ("augmented", "sibling", "nearest", "nobody")  # passes of face recognition alone
SEVERAL = ("unrelated", "shuffled", "alternate")  # passes of which a row has `other_answers`
STATE = ("epoch", "multiplier", "target", "never_met")  # keyword-only parameters that the engine fills in
UNTAUGHT = "untaught_"  # before a pass: that of a network that never learned anything


# hyperparameters that divide, or without which a loss says nothing; an edit's rule names its own
ABOVE_ZERO = ("beta", "temperature", "c", "smoothing", "scale")
AT_LEAST_ZERO = {"alpha", "rho", "retain_share", "damping", "strength", "threshold", "first_layer", "spared_layers"}
AT_LEAST_ZERO |= {"rest", "layer", "spared", "k"}
AT_MOST_ONE = ("smoothing", "share", "damping", "rest", "spared")
# what weighs the retain part of a loss that has no retain_weight
RETAIN_WEIGHTS = {
    "rmu": ["alpha"],
    "rmu_adaptive": ["alpha"],
    "scrub": ["alpha", "gamma"],
    "llmu": ["kl_weight"],
    "sku": ["kl_weight"],
    "jensun": ["jsd_weight"],
    "pava": ["visual_weight"],
}


@dataclass(frozen=True)
class Rule:
    """How an optimizer step's gradient is made of those of the loss's two parts."""

    combine: Callable[..., Any]  # (g_forget, g_retain, state) -> (gradient, state)
    perturb: Callable[..., Any] | None = None  # g_forget -> what is added to the weights where g_forget is taken anew
    needs_retain: bool = False  # without a retain term it has no effect

    @property
    def hyperparameters(self) -> list[str]:
        """What the method's file gives."""
        return [name for function in (self.combine, self.perturb) if function for name in keyword_only(function)]


MASKED = Rule(gradient_mask.mask)  # of a mask that applies to the forget part
RULES = {
    "sam": Rule(gradient_sam.add, perturb=gradient_sam.perturbation),
    "project": Rule(gradient_project.project, needs_retain=True),
}
HOOKS = {"eraser": hook_eraser.gate_of}
COMBINATIONS = {"sculpt": combine_sculpt.sculpt}  # its positional parameters name the updates of the parts
INITS = {"fila": init_fila.begin}


@dataclass(frozen=True)
class BoundLoss:
    """A method's loss with its hyperparameters, and what it needs by the names of its parameters.

    `ref_` passes are scored by the frozen starting model. Those that also end in `_logprob` are log-probabilities,
    computed once for the run.
    """

    method: Method
    loss: partial[Tensor | Parts] | None  # None: nothing trains
    passes: list[str]
    trainings: dict[str, "BoundLoss"] = field(default_factory=dict)  # the parts whose updates are combined
    is_part: bool = False  # of a method that combines

    @property
    def rule(self) -> Rule | None:
        """What makes one gradient of those of the two parts; None: the loss is their sum."""
        if self.method.gradient:
            return RULES[self.method.gradient.rule]
        return MASKED if self.method.mask and self.method.mask.applies_to == "forget" else None

    @property
    def trained(self) -> list[str]:
        """The passes that the model in training scores."""
        return [name for name in self.passes if base_pass(name) == name]

    @property
    def told(self) -> list[str]:
        """The passes whose answers alone the loss gets: nobody scores them."""
        return [base_pass(name) for name in self.passes if name.endswith("_labels")]

    @property
    def cached(self) -> list[str]:
        """The passes whose answers the start scores once for the run."""
        return [base_pass(name) for name in self.passes if name.endswith("_logprob")]

    @property
    def frozen(self) -> list[str]:
        """The passes that the start scores in every step."""
        names = [name for name in self.passes if name.startswith("ref_") and not name.endswith("_logprob")]
        return [base_pass(name) for name in names]

    @property
    def untaught(self) -> list[str]:
        """The passes that a network that never learned anything scores in every step."""
        return [base_pass(name) for name in self.passes if name.startswith(UNTAUGHT)]

    @property
    def compared(self) -> list[str]:
        """The passes that are scored in every step by a model that does not train."""
        return list(dict.fromkeys([*self.frozen, *self.untaught]))

    @property
    def batches(self) -> list[str]:
        """The batches to draw: the passes without `ref_`, `untaught_`, `_logprob` and `_labels`, each once."""
        return list(dict.fromkeys(map(base_pass, self.passes)))

    @property
    def looks_at(self) -> list[str]:
        """The kinds of rows that its edit looks at."""
        return EDITS[self.method.edit.rule].rows if self.method.edit else []

    def __call__(self, passes: Mapping[str, Scored | Tensor], **state: float) -> Tensor:
        """The loss of the scored passes, a scalar; `state`: what STATE names."""
        return self.parts(passes, **state).total

    def parts(self, passes: Mapping[str, Scored | Tensor], **state: float) -> Parts:
        """The same in its two parts. Of a loss that has one part alone it is the forget part.

        A method with `activations` gets the states of its layer: the model ends there, and they stand in the place of
        its logits.
        """
        assert self.loss is not None  # else nothing trains
        given: dict[str, Any] = {**dict.fromkeys(positional(self.loss.func)), **passes}
        if self.method.activations:
            given = {name: Hidden(scored.logits, scored.labels) for name, scored in given.items() if scored is not None}
        if "ref_retain" in self.passes and "ref_retain" not in positional(self.loss.func):
            given["retain"] = Anchored(given["retain"], given.pop("ref_retain"))
        wanted = inspect.signature(self.loss.func).parameters
        loss = self.loss(**given, **{name: value for name, value in state.items() if name in wanted})
        return loss if isinstance(loss, Parts) else Parts(loss, 0.0)


def base_pass(name: str) -> str:
    """The pass behind a parameter's name: `ref_idk_logprob` -> `idk`."""
    return name.removeprefix("ref_").removeprefix(UNTAUGHT).removesuffix("_logprob").removesuffix("_labels")


def known_losses() -> dict[str, Callable[..., Tensor | Parts]]:
    """The functions of unlearn_losses whose positional parameters are all passes."""
    found = {}
    for name, function in loss_library().items():
        passes = positional(function)
        if passes and set(map(base_pass, passes)) <= {*PASSES, *OF_FACES}:
            found[name] = function
    return found


def loss_library() -> dict[str, Callable]:
    """All functions that unlearn_losses defines, by name."""
    own = {n: f for n, f in vars(unlearn_losses).items() if inspect.isfunction(f)}
    return {name: function for name, function in own.items() if function.__module__ == "unlearn_losses"}


def positional(loss: Callable) -> list[str]:
    """The names of a loss's positional parameters: its passes."""
    return [p.name for p in inspect.signature(loss).parameters.values() if p.kind is not p.KEYWORD_ONLY]


def takes_states(loss: Callable) -> bool:
    """Whether a loss asks for hidden states; also where its annotations are text (`from __future__ import
    annotations`).
    """
    return get_type_hints(loss).get(positional(loss)[0]) is Hidden


def bind(method: Method, *, faces: bool = False) -> BoundLoss:
    """Look up a method's loss and give it its hyperparameters.

    Args:
        method: of its file.
        faces: whether it is for face recognition, which alone has networks that never learned anything.

    Raises:
        SettingsError: the loss is not known, the hyperparameters are not exactly its own, or a step does not fit it.
    """
    if method.edit:
        check_edit(method.edit)
        check_scope(method)
    if method.hook:
        check_hook(method.hook)
    if method.combine:
        return bind_parts(method, faces=faces)
    if method.loss is None:
        return BoundLoss(method, None, ["forget", "noised"] if method.hook else ["forget"])
    losses = known_losses()
    if method.loss not in losses:
        known = f"{nearest(method.loss, losses)}; choose from {', '.join(losses)}"
        raise SettingsError(f"method.loss={method.loss!r} is not in unlearn_losses.py{known}")
    loss = losses[method.loss]
    check_hyperparameters(method, loss)
    check_steps(method, loss)
    passes = positional(loss)
    if method.args.get("retain_weight") == 0:  # a pass that counts for nothing is not run
        passes.remove("retain")
    elif method.retain == "kl":
        passes.append("ref_retain")
    bound = BoundLoss(method, partial(loss, **method.args), passes)
    if method.init:
        check_init(bound)
    if bound.untaught and not faces:
        raise SettingsError(
            f"method={method.name} compares with a network that never learned anything, which there is in face "
            "recognition only"
        )
    return bound


def bind_parts(method: Method, *, faces: bool) -> BoundLoss:
    """Bind the losses of a method that combines updates.

    Raises:
        SettingsError: the rule is not known or lacks a value, its parts are not those of the rule, or one has no such
            loss.
    """
    combine = method.combine
    assert combine is not None  # else it has no parts
    one_of("method.combine.rule", combine.rule, list(COMBINATIONS))
    rule = COMBINATIONS[combine.rule]
    check_names("method.combine.args", combine.args, keyword_only(rule), f"rule {combine.rule}")
    check_values("method.combine.args", combine.args, get_type_hints(rule))
    check_names("method.combine.parts", combine.parts, positional(rule), f"rule {combine.rule}")
    if faces:
        raise SettingsError(
            f"method={method.name} combines the updates of several trainings, and the statistics of a face network's "
            "normalisation are no updates; it is for language models"
        )
    parts = {}
    for name in positional(rule):
        part = combine.parts[name]
        try:
            own = bind(replace(method, combine=None, loss=part.loss, args=part.args))
        except SettingsError as error:
            raise SettingsError(f"method.combine.parts.{name}, a loss with its args: {error}") from None
        parts[name] = replace(own, is_part=True)
    passes = dict.fromkeys(name for part in parts.values() for name in part.passes)
    return BoundLoss(method, None, list(passes), parts)


def keyword_only(function: Callable) -> list[str]:
    """The names of a function's keyword-only parameters."""
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]


def hyperparameters(loss: Callable) -> list[str]:
    """The keyword-only parameters that the method's file gives."""
    return [name for name in keyword_only(loss) if name not in STATE]


def check_hyperparameters(method: Method, loss: Callable) -> None:
    """Raise SettingsError unless `method.args` are exactly the loss's hyperparameters, and of their types."""
    check_names("method.args", method.args, hyperparameters(loss), str(method.loss))
    check_values("method.args", method.args, get_type_hints(loss))


def check_names(field: str, args: Mapping[str, Any], wanted: list[str], whose: str) -> None:
    """Raise SettingsError unless `args` gives exactly the values that are `wanted`."""
    if unknown := sorted(set(args) - set(wanted)):
        near = f"{nearest(unknown[0], wanted)}; it has {wanted}"
        raise SettingsError(f"{field}.{unknown[0]} is not a hyperparameter of {whose}{near}")
    if missing := [name for name in wanted if name not in args]:
        raise SettingsError(f"{field}.{missing[0]} is required by {whose}; it has {wanted}")


def check_values(
    field: str, args: Mapping[str, Any], kinds: Mapping[str, Any], above_zero: Sequence[str] = ABOVE_ZERO
) -> None:
    """Raise SettingsError for a value of the wrong type or out of its range."""
    for name, value in args.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if get_origin(kinds.get(name)) is Literal:
            one_of(f"{field}.{name}", value, list(get_args(kinds[name])))
        if kinds.get(name) in (float, int) and not (is_number and math.isfinite(value)):
            raise SettingsError(f"{field}.{name}={value!r} must be a number")
        if kinds.get(name) is int and not isinstance(value, int):
            raise SettingsError(f"{field}.{name}={value!r} must be a whole number")
        if name in above_zero and value <= 0:
            raise SettingsError(f"{field}.{name}={value} must be above 0")
        if name in AT_LEAST_ZERO and value < 0:
            raise SettingsError(f"{field}.{name}={value} must be at least 0")
        if name in AT_MOST_ONE and value > 1:
            raise SettingsError(f"{field}.{name}={value} must be at most 1")
        if name.endswith("_weight") and value < 0:
            raise SettingsError(f"{field}.{name}={value} must be at least 0: the term would be turned round")


def check_steps(method: Method, loss: Callable) -> None:
    """Raise SettingsError for a step of the method's file that the loss needs and lacks, or has no use for."""
    parameters = inspect.signature(loss).parameters
    asked = {
        "activations": takes_states(loss),
        "multiplier": "multiplier" in parameters,
        "noise": "noised" in map(base_pass, parameters),
        "boundary": "nearest" in map(base_pass, parameters),
        "visual": "visual" in map(base_pass, parameters),
    }
    for step, needed in asked.items():
        if needed != (getattr(method, step) is not None):
            raise SettingsError(f"method.{step}: {method.loss} {'needs it' if needed else 'has no use for it'}")
    if method.other_answers != 1 and not {*SEVERAL} & {*map(base_pass, parameters)}:
        raise SettingsError(
            f"method.other_answers={method.other_answers}: {method.loss} asks for no other answers; leave it out"
        )
    check_answers_are_scored(method)
    if method.mask:
        of_forget_alone = [n for n, f in known_losses().items() if list(inspect.signature(f).parameters) == ["forget"]]
        one_of("method.mask.loss", method.mask.loss, of_forget_alone)
        if method.mask.applies_to == "forget":
            need_parts(method, loss, "mask.applies_to=forget")
    if method.gradient:
        check_rule(method, loss)
    if method.retain == "kl" and "retain_weight" not in hyperparameters(loss):
        raise SettingsError(f"method.retain=kl: {method.loss} has no retain term to change")


def check_edit(edit: Edit) -> None:
    """Raise SettingsError for an `edit` step that is not known or lacks a value."""
    one_of("method.edit.rule", edit.rule, list(EDITS))
    rule = EDITS[edit.rule]
    check_names("method.edit.args", edit.args, rule.hyperparameters, f"rule {edit.rule}")
    check_values("method.edit.args", edit.args, rule.measured | get_type_hints(rule.apply), rule.above_zero)
    if edit.rows and not rule.rows:
        raise SettingsError(f"method.edit.rows={edit.rows}: rule {edit.rule} looks at no rows; leave it out")
    if 0 < edit.rows < edit.args.get("kl_rows", 0):
        raise SettingsError(f"method.edit.rows={edit.rows} is fewer than method.edit.args.kl_rows takes of them")


def check_scope(method: Method) -> None:
    """Raise SettingsError for a scope that neither a training nor the method's edit looks at."""
    assert method.edit is not None
    if method.loss is None and method.scope != "both" and not {"forget", "retain"} & set(EDITS[method.edit.rule].rows):
        raise SettingsError(
            f"method.scope={method.scope} has no effect on rule {method.edit.rule}, and method.loss=null trains "
            "nothing; leave it out"
        )


def check_answers_are_scored(method: Method) -> None:
    """Raise SettingsError where the model ends at a layer and a step needs what it says of answers."""
    looks = [name for name in ("mask", "edit", "init") if getattr(method, name)]
    if method.mask and method.mask.neurons is not None:  # its layers are put back while it looks
        looks.remove("mask")
    if method.edit and not EDITS[method.edit.rule].rows:
        looks.remove("edit")
    if method.activations and looks:
        raise SettingsError(
            f"method.{looks[0]} needs the answers' logits, and with method.activations the model ends at a layer; "
            "leave one out"
        )


def check_hook(hook: Hook) -> None:
    """Raise SettingsError for a `hook` step that is not known or lacks a value."""
    one_of("method.hook.rule", hook.rule, list(HOOKS))
    function = HOOKS[hook.rule]
    placed = {"layer": int, "strength": float}
    check_names("method.hook.args", hook.args, [*placed, *keyword_only(function)], f"rule {hook.rule}")
    check_values("method.hook.args", hook.args, placed | get_type_hints(function))


def check_init(bound: BoundLoss) -> None:
    """Raise SettingsError for an `init` step that is not known, or a loss that compares with the model without its
    adapters, which are then a part of the start.
    """
    method = bound.method
    assert method.init is not None
    one_of("method.init.rule", method.init.rule, list(INITS))
    if bound.frozen:
        raise SettingsError(
            f"method={method.name}: the start that {method.loss} compares with in every step is the model without its "
            f"adapters, and method.init makes these a part of it; leave it out{kl_too(method)}"
        )


def kl_too(method: Method) -> str:
    """What else ends a comparison that the retain term makes."""
    return ", or take method.retain=nll" if method.retain == "kl" else ""


def check_rule(method: Method, loss: Callable) -> None:
    """Raise SettingsError for a `gradient` step that is not known, lacks a value, or has no effect on the loss."""
    assert method.gradient is not None
    name, args = method.gradient.rule, method.gradient.args
    one_of("method.gradient.rule", name, list(RULES))
    rule = RULES[name]
    check_names("method.gradient.args", args, rule.hyperparameters, f"rule {name}")
    kinds = {key: kind for function in (rule.combine, rule.perturb) if function for key, kind in hints(function)}
    check_values("method.gradient.args", args, kinds)
    need_parts(method, loss, f"gradient.rule={name}")
    weights = RETAIN_WEIGHTS.get(str(method.loss), ["retain_weight"])
    if rule.needs_retain and all(method.args.get(weight) == 0 for weight in weights):
        left_out = " with ".join(f"method.args.{weight}=0" for weight in weights)
        raise SettingsError(f"method.gradient.rule={name} needs retain rows, which {left_out} leaves out")


def hints(function: Callable) -> list[tuple[str, Any]]:
    """The names of a function's parameters with their types."""
    return list(get_type_hints(function).items())


def need_parts(method: Method, loss: Callable, setting: str) -> None:
    """Raise SettingsError for a loss that is not made of a forget and a retain part."""
    if get_type_hints(loss).get("return") is not Parts:
        raise SettingsError(f"method.{setting}: {method.loss} has no forget and retain part to treat apart")
