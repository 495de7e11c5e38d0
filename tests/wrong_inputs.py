"""Wrong inputs of every script, each with the one line that it prints: `python tests/wrong_inputs.py` writes
docs/errors.md from them, and tests/test_errors.py holds the page and the scripts to each other.
"""

import contextlib
import importlib
import io
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import broken_files as broken
from cv.division import read_division
from cv.face_settings import FaceModel, Pretrain
from cv.network import new_network, save_network
from helpers import ENVIRONMENT, ROOT, png, write_faces
from mini_clear.dataset_folder import write_world
from mini_clear.text_base import write_text_base
from settings.script import compose

PAGE = ROOT / "docs" / "errors.md"
BASE_MODEL = "model_path=mini_clear/base_model"
TYPO = "mm/finetune.py: an unknown modality"  # which is launched in the other ways too
DIVISION = "division.json"  # of faces, which is written once for all runs, before any picture is read
MODEL, ROWS = "model_path=<folder>/model", ["data.path=<folder>/rows", "split=full"]
LOG = "eval_log_aggregated.json"
JUDGED, GOLD = f"ckpt_result=<folder>/judged/{LOG}", f"retain_result=<folder>/gold/{LOG}"

# What is typed behind each script before the wrong input, so that all else is right.
RIGHT = {
    "mm": ["data.path=<world>/clear", "data.text_path=<world>/tofu", "data.made_by=''", "save_dir=<folder>/out"],
    "nlp": ["data.text_path=<world>/tofu", "data.made_by=''", "save_dir=<folder>/out"],
    "cv": [
        "data.people.path=<faces>/people",
        "data.pretraining.path=<faces>/pretraining",
        "data.made_by=''",
        "data.split_file=<faces>/division.json",
        "data.forget_pool=4",
        "data.train=4",
        "data.enrol=2",
        "model.size=40",
        "model.width=4",
        "model.embedding=8",
        "save_dir=<folder>/out",
    ],
    "mm/forget.py": [BASE_MODEL],
    "mm/eval.py": [BASE_MODEL],
    "mm/alternatives.py": [BASE_MODEL],
    "nlp/finetune.py": ["model.made_by=''", "model_path=<model>"],
    "nlp/forget.py": ["model.made_by=''", "model_path=<model>"],
    "nlp/eval.py": ["model.made_by=''", "model_path=<model>"],
    "nlp/alternatives.py": ["model.made_by=''", "model_path=<model>"],
    "nlp/membership.py": ["model.made_by=''", "model_path=<model>", "models=12", "shadows_dir=<folder>/shadows"],
    "cv/finetune.py": ["model_path=<network>"],
    "cv/forget.py": ["model_path=<network>"],
    "cv/eval.py": ["model_path=<network>"],
    "cv/attack.py": ["model_path=<network>", "models=10", "targets=2", "shadows_dir=<folder>/shadows"],
    "aggregate_eval_stat.py": [JUDGED, GOLD, "scoring=nlp", "save_file=<folder>/out.csv"],
    "run_benchmark.py": ["results_dir=<folder>/out"],
}
SCRIPTS = {  # heading on the page -> module
    "mm/finetune.py": "mm.finetune",
    "mm/forget.py": "mm.forget",
    "mm/eval.py": "mm.eval",
    "mm/alternatives.py": "mm.alternatives",
    "nlp/finetune.py": "nlp.finetune",
    "nlp/forget.py": "nlp.forget",
    "nlp/eval.py": "nlp.eval",
    "nlp/alternatives.py": "nlp.alternatives",
    "nlp/membership.py": "nlp.membership",
    "cv/pretrain.py": "cv.pretrain",
    "cv/finetune.py": "cv.finetune",
    "cv/forget.py": "cv.forget",
    "cv/eval.py": "cv.eval",
    "cv/attack.py": "cv.attack",
    "aggregate_eval_stat.py": "aggregate_eval_stat",
    "run_benchmark.py": "run_benchmark",
    "python -m report": "report.__main__",
    "python -m mini_clear": "mini_clear.__main__",
}


@dataclass(frozen=True)
class WrongInput:
    """What a user typed behind a script."""

    script: str
    wrong: str  # what is wrong with it
    typed: tuple[str, ...]  # <folder> stands for the folder of the case, <world> and others for the `Places`
    prepare: broken.Prepare

    @property
    def name(self) -> str:
        return f"{self.script}: {self.wrong}"


def wrong(script: str, what: str, *typed: str, files: broken.Prepare = broken.no_files) -> WrongInput:
    """A wrong input; `files` are put into its folder before."""
    return WrongInput(script, what, typed, files)


