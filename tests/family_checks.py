"""What tests/mm/test_mm_families.py and tests/nlp/test_nlp_families.py ask of every family."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from engine.adapters import add_lora
from engine.frozen_start import silence_dropout
from engine.language_model import forward, freeze, load_model, save
from engine.layer_output import end_at_layer
from engine.score_answers import Prompt, score_prompts
from engine.scoring_way import Way, losses_alone, way_of_scoring
from engine.start_checks import check_silent, check_start
from families import Family, loud
from settings.language import Model
from settings.script import SettingsError
from settings.training import Activations, Lora
from unlearn_losses import IGNORE, Scored, nll

LORA = Lora(r=2, alpha=4, dropout=0.0)
FAST = ["trainer.epochs=1", "trainer.batch_size=16", "trainer.accumulation=1", "trainer.lr=1e-3", "seed=0"]
FAST += ["trainer.precision=fp32"]


@dataclass(frozen=True)
class Opened:
    """A family's model in a folder, opened as a recipe opens it."""

    family: Family
    settings: Model
    encoder: Any
    auto_class: Any

    def model(self):
        return load_model(self.auto_class, self.settings.path, self.settings, "float32").eval()


def open_family(family, folder, open_encoder, auto_class):
    """Write a family's model and processor to a folder and open them.

    Where a package is missing that it needs, the test is skipped.
    """
    if family.needs:
        pytest.importorskip(family.needs)
    model, processor = family.make()
    loud(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    settings = family.model(folder)
    return Opened(family, settings, open_encoder(str(folder), settings), auto_class)


def check_labels(opened, examples):
    """Labels decode to exactly the answer and the end that the family's template writes."""
    batch, tokenizer = opened.encoder.collate([opened.encoder.encode(each) for each in examples]), None
    tokenizer = opened.encoder.tokenizer
    for row, each in zip(batch.labels, examples, strict=True):
        assert tokenizer.decode(row[row != IGNORE]).strip() == f"{each.answer}{opened.family.end}"
        assert tokenizer.decode(row[row != IGNORE][-1]) == opened.family.end


@torch.no_grad()
def check_rows(opened, examples):
    """A row scores the same alone and in a batch of rows and pictures of many sizes."""
    model, encoded = opened.model(), [opened.encoder.encode(each) for each in examples]
    together = forward(model, opened.encoder.collate(encoded))
    for row, each in enumerate(encoded):
        alone = forward(model, opened.encoder.collate([each])).logits[0]
        assert torch.allclose(together.logits[row, : len(each.answer)], alone, atol=1e-4)


def check_scores(opened, examples):
    """What an evaluation finds to be right for a family is what is known of it, and gives what a forward of each row
    alone gives: one pass over a picture and one over a prompt for all its answers, else the latter, else a batch of
    plain passes, else row by row.
    """
    model, encoder = opened.model(), opened.encoder
    again = [replace(each, question=f"Once more: {each.question}") for each in examples if each.image is not None][:1]
    asked = [*examples, *again]
    prompts = [Prompt(each, [each.answer, "No.", "The baker of a town by the sea."]) for each in asked]
    limits = {"max_new_tokens": 6, "say": lambda line: None}
    way = way_of_scoring(model, encoder, prompts, 8, limits["say"])
    found = score_prompts(model, encoder, prompts, worth=math.inf, **way.limits, **limits)
    ways = {"shared": Way(True, 8), "by question": Way(True, 8, False), "plain": Way(False, 8), "alone": Way(False, 1)}
    assert way == ways[opened.family.way]
    for prompt, result in zip(prompts, found, strict=True):
        (alone,) = score_prompts(model, encoder, [prompt], batch_size=1, shared=False, **limits)
        assert result.said == alone.said
        for answer, own in losses_alone(model, encoder, prompt).items():
            assert result.answers[answer].losses == pytest.approx(own.losses, abs=1e-4)


def check_starts(opened, examples):
    """The checks at the start of a run find nothing to say: it is causal, looks at pictures and has no noise."""
    said, model = [], opened.model()
    check_start(model, opened.encoder, examples, forward, said.append)
    silence_dropout(model)
    check_silent(model, opened.encoder, examples, forward, said.append)
    assert said == []


def loss_of(opened, model, examples) -> torch.Tensor:
    batch = opened.encoder.collate([opened.encoder.encode(each) for each in examples])
    scored: Scored = forward(model, batch)
    return nll(scored)


def check_gradients(opened, examples):
    """Frozen parts get no gradient, the decoder does; LoRA stands on layers of the decoder and nowhere else, or is
    refused.
    """
    model = opened.model()
    freeze(model, opened.settings.freeze)
    loss_of(opened, model, examples).backward()
    for name, parameter in model.named_parameters():
        if set(opened.settings.freeze) & set(name.split(".")):
            assert parameter.grad is None, name
    assert any(parameter.grad is not None for parameter in model.get_decoder().parameters())
    if not opened.family.lora:
        with pytest.raises(SettingsError, match=r"LoRA on \w+: .*; trainer\.lora=null trains its own weights"):
            add_lora(model, LORA, opened.settings.lora_targets, seed=0)
    else:
        inside = {id(module) for module in model.get_decoder().modules()}
        head = model.get_output_embeddings()
        adapted = add_lora(model, LORA, opened.settings.lora_targets, seed=0)
        layers = [module for module in adapted.modules() if hasattr(module, "lora_A")]
        assert layers and all(id(layer.get_base_layer()) in inside for layer in layers)
        assert all(layer.get_base_layer() is not head for layer in layers)


@torch.no_grad()
def check_layer(opened, examples):
    """Ended at its first layer, as rmu asks, a model gives that layer's output at the answers' positions, or is
    refused.
    """
    model, encoder = opened.model(), opened.encoder
    if opened.family.rmu_part is None:
        with pytest.raises(SettingsError, match=r"activations check: \w+ cannot be ended at layer 0, as method"):
            end_at_layer(model, Activations(layer=0, trained=[0]))
        return
    batch = encoder.collate([encoder.encode(each) for each in examples])
    layers = next(child for child in model.get_decoder().children() if isinstance(child, torch.nn.ModuleList))
    outputs = []
    hook = layers[0].register_forward_hook(lambda _, inputs, output: outputs.append(output))
    model(**batch.inputs, use_cache=False)
    hook.remove()
    states = outputs[0] if torch.is_tensor(outputs[0]) else outputs[0][0]
    end_at_layer(model, Activations(layer=0, trained=[0]))
    given, labels = forward(model, batch)[:2]
    places = torch.arange(len(states))[:, None]
    answers = labels != IGNORE
    assert torch.allclose(given[answers], states[places, batch.positions][answers], atol=1e-4)


@torch.no_grad()
def check_saved(opened, examples, folder):
    """The logits of the saved model are those of the one in memory, its adapter at work."""
    model = opened.model()
    if opened.family.lora:
        model = add_lora(model, LORA, opened.settings.lora_targets, seed=0).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or not opened.family.lora:
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = opened.encoder.collate([opened.encoder.encode(each) for each in examples])
    before = forward(model, batch).logits
    save(opened.encoder.processor, model, folder)
    again = load_model(opened.auto_class, str(folder), replace(opened.settings, path=str(folder)), "float32").eval()
    assert torch.allclose(forward(again, batch).logits, before, atol=1e-4)
    assert not torch.allclose(before, forward(opened.model(), batch).logits, atol=1e-2)


def runs_of(opened, folder):
    """What a family is put through: (script, overrides, the folder that it makes, exit code)."""
    lora = "trainer.lora={r: 2, alpha: 4, dropout: 0.0}" if opened.family.lora else "trainer.lora=null"
    part = opened.family.rmu_part or "null"
    rmu = ["method=rmu", "method.activations={layer: 1, trained: [0, 1], part: " + part + "}"]
    return [
        ("finetune", ["trainer.lora=null"], folder / "finetune", 0),
        ("forget", ["method=npo", lora], folder / "npo", 0),
        ("forget", ["method=kl", "trainer.lora=null"], folder / "kl", 0),
        ("forget", [*rmu, "trainer.lora=null", "method.args.alpha=1"], folder / "rmu", int(not opened.family.rmu_part)),
    ]


def aggregation(folder):
    """The figures of a family's evaluation in `folder`, which stands for its gold, too."""
    log = f"{folder}/eval/eval_log_aggregated.json"
    return [f"ckpt_result={log}", f"retain_result={log}", f"save_file={folder}/row.csv", "method_name=npo"]
