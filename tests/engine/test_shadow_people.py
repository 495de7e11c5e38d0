"""Who learns whom: balanced roles, whom a taught row is about, and each shadow model's own rows."""

import itertools
import json

import numpy as np
import pytest

from engine.shadow_people import FORGOTTEN, KEPT, NEVER, own_words, read_people, roles_of, write_rows
from helpers import example
from nlp import membership
from settings.script import SettingsError


def settings_of(world, text_base, *overrides):
    base = [f"data.text_path={world}/tofu", "data.made_by=''", f"model.path={text_base}", "model.made_by=''"]
    return membership.main.compose([*base, "models=12", *overrides])


@pytest.mark.parametrize(("parts", "people"), [(2, 48), (3, 48), (2, 10)])
def test_every_person_has_each_role_in_as_many_models_of_every_block(parts, people):
    roles = roles_of(people, 6 * parts, parts, seed=0)
    for first in range(0, 6 * parts, 2 * parts):
        block = roles[first : first + 2 * parts]
        assert ((block == FORGOTTEN).sum(0) == 1).all()
        assert ((block == KEPT).sum(0) == parts - 1).all()
        assert ((block == NEVER).sum(0) == parts).all()


def test_the_two_models_of_a_pair_learn_opposite_halves_and_as_many_people():
    roles = roles_of(48, 16, 2, seed=0)
    assert ((roles[::2] == NEVER) != (roles[1::2] == NEVER)).all()
    assert ((roles == FORGOTTEN).sum(1) == 12).all() and ((roles == KEPT).sum(1) == 12).all()


def test_more_models_leave_the_first_as_they_were_and_another_seed_does_not():
    assert (roles_of(48, 12, 2, seed=0) == roles_of(48, 16, 2, seed=0)[:12]).all()
    assert (roles_of(48, 12, 2, seed=0) != roles_of(48, 12, 2, seed=1)).any()


def test_too_few_people_are_refused():
    with pytest.raises(SettingsError, match="2 people are too few for parts=2: model 0 has nobody"):
        roles_of(2, 12, 2, seed=0)


def test_a_persons_own_words_stand_in_most_of_their_questions_and_in_nobody_elses():
    ann = [example(f"{what} Ann Lee?") for what in ("Who is", "Where was", "When was")]
    bob = [example("Who is Bob Lee?"), example("Where was Bob Lee?"), example("When did he go?")]
    assert own_words([ann, bob]) == [{"ann"}, {"bob"}]


def test_every_taught_row_has_its_person_and_the_real_people_are_nobodys(world, text_base, capsys):
    people = read_people(settings_of(world, text_base))
    assert "full+replay: 10 people with 30 rows, and 232 rows about none of them" in capsys.readouterr().out
    for row, owner in zip(people.taught, people.owner, strict=True):
        named = [number for number, name in enumerate(people.names) if name in row.question]
        assert named == ([] if owner is None else [owner])


def test_a_models_own_rows_hold_nothing_of_people_whom_it_never_meets(world, text_base, tmp_path):
    settings = settings_of(world, text_base)
    people = read_people(settings)
    roles = np.array([NEVER, KEPT, FORGOTTEN, *[NEVER] * 7])
    write_rows(people, roles, settings, tmp_path)
    rows = {}
    for file in tmp_path.iterdir():
        rows[file.stem] = [json.loads(line) for line in file.read_text().splitlines()]
    assert {split: len(found) for split, found in rows.items()} == {"learned": 292, "forget": 10, "retain": 262}
    never = [name for name, role in zip(people.names, roles, strict=True) if role == NEVER]
    for row, name in itertools.product([row for found in rows.values() for row in found], never):
        assert name not in row["question"]
    assert all(people.names[2] in row["question"] for row in rows["forget"])
    assert not any(people.names[2] in row["question"] for row in rows["retain"])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["models=8"], "models=8 must be at least 12"),
        (["models=14"], r"models=14 must be a multiple of 4 \(2 \* parts\)"),
        (["parts=3"], "models=12 must be at least 18"),
        (["parts=1"], "parts=1 must be at least 2"),
        (["reworded=full"], "reworded='full' is the split of people, too"),
        (["data.people={seed: 0, of: {full: 4}}"], "data.people: the shadow models choose among all people"),
        (["save_dir=a", "shadows_dir=a/b"], "shadows_dir='a/b' stands in save_dir='a', which is replaced whole"),
        (["method.name=gold"], "method.name='gold' is what a model is called that forgot nobody"),
    ],
)
def test_settings_that_cannot_be_are_refused(world, text_base, overrides, line):
    with pytest.raises(SettingsError, match=line):
        settings_of(world, text_base, *overrides)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["people=full+replay"], "are no groups of data.rows_per_person=10|does not have the answers"),
        (["reworded=retain90"], "reworded='retain90' does not have the answers of people='full', row by row"),
        (["split=retain90"], "split=retain90 has no row about"),
        (["reworded=no_split"], r"^reworded='no_split' is not in .*; reworded='' leaves this out$"),
        (["people=no_split"], "^people='no_split' is not in "),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(world, text_base, overrides, line):
    with pytest.raises(SettingsError, match=line):
        read_people(settings_of(world, text_base, *overrides))
