"""What many tests share: a small embedded world, the tiny base model, and settings that run in seconds."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched by a test
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from encoders import ChatEncoder
from mini_clear.dataset_folder import write_world
from mini_clear.text_base import write_text_base
from run_settings import Columns, Data

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
    return Data(name="mini", path=str(world / "clear"), text_path=str(world / "tofu"), columns=columns, rows_per_person=10, **idk)


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
