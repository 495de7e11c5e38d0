"""The code that decides a result: what counts as a change of it, and what a recipe reaches."""

import pytest

from engine.source import code_of, read_losses, read_module
from helpers import ROOT

FILES = {
    "recipe.py": '"""A recipe."""\n\n\ndef main():\n    from parts.train import train  # late\n\n    train()\n',
    "parts/__init__.py": "",
    "parts/train.py": '"""Loop."""\nfrom unlearn_losses import nll\n\n\ndef train():\n    """Trains."""\n    nll(1)\n',
    "parts/other.py": "OTHER = 1\n",
    "unlearn_losses.py": "import math\n\nSCALE = 2\n\n\ndef nll(x):\n    return helper(x)\n\n\n"
    "def helper(x):\n    return SCALE * x\n\n\ndef npo(x):\n    return nll(x) - 1\n\n\ndef dpo(x):\n    return x\n",
}


@pytest.fixture
def package(tmp_path):
    """A recipe with a module that it imports late, one that it does not import, and losses."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def key(package, losses=("npo",)):
    """The fingerprint that another process would find."""
    read_module.cache_clear()
    read_losses.cache_clear()
    return code_of(package / "recipe.py", root=package).fingerprint(losses)


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("recipe.py", "    train()", "    train()\n    train()"),
        ("parts/train.py", "nll(1)", "nll(2)"),
        ("parts/__init__.py", "", "FAST = True\n"),
        ("unlearn_losses.py", "nll(x) - 1", "nll(x) - 2"),
        ("unlearn_losses.py", "SCALE * x", "SCALE + x"),
        ("unlearn_losses.py", "SCALE = 2", "SCALE = 3"),
        ("unlearn_losses.py", "import math", "import cmath as math"),
    ],
)
def test_a_change_of_what_is_run_is_another_code(package, name, old, new):
    before = key(package)
    edit(package / name, old, new)
    assert key(package) != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("recipe.py", '"""A recipe."""', '"""Another text."""'),
        ("recipe.py", "  # late", "  # a comment"),
        ("parts/train.py", '    """Trains."""\n', ""),
        ("parts/train.py", "    nll(1)", "    nll(\n        1,\n    )"),
        ("parts/other.py", "1", "2"),
        ("unlearn_losses.py", "    return x\n", "    return -x\n"),
        ("unlearn_losses.py", "def dpo", "def new(x):\n    return x\n\n\ndef dpo"),
    ],
)
def test_docstrings_comments_layout_and_code_that_is_not_run_are_no_change(package, name, old, new):
    before = key(package)
    edit(package / name, old, new)
    assert key(package) == before


def test_a_loss_that_the_settings_do_not_name_counts_where_a_module_imports_it(package):
    before = key(package, losses=())
    edit(package / "unlearn_losses.py", "return helper(x)", "return -helper(x)")
    assert key(package, losses=()) != before


def test_two_methods_differ_by_their_losses_alone(package):
    assert key(package, losses=["npo"]) != key(package, losses=["dpo"])


def test_a_relative_import_is_followed(package):
    edit(package / "parts/train.py", "from unlearn_losses", "from . import other\nfrom unlearn_losses")
    before = key(package)
    edit(package / "parts/other.py", "1", "2")
    assert key(package) != before


def test_a_file_that_is_edited_while_the_old_code_runs_does_not_change_what_was_read(package):
    before = key(package)
    edit(package / "parts/train.py", "nll(1)", "nll(2)")
    assert code_of(package / "recipe.py", root=package).fingerprint(["npo"]) == before


def reached(recipe):
    return {str(file.relative_to(ROOT)) for file in code_of(ROOT / recipe).modules}


@pytest.mark.parametrize("track", ["mm", "nlp"])
def test_a_forgetting_reaches_its_own_encoder_and_the_training_loop(track):
    assert {f"{track}/encoder.py", "engine/train.py", "engine/encode.py", "data_module.py"} <= reached(
        f"{track}/forget.py"
    )


def test_a_recipe_reaches_nothing_of_another_track_and_no_losses_as_a_whole():
    tops = {file.split("/")[0] for file in reached("mm/forget.py")}
    assert tops == {"mm", "engine", "settings", "data_module.py"}


def test_a_trained_stack_does_not_depend_on_how_attacks_are_scored():
    assert not {file for file in reached("cv/together.py") if "attack" in file or "compare" in file}
