"""Attacks by changed, patterned and typed pictures, and by other wordings: what each shows, and whom it catches."""

import random
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from data_module import CAPTION_QUESTIONS, NAME_QUESTION, open_image, task_rows
from engine.attack_target import NotApplicable, person_of
from engine.attacks import check_attacks
from engine.attacks_in_pixels import PIXELS, pictured, pixels_of
from engine.attacks_in_words import wordings_of
from engine.picture_changes import CHANGES, change_of
from engine.typed_pictures import SIZE, typed, typed_beside
from helpers import attack_of, share_said, told_by, world_target
from settings.attacks import Attack
from settings.script import SettingsError

STRENGTHS = {"jpeg": " 30", "flip": "", "grey": ""}


@pytest.fixture
def target(world, model, encoder):
    return world_target(world, model, encoder)


def shown(rows):
    return [bytes(row.example.image["bytes"]) for row in rows]


def ramp(width=8, height=4):
    """Grey that grows from pixel to pixel, row after row, from 0 to 250."""
    values = np.linspace(0, 250, width * height).astype(np.uint8).reshape(height, width)
    return Image.fromarray(np.repeat(values[..., None], 3, axis=2))


def changed(text, picture, seed=0):
    return np.asarray(change_of("changes", text)(picture, random.Random(seed))).astype(int)


# ---- changes of pictures


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_keeps_the_size_and_depends_on_its_draw_alone(name):
    text, picture = f"{name}{STRENGTHS.get(name, ' 0.5')}", ramp(32, 24)
    once, again = changed(text, picture), changed(text, picture)
    assert once.shape == (24, 32, 3)
    assert (once == again).all()
    assert (once != np.asarray(picture)).any() or name == "grey"  # the ramp has no colour
    if name in ("noise", "crop", "occlusion"):
        assert (once != changed(text, picture, seed=1)).any()


def test_changes_by_hand():
    picture = ramp()
    values = np.asarray(picture).astype(int)
    assert (changed("flip", picture) == values[:, ::-1]).all()
    assert np.abs(changed("brightness 0.5", picture) - values / 2).max() <= 1
    mean = values.mean()
    assert np.abs(changed("contrast 0.5", picture) - (mean + (values - mean) / 2)).max() <= 1.5
    covered = changed("occlusion 0.5", picture)[..., 0] == round(mean)
    assert 16 <= covered.sum() <= 24  # 3 of 4 rows and 6 of 8 columns: as near as whole pixels come to a half
    flat = Image.new("RGB", (64, 64), (100, 100, 100))
    assert (changed("noise 0.1", flat) - 100).std() == pytest.approx(25.5, rel=0.05)
    assert (changed("grey", Image.new("RGB", (2, 2), (255, 0, 0))) == 76).all()  # .299 of red


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nois 0.1", "'nois' is not known (did you mean 'noise'?)"),
        ("noise", "must be 'noise' and a number above 0 to 1"),
        ("noise much", "must be 'noise' and a number above 0 to 1"),
        ("noise nan", "must be 'noise' and a number above 0 to 1"),
        ("crop 1.5", "must be 'crop' and a number above 0 to 1"),
        ("jpeg 0", "must be 'jpeg' and a number from 1 to 95"),
        ("flip 1", "flip has no strength"),
        ("", "'' is not known"),
    ],
)
def test_a_change_that_there_is_not_is_refused_before_a_model_is_loaded(text, line):
    chosen = Attack(name="a", kind="input", attack="picture_changes", args={"changes": ["flip", text]})
    with pytest.raises(SettingsError, match=r"attacks\.a\.args\.changes=") as error:
        check_attacks([chosen], "float32")
    assert line in str(error.value)


