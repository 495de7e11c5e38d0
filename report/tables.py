"""Result rows -> CSV, Markdown, LaTeX and the terminal's table."""

import csv
import io

from rich.console import Console
from rich.table import Table

from report import faces
from report.rows import Row

# column of the row -> heading, format, what it says
TABLE = {
    **faces.TABLE,
    "Distance to gold": (
        "distance to gold ↓",
        ".2f",
        "Mean over measures and forget tasks of |model - gold| / |base - gold|",
    ),
    "Distance to gold noise floor": ("noise floor", ".2f", "Distance to gold of a second gold model of another seed"),
    "Model Utility / gold": (
        "utility / gold ↑",
        ".2f",
        "Harmonic mean of Probability, ROUGE and Truth Ratio on everything else, relative to gold",
    ),
    "Forget Quality eval_forget_qa": (
        "forget quality, words ↑",
        ".1e",
        "p-value of telling the model's Truth Ratios on questions from gold's",
    ),
    "Forget Quality eval_forget_facerec": (
        "forget quality, names ↑",
        ".1e",
        "p-value of telling the model's Truth Ratios on face names from gold's",
    ),
    "Exact Memorization eval_forget_qa": (
        "memorised, words",
        ".2f",
        "Share of the forgotten answers' tokens that the model would still say",
    ),
    "Exact Memorization eval_forget_facerec": (
        "memorised, names",
        ".2f",
        "Share of the forgotten names' tokens that the model would still say",
    ),
    "Forget Quality": (
        "forget quality ↑",
        ".1e",
        "p-value of telling the model's Truth Ratios on questions from gold's",
    ),
    "Exact Memorization eval_log_forget": (
        "memorised",
        ".2f",
        "Share of the forgotten answers' tokens that the model would still say",
    ),
    "Collapsed": (
        "collapsed",
        "",
        "Whether the model lost what it should have kept: half of gold's utility, or degenerate answers",
    ),
    "Train seconds": ("train s", ".0f", "Seconds of training"),
}
TEXT_ONLY = (
    "Forget Quality",
    "Exact Memorization eval_log_forget",
)  # captions in the multimodal track, where questions in words stand beside them
REASONS = {"Collapsed": "Collapsed why", "Distance to gold": "Distance to gold undefined"}


# ---- tables


def known_columns(made: list[Row]) -> list[str]:
    """The headline columns that some row has, or says why it has none."""
    known = [column for column in TABLE if any(row.get(column) is not None or row.get(f"{column} why") for row in made)]
    return [column for column in known if column not in TEXT_ONLY or "Forget Quality eval_forget_qa" not in known]


def cell(row: Row, column: str) -> str:
    value, spec = row.get(column), TABLE[column][1]
    if value is None:
        return "not resolvable" if "not resolvable" in row.get(f"{column} why", "") else "–"
    return format(value, spec) if isinstance(value, int | float) and spec else str(value)


def name_of(row: Row, made: list[Row]) -> str:
    """The method, with its seed where there are several."""
    return row["Method"] if len({each["Seed"] for each in made}) == 1 else f"{row['Method']}, seed {row['Seed']}"


def table_of(made: list[Row]) -> list[list[str]]:
    """Headings and cells as text."""
    columns = known_columns(made)
    return [
        ["method", *(TABLE[column][0] for column in columns)],
        *([name_of(row, made), *(cell(row, column) for column in columns)] for row in made),
    ]


def markdown_table(made: list[Row]) -> str:
    lines = [
        [text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for text in line]
        for line in table_of(made)
    ]
    ruled = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
}
LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}


def latex_table(made: list[Row]) -> str:
    """The same for LaTeX with the package booktabs."""
    lines = [
        "  " + " & ".join("".join(LATEX.get(letter, letter) for letter in text) for text in line) + r" \\"
        for line in table_of(made)
    ]
    columns = "l" + "r" * (len(table_of(made)[0]) - 1)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"  \toprule",
            lines[0],
            r"  \midrule",
            *lines[1:],
            r"  \bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def csv_table(made: list[Row]) -> str:
    """All columns; one that a row lacks stays empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream, list(dict.fromkeys(column for row in made for column in row)), restval="", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(made)
    return stream.getvalue()


def print_table(made: list[Row], console: Console) -> None:
    if verdict := faces.attack_verdict(made):  # before any figure of a method
        console.print(f"attack {verdict['text']}: {verdict['why']}", markup=False)
    first, *others = table_of(made)
    table = Table()
    for number, text in enumerate(first):
        table.add_column(text, justify="right" if number else "left")
    for line in others:
        table.add_row(*line)
    console.print(table)
    for row in made:
        if row["Method"] == "base":
            console.print(f"memorisation gate, seed {row['Seed']}: {row['Gate']}", markup=False)
        for what in ("Failed", "Attack failed"):
            if what in row:
                console.print(f"{row['Method']}, seed {row['Seed']}, {what.lower()}: {row[what]}", markup=False)
