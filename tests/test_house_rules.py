"""Rules on how code is written that the linter has no rule for."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import ROOT

OURS = ("settings", "engine", "mm", "nlp", "cv", "benchmark", "report", "mini_clear", "bench", "tests")
FILES = sorted(file for name in OURS for file in (ROOT / name).rglob("*.py")) + sorted(ROOT.glob("*.py"))
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def comprehensions(tree: ast.AST) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree) if isinstance(node, COMPREHENSIONS))


def nested_comprehensions(code: str) -> list[int]:
    """The lines of comprehensions that hold another one, wherever in them."""
    return [node.lineno for node in comprehensions(ast.parse(code)) if len(list(comprehensions(node))) > 1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_comprehension_stands_inside_a_comprehension(file: Path):
    assert nested_comprehensions(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    ["[[x for x in row] for row in rows]", "{k: sum(x for x in v) for k, v in rows}", "[x for x in {y for y in rows}]"],
)
def test_a_nested_comprehension_would_be_noticed(code: str):
    assert nested_comprehensions(f"\n{code}") == [2]


def test_two_loops_of_one_comprehension_are_not_nested():
    assert nested_comprehensions("[x for row in rows for x in row]") == []


def test_readme_has_an_index_line_for_every_page_of_the_documentation():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## The documentation\n")[2].splitlines()
    listed = [line.split("](")[1].split(")")[0] for line in lines if line.startswith("| [")]
    assert sorted(listed) == sorted(["cv/README.md", *(f"docs/{file.name}" for file in ROOT.glob("docs/*.md"))])


# ---- lines of texts and settings; ruff holds those of code

TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("cv/*.md"), *ROOT.glob("*.txt"), ROOT / "Makefile"]
TEXTS += sorted((ROOT / "config").rglob("*.yaml"))


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_line_has_at_most_120_characters(file: Path):
    lines = file.read_text(encoding="utf-8").splitlines()
    # a row of a Markdown table cannot be broken
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
