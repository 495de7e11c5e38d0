"""docs/pitfalls.md names tests that exist, and the rules that only a look at the source can hold."""

import re

from helpers import ROOT

SOURCES = [
    file
    for file in ROOT.rglob("*.py")
    if not {".venv", "tests", "data", "models", "results"} & set(file.relative_to(ROOT).parts)
]


def test_every_test_that_the_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")))
    written = {
        name
        for file in ROOT.rglob("tests/**/test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.M)
    }
    assert named - written == set() and len(named) > 30


def test_the_page_holds_every_rule():
    rules = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8"), re.M)
    held = list(range(1, 125))
    assert sorted(int(number) for rule in rules for number in rule.split(",")) == held


def test_no_source_names_a_machine_or_a_device():
    for file in SOURCES:
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"['\"]/(home|root|work|mnt|data)/|\.cuda\(\)|device=['\"]cuda|"
            r"^(import|from) (flash_attn|bitsandbytes|deepspeed|wandb)",
            text,
            re.M,
        ), file


def test_no_source_pickles_or_trusts_remote_code_by_itself():
    for file in SOURCES:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\bpickle\b|torch\.(save|load)\(|trust_remote_code\s*=\s*True", text), file
