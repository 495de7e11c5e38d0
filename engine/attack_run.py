"""One model under attack, attack by attack: logs as an evaluation writes them, one file of logs for each attack.

A finished attack is kept beside the results with a key of everything it depends on, so that an interrupted run goes on
where it stopped, and a run that is overwritten computes anew only what has changed.
"""

import inspect
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from torch import nn

from data_module import TaskRow, sample_by_person, task_rows
from engine.attack_target import NotApplicable, Target, Variant, Variants
from engine.attacks import bind
from engine.attacks_on_weights import weights_of
from engine.evaluate import TOKEN_COLUMNS, by_metric, check_task, data_record, evaluate_together, first_rows
from engine.finished import OWN_RECORD, Parts
from engine.folders import beside, check_ours, marked, remove_ours, written_whole
from engine.language_model import forward
from engine.reading import reading_files
from engine.record import (
    ATTACK_RECORD,
    model_fingerprint,
    say_line,
    start_of_peak,
    work_key,
    write_json,
    write_record,
)
from engine.scoring_way import Way, way_for
from engine.source import Code, code_of
from engine.start_checks import check_start
from settings.attacks import CLEAN, READ, Attack, AttackRun
from settings.inputs import Inputs
from settings.language import Model
from settings.script import processes

COLUMNS = TOKEN_COLUMNS.append(pyarrow.field("task", pyarrow.string()))  # <task>@<attack>.<variant>
COLUMNS = COLUMNS.append(pyarrow.field("told", pyarrow.list_(pyarrow.bool_())))  # whether the prompt held the token
ATTACKS = Parts(ATTACK_RECORD, "attacks")


@dataclass
class AttackLog:
    """What one attack came to: logs by <task>, or <task>.<variant>, and what else is known of a variant."""

    rows: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    token_count: int = 0
    left_out: str | None = None  # why nothing was tried


def read_attacked(settings: AttackRun) -> dict[str, list[TaskRow]]:
    """The rows of the attacked tasks, and of their controls as many, each with its right answer alone.

    Raises SettingsError for a task that does not fit its data.
    """
    rows = {}
    for name, task in settings.tasks.items():
        check_task(name, task)
        rows[name] = [right_answer_alone(row) for row in task_rows(task, settings.seed, settings.limit)]
    for forget, control in settings.attacked.items():
        people = [row.example.person for row in rows[control]]
        chosen = sample_by_person(people, len(rows[forget]), settings.seed)
        rows[control] = [rows[control][number] for number in chosen]
    return rows


def right_answer_alone(row: TaskRow) -> TaskRow:
    return replace(row, paraphrase=None, perturbed=[])


def variants_of(attack: Attack | None, target: Target) -> Variants:
    """What an attack has evaluated; None: the rows as they are."""
    if attack is None:
        yield Variant("", target.rows, target.encoder)
        return
    yield from bind(attack)(target)


def carry_out(
    name: str, attack: Attack | None, target: Target, settings: AttackRun, *, way: Way, say: Callable[[str], None]
) -> AttackLog:
    """Evaluate every variant of one attack; `way`: how the prompts are scored."""
    log = AttackLog()
    try:
        with closing(variants_of(attack, target)) as variants:
            for variant in variants:
                add_variant(log, name, variant, target.model, settings, way=way, say=say)
    except NotApplicable as reason:
        log = AttackLog(left_out=str(reason))  # nor is a part of it said, of which some rows may be there
        say(f"{name} is not applicable: {reason}")
    return log


def add_variant(
    log: AttackLog,
    name: str,
    variant: Variant,
    model: nn.Module,
    settings: AttackRun,
    *,
    way: Way,
    say: Callable[[str], None],
) -> None:
    """Evaluate a variant's rows, and put them to the log."""
    of_variant = f".{variant.name}" if variant.name else ""
    keys = {task: f"{task}@{name}{of_variant}" for task in variant.rows}
    asked = {keys[task]: rows for task, rows in variant.rows.items()}
    assert all(asked.values()), f"{name}: a task without rows"  # a log of none could not be read
    results = evaluate_together(model, variant.encoder, asked, settings, way=way, say=say)
    for task, key in keys.items():
        result = results[key]
        for index, row in result.rows.items():
            row |= {READ: variant.read[task, index]} if variant.read else {}
        log.rows.setdefault(key, {}).update(result.rows)
        log.token_count += result.token_count
        for row in result.tokens:
            told = variant.told.get((task, row["row"]))
            known = None if told is None else set(variant.encoder.token_ids(told))
            held = None if known is None else [token in known for token in row["tokens"]]
            log.tokens.append({**row, "task": key, "told": held})
        if variant.facts:
            log.facts[key] = variant.facts


# ---- a checkpoint, attack by attack


