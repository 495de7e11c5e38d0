"""Attack a vision-language model: was it forgotten, or only hidden? accelerate launch mm/attack.py model_path=..."""

from settings.attacks import AttackRun
from settings.script import processes, script


@script("mm/attack", AttackRun)
def main(settings: AttackRun) -> None:
    from engine.record import ATTACK_RECORD, begin_run, run_facts, say_line

    code = begin_run(settings, ATTACK_RECORD, __file__)
    from engine.attacks import check_attacks

    check_attacks(settings.chosen.values(), settings.model.weights)
    from data_module import make_missing
    from engine.attack_run import attack_model, read_attacked
    from engine.language_model import check_model_path
    from engine.row_lengths import check_answers
    from mm.encoder import open_encoder, open_model

    make_missing(settings.inputs())
    check_model_path(settings.model_path)
    check_model_path(settings.base_path, "base_path")
    rows = read_attacked(settings)

    encoder = open_encoder(settings.model_path, settings.model)
    check_answers(encoder, rows)
    model = open_model(settings.model_path, settings.model).to(processes().device)
    opens = {"open_model": open_model, "open_encoder": open_encoder}
    attack_model(model, encoder, rows, settings, **opens, facts=run_facts(settings, code))
    say_line(f"attacked: {settings.save_dir}")


if __name__ == "__main__":
    main()
