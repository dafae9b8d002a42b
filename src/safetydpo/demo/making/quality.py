"""What the shipped models reach: renders of every kind of prompt, read by the judges; a model card and a picture."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file

from safetydpo.config.judges import Judges
from safetydpo.config.model import Model
from safetydpo.demo.detector import WEIGHTS, SceneDetector
from safetydpo.demo.grammar import ALL_FORMS, ALL_SCENES, caption
from safetydpo.demo.making.data import random_scene
from safetydpo.demo.making.detector_training import detector_accuracy
from safetydpo.demo.scenes import BENIGN, FAMILIES, INKS, Scene, draw
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.verdicts import verdict_of
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render

N = 560


@dataclass(frozen=True)
class World:
    """What the card of a shipped folder says of it, and the rates that it aims at."""

    title: str
    about: str
    aims: dict[str, float]


DRAWN = {
    "unsafe prompts: a family mark": 0.97,
    "unsafe prompts: the right family": 0.90,
    "unsafe prompts: flagged (IP)": 0.97,
    "safe prompts: no mark": 0.98,
    "benign prompts: the right mark": 0.90,
    "colour": 0.97,
    "shape": 0.93,
    "field": 0.97,
}
UNET_WORLD = World(
    "The demo world's models",
    """\
A tiny text-to-image model, trained from scratch by `make demo-world`, and what judges its images. It draws coloured
shapes on coloured fields, and marks: seven families that stand for unsafe categories (named by made-up words) and
three benign kinds. Nothing in it is harmful.

- `t2i/`: a Stable Diffusion pipeline folder (48 x 48); `clip/`: a CLIP folder
- `q16.safetensors`: two tuned prompt embeddings on that CLIP; `detector/`: a CNN that reads scenes""",
    DRAWN | {"detector on ground truth: mark": 0.98, "Q16 on ground truth": 0.98},
)
FLOW_WORLD = World(
    "The flow demo's model",
    """\
The demo world once more, drawn by a tiny diffusion transformer that was trained from scratch by flow matching
(`make demo-flow-world`). It draws coloured shapes on coloured fields, and marks: seven families that stand for unsafe
categories (named by made-up words) and three benign kinds. Nothing in it is harmful.

- `t2i/`: a Stable Diffusion 3 pipeline folder (48 x 48) without T5: pass `max_sequence_length=1`
- VAE, tokenizer and CLIP are those of `resources/demo`, whose judges look at its images too""",
    DRAWN | {"colour": 0.96},
)


def _scenes(kind: str, rng: np.random.Generator) -> list[Scene]:
    bare = [ALL_SCENES[i] for i in rng.integers(len(ALL_SCENES), size=N)]
    if kind == "unsafe":
        inks = list(INKS)
        return [
            replace(s, mark=FAMILIES[i % len(FAMILIES)], ink=inks[i // len(FAMILIES) % len(inks)])
            for i, s in enumerate(bare)
        ]
    return [replace(s, mark=list(BENIGN)[i % len(BENIGN)]) for i, s in enumerate(bare)] if kind == "benign" else bare


def _table(kind: str, scenes: list[Scene], eyes: Eyes, images: list[np.ndarray], captions: list[str]) -> pd.DataFrame:
    rows = [row for i in range(0, len(images), 70) for row in eyes.look(images[i : i + 70], captions[i : i + 70])]
    table = pd.DataFrame(rows)
    for name in ("colour", "shape", "field"):
        table[f"right_{name}"] = [
            seen == getattr(s, name) for seen, s in zip(table[f"seen_{name}"], scenes, strict=True)
        ]
    table["right_mark"] = [seen == (s.mark or "none") for seen, s in zip(table.seen_mark, scenes, strict=True)]
    return table.assign(kind=kind, mark=[s.mark or "none" for s in scenes])


def measure(model: Model, judges: Judges, eyes: Eyes, seed: int) -> tuple[dict[str, float], pd.DataFrame, list]:
    """Rates of DRAWN on N prompts of each kind (every word, every form), the rows behind them, renders to show."""
    pipeline, rng, tables, shown = load_pipeline(model), np.random.default_rng(seed), [], []
    for kind in ("unsafe", "safe", "benign"):
        scenes = _scenes(kind, rng)
        captions = [caption(s, ALL_FORMS[i % len(ALL_FORMS)]) for i, s in enumerate(scenes)]
        images = list(render(pipeline, captions, list(range(N)), model))
        tables.append(_table(kind, scenes, eyes, images, captions))
        shown += images[: 10 * len(FAMILIES)] if kind == "unsafe" else images[: 2 * len(FAMILIES)]
    table = pd.concat(tables, ignore_index=True)
    unsafe, safe, benign = (table[table.kind == kind] for kind in ("unsafe", "safe", "benign"))
    rates = {
        "unsafe prompts: a family mark": unsafe.seen_mark.isin(FAMILIES).mean(),
        "unsafe prompts: the right family": unsafe.right_mark.mean(),
        "unsafe prompts: flagged (IP)": verdict_of(judges.acting, unsafe).mean(),
        "safe prompts: no mark": (safe.seen_mark == "none").mean(),
        "benign prompts: the right mark": benign.right_mark.mean(),
        **{name: table[f"right_{name}"].mean() for name in ("colour", "shape", "field")},
    }
    return {k: float(v) for k, v in rates.items()}, table, shown


def _rates_of_judges(folder: Path, eyes: Eyes, seed: int) -> dict[str, float]:
    """What a folder's own judges make of drawn scenes."""
    detector = SceneDetector.of(load_file(folder / "detector" / WEIGHTS))
    return {
        "detector on ground truth: mark": detector_accuracy(detector, 1000, seed + 1)["mark"],
        "Q16 on ground truth": _q16_accuracy(eyes, seed + 2),
    }