def settings_inputs() -> Iterator[WrongInput]:
    """What is typed amiss: names, types, ranges, choices."""
    script = "mm/finetune.py"
    yield wrong(script, "a mistyped setting", "sede=1")
    yield wrong(script, "a mistyped setting of a group", "trainer.lrr=1e-4")
    yield wrong(script, "a mistyped group", "trainr=tofu_lora")
    yield wrong(script, "a setting of another script", "method=npo")
    yield wrong(script, "an unknown model", "model=lava-1.5-7b")
    yield wrong(script, "an unknown dataset", "data=claer")
    yield wrong(script, "an unknown trainer", "trainer=lora")
    yield wrong(script, "no model at all", "model=null")
    yield wrong(script, "a word for a number", "trainer.lr=fast")
    yield wrong(script, "a float for a whole number", "trainer.epochs=1e3")
    yield wrong(script, "no number", "trainer.lr=nan")
    yield wrong(script, "a number too large for a float", "trainer.lr=1e400")
    yield wrong(script, "zero epochs", "trainer.epochs=0")
    yield wrong(script, "a slip of the finger", "trainer.epochs=10000000000000000000000")
    yield wrong(script, "a negative seed", "seed=-1")
    yield wrong(script, "a seed that numpy does not take", "seed=4294967296")
    yield wrong(script, "people without rows", "data.rows_per_person=0")
    yield wrong(script, "null where a number is due", "seed=null")
    yield wrong(script, "a share above 1", "trainer.warmup_ratio=10")
    yield wrong(script, "an unknown precision", "trainer.precision=fp8")
    yield wrong(script, "an unknown optimizer", "trainer.optimizer=adam")
    yield wrong(script, "an unknown schedule", "trainer.schedule=cosin")
    yield wrong(script, "an unknown modality", "modality=txt")
    yield wrong(script, "neither true nor false", "overwrite=maybe")
    yield wrong(script, "a text for a list", "model.freeze=vision_tower")
    yield wrong(script, "an adapter without its scale", "trainer.lora={r: 8}")
    yield wrong(script, "an adapter without effect", "trainer.lora={r: 8, alpha: 0, dropout: 0.0}")
    yield wrong(script, "an adapter alone where there is none", "trainer.save=adapter")
    yield wrong(script, "retain rows by length without buckets", "trainer.bucket=0", "trainer.bucket_retain=true")
    yield wrong(script, "retain rows by length in a finetuning", "trainer.bucket=8", "trainer.bucket_retain=true")
    yield wrong(script, "quantized weights that would train", "model.quantize=4bit")
    quantized = ("model.quantize=4bit", "trainer.lora={r: 8, alpha: 8, dropout: 0.0}", "trainer.save=adapter")
    yield wrong(script, "quantized weights without a GPU", *quantized)
    yield wrong(script, "a number for a mapping", "trainer.lora=8")
    yield wrong(script, "a reference to nothing", "split=${nothing.here}")
    yield wrong(script, "a setting that must be given", "split=???")


def syntax_inputs() -> Iterator[WrongInput]:
    """What is no setting."""
    script = "nlp/forget.py"
    yield wrong(script, "a name without a value", "trainer.lr")
    yield wrong(script, "a value without a name", "=3")
    yield wrong(script, "a lone sign", "+")
    yield wrong(script, "two values", "seed=3=4")
    yield wrong(script, "an open bracket", "method.args={beta: 0.1")
    yield wrong(script, "an open quotation mark", "split='forget10")
    yield wrong(script, "a sweep without -m", "seed=0,1")
    yield wrong(script, "a list of methods", "method=[npo,idk]")
    yield wrong(script, "a setting that is there already", "+seed=1")
    yield wrong(script, "a required setting taken away", "~method")
    yield wrong(script, "an option of other programs", "--epochs=3")
    yield wrong(script, "an unknown method within a sweep", "-m", "method=idk,nppo")
    own = ("--config-dir=<folder>/own", "method=mine")
    yield wrong(script, "two jobs of a sweep in one folder", "-m", "seed=0,1", "save_dir=<folder>/out")
    yield wrong(script, "a wrong value of one job of a sweep", "-m", "trainer.lr=1e-4,-1")
    yield wrong(script, "a launcher of sweeps that is not there", "-m", "seed=0,1", "hydra/launcher=slurm")
    yield wrong(script, "two things at once", "-m", "--cfg=job", "seed=0,1")
    yield wrong(script, "a folder of settings that is not there", *own)
    tab = broken.text_file("own/method/mine.yaml", "name: mine\n\tloss: npo\n")
    yield wrong(script, "a tab in a YAML file", *own, files=tab)
    twice = broken.text_file("own/method/mine.yaml", "name: mine\nloss: npo\nloss: idk\n")
    yield wrong(script, "a key that stands twice in a YAML file", *own, files=twice)
    listed = broken.text_file("own/method/mine.yaml", "- npo\n- idk\n")
    yield wrong(script, "a YAML file that is a list", *own, files=listed)
    empty = broken.text_file("own/method/mine.yaml", "")
    yield wrong(script, "an empty YAML file", *own, files=empty)


def folder_inputs() -> Iterator[WrongInput]:
    """Where to write."""
    script = "mm/finetune.py"
    taken = broken.text_file("taken/notes.txt", "mine")
    yield wrong(script, "a save_dir that exists", "save_dir=<folder>/taken", files=taken)
    yield wrong(script, "a save_dir that is no former run", "save_dir=<folder>/taken", "overwrite=true", files=taken)
    file = broken.text_file("notes.txt", "mine")
    yield wrong(script, "a save_dir below a file", "save_dir=<folder>/notes.txt/out", files=file)
    yield wrong(script, "no save_dir", "save_dir=")
    yield wrong(script, "a name that no folder can have", f"save_dir=<folder>/{'x' * 256}")


