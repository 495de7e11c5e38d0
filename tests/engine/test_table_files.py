"""Result tables as files: what is written is read again, in every format, and so is what others wrote into it."""

import csv
import json

import numpy as np
import pandas
import pytest

from engine.evaluated import Origin
from engine.measures import MEASURES
from engine.result_table import Figure, ModelResult, column_name
from engine.table_files import COLUMNS, file_content, long_table, place_of, read_results, wide_rows
from settings.script import SettingsError

AGAINST = {"taught": "t", "base": "b", "golds": "g", "start": "", "data": "d", "measures": "m"}
ORIGIN = Origin(settings='{"lr": 0.1}', began_with="b", log="l", **AGAINST)
FIGURES = {
    ("distance_people", ""): Figure(1 / 3, 0.25, 0.5, "=1+1"),
    ("verdict", ""): Figure(0.5, why="golds differ"),
    ("gate", ""): Figure(None, why="people are not known"),
    ("forget_quality", "eval_log_forget"): Figure(1.83e-21),
    ("forget_quality", "eval_forget_qa"): Figure(1.0),
    ("people", ""): Figure(4),
}
ABOUT = {"Submitted By": "@me", "Truth Ratio definition": "geometric"}


def rows():
    second = {place: figure._replace(value=figure.value and figure.value / 2) for place, figure in FIGURES.items()}
    second["verdict", ""] = Figure(1.0)
    return [ModelResult("-npo", seed, figures, dict(ABOUT), ORIGIN) for seed, figures in ((0, FIGURES), (1, second))]


@pytest.mark.parametrize("ending", [".csv", ".json", ".parquet"])
def test_what_is_written_is_read_again_to_the_last_digit(ending, tmp_path):
    file = tmp_path / f"table{ending}"
    file.write_bytes(file_content(rows(), ending))
    assert read_results("save_file", file) == rows()
    assert file_content(read_results("save_file", file), ending) == file.read_bytes()


def test_every_measure_on_a_task_is_found_again_by_its_column():
    for measure in MEASURES.values():
        for task in ("", "eval_log_forget", "forget"):
            column = column_name(measure, task)
            expected = (measure.key, measure.unnamed_task if column == measure.heading else task)
            assert place_of(column) == (*expected, "value")
            for part in ("low", "high", "why"):
                assert place_of(f"{column} {part}") == (*expected, part)


def test_a_table_has_rows_of_means_deviations_and_numbers_of_seeds_for_several_seeds():
    first, second, mean, deviation, count = wide_rows(rows())
    assert [row["Seed"] for row in (first, second, mean, deviation, count)] == [0, 1, "mean", "sd", "n"]
    assert {row["Seeds"] for row in (first, second, mean, deviation, count)} == {2}
    # 1/3 and 1/6: mean 1/4, deviation (1/6) / sqrt(2)
    assert mean["Distance (people)"] == pytest.approx(0.25)
    assert deviation["Distance (people)"] == pytest.approx(0.117851, abs=1e-6)
    assert "Verdict" not in mean
    assert mean["Submitted By"] == "@me"
    assert (count["Distance (people)"], count["Verdict"]) == (2, 2)


def test_a_mean_over_fewer_seeds_than_the_method_has_says_so_and_p_values_have_none():
    first, second = rows()
    del second.figures["distance_people", ""]
    _, _, mean, deviation, count = wide_rows([first, second])
    assert (mean["Seeds"], count["Distance (people)"]) == (2, 1)
    assert mean["Distance (people)"] == pytest.approx(1 / 3)
    assert deviation["Distance (people)"] is None
    assert (mean["Forget Quality"], deviation["Forget Quality"], count["Forget Quality"]) == (None, None, 2)
    lines = long_table([first, second])
    assert lines[lines.measure == "forget_quality"]["mean"].isna().all()


def test_a_row_alone_has_no_means():
    assert [row["Seeds"] for row in wide_rows(rows()[:1])] == [1]


def test_the_long_table_gives_mean_deviation_and_number_of_seeds_beside_each_figure():
    table = long_table(rows())
    lines = table[table.measure == "distance_people"]
    assert lines["mean"].tolist() == pytest.approx([0.25, 0.25])
    assert lines.sd.tolist() == pytest.approx([0.117851, 0.117851], abs=1e-6)
    assert lines.seeds.tolist() == [2, 2]
    assert table[table.measure == "gate"].seeds.tolist() == [0, 0]
    assert set(table.Settings) == {'{"lr": 0.1}'}


def test_columns_of_others_stay(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text('Method,Seed,Paper,Distance (people)\nours,7,"Lee, 2026",0.25\n')
    (row,) = read_results("save_file", file)
    assert (row.method, row.seed, row.about["Paper"], row.value("distance_people")) == ("ours", 7, "Lee, 2026", 0.25)
    file.write_bytes(file_content([row, *rows()], ".csv"))
    assert next(csv.DictReader(file.open()))["Paper"] == "Lee, 2026"


def test_what_a_spreadsheet_made_of_a_table_is_read(tmp_path):
    (tmp_path / "table.csv").write_text("\ufeffMethod,Seed\nours,7.0\nours,\n", encoding="utf-8")
    assert [(row.method, row.seed) for row in read_results("save_file", tmp_path / "table.csv")] == [
        ("ours", 7), ("ours", None),
    ]  # fmt: skip
    (tmp_path / "table.csv").write_text("Method,Seed\nours,7.5\n")
    with pytest.raises(SettingsError, match="holds no number in its column 'Seed'"):
        read_results("save_file", tmp_path / "table.csv")


def test_the_one_row_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / "row.json").write_text(json.dumps({"Method": "npo", "Seed": 3, "Verdict": "like gold"}))
    (row,) = read_results("save_file", tmp_path / "row.json")
    assert (row.method, row.seed, row.value("verdict")) == ("npo", 3, 1.0)


