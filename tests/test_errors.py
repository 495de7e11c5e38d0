"""Every wrong input of tests/wrong_inputs.py ends in one line, and docs/errors.md holds that line."""

import shlex
import subprocess
import sys

import pytest

import wrong_inputs
from helpers import ENVIRONMENT, ROOT
from wrong_inputs import INPUTS, PAGE, SCRIPTS, Places, code_span, outcome, page_row

LEAST = 80  # wrong inputs that the page must have
COMMANDS = [
    ("python nlp/forget.py =3", "nlp/forget.py: a value without a name"),
    ("python -m report", "python -m report: no folder"),
    ("python aggregate_eval_stat.py truth_ratio=harmonic", "aggregate_eval_stat.py: an unknown definition"),
]


@pytest.fixture(scope="session")
def places(world, text_base, faces, tmp_path_factory):
    made = Places(world, text_base, faces, tmp_path_factory.mktemp("networks") / "network")
    wrong_inputs.write_network(made.network)
    wrong_inputs.write_division(made)
    return made


@pytest.fixture(scope="session")
def page():
    return PAGE.read_text(encoding="utf-8")


def line_on(page, name):
    """The line that the page holds for an input."""
    each = next(each for each in INPUTS if each.name == name)
    start = page_row(each, "").removesuffix("`` |")
    rows = page.partition(f"\n## {each.script}\n")[2].partition("\n## ")[0].splitlines()
    (row,) = [row for row in rows if row.startswith(start)]
    return row.removeprefix(start).removesuffix(" |").strip("`").replace(r"\|", "|")


@pytest.mark.parametrize("wrong_input", INPUTS, ids=[each.name for each in INPUTS])
def test_a_wrong_input_ends_in_the_line_of_the_page_and_writes_nothing(wrong_input, places, page, tmp_path, capfd):
    found = outcome(wrong_input, places, tmp_path)
    assert found.code == 1
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert found.written == []
    assert capfd.readouterr().err == ""  # what libraries print past Python's own stderr
    section = page.partition(f"\n## {wrong_input.script}\n")[2].partition("\n## ")[0]
    assert page_row(wrong_input, found.stderr.removesuffix("\n")) in section.splitlines()


def test_the_page_has_every_input_and_no_other(page):
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| what", "| ---"))]
    listed = [each for script in SCRIPTS for each in INPUTS if each.script == script]
    assert len(rows) == len(listed) == len(INPUTS)
    for row, each in zip(rows, listed, strict=True):
        assert row.startswith(f"| {each.wrong} | ")


def test_the_page_counts_its_inputs(page):
    assert len(INPUTS) >= LEAST
    assert f"This page has {len(INPUTS)} wrong" in page


def test_every_script_has_wrong_inputs_of_its_own():
    assert {each.script for each in INPUTS} == set(SCRIPTS)


def test_no_input_has_the_name_of_another():
    assert len({each.name for each in INPUTS}) == len(INPUTS)


def test_a_sign_that_parts_cells_does_not_part_a_line_of_the_page():
    assert code_span("a|b") == r"`a\|b`"
    assert code_span("a `b`") == "`` a `b` ``"


@pytest.mark.parametrize(("command", "name"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_of_its_own_process_prints_the_same_line_alone(command, name, page):
    typed = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(typed, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == line_on(page, name) + "\n"


@pytest.mark.slow
def test_accelerate_leaves_the_line_alone_where_one_process_runs(page):
    done = wrong_inputs.launched(wrong_inputs.ALONE)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == line_on(page, wrong_inputs.TYPO) + "\n"
    assert f"$ {wrong_inputs.ALONE}\n{done.stderr}```" in page


@pytest.mark.slow
def test_the_line_stands_first_where_several_processes_run(page):
    done = wrong_inputs.launched(wrong_inputs.SHARED_BY_TWO)
    line = line_on(page, wrong_inputs.TYPO)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == line
    assert "ChildFailedError" in done.stderr  # which torch's launcher adds
    assert f"$ {wrong_inputs.SHARED_BY_TWO}\n{line}\n" in page
