"""What a run leaves beside its results: whole or not there."""

import os

import pytest
import torch

from engine.record import check_save_dir, peak_memory_gb, start_of_peak, write_text_whole, written_whole
from settings.script import SettingsError


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), written_whole(tmp_path / "out") as aside:
        (aside / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with written_whole(tmp_path / "out") as aside:
        (aside / "all").write_text("x")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "all"]


def test_an_existing_save_dir_names_overwrite(tmp_path):
    with pytest.raises(SettingsError, match=r"save_dir='.*' exists; overwrite=true replaces it"):
        check_save_dir(str(tmp_path), False, "train_meta.json")
    with pytest.raises(SettingsError, match="holds something else"):
        check_save_dir(str(tmp_path), True, "train_meta.json")
    (tmp_path / "train_meta.json").write_text("{}")
    check_save_dir(str(tmp_path), True, "train_meta.json")


@pytest.mark.parametrize("folder", ["", ".", "/"])
def test_a_save_dir_without_a_name_is_refused(folder):
    with pytest.raises(SettingsError, match="must name a folder of its own"):
        check_save_dir(folder, True, "train_meta.json")


def test_a_save_dir_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingsError, match="file is a file"):
        check_save_dir(str(tmp_path / "file" / "out"), False, "train_meta.json")


def test_a_former_folder_is_replaced_also_behind_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "old").write_text("x")
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with written_whole(tmp_path / "out") as aside:
        (aside / "new").write_text("x")
    assert [file.name for file in (tmp_path / "disk").iterdir()] == ["new"] and (tmp_path / "out").is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk", "out"]


def test_a_file_is_replaced_in_one_go(tmp_path):
    for text in ("old", "new"):
        write_text_whole(tmp_path / "a.json", text)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.json", "new")]


@pytest.mark.skipif(
    torch.cuda.is_available() or not os.access("/proc/self/clear_refs", os.W_OK),
    reason="measures main memory where Linux lets a peak be reset",
)
def test_peak_memory_speaks_of_what_came_since_its_start():
    large = torch.ones(100_000_000)  # 0.4 GB
    high = peak_memory_gb()
    del large
    start_of_peak()
    assert high > 0.4 and peak_memory_gb() < high - 0.2
