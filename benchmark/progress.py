"""How far a benchmark is: lines that stay, and on a terminal a bar for the running stage."""

import time

from rich.console import Console

from engine.progress import SECONDS_BETWEEN_LINES, Bar, clock, spoken

SETTLED_SECONDS = 5  # of expected work that must be done before its speed says anything


class BenchmarkProgress:
    """Says which stage of how many is running, how far that is, and how long is left.

    What is left are the expected seconds, corrected by the speed so far. Elsewhere than on a terminal a line every 30
    seconds says what a bar would show.
    """

    def __init__(self, expected: list[float], console: Console | None = None):
        """`expected`: seconds of each stage; `console`: by default the standard output of now, not that of a stage."""
        self.expected = expected
        self.bar = Bar(console, labelled=True)
        self.number = 0
        self.name = ""
        self.spent = 0.0  # real seconds of the stages that ran
        self.worked = 0.0  # expected seconds of the same

    def begin(self, number: int, name: str) -> None:
        """Say that stage `number`, counted from 0, begins."""
        self.number = number
        self.name = name
        self.begun = self.said = time.perf_counter()
        left = self.seconds_left(0.0)
        if self.bar.is_drawn:
            self.bar.show(0.0, f"{clock(left)} left in all", self.stage_label())
        else:
            self.say(f"{self.stage_label()}: about {spoken(left)} left in all")

    def seconds_left(self, share: float) -> float:
        """How long all that is left takes when this share of the running stage is done."""
        expected = self.expected[self.number]
        spent = self.spent + time.perf_counter() - self.begun
        worked = self.worked + share * expected
        speed = worked / spent if worked > SETTLED_SECONDS else 1.0  # expected seconds done in a real one
        return (sum(self.expected[self.number :]) - share * expected) / speed

    def show(self, share: float, words: str) -> None:
        """Show how far the running stage is.

        Args:
            share: That is done.
            words: What the stage says of it, or nothing.
        """
        now = time.perf_counter()
        left = self.seconds_left(share)
        if self.bar.is_drawn:
            more = f", {words}" if words else ""
            self.bar.show(share, f"{clock(left)} left in all{more}", self.stage_label())
        elif words and now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            self.say(f"{self.stage_label()}: {words}, about {spoken(left)} left in all")

    def end(self, seconds: float, skipped: bool) -> None:
        """Say that the stage is done."""
        if not skipped:
            self.spent += seconds
            self.worked += self.expected[self.number]
        self.say(f"{self.stage_label()}: {'done before' if skipped else f'{seconds:.0f} s'}")

    def say(self, line: str) -> None:
        self.bar.console.print(line, markup=False, soft_wrap=True)

    def stage_label(self) -> str:
        return f"[{self.number + 1}/{len(self.expected)}] {self.name}"
