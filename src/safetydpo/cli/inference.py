"""`python inference.py`: the published rendering command, and more. Images of the prompts of a csv, into a folder."""

import argparse
import io
import itertools
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from safetydpo.cli.flags import whole_number
from safetydpo.cli.models import command_model
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.pipeline import native_size, unit_of
from safetydpo.models.sampling import pixels_of
from safetydpo.running.progress import progress
from safetydpo.storage.files import whole_file
from safetydpo.storage.images import picture
from safetydpo.storage.records import SEEDS
from safetydpo.storage.tables import read_rows, whole_seed

LONGEST_NAME = 255  # bytes, of file systems
GUIDANCE = 7.5  # the published command's, which renders UNets


def arguments() -> argparse.ArgumentParser:
    """The published flags and defaults, and ours."""
    parser = argparse.ArgumentParser(prog="inference.py", description="Render the prompts of a csv, JSON or Parquet.")
    parser.add_argument(
        "--model_path", required=True, help="pipeline, checkpoint, UNet, transformer, text encoder, LoRA, or hub id"
    )
    parser.add_argument("--prompts_path", required=True, help="columns prompt, perhaps image and evaluation_seed")
    parser.add_argument("--save_path", required=True, help="folder of the images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--guidance_scale", type=float, default=None, help="default: 7.5; of flow matching, the pipeline's own"
    )
    parser.add_argument("--num_inference_steps", type=whole_number("--num_inference_steps"), default=50)
    parser.add_argument(
        "--image_size", type=whole_number("--image_size"), default=None, help="pixels; default: the model's own size"
    )
    parser.add_argument(
        "--base_model", default=None, help="pipeline that a part, LoRA or checkpoint is put on; default: by its width"
    )
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument(
        "--batch_size", type=whole_number("--batch_size"), default=4, help="images at once; does not change them"
    )
    parser.add_argument(
        "--seed-per-row",
        action="store_true",
        help="without a seed column, seed row i with i instead of drawing all rows from one generator",
    )
    parser.add_argument("--overwrite", action="store_true", help="render images again that are there already")
    return parser


def read_prompts(path: str, folder: Path) -> pd.DataFrame:
    """Rows to render: prompt, row (its number), file (inside `folder`), seed (None where the file has none).

    Rows without an `image` are called by their number. Raises SafetyDPOError for a file without prompts, for a name
    that leaves the folder, for one that rows with different prompts or seeds share, and for a seed that is none.
    """
    rows = read_rows(path, ["prompt"], ["image", *SEEDS])
    names = rows.image if "image" in rows else pd.Series([f"{i:07d}.png" for i in range(len(rows))])
    column = next((name for name in SEEDS if name in rows), None)
    out = pd.DataFrame({"prompt": rows.prompt, "row": range(len(rows))})
    blank = out.prompt.str.strip() == ""
    if blank.all():
        raise SafetyDPOError(f"{path} has no prompt in its column `prompt`.")
    given = rows[column] if column else [""] * len(rows)
    seeds = [
        None if skip else whole_seed(value, f"{path}, row {i}")
        for i, (value, skip) in enumerate(zip(given, blank, strict=True), 1)
    ]
    out["seed"] = pd.Series(seeds, dtype=object)
    if blank.any():
        print(f"{path}: {int(blank.sum())} rows without a prompt skipped")
    out["file"] = pd.Series([_inside(folder, name.strip(), path) for name in names], dtype=object)
    for name, same in out[~blank].groupby("file"):
        if len(same) > 1 and (same.prompt.nunique() > 1 or same.seed.nunique() > 1 or same.seed.isna().any()):
            numbers = ", ".join(map(str, same.row + 1))
            raise SafetyDPOError(f"{path}: rows {numbers} share the image name {Path(str(name)).name}.")
    return out[~blank].drop_duplicates("file").reset_index(drop=True)


def _inside(folder: Path, name: str, path: str) -> Path:
    """The file of an image name; with `.png` after it where its own suffix is of no kind that holds the image."""
    if "\0" in name or max(len(os.fsencode(part)) for part in f"{name}.png".split("/")) > LONGEST_NAME:
        raise SafetyDPOError(f"{path}: the image name {name[:50]!r}... is none that a file can have.")
    file = (folder / name).resolve()
    if not name or not file.is_relative_to(folder.resolve()) or file == folder.resolve():
        raise SafetyDPOError(f"{path}: the image name {name!r} is not inside {folder}.")
    return file if _holds_images(file.suffix.lower()) else file.with_name(f"{file.name}.png")


