"""Most resident memory while a block runs (Linux only)."""

import ctypes
import gc
import threading
from pathlib import Path


class Peak:
    """Most resident memory of this process while the block runs, in GB. It is read every 2 ms."""

    def __enter__(self) -> "Peak":
        self.most, self.over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        """Read the memory until the block ends."""
        while not self.over.wait(0.002):
            self.most = max(self.most, resident_gb())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def resident_gb() -> float:
    """Resident memory of this process, in GB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e9


def free_memory() -> None:
    """Give memory that Python and the allocator hold without need back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
