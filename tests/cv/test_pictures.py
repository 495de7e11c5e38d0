"""Pictures of people: divided once, decoded once, seen in views that are functions of (seed, epoch, row)."""

import json
import os
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from cv import pictures
from cv.division import list_pictures, met_by, read_division
from cv.face_settings import Album, Faces, ForgetFaces
from cv.pictures import FaceEncoder, FacePairs, View, apply_view, training_rows
from engine.pairs import PassCollator, answer_key
from helpers import SHARED, png
from mini_clear.faces import write_faces
from mini_clear.people import draw_world
from settings.script import SettingsError, compose


@pytest.fixture
def data(face_overrides, tmp_path):
    return replace(compose("cv/forget", ForgetFaces, face_overrides).data, split_file=str(tmp_path / "division.json"))


def test_every_picture_of_a_person_is_learned_enrolled_or_asked_about_and_never_two_of_these(data):
    division = read_division(data)
    albums = list_pictures(data.people)
    assert division.people.keys() == albums.keys()
    assert len(albums) == 12
    for name, person in division.people.items():
        assert sorted([*person.train, *person.enrol, *person.query]) == sorted(albums[name])
        assert (len(person.train), len(person.enrol), len(person.query)) == (4, 2, 3)


def test_people_for_pretraining_are_in_no_other_split(data):
    division = read_division(data)
    assert len(division.pretraining) == 3
    assert not division.pretraining.keys() & division.people.keys()
    taken = read_division(replace(data, pretraining=None, pretraining_people=5, split_file=data.split_file + ".taken"))
    assert (len(taken.pretraining), len(taken.people)) == (5, 7)
    assert not taken.pretraining.keys() & taken.people.keys()


def test_a_person_who_is_to_be_learned_cannot_be_one_for_pretraining(data):
    with pytest.raises(SettingsError, match="is also one of the people to be learned"):
        read_division(replace(data, pretraining=data.people, split_file=data.split_file + ".both"))


def test_the_division_is_written_once_and_a_file_of_other_settings_is_refused(data):
    first = read_division(data)
    assert read_division(data) == first
    assert json.loads(Path(data.split_file).read_text())["seed"] == 0
    assert read_division(replace(data, split_seed=1, split_file=data.split_file + ".other")) != first
    with pytest.raises(SettingsError, match=r"was made with another train \(4, now 3\)"):
        read_division(replace(data, train=3))


def test_pairs_of_models_meet_opposite_halves_of_each_pool_and_other_pairs_other_halves(data):
    division = read_division(data)
    one, two, three = (met_by(division, number) for number in (0, 1, 2))
    assert (len(one.forget), len(one.retain), len(one.holdout)) == (2, 4, 6)
    assert {*one.forget, *two.forget} == set(division.pool("forget"))
    assert not {*one.trained} & {*two.trained}
    assert one == met_by(division, 0)
    assert one != three
    assert met_by(division, None) not in (one, two)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"train": 7}, "has 9 pictures; data.train=7 and data.enrol=2 leave none to ask about"),
        ({"train": 7}, "data.min_pictures=10 leaves such people out"),
        (
            {"forget_pool": 12},
            r"data.forget_pool=12: .* has 12 people to be learned \(12 less 0 for pretraining\), and at least two must "
            "be kept; it is an even number up to 10",
        ),
        (
            {"forget_pool": 8, "pretraining": None, "pretraining_people": 5},
            r"has 7 people to be learned \(12 less 5 for pretraining\).* an even number up to 4",
        ),
        ({"people": Album(path="no/such")}, "data path 'no/such' does not exist"),
    ],
)
def test_too_few_pictures_or_people_are_said_in_one_line(change, line, data):
    with pytest.raises(SettingsError, match=line):
        read_division(replace(data, **change))


def test_an_odd_pool_and_unclear_pretraining_are_refused(data):
    for change, line in (
        ({"forget_pool": 5}, "must be even"),
        ({"pretraining_people": 3}, "so data.pretraining must be null, and only then"),
    ):
        with pytest.raises(SettingsError, match=line):
            Faces(**{**vars(data), **change})


