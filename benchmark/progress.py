"""How far a benchmark is: lines that stay, and on a terminal a bar for the running stage."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn

SETTLED_SECONDS = 5  # of expected work that must be done before its speed says anything


class BenchmarkProgress:
    """Says which stage of how many is running and how long is left.

    What is left are the expected seconds, corrected by the speed so far.
    """

    def __init__(self, expected: list[float], console: Console | None = None):
        """`expected`: seconds of each stage; `console`: by default the standard output of now, not that of a stage."""
        self.expected = expected
        self.console = console or Console(file=sys.stdout, highlight=False)
        columns = ("{task.description}", BarColumn(), TaskProgressColumn(), "{task.fields[left]}")
        quiet = {"redirect_stdout": False, "redirect_stderr": False, "disable": not self.console.is_terminal}
        self.bar = Progress(*columns, console=self.console, transient=True, **quiet)
        self.number = 0
        self.name = ""
        self.spent = 0.0  # real seconds of the stages that ran
        self.worked = 0.0  # expected seconds of the same

    def begin(self, number: int, name: str) -> None:
        """Say that stage `number`, counted from 0, begins."""
        self.number = number
        self.name = name
        self.begun = time.perf_counter()
        self.shown = self.bar.add_task(self.stage_label(), total=1.0, left=self.time_left(0.0))
        if not self.console.is_terminal:
            self.console.print(f"{self.stage_label()}: {self.time_left(0.0)}")

    def time_left(self, fraction: float) -> str:
        """How long is left when `fraction` of the running stage is done."""
        expected = self.expected[self.number]
        spent = self.spent + time.perf_counter() - self.begun
        worked = self.worked + fraction * expected
        speed = worked / spent if worked > SETTLED_SECONDS else 1.0  # expected seconds done in a real one
        left = (sum(self.expected[self.number :]) - fraction * expected) / speed
        return f"about {left // 60:.0f} min {left % 60:.0f} s left in all"

    def show(self, fraction: float) -> None:
        """Move the bar of the running stage, on a terminal."""
        self.bar.update(self.shown, completed=fraction, left=self.time_left(fraction))

    def end(self, seconds: float, skipped: bool) -> None:
        """Say that the stage is done."""
        if not skipped:
            self.spent += seconds
            self.worked += self.expected[self.number]
        self.bar.remove_task(self.shown)
        self.console.print(f"{self.stage_label()}: {'done before' if skipped else f'{seconds:.0f} s'}")

    def stage_label(self) -> str:
        return f"[{self.number + 1}/{len(self.expected)}] {self.name}"