def test_every_question_about_a_picture_gets_it_changed_alike_and_the_seed_decides(target):
    captions = replace(target.tasks["forget_names"], ask="caption", answer="caption")
    target = replace(target, tasks={**target.tasks, "captions": captions},
                     rows={**target.rows, "captions": target.rows["forget_names"]})  # fmt: skip
    (once,) = attack_of("picture_changes", changes=["noise 0.1"])(target)
    (other,) = attack_of("picture_changes", changes=["noise 0.1"])(replace(target, seed=1))
    names = once.rows["forget_names"]
    assert once.name == "noise_0.1"
    assert shown(names) == shown(once.rows["captions"])
    assert set(shown(names)).isdisjoint(shown(target.rows["forget_names"]))
    assert set(shown(names)).isdisjoint(shown(other.rows["forget_names"]))
    assert "forget_words" not in once.rows
    kept = [replace(row.example, image=None) for row in names]
    assert kept == [replace(row.example, image=None) for row in target.rows["forget_names"]]
    with pytest.raises(NotApplicable, match="no row shows a picture"):
        next(attack_of("picture_changes", changes=["flip"])(words_alone(target)))


def words_alone(target):
    return replace(target, rows={name: own for name, own in target.rows.items() if name.endswith("words")},
                   controls={"forget_words": "retain_words"})  # fmt: skip


def captions_of_everybody(target):
    """All ten people as those to forget, asked for captions, of which the model knows all."""
    split = replace(target.tasks["forget_names"], split="full", perturbed="")
    rows = []
    for row in task_rows(split, 0, 0):
        rows.append(replace(row, example=replace(row.example, question=CAPTION_QUESTIONS[0])))
    told = {"forget": told_by(target.model, target.encoder, rows)}
    return replace(target, rows=told, tasks={"forget": split}, controls={"forget": "forget"})


def spoil_pictures(model, encoder, rows, *, every=False):
    """Make a model see nothing in the pictures of some rows, pixel by pixel as they are, or in `every` one."""
    known = [encoder.encode(row.example).prompt[PIXELS][0] for row in rows]

    def spoil(module, args, named):
        pictures = (named.get(PIXELS) if PIXELS in named else args[0]).clone()
        for place, picture in enumerate(pictures):
            if every or any(torch.equal(picture, own) for own in known):
                pictures[place] = 0
        return (pictures,), {name: value for name, value in named.items() if name != PIXELS}

    return model.model.vision_tower.register_forward_pre_hook(spoil, with_kwargs=True)


def test_changes_bring_back_what_hides_behind_exact_files_and_nothing_of_who_never_saw_them(target):
    alone = captions_of_everybody(target)
    rows = alone.rows["forget"]
    (variant,) = attack_of("picture_changes", changes=["flip"])(alone)
    asked = variant.rows["forget"]
    assert share_said(target.model, target.encoder, rows) > 0.95
    of_base = share_said(target.model, target.encoder, asked)
    hides = spoil_pictures(target.model, target.encoder, rows)
    hidden = share_said(target.model, target.encoder, rows)
    assert share_said(target.model, target.encoder, asked) == of_base > hidden + 0.1
    hides.remove()
    spoil_pictures(target.model, target.encoder, rows, every=True)  # gold: pictures tell it nothing
    assert share_said(target.model, target.encoder, asked) == hidden


# ---- patterns


def test_a_pattern_stays_within_its_size_and_pictures_between_black_and_white(target):
    rows = pictured(target.rows)
    pixels = pixels_of(target.encoder, rows)
    plain = target.encoder.encode(rows["forget_names"][0].example).prompt[PIXELS]
    low, high = (
        pixels.shifted(plain, -2 * torch.ones(pixels.shape)),
        pixels.shifted(plain, 2 * torch.ones(pixels.shape)),
    )
    torch.testing.assert_close(low[0, :, 0, 0], pixels.black[:, 0, 0])
    torch.testing.assert_close(high[0, :, 0, 0], pixels.white[:, 0, 0])
    # CLIP's means and deviations: red from (0 - .4815) / .2686 to (1 - .4815) / .2686
    assert [pixels.black[0].item(), pixels.white[0].item()] == pytest.approx([-1.792, 1.930], abs=1e-3)
    (variant,) = attack_of("sign_noise", size=12)(target)
    pattern = variant.encoder.pattern
    assert pattern.abs().unique().tolist() == pytest.approx([12 / 255])
    assert abs(pattern.mean().item()) < 0.1 * 12 / 255
    assert set(variant.rows) == set(rows)
    moved = variant.encoder.encode(rows["forget_names"][0].example).prompt[PIXELS] - plain
    assert (moved.abs() <= pixels.range * 12 / 255 + 1e-5).all()