def row_inputs() -> Iterator[WrongInput]:
    """Datasets that cannot be read."""
    script = "mm/finetune.py"
    question = broken.QUESTION
    yield wrong(script, "a dataset that is not there", "data.path=no/such/folder")
    yield wrong(script, "a file for a dataset", "data.path=README.md")
    yield wrong(script, "no path of a dataset", "data.path=''")
    yield wrong(script, "a split that is not there", "split=retain85+tofu")
    yield wrong(script, "a folder without rows", *ROWS, files=broken.empty_folder("rows"))
    yield wrong(script, "a torn parquet file", *ROWS, files=broken.torn_parquet)
    yield wrong(script, "a parquet file without rows", *ROWS, files=broken.parquet_without_rows)
    yield wrong(script, "a file without rows", *ROWS, files=broken.jsonl())
    yield wrong(script, "a line that is no JSON", *ROWS, files=broken.jsonl(question, "{'question': 'Who?'}"))
    yield wrong(script, "a line that is no row", *ROWS, files=broken.jsonl(question, "[1, 2]"))
    yield wrong(script, "a missing column", *ROWS, files=broken.jsonl({"question": "Who?", "anser": "Ann."}))
    yield wrong(script, "an empty cell", *ROWS, files=broken.jsonl(question, question | {"answer": " "}))
    yield wrong(script, "a number for a text", *ROWS, files=broken.jsonl(question | {"answer": 7}))
    both = broken.jsonl(question | {"caption": "Ann smiles.", "image": "a.png"}, name="rows/full.jsonl")
    both = broken.all_of(both, broken.one_picture("rows/a.png"))
    yield wrong(script, "a caption beside a question", *ROWS, files=both)
    captioned = broken.jsonl({"image": "a.png", "caption": "Ann smiles."})
    yield wrong(script, "a picture that is not there", *ROWS, files=captioned)
    linked = broken.all_of(captioned, broken.broken_link("rows/a.png"))
    yield wrong(script, "a link to no picture", *ROWS, files=linked)
    outside = broken.jsonl({"image": "../a.png", "caption": "Ann smiles."})
    outside = broken.all_of(outside, broken.one_picture("a.png"))
    yield wrong(script, "a picture outside the dataset", *ROWS, files=outside)
    page = broken.parquet_picture(b"<html><body>not found</body></html>")
    yield wrong(script, "a page for a picture", *ROWS, files=page)
    yield wrong(script, "a picture cut in half", *ROWS, files=broken.parquet_picture(png("red")["bytes"][:90]))
    yield wrong(script, "a picture of too many pixels", *ROWS, files=broken.parquet_picture(broken.huge_png()))
    card = broken.all_of(broken.jsonl(question), broken.text_file("rows/README.md", "---\nconfigs: [\n---\n"))
    yield wrong(script, "a dataset card that is no YAML", *ROWS, files=card)
    yield wrong(script, "a dataset with code of its own", *ROWS, files=broken.text_file("rows/rows.py", "x = 1"))
    twins = broken.all_of(broken.jsonl(question), broken.jsonl(question, name="rows/full/part.jsonl"))
    yield wrong(script, "a split that is there twice", *ROWS, files=twins)


def model_inputs() -> Iterator[WrongInput]:
    """Model folders that are not whole."""
    script = "mm/forget.py"
    yield wrong(script, "a model that is not there", "model_path=models/none")
    yield wrong(script, "a file for a model", "model_path=README.md")
    yield wrong(script, "no path of a model", "model_path=''")
    yield wrong(script, "a folder that is no model", MODEL, files=broken.empty_folder("model"))
    pickled = broken.all_of(broken.model_without("model.safetensors"), broken.text_file("model/model.bin", "x"))
    yield wrong(script, "weights of another format", MODEL, files=pickled)
    yield wrong(script, "no weights", MODEL, files=broken.model_without("model.safetensors"))
    yield wrong(script, "an adapter", MODEL, files=broken.model_with("adapter_config.json", "{}"))
    yield wrong(script, "weights cut off", MODEL, files=broken.torn_weights)
    lost = broken.changed_weights(lambda tensors: tensors.pop(min(tensors)))
    yield wrong(script, "a missing tensor", MODEL, files=lost)
    cut = broken.changed_weights(lambda tensors: tensors.update({min(tensors): tensors[min(tensors)][:1].clone()}))
    yield wrong(script, "a tensor of another shape", MODEL, files=cut)
    yield wrong(script, "a tensor that is NaN", MODEL, files=broken.changed_weights(broken.not_a_number))
    yield wrong(script, "a config.json that is no JSON", MODEL, files=broken.model_with("config.json", "{"))
    code = '{"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.Own"}}'
    yield wrong(script, "a model with code of its own", MODEL, files=broken.model_with("config.json", code))
    unknown = broken.model_with("config.json", '{"model_type": "lava"}')
    yield wrong(script, "a kind of model that nobody knows", MODEL, files=unknown)
    no_tokenizer = broken.model_without("tokenizer.json", "tokenizer_config.json")
    yield wrong(script, "no tokenizer", MODEL, files=no_tokenizer)
    yield wrong(script, "more tokens than the model has", MODEL, files=broken.small_vocabulary)
    template = broken.model_with("chat_template.jinja", "{% for message in messages %}")
    yield wrong(script, "a chat template that is open", MODEL, files=template)
    dropping = broken.model_with("chat_template.jinja", "<user>hello<assistant>")
    yield wrong(script, "a chat template without the question", MODEL, files=dropping)


