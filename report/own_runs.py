"""Evaluated models that no benchmark file made -> which of them is base, gold, start and run, by their records."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aggregate_eval_stat import aggregate_all
from engine.evaluated import (
    CODE,
    TAUGHT,
    UNKNOWN,
    base_among,
    began_with,
    find_logs,
    how_taught,
    logs_below,
    made_from,
    method_of,
    model_name_of,
    training_settings,
)
from engine.logs import read_records, recorded, training_record
from engine.places import ANCHORS, ONE_SEED, add_places
from engine.record import EVAL_RECORD
from engine.result_table import ModelResult
from engine.seeds import seed_groups
from report.face_networks import add_network_figures
from report.faces import add_distances, face_figures
from report.folder import Described, FinishedStage
from settings.results import Aggregate
from settings.script import SettingsError, compose

SPLITS = ("split", "retain_split")  # in which the settings of base, gold and a run differ by what they are
FACES_KEPT = "retain"  # the split of faces that gold is taught


@dataclass(frozen=True)
class Evaluated:
    """An evaluated model, by its records."""

    log: Path
    meta: dict[str, Any]  # of the evaluation
    train_meta: dict[str, Any]  # of the training; empty where no record is this model's

    @property
    def name(self) -> str:
        return model_name_of(self.log)

    @property
    def fingerprint(self) -> str:
        return str(self.meta["model"])

    @property
    def began_with(self) -> str:
        return began_with(self.train_meta)

    @property
    def method(self) -> str | None:
        return method_of(self.train_meta)

    @property
    def is_taught(self) -> bool:
        """Whether its record says that it was taught people, and was made to forget nobody."""
        return self.train_meta.get("method") in TAUGHT

    @property
    def split(self) -> Any:
        return recorded(self.train_meta, "settings", "split")

    @property
    def kept_split(self) -> Any:
        """The split of those whom a run keeps, which is what its gold is taught."""
        return recorded(self.train_meta, "settings", "retain_split") or FACES_KEPT

    @property
    def seed(self) -> int:
        """The seed of its training; models without one come first."""
        seed = self.train_meta.get("seed")
        return -1 if seed is None else int(seed)

    @property
    def track(self) -> str:
        """The recipes that evaluated it: mm, nlp or cv."""
        tasks = recorded(self.meta, "settings", "tasks")
        if not isinstance(tasks, dict):
            return "cv"
        return "mm" if any(recorded(task, "image") for task in tasks.values()) else "nlp"


@dataclass
class OwnRuns:
    """What a page of own runs is made of."""

    track: str
    runs: list[Evaluated]
    bases: list[Evaluated]
    golds: list[Evaluated]
    start: Evaluated | None
    notes: list[str] = field(default_factory=list)  # what is missing or left out, a line each

    @property
    def anchors(self) -> set[str]:
        """The fingerprints of bases, golds and start."""
        return {each.fingerprint for each in (*self.bases, *self.golds, *([self.start] if self.start else []))}

    def base_of(self, model: Evaluated) -> Evaluated:
        """The base that a model was made from; gold, start and a model made elsewhere are set against the first."""
        bases = {each.fingerprint: each for each in self.bases}
        found = base_among(bases, model.fingerprint, parents_of(self.runs))
        return bases[found] if found else self.bases[0]

    @property
    def models(self) -> list[Evaluated]:
        """Those that have a row: every base, the first gold, the start, and every run."""
        return [*self.bases, self.golds[0], *([self.start] if self.start else []), *self.runs]


def find_own_runs(folders: Sequence[Path], golds: Sequence[str], base: Sequence[str], start: str | None) -> OwnRuns:
    """Find out which evaluated model is what.

    A run's record names the model that it began with, which is its base, and the split that it keeps, which is what its
    gold was taught. Gold was taught otherwise as base was, from the same start. What is told goes before what is found.

    Args:
        folders: Where evaluated models stand, at any depth.
        golds: Logs, folders of models or globs; none: they are found.
        base: The same of the models before forgetting.
        start: The same of the model before it was taught anybody.

    Raises:
        SettingsError: Base or gold is not there, or the models are of several tracks.
    """
    found = {log.resolve(): log for folder in folders for log in logs_of(folder)}
    told = {name: named(f"--{name}", values) for name, values in (("gold", golds), ("base", base))}
    told["start"] = named("--start", [start] if start else [])
    every = [read_evaluated(log) for log in found.values()]
    known = {each.log.resolve() for each in every}
    every += [each for named_ in told.values() for each in named_ if each.log.resolve() not in known]
    check_one_track(every)
    runs = [each for each in every if each.method]
    bases = told["base"] or find_bases(runs, every, folders)
    own_golds = told["gold"] or find_golds(runs, bases, every, folders)
    starts = told["start"] or find_start(bases, every)
    anchors = {each.fingerprint for each in (*bases, *own_golds, *starts)}
    runs = [each for each in every if each.fingerprint not in anchors and not each.is_taught]
    chosen = OwnRuns(every[0].track, in_order(runs), in_order(bases), in_order(own_golds), next(iter(starts), None))
    chosen.notes = notes_on(chosen, every)
    check_fit(chosen)
    return chosen


def logs_of(folder: Path) -> list[Path]:
    """The logs below a folder; raises SettingsError where it is none, or holds none."""
    if not folder.is_dir():
        raise SettingsError(f"{str(folder)!r} is no folder; name the folders of evaluated models")
    logs = list(logs_below(folder))
    if not logs:
        raise SettingsError(
            f"{str(folder)!r} holds no evaluated model and no finished benchmark: eval.py model_path=<model> evaluates "
            "one, python run_benchmark.py makes the other"
        )
    return logs


def named(option: str, values: Sequence[str]) -> list[Evaluated]:
    """The evaluated models that an option names."""
    return [read_evaluated(log) for value in values for log in find_logs(option, value)]


def read_evaluated(log: Path) -> Evaluated:
    """An evaluated model; raises SettingsError where its evaluation left no record, which a page needs."""
    meta, train_meta = read_records(str(log.parent), log)
    if not isinstance(meta.get("model"), str) or not isinstance(meta.get("settings"), dict):
        raise SettingsError(
            f"{str(log)!r} has no {EVAL_RECORD} beside it that says what was asked, and the page shows the questions: "
            "evaluate the model with eval.py (aggregate_eval_stat.py makes a table without)"
        )
    return Evaluated(log, meta, train_meta)


def log_of(model: Evaluated) -> str:
    """The whole path of a model's log."""
    return str(model.log.resolve())


