"""The table of attacks: a line for each attack, the worst of its tasks and settings, further golds beside the rows."""

from pathlib import Path

import pytest

from engine.attack_levels import LEAKS, NOT_APPLICABLE, RESISTS, UNRESOLVED
from engine.result_table import Figure, ModelResult
from engine.seeds import SeedGroup
from report.attack_table import attack_cell, attack_of, attack_table, attacks_in_markdown

SAID = {"leaks": LEAKS, "resists": RESISTS, "not resolved": UNRESOLVED, "not applicable": NOT_APPLICABLE}


def result(told, seed=0, verdict="leaks"):
    """A model with what is said of some attacks; `told`: <task>@<attack> -> words and level."""
    figures = {("attack_verdict", ""): Figure(SAID[verdict], why=f"why it {verdict}")}
    for task, (said, level) in told.items():
        figures["attack_said", task] = Figure(SAID[said])
        if level is not None:
            figures["attack_level", task] = Figure(level, level - 0.05, level + 0.05, "ROUGE")
    return ModelResult("npo", seed, figures)


@pytest.mark.parametrize(
    ("task", "name"), [("words@prefill.4", "prefill"), ("words@noise.0.1", "noise"), ("words@affirm", "affirm")]
)
def test_an_attack_is_named_without_task_and_setting(task, name):
    assert attack_of(task) == name


def test_the_worst_task_and_setting_stand_for_an_attack():
    told = {"words@a.1": ("resists", 0.02), "words@a.2": ("leaks", 0.3), "names@a.1": ("leaks", 0.4)}
    model = result(told | {"names@b": ("leaks", 0.9)})
    cell = attack_cell([model], "a")
    assert cell.text == "0.40 leaks"
    assert cell.why.startswith("names@a.1: 0.40; at least 0.35, at most 0.45; ROUGE")


def test_a_leak_counts_before_a_larger_level_that_is_not_resolved():
    model = result({"words@a": ("not resolved", 0.5), "names@a": ("leaks", 0.2)})
    assert attack_cell([model], "a").text == "0.20 leaks"


def test_what_is_not_applicable_says_nothing_beside_what_is():
    model = result({"words@a": ("not applicable", 0.5), "names@a": ("resists", 0.01)})
    assert attack_cell([model], "a").text == "0.01 resists"
    assert attack_cell([result({"words@a": ("not applicable", 0.5)})], "a").text == "not applicable"


def test_a_leak_of_one_seed_is_one_of_the_row():
    seeds = [result({"words@a": ("resists", 0.0)}), result({"words@a": ("leaks", 0.2)}, seed=1)]
    assert attack_cell(seeds, "a").text == "0.20 leaks"


@pytest.mark.parametrize(("verdict", "said"), [("resists", "not known"), ("leaks", "leaks")])
def test_a_row_of_which_one_seed_has_no_verdict_resists_nothing(verdict, said):
    unknown = ModelResult("npo", 1, {("attack_verdict", ""): Figure(None, why="base was not attacked")})
    table = attack_table([SeedGroup("npo", [result({}, verdict=verdict), unknown])], {})
    assert table["lines"][0]["cells"][0]["text"] == said


def test_the_table_has_a_line_for_each_attack_and_all_models_that_were_attacked():
    groups = [
        SeedGroup("gold", [result({"words@a": ("resists", 0.01)}, verdict="resists")]),
        SeedGroup("start", [ModelResult("start", 0, {})]),
        SeedGroup("npo", [result({"words@a": ("leaks", 0.4), "words@b": ("not applicable", None)})]),
    ]
    table = attack_table(groups, {"words": "words"})
    assert table["models"] == ["gold", "npo"]
    assert [line["name"] for line in table["lines"]] == ["all attacks", "a", "b"]
    assert [cell["text"] for cell in table["lines"][0]["cells"]] == ["resists", "leaks"]
    assert [cell["text"] for cell in table["lines"][2]["cells"]] == ["–", "not applicable"]
    assert attacks_in_markdown(table).splitlines()[2:] == [
        "| all attacks | resists | leaks |",
        "| a | 0.01 resists | 0.40 leaks |",
        "| b | – | not applicable |",
    ]


def test_without_attacks_there_is_no_table():
    assert attack_table([SeedGroup("npo", [ModelResult("npo", 0, {}, log=Path("x"))])], {}) is None


def test_why_nothing_is_known_is_said():
    told = ModelResult("npo", 0, {("attack_verdict", ""): Figure(None, why="base was not attacked")})
    table = attack_table([SeedGroup("npo", [told])], {})
    assert table["lines"][0]["cells"][0] == {"text": "not known", "title": "base was not attacked", "kind": ""}