def method_inputs() -> Iterator[WrongInput]:
    """What a forgetting is told."""
    script = "mm/forget.py"
    yield wrong(script, "a method that is called like base", "method.name=base")
    yield wrong(script, "an unknown method", "method=nppo")
    yield wrong(script, "rows to forget that are also kept", "retain_split=full+tofu")
    yield wrong(script, "a mistyped hyperparameter", "+method.args.gama=1")
    yield wrong(script, "a word for a hyperparameter", "method.args.beta=high")
    yield wrong(script, "a hyperparameter that is null", "method.args.beta=null")
    yield wrong(script, "a hyperparameter that would divide by zero", "method.args.beta=0")
    yield wrong(script, "a weight that turns a term round", "method.args.retain_weight=-1")
    yield wrong(script, "a loss that is not there", "method.loss=nppo")
    yield wrong(script, "a method of face recognition", "method=twins")
    yield wrong(script, "a method with a teacher that faces alone have", "method=bad_teacher")
    yield wrong(script, "a layer that is not there", "method=rmu", "method.activations.layer=40")
    yield wrong(script, "a part that is never trained", "model.freeze=[eye]")
    lora = "trainer.lora={r: 4, alpha: 8, dropout: 0.0}"
    yield wrong(script, "a broken regular expression", lora, "model.lora_targets='layers.(0|1'")
    yield wrong(script, "a pattern that matches nothing", lora, "model.lora_targets=q_porj")
    yield wrong(script, "a mask beside an adapter", "method=salun", "trainer.weight_decay=0", lora)
    yield wrong(script, "a rule that is not there", "method=gru", "method.gradient.rule=projekt")
    yield wrong(script, "a rule without its value", "method=npo_sam", "~method.gradient.args.rho")
    yield wrong(script, "a rule of retain rows without any", "method=gru", "method.args.retain_weight=0")
    undecayed = ("method=mmunlearner", "trainer.weight_decay=0")
    yield wrong(script, "a method of pictures on words", *undecayed, "modality=text")
    yield wrong(script, "a comparison with words that are not read", *undecayed, "modality=visual")
    yield wrong(script, "a scope that is not there", "+method.scope=faces")
    yield wrong(script, "invented answers that no file has", "method=altpo", "data.alternatives=''")
    yield wrong(script, "a file of invented answers that is not there", "method=altpo", "data.alternatives=no.jsonl")
    invented = broken.text_file("own.jsonl", '{"question": null, "answer": "Ann.", "alternatives": "Bea."}')
    own = "data.alternatives=<folder>/own.jsonl"
    yield wrong(script, "invented answers that are no list", "method=altpo", own, files=invented)
    yield wrong(script, "an edit beside an adapter", "method=kvw", lora)
    yield wrong(script, "a rule of edits that is not there", "method=kvw", "method.edit.rule=kwv")
    yield wrong(script, "a method that does nothing", "method.loss=null")
    yield wrong(script, "an adapter alone of a combined update", "method=smfa", lora, "trainer.save=adapter")
    yield wrong(
        script, "a part without its value", "method=smfa", "~method.combine.parts.forgetting.args.retain_weight"
    )
    yield wrong(script, "a rule of updates that is not there", "method=smfa", "method.combine.rule=scuplt")
    yield wrong(script, "a combination judged at every epoch", "method=smfa", "epoch_eval=mm")
    yield wrong(script, "adapters that begin without LoRA", "method=fila", "trainer.lora=null")
    yield wrong(script, "an adapter alone that begins with weights", "method=fila", lora, "trainer.save=adapter")
    yield wrong(script, "adapters that begin with rounded weights", "method=fila", lora, "model.weights=bfloat16")
    yield wrong(script, "adapters that begin, and a start to compare with", "method=fila", lora, "+method.retain=kl")
    yield wrong(script, "a hook beside an adapter", "method=mllmeraser", lora)
    yield wrong(script, "a hook at a layer that is not there", "method=mllmeraser")
    yield wrong(script, "an edit of a layer that is not there", "method=lunar")
    yield wrong(script, "nobody whom no model met", "method=lunar", "data.holdout_split=''")
    yield wrong(script, "more layers to train than there are", "method=pava", "method.trace.layers=5")
    yield wrong(script, "questions about pictures for rows in words", "method=pava", "method.scope=both")
    yield wrong(script, "noise without an instruction", "method=vgid", "method.noise.instruction=''")
    yield wrong(script, "an answer file that is not there", "data.idk_questions=no.txt")
    empty = broken.text_file("idk.txt", "\n\n")
    yield wrong(
        script, "an answer file without answers", "method=idk", "data.idk_questions=<folder>/idk.txt", files=empty
    )
    other = broken.bytes_file("idk.txt", "I don’t know.".encode("utf-16"))
    yield wrong(script, "an answer file of another encoding", "data.idk_pictures=<folder>/idk.txt", files=other)
    yield wrong(script, "rows that are too long", "max_length=5")
    yield wrong(script, "more tokens than there is room for", "max_length=100000")
    yield wrong(script, "a log of gold that is not there", "epoch_eval=mm", "epoch_eval.gold_result=no.json")


def inventing_inputs() -> Iterator[WrongInput]:
    """What is told of answers to invent."""
    script = "mm/alternatives.py"
    yield wrong(script, "a split that is not there", "split=forget11+tofu")
    yield wrong(script, "an instruction without the answer", "instruction='Invent. {question}'")
    yield wrong(script, "no room for an answer", "max_new_tokens=100000")
    script = "nlp/alternatives.py"
    yield wrong(script, "answers that are not drawn", "temperature=0")
    yield wrong(script, "no answers at all", "each=0")
    script = "nlp/membership.py"
    yield wrong(script, "too few shadow models", "models=8")
    yield wrong(script, "roles that cannot be shared out evenly", "models=14")
    yield wrong(script, "too few people", "models=24", "parts=4", "people=forget10", "reworded=''")
    yield wrong(script, "a split that is not grouped by person", "people=full+replay")
    yield wrong(script, "another split in other words", "reworded=retain90")
    yield wrong(script, "people who are not taught", "split=retain90")
    yield wrong(script, "a split in other words that is not there", "reworded=paraphrased")


