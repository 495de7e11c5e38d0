"""How far a benchmark is: lines that stay, and on a terminal a bar for the running stage."""

import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn

SETTLED_SECONDS = 5  # of expected work that must be done before its speed says anything


@dataclass
class Running:
    """A stage that runs."""

    name: str
    begun: float
    shown: TaskID
    fraction: float = 0.0  # that is done


class BenchmarkProgress:
    """Says which stages of how many are running and how long is left.

    What is left are the expected seconds, corrected by the speed so far.
    """

    def __init__(self, expected: list[float], console: Console | None = None, workers: int = 1):
        """`expected`: seconds of each stage; `console`: by default the standard output of now, not that of a stage;
        `workers`: stages that run side by side.
        """
        self.expected = expected
        self.console = console or Console(file=sys.stdout, highlight=False)
        columns = ("{task.description}", BarColumn(), TaskProgressColumn(), "{task.fields[left]}")
        quiet = {"redirect_stdout": False, "redirect_stderr": False, "disable": not self.console.is_terminal}
        self.workers = workers
        self.bar = Progress(*columns, console=self.console, transient=True, **quiet)
        self.running: dict[int, Running] = {}
        self.left = set(range(len(expected)))
        self.number = 0  # the stage that began last
        self.name = ""
        self.spent = 0.0  # real seconds of the stages that ran
        self.worked = 0.0  # expected seconds of the same

    def begin(self, number: int, name: str) -> None:
        """Say that stage `number`, counted from 0, begins."""
        self.number = number
        self.name = name
        label = self.stage_label(number, name)
        shown = self.bar.add_task(label, total=1.0, left="")
        self.running[number] = Running(name, time.perf_counter(), shown)
        self.bar.update(shown, left=self.time_left())
        if not self.console.is_terminal:
            self.console.print(f"{label}: {self.time_left()}")

    def time_left(self) -> str:
        """How long is left, by the shares of the running stages that are done."""
        spent, worked = self.spent, self.worked
        for number, each in self.running.items():
            spent += time.perf_counter() - each.begun
            worked += each.fraction * self.expected[number]
        speed = worked / spent if worked > SETTLED_SECONDS else 1.0  # expected seconds done in a real one
        still = sum(self.expected[number] for number in self.left)
        still -= sum(each.fraction * self.expected[number] for number, each in self.running.items())
        left = still / speed / self.workers
        return f"about {left // 60:.0f} min {left % 60:.0f} s left in all"

    def show(self, fraction: float, number: int | None = None) -> None:
        """Move the bar of a running stage, on a terminal; `number` None: of the one that began last."""
        running = self.running[self.number if number is None else number]
        running.fraction = fraction
        self.bar.update(running.shown, completed=fraction, left=self.time_left())

    def end(self, seconds: float, skipped: bool, number: int | None = None) -> None:
        """Say that a stage is done."""
        number = self.number if number is None else number
        running = self.running.pop(number)
        self.left.discard(number)
        if not skipped:
            self.spent += seconds
            self.worked += self.expected[number]
        self.bar.remove_task(running.shown)
        label = self.stage_label(number, running.name)
        self.console.print(f"{label}: {'done before' if skipped else f'{seconds:.0f} s'}")

    def stage_label(self, number: int, name: str) -> str:
        return f"[{number + 1}/{len(self.expected)}] {name}"
