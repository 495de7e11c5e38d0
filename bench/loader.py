"""Pictures per second that workers decode and make ready for a model, against what a GPU's step takes.

Pictures of noise, as large as asked for, in JPEG and PNG, go through a processor of LLaVA's sizes (336 pixels) in as
many workers as stated. `needed` is what a step that takes `--step-seconds` for a batch uses; above it a GPU need not
wait. `parts` says which share of one core's time is decoding. A processor that computes with torch ("fast") is
measured beside the one that computes with PIL, where torchvision is installed.
"""

import argparse
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.clocks import processor
from engine.decode import decode_picture


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


if __name__ == "__main__":
    main()
