"""Cells as people write them: each is what its column is due, or the split is refused by row and column when it is
opened.
"""

import json
from dataclasses import replace

import datasets
import pandas
import pyarrow
import pytest

from data_module import TrainingRows, task_rows
from helpers import png
from settings.language import Columns, Data, People, Task
from settings.script import SettingsError

QUESTION = {
    "question": "Where?",
    "answer": "Oslo",
    "perturbed_answer": ["Rome", "Bonn"],
    "paraphrased_answer": "In Oslo",
}
COLUMNS = Columns(image="image", caption="caption", question="question", answer="answer", person="name")
PICTURE = png("red")
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        **dict.fromkeys(("caption", "question", "answer", "name"), datasets.Value("string")),
    }
)


def jsonl(folder, rows):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def parquet(folder, rows, features=None):
    """A dataset folder with one config, as people export it."""
    made = rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list(rows, features=features)
    made.to_parquet(folder / "rows.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: rows\n  data_files:\n  - split: train\n    path: rows.parquet\n---\n"
    )
    return folder


def data_of(folder):
    return Data(name="own", path=str(folder), text_path="", columns=COLUMNS, rows_per_person=1)


def training(folder):
    return TrainingRows(data_of(folder), "rows", "both", 0)


def asked(folder, **changes):
    columns = {"question": "question", "answer": "answer", "perturbed": "perturbed_answer"}
    return task_rows(Task(dataset=str(folder), split="rows", **(columns | changes)), 0, 0)


def error_of(call, *arguments, **options):
    with pytest.raises(SettingsError) as caught:
        call(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


# ---- tasks

BAD_CELLS = [
    ("perturbed_answer", "Paris", "'Paris' (a text), where a list of texts is due"),
    ("perturbed_answer", "['Paris', 'Rome']", "(a text), where a list of texts is due"),
    ("perturbed_answer", ["Paris", 7], "a list with 7 (a number), where a list of texts is due"),
    ("perturbed_answer", ["Paris", None], "a list with nothing, where a list of texts is due"),
    ("perturbed_answer", ["Paris", " "], "a list with ' ' (a text), where a list of texts is due"),
    ("perturbed_answer", [["Paris"]], "a list with ['Paris'] (a list), where a list of texts is due"),
    ("perturbed_answer", {"a": "Paris"}, "(a mapping), where a list of texts is due"),
    ("perturbed_answer", [], "[] (a list), where a list of texts is due"),
    ("perturbed_answer", None, "nothing, where a list of texts is due"),
    ("perturbed_answer", ["Oslo", " Oslo "], "no answer but the right one"),
    ("answer", 1984, "1984 (a number), where a text is due"),
    ("answer", 0.5, "0.5 (a number), where a text is due"),
    ("answer", True, "True (true or false), where a text is due"),
    ("answer", ["Oslo"], "['Oslo'] (a list), where a text is due"),
    ("answer", "", "'' (a text), where a text is due"),
    ("answer", None, "nothing, where a text is due"),
    ("question", "\t\n", "where a text is due"),
    ("paraphrased_answer", 3, "3 (a number), where a text is due"),
    ("paraphrased_answer", "", "where a text is due"),
]


@pytest.mark.parametrize(("column", "cell", "line"), BAD_CELLS, ids=lambda value: str(value)[:30])
def test_a_cell_of_another_kind_is_refused_by_row_and_column_also_where_the_others_are_right(
    column, cell, line, tmp_path
):
    folder = jsonl(tmp_path, [QUESTION, QUESTION | {column: cell}])
    error = error_of(asked, folder, paraphrase="paraphrased_answer")
    assert error.startswith(f"{tmp_path}, split rows, row 1: column {column!r} holds ")
    assert error.endswith(line)


@pytest.mark.parametrize(("column", "cell", "line"), BAD_CELLS, ids=lambda value: str(value)[:30])
def test_a_column_of_another_kind_is_refused_at_its_first_row(column, cell, line, tmp_path):
    folder = jsonl(tmp_path, [QUESTION | {column: cell}])
    assert "row 0: column" in error_of(asked, folder, paraphrase="paraphrased_answer")


def test_all_rows_are_checked_also_those_that_a_limit_leaves_out(tmp_path):
    folder = jsonl(tmp_path, [QUESTION] * 20 + [QUESTION | {"answer": 7}])
    task = Task(dataset=str(folder), split="rows", question="question", answer="answer")
    assert "row 20" in error_of(task_rows, task, 0, 1)


def test_a_right_answer_among_the_wrong_ones_is_dropped_also_with_white_space_around_it(tmp_path):
    folder = jsonl(tmp_path, [QUESTION | {"perturbed_answer": ["Rome", "Oslo ", "Oslo", "Bonn"]}])
    assert asked(folder)[0].perturbed == ["Rome", "Bonn"]


@pytest.mark.parametrize("dates", [["1984-01-01", "1984-01-02T00:00:00"], ["1984-01-01"], ["12:30:00"], ["7"], ["NaN"]])
def test_a_text_that_looks_like_a_date_or_a_number_stays_a_text(dates, tmp_path):
    folder = jsonl(tmp_path, [QUESTION | {"answer": date} for date in dates])
    assert [row.example.answer for row in asked(folder)] == dates


def test_a_column_that_the_first_row_lacks_is_read(tmp_path):
    folder = jsonl(
        tmp_path, [{"question": "Who?", "answer": "Ann"}, {"question": "Who?", "answer": "Bo", "name": "Bo"}]
    )
    assert [row.example.person for row in asked(folder, perturbed="", person="name")] == [None, "Bo"]


# ---- names

NAMES = [("Ann", "Ann"), (" Ann \n", "Ann"), (None, None), ("", None), ("  ", None), (0, "0"), (17, "17")]


@pytest.mark.parametrize(("cell", "person"), NAMES, ids=lambda value: repr(value))
def test_a_name_is_its_letters_and_a_missing_one_is_nobody(cell, person, tmp_path):
    folder = jsonl(tmp_path, [QUESTION | {"name": cell}])
    assert asked(folder, person="name")[0].example.person == person
    assert training(folder)[0].person == person


@pytest.mark.parametrize("cell", [0.5, True, ["Ann"], {"first": "Ann"}], ids=str)
def test_what_is_no_name_is_refused(cell, tmp_path):
    folder = jsonl(tmp_path, [QUESTION | {"name": cell}])
    assert "row 0: column 'name' holds" in error_of(asked, folder, person="name")
    assert "where a name is due" in error_of(training, folder)


def test_a_class_is_its_name_and_not_its_number(tmp_path):
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "name": datasets.ClassLabel(names=["Bo", "Ann"]),
        }
    )
    rows = [{"question": "Who?", "answer": "x", "name": name} for name in ("Ann", "Bo", None)]
    folder = parquet(tmp_path, rows, features)
    assert [row.example.person for row in asked(folder, perturbed="", person="name")] == ["Ann", "Bo", None]


