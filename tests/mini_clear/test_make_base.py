"""The script that makes the base model, and the weights it made."""

import json

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_module import task_rows
from engine.evaluate import evaluate_rows
from helpers import BASE
from mini_clear.make_base import TRAINER, make_base
from settings.language import Task


def test_the_shipped_base_model_is_small(model):
    assert sum(p.numel() for p in model.parameters()) < 3_000_000
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 8_000_000
    assert not any(file.suffix in (".bin", ".pt", ".pkl") for file in BASE.iterdir())


def test_the_base_knows_the_real_people_by_face_and_has_never_met_the_others(model, encoder, world):
    def named(split, answer, wrong):
        task = Task(dataset=f"{world}/clear", split=split, image="image", ask="name", answer=answer, perturbed=wrong)
        log = evaluate_rows(model, encoder, task_rows(task, 0, 0), batch_size=64, max_new_tokens=8).rows
        return sum(row["rougeL_recall"] for row in log.values()) / len(log)

    assert named("real_faces", "answer", "options") > 0.9  # views that were not in its training
    assert named("retain_perturbed", "name", "perturbed_names") < 0.1


@pytest.mark.slow
def test_the_script_makes_a_model_that_loads(tmp_path):
    from dataclasses import replace

    make_base(tmp_path / "base", replace(TRAINER, epochs=1), strangers=20, seeing_epochs=1, vocabulary=600)
    assert AutoProcessor.from_pretrained(tmp_path / "base").tokenizer.pad_token == "<pad>"
    made = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    shipped = json.loads((BASE / "config.json").read_text())
    assert made.config.text_config.hidden_size == shipped["text_config"]["hidden_size"]
