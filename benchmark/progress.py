"""How far a benchmark is: the line that says so, and a stage's output, which tells how far the stage is."""

import io
import re
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

SETTLED_SECONDS = 5  # of expected work that must be done before its speed says anything


class BenchmarkProgress:
    """Says which stage of how many is running and how long is left.

    What is left are the expected seconds, corrected by the speed so far.
    """

    def __init__(self, expected: list[float]):
        self.expected = expected  # seconds of each stage
        self.console = Console(highlight=False)
        self.number = 0
        self.name = ""
        self.spent = 0.0  # real seconds of the stages that ran
        self.worked = 0.0  # expected seconds of the same

    def begin(self, number: int, name: str) -> None:
        """Say that stage `number`, counted from 0, begins."""
        self.number = number
        self.name = name
        self.begun = time.perf_counter()
        self.show(0.0)
        if not self.console.is_terminal:
            self.console.print(self.line(0.0).replace(": 0%,", ":"))

    def line(self, fraction: float) -> str:
        """The line of progress when `fraction` of the running stage is done."""
        expected = self.expected[self.number]
        spent = self.spent + time.perf_counter() - self.begun
        worked = self.worked + fraction * expected
        speed = worked / spent if worked > SETTLED_SECONDS else 1.0  # expected seconds done in a real one
        left = (sum(self.expected[self.number :]) - fraction * expected) / speed
        time_left = f"about {left // 60:.0f} min {left % 60:.0f} s left in all"
        return f"{self.stage_label()}: {fraction:.0%}, {time_left}"

    def show(self, fraction: float) -> None:
        """Refresh the line in place, on a terminal."""
        if self.console.is_terminal:
            self.console.print(self.line(fraction), end="\r", soft_wrap=True)

    def end(self, seconds: float, skipped: bool) -> None:
        """Say that the stage is done."""
        if not skipped:
            self.spent += seconds
            self.worked += self.expected[self.number]
        note = "done before" if skipped else f"{seconds:.0f} s"
        self.console.print(f"{self.stage_label()}: {note}".ljust(80))

    def stage_label(self) -> str:
        return f"[{self.number + 1}/{len(self.expected)}] {self.name}"


class StageLog(io.TextIOBase):
    """A stage's output: kept in a file, and watched for the epochs and tasks that tell how far it is."""

    def __init__(self, file: Path, show_fraction: Callable[[float], None], tasks: int):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self.stream = file.open("w", encoding="utf-8")
        self.show_fraction = show_fraction
        self.tasks = tasks  # of an evaluation
        self.finished_tasks = 0

    def write(self, text: str) -> int:
        self.stream.write(text)
        self.stream.flush()
        if epoch := re.search(r"^(?:epoch|models) (\d+)/(\d+)", text):
            self.show_fraction(int(epoch[1]) / int(epoch[2]))
        elif re.search(r"^\w+: \d+ rows", text):
            self.finished_tasks += 1
            self.show_fraction(min(1.0, self.finished_tasks / max(1, self.tasks)))
        return len(text)

    def close(self) -> None:
        self.stream.close()
