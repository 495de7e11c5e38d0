"""Models that are there and take part in a benchmark: a base, golds, and rows made elsewhere. Do they fit it?"""

from pathlib import Path
from typing import Any

from benchmark.plan import Stage, base_path, model_path
from data_module import fingerprint
from engine.language_model import check_model_path
from engine.logs import recorded
from engine.record import TRAIN_RECORD, model_fingerprint, read_json, say_line
from report.folder import START
from settings.language import Forget
from settings.results import Benchmark
from settings.script import SettingsError


def check_models(benchmark: Benchmark) -> None:
    """Raise SettingsError for a model made elsewhere that is not there, before anything is trained.

    A line says which of them is one and the same for all seeds.
    """
    for row, named in benchmark.models.items():
        if len(benchmark.seeds) > 1 and "{seed}" not in named:
            say_line(
                f"benchmark.models.{row}={named!r} is one model for the seeds {benchmark.seeds}: its rows differ by "
                "their base and gold alone; {seed} in the path names a model for each"
            )
        for seed in benchmark.seeds:
            path, name = model_path(benchmark, row, seed), f"benchmark.models.{row}"
            check_place(benchmark, path, name)
    for name, path in given_models(benchmark):
        check_place(benchmark, path, name)


def check_place(benchmark: Benchmark, path: str, name: str) -> None:
    """Raise SettingsError where no model stands; `name` is the setting that names the place."""
    if benchmark.modality != "cv":
        check_model_path(path, name)
    elif not Path(path).is_dir():
        raise SettingsError(f"{name}={path!r} is no folder")


def given_models(benchmark: Benchmark) -> list[tuple[str, str]]:
    """Setting and place of every base and gold that is not trained here."""
    bases = [] if benchmark.base is None else [base_path(benchmark, Path(), seed) for seed in benchmark.seeds]
    named = [("benchmark.base", path) for path in dict.fromkeys(bases)]
    return named + [(f"benchmark.golds[{number}]", path) for number, path in enumerate(benchmark.given_golds)]


def check_given(benchmark: Benchmark, stages: list[Stage], composed: list[Any]) -> None:
    """Raise SettingsError where a base or gold that is there does not fit the benchmark, by weights and records.

    Whether the base knows the people is the memorisation gate's business. Of what no record says nothing is known.

    Args:
        benchmark: The settings.
        stages: All stages.
        composed: The settings of each.
    """
    seen: dict[str, str] = {}  # fingerprint -> setting
    for name, path in given_models(benchmark):
        is_base = name == "benchmark.base"
        other = seen.setdefault(model_fingerprint(path), name)
        if other != name:
            why = "golds are models of several seeds"
            why = "gold never met the people to forget" if other == "benchmark.base" else why
            raise SettingsError(f"{name}={path!r} is the same model as {other}: {why}")
        record = given_record(path)
        split, setting = recorded(record, "settings", "split"), "base_split" if is_base else "gold_split"
        if split not in (None, getattr(benchmark, setting)):
            raise SettingsError(
                f"{name}={path!r} was taught split={split}, as its record says, and benchmark.{setting} is "
                f"{getattr(benchmark, setting)}: name a model that fits, or set benchmark.{setting}"
            )
        for stage, settings in zip(stages, composed, strict=True):
            check_given_start(name, path, record, stage, settings)


def check_given_start(name: str, path: str, record: dict[str, Any], stage: Stage, settings: Any) -> None:
    """Raise SettingsError where a model was taught other data than a stage reads, or from another model than START."""
    data, began = recorded(record, "data"), recorded(record, "inputs", "models")
    if stage.kind == "forget" and isinstance(settings, Forget) and isinstance(data, str):
        now = fingerprint(settings.data.path)
        if now != data:
            raise SettingsError(
                f"{name}={path!r} was taught other data (fingerprint {data}) than {stage.name} reads (fingerprint "
                f"{now}): name the data that it was taught, or another model"
            )
    if stage.model == START and isinstance(began, list) and began:
        now = model_fingerprint(settings.model_path)
        if now != began[0]:
            raise SettingsError(
                f"{name}={path!r} was taught from another model (fingerprint {began[0]}) than the start "
                f"{settings.model_path!r} (fingerprint {now}): benchmark.common=['model.path=<its start>'] names it"
            )


def given_record(path: str) -> dict[str, Any]:
    """What the training of a model that is there left of itself; empty: nothing."""
    file = Path(path) / TRAIN_RECORD
    record = read_json(file) if file.is_file() else {}
    return record if isinstance(record, dict) else {}
