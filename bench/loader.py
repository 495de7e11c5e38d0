"""Pictures per second that workers decode and make ready for a model, against what a GPU's step takes.

Pictures of noise, as large as asked for, in JPEG and PNG, go through a processor of LLaVA's sizes (336 pixels) in as
many workers as stated. `needed` is what a step that takes `--step-seconds` for a batch uses; above it a GPU need not
wait. `parts` says which share of one core's time is decoding. A processor that computes with torch ("fast") is
measured beside the one that computes with PIL, where torchvision is installed.

`second_epoch` is what a picture takes in another epoch, where prompts are kept and a quarter of the pictures has room
as the processor made them: in 32 bits alone, and in 8 bits once these are full.
"""

import argparse
import io
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.clocks import processor
from data_module import Example
from engine.decode import decode_picture
from engine.eight_bits import Packer
from engine.kept_prompts import KeptPrompts


def processors() -> dict[str, Any]:
    """The library's processors of CLIP's pictures."""
    import transformers

    sizes = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    found: dict[str, Any] = {}
    for label, names in (
        ("pil", ("CLIPImageProcessorPil",)),
        ("torch", ("CLIPImageProcessorFast", "CLIPImageProcessor")),
    ):
        for name in names:
            try:
                found[label] = getattr(transformers, name)(**sizes)
                break
            except (AttributeError, ImportError):
                continue
    return found


def picture_bytes(form: str, pixels: int, seed: int) -> bytes:
    """A picture of smoothed noise in a file format."""
    noise = np.random.default_rng(seed).integers(0, 256, (pixels // 8, pixels // 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((pixels, pixels), Image.Resampling.BICUBIC).save(stream, form)
    return stream.getvalue()


class Pictures(Dataset):
    """Decoded and processed when they are asked for."""

    def __init__(self, files: list[bytes], count: int, make: Any):
        self.files, self.count, self.make = files, count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> torch.Tensor:
        picture = decode_picture(self.files[number % len(self.files)], "bench")
        return self.make(picture, return_tensors="pt")["pixel_values"][0]


def seconds_of_parts(files: list[bytes], make: Any) -> tuple[float, float]:
    """The processor's time of decoding a picture, and of making it ready, on this core."""
    begun = time.process_time()
    pictures = [decode_picture(each, "bench") for each in files]
    decoded = time.process_time()
    for picture in pictures:
        make(picture, return_tensors="pt")
    return (decoded - begun) / len(files), (time.process_time() - decoded) / len(files)


def pictures_per_second(files: list[bytes], make: Any, workers: int, count: int, batch_size: int) -> float:
    """Through a data loader, by the clock, from its first batch on: workers take a moment to begin."""
    loader = DataLoader(
        Pictures(files, count + batch_size, make),
        batch_size=batch_size,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
    )
    batches = iter(loader)
    next(batches)
    begun = time.perf_counter()
    done = sum(len(batch) for batch in batches)
    return done / (time.perf_counter() - begun)


def seconds_of_epochs(examples: list[Example], make: Any, kept: KeptPrompts) -> tuple[float, float]:
    """The processor's time of a picture in a first and in a second epoch, through kept prompts."""
    seconds = []
    for _ in range(2):
        begun = time.process_time()
        for example in examples:
            if kept.get(example) is None:
                picture = decode_picture(example.image["bytes"], "bench")
                shown = make(picture, return_tensors="pt")["pixel_values"]
                kept.add(example, {"input_ids": torch.zeros(1, 8, dtype=torch.long), "pixel_values": shown})
        seconds.append((time.process_time() - begun) / len(examples))
    return seconds[0], seconds[1]


def measure_epochs(name: str, files: list[bytes], make: Any, count: int) -> None:
    """Print what a picture takes in both epochs, with a quarter of the room that all take in 32 bits."""
    shown = make(decode_picture(files[0], "bench"), return_tensors="pt")["pixel_values"]
    examples = []
    for number in range(count):
        image = {"bytes": files[number % len(files)], "path": str(number)}
        examples.append(Example("Who is this?", "", image, number, None, "bench"))
    second = {}
    for bits in (32, 8):
        kept = KeptPrompts(count * (shown.nbytes + 256) // 4, ())
        if bits == 32:
            whole = Packer()
            whole.fits = False
            kept.packers = defaultdict(lambda whole=whole: whole)
        first, second[bits] = seconds_of_epochs(examples, make, kept)
        print(f"{name}_first_epoch_{bits}_bits_cpu_seconds {first:.4f}")
        print(f"{name}_second_epoch_{bits}_bits_cpu_seconds {second[bits]:.4f}")
        print(f"{name}_kept_in_{bits}_bits {len(kept.prompts)}", flush=True)
    print(f"{name}_second_epoch_ratio {second[8] / second[32]:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--step-seconds", type=float, default=0.5, help="of a GPU, stated")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=48, help="pictures that are counted")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(processor())
    print(f"needed_pictures_per_second {asked.batch_size / asked.step_seconds:.1f}")
    for form in ("JPEG", "PNG"):
        files = [picture_bytes(form, asked.pixels, seed) for seed in range(4)]
        for label, make in processors().items():
            name = f"{form.lower()}_{label}"
            seconds_of_parts(files[:1], make)
            decoding, processing = seconds_of_parts(files, make)
            print(f"{name}_decoding_cpu_seconds {decoding:.4f}\n{name}_processing_cpu_seconds {processing:.4f}")
            print(f"{name}_pictures_per_cpu_second {1 / (decoding + processing):.1f}", flush=True)
            for workers in asked.workers:
                rate = pictures_per_second(files, make, workers, asked.count, asked.batch_size)
                print(f"{name}_{workers}_workers_pictures_per_second {rate:.1f}", flush=True)
            measure_epochs(name, files, make, asked.count)


if __name__ == "__main__":
    main()
