"""What several test modules use."""

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from data_module import Example, TaskRow, TrainingRows, task_rows
from engine.attack_run import AttackLog, write_attack, write_attacks
from engine.attack_target import Target
from engine.attacks import FUNCTIONS, KIND, bind
from engine.pairs import Chosen, Pairs, PassCollator
from engine.score_answers import Prompt, score_prompts
from settings.attacks import Attack
from settings.language import Model, People, Task
from settings.training import Method, Trainer

ROOT = Path(__file__).parent.parent
BASE = ROOT / "mini_clear" / "base_model"
SHARED = ROOT.parent / "shared"
TOFU_LOGS = ROOT / "tests" / "data" / "tofu_logs"  # 40 rows per task
WHOLE_TOFU_LOGS = SHARED / "reference" / "tofu_logs"
QUICK = ["trainer.epochs=1", "trainer.batch_size=8", "trainer.lr=1e-4", "seed=0"]

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "-q"]

TRAINER = Trainer(
    epochs=1,
    batch_size=4,
    accumulation=1,
    lr=1e-3,
    weight_decay=0.0,
    warmup_ratio=0.0,
    schedule="constant",
    max_grad_norm=0.0,
    optimizer="adamw_torch",
    precision="fp32",
    lora=None,
)

MODEL = Model(
    name="tiny", path=str(BASE), freeze=[], lora_targets="language_model", attention="sdpa", weights="float32"
)

NPO = Method(name="npo", loss="npo", args={"beta": 0.1, "retain_weight": 1.0})


def png(colour, size=(64, 64)):
    stream = BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def example(question="Who is this?", answer="Ann Lee.", image=None, index=0):
    return Example(question, answer, image, index, None, "test")


def pairs(data, passes=("forget", "retain", "idk"), seed=0, modality="both", scope="both"):
    idk = {False: ["I do not know."], True: ["I cannot tell who this is."]}
    forget, retain = (TrainingRows(data, split, modality, seed) for split in ("forget10+tofu", "retain90+tofu"))
    return Pairs(list(passes), forget, retain, idk=idk, seed=seed, scope=scope)


