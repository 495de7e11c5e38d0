"""LoRA: which layers of a model get an adapter, and which parts of it can have none."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine.record import say_line
from settings.script import SettingsError, first_line
from settings.training import Lora

LINEAR = (nn.Linear, Conv1D)  # GPT-2's linear layers are of the second kind
LanguageModel = Any  # a model of transformers, or one that peft wraps: what is asked of it is more than nn.Module's


def lora_targets(model: LanguageModel, targets: str, frozen: Sequence[str] = ()) -> list[str]:
    """Names of the linear layers that get an adapter.

    `targets` is `language_model`, which means those of the decoder, or a regular expression on names. The output head,
    the projector and the vision tower are no part of the decoder. A frozen layer gets no adapter. Raises SettingsError
    if nothing matches, or an output head does that is the embedding too. `frozen`: parts of names; quantized weights
    need no gradient anyway, so that their names alone tell.
    """
    linear = []
    for name, module in model.named_modules():
        if isinstance(module, LINEAR):
            quantized = not module.weight.is_floating_point()
            if module.weight.requires_grad or (quantized and not set(frozen) & set(name.split("."))):
                linear.append(name)
    head = model.get_output_embeddings()
    if targets == "language_model":
        prefix = decoder_name(model)
        names = [name for name in linear if name.startswith(f"{prefix}.") and model.get_submodule(name) is not head]
    else:
        names = [name for name in linear if re.search(targets, name)]
    if not names:
        raise SettingsError(f"model.lora_targets={targets!r} matches no linear layer of {type(model).__name__}")
    own = getattr(head, "weight", None)  # a model that ends at a layer has no head with weights
    tied = own is not None and own is model.get_input_embeddings().weight
    for name in names:
        if tied and model.get_submodule(name) is head:
            raise SettingsError(
                f"model.lora_targets={targets!r} matches {name!r}, whose weight is the embedding too: an adapter of "
                "one, merged into both, would be another model than the one that was trained; leave it out"
            )
    return names


def decoder_name(model: LanguageModel) -> str:
    decoder = model.get_decoder()
    return next(name for name, module in model.named_modules() if module is decoder)


def weights_without_adapter(model: LanguageModel) -> dict[str, int]:
    """The decoder's tensors of several matrices, as experts have them, by name with their sizes: no linear layer holds
    them, so that LoRA leaves them as they are.
    """
    decoder = model.get_decoder()
    held = {id(module.weight) for module in decoder.modules() if isinstance(module, nn.Conv1d)}
    named = decoder.named_parameters()
    return {name: weight.numel() for name, weight in named if weight.ndim > 2 and id(weight) not in held}


def add_lora(model: LanguageModel, lora: Lora, targets: str, seed: int, *, frozen: Sequence[str] = ()) -> PeftModel:
    """Wrap the model with a fresh adapter (seeded); the model's own weights stay as they are.

    Says so where a part of the decoder can have no adapter. Raises SettingsError.
    """
    torch.manual_seed(seed)
    names = lora_targets(model, targets, frozen)
    if left := weights_without_adapter(model):
        share = sum(left.values()) / sum(weight.numel() for weight in model.get_decoder().parameters())
        say_line(
            f"LoRA leaves out {len(left)} tensors, {share:.0%} of the decoder's weights, which are no linear layers: "
            f"{next(iter(left))} and its like"
        )
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in names)
    sizes: dict[str, Any] = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    config = LoraConfig(**sizes, target_modules=names, fan_in_fan_out=transposed)
    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        why = first_line(error)
        raise SettingsError(
            f"LoRA on {type(model).__name__}: {why}; trainer.lora=null trains its own weights, model.lora_targets "
            "names other layers"
        ) from None
