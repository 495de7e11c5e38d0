"""How far a run is: a bar on a terminal, lines elsewhere, and word to whoever started the run."""

import io
import logging
import re
import subprocess
import sys

import pytest

from engine import progress
from engine.progress import PROGRESS_FILE, Bar, Work, clock, heard_by, reported_progress, spoken
from helpers import ENVIRONMENT, ROOT
from terminals import python_in_a_terminal, screens


@pytest.fixture
def at_once(monkeypatch):
    """Every report is shown."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_FRAMES", 0.0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)


@pytest.fixture
def times(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


# ---- lines


def test_elsewhere_than_on_a_terminal_a_line_is_said_every_30_seconds(times):
    said = []
    with Work("step", 100, say=said.append) as work:
        for second in range(100):
            times[0] += 1
            work.at(second + 1)
    # the first report is the base: at step 30 29 steps took 29 s, so that 70 are left
    assert said == [
        "step 30/100, about 1 min 10 s left",
        "step 60/100, about 0 min 40 s left",
        "step 90/100, about 0 min 10 s left",
    ]


def test_a_short_work_says_nothing(capsys):
    with Work("step", 3) as work:
        for _ in range(3):
            work.advance()
    assert capsys.readouterr().out == ""


def test_what_was_done_before_says_nothing_of_the_speed(times):
    work = Work("row", 100)
    with work:
        work.advance()
        work.skip(59)
        times[0] += 500
        work.advance()
        times[0] += 10
        work.advance(10)
        assert work.seconds_left(times[0]) == 29  # 10 rows in 10 s, and 29 of 100 are left


def test_no_more_is_done_than_there_is():
    with Work("row", 5) as work:
        work.advance(8)
    assert (work.done, work.share) == (5, 1.0)


def test_a_work_of_nothing_is_done():
    with Work("row", 0) as work:
        work.advance(0)
        assert work.share == 1.0


def test_a_work_within_another_stands_in_its_line_and_counts_for_its_part(at_once):
    said = []
    with Work("row", 500, say=said.append, about=lambda: "nobody") as outer:
        with Work("eval_forget_qa", 100, stands_for=100) as inner:
            inner.at(40)
            assert outer.share == 0.08
        with Work("eval_retain_qa", 400, stands_for=400) as inner:
            inner.at(100)
            assert outer.share == 0.4
        assert outer.done == 500
    assert [line.split(", about")[0] for line in said] == [
        "row 40/500, eval_forget_qa 40/100",
        "row 200/500, eval_retain_qa 100/400",
    ]


def test_a_work_that_fails_leaves_none_open(at_once):
    said = []
    with pytest.raises(ValueError), Work("step", 4):
        raise ValueError
    with Work("row", 2, say=said.append) as work:
        work.advance()
    assert said == ["row 1/2"]


def test_of_several_processes_the_first_alone_speaks(at_once, monkeypatch):
    monkeypatch.setattr(progress, "processes", lambda: type("Other", (), {"is_main_process": False}))
    said = []
    with Work("step", 4, say=said.append) as work:
        work.advance()
    assert said == []


def test_a_report_costs_microseconds():
    with Work("step", 100_000) as work:
        started = progress.time.perf_counter()
        for _ in range(10_000):
            work.advance()
        assert progress.time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    ("seconds", "on_a_clock", "in_words"), [(0.4, "0:00:00", "0 min 0 s"), (725, "0:12:05", "12 min 5 s")]
)
def test_times_are_said_in_two_ways(seconds, on_a_clock, in_words):
    assert (clock(seconds), spoken(seconds)) == (on_a_clock, in_words)


# ---- to whoever started the run


def test_progress_is_heard_in_this_process_and_only_while_somebody_listens(at_once):
    heard = []
    with Work("step", 4, about=lambda: "loss 1") as work:
        with heard_by(lambda *report: heard.append(report)):
            work.advance()
            work.advance()
        work.advance()
    assert heard == [(0.25, "step 1/4, loss 1"), (0.5, "step 2/4, loss 1")]


def test_what_prepares_a_run_is_heard_as_nothing_done(at_once):
    heard = []
    with heard_by(lambda *report: heard.append(report)), Work("picture", 4, prepares=True) as work:
        work.advance()
    assert heard == [(0.0, "picture 1/4")]


def test_the_progress_of_a_launched_run_stands_in_the_file_that_its_environment_names(tmp_path):
    file = tmp_path / "a.progress"
    code = "from engine.progress import Work\nwith Work('step', 4) as work: work.at(3)"
    environment = {**ENVIRONMENT, PROGRESS_FILE: str(file)}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)
    assert reported_progress(file) == (0.75, "step 3/4")


def test_a_run_that_has_not_begun_has_no_progress(tmp_path):
    assert reported_progress(tmp_path / "none") == (0.0, "")


# ---- on a terminal

TRAINS = """
import logging, os, sys, time, warnings
library = logging.getLogger("library")
library.addHandler(logging.StreamHandler())  # as transformers has one, made before there is a bar
from engine import progress
progress.SECONDS_BETWEEN_FRAMES = 0.0
with progress.Work("step", 4, about=lambda: "loss 1.2345, 3400 tokens/s") as work:
    for step in range(4):
        time.sleep(0.01)
        work.advance()
        if step == 1:
            print("epoch 1/2", flush=True)
            library.warning("a library warns")
            warnings.warn("python warns")
            os.write(2, b"C says something\\n")
