"""The figures of a benchmark's models -> Markdown, LaTeX and the terminal's table."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.measures import MEASURES
from engine.result_table import Column, ModelResult
from report.faces import attack_verdict

FAILURES = {"failed": "failed", "attack_failed": "attack failed"}  # measure -> what a note says
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


def row_label(result: ModelResult, results: list[ModelResult]) -> str:
    """The method, with its seed where there are several."""
    several = len({each.seed for each in results}) > 1
    return f"{result.method}, seed {result.seed}" if several else result.method


def table_texts(results: list[ModelResult], columns: list[Column]) -> list[list[str]]:
    """Headings and cells as text: one list for the headings, then one per model."""
    lines = [["method", *(column.heading for column in columns)]]
    for result in results:
        lines.append([row_label(result, results), *(column.text(result) for column in columns)])
    return lines


def markdown_table(results: list[ModelResult], columns: list[Column]) -> str:
    """The columns in Markdown."""
    lines = []
    for texts in table_texts(results, columns):
        cells = " | ".join(escape_markdown(text) for text in texts)
        lines.append(f"| {cells} |")
    rule = f"| --- | {' | '.join(['---:'] * len(columns))} |"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def escape_markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def latex_table(results: list[ModelResult], columns: list[Column]) -> str:
    """The same for LaTeX with the package booktabs."""
    lines = []
    for texts in table_texts(results, columns):
        cells = " & ".join(escape_latex(text) for text in texts)
        lines.append(f"  {cells} \\\\")
    begin = rf"\begin{{tabular}}{{l{'r' * len(columns)}}}"
    parts = [begin, r"  \toprule", lines[0], r"  \midrule", *lines[1:], r"  \bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"


def escape_latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def print_table(results: list[ModelResult], columns: list[Column], console: Console) -> None:
    """Print the columns, the verdicts on what they rest on, and what failed."""
    if verdict := attack_verdict(results):  # before any figure of a method
        console.print(f"attack {verdict['text']}: {verdict['why']}", markup=False)
    texts = table_texts(results, columns)
    ways = [terminal_table(texts), terminal_table([list(line) for line in zip(*texts, strict=True)])]
    console.print(roomiest(ways, console))
    for result in results:
        for sentence in row_notes(result):
            console.print(sentence, markup=False)
    for sentence in place_notes(results):
        console.print(sentence, markup=False)


def roomiest(tables: list[Table], console: Console) -> Table:
    """The first table that the terminal is wide enough for, else the one that lacks least of it."""
    unbounded = console.options.update(max_width=10_000)
    widths = [console.measure(table, options=unbounded).maximum for table in tables]
    fitting = [table for table, width in zip(tables, widths, strict=True) if width <= console.width]
    return fitting[0] if fitting else tables[widths.index(min(widths))]


def terminal_table(texts: list[list[str]]) -> Table:
    """A table for the terminal; the first line is its heading."""
    table = Table()
    for number, heading in enumerate(texts[0]):
        table.add_column(Text(heading), justify="right" if number else "left")
    for line in texts[1:]:
        table.add_row(*(Text(cell) for cell in line))  # as Text, no cell is read as markup
    return table


def gate_text(result: ModelResult) -> str:
    """The verdict of the memorisation gate in words, with a reason where it is not known."""
    gate = result.figure("gate")
    return "not known: " + gate.why if gate.value is None else MEASURES["gate"].words[gate.value]


def flag_text(result: ModelResult) -> str:
    """The flag on what a model kept, with the figures that it rests on."""
    flag = result.figure("flag")
    return f"{MEASURES['flag'].words[flag.value]}: {flag.why}"


def verdict_text(result: ModelResult) -> str:
    """The verdict on a model in words, with what it rests on."""
    verdict = result.figure("verdict")
    said = "no verdict" if verdict.value is None else MEASURES["verdict"].words[verdict.value]
    return f"{said}: {verdict.why}"


def row_notes(result: ModelResult) -> list[str]:
    """The base's gate, and what failed of a model, in words."""
    notes = [f"memorisation gate, seed {result.seed}: {gate_text(result)}"] if result.method == "base" else []
    notes += [f"{result.method}, seed {result.seed}, {failure}" for failure in failure_texts(result)]
    return notes


def place_notes(results: list[ModelResult]) -> list[str]:
    """Which methods have no place, by why."""
    without: dict[str, list[str]] = {}
    for result in results:
        place = result.figure("place")
        if place.value is None and place.why:
            without.setdefault(place.why, []).append(row_label(result, results))
    return [f"no place: {', '.join(methods)} ({why})" for why, methods in without.items()]


def failure_texts(result: ModelResult) -> list[str]:
    """What failed of a model, and why."""
    return [f"{text}: {result.figure(key).why}" for key, text in FAILURES.items() if result.value(key)]
