"""Evaluation logs -> rows of figures: python aggregate_eval_stat.py ckpt_result=...

The logs are those of judged models, of gold and of the base; a model's folder or a glob names them as well. The rows go
into `save_file`, beside those that are there, and a table of all of them is printed. Where a figure cannot be known,
the table says why.
"""

from settings.help import say_help

if __name__ == "__main__":
    say_help("aggregate_eval_stat")  # here, so that --help need not wait for the libraries below

import json
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.attack_figures import attack_figures_beside
from engine.evaluated import (
    Origin,
    base_among,
    began_with,
    data_of,
    digest_of,
    find_logs,
    fingerprint_of,
    how_taught,
    losses_of,
    made_from,
    method_of,
    model_name_of,
    training_settings,
)
from engine.figures import figures_of_logs
from engine.logs import EvalLog, check_different_models, check_same_rows, forgotten_modality, read_eval_log
from engine.measures import MEASURES
from engine.metrics import ASCII, rouge_tokenizer
from engine.places import ANCHORS
from engine.result_table import Column, ModelResult, short_columns, wide_row
from engine.seeds import parted_notes, seed_groups
from engine.short_tables import against_notes, place_notes, print_texts, table_texts
from engine.source import code_of
from engine.table_rows import add_rows, identity, row_name
from engine.tracking import tracked
from settings.results import Aggregate, Scoring
from settings.script import ROOT, SettingsError, script

ALSO_PRINTED = ("gate",)  # beside what the short tables show
# settings that may be null, and what is not known then
LEFT_OUT = {"base_result": "the gate and the distance to gold", "start_result": "what was kept of the taught"}
NOT_PRINTED = ("train_seconds",)
DECIDING = ("group", "multiple_choice", "gate", "members", "way_of", "way", "leaks_only", "modality", "draws")


@script("aggregate_eval_stat", Aggregate)
def main(settings: Aggregate) -> None:
    made, notes = aggregate_all(settings)
    results, replaced = add_rows(made, settings.save_file)
    for line in notes + replaced:
        print(line)
    track_rows(made, settings)
    if settings.show == "all":
        for result in made:
            print_lines(wide_lines(result))
    elif len(results) == 1:
        print_lines(headline(results[0], settings))
    else:
        print_rows(results, settings)
    if settings.show != "all":
        print("all figures: show=all")
    print(f"written: {settings.save_file}, {len(results)} {'row' if len(results) == 1 else 'rows'}")


# ---- logs in


@dataclass(frozen=True)
class References:
    """What judged models are compared with."""

    golds: list[EvalLog]
    bases: list[EvalLog]  # none: not given
    start: EvalLog | None
    parents: dict[str, str] = field(default_factory=dict)  # judged model -> the one that it began with

    def base_of(self, log: EvalLog) -> EvalLog | None:
        """The model that a judged one was made from: the one that is given, of several the one that its record names.

        A model may have been made from another judged one, which was made from base. Gold and start, which began with
        no base, are set against the first of several.

        Raises:
            SettingsError: Its record names none of several.
        """
        if len(self.bases) < 2:
            return next(iter(self.bases), None)
        bases = {fingerprint_of(base): base for base in self.bases}
        own = fingerprint_of(log)
        if found := base_among(bases, own, self.parents):
            return bases[found]
        if own not in [fingerprint_of(each) for each in (*self.golds, self.start) if each is not None]:
            raise SettingsError(
                f"{log.name}: no record says that it began with one of the {len(self.bases)} models of base_result; "
                "name its own alone"
            )
        return self.bases[0]


def aggregate(settings: Aggregate, references: References | None = None) -> ModelResult:
    """The figures of the one model that `settings.ckpt_result` names.

    Args:
        settings: The logs and how they are scored.
        references: What `read_references` gave for the same gold, base and start; None: they are read.

    Raises:
        SettingsError: A log cannot be read, or two logs do not cover the same rows of the same tasks.
    """
    references = references or read_references(settings)
    (ckpt,) = judged = read_judged(settings, references)
    references = replace(references, parents=parents_of(judged))
    return result_of(settings, ckpt[1], references, ckpt[0])


