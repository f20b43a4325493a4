"""How benchmarks measure: rivals in turns, medians, and the machine's own limit beside them."""

import ctypes
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch


def in_turns(rivals: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each rival; A B A B, after one warm-up of each."""
    for call in rivals.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def once(call: Callable[[], object]) -> tuple[float, object]:
    """Seconds of one call, for what takes minutes."""
    start = time.perf_counter()
    out = call()
    return time.perf_counter() - start, out


def matrix_rate(size: int = 1536) -> float:
    """FLOP/s of a large float32 product: what the machine can do at best."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = min(in_turns({"product": lambda: a @ b}, rounds=9).values())
    return 2 * size**3 / seconds


def flops_per_token(model: Any) -> int:
    """Of one block's products with weights; all blocks are alike."""
    w = model.weights
    matrices = [w.W_Q(0), w.W_K(0), w.W_V(0), w.W_O(0), w.W_in(0), w.W_out(0), w.W_gate(0)]
    return 2 * sum(m.numel() for m in matrices if m is not None)


class PeakMemory:
    """The most memory the process holds inside the with-block, above what it held before."""

    def __enter__(self) -> "PeakMemory":
        if platform.libc_ver()[0] == "glibc":  # else what was freed before counts as held already
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._process, self._stop = psutil.Process(), threading.Event()
        self.before = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def mib(self) -> float:
        """Mebibytes taken."""
        return (self.peak - self.before) / 2**20


def machine() -> str:
    """One line that says where this was measured."""
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    load = os.getloadavg()[0]
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, torch {torch.__version__}, "
        f"load before {load:.1f}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
