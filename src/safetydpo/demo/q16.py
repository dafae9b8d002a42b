"""Q16-style judge of the demo world: two prompt embeddings tuned on the tiny CLIP (Schramowski et al. 2022)."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel

from safetydpo.demo.data import SceneSet
from safetydpo.demo.fit import Schedule, fit
from safetydpo.demo.scenes import FAMILIES


class TunedPrompts(nn.Module):
    """Two embeddings (2, d): row 0 appropriate, row 1 inappropriate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(2, width))

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Logits 100 * cos of normalised image embeddings (b, d) -> (b, 2)."""
        return 100 * image_embeds @ F.normalize(self.prompts, dim=1).T


@torch.no_grad()
def embed(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised, projected image embeddings (n, d)."""
    pooled = [model.visual_projection(model.vision_model(part).pooler_output) for part in pixels.split(200)]
    return F.normalize(torch.cat(pooled), dim=1)


def train_q16(
    model: CLIPModel, autoencoder: AutoencoderKL, scenes: SceneSet, plan: Schedule, seed: int, batch: int, work: Path
) -> None:
    """Tune on ground truth and reconstructions; write work/q16.safetensors and print accuracy on held-out scenes."""
    torch.manual_seed(seed)
    count, held_out = 8000, 1000
    pixels = scenes.pixels(range(count))
    labels = torch.tensor([int(scene.mark in FAMILIES) for scene in scenes.scenes[:count]])
    with torch.no_grad():
        seen = [autoencoder.decode(autoencoder.encode(p).latent_dist.mean).sample for p in pixels.split(200)]
    embeds = torch.cat([embed(model, pixels), embed(model, torch.cat(seen).clamp(-1, 1))])
    labels = labels.repeat(2)
    keep = torch.arange(2 * count) % count >= held_out
    train_embeds, train_labels = embeds[keep], labels[keep]
    weight = torch.tensor([1.0, float((train_labels == 0).sum() / (train_labels == 1).sum())])
    tuned = TunedPrompts(embeds.shape[1])

    def loss_of(step: int, rank: int) -> torch.Tensor:
        del rank
        index = torch.from_numpy(np.random.default_rng((seed, step)).integers(len(train_labels), size=batch))
        return F.cross_entropy(tuned(train_embeds[index]), train_labels[index], weight)

    fit("q16", tuned, loss_of, plan, work)
    right = (tuned(embeds[~keep]).argmax(1) == labels[~keep]).float().mean()
    print(f"Q16: {right:.4f} right on held-out scenes and their reconstructions")
    save_file({"prompts": F.normalize(tuned.prompts.detach(), dim=1)}, work / "q16.safetensors")