def attack_model(
    model: nn.Module,
    encoder: Any,
    rows: dict[str, list[TaskRow]],
    settings: AttackRun,
    *,
    open_model: Callable[[str, Model], nn.Module],
    open_encoder: Callable[[str, Model], Any],
    facts: dict[str, Any],
    say: Callable[[str], None] = say_line,
) -> None:
    """Run every attack and write its logs to `settings.save_dir`, whole or not at all.

    They are <attack>.json and <attack>.parquet for each attack and for `clean`, and attack_meta.json.

    Args:
        model: To be attacked, on its device.
        encoder: Examples -> batches.
        rows: Of `read_attacked`.
        settings: Of the attacks.
        open_model: Opens the model at a path: the one before forgetting, when an attack needs its weights.
        open_encoder: Opens that model's encoder.
        facts: What the record says of the run besides.
        say: Takes a line of progress.
    """
    state = processes()
    folder = Path(settings.save_dir).resolve()
    kept = beside(folder, "tasks")
    check_ours(kept)
    code = code_of(__file__, inspect.getfile(type(encoder)))
    device = next(model.parameters()).device.type
    attacks: dict[str, Attack | None] = {CLEAN: None, **settings.chosen}
    keys = {name: attack_key(attack, settings, code, device) for name, attack in attacks.items()}
    finished = {name: ATTACKS.finished(name, key, kept, folder) for name, key in keys.items()}
    state.wait_for_everyone()  # nothing is written before everyone has looked
    model.eval()
    way = Way(True, settings.batch_size)
    if not all(finished.values()):
        for example in first_rows(rows):
            check_start(model, encoder, [example], forward, say)
        way = way_for(model, encoder, rows, settings.batch_size, say)
    target = Target(
        model, encoder, rows, settings.tasks, settings.attacked,
        once(lambda: open_model(settings.base_path, settings.model)),
        lambda: open_encoder(settings.base_path, settings.model),
        settings.seed, tuple(settings.model.freeze),
    )  # fmt: skip
    places: dict[str, Path] = {}
    for name, attack in attacks.items():
        places[name] = finished[name] or kept / name
        if finished[name]:
            say(f"{name}: done before")
            continue
        start_of_peak()
        started = time.perf_counter()
        log = carry_out(name, attack, target, settings, way=way, say=say)
        seconds = time.perf_counter() - started
        say(f"{name}: {sum(map(len, log.rows.values()))} rows, {seconds:.1f} s")
        if state.is_main_process:
            marked(kept)
            write_attack(places[name], name, log, {"key": keys[name], "seconds": seconds, **about(attack, log)})
    if state.is_main_process:
        of_model = {"model": model_fingerprint(settings.model_path), "reading": reading_files(settings.model_path)}
        write_attacks(folder, places, settings, facts | of_model)
        remove_ours(kept)
    state.wait_for_everyone()


def once(open_base: Callable[[], nn.Module]) -> Callable[[], dict[str, Any]]:
    """The weights of base, read when they are first asked for."""
    kept: dict[str, Any] = {}

    def weights() -> dict[str, Any]:
        if not kept:
            kept.update(weights_of(open_base()))
        return kept

    return weights


def attack_key(attack: Attack | None, settings: AttackRun, code: Code, device: str) -> str:
    """What an attack's results depend on: the model and base, the data, the attack, the code and the kind of device."""
    decisive = {**asked(attack, settings), "model": asdict(settings.model), "device": device}
    decisive["batch_size"] = settings.batch_size
    files = [*settings.files(), *(attack.files() if attack else [])]
    return work_key(decisive, Inputs(settings.datasets(), [settings.model_path, settings.base_path], files), code)


def asked(attack: Attack | None, settings: AttackRun) -> dict[str, Any]:
    """What must be the same for all models that are compared under an attack."""
    names = ("seed", "limit", "max_new_tokens", "attacked")
    tasks = {name: asdict(task) for name, task in settings.tasks.items()}
    chosen = {name: getattr(settings, name) for name in names}
    return {"attack": None if attack is None else asdict(attack), "tasks": tasks, **chosen}


def about(attack: Attack | None, log: AttackLog) -> dict[str, Any]:
    """What the record says of an attack."""
    how = {} if attack is None else asdict(attack)
    return {"attack": how, "facts": log.facts, "left_out": log.left_out, "tokens": log.token_count}


def write_attack(place: Path, name: str, log: AttackLog, record: dict[str, Any]) -> None:
    with written_whole(place) as aside:
        write_json(aside / f"{name}.json", {key: by_metric(rows) for key, rows in sorted(log.rows.items())})
        parquet.write_table(pyarrow.Table.from_pylist(log.tokens, COLUMNS), aside / f"{name}.parquet")
        write_record(aside / OWN_RECORD, **record)


def write_attacks(folder: Path, done: Mapping[str, Path], settings: AttackRun, record: dict[str, Any]) -> None:
    """Gather the finished attacks (name -> where they lie) in `folder`; an earlier run there is replaced."""
    records = {name: ATTACKS.record(name, place) for name, place in done.items()}
    with written_whole(folder) as aside:
        for name, place in done.items():
            for ending in ("json", "parquet"):
                shutil.copyfile(place / f"{name}.{ending}", aside / f"{name}.{ending}")
        cost = {"seconds": sum(each["seconds"] for each in records.values())}
        cost["peak_memory_gb"] = max(each["peak_memory_gb"] for each in records.values())
        data = {name: data_record(task) for name, task in settings.tasks.items()}
        write_record(aside / ATTACK_RECORD, **record, **cost, data=data, attacks=records)
