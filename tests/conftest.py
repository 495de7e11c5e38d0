"""What many tests share: a small embedded world, the tiny base model, and settings that run in seconds."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched by a test
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from engine.encode import ChatEncoder
from mini_clear.dataset_folder import write_world
from mini_clear.text_base import write_text_base
from settings.language import Columns, Data

ROOT = Path(__file__).parent.parent
BASE = ROOT / "mini_clear" / "base_model"
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A world of ten people with two views each."""
    folder = tmp_path_factory.mktemp("world") / "mini"
    write_world(folder, people=10, views=2)
    return folder


@pytest.fixture(scope="session")
def data(world):
    columns = Columns(image="image", caption="caption", question="question", answer="answer", person="name")
    idk = {"idk_questions": "config/idk/questions.txt", "idk_pictures": "config/idk/pictures.txt"}
    return Data(
        name="mini",
        path=str(world / "clear"),
        text_path=str(world / "tofu"),
        columns=columns,
        rows_per_person=10,
        **idk,
    )


@pytest.fixture(scope="session")
def encoder():
    return ChatEncoder(AutoProcessor.from_pretrained(BASE))


@pytest.fixture(scope="session")
def text_base(tmp_path_factory):
    """The tiny language model's folder."""
    folder = tmp_path_factory.mktemp("text_base") / "tiny-llama"
    write_text_base(folder)
    return folder


@pytest.fixture
def model():
    """A fresh copy of the tiny base model, in eval mode."""
    return AutoModelForImageTextToText.from_pretrained(BASE, dtype="float32").eval()


@pytest.fixture(scope="session")
def world_overrides(world):
    """Overrides that point any mm script at the small world."""
    return [f"data.path={world}/clear", f"data.text_path={world}/tofu", "data.made_by=''"]


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """A folder of twelve people with nine noisy pictures each, and one of three people for pretraining."""
    folder = tmp_path_factory.mktemp("faces")
    source = np.random.default_rng(0)
    for part, count in (("people", 12), ("pretraining", 3)):
        for person in range(count):
            face = source.integers(0, 256, (8, 8, 3))
            (folder / part / f"{part} {person:02d}").mkdir(parents=True)
            for number in range(9):
                noisy = (face + source.normal(0, 25, face.shape)).clip(0, 255).astype("uint8")
                Image.fromarray(noisy).resize((40, 36)).save(folder / part / f"{part} {person:02d}" / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def face_overrides(faces):
    """Overrides that make any cv script run on the small folder, with a tiny network, in seconds."""
    data = [
        f"data.people.path={faces}/people",
        f"data.pretraining.path={faces}/pretraining",
        "data.made_by=''",
        f"data.split_file={faces}/division.json",
    ]
    return [
        *data,
        "data.forget_pool=4",
        "data.train=4",
        "data.enrol=2",
        "model.size=40",
        "model.width=4",
        "model.embedding=8",
    ]
