"""What it costs that a stage reads what a stage wrote: digests of safetensors files, page checksums of Parquet files.

    python benchmarks/digests.py [--quick]

Files as large as real runs have them, in the page cache, where checking weighs most. What is read is copied once, as
a stage does with it.
"""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from timing import interleaved, print_ratios, print_table

from safetydpo.storage import files


def unchecked(work: Callable[[], object]) -> Callable[[], object]:
    """The same work without digests, page checksums and the look for NaN."""

    def run() -> None:
        with ExitStack() as patches:
            patches.enter_context(patch.object(files, "_digest", lambda *_: ""))
            patches.enter_context(patch.object(files, "DIGEST", "none"))
            patches.enter_context(patch.object(files, "finite", lambda values, *_: values))
            patches.enter_context(patch.object(files, "PARQUET", {"compression": "zstd"}))
            work()

    return run


def weights(megabytes: int) -> dict[str, torch.Tensor]:
    """Random fp32 tensors of 4 MB."""
    return {f"w{i:04d}": torch.randn(1024, 1024) for i in range(megabytes // 4)}


def cases(folder: Path, quick: bool) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    large, tables = weights(100 if quick else 1600), np.random.default_rng(0)
    small = {f"w{i}": torch.randn(4, 640) for i in range(256)}
    rows = pd.DataFrame({"image": [tables.bytes(400_000) for _ in range(100 if quick else 1000)]})

    def write(tensors: dict[str, torch.Tensor], name: str) -> None:
        files.write_safetensors(tensors, folder / f"{name}.safetensors", {})

    def read(name: str) -> None:
        for tensor in files.read_safetensors(folder / f"{name}.safetensors")[0].values():
            tensor.clone()

    return {
        "write UNet": lambda: write(large, "unet"),
        "read UNet": lambda: read("unet"),
        "write expert": lambda: write(small, "expert"),
        "read expert": lambda: read("expert"),
        "write images": lambda: files.write_parquet(rows, folder / "images.parquet"),
        "read images": lambda: files.read_parquet(folder / "images.parquet"),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 MB of weights and 100 images")
    args = parser.parse_args()
    ratios, table = {}, []
    with tempfile.TemporaryDirectory() as name:
        for case, work in cases(Path(name), args.quick).items():
            work()
            times = interleaved({"with": work, "without": unchecked(work)}, 3, 1, torch.device("cpu"))
            work()
            ratios[case] = times["with"] / times["without"]
            table.append([case, *[f"{times[way]:.3f}" for way in ("with", "without")], f"{ratios[case]:.2f}"])
    print_table(["", "checked, s", "unchecked, s", "ratio"], table)
    print_ratios(ratios)


if __name__ == "__main__":
    main()