def in_order(models: Sequence[Evaluated]) -> list[Evaluated]:
    return sorted(models, key=lambda each: (each.method or each.name, each.seed))


def check_one_track(models: Sequence[Evaluated]) -> None:
    """Raise SettingsError where the models are of several tracks: they were asked something else."""
    tracks: dict[str, str] = {}
    for model in models:
        tracks.setdefault(model.track, str(model.log.parent))
    if len(tracks) > 1:
        each = ", ".join(f"{track} ({place})" for track, place in tracks.items())
        raise SettingsError(f"the evaluated models are of several tracks, {each}: name the folders of one")


# ---- base, gold and start


def find_bases(runs: Sequence[Evaluated], every: Sequence[Evaluated], folders: Sequence[Path]) -> list[Evaluated]:
    """The models that the runs began with; of a run that began with another run, that one's."""
    if not runs:
        raise SettingsError(
            f"no base: no record below {listed(folders)} is of a model that was made to forget, which would name its "
            "base; name it with --base"
        )
    by_fingerprint = {each.fingerprint: each for each in every if not each.method}
    bases: dict[str, Evaluated] = {}
    for run in runs:
        base = by_fingerprint.get(base_among(by_fingerprint, run.fingerprint, parents_of(every)) or UNKNOWN)
        if base is None:
            raise SettingsError(
                f"no base: {run.name} began with {recorded(run.train_meta, 'settings', 'model_path')!r}, of which no "
                f"evaluation lies below {listed(folders)}; evaluate it there, or name its log with --base"
            )
        bases[base.fingerprint] = base
    return list(bases.values())


