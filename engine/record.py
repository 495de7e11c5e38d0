"""The record of a run: what is looked at before it begins, and what it leaves beside its results (whole files, the key
of what it did, cost, versions).
"""

import contextlib
import functools
import hashlib
import json
import platform
import re
import resource
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.files import content_digest, files_below, hash_of_files
from engine.folders import MARK, check_save_dir
from engine.source import Code, code_of
from settings.inputs import Inputs
from settings.script import SettingsError, processes

TRAIN_RECORD, EVAL_RECORD, ATTACK_RECORD = "train_meta.json", "eval_meta.json", "attack_meta.json"
ALTERNATIVES_RECORD, MEMBERSHIP_RECORD = "alternatives_meta.json", "membership_meta.json"
RECORDS = {"eval": EVAL_RECORD, "attack": ATTACK_RECORD}  # by kind of run; all others train
EVAL_FOLDER = "eval_results"  # in a model's folder, where eval.py writes unless it is told another
ATTACK_FOLDER = "attack_results"  # beside that, where attack.py writes
AGGREGATED = "eval_log_aggregated.json"  # all tasks of an evaluation in one file
VERIFICATION = "verification.json"  # accuracy, equal error rate and score distributions of face recognition
ATTACK_FIGURES = "attack.json"  # what membership attacks tell of the forgotten and of the kept people
NETWORKS, QUERIES = "similarities.safetensors", "queries.json"  # beside it: what each attacked network makes of what
MEMBERSHIP_FIGURES = "membership.json"  # the same of people by their losses, through shadow language models
PLAN = "benchmark.json"  # what run_benchmark.py leaves of its settings and stages
OWN_RUNS = "own_runs.json"  # what a page of own runs was made of
# what python -m report writes into the folder that holds one of these two
VIEWS = ("results.parquet", "results.csv", "table.md", "table.tex", "report.html")
METRICS = "metrics.jsonl"  # a line for every step of a training
# settings that say where things go, and decide no result; a model's folder is an input, known by what it holds
PLACES = ("save_dir", "model_path", "shadows_dir", "overwrite", "report_to", "plan")
# settings of a training that decide no result, by the names of the settings that hold them
OF_TRAINERS = {"trainer": ("save_every", "report_to"), "finetune": ("save_every", "report_to")}
NO_FOLDER = "hub:"  # how the fingerprint of what is no model's folder begins
NO_PART_OF_A_MODEL = (TRAIN_RECORD, METRICS, MARK, "README.md")


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


# ---- what was done


def made_of(settings: dict[str, Any], inputs: Inputs, code: Code) -> dict[str, Any]:
    """What a piece of work depends on: decisive settings, fingerprints of what it reads and of the code that it runs.

    The versions of the libraries are no part of it; a record names them.

    Raises:
        SettingsError: an input is a file that cannot be read.
    """
    return {
        "settings": decisive_settings(settings),
        "inputs": fingerprints(inputs),
        "code": code.fingerprint(inputs.losses),
    }


def decisive_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide a result: no places, and nothing that only says how a training is watched."""
    decisive = {name: value for name, value in settings.items() if name not in PLACES}
    for name, watching in OF_TRAINERS.items():
        if isinstance(trainer := decisive.get(name), dict):
            decisive[name] = {key: value for key, value in trainer.items() if key not in watching}
    return decisive


def work_key(settings: dict[str, Any], inputs: Inputs, code: Code) -> str:
    """What a finished piece of work depends on, as a hash: whatever has the same key need not be done again.

    Args:
        settings: those that decide the results; those that name a place are passed over.
        inputs: what it reads.
        code: what it runs.

    Returns:
        16 hexadecimal digits.

    Raises:
        SettingsError: an input is a file that cannot be read.
    """
    return key_of(made_of(settings, inputs, code))


def key_of(parts: dict[str, Any]) -> str:
    """The hash of what `made_of` gives."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def begin_run(settings: Any, record: str, file: str) -> Code:
    """Check all that can be known of `save_dir` before a recipe runs, and take its lock until the run ends.

    Args:
        settings: the recipe's, with `inputs()`.
        record: the file by which a former run's folder is known.
        file: the recipe's.

    Returns:
        The recipe's code, as it stands now.

    Raises:
        FolderExists: `save_dir` is there, and is not to be replaced.
        SettingsError: `save_dir` cannot be written, or must not be.
    """
    code = code_of(file)

    def key() -> str:
        return str(run_facts(settings, code)["key"])

    check_save_dir(settings.save_dir, settings.overwrite, record, settings.inputs(), key=key)
    return code


def run_facts(settings: Any, code: Code) -> dict[str, Any]:
    """What the record of a recipe's run says of what was run.

    Args:
        settings: the recipe's, with `inputs()`; what they name must be there.
        code: the recipe's, read when it began.
    """
    written = asdict(settings)
    parts = made_of(written, settings.inputs(), code)
    return {"settings": written, "key": key_of(parts), "inputs": parts["inputs"], "code": parts["code"]}


