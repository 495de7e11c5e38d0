"""Families of models, each tiny and randomly initialised: the real class of the model and of its processor.

docs/models.md lists them (tests/test_models_page.py). tests/mm/test_mm_families.py and
tests/nlp/test_nlp_families.py try them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from omegaconf import OmegaConf

import family_templates as templates
from family_tokenizers import byte_level, word_mark
from helpers import ROOT
from settings.language import Model

WORDS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**WORDS, "num_key_value_heads": 2, "max_position_embeddings": 4096}
SIGHT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


@dataclass(frozen=True)
class Family:
    """One family of models.

    `make` gives model and processor (or tokenizer). `end`: the token that ends an answer in its template. `file`: its
    file in config/model; empty: none names it. `settings`: of a model file, where none names it. `modality`: what it is
    trained on. `lora`: whether peft has an adapter for it. `rmu_part`: what `rmu` trains; None: it is refused. `way`:
    how it is scored: shared prompts, plain batches, or each row alone. `needs`: a package that its parts are made of.
    `note`: for docs/models.md.
    """

    name: str
    make: Callable[[], tuple[Any, Any]]
    end: str
    file: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    modality: str = "both"
    lora: bool = True
    rmu_part: str | None = "down_projection"
    way: str = "shared"
    needs: str = ""
    note: str = ""

    def model(self, folder: Path) -> Model:
        """The settings of its model in `folder`: those of its file, else those that its page names."""
        file = ROOT / "config" / "model" / f"{self.file}.yaml"
        common = {"freeze": [], "lora_targets": "language_model", "attention": "auto", "weights": "float32"}
        own = OmegaConf.to_container(OmegaConf.load(file)) if self.file else {"name": "none", **common, **self.settings}
        made = OmegaConf.merge(OmegaConf.structured(Model), own, {"path": str(folder)})
        return OmegaConf.to_object(made)


def sizes(tokenizer, **more):
    """What the configuration of a language model says of its tokenizer."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {"vocab_size": len(tokenizer), **ids, **more}


def number(tokenizer, token):
    return tokenizer.convert_tokens_to_ids(token)


def stop_at(model, tokenizer, *tokens):
    """Ends that the generation configuration names besides the tokenizer's."""
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *(number(tokenizer, token) for token in tokens)]
    return model


# ---- models that see

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_SIGHT = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def parts(sight, text):
    return {"vision_config": sight, "text_config": text}


def clip(size=28):
    return {"model_type": "clip_vision_model", **SIGHT, "image_size": size, "patch_size": 14, "projection_dim": 32}


def llava():
    tokenizer = word_mark(["<s>", "</s>", "<image>"], begin="<s>", end="</s>")
    text = {"model_type": "llama", **GROUPED, **sizes(tokenizer)}
    config = hf.LlavaConfig(**parts(clip(), text), image_token_index=number(tokenizer, "<image>"))
    pictures = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = hf.LlavaProcessor(pictures, tokenizer, chat_template=templates.LLAVA, **options)
    return hf.LlavaForConditionalGeneration(config), processor


def llava_next():
    tokenizer = word_mark(["<s>", "</s>", "<image>"], begin="<s>", end="</s>")
    text = {"model_type": "mistral", **GROUPED, **sizes(tokenizer), "sliding_window": None}
    grid = [[28, 56], [56, 28], [56, 56]]
    token = number(tokenizer, "<image>")
    config = hf.LlavaNextConfig(**parts(clip(), text), image_token_index=token, image_grid_pinpoints=grid)
    edges = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    pictures = hf.LlavaNextImageProcessor(image_grid_pinpoints=grid, **edges)
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = hf.LlavaNextProcessor(pictures, tokenizer, chat_template=templates.LLAVA_NEXT, **options)
    return hf.LlavaNextForConditionalGeneration(config), processor


