"""Typed settings that all tracks share, how a script reads its own, and the one-line errors a wrong value earns."""

import argparse
import contextlib
import difflib
import errno
import functools
import gc
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from settings.help import say_help
from settings.runs import end_with_launcher, is_first_process, locks_given_back

ROOT = Path(__file__).resolve().parents[1]
CONFIG_DIR = str(ROOT / "config")  # absolute: a relative one is resolved from the caller's file and fails on import

SEEDS = 2**32  # how many there are

Schema = TypeVar("Schema")


class SettingsError(ValueError):
    """The user's mistake in one line: which field, which value, what is allowed."""


class FolderExists(SettingsError):
    """A folder that a run would write is there, and was not to be replaced."""

    def __init__(self, line: str, is_same: Callable[[], bool]):
        """`is_same`: whether what is there was made of the same settings, data, models and code."""
        super().__init__(line)
        self.is_same = is_same


MAKE_ROOM = "make room, and the same command goes on"  # where a disk is full
GOES_ON = "the same command goes on from there"  # how the last line of a run ends that saved and stopped


class Stopped(KeyboardInterrupt):
    """A run that was told to stop: what to say of it, and the exit code."""

    def __init__(self, line: str, code: int):
        super().__init__(line)
        self.code = code


def one_of(name: str, value: Any, allowed: tuple | list) -> None:
    """Raise SettingsError unless `value` is among `allowed`."""
    if value not in allowed:
        raise SettingsError(
            f"{name}={value!r} is not known{nearest(str(value), allowed)}; choose from {', '.join(map(str, allowed))}"
        )


def nearest(word: str, known: Any) -> str:
    """` (did you mean 'x'?)` for the closest of `known`, or an empty string."""
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def at_least(name: str, value: float, minimum: float) -> None:
    """Raise SettingsError if `value` is below `minimum`, or no finite number."""
    if not math.isfinite(value):
        raise SettingsError(f"{name}={value} must be a finite number")
    if value < minimum:
        raise SettingsError(f"{name}={value} must be at least {minimum}")


def check_seed(name: str, value: int) -> None:
    """Raise SettingsError unless `value` can seed every library that draws: 0 to 2^32 - 1."""
    at_least(name, value, 0)
    if value >= SEEDS:
        raise SettingsError(f"{name}={value} must be below 2^32 ({SEEDS}): numpy takes no larger seed")


def check_shadows_apart(save_dir: str, shadows_dir: str) -> None:
    """Raise SettingsError where the kept models would stand in the folder of results, which is replaced whole."""
    if Path(shadows_dir).resolve().is_relative_to(Path(save_dir).resolve()):
        raise SettingsError(
            f"shadows_dir={shadows_dir!r} stands in save_dir={save_dir!r}, which is replaced whole: name another folder"
        )


def share_of(name: str, value: float) -> None:
    """Raise SettingsError unless `value` is above 0 and at most 1."""
    if not 0 < value <= 1:
        raise SettingsError(f"{name}={value} must be above 0 and at most 1")


def cuda_is_there() -> bool:
    import torch  # here, so that settings are read without it

    return torch.cuda.is_available()


def processes() -> Any:
    """The processes of this launch, as accelerate's PartialState.

    Without a GPU the library joins them only when told so; else each would take itself for the only one.
    """
    from accelerate import PartialState  # here, so that settings are read without it

    return PartialState(cpu=not cuda_is_there())


def end_processes() -> None:
    """Take leave of the other processes of a launch.

    Threads of the connections that still let go of a tensor while Python ends would abort a process whose work is done.
    """
    if "torch" in sys.modules:
        import torch.distributed  # here, so that settings are read without it

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            gc.collect()  # wrapped models hold the connections; their threads end with the last who does


def check_installation(root: Path = ROOT) -> None:
    """Raise SettingsError unless this package, `engine` and config/ stand in one folder.

    A copy in site-packages, which an install that is not editable leaves there, would run in place of the clone's code
    without a word.
    """
    found = importlib.util.find_spec("engine")
    beside = found is not None and found.origin is not None and Path(found.origin).resolve().parents[1] == root
    if not beside or not (root / "config").is_dir():
        where = found.origin if found else "nowhere"
        raise SettingsError(
            f"settings is loaded from {root} and engine from {where}: only an editable install works; "
            "pip uninstall clear-unlearning, then pip install -e . in the clone (or export PYTHONPATH=.)"
        )