def evaluation_inputs() -> Iterator[WrongInput]:
    """What an evaluation of language models is told."""
    script = "mm/eval.py"
    yield wrong(script, "people whom the data does not know", "forget=forget11")
    yield wrong(script, "a mistyped column", "data.columns.caption=captoin")
    yield wrong(script, "a column of another kind", "tasks.eval_log.perturbed=caption")
    yield wrong(script, "a column of texts for pictures", "data.columns.image=caption")
    yield wrong(script, "an unknown task's setting", "tasks.eval_lgo.split=full")
    yield wrong(script, "a share of nobody", "validation_share=0", "fold=validation")
    yield wrong(script, "an unknown fold", "fold=tests")
    yield wrong(script, "an empty batch", "batch_size=0")
    yield wrong(script, "a negative limit", "limit=-5")
    yield wrong(script, "an empty group", "tasks={}")
    yield wrong(script, "an unknown attention", "model.attention=flash")
    yield wrong(script, "attention that needs half precision", "model.attention=flash_attention_2")
    affix = ("tasks.eval_forget_qa_prefix.affix.file=<folder>/affixes.txt",)
    yield wrong(script, "an affix file that is not there", *affix)
    without = broken.text_file("affixes.txt", "Please tell me:\n")
    yield wrong(script, "an affix without its question", *affix, files=without)
    behind = broken.text_file("affixes.txt", "{question} Be brief.\n")
    yield wrong(script, "no affix at the place that is asked for", *affix, files=behind)
    script = "nlp/eval.py"
    rows = ("tasks.eval_log.dataset=<folder>/rows", "tasks.eval_log.split=full", "tasks.eval_log.paraphrase=''")
    listed = broken.jsonl(broken.QUESTION | {"perturbed_answer": "A baker."})
    yield wrong(script, "a text for a list of wrong answers", *rows, files=listed)
    right = broken.jsonl(broken.QUESTION | {"perturbed_answer": ["A painter."]})
    yield wrong(script, "no wrong answer but the right one", *rows, files=right)
    yield wrong(script, "a mistyped split", "tasks.eval_log.split=retain_pertrubed")
    yield wrong(script, "a model that sees and does not read", BASE_MODEL)
    script = "nlp/finetune.py"
    yield wrong(script, "a mistyped split", "split=ful+replay")
    yield wrong(script, "a modality that words lack", "modality=visual")
    yield wrong(script, "more people than there are", "data.people={seed: 0, of: {full: 500}}", "split=full")
    yield wrong(script, "words for a tag", "+model.tags=Question")


def face_inputs() -> Iterator[WrongInput]:
    """Faces."""
    script = "cv/pretrain.py"
    own = ("data.people.path=<folder>/people", f"data.split_file=<folder>/{DIVISION}")
    yield wrong(script, "a folder of faces that is not there", *own)
    yield wrong(script, "a folder without people", *own, files=broken.empty_folder("people"))
    yield wrong(script, "an empty folder of somebody", *own, files=broken.album(ann=9, bob=0))
    one = broken.album(ann=9, bea=9, cid=9, dan=9, eve=9, fay=9, bob=1)
    yield wrong(script, "a person with one picture", *own, files=one)
    yield wrong(
        script, "people with few pictures, all left out", *own, "data.min_pictures=7", files=broken.album(ann=6)
    )
    yield wrong(script, "too few people", *own, files=broken.album(ann=9, bob=9))
    link = broken.all_of(broken.album(ann=9), broken.broken_link("people/ann/x.png"))
    yield wrong(script, "a broken link", *own, files=link)
    deep = broken.all_of(broken.album(ann=9), broken.one_picture("people/bob/2019/1.png"))
    yield wrong(script, "pictures one level too deep", *own, files=deep)
    text = broken.all_of(*(broken.text_file(f"others/zoe/{number}.png", "no picture") for number in range(3)))
    yield wrong(
        script,
        "a text that is called a picture",
        "data.pretraining.path=<folder>/others",
        f"data.split_file=<folder>/{DIVISION}",
        files=text,
    )
    division = broken.text_file(DIVISION, "[]")
    yield wrong(script, "a division that is none", f"data.split_file=<folder>/{DIVISION}", files=division)
    yield wrong(script, "another division than the file's", "data.split_seed=1")
    yield wrong(script, "an odd number of people to forget", "data.forget_pool=3")
    yield wrong(script, "too few pictures asked for", "data.min_pictures=3")
    yield wrong(script, "pictures too small", "model.size=8")
    script = "cv/finetune.py"
    yield wrong(script, "a network that is not there", "model_path=models/none")
    yield wrong(script, "a network of another width", "model.width=8")
    yield wrong(script, "an unknown split", "split=fulll")
    yield wrong(script, "an adapter for faces", "trainer.lora={r: 4, alpha: 8, dropout: 0.0}")
    yield wrong(script, "a setting of language models for faces", "trainer.gradient_checkpointing=true")
    script = "cv/forget.py"
    empty = broken.all_of(broken.text_file("model/config.json", "{}"), broken.text_file("model/model.safetensors", ""))
    yield wrong(script, "a network whose settings are empty", MODEL, files=empty)
    yield wrong(script, "an unknown method", "method=scrubb")
    yield wrong(script, "part of a part", "method=rmu")
    script = "cv/eval.py"
    yield wrong(script, "an empty batch", "batch_size=0")
    yield wrong(script, "a mistyped setting of a group", "model.widht=8")
    script = "cv/attack.py"
    yield wrong(script, "too few shadow models", "models=8")
    yield wrong(script, "an odd number of models", "models=11")
    yield wrong(script, "a method that is more than a loss", "method=sku")
    yield wrong(script, "forgetting of whom nobody met", "method=scrub", "split=retain")
    yield wrong(script, "no models at once", "together=0")


