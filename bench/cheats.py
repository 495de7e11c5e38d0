"""Whether a cheat is taken for forgetting: python bench/cheats.py

It runs benchmark=cheats, after making the models of it that no training makes: base with noise on its weights, and base
with a template that hides the questions about the forgotten people. The output has two lines per cheat: its distance
with the rule that catches it, or `not caught`; and what attacks bring out of it. Honest methods have the second.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_module import load_split
from engine.measures import MEASURES
from engine.places import ANCHORS, judged, why_unranked
from engine.record import METRICS, TRAIN_RECORD
from engine.result_table import ModelResult
from engine.verdicts import is_clearly_better
from report.folder import read_plan
from report.ranking import measured_spreads
from report.rows import benchmark_results
from settings.script import ROOT, choices

FORGOTTEN = str(ROOT / "data" / "mini_clear" / "clear"), "forget25"  # dataset and split
REPEATED = "demo"  # the benchmark whose repeated runs say how far a distance moves
NOISE = {"noise": 0.7, "more_noise": 0.9}  # of each tensor's own standard deviation


def make_models(base: Path, out: Path) -> None:
    """Write the models that are made from base without training.

    Args:
        base: The folder of the model that knows everybody.
        out: The folder that gets one folder per model.
    """
    for name, share in NOISE.items():
        copy_model(base, out / name)
        weights = out / name / "model.safetensors"
        save_file(with_noise(load_file(weights), share), weights, metadata={"format": "pt"})
    hidden = out / "refusing_template"
    copy_model(base, hidden)
    template = hidden / "chat_template.jinja"
    names = sorted(set(load_split(*FORGOTTEN)["name"]))
    text = template.read_text(encoding="utf-8")
    template.write_text(refusing(text, names), encoding="utf-8")


def copy_model(base: Path, folder: Path) -> None:
    """Copy a model's own files, without the results that stand below it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in base.iterdir():
        if file.is_file() and file.name not in (TRAIN_RECORD, METRICS):
            shutil.copyfile(file, folder / file.name)


def with_noise(weights: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Weights with normal noise of a share of each tensor's standard deviation."""
    source = torch.Generator().manual_seed(0)
    noisy = {}
    for name, tensor in weights.items():
        size = share * tensor.float().std() if tensor.numel() > 1 else torch.tensor(0.0)
        noisy[name] = tensor + (size * torch.randn(tensor.shape, generator=source)).to(tensor.dtype)
    return noisy


def refusing(template: str, names: list[str]) -> str:
    """A chat template that asks something else where a question holds one of the names."""
    asked = "{{ part['text'] }}"
    assert template.count(asked) == 1
    found = " or ".join(f"{name!r} in part['text']" for name in names)
    return template.replace(asked, f"{{% if {found} %}}What is this?{{% else %}}{asked}{{% endif %}}")


def honest_rows(results: dict[str, ModelResult]) -> list[ModelResult]:
    """The rows that have a method's name."""
    return [result for name, result in results.items() if name in choices("method")]


def caught_by(result: ModelResult, honest: list[ModelResult]) -> str | None:
    """The rule that keeps a cheat from being taken for forgetting; None: there is none.

    Args:
        result: The cheat's figures.
        honest: Those of the methods.
    """
    if why := why_unranked(result):
        return f"unranked: {why}"
    verdict = result.figure("verdict")
    ranked = [each for each in honest if why_unranked(each) is None]
    spread = max(measured_spreads(REPEATED).values())  # of the method that moves most
    better = [each.method for each in ranked if is_clearly_better(judged(each, spread), judged(result, spread))]
    return f"clearly behind {', '.join(better)}; {verdict.why}" if better else None


def leak_of(result: ModelResult) -> str:
    """The attack that shows most of a model, and what is said of it."""
    verdict = result.figure("attack_verdict")
    said = MEASURES["attack_verdict"].words[verdict.value] if verdict.value is not None else "not known"
    return f"{said}: {verdict.why}"


def run() -> dict[str, ModelResult]:
    """The figures of every row of benchmark=cheats but base, gold and the start; what was run before is not run again.

    Models of the demo that were made by the same code are taken from its results.
    """
    folder, demo = ROOT / "results" / "cheats", ROOT / "results" / "demo"
    if demo.is_dir() and not folder.exists():
        shutil.copytree(demo, folder)
    command = [sys.executable, "run_benchmark.py", "benchmark=cheats", "overwrite=true"]
    subprocess.run([*command, "~benchmark.models"], cwd=ROOT, check=True)  # base, from which the models are made
    make_models(folder / "models" / "base_seed0", folder / "made")
    subprocess.run(command, cwd=ROOT, check=True)
    results = benchmark_results(folder, read_plan(folder))
    return {result.method: result for result in results if result.method not in ANCHORS}


def main() -> None:
    results = run()
    honest = honest_rows(results)
    for name, result in results.items():
        if result not in honest:
            print(f"{name} {result.value('distance_worst_way'):.2f}: {caught_by(result, honest) or 'not caught'}")
        print(f"{name} under attack: {leak_of(result)}")


if __name__ == "__main__":
    main()