def read(cfg: DictConfig, schema: type[Schema]) -> Schema:
    """Return `cfg` as a `schema` object; raise SettingsError naming field, value and what is allowed."""
    try:
        OmegaConf.resolve(cfg)
        settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), cfg))
    except MissingMandatoryValue as error:
        raise SettingsError(
            f"{error.full_key} is required: set it in its YAML file or as {error.full_key}=..."
        ) from None
    except ConfigKeyError as error:
        raise SettingsError(unknown_setting(str(error.full_key), schema)) from None
    except OmegaConfBaseException as error:
        raise SettingsError(f"{error.full_key or 'config'}: {one_line(error)}") from None
    if missing := next(missing_fields(settings), None):
        raise SettingsError(f"{missing} is required: set it in its YAML file or as {missing}=...")
    return settings


def missing_fields(settings: Any, prefix: str = "") -> Any:
    """Yield the dotted names of the fields nobody set."""
    inside = (
        {item.name: getattr(settings, item.name) for item in fields(settings)} if is_dataclass(settings) else settings
    )
    if isinstance(inside, dict):
        for key, value in inside.items():
            yield from missing_fields(value, f"{prefix}{key}.")
    elif settings == MISSING:
        yield prefix.rstrip(".")


def unknown_setting(full_key: str, schema: type) -> str:
    """One line about a setting that `schema` does not have, with the nearest one it has."""
    *path, last = full_key.split(".")
    node: Any = schema
    for name in path:
        kind = get_type_hints(node).get(name)
        inside = [each for each in (kind, *get_args(kind)) if is_dataclass(each)]  # also of `Lora | None`
        node = inside[0] if inside else node
    known = [item.name for item in fields(node)]
    if last in known:
        return f"{full_key} does not stand in its YAML file: write it there, or +{full_key}=... on the command line"
    return f"unknown setting {full_key}{nearest(last, known)}; here one may set {', '.join(known)}"


def choices(group: str) -> list[str]:
    """The names of a group's files in config/."""
    return sorted(path.stem for path in Path(CONFIG_DIR, group).glob("*.yaml"))


# what OmegaConf says -> what it means
PLAINER = {
    r"field '\S+' is not Optional|Incompatible value 'None' for field of type '\S+'": "null is not allowed",
    r"Invalid value assigned: \w+ is not a ListConfig, list or tuple\.": "it must be a list",
    r"Cannot assign \w+ to Dict\[\S+ \S+\]|Invalid type assigned: \w+ is not a subclass of \w+\. value: .*": (
        "it must be a mapping"
    ),
}


def first_line(error: BaseException) -> str:
    """The first line of an error of a library; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error).split("\n    full_key")[0]).strip()
    for pattern, plainer in PLAINER.items():
        text = re.sub(pattern, plainer, text)
    return text


def hydra_line(error: Exception, schema: type) -> str:
    """Hydra's own many-line errors, said in one."""
    text = str(error)
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return unknown_setting(unknown[1], schema)
    choice = re.search(r"Could not (?:find|load) '([^']+)'", text)
    group, _, name = choice[1].rpartition("/") if choice else ("", "", "")
    if group and (known := choices(group)):
        return f"{group}={name!r} is not known{nearest(name, known)}; choose from {', '.join(known)}"
    if group.startswith("hydra"):
        _, _, there = text.partition("Available options")
        hint = "; pip install hydra-submitit-launcher brings submitit" if "submitit" in name else ""
        listed = ", ".join(re.findall(r"^\t(\w+)$", there, re.MULTILINE))
        return f"{group}={name!r} is not there{hint}; choose from {listed}"
    if missing_group := re.search(r"Could not override '?([\w./-]+)'?\.?\s", text):
        return unknown_setting(missing_group[1], schema)
    return one_line(error)


def check_overrides(texts: list[str], *, sweeps: bool = False) -> None:
    """Raise SettingsError for what stands behind a command and is no setting.

    Hydra's own words do not name it, and for some of it they are a traceback. `sweeps`: whether several values, of
    which each has its run, may stand there.
    """
    parser = OverridesParser.create()
    for text in texts:
        try:
            override = parser.parse_override(text)
        except HydraException:
            hint = "write name=value, and quote a value with spaces or signs: 'name=\"a value\"'"
            raise SettingsError(f"{text!r} is no setting; {hint}") from None
        name, value = override.key_or_group, override.value()
        if not name:
            raise SettingsError(f"{text!r} names no setting; write name=value")
        if value == {}:  # Hydra merges a mapping with what stands there
            raise SettingsError(f"{text!r} changes nothing; '~{name}.<name>' removes an entry")
        if override.is_sweep_override() and not sweeps:
            raise SettingsError(f"{text!r} gives several values; write name=[1,2] for a list, and -m for a run of each")
        known = choices(name)
        is_choice = isinstance(value, str | dict) or override.is_sweep_override() or override.is_delete()
        if known and not is_choice:
            raise SettingsError(f"{text!r} must name a file of config/{name}; choose from {', '.join(known)}")


