"""The import ladder: a module imports only from rungs below its own, and the installed modules are the root's modules."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUNGS = (
    ("run_settings", "unlearn_losses", "eval_metrics"),
    ("language_settings", "face_settings", "attack_metrics"),
    ("run_record",),
    ("data_module", "model_module", "eval_log_file", "face_network"),
    ("encoders",),
    ("training_pairs", "answer_scoring"),
    ("face_pictures",),
    ("face_scoring", "attack_scoring"),
    ("train_engine", "eval_engine"),
    ("shadow_engine",),
    ("shadow_models",),
    ("mm", "nlp", "cv", "aggregate_eval_stat", "report_cards", "report_plots"),
    ("report_faces",),
    ("report",),
    ("run_benchmark",),
)
RUNG = {name: number for number, rung in enumerate(RUNGS) for name in rung}
FILES = [*ROOT.glob("*.py"), *ROOT.glob("mm/*.py"), *ROOT.glob("nlp/*.py"), *ROOT.glob("cv/*.py")]


def imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def own_name(file: Path) -> str:
    return file.stem if file.parent == ROOT else file.parent.name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_from_rungs_below_its_own(file):
    own = RUNG[own_name(file)]
    climbing = {name for name in imports(file) & RUNG.keys() if RUNG[name] >= own}
    # the settings and the losses are both on the lowest rung: neither imports the other
    assert not climbing, f"{file.name} imports {climbing}"


def test_losses_import_torch_only():
    assert imports(ROOT / "unlearn_losses.py") <= {"torch", "typing", "math"}


def test_metrics_import_numpy_scipy_and_rouge_only():
    assert imports(ROOT / "eval_metrics.py") - {"numpy", "scipy", "rouge_score"} <= {
        "math",
        "typing",
        "collections",
        "dataclasses",
        "functools",
        "itertools",
        "zlib",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_the_benchmark_and_the_tests_know_the_embedded_world(file):
    assert "mini_clear" not in imports(file) or own_name(file) == "run_benchmark"


def test_the_installed_modules_are_exactly_the_roots_modules():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["py-modules"]
    assert sorted(listed) == sorted(file.stem for file in ROOT.glob("*.py"))


def test_a_climbing_import_would_be_noticed(tmp_path):
    module = tmp_path / "unlearn_losses.py"
    module.write_text("import train_engine\n")
    assert {name for name in imports(module) & RUNG.keys() if RUNG[name] >= RUNG["unlearn_losses"]} == {"train_engine"}
