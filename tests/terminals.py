"""A terminal of 100 columns for tests: what a program draws there, and what somebody would see."""

import os
import pty
import re
import subprocess
import sys
import termios

from helpers import ENVIRONMENT, ROOT

COLUMNS = 100
TOKENS = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+")


def in_a_terminal(command, *, environment=None, errors=None):
    """Run a command in a terminal of its own and return all that it wrote there.

    `errors`: the file that takes its standard error; None: the terminal.
    """
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (30, COLUMNS))
    environment = {**ENVIRONMENT, "TERM": "xterm", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **(environment or {})}
    streams = {"stdin": there, "stdout": there, "stderr": errors or there}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **streams) as process:
        os.close(there)
        written = b""
        while part := read_some(here):
            written += part
    os.close(here)
    assert process.returncode == 0, written.decode()
    return written.decode()


def read_some(number):
    """What a terminal gives next; nothing when its program has ended."""
    try:
        return os.read(number, 65536)
    except OSError:  # Linux says so where nobody writes any more
        return b""


def python_in_a_terminal(code, **options):
    return in_a_terminal([sys.executable, "-c", code], **options)


def screens(written):
    """What stands on the terminal after each change, as lists of lines; colours are left out."""
    lines, row, column, shown = [""], 0, 0, []
    for token in TOKENS.findall(written):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif token.startswith("\x1b["):
            row -= int(token[2:-1] or 1) if token.endswith("A") else 0
        else:
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
            shown.append([line.rstrip() for line in lines])
            continue
        if not token.endswith(("m", "h", "l")):
            shown.append([line.rstrip() for line in lines])
    return shown
