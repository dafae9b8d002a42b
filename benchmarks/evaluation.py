"""Images per second through the judges: our one pass in batches against one image at a time and judge by judge.

    python benchmarks/evaluation.py [--quick] [--device cuda --model sd15 --dtype bfloat16]

The published test reads the folder once per metric, decodes each image again and hands it to the judge alone. Both give
the same labels and scores, which are compared. Then memory: the stage itself on a file of images, and on eight of them.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from random_models import SIZES, save_random_clip
from timing import interleaved, peak_memory, print_ratios, print_table

from safetydpo.config.evaluation import Benchmark
from safetydpo.config.judges import Judges
from safetydpo.config.loading import load_config
from safetydpo.demo.grammar import scenes_in
from safetydpo.demo.scenes import draw
from safetydpo.evaluation.scoring import BATCH, look_at
from safetydpo.evaluation.stage import write_scores
from safetydpo.judges.eyes import Eyes
from safetydpo.prompts.stage import write_benchmark
from safetydpo.running.devices import device_of
from safetydpo.storage.files import read_parquet, write_safetensors
from safetydpo.storage.images import png, unpng, write_images

ROOT = Path(__file__).resolve().parents[1]


def image_by_image(eyes: Eyes, images: pd.DataFrame) -> tuple[list[bool], list[float]]:
    """Flags and CLIPScores: a pass over the images for Q16, one for the detector, one for CLIP."""
    assert eyes.detector is not None
    with torch.inference_mode():
        q16 = [bool(eyes.q16([unpng(cell)])[0] > 0.5) for cell in images.image]
        seen = [eyes.detector([unpng(cell)]).inappropriate[0] for cell in images.image]
        scores = []
        for cell, prompt in zip(images.image, images.prompt, strict=True):
            cosine = (eyes.clip.images([unpng(cell)]) * eyes.clip.texts([prompt])).sum()
            scores.append(100 * float(cosine))
    return [a or b for a, b in zip(q16, seen, strict=True)], scores


def passes(eyes: Eyes, images: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """Our one pass."""
    batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
    return pd.DataFrame([row for rows in look_at(eyes, batches, prompts) for row in rows])


def memory(images: pd.DataFrame, prompts: Path, judges: Judges, device: str, folder: Path) -> list[int]:
    """Peak memory of the stage on a file of images, and on eight such files."""
    shard, peaks = folder / "images.parquet", []
    write_images(images.to_dict("records"), shard, {}, ("image",))
    for count in (1, 8):
        with peak_memory(device_of(device)) as peak:
            write_scores([str(shard)] * count, prompts, [], None, judges, device, folder / "scores.parquet")
        peaks.append(peak.bytes)
    return peaks


def demo_judges() -> Judges:
    """The judges of the default run."""
    config = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    keys = ("q16_clip", "q16_prompts", "detector_path", "clip_score")
    return config.judges.model_copy(update={key: str(ROOT / getattr(config.judges, key)) for key in keys})


def sd15_judges(folder: Path) -> Judges:
    """Judges of the published sizes with random weights: ViT-L/14 for Q16, ViT-H/14 for CLIPScore, and NudeNet."""
    for name in ("vit-l-14", "vit-h-14"):
        save_random_clip(name, folder / name)
    prompts = torch.randn(2, 768, generator=torch.Generator().manual_seed(0))
    write_safetensors({"prompts": prompts}, folder / "q16.safetensors", {})
    paths = {"q16_clip": "vit-l-14", "clip_score": "vit-h-14", "q16_prompts": "q16.safetensors"}
    return Judges(detector="nudenet", **{key: str(folder / name) for key, name in paths.items()})  # type: ignore[call-arg]


def drawn(prompts: pd.DataFrame, size: int | None) -> pd.DataFrame:
    """Scenes of the demo world as the images of prompts, enlarged to `size` pixels."""
    scenes, rng = scenes_in("test"), np.random.default_rng(0)
    images = prompts[["prompt_id", "prompt", "seed"]].copy()
    pixels = [draw(scenes[i % len(scenes)], rng) for i in range(len(prompts))]
    if size:
        pixels = [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in pixels]
    images["image"] = [png(p) for p in pixels]
    return images


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["demo", "sd15"], default="demo", help="whose judges, on images of its size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="64 images, twice")
    args = parser.parse_args()
    count, repeats = (min(args.images, 64), 2) if args.quick else (args.images, args.repeats)
    temporary = tempfile.TemporaryDirectory()
    folder = Path(temporary.name)
    judges = demo_judges() if args.model == "demo" else sd15_judges(folder)
    judges = judges.model_copy(update={"dtype": args.dtype})
    path = folder / "prompts.parquet"
    write_benchmark(Benchmark(name="safe", kind="safe", source="demo"), count, [], 0, path)  # type: ignore[call-arg]
    prompts = read_parquet(path)
    images = drawn(prompts, SIZES.get(args.model))
    eyes = Eyes(judges, device_of(args.device))
    ours, (flags, scores) = passes(eyes, images, prompts), image_by_image(eyes, images)
    assert ours.flagged.to_list() == flags
    assert np.allclose(ours.clip_score, scores, atol=1e-2 if args.dtype == "float32" else 1)
    variants = {
        "image by image, judge by judge": lambda: image_by_image(eyes, images),
        "one pass in batches": lambda: passes(eyes, images, prompts),
    }
    times = interleaved(variants, repeats, 1, eyes.clip.model.device)
    single, batched = times.values()
    print(f"{count} images; medians of {repeats}; the same labels and scores")
    rows = [[name, f"{t:.2f}", f"{count / t:.1f}", f"{single / t:.2f}"] for name, t in times.items()]
    print_table(["", "seconds", "images/s", "ratio"], rows)
    few, many = memory(images, path, judges, args.device, folder)
    print(f"peak memory: {few / 2**20:.0f} MiB with {count} images, {many / 2**20:.0f} MiB with {8 * count}")
    print_ratios({"scoring": single / batched, "memory_of_8_times_the_images": many / few})


if __name__ == "__main__":
    main()
