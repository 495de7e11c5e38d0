"""The page's table: which columns in which groups, their cells with bars, and the notes below."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.measures import ARROWS, IDENTIFICATION, MEASURES, P_VALUES
from engine.result_table import Column, is_known
from engine.seeds import shown
from report.method_rows import MethodRow
from report.tables import failure_texts, flag_text, verdict_text
from report.words import in_words, p_text
from settings.results import Scoring

MOST = 2.0  # where bars end; what lies past it is marked as cut off
# Group -> its columns: measure and heading. Groups without figures are left out.
NEAR = "How near to gold"
GROUPS = {
    NEAR: {
        "verdict": "verdict",
        "place": "place",
        "distance_people": "distance, as trained",
        "distance_worst_way": "distance, worst way",
    },
    "Who is given away": {
        "worst_person": "worst person",
        "share_remembered": "people remem\u00adbered",
        "share_forgotten": "people for\u00adgotten",
    },
    "What was kept": {"kept_taught": "taught", "kept_real": "real"},
}
WITHOUT_VERDICT = {"distance_to_gold": "distance to gold", "utility_to_gold": "utility / gold"}  # where no row has one
MEMBERSHIP = {"membership_auc:loss": "AUC, loss", "membership_auc:min-k": "AUC, min\u2011k"}
MEMBERSHIP |= {"privacy_leakage:min-k": "leakage, min\u2011k"}
ATTACKS, TOLD_APART = "Attacks on privacy", "Told from gold, p"
LIKE_RETRAINED = "Many networks against golds"
UNDER_ATTACK = {"attack_verdict": "under attack", "attack_worst": "worst attack"}
BARS = {"distance_worst_way": "distance_held_out_worst_way", "distance_people": "distance_held_out"}  # -> of a gold
BARS |= {"worst_person": "", "distance_to_gold": "noise_floor"}
IN_TEXT = ("flag", "distance_held_out")  # the short tables' columns that the page says in words


class Group(NamedTuple):
    title: str
    columns: list[Column]


def column_of(key: str, task: str, heading: str) -> Column:
    arrow = ARROWS.get(MEASURES[key].better, "").replace(" ", "\u00a0")  # no line begins with it
    return Column(MEASURES[key], task, heading + arrow)


def columns_of(headings: Mapping[str, str]) -> list[Column]:
    """Columns of measures over all tasks; `headings`: measure -> its heading."""
    return [column_of(key, "", heading) for key, heading in headings.items()]


def column_groups(rows: list[MethodRow], columns: list[Column], scoring: Mapping[str, Scoring]) -> list[Group]:
    """The page's columns: verdict, people, what was kept, attacks, p-values, then what else the short tables show.

    Args:
        rows: The table's rows; a column of which none has a figure is left out.
        columns: Those of the short tables.
        scoring: Task -> how it is scored.
    """
    groups = {title: columns_of(headings) for title, headings in GROUPS.items()}
    if not any(row.figure("verdict").values for row in rows):
        groups[NEAR] += columns_of(WITHOUT_VERDICT)
    names = {task: each.name or task for task, each in scoring.items()}
    attacks = [column for column in columns if column.measure.key.startswith(("u-", IDENTIFICATION.key))]
    members = [each.members for each in scoring.values() if each.members]
    attacks += [column_of(key, task, heading) for task in members for key, heading in MEMBERSHIP.items()]
    forget = [task for task, each in scoring.items() if each.group == "forget"]
    groups["Was it only hidden?"] = columns_of(UNDER_ATTACK)
    groups[ATTACKS] = attacks
    groups[LIKE_RETRAINED] = [column for column in columns if column.measure.key.startswith(("klom", "epsilon"))]
    groups[TOLD_APART] = [column_of("forget_quality", task, names[task]) for task in forget]
    shown_already = {(column.measure.key, column.task) for group in groups.values() for column in group}
    groups["More"] = [
        column
        for column in columns
        if column.measure.key not in IN_TEXT and (column.measure.key, column.task) not in shown_already
    ]
    found = []
    for title, of_group in groups.items():
        told = [column for column in of_group if is_told(rows, column)]
        found += [Group(title, told)] if told else []
    return found


def is_told(rows: list[MethodRow], column: Column) -> bool:
    """Whether some row has a figure or says why not; a place, whether some row has one."""
    if column.measure.key == "place":
        return any(row.figure("place").values for row in rows)
    results = [result for row in rows for result in row.results]
    return any(is_known(column.figure(result)) for result in results)


def page_table(rows: list[MethodRow], groups: list[Group], names: Mapping[str, str]) -> dict[str, Any]:
    """What the template needs for the table: groups, columns, rows, and a note on each row."""
    columns = [column for group in groups for column in group.columns]
    scale = bar_scale(rows, columns)
    lines = []
    for row in rows:
        cells = [render_cell(row, column, scale, names) for column in columns]
        lines.append(
            {"name": row.label, "method": row.method, "kind": row_kind(row), "seeds": len(row.results), "cells": cells}
        )
    return {
        "groups": groups,
        "columns": [
            {"heading": each.heading, "explanation": in_words(each.measure.sentence, names)} for each in columns
        ],
        "glossary": glossary(columns, names),
        "table": lines,
        "notes": [note for row in rows for note in row_notes(row, names)],
        "one_at": round(100 / scale, 2),
    }


def glossary(columns: list[Column], names: Mapping[str, str]) -> list[dict[str, str]]:
    """What each column is, in a sentence; columns of which the same is said stand together."""
    headings: dict[str, list[str]] = {}
    for column in columns:
        headings.setdefault(in_words(column.measure.sentence, names), []).append(column.heading)
    return [{"heading": "; ".join(of_sentence), "sentence": text} for text, of_sentence in headings.items()]


def row_kind(row: MethodRow) -> str:
    """The row's class in the style sheet: base, gold, start, method, or out for a row that does not count."""
    if not row.is_method:
        return row.method
    return "out" if row.lost or row.failed else "method"


