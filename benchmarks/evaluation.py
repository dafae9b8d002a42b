"""Images per second through the judges: our one pass in batches against one image at a time and judge by judge.

    python benchmarks/evaluation.py [--quick] [--device cuda --model sd15 --dtype bfloat16]

All local judges look: Q16, the detector (the demo's, or NudeNet), and an image classifier and CLIP's heads of random
weights. The published tests read the folder once per judge, decode each image again and hand it to the judge alone; the
scores of both are compared. Then SSIM beside base's images, in batches against pair by pair; and memory: the stage on a
file of images, and on eight of them.
"""

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from random_models import SIZES, save_random_clip
from timing import interleaved, peak_memory, print_ratios, print_table
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from safetydpo.config.evaluation import Benchmark
from safetydpo.config.judges import Judge, Looks
from safetydpo.config.loading import load_config
from safetydpo.demo.grammar import scenes_in
from safetydpo.demo.scenes import draw
from safetydpo.evaluation.layout import same_layout
from safetydpo.evaluation.scoring import BATCH, look_at
from safetydpo.evaluation.stage import write_scores
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.judge import Views
from safetydpo.judges.verdicts import column
from safetydpo.prompts.stage import write_benchmark
from safetydpo.running.devices import device_of
from safetydpo.storage.files import read_parquet, write_safetensors
from safetydpo.storage.images import png, unpng, write_images

ROOT = Path(__file__).resolve().parents[1]


def image_by_image(eyes: Eyes, images: pd.DataFrame) -> pd.DataFrame:
    """Scores and CLIPScores: a pass over the images for each judge, and one for CLIPScore."""
    columns = defaultdict[str, list[Any]](list)
    with torch.inference_mode():
        for name, judge in eyes.judges.items():
            for cell in images.image:
                for label, values in judge(Views([unpng(cell)])).scores.items():
                    columns[column(name, label)] += values
        for cell, prompt in zip(images.image, images.prompt, strict=True):
            cosine = (eyes.clip.images([unpng(cell)]) * eyes.clip.texts([prompt])).sum()
            columns["clip_score"].append(100 * float(cosine))
    return pd.DataFrame(columns)


def passes(eyes: Eyes, images: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """Our one pass."""
    batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
    return pd.DataFrame([row for rows in look_at(eyes, batches, prompts) for row in rows])


def memory(images: pd.DataFrame, prompts: Path, judges: Looks, device: str, folder: Path) -> list[int]:
    """Peak memory of the stage on a file of images, and on eight such files."""
    shard, peaks = folder / "images.parquet", []
    write_images(images.to_dict("records"), shard, {}, ("image",))
    for count in (1, 8):
        with peak_memory(device_of(device)) as peak:
            write_scores([str(shard)] * count, prompts, [], None, judges, device, folder / "scores.parquet")
        peaks.append(peak.bytes)
    return peaks


def layouts(images: pd.DataFrame, repeats: int) -> tuple[float, float]:
    """Seconds of SSIM beside the next image, on the half where an object could be: pair by pair, and in batches."""
    pixels = [unpng(cell) for cell in images.image]
    pairs = pixels, pixels[1:] + pixels[:1], ["left", "right"] * (len(pixels) // 2) + ["left"] * (len(pixels) % 2)

    def by(size: int) -> list[float]:
        parts = ([each[i : i + size] for each in pairs] for i in range(0, len(pixels), size))
        return [value for part in parts for value in same_layout(*part)]  # type: ignore[arg-type]

    assert np.allclose(by(1), by(BATCH), atol=1e-6)
    variants = {"pair by pair": lambda: by(1), "in batches": lambda: by(BATCH)}
    single, batched = interleaved(variants, repeats, 1, torch.device("cpu")).values()
    return single, batched


def random_judges(folder: Path, clip: str, width: int, model: dict[str, int]) -> list[Judge]:
    """An image classifier (a ViT of two labels) and CLIP's five heads of random weights."""
    torch.manual_seed(0)
    size = {"height": model["image_size"], "width": model["image_size"]}
    ViTForImageClassification(ViTConfig(**model, id2label={0: "normal", 1: "nsfw"})).save_pretrained(folder / "vit")
    ViTImageProcessor(size=size).save_pretrained(folder / "vit")
    heads = {}
    for name in ("sexual", "violent", "disturbing", "hateful", "political"):
        head = nn.Sequential(nn.Linear(width, 384), nn.ReLU(), nn.Dropout(), nn.BatchNorm1d(384), nn.Linear(384, 1))
        heads |= {f"{name}.{tensor}": values for tensor, values in head.state_dict().items()}
    write_safetensors(heads, folder / "heads.safetensors", {})
    return [
        Judge(judge="image-classifier", id=str(folder / "vit"), unsafe_labels=["nsfw"]),  # type: ignore[call-arg]
        Judge(judge="clip-heads", id=clip, path=str(folder / "heads.safetensors")),  # type: ignore[call-arg]
    ]


def demo_judges(folder: Path) -> Looks:
    """The judges of the default run, and those of random weights, as small."""
    looks = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text())).judges.looks()
    panel = [
        entry.model_copy(update={key: str(ROOT / path) for key in ("id", "path") if (path := getattr(entry, key))})
        for entry in looks.panel
    ]
    clip = str(ROOT / looks.clip_score)
    small = {"image_size": 48, "patch_size": 8, "hidden_size": 96, "intermediate_size": 384}
    panel += random_judges(folder, clip, 96, small | {"num_hidden_layers": 3, "num_attention_heads": 4})
    return looks.model_copy(update={"panel": panel, "clip_score": clip})


