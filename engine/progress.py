"""How far a run is: a bar on a terminal, a plain line every 30 seconds elsewhere, and word to whoever started it."""

import contextlib
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from engine.record import read_json, say_line, write_json
from settings.runs import is_first_process
from settings.script import processes

PROGRESS_FILE = "UNLEARNING_PROGRESS_FILE"  # environment variable: where a launched run says how far it is
SECONDS_BETWEEN_FRAMES = 0.2
SECONDS_BETWEEN_LINES = 30.0  # elsewhere than on a terminal
BAR_WIDTH = 10  # characters, so that the words beside it fit into 100
ERASE_LINE = "\r\x1b[2K"

Hear = Callable[[float, str], None]  # takes the share that is done, and what a line says of it
listener: ContextVar[Hear | None] = ContextVar("listener", default=None)
innermost: ContextVar["Work | None"] = ContextVar("innermost", default=None)


class Bar:
    """The last line of a terminal; what the run and its libraries print stands above it. Elsewhere it is nothing.

    It is drawn when it is told to, and by no thread of its own.
    """

    open_ones = 0  # how many are on the terminal now

    def __init__(self, console: Console | None = None, *, labelled: bool = False):
        """`console`: by default the standard output of now; `labelled`: whether words stand before the bar, too."""
        # rich alone would take a pipe for a terminal where FORCE_COLOR is set
        self.console = console or Console(file=sys.stdout, highlight=False, force_terminal=is_terminal(sys.stdout))
        one_line = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        words = TextColumn("{task.fields[words]}", markup=False, table_column=one_line)
        label = [TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))] if labelled else []
        self.progress = Progress(
            *[*label, BarColumn(BAR_WIDTH), words],
            console=self.console,
            auto_refresh=False,
            transient=True,
            expand=True,
            redirect_stderr=is_terminal(sys.stderr),  # else what goes to a file would come to the terminal
            disable=not self.is_drawn,
        )
        self.line = self.progress.add_task("", total=1.0, words="", visible=False)
        self.moved: list[tuple[logging.StreamHandler, Any]] = []  # handlers of loggers, and where they wrote before

    @property
    def is_drawn(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def __enter__(self) -> Self:
        before = {sys.stdout, sys.stderr}
        self.progress.start()
        if self.is_drawn:
            Bar.open_ones += 1
            self.console.show_cursor(True)  # a run that is killed would leave a terminal without one
            self.move_handlers(before)
        return self

    def __exit__(self, *_: object) -> None:
        for handler, stream in self.moved:
            handler.setStream(stream)
        self.moved.clear()
        self.progress.stop()
        Bar.open_ones -= self.is_drawn

    def move_handlers(self, before: set[Any]) -> None:
        """Have the loggers that wrote to the terminal write above the bar; they hold the stream that rich replaces."""
        now = {"<stdout>": sys.stdout, "<stderr>": sys.stderr}
        for handler in handlers_of_loggers():
            if handler.stream in before and handler.stream not in now.values():
                self.moved.append((handler, handler.stream))
                handler.setStream(now.get(getattr(handler.stream, "name", ""), sys.stderr))

    def show(self, share: float, words: str, label: str = "") -> None:
        """Draw the line: `label`, the bar with this share of it full, and words."""
        self.progress.update(self.line, completed=share, words=words, description=label, visible=True)
        self.progress.refresh()


def is_terminal(stream: Any) -> bool:
    """Whether somebody sits at a stream and nothing else draws there, as a bar of this process or a sweep's workers."""
    if stream is None or isinstance(stream, FileProxy) or multiprocessing.current_process().name != "MainProcess":
        return False
    return bool(stream.isatty())


def handlers_of_loggers() -> Iterator[logging.StreamHandler]:
    """Every handler that writes to a stream, of whatever library."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", []):
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                yield handler


def start_of_line() -> str:
    """What to write before a line that goes past Python to the terminal, so that it does not stand behind the bar."""
    return ERASE_LINE if Bar.open_ones else ""


class Work:
    """A long piece of work that says how far it is, while it is open: `with Work("step", 500) as work`.

    Works may be open within works. They share one bar, or one line: `step 120/500, eval_forget_qa 30/120`. Of several
    processes the first alone speaks.
    """

    def __init__(
        self,
        unit: str,
        of: float,
        *,
        stands_for: float = 0,
        prepares: bool = False,
        about: Callable[[], str] = str,
        say: Callable[[str], None] = say_line,
    ):
        """Args:
        unit: What is counted, in the singular.
        of: How many there are.
        stands_for: How many units of the work around this one are done when it is.
        prepares: Whether it comes before the run's own work: whoever started the run hears that nothing is done yet.
        about: Called when a line is made; says what is to be known besides, or nothing.
        say: Takes a line of progress.
        """
        self.unit, self.of, self.stands_for, self.about, self.say = unit, of, stands_for, about, say
        self.prepares = prepares
        self.done = 0.0
        self.inner: Work | None = None
        self.outer: Work | None = None
        self.bar: Bar | None = None  # of the outermost
        self.begun: tuple[float, float] | None = None  # how much was done at the first report, and when that was
        self.shown = 0.0  # when it was last shown, and when a line was last said
        self.said = time.perf_counter()
        self.speaks = False

    def __enter__(self) -> Self:
        self.outer = innermost.get()
        self.token: Token = innermost.set(self)
        if self.outer:
            self.outer.inner = self
            return self
        self.speaks = processes().is_main_process if "accelerate" in sys.modules else is_first_process()
        if self.speaks:
            self.bar = Bar().__enter__()
            if self.bar.is_drawn and self.of:
                self.bar.show(0.0, self.words)  # the first unit may take long
        return self

    def __exit__(self, *error: object) -> None:
        innermost.reset(self.token)
        if self.outer:
            self.outer.inner = None
            self.outer.done = min(self.outer.of, self.outer.done + self.stands_for)
        if self.bar:
            self.bar.__exit__()

    def advance(self, count: float = 1) -> None:
        """Say that so many more units are done."""
        self.at(self.done + count)

    def at(self, done: float) -> None:
        """Say how many units are done."""
        self.done = min(self.of, done)
        self.outermost.show()

    def skip(self, count: float) -> None:
        """Count units that were done before: they say nothing of the speed."""
        self.done = min(self.of, self.done + count)
        self.begun = None

    @property
    def outermost(self) -> "Work":
        return self.outer.outermost if self.outer else self

    @property
    def position(self) -> float:
        """How many units are done, with the part of the work within this one."""
        within = self.inner.share * self.inner.stands_for if self.inner else 0.0
        return self.done + within

    @property
    def share(self) -> float:
        return min(1.0, self.position / self.of) if self.of else 1.0

    @property
    def words(self) -> str:
        """How far it is, without the time that is left."""
        about = self.about() if self.done else ""
        more = self.inner.words if self.inner else about
        return f"{self.unit} {int(self.position + 1e-9)}/{self.of:.0f}" + (f", {more}" if more else "")

    def seconds_left(self, now: float) -> float | None:
        """By the speed since the first report, because what comes before that takes longer; None: not known yet."""
        position = self.position
        if self.begun is None or position <= self.begun[0]:
            return None
        first, moment = self.begun
        return (now - moment) / (position - first) * (self.of - position)

    def show(self) -> None:
        """Show how far the outermost work is, unless that was shown a moment ago."""
        now = time.perf_counter()
        self.begun = self.begun or (self.position, now)
        is_due = now - self.shown >= SECONDS_BETWEEN_FRAMES or self.position >= self.of
        if not self.speaks or not is_due:
            return
        self.shown = now
        self.tell(0.0 if self.prepares else self.share)
        left = self.seconds_left(now)
        if self.bar and self.bar.is_drawn:
            self.bar.show(self.share, self.words + ("" if left is None else f", {clock(left)} left"))
        elif now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            self.say(self.words + ("" if left is None else f", about {spoken(left)} left"))

    def tell(self, share: float) -> None:
        """Tell whoever started the run how much of it is done."""
        hear, file = listener.get(), os.environ.get(PROGRESS_FILE)
        if hear:
            hear(share, self.words)
        elif file:
            write_json(Path(file), {"share": share, "words": self.words})


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as on a clock: 0:12:05."""
    return str(timedelta(seconds=round(seconds)))


def spoken(seconds: float) -> str:
    """Minutes and seconds: 12 min 5 s."""
    return "{} min {} s".format(*divmod(round(seconds), 60))


# ---- to whoever started the run


@contextlib.contextmanager
def heard_by(hear: Hear) -> Iterator[None]:
    """Have `hear` called with the share that is done and its words, whenever a work in this context reports."""
    token = listener.set(hear)
    try:
        yield
    finally:
        listener.reset(token)


def reported_progress(file: Path) -> tuple[float, str]:
    """What a launched run reported last in its PROGRESS_FILE, as `hear` would get it; 0 before it began."""
    if not file.is_file():
        return 0.0, ""
    report = read_json(file)
    return report["share"], report["words"]
