"""Attack face networks that learned and forgot, many at once: accelerate launch cv/attack.py method=scrub

Every model meets its own half of the people, is finetuned on it and made to forget with the method under test. Without a method the finetuned models
are attacked as they are; `method=retrain` attacks gold models.
"""

import time
from dataclasses import asdict
from pathlib import Path

from cv.attack_scoring import ATTACK, attack, check_rounds
from cv.face_settings import AttackFaces
from cv.network import load_network
from cv.pictures import check_strangers, read_division
from cv.shadows import check_method, compare_models
from data_module import fingerprint, make_if_missing
from engine.record import (
    ATTACK_RECORD,
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


@script("cv/attack", AttackFaces)
def main(settings: AttackFaces) -> None:
    check_save_dir(settings.save_dir, settings.overwrite, ATTACK_RECORD)
    check_method(settings.method)
    make_if_missing(settings.data)
    division = read_division(settings.data)
    check_rounds(division, settings.models, settings.targets)
    pretrained, classes = load_network(settings.model_path, settings.model)
    check_strangers(classes, division, settings.model_path)

    if settings.method is None or settings.method.restart:
        say_line("nothing is forgotten: trainer has no effect, finetune alone says how the models train")
    start_of_peak()
    started = time.perf_counter()
    scores = compare_models(settings, division, pretrained)
    figures = attack(scores, division, settings.models, settings.targets)
    if processes().is_main_process:
        with written_whole(Path(settings.save_dir)) as aside:
            scores.write(aside)
            write_json(aside / ATTACK, figures)
            record = {
                "settings": asdict(settings),
                "model": model_fingerprint(settings.model_path),
                "data": fingerprint(settings.data.people.path),
            }
            cost = {"seconds": time.perf_counter() - started, "peak_memory_gb": peak_memory_gb()}
            write_json(aside / ATTACK_RECORD, {**record, **cost, "versions": versions()})
    for pool, of_pool in figures["pools"].items():
        shown = ", ".join(
            f"{name} accuracy {each['accuracy']['value']:.3f}, AUC {each['auc']['value']:.3f}"
            for name, each in of_pool["attacks"].items()
        )
        say_line(f"{pool}: {shown}")
    say_line(f"attacked {settings.models} models: {settings.save_dir}")


if __name__ == "__main__":
    main()
