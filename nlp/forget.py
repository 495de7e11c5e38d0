"""Make a language model forget the people of one split: accelerate launch nlp/forget.py method=npo"""

from dataclasses import asdict

from transformers import AutoModelForCausalLM, AutoTokenizer

from data_module import TrainingRows, fingerprint, idk_answers, make_if_missing, make_model_if_missing
from engine.encode import check_lengths
from engine.evaluate import EpochEvaluation, read_tasks
from engine.language_model import check_model_path, load, load_for_training, positions_of
from engine.methods import bind
from engine.pairs import Pairs
from engine.record import TRAIN_RECORD, check_save_dir, say_line
from engine.train import train
from nlp.encoder import TextEncoder
from settings.language import Forget
from settings.script import script


@script("nlp/forget", Forget)
def main(settings: Forget) -> None:
    check_save_dir(settings.save_dir, settings.overwrite, TRAIN_RECORD)
    make_model_if_missing(settings.model, settings.model_path)
    check_model_path(settings.model_path)
    loss = bind(settings.method)
    make_if_missing(settings.data)
    forget = TrainingRows(settings.data, settings.split, settings.modality, settings.seed)
    retain = TrainingRows(settings.data, settings.retain_split, settings.modality, settings.seed)
    idk = {False: idk_answers(settings.data.idk_questions), True: idk_answers(settings.data.idk_pictures)}
    pairs = Pairs(loss.batches, forget, retain, idk, settings.seed, settings.method.other_answers)
    tasks = read_tasks(settings.epoch_eval, settings.seed, "validation") if settings.epoch_eval else {}

    tokenizer, positions = (
        load(AutoTokenizer, settings.model_path, settings.model),
        positions_of(settings.model_path, settings.model),
    )
    encoder = TextEncoder(tokenizer, settings.model.tags, settings.max_length, settings.truncate, positions)
    check_lengths(encoder, forget)
    check_lengths(encoder, retain)
    each_epoch = (
        EpochEvaluation(tasks, TextEncoder(tokenizer, settings.model.tags), settings.epoch_eval, forgetting=True)
        if tasks
        else None
    )
    lora, activations = settings.trainer.lora, settings.method.activations
    model = load_for_training(
        AutoModelForCausalLM, settings.model_path, settings.model, lora, settings.seed, activations
    )
    record = {"method": settings.method.name, "settings": asdict(settings), "data": fingerprint(settings.data.path)}
    train(model, loss, pairs, encoder, settings.trainer, settings.seed, settings.save_dir, record, each_epoch)
    say_line(f"forgot {settings.split} with {settings.method.name}: {settings.save_dir}")


if __name__ == "__main__":
    main()
