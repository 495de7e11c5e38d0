"""Evaluation logs -> one model's figures: python aggregate_eval_stat.py ckpt_result=...

The logs are those of the judged model, of gold and of the base. The figures are a long table, one line per figure, in a
parquet file. `save_file` holds them as one row. Where a figure cannot be known, the table says why.
"""

from settings.help import say_help

if __name__ == "__main__":
    say_help("aggregate_eval_stat")  # here, so that --help need not wait for the libraries below

import json
from collections import Counter
from pathlib import Path
from typing import Any

from engine.figures import figures_of_logs
from engine.logs import EvalLog, check_different_models, check_same_rows, read_eval_log
from engine.measures import MEASURES
from engine.metrics import ASCII, rouge_tokenizer
from engine.record import write_bytes_whole
from engine.result_table import Column, ModelResult, is_long_table, parquet, short_columns, wide_csv, wide_row
from settings.results import Aggregate
from settings.script import SettingsError, script

ALSO_PRINTED = ("gate",)  # beside what the short tables show
# settings that may be null, and what is not known then
LEFT_OUT = {"base_result": "the gate and the distance to gold", "start_result": "what was kept of the taught"}
NOT_PRINTED = ("train_seconds",)


@script("aggregate_eval_stat", Aggregate)
def main(settings: Aggregate) -> None:
    result = aggregate(settings)
    written = write_result(result, settings.save_file)
    lines = wide_lines(result) if settings.show == "all" else headline(result, settings)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:<{width}}  {text}")
    if settings.show != "all":
        print("all figures: show=all")
    print(f"written: {', '.join(written)}")


def aggregate(settings: Aggregate) -> ModelResult:
    """The figures of `settings.ckpt_result`.

    Raises:
        SettingsError: A log cannot be read, or two logs do not cover the same rows of the same tasks.
    """
    logs = read_logs(settings)
    ckpt, base, start = (logs.pop(name, None) for name in ("ckpt_result", "base_result", "start_result"))
    assert ckpt is not None
    figures = figures_of_logs(
        ckpt,
        base=base,
        start=start,
        golds=list(logs.values()),
        scoring=settings.scoring,
        truth_ratio=settings.truth_ratio,
    )
    about = {
        "Submitted By": settings.submitted_by,
        "Truth Ratio definition": settings.truth_ratio,
        "ROUGE definition": f"ROUGE-L recall, stemmed{other_words(ckpt)}",
    }
    return ModelResult(settings.method_name, ckpt.train_meta.get("seed"), figures, about)


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


def read_logs(settings: Aggregate) -> dict[str, EvalLog]:
    """Setting -> the log that it names, all over the same rows: the judged model's, those given of base and start, and
    the golds'.

    Raises:
        SettingsError: A log cannot be read, or two logs do not cover the same rows of the same tasks.
    """
    paths = named_logs(settings)
    logs = {name: read_eval_log(name, path, list(settings.scoring)) for name, path in paths.items()}
    ckpt = logs["ckpt_result"]
    for log in logs.values():
        check_same_rows(ckpt, log)
    check_different_models([log for name, log in logs.items() if name.startswith("retain_result")])
    written = Path(settings.save_file).resolve()
    if written in [Path(path).resolve() for path in paths.values()]:
        raise SettingsError(f"save_file={settings.save_file!r} is one of the logs: name another file")
    return logs


def named_logs(settings: Aggregate) -> dict[str, str]:
    """Setting -> path of the log that it names."""
    listed = isinstance(settings.retain_result, list)
    golds = settings.retain_result if listed else [settings.retain_result]
    if not golds or not all(isinstance(path, str) for path in golds):
        raise SettingsError(f"retain_result={settings.retain_result!r} must be the path of a log or a list of paths")
    paths = {"ckpt_result": settings.ckpt_result}
    for number, path in enumerate(golds):
        paths[f"retain_result[{number}]" if listed else "retain_result"] = path
    for name, without in LEFT_OUT.items():
        path = getattr(settings, name)
        if path is not None and not Path(path).is_file():
            raise SettingsError(f"{name}={path!r}: no such file; {name}=null leaves out {without}")
        if path is not None:
            paths[name] = path
    return paths


# ---- what is printed


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


# ---- what is written


def write_result(result: ModelResult, save_file: str) -> list[str]:
    """Write the long table, and beside it its one-row view as `save_file` says; each whole or not at all.

    Args:
        result: The model's figures.
        save_file: Ends in .csv (header and row; empty where nothing is known), .json or .parquet (the long table
            alone). The long table stands beside, under the same name with the ending .parquet.

    Returns:
        The files.

    Raises:
        SettingsError: A file cannot be written, or something else than a result table stands in its place.
    """
    file = Path(save_file)
    table = file.with_suffix(".parquet")
    contents = {table: parquet([result])}
    if file.suffix == ".json":
        contents[file] = (json.dumps(wide_row(result), indent=1) + "\n").encode()
    elif file.suffix == ".csv":
        contents[file] = wide_csv([result]).encode()
    try:
        if table.is_file() and not is_long_table(table):
            raise SettingsError(f"save_file={save_file!r}: {table} is no result table; name another file")
        for name, content in contents.items():
            write_bytes_whole(name, content)
    except OSError as error:
        raise SettingsError(f"save_file={save_file!r} cannot be written: {error.strerror}: {error.filename}") from None
    return [str(name) for name in contents]


if __name__ == "__main__":
    main()
