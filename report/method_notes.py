"""The methods of a page: what each does in a line, its formula, its values, and a link to its source."""

import ast
import re
from pathlib import Path
from typing import Any

import yaml

from settings.script import ROOT

LOSSES = ROOT / "unlearn_losses.py"
METHODS = ROOT / "config" / "method"
ENGINE = ROOT / "engine"
STEPS = ("edit", "hook", "combine", "init")  # whose rules are functions in files of their own, engine/<step>_<rule>.py
SECTION = re.compile(r"(Args|Returns|Raises|Source):")  # how a paragraph of a docstring begins that is no formula


def method_notes(rows: list[str], recorded: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """name, method, line, formula, link and settings of each row of a table.

    Args:
        rows: Their names, without base, gold and start.
        recorded: Row -> the method that its training recorded; a row of a failed training, or one of a model that was
            made elsewhere, has none, and is explained where it is called like a method.
    """
    losses = loss_docstrings()
    notes = []
    for row in rows:
        method = recorded.get(row, {})
        values = ", ".join(f"{name} {value}" for name, value in method.get("args", {}).items())
        name = method.get("name", row)
        notes.append({"name": row, "method": name, "settings": values, **method_note(name, losses)})
    return notes


def method_note(method: str, losses: dict[str, str]) -> dict[str, str]:
    """line, formula and link of a method, from its file and the docstring of its loss; empty where they lack it.

    Args:
        method: The name of its file in config/method, which may be gone since the run.
        losses: Loss -> docstring.
    """
    file = METHODS / f"{method}.yaml"
    if not file.is_file():
        return {"line": "", "formula": "", "link": ""}
    text = file.read_text(encoding="utf-8")
    comment = " ".join(re.findall(r"^# ?(.*)$", text, re.M))
    link = re.search(r"https?://[^\s),:]+", comment)
    told = yaml.safe_load(text)
    loss = told.get("loss")
    paragraphs = paragraphs_of(losses.get(loss, ""))
    line = paragraphs[0] if loss == method else first_sentence(comment)
    formula = paragraphs[1] if len(paragraphs) > 1 and not SECTION.match(paragraphs[1]) else ""
    rules = [f"{step}_{told[step]['rule']}" for step in STEPS if told.get(step)]
    formulas = [*map(rule_formula, rules), formula]
    return {"line": line, "formula": " ".join(filter(None, formulas)), "link": link[0] if link else ""}


def rule_formula(rule: str) -> str:
    """What the rule of a step makes of weights: the first paragraph of its function; empty: it is gone."""
    file = ENGINE / f"{rule}.py"
    functions = list(loss_docstrings(file).values()) if file.is_file() else []
    return paragraphs_of(functions[0])[0] if functions else ""


def paragraphs_of(docstring: str) -> list[str]:
    return [" ".join(part.split()) for part in docstring.split("\n\n")]


def first_sentence(comment: str) -> str:
    """The first sentence of a method's comment, without the link."""
    plain = re.sub(
        r"\s*\(([^()]*?),?\s*https?://[^\s)]+\)", lambda found: f" ({found[1]})" if found[1] else "", comment
    )
    return plain.partition(". ")[0].rstrip(".") + "."


def loss_docstrings(file: Path = LOSSES) -> dict[str, str]:
    """Function of a file, else of unlearn_losses -> its docstring, read without torch."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_docstring(node) or "" for node in functions}
