"""How far a benchmark is: lines that stay, and on a terminal a bar for the running stages."""

import time
from dataclasses import dataclass

from rich.console import Console

from engine.progress import SECONDS_BETWEEN_LINES, Bar, clock, spoken

SETTLED_SECONDS = 5  # of expected work that must be done before its speed says anything


@dataclass
class Running:
    """A stage that runs."""

    name: str
    begun: float
    share: float = 0.0  # that is done


class BenchmarkProgress:
    """Says which stages of how many are running, how far they are, and how long is left.

    What is left are the expected seconds, corrected by the speed so far. Elsewhere than on a terminal a line every 30
    seconds says what a bar would show.
    """

    def __init__(self, expected: list[float], console: Console | None = None, workers: int = 1):
        """`expected`: seconds of each stage; `console`: by default the standard output of now, not that of a stage;
        `workers`: stages that run side by side.
        """
        self.expected = expected
        self.workers = workers
        self.bar = Bar(console, labelled=True)
        self.running: dict[int, Running] = {}
        self.left = set(range(len(expected)))
        self.number = 0  # the stage that began last
        self.said = 0.0  # when a line was last said
        self.spent = 0.0  # real seconds of the stages that ran
        self.worked = 0.0  # expected seconds of the same

    def begin(self, number: int, name: str) -> None:
        """Say that stage `number`, counted from 0, begins."""
        self.number = number
        self.said = time.perf_counter()
        self.running[number] = Running(name, self.said)
        left = self.seconds_left()
        if self.bar.is_drawn:
            self.draw("")
        else:
            self.say(f"{self.stage_label(number)}: about {spoken(left)} left in all")

    def seconds_left(self) -> float:
        """How long all that is left takes, by the shares of the running stages that are done."""
        now = time.perf_counter()
        spent, worked = self.spent, self.worked
        still = sum(self.expected[number] for number in self.left)
        for number, each in self.running.items():
            done = each.share * self.expected[number]
            spent, worked, still = spent + now - each.begun, worked + done, still - done
        speed = worked / spent if worked > SETTLED_SECONDS else 1.0  # expected seconds done in a real one
        return still / speed / self.workers

    def show(self, share: float, words: str, number: int | None = None) -> None:
        """Show how far a running stage is.

        Args:
            share: That is done.
            words: What the stage says of it, or nothing.
            number: Of the stage; None: the one that began last.
        """
        number = self.number if number is None else number
        self.running[number].share = share
        now = time.perf_counter()
        if self.bar.is_drawn:
            self.draw(f", {words}" if words else "")
        elif words and now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            self.say(f"{self.stage_label(number)}: {words}, about {spoken(self.seconds_left())} left in all")

    def draw(self, more: str) -> None:
        """Draw the bar: the running stages, and the mean of their shares."""
        share = sum(each.share for each in self.running.values()) / len(self.running)
        label = " ".join(map(self.stage_label, self.running))
        self.bar.show(share, f"{clock(self.seconds_left())} left in all{more}", label)

    def end(self, seconds: float, skipped: bool, number: int | None = None) -> None:
        """Say that a stage is done; `number` None: the one that began last."""
        number = self.number if number is None else number
        label = self.stage_label(number)
        del self.running[number]
        self.left.discard(number)
        if not skipped:
            self.spent += seconds
            self.worked += self.expected[number]
        self.say(f"{label}: {'done before' if skipped else f'{seconds:.0f} s'}")

    def say(self, line: str) -> None:
        self.bar.console.print(line, markup=False, soft_wrap=True)

    def stage_label(self, number: int) -> str:
        return f"[{number + 1}/{len(self.expected)}] {self.running[number].name}"
