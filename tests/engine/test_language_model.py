"""Models: what trains, what the frozen start is, that logits and labels are aligned, that what is saved is what was
trained.
"""

import copy
import io
import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    TrOCRConfig,
    TrOCRForCausalLM,
)

from engine.adapters import add_lora, lora_targets
from engine.encode import collate
from engine.frozen_start import FrozenStart
from engine.language_model import (
    check_model_path,
    forward,
    freeze,
    keep_statistics,
    load,
    load_for_training,
    load_model,
    packs,
    quiet_library,
    save,
)
from engine.layer_output import end_at_layer, restore_layers
from engine.record import model_fingerprint
from helpers import BASE, example, largest_difference, png, training_settings
from mm.encoder import open_encoder
from nlp.encoder import TextEncoder
from settings.language import Model
from settings.script import SettingsError
from settings.training import Activations, Lora
from unlearn_losses import IGNORE, sequence_logprob

LORA = Lora(r=4, alpha=8, dropout=0.5)
TINY = Model(
    name="tiny", path=str(BASE), freeze=[], lora_targets="language_model", attention="sdpa", weights="bfloat16"
)


def batch_of(encoder, *examples):
    return collate([encoder.encode(e) for e in examples], encoder.tokenizer.pad_token_id)


WORDS = (
    example(question="Where was Ann born?", answer="In Oslo, next to a mill, on a Sunday."),
    example(question="Who is she, and what does she write about when nobody is at home?", answer="No."),
    example(question="Where?", answer="There, at the mill."),
)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_do_not_read_each_other_and_give_what_padded_ones_give(text_base, attention, monkeypatch):
    encoder = TextEncoder(AutoTokenizer.from_pretrained(text_base), None)
    model = AutoModelForCausalLM.from_pretrained(text_base, dtype="float32", attn_implementation=attention).eval()
    assert not packs(model, {"input_ids": None, "attention_mask": None})
    batch, seen = batch_of(encoder, *WORDS), []
    padded = forward(model, batch)
    model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["input_ids"].shape), with_kwargs=True
    )
    monkeypatch.setattr("engine.language_model.packs", lambda *_: True)
    together = forward(model, batch)
    real = together.labels != IGNORE
    assert seen == [(1, batch.inputs["attention_mask"].sum())]
    assert torch.allclose(together.logits[real], padded.logits[real], atol=1e-4)
    other = {**batch.inputs, "input_ids": batch.inputs["input_ids"].clone()}
    other["input_ids"][0, :4] += 1  # another first question
    changed = replace(batch, inputs=other)
    assert torch.allclose(forward(model, changed).logits[1][real[1]], together.logits[1][real[1]], atol=1e-5)


def test_only_rows_of_words_under_flash_attention_are_packed(text_base, model):
    words = {"input_ids": None, "attention_mask": None}
    reader = AutoModelForCausalLM.from_pretrained(text_base)
    for each in (reader, model):
        each.config._attn_implementation = "flash_attention_2"
    assert packs(reader, words) and packs(add_lora(reader, LORA, "language_model", 0), words)
    assert not packs(reader, words | {"pixel_values": None}) and not packs(model, words)


MIXED = (
    example(image=png("red"), answer="Ann Lee smiles."),
    example(question="Where was Ann born?", answer="In Oslo, next to a mill, on a Sunday."),
    example(image=png("blue"), answer="No."),
)


