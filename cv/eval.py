"""Evaluate a face network on the queries of everybody, into <model_path>/eval_results:
accelerate launch cv/eval.py model_path=...
"""

import time
from pathlib import Path

from cv.face_settings import EvalFaces
from settings.script import processes, script


@script("cv/eval", EvalFaces)
def main(settings: EvalFaces) -> None:
    from engine import record
    from engine.folders import written_whole

    code = record.begin_run(settings, record.EVAL_RECORD, __file__)
    from cv.compare import TASKS, compare, row_logs, verification_figures, write_logs
    from cv.division import met_by, read_division
    from cv.network import load_network
    from data_module import fingerprint, make_missing
    from engine.tracking import tracked_evaluation

    model, _ = load_network(settings.model_path, settings.model)
    make_missing(settings.inputs())
    division = read_division(settings.data)
    met = met_by(division, None)
    source = {"dataset": settings.data.people.path, "fingerprint": fingerprint(settings.data.people.path)}
    facts = {"model": record.model_fingerprint(settings.model_path), "data": dict.fromkeys(TASKS.values(), source)}
    facts |= record.run_facts(settings, code)

    record.start_of_peak()
    started = time.perf_counter()
    with tracked_evaluation(settings.report_to, settings.save_dir):
        network, album = model.to(processes().device), settings.data.people
        compared = compare(network, division, album, size=settings.model.size, batch_size=settings.batch_size)
        logs = row_logs(compared, met, settings.model.logit_scale)
        groups = verification_figures(compared, met)
        facts["figure"] = ", ".join(f"accuracy of {group} {each['accuracy']:.3f}" for group, each in groups.items())
        if processes().is_main_process:
            with written_whole(Path(settings.save_dir)) as aside:
                write_logs(aside, logs, groups)
                record.write_record(aside / record.EVAL_RECORD, seconds=time.perf_counter() - started, **facts)
    for group, figures in groups.items():
        record.say_line(
            f"{TASKS[group]}: {figures['queries']} rows, accuracy {figures['accuracy']:.3f}, "
            f"equal error rate {figures['eer']:.3f}"
        )
    record.say_line(f"evaluated: {settings.save_dir}")


if __name__ == "__main__":
    main()
