"""What an attack is given, and what it yields: the rows and the model under attack, and rows to evaluate now."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from data_module import TaskRow
from settings.language import Task

Rows = dict[str, list[TaskRow]]  # by task


class NotApplicable(Exception):
    """An attack that these rows or this model leave nothing to; the message says what is missing."""


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        model: In eval mode, on its device.
        encoder: Of its rows.
        rows: What is asked without an attack, by task: each with its right answer alone.
        tasks: Where the rows come from.
        controls: Task about the forgotten -> the one about kept people.
        base_weights: Gives the weights of the model before forgetting, by name.
        base_encoder: Gives that model's encoder.
        seed: Of every draw; the same for all models that are compared.
        frozen: Names of parts of the model that never train.
    """

    model: nn.Module
    encoder: Any
    rows: Rows
    tasks: dict[str, Task]
    controls: dict[str, str]
    base_weights: Callable[[], dict[str, Tensor]]
    base_encoder: Callable[[], Any]
    seed: int
    frozen: tuple[str, ...] = ()

    @property
    def forget_rows(self) -> Rows:
        """The rows about the people to forget."""
        return {task: self.rows[task] for task in self.controls}

    def key_of(self, task: str, row: TaskRow) -> tuple[str, str, int]:
        """What two tasks about one row of the data share: a picture asked for its caption and for its name.

        Two datasets may have splits of one name.
        """
        return self.tasks[task].dataset, row.example.split, row.example.index


@dataclass(frozen=True)
class Variant:
    """Rows to evaluate now.

    Attributes:
        name: What was varied; two variants of one name hold different rows of the same thing.
        rows: What is asked, by task.
        encoder: That asks it.
        facts: What else is known, by name.
        told: (task, row) -> what the prompt tells, where it tells something that may hold a part of the answer.
        read: (task, row) -> how much of the truth was read from the model without its answer, from 0 to 1.
    """

    name: str
    rows: Rows
    encoder: Any
    facts: dict[str, float] = field(default_factory=dict)
    told: dict[tuple[str, int], str] = field(default_factory=dict)
    read: dict[tuple[str, int], float] = field(default_factory=dict)


Variants = Generator[Variant, None, None]  # what an attack yields; closing it gives the model its weights back


def with_question(row: TaskRow, question: str) -> TaskRow:
    """A row that asks something else."""
    return replace(row, example=replace(row.example, question=question))


def person_of(row: TaskRow) -> str:
    """Whom a row is about; a row about nobody stands for itself."""
    return row.example.person or f"row {row.example.index} of {row.example.split}"