@torch.no_grad()
def test_score_gives_the_logits_before_each_answer_token(model, encoder):
    batch = batch_of(encoder, *MIXED)
    scored = forward(model, batch)
    logits = model(**batch.inputs).logits
    for row in range(3):
        start = encoder.encode(MIXED[row]).prompt["input_ids"].shape[1] - 1
        count = len(encoder.answer_tokens(MIXED[row].answer))
        assert torch.allclose(scored.logits[row, :count], logits[row, start : start + count], atol=1e-5)
    assert scored.logits.shape == (*scored.labels.shape, len(encoder.tokenizer))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_a_row_scores_the_same_alone_and_in_a_mixed_batch(family, model, encoder, qwen, qwen_encoder):
    network, own = (model, encoder) if family == "llava" else (qwen, qwen_encoder)
    together = sequence_logprob(forward(network, batch_of(own, *MIXED)))
    alone = torch.cat([sequence_logprob(forward(network, batch_of(own, e))) for e in MIXED])
    assert torch.allclose(together, alone, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_changing_the_picture_changes_the_scores_of_picture_rows_only(family, model, encoder, qwen, qwen_encoder):
    network, own = (model, encoder) if family == "llava" else (qwen, qwen_encoder)
    seen = sequence_logprob(forward(network, batch_of(own, *MIXED)))
    other = sequence_logprob(
        forward(network, batch_of(own, example(image=png("green"), answer=MIXED[0].answer), *MIXED[1:]))
    )
    assert (seen - other).abs()[0] > 1e-4 and torch.allclose(seen[1:], other[1:], atol=1e-4)


def test_a_frozen_part_gets_no_gradient_and_everything_else_does(model, encoder):
    freeze(model, ["vision_tower"])
    sequence_logprob(forward(model, batch_of(encoder, *MIXED))).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not any("vision_tower" in name for name in with_gradient)
    assert any("multi_modal_projector" in name for name in with_gradient) and any(
        "language_model" in name for name in with_gradient
    )


def test_a_batch_norm_keeps_its_means_in_training_and_no_row_depends_on_others():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    rows = torch.randn(4, 2)
    alone = network.eval()(rows[:1])
    keep_statistics(network)
    together = copy.deepcopy(network).train()(rows)
    assert torch.allclose(together[:1], alone)
    assert torch.equal(network[1].running_mean, torch.zeros(3))
    assert network.train()(rows).requires_grad


def test_an_unknown_part_to_freeze_is_an_error(model):
    with pytest.raises(SettingsError, match="no part of LlavaForConditionalGeneration is named 'vison_tower'"):
        freeze(model, ["vison_tower"])


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_lora_lands_on_the_language_models_linear_layers_only(family, model, qwen):
    names = lora_targets(model if family == "llava" else qwen, "language_model")
    assert names and all(".language_model." in f".{name}." for name in names)
    assert not any(part in name for name in names for part in ("lm_head", "vision", "visual", "projector", "merger"))
    layers = model.config.text_config.num_hidden_layers if family == "llava" else 2
    assert len(names) == 7 * layers  # q, k, v, o, gate, up, down


def test_lora_targets_that_match_nothing_are_an_error(model):
    with pytest.raises(SettingsError, match="matches no linear layer"):
        lora_targets(model, "no_such_layer$")


def tiny(family):
    """A model of three layers of 32 features; 64 in the middle of the MLP."""
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, **ids))
    if family == "mixtral":
        experts = {"num_local_experts": 2, "num_key_value_heads": 4}
        return MixtralForCausalLM(MixtralConfig(intermediate_size=64, **sizes, **experts, **ids))
    return PhiForCausalLM(PhiConfig(intermediate_size=64, **sizes, **ids))