def check_command_line() -> argparse.Namespace:
    """Raise SettingsError where something stands behind the command that is no setting and none of hydra's options.

    Returns what stands there.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        typed, unknown = parser.parse_known_args()
    except argparse.ArgumentError as error:
        raise SettingsError(one_line(error)) from None
    if unknown and unknown[0].startswith("-"):
        raise SettingsError(
            f"{unknown[0]} is no option; a setting is written name=value, and --help lists the settings"
        )
    if unknown:
        raise SettingsError(f"{unknown[0]} stands behind an option and other settings; write options first")
    check_overrides(typed.overrides, sweeps=typed.multirun)
    others = {
        "--run": typed.run,
        "--cfg": typed.cfg,
        "--info": typed.info,
        "--shell-completion": typed.shell_completion,
    }
    asked = [option for option, value in {**others, "--multirun": typed.multirun}.items() if value]
    if len(asked) > 1:
        raise SettingsError(f"{asked[0]} and {asked[1]} ask for different things; leave one out")
    return typed


class Arguments(argparse.ArgumentParser):
    """The options of a command that has no settings; a wrong one raises SettingsError.

    Args:
        prog: How the command is called.
        description: What it does, in a sentence.
        examples: What one would type behind it, the whole command each.
    """

    def __init__(self, prog: str, description: str, examples: Sequence[str] = ()):
        layout = argparse.RawDescriptionHelpFormatter
        epilog = "\n".join(["examples:", *(f"  {example}" for example in examples)]) if examples else None
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=layout)

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; --help lists what may stand behind {self.prog}")


def end_of(error: BaseException, schema: type) -> tuple[str, int] | None:
    """What to say of an error that ends a run, in one line, and the exit code; None: it is a fault of the suite."""
    if isinstance(error, SettingsError):
        return f"error: {error}", 1
    if isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError):
        return f"error: {hydra_line(error, schema)}", 1
    if isinstance(error, Stopped):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was finished stays", 130
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        named = f" ({error.filename})" if error.filename else ""
        return f"error: the disk is full{named}; {MAKE_ROOM}", 1
    return None


@contextlib.contextmanager
def one_line_errors(schema: type) -> Iterator[None]:
    """End the process with one line on stderr and exit code 1 when the user's settings or data are at fault."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        known = end_of(error, schema)
        if known is None:
            raise
        line, code = known
        # each process of a launch says its own error: a row that cannot be read is met by one of them only
        if is_first_process() or not isinstance(error, Stopped):
            sys.stderr.write(f"{line}\n")  # at once: `print` writes the end of the line apart, behind another's line
        sys.exit(code)


def script(config_name: str, schema: type[Schema]) -> Callable:
    """Turn a recipe `f(settings)` into the `main()` of a script that reads config/<config_name>.yaml and the command
    line.

    `--help` prints what settings/help.py makes of that file. A user's mistake ends in one line on stderr and exit code
    1. The recipe itself stays at hand as `main.recipe`, and how to read its settings as `main.compose(overrides)`, for
    whoever runs recipes in one process.
    """

    def decorate(recipe: Callable[[Schema], None]) -> Callable[[], None]:
        @functools.wraps(recipe)
        def alone(settings: Schema) -> None:
            with locks_given_back():
                recipe(settings)

        @functools.wraps(recipe)
        def main() -> None:
            say_help(config_name)
            end_with_launcher()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # else hydra prints its own many lines and exits by itself
            run = hydra.main(version_base=None, config_path=CONFIG_DIR, config_name=config_name)
            with one_line_errors(schema):
                check_installation()
                typed = check_command_line()
                if typed.multirun and not (typed.help or typed.hydra_help):
                    from settings.sweeps import Task, run_sweep  # here, because one run needs nothing of it

                    run_sweep(config_name, typed, Task(alone, schema))
                else:
                    run(one_line_errors(schema)(lambda cfg: alone(read(cfg, schema))))()
                end_processes()

        vars(main).update(recipe=alone, compose=functools.partial(compose, config_name, schema))
        return main

    return decorate


def compose(config_name: str, schema: type[Schema], overrides: list[str]) -> Schema:
    """The settings that `config_name` gives with `overrides`, as the script itself would read them.

    Raises SettingsError.
    """
    check_overrides(overrides)
    GlobalHydra.instance().clear()  # a script that composes others' settings is itself inside hydra's
    with hydra.initialize_config_dir(CONFIG_DIR, version_base=None):
        try:
            return read(hydra.compose(config_name, overrides), schema)
        except HydraException as error:
            raise SettingsError(hydra_line(error, schema)) from None
