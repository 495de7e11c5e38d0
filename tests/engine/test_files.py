"""A fingerprint changes with whatever the loader loads, and with nothing else."""

import json
import os
import shutil
import time

import pytest

from data_module import fingerprint
from engine import files
from engine.record import file_fingerprint, model_fingerprint
from settings.script import SettingsError


@pytest.fixture
def album(tmp_path):
    """A folder whose people are links to folders elsewhere, and one of whose pictures is a link."""
    for name in ("Ann", "Bo"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / "disk" / name / "1.png").write_text(f"{name} one")
    (tmp_path / "own" / "Cy").mkdir(parents=True)
    (tmp_path / "own" / "Ann").symlink_to(tmp_path / "disk" / "Ann")
    (tmp_path / "own" / "Cy" / "1.png").symlink_to(tmp_path / "disk" / "Bo" / "1.png")
    return tmp_path / "own"


def names_below(folder):
    return [file.relative_to(folder).as_posix() for file in files.files_below(folder)]


def test_linked_folders_and_files_are_found(album):
    assert names_below(album) == ["Ann/1.png", "Cy/1.png"]


def test_an_album_of_links_has_the_hash_of_the_same_album_without_links(album, tmp_path):
    shutil.copytree(album, tmp_path / "copied")  # which copies what links point to
    assert not (tmp_path / "copied" / "Ann").is_symlink()
    assert fingerprint(str(album)) == fingerprint(str(tmp_path / "copied"))


@pytest.mark.parametrize("changed", ["disk/Ann/1.png", "disk/Bo/1.png"])
def test_what_stands_behind_a_link_changes_the_hash(changed, album, tmp_path):
    before = fingerprint(str(album))
    (tmp_path / changed).write_text("another face")
    assert fingerprint(str(album)) != before


def test_another_target_of_a_link_changes_the_hash(album, tmp_path):
    before = fingerprint(str(album))
    (album / "Ann").unlink()
    (album / "Ann").symlink_to(tmp_path / "disk" / "Bo")
    assert fingerprint(str(album)) != before


def test_links_that_lead_back_are_followed_once(album):
    (album / "Cy" / "all").symlink_to(album)
    (album / "itself").symlink_to(album / "itself")
    assert names_below(album) == ["Ann/1.png", "Cy/1.png"]


def test_two_links_to_one_folder_are_both_followed(album, tmp_path):
    (album / "Ann Lee").symlink_to(tmp_path / "disk" / "Ann")
    assert names_below(album) == ["Ann/1.png", "Ann Lee/1.png", "Cy/1.png"]


def rewrite(file, text):
    """Write a text of the same length and turn the clock back, as a copy that keeps times does."""
    time.sleep(0.05)  # several ticks of the file system's clock
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_text(text)
    os.utime(file, ns=times)


@pytest.mark.parametrize("moment", [files.A_MOMENT, 0], ids=["just written", "long ago"])
def test_the_content_decides_also_where_size_and_time_are_the_same(moment, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "A_MOMENT", moment)
    file = tmp_path / "rows.jsonl"
    file.write_text("one")
    before = fingerprint(str(tmp_path)), file_fingerprint(str(file)), model_fingerprint(str(tmp_path))
    rewrite(file, "two")
    after = fingerprint(str(tmp_path)), file_fingerprint(str(file)), model_fingerprint(str(tmp_path))
    assert not {*before} & {*after}
    rewrite(file, "one")
    assert (fingerprint(str(tmp_path)), file_fingerprint(str(file)), model_fingerprint(str(tmp_path))) == before


def test_the_same_files_elsewhere_and_at_another_time_have_the_same_hash(tmp_path):
    for place, moment in (("one", 10**9), ("two", 10**18)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "rows.jsonl").write_text("x")
        os.utime(tmp_path / place / "rows.jsonl", ns=(moment, moment))
    assert fingerprint(str(tmp_path / "one")) == fingerprint(str(tmp_path / "two"))


def test_a_file_of_another_name_is_another_hash(tmp_path):
    (tmp_path / "a.jsonl").write_text("x")
    before = fingerprint(str(tmp_path)), model_fingerprint(str(tmp_path))
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    assert not {*before} & {fingerprint(str(tmp_path)), model_fingerprint(str(tmp_path))}


def test_content_does_not_move_between_files_unnoticed(tmp_path):
    for name, text in (("a", "xy"), ("b", "z")):
        (tmp_path / name).write_text(text)
    before = fingerprint(str(tmp_path))
    for name, text in (("a", "x"), ("b", "yz")):
        (tmp_path / name).write_text(text)
    assert fingerprint(str(tmp_path)) != before


def test_a_file_that_has_not_changed_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "A_MOMENT", -1)
    files.digest_in_state.cache_clear()
    (tmp_path / "rows.jsonl").write_text("x")
    for _ in range(3):
        fingerprint(str(tmp_path))
    assert files.digest_in_state.cache_info().misses == 1