def trained_names(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


DOWN_PROJECTIONS = {
    "llava": ["model.language_model.layers.{}.mlp.down_proj.weight"],
    "qwen": ["model.language_model.layers.{}.mlp.down_proj.weight"],
    "phi": ["model.layers.{}.mlp.fc2.weight", "model.layers.{}.mlp.fc2.bias"],
    "gpt2": ["transformer.h.{}.mlp.c_proj.weight", "transformer.h.{}.mlp.c_proj.bias"],
}


@pytest.mark.parametrize("family", DOWN_PROJECTIONS)
def test_the_down_projections_of_the_named_layers_train_whatever_the_model_calls_them(family, model, qwen):
    network = {"llava": model, "qwen": qwen}.get(family) or tiny(family)
    end_at_layer(network, Activations(layer=1, trained=[0, 1], part="down_projection"))
    assert trained_names(network) == {name.format(layer) for name in DOWN_PROJECTIONS[family] for layer in (0, 1)}


def test_a_part_is_also_named_as_the_layer_names_it():
    network = tiny("phi")
    end_at_layer(network, Activations(layer=2, trained=[2], part="mlp"))
    parts = [f"model.layers.2.mlp.{part}" for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")]
    assert trained_names(network) == {*parts}


@torch.no_grad()
def test_a_decoder_that_calls_its_layers_otherwise_ends_at_one_and_is_whole_again():
    network, ids = tiny("gpt2").eval(), torch.tensor([[3, 4, 5]])
    states = network(ids, output_hidden_states=True).hidden_states[2]  # 0: embeddings, 2: output of layer 1
    logits = network(ids).logits
    end_at_layer(network, Activations(layer=1, trained=[1], part="mlp.c_proj"))
    assert trained_names(network) == {f"transformer.h.1.mlp.c_proj.{name}" for name in ("weight", "bias")}
    assert torch.equal(network(ids).logits, states)
    assert torch.equal(restore_layers(network)(ids).logits, logits)


@pytest.mark.parametrize(
    ("family", "part", "known"),
    [
        ("phi", "mlp.fc3", "down_projection, self_attn, .*, mlp.fc1, mlp.fc2, input_layernorm$"),
        ("phi", "", "down_projection, self_attn, .*"),
        ("gpt2", "mlp.c_down", "down_projection, ln_1, attn, .*, mlp.c_fc, mlp.c_proj$"),
        ("mixtral", "down_projection", "self_attn, .*, mlp.experts, "),  # its experts share one tensor
    ],
)
def test_a_part_that_a_layer_does_not_have_is_refused_with_those_that_it_has(family, part, known):
    line = rf"^method.activations.part='{part}' is not known.*; choose from {known}"
    with pytest.raises(SettingsError, match=line):
        end_at_layer(tiny(family), Activations(layer=1, trained=[1], part=part))


@torch.no_grad()
@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_the_reference_is_the_starting_model_and_stays_it(lora, model, encoder):
    batch = batch_of(encoder, *MIXED)
    start = forward(model, batch).logits.clone()
    network = add_lora(model, lora, "language_model", seed=0) if lora else model
    reference = FrozenStart(network, "fp32")
    network.train()
    for name, parameter in network.named_parameters():
        if lora is None or "lora_B" in name:
            parameter.add_(0.02)
    with reference.model(network) as frozen:
        assert not frozen.training
        assert torch.allclose(forward(frozen, batch).logits, start, atol=1e-5)
    assert network.training
    network.eval()
    assert not torch.allclose(forward(network, batch).logits, start, atol=1e-2)


@torch.no_grad()
def test_a_small_update_of_bf16_weights_survives_the_merge(encoder, tmp_path):
    """A delta far under half a unit in the last place of bf16 is in the saved weights, because the merge is done in
    fp32.
    """
    network = load_for_training(AutoModelForImageTextToText, training_settings(TINY, lora=LORA))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 1e-5)
    save(encoder.processor, network, tmp_path)
    start, merged = load_file(BASE / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    changed = [
        (merged[n] != start[n].float()).float().mean().item() for n in merged if "language_model" in n and "_proj" in n
    ]
    assert min(changed) > 0.9


@torch.no_grad()
def test_a_saved_adapter_run_holds_merged_weights_and_the_adapter_beside_them(model, encoder, tmp_path):
    network = add_lora(model, LORA, "language_model", seed=0)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.05)
    batch = batch_of(encoder, *MIXED)
    trained = forward(network.eval(), batch).logits.clone()
    save(encoder.processor, network, tmp_path)
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert torch.allclose(forward(saved, batch).logits, trained, atol=1e-4)
    adapter = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(BASE, dtype="float32"), tmp_path / "adapter"
    ).eval()
    assert torch.allclose(forward(adapter, batch).logits, trained, atol=1e-4)
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.get_vocab() == encoder.tokenizer.get_vocab()


def test_full_training_keeps_fp32_weights_and_lora_keeps_the_files_dtype():
    assert {p.dtype for p in load_for_training(AutoModelForImageTextToText, training_settings(TINY)).parameters()} == {
        torch.float32
    }
    adapted = load_for_training(AutoModelForImageTextToText, training_settings(TINY, lora=LORA))
    assert {p.dtype for name, p in adapted.named_parameters() if "lora" not in name} == {torch.bfloat16}
    assert all(p.requires_grad == ("lora" in name) for name, p in adapted.named_parameters())


