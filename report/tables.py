"""Result rows -> CSV, Markdown, LaTeX and the terminal's table."""

import csv
import io
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from aggregate_eval_stat import Row
from report.faces import attack_verdict


class Column(NamedTuple):
    """How the tables show a column of the rows."""

    heading: str
    format: str  # of a number
    meaning: str  # in one sentence, where the page has room for it


COLUMNS = {  # column of a row -> how it is shown
    "U-LiRA accuracy forget": Column(
        "U-LiRA, forgotten",
        ".3f",
        "Accuracy of telling forgotten people from people never met, by likelihood ratio; .5: nothing is told",
    ),
    "U-LiRA AUC forget": Column("U-LiRA AUC", ".3f", "The same over all thresholds"),
    "U-LiRA TPR at 1% FPR forget": Column(
        "U-LiRA TPR at 1 %",
        ".3f",
        "Share of the forgotten that score above all but 1 % of those never met",
    ),
    "U-MIA accuracy forget": Column(
        "U-MIA, forgotten",
        ".3f",
        "Accuracy of the population attack, logistic regression or decision tree, "
        "that shadow models held out for it preferred",
    ),
    "U-LiRA accuracy retain": Column("U-LiRA, kept", ".3f", "Accuracy of telling kept people from people never met"),
    "Exact Memorization eval_forget_faces": Column(
        "accuracy, forgotten",
        ".3f",
        "Share of the forgotten people's queries that are nearest to their own person",
    ),
    "Exact Memorization eval_retain_faces": Column(
        "accuracy, kept",
        ".3f",
        "Share of the kept people's queries that are nearest to their own person",
    ),
    "Exact Memorization eval_holdout_faces": Column(
        "accuracy, never met", ".3f", "The same of people that the network never met"
    ),
    "EER forget": Column("EER, forgotten", ".3f", "Equal error rate of verifying the forgotten people"),
    "Distance to gold": Column(
        "distance to gold ↓",
        ".2f",
        "Mean over measures and forget tasks of |model - gold| / |base - gold|",
    ),
    "Distance to gold noise floor": Column(
        "noise floor", ".2f", "Distance to gold of a second gold model of another seed"
    ),
    "Model Utility / gold": Column(
        "utility / gold ↑",
        ".2f",
        "Harmonic mean of Probability, ROUGE and Truth Ratio on everything else, relative to gold",
    ),
    "Forget Quality eval_forget_qa": Column(
        "forget quality, words ↑",
        ".1e",
        "p-value of telling the model's Truth Ratios on questions from gold's",
    ),
    "Forget Quality eval_forget_facerec": Column(
        "forget quality, names ↑",
        ".1e",
        "p-value of telling the model's Truth Ratios on face names from gold's",
    ),
    "Exact Memorization eval_forget_qa": Column(
        "memorised, words",
        ".2f",
        "Share of the forgotten answers' tokens that the model would still say",
    ),
    "Exact Memorization eval_forget_facerec": Column(
        "memorised, names",
        ".2f",
        "Share of the forgotten names' tokens that the model would still say",
    ),
    "Forget Quality": Column(
        "forget quality ↑",
        ".1e",
        "p-value of telling the model's Truth Ratios on questions from gold's",
    ),
    "Exact Memorization eval_log_forget": Column(
        "memorised",
        ".2f",
        "Share of the forgotten answers' tokens that the model would still say",
    ),
    "Collapsed": Column(
        "collapsed",
        "",
        "Whether the model lost what it should have kept: half of gold's utility, or degenerate answers",
    ),
    "Train seconds": Column("train s", ".0f", "Seconds of training"),
}
# captions in the multimodal benchmarks, where questions in words stand beside them
TEXT_ONLY = ("Forget Quality", "Exact Memorization eval_log_forget")
REASONS = {
    "Collapsed": "Collapsed why",
    "Distance to gold": "Distance to gold undefined",
}  # column -> the one that says why
FAILURES = ("Failed", "Attack failed")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


# ---- cells


def headline_columns(rows: list[Row]) -> list[str]:
    """The columns of the tables: those of COLUMNS that some row has, or says why it has none."""
    found = [column for column in COLUMNS if is_reported(column, rows)]
    if "Forget Quality eval_forget_qa" in found:
        return [column for column in found if column not in TEXT_ONLY]
    return found


def is_reported(column: str, rows: list[Row]) -> bool:
    return any(row.get(column) is not None or row.get(f"{column} why") for row in rows)


def cell_text(row: Row, column: str) -> str:
    """The value of a row's column as the tables show it."""
    value = row.get(column)
    if value is None:
        return "not resolvable" if "not resolvable" in row.get(f"{column} why", "") else "–"
    if isinstance(value, int | float) and COLUMNS[column].format:
        return format(value, COLUMNS[column].format)
    return str(value)


def row_label(row: Row, rows: list[Row]) -> str:
    """The method, with its seed where there are several."""
    several = len({each["Seed"] for each in rows}) > 1
    return f"{row['Method']}, seed {row['Seed']}" if several else row["Method"]


def table_texts(rows: list[Row]) -> list[list[str]]:
    """Headings and cells as text: one list for the headings, then one per row."""
    columns = headline_columns(rows)
    lines = [["method", *(COLUMNS[column].heading for column in columns)]]
    for row in rows:
        lines.append([row_label(row, rows), *(cell_text(row, column) for column in columns)])
    return lines


# ---- tables


def markdown_table(rows: list[Row]) -> str:
    """The headline columns in Markdown."""
    first, *others = [[*map(escape_markdown, line)] for line in table_texts(rows)]
    ruled = [first, ["---", *["---:"] * (len(first) - 1)], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled) + "\n"


def escape_markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def latex_table(rows: list[Row]) -> str:
    """The same for LaTeX with the package booktabs."""
    texts = table_texts(rows)
    first, *others = [f"  {' & '.join(map(escape_latex, line))} \\\\" for line in texts]
    alignment = "l" + "r" * (len(texts[0]) - 1)
    begin = rf"\begin{{tabular}}{{{alignment}}}"
    lines = [begin, r"  \toprule", first, r"  \midrule", *others, r"  \bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def csv_table(rows: list[Row]) -> str:
    """All columns; one that a row lacks stays empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def print_table(rows: list[Row], console: Console) -> None:
    """Print the headline columns, the verdicts on what they rest on, and what failed."""
    if verdict := attack_verdict(rows):  # before any figure of a method
        console.print(f"attack {verdict['text']}: {verdict['why']}", markup=False)
    headings, *others = table_texts(rows)
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for line in others:
        table.add_row(*line)
    console.print(table)
    for row in rows:
        for sentence in row_notes(row):
            console.print(sentence, markup=False)


def row_notes(row: Row) -> list[str]:
    """The base's gate, and what failed of a row, in words."""
    notes = [f"memorisation gate, seed {row['Seed']}: {row['Gate']}"] if row["Method"] == "base" else []
    failed = [column for column in FAILURES if column in row]
    return notes + [f"{row['Method']}, seed {row['Seed']}, {column.lower()}: {row[column]}" for column in failed]