@cache
def _holds_images(suffix: str) -> bool:
    """Whether Pillow writes images of this kind and reads them as large as they were (icons are smaller)."""
    written = io.BytesIO()
    try:
        Image.new("RGB", (600, 300)).save(written, Image.registered_extensions().get(suffix))
        return picture(Path(suffix), written.getvalue()).shape == (300, 600, 3)
    except (KeyError, OSError, ValueError, SafetyDPOError):
        return False


def starting_noise(
    rows: pd.DataFrame, count: int, shape: tuple[int, ...], device: torch.device
) -> Iterator[torch.Tensor]:
    """Starting noise (1, c, h, w) of each row: from its own seed, else from one generator, seeded 0, that goes on row
    by row, as the published command does. It advances over rows that are not rendered too.

    rows: `row` is a row's number among the `count` of the file.
    """
    generator, seeds = torch.Generator(device).manual_seed(0), dict(zip(rows.row, rows.seed, strict=True))
    for row in range(count):
        noise = torch.randn(shape, generator=generator, device=device)
        if seeds.get(row) is not None:
            noise = torch.randn(shape, generator=torch.Generator(device).manual_seed(int(seeds[row])), device=device)
        if row in seeds:
            yield noise


@torch.inference_mode()
def render_rows(pipeline: Any, rows: pd.DataFrame, count: int, args: argparse.Namespace, size: tuple[int, int]) -> None:
    """Render rows in batches, of `size` (height, width), and save each image whole."""
    family, network = pipeline.family, pipeline.family.network(pipeline)
    channels = family.latent_channels(network.config)
    shape = (1, channels, *[side // pipeline.vae_scale_factor for side in size])
    given = args.guidance_scale if args.guidance_scale is not None or family.kind.flow else GUIDANCE
    options = {} if given is None else family.render_options(Model.model_construct(guidance_scale=given, call={}))
    noise = starting_noise(rows, count, shape, pipeline.device)
    for start in progress(range(0, len(rows), args.batch_size), "render"):
        part = rows.iloc[start : start + args.batch_size]
        images = pipeline(
            prompt=list(part.prompt),
            latents=family.starting_latents(torch.cat(list(itertools.islice(noise, len(part)))), network.dtype),
            height=size[0],
            width=size[1],
            num_inference_steps=args.num_inference_steps,
            output_type="np",
            **options,
        ).images
        for file, image in zip(part.file, pixels_of(pipeline, images, args.model_path), strict=True):
            kind = Image.registered_extensions()[file.suffix.lower()]
            with whole_file(file) as temporary:
                Image.fromarray(image).save(temporary, kind)


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no permission to write there")
    except OSError as error:
        raise SafetyDPOError(
            f"--save_path {folder} cannot hold images ({error.strerror or error}): give another folder."
        ) from None


def run(args: argparse.Namespace) -> tuple[str, int]:
    """Render what is not there yet; returns a line on it, and the exit status."""
    folder = Path(args.save_path)
    if args.guidance_scale is not None and not math.isfinite(args.guidance_scale):
        raise SafetyDPOError(f"--guidance_scale must be a number, not {args.guidance_scale}.")
    rows = read_prompts(args.prompts_path, folder)
    count = int(rows.row.max()) + 1
    if args.seed_per_row:
        rows["seed"] = rows.seed.where(rows.seed.notna(), rows.row)
    todo = rows if args.overwrite else rows[[not file.exists() for file in rows.file]]
    done = len(rows) - len(todo)
    if todo.empty:
        return f"{len(rows)} images are in {folder} already.", 0
    _writable(folder)
    pipeline = command_model(args.model_path, args.base_model, args.device, args.dtype, args.guidance_scale or 1)
    size = (args.image_size, args.image_size) if args.image_size else native_size(pipeline)
    if size[0] % unit_of(pipeline):
        raise SafetyDPOError(f"--image_size {size[0]} must be a multiple of {unit_of(pipeline)}.")
    render_rows(pipeline, todo, count, args, size)
    return f"{len(todo)} images written to {folder}" + (f", {done} were there already." if done else "."), 0
