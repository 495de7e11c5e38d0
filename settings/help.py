"""What `--help` prints of a script: what it does, examples, and its own settings, all read from its file in config/.

The file's first comment says what the script does; the lines behind `Examples:` are the examples. A comment behind a
setting, or above it, says what it is. No torch, no hydra.
"""

import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

CONFIG = Path(__file__).resolve().parents[1] / "config"
INDENT = 28  # where the comments of short settings begin
WIDEST = 110
PACKAGE = "# @package"
EXAMPLES = "Examples:"
SETTINGS = "Settings, each typed as name=value; a value in a file that one names, by its group (trainer.lr=1e-4):"
NO_SETTING = ("/run", "_self_")  # entries of a file's defaults that nobody chooses


class Setting(NamedTuple):
    """One line that may be typed behind a script."""

    name: str
    value: str  # as the file has it
    comment: str


def say_help(config_name: str) -> None:
    """Print what a script does and end the process, where the command line asks for that."""
    if asks_for_help(sys.argv[1:]):
        print(help_text(config_name))
        sys.exit(0)


def asks_for_help(arguments: list[str]) -> bool:
    """Whether a command line asks what may stand there."""
    return not {"--help", "-h"}.isdisjoint(arguments)


def help_text(config_name: str) -> str:
    """What a script does, examples, and its own settings.

    Args:
        config_name: The script's file below config/, without .yaml, which is also the script's name without .py.
    """
    lines = (CONFIG / f"{config_name}.yaml").read_text(encoding="utf-8").splitlines()
    about, examples = introduction(lines)
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    parts = [f"{config_name}.py: {about}", "\n".join([EXAMPLES, *(f"  {example}" for example in examples)])]
    texts = [setting_text(each, width) for each in own_settings(lines)]
    parts.append("\n".join([SETTINGS, *texts]))
    return "\n\n".join([textwrap.fill(parts[0], width), *parts[1:]])


def introduction(lines: list[str]) -> tuple[str, list[str]]:
    """What a script does, and its examples, from the comment at the head of its file."""
    about: list[str] = []
    examples: list[str] = []
    found = about
    for line in lines:
        if line.startswith(PACKAGE):
            continue
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if text == EXAMPLES:
            found = examples
        else:
            found.append(text)
    return " ".join(about), examples


def own_settings(lines: list[str]) -> list[Setting]:
    """The files that a script's file lets one choose, and the settings that stand in it."""
    found: list[Setting] = []
    above = ""  # the comment over a setting
    for line in lines[lines.index("defaults:") + 1 :]:
        chosen = re.match(r"  - (\S+?)(?:: (.*?))?(?:\s+# (.*))?$", line)
        typed = re.match(r"(\w+): *(.*?)(?:\s+# (.*))?$", line)
        if line.startswith("# "):
            above = f"{above} {line[2:]}".strip()
            continue
        if chosen and chosen[1].endswith("@_global_"):  # a file whose settings stand here as if they were this one's
            part = CONFIG / f"{chosen[1].removesuffix('@_global_').lstrip('/')}.yaml"
            found += own_settings(["defaults:", *part.read_text(encoding="utf-8").splitlines()])
        elif chosen and chosen[1] not in NO_SETTING:
            found.append(group_setting(chosen))
        elif typed:
            found.append(Setting(typed[1], typed[2], typed[3] or above))
        above = ""
    return found


def group_setting(chosen: re.Match) -> Setting:
    """An entry of a file's defaults, with the files that may be named."""
    name, value, comment = chosen[1].lstrip("/"), chosen[2], chosen[3]
    group, _, package = name.partition("@")
    known = sorted(file.stem for file in (CONFIG / group).glob("*.yaml"))
    files = f"a file of config/{group}: {', '.join(known)}"
    files += f"; its values are {package}.<name>" if package else ""
    return Setting(name, value, f"{comment}; {files}" if comment else files)


def setting_text(setting: Setting, width: int) -> str:
    """A setting with its default, and its comment beside it or, where that is too long, below."""
    default = f"  {setting.name}={setting.value}"
    margin = " " * INDENT
    lines = textwrap.wrap(setting.comment, width - INDENT, break_on_hyphens=False) or [""]
    if len(default) < INDENT - 1:
        return f"\n{margin}".join([default.ljust(INDENT) + lines[0], *lines[1:]])
    return f"\n{margin}".join([default, *lines])
