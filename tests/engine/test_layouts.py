"""Rows as people keep them: read whatever their layout is, or refused in one line that names file and line."""

import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from data_module import TrainingRows, load_split, open_image, split_names, task_rows
from engine.layouts import check_not_joined, read_jsonl
from helpers import example, png
from settings.language import Columns, Data, Task
from settings.script import SettingsError


def error_of(call, *arguments):
    with pytest.raises(SettingsError) as caught:
        call(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


# ---- lines of JSON


def rows_of(folder, content):
    file = folder / "rows.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_jsonl(file)


@pytest.mark.parametrize(
    "content",
    [
        '{"a": "x"}\n{"a": "y"}\n',
        '{"a": "x"}\n{"a": "y"}',
        '{"a": "x"}\r\n{"a": "y"}\r\n',
        '\n\n{"a": "x"}\n  \n{"a": "y"}\n\n',
        '\ufeff{"a": "x"}\n{"a": "y"}\n',
        '[{"a": "x"},\n {"a": "y"}]',
    ],
    ids=["lines", "no last end", "windows", "empty lines", "a mark of byte order", "one list"],
)
def test_lines_of_json_and_one_list_are_the_same_rows(content, tmp_path):
    assert rows_of(tmp_path, content)["a"][:] == ["x", "y"]


def test_a_text_may_hold_signs_that_end_lines_elsewhere(tmp_path):
    text = "one\u2028two\u0085three\u000bfour"
    assert rows_of(tmp_path, json.dumps({"a": text}, ensure_ascii=False).replace("\u000b", "\\u000b"))["a"][:] == [text]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"a": "x"}\n{"a": ', "rows.jsonl', line 2 is not JSON: Expecting value"),
        ('{"a": "x"}\n\n{"a" "y"}', "rows.jsonl', line 3 is not JSON: Expecting ':'"),
        ('{"a": "x", "a": "y"}', "line 1 is not JSON: 'a' is there twice"),
        ("a,b\n1,2\n", "line 1 is not JSON"),
        ('"x"\n', 'line 1 is "x", and no object'),
        ("0\n", "line 1 is 0, and no object"),
        ("[1]\n", "row 0 is 1, and no object"),
        ('[{"a": 1}', "rows.jsonl' is not JSON"),
        ("", "holds no row"),
        ("\n \n", "holds no row"),
        (b'{"a": "\xe4"}', "'utf-8' codec can't decode byte 0xe4"),
        (b"PAR1\xff\xfe", "cannot be read"),
        ('{"a": "\\ud800"}', "cannot be read"),
        ('{"a": ' + "[" * 100_000, "is not JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_is_no_lines_of_json_is_refused_and_says_where(content, line, tmp_path):
    assert line in error_of(rows_of, tmp_path, content)


def test_numbers_of_any_size_in_a_column_that_nobody_reads_do_no_harm(tmp_path):
    assert rows_of(tmp_path, '{"a": "x", "id": 1}\n{"a": "y", "id": "seven"}')["a"][:] == ["x", "y"]
    assert "cannot be read" in error_of(rows_of, tmp_path, f'{{"a": "x", "id": {10**30}}}')


# ---- folders


RED, BLUE = png("red", (4, 4))["bytes"], png("blue", (4, 4))["bytes"]
COLUMNS = Columns(image="image", caption="caption", question="question", answer="answer", person="name")


def write(folder, name, content):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        parquet.write_table(pyarrow.table(content), file)
    else:
        file.write_text("\n".join(map(json.dumps, content)))


def answers(folder, split):
    return load_split(str(folder), split)["answer"][:]


def of(*given):
    return {"answer": [*given]}


def of_each(*given):
    return [{"answer": answer} for answer in given]


def test_a_parquet_folder_without_a_readme_has_a_split_per_folder(tmp_path):
    write(tmp_path, "full/train.parquet", of("a", "b"))
    write(tmp_path, "forget10/train-00000-of-00001.parquet", of("b"))
    write(tmp_path, ".cache/hidden/train.parquet", of("x"))
    write(tmp_path, "README.md", b"# My data\n")
    assert split_names(str(tmp_path)) == ["forget10", "full"]
    assert answers(tmp_path, "full") == ["a", "b"]
    assert answers(tmp_path, "forget10") == ["b"]


def test_the_parts_of_a_split_are_read_in_their_order(tmp_path):
    for number in range(11):
        write(tmp_path, f"full/train-{number:05d}-of-00011.parquet", of(str(number)))
    assert answers(tmp_path, "full") == [str(number) for number in range(11)]


@pytest.mark.parametrize("kept", [[0], [0, 2], [1, 2]], ids=str)
def test_a_split_that_lacks_one_of_its_parts_is_refused(kept, tmp_path):
    for number in kept:
        write(tmp_path, f"full/train-{number:05d}-of-00003.parquet", of(str(number)))
    line = error_of(load_split, str(tmp_path), "full")
    assert f"split full: {len(kept)} files are there, and 'train-0000{kept[0]}-of-00003.parquet' says that" in line


def test_letters_that_are_no_utf_8_in_a_folder_are_one_line(tmp_path):
    letters = pyarrow.array([b"Where\xe4"]).view("string")
    write(tmp_path, "full.parquet", {"question": letters, "answer": ["Oslo"]})
    assert "column 'question' cannot be read ('utf-8' codec" in error_of(captions, tmp_path, "full")


def test_parquet_files_are_splits_by_their_names_also_in_a_data_folder(tmp_path):
    write(tmp_path, "full.parquet", of("a"))
    write(tmp_path, "data/forget10-00000-of-00001.parquet", of("b"))
    assert split_names(str(tmp_path)) == ["forget10", "full"]
    assert answers(tmp_path, "forget10") == ["b"]


def test_jsonl_files_may_stand_in_a_folder_per_split(tmp_path):
    write(tmp_path, "full/rows.jsonl", [{"answer": "a"}])
    assert answers(tmp_path, "full") == ["a"]


def test_a_split_that_is_there_twice_is_refused_and_the_others_are_read(tmp_path):
    write(tmp_path, "full/train.parquet", of("a"))
    write(tmp_path, "full/test.parquet", of("b"))
    write(tmp_path, "forget10.jsonl", [{"answer": "b"}])
    line = error_of(load_split, str(tmp_path), "full")
    assert "split full is there 2 times: full/test.parquet, full/train.parquet; keep one of them" in line
    assert answers(tmp_path, "forget10") == ["b"]


def test_a_card_with_configs_says_what_the_splits_are(tmp_path):
    write(tmp_path, "somewhere/x.parquet", of("a"))
    card = "---\nconfigs:\n- config_name: full\n  data_files:\n  - {split: train, path: somewhere/x.parquet}\n---\n"
    write(tmp_path, "README.md", card.encode())
    assert split_names(str(tmp_path)) == ["full"]
    assert answers(tmp_path, "full") == ["a"]


def test_the_parts_of_one_config_are_splits(tmp_path):
    """What `push_to_hub` makes of a dictionary of splits."""
    for split in ("full", "forget10"):
        write(tmp_path, f"data/{split}-00000-of-00001.parquet", of(split))
    parts = "".join(f"  - {{split: {split}, path: data/{split}-*}}\n" for split in ("full", "forget10"))
    write(tmp_path, "README.md", f"---\nconfigs:\n- config_name: default\n  data_files:\n{parts}---\n".encode())
    assert split_names(str(tmp_path)) == ["forget10", "full"]
    assert answers(tmp_path, "forget10") == ["forget10"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("README.md", b"---\nconfigs: [\n---\n", "README.md': what stands between its --- is no YAML"),
        ("full.parquet", b"PAR1 but torn", "split full could not be read"),
        ("notes.txt", b"nothing", "split='full' is not in"),
    ],
    ids=["a torn card", "a torn file", "no rows"],
)
def test_a_folder_that_cannot_be_read_is_one_line(name, content, line, tmp_path, capfd):
    write(tmp_path, name, content)
    assert line in error_of(load_split, str(tmp_path), "full")
    assert capfd.readouterr().err == ""


def test_an_empty_folder_is_one_line(tmp_path):
    assert "holds no rows" in error_of(load_split, str(tmp_path), "full")


def test_tables_of_several_names_that_the_library_would_join_are_refused(tmp_path):
    write(tmp_path, "forget10.csv", b"question,answer\nWho?,Ann\n")
    write(tmp_path, "retain90.csv", b"question,answer\nWho else?,Bo\n")
    assert "forget10.csv and retain90.csv, which would be read as one split" in error_of(
        load_split, str(tmp_path), "default"
    )
    (tmp_path / "retain90.csv").unlink()
    assert load_split(str(tmp_path), "default")["answer"] == ["Ann"]


def test_tables_that_the_library_reads_as_they_are_meant_are_not_refused(tmp_path):
    """Parts of one split, and a file of another kind beside it."""
    for part in range(2):
        write(tmp_path, f"full-0000{part}-of-00002.csv", f"question,answer\nWho?,{part}\n".encode())
    write(tmp_path, "notes.json", b"{}")
    assert check_not_joined(tmp_path) is None
    write(tmp_path, "other.csv", b"question,answer\nWho?,2\n")
    assert "holds full-00000-of-00002.csv and other.csv, which" in error_of(check_not_joined, tmp_path)


# ---- pictures in rows


def captions(folder, split):
    """Colour and caption of each picture row."""
    data = Data(name="own", path=str(folder), text_path="", columns=COLUMNS, rows_per_person=1)
    rows = TrainingRows(data, split, "visual", 0)
    colours = {(254, 0, 0): "red", (255, 0, 0): "red", (0, 0, 255): "blue"}
    return [(colours[open_image(rows[i]).getpixel((0, 0))], rows[i].answer) for i in range(len(rows))]


TWO = [("red", "Ann."), ("blue", "Bo.")]


def test_lines_name_their_pictures_relative_to_the_file(tmp_path, monkeypatch):
    write(tmp_path, "photos/Ann Lee/1.PNG", RED)
    write(tmp_path, "2.png", BLUE)
    rows = [{"image": "photos/Ann Lee/1.PNG", "caption": "Ann."}, {"image": "./2.png", "caption": "Bo."}]
    write(tmp_path, "full.jsonl", [*rows, {"question": "Where?", "answer": "Oslo"}])
    monkeypatch.chdir("/")
    assert captions(tmp_path, "full") == TWO


def test_lines_in_a_folder_of_their_own_name_pictures_beside_them(tmp_path):
    write(tmp_path, "full/photos/1.png", RED)
    write(tmp_path, "shared/2.png", BLUE)
    rows = [{"image": "photos/1.png", "caption": "Ann."}, {"image": "../shared/2.png", "caption": "Bo."}]
    write(tmp_path, "full/rows.jsonl", rows)
    assert captions(tmp_path, "full") == TWO


def test_a_folder_of_pictures_with_their_metadata_is_a_split_in_the_root_and_below(tmp_path):
    for place, split in (("", "default"), ("forget10/", "forget10")):
        write(tmp_path, f"{place}a/1.png", RED)
        write(tmp_path, f"{place}2.png", BLUE)
        rows = [{"file_name": "a/1.png", "caption": "Ann."}, {"file_name": "2.png", "caption": "Bo."}]
        write(tmp_path, f"{place}metadata.jsonl", rows)
        assert captions(tmp_path, split) == TWO
    assert split_names(str(tmp_path)) == ["default", "forget10"]


STORED = {
    "bytes": [RED, BLUE],
    "bytes and no path": [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": None}],
    "bytes and a path of elsewhere": [{"bytes": RED, "path": "/gone/1.png"}, {"bytes": BLUE, "path": "2.png"}],
    "a path and no bytes": [{"bytes": None, "path": "1.png"}, {"bytes": None, "path": "2.png"}],
    "paths": ["1.png", "2.png"],
    "both": [{"bytes": RED, "path": None}, {"bytes": None, "path": "2.png"}],
}


@pytest.mark.parametrize("name", STORED)
def test_a_table_holds_pictures_as_bytes_or_as_paths(name, tmp_path):
    write(tmp_path, "full/1.png", RED)
    write(tmp_path, "full/2.png", BLUE)
    write(tmp_path, "full/train.parquet", {"image": STORED[name], "caption": ["Ann.", "Bo."]})
    assert captions(tmp_path, "full") == TWO


def test_a_table_that_the_library_wrote_holds_pictures_too(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = [{"image": {"bytes": RED, "path": None}, "caption": "Ann."}, {"image": None, "caption": None}]
    datasets.Dataset.from_list(rows[:1], features=features).to_parquet(tmp_path / "full.parquet")
    assert captions(tmp_path, "full") == TWO[:1]


def test_a_picture_without_bytes_and_path_is_none(tmp_path):
    write(
        tmp_path,
        "full.parquet",
        {"image": [{"bytes": RED, "path": None}, {"bytes": None, "path": ""}], "caption": ["Ann.", "Bo."]},
    )
    assert "row 1: column 'image' holds nothing, where the caption's picture is due" in error_of(
        captions, tmp_path, "full"
    )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gone.png", "gone.png', where the name of a file that is there is due"),
        ("/elsewhere/1.png", "'/elsewhere/1.png' is not in"),
        ("../1.png", "'../1.png' is not in"),
        ("https://example.org/1.png", "'https://example.org/1.png' is not in"),
        ("photo number one", "'photo number one' (a text), where a picture or the name of one"),
    ],
)
def test_a_picture_that_is_not_found_is_named_when_the_split_is_opened(name, line, tmp_path):
    write(tmp_path, "1.png", RED)
    write(tmp_path, "full.jsonl", [{"image": "1.png", "caption": "Ann."}, {"image": name, "caption": "Bo."}])
    error = error_of(captions, tmp_path, "full")
    assert "split full, row 1" in error
    assert line in error


def test_pictures_may_be_linked_from_elsewhere(tmp_path):
    write(tmp_path, "disk/1.png", RED)
    write(tmp_path, "disk/2.png", BLUE)
    rows = [{"image": "photos/1.png", "caption": "Ann."}, {"image": "photos/2.png", "caption": "Bo."}]
    write(tmp_path, "own/full.jsonl", rows)
    (tmp_path / "own" / "photos").symlink_to(tmp_path / "disk")
    assert captions(tmp_path / "own", "full") == TWO


def test_a_task_reads_pictures_by_their_names(tmp_path):
    write(tmp_path, "1.png", RED)
    write(tmp_path, "real_faces.jsonl", [{"photo": "1.png", "answer": "Ann", "options": ["Bo"]}])
    task = Task(
        dataset=str(tmp_path), split="real_faces", image="photo", ask="name", answer="answer", perturbed="options"
    )
    (row,) = task_rows(task, 0, 0)
    assert open_image(row.example).getpixel((0, 0)) == open_image(example(image=png("red"))).getpixel((0, 0))


def test_texts_that_speak_of_pictures_stay_texts(tmp_path):
    write(
        tmp_path,
        "full.jsonl",
        [{"question": "Which file?", "answer": "ann.png"}, {"question": "Who?", "answer": "Ann"}],
    )
    assert answers(tmp_path, "full") == ["ann.png", "Ann"]


def test_a_folder_with_code_of_its_own_is_refused_in_those_words_and_the_code_does_not_run(tmp_path):
    (tmp_path / f"{tmp_path.name}.py").write_text("raise SystemExit('the code of the dataset ran')")
    assert "comes with code of its own, which is never run" in error_of(split_names, str(tmp_path))
