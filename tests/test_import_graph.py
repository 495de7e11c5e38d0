"""Who may import whom: ten names on seven floors, recipes that import late, modules that need no torch."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from helpers import ROOT

FLOORS = (
    ("settings", "unlearn_losses"),
    ("data_module",),
    ("engine",),
    ("mm", "nlp", "cv", "aggregate_eval_stat"),
    ("report",),
    ("benchmark",),
    ("run_benchmark",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# modules of engine that need settings alone, so that data_module, a floor below engine, may use them
BENEATH_DATA = {"engine.cells", "engine.decode", "engine.files", "engine.layouts", "engine.draws", "engine.word_files"}
FILES = sorted(file for name in FLOOR for file in (ROOT / name).rglob("*.py")) + sorted(ROOT.glob("*.py"))
RECIPES = [
    file
    for track in ("mm", "nlp", "cv")
    for file in sorted((ROOT / track).glob("*.py"))
    if "@script(" in file.read_text(encoding="utf-8")
]
SETTINGS_ONLY = {"settings", "cv.face_settings"}  # what a recipe may import before it is asked to run


def modules_of(node: ast.AST) -> list[str]:
    """The modules that an import statement names, dotted; none for another statement."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []


def imported(file: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {module for node in ast.walk(tree) for module in modules_of(node)}


def top_names(file: Path) -> set[str]:
    return {module.split(".")[0] for module in imported(file)}


def package_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def climbing(file: Path, own: str) -> set[str]:
    """The packages that a file of package `own` imports from its own floor or above."""
    above = {module.split(".")[0] for module in imported(file) - BENEATH_DATA}
    return {name for name in above & FLOOR.keys() if FLOOR[name] >= FLOOR[own] and name != own}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_from_floors_below_its_own(file):
    assert climbing(file, package_of(file)) == set()


def test_a_climbing_import_would_be_noticed_also_inside_a_function(tmp_path):
    module = tmp_path / "x.py"
    module.write_text("def late():\n    from engine.train import train\n    return train\n")
    assert climbing(module, "data_module") == {"engine"}


@pytest.mark.parametrize("module", sorted(BENEATH_DATA))
def test_a_module_of_engine_that_data_module_uses_needs_settings_at_most(module):
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    own = {name for name in imported(file) - BENEATH_DATA if name.split(".")[0] in FLOOR}
    assert {name.split(".")[0] for name in own} <= {"settings"}


def test_tracks_do_not_import_each_other_and_would_be_noticed(tmp_path):
    module = tmp_path / "x.py"
    module.write_text("import cv.network\n")
    assert climbing(module, "mm") == {"cv"}


@pytest.mark.parametrize("file", sorted((ROOT / "report").glob("*.py")), ids=lambda file: file.name)
def test_the_report_imports_nothing_of_a_track_and_no_engine_module_that_needs_torch(file):
    own = {module for module in imported(file) if module.split(".")[0] in FLOOR}
    light = {"engine.record", "engine.metrics", "engine.measures", "engine.result_table"}
    light |= {"engine.evaluated", "engine.seeds", "engine.places", "engine.short_tables", "engine.table_files"}
    light |= {"engine.attack_figures", "engine.attack_levels", "engine.intervals", "engine.retrained"}
    light |= {"engine.logs", "engine.figures", "engine.kept", "engine.verdicts", "data_module", "aggregate_eval_stat"}
    assert {module for module in own if module.split(".")[0] not in ("report", "settings")} <= light


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_the_benchmark_and_the_tests_know_the_embedded_world(file):
    assert "mini_clear" not in top_names(file) or package_of(file) in ("benchmark", "run_benchmark")


def test_losses_import_torch_only():
    assert top_names(ROOT / "unlearn_losses.py") <= {"torch", "typing", "math"}


def test_metrics_import_numpy_scipy_scikit_learn_and_rouge_only():
    standard = {"math", "typing", "collections", "dataclasses", "functools", "itertools", "warnings"}
    standard |= {"unicodedata", "zlib"}
    assert top_names(ROOT / "engine" / "metrics.py") - standard <= {"numpy", "scipy", "sklearn", "rouge_score"}


def test_four_modules_stand_at_the_root():
    names = {file.stem for file in ROOT.glob("*.py")}
    assert names == {"aggregate_eval_stat", "data_module", "run_benchmark", "unlearn_losses"}


def test_the_installed_modules_and_packages_are_exactly_the_roots():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert sorted(listed["py-modules"]) == sorted(file.stem for file in ROOT.glob("*.py"))
    packages = {folder.parent.name for folder in ROOT.glob("*/__init__.py")}
    assert set(listed["packages"]) == packages


@pytest.mark.parametrize("track", ["mm", "nlp", "cv"])
def test_no_file_of_a_track_is_named_like_something_at_the_top(track):
    """`python cv/x.py` puts cv/ first on the path: a cv/report.py would be taken for the package `report`."""
    top = {path.stem for path in ROOT.iterdir()} | set(sys.stdlib_module_names)
    assert {file.stem for file in (ROOT / track).glob("*.py")} - {"__init__"} & top == set()


def test_the_engines_package_file_is_empty():
    assert (ROOT / "engine" / "__init__.py").read_text() == ""


# ---- recipes


def test_every_track_has_its_recipes():
    assert {str(file.relative_to(ROOT)) for file in RECIPES} >= {
        "mm/finetune.py", "mm/forget.py", "mm/eval.py", "mm/attack.py", "mm/alternatives.py",
        "nlp/finetune.py", "nlp/forget.py", "nlp/eval.py", "nlp/attack.py", "nlp/alternatives.py",
        "cv/pretrain.py", "cv/finetune.py", "cv/forget.py", "cv/eval.py", "cv/attack.py",
    }  # fmt: skip


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_recipe_imports_only_settings_before_it_runs(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = {module for node in tree.body for module in modules_of(node)}
    foreign = {module for module in own if module.split(".")[0] not in sys.stdlib_module_names}
    assert {module for module in foreign if module.split(".")[0] != "settings"} <= SETTINGS_ONLY


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_recipes_main_begins_with_an_import_of_the_engine(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert modules_of(main.body[0])[0].split(".")[0] == "engine"


@pytest.mark.parametrize("recipe", ["finetune", "forget", "eval", "attack", "alternatives"])
def test_the_recipes_of_pictures_and_of_words_are_the_same_but_for_what_they_import(recipe):
    def code(track: str) -> str:
        tree = ast.parse((ROOT / track / f"{recipe}.py").read_text(encoding="utf-8"))
        tree.body = tree.body[1:]  # the docstring names the track
        return ast.unparse(tree).replace(f"{track}.encoder", "TRACK.encoder").replace(f"{track}/{recipe}", "TRACK")

    assert code("mm") == code("nlp")


# ---- torch stays out


@pytest.mark.parametrize(
    "module",
    ["settings.script", "settings.language", "settings.results", "engine.record", "engine.metrics", "engine.logs",
     "mm.forget", "nlp.eval", "cv.attack", "run_benchmark", "aggregate_eval_stat", "report.__main__"],
)  # fmt: skip
def test_a_module_that_needs_no_torch_does_not_load_it(module):
    code = f"import {module}, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_data_is_read_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", "import data_module, sys; print('torch' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["False"], done.stderr


def missing_names(file: Path) -> list[str]:
    """What a file imports of our modules and these do not hold at their top."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level or (node.module or "").split(".")[0] not in FLOOR:
            continue
        place = ROOT.joinpath(*str(node.module).split("."))
        source = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
        held = defined_in(source) if source.is_file() else set()
        names = (alias.name for alias in node.names)
        found += [f"{node.module}.{name}" for name in names if name not in held and not submodule(place, name)]
    return found


def submodule(place: Path, name: str) -> bool:
    return (place / f"{name}.py").is_file() or (place / name / "__init__.py").is_file()


def defined_in(file: Path) -> set[str]:
    """The names that a module's statements define or import at its top, also below an `if` or a `try`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


@pytest.mark.parametrize("file", sorted((ROOT / "bench").glob("*.py")), ids=lambda file: file.name)
def test_a_bench_imports_only_what_is_there(file):
    """No test runs every bench, and a name that has moved is noticed by whoever runs it next."""
    assert missing_names(file) == []


def test_a_name_that_has_moved_would_be_noticed(tmp_path):
    bench = tmp_path / "bench.py"
    bench.write_text("from data_module import TrainingRows, idk_answers\nfrom engine import seeds\nimport numpy\n")
    assert missing_names(bench) == ["data_module.idk_answers"]
