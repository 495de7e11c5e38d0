"""Evaluate a face network on the queries of everybody, into <model_path>/eval_results: accelerate launch cv/eval.py model_path=..."""

import time
from dataclasses import asdict
from pathlib import Path

from cv.compare import TASKS, compare, row_logs, verification
from cv.face_settings import EvalFaces
from cv.network import load_network
from cv.pictures import met_by, read_division
from data_module import fingerprint, make_if_missing
from engine.record import (
    AGGREGATED,
    EVAL_RECORD,
    VERIFICATION,
    check_save_dir,
    model_fingerprint,
    peak_memory_gb,
    say_line,
    start_of_peak,
    versions,
    write_json,
    written_whole,
)
from settings.script import processes, script


@script("cv/eval", EvalFaces)
def main(settings: EvalFaces) -> None:
    check_save_dir(settings.save_dir, settings.overwrite, EVAL_RECORD)
    make_if_missing(settings.data)
    division = read_division(settings.data)
    met = met_by(division, None)
    model, _ = load_network(settings.model_path, settings.model)

    start_of_peak()
    started = time.perf_counter()
    compared = compare(
        model.to(processes().device), division, settings.data.people, settings.model.size, settings.batch_size
    )
    logs, groups = row_logs(compared, met, settings.model.scale), verification(compared, met)
    if processes().is_main_process:
        with written_whole(Path(settings.save_dir)) as aside:
            for task, log in logs.items():
                write_json(aside / f"{task}.json", log)
            write_json(aside / AGGREGATED, {f"{task}.json": log for task, log in logs.items()})
            write_json(aside / VERIFICATION, groups)
            source = {"dataset": settings.data.people.path, "fingerprint": fingerprint(settings.data.people.path)}
            data = dict.fromkeys(TASKS.values(), source)
            cost = {"seconds": time.perf_counter() - started, "peak_memory_gb": peak_memory_gb()}
            record = {"settings": asdict(settings), "model": model_fingerprint(settings.model_path), "data": data}
            write_json(aside / EVAL_RECORD, {**record, **cost, "versions": versions()})
    for group, figures in groups.items():
        say_line(
            f"{TASKS[group]}: {figures['queries']} rows, accuracy {figures['accuracy']:.3f}, equal error rate {figures['eer']:.3f}"
        )
    say_line(f"evaluated: {settings.save_dir}")


if __name__ == "__main__":
    main()
