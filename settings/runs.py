"""A run among others: the lock on the folder that it writes, and the launcher that it ends with. No torch."""

import contextlib
import ctypes
import errno
import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)  # of file systems that have none
PR_SET_PDEATHSIG = 1
ASKED_AGAIN = 0.1  # seconds between two attempts to take a lock


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds."""

    number: int  # of the open file
    made: list[Path]  # the folders that were made for it, innermost first


held: dict[Path, Lock] = {}  # by the lock's file


def is_first_process() -> bool:
    """Whether this is the first of a launch's processes, known before any library is loaded."""
    return os.environ.get("RANK", "0") == "0"


def lock_folder(folder: Path, setting: str, *, patience: float = 0.0) -> None:
    """Take the lock on `folder`, a file beside it; a process that is dead holds none.

    Of several processes of one launch the first takes it. Who has it already keeps it.

    Args:
        folder: A folder, or a file.
        setting: What named it, for messages.
        patience: Seconds to wait for another run that has it.

    Raises:
        SettingsError: another run has it, or nothing can be written there.
    """
    from settings.script import SettingsError  # here, because script uses this module

    file = folder.with_name(f"{folder.name}.lock")
    if fcntl is None or not is_first_process() or file in held:
        return
    made = [parent for parent in file.parents if not parent.exists()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        number = open_locked_within(file, patience)
    except BlockingIOError:
        raise SettingsError(
            f"{setting}={str(folder)!r} is being written by another run ({holder(file)}); wait for it, or name another "
            "folder"
        ) from None
    except OSError as error:
        raise SettingsError(f"{setting}={str(folder)!r} cannot be written: {error.strerror}") from None
    held[file] = Lock(number, made)


def open_locked_within(file: Path, patience: float) -> int:
    """`open_locked` as soon as another process gives the lock back. Raises BlockingIOError after `patience` seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            return open_locked(file)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(ASKED_AGAIN)


def open_locked(file: Path, *, wait: bool = False) -> int:
    """Open a lock's file and take the lock.

    Raises BlockingIOError where another process has it, unless this one is to `wait`.
    """
    while True:
        number = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(number)
                raise
            print(f"{file.parent} has no locks: see to it yourself that no two runs write one folder", file=sys.stderr)
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(number).st_ino == file.stat().st_ino:  # else the former holder removed it meanwhile
                os.ftruncate(number, 0)
                os.write(number, f"process {os.getpid()}\n".encode())
                return number
        os.close(number)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other run makes `folder`, and have the others wait meanwhile.

    Of several processes of one launch the first waits for all.
    """
    if fcntl is None or not is_first_process():
        yield
        return
    file = folder.with_name(f"{folder.name}.making")
    file.parent.mkdir(parents=True, exist_ok=True)
    number = open_locked(file, wait=True)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(number)


def holder(file: Path) -> str:
    """Who has the lock, as its file says."""
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8").strip() or "it just began"
    return "it just began"


@contextlib.contextmanager
def locks_given_back() -> Iterator[None]:
    """Give back at the end the locks that were taken meanwhile; an empty folder that was made for one goes too."""
    before = set(held)
    try:
        yield
    finally:
        for file in [file for file in held if file not in before]:
            lock = held.pop(file)
            file.unlink(missing_ok=True)
            os.close(lock.number)
            with contextlib.suppress(OSError):  # what is not empty stays
                for folder in lock.made:
                    folder.rmdir()


def end_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when its parent ends, however that ends."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def ending_with_this(command: list[str]) -> list[str]:
    """A command that runs another one, which Linux tells to stop when this process ends, however that ends.

    The one to be told asks for it itself, before it becomes that command. Asked for between fork and exec, where other
    threads' locks stand as they stood, it could wait for ever.
    """
    if not sys.platform.startswith("linux"):
        return command
    return [sys.executable, str(Path(__file__).resolve()), str(os.getpid()), *command]


def become(parent: int, command: list[str]) -> None:
    """Run a command in place of this process, and have it end when `parent` does."""
    end_with_parent()
    if os.getppid() != parent:  # it ended in between
        os.kill(os.getpid(), signal.SIGTERM)
    os.execvp(command[0], command)


def end_with_launcher() -> None:
    """The same where the parent is `accelerate launch` or torchrun, which would leave the training behind.

    A shell is no such parent: what `nohup` started goes on when the shell ends.
    """
    parent = os.getppid()
    with contextlib.suppress(OSError):  # no /proc, or a parent that is gone
        words = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if is_launcher(words):
            end_with_parent()
            if os.getppid() != parent:  # it ended in between
                os.kill(os.getpid(), signal.SIGTERM)


def is_launcher(words: list[str]) -> bool:
    """Whether a command line is that of `accelerate launch` or torchrun."""
    names = [word.rsplit("/", 1)[-1] for word in words]
    modules = {"accelerate.commands.launch", "torch.distributed.run", "torchrun"}
    return bool(modules & set(names)) or ("accelerate" in names and "launch" in names)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
