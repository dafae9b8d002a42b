"""`python inference.py`: the published rendering command, and more. Images of the prompts of a csv, into a folder."""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from safetydpo.cli.models import command_model
from safetydpo.errors import SafetyDPOError
from safetydpo.running.progress import progress
from safetydpo.storage.files import read_rows, whole_file
from safetydpo.storage.records import SEEDS


def arguments() -> argparse.ArgumentParser:
    """The published flags and defaults, and ours."""
    parser = argparse.ArgumentParser(prog="inference.py", description="Render the prompts of a csv or Parquet.")
    parser.add_argument("--model_path", required=True, help="folder with unet/, UNet, whole pipeline, LoRA, or hub id")
    parser.add_argument("--prompts_path", required=True, help="columns prompt, perhaps image and evaluation_seed")
    parser.add_argument("--save_path", required=True, help="folder of the images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--guidance_scale", type=float, default=7.5)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--image_size", type=int, default=None, help="pixels; default: the model's own size")
    parser.add_argument("--base_model", default=None, help="pipeline of a UNet or LoRA; default: by its width")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--batch_size", type=int, default=4, help="images at once; does not change them")
    parser.add_argument(
        "--seed-per-row",
        action="store_true",
        help="without a seed column, seed row i with i instead of drawing all rows from one generator",
    )
    parser.add_argument("--overwrite", action="store_true", help="render images again that are there already")
    return parser


def read_prompts(path: str, folder: Path) -> pd.DataFrame:
    """Rows to render: prompt, file (inside `folder`), seed (None where the file has none).

    Rows without an `image` are called by their number. Raises SafetyDPOError for a name that leaves the folder, for
    a name that rows with different prompts or seeds share, and for a seed that is no number.
    """
    rows = read_rows(path)
    if "prompt" not in rows:
        raise SafetyDPOError(f"{path} has no column `prompt`; it has {', '.join(rows.columns)}.")
    names = rows.image if "image" in rows else pd.Series([f"{i:07d}.png" for i in range(len(rows))])
    column = next((name for name in SEEDS if name in rows), None)
    out = pd.DataFrame({"prompt": rows.prompt, "row": range(len(rows))})
    blank = out.prompt.str.strip() == ""
    given = rows[column] if column else [""] * len(rows)
    seeds = [_seed(value, path) if column and not skip else None for value, skip in zip(given, blank, strict=True)]
    out["seed"] = pd.Series(seeds, dtype=object)
    if blank.any():
        print(f"{path}: {int(blank.sum())} rows without a prompt skipped")
    out["file"] = pd.Series([_inside(folder, str(name), path) for name in names], dtype=object)
    for name, same in out[~blank].groupby("file"):
        if len(same) > 1 and (same.prompt.nunique() > 1 or same.seed.nunique(dropna=False) > 1 or column is None):
            numbers = ", ".join(map(str, same.row + 1))
            raise SafetyDPOError(f"{path}: rows {numbers} share the image name {Path(str(name)).name}.")
    return out[~blank].drop_duplicates("file").reset_index(drop=True)


def _seed(value: str, path: str) -> int:
    try:
        return int(float(value)) if "." in value else int(value)
    except ValueError:
        raise SafetyDPOError(f"{path} has the seed {value!r}: it must be a whole number.") from None


def _inside(folder: Path, name: str, path: str) -> Path:
    file = (folder / name).resolve()
    if not name.strip() or not file.is_relative_to(folder.resolve()) or file == folder.resolve():
        raise SafetyDPOError(f"{path}: the image name {name!r} is not inside {folder}.")
    return file if file.suffix.lower() in Image.registered_extensions() else file.with_name(f"{file.name}.png")


def starting_noise(
    rows: pd.DataFrame, count: int, shape: tuple[int, ...], device: torch.device
) -> Iterator[torch.Tensor]:
    """Starting noise (1, c, h, w) of each row: from its own seed, else from one generator, seeded 0, that goes on row
    by row, as the published command does. It advances over rows that are not rendered too.

    rows: `row` is a row's number among the `count` of the file.
    """
    if rows.seed.notna().all():
        for seed in rows.seed:
            yield torch.randn(shape, generator=torch.Generator(device).manual_seed(int(seed)), device=device)
        return
    generator, wanted = torch.Generator(device).manual_seed(0), set(rows.row)
    for row in range(count):
        noise = torch.randn(shape, generator=generator, device=device)
        if row in wanted:
            yield noise


@torch.inference_mode()
def render_rows(pipeline: Any, rows: pd.DataFrame, count: int, args: argparse.Namespace, size: int) -> None:
    """Render rows in batches and save each image whole."""
    shape = (1, pipeline.unet.config.in_channels, *[size // pipeline.vae_scale_factor] * 2)
    noise = starting_noise(rows, count, shape, pipeline.device)
    for start in progress(range(0, len(rows), args.batch_size), "render"):
        part = rows.iloc[start : start + args.batch_size]
        images = pipeline(
            prompt=list(part.prompt),
            latents=torch.cat(list(itertools.islice(noise, len(part)))).to(pipeline.unet.dtype),
            height=size,
            width=size,
            guidance_scale=args.guidance_scale,
            num_inference_steps=args.num_inference_steps,
            output_type="np",
        ).images
        for file, image in zip(part.file, images, strict=True):
            kind = Image.registered_extensions()[file.suffix.lower()]
            with whole_file(file) as temporary:
                Image.fromarray((image * 255).round().astype(np.uint8)).save(temporary, kind)


def run(args: argparse.Namespace) -> tuple[str, int]:
    """Render what is not there yet; returns a line on it, and the exit status."""
    folder = Path(args.save_path)
    rows = read_prompts(args.prompts_path, folder)
    count = int(rows.row.max()) + 1 if len(rows) else 0
    if args.seed_per_row and rows.seed.isna().any():
        rows["seed"] = rows.row
    todo = rows if args.overwrite else rows[[not file.exists() for file in rows.file]]
    done = len(rows) - len(todo)
    if todo.empty:
        return f"{len(rows)} images are in {folder} already.", 0
    pipeline = command_model(args.model_path, args.base_model, args.device, args.dtype)
    size = args.image_size or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    if size % pipeline.vae_scale_factor or size <= 0:
        raise SafetyDPOError(f"--image_size {size} must be a multiple of {pipeline.vae_scale_factor}.")
    render_rows(pipeline, todo, count, args, size)
    return f"{len(todo)} images written to {folder}" + (f", {done} were there already." if done else "."), 0
