"""The demo world's UNet2DConditionModel: epsilon prediction on cached latents and text embeddings, min-SNR weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from safetydpo.demo.making.clip import WIDTH
from safetydpo.demo.making.fit import Schedule, fit
from safetydpo.demo.making.latents import Encode, LatentSet
from safetydpo.demo.making.vae import LATENT_CHANNELS

SNR_GAMMA = 5.0


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


def text_encoder_of(model: CLIPModel) -> CLIPTextModel:
    """The text half of a CLIP as a model of its own."""
    kind: Any = CLIPTextModel
    encoder = kind(model.config.text_config)
    encoder.load_state_dict(model.text_model.state_dict())
    return encoder.eval()


def encoder_of(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> Encode:
    """Sentences as a Stable Diffusion pipeline encodes them."""

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return {"encoder_hidden_states": text_encoder(tokens.input_ids).last_hidden_state}

    return encode


def train_unet(
    name: str, unet: Any, latents: LatentSet, plan: Schedule, seed: int, batch: int, work: Path, late: float = 0.0
) -> UNet2DConditionModel:
    """Denoising training with batch `batch` a process; returns the averaged (EMA) weights.

    Timesteps have the density t ** late: 0 is uniform, more dwells on high noise, where it is decided what is drawn.
    """
    unet = unet.to(memory_format=torch.channels_last)
    alphas = build_scheduler().alphas_cumprod

    def loss_of(step: int, rank: int) -> torch.Tensor:
        drawn = latents.draw(np.random.default_rng((seed, step, rank)), batch)
        timesteps = (len(alphas) * drawn.time ** (1 / (1 + late))).long()
        alpha = alphas[timesteps][:, None, None, None]
        noisy_latents = alpha.sqrt() * drawn.sample + (1 - alpha).sqrt() * drawn.noise
        model_pred = unet(noisy_latents.to(memory_format=torch.channels_last), timesteps, **drawn.text).sample
        snr = alpha / (1 - alpha)
        return ((model_pred - drawn.noise) ** 2 * (snr.clamp(max=SNR_GAMMA) / snr)).mean()

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
