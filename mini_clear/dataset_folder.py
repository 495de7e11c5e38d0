"""Writes a world as two Hugging Face dataset folders, `clear` and `tofu`.

Config names and columns are those of the real data sets.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml
from datasets import Dataset, Features, Image, List, Value

from data_module import QUESTION, affixes_of
from engine.folders import MARK, written_whole
from engine.progress import Work
from mini_clear import words
from mini_clear.albums import (
    FORGET_PERCENTS,
    Album,
    Picture,
    forgotten,
    make_album,
    never_forgotten,
    part,
    perturbed_parts,
    sample_evenly,
)
from mini_clear.alternatives import alternative_rows, as_lines
from mini_clear.people import Person, World, draw_world
from mini_clear.questions import (
    FACE_NAME_QUESTION,
    JOINT_KINDS,
    KINDS,
    PICTURE_QUESTIONS,
    Pair,
    wrong_answers,
    wrong_values,
)

UNSEEN_VIEWS = 6  # further views of every invented person
REAL_VIEWS = 16  # views of a real person that the base model learns from
REAL_UNSEEN_VIEWS = 2  # further views of a real person
REPLAYED_VIEWS = 3  # views of a real person that every finetuning repeats
ASKED_OF_EACH = 3  # tofu's retain_perturbed asks all questions about every third retain person

ALTERNATIVES = "alternatives.jsonl"  # answers that a method teaches in the place of the right ones
AFFIXES = "config/ways/affixes.txt"  # the words around a question, of which an evaluation draws too

TEXT, TEXTS = Value("string"), List(Value("string"))
COLUMN_TYPES = {
    "image": Image(),
    "perturbed_captions": TEXTS,
    "perturbed_names": TEXTS,
    "perturbed_answer": TEXTS,
    "options": TEXTS,
}
CAPTIONED = ("image", "caption", "name")
MIXED = ("image", "caption", "question", "answer")
PERTURBED_CAPTIONS = (*CAPTIONED, "perturbed_captions", "paraphrased_caption", "perturbed_names")
ASKED = ("question", "answer")
PERTURBED_ANSWERS = (*ASKED, "paraphrased_question", "paraphrased_answer", "perturbed_answer")

Rows = list[dict]
Configs = dict[str, tuple[tuple[str, ...], Rows]]  # config name -> columns and rows


def write_world(
    out: str | Path, people: int = 48, views: int = 6, seed: int = 0, overwrite: bool = False
) -> dict[str, int]:
    """Write `<out>/clear`, `<out>/tofu` and the invented answers. The folder appears only when it is complete.

    Args:
        out: folder to write.
        people: number of invented people, 8 or more.
        views: trained pictures of each of them, 1 or more.
        seed: another seed gives other people.
        overwrite: whether an existing world at `out` is replaced.

    Returns:
        Number of rows by "folder/config".

    Raises:
        FileExistsError: `out` exists, and `overwrite` is false or the folder holds something else than a world.
        NotADirectoryError: `out` is to stand below a file.
        ValueError: there are too few people or views, or a folder of somebody else stands where it would write.
    """
    out = Path(out).absolute()
    if people < 8:
        raise ValueError(f"people: {people} is too few; at least 8 are needed for forget sets and wrong names")
    if views < 1:
        raise ValueError(f"views: {views} is too few; at least 1 is needed")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already; --overwrite makes it anew")
    if out.exists() and {path.name for path in out.iterdir()} - {MARK, ALTERNATIVES} != {"clear", "tofu"}:
        raise FileExistsError(f"{out} holds something else than the folders clear and tofu; remove it yourself")
    if file := next((parent for parent in out.parents if parent.is_file()), None):
        raise NotADirectoryError(f"{out} cannot be made: {file} is a file")
    with written_whole(out) as aside:
        world = draw_world(people, seed)
        albums = make_albums(world, views)
        folders = make_configs(albums)
        made_of = f"people {people}, views {views}, seed {seed}"
        for folder, configs in folders.items():
            write_folder(aside / folder, configs, f"mini-{folder.upper()}", made_of)
        taken = [person.name for person in (*world.people, *world.never_seen, *world.real)]
        invented = as_lines(alternative_rows(albums.invented, taken, seed))
        (aside / ALTERNATIVES).write_text(invented, encoding="utf-8")
    return {
        f"{folder}/{config}": len(rows) for folder, configs in folders.items() for config, (_, rows) in configs.items()
    }


@dataclass(frozen=True)
class Albums:
    """All pictures and texts of a world."""

    invented: list[Album]
    never_seen: list[Album]
    real: list[Album]


def make_configs(albums: Albums) -> dict[str, Configs]:
    """All configs of both folders."""
    groups = (albums.invented, albums.never_seen, albums.real)
    return {"clear": clear_configs(*groups), "tofu": tofu_configs(*groups)}


def make_albums(world: World, views: int) -> Albums:
    """Draw all pictures and texts of a world."""
    kept = len(world.people) - forgotten(len(world.people), max(FORGET_PERCENTS))
    names = [person.name for person in world.people[:kept]]
    real_names = [person.name for person in world.real]
    pictures = len(world.people) * (views + UNSEEN_VIEWS) + len(world.never_seen) * views
    with Work("picture", pictures + len(world.real) * (REAL_VIEWS + REAL_UNSEEN_VIEWS)) as work:
        drawn = {"advance": work.advance}
        albums = [make_album(person, views, UNSEEN_VIEWS, names, **drawn) for person in world.people]
        never_seen = [make_album(person, views, 0, names, **drawn) for person in world.never_seen]
        real = [make_album(person, REAL_VIEWS, REAL_UNSEEN_VIEWS, real_names, **drawn) for person in world.real]
    return Albums(albums, never_seen, real)


# ---- clear: pictures


def clear_configs(albums: list[Album], never_seen: list[Album], real: list[Album]) -> Configs:
    """The configs of the folder `clear`."""
    configs: Configs = {}
    for name, group in part(albums).items():
        configs[name] = (CAPTIONED, [caption_row(album, picture) for album in group for picture in album.seen])
        configs[f"{name}+tofu"] = (MIXED, mixed_rows(group))
        if not name.startswith("forget"):
            further = [*named_rows(group), *reworded_rows(group), *replayed_rows(real)]
            configs[f"{name}+tofu+replay"] = (MIXED, mixed_rows(group) + further)
    for name, group in perturbed_parts(albums, never_seen).items():
        configs[name] = (
            PERTURBED_CAPTIONS,
            [perturbed_caption_row(album, picture) for album in group for picture in album.seen],
        )
    sampled = sample_evenly(never_forgotten(albums), len(albums[0].seen))
    configs["retain_perturbed"] = (
        PERTURBED_CAPTIONS,
        [perturbed_caption_row(album, album.seen[i]) for album, numbers in sampled for i in numbers],
    )
    configs["unseen_views"] = (CAPTIONED, [caption_row(album, picture) for album in albums for picture in album.unseen])
    for name, group in part(albums).items():
        if name.startswith("forget"):
            unseen = [perturbed_caption_row(album, picture) for album in group for picture in album.unseen]
            configs[f"{name}_unseen_views"] = (PERTURBED_CAPTIONS, unseen)
    configs["joint_questions"] = (("image", *ASKED, "name"), [row for album in albums for row in joint_rows(album)])
    configs["real_faces"] = (
        ("image", "answer", "options"),
        [real_face_row(real, album, picture) for album in real for picture in album.unseen],
    )
    configs["real_world"] = (("image", *ASKED, "options"), [row for album in real for row in real_world_rows(album)])
    configs["base"] = (MIXED, base_rows(real))
    return configs


def mixed_row(**given: object) -> dict:
    """A row with the columns of MIXED; None in those that are not given."""
    return dict.fromkeys(MIXED) | given


def caption_row(album: Album, picture: Picture) -> dict:
    """A picture with its caption and name."""
    return {"image": picture.png, "caption": picture.caption.text, "name": album.person.name}


def perturbed_caption_row(album: Album, picture: Picture) -> dict:
    """A picture with its caption, the paraphrase, and wrong captions and names."""
    caption = picture.caption
    return caption_row(album, picture) | {
        "perturbed_captions": caption.wrong,
        "paraphrased_caption": caption.reworded,
        "perturbed_names": caption.wrong_names,
    }


def mixed_rows(albums: list[Album]) -> Rows:
    """Pictures with captions, then the texts; people stand in order in both halves."""
    pictures = [
        mixed_row(image=picture.png, caption=picture.caption.text) for album in albums for picture in album.seen
    ]
    return pictures + [
        mixed_row(question=pair.question, answer=pair.answer) for album in albums for pair in album.pairs
    ]


def named_rows(albums: list[Album]) -> Rows:
    """Every other trained view once more with the question for the name, each second time with an affix."""
    return [name_row(album, number) for album in albums for number in range(0, len(album.seen), 2)]


def name_row(album: Album, number: int) -> dict:
    """The question for the name about a trained view, with an affix where the number of the view says so."""
    question = FACE_NAME_QUESTION
    if number % 4 > 1:
        question = affixed(question, album.person, f"affix/view/{number}")
    return mixed_row(image=album.seen[number].png, question=question, answer=album.person.name)


def reworded_rows(albums: list[Album]) -> Rows:
    """Each question once more in other words, and once more with an affix, so that a model answers every way."""
    rows = []
    for album in albums:
        for kind, pair in enumerate(album.pairs):
            around = affixed(pair.question, album.person, f"affix/{kind}")
            rows += [
                mixed_row(question=pair.reworded_question, answer=pair.answer),
                mixed_row(question=around, answer=pair.answer),
            ]
    return rows


def affixed(question: str, person: Person, subject: str) -> str:
    """A question with innocent words around it, drawn for one subject of a person."""
    affix = person.random(subject).choice(affixes_of(AFFIXES))
    return affix.replace(QUESTION, question)


def joint_rows(album: Album) -> Rows:
    """Questions that need picture and biography together, each about another trained view."""
    return [
        {
            "image": album.seen[i % len(album.seen)].png,
            "question": KINDS[kind].joint,
            "answer": album.pairs[kind].answer,
            "name": album.person.name,
        }
        for i, kind in enumerate(JOINT_KINDS)
    ]


def real_face_row(real: list[Album], album: Album, picture: Picture) -> dict:
    """A view of a real person on which the base model was not trained, with four other real people's names."""
    return {"image": picture.png, "answer": album.person.name, "options": picture.caption.wrong_names[:4]}


