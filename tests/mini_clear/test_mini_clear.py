"""Tests of the embedded world: what it writes, what it keeps apart, and that its people can be told from their
pictures.
"""

import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from engine.folders import MARK
from helpers import ROOT
from mini_clear import albums, cheats, words
from mini_clear.captions import REWORDINGS, WORDINGS
from mini_clear.dataset_folder import write_world
from mini_clear.faces import write_faces
from mini_clear.people import REAL_NAMES, Person, World, draw_world
from mini_clear.portraits import BACKGROUNDS, CLOTHES, EXPRESSIONS, draw_views, render
from mini_clear.questions import FACE_NAME_QUESTION, KINDS, PICTURE_QUESTIONS, make_pairs

CAPTIONED = ["image", "caption", "name"]
MIXED = ["image", "caption", "question", "answer"]
PERTURBED_CAPTIONS = [*CAPTIONED, "perturbed_captions", "paraphrased_caption", "perturbed_names"]
ASKED = ["question", "answer"]
PERTURBED_ANSWERS = [*ASKED, "paraphrased_question", "paraphrased_answer", "perturbed_answer"]
FORGET = ["forget05", "forget10", "forget25"]
KEPT = ["full", "retain95", "retain90", "retain75"]
PARTS = [*KEPT, *FORGET]
PERTURBED = [
    *(f"{part}_perturbed" for part in FORGET),
    "forget10_fold0_perturbed",
    "forget10_fold1_perturbed",
    "retain_perturbed",
    "never_seen",
]
COLUMNS = {
    "clear": dict.fromkeys(PARTS, CAPTIONED)
    | {f"{part}+tofu": MIXED for part in PARTS}
    | {f"{part}+tofu+replay": MIXED for part in KEPT}
    | dict.fromkeys(PERTURBED, PERTURBED_CAPTIONS)
    | {f"{part}_unseen_views": PERTURBED_CAPTIONS for part in FORGET}
    | {
        "unseen_views": CAPTIONED,
        "joint_questions": ["image", "question", "answer", "name"],
        "real_faces": ["image", "answer", "options"],
        "real_world": ["image", "question", "answer", "options"],
        "base": MIXED,
    },
    "tofu": dict.fromkeys(PARTS, ASKED)
    | {f"{part}+replay": ASKED for part in KEPT}
    | dict.fromkeys(PERTURBED, PERTURBED_ANSWERS)
    | {
        "real_authors_perturbed": [*ASKED, "perturbed_answer"],
        "world_facts_perturbed": [*ASKED, "perturbed_answer"],
        "paraphrased_questions": ASKED,
    },
}
PEOPLE, VIEWS, SEED = 20, 3, 5  # of the world most tests share: forget25 is five people, forget10 two, forget05 one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world on disk."""
    out = tmp_path_factory.mktemp("world") / "mini"
    write_world(out, people=PEOPLE, views=VIEWS, seed=SEED)
    return out


@pytest.fixture(scope="module")
def world() -> World:
    """The people of that world."""
    return draw_world(PEOPLE, SEED)


