"""GPU hours of a whole run, computed: floating point operations of each stage over a throughput that you give.

    python benchmarks/gpu_hours.py                                        each large model that has an overlay
    python benchmarks/gpu_hours.py --tflops 180 --config more.yaml        yours

Operations are counted (torch's FlopCounterMode, a multiply-add is two) in one pass of the network, the VAE's decoder
and encoder at the overlay's image size; the overlay says how many passes there are. A backward pass through a frozen
network costs as much as a forward pass. Left out, as small: text encoders, judges, merging, ESD and UCE, loading, the
queue.

The throughput is what your GPU sustains: TFLOP of a training step, as printed here, over its seconds in
`python benchmarks/training.py --model sd15 --device cuda --precision bf16`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from random_models import SIZES, network_of, text_of, vae_of
from snakemake.utils import update_config
from timing import print_ratios, print_table
from torch.utils.flop_counter import FlopCounterMode

from safetydpo.config.loading import load_config
from safetydpo.config.model import Model
from safetydpo.config.run import Config
from safetydpo.config.training import Train
from safetydpo.models.families.family import family_of
from safetydpo.models.families.registry import FAMILIES, Kind

CONFIG = Path(__file__).resolve().parents[1] / "config"
TERA = 1e12


def counted(function: Any) -> float:
    """TFLOP of a call on the meta device, where nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() / TERA


def kind_of(name: str) -> Kind:
    """The family of the model `name`."""
    with torch.device("meta"):
        network = type(network_of(name)).__name__
    return next(kind for kind in FAMILIES if kind.network == network)


def passes(name: str, model: Model) -> dict[str, float]:
    """TFLOP of one image, of the size in `model`, through each part of the model `name`."""
    family = family_of(kind_of(name))
    with torch.device("meta"):
        network, vae = network_of(name), vae_of(name)
        channels = family.latent_channels(network.config)
        latents, image = (
            torch.empty(1, channels, model.height // 8, model.width // 8),
            torch.empty(1, 3, model.height, model.width),
        )
        text, step = text_of(name, model.call.get("max_sequence_length")), torch.ones(1)
        return {
            "network": counted(lambda: family.forward(network, latents, step, text, model)),
            "decode": counted(lambda: vae.decode(latents)),
            "encode": counted(lambda: vae.encode(image)),
        }


def training(config: Train, network: float) -> float:
    """TFLOP of a training: winner and loser, adapted and reference forward, backward, and again with checkpointing."""
    passes_an_image = 4 if config.gradient_checkpointing else 3
    return (
        config.steps
        * config.batch_size
        * config.gradient_accumulation_steps
        * config.gpus
        * 2
        * (passes_an_image * network)
    )


def stages(config: Config, cost: dict[str, float], kind: Kind) -> dict[str, float]:
    """TFLOP by stage."""
    distilled = "negative-prompt" in kind.refuses  # guidance costs no second pass
    guided = 2 if config.model.guidance_scale > 1 and not distilled else 1
    image = config.model.num_inference_steps * guided * cost["network"] + cost["decode"]
    sld = config.model.num_inference_steps * (guided + 1) * cost["network"] + cost["decode"]
    pairs = config.prompts.pairs * len(config.categories)
    mirrored = 2 if config.train.flip > 0 else 1
    each = {
        cell: (cell.n or config.evaluate.n) / (len(config.categories) if cell.category else 1)
        for cell in config.cells().values()
    }
    return {
        "render pairs": 2 * pairs * image,
        "features": 2 * pairs * mirrored * cost["encode"],
        "experts": len(config.categories) * training(config.train, cost["network"]),
        "all-single": training(config.train_of_all_single(), cost["network"]),
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
    for name in [name for name in SIZES if (CONFIG / f"{name}.yaml").exists()]:
        values = yaml.safe_load((CONFIG / "config.yaml").read_text())
        for path in [CONFIG / f"{name}.yaml", *([Path(args.config)] if args.config else [])]:
            update_config(values, yaml.safe_load(path.read_text()))
        values["prompts"]["pairs"] = args.pairs // len(values["categories"])
        config = load_config(values)
        cost = passes(name, config.model)
        found = stages(config, cost, kind_of(name))
        print(
            f"\n{name}, {config.model.height} px: "
            + ", ".join(f"{part} {tflop:.2f} TFLOP" for part, tflop in cost.items())
        )
        one = training(config.train.model_copy(update={"steps": 1}), cost["network"])
        batch = config.train.batch_size * config.train.gradient_accumulation_steps
        print(f"a training step of {batch} pairs: {one:.0f} TFLOP")
        hours = {stage: tflop / args.tflops / 3600 for stage, tflop in found.items()}
        totals[name] = sum(hours.values())
        rows = [[stage, f"{found[stage]:,.0f}", f"{value:,.1f}"] for stage, value in hours.items()]
        print_table(["stage", "TFLOP", "GPU hours"], [*rows, ["all", "", f"{totals[name]:,.1f}"]])
    print_ratios({f"{name}_gpu_hours": total for name, total in totals.items()} | {"tflops": args.tflops})


if __name__ == "__main__":
    main()