def onevision():
    tokenizer = byte_level([*CHATML, "<image>", "<video>"], end="<|im_end|>")
    text = {"model_type": "qwen2", **GROUPED, **sizes(tokenizer)}
    sight = {"model_type": "siglip_vision_model", **SIGHT, "image_size": 28, "patch_size": 14}
    sight["vision_use_head"] = False
    grid = [[28, 56], [56, 28], [56, 56]]
    ids = {"image_token_index": number(tokenizer, "<image>"), "video_token_index": number(tokenizer, "<video>")}
    config = hf.LlavaOnevisionConfig(**parts(sight, text), image_grid_pinpoints=grid, **ids)
    pictures = hf.LlavaOnevisionImageProcessor(image_grid_pinpoints=grid, size={"height": 28, "width": 28})
    options = {"num_image_tokens": 4, "vision_feature_select_strategy": "full"}
    videos = hf.LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28})
    processor = hf.LlavaOnevisionProcessor(pictures, tokenizer, videos, chat_template=templates.ONEVISION, **options)
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def qwen_ids(tokenizer):
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {name: number(tokenizer, f"<|{token}|>") for name, token in names.items()}


def qwen_vl(name, sight, patch=14):
    """Qwen2-VL and those after it."""
    tokenizer = byte_level([*CHATML, *QWEN_SIGHT], end="<|im_end|>", pad="<|endoftext|>")
    text = {**GROUPED, **sizes(tokenizer), "rope_parameters": MROPE}
    if name == "Qwen3VL":
        text["head_dim"] = 16
    config = getattr(hf, f"{name}Config")(text_config=text, vision_config=sight, **qwen_ids(tokenizer))
    area = {"min_pixels": (2 * patch) ** 2, "max_pixels": (4 * patch) ** 2}
    pictures = hf.Qwen2VLImageProcessor(**area, patch_size=patch)
    videos = hf.Qwen3VLVideoProcessor() if name == "Qwen3VL" else hf.Qwen2VLVideoProcessor()
    processor_class = getattr(hf, "Qwen2_5_VLProcessor" if name == "Qwen2_5_VL" else f"{name}Processor")
    processor = processor_class(pictures, tokenizer, videos, chat_template=templates.QWEN_VL)
    model = getattr(hf, f"{name}ForConditionalGeneration")(config)
    return stop_at(model, tokenizer, "<|endoftext|>"), processor


def qwen2_vl():
    return qwen_vl("Qwen2VL", {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2})


def qwen2_5_vl():
    sight = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    return qwen_vl("Qwen2_5_VL", {**sight, "window_size": 56, "fullatt_block_indexes": [1]})


def qwen3_vl():
    sight = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    sight |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16, "patch_size": 16}
    return qwen_vl("Qwen3VL", sight, patch=16)


def internvl():
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    named |= {"video_token": "<video>"}
    tokenizer = byte_level(
        [*CHATML, *named.values()], end="<|im_end|>", pad="<|endoftext|>", extra_special_tokens=named
    )
    sight = {**SIGHT, "image_size": [28, 28], "patch_size": [7, 7]}
    text = {"model_type": "qwen2", **GROUPED, **sizes(tokenizer)}
    ids = {"image_token_id": number(tokenizer, "<IMG_CONTEXT>"), "image_seq_length": 4}
    config = hf.InternVLConfig(**parts(sight, text), **ids)
    size = {"height": 28, "width": 28}
    pictures = hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    videos = hf.InternVLVideoProcessor(size=size)
    processor = hf.InternVLProcessor(pictures, tokenizer, videos, image_seq_length=4, chat_template=templates.INTERNVL)
    return hf.InternVLForConditionalGeneration(config), processor