def aggregate_all(settings: Aggregate) -> tuple[list[ModelResult], list[str]]:
    """The figures of every model that `settings.ckpt_result` names, and what must be said of them.

    Raises:
        SettingsError: A log cannot be read, two logs do not cover the same rows of the same tasks, or one name is given
            to models of several methods.
    """
    references = read_references(settings)
    judged = read_judged(settings, references)
    references = replace(references, parents=parents_of(judged))
    check_one_method(settings, [log for _, log in judged])
    against = origin_of_references(settings, references)
    results, notes = [], []
    for path, log in judged:
        result = result_of(settings, log, references, path)
        result.method = anchor_name(log, references) or result.method
        check_row_name(result, references, log)
        told = training_settings(log.train_meta)
        text = json.dumps(told, sort_keys=True, ensure_ascii=False) if told else ""
        own = {"settings": text, "began_with": began_with(log.train_meta), "log": digest_of(losses_of(log))}
        result.origin = replace(against, **own, taught=taught_as(references.base_of(log)))
        if (not told or result.seed is None) and result.method not in ANCHORS:
            notes.append(f"{result.method}: no record beside {path} says its settings and its seed; it stands alone")
        notes += [*other_name_note(settings, result), *other_base_note(log, references, result)]
        results.append(result)
    check_different_runs(results)
    return results, notes + same_model_notes(results)


def read_references(settings: Aggregate) -> References:
    """Gold, base and start, over the same rows.

    Raises:
        SettingsError: A log cannot be read, or two do not cover the same rows of the same tasks.
    """
    golds = read_named(settings, "retain_result")
    if not golds:
        raise SettingsError(f"retain_result={settings.retain_result!r} must be the path of a log or a list of paths")
    bases, starts = (read_named(settings, name) for name in LEFT_OUT)
    if len(starts) > 1:
        raise SettingsError(f"start_result={settings.start_result!r} names {len(starts)} logs: one model was taught")
    check_different_models([log for _, log in golds])
    check_different_models([log for _, log in bases], "bases are models of several seeds")
    logs = [log for _, log in golds]
    return References(logs, [log for _, log in bases], starts[0][1] if starts else None)


def read_judged(settings: Aggregate, references: References) -> list[tuple[Path, EvalLog]]:
    """Path and log of every judged model.

    Raises:
        SettingsError: A log cannot be read, covers other rows than gold, base or start, or is `save_file` itself.
    """
    judged = read_named(settings, "ckpt_result")
    if not judged:
        raise SettingsError(f"ckpt_result={settings.ckpt_result!r} must be the path of a log or a list of paths")
    others = [*references.golds, *references.bases, *([references.start] if references.start else [])]
    for _, log in judged:
        for other in others:
            check_same_rows(log, other)
    return judged


def parents_of(judged: Sequence[tuple[Path, EvalLog]]) -> dict[str, str]:
    """Judged model -> the model that it began with."""
    return made_from({fingerprint_of(log): log.train_meta for _, log in judged})


def read_named(settings: Aggregate, name: str) -> list[tuple[Path, EvalLog]]:
    """Path and log of everything that a setting names."""
    paths = list(named_paths(settings, name))
    written = Path(settings.save_file).resolve()
    if written in [path.resolve() for _, path in paths]:
        raise SettingsError(f"save_file={settings.save_file!r} is one of the logs: name another file")
    return [(path, read_eval_log(label, str(path), list(settings.scoring))) for label, path in paths]


def named_paths(settings: Aggregate, name: str) -> Iterator[tuple[str, Path]]:
    """What a message calls a log, and its path, for everything that a setting names."""
    told = getattr(settings, name)
    if told is None and name in LEFT_OUT:
        return
    listed = told if isinstance(told, list) else [told]
    if not all(isinstance(each, str) and each for each in listed):
        raise SettingsError(f"{name}={told!r} must be the path of a log or a list of paths")
    for number, each in enumerate(listed):
        if name in LEFT_OUT and not Path(each).exists() and not set("*?[") & set(each):
            raise SettingsError(f"{name}={each!r}: no such file; {name}=null leaves out {LEFT_OUT[name]}")
        label = f"{name}[{number}]" if isinstance(told, list) else name
        found = find_logs(label, each)
        for path in found:
            yield (f"{label} ({path})" if len(found) > 1 else label), path


