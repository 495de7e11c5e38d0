"""The figures of a benchmark's models -> Markdown, LaTeX and the terminal's table."""

from rich.console import Console

from engine.measures import MEASURES
from engine.result_table import Column, ModelResult
from engine.seeds import parted_notes, seed_groups
from engine.short_tables import place_notes, print_texts, table_texts
from report.faces import attack_verdict

FAILURES = {"failed": "failed", "attack_failed": "attack failed"}  # measure -> what a note says
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
    "±": r"$\pm$",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


def markdown_table(results: list[ModelResult], columns: list[Column]) -> str:
    """The columns in Markdown."""
    lines, table = [], table_texts(results, columns)
    for texts in table:
        cells = " | ".join(escape_markdown(text) for text in texts)
        lines.append(f"| {cells} |")
    rule = f"| --- | {' | '.join(['---:'] * (len(table[0]) - 1))} |"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def escape_markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def latex_table(results: list[ModelResult], columns: list[Column]) -> str:
    """The same for LaTeX with the package booktabs."""
    lines, table = [], table_texts(results, columns)
    for texts in table:
        cells = " & ".join(escape_latex(text) for text in texts)
        lines.append(f"  {cells} \\\\")
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}"
    parts = [begin, r"  \toprule", lines[0], r"  \midrule", *lines[1:], r"  \bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"


def escape_latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def print_table(results: list[ModelResult], columns: list[Column], console: Console) -> None:
    """Print the columns, the verdicts on what they rest on, and what failed."""
    if verdict := attack_verdict(results):  # before any figure of a method
        console.print(f"attack {verdict['text']}: {verdict['why']}", markup=False)
    texts = table_texts(results, columns)
    print_texts(texts, console)
    for result in results:
        for sentence in row_notes(result):
            console.print(sentence, markup=False)
    for sentence in [*parted_notes(seed_groups(results)), *place_notes(results)]:
        console.print(sentence, markup=False)


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


def failure_texts(result: ModelResult) -> list[str]:
    """What failed of a model, and why."""
    return [f"{text}: {result.figure(key).why}" for key, text in FAILURES.items() if result.value(key)]