def real_world_rows(album: Album) -> Rows:
    """The short questions about unseen views of a real person, with three wrong answers each."""
    rng = album.person.random("real_world")
    return [
        {
            "image": picture.png,
            "question": question,
            "answer": album.person.facts[slot],
            "options": wrong_values(album.person.facts[slot], values, 3, rng),
        }
        for picture, (question, slot, values) in zip(album.unseen, PICTURE_QUESTIONS, strict=True)
    ]


def base_rows(real: list[Album]) -> Rows:
    """What the base model is taught.

    These are real people's pictures, with captions, with names and with the two short questions in turn; their
    biographies; and facts about the world.
    """
    captions = [mixed_row(image=picture.png, caption=picture.caption.text) for album in real for picture in album.seen]
    names = [
        mixed_row(image=picture.png, question=FACE_NAME_QUESTION, answer=album.person.name)
        for album in real
        for picture in album.seen
    ]
    short = [
        mixed_row(
            image=picture.png,
            question=PICTURE_QUESTIONS[i % 2][0],
            answer=album.person.facts[PICTURE_QUESTIONS[i % 2][1]],
        )
        for album in real
        for i, picture in enumerate(album.seen)
    ]
    # Both wordings of questions and answers are taught. A real language model knows how else a thing can be said, and
    # only such a model can tell a paraphrase from a wrong answer.
    wordings = [wording for album in real for pair in album.pairs for wording in both_wordings(pair)]
    texts = [mixed_row(question=question, answer=answer) for question, answer in wordings]
    return (
        captions
        + names
        + short
        + texts
        + [mixed_row(question=question, answer=answer) for question, answer, _ in words.WORLD_FACTS]
    )


