"""The code that can decide a result: all modules that a recipe can import, without docstrings, comments and layout.

The losses are the exception. A method runs its own function of unlearn_losses with the helpers that it calls, so that a
new loss is no reason to repeat the other methods' work.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from settings.script import ROOT

LOSSES = "unlearn_losses"
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Module:
    """One file's code and what it imports of ours."""

    code: str
    files: frozenset[Path]
    losses: frozenset[str]  # names of unlearn_losses


@dataclass(frozen=True)
class Definition:
    """One statement at the top of unlearn_losses and the names that it uses."""

    code: str
    uses: frozenset[str]


@dataclass(frozen=True)
class Code:
    """What `code_of` read, and could not be read later: the files may be edited while the old code runs."""

    modules: dict[Path, Module]
    losses: dict[str, list[Definition]]  # by the name that a statement defines; "" for those that define none

    def fingerprint(self, losses: Iterable[str]) -> str:
        """Hash of the modules, and of the functions of unlearn_losses that they or `losses` name."""
        digest = hashlib.sha256()
        for file in sorted(self.modules):
            digest.update(self.modules[file].code.encode())
        used = {name for module in self.modules.values() for name in module.losses}
        for code in self.losses_code({"", *used, *losses}):
            digest.update(code.encode())
        return digest.hexdigest()[:16]

    def losses_code(self, names: set[str]) -> list[str]:
        """The code of the named definitions and of all that they use."""
        found: dict[str, list[Definition]] = {}
        waiting = sorted(names)
        while waiting:
            name = waiting.pop()
            if name in self.losses and name not in found:
                found[name] = self.losses[name]
                waiting += [used for definition in found[name] for used in definition.uses]
        return [definition.code for name in sorted(found) for definition in found[name]]


def code_of(*files: str | Path, root: Path = ROOT) -> Code:
    """Read the code of `files` and of every module below `root` that they can import.

    What this process has read before is not read again, so that the code is that of the process and not of an edited
    file.
    """
    modules: dict[Path, Module] = {}
    waiting = [Path(file).resolve() for file in files]
    while waiting:
        file = waiting.pop()
        if file not in modules:
            modules[file] = read_module(file, root)
            waiting += modules[file].files
    return Code(modules, read_losses(root / f"{LOSSES}.py"))


@functools.cache
def read_module(file: Path, root: Path) -> Module:
    tree = parse(file)
    package = file.relative_to(root).parts[:-1] if file.is_relative_to(root) else ()
    names: set[str] = set()
    losses: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            source = ".".join([*above, *([node.module] if node.module else [])])
            if source == LOSSES:
                losses.update(alias.name for alias in node.names)
            names.update([source, *(f"{source}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == LOSSES:
            losses.add(node.attr)
    files = {file for name in names if name.split(".")[0] != LOSSES for file in files_of(name, root)}
    return Module(ast.dump(tree), frozenset(files), frozenset(losses))


def files_of(name: str, root: Path) -> Iterator[Path]:
    """The files below `root` that importing a dotted name runs; none for a library's."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:count])
        yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())


@functools.cache
def read_losses(file: Path) -> dict[str, list[Definition]]:
    """The statements of unlearn_losses by the name that each defines."""
    found: dict[str, list[Definition]] = {}
    for statement in parse(file).body if file.is_file() else []:
        uses = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        for name in defined_by(statement):
            found.setdefault(name, []).append(Definition(ast.dump(statement), frozenset(uses)))
    return found


def defined_by(statement: ast.stmt) -> list[str]:
    """The names that a statement defines; [""] for one that defines none, like an import, and always counts."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [target.id if isinstance(target, ast.Name) else "" for target in statement.targets]
    return [""]


def parse(file: Path) -> ast.Module:
    """A file's syntax tree without docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree
