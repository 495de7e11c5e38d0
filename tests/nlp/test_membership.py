"""Membership of people as its users start it: twelve tiny shadow models, found again by a second method."""

import json
import shutil

import pytest

import nlp.membership
from engine.record import MEMBERSHIP_FIGURES, MEMBERSHIP_RECORD
from helpers import start
from report.verify import verify


@pytest.mark.slow
def test_shadow_models_are_attacked_and_found_again_by_a_second_method(world, text_base, tmp_path, monkeypatch, capsys):
    quick = ["split=full", "models=12", "finetune.epochs=4", "trainer.epochs=1", "trainer.lr=1e-4"]
    data = [f"data.text_path={world}/tofu", "data.made_by=''", f"model.path={text_base}", "model.made_by=''"]
    told = [*quick, *data, f"shadows_dir={tmp_path}/shadows"]

    def attack(name, *overrides):
        assert start(nlp.membership, [f"save_dir={tmp_path}/{name}", *told, *overrides], monkeypatch) == 0
        said = capsys.readouterr().out
        figures = json.loads((tmp_path / name / MEMBERSHIP_FIGURES).read_text())
        return figures, said.count("finetuned on"), said.count("forgot forget with")

    figures, finetuned, forgot = attack("npo", "method=npo")
    assert (finetuned, forgot) == (24, 12)
    assert list(figures) == ["as learned", "in other words"]
    forgotten = figures["as learned"]["forgotten"]
    assert forgotten["base"]["auc"]["value"] > 0.8 > forgotten["gold"]["auc"]["value"]
    assert forgotten["gold"]["scores"] == {"members": 30, "never met": 60}
    assert figures["as learned"]["kept"]["gold"]["auc"]["value"] > 0.8

    second, finetuned, forgot = attack("retain_ft", "method=retain_ft")
    assert (finetuned, forgot) == (0, 12)
    assert second["as learned"]["forgotten"]["base"] == forgotten["base"]

    (folder,) = (tmp_path / "shadows").glob("npo-*")
    shutil.rmtree(folder / "003")
    again, finetuned, forgot = attack("npo", "method=npo", "overwrite=true")
    assert (finetuned, forgot) == (0, 1)
    assert again == figures
    record = json.loads((tmp_path / "npo" / MEMBERSHIP_RECORD).read_text())
    assert record["training_seconds"].keys() == {"base", "gold", "npo"}
    assert verify(tmp_path / "npo") == (1, [])