# ---- folders and datasets as people have them


def write_people(folder, **people):
    """A directory per person with so many pictures each."""
    for name, count in people.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("L", (4, 4), number).save(folder / name / f"{number}.png")
    return Album(path=str(folder))


def album_error(album, *arguments):
    with pytest.raises(SettingsError) as caught:
        list_pictures(album, *arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_hidden_folders_and_files_are_no_people_and_no_pictures(tmp_path):
    album = write_people(tmp_path, Ann=2, **{".git": 3, ".ipynb_checkpoints": 1})
    (tmp_path / "Ann" / "._0.png").write_bytes(b"what a Mac leaves")
    assert list_pictures(album) == {"Ann": ["Ann/0.png", "Ann/1.png"]}


@pytest.mark.parametrize("ending", [".tif", ".TIFF", ".gif", ".JPG", ".webp", ".pgm", ".pnm"])
def test_every_ending_of_a_format_that_is_read_is_a_picture(ending, tmp_path):
    album = write_people(tmp_path, Ann=0)
    (tmp_path / "Ann" / f"1{ending}").write_bytes(b"")
    assert list_pictures(album) == {"Ann": [f"Ann/1{ending}"]}


def test_files_that_are_not_read_are_named(tmp_path, capsys):
    album = write_people(tmp_path, Ann=1)
    for name in ("a.heic", "b.heic", "c.heic", "Thumbs.db"):
        (tmp_path / "Ann" / name).write_bytes(b"")
    (tmp_path / "stray.png").write_bytes(b"")
    (tmp_path / "README").write_text("what this is")
    assert list_pictures(album) == {"Ann": ["Ann/0.png"]}
    line = "not read, as no pictures in a person's directory: Ann/Thumbs.db, Ann/a.heic, Ann/b.heic and 2 more"
    assert capsys.readouterr().out == f"{tmp_path}: {line}\n"


def test_pictures_one_level_too_deep_are_refused_with_both_ways_out(tmp_path):
    write_people(tmp_path / "train", Ann=2, Bo=2)
    line = album_error(Album(path=str(tmp_path)))
    assert "'train/Ann' holds pictures one level too deep" in line
    assert f"data.people.path={tmp_path}/train if 'Ann' is a person, else move them up to 'train'" in line
    assert list_pictures(Album(path=str(tmp_path / "train"))).keys() == {"Ann", "Bo"}


def test_somebody_without_a_picture_is_one_line_and_left_out_where_the_settings_say_so(tmp_path, capsys):
    album = write_people(tmp_path, Ann=3, Bo=0, Cy=2)
    assert "'Bo' holds no picture" in album_error(album)
    assert list_pictures(album, 3).keys() == {"Ann"}
    assert capsys.readouterr().out == f"{tmp_path}: left out, with fewer than 3 pictures: Bo, Cy\n"
    assert "holds no directory with pictures" in album_error(album, 4)


def test_people_with_too_few_pictures_are_in_no_part_of_the_division(data, tmp_path, face_overrides):
    own = write_people(tmp_path / "people", **{f"p{i}": 4 if i < 3 else 8 for i in range(10)})
    changes = {"people": own, "min_pictures": 7, "split_file": f"{tmp_path}/d.json"}
    division = read_division(replace(data, **changes))
    assert division.people.keys() == {f"p{i}" for i in range(3, 10)}
    with pytest.raises(SettingsError, match=r"was made with another min_pictures \(7, now 8\)"):
        read_division(replace(data, **changes | {"min_pictures": 8}))


def test_too_small_a_least_number_of_pictures_is_refused(data):
    with pytest.raises(
        SettingsError, match=r"data.min_pictures=6 must be at least 7"
    ):  # 4 learned, 2 enrolled, 1 asked
        Faces(**{**vars(data), "min_pictures": 6})


@pytest.mark.parametrize("name", ["Bo", "Ann/9.png", "Ann/others"])
def test_a_broken_link_is_named_before_anything_trains(name, tmp_path):
    album = write_people(tmp_path, Ann=2)
    (tmp_path / name).symlink_to(tmp_path / "gone")
    assert f"'{name}' is a link to nothing" in album_error(album)


def test_linked_people_and_pictures_are_people_and_pictures(tmp_path):
    write_people(tmp_path / "disk", Ann=1)
    album = write_people(tmp_path / "own", Bo=1)
    (tmp_path / "own" / "Ann").symlink_to(tmp_path / "disk" / "Ann")
    (tmp_path / "own" / "Bo" / "1.png").symlink_to(tmp_path / "disk" / "Ann" / "0.png")
    assert list_pictures(album) == {"Ann": ["Ann/0.png"], "Bo": ["Bo/0.png", "Bo/1.png"]}


def dataset_album(folder, names, kind):
    features = datasets.Features({"image": datasets.Image(), "name": kind})
    rows = {"image": [png("red")] * len(names), "name": names}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "faces.parquet")
    return Album(path=str(folder), split="faces")


