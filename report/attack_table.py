"""What each attack got out of gold, base and every method: a table of the page, and a file of its own."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engine.attack_levels import LEAKS, NOT_APPLICABLE, RESISTS, UNRESOLVED
from engine.measures import MEASURES
from engine.result_table import ModelResult
from engine.seeds import SeedGroup
from report.words import in_words

SAID = MEASURES["attack_said"].words
WORST_FIRST = (LEAKS, UNRESOLVED, RESISTS, NOT_APPLICABLE)  # what is said of several settings of one attack
ALL_ATTACKS = "all attacks"


class AttackCell(NamedTuple):
    """What one attack got out of one model."""

    said: str
    level: float | None  # the largest of its settings and tasks; None: not applicable in any
    why: str

    @property
    def text(self) -> str:
        return self.said if self.level is None else f"{self.level:.2f} {self.said}"


def attack_names(groups: Sequence[SeedGroup]) -> list[str]:
    """The attacks that some model has figures of, in their order."""
    names: dict[str, None] = {}
    for group in groups:
        for result in group.results:
            for task, _ in result.tasks_of("attack_said"):
                names |= {attack_of(task): None}
    return list(names)


def attack_of(task: str) -> str:
    """The name of an attack in <task>@<attack>.<what was varied>."""
    return task.partition("@")[2].partition(".")[0]


def attack_cell(results: Sequence[ModelResult], attack: str) -> AttackCell | None:
    """What an attack got out of a model over its tasks, settings and seeds; None: it was not tried.

    The level is the largest one among those of which the worst is said.
    """
    found = []
    for result in results:
        for task, said in result.tasks_of("attack_said"):
            if attack_of(task) == attack and said.value is not None:
                found.append((said, result.figure("attack_level", task), task))
    if not found:
        return None
    worst = min((said.value for said, _, _ in found), key=WORST_FIRST.index)
    alike = [each for each in found if each[0].value == worst]
    known = [each for each in alike if each[1].value is not None]
    if worst == NOT_APPLICABLE or not known:
        return AttackCell(SAID[worst], None, alike[0][0].why or "")
    said, level, task = max(known, key=lambda each: each[1].value)
    bounds = [] if level.low is None else [f"at least {level.low:.2f}, at most {level.high:.2f}"]
    why = "; ".join(filter(None, [f"{task}: {level.value:.2f}", *bounds, level.why, said.why]))
    return AttackCell(SAID[worst], level.value, why)


def overall_cell(results: Sequence[ModelResult]) -> AttackCell | None:
    """What all attacks together say of a model: the worst over its seeds; None: it was not attacked."""
    told = [result.figure("attack_verdict") for result in results if ("attack_verdict", "") in result.figures]
    known = [figure for figure in told if figure.value is not None]
    if not told:
        return None
    if not known:
        return AttackCell("not known", None, told[0].why or "")
    worst = min(known, key=lambda figure: WORST_FIRST.index(figure.value))
    if len(known) < len(told) and worst.value != LEAKS:  # what the other seeds are like is not known
        return AttackCell("not known", None, next(figure.why or "" for figure in told if figure.value is None))
    return AttackCell(SAID[worst.value], None, worst.why or "")


def attack_table(groups: Sequence[SeedGroup], names: Mapping[str, str]) -> dict[str, Any] | None:
    """What the page shows of attacks: models, and a line for each attack; None: nothing was attacked.

    Args:
        groups: Gold, base and methods, further golds among them.
        names: Task -> what the page calls it.
    """
    attacked = [group for group in groups if overall_cell(group.results)]
    if not attacked:
        return None
    lines = [{"name": ALL_ATTACKS, "cells": [shown(overall_cell(group.results), names) for group in attacked]}]
    for attack in attack_names(attacked):
        cells = [shown(attack_cell(group.results, attack), names) for group in attacked]
        lines.append({"name": attack, "cells": cells})
    return {"models": [group.label for group in attacked], "lines": lines}


def shown(cell: AttackCell | None, names: Mapping[str, str]) -> dict[str, str]:
    """A cell as the template takes it."""
    if cell is None:
        return {"text": "–", "title": "", "kind": ""}
    return {"text": cell.text, "title": in_words(cell.why, names), "kind": "leaks" if cell.said == SAID[LEAKS] else ""}


def attacks_in_markdown(table: dict[str, Any]) -> str:
    """The same table in Markdown."""
    lines = [f"| attack | {' | '.join(table['models'])} |", f"| --- |{' ---: |' * len(table['models'])}"]
    for line in table["lines"]:
        lines.append(f"| {line['name']} | {' | '.join(cell['text'] for cell in line['cells'])} |")
    return "\n".join(lines) + "\n"
