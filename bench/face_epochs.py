"""How many epochs teach a face network its people: training and retain accuracy by number of epochs.

Run: python bench/face_epochs.py [overrides of cv/pretrain and cv/finetune, like data=orl_faces]
An override behind `pretrain:`, like pretrain:trainer.epochs=60, goes to cv/pretrain alone. The seeds are those of no
benchmark and no attack.

The rule takes the smallest of 5, 10, 20, 40 and 80 epochs after which every training picture is named right, or after
which twice as many do not raise the accuracy on the query pictures of the people that are kept. The output has lines
`name value`, means over the seeds.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cv.compare import compare, verification_figures
from cv.division import met_by, read_division
from cv.face_settings import FinetuneFaces, Pretrain
from cv.network import new_network, start_of, with_new_classes
from cv.pictures import FaceEncoder, FacePairs, FaceRows, read_pictures, to_pixels, training_rows
from data_module import make_missing
from engine.methods import bind
from engine.train import train
from settings.script import compose
from settings.training import Method

SEEDS = (101, 102, 103)
EPOCHS = (5, 10, 20, 40, 80)
FINETUNING = Method(name="finetune", loss="retain_ft")


def train_on(rows, model, names, settings, album, *, seed):
    """The network after training on `rows`, whose people are `names`."""
    loss = bind(FINETUNING)
    encoder = FaceEncoder(names, album, settings.model.size)
    encoder.read(rows.files)
    pairs = FacePairs(loss.batches, forget=None, retain=rows, size=settings.model.size, seed=seed)
    start = start_of(model, settings.model, names)
    with tempfile.TemporaryDirectory() as folder:
        run = {"seed": seed, "save_dir": f"{folder}/model", "record": {}, "say": lambda line: None}
        train(start, loss, pairs, encoder, settings.trainer, **run)
    return model.eval()


@torch.no_grad()
def share_named_right(model, names, rows, album, size):
    """Share of the training pictures, as they are stored, whose largest cosine is to their own class."""
    pictures = read_pictures(album, rows.files, size)
    answers = model(to_pixels(torch.stack([pictures[file] for file in rows.files])))[:, 0].argmax(-1).tolist()
    return sum(names[number] == name for number, name in zip(answers, rows.answers, strict=True)) / len(rows)


def main(overrides: list[str], pretraining: list[str]) -> None:
    """Train and compare networks of all seeds, and print the table; `pretraining`: overrides of cv/pretrain alone."""
    given = compose("cv/pretrain", Pretrain, [*overrides, *pretraining])
    make_missing(given.inputs())
    division, size = read_division(given.data), given.model.size
    met, album = met_by(division, None), given.data.people
    people, strangers = met.trained, sorted(division.pretraining)
    table = {epochs: [] for epochs in EPOCHS}
    for seed in SEEDS:
        rows = FaceRows(division.pretraining, "pretraining")
        model = new_network(given.model, len(strangers), seed)
        pretrained = train_on(rows, model, strangers, given, given.data.pretraining or album, seed=seed)
        for epochs in EPOCHS:
            settings = compose("cv/finetune", FinetuneFaces, [*overrides, f"trainer.epochs={epochs}"])
            rows, begun = training_rows(division, people, "full"), time.perf_counter()
            model = with_new_classes(pretrained, len(people), seed)
            model = train_on(rows, model, people, settings, album, seed=seed)
            seconds = time.perf_counter() - begun
            compared = compare(model, division, album, size=size, batch_size=128)
            kept = verification_figures(compared, met)["retain"]["accuracy"]
            table[epochs].append((share_named_right(model, people, rows, album, size), kept, seconds))
    for epochs, results in table.items():
        for place, name in enumerate(("training_accuracy", "retain_accuracy", "seconds")):
            print(f"{name}_{epochs}_epochs {sum(result[place] for result in results) / len(results):.3f}")


if __name__ == "__main__":
    pretraining = [word.removeprefix("pretrain:") for word in sys.argv[1:] if word.startswith("pretrain:")]
    main([word for word in sys.argv[1:] if not word.startswith("pretrain:")], pretraining)
