"""The rules of a method's `edit` step: new weights from what forget and retain rows say of the present ones.

A rule is a pure function of statistics and its keyword-only settings, in a file of its own (engine/edit_<rule>.py). It
says by its positional parameters which rows the statistics are of.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine import edit_ct, edit_kvw, edit_manu, edit_repselect, edit_ssd


@dataclass(frozen=True)
class EditRule:
    """A rule, and what it looks at."""

    apply: Callable[..., Any]
    edits: str  # neurons of decoders, weights by their importance, MLPs along a gradient, kernels of convolutions
    measured: dict[str, type] = field(default_factory=dict)  # settings of the method's file that the engine takes
    looks_at: tuple[str, ...] = ()  # kinds of rows beside those that its parameters name
    above_zero: tuple[str, ...] = ()  # settings that must be

    @property
    def rows(self) -> list[str]:
        """The kinds of rows that it looks at."""
        parameters = inspect.signature(self.apply).parameters.values()
        named = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY and p.name not in ("weight", "gradient")]
        return [*("retain" if name == "everything" else name for name in named), *self.looks_at]

    @property
    def hyperparameters(self) -> list[str]:
        """What the method's file gives."""
        own = [p.name for p in inspect.signature(self.apply).parameters.values() if p.kind is p.KEYWORD_ONLY]
        return [*own, *self.measured]


OF_A_GRADIENT: dict[str, type] = {"adapter_rank": int, "adapter_lr": float, "kl_budget": float, "kl_rows": int}
EDITS = {
    "ssd": EditRule(edit_ssd.dampen, edits="weights", above_zero=("alpha",)),
    "manu": EditRule(edit_manu.prune, edits="neurons", measured={"threshold": float}, above_zero=("share",)),
    "kvw": EditRule(edit_kvw.weaken, edits="neurons"),
    "repselect": EditRule(
        edit_repselect.collapse,
        edits="gradient",
        measured=OF_A_GRADIENT,
        looks_at=("forget", "retain"),
        above_zero=("components", *OF_A_GRADIENT),
    ),
    "ct": EditRule(edit_ct.transpose, edits="kernels"),
}
