"""Teach a language model the people of one split: accelerate launch nlp/finetune.py split=full"""

from settings.language import Finetune
from settings.script import script
from settings.training import FINETUNING


@script("nlp/finetune", Finetune)
def main(settings: Finetune) -> None:
    from engine.record import TRAIN_RECORD, begin_run, run_facts, say_line

    if settings.plan:
        from nlp.encoder import say_plan

        return say_plan(settings)
    code = begin_run(settings, TRAIN_RECORD, __file__)
    from data_module import TrainingRows, fingerprint, make_missing
    from engine.epoch_evaluation import open_epoch_evaluation
    from engine.language_model import check_model_path
    from engine.methods import bind
    from engine.pairs import Pairs
    from engine.row_lengths import check_lengths
    from engine.train import train
    from nlp.encoder import open_encoder, open_for_training

    make_missing(settings.inputs())
    check_model_path(settings.model_path)
    rows = TrainingRows(settings.data, settings.split, settings.modality, settings.seed)
    loss = bind(FINETUNING)
    pairs = Pairs(loss.batches, forget=None, retain=rows, idk={}, seed=settings.seed)

    limits = {"max_length": settings.max_length, "truncate": settings.truncate}
    encoder = open_encoder(settings.model_path, settings.model, **limits)
    check_lengths(encoder, rows)
    each_epoch = open_epoch_evaluation(settings, encoder)
    start = open_for_training(settings, encoder)
    record = {"method": loss.method.name, "data": fingerprint(settings.data.path), **run_facts(settings, code)}
    run = {"seed": settings.seed, "save_dir": settings.save_dir, "record": record, "each_epoch": each_epoch}
    train(start, loss, pairs, encoder, settings.trainer, **run)
    say_line(f"finetuned on {settings.split}: {settings.save_dir}")


if __name__ == "__main__":
    main()
