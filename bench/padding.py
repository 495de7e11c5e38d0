"""Which share of all places a forgetting computes is padding, with retain rows as they are drawn (`drawn`) and matched
by length with the forget rows of an epoch (`matched`, trainer.bucket_retain=true).

Nothing trains: the batches of each epoch are made as the training makes them, and counted.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_module import TrainingRows, make_missing
from engine.methods import bind
from engine.pairs import EpochSampler, Pairs, PassCollator
from engine.row_lengths import row_lengths
from engine.word_files import idk_answers
from settings.language import Forget
from settings.script import compose


def share_of_padding(settings: Forget, *, matched: bool) -> float:
    """Padding of the trained passes of all epochs, as a share of their places."""
    if settings.model.name.startswith("tiny-llava"):
        from mm.encoder import open_encoder
    else:
        from nlp.encoder import open_encoder
    rows = (TrainingRows(settings.data, split, settings.modality, settings.seed) for split in splits(settings))
    bound = bind(settings.method)
    idk = {False: idk_answers(settings.data.idk_questions), True: idk_answers(settings.data.idk_pictures)}
    pairs = Pairs(bound.batches, *rows, idk=idk, seed=settings.seed)
    encoder = open_encoder(settings.model_path, settings.model)
    if matched:
        pairs.match_lengths(partial(row_lengths, encoder))
    collator = PassCollator(encoder, bound.trained, [], by_length=True)
    trainer, tokens, places = settings.trainer, 0, 0
    lengths = row_lengths(encoder, pairs.leading)
    sampler = EpochSampler(len(pairs), settings.seed, lengths, trainer.batch_size, trainer.bucket)
    for epoch in range(trainer.epochs):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        for start in range(0, len(keys), trainer.batch_size):
            items = [pairs[key] for key in keys[start : start + trainer.batch_size]]
            for batch in collator(items)["trained"]:
                mask = batch.inputs["attention_mask"]
                tokens, places = tokens + int(mask.sum()), places + mask.numel()
    return 1 - tokens / places


def splits(settings: Forget) -> tuple[str, str]:
    return settings.split, settings.retain_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modality", choices=("mm", "nlp"), default="mm")
    parser.add_argument("overrides", nargs="*", help="of the forgetting's settings")
    asked = parser.parse_args()
    settings = compose(f"{asked.modality}/forget", Forget, asked.overrides)
    make_missing(settings.inputs())
    for name, matched in (("drawn", False), ("matched", True)):
        print(f"padding_{name} {share_of_padding(settings, matched=matched):.3f}")


if __name__ == "__main__":
    main()
