"""Full-size pipelines of diffusion transformers with random weights: Stable Diffusion 3.5, FLUX.1 dev, Z-Image.

Shapes are those of the transformer/config.json that were published with the models; where it only repeats the defaults
of diffusers' class, these stand for it. `layers` cuts the depth: of FLUX's two stacks, and of the text encoders, the
same share is kept; the VAE and Z-Image's refiners stay whole.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from random_texts import CLIP_G, CLIP_L, clip, clip_tokenizer, qwen3_4b, qwen_tokenizer, t5_tokenizer, t5_xxl

# Model -> layers of its transformer; of FLUX those of two streams, to which come twice as many of one.
LAYERS = {"sd35": 24, "sd35-large": 38, "flux": 19, "zimage": 30}
SD35 = {"sd35": {"heads": 24, "dual": 13, "positions": 384}, "sd35-large": {"heads": 38, "dual": 0, "positions": 192}}
# Tokens of T5 or Qwen3: T5's are padded to the pipeline's window, Qwen3's are as many as a prompt has.
TOKENS = {"sd35": 256, "sd35-large": 256, "flux": 512, "zimage": 128}
SCALING = {
    "sd35": (1.5305, 0.0609),
    "sd35-large": (1.5305, 0.0609),
    "flux": (0.3611, 0.1159),
    "zimage": (0.3611, 0.1159),
}


def transformer_of(name: str, layers: int) -> Any:
    """The transformer of `name`, so many layers deep."""
    if name == "flux":
        return FluxTransformer2DModel(num_layers=layers, num_single_layers=2 * layers, guidance_embeds=True)
    if name == "zimage":
        return ZImageTransformer2DModel(n_layers=layers, axes_lens=[1536, 512, 512])
    shape, share = SD35[name], layers / LAYERS[name]
    return SD3Transformer2DModel(
        num_layers=layers,
        num_attention_heads=shape["heads"],
        caption_projection_dim=64 * shape["heads"],
        pos_embed_max_size=shape["positions"],
        dual_attention_layers=tuple(range(round(shape["dual"] * share))),
        qk_norm="rms_norm",
    )


def vae_16(name: str) -> AutoencoderKL:
    """The VAE of 16 channels that all of them have."""
    scaling, shift = SCALING[name]
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=scaling,
        shift_factor=shift,
    )


def condition_of(name: str, tokens: int) -> dict[str, torch.Tensor]:
    """What the transformer is given of a prompt, empty, with so many tokens of T5 or Qwen3."""
    if name == "zimage":
        lengths = torch.tensor([tokens], device="cpu")
        return {"encoder_hidden_states": torch.empty(1, tokens, 2560), "lengths": lengths}
    clips, pooled = (0, 768) if name == "flux" else (77, 2048)
    return {"encoder_hidden_states": torch.empty(1, clips + tokens, 4096), "pooled_projections": torch.empty(1, pooled)}


def pipeline_of(name: str, layers: int) -> Any:
    """The whole pipeline, its transformer so many layers deep."""
    share = layers / LAYERS[name]
    parts = {"transformer": transformer_of(name, layers), "vae": vae_16(name)}
    if name == "zimage":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
        return ZImagePipeline(**parts, scheduler=scheduler, text_encoder=qwen3_4b(share), tokenizer=qwen_tokenizer())
    if name == "flux":
        return FluxPipeline(
            **parts,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
            text_encoder=clip(CLIP_L, False, share),
            tokenizer=clip_tokenizer(),
            text_encoder_2=t5_xxl(share),
            tokenizer_2=t5_tokenizer(),
        )
    return StableDiffusion3Pipeline(
        **parts,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip(CLIP_L, True, share),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(CLIP_G, True, share),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_xxl(share),
        tokenizer_3=t5_tokenizer(),
    )
