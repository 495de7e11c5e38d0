"""Folders that a run writes: whole or not there, checked before, and never somebody else's."""

import errno
import os

import pytest

from engine import folders
from engine.folders import MARK, beside, check_save_dir, full_disk_said, marked, remove_ours, written_whole
from settings import runs
from settings.inputs import Inputs
from settings.runs import locks_given_back
from settings.script import FolderExists, SettingsError

pytestmark = pytest.mark.usefixtures("own_locks")


@pytest.fixture
def own_locks():
    """Locks that a test takes are given back."""
    with locks_given_back():
        yield


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), written_whole(tmp_path / "out") as aside:
        (aside / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with written_whole(tmp_path / "out") as aside:
        (aside / "all").write_text("x")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "all"]


@pytest.mark.parametrize(
    ("content", "same"), [('{"key": "a"}', True), ('{"key": "b"}', False), ("{", False), ("[]", False)]
)
def test_a_sweep_knows_by_its_key_a_folder_that_it_has_made_before(content, same, tmp_path):
    (tmp_path / "train_meta.json").write_text(content)
    with pytest.raises(FolderExists) as stop:
        check_save_dir(str(tmp_path), False, "train_meta.json", key=lambda: "a")
    assert stop.value.is_same() is same


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


def test_the_lock_is_taken_before_anything_is_looked_at_in_the_folder(tmp_path, monkeypatch):
    """Another run may make or replace the folder until then: what was seen of it would no longer hold."""
    monkeypatch.setattr(folders, "lock_folder", lambda folder, setting: folder.mkdir())
    with pytest.raises(SettingsError, match="exists; overwrite=true replaces it"):
        check_save_dir(str(tmp_path / "out"), False, "train_meta.json")


# ---- what is not ours


@pytest.mark.parametrize("ending", ["partial", "former", "tasks", "checkpoints"])
def test_a_folder_beside_save_dir_that_the_suite_did_not_make_is_refused_and_stays(ending, tmp_path):
    other = tmp_path / f"out.{ending}"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    (other / "train_meta.json").write_text("{}")  # a copy that somebody made of a model is not ours either
    with pytest.raises(SettingsError, match=rf"out\.{ending}' stands where this run would write"):
        check_save_dir(str(tmp_path / "out"), False, "train_meta.json")
    assert (other / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize("ending", ["partial", "former"])
def test_what_is_not_ours_is_not_deleted_while_a_folder_is_written(ending, tmp_path):
    other = tmp_path / f"out.{ending}"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(SettingsError, match="move it away"), written_whole(tmp_path / "out"):
        pass
    assert (other / "thesis.txt").read_text() == "x"


def test_a_file_in_the_place_of_our_folder_is_refused(tmp_path):
    (tmp_path / "out.partial").write_text("x")
    with pytest.raises(SettingsError, match="was not made by one"):
        check_save_dir(str(tmp_path / "out"), False, "train_meta.json")


def test_what_a_killed_run_left_is_removed(tmp_path):
    for ending in ("partial", "former"):
        (marked(tmp_path / f"out.{ending}") / "half").write_text("x")
    check_save_dir(str(tmp_path / "out"), False, "train_meta.json")
    with written_whole(tmp_path / "out") as aside:
        (aside / "all").write_text("x")
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".lock"] == ["out"]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["all"]


def test_the_mark_goes_last_so_that_a_kill_in_between_leaves_it(tmp_path, monkeypatch):
    ours = marked(tmp_path / "ours")
    (ours / "below").mkdir()
    monkeypatch.setattr(folders.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_ours(ours)
    assert (ours / MARK).is_file()


# ---- before anything runs


@pytest.mark.parametrize("below", [".", "deep/model"])
@pytest.mark.parametrize("kind", ["models", "data", "files"])
def test_a_save_dir_that_holds_what_the_run_reads_is_refused(kind, below, tmp_path):
    (tmp_path / "out" / below).mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / "train_meta.json").write_text("{}")
    inputs = Inputs(**{kind: [str(tmp_path / "out" / below)]})
    with pytest.raises(SettingsError, match=r"save_dir=.* holds .*, which this run reads; name another folder"):
        check_save_dir(str(tmp_path / "out"), True, "train_meta.json", inputs)


def test_a_save_dir_below_the_start_model_is_no_fault(tmp_path):
    (tmp_path / "model").mkdir()
    inputs = Inputs(models=[str(tmp_path / "model")])
    check_save_dir(str(tmp_path / "model" / "eval_results"), False, "eval_meta.json", inputs)


def test_a_name_that_leaves_no_room_for_what_stands_beside_it_is_refused(tmp_path):
    most = os.pathconf(tmp_path, "PC_NAME_MAX")
    with pytest.raises(SettingsError, match=rf"is too long: .* allows {most}$"):
        check_save_dir(str(tmp_path / ("x" * (most - 5))), False, "train_meta.json")
    check_save_dir(str(tmp_path / ("x" * (most - 12))), False, "train_meta.json")  # 12: of .checkpoints


def test_a_name_is_counted_in_bytes(tmp_path):
    most = os.pathconf(tmp_path, "PC_NAME_MAX")
    with pytest.raises(SettingsError, match="is too long"):
        check_save_dir(str(tmp_path / ("\u00e9" * (most // 2))), False, "train_meta.json")


def test_a_path_that_is_too_long_is_refused(tmp_path):
    most = os.pathconf(tmp_path, "PC_PATH_MAX")
    deep = "/".join(["x" * 200] * (most // 200))
    with pytest.raises(SettingsError, match=r"is too long: .* a path of"):
        check_save_dir(str(tmp_path / deep), False, "train_meta.json")


def test_a_place_where_nothing_can_be_written_is_told_before(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(runs, "open_locked", refused)
    with pytest.raises(SettingsError, match=r"save_dir=.* cannot be written: Permission denied"):
        check_save_dir(str(tmp_path / "out"), False, "train_meta.json")


def test_room_is_counted_where_the_folder_will_be(tmp_path):
    folders.check_space(tmp_path / "a" / "out", 1000, "1 for all")
    with pytest.raises(SettingsError, match=r"needs about 1000000000\.00 GB \(1 for all\), and .* has .* GB free"):
        folders.check_space(tmp_path / "a" / "out", 10**18, "1 for all")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
     RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")],
)  # fmt: skip
def test_a_full_disk_is_one_line_and_leaves_nothing_half(error, tmp_path):
    with pytest.raises(SettingsError, match=r"the disk is full; make room"), written_whole(tmp_path / "out") as aside:
        (aside / "half").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_another_error_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="other"), full_disk_said(tmp_path):
        raise RuntimeError("other")


def test_what_stands_beside_a_link_stands_beside_what_it_points_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert beside(tmp_path / "out", "partial") == tmp_path / "disk.partial"