NO_TABLES = {
    "words.csv": "a diary\nof mine\n",
    "empty.csv": "",
    "log.json": '{"eval_log.json": {"avg_gt_loss": {"0": 1.0}}}',
    "list.json": "[1, 2]",
    "torn.json": '[{"Method": "npo"',
    "text.parquet": "no parquet",
}


@pytest.mark.parametrize("name", NO_TABLES)
def test_what_is_no_table_is_refused_in_one_line(name, tmp_path):
    (tmp_path / name).write_text(NO_TABLES[name])
    with pytest.raises(SettingsError, match=r"^save_file='.*' is no result table; name another file") as error:
        read_results("save_file", tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_word_where_a_number_belongs_is_named_by_row_and_column(tmp_path):
    (tmp_path / "table.csv").write_text("Method,Seed,Distance (people)\nours,7,near\n")
    with pytest.raises(SettingsError, match=r"the row of 'ours' holds no number in its column 'Distance \(people\)'"):
        read_results("save_file", tmp_path / "table.csv")


@pytest.mark.parametrize("cell", ["nan", "inf", "-Infinity"])
def test_what_is_no_finite_number_is_named_by_row_and_column(cell, tmp_path):
    (tmp_path / "table.csv").write_text(f"Method,Seed,Distance (people)\nours,7,{cell}\n")
    with pytest.raises(SettingsError, match=r"the row of 'ours' holds no number in its column 'Distance \(people\)'"):
        read_results("save_file", tmp_path / "table.csv")


@pytest.mark.parametrize("cell", ["NaN", "Infinity", "true", "[1]", '"near"'])
@pytest.mark.parametrize("column", ["Distance (people)", "Distance (people) low", "Seed"])
def test_the_same_of_a_json_table(cell, column, tmp_path):
    (tmp_path / "table.json").write_text(f'[{{"Method": "ours", "{column}": {cell}}}]')
    with pytest.raises(SettingsError, match=r"the row of 'ours' holds no number in its column"):
        read_results("save_file", tmp_path / "table.json")


@pytest.mark.parametrize("column", ["Verdict mine", "ROUGE comment", "Gate remark why"])
def test_somebodys_own_text_beside_a_measure_stays(column, tmp_path):
    file = tmp_path / "table.csv"
    file.write_text(f"Method,Seed,{column}\nours,7,I doubt it\n")
    (row,) = read_results("save_file", file)
    file.write_bytes(file_content([row, *rows()], ".csv"))
    assert next(csv.DictReader(file.open()))[column] == "I doubt it"


def test_a_word_in_the_figure_of_a_task_is_refused(tmp_path):
    for column in ("ROUGE eval_log_forget", "EER forget", "Verdict"):
        (tmp_path / "table.csv").write_text(f"Method,Seed,{column}\nours,7,I doubt it\n")
        with pytest.raises(SettingsError, match=rf"holds no number in its column '{column}'"):
            read_results("save_file", tmp_path / "table.csv")


@pytest.mark.parametrize("settings", ['"lr 1e-5"', "[1]", '"7"'])
def test_somebodys_own_column_of_settings_is_one_line(settings, tmp_path):
    (tmp_path / "table.json").write_text(f'[{{"Method": "ours", "Settings": {settings}}}]')
    with pytest.raises(SettingsError, match="holds something else in its column 'Settings'"):
        read_results("save_file", tmp_path / "table.json")


@pytest.mark.parametrize(
    "change", [{"measure": "charm"}, {"value": float("inf")}, {"value": "near"}, {"seed": "first"}, {"low": -np.inf}]
)
def test_a_parquet_table_with_a_line_that_holds_no_figure_is_one_line(change, tmp_path):
    table = long_table(rows()).astype(object)
    place = table.index[table.measure == "distance_people"][0]
    for column, cell in change.items():
        table[column] = table[column].astype(str) if isinstance(cell, str) else table[column]
        table.loc[place, column] = cell
    if "value" in change or "low" in change:
        column = next(iter(change))
        if not isinstance(change[column], str):
            table[column] = table[column].astype(float)
    typed = {name: kind for name, kind in COLUMNS.items() if name not in change}
    table.astype(typed).to_parquet(tmp_path / "odd.parquet", index=False)
    with pytest.raises(SettingsError, match="is no result table; name another file"):
        read_results("save_file", tmp_path / "odd.parquet")


def test_a_verdict_that_is_none_of_its_words_is_refused(tmp_path):
    (tmp_path / "table.json").write_text('[{"Method": "ours", "Verdict": 0.7}]')
    with pytest.raises(SettingsError, match="holds no number in its column 'Verdict'"):
        read_results("save_file", tmp_path / "table.json")


def test_a_parquet_table_without_columns_over_seeds_is_read(tmp_path):
    file = tmp_path / "earlier.parquet"
    long_table(rows()).drop(columns=["mean", "sd", "seeds"]).to_parquet(file, index=False)
    assert read_results("save_file", file) == rows()


def test_a_parquet_table_of_an_earlier_version_is_refused(tmp_path):
    pandas.DataFrame({"model": ["npo"], "seed": [0], "value": [1.0]}).to_parquet(tmp_path / "old.parquet")
    with pytest.raises(SettingsError, match="is no result table"):
        read_results("save_file", tmp_path / "old.parquet")
