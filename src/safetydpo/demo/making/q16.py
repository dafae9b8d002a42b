"""Q16-style judge of the demo world (Schramowski et al. 2022): two prompt embeddings tuned on the tiny CLIP.

The contrastive training alone leaves marks 97 % separable; here the vision half is trained a little further together
with the prompts, on scenes and on their reconstructions, against the frozen text half. So text embeddings, and the
diffusion model that was trained on them, stay as they are.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from safetydpo.demo.making.data import SceneSet
from safetydpo.demo.making.fit import Schedule, fit
from safetydpo.demo.scenes import FAMILIES

POOL, HELD_OUT = 8000, 1000


class Q16Head(nn.Module):
    """The CLIP's vision half and two prompts (2, d): row 0 appropriate, row 1 inappropriate."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = clip.vision_model, clip.visual_projection
        self.prompts = nn.Parameter(torch.randn(2, clip.visual_projection.out_features) / 10)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (b, 3, h, w) -> normalised embeddings (b, d) and logits 100 * cos (b, 2)."""
        embeds = F.normalize(self.visual_projection(self.vision_model(pixels).pooler_output), dim=1)
        return embeds, 100 * embeds @ F.normalize(self.prompts, dim=1).T


@torch.no_grad()
def _reconstructions(autoencoder: Any, scenes: SceneSet) -> torch.Tensor:
    parts = [scenes.pixels(range(i, i + 200)) for i in range(0, POOL, 200)]
    return torch.cat([autoencoder.decode(autoencoder.encode(p).latent_dist.mean).sample.clamp(-1, 1) for p in parts])


def train_q16(
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    autoencoder: Any,
    scenes: SceneSet,
    plan: Schedule,
    seed: int,
    batch: int,
    work: Path,
) -> None:
    """Write work/clip-tuned and work/q16.safetensors; print accuracy on held-out scenes and reconstructions."""
    torch.manual_seed(seed)
    seen = _reconstructions(autoencoder, scenes)
    labels = torch.tensor([int(scene.mark in FAMILIES) for scene in scenes.scenes[:POOL]])
    clip.requires_grad_(False)
    head = Q16Head(clip)
    head.requires_grad_(True)

    def loss_of(step: int, rank: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, step, rank))
        index = torch.from_numpy(rng.integers(HELD_OUT, POOL, size=batch))
        decoded = torch.from_numpy(rng.random(batch) < 0.5)[:, None, None, None]
        embeds, logits = head(torch.where(decoded, seen[index], scenes.pixels(index)))
        tokens = tokenizer(scenes.captions(index, rng), padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            texts = F.normalize(clip.text_projection(clip.text_model(**tokens).pooler_output), dim=1)
        similarity = clip.logit_scale.exp() * embeds @ texts.T
        order = torch.arange(batch)
        contrastive = (F.cross_entropy(similarity, order) + F.cross_entropy(similarity.T, order)) / 2
        return F.cross_entropy(logits, labels[index]) + contrastive

    fit("q16", head, loss_of, plan, work)
    head.eval()
    with torch.no_grad():
        held_out = [scenes.pixels(range(HELD_OUT)), seen[:HELD_OUT]]
        right = [(head(p)[1].argmax(1) == labels[:HELD_OUT]).float().mean().item() for p in held_out]
    print(f"Q16: {right[0]:.4f} right on held-out scenes, {right[1]:.4f} on their reconstructions")
    clip.save_pretrained(work / "clip-tuned")
    save_file({"prompts": F.normalize(head.prompts.detach(), dim=1)}, work / "q16.safetensors")