def why_another(record: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """In what a run that left `record` differs from one of these `run_facts`, one text for each difference."""
    if record.get("key") == facts.get("key"):
        return []
    if not {"settings", "inputs", "code"} <= record.keys():
        return ["its record does not say what it was made of"]
    written = json.loads(json.dumps(facts["settings"], default=str))  # as the record has them
    before, now = flat(decisive_settings(record["settings"])), flat(decisive_settings(written))
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    why = [f"{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in names]
    for kind in ("data", "models", "files"):
        if record["inputs"].get(kind) != facts["inputs"][kind]:
            why.append({"data": "the data", "models": "the model it begins with", "files": "a file it reads"}[kind])
    if record["code"] != facts["code"]:
        why.append("the code")
    return why or ["its record was changed"]


def flat(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, dict) and value else {f"{above}{name}": value}
    return found


def other_versions(record: dict[str, Any]) -> str:
    """The libraries of another version than `record` names, as in `torch 2.13 -> 2.14`; empty: none."""
    before = record.get("versions", {})
    return ", ".join(
        f"{name} {before[name]} -> {now}" for name, now in versions().items() if before.get(name, now) != now
    )


def write_record(file: Path, *, seconds: float, **facts: Any) -> None:
    """Write what was run: the facts, its seconds, its peak memory in GB, the machine, the libraries' versions, and a
    fingerprint of every file that stands beside the record.

    The peak is that since `start_of_peak`, unless `facts` say another `peak_memory_gb`. All other files must be there.
    """
    cost = {"seconds": seconds, "machine": machine(), "versions": versions()}
    write_json(file, {"peak_memory_gb": peak_memory_gb(), **facts, **cost, "files": digests_beside(file)})


def digests_beside(record: Path) -> dict[str, str]:
    """Fingerprint of each file in a record's folder and below it, by its name there; not of the record itself."""
    files = [file for file in files_below(record.parent) if file != record and file.name != MARK]
    return {file.relative_to(record.parent).as_posix(): file_fingerprint(str(file)) for file in files}


def what_no_longer_matches(record: Path) -> list[str]:
    """What is no longer as a record says: its own key, the files beside it, and the model of an evaluation.

    All files are read: what was noted of them counts for nothing here.

    Args:
        record: A record's file.
    """
    facts = read_json(record)
    folder = record.parent
    if not isinstance(facts, dict) or not {"files", "key", "settings", "inputs", "code"} <= facts.keys():
        return [f"{record}: it names no fingerprints (an earlier version of the suite wrote it)"]
    made = {**{name: facts[name] for name in ("inputs", "code")}, "settings": decisive_settings(facts["settings"])}
    lines = [] if key_of(made) == facts["key"] else [f"{record}: its settings or its key were changed"]
    for name, digest in facts["files"].items():
        if not (folder / name).is_file():
            lines.append(f"{folder / name}: the file is gone")
        elif file_fingerprint(str(folder / name), anew=True) != digest:
            lines.append(f"{folder / name}: the file was changed")
    model = folder.parent
    of_model = record.name == EVAL_RECORD and (model / TRAIN_RECORD).is_file() and "model" in facts
    if of_model and model_fingerprint(str(model), anew=True) != facts["model"]:
        lines.append(f"{record}: it is of another model than {model} holds")
    return lines


def machine() -> dict[str, str | int]:
    """What rounding follows besides settings: the processor with the instructions it has for matrices, the threads, the
    processes, and the GPU where there is one.
    """
    import torch

    about: dict[str, str | int] = {"processor": processor_name(), "instructions": matrix_instructions()}
    about |= {"threads": torch.get_num_threads(), "processes": processes().num_processes}
    return about | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def processor_name() -> str:
    """The processor's name, as the system gives it."""
    named = re.search(r"^model name\s*:\s*(.+)$", cpu_facts(), re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def matrix_instructions() -> str:
    """Those of the processor's instruction sets that decide how fast and how exactly matrices are multiplied."""
    flags = set(cpu_facts().split())
    return " ".join(name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags)


@functools.cache
def cpu_facts() -> str:
    """What Linux says of the processor; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def versions() -> dict[str, str]:
    """What a figure depends on besides settings: Python and the libraries that compute."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "transformers", "accelerate", "peft", "datasets")
    }


def fingerprints(inputs: Inputs) -> dict[str, list[str]]:
    """What the inputs hold, by kind."""
    from data_module import fingerprint  # here, because it loads the library of datasets

    return {
        "data": [fingerprint(path) for path in inputs.data],
        "models": [model_fingerprint(path) for path in inputs.models],
        "files": [file_fingerprint(path) for path in inputs.files],
    }


def file_fingerprint(path: str, *, anew: bool = False) -> str:
    """Hash of a file, read in any case if `anew`. Raises SettingsError if it cannot be read."""
    try:
        return content_digest(Path(path), anew=anew).hex()[:16]
    except OSError as error:
        raise SettingsError(f"{path!r} cannot be read: {error.strerror}") from None


def model_fingerprint(path: str, *, anew: bool = False) -> str:
    """Hash of what makes a model folder this model, or the hub id; every file is read in any case if `anew`.

    It counts every file in the folder itself, whatever the format of its weights, and the further chat templates; the
    record of its training, its curve, its card and locks do not count, nor do the results in folders below.
    """
    folder = Path(path)
    kept = [*folder.glob("*"), *(folder / "additional_chat_templates").glob("*")]
    files = sorted(file for file in kept if file.is_file() and is_part_of_a_model(file))
    return hash_of_files(folder, files, anew=anew) if files else f"{NO_FOLDER}{path}"


def is_part_of_a_model(file: Path) -> bool:
    """Whether a file in a model's folder makes the model; a lock is that of an evaluation into a folder below."""
    return file.name not in NO_PART_OF_A_MODEL and file.suffix != ".lock"


# ---- what is said


def say_line(line: str) -> None:
    """Print a line of progress at once, also into a pipe; of several processes only the first speaks."""
    if processes().is_main_process:
        print(line, flush=True)
