"""Have the starting language model invent answers to the rows to forget: python nlp/alternatives.py"""

from settings.language import Invent
from settings.script import processes, script


@script("nlp/alternatives", Invent)
def main(settings: Invent) -> None:
    from engine.record import ALTERNATIVES_RECORD, begin_run, run_facts, say_line

    code = begin_run(settings, ALTERNATIVES_RECORD, __file__)
    from data_module import TrainingRows, make_missing
    from engine.invent import check_alone, check_room, write_alternatives
    from engine.language_model import check_model_path
    from nlp.encoder import open_encoder, open_model

    check_alone()
    make_missing(settings.inputs())
    check_model_path(settings.model_path)
    rows = TrainingRows(settings.data, settings.split, settings.modality, settings.seed)
    encoder = open_encoder(settings.model_path, settings.model)
    check_room(encoder, rows, settings)
    model = open_model(settings.model_path, settings.model).to(processes().device)
    file = write_alternatives(model, encoder, rows, settings, facts=run_facts(settings, code))
    say_line(f"invented answers to {settings.split}: data.alternatives={file}")


if __name__ == "__main__":
    main()
