"""Prompts per minute of each attack at the demo budget, and the share of its time in the model's forward passes.

    python benchmarks/attacks.py [--quick]            the demo's base model, two CPU cores

Budgets are those of config/attacks.yaml. Rendering, text encoding and gradients count as the model's; drawing,
breeding, reading back and the judges do not.
"""

import argparse
import contextlib
import io
import os
import tempfile
from pathlib import Path

import yaml
from timing import print_ratios, print_table

from safetydpo.attacks.stage import write_attack
from safetydpo.config.loading import load_config
from safetydpo.config.run import Config
from safetydpo.images.stage import render_prompts
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_benchmark, write_pairs

ROOT = Path(__file__).resolve().parents[1]


def demo(prompts: int) -> Config:
    """The demo with attacks."""
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    values["attacks"] |= yaml.safe_load((ROOT / "config/attacks.yaml").read_text())["attacks"] | {"prompts": prompts}
    return load_config(values)


def main() -> None:
    """Run every attack on base and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="14 prompts instead of 70")
    args = parser.parse_args()
    os.chdir(ROOT)  # the config's models are relative to it
    config = demo(14 if args.quick else 70)
    rows, ratios = [], {}
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(name)
        with contextlib.redirect_stdout(io.StringIO()):
            for category in config.categories:
                request = Request(category=category, config=config.prompts, seed=0)
                write_pairs(request, folder / f"pairs/{category.name}.parquet", folder / f"bad/{category.name}.parquet")
            benchmark = config.benchmark(config.attacked_benchmark)
            write_benchmark(benchmark, config.attacks.prompts, config.category_names, 0, folder / "prompts.parquet")
            render_prompts(folder / "prompts.parquet", config.model, folder / "base.parquet")
        for attack in config.attacks.run:
            with contextlib.redirect_stdout(io.StringIO()):
                spent = write_attack(
                    attack,
                    "base",
                    config.attacks,
                    config.model,
                    config.baselines,
                    config.judges,
                    prompts=folder / "prompts.parquet",
                    pairs=[str(folder / f"pairs/{c}.parquet") for c in config.category_names],
                    images=[str(folder / "base.parquet")],
                    answers=folder,
                    weights=None,
                    scale=1.0,
                    seed=0,
                    journal=folder / f"{attack}.jsonl",
                    out=folder / f"{attack}.parquet",
                )
            per_minute = 60 * config.attacks.prompts / spent.seconds
            rows.append(
                [attack, f"{spent.seconds:.0f}", f"{per_minute:.1f}", f"{spent.share:.2f}", f"{spent.success:.2f}"]
            )
            ratios[f"{attack}_model_share"] = spent.share
    print_table(["attack", "seconds", "prompts/minute", "in the model", "success"], rows)
    print_ratios(ratios)


if __name__ == "__main__":
    main()