def test_a_pattern_is_learned_by_people_who_are_not_judged_by_it(target, monkeypatch):
    learned = []

    def pattern_of(of, rows, pixels, **limits):
        learned.append({person_of(row) for row in rows})
        assert limits == {"size": 12 / 255, "step": 1 / 255, "steps": 3, "batch_size": 4}
        return torch.zeros(pixels.shape)

    monkeypatch.setattr("engine.attacks_in_pixels.learned_pattern", pattern_of)
    judged = []
    for variant in attack_of("adversarial_noise", size=12, step=1, steps=3, batch_size=4)(target):
        rows = variant.rows["forget_names"]
        assert {person_of(row) for row in rows}.isdisjoint(learned[-1])
        judged += [row.example.index for row in rows]
    assert sorted(judged) == [row.example.index for row in target.rows["forget_names"]]


def losses(target, encoder, rows):
    from engine.language_model import forward
    from unlearn_losses import nll

    batch = target.encoder.collate([encoder.encode(row.example) for row in rows])
    with torch.no_grad():
        return nll(forward(target.model, batch)).item()


def test_a_learned_pattern_opens_a_gate_that_hides_pictures_and_a_drawn_one_does_not(target):
    target = captions_of_everybody(target)
    pixels = pixels_of(target.encoder, target.rows)
    signs = 2.0 * torch.randint(2, tuple(pixels.shape), generator=torch.Generator().manual_seed(5)) - 1
    whole = (16 / 255 * pixels.range.expand(pixels.shape)).sum()  # what a pattern of just these signs adds up to

    def hide(module, args, named):
        pictures = named.get(PIXELS) if PIXELS in named else args[0]
        gate = torch.sigmoid(8 * ((pictures * signs).sum((1, 2, 3)) / whole - 0.5))  # .02 at 0, .98 at 1
        return (pictures * gate[:, None, None, None],), {name: each for name, each in named.items() if name != PIXELS}

    handle = target.model.model.vision_tower.register_forward_pre_hook(hide, with_kwargs=True)
    learned = {"size": 16, "step": 2, "steps": 12, "batch_size": 4}
    first = next(attack_of("adversarial_noise", **learned)(target))
    drawn = next(attack_of("sign_noise", size=16)(target)).encoder
    judged = first.rows["forget"]
    assert first.encoder.pattern.abs().max().item() <= 16 / 255 + 1e-6
    clean = losses(target, target.encoder, judged)
    assert losses(target, first.encoder, judged) < 0.6 * clean
    assert losses(target, drawn, judged) > 0.9 * clean
    handle.remove()
    # gold: pictures tell it nothing, and a pattern cannot either
    target.model.model.multi_modal_projector.register_forward_hook(lambda module, args, given: 0 * given)
    clean = losses(target, target.encoder, judged)
    first = next(attack_of("adversarial_noise", **{**learned, "steps": 2})(target))
    assert losses(target, first.encoder, judged) == pytest.approx(clean, abs=1e-6)


def test_patches_of_several_sizes_have_no_one_pattern(target, qwen_encoder):
    with pytest.raises(NotApplicable, match="one pattern fits none"):
        pixels_of(qwen_encoder, pictured(target.rows))
    with pytest.raises(NotApplicable, match="no row shows a picture"):
        next(attack_of("sign_noise", size=12)(words_alone(target)))


# ---- wordings


@pytest.mark.parametrize("file", ["config/ways/paraphrases.txt", "config/ways/translations.txt"])
def test_other_wordings_are_none_that_was_trained(file):
    wordings = wordings_of(file)
    assert set(wordings["caption"]).isdisjoint(CAPTION_QUESTIONS)
    assert NAME_QUESTION not in wordings["name"]
    for questions in wordings.values():
        assert len(set(questions)) == len(questions) >= 6