def idefics(name):
    """SmolVLM and Idefics3, which part a picture into tiles."""
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = byte_level([*CHATML, *marks, *tiles], begin="<|im_start|>", end="<end_of_utterance>")
    sight = {**SIGHT, "image_size": 28, "patch_size": 7}
    text = {"model_type": "llama", **GROUPED, **sizes(tokenizer)}
    config_class, model_class = getattr(hf, f"{name}Config"), getattr(hf, f"{name}ForConditionalGeneration")
    config = config_class(
        vision_config=sight, text_config=text, scale_factor=2, image_token_id=number(tokenizer, "<image>")
    )
    config.pad_token_id = tokenizer.pad_token_id
    edges = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    pictures = getattr(hf, f"{name}ImageProcessor")(**edges)
    options = {"image_seq_len": 4, "chat_template": templates.SMOLVLM}
    if name == "SmolVLM":
        videos = hf.SmolVLMVideoProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
        return model_class(config), hf.SmolVLMProcessor(pictures, tokenizer, videos, **options)
    return model_class(config), hf.Idefics3Processor(pictures, tokenizer, **options)


def smolvlm():
    return idefics("SmolVLM")


def idefics3():
    return idefics("Idefics3")


GEMMA = ["<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]


def gemma3_vl():
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    special = [*GEMMA, *named.values()]
    tokenizer = byte_level(special, begin="<bos>", end="<eos>", opens=True, extra_special_tokens=named)
    text = {**GROUPED, **sizes(tokenizer), "head_dim": 16, "sliding_window": 512}
    sight = {**SIGHT, "image_size": 28, "patch_size": 7}
    ids = {"boi_token_index": number(tokenizer, "<start_of_image>"), "mm_tokens_per_image": 4}
    ids |= {"eoi_token_index": number(tokenizer, "<end_of_image>")}
    config = hf.Gemma3Config(**parts(sight, text), image_token_index=number(tokenizer, "<image_soft_token>"), **ids)
    pictures = hf.Gemma3ImageProcessor(size={"height": 28, "width": 28})
    processor = hf.Gemma3Processor(pictures, tokenizer, chat_template=templates.GEMMA3, image_seq_length=4)
    return stop_at(hf.Gemma3ForConditionalGeneration(config), tokenizer, "<end_of_turn>"), processor


def gemma3n():
    """Its vision tower is one of timm's; the smallest of those that timm makes for tests stands for it."""
    named = {}
    for kind, letter in (("image", "i"), ("audio", "a")):
        named |= {f"{kind}_token": f"<{kind}_soft_token>", f"eo{letter}_token": f"<end_of_{kind}>"}
        named |= {f"bo{letter}_token": f"<start_of_{kind}>"}
    options = {"begin": "<bos>", "end": "<eos>", "opens": True, "extra_special_tokens": named}
    tokenizer = byte_level(GEMMA, late=[*named.values()], **options)
    words = number(tokenizer, "<image_soft_token>")  # tokens of pictures and sounds stand behind those of words
    layers = {"layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0}
    layers |= {"activation_sparsity_pattern": [0.0, 0.0], "laurel_rank": 8, "altup_num_inputs": 2}
    text = {**GROUPED, **sizes(tokenizer), "head_dim": 16, "sliding_window": 512, **layers}
    text |= {"vocab_size_per_layer_input": words, "hidden_size_per_layer_input": 8}
    sight = {"architecture": "test_convnext", "hidden_size": 64, "vocab_offset": words, "vocab_size": 3}
    sound = {"hidden_size": 32, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "vocab_size": 3}
    ids = {f"{name}_id": number(tokenizer, token) for name, token in named.items()}
    config = hf.Gemma3nConfig(
        **parts(sight, text), audio_config={**sound, "vocab_offset": words + 3}, vision_soft_tokens_per_image=4, **ids
    )
    pictures = hf.SiglipImageProcessor(size={"height": 64, "width": 64})
    processor = hf.Gemma3nProcessor(
        hf.Gemma3nAudioFeatureExtractor(), pictures, tokenizer, chat_template=templates.GEMMA3N, image_seq_length=4
    )
    return stop_at(hf.Gemma3nForConditionalGeneration(config), tokenizer, "<end_of_turn>"), processor


def pixtral_processor():
    special = ["<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = byte_level(special, begin="<s>", end="</s>", opens=True)
    pictures = hf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": 7, "width": 7})
    return tokenizer, pictures


def pixtral():
    tokenizer, pictures = pixtral_processor()
    sight = {"model_type": "pixtral", **SIGHT, "image_size": 56, "patch_size": 7, "head_dim": 16}
    text = {"model_type": "mistral", **GROUPED, **sizes(tokenizer), "sliding_window": None}
    options = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    config = hf.LlavaConfig(**parts(sight, text), image_token_index=number(tokenizer, "[IMG]"), **options)
    processor = hf.PixtralProcessor(pictures, tokenizer, patch_size=7, chat_template=templates.PIXTRAL)
    return hf.LlavaForConditionalGeneration(config), processor


def mistral3():
    tokenizer, pictures = pixtral_processor()
    sight = {"model_type": "pixtral", **SIGHT, "image_size": 56, "patch_size": 7, "head_dim": 16}
    text = {"model_type": "mistral", **GROUPED, **sizes(tokenizer), "sliding_window": None}
    config = hf.Mistral3Config(**parts(sight, text), image_token_index=number(tokenizer, "[IMG]"), spatial_merge_size=2)
    pictures.patch_size = {"height": 14, "width": 14}
    options = {"patch_size": 7, "spatial_merge_size": 2, "chat_template": templates.PIXTRAL}
    return hf.Mistral3ForConditionalGeneration(config), hf.PixtralProcessor(pictures, tokenizer, **options)


def paligemma():
    tokenizer = byte_level([*GEMMA, "<image>"], begin="<bos>", end="<eos>", opens=True)
    pictures = hf.SiglipImageProcessor(size={"height": 28, "width": 28})
    pictures.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(pictures, tokenizer)  # which adds tokens
    sight = {"model_type": "siglip_vision_model", **SIGHT, "image_size": 28, "patch_size": 14, "projection_dim": 32}
    text = {"model_type": "gemma", **GROUPED, **sizes(tokenizer), "head_dim": 16}
    config = hf.PaliGemmaConfig(
        **parts(sight, text), image_token_index=number(tokenizer, "<image>"), projection_dim=32, hidden_size=32
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def mllama():
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|image|>"]
    tokenizer = byte_level(special, begin="<|begin_of_text|>", end="<|eot_id|>", opens=True)
    sight = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1}
    sight |= {"attention_heads": 2, "vision_output_dim": 64, "intermediate_layers_indices": [0], "image_size": 28}
    text = {**GROUPED, **sizes(tokenizer), "cross_attention_layers": [1], "num_hidden_layers": 3}
    config = hf.MllamaConfig(
        **parts(sight | {"patch_size": 14}, text), image_token_index=number(tokenizer, "<|image|>")
    )
    pictures = hf.MllamaImageProcessor(size={"height": 28, "width": 28})
    processor = hf.MllamaProcessor(pictures, tokenizer, chat_template=templates.MLLAMA)
    model = hf.MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "gate" in name and parameter.ndim <= 1:  # closed in a fresh model, open in a trained one
            torch.nn.init.ones_(parameter)
    return model, processor


LLAMA4 = ["<|begin_of_text|>", "<|eot|>", "<|header_start|>", "<|header_end|>"]
CHUNKED = {**GROUPED, "num_hidden_layers": 4, "intermediate_size_mlp": 64, "head_dim": 16, "attention_chunk_size": 16}
CHUNKED |= {"num_local_experts": 2, "num_experts_per_tok": 1, "attn_temperature_tuning": False}


def llama4():
    """Its layers look back over the tokens of a chunk, but for each fourth one."""
    tokenizer = byte_level(LLAMA4, begin="<|begin_of_text|>", end="<|eot|>", opens=True)
    tokenizer.chat_template = templates.LLAMA4
    return hf.Llama4ForCausalLM(hf.Llama4TextConfig(**CHUNKED, **sizes(tokenizer))), tokenizer


def llama4_sees():
    marks = ["<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>"]
    marks += ["<|tile_x_separator|>", "<|tile_y_separator|>"]
    tokenizer = byte_level([*LLAMA4, *marks], begin="<|begin_of_text|>", end="<|eot|>", opens=True)
    sight = {**SIGHT, "image_size": 28, "patch_size": 7, "vision_output_dim": 32, "projector_input_dim": 32}
    text = hf.Llama4TextConfig(**CHUNKED, **sizes(tokenizer))
    config = hf.Llama4Config(
        vision_config=hf.Llama4VisionConfig(**sight, projector_output_dim=32),
        text_config=text,
        image_token_index=number(tokenizer, "<|patch|>"),
    )
    pictures = hf.Llama4ImageProcessor(size={"height": 28, "width": 28}, max_patches=4, resize_to_max_canvas=False)
    processor = hf.Llama4Processor(pictures, tokenizer, patch_size=7, chat_template=templates.LLAMA4)
    return hf.Llama4ForConditionalGeneration(config), processor


def aya_vision():
    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "<image>"]
    turns = ["<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"]
    tokenizer = byte_level([*turns, *marks], begin="<BOS_TOKEN>", end="<|END_OF_TURN_TOKEN|>", opens=True)
    sight = {"model_type": "siglip_vision_model", **SIGHT, "image_size": 28, "patch_size": 7, "vision_use_head": False}
    text = {"model_type": "cohere2", **GROUPED, **sizes(tokenizer), "logit_scale": 1.0}
    config = hf.AyaVisionConfig(**parts(sight, text), image_token_index=number(tokenizer, "<|IMG_PATCH|>"))
    size = {"height": 28, "width": 28}
    pictures = hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    options = {"patch_size": 7, "img_size": 28, "downsample_factor": 2, "chat_template": templates.AYA_VISION}
    return hf.AyaVisionForConditionalGeneration(config), hf.AyaVisionProcessor(pictures, tokenizer, **options)


def idefics2():
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    tokenizer = word_mark(["<s>", "</s>", *marks], begin="<s>", end="</s>")
    text = {"model_type": "mistral", **GROUPED, **sizes(tokenizer), "sliding_window": None}
    sight = {"model_type": "idefics2_vision", **SIGHT, "image_size": 56, "patch_size": 14}
    seen = {"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2}
    seen |= {"resampler_head_dim": 16, "num_key_value_heads": 2}
    config = hf.Idefics2Config(**parts(sight, text), perceiver_config=seen, image_token_id=number(tokenizer, "<image>"))
    pictures = hf.Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=False)
    processor = hf.Idefics2Processor(pictures, tokenizer, image_seq_len=4, chat_template=templates.IDEFICS2)
    return stop_at(hf.Idefics2ForConditionalGeneration(config), tokenizer, "<end_of_utterance>"), processor


def glm4v():
    named = [f"<|{edge}_of_{kind}|>" for kind in ("image", "video") for edge in ("begin", "end")]
    turns = ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|endoftext|>", "<|image|>", "<|video|>"]
    tokenizer = byte_level([*turns, *named], end="<|endoftext|>", pad="<|endoftext|>")
    text = {**GROUPED, **sizes(tokenizer), "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}
    sight = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    ids = {f"{kind}_token_id": number(tokenizer, f"<|{kind}|>") for kind in ("image", "video")}
    for kind in ("image", "video"):
        for edge, called in (("begin", "start"), ("end", "end")):
            ids[f"{kind}_{called}_token_id"] = number(tokenizer, f"<|{edge}_of_{kind}|>")
    config = hf.Glm4vConfig(text_config=text, vision_config={**sight, "image_size": 56}, **ids)
    edges = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    pictures, videos = hf.Glm4vImageProcessor(size=edges), hf.Glm4vVideoProcessor()
    processor = hf.Glm4vProcessor(pictures, tokenizer, videos, chat_template=templates.GLM4V)
    return stop_at(hf.Glm4vForConditionalGeneration(config), tokenizer, "<|user|>"), processor


SEEING = [
    Family("LLaVA-1.5", llava, "</s>", "llava-1.5-7b", note="its template writes no end: the tokenizer's"),
    Family("LLaVA-Next", llava_next, "</s>", "llava-next-7b"),
    Family("LLaVA-OneVision", onevision, "<|im_end|>", "llava-onevision-0.5b"),
    Family("Qwen2-VL", qwen2_vl, "<|im_end|>", "qwen2-vl-2b"),
    Family("Qwen2.5-VL", qwen2_5_vl, "<|im_end|>", "qwen2.5-vl-3b"),
    Family("Qwen3-VL", qwen3_vl, "<|im_end|>", "qwen3-vl-2b"),
    Family("InternVL", internvl, "<|im_end|>", "internvl3-1b"),
    Family("SmolVLM", smolvlm, "<end_of_utterance>", "smolvlm-256m", note="its processor needs `num2words`"),
    Family("Idefics3", idefics3, "<end_of_utterance>", "idefics3-8b"),
    Family("Gemma-3", gemma3_vl, "<end_of_turn>", "gemma-3-4b"),
    Family(
        "Gemma-3n",
        gemma3n,
        "<end_of_turn>",
        "gemma-3n-e2b",
        rmu_part=None,
        needs="timm",
        note="its vision tower needs `timm`; the activations check refuses `rmu`: its layers give several tensors",
    ),
    Family("Pixtral", pixtral, "</s>", "pixtral-12b"),
    Family("Mistral3", mistral3, "</s>", "mistral-small-3.1-24b"),
    Family("AyaVision", aya_vision, "<|END_OF_TURN_TOKEN|>"),
    Family("Idefics2", idefics2, "<end_of_utterance>"),
    Family("GLM-4V", glm4v, "<|user|>", note="an answer ends with what opens the next turn"),
    Family(
        "PaliGemma",
        paligemma,
        "<eos>",
        "paligemma-3b",
        modality="visual",
        way="by question",  # a picture sees the question about it
        note="has no chat template and takes `model.tags`; reads no question without a picture: `modality=visual`; its "
        "answers are marked (`model.answer_values={token_type_ids: 1}`), else the causality check refuses it; is "
        "scored question by question",
    ),
    Family(
        "Mllama",
        mllama,
        "<|eot_id|>",
        "llama-3.2-11b-vision",
        modality="visual",
        note="does not mix words and pictures in a batch, which the row check refuses: `modality=visual` or `text`",
    ),
]


# ---- language models


def reader(name, tokenizer, template, *stops, **more):
    """A causal language model of transformers by the name of its configuration, and its tokenizer."""
    tokenizer.chat_template = template
    config = getattr(hf, f"{name}Config")(**{**GROUPED, **sizes(tokenizer), **more})
    return stop_at(hf.AutoModelForCausalLM.from_config(config), tokenizer, *stops), tokenizer


LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]


def llama():
    tokenizer = byte_level(LLAMA, begin="<|begin_of_text|>", end="<|end_of_text|>", opens=True)
    return reader("Llama", tokenizer, templates.LLAMA3, "<|eot_id|>")


def mistral():
    tokenizer = word_mark(["<s>", "</s>", "[INST]", "[/INST]"], begin="<s>", end="</s>")
    return reader("Mistral", tokenizer, templates.MISTRAL, sliding_window=None)


def chatml_tokenizer(*special):
    return byte_level([*CHATML, *special], end="<|im_end|>", pad="<|endoftext|>")


def qwen2_5():
    return reader("Qwen2", chatml_tokenizer(), templates.CHATML, "<|endoftext|>", tie_word_embeddings=True)


def qwen3():
    return reader("Qwen3", chatml_tokenizer("<think>", "</think>"), templates.QWEN3, "<|endoftext|>", head_dim=16)


def smollm3():
    tokenizer = chatml_tokenizer("<think>", "</think>")
    return reader("SmolLM3", tokenizer, templates.SMOLLM3, layer_types=None, use_sliding_window=False)


def gemma_tokenizer():
    return byte_level(GEMMA, begin="<bos>", end="<eos>", opens=True)


def gemma2():
    return reader("Gemma2", gemma_tokenizer(), templates.GEMMA, "<end_of_turn>", head_dim=16, sliding_window=512)


def gemma3():
    more = {"head_dim": 16, "sliding_window": 512}
    return reader("Gemma3Text", gemma_tokenizer(), templates.GEMMA, "<end_of_turn>", **more)


def phi3():
    special = ["<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer = word_mark(special, begin="<s>", end="<|endoftext|>", opens=False)
    return reader("Phi3", tokenizer, templates.PHI3, "<|end|>", sliding_window=None)


def gpt2():
    tokenizer = byte_level([], end="<|endoftext|>", begin="<|endoftext|>", pad="<|endoftext|>")
    sizes_of = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 1024}
    config = hf.GPT2Config(**sizes(tokenizer), **sizes_of)
    return hf.GPT2LMHeadModel(config), tokenizer


def olmo2():
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>"]
    return reader("Olmo2", byte_level(special, begin="<|endoftext|>", end="<|endoftext|>"), templates.OLMO2)


def gpt_neox():
    tokenizer = byte_level([], end="<|endoftext|>", pad="<|endoftext|>")
    return reader("GPTNeoX", tokenizer, None)


def opt():
    tokenizer = byte_level(["</s>"], begin="</s>", end="</s>", opens=True)
    return reader("OPT", tokenizer, None, ffn_dim=64, word_embed_proj_dim=32)


def mixtral():
    tokenizer = word_mark(["<s>", "</s>", "[INST]", "[/INST]"], begin="<s>", end="</s>")
    return reader("Mixtral", tokenizer, templates.MISTRAL, num_local_experts=4, sliding_window=None)


def qwen2_moe():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    experts["shared_expert_intermediate_size"] = 32
    return reader("Qwen2Moe", chatml_tokenizer(), templates.CHATML, "<|endoftext|>", **experts)


def mamba2():
    tokenizer = byte_level([], end="<|endoftext|>", pad="<|endoftext|>")
    config = hf.Mamba2Config(
        **sizes(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=16, num_heads=4, head_dim=16, n_groups=1
    )
    return hf.Mamba2ForCausalLM(config), tokenizer


def bloom():
    tokenizer = byte_level(["<s>", "</s>"], begin="<s>", end="</s>")
    config = hf.BloomConfig(**sizes(tokenizer), hidden_size=32, n_layer=2, n_head=2)
    return hf.BloomForCausalLM(config), tokenizer


def falcon():
    tokenizer = byte_level([], end="<|endoftext|>", pad="<|endoftext|>")
    config = hf.FalconConfig(**sizes(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    return hf.FalconForCausalLM(config), tokenizer


def granite():
    tokenizer = byte_level(["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"], end="<|end_of_text|>")
    return reader("Granite", tokenizer, templates.GRANITE, logits_scaling=4.0, residual_multiplier=0.5)


def glm4():
    special = ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|endoftext|>"]
    tokenizer = byte_level(special, end="<|endoftext|>", pad="<|endoftext|>")
    return reader("Glm4", tokenizer, templates.GLM4, "<|user|>", head_dim=16)


def rwkv():
    tokenizer = byte_level([], end="<|endoftext|>", pad="<|endoftext|>")
    config = hf.RwkvConfig(**sizes(tokenizer), hidden_size=32, num_hidden_layers=2, context_length=1024)
    return hf.RwkvForCausalLM(config), tokenizer


TAGS = {"tags": {"question": "Question: ", "answer": "\nAnswer: "}}
THOUGHTLESS = "trains and answers with its thinking off"
NO_TEMPLATE = "has no chat template and takes `model.tags`"
EXPERTS = "LoRA leaves its experts out, which is said; rmu trains `method.activations.part=mlp.experts`"
READING = [
    Family("Llama", llama, "<|eot_id|>", "llama-3.2-1b"),
    Family("Mistral", mistral, "</s>", "mistral-7b"),
    Family("Qwen2.5", qwen2_5, "<|im_end|>", "qwen2.5-1.5b"),
    Family("Qwen3", qwen3, "<|im_end|>", "qwen3-1.7b", note=THOUGHTLESS),
    Family("Gemma-2", gemma2, "<end_of_turn>", "gemma-2-2b", note="has no sdpa: `model.attention=auto` is eager"),
    Family("Gemma-3 (words)", gemma3, "<end_of_turn>", "gemma-3-1b"),
    Family("Phi-3", phi3, "<|end|>", "phi-3-mini"),
    Family("SmolLM3", smollm3, "<|im_end|>", "smollm3-3b", note=f"{THOUGHTLESS}; its template's date is fixed"),
    Family("GPT-2", gpt2, "<|endoftext|>", "gpt2", note=NO_TEMPLATE),
    Family("OLMo2", olmo2, "<|endoftext|>", "olmo2-1b"),
    Family("GPT-NeoX", gpt_neox, "<|endoftext|>", settings=TAGS, note=NO_TEMPLATE),
    Family("OPT", opt, "</s>", settings=TAGS, note=NO_TEMPLATE),
    Family("Mixtral", mixtral, "</s>", rmu_part="mlp.experts", note=EXPERTS),
    Family("Qwen2-MoE", qwen2_moe, "<|im_end|>", rmu_part="mlp.experts", note=EXPERTS),
    Family(
        "Mamba2",
        mamba2,
        "<|endoftext|>",
        settings=TAGS,
        lora=False,
        rmu_part="mixer.out_proj",
        way="plain",
        note=f"{NO_TEMPLATE}; peft has no LoRA for its mixers: `trainer.lora=null`; rmu trains "
        "`method.activations.part=mixer.out_proj`; is scored answer by answer",
    ),
    Family(
        "Bloom",
        bloom,
        "</s>",
        settings=TAGS,
        way="plain",
        note=f"{NO_TEMPLATE}; has no sdpa; is scored answer by answer",
    ),
    Family("Falcon", falcon, "<|endoftext|>", settings=TAGS, note=NO_TEMPLATE),
    Family("Granite", granite, "<|end_of_text|>"),
    Family("GLM-4", glm4, "<|user|>", note="an answer ends with what opens the next turn"),
    Family(
        "RWKV",
        rwkv,
        "<|endoftext|>",
        settings=TAGS,
        rmu_part="feed_forward.value",
        way="alone",
        note=f"{NO_TEMPLATE}; sees its padding, so that it is scored row by row",
    ),
]


def loud(model):
    """Random weights large enough that answers differ clearly, in eval mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model.eval()


# ---- the page


def table(families: list[Family]) -> str:
    """The table of docs/models.md; `python tests/families.py` prints both."""
    lines = ["| family | file in `config/model` | an answer ends with | what is different |", "|---|---|---|---|"]
    for family in families:
        file = f"`{family.file}`" if family.file else ""
        end = family.end.replace("|", r"\|")  # a bar would end the cell
        lines.append(f"| {family.name} | {file} | `{end}` | {family.note} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(SEEING), table(READING), sep="\n\n")
