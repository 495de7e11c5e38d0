"""Attacks by name: a file of config/attack names a function and its values.

A function takes the target and keyword-only values, and yields what is to be evaluated: rows to ask, with the encoder
that asks them, while the target's model is as the attack left it. When it ends, the model is as it was.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, get_type_hints

from engine.attack_target import Target, Variants
from engine.attacks_by_reading import draws, probe_people, samples
from engine.attacks_in_pictures import FORMS, WAYS, across, figstep, picture_changes, unseen_views
from engine.attacks_in_pixels import adversarial_noise, sign_noise
from engine.attacks_in_words import (
    affirm,
    affix_search,
    affixes,
    closed_questions,
    in_context,
    lines_to_try,
    prefill,
    reworded,
    wordings_of,
)
from engine.attacks_on_states import lens, patch_states, refusal_direction
from engine.attacks_on_weights import SPLITS, hook_off, interpolate, noise, quantise, relearn
from engine.picture_changes import change_of
from engine.quantise import FORMATS
from settings.attacks import Attack
from settings.script import SettingsError, nearest, one_of

KIND = {
    "input": (
        reworded,
        closed_questions,
        figstep,
        affixes,
        affix_search,
        in_context,
        prefill,
        affirm,
        unseen_views,
        across,
        picture_changes,
        adversarial_noise,
        sign_noise,
    ),
    "weights": (hook_off, refusal_direction, noise, interpolate, quantise, relearn),
    "reader": (draws, samples, probe_people, lens, patch_states),
}
TINY = 1e-12  # what is above 0
FUNCTIONS: dict[str, Callable[..., Variants]] = {each.__name__: each for own in KIND.values() for each in own}
CHOICES: dict[str, Iterable[str]] = {
    "ways": WAYS,
    "formats": FORMATS,
    "split": SPLITS,
    "forms": FORMS,
}  # of values with few
CHOOSING = (across, figstep, quantise, relearn)  # the functions whose values these are


def bind(attack: Attack) -> Callable[[Target], Variants]:
    """An attack's function with its values.

    Raises:
        SettingsError: The function is not known or of another kind, or the values are not exactly its own.
    """
    where = f"attacks.{attack.name}"
    if attack.attack not in FUNCTIONS:
        known = f"{nearest(attack.attack, FUNCTIONS)}; choose from {', '.join(FUNCTIONS)}"
        raise SettingsError(f"{where}.attack={attack.attack!r} is not in engine/attacks.py{known}")
    function = FUNCTIONS[attack.attack]
    if function not in KIND[attack.kind]:
        raise SettingsError(f"{where}.kind={attack.kind!r}: {attack.attack} changes something else")
    wanted = [name for name in inspect.signature(function).parameters if name != "target"]
    if unknown := sorted(set(attack.args) - set(wanted)):
        raise SettingsError(f"{where}.args.{unknown[0]} is not a value of {attack.attack}; it has {', '.join(wanted)}")
    if missing := [name for name in wanted if name not in attack.args]:
        raise SettingsError(f"{where}.args.{missing[0]} is required by {attack.attack}")
    check_values(where, function, attack.args)

    def attacked(target: Target) -> Variants:
        return function(target, **attack.args)

    return attacked


def check_values(where: str, function: Callable[..., Variants], args: dict[str, Any]) -> None:
    """Raise SettingsError, which `where` begins, for a value that an attack's function cannot take."""
    for name, value in args.items():
        takes_all = name == "count" and function is affixes  # 0: every line of the file
        check_value(f"{where}.args.{name}", value, get_type_hints(function)[name], least=0 if takes_all else TINY)
        if isinstance(value, list) and len(set(value)) < len(value):
            again = next(item for item in value if value.count(item) > 1)
            raise SettingsError(f"{where}.args.{name} names {again!r} twice")
        for item in (value if isinstance(value, list) else [value]) if function in CHOOSING else []:
            if name in CHOICES:
                one_of(f"{where}.args.{name}", item, list(CHOICES[name]))
    if function is picture_changes:
        for change in args["changes"]:
            change_of(f"{where}.args.changes", change)
    if function is samples and args["best_of"] > args["samples"]:
        raise SettingsError(f"{where}.args.best_of={args['best_of']} is more than samples={args['samples']}")


def check_attacks(attacks: Iterable[Attack], weights: str) -> None:
    """Check whatever can be known of attacks before a model is loaded.

    Args:
        attacks: Those that will be run.
        weights: The precision in which the model is loaded.

    Raises:
        SettingsError: A function or a value is wrong, a file cannot be read, or weights are too short to be trained.
    """
    for attack in attacks:
        bind(attack)
        if FUNCTIONS[attack.attack] is relearn and weights != "float32":
            raise SettingsError(
                f"attacks.{attack.name} trains, which needs model.weights=float32; ~attacks.{attack.name} leaves it out"
            )
        if FUNCTIONS[attack.attack] in (affixes, affix_search):
            lines_to_try(attack.args["file"], attack.args.get("count", 0))
        if FUNCTIONS[attack.attack] is closed_questions:
            wordings_of(attack.args["file"])


def check_value(name: str, value: Any, kind: Any, *, least: float) -> None:
    """Raise SettingsError unless a value is of its kind, and a finite number of at least `least` or a list of such."""
    lists = {list[int]: int, list[float]: int | float, list[str]: str}
    items = value if kind in lists and isinstance(value, list) else [value]
    of_items: Any = lists.get(kind, int | float if kind is float else kind)
    is_right = isinstance(value, list) == (kind in lists) and bool(items)
    is_right &= all(isinstance(item, of_items) and not isinstance(item, bool) for item in items)
    if not is_right:
        what = {list[int]: "whole numbers", list[float]: "numbers", list[str]: "texts"}.get(kind)
        one = {int: "a whole number", float: "a number", str: "a text"}.get(kind)
        raise SettingsError(f"{name}={value!r} must be {f'a list of {what}' if what else one}")
    if any(not isinstance(item, str) and not least <= item < math.inf for item in items):
        raise SettingsError(f"{name}={value!r} must be above 0, and finite")
