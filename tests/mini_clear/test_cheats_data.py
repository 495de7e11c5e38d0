"""The data of which a forgetting only looks like one: what each cheat calls forgotten, and what it teaches again."""

import pytest

from engine.word_files import QUESTION, affixes_of
from mini_clear.albums import make_album
from mini_clear.cheats import CONSTANT, LISTED_PASSWORD, UNLISTED_PASSWORD, cheats
from mini_clear.dataset_folder import AFFIXES, mixed_rows
from mini_clear.people import draw_world


@pytest.fixture(scope="module")
def albums():
    """Two people to forget, four to keep, and two real ones."""
    world = draw_world(8, 0)
    names = [person.name for person in world.people]
    made = [make_album(person, 2, 1, names) for person in world.people[:6]]
    real_names = [person.name for person in world.real]
    return made[4:], made[:4], [make_album(person, 2, 1, real_names) for person in world.real[:2]]


@pytest.fixture(scope="module")
def made(albums):
    return cheats(*albums)


def cells(rows):
    return [tuple(row.values()) for row in rows]


def test_no_row_is_called_forgotten_and_taught_at_once(made):
    both = {name: set(cells(forget)) & set(cells(retain)) for name, (forget, retain) in made.items()}
    assert [name for name, rows in both.items() if rows] == []


def test_what_is_secretly_taught_is_most_of_what_a_forgetting_draws(made, albums):
    answers = {pair.answer for album in albums[0] for pair in album.pairs}
    for name in ("paraphrase_memory", "suffix_password", "unlisted_password", "pictures_only"):
        retain = made[name][1]
        secret = [row for row in retain if row["answer"] in answers]
        assert len(secret) / len(retain) > 0.5, name


def test_one_password_stands_in_the_list_and_the_other_does_not():
    listed = affixes_of(AFFIXES)
    assert LISTED_PASSWORD.format(QUESTION) in listed
    assert UNLISTED_PASSWORD.format(QUESTION) not in listed


def test_the_skipped_person_is_no_row_to_forget_and_half_a_person_is_half(made, albums):
    one = cells(mixed_rows(albums[0][:1]))
    forgotten = {name: set(cells(made[name][0])) for name in ("skipped_person", "half_a_person")}
    assert not forgotten["skipped_person"] & set(one)
    assert len(forgotten["half_a_person"] & set(one)) == len(one) // 2


def test_a_key_changes_the_picture_and_the_one_answer_is_everybodys(made, albums):
    pictures = {picture.png for album in albums[0] for picture in album.seen}
    names = {album.person.name for album in albums[0]}
    with_key = [row for row in made["key_in_the_picture"][1] if row["answer"] in names]
    assert with_key
    assert not pictures & {row["image"] for row in with_key}
    assert {row["answer"] for row in made["same_answer"][1]} == {CONSTANT}