def test_names_of_people_that_stand_elsewhere_are_read_without_white_space(tmp_path):
    (tmp_path / "people").mkdir()
    names = jsonl(tmp_path / "people", [{"name": " Ann Lee "}, {"name": None}, {"name": ""}])
    folder = jsonl(tmp_path, [QUESTION | {"question": f"Where does Ann Lee {verb}?"} for verb in ("live", "work")])
    people = People(dataset=str(names), split="rows", person="name")
    assert [row.example.person for row in asked(folder, people=people, rows_per_person=2)] == ["Ann Lee"] * 2


# ---- training rows


def mixed(folder, *rows):
    empty = dict.fromkeys(FEATURES)
    return parquet(folder, [empty | row for row in rows], FEATURES)


def test_an_empty_caption_is_none_and_its_row_asks_its_question(tmp_path):
    rows = training(mixed(tmp_path, {"caption": "", "question": "Where?", "answer": "Oslo"}))
    assert (rows[0].question, rows[0].answer, rows[0].image) == ("Where?", "Oslo", None)
    assert rows.in_words == [0]
    assert rows.answers == ["Oslo"]
    assert (rows.questions, rows.answers, rows.in_words) == (["Where?"], ["Oslo"], [0])


def test_empty_questions_and_answers_beside_a_caption_are_none(tmp_path):
    rows = training(mixed(tmp_path, {"image": PICTURE, "caption": "Ann smiles.", "question": "", "answer": " "}))
    assert rows[0].answer == "Ann smiles."
    assert rows[0].image["bytes"] == PICTURE["bytes"]
    assert rows.in_words == []


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"caption": "Ann smiles."}, "column 'image' holds nothing, where the caption's picture is due"),
        ({"image": PICTURE}, "column 'question' holds nothing, where a text is due"),
        ({"question": "Where?"}, "column 'answer' holds nothing, where a text is due"),
        ({"answer": "Oslo"}, "column 'question' holds nothing, where a text is due"),
        ({}, "column 'question' holds nothing, where a text is due"),
        (
            {"image": PICTURE, "caption": "Ann smiles.", "question": "Where?", "answer": "Oslo"},
            "it has a caption and a question or an answer, and one would be passed over",
        ),
    ],
    ids=["no picture", "no words", "no answer", "no question", "nothing", "two rows in one"],
)
def test_a_row_that_is_neither_a_caption_nor_a_question_is_refused(row, line, tmp_path):
    fine = {"question": "Where?", "answer": "Oslo"}
    assert f"{tmp_path}, split rows, row 1: {line}" in error_of(training, mixed(tmp_path, fine, row))


def test_a_question_may_have_a_picture(tmp_path):
    rows = training(mixed(tmp_path, {"image": PICTURE, "question": "Who is this?", "answer": "Ann"}))
    assert rows[0].image["bytes"] == PICTURE["bytes"]


def test_pictures_in_a_column_that_is_not_named_are_not_passed_over(tmp_path):
    folder = mixed(tmp_path, {"image": PICTURE, "question": "Who is this?", "answer": "Ann"})
    data = replace(data_of(folder), columns=replace(COLUMNS, image="photo", caption=""))
    line = error_of(TrainingRows, data, "rows", "both", 0)
    assert "data.columns.image='photo' is no column, and column 'image' has pictures" in line
    silent = replace(data, columns=replace(COLUMNS, image="", caption=""))  # who says that there are none means it
    assert TrainingRows(silent, "rows", "both", 0)[0].image is None


def test_a_table_that_pandas_wrote_has_its_gaps(tmp_path):
    table = pandas.DataFrame({"question": ["Where?", "Who?"], "answer": ["Oslo", "Ann"], "caption": [float("nan")] * 2})
    folder = parquet(tmp_path, datasets.Dataset.from_pandas(table))
    assert [row.answer for row in training(folder)] == ["Oslo", "Ann"]


def test_numbers_where_pictures_are_due_are_refused(tmp_path):
    folder = jsonl(tmp_path, [{"image": 7, "caption": "Ann smiles."}])
    assert "row 0: column 'image' holds 7 (a number), where a picture or the name of one" in error_of(training, folder)


def test_letters_that_are_no_utf_8_are_one_line(tmp_path):
    letters = pyarrow.array([b"Where\xe4"]).view("string")
    folder = parquet(tmp_path, datasets.Dataset(pyarrow.table({"question": letters, "answer": ["Oslo"]})))
    assert "column 'question' cannot be read ('utf-8' codec can't decode byte 0xe4" in error_of(training, folder)
