"""Teach a pretrained face network the people that it meets, half of all: accelerate launch cv/finetune.py split=full"""

from cv.face_settings import FinetuneFaces
from settings.script import script
from settings.training import FINETUNING


@script("cv/finetune", FinetuneFaces)
def main(settings: FinetuneFaces) -> None:
    from engine.record import TRAIN_RECORD, begin_run, run_facts, say_line

    code = begin_run(settings, TRAIN_RECORD, __file__)
    from cv.division import check_strangers, met_by, read_division
    from cv.network import load_network, start_of, with_new_classes
    from cv.pictures import FaceEncoder, FacePairs, training_rows
    from data_module import fingerprint, make_missing
    from engine.methods import bind
    from engine.train import train

    pretrained, strangers = load_network(settings.model_path, settings.model)
    make_missing(settings.inputs())
    division = read_division(settings.data)
    check_strangers(strangers, division, settings.model_path)
    met = met_by(division, None)
    people = met.learned(settings.split)
    rows = training_rows(division, people, settings.split)
    loss = bind(FINETUNING)
    pairs = FacePairs(loss.batches, forget=None, retain=rows, size=settings.model.size, seed=settings.seed)

    encoder = FaceEncoder(people, settings.data.people, settings.model.size)
    encoder.read(rows.files)
    model = with_new_classes(pretrained, len(people), settings.seed)
    start = start_of(model, settings.model, people)
    record = {"method": loss.method.name, "data": fingerprint(settings.data.people.path), **run_facts(settings, code)}
    run = {"seed": settings.seed, "save_dir": settings.save_dir, "record": record}
    train(start, loss, pairs, encoder, settings.trainer, **run)
    say_line(f"finetuned on {len(people)} people: {settings.save_dir}")


if __name__ == "__main__":
    main()