print("trained")
"""


@pytest.fixture(scope="module")
def trained():
    """All that a program wrote to a terminal that draws a bar while others print."""
    return python_in_a_terminal(TRAINS)


def test_a_terminal_shows_one_line_that_moves(trained):
    bars = [lines for lines in screens(trained) if "step 3/4" in lines[-1]]
    assert re.search(r"━+ *step 3/4, loss 1\.2345, 3400 tokens/s, 0:00:00 left$", bars[-1][-1])
    # a line that went past Python stands behind what the bar showed then; nothing else of the bar stays
    others = [line for line in bars[-1][:-1] if "step" in line]
    assert [line for line in others if not line.endswith("C says something")] == []


def test_what_is_printed_stays_above_the_bar_and_the_bar_is_gone_in_the_end(trained):
    last = [line for line in screens(trained)[-1] if line]
    assert last[0] == "epoch 1/2"
    assert last[1] == "a library warns"
    assert "UserWarning: python warns" in " ".join(last[2:4])
    assert any(line.endswith("C says something") for line in last)
    assert last[-1] == "trained"
    assert "\x1b[?25h" in trained.rpartition("\x1b[?25l")[2]  # a cursor that was hidden is shown again


def test_a_killed_run_leaves_a_terminal_its_cursor():
    code = "import os\nfrom engine.progress import Work\nwith Work('step', 4) as work:\n    work.at(1)\n    os._exit(0)"
    written = python_in_a_terminal(code)
    assert "step 1/4" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_standard_error_that_goes_to_a_file_does_not_come_to_the_terminal(tmp_path):
    with (tmp_path / "errors").open("w") as errors:
        written = python_in_a_terminal(TRAINS, errors=errors)
    assert "a library warns" not in written
    said = (tmp_path / "errors").read_text()
    assert "a library warns\n" in said and "python warns" in said and "\x1b" not in said


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(environment):
    code = TRAINS.replace("progress.SECONDS_BETWEEN_FRAMES = 0.0", "progress.SECONDS_BETWEEN_LINES = 0.0")
    written = python_in_a_terminal(code, environment=environment)
    assert "\x1b[2K" not in written and "━" not in written
    assert "step 4/4, loss 1.2345, 3400 tokens/s" in written


def test_a_pipe_gets_no_bar_also_where_colours_are_forced():
    environment = {**ENVIRONMENT, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}
    done = subprocess.run([sys.executable, "-c", TRAINS], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "epoch 1/2\ntrained\n"
    assert "\x1b" not in done.stdout + done.stderr


def test_a_worker_of_a_sweep_draws_no_bar(monkeypatch):
    terminal = type("Terminal", (io.StringIO,), {"isatty": lambda self: True})()
    assert progress.is_terminal(terminal)
    monkeypatch.setattr(progress.multiprocessing.current_process(), "_name", "LokyProcess-1")
    assert not progress.is_terminal(terminal)


def test_where_a_bar_is_drawn_no_second_one_is():
    terminal = type("Terminal", (io.StringIO,), {"isatty": lambda self: True})()
    assert not progress.is_terminal(progress.FileProxy(progress.Console(file=terminal), terminal))


def test_a_narrow_terminal_gets_one_line_that_is_cut(monkeypatch):
    shown = io.StringIO()
    with Bar(progress.Console(file=shown, force_terminal=True, width=40), labelled=True) as bar:
        bar.show(0.5, "0:12:05 left in all, step 12/96, loss 1.2345", "[3/20] forget npo")
    frames = [line for line in screens(shown.getvalue())[-2] if line]
    assert len(frames) <= 1
    assert "…" in shown.getvalue()


def test_the_handlers_of_loggers_write_where_they_did_when_the_bar_is_gone():
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("a library").addHandler(handler)
    try:
        with Bar(progress.Console(file=io.StringIO(), force_terminal=True)):
            pass
        assert handler.stream is sys.stderr
    finally:
        logging.getLogger("a library").removeHandler(handler)
