"""Files as a user may have them and no script can read: what tests/wrong_inputs.py puts into a case's folder."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.record import AGGREGATED
from helpers import BASE, png

Prepare = Callable[[Path], object]  # puts files into a case's folder

QUESTION = {"question": "Who is Ann?", "answer": "A painter."}


def no_files(folder: Path) -> None:
    """Nothing is put there."""


def text_file(name: str, text: str) -> Prepare:
    """One file of text."""

    def write(folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    return write


def bytes_file(name: str, content: bytes) -> Prepare:
    """One file of bytes."""
    return lambda folder: bool((folder / name).write_bytes(content))


def empty_folder(name: str) -> Prepare:
    return lambda folder: (folder / name).mkdir(parents=True)


def all_of(*prepared: Prepare) -> Prepare:
    """What several of these put there."""

    def write(folder: Path) -> None:
        for each in prepared:
            each(folder)

    return write


# ---- rows


def jsonl(*rows: dict | str, name: str = "rows/full.jsonl") -> Prepare:
    """A file of rows, those given as text as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return text_file(name, "".join(f"{line}\n" for line in lines))


def torn_parquet(folder: Path) -> None:
    (folder / "rows").mkdir()
    file = folder / "rows" / "full.parquet"
    datasets.Dataset.from_list([QUESTION] * 50).to_parquet(file)
    file.write_bytes(file.read_bytes()[:-20])


def parquet_without_rows(folder: Path) -> None:
    (folder / "rows").mkdir()
    kinds = datasets.Features(dict.fromkeys(QUESTION, datasets.Value("string")))
    empty = datasets.Dataset.from_dict({"question": [], "answer": []}, features=kinds)
    empty.to_parquet(folder / "rows" / "full.parquet")


def parquet_picture(content: bytes) -> Prepare:
    """A parquet file with one picture of these bytes."""

    def write(folder: Path) -> None:
        (folder / "rows").mkdir()
        rows = [{"image": {"bytes": content, "path": None}, "caption": "Ann smiles."}]
        kinds = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        datasets.Dataset.from_list(rows, features=kinds).to_parquet(folder / "rows" / "full.parquet")

    return write


def huge_png() -> bytes:
    """The head of a PNG that says it has 20000 x 20000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def one_picture(name: str) -> Prepare:
    """A picture that is whole."""

    def write(folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png("red")["bytes"])

    return write


def broken_link(name: str) -> Prepare:
    """A link to a file that is not there."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(folder / "nothing")

    return write


# ---- models


def model_without(*names: str) -> Prepare:
    """The tiny model's folder without some of its files."""

    def write(folder: Path) -> None:
        shutil.copytree(BASE, folder / "model")
        for name in names:
            (folder / "model" / name).unlink()

    return write


def model_with(name: str, text: str) -> Prepare:
    """The tiny model's folder with this text in one of its files."""
    return all_of(model_without(), text_file(f"model/{name}", text))


def torn_weights(folder: Path) -> None:
    model_without()(folder)
    file = folder / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1_000_000])


def changed_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Prepare:
    """The tiny model's folder with changed tensors."""

    def write(folder: Path) -> None:
        model_without()(folder)
        file = folder / "model" / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return write


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors[min(tensors)].view(-1)[0] = torch.nan


def small_vocabulary(folder: Path) -> None:
    model_without()(folder)
    file = folder / "model" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["vocab_size"] = 500
    file.write_text(json.dumps(config))


# ---- faces


def album(**pictures: int) -> Prepare:
    """A folder of people with so many pictures each."""

    def write(folder: Path) -> None:
        for person, count in pictures.items():
            (folder / "people" / person).mkdir(parents=True)
            for number in range(count):
                colour = (number, 100, 200)
                Image.new("RGB", (40, 40), colour).save(folder / "people" / person / f"{number}.png")

    return write


# ---- logs


def log_content(shift: float = 0.0, rows: int = 4) -> dict:
    """A log of two tasks; `shift` makes one model's losses differ from another's."""
    log = {}
    for task in ("eval_log_forget", "eval_log"):
        by_row = {}
        for row in range(rows):
            by_row[str(row)] = {
                "avg_gt_loss": 0.5 + shift + row / 10,
                "rougeL_recall": 0.5,
                "generated_text": ["Who is this?", "Ann", "Ann Lee"],
                "average_perturb_loss": [2.0, 3.0],
                "person": f"person {row}",
            }
        log[f"{task}.json"] = {}
        for metric in by_row["0"]:
            log[f"{task}.json"][metric] = {row: values[metric] for row, values in by_row.items()}
    return log


def logs(change: Callable[[dict], object] = lambda log: None, rows: int = 4) -> Prepare:
    """A judged model's log `judged.json` with something changed in it, and a gold's `gold.json`."""

    def write(folder: Path) -> None:
        judged = log_content(0.2, rows)
        change(judged)
        for name, content in {"judged": judged, "gold": log_content()}.items():
            (folder / name).mkdir()
            (folder / name / AGGREGATED).write_text(json.dumps(content))

    return write