def sd15_judges(folder: Path) -> Looks:
    """Judges of the published sizes with random weights: ViT-L/14 for Q16 and heads, ViT-H/14 for CLIPScore, a ViT-B/16
    as classifier; and NudeNet.
    """
    for name in ("vit-l-14", "vit-h-14"):
        save_random_clip(name, folder / name)
    prompts = torch.randn(2, 768, generator=torch.Generator().manual_seed(0))
    write_safetensors({"prompts": prompts}, folder / "q16.safetensors", {})
    clip = str(folder / "vit-l-14")
    q16 = Judge(judge="q16", id=clip, path=str(folder / "q16.safetensors"))  # type: ignore[call-arg]
    others = [Judge(judge="nudenet"), *random_judges(folder, clip, 768, {"image_size": 224})]  # type: ignore[call-arg]
    return Looks(panel=[q16, *others], clip_score=str(folder / "vit-h-14"))  # type: ignore[call-arg]


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
    judges = {"demo": demo_judges, "sd15": sd15_judges}[args.model](folder).model_copy(update={"dtype": args.dtype})
    path = folder / "prompts.parquet"
    write_benchmark(Benchmark(name="safe", kind="safe", source="demo"), count, [], 0, path)  # type: ignore[call-arg]
    prompts = read_parquet(path)
    images = drawn(prompts, SIZES.get(args.model))
    eyes = Eyes(judges, device_of(args.device))
    ours, theirs = passes(eyes, images, prompts), image_by_image(eyes, images)
    for name in theirs:
        exact = 1e-2 if name == "clip_score" else 1e-3
        assert np.allclose(ours[name], theirs[name], atol=exact if args.dtype == "float32" else 100 * exact), name
    variants = {
        "image by image, judge by judge": lambda: image_by_image(eyes, images),
        "one pass in batches": lambda: passes(eyes, images, prompts),
    }
    times = interleaved(variants, repeats, 1, eyes.clip.model.device)
    single, batched = times.values()
    print(f"{count} images, {', '.join(eyes.judges)} and CLIPScore; medians of {repeats}; the same scores")
    rows = [[name, f"{t:.2f}", f"{count / t:.1f}", f"{single / t:.2f}"] for name, t in times.items()]
    print_table(["", "seconds", "images/s", "ratio"], rows)
    pairwise, together = layouts(images, repeats)
    print(f"SSIM on the CPU: {1000 * pairwise / count:.2f} ms pair by pair, {1000 * together / count:.2f} in batches")
    few, many = memory(images, path, judges, args.device, folder)
    print(f"peak memory: {few / 2**20:.0f} MiB with {count} images, {many / 2**20:.0f} MiB with {8 * count}")
    print_ratios({"scoring": single / batched, "ssim": pairwise / together, "memory_of_8_times_the_images": many / few})


if __name__ == "__main__":
    main()