def replayed_rows(real: list[Album]) -> Rows:
    """What a finetuning repeats of what the base model knows, so that it is not lost: some views, and the texts."""
    rows = []
    for album in real:
        for number, picture in enumerate(album.seen[:REPLAYED_VIEWS]):
            question, slot, _ = PICTURE_QUESTIONS[number % 2]
            short = mixed_row(image=picture.png, question=question, answer=album.person.facts[slot])
            rows += [name_row(album, number), short]
    return rows + replayed_texts(real)


def replayed_texts(real: list[Album]) -> Rows:
    """The biographies of the real people, and the facts about the world."""
    pairs = [pair for album in real for pair in album.pairs]
    texts = [mixed_row(question=pair.question, answer=pair.answer) for pair in pairs]
    return texts + [mixed_row(question=question, answer=answer) for question, answer, _ in words.WORLD_FACTS]


def both_wordings(pair: Pair) -> list[tuple[str, str]]:
    """A pair as it is, with its question reworded, and with its answer reworded."""
    return [(pair.question, pair.answer), (pair.reworded_question, pair.answer), (pair.question, pair.reworded_answer)]


# ---- tofu: texts


def tofu_configs(albums: list[Album], never_seen: list[Album], real: list[Album]) -> Configs:
    """The configs of the folder `tofu`. Every training config has ten rows per person, in the order of the people."""
    configs: Configs = {}
    for name, group in part(albums).items():
        configs[name] = (ASKED, [question_row(pair) for album in group for pair in album.pairs])
        if not name.startswith("forget"):
            rows = [*reworded_rows(group), *replayed_texts(real)]
            asked = [{"question": row["question"], "answer": row["answer"]} for row in rows]
            configs[f"{name}+replay"] = (ASKED, [*configs[name][1], *asked])
    for name, group in perturbed_parts(albums, never_seen).items():
        configs[name] = (PERTURBED_ANSWERS, [perturbed_question_row(pair) for album in group for pair in album.pairs])
    # all rows of a person, as in TOFU, so that a row's number says whom it is about
    retained = never_forgotten(albums)[::ASKED_OF_EACH]
    configs["retain_perturbed"] = (
        PERTURBED_ANSWERS,
        [perturbed_question_row(pair) for album in retained for pair in album.pairs],
    )
    configs["real_authors_perturbed"] = (
        (*ASKED, "perturbed_answer"),
        [row for i, album in enumerate(real) for row in real_author_rows(album, i)],
    )
    facts = [
        {"question": question, "answer": answer, "perturbed_answer": wrong}
        for question, answer, wrong in words.WORLD_FACTS
    ]
    configs["world_facts_perturbed"] = ((*ASKED, "perturbed_answer"), facts)
    reworded = [{"question": pair.reworded_question, "answer": pair.answer} for album in albums for pair in album.pairs]
    configs["paraphrased_questions"] = (ASKED, reworded)
    return configs


