"""The demo world's AutoencoderKL: 48 x 48 x 3 -> 12 x 12 x 8, latents whitened exactly into its quant convolutions."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from safetydpo.demo.making.data import SceneSet
from safetydpo.demo.making.fit import Schedule, fit

LATENT_CHANNELS, KL_WEIGHT = 8, 2e-8


def build_vae() -> Any:
    """Three levels, one layer each, no attention; two norm groups (eight got stuck)."""
    kind: Any = AutoencoderKL  # its annotations are narrower than what it takes
    return kind(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
        sample_size=48,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def train_vae(data: SceneSet, plan: Schedule, seed: int, batch: int, work: Path) -> Any:
    """L1 + 4 x squared error + a whisper of KL."""
    torch.manual_seed(seed)
    vae = build_vae().to(memory_format=torch.channels_last)

    def loss_of(step: int, rank: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, step, rank))
        index = torch.from_numpy(rng.integers(len(data.scenes), size=batch))
        pixels = data.pixels(index).to(memory_format=torch.channels_last)
        noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample(generator=noise)).sample
        return F.l1_loss(decoded, pixels) + 4 * F.mse_loss(decoded, pixels) + KL_WEIGHT * posterior.kl().mean()

    fit("vae", vae, loss_of, plan, work)
    return vae.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def whiten(vae: Any, data: SceneSet, n: int = 2000) -> None:
    """Fold per-channel mean and std of the latents into quant_conv / post_quant_conv: scaling_factor stays 1."""
    latents = torch.cat([vae.encode(data.pixels(range(i, i + 100))).latent_dist.mean for i in range(0, n, 100)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    k = LATENT_CHANNELS
    quant.weight[:k] /= std[:, None, None, None]
    quant.bias[:k] = (quant.bias[:k] - mean) / std
    quant.bias[k:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]


@torch.no_grad()
def psnr(vae: Any, data: SceneSet, n: int = 500) -> float:
    """Peak signal-to-noise ratio of reconstructions, dB."""
    pixels = data.pixels(range(len(data.scenes) - n, len(data.scenes)))
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    return float(-10 * torch.log10(F.mse_loss(decoded, pixels) / 4))
