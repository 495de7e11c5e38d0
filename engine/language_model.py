"""Language models, those that see too: load, freeze, LoRA, forward, save."""

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from engine.adapter_folder import (
    ADAPTER,
    Base,
    base_of,
    check_adapter_folder,
    is_adapter_folder,
    read_base,
    with_adapter,
    write_adapter,
)
from engine.adapters import LanguageModel, add_lora
from engine.answer_head import Head, OnDemand, head_apart, listening
from engine.frozen_start import Start
from engine.kept_hook import hook_of, install_hook_of, write_hook
from engine.layer_output import end_at_layer, given_by, restore_layers
from engine.pairs import Batch
from engine.record import say_line
from engine.start_checks import check_silent, check_start
from settings.language import Finetune, Model
from settings.script import SettingsError, processes
from settings.training import need_cuda_for
from unlearn_losses import Scored

transformers.utils.logging.disable_progress_bar()

OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt*", "*.h5", "*.msgpack", "*.gguf", "*.onnx")

UNTRUSTED = "which is not run: read it, and model.trust_remote_code=true runs it"
NO_SDPA = "scaled_dot_product_attention"  # what the library's line names where a model has none


def check_model_path(path: str, name: str = "model_path") -> None:
    """Raise SettingsError unless `path` is a folder with a whole model in safetensors, or can be a hub id."""
    folder = Path(path)
    if folder.is_file():
        raise SettingsError(f"{name}={path!r} is a file; give the folder that holds the model")
    if not folder.is_dir():
        if path.count("/") != 1 or path.startswith((".", "/", "models/")):
            raise SettingsError(f"{name}={path!r} does not exist; give a model folder or a hub id")
        return
    if is_adapter_folder(path):
        check_adapter_folder(path, name)
        return
    if (folder / ADAPTER).is_file():
        raise SettingsError(
            f"{name}={path!r} holds an adapter ({ADAPTER}) and no whole model; merge it into its base model with "
            "peft's merge_and_unload() and save that"
        )
    if not (folder / "config.json").is_file():
        raise SettingsError(f"{name}={path!r} holds no model (no config.json)")
    if not any(folder.glob("*.safetensors")):
        others = sorted(file.name for ending in OTHER_WEIGHTS for file in folder.glob(ending))
        held = f"holds its weights in {others[0]!r}, and only safetensors are read" if others else "holds no weights"
        convert = "; transformers' from_pretrained() and save_pretrained() to another folder convert them"
        raise SettingsError(f"{name}={path!r} {held}{convert if others else ' (no *.safetensors)'}")


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """Keep the library's own lines away, where one line of ours says it.

    What it would print is dropped where it is printed: another level would make every logger look its level up anew.
    """
    library = logging.getLogger("transformers")
    handlers = [*library.handlers, *(logging.getLogger().handlers if library.propagate else [])]
    handlers = [handler for handler in handlers if drop not in handler.filters]  # the others are quiet already
    for handler in handlers:
        handler.addFilter(drop)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(drop)


def drop(record: logging.LogRecord) -> bool:
    """Whether a line is printed: none of the library is. A handler of the root prints others' lines, too."""
    return record.name.partition(".")[0] != "transformers"


def load(auto_class: Any, path: str, settings: Model, **options: Any) -> Any:
    """`auto_class.from_pretrained` for models and processors.

    Raises SettingsError if there is nothing to load, or if it comes with code that `settings` do not trust.
    """
    check_model_path(path)
    return read(auto_class, path, settings, **options)


def read(auto_class: Any, path: str, settings: Model, **options: Any) -> Any:
    """The same for what needs no weights to be there."""
    try:
        with quiet_library():
            loaded = auto_class.from_pretrained(path, trust_remote_code=settings.trust_remote_code, **options)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        why = " ".join((str(error) or type(error).__name__).split())[:300]
        if "custom code" in why or "trust_remote_code" in why:
            raise SettingsError(f"model_path={path!r} comes with code of its own, {UNTRUSTED}") from None
        raise SettingsError(f"model_path={path!r} could not be loaded: {why}") from None
    check_code(path, loaded, settings)
    return loaded


