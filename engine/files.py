"""What files hold, as a hash: of everything that a loader would find, behind links too."""

import functools
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from settings.script import SettingsError

# nanoseconds; a file that was written a moment ago may be written again in the same tick of the file system's clock
A_MOMENT = 2 * 10**9


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


def hash_of_files(folder: Path, files: Iterable[Path]) -> str:
    """Hash of the names of files relative to `folder`, and of what they hold.

    Returns:
        16 hexadecimal digits.

    Raises:
        SettingsError: a file or a folder cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(os.fsencode(file.relative_to(folder).as_posix()) + b"\0" + content_digest(file))
    except OSError as error:
        raise SettingsError(f"{str(error.filename)!r} cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:16]


def content_digest(file: Path) -> bytes:
    """SHA-256 of what a file holds. It is read again once its state says that it may have changed.

    Besides its size and the times that a copy may carry over, the state has the time of the last change, which nobody
    can set.
    """
    state = file.stat()
    read = read_digest if time.time_ns() - state.st_ctime_ns > A_MOMENT else read_digest.__wrapped__
    return read(file, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))


@functools.lru_cache(maxsize=2**18)
def read_digest(file: Path, state: tuple[int, ...]) -> bytes:
    """SHA-256 of a file in that state."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