def test_the_same_seed_gives_the_same_adapter(model):
    def first(seed):
        network = add_lora(
            AutoModelForImageTextToText.from_pretrained(BASE, dtype="float32"), LORA, "language_model", seed
        )
        return next(p for name, p in network.named_parameters() if "lora_A" in name)

    assert torch.equal(first(0), first(0)) and not torch.equal(first(0), first(1))


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt", "merges.txt", "pytorch_model.bin", "modeling_own.py"])
def test_a_file_that_a_model_is_read_from_changes_its_fingerprint(name, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("one")
    before = model_fingerprint(str(tmp_path))
    (tmp_path / name).write_text("two!")
    assert model_fingerprint(str(tmp_path)) != before


def test_a_fingerprint_follows_weights_and_chat_template_and_nothing_else(model, encoder, tmp_path):
    save(encoder.processor, model, tmp_path)
    before = model_fingerprint(str(tmp_path))
    (tmp_path / "train_meta.json").write_text("{}")
    assert model_fingerprint(str(tmp_path)) == before
    (tmp_path / "chat_template.jinja").write_text("other")
    other_template = model_fingerprint(str(tmp_path))
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path)
    assert len({before, other_template, model_fingerprint(str(tmp_path))}) == 3


# ---- model folders as people have them


@pytest.fixture
def changed(tmp_path):
    """Copies of the tiny base model with other tensors or files."""

    def make(change=lambda weights: None, **config):
        folder = tmp_path / "changed"
        shutil.copytree(BASE, folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        told = json.loads((folder / "config.json").read_text())
        told["text_config"] |= config
        (folder / "config.json").write_text(json.dumps(told))
        return folder

    return make


def load_error(folder, capfd):
    """The one line that loading a folder ends in, with no other line of a library beside it."""
    capfd.readouterr()
    with pytest.raises(SettingsError) as caught:
        load_model(AutoModelForImageTextToText, str(folder), TINY, "float32")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"model_path='{folder}'")
    said = capfd.readouterr()
    assert "REPORT" not in said.out + said.err
    return line


def test_a_whole_model_loads(changed):
    model = load_model(AutoModelForImageTextToText, str(changed()), TINY, "float32")
    expected = AutoModelForImageTextToText.from_pretrained(BASE, dtype="float32")
    assert largest_difference(model.state_dict(), expected.state_dict()) == 0


QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"


@pytest.mark.parametrize("name", [QUERY, EMBEDDING, "language_model.model.norm.weight"])
def test_a_model_that_lacks_a_tensor_is_refused_and_not_filled_with_random_numbers(name, changed, capfd):
    line = load_error(changed(lambda weights: weights.pop(name)), capfd)
    assert "the files lack tensor '" in line
    assert name.split(".")[-2] in line or "lm_head" in line  # the head is the embedding


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(changed, capfd):
    line = load_error(changed(lambda weights: weights.update({QUERY: weights[QUERY][:-1].clone()})), capfd)
    assert "has shape (191, 192), and config.json makes it (192, 192)" in line


def test_a_tensor_without_a_place_is_refused(changed, capfd):
    line = load_error(changed(lambda weights: weights.update({"score.weight": torch.ones(2)})), capfd)
    assert "the files hold tensor 'score.weight' (1 in all), which this kind of model has no place for" in line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_refused(value, changed, capfd):
    line = load_error(changed(lambda weights: weights[QUERY][0].fill_(value)), capfd)
    assert "q_proj.weight' holds NaN or infinity" in line


def test_a_torn_file_of_weights_is_refused(changed, capfd):
    folder = changed()
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "could not be loaded" in load_error(folder, capfd)


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"model_type": "no such"}', '{"model_type": 7}', "\x00"])
def test_a_broken_configuration_is_one_line(content, changed, capfd):
    folder = changed()
    (folder / "config.json").write_text(content)
    assert "could not be loaded" in load_error(folder, capfd)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pth", "tf_model.h5", "model-q8_0.gguf", "flax_model.msgpack"]
)
def test_weights_of_another_format_are_refused_with_the_way_to_convert_them(name, changed, capfd):
    folder = changed()
    (folder / "model.safetensors").rename(folder / name)
    line = load_error(folder, capfd)
    assert f"holds its weights in '{name}', and only safetensors are read" in line
    assert "from_pretrained() and save_pretrained() to another folder convert them" in line


def test_other_weights_beside_safetensors_are_not_read(changed):
    folder = changed()
    (folder / "pytorch_model.bin").write_bytes(b"another model")
    load_model(AutoModelForImageTextToText, str(folder), TINY, "float32")


def test_a_folder_without_weights_is_refused(changed, capfd):
    folder = changed()
    (folder / "model.safetensors").unlink()
    assert "holds no weights (no *.safetensors)" in load_error(folder, capfd)


