"""Ten kills at random moments leave what an uninterrupted run leaves, and the loop would see it if they did not."""

import json

import pytest

from faults import kill_loop
from faults.kill_loop import Command, compare, leftovers


@pytest.mark.long
def test_ten_kills_at_random_moments_change_nothing(tmp_path):
    made = kill_loop.run(10, 0, tmp_path)
    assert [command.name for command in made if command.different or command.failed] == []
    assert sum(command.kills for command in made) == 10
    assert all(command.finished for command in made)


@pytest.mark.parametrize("name", ["model.safetensors", "task.json"])
def test_a_changed_byte_would_be_noticed(name, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("a")
    command = Command("finetune", [], out, wanted=leftovers(out))
    compare(command)
    assert command.different == []
    (out / name).write_text("b")
    compare(command)
    assert command.different == [name]


def test_a_missing_file_and_a_folder_left_beside_would_be_noticed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "out.partial").mkdir()
    command = Command("finetune", [], out, wanted={"model.safetensors": "0"})
    compare(command)
    assert command.different == ["model.safetensors", "out.partial"]


def test_times_in_a_curve_do_not_count_and_losses_do(tmp_path):
    file = tmp_path / "metrics.jsonl"
    hashes = []
    for loss, seconds in ((2.0, 1.0), (2.0, 9.0), (3.0, 1.0)):
        file.write_text(json.dumps({"step": 1, "loss": loss, "seconds": seconds}) + "\n")
        hashes.append(leftovers(tmp_path)["metrics.jsonl"])
    assert hashes[0] == hashes[1] != hashes[2]
