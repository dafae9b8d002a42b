"""Original layouts of transformers: what the checkpoints that they were published in call their weights.

diffusers has the way from there (`loaders/single_file_utils.py`), here is the way back; every file made by it is read
back through diffusers before anybody gets it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.normalization import AdaLayerNormContinuous
from transformers import CLIPTextModel

from safetydpo.models.families.ldm import NETWORK

QKV, ADDED = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
# Blocks there -> blocks here, and module there -> the modules here whose rows it has, one after the other.
Blocks = dict[str, tuple[str, dict[str, tuple[str, ...]]]]
SD3: Blocks = {
    "joint_blocks": (
        "transformer_blocks",
        {
            "x_block.attn.qkv": QKV,
            "x_block.attn.ln_q": ("attn.norm_q",),
            "x_block.attn.ln_k": ("attn.norm_k",),
            "x_block.attn.proj": ("attn.to_out.0",),
            "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
            "x_block.attn2.ln_q": ("attn2.norm_q",),
            "x_block.attn2.ln_k": ("attn2.norm_k",),
            "x_block.attn2.proj": ("attn2.to_out.0",),
            "x_block.mlp.fc1": ("ff.net.0.proj",),
            "x_block.mlp.fc2": ("ff.net.2",),
            "x_block.adaLN_modulation.1": ("norm1.linear",),
            "context_block.attn.qkv": ADDED,
            "context_block.attn.ln_q": ("attn.norm_added_q",),
            "context_block.attn.ln_k": ("attn.norm_added_k",),
            "context_block.attn.proj": ("attn.to_add_out",),
            "context_block.mlp.fc1": ("ff_context.net.0.proj",),
            "context_block.mlp.fc2": ("ff_context.net.2",),
            "context_block.adaLN_modulation.1": ("norm1_context.linear",),
        },
    ),
    "": (
        "",
        {
            "x_embedder.proj": ("pos_embed.proj",),
            "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
            "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
            "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
            "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
            "final_layer.linear": ("proj_out",),
            "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        },
    ),
}
FLUX: Blocks = {
    "double_blocks": (
        "transformer_blocks",
        {
            "img_attn.qkv": QKV,
            "img_attn.norm.query_norm": ("attn.norm_q",),
            "img_attn.norm.key_norm": ("attn.norm_k",),
            "img_attn.proj": ("attn.to_out.0",),
            "img_mlp.0": ("ff.net.0.proj",),
            "img_mlp.2": ("ff.net.2",),
            "img_mod.lin": ("norm1.linear",),
            "txt_attn.qkv": ADDED,
            "txt_attn.norm.query_norm": ("attn.norm_added_q",),
            "txt_attn.norm.key_norm": ("attn.norm_added_k",),
            "txt_attn.proj": ("attn.to_add_out",),
            "txt_mlp.0": ("ff_context.net.0.proj",),
            "txt_mlp.2": ("ff_context.net.2",),
            "txt_mod.lin": ("norm1_context.linear",),
        },
    ),
    "single_blocks": (
        "single_transformer_blocks",
        {
            "linear1": (*QKV, "proj_mlp"),
            "norm.query_norm": ("attn.norm_q",),
            "norm.key_norm": ("attn.norm_k",),
            "linear2": ("proj_out",),
            "modulation.lin": ("norm.linear",),
        },
    ),
    "": (
        "",
        {
            "img_in": ("x_embedder",),
            "txt_in": ("context_embedder",),
            "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
            "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
            "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
            "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
            "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
            "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
            "final_layer.linear": ("proj_out",),
            "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        },
    ),
}
Z_IMAGE_ATTENTION = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.q_norm": ("attention.norm_q",),
    "attention.k_norm": ("attention.norm_k",),
    "attention.out": ("attention.to_out.0",),
}
Z_IMAGE: Blocks = {name: (name, Z_IMAGE_ATTENTION) for name in ("layers", "noise_refiner", "context_refiner")}
FINAL = ("linear", "adaLN_modulation.1")
Z_IMAGE[""] = (
    "",
    {"x_embedder": ("all_x_embedder.2-1",)} | {f"final_layer.{x}": (f"all_final_layer.2-1.{x}",) for x in FINAL},
)
LAYOUTS = {"SD3Transformer2DModel": SD3, "FluxTransformer2DModel": FLUX, "ZImageTransformer2DModel": Z_IMAGE}
ALONE = {"pos_embed.pos_embed": "pos_embed"}  # weights that are no module's
NORMS_OF_FLUX = ("query_norm", "key_norm")  # their weight is called `scale`
TIED = "encoder.embed_tokens.weight"


def places(network: Any) -> Iterator[tuple[str, list[str]]]:
    """Module of a transformer in its original checkpoint, and the modules of ours that it is made of; not those that
    both call alike.
    """
    known = {name for name, _ in network.named_modules()}
    for theirs, (ours, ends) in LAYOUTS.get(type(network).__name__, {}).items():
        for number in [f".{i}." for i in range(len(network.get_submodule(ours)))] if ours else [""]:
            for end, parts in ends.items():
                own = [f"{ours}{number}{part}" for part in parts]
                if known.issuperset(own):  # the last block lacks some
                    yield f"{theirs}{number}{end}", own


def turned(network: Any) -> set[str]:
    """Modules whose output is a scale and a shift here, and a shift and a scale there."""
    return {f"{name}.linear" for name, layer in network.named_modules() if isinstance(layer, AdaLayerNormContinuous)}


def transformer_weights(network: Any) -> dict[str, torch.Tensor]:
    """A transformer in the original layout."""
    weights, away, found = dict(network.state_dict()), turned(network), {}
    for theirs, own in places(network):
        for kind in ("weight", "bias"):
            rows = [weights.pop(f"{name}.{kind}") for name in own if f"{name}.{kind}" in weights]
            if own[0] in away:
                rows = list(rows[0].chunk(2))[::-1]
            if rows:
                found[f"{theirs}.{'scale' if theirs.endswith(NORMS_OF_FLUX) else kind}"] = torch.cat(rows)
    found |= {ALONE.get(name, name): weight for name, weight in weights.items()}
    return {NETWORK + name: weight for name, weight in found.items()}


def encoder_weights(encoder: Any, head: str) -> dict[str, torch.Tensor]:
    """A text encoder as transformers names it, under `<head>.transformer.`; none where it is not loaded.

    CLIP is published with all but the projection in a `text_model`, which transformers 5 leaves out. T5's tokens have
    two names, and diffusers wants both.
    """
    if encoder is None:
        return {}
    weights = encoder.state_dict()
    if isinstance(encoder, CLIPTextModel):
        weights = {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in weights.items()}
    if TIED in weights:
        weights = {**weights, TIED: weights[TIED].clone()}  # a file has each weight once
    return {f"{head}.transformer.{name}": weight for name, weight in weights.items()}