def test_names_and_captions_are_asked_for_in_each_wording_and_questions_of_the_data_are_not(target, tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("caption: What?\nname: Who is\ncaption: Was?\nname: Wer ist\n")
    captions = replace(target.tasks["forget_names"], ask="caption", answer="caption")
    target = replace(target, tasks={**target.tasks, "captions": captions},
                     rows={**target.rows, "captions": target.rows["forget_names"]})  # fmt: skip
    variants = list(attack_of("closed_questions", file=str(file))(target))
    asked = []
    for each in variants:
        names, pictures = each.rows["forget_names"], each.rows["captions"]
        asked.append([{row.example.question for row in names}, {row.example.question for row in pictures}])
    assert asked == [[{"Who is"}, {"What?"}], [{"Wer ist"}, {"Was?"}]]
    assert "forget_words" not in variants[0].rows
    with pytest.raises(NotApplicable, match="asks for captions or names"):
        next(attack_of("closed_questions", file=str(file))(words_alone(target)))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("caption: What?\n", "as many lines of each kind"),
        ("caption: What?\nname:\n", "must be one of caption, name, :, a question"),
        ("title: What?\n", "must be one of caption, name"),
    ],
)
def test_a_file_of_wordings_that_is_none_is_refused_before_a_model_is_loaded(text, line, tmp_path):
    file = tmp_path / "words.txt"
    file.write_text(text)
    chosen = Attack(name="a", kind="input", attack="closed_questions", args={"file": str(file)})
    with pytest.raises(SettingsError, match=line):
        check_attacks([chosen], "float32")


# ---- typed questions


def test_a_typed_question_stands_right_of_the_picture_and_is_no_longer_asked_in_words(target):
    two = replace(target, rows={name: own[:1] for name, own in target.rows.items()})
    variants = {each.name: each for each in attack_of("figstep", forms=["question", "list"])(two)}
    for name in ("forget_names", "forget_words"):
        for row, clean in zip(variants["question"].rows[name], two.rows[name], strict=True):
            assert clean.example.question not in row.example.question
            assert row.example.answer == clean.example.answer
            assert Image.open(BytesIO(row.example.image["bytes"])).size == (SIZE, SIZE)
    assert shown(variants["question"].rows["forget_words"]) != shown(variants["list"].rows["forget_words"])


def test_a_page_holds_the_picture_on_the_left_and_ink_inside_its_margins_on_the_right():
    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    page = np.asarray(typed_beside(picture, "word " * 60)).astype(int)
    left = round(0.48 * SIZE)
    assert (page[SIZE // 2, :left] == (200, 30, 30)).all()  # 64 x 64 grows to the width of its share
    ink = np.argwhere(page[:, left:].sum(-1) < 300)
    assert len(ink) > 500
    assert ink[:, 1].max() + left < SIZE - 20
    words = np.asarray(typed("word " * 60)).astype(int)
    assert np.argwhere(words.sum(-1) < 300)[:, 1].max() < SIZE - 20


@pytest.mark.parametrize("text", ["word " * 60, "word " * 600, "Donaudampfschifffahrtsgesellschaftskapitaen " * 9])
def test_a_long_question_is_typed_smaller_and_stays_on_its_page(text):
    for page in (typed(text), typed_beside(Image.new("RGB", (64, 64), "white"), text)):
        drawn = np.argwhere(np.asarray(page.convert("L")) < 128)
        assert drawn.max() < SIZE - 20 and drawn.min() > 0
    ink = np.asarray(typed(text).convert("L")) < 128
    assert ink.mean() > (np.asarray(typed("word").convert("L")) < 128).mean()


def test_a_model_without_eyes_gets_no_typed_question(target, text_base):
    from transformers import AutoTokenizer

    from nlp.encoder import TextEncoder

    blind = replace(words_alone(target), encoder=TextEncoder(AutoTokenizer.from_pretrained(text_base)))
    with pytest.raises(NotApplicable, match="takes no pictures"):
        next(attack_of("figstep", forms=["list"])(blind))


def test_a_changed_picture_is_read_as_it_was_stored(target):
    (variant,) = attack_of("picture_changes", changes=["flip"])(target)
    row, clean = variant.rows["forget_names"][0].example, target.rows["forget_names"][0].example
    assert (np.asarray(open_image(row)) == np.asarray(open_image(clean))[:, ::-1]).all()
