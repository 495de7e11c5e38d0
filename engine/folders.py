"""Folders that a run writes: checked before anything runs, whole or not there, and never one of somebody else."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from settings.inputs import Inputs
from settings.runs import lock_folder
from settings.script import MAKE_ROOM, FolderExists, SettingsError

MARK = ".unfinished_run"  # in every folder that the suite may delete by itself
LONGEST_ENDING = ".checkpoints"  # of what a run puts beside its folder
LONGEST_BELOW = 100  # bytes of the longest path below a folder that a run writes
FULL = (errno.ENOSPC, errno.EDQUOT)


def check_save_dir(
    folder: str,
    overwrite: bool,
    record: str,
    inputs: Inputs | None = None,
    *,
    key: Callable[[], str] | None = None,
) -> None:
    """Check all that can be known of `save_dir` before a run begins, and take its lock until the run ends.

    Args:
        folder: Not there yet, or with `overwrite` a former run's.
        overwrite: Whether a former run's may be replaced.
        record: The file by which a former run's folder is known.
        inputs: What the run reads: none of it may stand in a folder that is replaced.
        key: Gives the run's key, by which a sweep knows a folder that it has made before.

    Raises:
        FolderExists: The folder is there, and is not to be replaced.
        SettingsError: The folder cannot be written, or must not be.
    """
    path = Path(folder)
    if not path.name:
        raise SettingsError(f"save_dir={folder!r} must name a folder of its own")
    check_nothing_inside(folder, inputs or Inputs())
    try:
        path.exists()
    except OSError as error:  # a name that is too long
        raise SettingsError(f"save_dir={folder!r} cannot be made: {error.strerror}") from None
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise SettingsError(f"save_dir={folder!r} cannot be made: {above} is a file")
    check_length(path, above)
    lock_folder(path.resolve(), "save_dir")  # what follows holds until the run ends
    exists = path.exists()
    if exists and not overwrite:
        line = f"save_dir={folder!r} exists; overwrite=true replaces it"
        raise FolderExists(line, lambda: key is not None and key_in(path / record) == key())
    if exists and not (path / record).is_file():
        raise SettingsError(
            f"save_dir={folder!r} holds something else than a former run ({record} is missing); remove it yourself"
        )
    for ending in ("partial", "former", "tasks", "checkpoints"):
        check_ours(beside(path, ending))


def key_in(record: Path) -> str | None:
    """The key of the run that left a record; None: there is no record that says one."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("key") if isinstance(content, dict) else None


def check_nothing_inside(folder: str, inputs: Inputs) -> None:
    """Raise SettingsError where something that the run reads is `folder` or stands in it."""
    for path in [*inputs.models, *inputs.data, *inputs.files]:
        if Path(path).exists() and Path(path).resolve().is_relative_to(Path(folder).resolve()):
            raise SettingsError(f"save_dir={folder!r} holds {path!r}, which this run reads; name another folder")


def check_length(path: Path, above: Path) -> None:
    """Raise SettingsError where a name that the run writes is longer than the file system allows.

    `above`: a folder on the way to `path` that is there.
    """
    name = f"{path.name}{LONGEST_ENDING}"
    most = {"PC_NAME_MAX": len(os.fsencode(name)), "PC_PATH_MAX": len(os.fsencode(path.absolute())) + LONGEST_BELOW}
    for limit, length in most.items():
        allowed = os.pathconf(above, limit)
        if 0 < allowed < length:
            what = "a name" if limit == "PC_NAME_MAX" else "a path"
            raise SettingsError(
                f"save_dir={str(path)!r} is too long: with what stands beside and below it {what} of {length} bytes is "
                f"written, and {above} allows {allowed}"
            )


def beside(folder: Path, ending: str) -> Path:
    """What a run puts beside its folder: partial, former, tasks or checkpoints."""
    folder = folder.resolve()  # what a link points to is replaced, not the link
    return folder.with_name(f"{folder.name}.{ending}")


def check_ours(folder: Path) -> None:
    """Raise SettingsError for a folder that stands where the suite would write, and that the suite did not make."""
    if folder.exists() and not (folder.is_dir() and ((folder / MARK).is_file() or not any(folder.iterdir()))):
        raise SettingsError(
            f"{str(folder)!r} stands where this run would write, and was not made by one ({MARK} is missing): move it "
            "away"
        )


def marked(folder: Path) -> Path:
    """The folder, made where it is missing, with the mark that lets the suite delete it."""
    check_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    return folder


def remove_ours(folder: Path) -> None:
    """Delete a folder with all it holds, if the mark inside proves that the suite made it.

    Raises SettingsError if there is none.
    """
    check_ours(folder)
    if folder.exists():
        # the mark goes last: a kill in between must leave it
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            elif child.name != MARK:
                child.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def written_whole(folder: Path, if_full: str = MAKE_ROOM) -> Iterator[Path]:
    """A folder to write into that becomes `folder` only when everything is there; a torn one never carries its name.

    Raises SettingsError where another's folder stands in the way, or the disk is full; `if_full`: what it then says.
    """
    folder = folder.resolve()
    aside, former = beside(folder, "partial"), beside(folder, "former")
    remove_ours(aside)
    remove_ours(former)
    marked(aside)
    try:
        with full_disk_said(folder, if_full):
            yield aside
    except BaseException:
        remove_ours(aside)
        raise
    if folder.exists():  # renamed before it is removed: an interruption never leaves half of it under its name
        (folder / MARK).touch()
        folder.rename(former)
    aside.rename(folder)
    (folder / MARK).unlink()
    remove_ours(former)


@contextlib.contextmanager
def full_disk_said(folder: Path, then: str = MAKE_ROOM) -> Iterator[None]:
    """Turn a full disk into a SettingsError that says what to do `then`."""
    try:
        yield
    except Exception as error:  # safetensors and pyarrow have errors of their own
        if is_full_disk(error):
            raise SettingsError(f"{str(folder)!r} could not be written: the disk is full; {then}") from None
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that no space is left."""
    texts = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")
    said = getattr(error, "errno", None) in FULL or any(text in str(error) for text in texts)
    return said or (error.__cause__ is not None and is_full_disk(error.__cause__))


def check_space(folder: Path, needed: int, how: str) -> None:
    """Raise SettingsError where fewer than `needed` bytes are free; `how`: of what they are the sum."""
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise SettingsError(
            f"save_dir={str(folder)!r} needs about {needed / 1e9:.2f} GB ({how}), and {above} has {free / 1e9:.2f} GB "
            "free"
        )
