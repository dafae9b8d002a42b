"""GPU hours of a whole run, computed: floating point operations of each stage over a throughput that you give.

    python benchmarks/gpu_hours.py                                        SD 1.5 and SDXL, their overlays
    python benchmarks/gpu_hours.py --tflops 180 --config more.yaml        yours

Operations are counted (torch's FlopCounterMode, a multiply-add is two) in one pass of the UNet, the VAE's decoder and
encoder at the overlay's image size; the overlay says how many passes there are. A backward pass through a frozen UNet
costs as much as a forward pass. Left out, as small: text encoders, judges, merging, ESD and UCE, loading, the queue.

The throughput is what your GPU sustains: TFLOP of a training step, as printed here, over its seconds in
`python benchmarks/training.py --model sd15 --device cuda --precision bf16`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from random_models import SIZES, unet_of, vae_of
from snakemake.utils import update_config
from timing import print_ratios, print_table
from torch.utils.flop_counter import FlopCounterMode

from safetydpo.config.loading import load_config
from safetydpo.config.run import Config
from safetydpo.config.training import Train

CONFIG = Path(__file__).resolve().parents[1] / "config"
TERA = 1e12


def counted(function: Any) -> float:
    """TFLOP of a call on the meta device, where nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() / TERA


def passes(name: str) -> dict[str, float]:
    """TFLOP of one image through each part of the model `name`."""
    with torch.device("meta"):
        unet, vae, size = unet_of(name), vae_of(name), SIZES[name]
        latents, image = torch.empty(1, 4, size // 8, size // 8), torch.empty(1, 3, size, size)
        text = torch.empty(1, 77, unet.config.cross_attention_dim)
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)} if name == "sdxl" else None
        step = torch.ones(1, dtype=torch.long)
        return {
            "unet": counted(lambda: unet(latents, step, text, added_cond_kwargs=added)),
            "decode": counted(lambda: vae.decode(latents)),
            "encode": counted(lambda: vae.encode(image)),
        }


def training(config: Train, unet: float) -> float:
    """TFLOP of a training: winner and loser, adapted and reference forward, backward, and again with checkpointing."""
    passes_an_image = 4 if config.gradient_checkpointing else 3
    return (
        config.steps
        * config.batch_size
        * config.gradient_accumulation_steps
        * config.gpus
        * 2
        * (passes_an_image * unet)
    )


def stages(config: Config, cost: dict[str, float]) -> dict[str, float]:
    """TFLOP by stage."""
    guided = 2 if config.model.guidance_scale > 1 else 1
    image = config.model.num_inference_steps * guided * cost["unet"] + cost["decode"]
    sld = config.model.num_inference_steps * (guided + 1) * cost["unet"] + cost["decode"]
    pairs = config.prompts.pairs * len(config.categories)
    mirrored = 2 if config.train.flip > 0 else 1
    each = {
        cell: (cell.n or config.evaluate.n) / (len(config.categories) if cell.category else 1)
        for cell in config.cells().values()
    }
    return {
        "render pairs": 2 * pairs * image,
        "features": 2 * pairs * mirrored * cost["encode"],
        "experts": len(config.categories) * training(config.train, cost["unet"]),
        "all-single": training(config.train_of_all_single(), cost["unet"]),
        "render benchmarks": sum(
            count * (sld if cell.method.startswith("sld") else image) for cell, count in each.items()
        ),
    }


def main() -> None:
    """Print a table for each model, and the totals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tflops", type=float, default=130.0, help="sustained; 130: a training step of SD 1.5's shape on an H200, bf16"
    )
    parser.add_argument("--pairs", type=int, default=15690, help="of all categories together; published: 15690")
    parser.add_argument("--config", help="an overlay on top")
    args = parser.parse_args()
    totals = {}
    for name in SIZES:
        values = yaml.safe_load((CONFIG / "config.yaml").read_text())
        for path in [CONFIG / f"{name}.yaml", *([Path(args.config)] if args.config else [])]:
            update_config(values, yaml.safe_load(path.read_text()))
        values["prompts"]["pairs"] = args.pairs // len(values["categories"])
        config, cost = load_config(values), passes(name)
        found = stages(config, cost)
        print(f"\n{name}: " + ", ".join(f"{part} {tflop:.2f} TFLOP" for part, tflop in cost.items()))
        one = training(config.train.model_copy(update={"steps": 1}), cost["unet"])
        batch = config.train.batch_size * config.train.gradient_accumulation_steps
        print(f"a training step of {batch} pairs: {one:.0f} TFLOP")
        hours = {stage: tflop / args.tflops / 3600 for stage, tflop in found.items()}
        totals[name] = sum(hours.values())
        rows = [[stage, f"{found[stage]:,.0f}", f"{value:,.1f}"] for stage, value in hours.items()]
        print_table(["stage", "TFLOP", "GPU hours"], [*rows, ["all", "", f"{totals[name]:,.1f}"]])
    print_ratios({f"{name}_gpu_hours": total for name, total in totals.items()} | {"tflops": args.tflops})


if __name__ == "__main__":
    main()
