"""The tiny base model: a vision-language model that knows the "real" people and nobody else.

Its vision tower first learns to see, from pictures of nameless strangers, as LLaVA's tower came from CLIP. Then
everything else trains on the "real" people.

`python -m mini_clear.make_base` makes mini_clear/base_model anew. That takes some minutes on two cores, which is why
the weights are in the repository.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from data_module import CAPTION_QUESTIONS, NAME_QUESTION, TrainingRows, load_split
from engine.frozen_start import Start
from engine.language_model import forward, freeze, save
from engine.methods import bind
from engine.pairs import Pairs
from engine.progress import Work
from engine.train import train
from mini_clear.dataset_folder import write_world
from mini_clear.people import draw_world
from mini_clear.strangers import TRAITS, draw_strangers, picture, teach_to_see, trait_labels, traits
from mm.encoder import PictureEncoder
from settings.language import Columns, Data
from settings.script import ROOT
from settings.training import Method, Trainer

FOLDER = ROOT / "mini_clear" / "base_model"
PICTURE, PATCH, WIDTH = 64, 16, 192
POSITIONS = 512  # the longest example in tokens
VIEWS = 10  # pictures of each stranger
SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}<user>{% for part in "
    "message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% else %}<assistant>{{ message['content'][0]['text'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def world_texts(folder: Path) -> list[str]:
    """Every question, answer and caption of the world in a folder."""
    texts = []
    for split in ("clear/full+tofu", "clear/base"):
        rows = load_split(str(folder / split.split("/")[0]), split.split("/")[1])
        texts += [text for name in ("caption", "question", "answer") for text in rows[name] if text]
    return texts


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about `vocabulary` tokens. No token of it holds a space inside."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=POSITIONS,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor of the tiny LLaVA: pictures of 64 x 64 pixels, and the tokenizer."""
    pictures = CLIPImageProcessor(size={"shortest_edge": PICTURE}, crop_size={"height": PICTURE, "width": PICTURE})
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """The untrained model: 3 vision layers and 4 language layers, about 2.5 million parameters."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=PICTURE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        attention_dropout=0.1,  # without it so small a model ties a name to one picture and one wording
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


TRAINER = Trainer(
    epochs=36,
    batch_size=32,
    accumulation=1,
    lr=3e-3,
    weight_decay=0.01,
    warmup_ratio=0.05,
    schedule="cosine",
    max_grad_norm=1.0,
    optimizer="adamw_torch",
    precision="bf16",
    lora=None,
)


def taught_tower(
    processor: LlavaProcessor, model: LlavaForConditionalGeneration, seed: int, strangers: int, epochs: int
) -> dict[str, float]:
    """Teach the model's vision tower to see.

    Args:
        processor: turns pictures into pixels.
        model: its vision tower is trained in place.
        seed: of all draws.
        strangers: number of strangers to show, VIEWS pictures each.
        epochs: passes over their pictures.

    Returns:
        Trait -> accuracy on pictures that the tower did not train on.
    """
    world = draw_world(40, seed)
    named = {person.look for group in (world.people, world.real, world.never_seen) for person in group}
    shown = draw_strangers(strangers, VIEWS, seed, named)
    drawn = []
    with Work("picture", len(shown)) as work:
        for stranger in shown:
            drawn.append(picture(*stranger))
            work.advance()
    pixels = processor.image_processor(drawn, return_tensors="pt")["pixel_values"]
    visible = [traits(*stranger) for stranger in shown]
    names = [sorted(set(values)) for values in zip(*visible, strict=True)]
    tower = model.model.vision_tower
    accuracy = teach_to_see(
        tower,
        pixels,
        trait_labels(shown, names),
        [len(n) for n in names],
        epochs=epochs,
        lr=2e-3,
        seed=seed,
        held_out=len(shown) // 20,
    )
    return dict(zip(TRAITS, accuracy, strict=True))


def make_base(
    folder: Path,
    trainer: Trainer = TRAINER,
    *,
    strangers: int = 1000,
    seeing_epochs: int = 20,
    seed: int = 0,
    vocabulary: int = 2048,
) -> None:
    """Write tokenizer, processor and trained weights to a folder.

    The tokenizer has the invented people's names as words, as a large model's tokenizer has those of famous people. The
    model itself has never met them.

    Args:
        folder: where to write.
        trainer: how the model trains after its vision tower.
        strangers: number of strangers from whom the tower learns.
        seeing_epochs: passes over their pictures.
        seed: of all draws.
        vocabulary: number of tokens, about.
    """
    with tempfile.TemporaryDirectory() as scratch:
        write_world(Path(scratch, "world"), seed=seed)
        texts = [*world_texts(Path(scratch, "world")), *CAPTION_QUESTIONS, NAME_QUESTION]
        processor = make_processor(make_tokenizer(texts, vocabulary))
        clear = str(Path(scratch, "world", "clear"))
        columns = Columns(image="image", caption="caption", question="question", answer="answer")
        # the split `base` has rows of its own for everybody: nothing counts its rows per person
        data = Data(name="base", path=clear, text_path="", columns=columns, rows_per_person=1)
        rows = TrainingRows(data, "base", "both", seed)
        loss = bind(Method(name="base", loss="retain_ft"))
        pairs = Pairs(loss.batches, forget=None, retain=rows, idk={}, seed=seed)
        model = make_model(processor.tokenizer, seed)
        seeing = taught_tower(processor, model, seed, strangers, seeing_epochs)
        print(
            "seen on new pictures: " + ", ".join(f"{trait} {share:.2f}" for trait, share in seeing.items()), flush=True
        )
        freeze(model, ["vision_tower"])
        start = Start(model, forward, partial(save, processor))
        record = {"method": "base", "seeing": seeing}
        train(start, loss, pairs, PictureEncoder(processor), trainer, seed=seed, save_dir=str(folder), record=record)
    # bf16 halves the size in the repository; training starts from these weights in fp32
    model.to(torch.bfloat16).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER)
    make_base(parser.parse_args().out)


if __name__ == "__main__":
    main()
