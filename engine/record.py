"""What a run leaves beside its results: folders and files that are whole or not there, cost, versions."""

import contextlib
import hashlib
import json
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from settings.script import SettingsError, processes

TRAIN_RECORD, EVAL_RECORD, ATTACK_RECORD = "train_meta.json", "eval_meta.json", "attack_meta.json"
RECORDS = {"eval": EVAL_RECORD, "attack": ATTACK_RECORD}  # by kind of run; all others train
AGGREGATED = "eval_log_aggregated.json"  # all tasks of an evaluation in one file
VERIFICATION = "verification.json"  # accuracy, equal error rate and score distributions of face recognition
ATTACK_FIGURES = "attack.json"  # what membership attacks tell of the forgotten and of the kept people


def check_save_dir(folder: str, overwrite: bool, record: str) -> None:
    """Raise SettingsError unless `folder` can be written: not there yet, or with `overwrite` a former run's, known by
    its `record` file.
    """
    path = Path(folder)
    if not path.name:
        raise SettingsError(f"save_dir={folder!r} must name a folder of its own")
    if path.exists() and not overwrite:
        raise SettingsError(f"save_dir={folder!r} exists; overwrite=true replaces it")
    if path.exists() and not (path / record).is_file():
        raise SettingsError(
            f"save_dir={folder!r} holds something else than a former run ({record} is missing); remove it yourself"
        )
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise SettingsError(f"save_dir={folder!r} cannot be made: {above} is a file")


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` only when everything is there; a torn one never carries its name."""
    folder = folder.resolve()  # what a link points to is replaced, not the link
    aside, former = (folder.with_name(f"{folder.name}.{state}") for state in ("partial", "former"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():  # renamed before it is removed: an interruption never leaves half of it under its name
        folder.rename(former)
    aside.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def write_bytes_whole(file: Path, content: bytes) -> None:
    """Write a file aside and rename it, so that an interrupted run leaves the old one or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.partial")
    aside.write_bytes(content)
    aside.rename(file)


def write_text_whole(file: Path, text: str) -> None:
    """The same for a text."""
    write_bytes_whole(file, text.encode())


def write_json(file: Path, content: Any) -> None:
    write_text_whole(file, json.dumps(content, indent=1, default=str) + "\n")


def read_json(file: Path) -> Any:
    """The content of a record. Raises SettingsError if the file is missing or torn."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{str(file)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:  # bad UTF-8 as well as bad JSON
        raise SettingsError(f"{str(file)!r} is not JSON ({str(error).splitlines()[0]})") from None


def start_of_peak() -> None:
    """Forget the peak so far, so that `peak_memory_gb` speaks of what follows (where the system allows it:

    CUDA, Linux).
    """
    import torch  # here, because the report reads records without it

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gb() -> float:
    """Most memory this process has held since `start_of_peak`, in GB (10^9 bytes): of the accelerator where there is
    one, else resident.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def versions() -> dict[str, str]:
    """What a figure depends on besides settings: Python and the libraries that compute."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "transformers", "accelerate", "peft", "datasets")
    }


def say_line(line: str) -> None:
    """Print a line of progress at once, also into a pipe; of several processes only the first speaks."""
    if processes().is_main_process:
        print(line, flush=True)


def model_fingerprint(path: str) -> str:
    """Hash of what makes a model folder this model (weights, configuration, tokenizer, chat template), or the hub
    id.
    """
    endings = ("*.safetensors", "*.json", "*.jinja")
    files = sorted(file for ending in endings for file in Path(path).glob(ending) if file.name != TRAIN_RECORD)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16] if files else f"hub:{path}"
