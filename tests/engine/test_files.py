"""A fingerprint changes with whatever the loader loads, and with nothing else."""

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
    files.read_digest.cache_clear()
    (tmp_path / "rows.jsonl").write_text("x")
    for _ in range(3):
        fingerprint(str(tmp_path))
    assert files.read_digest.cache_info().misses == 1


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
