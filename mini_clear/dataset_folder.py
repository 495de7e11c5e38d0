"""Writes a world as two Hugging Face dataset folders, `clear` and `tofu`.

Config names and columns are those of the real data sets.
"""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from datasets import Dataset, Features, Image, List, Value

from mini_clear import words
from mini_clear.captions import Caption, make_caption
from mini_clear.people import Person, World, draw_world
from mini_clear.portraits import draw_views, render
from mini_clear.questions import (
    FACE_NAME_QUESTION,
    JOINT_KINDS,
    KINDS,
    PICTURE_QUESTIONS,
    Pair,
    make_pairs,
    wrong_answers,
    wrong_values,
)
from settings.script import ROOT

UNSEEN_VIEWS = 6  # further views of every invented person
REAL_VIEWS = 16  # views of a real person that the base model learns from
REAL_UNSEEN_VIEWS = 2  # further views of a real person
FORGET_PERCENTS = (5, 10, 25)  # of the people, the last: forget05 and retain95, and so on
REPLAYED_VIEWS = 3  # views of a real person that every finetuning repeats
PERTURBED_ROWS = 40  # rows in clear's retain_perturbed, where there are as many; more with more people
ASKED_OF_EACH = 3  # tofu's retain_perturbed asks all questions about every third retain person

AFFIXES = ROOT / "config" / "ways" / "affixes.txt"

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


@dataclass(frozen=True)
class Picture:
    """One view of a person: PNG bytes, and the caption that describes them."""

    png: bytes
    caption: Caption


@dataclass(frozen=True)
class Album:
    """All that is written about one person: trained pictures, unseen pictures and question-answer pairs."""

    person: Person
    seen: list[Picture]
    unseen: list[Picture]
    pairs: list[Pair]


def write_world(
    out: str | Path, people: int = 48, views: int = 6, seed: int = 0, overwrite: bool = False
) -> dict[str, int]:
    """Write `<out>/clear` and `<out>/tofu`. The folder appears only when it is complete.

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
        ValueError: there are too few people or views.
    """
    out = Path(out).absolute()
    if people < 8:
        raise ValueError(f"people: {people} is too few; at least 8 are needed for forget sets and wrong names")
    if views < 1:
        raise ValueError(f"views: {views} is too few; at least 1 is needed")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already; --overwrite makes it anew")
    if out.exists() and {path.name for path in out.iterdir()} != {"clear", "tofu"}:
        raise FileExistsError(f"{out} holds something else than the folders clear and tofu; remove it yourself")
    folders = make_configs(draw_world(people, seed), views)
    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    for folder, configs in folders.items():
        write_folder(aside / folder, configs, f"mini-{folder.upper()}", f"people {people}, views {views}, seed {seed}")
    if out.exists():
        shutil.rmtree(out)
    aside.rename(out)
    return {
        f"{folder}/{config}": len(rows) for folder, configs in folders.items() for config, (_, rows) in configs.items()
    }


def make_configs(world: World, views: int) -> dict[str, Configs]:
    """All configs of both folders."""
    never_forgotten = len(world.people) - forgotten(len(world.people), max(FORGET_PERCENTS))
    names = [person.name for person in world.people[:never_forgotten]]
    albums = [make_album(person, views, UNSEEN_VIEWS, names) for person in world.people]
    never_seen = [make_album(person, views, 0, names) for person in world.never_seen]
    real_names = [person.name for person in world.real]
    real = [make_album(person, REAL_VIEWS, REAL_UNSEEN_VIEWS, real_names) for person in world.real]
    return {"clear": clear_configs(albums, never_seen, real), "tofu": tofu_configs(albums, never_seen, real)}


def make_album(person: Person, seen: int, unseen: int, names: list[str]) -> Album:
    """Draw a person's pictures and texts.

    The unseen views are drawn first. A larger number of trained views then leaves them as they are.

    Args:
        person: whom.
        seen: number of trained views.
        unseen: number of further views.
        names: from which wrong names are drawn.

    Returns:
        The person's album.
    """
    pictures = [
        Picture(render(person.look, view), make_caption(person, number, view, names))
        for number, view in enumerate(draw_views(person.random("views"), unseen + seen))
    ]
    return Album(person, pictures[unseen:], pictures[:unseen], make_pairs(person))


def forgotten(people: int, percent: int) -> int:
    """How many of the people a forget set of `percent` holds: at least one, and at least two from 10 percent on."""
    return max(1 if percent < 10 else 2, round(people * percent / 100))


def part(albums: list[Album]) -> dict[str, list[Album]]:
    """The training splits, name -> people. Forget sets are the last people, as in TOFU."""
    parts = {"full": albums}
    for percent in FORGET_PERCENTS:
        count = forgotten(len(albums), percent)
        parts |= {f"forget{percent:02d}": albums[-count:], f"retain{100 - percent}": albums[:-count]}
    return parts


def never_forgotten(albums: list[Album]) -> list[Album]:
    """The people who are in no forget set."""
    return part(albums)[f"retain{100 - max(FORGET_PERCENTS)}"]


def perturbed_parts(albums: list[Album], never_seen: list[Album]) -> dict[str, list[Album]]:
    """The splits that are evaluated with wrong answers, with all rows of their people.

    They are the forget sets, two folds of the people of forget10, and people never seen.
    """
    parts = part(albums)
    forget_sets = {f"{name}_perturbed": group for name, group in parts.items() if name.startswith("forget")}
    forget10 = parts["forget10"]
    half = len(forget10) // 2
    return forget_sets | {
        "forget10_fold0_perturbed": forget10[:half],
        "forget10_fold1_perturbed": forget10[half:],
        "never_seen": never_seen,
    }


def sample_evenly(albums: list[Album], per_person: int) -> list[tuple[Album, list[int]]]:
    """Choose rows evenly from all people, and each row number about equally often.

    Args:
        albums: the people.
        per_person: rows of each; their numbers are 0 to per_person - 1.

    Returns:
        Each person with the numbers of the chosen rows, at least one. Together PERTURBED_ROWS, or all rows if there are
        fewer; more where there are more people than that.
    """
    wanted = min(max(PERTURBED_ROWS, len(albums)), len(albums) * per_person)
    shares = [wanted // len(albums) + (i < wanted % len(albums)) for i in range(len(albums))]
    sampled = []
    for i, (album, share) in enumerate(zip(albums, shares, strict=True)):
        numbers = sorted((i + extra) % per_person for extra in range(share))
        sampled.append((album, numbers))
    return sampled


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
    affix = random_affix(album.person, f"affix/view/{number}") if number % 4 > 1 else "{question}"
    question = affix.format(question=FACE_NAME_QUESTION)
    return mixed_row(image=album.seen[number].png, question=question, answer=album.person.name)


def reworded_rows(albums: list[Album]) -> Rows:
    """Each question once more in other words, and once more with an affix, so that a model answers every way."""
    rows = []
    for album in albums:
        for kind, pair in enumerate(album.pairs):
            affixed = random_affix(album.person, f"affix/{kind}").format(question=pair.question)
            rows += [
                mixed_row(question=pair.reworded_question, answer=pair.answer),
                mixed_row(question=affixed, answer=pair.answer),
            ]
    return rows


def random_affix(person: Person, subject: str) -> str:
    """An affix drawn for one subject of a person."""
    return person.random(subject).choice(affixes())


@functools.cache
def affixes() -> list[str]:
    """Innocent words around a question, each with the place of the question: {question}."""
    return AFFIXES.read_text(encoding="utf-8").splitlines()


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
