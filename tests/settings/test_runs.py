"""A run among others: one per folder, and it ends with its launcher."""

import os
import signal
import subprocess
import sys
import time

import pytest

from helpers import ENVIRONMENT, ROOT
from settings import runs
from settings.runs import is_launcher, lock_folder, locks_given_back, one_at_a_time
from settings.script import SettingsError

HOLDS = """
import sys, time
from pathlib import Path
from settings.runs import lock_folder
lock_folder(Path(sys.argv[1]), "save_dir")
print("has it", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process that has the lock on `tmp_path / "deep" / "out"`."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "deep" / "out")]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def test_two_runs_in_one_folder_are_refused_and_the_other_is_named(other_run, tmp_path):
    with pytest.raises(SettingsError, match=rf"is being written by another run \(process {other_run.pid}\); wait"):
        lock_folder(tmp_path / "deep" / "out", "save_dir")


WAITING = """
import sys
from pathlib import Path
from settings.runs import one_at_a_time
folder = Path(sys.argv[1])
print("waits", flush=True)
with one_at_a_time(folder):
    print("found" if folder.exists() else "missing", flush=True)
"""


def test_a_run_waits_for_another_that_makes_what_both_need(tmp_path):
    folder = tmp_path / "world"
    command = [sys.executable, "-c", WAITING, str(folder)]
    with one_at_a_time(folder):
        other = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "waits\n"
        time.sleep(0.2)
        folder.mkdir()
    assert other.communicate(timeout=60)[0] == "found\n"
    assert [file.name for file in tmp_path.iterdir()] == ["world"]


def test_a_dead_run_has_no_lock(other_run, tmp_path):
    other_run.kill()
    other_run.wait()
    with locks_given_back():
        lock_folder(tmp_path / "deep" / "out", "save_dir")
        assert (tmp_path / "deep" / "out.lock").read_text() == f"process {os.getpid()}\n"


def test_runs_in_two_folders_do_not_meet(other_run, tmp_path):
    with locks_given_back():
        lock_folder(tmp_path / "deep" / "another", "save_dir")


def test_nothing_is_left_of_a_lock_nor_of_the_folders_made_for_it(tmp_path):
    with locks_given_back():
        lock_folder(tmp_path / "a" / "b" / "out", "save_dir")
        assert (tmp_path / "a" / "b" / "out.lock").is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_has_something_in_it_stays(tmp_path):
    with locks_given_back():
        lock_folder(tmp_path / "a" / "out", "save_dir")
        (tmp_path / "a" / "out").mkdir()
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["out"]


def test_who_has_a_lock_keeps_it_until_the_outer_run_ends(tmp_path):
    with locks_given_back():
        lock_folder(tmp_path / "out", "save_dir")
        with locks_given_back():
            lock_folder(tmp_path / "out", "save_dir")
        assert (tmp_path / "out.lock").is_file()


def test_of_several_processes_the_first_takes_the_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    lock_folder(tmp_path / "out", "save_dir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/venv/bin/python /venv/bin/accelerate launch mm/finetune.py", True),
        ("python -m accelerate.commands.launch -q mm/finetune.py", True),
        ("python /venv/bin/torchrun --nproc_per_node 2 x.py", True),
        ("python -m torch.distributed.run x.py", True),
        ("bash", False),
        ("make demo", False),
        ("python launch_all.py accelerated", False),
    ],
)
def test_only_a_launcher_is_one(line, answer):
    assert is_launcher(line.split()) is answer


WAITS = """
import subprocess, sys, time
from settings import runs
if len(sys.argv) > 1:
    runs.is_launcher = lambda words: sys.argv[1] == "launcher"
    runs.end_with_launcher()
    print("asked", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
@pytest.mark.parametrize(("kind", "ends"), [("launcher", True), ("shell", False)])
def test_a_run_ends_with_its_launcher_and_not_with_a_shell(kind, ends, tmp_path):
    parent = (
        "import subprocess, sys\n"
        "streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.DEVNULL, 'text': True}\n"
        f"child = subprocess.Popen([sys.executable, '-c', {WAITS!r}, {kind!r}], **streams)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    child = int(done.stdout)
    try:
        for _ in range(100):
            if not runs_still(child):
                break
            time.sleep(0.05 if ends else 0.01)
        assert runs_still(child) is not ends
    finally:
        if runs_still(child):
            os.kill(child, signal.SIGKILL)


def runs_still(process):
    """Whether a process is there and not only waiting to be asked for its end."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(runs.NO_LOCKS[0], "No locks available")

    monkeypatch.setattr(runs.fcntl, "flock", none)
    with locks_given_back():
        lock_folder(tmp_path / "out", "save_dir")
    assert "has no locks" in capsys.readouterr().err


# ---- what was launched

TELLS = """
import os, signal, sys, time
def told(*_):
    open(sys.argv[1], "w").close()
    os._exit(0)
signal.signal(signal.SIGTERM, told)
print(os.getpid(), flush=True)
time.sleep(600)
"""
LAUNCHES = """
import subprocess, sys, time
from settings.runs import ending_with_this
command = ending_with_this([sys.executable, "-c", sys.argv[1], sys.argv[2]])
process = subprocess.Popen(command, start_new_session=True)
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_a_launched_command_is_the_process_that_was_started_and_is_told_when_its_parent_is_killed(tmp_path):
    command = [sys.executable, "-c", LAUNCHES, TELLS, str(tmp_path / "told")]
    options = {"cwd": ROOT, "env": ENVIRONMENT, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as process:
        numbers = {process.stdout.readline(), process.stdout.readline()}
        process.kill()
    assert len(numbers) == 1
    end = time.monotonic() + 60
    while not (tmp_path / "told").exists():
        assert time.monotonic() < end, "it was not told"
        time.sleep(0.05)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_a_command_whose_parent_is_gone_before_it_could_ask_does_not_begin(tmp_path):
    nobody = "0"  # no process has this number as its parent
    writes = [sys.executable, "-c", f"open({str(tmp_path / 'a')!r}, 'w')"]
    assert subprocess.run([sys.executable, runs.__file__, nobody, *writes], env=ENVIRONMENT).returncode == -15
    assert list(tmp_path.iterdir()) == []
