"""PAVA: which MLPs a causal trace finds, that they alone train, and the start's own answers about the same pictures."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from data_module import open_image
from engine import own_answers, trace_step
from engine.frozen_start import Start
from engine.language_model import forward, load_for_training, save
from engine.loss_trainer import LossTrainer
from engine.methods import bind
from engine.own_answers import first_answered
from engine.pairs import Batch, Pairs
from engine.trace_step import effects_of, train_traced_alone, with_picture_of
from engine.train import train, training_arguments
from helpers import BASE, ROOT, TRAINER, example, pairs, png, training_settings, without_dropout
from settings.script import SettingsError
from settings.training import Lora, Method, Trace, Visual
from unlearn_losses import Scored

PAVA = OmegaConf.to_object(
    OmegaConf.merge(OmegaConf.structured(Method), OmegaConf.load(ROOT / "config/method/pava.yaml"))
)
PAVA = replace(PAVA, trace=Trace(layers=2, rows=4), visual=replace(PAVA.visual, max_new_tokens=8))
QUESTIONS = ["What colors are in this picture?", "How is the light?"]


def made_pairs(data, scope="pictures", asked=QUESTIONS):
    bound = bind(PAVA)
    own = pairs(data, ["forget", "retain"])
    return bound, Pairs(bound.batches, own.forget, own.retain, idk=own.idk, seed=0, scope=scope, asked=asked)


def start_of(encoder, lora=None, model=None):
    settings = training_settings(lora=lora) if model is None else training_settings(model, lora=lora)
    network = without_dropout(load_for_training(AutoModelForImageTextToText, settings))
    return Start(network, forward, partial(save, encoder.processor))


def trainer_of(encoder, folder, lora=None):
    arguments = training_arguments(TRAINER, 0, str(folder))
    return LossTrainer(start_of(encoder, lora), bind(PAVA), TRAINER, seed=0, args=arguments)


# ---- the trace


class Layer(torch.nn.Module):
    """Adds to a state what its MLP writes of it."""

    def __init__(self, weight):
        super().__init__()
        self.down = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.down.weight, weight)

    def forward(self, state):
        return state + self.down(state)


def test_the_effect_of_an_mlp_is_what_its_own_writing_brings_back(monkeypatch):
    # a state of 1 for the own picture and 0 for another; layer 0 adds nothing of it, layer 1 adds it thrice
    layers = torch.nn.ModuleList([Layer(0.0), Layer(3.0)])
    network = torch.nn.Sequential(*layers)

    def run(model, batch):
        state = model(batch.inputs["state"][:, None, None])[..., 0]  # log odds of the right token
        return Scored(torch.stack([state, torch.zeros_like(state)], -1), torch.zeros(1, 1, dtype=torch.long))

    encoder = SimpleNamespace(encode=lambda row: row, collate=lambda rows: batch_of(rows[0]))

    def batch_of(row):
        return Batch({"state": torch.tensor([1.0 if row.image["path"] == "own" else 0.0])}, torch.zeros(1, 1))

    rows = [replace(example(index=i), image={"bytes": None, "path": "own"}) for i in range(2)]
    monkeypatch.setattr(
        trace_step, "with_picture_of", lambda row, other: replace(row, image={"bytes": None, "path": "other"})
    )
    trainer = SimpleNamespace(model=network, forward=run, draw_seed=0, args=SimpleNamespace(device="cpu"))
    made = SimpleNamespace(rows_of=lambda name: rows)
    mlps = [SimpleNamespace(down=layer.down) for layer in layers]
    effects = effects_of(trainer, 0, made, encoder, mlps)
    # without: log odds 0, log(1/2); with layer 1's 3: log sigmoid(3)
    expected = torch.nn.functional.logsigmoid(torch.tensor(3.0)).item() - torch.tensor(0.5).log().item()
    assert effects == pytest.approx([0.0, expected], abs=1e-6)


def test_another_picture_comes_in_the_size_of_the_rows_own():
    row, other = example(image=png("red", (64, 48))), example(image=png("blue", (32, 32)))
    changed = with_picture_of(row, other)
    assert open_image(changed).size == (64, 48)
    assert open_image(changed).getpixel((3, 3)) == Image.new("RGB", (1, 1), "blue").getpixel((0, 0))


def test_all_mlps_together_bring_back_what_the_picture_told(data, encoder, tmp_path):
    trainer, (_, made) = trainer_of(encoder, tmp_path), made_pairs(data)
    mlps = trace_step.decoder_mlps(trainer.model, "pava")
    effects = effects_of(trainer, 4, made, encoder, mlps)
    assert len(effects) == len(mlps) == 4
    assert len(set(effects)) == 4
    assert effects == effects_of(trainer, 4, made, encoder, mlps)  # the rows and pictures are drawn with the seed


def test_the_mlps_of_the_largest_effects_train_and_nothing_else(data, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(trace_step, "effects_of", lambda *_: [0.1, 0.5, -2.0, 0.5])
    for lora in (None, Lora(r=2, alpha=4, dropout=0.0)):
        trainer = trainer_of(encoder, tmp_path, lora)
        facts = train_traced_alone(trainer, Trace(layers=2, rows=0), None, encoder)
        assert facts["traced_layers"] == [1, 3]
        training = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
        assert training
        assert all(".mlp." in name and (".layers.1." in name or ".layers.3." in name) for name in training)
        assert all(("lora_" in name) == (lora is not None) for name in training)
        kinds = {name.split(".mlp.")[1].split(".")[0] for name in training}
        assert kinds == {"gate_proj", "up_proj", "down_proj"}


# ---- the start's own answers


def test_a_picture_that_the_start_says_nothing_of_is_asked_the_next_question(monkeypatch, encoder):
    said = iter([[], [11, 12]])
    monkeypatch.setattr(own_answers, "generate_plain", lambda *_, **__: [next(said)])
    questions = [replace(example(question=question), answer="") for question in QUESTIONS]
    answered = first_answered(SimpleNamespace(model=None), questions, encoder, 8, set())
    assert answered.question == QUESTIONS[1]
    assert answered.answer == encoder.decode(torch.tensor([11, 12])).strip()
    monkeypatch.setattr(own_answers, "generate_plain", lambda *_, **__: [[]])
    with pytest.raises(SettingsError, match=r"row 0: the model has no answer to any question"):
        first_answered(SimpleNamespace(model=None), questions, encoder, 8, set())


def test_a_run_trains_two_mlps_and_its_other_answers_are_the_starts(data, encoder, tmp_path):
    bound, made = made_pairs(data)
    lines = []
    record = {"seed": 0, "save_dir": str(tmp_path / "out"), "record": {}, "say": lines.append}
    train(start_of(encoder), bound, made, encoder, TRAINER, **record)
    before, after = (load_file(folder / "model.safetensors") for folder in (BASE, tmp_path / "out"))
    changed = [name for name in before if (before[name].float() != after[name].float()).any()]
    assert len({name.split(".layers.")[1].split(".")[0] for name in changed}) == 2
    assert all(".mlp." in name for name in changed)
    assert set(made.own_answers) == set(range(len(made)))
    asked = {each.question for each in made.own_answers.values()}
    assert asked == set(QUESTIONS)
    assert made[0]["visual"][0].image == made[0]["forget"][0].image
    assert made[0]["visual"] == made[len(made)]["visual"]  # of the next epoch
    assert any("of the decoder's MLPs those of layers" in line for line in lines)


def test_the_start_is_asked_before_anything_changes_and_answers_as_plain_generation_does(data, encoder, tmp_path):
    trainer, (_, made) = trainer_of(encoder, tmp_path), made_pairs(data)
    own_answers.answer_as_the_start(trainer, made, encoder, 8)
    row = made.own_answers[0]
    inputs = encoder.encode(replace(row, answer=".")).prompt
    tokens = trainer.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    text = encoder.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert row.answer == text.strip()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: replace(PAVA, scope="both"), r"method.trace is about pictures: set method.scope=pictures"),
        (lambda: bind(replace(PAVA, visual=None)), r"method.visual: pava needs it"),
        (lambda: Trace(layers=0, rows=1), r"method.trace.layers=0 must be at least 1"),
        (lambda: Visual("file", 0), r"method.visual.max_new_tokens=0 must be at least 1"),
        (
            lambda: replace(PAVA, gradient=PAVA.trace),
            r"method.trace and method.gradient both say what trains; leave one out",
        ),
        (
            lambda: bind(
                Method("npo", "npo", {"beta": 0.1, "retain_weight": 1.0}, visual=PAVA.visual, scope="pictures")
            ),
            "no use",
        ),
    ],
)
def test_a_trace_or_questions_that_are_not_meant_so_are_one_line(make, line):
    with pytest.raises(SettingsError, match=line):
        make()


def test_more_layers_than_there_are_and_frozen_mlps_are_one_line(data, encoder, tmp_path):
    trainer, (_, made) = trainer_of(encoder, tmp_path), made_pairs(data)
    with pytest.raises(SettingsError, match=r"method.trace.layers=5: LlavaForConditionalGeneration has 4 layers"):
        train_traced_alone(trainer, Trace(layers=5, rows=1), made, encoder)
    trainer.model.requires_grad_(False)
    with pytest.raises(SettingsError, match=r"method=pava: nothing trains in the MLPs of layers"):
        train_traced_alone(trainer, Trace(layers=1, rows=1), made, encoder)
    with pytest.raises(SettingsError, match="asks for questions about pictures, which language models alone answer"):
        made_pairs(data, asked=None)
