"""Peak memory of writing a shard of images, for shards of 256 and of 4,096 prompts, each in a process of its own.

    python benchmarks/shards.py [--quick]

The stages' own code, with random 128 x 128 pixels in the place of a model's: their PNGs are as large as they get.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from timing import print_ratios, print_table

SIZE = 128


def noise(_: Any, prompts: list[str], *__: Any) -> Iterator[np.ndarray]:
    """Stands in for `render`."""
    rng = np.random.default_rng(0)
    return (rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8) for _ in prompts)


def write_shard(kind: str, count: int) -> None:
    """Write a shard of `count` prompts, or pairs of them; print the process's peak memory and the file's size, MB."""
    from safetydpo.config.model import Model
    from safetydpo.images import stage
    from safetydpo.storage.files import write_parquet

    model = Model(id="x", height=SIZE, width=SIZE, num_inference_steps=1, guidance_scale=1, batch_size=32)  # type: ignore[call-arg]
    ids = [f"x-{i}" for i in range(count)]
    with (
        tempfile.TemporaryDirectory() as name,
        patch.multiple(stage, render=noise, load_pipeline=lambda *_: None, open_method=lambda *_: None),
    ):
        prompts, out = Path(name) / "prompts.parquet", Path(name) / "images.parquet"
        if kind == "pairs":
            write_parquet(pd.DataFrame({"pair_id": ids, "unsafe_prompt": "", "safe_prompt": ""}), prompts)
            stage.render_pairs(prompts, model, 0, 1, 0, out)
        else:
            rows = {"prompt_id": ids, "prompt": "", "category": "", "seed": range(count)}
            write_parquet(pd.DataFrame(rows), prompts)
            stage.render_prompts(prompts, model, out)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{peak:.0f} {out.stat().st_size / 1e6:.0f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 and 1,024 prompts")
    parser.add_argument("--shard", nargs=2, help=argparse.SUPPRESS)  # one measurement, in its own process
    args = parser.parse_args()
    if args.shard:
        write_shard(args.shard[0], int(args.shard[1]))
        return
    counts = (256, 1024) if args.quick else (256, 1024, 4096)
    rows, ratios = [], {}
    for kind in ("prompts", "pairs"):
        peaks = []
        for count in counts:
            command = [sys.executable, __file__, "--shard", kind, str(count)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
            peaks.append(float(said[0]))
            rows.append([f"{count} {kind}", *said])
        ratios[f"memory_{kind}"] = peaks[-1] / peaks[0]
    print_table(["a shard of", "peak MB", "file MB"], rows)
    print_ratios(ratios)


if __name__ == "__main__":
    main()
