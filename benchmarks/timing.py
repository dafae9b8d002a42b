"""What the benchmarks share: interleaved timing, peak memory, and a table whose last line is JSON."""

import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

BEGUN = time.perf_counter()


def tell(what: str) -> None:
    """Progress, on stderr: seconds since the start, and what is done; a run that is cut off says how far it came."""
    print(f"{time.perf_counter() - BEGUN:7.1f} s  {what}", file=sys.stderr, flush=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    variants: dict[str, Callable[[], object]], repeats: int, warmup: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each variant, taken in turns, so that a slow spell of the machine meets all of them.

    The order changes from turn to turn: who comes after a large variant finds cold caches.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    order, rng = list(variants), random.Random(0)
    for turn in range(warmup + repeats):
        rng.shuffle(order)
        for name in order:
            _wait(device)
            begin = time.perf_counter()
            variants[name]()
            _wait(device)
            took = time.perf_counter() - begin
            tell(f"{name}, {'warm-up' if turn < warmup else 'timed'}: {took:.4g} s")
            if turn >= warmup:
                times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}


class Peak:
    """Largest memory seen, bytes."""

    def __init__(self) -> None:
        self.bytes = 0


def _resident() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Peak of the block: allocated on the GPU, or resident in this process (sampled every 10 ms)."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak.bytes = max(peak.bytes, _resident())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns that line up, the first to the left."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print(
            "  ".join(
                f"{text:<{w}}" if i == 0 else f"{text:>{w}}"
                for i, (text, w) in enumerate(zip(row, widths, strict=True))
            )
        )


def print_ratios(ratios: dict[str, float | str]) -> None:
    """The last line: one JSON object."""
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in ratios.items()}))
