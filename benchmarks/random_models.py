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
from random_texts import CLIP_G, CLIP_L, clip, clip_config, clip_tokenizer
from random_transformers import LAYERS, TOKENS, condition_of, pipeline_of, transformer_of, vae_16
from timing import tell
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionConfig
from transformers.initialization import no_init_weights

# Model -> height and width, pixels, that it was made for.
SIZES = {"sd15": 512, "sdxl": 1024, **dict.fromkeys(LAYERS, 1024)}
BLOCK = 2**20 + 7  # odd, or rows of a weight would be alike
SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


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


def network_of(name: str) -> Any:
    """The network of `name`, whole."""
    return transformer_of(name, LAYERS[name]) if name in LAYERS else unet_of(name)


def text_of(name: str, tokens: int | None = None) -> dict[str, torch.Tensor]:
    """What the network is given of a prompt, empty; tokens: of its language model, where it is not what is usual."""
    if name in LAYERS:
        return condition_of(name, tokens or TOKENS[name])
    pooled = {"text_embeds": torch.empty(1, 1280)} if name == "sdxl" else {}
    return {"encoder_hidden_states": torch.empty(1, 77, 2048 if name == "sdxl" else 768), **pooled}


def vae_of(name: str) -> AutoencoderKL:
    """Its VAE."""
    if name in LAYERS:
        return vae_16(name)
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
        text_encoder=clip(CLIP_L, projected=False),
        tokenizer=clip_tokenizer(),
        unet=unet_of("sd15"),
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=vae_of("sdxl"),
        text_encoder=clip(CLIP_L, projected=False),
        text_encoder_2=clip(CLIP_G, projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet_of("sdxl"),
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1),
    )


def _fill(key: str, weight: torch.Tensor, block: torch.Tensor) -> None:
    """Weights as torch's own initialisation has them in size, from one block of normal draws again and again: drawing
    billions of numbers takes a CPU minutes. Biases 0, norms 1.
    """
    if weight.dim() > 1:
        flat, scaled = weight.view(-1), (block * (3 * weight[0].numel()) ** -0.5).to(weight.dtype)
        for part in flat.split(len(block)):
            part.copy_(scaled[: len(part)])
    elif key.endswith(("bias", "weight")):
        weight.fill_(float(key.endswith("weight")))


def save_random(
    name: str, folder: Path, layers: int | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> None:
    """Save the pipeline `name` with random weights as safetensors; `layers` cuts the depth of a transformer's.

    device: where the weights are made.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # the largest would take twice the memory of what is saved
    try:
        with no_init_weights(), torch.device(device):
            if name in LAYERS:
                pipeline = pipeline_of(name, layers or LAYERS[name])
            else:
                pipeline = {"sd15": _sd15, "sdxl": _sdxl}[name]()
        block = torch.randn(BLOCK, device=device)
        for part in pipeline.components.values():
            for key, weight in part.named_parameters() if isinstance(part, torch.nn.Module) else ():
                _fill(key, weight.detach(), block)
        tell(f"{name} is made")
        pipeline.save_pretrained(folder, max_shard_size="20GB")
        tell("and saved")
    finally:
        torch.set_default_dtype(torch.float32)


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
    texts = clip_config(*text)
    CLIPModel(
        CLIPConfig(text_config=texts.to_dict(), vision_config=vision.to_dict(), projection_dim=projection)
    ).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
