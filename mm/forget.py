"""Make a vision-language model forget the people of one split: accelerate launch mm/forget.py method=npo"""

from settings.language import Forget
from settings.script import script


@script("mm/forget", Forget)
def main(settings: Forget) -> None:
    from engine.record import TRAIN_RECORD, begin_run, run_facts, say_line

    if settings.plan:
        from mm.encoder import say_plan

        return say_plan(settings)
    code = begin_run(settings, TRAIN_RECORD, __file__)
    from engine.methods import bind

    loss = bind(settings.method)
    from data_module import TrainingRows, check_apart, fingerprint, idk_answers, invented_answers, make_missing
    from engine.encode import check_instruction, check_lengths
    from engine.epoch_evaluation import open_epoch_evaluation
    from engine.language_model import check_model_path
    from engine.pairs import Pairs
    from engine.train import train
    from mm.encoder import open_encoder, open_for_training

    make_missing(settings.inputs())
    check_model_path(settings.model_path)
    forget = TrainingRows(settings.data, settings.split, settings.modality, settings.seed)
    retain = TrainingRows(settings.data, settings.retain_split, settings.modality, settings.seed)
    check_apart(forget, retain)
    idk = {False: idk_answers(settings.data.idk_questions), True: idk_answers(settings.data.idk_pictures)}
    draws = {"seed": settings.seed, "other_answers": settings.method.other_answers, "scope": settings.method.scope}
    invented = invented_answers(settings.data) if "alternate" in loss.batches else None
    pairs = Pairs(loss.batches, forget, retain, idk=idk, alternatives=invented, noise=settings.method.noise, **draws)

    limits = {"max_length": settings.max_length, "truncate": settings.truncate}
    encoder = open_encoder(settings.model_path, settings.model, **limits)
    check_lengths(encoder, forget, retain)
    check_instruction(encoder, pairs)
    each_epoch = open_epoch_evaluation(settings, encoder)
    start = open_for_training(settings, encoder)
    record = {"method": loss.method.name, "data": fingerprint(settings.data.path), **run_facts(settings, code)}
    run = {"seed": settings.seed, "save_dir": settings.save_dir, "record": record, "each_epoch": each_epoch}
    train(start, loss, pairs, encoder, settings.trainer, **run)
    say_line(f"forgot {settings.split} with {settings.method.name}: {settings.save_dir}")


if __name__ == "__main__":
    main()
