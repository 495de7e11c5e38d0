"""A sweep: one command, several jobs of one recipe. Each has a folder of its own, and a table of them all closes it.

Hydra makes the jobs and has a launcher run them; what is said of them, and that one that fails does not end the others,
stands here. No torch.
"""

import argparse
import contextlib
import copy
import gc
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import filter_overrides
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from settings.runs import end_with_parent, is_first_process
from settings.script import (
    CONFIG_DIR,
    FolderExists,
    SettingsError,
    Stopped,
    choices,
    end_of,
    first_line,
    hydra_line,
    read,
)

PLACES = ("save_dir", "results_dir")  # the settings that name what a run writes
OUTCOME, LOG, TABLE = "outcome.json", "log.txt", "table.txt"  # of each job, and of all, below hydra.sweep.dir
BAD = ("failed", "stopped", "not run", "no word")
KILLED = "its process was killed; the system does so where memory is short"
WIDTH = 120  # of the table where nobody sits at a terminal

told: list[int] = []  # the exit code of a job of this process that was told to stop: it runs no further one


@dataclass
class Outcome:
    """How a job ended."""

    state: str  # done, done before, failed, stopped, not run; no word: its process ended before it could say
    why: str = ""  # in one line, where it is not done
    seconds: float = 0.0
    code: int = 0  # the exit code of a job that was told to stop


@dataclass
class Job:
    """One job of a sweep."""

    number: int
    overrides: list[str]
    swept: list[str]  # those of its overrides in which the jobs differ
    setting: str = ""  # save_dir or results_dir; empty: it writes no folder of its own
    place: str = ""  # that folder

    @property
    def name(self) -> str:
        return f"job {self.number} ({', '.join(self.swept)})" if self.swept else f"job {self.number}"


@dataclass
class Task:
    """What hydra calls for each job: the recipe, whose end is written down instead of ending the process."""

    recipe: Callable[[Any], None]
    schema: type
    names: dict[int, str] = field(default_factory=dict)  # of the jobs by number, set before the first is launched
    folder: Path = Path()  # of the sweep, the same
    process: int = field(default_factory=os.getpid)  # that of the sweep

    def __call__(self, cfg: DictConfig) -> None:
        number = HydraConfig.get().job.num
        folder = self.folder / f"job_{number}"
        outcome = Outcome("not run", "the sweep was told to stop", code=told[0]) if told else None
        if outcome is None:
            say(f"{self.names[number]} begins: {place_of(cfg)[1]}")
            with self.kept_apart(folder):
                outcome = self.outcome_of(cfg)
            say(f"{self.names[number]} {outcome.state}{f': {outcome.why}' if outcome.why else ''}")
        if outcome.code:
            told[:] = [outcome.code]
        if is_first_process():
            folder.mkdir(parents=True, exist_ok=True)
            write_outcome(folder, outcome)
        if outcome.state in BAD and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            sys.exit(outcome.code or 1)  # the launch's other processes would wait for this one

    def outcome_of(self, cfg: DictConfig) -> Outcome:
        """Run the recipe; whatever ends it ends this job alone."""
        started = time.monotonic()
        try:
            with told_by_signal():
                outcome = self.done(cfg)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            outcome = self.outcome_of_error(error)
        gc.collect()  # a model lies in cycles: the next job needs its memory
        outcome.seconds = time.monotonic() - started
        return outcome

    def done(self, cfg: DictConfig) -> Outcome:
        """Run the recipe, unless an earlier run of the same has done it. Whatever ends either is raised."""
        try:
            self.recipe(read(cfg, self.schema))
        except FolderExists as error:
            if not error.is_same():
                raise
            return Outcome("done before")
        return Outcome("done")

    def outcome_of_error(self, error: BaseException) -> Outcome:
        """What ended a job; one that runs beside others has it among its lines too."""
        if known := end_of(error, self.schema):
            line, code = known
            if os.getpid() != self.process:  # else the line that ends the job says it
                print(line, file=sys.stderr)
            if isinstance(error, KeyboardInterrupt):
                return Outcome("stopped", line, code=code)
            return Outcome("failed", line.removeprefix("error: "))
        if isinstance(error, SystemExit):
            return Outcome("failed", f"exit code {error.code}") if error.code else Outcome("done")
        traceback.print_exception(error)
        return Outcome("failed", f"{type(error).__name__}: {first_line(error)}")

    @contextlib.contextmanager
    def kept_apart(self, folder: Path) -> Iterator[None]:
        """The lines of a job that runs beside others go to a file of its own, and it ends with the sweep."""
        if os.getpid() == self.process or not is_first_process():
            yield
            return
        end_with_parent()
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOG).open("w", encoding="utf-8", buffering=1)
        with stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            yield


