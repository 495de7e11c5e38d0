"""Kill commands at random moments, run them again, and compare what they leave with an uninterrupted run:
python tests/faults/kill_loop.py --kills 100

The commands are finetune, forget, eval and a whole benchmark of the tiny language model on a small world. A command is
killed with kill -9 after a random share of the time that it takes uninterrupted, again and again, until it is done.
What it leaves must be what the uninterrupted one left, to the byte: weights, logs, and the table but for its costs.
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
COSTS = {"train_seconds", "eval_seconds", "peak_memory_gb", "tokens_per_second"}
RECORDS = {"train_meta.json", "eval_meta.json", "benchmark.json"}  # they hold times, memory and versions
# what a kill after the end may leave, and the next run of the same folder removes
BESIDE = (".lock", ".checkpoints", ".tasks", ".former")
VIEWS = {"report.html", "results.csv", "table.md", "table.tex", "results.parquet"}  # of the table, with its costs


@dataclass
class Command:
    """One command, where it writes, and how it fared."""

    name: str
    words: list[str]
    output: Path
    seconds: float = 0.0  # of the uninterrupted run
    wanted: dict[str, str] = field(default_factory=dict)  # what that left
    kills: int = 0
    finished: int = 0
    different: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return self.output.is_dir() and (self.name != "run_benchmark" or (self.output / "report.html").is_file())


def commands(folder: Path, world: Path, base: Path) -> list[Command]:
    """The commands in the order in which each needs what the ones before have left."""
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
        ),
        Command("eval", ["nlp/eval.py", *common, *limits, f"model_path={finetuned}", f"save_dir={asked}"], asked),
        Command("run_benchmark", ["run_benchmark.py", *whole], folder / "whole"),
    ]


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


def run(kills: int, seed: int, folder: Path, say: Callable[[str], None] = print) -> list[Command]:
    """Torment every command with its share of `kills`; returns how each fared."""
    sys.path.insert(0, str(ROOT))
    from mini_clear.dataset_folder import write_world
    from mini_clear.text_base import write_text_base

    world, base = folder / "world", folder / "base"
    write_world(world, people=10, views=1)
    write_text_base(base)
    draws = random.Random(seed)
    made = commands(folder, world, base)
    for number, command in enumerate(made):
        log = folder / f"{command.name}.log"
        started = time.monotonic()
        finish(command, log)
        command.seconds = time.monotonic() - started
        command.wanted = leftovers(command.output)
        empty(command)
        share = kills // len(made) + (number < kills % len(made))
        torment(command, share, log, draws)
        say(
            f"{command.name}: {command.seconds:.0f} s uninterrupted, killed {command.kills} times, finished "
            f"{command.finished} times, {len(command.different)} differences, {len(command.failed)} failures"
        )
        for line in [*command.different, *command.failed]:
            say(f"  {line}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="kill -9 at random moments, then the same command again")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = run(typed.kills, typed.seed, Path(folder))
    bad = [command.name for command in made if command.different or command.failed]
    verdict = f"NOT ALIKE: {', '.join(bad)}" if bad else "all alike"
    print(f"{sum(command.kills for command in made)} kills; {verdict}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
