"""Teach a vision-language model the people of one split: accelerate launch mm/finetune.py split=full+tofu"""

from dataclasses import asdict

from transformers import AutoModelForImageTextToText, AutoProcessor

from data_module import TrainingRows, fingerprint, make_if_missing
from engine.encode import ChatEncoder, check_lengths
from engine.evaluate import EpochEvaluation, read_tasks
from engine.language_model import check_model_path, load, load_for_training, positions_of
from engine.methods import bind
from engine.pairs import Pairs
from engine.record import TRAIN_RECORD, check_save_dir, say_line
from engine.train import train
from settings.language import Finetune
from settings.script import script
from settings.training import Method


@script("mm/finetune", Finetune)
def main(settings: Finetune) -> None:
    check_save_dir(settings.save_dir, settings.overwrite, TRAIN_RECORD)
    check_model_path(settings.model_path)
    make_if_missing(settings.data)
    rows = TrainingRows(settings.data, settings.split, settings.modality, settings.seed)
    loss = bind(Method(name="finetune", loss="retain_ft"))
    pairs = Pairs(loss.batches, forget=None, retain=rows, idk={}, seed=settings.seed)
    tasks = read_tasks(settings.epoch_eval, settings.seed, "validation") if settings.epoch_eval else {}

    processor, positions = (
        load(AutoProcessor, settings.model_path, settings.model),
        positions_of(settings.model_path, settings.model),
    )
    encoder = ChatEncoder(processor, settings.max_length, settings.truncate, positions)
    check_lengths(encoder, rows)
    each_epoch = (
        EpochEvaluation(tasks, ChatEncoder(processor), settings.epoch_eval, forgetting=False) if tasks else None
    )
    model = load_for_training(
        AutoModelForImageTextToText, settings.model_path, settings.model, settings.trainer.lora, settings.seed
    )
    record = {"method": "finetune", "settings": asdict(settings), "data": fingerprint(settings.data.path)}
    train(model, loss, pairs, encoder, settings.trainer, settings.seed, settings.save_dir, record, each_epoch)
    say_line(f"finetuned on {settings.split}: {settings.save_dir}")


if __name__ == "__main__":
    main()