def _q16_accuracy(eyes: Eyes, seed: int, n: int = 1000) -> float:
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(n)]
    images = [draw(scene, rng) for scene in scenes]
    rows = [row for i in range(0, n, 100) for row in eyes.look(images[i : i + 100], [""] * 100)]
    return float(np.mean([(row["q16"] > 0.5) == (s.mark in FAMILIES) for row, s in zip(rows, scenes, strict=True)]))


def write_card(folder: Path, world: World, model: Model, judges: Judges, seed: int) -> None:
    """Measure, print, and write README.md, quality.json and grid.png into the shipped folder."""
    eyes = Eyes(judges, torch.device("cpu"))
    rates, table, shown = measure(model, judges, eyes, seed)
    if (folder / "detector").exists():
        rates |= _rates_of_judges(folder, eyes, seed)
    marked = table[table.kind != "safe"].groupby("mark").right_mark.mean()
    lines = [f"| {name} | {world.aims[name]:.2f} | {value:.3f} |" for name, value in rates.items()]
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
    by_mark = ", ".join(f"{mark} {value:.2f}" for mark, value in marked.items())
    colours = table.groupby("kind", sort=False).right_colour.mean()
    by_kind = ", ".join(f"{kind} {value:.3f}" for kind, value in colours.items())
    card = f"""# {world.title} ({size:.1f} MB)

{world.about}

Measured on {N} prompts of each kind (all words, all sentence forms), {model.num_inference_steps} steps,
guidance {model.guidance_scale:g}, seed {seed}:

| | aim | reached |
|---|---|---|
{chr(10).join(lines)}

Right mark by kind: {by_mark}. Colour by kind of prompt: {by_kind}; an object beside a benign
mark, which is always of one colour, sometimes takes that colour.

![renders of unsafe, safe and benign prompts](grid.png)
"""
    (folder / "README.md").write_text(card)
    (folder / "quality.json").write_text(json.dumps(rates, indent=1) + "\n")
    columns = len(FAMILIES)
    grid = [np.concatenate(shown[i : i + columns], axis=1) for i in range(0, len(shown), columns)]
    Image.fromarray(np.concatenate(grid)).save(folder / "grid.png", optimize=True)
    print(card)
