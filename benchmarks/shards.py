"""Peak memory of rendering a shard, for shards of 256 and of 4,096 prompts, each in a process of its own.

    python benchmarks/shards.py [--quick]

The demo model at one step and 96 x 96 pixels, where it draws noise: its PNGs are then as large as they get.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import yaml
from timing import print_ratios, print_table

ROOT = Path(__file__).resolve().parents[1]
SIZE = 96


def render_shard(kind: str, count: int) -> None:
    """Render a shard of `count` prompts, or pairs of them; print the process's peak memory and the file's size, MB."""
    from safetydpo.config.loading import load_config
    from safetydpo.images.stage import render_pairs, render_prompts
    from safetydpo.storage.files import write_parquet

    model = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text())).model
    size = {"height": SIZE, "width": SIZE, "num_inference_steps": 1, "guidance_scale": 1.0, "batch_size": 32}
    model = model.model_copy(update={"id": str(ROOT / model.id), **size})
    ids = [f"x-{i}" for i in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts, out = folder / "prompts.parquet", folder / "images.parquet"
        if kind == "pairs":
            rows = {"pair_id": ids, "unsafe_prompt": "a red circle", "safe_prompt": "a blue star"}
            write_parquet(pd.DataFrame(rows), prompts)
            render_pairs(prompts, model, 0, 1, 0, out)
        else:
            rows = {"prompt_id": ids, "prompt": "a red circle", "category": "", "seed": range(count)}
            write_parquet(pd.DataFrame(rows), prompts)
            render_prompts(prompts, model, out)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{peak:.1f} {out.stat().st_size / 1e6:.1f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 and 768 prompts")
    parser.add_argument("--shard", nargs=2, help=argparse.SUPPRESS)  # one measurement, in its own process
    args = parser.parse_args()
    if args.shard:
        render_shard(args.shard[0], int(args.shard[1]))
        return
    small, large = 256, 768 if args.quick else 4096
    rows, ratios = [], {}
    for kind in ("prompts", "pairs"):
        peaks = []
        for count in (small, large):
            command = [sys.executable, __file__, "--shard", kind, str(count)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
            peaks.append(float(said[-2]))
            rows.append([f"{count} {kind}", said[-2], said[-1]])
        ratios[f"memory_{kind}"] = peaks[1] / peaks[0]
    print_table(["a shard of", "peak MB", "file MB"], rows)
    print_ratios(ratios)


if __name__ == "__main__":
    main()