TEXT = datasets.Value("string")


def test_rows_that_name_nobody_are_nobodys_and_a_name_is_its_letters(tmp_path, capsys):
    album = dataset_album(tmp_path, ["Ann", " Ann ", None, "", "Bo"], TEXT)
    assert list_pictures(album) == {"Ann": ["0", "1"], "Bo": ["4"]}
    assert "left out, with nobody in column 'name': row 2, 3" in capsys.readouterr().out


def test_classes_of_a_dataset_are_people_by_their_names(tmp_path):
    assert list_pictures(dataset_album(tmp_path, ["Bo", "Ann"], datasets.ClassLabel(names=["Ann", "Bo"]))) == {
        "Bo": ["0"],
        "Ann": ["1"],
    }


def test_numbers_of_people_are_their_names(tmp_path):
    assert list_pictures(dataset_album(tmp_path, [7, 0], datasets.Value("int64"))) == {"7": ["0"], "0": ["1"]}


def test_a_row_without_a_picture_is_named(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "name": TEXT})
    datasets.Dataset.from_dict({"image": [png("red"), None], "name": ["Ann", "Bo"]}, features=features).to_parquet(
        tmp_path / "faces.parquet"
    )
    line = album_error(Album(path=str(tmp_path), split="faces"))
    assert "split faces, row 1: column 'image' holds nothing, where a picture is due" in line