@contextlib.contextmanager
def told_by_signal() -> Iterator[None]:
    """Have SIGTERM end the job, and not the sweep, which then says how each of its jobs ended.

    A training has it save first.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("SIGTERM: the job was told to stop; what was finished stays", 128 + number)

    try:
        former = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, which signals do not reach
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def say(line: str) -> None:
    if is_first_process():
        print(line, flush=True)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    aside = folder / f"{OUTCOME}.partial"
    aside.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    aside.rename(folder / OUTCOME)


def read_outcome(folder: Path, why: str) -> Outcome:
    """How a job ended; `why`: what to say of one that wrote nothing."""
    file = folder / OUTCOME
    return Outcome(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else Outcome("no word", why)


# ---- the jobs


def place_of(cfg: DictConfig) -> tuple[str, str]:
    """The setting that names what a run writes, and its value; empty texts where there is none."""
    setting = next((name for name in PLACES if name in cfg), "")
    return setting, str(cfg[setting]) if setting else ""


def swept_of(batch: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each job the overrides that not all jobs have."""
    own = [filter_overrides(overrides) for overrides in batch]
    common = set.intersection(*(set(overrides) for overrides in own))
    swept = []
    for overrides in own:
        swept.append([text for text in overrides if text not in common])
    return swept


def give_folders(jobs: list[Job]) -> None:
    """Give jobs whose folder has one name, because it does not tell what is swept, names that do.

    Raises SettingsError where two jobs would still write one folder.
    """
    for group in same_place(jobs):
        typed = any(text.partition("=")[0].lstrip("+") == group[0].setting for text in group[0].overrides)
        if not typed:
            name_apart(group)
    for group in same_place(jobs):
        setting, place = group[0].setting, group[0].place
        raise SettingsError(
            f"{len(group)} jobs of this sweep would write {setting}={place!r} ({group[0].name} and {group[1].name}); "
            f"leave {setting} out, and each gets a name of its own, or name in it what is swept: "
            f"{setting}={place}_\\${{{example_of(group)}}}"
        )


def same_place(jobs: list[Job]) -> list[list[Job]]:
    """The jobs that would write one folder, by folder; those alone in theirs are left out."""
    groups: dict[Path, list[Job]] = {}
    for job in jobs:
        if job.place:
            groups.setdefault(Path(job.place).resolve(), []).append(job)
    return [group for group in groups.values() if len(group) > 1]


def name_apart(group: list[Job]) -> None:
    """Add to the folder of each job what distinguishes it from the others of the group, as in _beta_0.05_lr_0.001."""
    differing = swept_of([job.overrides for job in group])
    for job, texts in zip(group, differing, strict=True):
        named = [text.partition("=")[0].lstrip("+~") for text in texts]
        last = [name.rpartition(".")[2] for name in named]
        values = [str(value_of(text)) for text in texts]
        short = [own if last.count(own) == 1 else name for name, own in zip(named, last, strict=True)]
        ending = "_".join(f"{name}_{value}" for name, value in zip(short, values, strict=True))
        job.place = f"{job.place}_{re.sub(r'[^A-Za-z0-9_.+-]+', '_', ending)}" if ending else job.place


def value_of(text: str) -> Any:
    """The value of an override as it is read: .05 and 0.05 are one."""
    return OverridesParser.create().parse_override(text).value()


