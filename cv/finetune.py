"""Teach a pretrained face network the people that it meets, one half of all: accelerate launch cv/finetune.py split=full"""

from dataclasses import asdict
from functools import partial

from cv.face_settings import FinetuneFaces
from cv.network import load_network, save_network, score_faces, with_new_classes
from cv.pictures import Classes, FaceEncoder, FacePairs, check_strangers, met_by, read_division, training_rows
from data_module import fingerprint, make_if_missing
from engine.methods import bind
from engine.record import TRAIN_RECORD, check_save_dir, say_line
from engine.train import train
from settings.script import script
from settings.training import Method


@script("cv/finetune", FinetuneFaces)
def main(settings: FinetuneFaces) -> None:
    check_save_dir(settings.save_dir, settings.overwrite, TRAIN_RECORD)
    make_if_missing(settings.data)
    division = read_division(settings.data)
    met = met_by(division, None)
    people = met.trained if settings.split == "full" else met.retain
    rows = training_rows(division, people, settings.split)
    loss = bind(Method(name="finetune", loss="retain_ft"))
    pairs = FacePairs(loss.batches, None, rows, settings.model.size, settings.seed)

    encoder = FaceEncoder(Classes(people, settings.model.size), settings.data.people)
    encoder.read(rows.files)
    record = {"method": "finetune", "settings": asdict(settings), "data": fingerprint(settings.data.people.path)}
    score = partial(score_faces, scale=settings.model.scale, margin=settings.model.margin)
    start, classes = load_network(settings.model_path, settings.model)
    check_strangers(classes, division, settings.model_path)
    model = with_new_classes(start, len(people), settings.seed)
    save = partial(save_network, settings=settings.model)
    train(
        model, loss, pairs, encoder, settings.trainer, settings.seed, settings.save_dir, record, score=score, save=save
    )
    say_line(f"finetuned on {len(people)} people: {settings.save_dir}")


if __name__ == "__main__":
    main()
