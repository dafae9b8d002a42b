"""The demo world's UNet2DConditionModel: epsilon prediction on cached latents and text embeddings, min-SNR weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from safetydpo.demo.grammar import ALL_FORMS, caption
from safetydpo.demo.making.clip import WIDTH
from safetydpo.demo.making.data import SceneSet
from safetydpo.demo.making.fit import Schedule, fit
from safetydpo.demo.making.vae import LATENT_CHANNELS
from safetydpo.running.progress import progress

EMPTY_CAPTION_SHARE, SNR_GAMMA = 0.1, 5.0


def build_unet() -> UNet2DConditionModel:
    """Three levels on 12 x 12 latents, cross-attention at 6 x 6 and 3 x 3."""
    return UNet2DConditionModel(
        sample_size=12,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_scheduler() -> DPMSolverMultistepScheduler:
    """Stable Diffusion's noise schedule, epsilon prediction, a solver that is good in few steps."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="trailing"
    )


@dataclass
class LatentSet:
    """Latents of every scene and text embeddings of every sentence, made once.

    mean, std: (n, 8, 12, 12); embeddings: (sentences + 1, 16, 96), the last one for the empty caption;
    rows: (n, forms), the embedding of each scene in each form.
    """

    mean: torch.Tensor
    std: torch.Tensor
    embeddings: torch.Tensor
    rows: torch.Tensor


@torch.no_grad()
def encode_set(data: SceneSet, vae: Any, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, path: Path) -> None:
    """Encode pictures and captions into `path`."""
    means, stds = [], []
    for start in progress(range(0, len(data.scenes), 250), "latents"):
        index = range(start, min(start + 250, len(data.scenes)))
        posterior = vae.encode(data.pixels(index)).latent_dist
        means.append(posterior.mean.half())
        stds.append(posterior.std.half())
    sentences = [caption(scene, form) for scene in data.scenes for form in ALL_FORMS]
    distinct = {sentence: i for i, sentence in enumerate(dict.fromkeys(sentences))}
    texts, embeddings = [*distinct, ""], []
    for start in range(0, len(texts), 500):
        tokens = tokenizer(texts[start : start + 500], padding="max_length", truncation=True, return_tensors="pt")
        embeddings.append(text_encoder(tokens.input_ids).last_hidden_state.half())
    rows = torch.tensor([distinct[s] for s in sentences]).view(-1, len(ALL_FORMS))
    parts = {"mean": torch.cat(means), "std": torch.cat(stds), "embeddings": torch.cat(embeddings), "rows": rows}
    save_file({k: v.contiguous() for k, v in parts.items()}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_latents(path: Path) -> LatentSet:
    """Read what `encode_set` wrote."""
    return LatentSet(**load_file(path))


def text_encoder_of(model: CLIPModel) -> CLIPTextModel:
    """The text half of a CLIP as a model of its own."""
    kind: Any = CLIPTextModel
    encoder = kind(model.config.text_config)
    encoder.load_state_dict(model.text_model.state_dict())
    return encoder.eval()


def train_unet(
    name: str, unet: Any, latents: LatentSet, plan: Schedule, seed: int, batch: int, work: Path, late: float = 0.0
) -> UNet2DConditionModel:
    """Denoising training with batch `batch` a process; returns the averaged (EMA) weights.

    Timesteps have the density t ** late: 0 is uniform, more dwells on high noise, where it is decided what is drawn.
    """
    unet = unet.to(memory_format=torch.channels_last)
    alphas = build_scheduler().alphas_cumprod

    def loss_of(step: int, rank: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, step, rank))
        index = torch.from_numpy(rng.integers(len(latents.mean), size=batch))
        rows = latents.rows[index, torch.from_numpy(rng.integers(len(ALL_FORMS), size=batch))]
        rows[torch.from_numpy(rng.random(batch) < EMPTY_CAPTION_SHARE)] = len(latents.embeddings) - 1
        timesteps = torch.from_numpy((len(alphas) * rng.random(batch) ** (1 / (1 + late))).astype(np.int64))
        draw = torch.Generator().manual_seed(int(rng.integers(2**31)))
        mean, std = latents.mean[index].float(), latents.std[index].float()
        sample = mean + std * torch.randn(mean.shape, generator=draw)
        noise = torch.randn(mean.shape, generator=draw)
        alpha = alphas[timesteps][:, None, None, None]
        noisy_latents = (alpha.sqrt() * sample + (1 - alpha).sqrt() * noise).to(memory_format=torch.channels_last)
        model_pred = unet(noisy_latents, timesteps, encoder_hidden_states=latents.embeddings[rows].float()).sample
        snr = alpha / (1 - alpha)
        return ((model_pred - noise) ** 2 * (snr.clamp(max=SNR_GAMMA) / snr)).mean()

    fit(name, unet, loss_of, plan, work)
    return unet.eval().to(memory_format=torch.contiguous_format)


def build_pipeline(
    unet: UNet2DConditionModel, vae: Any, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """A standard Stable Diffusion pipeline of the tiny parts."""
    kind: Any = StableDiffusionPipeline  # its annotations are narrower than what it takes
    return kind(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
