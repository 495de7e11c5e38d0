"""What files hold, as a hash: of everything that a loader would find, behind links too."""

import contextlib
import functools
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from settings.script import SettingsError

# nanoseconds; a file that was written a moment ago may be written again in the same tick of the file system's clock
A_MOMENT = 2 * 10**9
LARGE = 2**24  # bytes; smaller files are read in less time than it is worth to note
BLOCKS, BLOCK = 64, 4096  # how many parts of a file of which a note holds a hash, and of how many bytes


def files_below(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Every file below a folder in order of their names; links are followed, but not back to a folder they stand in.

    `above`: the folders on the way here, by device and number. A link to nothing is no file.
    """
    state = folder.stat()
    here = (state.st_dev, state.st_ino)
    if here in above:
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from files_below(path, (*above, here))
        elif path.is_file():
            yield path


def hash_of_files(folder: Path, files: Iterable[Path], *, anew: bool = False) -> str:
    """Hash of the names of files relative to `folder`, and of what they hold.

    Args:
        folder: Where they stand.
        files: Their paths.
        anew: Whether every file is read, as `content_digest` has it.

    Returns:
        16 hexadecimal digits.

    Raises:
        SettingsError: a file or a folder cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in files:
            name = os.fsencode(file.relative_to(folder).as_posix())
            digest.update(name + b"\0" + content_digest(file, anew=anew))
    except OSError as error:
        raise SettingsError(f"{str(error.filename)!r} cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:16]


class State(NamedTuple):
    """What nearly always changes when a file does, with times in nanoseconds.

    Besides its size and the times that a copy may carry over it has the time of the last change, which no program sets.
    A program that writes through a shared map of the file may change a few bytes and none of these.
    """

    device: int
    number: int
    size: int
    written: int
    changed: int


def state_of(file: Path) -> State:
    """The state of a file, behind a link that of what it leads to."""
    found = file.stat()
    return State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def content_digest(file: Path, *, anew: bool = False) -> bytes:
    """SHA-256 of what a file holds. It is read again once its state says that it may have changed.

    `anew`: it is read in any case, which also sees what a broken disk has changed.
    """
    state = state_of(file)
    if anew or time.time_ns() - state.changed <= A_MOMENT:
        return read_digest(file)
    return digest_in_state(file, state)


@functools.lru_cache(maxsize=2**18)
def digest_in_state(file: Path, state: State) -> bytes:
    """SHA-256 of a file in that state; that of a large file is noted for other processes."""
    if state.size < LARGE:
        return read_digest(file)
    note = notes_folder() / f"{state.device}-{state.number}.json"
    known = {"state": list(state), "sample": sample(file, state.size)}
    if (noted := read_note(note, known)) is not None:
        return noted
    digest = read_digest(file)
    if state_of(file) == state:  # else it was written while it was read
        write_note(note, known, digest)
    return digest


def sample(file: Path, size: int) -> str:
    """A hash of blocks that lie evenly over a file: two disks may give files of one state the same number."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for number in range(BLOCKS):
            stream.seek(number * max(0, size - BLOCK) // (BLOCKS - 1))
            digest.update(stream.read(BLOCK))
    return digest.hexdigest()


def read_digest(file: Path) -> bytes:
    """SHA-256 of a file, which is read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


# ---- what other processes have read


def notes_folder() -> Path:
    """Where the digests of large files are noted: in the user's cache, because models may stand where nobody may
    write.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    known = not cache.startswith("~")  # a user without a home has no cache
    return Path(cache if known else os.devnull) / "clear_unlearning" / "digests"


def read_note(note: Path, known: dict[str, Any]) -> bytes | None:
    """The digest that is noted of a file of which that is known; None: none, or of another file or state."""
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        digest = bytes.fromhex(noted.pop("sha256"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or torn
        return None
    return digest if noted == known and len(digest) == hashlib.sha256().digest_size else None


def write_note(note: Path, known: dict[str, Any], digest: bytes) -> None:
    """Note a file's digest; where nobody can write it is read again next time."""
    aside = note.with_name(f"{note.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(known | {"sha256": digest.hex()}), encoding="utf-8")
        aside.rename(note)
