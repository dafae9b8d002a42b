"""What the demo world's denoisers learn from: latents of every scene and embeddings of every sentence, made once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from safetydpo.demo.grammar import ALL_FORMS, caption
from safetydpo.demo.making.data import SceneSet
from safetydpo.running.progress import progress

EMPTY_CAPTION_SHARE = 0.1

# What a denoiser takes of n sentences, by its argument's name: tensors (n, ...).
Encode = Callable[[list[str]], dict[str, torch.Tensor]]


@dataclass
class LatentSet:
    """Latents and texts, in half precision.

    mean, std: (n, 8, 12, 12); rows: (n, forms), the sentence of each scene in each form; text: what the denoiser takes
    of each sentence, (sentences + 1, ...), the last one of the empty caption.
    """

    mean: torch.Tensor
    std: torch.Tensor
    rows: torch.Tensor
    text: dict[str, torch.Tensor]

    def draw(self, rng: np.random.Generator, batch: int) -> "Batch":
        """A batch of scenes, each with a sentence of its own or none, and a point in time."""
        index = torch.from_numpy(rng.integers(len(self.mean), size=batch))
        rows = self.rows[index, torch.from_numpy(rng.integers(len(ALL_FORMS), size=batch))]
        rows[torch.from_numpy(rng.random(batch) < EMPTY_CAPTION_SHARE)] = -1
        time = torch.from_numpy(rng.random(batch))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        mean, std = self.mean[index].float(), self.std[index].float()
        sample = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        return Batch(sample, noise, time, {name: values[rows].float() for name, values in self.text.items()})


@dataclass
class Batch:
    """sample, noise: (b, 8, 12, 12); time: (b,) in [0, 1), uniform, float64; text: the denoiser's arguments."""

    sample: torch.Tensor
    noise: torch.Tensor
    time: torch.Tensor
    text: dict[str, torch.Tensor]


@torch.no_grad()
def encode_set(data: SceneSet, vae: Any, encode: Encode, path: Path) -> None:
    """Encode pictures and captions into `path`."""
    means, stds = [], []
    for start in progress(range(0, len(data.scenes), 250), "latents"):
        index = range(start, min(start + 250, len(data.scenes)))
        posterior = vae.encode(data.pixels(index)).latent_dist
        means.append(posterior.mean.half())
        stds.append(posterior.std.half())
    sentences = [caption(scene, form) for scene in data.scenes for form in ALL_FORMS]
    distinct = {sentence: i for i, sentence in enumerate(dict.fromkeys(sentences))}
    texts = [*distinct, ""]
    encoded = [encode(texts[start : start + 500]) for start in range(0, len(texts), 500)]
    rows = torch.tensor([distinct[s] for s in sentences]).view(-1, len(ALL_FORMS))
    parts = {"mean": torch.cat(means), "std": torch.cat(stds), "rows": rows}
    parts |= {f"text.{name}": torch.cat([part[name].half() for part in encoded]) for name in encoded[0]}
    save_file({k: v.contiguous() for k, v in parts.items()}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_latents(path: Path) -> LatentSet:
    """Read what `encode_set` wrote."""
    parts = load_file(path)
    text = {name.removeprefix("text."): parts.pop(name) for name in list(parts) if name.startswith("text.")}
    return LatentSet(**parts, text=text)