def check_different_runs(results: Sequence[ModelResult]) -> None:
    """Raise SettingsError where two judged models are one run by their records: one row would replace the other."""
    seen: dict[tuple, ModelResult] = {}
    for result in results:
        other = seen.setdefault(identity(result), result)
        if other is not result:
            raise SettingsError(
                f"ckpt_result: {other.log} and {result.log} are one run by their records ({row_name(result)}, with the "
                "same settings); name one of them"
            )


def check_one_method(settings: Aggregate, logs: Sequence[EvalLog]) -> None:
    """Raise SettingsError where one name is given to models whose records say several methods."""
    methods = sorted({method for log in logs if (method := method_of(log.train_meta))})
    if settings.method_name is not None and len(methods) > 1:
        raise SettingsError(
            f"method_name={settings.method_name!r} names one method, and the records of ckpt_result name "
            f"{', '.join(methods)}: method_name=null takes these names"
        )


# ---- one model


def result_of(settings: Aggregate, log: EvalLog, references: References, path: Path) -> ModelResult:
    """The figures of one judged model."""
    figures = figures_of_logs(
        log,
        base=references.base_of(log),
        start=references.start,
        golds=references.golds,
        scoring=settings.scoring,
        truth_ratio=settings.truth_ratio,
    )
    base, golds = references.base_of(log), [gold.file for gold in references.golds if gold.file]
    figures |= attack_figures_beside(path, base.file if base else None, golds)
    about = {
        "Submitted By": settings.submitted_by,
        "Truth Ratio definition": settings.truth_ratio,
        "ROUGE definition": f"ROUGE-L recall, stemmed{other_words(log)}",
    }
    own_name = anchor_name(log, references) or method_of(log.train_meta) or model_name_of(path)
    name = settings.method_name or own_name
    forgets = forgotten_modality(log.train_meta) or "both"
    return ModelResult(name, log.train_meta.get("seed"), figures, about, forgets=forgets, log=path)


def anchor_name(log: EvalLog, references: References) -> str | None:
    """base, gold or start, where the judged model is one; no other name hides that."""
    own = fingerprint_of(log)
    for name, models in (("base", references.bases), ("gold", references.golds), ("start", [references.start])):
        if any(model is not None and fingerprint_of(model) == own for model in models):
            return name
    return None


def check_row_name(result: ModelResult, references: References, log: EvalLog) -> None:
    """Raise SettingsError where a row would be called base, gold or start, and its model is not given as that."""
    if result.method in ANCHORS and anchor_name(log, references) is None:
        raise SettingsError(
            f"{result.log} is not given as the {result.method}, and its row would be called so; method_name= names it "
            "otherwise"
        )


def other_name_note(settings: Aggregate, result: ModelResult) -> list[str]:
    """A line where a model is not called as the settings say, because it is base, gold or start."""
    if settings.method_name in (None, result.method):
        return []
    return [f"{result.log} is {result.method}, and its row is called so, not {settings.method_name!r}"]


def other_words(log: EvalLog) -> str:
    """What a reader must know of the words that ROUGE went by; empty where all answers are of ASCII letters."""
    used: Counter[str] = Counter()
    for task in log.tasks.values():
        for words, truth in zip(task.rouge_tokenizers, task.truths, strict=True):
            is_blind = words == ASCII and rouge_tokenizer(truth) != ASCII
            used["ascii words though the answer has other letters" if is_blind else words] += 1
    rows = used.total()
    del used[ASCII]
    return "".join(f"; by {words} on {count} of {rows} rows" for words, count in sorted(used.items()))


def origin_of_references(settings: Aggregate, references: References) -> Origin:
    """What all rows of one call are measured against."""
    models = {"golds": references.golds, "base": references.bases, "start": [references.start]}
    against = {name: fingerprint_of_all(logs) for name, logs in models.items()}
    return Origin(
        **{"settings": "", "began_with": "", "log": "", "taught": "", **against},
        data=data_of(references.golds[0]),
        measures=measures_version(settings.scoring, settings.truth_ratio),
    )


def taught_as(base: EvalLog | None) -> str:
    """A hash of how a base was taught; of one whose records say nothing its own, so that it is like no other."""
    if base is None:
        return ""
    told = how_taught(base.train_meta)
    return digest_of(told) if told else fingerprint_of(base)


