"""docs/your_data.md, docs/your_model.md and docs/own_runs.md, played section by section: each file is written, each
command is run, and each line that the page says is printed.

A section begins with `## ` and stands alone. A block behind a line with a path in backticks and a colon, perhaps with
words between them, is that file. A block of python is run. A block of text behind one of bash was printed by its
commands; it begins with `error: ` where the last of them ends with exit code 1. In it a line that begins with spaces
goes on with the line before, and `<clone>` stands for the folder in which all this happens. A block without a language
lists files that are there when the section ends.
"""

import csv
import importlib
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrOCRConfig, TrOCRForCausalLM

import nlp.finetune
from helpers import ENVIRONMENT, ROOT, fresh_copy
from settings.script import SettingsError
from settings.training import trainer_of

PAGES = ("docs/your_data.md", "docs/your_model.md", "docs/own_runs.md")
BLOCK = re.compile(r"(?:^`([^`\n]+)`(?:,[^\n]*)?:\n\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
TRAINING = ("pretrain", "finetune", "forget")
LAUNCHED = re.compile(r"(?:accelerate launch(?: -q)?|python) (?:-m )?([\w/.]+)(.*)", re.S)


@dataclass(frozen=True)
class Block:
    file: str  # empty: no file
    language: str
    text: str


def sections(page: str) -> dict[str, list[Block]]:
    """The blocks of each section of a page that has any."""
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert sum(part.count("```") for part in parts.values()) == text.count("```")
    made = {}
    for title, part in parts.items():
        blocks = [Block(*found) for found in BLOCK.findall(part)]
        assert 2 * len(blocks) == part.count("```"), title
        if blocks:
            made[title] = blocks
    return made


SECTIONS = [(page, title) for page in PAGES for title in sections(page)]
OWN_RUNS = ("docs/own_runs.md", "An own method, three seeds, an own base")  # thirteen models' work: slow


@pytest.fixture
def clone(tmp_path, text_base, world, monkeypatch):
    """A folder as a user's clone: configuration of its own, which a page may add to, the tiny models, and a smaller
    embedded world.
    """
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "models").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mini_clear").symlink_to(world)
    (tmp_path / "models" / "tiny-llama").symlink_to(text_base)
    (tmp_path / "mini_clear").symlink_to(ROOT / "mini_clear")
    monkeypatch.setattr("settings.script.CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    trainer_of.cache_clear()  # it remembers which models have files
    return tmp_path


def run_recipe(main: Callable, overrides: list[str]) -> int:
    """Run a script in this process without the time that hydra's own main takes; returns its exit code."""
    try:
        main.recipe(main.compose(overrides))
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_quickly(line: str) -> int:
    """Run a command, a script in this process and with fewer epochs and tokens, any other in a shell; returns its exit
    code.
    """
    launched = LAUNCHED.fullmatch(line)
    if not launched:
        return subprocess.run(line, shell=True, env=ENVIRONMENT).returncode
    module = importlib.import_module(launched[1].removesuffix(".py").replace("/", "."))
    overrides = shlex.split(launched[2])
    if not hasattr(getattr(module, "main", None), "recipe"):
        return subprocess.run([sys.executable, "-m", launched[1], *overrides], env=ENVIRONMENT).returncode
    return run_recipe(module.main, [*overrides, *shorter(line)])


def run_as_typed(line: str) -> int:
    """Run a command in a shell, as a user types it; returns its exit code."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(line, shell=True, env={**ENVIRONMENT, "PYTHONPATH": ".", "PATH": path}).returncode


def run_shortly(line: str) -> int:
    """Run a command in a shell, a training of one epoch and an evaluation of four tokens; returns its exit code."""
    return run_as_typed(f"{line} {' '.join(shorter(line))}")


def shorter(line: str) -> list[str]:
    """The overrides that make a command of a page short."""
    launched = LAUNCHED.fullmatch(line)
    track, _, stage = (launched[1] if launched else "").removesuffix(".py").rpartition("/")
    if stage in TRAINING:
        return ["trainer.epochs=1"]
    return ["max_new_tokens=4"] if stage == "eval" and track != "cv" else []


def commands_of(block: Block) -> list[str]:
    """The commands of a block of bash without their comments; a line that ends in a backslash goes on with the next."""
    lines = re.sub(r"\s*\\\n\s*", " ", block.text).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def play(blocks: list[Block], run: Callable[[str], int], capfd: pytest.CaptureFixture) -> None:
    """Do what a section says in its order, here, and check what it says of it."""
    listed: list[str] = []
    said, codes = "", []
    for block in blocks:
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, "a block of the page", "exec"), {"__name__": "__main__"})
        elif block.language == "bash":
            capfd.readouterr()
            codes = [run(line) for line in commands_of(block)]
            said = "".join(capfd.readouterr())
            following = blocks[blocks.index(block) + 1 :][:1]
            fails = bool(following) and following[0].text.startswith("error: ")
            assert codes == [0] * (len(codes) - 1) + [int(fails)], f"{block.text}\n{said[-3000:]}"
        elif block.language == "text":
            lines = block.text.replace("\n  ", " ").replace("<clone>", str(Path.cwd())).splitlines()
            missing = set(lines) - set(said.splitlines())
            assert not missing, f"{sorted(missing)} stands in the page; printed was:\n{said}"
        else:
            assert block.language == "", f"a block of {block.language} without a file"
            listed += block.text.splitlines()
    assert [file for file in listed if not Path(file).exists()] == []


def each_of(listed: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """A test of each of these sections."""
    names = [f"{Path(page).stem}, {title}" for page, title in listed]
    return pytest.mark.parametrize(("page", "title"), listed, ids=names)


@each_of([section for section in SECTIONS if section != OWN_RUNS])
def test_a_section_of_a_page_does_what_it_says(page, title, clone, capfd):
    play(sections(page)[title], run_quickly, capfd)


@pytest.mark.slow
@pytest.mark.long
@each_of(SECTIONS)
def test_a_section_of_a_page_does_what_it_says_as_a_user_types_it(page, title, world, tmp_path, monkeypatch, *, capfd):
    fresh_copy(tmp_path / "copy")
    (tmp_path / "copy" / "data").mkdir()
    (tmp_path / "copy" / "data" / "mini_clear").symlink_to(world)
    monkeypatch.chdir(tmp_path / "copy")
    play(sections(page)[title], run_as_typed, capfd)


@pytest.mark.slow
def test_a_clean_clone_makes_one_table_and_one_page_of_an_own_method_with_three_seeds(
    world, text_base, tmp_path, monkeypatch, capfd
):
    fresh_copy(tmp_path / "copy")
    for name, made in (("data/mini_clear", world), ("models/tiny-llama", text_base)):
        (tmp_path / "copy" / name).parent.mkdir()
        (tmp_path / "copy" / name).symlink_to(made)
    monkeypatch.chdir(tmp_path / "copy")
    page, title = OWN_RUNS
    play(sections(page)[title], run_shortly, capfd)
    rows = list(csv.DictReader(Path("results/own.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["Method"], row["Seed"], row["Seeds"]) for row in rows] == [
        ("gentle_npo", seed, "3") for seed in ("0", "1", "2", "mean", "sd", "n")
    ]
    utility = [float(row["Model Utility"]) for row in rows]
    assert utility[3:] == pytest.approx([statistics.fmean(utility[:3]), statistics.stdev(utility[:3]), 3])
    assert utility[4] > 0
    html = Path("results/own_page/report.html").read_text(encoding="utf-8")
    assert "gentle_npo" in html
    assert "±" in html
    models = {line.split("|")[1].strip() for line in Path("results/own_page/table.md").read_text().splitlines()[2:]}
    assert models == {"base", "gold", "start", "gentle_npo"}


def anchors(page: Path) -> set[str]:
    """What a link may name of a page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "cv/README.md", *PAGES])