def row_notes(row: MethodRow, names: Mapping[str, str]) -> list[dict[str, str]]:
    """Why a row has its verdict and its flag, and what failed."""
    notes = []
    for result in row.results:
        title = row.label if len(row.results) == 1 else f"{row.label}, seed {result.seed}"
        texts = [verdict_text(result)] if result.figure("verdict").why else []
        texts += [flag_text(result)] if result.value("flag") else []
        notes += [{"name": title, "text": in_words(text, names)} for text in [*texts, *failure_texts(result)]]
    return notes


# ---- cells


def bar_scale(rows: list[MethodRow], columns: list[Column]) -> float:
    """The value at the end of every bar, 1 or more, so that bars of all columns can be compared."""
    there = [column for column in columns if column.measure.key in BARS]
    values = [row.mean(column.measure.key, column.task) for row in rows for column in there]
    return min(MOST, max([1.0, *(value for value in values if value is not None)]))


def render_cell(row: MethodRow, column: Column, scale: float, names: Mapping[str, str]) -> dict[str, Any]:
    """A cell as the template takes it: text, value to sort by, reason to show on hovering, bar, badges."""
    figure = row.figure(column.measure.key, column.task)
    reasons = [interval_text(column, figure.low, figure.high), figure.why]
    if not figure.values:
        reasons.append(row.figure("failed").why)
    said = shown(row, column, p_text if column.measure.key in P_VALUES else None)
    return {
        "text": said.text,
        "spread": f"± {said.spread}" if said.spread else "",
        "count": f"n = {said.known}" if said.known else "",
        "value": "" if figure.mean is None else repr(figure.mean),
        "title": in_words("; ".join(filter(None, reasons)), names),
        "bar": bar(row, column, scale) if column.measure.key in BARS and figure.values else None,
        "badges": badges(row) if column.measure.key == "verdict" else [],
    }


def interval_text(column: Column, low: float | None, high: float | None) -> str:
    """The 95 % interval in words; empty: there is none."""
    if low is None:
        return ""
    if high is None:
        return f"at least {low:{column.measure.format}}"
    return f"95 % interval {low:{column.measure.format}} to {high:{column.measure.format}}"


def bar(row: MethodRow, column: Column, scale: float) -> dict[str, Any]:
    """Shares of the cell's width, in percent: up to 1, past 1, the interval, and what golds differ by."""
    figure = row.figure(column.measure.key, column.task)
    assert figure.mean is not None
    end = clipped(figure.mean, scale)
    held_out = row.mean(BARS[column.measure.key]) if BARS[column.measure.key] else None
    low, high = figure.low, figure.high
    if figure.deviation is not None:
        low, high = figure.mean - figure.deviation, figure.mean + figure.deviation
    interval = None if low is None or high is None else (clipped(low, scale), clipped(high, scale))
    return {
        "share": min(end, clipped(1.0, scale)),
        "past": round(max(0.0, end - clipped(1.0, scale)), 2),
        "cut": figure.mean > scale,
        "noise": None if held_out is None else clipped(held_out, scale),
        "interval": interval,
    }


def clipped(value: float, scale: float) -> float:
    """Where a value stands on a bar, in percent of its width."""
    return round(100 * min(1.0, max(0.0, value / scale)), 2)


def badges(row: MethodRow) -> list[str]:
    """What keeps a row from counting, in a word each."""
    flags = row.figure("flag").values
    words = [MEASURES["flag"].words[max(flags)]] if any(flags) else []
    words += ["left people out"] if any(row.figure("skipped").values) else []
    words += ["hook"] if any(row.figure("hook").values) else []
    return words + (["failed"] if any(row.figure("failed").values) else [])
