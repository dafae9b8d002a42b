"""The flow demo's SD3Transformer2DModel: rectified flow on cached latents and what the pipeline encodes of captions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

from safetydpo.demo.making.clip import WIDTH
from safetydpo.demo.making.fit import Schedule, fit
from safetydpo.demo.making.latents import Batch, Encode, LatentSet
from safetydpo.demo.making.vae import LATENT_CHANNELS

HEADS, HEAD_WIDTH, LAYERS = 4, 32, 5
# Logit of the noise level's median: more of the training is where it is decided what is drawn.
NOISE_LOGIT = 0.4
# Zero tokens in the place of T5's, which is not there; the pipeline wants at least one.
T5_TOKENS = 1


def build_transformer() -> SD3Transformer2DModel:
    """Patches of 2 x 2 on 12 x 12 latents; the text is two CLIPs side by side."""
    return SD3Transformer2DModel(
        sample_size=12,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=6,
        qk_norm="rms_norm",
    )


def text_encoder_of(model: CLIPModel) -> CLIPTextModelWithProjection:
    """The text half of a CLIP and its projection as a model of their own."""
    kind: Any = CLIPTextModelWithProjection
    encoder = kind(model.config.text_config).to(model.dtype)
    encoder.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith("text_")})
    return encoder.eval()


def build_pipeline(
    transformer: SD3Transformer2DModel, vae: Any, model: CLIPModel, tokenizer: CLIPTokenizer
) -> StableDiffusion3Pipeline:
    """A standard Stable Diffusion 3 pipeline of the tiny parts, the same CLIP twice, without T5."""
    kind: Any = StableDiffusion3Pipeline  # its annotations are narrower than what it takes
    vae.register_to_config(shift_factor=0.0)  # the pipeline subtracts it
    return kind(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=text_encoder_of(model),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_of(model),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def encoder_of(pipeline: Any) -> Encode:
    """Sentences as the pipeline itself encodes them."""

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        embeddings, _, pooled, _ = pipeline.encode_prompt(
            texts, None, None, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
        )
        return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}

    return encode


def flow_loss(transformer: Callable[..., Any], batch: Batch) -> torch.Tensor:
    """Mean squared error of the velocity `noise - sample`; the logit of the noise level is normal about NOISE_LOGIT.

    The batch's levels are spread evenly over that density, one in each of its b equal parts: less noise in the loss.
    """
    time = (batch.time + torch.arange(len(batch.time))) / len(batch.time)
    level = torch.sigmoid(torch.special.ndtri(time) + NOISE_LOGIT).float()
    share = level[:, None, None, None]
    noisy_latents = (1 - share) * batch.sample + share * batch.noise
    model_pred = transformer(noisy_latents, timestep=1000 * level, **batch.text).sample
    return F.mse_loss(model_pred, batch.noise - batch.sample)


def train_transformer(
    name: str, transformer: Any, latents: LatentSet, plan: Schedule, seed: int, batch: int, work: Path
) -> SD3Transformer2DModel:
    """Flow-matching training with batch `batch` a process; returns the averaged (EMA) weights."""

    def loss_of(step: int, rank: int) -> torch.Tensor:
        return flow_loss(transformer, latents.draw(np.random.default_rng((seed, step, rank)), batch))

    fit(name, transformer, loss_of, plan, work)
    return transformer.eval()
