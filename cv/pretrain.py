"""Teach a face network to see faces, on people who are in no other split: accelerate launch cv/pretrain.py"""

from dataclasses import asdict
from functools import partial

from cv.face_settings import Pretrain
from cv.network import fresh, save_network, score_faces
from cv.pictures import Classes, FaceEncoder, FacePairs, FaceRows, read_division
from data_module import fingerprint, make_if_missing
from engine.methods import bind
from engine.record import TRAIN_RECORD, check_save_dir, say_line
from engine.train import train
from settings.script import script
from settings.training import Method


@script("cv/pretrain", Pretrain)
def main(settings: Pretrain) -> None:
    check_save_dir(settings.save_dir, settings.overwrite, TRAIN_RECORD)
    make_if_missing(settings.data)
    people = read_division(settings.data).pretraining
    album = settings.data.pretraining or settings.data.people
    loss = bind(Method(name="pretrain", loss="retain_ft"))
    pairs = FacePairs(loss.batches, None, FaceRows(people, "pretraining"), settings.model.size, settings.seed)

    encoder = FaceEncoder(Classes(sorted(people), settings.model.size), album)
    encoder.read([file for files in people.values() for file in files])
    model = fresh(settings.model, len(people), settings.seed)
    record = {"method": "pretrain", "settings": asdict(settings), "data": fingerprint(album.path)}
    score = partial(score_faces, scale=settings.model.scale, margin=settings.model.margin)
    save = partial(save_network, settings=settings.model)
    train(
        model, loss, pairs, encoder, settings.trainer, settings.seed, settings.save_dir, record, score=score, save=save
    )
    say_line(f"pretrained on {len(people)} people: {settings.save_dir}")


if __name__ == "__main__":
    main()
