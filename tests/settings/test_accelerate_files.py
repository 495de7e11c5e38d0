"""config/accelerate: accelerate reads every file, knows its keys, and engages what it is named for."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from helpers import ROOT

FOLDER = ROOT / "config" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
KINDS = {
    "one_gpu": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def options():
    """What `accelerate launch` takes."""
    return {action.dest for action in launch_command_parser()._actions}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_the_file_and_engages_what_it_is_named_for(file):
    read = load_config_from_file(str(file))
    assert isinstance(read, ClusterConfig) and read.distributed_type == KINDS[file.stem]
    assert read.mixed_precision == "no"  # else the trainer's precision would not decide


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_key_of_a_backend_is_an_option_of_accelerates(file):
    read = yaml.safe_load(file.read_text(encoding="utf-8"))
    of_backends = {**read.get("fsdp_config", {}), **read.get("deepspeed_config", {})}
    assert set(of_backends) <= options()


def test_a_mistyped_key_would_be_noticed(tmp_path):
    torn = (FOLDER / "fsdp2.yaml").read_text().replace("num_machines", "num_machinse")
    (tmp_path / "torn.yaml").write_text(torn)
    with pytest.raises(ValueError, match="num_machinse"):
        load_config_from_file(str(tmp_path / "torn.yaml"))


def test_every_kind_has_its_file():
    assert {file.stem for file in FILES} == set(KINDS)


def test_fsdp_and_deepspeed_are_of_the_versions_that_the_suite_takes():
    assert load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config["fsdp_version"] == 2
    for stage in (2, 3):
        assert load_config_from_file(str(FOLDER / f"zero{stage}.yaml")).deepspeed_config["zero_stage"] == stage


def test_the_page_on_hardware_has_a_command_for_each_file():
    page = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--config_file config/accelerate/(\w+)\.yaml", page)) == set(KINDS)


def test_the_sbatch_file_launches_with_the_file_that_is_named(tmp_path):
    """Started as a shell script with a launcher that writes down what it was told."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    launcher = tmp_path / ".venv" / "bin" / "accelerate"
    launcher.write_text('#!/bin/bash\necho "$@" > told\nexit 3\n')
    launcher.chmod(0o755)
    command = ["bash", str(FOLDER / "train.sbatch"), "fsdp2", "nlp/forget.py", "method=npo"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "SLURM_GPUS_ON_NODE": "4"}, timeout=60)
    told = Path(tmp_path, "told").read_text().split()
    assert (
        told[1:] == "-q --config_file config/accelerate/fsdp2.yaml --num_processes 4 nlp/forget.py method=npo".split()
    )
    assert done.returncode == 3  # the launcher's own
