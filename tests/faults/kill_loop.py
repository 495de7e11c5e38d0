"""Kill commands at random moments, run them again, and compare what they leave with an uninterrupted run:
python tests/faults/kill_loop.py --kills 100

The commands are finetune, forget, eval and a whole benchmark of the tiny language model on a small world, and an attack
on face networks. A command is killed with kill -9 after a random share of the time that it takes uninterrupted, again
and again, until it is done. What it leaves must be what the uninterrupted one left, to the byte: weights, logs,
figures, and the table but for its costs. `--only attack` kills that command alone.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["trainer.epochs=2", "trainer.batch_size=8", "trainer.save_every=1step"]
NAMES = ("finetune", "forget", "eval", "attack", "run_benchmark")
COSTS = {"train_seconds", "eval_seconds", "peak_memory_gb", "tokens_per_second"}
# they hold times, memory and versions
RECORDS = {"train_meta.json", "eval_meta.json", "attack_meta.json", "made_of.json", "benchmark.json"}
# what a kill after the end may leave, and the next run of the same folder removes
BESIDE = (".lock", ".checkpoints", ".tasks", ".former")
VIEWS = {"report.html", "results.csv", "table.md", "table.tex", "results.parquet"}  # of the table, with its costs


@dataclass
class Command:
    """One command, where it writes, and how it fared."""

    name: str
    words: list[str]
    output: Path
    last: str = ""  # what is written to `output` last; empty: `output` itself appears when it is whole
    needs: str = ""  # the command whose output it reads
    seconds: float = 0.0  # of the uninterrupted run
    wanted: dict[str, str] = field(default_factory=dict)  # what that left
    kills: int = 0
    finished: int = 0
    different: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return (self.output / self.last).exists()


def commands(folder: Path, world: Path, base: Path, faces: Path) -> list[Command]:
    """The commands in the order in which each needs what the ones before have left.

    `world`, `base` and `faces`: what `run` prepares, the last with a pretrained face network.
    """
    names = "data.splits.nlp={full: full, retain: retain90, forget: forget10}"
    data = [f"data.text_path={world}/tofu", "data.made_by=''", names, "data.forget=forget10"]
    model = [f"model.path={base}", "model.made_by=''"]
    common = [*data, *model]
    finetuned, forgot, asked = folder / "finetuned", folder / "forgot", folder / "asked"
    splits = ["split=forget10", "retain_split=retain90"]
    limits = ["max_new_tokens=4", "limit=4", "forget=forget10"]
    start = [f"model_path={base}", f"save_dir={finetuned}"]
    stages = {
        "common": common,
        "finetune": QUICK,
        "forget": [*QUICK, "trainer.lr=1e-4"],
        "eval": [text for text in limits if not text.startswith("forget=")],
    }
    whole = []
    for name, listed in stages.items():
        quoted = ",".join(f'"{text}"' for text in listed)
        whole.append(f"benchmark.{name}=[{quoted}]")
    whole += ["benchmark=nlp_demo", "benchmark.golds=1", "benchmark.base_split=full", "benchmark.gold_split=retain90"]
    whole += ["benchmark.forget_split=forget10", "benchmark.forget_people=forget10"]
    whole += [f"~benchmark.runs.{row}" for row in ("retain_ft", "grad_diff", "idk", "npo")]
    whole += [f"results_dir={folder / 'whole'}"]
    return [
        Command("finetune", ["nlp/finetune.py", *common, *start, *QUICK, "split=full"], finetuned),
        Command(
            "forget",
            ["nlp/forget.py", *common, *splits, *QUICK, f"model_path={finetuned}", f"save_dir={forgot}"],
            forgot,
            needs="finetune",
        ),
        Command(
            "eval",
            ["nlp/eval.py", *common, *limits, f"model_path={finetuned}", f"save_dir={asked}"],
            asked,
            needs="finetune",
        ),
        Command("attack", attack_words(faces, folder / "attacked"), folder / "attacked", last="figures"),
        Command("run_benchmark", ["run_benchmark.py", *whole], folder / "whole", last="report.html"),
    ]


def face_settings(faces: Path) -> list[str]:
    """A tiny network on the twelve people of the tests."""
    albums = [f"data.people.path={faces}/people", f"data.pretraining.path={faces}/pretraining", "data.made_by=''"]
    network = ["model.size=40", "model.width=4", "model.embedding=8"]
    return [*albums, "data.forget_pool=4", "data.train=4", "data.enrol=2", *network]


def attack_words(faces: Path, output: Path) -> list[str]:
    """An attack on ten networks in five stacks, finetuned and made to forget; all that it writes is in `output`."""
    trainers = [f"{name}.{value}" for name in ("finetune", "trainer") for value in ("epochs=10", "batch_size=8")]
    written = [f"data.split_file={output}/division.json", f"shadows_dir={output}/shadows", f"save_dir={output}/figures"]
    models = ["method=scrub", "models=10", "targets=2", "together=2", f"model_path={faces}/pretrained"]
    return ["cv/attack.py", *face_settings(faces), *trainers, *written, *models]


def begin(command: Command, log: Path) -> subprocess.Popen:
    """Start a command in a group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    with log.open("a", encoding="utf-8") as stream:
        words = [sys.executable, *command.words]
        return subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(command: Command, log: Path) -> None:
    """Run a command to its end. Raises RuntimeError with its last lines where it fails."""
    if begin(command, log).wait():
        raise RuntimeError(f"{command.name} failed:\n" + "\n".join(log.read_text().splitlines()[-5:]))