# ---- models


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "model.pt", "model.pth", "tf_model.h5", "flax_model.msgpack",
     "model.ckpt.index", "model.gguf", "model.onnx", "consolidated.00.pth", "config.json", "tokenizer.model",
     "additional_chat_templates/tool.jinja"],
)  # fmt: skip
def test_every_format_of_weights_and_templates_counts_in_a_models_hash(name, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("one")
    before = model_fingerprint(str(tmp_path))
    file.write_text("two")
    assert model_fingerprint(str(tmp_path)) != before


def test_weights_that_are_links_into_a_cache_count(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0").write_text("one")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blobs" / "0")
    before = model_fingerprint(str(tmp_path / "model"))
    (tmp_path / "blobs" / "0").write_text("two")
    assert model_fingerprint(str(tmp_path / "model")) != before


@pytest.mark.parametrize("name", ["train_meta.json", "README.md", "eval_results/eval_log.json", "adapter/config.json"])
def test_what_a_model_is_not_read_from_does_not_count(name, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = model_fingerprint(str(tmp_path))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    assert model_fingerprint(str(tmp_path)) == before


def test_a_hub_id_stands_for_itself():
    assert fingerprint("therem/CLEAR") == "hub:therem/CLEAR"
    assert model_fingerprint("a/model") == "hub:a/model"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("x")

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(files.Path, "open", refuse)
    with pytest.raises(SettingsError, match=r"rows\.jsonl' cannot be read: Permission denied"):
        fingerprint(str(tmp_path))


# ---- what other processes have read


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A model's weights that count as large, in a folder of their own, and how often a file is read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "LARGE", 1)
    monkeypatch.setattr(files, "A_MOMENT", -1)
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "model.safetensors"
    file.write_text("one")
    read, real = [], files.read_digest
    monkeypatch.setattr(files, "read_digest", lambda path: (read.append(path), real(path))[1])
    return file, read


def in_another_process(path, **how):
    """The fingerprint of a model as a process has it that has read no file yet."""
    files.digest_in_state.cache_clear()
    return model_fingerprint(str(path), **how)


def test_the_weights_of_a_model_are_read_once_for_all_processes(weights):
    file, read = weights
    first = in_another_process(file.parent)
    assert [in_another_process(file.parent) for _ in range(3)] == [first] * 3
    assert read == [file]


@pytest.mark.parametrize("change", ["content", "in place", "copy", "moment"])
def test_weights_that_changed_are_read_again(weights, change):
    file, read = weights
    before = in_another_process(file.parent)
    if change == "content":
        rewrite(file, "two")
    elif change == "in place":  # of the same inode and size
        with file.open("r+b") as stream:
            time.sleep(0.05)
            stream.write(b"x")
        os.utime(file, ns=(0, 0))
    elif change == "copy":
        other = file.with_name("other")
        other.write_text("two")
        other.rename(file)
    else:
        time.sleep(0.05)
        os.utime(file, ns=(5, 5))
    after = in_another_process(file.parent)
    assert len(read) == 2
    assert (after == before) == (change == "moment")


def test_a_model_that_is_moved_on_its_disk_is_not_read_again(weights):
    file, read = weights
    before = in_another_process(file.parent)
    moved = file.parent.rename(file.parent.with_name("moved"))
    assert in_another_process(moved) == before and len(read) == 1


def test_whoever_verifies_reads_the_files_themselves(weights):
    file, read = weights
    in_another_process(file.parent)
    in_another_process(file.parent, anew=True)
    assert read == [file, file]


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"state": null}', '{"state": [1], "sha256": 5}', '{"sha256": ""}'])
def test_a_torn_note_is_none(weights, torn):
    file, read = weights
    before = in_another_process(file.parent)
    (note,) = files.notes_folder().glob("*.json")
    note.write_text(torn)
    assert in_another_process(file.parent) == before and len(read) == 2


def test_a_note_of_other_blocks_and_an_empty_digest_are_not_believed(weights):
    """Two images of a disk may give files of one state the same number."""
    file, _ = weights
    before = in_another_process(file.parent)
    (note,) = files.notes_folder().glob("*.json")
    noted = json.loads(note.read_text())
    for changed in ({"sample": "00" * 32, "sha256": "00" * 32}, {"sha256": ""}):
        note.write_text(json.dumps(noted | changed))
        assert in_another_process(file.parent) == before


def test_a_note_of_another_state_is_not_believed(weights):
    file, _ = weights
    before = in_another_process(file.parent)
    (note,) = files.notes_folder().glob("*.json")
    noted = json.loads(note.read_text())
    for place in range(len(noted["state"])):
        wrong = noted["state"].copy()
        wrong[place] += 1
        note.write_text(json.dumps({**noted, "state": wrong, "sha256": "00" * 32}))
        assert in_another_process(file.parent) == before


def test_where_nothing_can_be_noted_files_are_read_each_time(weights, tmp_path, monkeypatch):
    file, read = weights
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert in_another_process(file.parent) == in_another_process(file.parent)
    assert len(read) == 2


def test_a_file_that_is_written_while_it_is_read_is_not_noted(weights, monkeypatch):
    file, _ = weights
    real = files.read_digest

    def read_and_change(path):
        found = real(path)
        time.sleep(0.05)
        path.write_text("two")
        return found

    monkeypatch.setattr(files, "read_digest", read_and_change)
    in_another_process(file.parent)
    assert not list(files.notes_folder().glob("*"))


def test_a_user_without_a_home_has_no_notes(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert not files.notes_folder().is_relative_to(os.getcwd())
    files.write_note(files.notes_folder() / "1.json", {"state": [1, 1, 1, 1, 1]}, b"x")