@pytest.mark.parametrize("config", [True, False], ids=["beside a model", "alone"])
def test_an_adapter_is_no_model(config, model, encoder, tmp_path, capfd):
    save(encoder.processor, add_lora(model, LORA, "language_model", seed=0), tmp_path)
    if config:
        shutil.copy(tmp_path / "config.json", tmp_path / "adapter")
    assert "holds an adapter (adapter_config.json) and no whole model" in load_error(tmp_path / "adapter", capfd)
    load_model(AutoModelForImageTextToText, str(tmp_path), TINY, "float32")  # the merged one beside it is


def test_a_tokenizer_that_knows_more_tokens_than_the_model_is_refused_before_weights_load(changed, encoder):
    known = len(encoder.tokenizer)
    most = max(encoder.tokenizer.get_vocab().values())
    folder = str(changed(vocab_size=most))
    with pytest.raises(SettingsError, match=f"numbers tokens up to {most} .*vocab_size {most}: they are not of one"):
        open_encoder(folder, TINY)
    assert known == most + 1
    open_encoder(str(BASE), TINY)  # where the model has a row for each


def test_a_model_may_have_more_rows_than_its_tokenizer_has_tokens(changed):
    assert open_encoder(str(changed(vocab_size=100_000)), TINY)


def test_a_kind_of_model_that_cannot_be_asked_for_the_answers_logits_alone_is_refused(tmp_path):
    small = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    TrOCRForCausalLM(TrOCRConfig(vocab_size=32, **small)).save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="TrOCRForCausalLM takes no logits_to_keep, by which answers are scored"):
        load_model(AutoModelForCausalLM, str(tmp_path), replace(TINY, attention="eager"), "float32")


@pytest.mark.parametrize("path", ["models/none", "/no/where", "a/b/c", "models/mm/x/y/z"])
def test_a_missing_model_is_said_before_anything_loads(path):
    with pytest.raises(SettingsError, match="does not exist"):
        check_model_path(path)


def test_labels_outside_the_answer_are_ignored(encoder):
    labels = batch_of(encoder, *MIXED).labels
    assert (labels[2] != IGNORE).sum() == len(encoder.answer_tokens("No."))
    assert labels.dtype == torch.long


@pytest.fixture
def with_code(changed):
    """A copy of the tiny model that comes with code of its own, which says so if it ever runs."""

    def make(file, told):
        folder = changed()
        settings = json.loads((folder / file).read_text()) | told
        (folder / file).write_text(json.dumps(settings))
        for module in ("modeling_own", "configuration_own", "tokenization_own"):
            (folder / f"{module}.py").write_text("raise SystemExit('the code of the model ran')")
        return folder

    return make


def test_a_model_with_code_of_its_own_is_refused_in_those_words_and_the_code_does_not_run(with_code, capfd):
    of_model = {"AutoConfig": "configuration_own.Own", "AutoModelForImageTextToText": "modeling_own.Own"}
    folder = with_code("config.json", {"model_type": "own", "auto_map": of_model})
    line = load_error(folder, capfd)
    assert "comes with code of its own, which is not run" in line
    assert "model.trust_remote_code=true" in line


@pytest.mark.parametrize("auto_class", [AutoProcessor, AutoTokenizer])
def test_a_tokenizer_with_code_of_its_own_is_refused_and_not_passed_over(auto_class, with_code):
    own = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    folder = with_code("tokenizer_config.json", own)
    with pytest.raises(SettingsError, match="its tokenizer comes with code of its own, which is not run"):
        load(auto_class, str(folder), TINY)


# ---- the library's own lines


@pytest.mark.parametrize("propagates", [False, True])
def test_the_librarys_lines_are_kept_away_for_a_while_also_one_in_another(propagates, monkeypatch):
    """Where `CI` is set the library hands its lines on to the root's handlers, too."""
    written = io.StringIO()
    library, handler = logging.getLogger("transformers"), logging.StreamHandler(written)
    monkeypatch.setattr(library, "propagate", propagates)
    whose = logging.getLogger() if propagates else library
    whose.addHandler(handler)
    line = logging.getLogger("transformers.models.llama").error
    try:
        with quiet_library():
            with quiet_library():
                line("inner")
            line("outer")
            logging.getLogger("another").error("another's")
        line("after")
    finally:
        whose.removeHandler(handler)
    assert written.getvalue() == ("another's\nafter\n" if propagates else "after\n")
    assert handler.filters == []
