"""Both clocks of a bench: seconds of this process's own work and of the wall, and the figures made of them."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Spent(NamedTuple):
    """Seconds: `cpu` of the processor's time in this process, `wall` of the clock."""

    cpu: float
    wall: float

    def __add__(self, other: Any) -> "Spent":
        return Spent(self.cpu + other.cpu, self.wall + other.wall)


def timed(work: Callable[[], Any]) -> tuple[Spent, Any]:
    """What `work` takes, and what it returns."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall), result


def processor() -> str:
    """The processor's name (Linux), or what the platform says of it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    has = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in flags]
    return f"{named[0] if named else platform.processor()}, {len(named) or '?'} cores, {' '.join(has)}"


def print_both(name: str, plain: list[Spent], ours: list[Spent]) -> None:
    """Medians of both ways by both clocks, and the ratios.

    A ratio is the median over the turns, in each of which both ways ran one after the other: of ours over plain, and
    the `speedup` the other way round.
    """
    for clock in ("cpu", "wall"):
        pairs = [(getattr(a, clock), getattr(b, clock)) for a, b in zip(plain, ours, strict=True)]
        print(f"{name}_plain_{clock}_seconds {statistics.median(a for a, _ in pairs):.3f}")
        print(f"{name}_ours_{clock}_seconds {statistics.median(b for _, b in pairs):.3f}")
        print(f"{name}_{clock}_ratio {statistics.median(b / a for a, b in pairs):.3f}")
        print(f"{name}_{clock}_speedup {statistics.median(a / b for a, b in pairs):.2f}", flush=True)