def parents_of(models: Sequence[Evaluated]) -> dict[str, str]:
    """Fingerprint -> that of the model that it began with, of those that were made to forget."""
    return made_from({each.fingerprint: each.train_meta for each in models})


def find_golds(
    runs: Sequence[Evaluated], bases: Sequence[Evaluated], every: Sequence[Evaluated], folders: Sequence[Path]
) -> list[Evaluated]:
    """The models that were taught as a base was, but whom the runs keep alone."""
    kept = sorted({str(run.kept_split) for run in runs})
    if not kept:
        raise SettingsError(
            f"no gold: no record below {listed(folders)} is of a model that was made to forget, which would say whom "
            "it keeps; name gold with --gold"
        )
    if len(kept) > 1:
        raise SettingsError(f"the runs keep different people, {' and '.join(kept)}: name the folders of one kind")
    taught = {comparable(base) for base in bases}
    if len(taught) > 1:
        other = next(base for base in bases if comparable(base) != comparable(bases[0]))
        raise SettingsError(
            f"the bases of the runs were taught otherwise, {bases[0].name} and {other.name}: "
            f"{why_otherwise(other, bases[0])}; name the folders of one kind, or the golds of both with --gold"
        )
    golds = [each for each in every if each.is_taught and each.split == kept[0]]
    fitting = {each.fingerprint: each for each in golds if comparable(each) in taught}
    if fitting:
        return list(fitting.values())
    otherwise = (
        f" ({golds[0].name} was taught otherwise than the base: {why_otherwise(golds[0], bases[0])})" if golds else ""
    )
    raise SettingsError(
        f"no gold: no evaluated model below {listed(folders)} was finetuned on split={kept[0]} as the base was on "
        f"{bases[0].split}{otherwise}; finetune.py split={kept[0]} makes one, eval.py evaluates it, and --gold names "
        "one elsewhere"
    )


def comparable(model: Evaluated) -> tuple:
    """How a model was taught, but whom and with which seed."""
    return how_taught(model.train_meta, SPLITS)


def taught_settings(model: Evaluated) -> dict[str, Any]:
    """The settings that golds and base have in common; the code may have changed in between."""
    told = training_settings(model.train_meta)
    return {name: value for name, value in told.items() if name not in (*SPLITS, CODE)}


def why_otherwise(one: Evaluated, other: Evaluated) -> str:
    """The first settings in which two models were taught differently."""
    own, others = taught_settings(one), taught_settings(other)
    names = sorted(name for name in own.keys() | others.keys() if own.get(name) != others.get(name))
    said = [f"{name} {own.get(name)!r}, not {others.get(name)!r}" for name in names[:2]]
    return ", ".join(said) or "it began with another model"


def find_start(bases: Sequence[Evaluated], every: Sequence[Evaluated]) -> list[Evaluated]:
    """The model that the bases were taught from, where it was evaluated; raises SettingsError for several."""
    wanted = {base.began_with for base in bases if base.is_taught}
    found = {each.fingerprint: each for each in every if each.fingerprint in wanted}
    if len(found) > 1:
        names = " and ".join(each.name for each in found.values())
        raise SettingsError(f"the bases were taught from several models, {names}: name one with --start")
    return list(found.values())


def listed(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))


# ---- what is missing


def notes_on(chosen: OwnRuns, every: Sequence[Evaluated]) -> list[str]:
    """What the page does without, and which models it leaves out, a line each."""
    notes = []
    if chosen.start is None:
        notes.append(
            "no start: the model that the base was taught from is not evaluated here, so that it is not known what was "
            "kept of the taught; evaluate it, or name it with --start"
        )
    if len(chosen.golds) < 2:
        notes.append(
            f"one gold: nothing is concluded of people without a second; finetune.py split={chosen.golds[0].split} "
            "with another seed makes it"
        )
    shown = {each.fingerprint for each in (*chosen.models, *chosen.golds)}
    left = [each for each in every if each.fingerprint not in shown]
    names = [f"{each.name} (taught {each.split})" for each in left]
    notes += [f"left out, neither base nor gold of these runs: {', '.join(names)}"] if names else []
    return notes


