"""What --help prints: what a script does, examples that are right, its own settings with a comment each, in no time."""

import importlib
import re
import resource
import shlex
import subprocess
import sys
from dataclasses import fields

import pytest

from helpers import ENVIRONMENT, ROOT
from settings.help import CONFIG, asks_for_help, help_text, introduction, own_settings

SCRIPTS = [f"{track}/{script}" for track in ("mm", "nlp", "cv") for script in ("finetune", "forget", "eval")]
SCRIPTS += ["cv/pretrain", "mm/attack", "nlp/attack", "cv/attack", "nlp/membership"]
SCRIPTS += ["aggregate_eval_stat", "run_benchmark"]
MODULES = ["-m report", "-m mini_clear"]
MOST_SECONDS = 0.6  # of CPU above Python's own start


def lines_of(script):
    return (CONFIG / f"{script}.yaml").read_text(encoding="utf-8").splitlines()


def main_of(script):
    """The script's `main`, which reads settings as the script does."""
    return importlib.import_module(script.replace("/", ".")).main


def cpu_seconds(command):
    """User and system time of a Python command, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_a_script_does_and_has_three_examples_of_it(script):
    about, examples = introduction(lines_of(script))
    assert about.endswith(".")
    assert len(examples) == 3
    assert [example for example in examples if f"{script}.py" not in example] == []
    assert help_text(script).startswith(f"{script}.py: ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_example_of_the_help_has_settings_that_the_script_takes(script):
    _, examples = introduction(lines_of(script))
    for example in examples:
        overrides = shlex.split(re.sub(r"<\w+>", "log.json", example.partition(f"{script}.py")[2]))
        # of a sweep its first value
        overrides = [text if "[" in text else text.partition(",")[0] for text in overrides if text != "-m"]
        main_of(script).compose(overrides)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_setting_of_the_help_has_a_comment_and_is_one_of_the_script(script):
    settings = own_settings(lines_of(script))
    assert [each.name for each in settings if not each.comment] == []
    known = {field.name for field in fields(main_of(script).compose.args[1])}
    groups = {each.name.partition("@")[2] or each.name for each in settings}
    assert groups <= known
    # what evaluation at the end of an epoch calls the forgotten people stands in config/epoch_eval
    assert known - groups <= {"forget", "tasks"}


def test_a_comment_above_a_setting_is_its_comment():
    lines = ["defaults:", "  - _self_", "", "# one", "# line", "a: 1", "b: 2 # two", "c: 3"]
    assert [(each.name, each.value, each.comment) for each in own_settings(lines)] == [
        ("a", "1", "one line"),
        ("b", "2", "two"),
        ("c", "3", ""),
    ]


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_asked_for_wherever_it_stands(option):
    assert asks_for_help(["seed=1", option])
    assert not asks_for_help(["seed=1", "--cfg", "job"])


@pytest.mark.parametrize("command", ["mm/forget.py", "aggregate_eval_stat.py", *MODULES])
def test_help_costs_little_and_imports_no_torch(command):
    start, _ = cpu_seconds(["-c", "pass"])
    spent, printed = cpu_seconds([*command.split(), "--help"])
    assert spent - start < MOST_SECONDS
    assert printed.lower().count("examples:") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_a_script_loads_nothing_that_computes(script):
    heavy = "{'torch', 'transformers', 'pandas', 'scipy'}"
    code = f"import atexit, os, runpy, sys; atexit.register(lambda: os._exit(bool({heavy} & set(sys.modules)))); "
    code += f"sys.argv = ['x', '--help']; runpy.run_path('{script}.py', run_name='__main__')"
    cpu_seconds(["-c", code])