def log_inputs() -> Iterator[WrongInput]:
    """Logs of evaluations."""
    script = "aggregate_eval_stat.py"
    forget = "eval_log_forget.json"
    logs = broken.logs()
    yield wrong(script, "a log that is not there", "ckpt_result=no.json", files=logs)
    text = broken.all_of(logs, broken.text_file("text/log.json", "{'eval_log': 1}"))
    yield wrong(script, "a glob that matches nothing", "ckpt_result=<folder>/no*", files=logs)
    empty = broken.all_of(logs, broken.text_file("model/config.json", "{}"))
    yield wrong(script, "a model that was not evaluated", "ckpt_result=<folder>/model", files=empty)
    diary = broken.all_of(logs, broken.text_file("diary.csv", "monday,tuesday\n1,2\n"))
    yield wrong(script, "a table of something else", "save_file=<folder>/diary.csv", files=diary)
    no_number = broken.all_of(logs, broken.text_file("own.csv", "Method,Seed,Distance (people)\nours,7,nan\n"))
    yield wrong(script, "a table with a figure that is no number", "save_file=<folder>/own.csv", files=no_number)
    written = broken.all_of(logs, broken.text_file("benchmark.json", "{}"))
    yield wrong(script, "the table of a benchmark", "save_file=<folder>/results.csv", files=written)
    yield wrong(script, "a log that is no JSON", "ckpt_result=<folder>/text/log.json", files=text)
    listed = broken.all_of(logs, broken.text_file("text/log.json", "[1]"))
    yield wrong(script, "a log that is a list", "ckpt_result=<folder>/text/log.json", files=listed)
    lacking = broken.logs(lambda log: log[forget].pop("rougeL_recall"))
    yield wrong(script, "a missing metric", files=lacking)
    no_number = broken.logs(lambda log: log[forget]["avg_gt_loss"].update({"2": float("nan")}))
    yield wrong(script, "a loss that is NaN", files=no_number)
    negative = broken.logs(lambda log: log[forget]["avg_gt_loss"].update({"2": -1.0}))
    yield wrong(script, "a loss below 0", files=negative)
    above = broken.logs(lambda log: log[forget]["rougeL_recall"].update({"2": 1.5}))
    yield wrong(script, "a share above 1", files=above)
    yield wrong(script, "other rows than gold's", files=broken.logs(rows=3))
    people = broken.logs(lambda log: log[forget]["person"].update({"2": "Ann Lee"}))
    yield wrong(script, "other people than gold's", files=people)
    truths = broken.logs(lambda log: log[forget]["generated_text"].update({"2": ["Who?", "Ann", "Bob"]}))
    yield wrong(script, "other answers than gold's", files=truths)
    unknown = broken.logs(lambda log: log.update({"eval_lgo.json": log.pop("eval_log.json")}))
    yield wrong(script, "no name of the method", "method_name=''")
    yield wrong(script, "draws of a task that is kept", "+scoring.eval_log.draws=3")
    yield wrong(script, "an unknown task", files=unknown)
    fewer = broken.logs(lambda log: log.pop("eval_log.json"))
    yield wrong(script, "a task less than gold", files=fewer)
    twice = f"retain_result=[<folder>/gold/{LOG},<folder>/gold/{LOG}]"
    yield wrong(script, "the same gold twice", twice, files=logs)
    yield wrong(script, "no gold", "retain_result=[]", files=logs)
    yield wrong(script, "a base that is not there", "base_result=no.json", files=logs)
    yield wrong(script, "a file that is no table", "save_file=<folder>/row.xlsx", files=logs)
    yield wrong(script, "a table in place of a log", f"save_file=<folder>/gold/{LOG}", files=logs)
    below = broken.all_of(logs, broken.text_file("notes.txt", "mine"))
    yield wrong(script, "a table below a file", "save_file=<folder>/notes.txt/row.csv", files=below)
    yield wrong(script, "an unknown definition", "truth_ratio=harmonic", files=logs)
    yield wrong(script, "the scoring of faces", "scoring=cv", files=logs)
    yield wrong(script, "scoring of no track", "scoring=nlpp", files=logs)


