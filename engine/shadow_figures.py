"""Losses of people by shadow models -> membership attacks on forgotten and on kept people.

Shapes: M models, P people. A block of models is attacked at a time, and all others are their shadow models: no model
says anything of itself. A block has of every person as many models of each role as every other block. If single models
were attacked, the shadow models of each would lack one of its own role, and it would look like one of the other role:
an AUC of .41 where there is nothing to find, with 16 models and a spread for each person.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from engine.likelihood_ratio import attack_auc, attack_tpr, likelihood_ratio, with_interval
from engine.shadow_models import BASE, GOLD, Scored
from engine.shadow_people import FORGOTTEN, KEPT, NEVER

POOLS = {"forgotten": FORGOTTEN, "kept": KEPT}
RATES = {"TPR at 5% FPR": 0.05, "TPR at 1% FPR": 0.01}


def membership_figures(scored: Scored, roles: np.ndarray, names: list[str], block: int) -> dict[str, Any]:
    """Figures by wording, pool and row of the table.

    Args:
        scored: what the models say.
        roles: NEVER, KEPT or FORGOTTEN, (M, P).
        names: of the people.
        block: models that are attacked at a time.
    """
    figures: dict[str, Any] = {}
    for wording in scored.losses[BASE]:
        figures[wording] = {}
        for pool, role in POOLS.items():
            rows = {}
            for row, losses in scored.losses.items():
                rows[row] = attack_people(losses[wording], roles, role, names, block=block)
            for of_row in rows.values():
                of_row["distance"] = of_row["auc"]["value"] / rows[GOLD]["auc"]["value"] - 1
            figures[wording][pool] = rows
    return figures


def attack_people(losses: np.ndarray, roles: np.ndarray, role: int, names: list[str], *, block: int) -> dict[str, Any]:
    """U-LiRA on the people of one role against those whom the same models never met.

    Args:
        losses: mean loss of each person by each model, (M, P).
        roles: NEVER, KEPT or FORGOTTEN, (M, P).
        role: KEPT or FORGOTTEN.
        names: of the people.
        block: models that are attacked at a time.

    Returns:
        AUC and TPR with intervals over people and pairs of models, mean losses, and a table by person. All people share
        one spread on each side; `auc, own spreads` is the AUC where each has their own.
    """
    judged = (roles == role) | (roles == NEVER)
    model, person = np.nonzero(judged)
    score, member = ratios(losses, roles, role, block=block, one_spread=True)[judged], roles[judged] == role
    rows = (member, np.array(names)[person], model // 2)
    functions: dict[str, Callable[..., float | None]] = {"auc": attack_auc}
    functions |= {name: partial(tpr_at, rate) for name, rate in RATES.items()}
    figures: dict[str, Any] = {}
    for name, function in functions.items():
        figures[name] = asdict(with_interval(function, score, *rows))
    own = ratios(losses, roles, role, block=block, one_spread=False)[judged]
    figures["auc, own spreads"] = asdict(with_interval(attack_auc, own, *rows))
    of_role, never = losses[roles == role], losses[roles == NEVER]
    counts = {"members": int(member.sum()), "never met": int((~member).sum())}
    mean_losses = {"members": float(of_role.mean()), "never met": float(never.mean())}
    by_person = {}
    for number, name in enumerate(names):
        theirs = person == number
        gap = losses[roles[:, number] == role, number].mean() - losses[roles[:, number] == NEVER, number].mean()
        by_person[name] = {"auc": attack_auc(score[theirs], member[theirs]), "loss above never met": float(gap)}
    return figures | {"scores": counts, "mean loss": mean_losses, "by person": by_person}


def ratios(losses: np.ndarray, roles: np.ndarray, role: int, *, block: int, one_spread: bool) -> np.ndarray:
    """The likelihood ratio of every person by every model, (M, P); arguments as those of `attack_people`."""
    found = np.empty_like(losses)
    models = np.arange(len(losses))
    for first in range(0, len(losses), block):
        attacked = (models >= first) & (models < first + block)
        shadow = roles[~attacked]
        met, never = shadow == role, shadow == NEVER
        found[attacked] = likelihood_ratio(losses[~attacked], met, losses[attacked], never, one_spread=one_spread)
    return found


def tpr_at(rate: float, score: np.ndarray, member: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """`attack_tpr` with its rate first."""
    return attack_tpr(score, member, rate, weights)


def table(figures: dict[str, Any]) -> list[str]:
    """The AUCs with their intervals, a line per wording and pool, and a column per row."""
    lines = []
    for wording, pools in figures.items():
        for pool, rows in pools.items():
            cells = [f"{row} {cell(of_row['auc'])}" for row, of_row in rows.items()]
            lines.append(f"AUC, {pool}, {wording}: {', '.join(cells)}")
    return lines


def cell(figure: dict[str, Any]) -> str:
    """A figure with its interval, as text."""
    if figure["value"] is None:
        return f"unknown ({figure['why']})"
    ends = "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure['value']:.3f}{ends}"