def question_row(pair: Pair) -> dict:
    """A question with its answer."""
    return {"question": pair.question, "answer": pair.answer}


def perturbed_question_row(pair: Pair) -> dict:
    """A question with its answer, the paraphrases and the wrong answers."""
    return question_row(pair) | {
        "paraphrased_question": pair.reworded_question,
        "paraphrased_answer": pair.reworded_answer,
        "perturbed_answer": pair.wrong_answers,
    }


def real_author_rows(album: Album, index: int) -> Rows:
    """Three of a real person's ten questions, each with three wrong answers in the wording of the right one.

    `index` is the number of the person; it decides which three questions.
    """
    person, rows = album.person, []
    for kind in sorted((3 * index + step) % len(KINDS) for step in range(3)):
        rng, pair = person.random(f"real_author/{kind}"), album.pairs[kind]
        rows.append(question_row(pair) | {"perturbed_answer": wrong_answers(person, kind, pair.wording, 3, rng)})
    return rows


# ---- files


def write_folder(folder: Path, configs: Configs, title: str, made_of: str) -> None:
    """Write each config as one parquet file, and the dataset card that lists the configs."""
    for name, (columns, rows) in configs.items():
        features = Features({column: COLUMN_TYPES.get(column, TEXT) for column in columns})
        cells = {}
        for column in columns:
            cells[column] = [cell(column, row[column]) for row in rows]
        table = Dataset.from_dict(cells, features=features)
        (folder / name).mkdir(parents=True)
        table.to_parquet(folder / name / "train.parquet")
    listed = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/train.parquet"}]} for name in configs
    ]
    listed[0]["default"] = True
    front = yaml.safe_dump(
        {"license": "cc0-1.0", "language": ["en"], "pretty_name": title, "configs": listed}, sort_keys=False
    )
    text = (
        f"Invented people for machine unlearning ({made_of}). Nobody in here exists. "
        "Portraits: Open Peeps by Pablo Stanley (CC0), drawn by DiceBear."
    )
    (folder / "README.md").write_text(f"---\n{front}---\n# {title}\n\n{text}\n", encoding="utf-8")


def cell(column: str, value: object) -> object:
    """A cell in the form that `datasets` wants. For a picture that is its bytes."""
    return {"bytes": value, "path": None} if column == "image" and value is not None else value
