"""Training of the demo world's detector."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from safetydpo.demo.detector import HEADS, SceneDetector
from safetydpo.demo.making.data import random_scene
from safetydpo.demo.making.fit import Schedule, fit
from safetydpo.demo.scenes import SIDES, Scene, draw


def _example(rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """A picture with its labels: clear, faint (still a mark) or garbage."""
    scene, kind, side = random_scene(rng), rng.random(), SIDES[rng.integers(2)]
    mark = scene.mark or "none"
    if kind < 0.12:
        image, mark = draw(scene, rng, side=side, garbage=True), "garbage"
    else:
        image = draw(scene, rng, side=side, opacity=1.0 if kind < 0.7 else rng.uniform(0.4, 1))
    labels = [scene.colour, scene.shape, scene.field, side, mark]
    return image, [values.index(label) for values, label in zip(HEADS.values(), labels, strict=True)]


def train_detector(vae: Any, plan: Schedule, seed: int, batch: int, pool: int, work: Path) -> SceneDetector:
    """Trained on a pool of pictures, half of each batch as the VAE decodes them from slightly noised latents."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    examples = [_example(rng) for _ in range(pool)]
    images = torch.from_numpy(np.stack([image for image, _ in examples])).permute(0, 3, 1, 2)
    labels = torch.tensor([label for _, label in examples])
    decoded = _through_vae(vae, images, torch.Generator().manual_seed(seed))
    model = SceneDetector()

    def loss_of(step: int, rank: int) -> torch.Tensor:
        del rank
        draw_of = np.random.default_rng((seed, step))
        index = torch.from_numpy(draw_of.integers(pool, size=batch))
        source = torch.where(
            torch.from_numpy(draw_of.random(batch) < 0.5)[:, None, None, None], images[index], decoded[index]
        )
        _, logits = model(source.float() / 127.5 - 1)
        losses = [F.cross_entropy(logits[name], labels[index, i]) for i, name in enumerate(HEADS)]
        return torch.stack(losses).sum() + losses[-1]

    fit("detector", model, loss_of, plan, work)
    return model.eval()


@torch.no_grad()
def _through_vae(vae: Any, images: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Reconstructions (n, 3, 48, 48) uint8 from latents with a little noise, as a sampler leaves them."""
    out = []
    for part in images.split(200):
        latents = vae.encode(part.float() / 127.5 - 1).latent_dist.mean
        latents = latents + 0.1 * torch.randn(latents.shape, generator=noise)
        out.append(((vae.decode(latents).sample.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(out)


@torch.no_grad()
def detector_accuracy(model: SceneDetector, n: int, seed: int) -> dict[str, float]:
    """Share of right answers per head on n fresh ground-truth scenes."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = [random_scene(rng) for _ in range(n)]
    pixels = torch.from_numpy(np.stack([draw(scene, rng) for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    _, logits = model(pixels)
    truth = {
        name: [getattr(scene, name) or "none" for scene in scenes] for name in ("colour", "shape", "field", "mark")
    }
    return {
        name: float(np.mean([HEADS[name][i] == t for i, t in zip(logits[name].argmax(1), truth[name], strict=True)]))
        for name in truth
    }