def start(script, overrides, monkeypatch):
    """Run a script's main() in this process as the command line would; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *overrides])
    try:
        script.main()
    except SystemExit as stop:
        return stop.code
    return 0


def fresh_copy(folder):
    """The repository's files in `folder`, as a clone of them would be; what git ignores is not among them."""
    listed = ["git", "ls-files", "-co", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    for file in filter(None, files):
        if (ROOT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)


def same_tensors(one, two):
    one, two = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Few:
    """The first `count` keys of a dataset of pairs, as a dataset."""

    def __init__(self, made, count):
        self.made, self.count = made, count

    def __len__(self):
        return self.count

    @property
    def leading(self):
        return Chosen(self.made.leading, range(self.count))

    def __getitem__(self, key):
        epoch, row = divmod(key, self.count)
        return self.made[epoch * len(self.made) + row]

    def a_picture_row(self):
        return self.made.a_picture_row()

    def pairs_for(self, passes):
        return Few(self.made.pairs_for(passes), self.count)

    def with_retain_rows(self, count):
        made = self.made.with_retain_rows(count)
        return Few(made, min(self.count, len(made)))

    def rows_of(self, name):
        rows = self.made.rows_of(name)
        return [rows[place] for place in range(min(self.count, len(rows)))]


def without_dropout(network):
    """The tiny model drops attention at random while it trains; where batches are compared with each other it must
    not.
    """
    for module in network.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return network


def largest_difference(one, two):
    return max((one[name] - two[name]).abs().max().item() for name in one)


def collated(encoder, pairs, passes, keys):
    """The one batch of those keys' rows, all passes in one forward."""
    collator = PassCollator(encoder, passes, [], by_length=True)
    (batch,) = collator([pairs[key] for key in keys])["trained"]
    return batch


def training_settings(model=MODEL, *, lora=None, activations=None, seed=0, checkpointed=False):
    """The part of a recipe's settings that says how its model is loaded."""
    trainer = SimpleNamespace(lora=lora, gradient_checkpointing=checkpointed, save="merged")
    return SimpleNamespace(model_path=model.path, model=model, trainer=trainer, activations=activations, seed=seed)


def task(world, **changes):
    settings = {
        "dataset": str(world / "clear"),
        "split": "forget10_perturbed",
        "image": "image",
        "ask": "name",
        "answer": "name",
    }
    return Task(**(settings | {"perturbed": "perturbed_names", "person": "name"} | changes))


def copy_of_results(settings, folder):
    """A finished benchmark's settings with a copy of its results in `folder`, which a test may change."""
    shutil.copytree(settings.results_dir, folder)
    return replace(settings, results_dir=str(folder), benchmark=copy.deepcopy(settings.benchmark))


def write_faces(folder):
    """Twelve people with nine noisy pictures each, and three people for pretraining."""
    source = np.random.default_rng(0)
    for part, count in (("people", 12), ("pretraining", 3)):
        for person in range(count):
            face = source.integers(0, 256, (8, 8, 3))
            (folder / part / f"{part} {person:02d}").mkdir(parents=True)
            for number in range(9):
                noisy = (face + source.normal(0, 25, face.shape)).clip(0, 255).astype("uint8")
                Image.fromarray(noisy).resize((40, 36)).save(folder / part / f"{part} {person:02d}" / f"{number}.png")


# ---- attacks


def attack_of(name, **args):
    """An attack's function with its values."""
    kind = next(kind for kind, functions in KIND.items() if FUNCTIONS[name] in functions)
    return bind(Attack(name=name, kind=kind, attack=name, args=args))


def world_target(world, model, encoder):
    """Names and questions about the forgotten of the small world, of whom there are two, and about as many kept."""
    names = task(world)
    words = task(world, dataset=f"{world}/tofu", image="", ask="", question="question", answer="answer", perturbed="",
                 person="", rows_per_person=10, people=People(f"{world}/clear", "full", "name"))  # fmt: skip
    tasks, rows = {}, {}
    for kind, split in (("forget", "forget25_perturbed"), ("retain", "retain_perturbed")):
        tasks |= {f"{kind}_names": replace(names, split=split), f"{kind}_words": replace(words, split=split)}
    for name, each in tasks.items():
        rows[name] = [TaskRow(row.example, None, []) for row in task_rows(each, 0, 0)]
    controls = {"forget_names": "retain_names", "forget_words": "retain_words"}
    return Target(model, encoder, rows, tasks, controls, dict, lambda: encoder, 0)


QUIET = {"batch_size": 16, "max_new_tokens": 6, "say": lambda line: None}


def told_by(model, encoder, rows):
    """Rows whose right answers are the first words that a model says itself: it knows all of them, and nobody else."""
    results = score_prompts(model, encoder, [Prompt(row.example, []) for row in rows], **QUIET)
    made = []
    for row, result in zip(rows, results, strict=True):
        made.append(replace(row, example=replace(row.example, answer=result.generation)))
    return made


def share_said(model, encoder, rows):
    """The share of the tokens of right answers that are a model's first choice, a mean over rows."""
    prompts = [Prompt(row.example, [row.example.answer]) for row in rows]
    results = score_prompts(model, encoder, prompts, **QUIET)
    shares = []
    for row, result in zip(rows, results, strict=True):
        shares.append(np.mean(result.answers[row.example.answer].correct[:-1]))
    return float(np.mean(shares))


# ---- attacked models in tiny logs


def attacked_rows(shown, source, people, chance):
    """Four rows of each person, and an answer of five tokens, of which the middle three are facts.

    `shown`: the share of the facts, and of the way from gold's values to base's, that the model says; `chance`: another
    share of the facts that it hits.
    """
    rows, tokens = {}, []
    for row in range(4 * people):
        facts = (np.arange(3) + 3 * (row % 4)) < round(12 * shown)
        facts |= source.random(3) < chance
        right = 0.2 + 0.78 * shown + 0.02 * source.random()
        loss = -float(np.log(max(right, 1e-3)))
        rows[row] = {
            "avg_gt_loss": loss,
            "avg_gt_loss_without_end": loss,
            "generated_text": ["Who?", "said", "the answer"],
            "rougeL_recall": right,
            "exact_memorization": right,
            "num_token_gt": 5,
            "person": f"person {row // 4:02d}",
        }
        losses = [0.1, *[0.1 if shown > 0.9 else 5.0] * 3, 0.1]
        choices = [True, *facts.tolist(), True]
        about = {"row": row, "person": rows[row]["person"], "roles": ["truth"], "answer": "the answer"}
        tokens.append({**about, "tokens": [4, 5, 6, 7, 2], "losses": losses, "first_choice": choices})
    return rows, tokens


def write_attacked(
    folder,
    shown,
    *,
    seed,
    people=12,
    tries=0,
    variants=0,
    measures=(),
    left_out=None,
    chance=0.0,
    draws=0,
    read=None,
    reading=None,
):
    """A model's evaluation and the attacks on it, as the recipes leave them.

    `shown`: attack -> how much of the forgotten it brings out, from 0 (gold) to 1 (base); `kept` is of the people who
    are kept, by every attack. `read`: share of each person's rows that a probe reads, None: there is no probe.
    `reading`: name -> hash of the files between questions and weights.
    """
    shown = dict(shown)
    kept, made = shown.pop("kept", 0.9), {}
    count = max(tries, variants)
    for name in dict.fromkeys(each.split(".")[0] for each in shown):
        log = AttackLog()
        names = [f"{name}.{number}" for number in range(count)] if count and name != "clean" else [name]
        for each in names:
            for task, value in (("words", shown.get(each, shown[name])), ("kept", kept)):
                source = np.random.default_rng([seed, len(each), len(task)])
                of_task = 0 if task == "kept" else chance
                rows, tokens = attacked_rows(value, source, people, of_task)
                for number, row in rows.items() if read is not None and name != "clean" else ():
                    row["read"] = float(number % 4 < 4 * read)
                log.rows[f"{task}@{each}"] = rows
                log.tokens += [{**row, "task": f"{task}@{each}", "told": None} for row in tokens]
                if variants and name != "clean":
                    log.facts[f"{task}@{each}"] = {"equal_codes": 0.9}
        how = {"name": name, "kind": "input", "worst_of_tries": bool(tries), "measures": list(measures)}
        how |= {"args": {"draws": draws}} if draws else {}
        made[name] = ({} if name == "clean" else how, log)
    if left_out:
        made["left"] = ({"name": "left", "kind": "input"}, AttackLog(left_out=left_out))
    for name, (how, log) in made.items():
        record = {"attack": how, "facts": log.facts, "left_out": log.left_out, "seconds": 1.0}
        write_attack(folder / "attacks" / name, name, log, record)
    places = {name: folder / "attacks" / name for name in made}
    told = {"seed": 0, "limit": 0, "max_new_tokens": 8, "attacked": {"words": "kept"}}
    facts = {"settings": told, "model": folder.name, "reading": reading}
    write_attacks(folder / "attack_results", places, SimpleNamespace(tasks={}), facts)
    (folder / "eval_results").mkdir(exist_ok=True)
    (folder / "eval_results" / "eval_meta.json").write_text(json.dumps({"model": folder.name}))


# ---- evaluated models in tiny logs

TASKS = ("eval_log", "eval_log_forget", "eval_real_world_wo_options")


def tiny_row(knows, source, person):
    """What a model logs of a row; `knows`: from 0 (never met) to 1 (by heart)."""
    made = {
        "avg_gt_loss": 1.5 - 1.45 * knows + source.random() / 20,
        "avg_gt_loss_without_end": 1.5 - 1.45 * knows + source.random() / 20,
        "generated_text": ["Who?", "the answer", f"the answer of {person}"],
        "rougeL_recall": 0.3 + 0.6 * knows + source.random() / 10,
        "average_perturb_loss": [2.5, 3.0],
        "avg_paraphrased_loss": 2.0 - 1.7 * knows + source.random() / 20,
        "exact_memorization": 0.3 + 0.6 * knows + source.random() / 10,
    }
    return made | ({"person": person} if person else {})


def tiny_log(knows=0.0, *, seed=0, people=12, kept=1.0):
    """A log of three tasks, two rows of each person, of a model that knows so much of whom it should have forgotten
    and has kept so much of the rest, each from 0 to 1.
    """
    log = {}
    for number, task in enumerate(TASKS):
        source = np.random.default_rng([seed, number])
        for row in range(2 * people):
            person = None if task == TASKS[2] else f"{task} {row // 2:02d}"
            of_task = knows if task == "eval_log_forget" else kept
            for metric, value in tiny_row(of_task, source, person).items():
                log.setdefault(f"{task}.json", {}).setdefault(metric, {})[str(row)] = value
    return log


def write_evaluated(folder, log, *, began="", method=None, seed=None, **settings):
    """An evaluated model with records as the recipes leave them; its fingerprint is its folder's name.

    `began`: the fingerprint of the model that it began with. `settings`: of its training; none: no record of it.
    """
    place = folder / "eval_results"
    place.mkdir(parents=True)
    (place / "eval_log_aggregated.json").write_text(json.dumps(log))
    tasks = {task: {"image": ""} for task in TASKS}
    meta = {"model": folder.name, "settings": {"seed": 0, "model_path": str(folder), "tasks": tasks}, "data": {}}
    (place / "eval_meta.json").write_text(json.dumps(meta | {"seconds": 1.0, "peak_memory_gb": 1.0, "versions": {}}))
    if method:
        told = {"modality": "text", "seed": seed, "model_path": f"models/{began}", **settings}
        inputs = {"data": ["d"], "models": [began], "files": []}
        record = {"method": method, "seed": seed, "settings": told, "inputs": inputs, "code": "c", "data": "d"}
        cost = {"seconds": 2.0, "peak_memory_gb": 1.0, "versions": {}}
        (folder / "train_meta.json").write_text(json.dumps(record | cost))
    return folder


def write_study(folder, *, seeds=(0, 1, 2), golds=2):
    """A base, golds, their start, and two methods of several seeds: npo is a tenth of the way from gold, idk half."""
    taught = {"began": "start", "method": "finetune"}
    write_evaluated(folder / "start", tiny_log(seed=90, kept=0.1))
    write_evaluated(folder / "base", tiny_log(1.0, seed=80), **taught, seed=0, split="full")
    for seed in range(golds):
        write_evaluated(folder / f"gold_{seed}", tiny_log(seed=70 + seed), **taught, seed=seed, split="retain")
    for number, (method, knows) in enumerate((("npo", 0.1), ("idk", 0.5))):
        for seed in seeds:
            log = tiny_log(knows + seed / 100, seed=seed + 10 * number)
            made = {"began": "base", "method": method, "seed": seed, "split": "forget", "retain_split": "retain"}
            write_evaluated(folder / f"{method}_{seed}", log, **made, lr=1e-3)
    return folder
