"""Teach a face network to see faces, on people who are in no other split: accelerate launch cv/pretrain.py"""

from dataclasses import replace

from cv.face_settings import Pretrain
from settings.script import script
from settings.training import FINETUNING


@script("cv/pretrain", Pretrain)
def main(settings: Pretrain) -> None:
    from engine.record import TRAIN_RECORD, begin_run, run_facts, say_line

    code = begin_run(settings, TRAIN_RECORD, __file__)
    from cv.division import read_division
    from cv.network import new_network, start_of
    from cv.pictures import FaceEncoder, FacePairs, FaceRows
    from data_module import fingerprint, make_missing
    from engine.methods import bind
    from engine.train import train

    make_missing(settings.inputs())
    people = read_division(settings.data).pretraining
    album = settings.data.pretraining or settings.data.people
    rows = FaceRows(people, "pretraining")
    loss = bind(replace(FINETUNING, name="pretrain"))
    pairs = FacePairs(loss.batches, forget=None, retain=rows, size=settings.model.size, seed=settings.seed)

    classes = sorted(people)
    encoder = FaceEncoder(classes, album, settings.model.size)
    encoder.read(rows.files)
    model = new_network(settings.model, len(classes), settings.seed)
    start = start_of(model, settings.model, classes)
    record = {"method": loss.method.name, "data": fingerprint(album.path), **run_facts(settings, code)}
    run = {"seed": settings.seed, "save_dir": settings.save_dir, "record": record}
    train(start, loss, pairs, encoder, settings.trainer, **run)
    say_line(f"pretrained on {len(people)} people: {settings.save_dir}")


if __name__ == "__main__":
    main()