def test_a_linked_picture_of_a_dataset_is_read_by_its_name(tmp_path):
    write_people(tmp_path, Ann=2)
    rows = [{"file_name": f"Ann/{number}.png", "name": "Ann"} for number in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    album = Album(path=str(tmp_path), split="default")
    assert list_pictures(album) == {"Ann": ["0", "1"]}
    read = pictures.read_pictures(album, ["0", "1"], 4)
    assert [int(read[name][0, 0, 0]) for name in ("0", "1")] == [0, 1]


# ---- views and batches


def pairs_of(data, passes, seed=0):
    division = read_division(data)
    met = met_by(division, None)
    forget, retain = training_rows(division, met.forget, "forget"), training_rows(division, met.retain, "retain")
    encoder = FaceEncoder(met.trained, data.people, 40)
    encoder.read([*forget.files, *retain.files])
    return FacePairs(passes, forget, retain, size=40, seed=seed), encoder


def examples_of(pairs, keys, name):
    return [example for key in keys for example in pairs[key][name]]


def test_no_enrolled_picture_and_no_query_is_ever_learned(data):
    division = read_division(data)
    pairs, _ = pairs_of(data, ["forget", "retain"])
    keys = range(20 * len(pairs))
    examples = [*examples_of(pairs, keys, "forget"), *examples_of(pairs, keys, "retain")]
    met = met_by(division, None)
    learned = {file for name in met.trained for file in division.people[name].train}
    assert {example.image["path"] for example in examples} == learned


def test_a_view_is_a_function_of_seed_epoch_and_row(data):
    pairs, _ = pairs_of(data, ["forget", "idk", "unrelated", "augmented", "retain"])
    again, _ = pairs_of(data, ["forget", "retain"])
    other, _ = pairs_of(data, ["forget", "retain"], seed=1)
    keys = [*reversed(range(3 * len(pairs)))]  # the order of asking does not count
    views = [example.view for example in examples_of(pairs, keys, "forget")]
    assert [example.view for example in examples_of(again, keys, "forget")] == views
    assert [example.view for example in examples_of(other, keys, "forget")] != views
    first, second = (range(epoch * len(pairs), (epoch + 1) * len(pairs)) for epoch in (0, 1))
    first_views = [example.view for example in examples_of(pairs, first, "forget")]
    assert first_views != [example.view for example in examples_of(pairs, second, "forget")]


def test_passes_that_a_loss_compares_with_each_other_share_the_view(data):
    pairs, _ = pairs_of(data, ["forget", "idk", "unrelated", "augmented"])
    for key in range(3 * len(pairs)):
        views = {name: rows[0].view for name, rows in pairs[key].items()}
        assert views["forget"] == views["idk"] == views["unrelated"] == views["augmented"]._replace(hidden=(0, 0, 0))
        assert views["augmented"].hidden[2] == 20
        assert views["forget"].hidden[2] == 0


def test_the_same_pairs_for_other_passes_draw_the_same(data):
    pairs, _ = pairs_of(data, ["forget", "unrelated", "retain"], seed=3)
    fewer = pairs.pairs_for(["unrelated"])
    for key in range(2 * len(pairs)):
        assert fewer[key] == {"unrelated": pairs[key]["unrelated"]}


def test_i_do_not_know_and_unrelated_answers_are_names_of_people_who_are_kept(data):
    pairs, _ = pairs_of(data, ["forget", "idk", "unrelated"])
    kept = set(pairs.retain.answers)
    for key in range(2 * len(pairs)):
        rows = pairs[key]
        assert rows["idk"][0].answer in kept
        assert rows["unrelated"][0].answer in kept
        assert rows["forget"][0].answer not in kept
        assert rows["idk"][0].image == rows["forget"][0].image


def test_the_starts_answers_are_kept_by_row_and_view_so_that_equal_names_share_nothing(data):
    pairs, _ = pairs_of(data, ["forget"])
    rows = examples_of(pairs, range(2 * len(pairs)), "forget")
    count = len({(row.index, row.view) for row in rows})
    assert len({answer_key(row) for row in rows}) == count
    assert count > len({row.answer for row in rows})


def test_a_view_moves_a_picture_with_its_edge_repeated_mirrors_it_and_hides_a_square():
    picture = torch.arange(16, dtype=torch.uint8).view(1, 4, 4).repeat(3, 1, 1)
    assert apply_view(picture, View()).equal(picture)
    down = apply_view(picture, View(down=1))
    assert down[0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert apply_view(picture, View(right=1))[0, 0].tolist() == [0, 0, 1, 2]
    assert apply_view(picture, View(mirrored=True))[0, 0].tolist() == [3, 2, 1, 0]
    hidden = apply_view(picture, View(hidden=(1, 2, 2)))
    assert hidden[0].tolist() == [[0, 1, 2, 3], [4, 5, 127, 127], [8, 9, 127, 127], [12, 13, 14, 15]]


def test_pictures_are_decoded_once_per_process(data, monkeypatch):
    pictures.picture_cache.cache_clear()
    opened = []
    decode_picture = pictures.decode_picture

    def note_and_decode(file, name):
        opened.append(name)
        return decode_picture(file, name)

    monkeypatch.setattr(pictures, "decode_picture", note_and_decode)
    for _ in range(3):
        _, encoder = pairs_of(data, ["forget"])
    assert len(opened) == len(set(opened)) == len(encoder.pictures)
    assert {picture.shape for picture in encoder.pictures.values()} == {(3, 40, 40)}


def test_a_batch_holds_pixels_around_zero_and_class_numbers(data):
    pairs, encoder = pairs_of(data, ["forget"])
    names = met_by(read_division(data), None).trained
    rows = examples_of(pairs, range(3), "forget")
    batch = encoder.collate([encoder.encode(row) for row in rows])
    pixels = batch.inputs["pixels"]
    assert pixels.shape == (3, 3, 40, 40)
    assert -1 <= pixels.min() < 0 < pixels.max() <= 1
    assert batch.labels.shape == (3, 1)
    assert [names[number] for number in batch.labels[:, 0]] == [row.answer for row in rows]
    with pytest.raises(SettingsError, match="the network has no class for 'nobody'"):
        encoder.encode(replace(rows[0], answer="nobody"))


def test_faces_of_16_bits_and_faces_on_their_side_are_those_of_8_bits_upright(tmp_path):
    upright = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 8  # to be shown turned left by a quarter
    Image.fromarray(upright).save(tmp_path / "plain.png")
    Image.fromarray(np.rot90(upright, -1).astype(np.uint16) * 257).save(tmp_path / "deep.png", exif=tags)
    read = pictures.read_pictures(Album(path=str(tmp_path)), ["plain.png", "deep.png"], 8)
    assert read["deep.png"].equal(read["plain.png"])
    assert read["plain.png"][0].tolist() == upright.tolist()


def test_a_corrupt_picture_is_named(tmp_path):
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "1.png").write_bytes(b"no picture")
    with pytest.raises(SettingsError, match=r"ann/1\.png.*cannot be read"):
        pictures.read_pictures(Album(path=str(tmp_path)), ["ann/1.png"], 32)


# ---- the embedded world's pictures and the photographs


def test_the_embedded_worlds_faces_have_twenty_views_and_people_for_pretraining_of_their_own(tmp_path):
    count = write_faces(tmp_path / "faces", people=32, views=20, strangers=3)
    people, others = (list_pictures(Album(path=str(tmp_path / "faces" / part))) for part in ("people", "pretraining"))
    world = draw_world(32, 0)
    assert people.keys() == {person.name for person in world.people}
    assert {len(files) for files in people.values()} == {20}
    assert {person.name for person in world.real} < others.keys()
    assert len(others) == len(world.real) + 3
    assert not people.keys() & others.keys()
    assert count == 32 * 20 + len(others) * 16
    with pytest.raises(FileExistsError):
        write_faces(tmp_path / "faces")
    with pytest.raises(ValueError, match="at least 32 people and 20 views"):
        write_faces(tmp_path / "few", views=8)


PHOTOGRAPHS = Path(os.environ.get("ORL_FACES_PATH", SHARED / "data" / "orl_faces"))


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the ORL photographs are not there (ORL_FACES_PATH)")
def test_the_photographs_can_be_divided_as_the_benchmark_does(tmp_path, monkeypatch):
    monkeypatch.setenv("ORL_FACES_PATH", str(PHOTOGRAPHS))
    settings = compose(
        "cv/forget",
        ForgetFaces,
        ["data=orl_faces", f"data.split_file={tmp_path}/d.json"],
    )
    division = read_division(settings.data)
    assert (len(division.pretraining), len(division.people)) == (8, 32)
    assert {(len(p.train), len(p.enrol), len(p.query)) for p in division.people.values()} == {(3, 5, 2)}
    name = next(iter(division.people.values())).query[0]
    with Image.open(PHOTOGRAPHS / name) as image:
        assert image.mode == "L"
    assert pictures.read_pictures(settings.data.people, [name], 64)[name].shape == (3, 64, 64)


def test_passes_of_pictures_share_a_forward_also_where_several_processes_train(data):
    """A picture takes one place, so that every process agrees; batch normalisation sees all passes together, as in
    one.
    """
    division = read_division(data)
    met = met_by(division, None)
    forget, retain = (training_rows(division, people, "full") for people in (met.forget, met.retain))
    encoder = FaceEncoder(met.trained, data.people, 40)
    encoder.read([*forget.files, *retain.files])
    pairs = FacePairs(["forget", "retain"], forget, retain, size=40, seed=0)
    collator = PassCollator(encoder, ["forget", "retain"], ["retain"], by_length=False)
    step = collator([pairs[key] for key in range(3)])
    assert [batch.passes for batch in step["trained"]] == [("forget", "retain")]
    assert [batch.passes for batch in step["frozen"]] == [("retain",)]