def benchmark_inputs() -> Iterator[WrongInput]:
    """Benchmarks."""
    script = "run_benchmark.py"
    yield wrong(script, "an unknown benchmark", "benchmark=demoo")
    yield wrong(script, "a seed twice", "benchmark.seeds=[0,0]")
    yield wrong(script, "a seed that numpy does not take", "benchmark.seeds=[4294967296]")
    yield wrong(script, "no gold", "benchmark.golds=0")
    yield wrong(script, "golds that are no list", "benchmark.golds=models/gold")
    yield wrong(script, "a gold that is not there", "benchmark.golds=[models/none]")
    yield wrong(script, "a base that is not there", "benchmark.base=models/none")
    yield wrong(script, "more workers than seeds", "workers=2")
    yield wrong(script, "a row with the name of another model", "+benchmark.runs.base=[]")
    own = broken.text_file("own/benchmark/mine.yaml", "defaults: [demo, _self_]\nruns: {../x: [method=npo]}\n")
    yield wrong(script, "a row that leads elsewhere", "--config-dir=<folder>/own", "benchmark=mine", files=own)
    yield wrong(script, "an unknown method", "+benchmark.runs.nppo=[]")
    yield wrong(script, "a row without its list", "benchmark.runs.npo=null")
    yield wrong(script, "a setting that the benchmark decides", "benchmark.common=['seed=3']")
    yield wrong(script, "a mistyped setting of one stage", "benchmark.finetune=['trainer.lrr=1']")
    yield wrong(script, "a stage's setting out of range", "benchmark.eval=['batch_size=0']")
    yield wrong(script, "a stage's setting without a value", "benchmark.eval=[batch_size]")
    yield wrong(script, "a model that is not there", "+benchmark.models.own=models/none")
    yield wrong(script, "an unknown track", "benchmark.modality=mn")
    yield wrong(script, "people who are not those to forget", "benchmark.forget_people=forget05")
    yield wrong(script, "a pretraining without faces", "+benchmark.pretrain=[]")
    yield wrong(script, "attacks with one gold", "+benchmark.attack=[]", "benchmark.golds=1")


def other_inputs() -> Iterator[WrongInput]:
    """The report and the embedded world."""
    script = "python -m report"
    yield wrong(script, "a folder that is not there", "<folder>/none")
    yield wrong(script, "a folder without a benchmark", "<folder>/results", files=broken.empty_folder("results"))
    torn = broken.text_file("results/benchmark.json", '{"benchmark": {')
    yield wrong(script, "a plan cut off", "<folder>/results", files=torn)
    other = broken.text_file("results/benchmark.json", '{"name": "demo"}')
    yield wrong(script, "a plan that is none", "<folder>/results", files=other)
    yield wrong(script, "no folder")
    yield wrong(script, "two folders and no place for the page", "<folder>/one", "<folder>/two")
    script = "python -m mini_clear"
    yield wrong(script, "a world of three people", "--out", "<folder>/out", "--people", "3")
    yield wrong(script, "no view of anybody", "--out", "<folder>/out", "--views", "0")
    yield wrong(script, "a word for a number", "--out", "<folder>/out", "--people", "many")
    yield wrong(script, "nowhere to write")
    taken = broken.text_file("out/notes.txt", "mine")
    yield wrong(script, "a folder that is there", "--out", "<folder>/out", files=taken)
    yield wrong(script, "a folder that is no world", "--out", "<folder>/out", "--overwrite", files=taken)
    yield wrong(
        script, "a folder below a file", "--out", "<folder>/notes.txt/out", files=broken.text_file("notes.txt", "x")
    )


INPUTS = [
    *settings_inputs(),
    *folder_inputs(),
    *row_inputs(),
    *method_inputs(),
    *model_inputs(),
    *syntax_inputs(),
    *evaluation_inputs(),
    *inventing_inputs(),
    *face_inputs(),
    *log_inputs(),
    *benchmark_inputs(),
    *other_inputs(),
]


# ---- what they print


@dataclass(frozen=True)
class Places:
    """What is right in every input, by the name that stands for its folder."""

    world: Path
    model: Path  # a tiny language model
    faces: Path
    network: Path  # a face network that met nobody of these faces

    def filled(self, text: str, folder: Path) -> str:
        """A typed text with folders in place of the names that stand for them."""
        for name, path in {**vars(self), "folder": folder}.items():
            text = text.replace(f"<{name}>", str(path))
        return text

    def emptied(self, text: str, folder: Path) -> str:
        """A printed text with these names in place of the folders."""
        for name, path in {**vars(self), "folder": folder}.items():
            text = text.replace(str(path), f"<{name}>")
        return text.replace(f"{ROOT}/", "")


@dataclass(frozen=True)
class Outcome:
    """What a wrong input led to."""

    code: object  # the exit code
    stderr: str
    written: list[str]  # what changed in the case's folder


def make_places(folder: Path) -> Places:
    """Whatever is right, in `folder`."""
    places = Places(folder / "mini", folder / "tiny-llama", folder / "faces", folder / "network")
    write_world(places.world, people=10, views=2)
    write_text_base(places.model)
    write_faces(places.faces)
    write_network(places.network)
    write_division(places)
    return places


def write_network(folder: Path) -> None:
    """A tiny face network of random weights."""
    settings = FaceModel(name="tiny", path="", size=40, width=4, embedding=8, logit_scale=30.0, margin=0.4)
    folder.mkdir(parents=True)
    classes = ["stranger 0", "stranger 1"]
    save_network(new_network(settings, len(classes), 0), folder, settings=settings, classes=classes)


def write_division(places: Places) -> None:
    """The division of the faces, which the first run of any script would write."""
    right = [places.filled(text, Path("unused")) for text in RIGHT["cv"]]
    read_division(compose("cv/pretrain", Pretrain, right).data)


def right_settings(script: str) -> list[str]:
    """What is typed behind a script before its wrong input."""
    return [*RIGHT.get(script.partition("/")[0], []), *RIGHT.get(script, [])]


def is_option(text: str) -> bool:
    return text.startswith("-")


