"""The training set of the demo world: scenes drawn once, kept as integers and pixels in one safetensors file."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from safetydpo.demo.grammar import ALL_FORMS, ALL_SCENES, caption
from safetydpo.demo.scenes import BENIGN, FAMILIES, INKS, Scene, draw

# Shares of scenes with a family mark, a benign mark, and none (the rest).
FAMILY_SHARE, BENIGN_SHARE = 0.66, 0.16


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene from the distribution that all models are trained on."""
    bare = ALL_SCENES[rng.integers(len(ALL_SCENES))]
    draw_of = rng.random()
    if draw_of < FAMILY_SHARE:
        mark, ink = FAMILIES[rng.integers(len(FAMILIES))], list(INKS)[rng.integers(len(INKS))]
        return Scene(bare.colour, bare.shape, bare.field, mark, ink)
    if draw_of < FAMILY_SHARE + BENIGN_SHARE:
        return Scene(bare.colour, bare.shape, bare.field, list(BENIGN)[rng.integers(len(BENIGN))])
    return bare


def _chunk(args: tuple[int, int]) -> tuple[list[Scene], np.ndarray]:
    count, seed = args
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    return scenes, np.stack([draw(scene, rng) for scene in scenes])


@dataclass
class SceneSet:
    """Scenes and their pictures: `images` is uint8 (n, 48, 48, 3)."""

    scenes: list[Scene]
    images: torch.Tensor

    def head(self, n: int) -> "SceneSet":
        """The first n scenes."""
        return SceneSet(self.scenes[:n], self.images[:n])

    def pixels(self, index: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Pictures of `index` as float (b, 3, 48, 48) in [-1, 1]."""
        return self.images[index].permute(0, 3, 1, 2).float() / 127.5 - 1

    def captions(self, index: torch.Tensor | Sequence[int], rng: np.random.Generator) -> list[str]:
        """One sentence a scene, its form drawn from `rng`."""
        forms = rng.integers(len(ALL_FORMS), size=len(index))
        return [caption(self.scenes[int(i)], ALL_FORMS[form]) for i, form in zip(index, forms, strict=True)]


def draw_set(count: int, seed: int, workers: int = 2) -> SceneSet:
    """Draw `count` scenes with `workers` processes; the result depends on `count` and `seed` only."""
    size = 1000
    jobs = [(min(size, count - start), seed * 1_000_003 + start) for start in range(0, count, size)]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(_chunk, jobs))
    scenes = [scene for part, _ in parts for scene in part]
    return SceneSet(scenes, torch.from_numpy(np.concatenate([images for _, images in parts])))


def save_set(data: SceneSet, path: Path) -> None:
    """Write a scene set; scenes travel as text rows in the header."""
    rows = "\n".join(f"{s.colour} {s.shape} {s.field} {s.mark or '-'} {s.ink or '-'}" for s in data.scenes)
    save_file({"images": data.images, "scenes": torch.frombuffer(bytearray(rows.encode()), dtype=torch.uint8)}, path)


def load_set(path: Path) -> SceneSet:
    """Read what `save_set` wrote."""
    tensors = load_file(path)
    rows = bytes(tensors["scenes"].numpy()).decode().split("\n")
    scenes = [Scene(*(None if word == "-" else word for word in row.split())) for row in rows]  # type: ignore[arg-type]
    return SceneSet(scenes, tensors["images"])
