"""Files of words that stand beside a data set: "I don't know" answers, affixes of questions, invented answers."""

import json
from pathlib import Path

from engine.draws import draw
from settings.language import ANY, Affix
from settings.script import ROOT, SettingsError

QUESTION = "{question}"  # where the question stands in an affix


def idk_answers(path: str) -> list[str]:
    """The "I don't know" answers of a file, one a line, stripped."""
    return lines_of("data.idk_questions or data.idk_pictures", path)


def affixes_of(file: str) -> list[str]:
    """The lines of a file of words around a question, each with QUESTION at the question's place.

    Raises SettingsError for a line without that place.
    """
    lines = lines_of("affix.file", file)
    for line in lines:
        if line.count(QUESTION) != 1:
            raise SettingsError(f"affix.file={file!r}: {line!r} must hold {QUESTION} once")
    return lines


def affixes_around(affix: Affix | None) -> list[str]:
    """What stands around the questions of a task: nothing, the drawn affix, or each of the file."""
    if affix is None:
        return [QUESTION]
    return affixes_of(affix.file) if affix.place == ANY else [drawn_affix(affix)]


def drawn_affix(affix: Affix) -> str:
    """The affix that the seed draws from the file.

    Raises SettingsError for a file without words at the place that is asked for.
    """
    lines = affixes_of(affix.file)
    before = [line for line in lines if not line.startswith(QUESTION)]
    behind = [line for line in lines if line.startswith(QUESTION) and line != QUESTION]
    allowed = before if affix.place == "before" else behind
    if not allowed:
        raise SettingsError(f"affix.file={affix.file!r} holds no words {affix.place} the question")
    return draw(affix.seed, "affix", affix.place).choice(allowed)


def alternative_answers(path: str) -> dict[tuple[str | None, str], list[str]]:
    """The invented answers of a JSONL file: question (None: a caption) and right answer -> others.

    Raises SettingsError where there is no such file, or a line says something else.
    """
    if not path:
        raise SettingsError("the method asks for invented answers, and data.alternatives names no file of them")
    found: dict[tuple[str | None, str], list[str]] = {}
    for number, line in enumerate(lines_of("data.alternatives", str(Path(path).absolute())), start=1):
        try:
            row = json.loads(line)
            question, answer, others = row["question"], row["answer"], row["alternatives"]
        except (ValueError, KeyError, TypeError):
            others = None
        is_told = isinstance(others, list) and others and all(isinstance(each, str) and each for each in others)
        if not is_told or not isinstance(answer, str) or not isinstance(question, str | None) or answer in others:
            raise SettingsError(
                f"data.alternatives={path!r}, line {number}: it must be a question or null, an answer, and "
                "alternatives, which are other answers"
            )
        found[question, answer] = others
    return found


def lines_of(setting: str, path: str) -> list[str]:
    """The lines of a file that are not empty, stripped; a relative path begins at the root of the suite.

    Raises SettingsError where there is none.
    """
    file = Path(path) if Path(path).is_absolute() else ROOT / path
    if not file.is_file():
        raise SettingsError(f"{setting}: {path!r} is no file")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise SettingsError(f"{setting}: {path!r} is no text in UTF-8") from None
    if not lines:
        raise SettingsError(f"{setting}: {path!r} holds no line of text")
    return lines
