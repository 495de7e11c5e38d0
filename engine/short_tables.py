"""The short table, a line per method: the figures that a reader looks at first, with their spread over seeds."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.evaluated import AGAINST
from engine.result_table import Column, ModelResult
from engine.seeds import cell_text, seed_groups


def table_texts(results: Sequence[ModelResult], columns: Sequence[Column]) -> list[list[str]]:
    """Headings and cells as text: one list for the headings, then one per method.

    Where a method has several seeds, their number stands behind its name, and a number is mean ± standard deviation.
    Rows that were not measured against the same have a letter each for what they were measured against.
    """
    groups = seed_groups(results)
    letters = against_letters(results)
    further = {}
    if any(len(group) > 1 for group in groups):
        further["seeds"] = [str(len(group)) for group in groups]
    if len(letters) > 1:
        further["against"] = [letters[against_of(group.results[0])] for group in groups]
    lines = [["method", *further, *(column.heading for column in columns)]]
    for number, group in enumerate(groups):
        own = [cells[number] for cells in further.values()]
        lines.append([group.label, *own, *(cell_text(column, group) for column in columns)])
    return lines


def against_of(result: ModelResult) -> tuple[str, ...]:
    """What a row was measured against; all rows of a benchmark are measured against the same."""
    return result.origin.against if result.origin else ()


def against_letters(results: Sequence[ModelResult]) -> dict[tuple[str, ...], str]:
    """What rows were measured against -> a letter, in the order in which each comes first."""
    found = list(dict.fromkeys(against_of(result) for result in results))
    return {against: letter_of(number) for number, against in enumerate(found)}


def letter_of(number: int) -> str:
    """A, B, ..., Z, A2, B2, ..."""
    turn, place = divmod(number, 26)
    return chr(ord("A") + place) + (str(turn + 1) if turn else "")


def against_notes(results: Sequence[ModelResult]) -> list[str]:
    """In what the rows differ that were not measured against the same, a line each; none where all were."""
    letters = against_letters(results)
    if len(letters) < 2:
        return []
    notes = [f"nothing says what {letter} was measured against" for told, letter in letters.items() if not any(told)]
    (first, letter), *others = [(told, letter) for told, letter in letters.items() if any(told)]
    for told, other in others:
        differing = [AGAINST[name] for name, one, two in zip(AGAINST, first, told, strict=True) if one != two]
        notes.append(f"{other} was measured against {' and '.join(differing)} than {letter}")
    return [*notes, f"places are given within {' and within '.join(letters.values())}, and never across"]


def place_notes(results: Sequence[ModelResult]) -> list[str]:
    """Which methods have no place, by why."""
    without: dict[str, list[str]] = {}
    for group in seed_groups(results):
        place = group.results[0].figure("place")
        if place.value is None and place.why:
            without.setdefault(place.why, []).append(group.label)
    return [f"no place: {', '.join(methods)} ({why})" for why, methods in without.items()]


def print_texts(texts: list[list[str]], console: Console) -> None:
    """Print a table's headings and cells, turned where the terminal is too narrow for its lines."""
    ways = [terminal_table(texts), terminal_table([list(line) for line in zip(*texts, strict=True)])]
    console.print(roomiest(ways, console))


def roomiest(tables: list[Table], console: Console) -> Table:
    """The first table that the terminal is wide enough for, else the one that lacks least of it."""
    unbounded = console.options.update(max_width=10_000)
    widths = [console.measure(table, options=unbounded).maximum for table in tables]
    fitting = [table for table, width in zip(tables, widths, strict=True) if width <= console.width]
    return fitting[0] if fitting else tables[widths.index(min(widths))]


def terminal_table(texts: list[list[str]]) -> Table:
    """A table for the terminal; the first line is its heading."""
    table = Table()
    for number, heading in enumerate(texts[0]):
        table.add_column(Text(heading), justify="right" if number else "left")
    for line in texts[1:]:
        table.add_row(*(Text(cell) for cell in line))  # as Text, no cell is read as markup
    return table
