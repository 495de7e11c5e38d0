"""The tiny language model: the language half of the tiny vision-language model, with a chat template for words alone.

`python -m mini_clear.text_base --out models/tiny-llama` writes it. It knows what the vision-language base model has
read about the "real" people.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, LlamaForCausalLM

from engine.folders import written_whole
from mini_clear.make_base import FOLDER

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% else %}<assistant>{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt "
    "%}<assistant>{% endif %}"
)


def write_text_base(folder: Path) -> None:
    """Write model and tokenizer to `folder`, which appears only when it is complete."""
    both = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    model = LlamaForCausalLM(both.config.text_config)
    model.model.load_state_dict(both.model.language_model.state_dict())
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.chat_template = CHAT_TEMPLATE
    with written_whole(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mini_clear.text_base", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    write_text_base(parser.parse_args().out)


if __name__ == "__main__":
    main()
