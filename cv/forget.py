"""Make a face network forget the people that it is to forget: accelerate launch cv/forget.py method=scrub"""

from dataclasses import asdict
from functools import partial

from cv.face_settings import ForgetFaces
from cv.network import check_parts, end_at, load_network, save_network, score_faces, with_new_classes
from cv.pictures import Classes, FaceEncoder, FacePairs, check_strangers, met_by, read_division, training_rows
from data_module import fingerprint, make_if_missing
from engine.methods import bind
from engine.record import TRAIN_RECORD, check_save_dir, say_line
from engine.train import train
from settings.script import script


@script("cv/forget", ForgetFaces)
def main(settings: ForgetFaces) -> None:
    check_save_dir(settings.save_dir, settings.overwrite, TRAIN_RECORD)
    loss = bind(settings.method)
    check_parts(settings.method.activations)
    make_if_missing(settings.data)
    division = read_division(settings.data)
    met = met_by(division, None)
    model, classes = load_network(settings.model_path, settings.model)
    if settings.method.activations:
        end_at(model, settings.method.activations)
    if settings.method.restart:
        check_strangers(classes, division, settings.model_path)
        model, classes = with_new_classes(model, len(met.retain), settings.seed), met.retain
    forget, retain = (
        training_rows(division, people, split) for people, split in ((met.forget, "forget"), (met.retain, "retain"))
    )
    pairs = FacePairs(loss.batches, forget, retain, settings.model.size, settings.seed, settings.method.other_answers)

    encoder = FaceEncoder(Classes(classes, settings.model.size), settings.data.people)
    encoder.read([*forget.files, *retain.files])
    record = {
        "method": settings.method.name,
        "settings": asdict(settings),
        "data": fingerprint(settings.data.people.path),
    }
    score = partial(score_faces, scale=settings.model.scale, margin=settings.model.margin)
    trainer = settings.finetune if settings.method.restart else settings.trainer
    if settings.method.restart:
        say_line(
            f"{settings.method.name} begins anew with {settings.model_path} and trains as finetune says; model_path and trainer have no effect"
        )
    save = partial(save_network, settings=settings.model)
    train(model, loss, pairs, encoder, trainer, settings.seed, settings.save_dir, record, score=score, save=save)
    say_line(f"forgot {len(met.forget)} people with {settings.method.name}: {settings.save_dir}")


if __name__ == "__main__":
    main()