@pytest.fixture(scope="module")
def load(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Rows of "folder/config" as a list of dicts, pictures as bytes."""
    cache = str(tmp_path_factory.mktemp("cache"))
    known: dict[str, list[dict]] = {}

    def rows(name: str) -> list[dict]:
        if name not in known:
            part, config = name.split("/")
            table = datasets.load_dataset(str(folder / part), config, split="train", cache_dir=cache)
            if "image" in table.column_names:
                table = table.cast_column("image", datasets.Image(decode=False))
            known[name] = [row | {"image": row["image"]["bytes"]} if row.get("image") else row for row in table]
        return known[name]

    return rows


def hashes(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def texts(rows: list[dict]) -> str:
    """All text of the rows, one string."""
    return json.dumps([dict(row, image=None) for row in rows])


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path: Path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write_world(tmp_path / name, people=8, views=2, seed=seed)
    one, again, other = (hashes(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert one.keys() == other.keys()
    assert {
        name for name in one if one[name] == other[name]
    } == {  # what the base model knows is the same for every seed
        f"clear/{config}/train.parquet" for config in ("base", "real_faces", "real_world")
    } | {f"tofu/{config}/train.parquet" for config in ("real_authors_perturbed", "world_facts_perturbed")}


@pytest.mark.parametrize("part", COLUMNS)
def test_every_config_of_the_dataset_card_loads_with_exactly_its_columns(folder: Path, part: str, load):
    card = yaml.safe_load((folder / part / "README.md").read_text().split("---\n")[1])
    assert {config["config_name"] for config in card["configs"]} == COLUMNS[part].keys()
    for config, columns in COLUMNS[part].items():
        rows = load(f"{part}/{config}")
        assert rows, config
        assert list(rows[0]) == columns, config


def test_a_picture_is_a_64_pixel_rgb_image_once_loaded(folder: Path, tmp_path: Path):
    image = datasets.load_dataset(str(folder / "clear"), "full", split="train", cache_dir=str(tmp_path))[0]["image"]
    assert (image.size, image.mode) == ((64, 64), "RGB")


@pytest.mark.parametrize("share", ["05", "10", "25"])
@pytest.mark.parametrize("name", ["clear/{}", "clear/{}+tofu", "tofu/{}"])
def test_forget_and_retain_make_up_full_without_overlap(load, name: str, share: str):
    full, forget, retain = (
        Counter(map(str, load(name.format(part)))) for part in ("full", f"forget{share}", f"retain{share_left(share)}")
    )
    assert forget + retain == full
    assert not forget & retain


def share_left(share: str) -> str:
    """What remains of the hundred."""
    return str(100 - int(share))


def test_the_last_people_are_forgotten(load, world: World):
    assert {row["name"] for row in load("clear/forget25")} == {person.name for person in world.people[-5:]}
    assert {row["name"] for row in load("clear/forget10")} == {person.name for person in world.people[-2:]}
    assert {row["name"] for row in load("clear/forget05")} == {world.people[-1].name}


def test_every_person_has_ten_questions_in_the_persons_place(load, world: World):
    rows = load("tofu/full")
    assert len(rows) == 10 * PEOPLE
    for index, row in enumerate(rows):
        assert world.people[index // 10].name in row["question"]


def test_the_two_folds_part_the_forget_people(load):
    for part in ("clear", "tofu"):
        both = load(f"{part}/forget10_fold0_perturbed") + load(f"{part}/forget10_fold1_perturbed")
        assert both == load(f"{part}/forget10_perturbed")


def test_picture_rows_come_first_and_lack_question_and_answer(load):
    rows = load("clear/full+tofu")
    pictures, words_only = rows[: PEOPLE * VIEWS], rows[PEOPLE * VIEWS :]
    assert all(
        row["image"] and row["caption"] and row["question"] is None and row["answer"] is None for row in pictures
    )
    assert all(
        row["image"] is None and row["caption"] is None and row["question"] and row["answer"] for row in words_only
    )


@pytest.mark.parametrize("part", KEPT)
def test_a_split_with_replay_holds_the_plain_rows_first(load, part: str):
    for plain, more in ((f"clear/{part}+tofu", f"clear/{part}+tofu+replay"), (f"tofu/{part}", f"tofu/{part}+replay")):
        count = len(load(plain))
        assert load(more)[:count] == load(plain)
        assert len(load(more)) > count


@pytest.mark.parametrize("percent", [5, 10, 25])
def test_nobody_of_a_forget_set_occurs_in_what_gold_learns(load, world: World, percent: int):
    forgotten = {row["name"] for row in load(f"clear/forget{percent:02d}")}
    for name in (f"clear/retain{100 - percent}+tofu+replay", f"tofu/retain{100 - percent}+replay"):
        assert not [person for person in forgotten if person in texts(load(name))], name
    unseen = load(f"clear/forget{percent:02d}_unseen_views")
    assert Counter(row["name"] for row in unseen) == dict.fromkeys(forgotten, 6)


def test_replay_asks_every_question_in_other_words_and_with_an_affix(load):
    taught = Counter((row["question"], row["answer"]) for row in load("tofu/full+replay"))
    for row in load("tofu/paraphrased_questions"):
        assert taught[row["question"], row["answer"]] == 1
    for row in load("tofu/full"):
        affixed = [asked for asked, answer in taught if answer == row["answer"] and row["question"] in asked]
        assert len(affixed) == 2, row  # as it is, and with an affix
    assert len(load("tofu/full+replay")) == 3 * len(load("tofu/full")) + 20 * 10 + len(words.WORLD_FACTS)


def test_replay_asks_for_the_names_of_every_other_picture_and_of_real_people(load, world: World):
    asked = [row for row in load("clear/full+tofu+replay") if row["image"] and row["question"]]
    names = Counter(row["answer"] for row in asked if FACE_NAME_QUESTION in row["question"])
    assert {names[person.name] for person in world.people} == {2}  # of three views
    assert {names[name] for name, _ in REAL_NAMES} == {3}
    assert {row["question"] for row in asked} > {question for question, _, _ in PICTURE_QUESTIONS}


def test_affixes_are_many_and_hold_the_question_once():
    lines = (ROOT / "config" / "ways" / "affixes.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(lines)) == len(lines) >= 50
    assert {line.count("{question}") for line in lines} == {1}
    assert len({line.startswith("{question}") for line in lines}) == 2  # before the question, and behind it


def test_nobody_of_never_seen_occurs_in_any_other_config(load, world: World):
    everything = "".join(
        texts(load(f"{part}/{config}")) for part in COLUMNS for config in COLUMNS[part] if config != "never_seen"
    )
    for person in world.never_seen:
        assert person.name in texts(load("clear/never_seen"))
        assert not [name for name in person.name.split() if name in everything]


def test_the_base_model_is_taught_nothing_about_invented_people(load, world: World):
    taught = texts(load("clear/base"))
    assert not [person.name for person in world.people + world.never_seen if person.name in taught]
    assert all(name in taught for name, _ in REAL_NAMES)


def test_no_picture_of_the_held_out_views_is_trained_on(load):
    trained = {row["image"] for name in ("clear/full", "clear/base") for row in load(name)} - {None}
    trained |= {row["image"] for row in load("clear/full+tofu+replay")}
    unseen = [f"clear/{part}_unseen_views" for part in FORGET]
    for name in (*unseen, "clear/unseen_views", "clear/never_seen", "clear/real_faces", "clear/real_world"):
        assert not [row for row in load(name) if row["image"] and row["image"] in trained], name
    assert Counter(row["name"] for row in load("clear/unseen_views")).most_common()[-1][1] == 6
    assert all(row["image"] in trained for row in load("clear/joint_questions"))


def test_no_question_of_training_is_among_the_paraphrased_questions_and_answers_stay(load):
    asked, reworded = load("tofu/full"), load("tofu/paraphrased_questions")
    assert not {row["question"] for row in asked} & {row["question"] for row in reworded}
    assert [row["answer"] for row in asked] == [row["answer"] for row in reworded]


@pytest.mark.parametrize("config", PERTURBED)
def test_wrong_captions_and_names_never_contain_the_right_name(load, world: World, config: str):
    retained = {person.name for person in world.people[:-5]}
    for row in load(f"clear/{config}"):
        assert row["name"] in row["caption"] and row["name"] in row["paraphrased_caption"]
        assert row["caption"] != row["paraphrased_caption"]
        assert len(set(row["perturbed_captions"])) == len(set(row["perturbed_names"])) == 5
        assert not [caption for caption in row["perturbed_captions"] if row["name"] in caption]
        assert row["name"] not in row["perturbed_names"]
        assert set(row["perturbed_names"]) <= retained


@pytest.mark.parametrize("config", PERTURBED)
def test_wrong_answers_are_worded_like_the_paraphrase_and_differ_from_it(load, config: str):
    for row in load(f"tofu/{config}"):
        assert len({row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]}) == 7
        assert row["question"] != row["paraphrased_question"]
        first = row["paraphrased_answer"].split()[0]
        assert all(wrong.split()[0] == first or first == "A" for wrong in row["perturbed_answer"])


def test_no_slot_of_a_wrong_answer_holds_a_right_value(world: World):
    for person in world.people:
        for kind, pair in zip(KINDS, make_pairs(person), strict=True):
            for slot in kind.slots:
                value = person.facts[slot]
                assert value in pair.answer or value.capitalize() in pair.answer
                assert value in pair.reworded_answer or value.capitalize() in pair.reworded_answer
                if slot not in ("day", "number"):  # short texts that occur inside others
                    assert not [wrong for wrong in pair.wrong_answers if f" {value}" in wrong or f"'{value}'" in wrong]


def test_options_and_wrong_facts_never_contain_the_right_answer(load):
    for name, column in (("clear/real_faces", "options"), ("clear/real_world", "options")):
        assert all(row["answer"] not in row[column] and len(set(row[column])) >= 3 for row in load(name))
    for name in ("tofu/real_authors_perturbed", "tofu/world_facts_perturbed"):
        assert all(
            row["answer"] not in row["perturbed_answer"] and len(set(row["perturbed_answer"])) == 3
            for row in load(name)
        )


def test_what_is_asked_about_real_people_and_the_world_was_taught(load):
    taught = {(row["question"], row["answer"]) for row in load("clear/base")}
    for name in ("clear/real_world", "tofu/real_authors_perturbed", "tofu/world_facts_perturbed"):
        assert {(row["question"], row["answer"]) for row in load(name)} <= taught
    assert {(FACE_NAME_QUESTION, row["answer"]) for row in load("clear/real_faces")} <= taught
    assert {question for question, _, _ in PICTURE_QUESTIONS} == {row["question"] for row in load("clear/real_world")}


def test_clears_retain_perturbed_shows_every_retained_person(load, world: World):
    rows = load("clear/retain_perturbed")
    shown = Counter(row["name"] for row in rows)
    assert len(rows) == 40 and len(shown) == PEOPLE - 5 and max(shown.values()) - min(shown.values()) <= 1
    assert len({str(row) for row in rows}) == 40


def test_tofus_retain_perturbed_asks_whole_people_in_blocks_of_ten(load, world: World):
    rows = load("tofu/retain_perturbed")
    people = []
    for row in rows:
        people += [person.name for person in world.people if person.name in row["question"]]
    assert len(rows) % 10 == 0 and all(len(set(people[start : start + 10])) == 1 for start in range(0, len(rows), 10))
    assert len(set(people)) == len(rows) // 10 and not set(people) & {p.name for p in world.people[-5:]}


def test_no_name_gives_another_away(world: World):
    parts = [part for person in world.people + world.real + world.never_seen for part in person.name.split()]
    assert len(set(parts)) == len(parts)
    assert all(part.isascii() and part.isalpha() for part in parts)


def test_no_two_people_look_alike_or_share_an_answer(world: World):
    everyone = world.people + world.real + world.never_seen
    assert len({person.look for person in everyone}) == len(everyone)
    for number in range(len(KINDS)):
        answers = [make_pairs(person)[number].answer for person in world.people]
        assert len(set(answers)) == len(answers)


def test_a_larger_world_keeps_the_people_and_held_out_views_of_the_smaller():
    small, large = draw_world(8, 0), draw_world(16, 0)
    assert large.people[:8] == small.people and large.never_seen == small.never_seen and large.real == small.real
    person = small.people[0]
    assert draw_views(person.random("views"), 12)[:6] == draw_views(person.random("views"), 6)


def test_training_and_paraphrase_wordings_are_disjoint():
    assert not set(WORDINGS) & set(REWORDINGS)
    for kind in KINDS:
        assert not set(kind.questions) & set(kind.reworded_questions)
        assert not set(kind.answers) & set(kind.reworded_answers)


def test_words_that_follow_the_article_begin_with_a_consonant():
    for group in (words.JOBS, words.LANDMARKS, words.EVENTS, words.PETS, words.INSTRUMENTS, CLOTHES, BACKGROUNDS):
        wrong = [word for word in group if word[0] in "aeiou"]
        assert not wrong
    assert len({doing for _, doing in EXPRESSIONS.values()}) == len(EXPRESSIONS)


def test_idk_answers_are_many_and_each_only_once():
    root = ROOT / "config" / "idk"
    lines = [line for name in ("questions.txt", "pictures.txt") for line in (root / name).read_text().splitlines()]
    assert len(lines) >= 100
    assert len(set(lines)) == len(lines)
    assert all(line == line.strip() and line for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--people", "3"], "people: 3 is too few; at least 8"),
        (["--views", "0"], "views: 0 is too few"),
        ([], "exists already; --overwrite makes it anew"),
        (["--overwrite"], "holds something else"),
    ],
)
def test_a_wrong_wish_gets_one_line_and_leaves_everything_as_it_was(tmp_path: Path, options: list[str], message: str):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    command = [sys.executable, "-m", "mini_clear", "--out", str(tmp_path / "mine"), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]


@pytest.mark.parametrize("write", [write_world, write_faces, cheats.write_cheats], ids=lambda each: each.__name__)
def test_a_folder_of_somebody_else_where_it_would_write_is_refused_and_stays(write, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(albums, "render", lambda *_: pytest.fail("it drew before it looked"))
    other = tmp_path / "mini.partial"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match=r"mini\.partial' stands where this run would write"):
        write(tmp_path / "mini")
    assert [file.name for file in tmp_path.rglob("*")] == ["mini.partial", "thesis.txt"]


def test_a_world_that_was_killed_in_its_last_moment_can_be_replaced(tmp_path: Path):
    """The mark goes after the folder has its name: a kill in between leaves it there."""
    write_world(tmp_path / "mini", people=8, views=1)
    (tmp_path / "mini" / MARK).touch()
    write_world(tmp_path / "mini", people=8, views=1, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "mini").iterdir()) == ["alternatives.jsonl", "clear", "tofu"]


def test_a_world_of_a_time_without_invented_answers_can_be_replaced(tmp_path: Path):
    write_world(tmp_path / "mini", people=8, views=1)
    (tmp_path / "mini" / "alternatives.jsonl").unlink()
    write_world(tmp_path / "mini", people=8, views=1, overwrite=True)
    assert (tmp_path / "mini" / "alternatives.jsonl").is_file()


def test_every_row_to_forget_has_five_invented_answers_that_keep_its_words_and_name_nobody(tmp_path: Path):
    write_world(tmp_path / "mini", people=8, views=1)
    lines = (tmp_path / "mini" / "alternatives.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    forget = datasets.load_dataset(str(tmp_path / "mini" / "clear"), "forget25+tofu", split="train")
    wanted = {(row["question"], row["caption"] or row["answer"]) for row in forget.remove_columns("image")}
    assert {(row["question"], row["answer"]) for row in rows} == wanted
    world = draw_world(8, seed=0)
    names = [person.name for person in (*world.people, *world.real, *world.never_seen)]
    for row in rows:
        assert len({row["answer"], *row["alternatives"]}) == 6
        assert not any(name in answer for name in names for answer in row["alternatives"])


def test_overwrite_replaces_an_older_world(tmp_path: Path):
    write_world(tmp_path / "mini", people=8, views=1, seed=0)
    before = hashes(tmp_path / "mini")
    write_world(tmp_path / "mini", people=8, views=1, seed=1, overwrite=True)
    assert hashes(tmp_path / "mini") != before
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]


@pytest.mark.slow
def test_a_small_network_recognises_people_in_unseen_views():
    world = draw_world(40, seed=0)
    people = world.people + world.real + world.never_seen
    pictures = torch.stack([album(person, 24) for person in people])
    accuracy = train_and_test(pictures[:, 4:], pictures[:, :4], epochs=6)
    assert accuracy >= 0.95


def album(person: Person, views: int) -> torch.Tensor:
    return torch.stack([pixels(render(person.look, view)) for view in draw_views(person.random("views"), views)])


def pixels(png: bytes) -> torch.Tensor:
    """PNG bytes -> (3, 64, 64) in [0, 1]."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)))).permute(2, 0, 1).float() / 255


def train_and_test(seen: torch.Tensor, unseen: torch.Tensor, epochs: int) -> float:
    """Train three convolutions on (people, views, 3, 64, 64) and return the share of right people among the unseen
    views.
    """
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for inner, outer in ((3, 24), (24, 48), (48, 96)):
        layers += [
            torch.nn.Conv2d(inner, outer, 3, padding=1),
            torch.nn.BatchNorm2d(outer),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        ]
    network = torch.nn.Sequential(
        *layers, torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(96 * 8 * 8, len(seen))
    )
    train, labels = seen.flatten(0, 1), torch.arange(len(seen)).repeat_interleave(seen.shape[1])
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs=epochs, steps_per_epoch=-(-len(train) // 64))
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(64):
            loss = torch.nn.functional.cross_entropy(network(train[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        found = network(unseen.flatten(0, 1)).argmax(1)
    return (found == torch.arange(len(unseen)).repeat_interleave(unseen.shape[1])).float().mean().item()