def check_fit(chosen: OwnRuns) -> None:
    """Raise SettingsError where nothing is left to judge, or one model is said to be two things."""
    if not chosen.runs:
        raise SettingsError("no run: every evaluated model is base, gold or start, or was only taught")
    base = {each.fingerprint: each for each in chosen.bases}
    for gold in chosen.golds:
        if gold.fingerprint in base:
            raise SettingsError(f"gold {gold.log} is the same model as base {base[gold.fingerprint].log}")


# ---- figures


def own_results(chosen: OwnRuns, save_file: str) -> tuple[list[ModelResult], list[str], Aggregate]:
    """The figures of every model, what must be said of them, and the settings by which they were computed.

    Args:
        chosen: The models.
        save_file: Where the table will stand.
    """
    settings = compose("aggregate_eval_stat", Aggregate, [f"scoring={chosen.track}"])
    logs = {
        "ckpt_result": [str(each.log) for each in chosen.models],
        "retain_result": [str(each.log) for each in chosen.golds],
        "base_result": [str(each.log) for each in chosen.bases],
        "start_result": str(chosen.start.log) if chosen.start else None,
    }
    results, notes = aggregate_all(replace(settings, **logs, save_file=save_file))
    add_face_figures(chosen, results)
    for group in seed_groups(results):
        for result in group.results:
            if result.method not in ANCHORS:  # runs of one method with other settings are rows of their own
                result.method = group.label
    add_places(seed_groups(results), {}, ONE_SEED)
    return results, notes, settings


def add_face_figures(chosen: OwnRuns, results: Sequence[ModelResult]) -> None:
    """Add what the logs of face networks do not hold: verification, attacks, and their distances to gold, of each model
    by its own base.

    Args:
        chosen: The models.
        results: Their figures, in the order of `chosen.models`; they are changed.
    """
    for result in results:
        assert result.log is not None  # they come from logs
        result.figures |= face_figures(result.log.parent.parent)
    if chosen.track != "cv":
        return
    of_base: dict[str, dict[str, ModelResult]] = {}
    for number, (model, result) in enumerate(zip(chosen.models, results, strict=True)):
        name = str(number) if model.fingerprint not in chosen.anchors else result.method
        of_base.setdefault(chosen.base_of(model).fingerprint, {})[name] = result
    gold = next(result for result in results if result.method == "gold")
    further = [face_figures(each.log.parent.parent) for each in chosen.golds[1:]]
    for number, of_method in enumerate(of_base.values()):
        # gold's own distance is 0 by every base; what golds differ by is said of the first
        own_gold = gold if number == 0 else replace(gold, figures=dict(gold.figures))
        add_distances(of_method | {"gold": own_gold}, further)
        add_network_figures(of_method | {"gold": own_gold})


def describe(chosen: OwnRuns, name: str, command: str) -> Described:
    """What the page says of the runs."""
    methods = {each.method or each.name for each in chosen.runs}
    seeds = sorted({each.seed for each in chosen.runs if each.seed >= 0})
    models = [*chosen.bases, *chosen.golds, *([chosen.start] if chosen.start else []), *chosen.runs]
    names = Counter(model.name for model in models)
    stages = []
    for model in models:
        told = model.name if names[model.name] == 1 else str(model.log.parent)
        stages += stages_of(model, told)
    return Described(name, len(methods), seeds, command, stages)


def stages_of(model: Evaluated, name: str) -> list[FinishedStage]:
    """The training and the evaluation of a model, as its records have them."""
    stages = []
    training = training_record(model.log, model.meta)
    if training and model.train_meta:
        kind = "forget" if model.method else str(model.train_meta.get("method", "finetune"))
        stages.append(stage_of(f"{kind} {name}", kind, training.parent, model.train_meta))
    return [*stages, stage_of(f"eval {name}", "eval", model.log.parent, model.meta)]


def stage_of(name: str, kind: str, output: Path, record: dict[str, Any]) -> FinishedStage:
    cost = {key: float(record.get(key) or 0.0) for key in ("seconds", "peak_memory_gb")}
    return FinishedStage(name=name, kind=kind, output=output.resolve(), command="", **cost)