def check_code(path: str, loaded: Any, settings: Model) -> None:
    """Raise SettingsError for a tokenizer or processor that names code of its own, which the library passes over."""
    parts = [loaded, getattr(loaded, "tokenizer", None)]
    named = [part for part in parts if "auto_map" in (getattr(part, "init_kwargs", None) or {})]
    if named and not settings.trust_remote_code:
        raise SettingsError(f"model_path={path!r}: its tokenizer comes with code of its own, {UNTRUSTED}")


def load_model(auto_class: Any, path: str, settings: Model, dtype: str) -> LanguageModel:
    """The model of a folder or hub id, its weights in `dtype`.

    `model.attention=auto` is sdpa, or eager where the model has no sdpa, which is said. Raises SettingsError unless its
    files hold each of its weights, in its shape, and nothing else, and all are numbers.
    """
    if is_adapter_folder(path):
        return load_over_base(auto_class, path, settings, dtype)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    if settings.quantize != "none":
        options |= {"quantization_config": quantization(settings.quantize), "device_map": {"": processes().device}}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # told, and refused below
    attention = "sdpa" if settings.attention == "auto" else settings.attention
    try:
        model, loaded = load(auto_class, path, settings, attn_implementation=attention, **options)
    except SettingsError as error:
        if NO_SDPA not in str(error):
            raise
        if settings.attention != "auto":
            raise SettingsError(
                f"model.attention=sdpa: the model at {path!r} has no such attention; set auto or eager"
            ) from None
        model, loaded = load(auto_class, path, settings, attn_implementation="eager", **options)
        say_line(f"{type(model).__name__} has no sdpa: model.attention=auto is eager")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise SettingsError(f"model_path={path!r} is an adapter and no whole model; merge it into its base model first")
    check_whole(path, loaded)
    check_numbers(path, model)
    check_forward(path, model)
    install_hook_of(path, model)
    return model


def load_over_base(auto_class: Any, path: str, settings: Model, dtype: str) -> LanguageModel:
    """The model of a folder that holds an adapter alone: its base, as it was while the adapter was trained, and the
    adapter added to its weights. Raises SettingsError.
    """
    check_model_path(path)
    base = read_base(path)
    if base.quantize != "none":
        need_cuda_for(f"model_path={path!r} was trained over a base in {base.quantize}, which")
    model = load_model(auto_class, base.path, replace(settings, quantize=base.quantize), base.weights)
    whole = model.dequantize().cpu() if base.quantize != "none" else model
    merged = with_adapter(whole, path, dtype)
    check_numbers(path, merged)
    return merged


def quantization(kind: str) -> Any:
    """How transformers is told to hold the weights of linear layers in 8 or 4 bits, computing in bfloat16."""
    if kind == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    return transformers.BitsAndBytesConfig(load_in_4bit=True, **four)


def check_whole(path: str, loaded: dict[str, Any]) -> None:
    """Raise SettingsError where files lack a tensor, hold one of another shape, or one that the model has no place for.

    `loaded`: what the library tells of loading. It fills what it does not find with random numbers.
    """
    for name, found, wanted in sorted(loaded["mismatched_keys"]):
        raise SettingsError(
            f"model_path={path!r}: tensor {name!r} has shape {tuple(found)}, and config.json makes it {tuple(wanted)}"
        )
    ways = {
        "missing_keys": "the files lack {} ({} in all), which the library would fill with random numbers",
        "unexpected_keys": "the files hold {} ({} in all), which this kind of model has no place for",
    }
    for key, way in ways.items():
        if names := sorted(loaded[key]):
            raise SettingsError(f"model_path={path!r}: {way.format(f'tensor {names[0]!r}', len(names))}")


def check_numbers(path: str, model: nn.Module) -> None:
    """Raise SettingsError where a weight is NaN or infinite."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise SettingsError(f"model_path={path!r}: tensor {name!r} holds NaN or infinity; the model is broken")


def check_forward(path: str, model: nn.Module) -> None:
    """Raise SettingsError for a kind of model that cannot be asked for its logits at the answer's positions alone."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise SettingsError(
            f"model_path={path!r}: {type(model).__name__} takes no logits_to_keep, by which answers are scored; this "
            "kind of model is not supported"
        )


