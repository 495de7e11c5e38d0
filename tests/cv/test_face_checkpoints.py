"""A face network in training goes on with the same bits, running statistics included."""

import pytest

from cv import pretrain
from engine.checkpoints import last_checkpoint
from engine.loss_trainer import LossTrainer
from helpers import start


class Killed(BaseException):
    """Ends a run at once, as kill -9 would."""


def test_a_killed_training_of_faces_goes_on_and_ends_with_the_same_bytes(face_overrides, tmp_path, monkeypatch):
    quick = ["trainer.epochs=2", "trainer.batch_size=8", "trainer.save_every=1step"]
    command = [*face_overrides, *quick]
    assert start(pretrain, [*command, f"save_dir={tmp_path / 'plain'}"], monkeypatch) == 0
    real = LossTrainer.compute_loss

    def killed(self, *args, **options):
        if self.state.global_step == 5:
            raise Killed
        return real(self, *args, **options)

    monkeypatch.setattr(LossTrainer, "compute_loss", killed)
    again = [*command, f"save_dir={tmp_path / 'again'}"]
    with pytest.raises(Killed):
        start(pretrain, again, monkeypatch)
    assert last_checkpoint(tmp_path / "again.checkpoints").name == "step_5"
    monkeypatch.setattr(LossTrainer, "compute_loss", real)
    assert start(pretrain, again, monkeypatch) == 0
    plain, went_on = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "again"))
    assert went_on == plain