def example_of(group: list[Job]) -> str:
    """A setting in which the first two jobs of a group differ."""
    name = group[0].swept[0].partition("=")[0].lstrip("+~")
    return f"{name}.name" if choices(name) else name


def quoted(text: str) -> str:
    """A text as hydra reads it whatever stands in it."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


def run_sweep(config_name: str, typed: argparse.Namespace, task: Task) -> None:
    """Run the jobs that a command line asks for; ends the process with exit code 1 where one is not done.

    Args:
        config_name: The file of config/ that the recipe reads.
        typed: The command line, as hydra's parser gives it.
        task: What each job runs.

    Raises:
        SettingsError: A job could not run as it is written; none has begun.
        HydraException: The same.
    """
    GlobalHydra.instance().clear()
    try:
        Sweep(config_name, typed, task).run()
    finally:
        GlobalHydra.instance().clear()


class Sweep:
    """The jobs of one command, which are looked at before the first begins."""

    def __init__(self, config_name: str, typed: argparse.Namespace, task: Task):
        path = create_config_search_path(os.path.abspath(typed.config_path) if typed.config_path else CONFIG_DIR)
        if typed.config_dir:
            path.prepend("command-line", f"file://{os.path.abspath(typed.config_dir)}", SearchPathQuery("schema", None))
        name = typed.config_name or config_name
        self.loader = Hydra.create_main_hydra2(name.replace("/", "_"), path).config_loader
        overrides = [*typed.overrides, "hydra.mode=MULTIRUN"]
        self.config = self.loader.load_configuration(name, overrides, run_mode=RunMode.MULTIRUN)
        context = HydraContext(config_loader=self.loader, callbacks=Callbacks(self.config))
        self.task = task
        self.launcher = Plugins.instance().instantiate_launcher(context, task, self.config)

    def run(self) -> None:
        settings = self.config.hydra
        if settings.sweeper._target_ != f"{BasicSweeper.__module__}.{BasicSweeper.__name__}":
            raise SettingsError("hydra/sweeper: only hydra's own makes jobs here; leave it out")
        of_file = [f"{name}={value}" for name, value in (settings.sweeper.params or {}).items()]
        parser = OverridesParser.create(config_loader=self.loader)
        written: Any = OmegaConf.to_container(settings.overrides.task, resolve=False)  # each job has values of its own
        overrides = parser.parse_overrides([*of_file, *written])
        (batch,) = BasicSweeper.split_arguments(overrides, None)
        jobs = self.plan(batch)
        self.task.names = {job.number: job.name for job in jobs}
        launched = [self.with_place(job) for job in jobs]
        folder = Path(str(settings.sweep.dir))
        self.task.folder = folder.absolute()
        if is_first_process():
            for file in folder.glob(f"job_*/{OUTCOME}"):  # of another sweep that was given this folder
                file.unlink()
        why = self.launch_all(launched)
        if not is_first_process():
            return
        outcomes = [read_outcome(folder / f"job_{job.number}", why) for job in jobs]
        common = [text for text in filter_overrides(batch[0]) if text not in jobs[0].swept]
        close(jobs, outcomes, common, folder)

    def plan(self, batch: list[list[str]]) -> list[Job]:
        """The jobs with their folders. Raises SettingsError for one that could not run as it is written."""
        jobs = []
        first: dict[tuple[str, ...], int] = {}  # overrides -> the first job that has them
        for number, (overrides, swept) in enumerate(zip(batch, swept_of(batch), strict=True)):
            same = first.setdefault(tuple(overrides), number)
            if same != number:
                raise SettingsError(f"jobs {same} and {number} of this sweep are the same ({' '.join(overrides)})")
            job = Job(number, overrides, swept)
            job.setting, job.place = place_of(self.checked(job))
            jobs.append(job)
        give_folders(jobs)
        return jobs

    def checked(self, job: Job) -> DictConfig:
        """The settings of a job. Raises SettingsError where they are wrong."""
        try:
            cfg = self.loader.load_sweep_config(self.config, list(job.overrides))
            with open_dict(cfg):
                cfg.hydra.job.id = cfg.hydra.job.num = job.number  # a folder may be named by them
            HydraConfig.instance().set_config(cfg)
            own = copy.deepcopy(cfg)
            with open_dict(own):
                del own["hydra"]
            read(own, self.task.schema)
        except HydraException as error:
            raise SettingsError(hydra_line(error, self.task.schema)) from None
        except SettingsError as error:
            raise SettingsError(f"{job.name}: {error}" if job.swept else str(error)) from None
        return own

    def with_place(self, job: Job) -> list[str]:
        """The overrides of a job, with the folder that it was given."""
        written = [text for text in job.overrides if text.partition("=")[0].lstrip("+") != job.setting]
        return [*written, f"{job.setting}={quoted(job.place)}"] if job.setting else job.overrides

    def launch_all(self, launched: list[list[str]]) -> str:
        """Have the launcher run the jobs, so many at a time as hydra.sweeper.max_batch_size says.

        Returns what to say of a job that wrote nothing at its end.
        """
        count = self.config.hydra.sweeper.max_batch_size or len(launched)
        why = KILLED
        with left_to_the_jobs(self.launcher):
            for first in range(0, len(launched), count):
                try:
                    self.launcher.launch(launched[first : first + count], initial_job_idx=first)
                except SystemExit:
                    if not is_first_process():
                        raise
                    return "a job failed, and this launch has several processes"
                except Exception as error:
                    if type(error).__name__ == "TerminatedWorkerError":  # joblib has ended all that ran beside it
                        self.launch_alone(launched, range(first, min(first + count, len(launched))))
                    else:
                        why = f"{type(error).__name__}: {first_line(error)}"
        return why

    def launch_alone(self, launched: list[list[str]], numbers: range) -> None:
        """Run those of the jobs `numbers` that have not said how they ended, each by itself."""
        for number in numbers:
            if not (self.task.folder / f"job_{number}" / OUTCOME).is_file():
                with contextlib.suppress(Exception):  # the one that was killed is killed again: it wrote no word
                    self.launcher.launch([launched[number]], initial_job_idx=number)


@contextlib.contextmanager
def left_to_the_jobs(launcher: Any) -> Iterator[None]:
    """Where jobs run in processes of their own, Ctrl+C ends this one at once, and they save before they stop.

    A library that hears of it instead would kill them.
    """
    if type(launcher).__name__ == "BasicLauncher":
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"interrupted: the jobs that run are told, and save; the same command goes on\n")
        os._exit(128 + number)

    former = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


# ---- its end


def figure_of(place: str) -> str:
    """The figure by which the jobs of a sweep are told apart, from the record of a finished run; empty: none."""
    for file in sorted(Path(place).glob("*_meta.json")) if place else []:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(file.read_text(encoding="utf-8")).get("figure", ""))
    return ""


def close(jobs: list[Job], outcomes: list[Outcome], common: list[str], folder: Path) -> None:
    """Print the table of all jobs and keep it beside their outcomes; ends the process where one is not done."""
    bad = [outcome for outcome in outcomes if outcome.state in BAD]
    table = Table("job", "overrides", "state", "figure, or why not", "seconds")
    table.add_column("folder", overflow="fold")
    for job, outcome in zip(jobs, outcomes, strict=True):
        said = outcome.why or figure_of(job.place)
        texts = ["\n".join(job.swept), outcome.state, said, f"{outcome.seconds:.1f}", job.place]
        table.add_row(str(job.number), *map(escape, texts))
    done = (
        f"{len(jobs) - len(bad)} of {len(jobs)} jobs are done; this table, and the lines of jobs that ran side by side"
    )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / TABLE).open("w", encoding="utf-8") as stream:
        for console in (Console(width=None if sys.stdout.isatty() else WIDTH), Console(file=stream, width=WIDTH)):
            if common:
                console.print(escape(f"all jobs: {' '.join(common)}"), soft_wrap=True, highlight=False)
            console.print(table)
            console.print(escape(f"{done}: {folder}"), soft_wrap=True, highlight=False)
    if bad:
        sys.exit(max(outcome.code for outcome in bad) or 1)