def positions_of(path: str, settings: Model, tokenizer: Any) -> int:
    """How many tokens a model takes by its configuration, known before any weights load; 0: it does not say.

    Raises SettingsError where the tokenizer knows tokens that the model does not.
    """
    config = load(transformers.AutoConfig, path, settings).get_text_config()
    rows = getattr(config, "vocab_size", None)
    token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if rows and number >= rows:
        raise SettingsError(
            f"model_path={path!r}: its tokenizer numbers tokens up to {number} ({token!r}), and its config.json has "
            f"vocab_size {rows}: they are not of one model"
        )
    return max(0, getattr(config, "max_position_embeddings", None) or 0)  # -1 where a family takes any number


def start_of(auto_class: Any, settings: Finetune, processor: Any) -> Start:
    """The model at `settings.model_path`, ready to train.

    `processor` is saved beside its weights. Raises SettingsError.
    """
    written = partial(save, processor)
    if settings.trainer.save == "adapter":
        base = base_of(settings.model_path, settings.model.weights, settings.model.quantize)
        written = partial(save_adapter, processor, base)
    model = load_for_training(auto_class, settings)
    return Start(model, forward, written, check_start, check_silent)


def load_for_training(auto_class: Any, settings: Finetune) -> LanguageModel:
    """The model ready to train: frozen parts frozen, and under LoRA a fresh adapter over weights in `model.weights`.

    Without LoRA the weights are float32, because an update of size lr is lost in bf16 weights. With activations the
    model ends at their layer.
    """
    if settings.model.quantize != "none" and is_adapter_folder(settings.model_path):
        raise SettingsError(
            f"model.quantize={settings.model.quantize}: model_path={settings.model_path!r} holds an adapter alone, "
            "whose base cannot be quantized again with it; train it with trainer.save=merged"
        )
    model = load_model(auto_class, settings.model_path, settings.model, training_dtype(settings))
    return made_ready(model, settings)


def training_dtype(settings: Finetune) -> str:
    """Of the weights that a model has while it trains; an adapter is always float32."""
    return settings.model.weights if settings.trainer.lora else "float32"


def made_ready(model: LanguageModel, settings: Finetune) -> LanguageModel:
    """A model as it trains: parts of it frozen, cut, checkpointed and adapted as `settings` say. Raises SettingsError.

    Its weights may be without numbers.
    """
    lora = settings.trainer.lora
    if hook_of(model):
        raise SettingsError(
            f"model_path={settings.model_path!r} has a hook: its weights forgot nobody, and what is trained through it "
            "would not be the model alone; begin with the model that it was made of"
        )
    freeze(model, settings.model.freeze)
    keep_statistics(model)
    if settings.activations:
        end_at_layer(model, settings.activations)
    ready: LanguageModel = model
    if lora:
        ready = add_lora(model, lora, settings.model.lora_targets, seed=settings.seed, frozen=settings.model.freeze)
    if settings.trainer.gradient_checkpointing:
        compute_activations_again(model)  # of an adapter's model too, which peft would have ask for more gradients
    return ready


def compute_activations_again(model: LanguageModel) -> None:
    """Keep of each layer its input alone for the backward pass, which computes the rest of its activations again with
    the same dropout. Raises SettingsError for a kind of model that cannot.
    """
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        raise SettingsError(
            f"trainer.gradient_checkpointing=true: {type(model).__name__} does not support it; set it to false"
        ) from None
    model.disable_input_require_grads()  # only reentrant checkpoints need them


def freeze(model: nn.Module, parts: list[str]) -> None:
    """Stop the training of every parameter whose name contains one of `parts`; raises SettingsError if none does."""
    for part in parts:
        frozen = [p for name, p in model.named_parameters() if part in name.split(".")]
        if not frozen:
            raise SettingsError(f"model.freeze: no part of {type(model).__name__} is named {part!r}")
        for parameter in frozen:
            parameter.requires_grad_(False)