def test_a_link_to_one_of_the_pages_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(((?:[\w./-]*your_(?:data|model)\.md|[\w./-]*own_runs\.md)?)(?:#([\w-]+))?\)", text)
    assert links
    for name, anchor in links:
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.is_file()
        assert not anchor or anchor in anchors(target)


# ---- a model that is refused

MINE = Path("models/mine")
QUERY = "model.layers.0.self_attn.q_proj.weight"
TURNS = (
    "{% for turn in messages %}{{ '<user>' if turn.role == 'user' else '<assistant>' }}{{ turn.content }}{% endfor %}"
)


def change_weights(change: Callable[[dict], object]) -> None:
    weights = load_file(MINE / "model.safetensors")
    change(weights)
    save_file(weights, MINE / "model.safetensors", metadata={"format": "pt"})


def change_json(name: str, **values: object) -> None:
    told = json.loads((MINE / name).read_text(encoding="utf-8"))
    (MINE / name).write_text(json.dumps(told | values), encoding="utf-8")


def write_template(text: str) -> None:
    (MINE / "chat_template.jinja").write_text(text, encoding="utf-8")


def tear_weights() -> None:
    content = (MINE / "model.safetensors").read_bytes()
    (MINE / "model.safetensors").write_bytes(content[:1000])


def write_other_kind() -> None:
    small = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    TrOCRForCausalLM(TrOCRConfig(vocab_size=2048, **small)).save_pretrained(MINE)


LORA = "trainer.lora={r: 2, alpha: 4, dropout: 0.0}"
# what the page says is wrong -> how to make it so, and what is said besides on the command line
BEFORE_WEIGHTS = {
    "the folder is not there": (lambda: shutil.rmtree(MINE), []),
    "it has no configuration": (lambda: (MINE / "config.json").unlink(), []),
    "it is an adapter": (lambda: (MINE / "adapter_config.json").write_text("{}"), []),
    "its weights are no safetensors": (
        lambda: (MINE / "model.safetensors").rename(MINE / "pytorch_model.bin"),
        [],
    ),
    "it has no weights": (lambda: (MINE / "model.safetensors").unlink(), []),
    "the model comes with code": (
        lambda: change_json("config.json", model_type="mine", auto_map={"AutoConfig": "mine.Configuration"}),
        [],
    ),
    "the tokenizer comes with code": (
        lambda: change_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Tokenizer", None]}),
        [],
    ),
    "the library does not know its kind": (lambda: change_json("config.json", model_type="mine"), []),
    "it has neither chat template nor tags": (lambda: (MINE / "chat_template.jinja").unlink(), []),
    "its template drops the question": (
        lambda: write_template("<user><assistant>{{ (messages[1:] or [{}])[0].content }}"),
        [],
    ),
    "its template drops the answer": (lambda: write_template("<user>{{ messages[0].content }}<assistant>"), []),
    "its template moves the answer": (lambda: write_template(TURNS + "{% if add_generation_prompt %}:{% endif %}"), []),
    "its template fails": (lambda: write_template("{{ raise_exception('turns must alternate') }}"), []),
    "its template writes the begin token twice": (
        lambda: write_template("{{ bos_token }}" + (MINE / "chat_template.jinja").read_text(encoding="utf-8")),
        [],
    ),
    "its tokenizer is another model's": (lambda: change_json("config.json", vocab_size=100), []),
    "`max_length` is beyond it": (lambda: None, ["max_length=4096"]),
}
WITH_WEIGHTS = {
    "a tensor is missing": (lambda: change_weights(lambda weights: weights.pop(QUERY)), []),
    "a tensor has another shape": (
        lambda: change_weights(lambda weights: weights.update({QUERY: weights[QUERY][:-1].clone()})),
        [],
    ),
    "a tensor has no place": (lambda: change_weights(lambda weights: weights.update(score=torch.ones(2))), []),
    "a weight is NaN": (lambda: change_weights(lambda weights: weights[QUERY][0].fill_(float("nan"))), []),
    "the file of weights is torn": (tear_weights, []),
    "`freeze` names no part of it": (lambda: None, ["model.freeze=[vision_tower]"]),
    "`lora_targets` match no layer": (lambda: None, [LORA, "model.lora_targets=linear_7"]),
    "its forward has no `logits_to_keep`": (write_other_kind, ["model.attention=eager"]),
}
FAULTS = BEFORE_WEIGHTS | WITH_WEIGHTS


def lines_of_faults() -> dict[str, str]:
    """What is wrong -> the line, of both tables of the page; `...` stands for more words of a library."""
    text = (ROOT / "docs/your_model.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| ([^|]+?) \| `+ ?(error: [^|]+?) ?`+ \|$", text, re.M))


def test_the_page_has_a_line_for_each_fault_of_a_model():
    assert list(lines_of_faults()) == list(FAULTS)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_model_ends_in_the_line_of_the_page(fault, clone, text_base, *, monkeypatch, capfd):
    shutil.copytree(text_base, MINE)
    Path("data/few").mkdir()
    Path("data/few/full.jsonl").write_text(json.dumps({"question": "Where?", "answer": "Oslo."}), encoding="utf-8")
    spoil, overrides = FAULTS[fault]
    spoil()
    if fault in BEFORE_WEIGHTS:
        monkeypatch.setattr("nlp.encoder.open_for_training", lambda *_: pytest.fail("weights were loaded"))
    capfd.readouterr()
    given = [f"model_path={MINE}", "save_dir=models/none", "data.text_path=data/few", "split=full", *overrides]
    assert run_recipe(nlp.finetune.main, given) == 1
    line, said = lines_of_faults()[fault], capfd.readouterr().err
    assert said.count("\n") == 1 and said.startswith(line.removesuffix("..."))
    assert line.endswith("...") or said == f"{line}\n"
    assert not Path("models/none").exists()
