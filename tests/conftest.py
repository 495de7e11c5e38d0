"""What many tests share: a small embedded world, the tiny base model, and settings that run in seconds."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched by a test
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers with several threads each would wait for one another

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from helpers import BASE, write_faces
from mini_clear.dataset_folder import write_world
from mini_clear.text_base import write_text_base
from mm.encoder import PictureEncoder
from nlp.encoder import TextEncoder
from settings.language import Columns, Data


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """What is long is slow too, and what takes longest begins first, so that no worker has it left when all others are
    done.
    """
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("begins_first") is None)


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
        alternatives=str(world / "alternatives.jsonl"),
        **idk,
    )


@pytest.fixture(scope="session")
def encoder():
    return PictureEncoder(AutoProcessor.from_pretrained(BASE))


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
    folders = [f"data.path={world}/clear", f"data.text_path={world}/tofu", "data.made_by=''"]
    return [*folders, f"data.alternatives={world}/alternatives.jsonl"]


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """A folder of twelve people with nine noisy pictures each, and one of three people for pretraining."""
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder)
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


@pytest.fixture(scope="session")
def qwen_encoder(encoder):
    """A processor of the Qwen2-VL family around the tiny tokenizer: patches of all pictures in one tensor, its own
    placeholders.
    """
    tokenizer = type(encoder.tokenizer)(
        tokenizer_object=encoder.tokenizer.backend_tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"]}
    )
    template = (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}<assistant>{% endif %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    pictures = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    return PictureEncoder(Qwen2VLProcessor(pictures, tokenizer, Qwen2VLVideoProcessor(), chat_template=template))


@pytest.fixture
def qwen(qwen_encoder):
    """A tiny, randomly initialised Qwen2-VL."""
    tokenizer = qwen_encoder.tokenizer
    ids = {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")}
    ids |= {
        f"vision_{kind}_token_id": tokenizer.convert_tokens_to_ids(f"<|vision_{kind}|>") for kind in ("start", "end")
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32}
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids)).eval()


@pytest.fixture(scope="module")
def text_encoder(text_base):
    """Encodes chats for the tiny language model."""
    return TextEncoder(AutoTokenizer.from_pretrained(text_base))


@pytest.fixture
def text_model(text_base):
    """The tiny language model, in eval mode; a test may change it."""
    return AutoModelForCausalLM.from_pretrained(text_base, dtype=torch.float32).eval()