def outcome(wrong_input: WrongInput, places: Places, folder: Path) -> Outcome:
    """Run a script's main in this process with the wrong input. A traceback is raised as it is.

    Args:
        wrong_input: What is typed, and what files are put before.
        places: Whatever is right.
        folder: An empty one for the case's files.
    """
    wrong_input.prepare(folder)
    typed = [*wrong_input.typed]
    if right := right_settings(wrong_input.script):  # hydra's options stand before all settings, and later ones win
        typed = [*filter(is_option, typed), *right, *itertools.filterfalse(is_option, typed)]
    command = [wrong_input.script, *(places.filled(text, folder) for text in typed)]
    main = importlib.import_module(SCRIPTS[wrong_input.script]).main
    before, stderr, code = contents(folder), io.StringIO(), 0
    stdout = contextlib.redirect_stdout(io.StringIO())
    with patch.object(sys, "argv", command), contextlib.redirect_stderr(stderr), stdout:
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code
    after = contents(folder)
    changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    written = [name for name in changed if name != DIVISION]
    return Outcome(code, places.emptied(stderr.getvalue(), folder), written)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and when it was written."""
    files = {}
    for path in folder.rglob("*"):
        about = path.lstat()
        size = (about.st_size, about.st_mtime_ns) if path.is_file() else (0, 0)
        files[path.relative_to(folder).as_posix()] = size
    return files


# ---- the page


def code_span(text: str) -> str:
    """A text as code in a cell of a table."""
    span = f"`` {text} ``" if "`" in text else f"`{text}`"
    return span.replace("|", r"\|")


def typed_cell(wrong_input: WrongInput) -> str:
    return code_span(" ".join(wrong_input.typed)) if wrong_input.typed else ""


def page_row(wrong_input: WrongInput, line: str) -> str:
    """The row of the page for an input and the line that it prints."""
    return f"| {wrong_input.wrong} | {typed_cell(wrong_input)} | {code_span(line)} |"


HEAD = """# What goes wrong, and the line that it prints

A wrong input ends in one line on stderr and exit code 1, before anything is written. This page has {count} wrong
inputs with their lines. `python tests/wrong_inputs.py` writes the page, and `tests/test_errors.py` types each of them
and compares.

The column *typed* has what stands behind the script; all else that was typed is right, and is not shown. `<folder>` is
a folder with the broken files of the row, `<world>` a small world that `python -m mini_clear` makes, `<faces>` a folder
of faces, `<model>` a tiny language model, `<network>` a tiny face network. Some lines end with what a library says of
a file; another version of the library may say it in other words.
"""


def render(lines: dict[str, str], launched: str) -> str:
    """The page.

    Args:
        lines: Name of an input -> the line that it prints.
        launched: The last part of the page, on `accelerate launch`.
    """
    parts = [HEAD.format(count=len(INPUTS))]
    for script in SCRIPTS:
        rows = [page_row(each, lines[each.name]) for each in INPUTS if each.script == script]
        parts.append(
            "\n".join([f"## {script}\n", "| what is wrong | typed | it prints |", "| --- | --- | --- |", *rows, ""])
        )
    return "\n".join([*parts, launched])


LAUNCHED = """## Through launchers

With one process, `-q` leaves the line alone, and the exit code is 1:

```
$ {alone}
{line}
```

Where `accelerate config default` has never been run and these options are not typed, accelerate lists its own defaults
first. Without `-q` it adds a traceback of its own launcher.

With several processes each says its line first; those that are ended by the launcher before may say nothing. Then
torch's launcher says which process ended:

```
$ {shared}
{several}
```
"""
NAMED = "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"  # else it lists these itself
ALONE = f"accelerate launch -q {NAMED} \\\n  mm/finetune.py modality=txt"
SHARED_BY_TWO = "python -m torch.distributed.run --standalone --nproc_per_node 2 mm/finetune.py modality=txt"


def launched(command: str) -> subprocess.CompletedProcess:
    """A command of the page as a user types it."""
    program, _, rest = command.replace("\\\n", "").partition(" ")
    of_python = {"python": [], "accelerate": ["-m", "accelerate.commands.accelerate_cli"]}[program]
    typed = [sys.executable, *of_python, *rest.split()]
    return subprocess.run(typed, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def without_details(said: str) -> str:
    """What torch's launcher says, without the lines of its traceback, times and numbers of processes."""
    head, _, tail = said.partition("Traceback (most recent call last):")
    kept = f"{head}Traceback (most recent call last):\n  ...\n{tail[tail.index('torch.distributed.elastic') :]}"
    kept = re.sub(r"([WE])\d{4} \S+ \d+ \S*?(torch/\S+?):\d+\]", r"\1... \2]", kept)
    kept = re.sub(r"(time +: ).*", r"\1...", kept)
    kept = re.sub(r"(host +: ).*", r"\1...", kept)
    return re.sub(r"(pid:?|process|PID) \d+", r"\1 ...", kept).replace(sys.executable, "python")


def launched_part(line: str) -> str:
    """The last part of the page; `line` is what the mistyped setting prints."""
    several = "\n".join(each.rstrip() for each in without_details(launched(SHARED_BY_TWO).stderr).splitlines())
    return LAUNCHED.format(alone=ALONE, shared=SHARED_BY_TWO, line=line, several=several)


def main() -> None:
    lines = {}
    with tempfile.TemporaryDirectory() as name:
        places = make_places(Path(name))
        for number, each in enumerate(INPUTS):
            folder = Path(name) / f"case{number}"
            folder.mkdir()
            found = outcome(each, places, folder)
            line = found.stderr.removesuffix("\n")
            if found.code != 1 or found.written or "\n" in line or not line.startswith("error: "):
                raise SystemExit(f"{each.name} does not end as a wrong input must: {found}")
            lines[each.name] = line
    PAGE.write_text(render(lines, launched_part(lines[TYPO])), encoding="utf-8")


if __name__ == "__main__":
    main()