def leftovers(folder: Path) -> dict[str, str]:
    """A hash of each file that a command left; of the table the figures without costs, of a curve without times."""
    found = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        parts = file.relative_to(folder).parts
        if file.name in RECORDS | VIEWS or "logs" in parts or any(part.endswith(BESIDE) for part in parts):
            continue
        content = file.read_bytes()
        if file.name == "metrics.jsonl":
            lines = [json.loads(line) for line in content.decode().splitlines()]
            content = json.dumps([{**line, "seconds": 0} for line in lines]).encode()
        found[str(file.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    if (folder / "results.parquet").is_file():
        table = pd.read_parquet(folder / "results.parquet")
        figures = table[~table["measure"].isin(COSTS)].to_json(orient="records")
        found["results.parquet without costs"] = hashlib.sha256(figures.encode()).hexdigest()
    return found


def empty(command: Command) -> None:
    """Remove what a command left, so that it begins anew."""
    if command.output.exists():
        command.output.rename(command.output.with_name(f"{command.output.name}_{time.monotonic_ns()}"))


def attempt(command: Command, log: Path, draws: random.Random) -> None:
    """Run a command once, and kill it at a random moment if it is not done by then."""
    process = begin(command, log)
    try:
        code = process.wait(timeout=draws.uniform(0, command.seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        command.kills += 1
        return
    if code:
        command.failed.append("\n".join(log.read_text().splitlines()[-3:]))


def torment(command: Command, kills: int, log: Path, draws: random.Random) -> None:
    """Kill a command so often, and compare each time that it is done; between two such times it begins anew."""
    while command.kills < kills and not command.failed:
        attempt(command, log, draws)
        if command.is_done:
            compare(command)
            empty(command)
    if not command.is_done and not command.failed:
        finish(command, log)
        compare(command)


def compare(command: Command) -> None:
    """Note what a finished command left otherwise than the uninterrupted one."""
    command.finished += 1
    found = leftovers(command.output)
    for name in sorted(found.keys() | command.wanted.keys()):
        if found.get(name) != command.wanted.get(name):
            command.different.append(name)
    beside = [path.name for path in command.output.parent.glob(f"{command.output.name}.*")]
    command.different += [name for name in beside if not name.endswith(BESIDE)]


def prepare(folder: Path) -> list[Command]:
    """Write a small world, a tiny language model and a pretrained face network; returns the commands that need them."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from helpers import write_faces
    from mini_clear.dataset_folder import write_world
    from mini_clear.text_base import write_text_base

    world, base, faces = folder / "world", folder / "base", folder / "faces"
    write_world(world, people=10, views=1)
    write_text_base(base)
    write_faces(faces)
    pretrained = [f"data.split_file={faces}/division.json", f"save_dir={faces}/pretrained"]
    words = ["cv/pretrain.py", *face_settings(faces), *QUICK, *pretrained]
    finish(Command("pretrain", words, faces / "pretrained"), folder / "pretrain.log")
    return commands(folder, world, base, faces)


def run(kills: int, seed: int, folder: Path, only: str = "", say: Callable[[str], None] = print) -> list[Command]:
    """Torment every command with its share of `kills`, or that named `only` with all; returns how each fared."""
    draws = random.Random(seed)
    made = prepare(folder)
    chosen = [command for command in made if only in ("", command.name)]
    needed = {command.needs for command in chosen}
    for command in made:
        if command not in chosen and command.name in needed:
            finish(command, folder / f"{command.name}.log")
    for number, command in enumerate(chosen):
        log = folder / f"{command.name}.log"
        started = time.monotonic()
        finish(command, log)
        command.seconds = time.monotonic() - started
        command.wanted = leftovers(command.output)
        empty(command)
        share = kills // len(chosen) + (number < kills % len(chosen))
        torment(command, share, log, draws)
        say(
            f"{command.name}: {command.seconds:.0f} s uninterrupted, killed {command.kills} times, finished "
            f"{command.finished} times, {len(command.different)} differences, {len(command.failed)} failures"
        )
        for line in [*command.different, *command.failed]:
            say(f"  {line}")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description="kill -9 at random moments, then the same command again")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", choices=NAMES, help="kill this command alone")
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = run(typed.kills, typed.seed, Path(folder), typed.only)
    bad = [command.name for command in made if command.different or command.failed]
    verdict = f"NOT ALIKE: {', '.join(bad)}" if bad else "all alike"
    print(f"{sum(command.kills for command in made)} kills; {verdict}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
