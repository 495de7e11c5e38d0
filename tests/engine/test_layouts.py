"""Rows as people keep them: read whatever their layout is, or refused in one line that names file and line."""

import json

import pytest

from engine.layouts import read_jsonl
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