def fingerprint_of_all(logs: Sequence[EvalLog | None]) -> str:
    """One fingerprint of some models; empty where there is none."""
    own = sorted(fingerprint_of(log) for log in logs if log is not None)
    return own[0] if len(own) == 1 else digest_of(own) if own else ""


def measures_version(scoring: dict[str, Scoring], truth_ratio: str) -> str:
    """A hash of how figures are computed: the code, how tasks are scored, the definition of the Truth Ratio."""
    deciding = operator.attrgetter(*DECIDING)
    decides = {name: deciding(each) for name, each in scoring.items()}
    return digest_of([code_of(ROOT / "engine" / "figures.py").fingerprint([]), decides, truth_ratio])


def other_base_note(log: EvalLog, references: References, result: ModelResult) -> list[str]:
    """A line where a model's record says that it began with another model than the one base that is given."""
    began, base = began_with(log.train_meta), references.base_of(log)
    if not method_of(log.train_meta) or not began or base is None:
        return []
    if base_among([fingerprint_of(base)], fingerprint_of(log), references.parents):
        return []
    return [f"{row_name(result)} began with another model ({began}) than {base.name} ({fingerprint_of(base)})"]


def same_model_notes(results: Sequence[ModelResult]) -> list[str]:
    """A line for each two seeds of one method that gave the same answers with the same losses."""
    notes = []
    for group in seed_groups(results):
        first: dict[str, ModelResult] = {}
        for result in group.results:
            assert result.origin is not None  # they are rows of own runs
            other = first.setdefault(result.origin.log, result)
            if other is not result:
                notes.append(f"seeds {other.seed} and {result.seed} of {group.label} gave the same answers: no spread")
    return notes


# ---- what is printed


def print_rows(results: Sequence[ModelResult], settings: Aggregate) -> None:
    """The short table of all rows, and what must be said of it."""
    columns = [each for each in short_columns(list(results), settings.scoring) if each.measure.key not in NOT_PRINTED]
    columns += [Column(MEASURES[key], "", MEASURES[key].heading.lower()) for key in ALSO_PRINTED]
    print_texts(table_texts(results, columns), Console(width=140))
    for line in [*parted_notes(seed_groups(results)), *against_notes(results), *place_notes(results)]:
        print(line)


def print_lines(lines: Sequence[tuple[str, str]]) -> None:
    """Names and texts, a line each."""
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:<{width}}  {text}")


def headline(result: ModelResult, settings: Aggregate) -> list[tuple[str, str]]:
    """Name and text of the figures that a reader looks at first."""
    columns = [each for each in short_columns([result], settings.scoring) if each.measure.key not in NOT_PRINTED]
    columns += [Column(MEASURES[key], "", MEASURES[key].heading.lower()) for key in ALSO_PRINTED]
    return [(column.heading, describe(column, result)) for column in columns]


def describe(column: Column, result: ModelResult) -> str:
    """A figure with its interval, and why it is what it is."""
    figure = column.figure(result)
    text = column.text(result)
    if figure.low is not None:
        text += f" [{figure.low:{column.measure.format}}, "
        text += "no upper end]" if figure.high is None else f"{figure.high:{column.measure.format}}]"
    return f"{text}  ({figure.why})" if figure.why else text


def wide_lines(result: ModelResult) -> list[tuple[str, str]]:
    """Every column of the wide row."""
    return [(name, readable(value)) for name, value in wide_row(result).items()]


def readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or abs(value) >= 5e-5 else f"{value:.2e}"
    return "-" if value is None else str(value)


def track_rows(made: Sequence[ModelResult], settings: Aggregate) -> None:
    """Log the known figures of the new rows where the settings say so, each under the name of its model's folder,
    with that of `method_name` before it.
    """
    for result in made:
        figures = {name: value for name, value in wide_row(result).items() if isinstance(value, int | float)}
        assert result.log is not None  # it comes from one
        name = "_".join(filter(None, [settings.method_name, model_name_of(result.log)]))
        with tracked(settings.report_to, Path(settings.save_file).parent, name, job="row") as log:
            log(figures, 0)


if __name__ == "__main__":
    main()
