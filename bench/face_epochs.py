"""How many epochs teach a face network its people: training and retain accuracy by epochs, with seeds that no benchmark uses and no attack.

Run: python bench/face_epochs.py [overrides of cv/pretrain and cv/finetune, like data=orl_faces; pretrain:trainer.epochs=60 goes to the first alone]
The rule: the smallest of 5, 10, 20, 40, 80 epochs at which every training picture is known, or after which twice as many do not raise the closed-set accuracy
on the query pictures of the people that are kept. Lines `name value`, means over the seeds.
"""

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cv.compare import compare, verification
from cv.face_settings import FinetuneFaces, Pretrain
from cv.network import fresh, save_network, score_faces, with_new_classes
from cv.pictures import (
    Classes,
    FaceEncoder,
    FacePairs,
    FaceRows,
    met_by,
    read_division,
    read_pictures,
    to_pixels,
    training_rows,
)
from data_module import make_if_missing
from engine.methods import bind
from engine.train import train
from settings.script import compose
from settings.training import Method

SEEDS = (101, 102, 103)
EPOCHS = (5, 10, 20, 40, 80)
LEARN = Method(name="finetune", loss="retain_ft")


def taught(model, names, rows, settings, album, seed):
    """`model` after training on `rows`, whose people are `names`."""
    loss, classes = bind(LEARN), Classes(names, settings.model.size)
    encoder = FaceEncoder(classes, album)
    encoder.read(rows.files)
    score = partial(score_faces, scale=settings.model.scale, margin=settings.model.margin)
    pairs = FacePairs(loss.batches, None, rows, settings.model.size, seed)
    save = partial(save_network, settings=settings.model)
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            loss,
            pairs,
            encoder,
            settings.trainer,
            seed,
            f"{folder}/model",
            {},
            say=lambda line: None,
            score=score,
            save=save,
        )
    return model.eval()


@torch.no_grad()
def known(model, names, rows, album, size):
    """Share of the training pictures, as they are, whose largest cosine is to their own class."""
    pictures = read_pictures(album, rows.files, size)
    said = model(to_pixels(torch.stack([pictures[file] for file in rows.files])))[:, 0].argmax(-1)
    return sum(names[number] == answer for number, answer in zip(said.tolist(), rows.answers, strict=True)) / len(rows)


def main(overrides: list[str], pretraining: list[str]) -> None:
    given = compose("cv/pretrain", Pretrain, [*overrides, *pretraining])
    make_if_missing(given.data)
    division, size = read_division(given.data), given.model.size
    met, album = met_by(division, None), given.data.people
    table = {epochs: [] for epochs in EPOCHS}
    for seed in SEEDS:
        people = sorted(division.pretraining)
        start = fresh(given.model, len(people), seed)
        start = taught(
            start, people, FaceRows(division.pretraining, "pretraining"), given, given.data.pretraining or album, seed
        )
        for epochs in EPOCHS:
            settings = compose("cv/finetune", FinetuneFaces, [*overrides, f"trainer.epochs={epochs}"])
            rows, begun = training_rows(division, met.trained, "full"), time.perf_counter()
            model = taught(with_new_classes(start, len(met.trained), seed), met.trained, rows, settings, album, seed)
            seconds = time.perf_counter() - begun
            kept = verification(compare(model, division, album, size, 128), met)["retain"]["accuracy"]
            table[epochs].append((known(model, met.trained, rows, album, size), kept, seconds))
    for epochs, found in table.items():
        for name, values in zip(
            ("training_accuracy", "retain_accuracy", "seconds"), zip(*found, strict=True), strict=True
        ):
            print(f"{name}_{epochs}_epochs {sum(values) / len(values):.3f}")


if __name__ == "__main__":
    pretraining = [word.removeprefix("pretrain:") for word in sys.argv[1:] if word.startswith("pretrain:")]
    main([word for word in sys.argv[1:] if not word.startswith("pretrain:")], pretraining)
