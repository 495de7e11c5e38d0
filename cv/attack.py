"""Attack face networks that learned and forgot, many at once: accelerate launch cv/attack.py method=scrub

Every model meets its own half of the people, is finetuned on it and made to forget with the method under test. Without
a method the finetuned models are attacked as they are; with `split=retain` they are gold models.
"""

import time
from pathlib import Path

from cv.face_settings import AttackFaces
from settings.script import processes, script


@script("cv/attack", AttackFaces)
def main(settings: AttackFaces) -> None:
    from engine import record
    from engine.folders import written_whole

    code = record.begin_run(settings, record.ATTACK_RECORD, __file__)
    from cv.attack_scoring import attack, check_rounds, summary
    from cv.division import check_strangers, read_division
    from cv.network import load_network
    from cv.shadows import check_method, compare_models
    from data_module import fingerprint, make_missing

    check_method(settings.method)
    pretrained, classes = load_network(settings.model_path, settings.model)
    make_missing(settings.inputs())
    division = read_division(settings.data)
    check_rounds(division, settings.models, settings.targets)
    check_strangers(classes, division, settings.model_path)

    if settings.method is None:
        record.say_line("nothing is forgotten: trainer has no effect, finetune alone says how the models train")
    facts = {"model": record.model_fingerprint(settings.model_path), "data": fingerprint(settings.data.people.path)}
    facts |= record.run_facts(settings, code)
    record.start_of_peak()
    started = time.perf_counter()
    similarities = compare_models(settings, division, pretrained)
    figures = attack(similarities, division, settings.models, settings.targets)
    facts["figure"] = "; ".join(f"{pool}: {summary(each)}" for pool, each in figures["pools"].items())
    if processes().is_main_process:
        with written_whole(Path(settings.save_dir)) as aside:
            similarities.write(aside, division)
            record.write_json(aside / record.ATTACK_FIGURES, figures)
            record.write_record(aside / record.ATTACK_RECORD, seconds=time.perf_counter() - started, **facts)
    for pool, of_pool in figures["pools"].items():
        record.say_line(f"{pool}: {summary(of_pool)}")
    record.say_line(f"attacked {settings.models} models: {settings.save_dir}")


if __name__ == "__main__":
    main()