def keep_statistics(model: nn.Module) -> None:
    """Batch norms, as some towers of sight have them, take their own means and variances in training too: those of a
    batch would make a row depend on the others, and would be saved with the model.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(to_eval_mode)


def to_eval_mode(module: nn.Module, inputs: Any) -> None:
    module.eval()


def forward(model: nn.Module, batch: Batch) -> Scored:
    """Logits at the answer positions of a batch with their labels: the only place that aligns the two.

    The model is called as it is wrapped, once; its output head runs at `batch.positions` (B, T) only. Large logits are
    made where a loss asks for them.
    """
    assert batch.positions is not None  # only faces have none
    inputs: Mapping[str, Tensor | None] = batch.inputs
    positions = batch.positions
    if packs(model, batch.inputs):
        inputs, positions = pack_rows(batch.inputs, positions)
    options = {**inputs, "logits_to_keep": positions, "use_cache": False}
    apart = head_apart(model, positions.numel())
    if apart is None:
        logits = given_by(model, model(**options).logits)
        return Scored(logits.view(*batch.labels.shape, -1), batch.labels)
    head, after = apart
    with listening(head) as listener:
        model(**options)
    (states,) = listener.states
    states = states.reshape(*batch.labels.shape, -1)
    return Scored(OnDemand(states, Head(head, after, listener.dtype)), batch.labels)


def packs(model: nn.Module, inputs: dict[str, Tensor]) -> bool:
    """Whether rows of words may follow each other in one sequence: under flash attention, which computes no padding.

    Other attention would compute the whole square of the sequence and throw most of it away.
    """
    # what wraps a model may have a `config` of its own, as DeepSpeed's has
    configs = (getattr(module, "config", None) for module in model.modules())
    config: Any = next(config for config in configs if hasattr(config, "_attn_implementation"))
    if inputs.keys() != {"input_ids", "attention_mask"} or hasattr(config, "vision_config"):
        return False
    return config._attn_implementation == "flash_attention_2"


def pack_rows(inputs: dict[str, Tensor], positions: Tensor) -> tuple[dict[str, Tensor | None], Tensor]:
    """A batch padded on the right as one row of all its tokens, and where `positions` (B, T) stand in it, (1, B * T).

    `position_ids` start at 0 with each row: that is how the library's attention tells the rows apart when no mask is
    given.
    """
    mask = inputs["attention_mask"].bool()
    lengths = mask.sum(1)
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    starts = lengths.cumsum(0) - lengths
    packed = {
        "input_ids": inputs["input_ids"][mask][None],
        "attention_mask": None,
        "position_ids": places[mask][None],
    }
    return packed, (positions + starts[:, None]).view(1, -1)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def l1_norm(model: nn.Module) -> Tensor:
    """Sum of absolute values of the trained weights; under LoRA of the update they make together, scale * B A, never of
    A and B apart.
    """
    if not isinstance(model, PeftModel):
        return reduce(torch.add, (parameter.abs().sum() for parameter in trained_weights(model).values()))
    layers = [
        (module, name) for module in model.modules() if isinstance(module, LoraLayer) for name in module.active_adapters
    ]
    # recomputed in the backward pass: kept for it, the updates of all layers together are as large as the model
    sizes = (
        checkpoint(lambda layer, name: layer.get_delta_weight(name).abs().sum(), *each, use_reentrant=False)
        for each in layers
    )
    return reduce(torch.add, sizes)


@torch.no_grad()
def subtract_update(model: nn.Module, start: dict[str, Tensor], scale: float) -> None:
    """theta0 - scale * (theta - theta0) in place (SKU's task vector): under LoRA the update is B A; else `start` holds
    theta0 by name.
    """
    for name, parameter in trained_weights(model).items():
        if isinstance(model, PeftModel):
            if ".lora_B." in name:
                parameter.mul_(-scale)
        else:
            first = start[name].to(parameter.device)
            parameter.copy_(first - scale * (parameter - first))


def merged(model: LanguageModel) -> LanguageModel:
    """The model with its adapter, if it has one, added to its weights.

    In fp32, because on bf16 weights a small update would be rounded away, and in main memory, where a model twice as
    large has room.
    """
    return model.cpu().float().merge_and_unload() if isinstance(model, PeftModel) else model


def save(processor: Any, model: LanguageModel, folder: Path) -> None:
    """Write merged weights and processor to `folder`, an adapter beside them under adapter/, and a hook."""
    model = restore_layers(model)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder / "adapter"))
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # peft's empty model card
    merged(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_hook(model, folder)


def save_adapter(processor: Any, base: Base, model: LanguageModel, folder: Path) -> None:
    """Write the adapter alone with what names its base, and the processor, to `folder`."""
    write_adapter(restore_layers(model), base, folder)
    processor.save_pretrained(folder)
