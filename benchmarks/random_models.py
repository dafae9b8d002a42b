"""Full-size pipelines and CLIPs of random weights, built from their published shapes; nothing is downloaded."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
)

from safetydpo.demo.making.clip import train_tokenizer

SIZES = {"sd15": 512, "sdxl": 1024}
SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _tokenizer() -> Any:
    tokenizer = train_tokenizer()
    tokenizer.model_max_length = 77
    return tokenizer


def _text(width: int, layers: int, heads: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        max_position_embeddings=77,
    )


def unet_of(name: str) -> UNet2DConditionModel:
    """The UNet of `name`, sd15 or sdxl."""
    if name == "sd15":
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the other defaults are SD 1.5's
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def vae_of(name: str) -> AutoencoderKL:
    """Its VAE."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        scaling_factor={"sd15": 0.18215, "sdxl": 0.13025}[name],
    )


def _sd15() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae_of("sd15"),
        text_encoder=CLIPTextModel(_text(768, 12, 12)),
        tokenizer=_tokenizer(),
        unet=unet_of("sd15"),
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=vae_of("sdxl"),
        text_encoder=CLIPTextModel(_text(768, 12, 12)),
        text_encoder_2=CLIPTextModelWithProjection(_text(1280, 32, 20)),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet_of("sdxl"),
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1),
    )


def save_random(name: str, folder: Path) -> None:
    """Save the pipeline `name` (sd15, sdxl) with random weights as safetensors."""
    torch.manual_seed(0)
    pipeline = {"sd15": _sd15, "sdxl": _sdxl}[name]()
    pipeline.save_pretrained(folder, max_shard_size="20GB")


# CLIP -> width, layers and heads of image and text encoder, width of embeddings
CLIPS = {"vit-l-14": ((1024, 24, 16), (768, 12, 12), 768), "vit-h-14": ((1280, 32, 16), (1024, 24, 16), 1024)}


def save_random_clip(name: str, folder: Path) -> None:
    """Save the CLIP `name` (vit-l-14: Q16's, vit-h-14: CLIPScore's) with random weights."""
    torch.manual_seed(0)
    (width, layers, heads), text, projection = CLIPS[name]
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=14,
    )
    texts = _text(*text)
    CLIPModel(
        CLIPConfig(text_config=texts.to_dict(), vision_config=vision.to_dict(), projection_dim=projection)
    ).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
