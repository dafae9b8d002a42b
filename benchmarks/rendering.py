"""Images per second: our batched rendering against one image at a time, as the published command renders.

    python benchmarks/rendering.py [--quick]                       the demo model, on the CPU
    python benchmarks/rendering.py --model sd15 --device cuda      full size, random weights; --compile: compiled too

Both use the same pipeline, prompts, seeds and steps; the images are compared too.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from random_models import save_random
from timing import interleaved, print_ratios, print_table

from safetydpo.config.loading import load_config
from safetydpo.config.model import Model
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ("a red circle on a navy field", "a blue star with a leaf on a pink field", "a green square on a teal field")


def demo_model(batch_size: int) -> Model:
    """The demo world's model section."""
    config = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    return config.model.model_copy(update={"id": str(ROOT / config.model.id), "batch_size": batch_size})


@torch.inference_mode()
def one_at_a_time(pipeline: Any, prompts: list[str], seeds: list[int], model: Model) -> list[np.ndarray]:
    """A pipeline call per image."""
    images = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        options = {"height": model.height, "width": model.width, "num_inference_steps": model.num_inference_steps}
        generator = torch.Generator("cpu").manual_seed(seed)
        output = pipeline(
            prompt, generator=generator, guidance_scale=model.guidance_scale, output_type="np", **options
        ).images[0]
        images.append((output * 255).round().astype(np.uint8))
    return images


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["demo", "sd15", "sdxl"], default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="model.compile as well")
    parser.add_argument("--quick", action="store_true", help="16 images, twice")
    args = parser.parse_args()
    count, repeats = (16, 2) if args.quick else (args.images, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        model = demo_model(args.batch_size)
        if args.model != "demo":
            save_random(args.model, Path(folder))
            size = {"sd15": 512, "sdxl": 1024}[args.model]
            model = model.model_copy(update={"id": folder, "height": size, "width": size, "num_inference_steps": 50})
        model = model.model_copy(update={"device": args.device, "dtype": args.dtype})
        pipeline = load_pipeline(model)
        prompts, seeds = [PROMPTS[i % 3] for i in range(count)], list(range(count))
        variants = {
            "one at a time": lambda: one_at_a_time(pipeline, prompts, seeds, model),
            f"batches of {args.batch_size}": lambda: list(render(pipeline, prompts, seeds, model)),
        }
        if args.compile:
            compiled, other = model.model_copy(update={"compile": True}), load_pipeline(model)
            variants["the same, compiled"] = lambda: list(render(other, prompts, seeds, compiled))
        first, *others = [np.stack(variant()).astype(int) for variant in variants.values()]
        same = max(int(abs(first - images).max()) for images in others)
        times = interleaved(variants, repeats, 0, pipeline.device)
    single, *ours = times.values()
    print(f"{count} images of {model.height} x {model.width}, {model.num_inference_steps} steps; medians of {repeats}")
    rows = [[name, f"{t:.2f}", f"{count / t:.1f}", f"{single / t:.2f}"] for name, t in times.items()]
    print_table(["", "seconds", "images/s", "ratio"], rows)
    print(f"largest difference of a pixel: {same} of 255")
    ratios = {name: single / t for name, t in zip(("rendering", "compiled"), ours, strict=False)}
    print_ratios(ratios | {"largest_difference": float(same)})


if __name__ == "__main__":
    main()
