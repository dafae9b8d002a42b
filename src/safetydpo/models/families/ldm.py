"""Names of weights in the original layout of Stable Diffusion, from diffusers' names.

diffusers has the other direction (`loaders/single_file_utils.py`), and its tables where it has tables. What is here is
the inverse of the rest; every file made by it is read back through diffusers before anybody gets it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING

NETWORK = "model.diffusion_model."  # what names of a network begin with, of every layout
LDM: Any = DIFFUSERS_TO_LDM_MAPPING
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
UNET_BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
VAE_BLOCK = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
VAE_MID = re.compile(r"((?:en|de)coder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def _renamed(rest: str, names: Mapping[str, str]) -> str:
    """`conv1.weight` -> `in_layers.2.weight`."""
    layer, _, kind = rest.rpartition(".")
    return f"{names.get(layer, layer)}.{kind}"


def unet_name(name: str, config: Any) -> str:
    """The original name of a weight of a UNet2DConditionModel of this config; KeyError where it has none, as where its
    blocks have layers of different number.
    """
    fixed = LDM["unet"]["layers"] | LDM["unet"]["addition_embed_type"]
    if name in fixed:
        return fixed[name]
    if not (match := UNET_BLOCK.fullmatch(name)) or not isinstance(config["layers_per_block"], int):
        raise KeyError(name)
    side, block, kind, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    layers = config["layers_per_block"] + 1
    if kind == "resnets":
        rest = _renamed(rest, RESNET)
    if side == "mid":
        return f"middle_block.{2 * number if kind == 'resnets' else 1 + 2 * number}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * layers}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 2 if "Attn" in config["up_block_types"][block] else 1
        return f"output_blocks.{(block + 1) * layers - 1}.{place}.{rest}"
    start = 1 + block * layers if side == "down" else block * layers
    return f"{'input' if side == 'down' else 'output'}_blocks.{start + number}.{int(kind == 'attentions')}.{rest}"


def vae_name(name: str, config: Any) -> str:
    """The original name of a weight of an AutoencoderKL of this config; KeyError where it has none."""
    if name in LDM["vae"]:
        return LDM["vae"][name]
    if match := VAE_MID.fullmatch(name):
        coder, kind, number, rest = match[1], match[2], int(match[3]), match[4]
        if kind == "resnets":
            return f"{coder}.mid.block_{number + 1}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{coder}.mid.attn_{number + 1}.{_renamed(rest, ATTENTION)}"
    if not (match := VAE_BLOCK.fullmatch(name)):
        raise KeyError(name)
    side, block, kind, number, rest = match[1], int(match[2]), match[3], match[4], match[5]
    if side == "decoder.up":
        block = len(config["up_block_types"]) - 1 - block
    if kind == "resnets":
        return f"{side}.{block}.block.{number}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
    return f"{side}.{block}.{kind.removesuffix('rs').replace('sampler', 'sample')}.{rest}"


def unet_weights(unet: Any) -> dict[str, torch.Tensor]:
    """A UNet in the original layout."""
    return {f"{NETWORK}{unet_name(name, unet.config)}": weight for name, weight in unet.state_dict().items()}


def vae_weights(vae: Any, head: str = "first_stage_model.") -> dict[str, torch.Tensor]:
    """A VAE in the original layout, whose attention is made of convolutions."""
    found = {}
    for name, weight in vae.state_dict().items():
        key = vae_name(name, vae.config)
        found[head + key] = weight[..., None, None] if ".attn_" in key and weight.ndim == 2 else weight
    return found


def open_clip_weights(encoder: Any, head: str) -> dict[str, torch.Tensor]:
    """OpenCLIP's text encoder, whose queries, keys and values are one weight, under `<head>.model.`."""
    layers, parts = LDM["openclip"]["layers"], LDM["openclip"]["transformer"]
    weights = {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": weight
        for name, weight in encoder.state_dict().items()
    }
    found = {}
    for name, weight in weights.items():
        if name in layers:
            found[layers[name]] = weight.T.contiguous() if name == "text_projection.weight" else weight
        elif not (match := re.fullmatch(r"(.+\.self_attn)\.([qkv])_proj\.(weight|bias)", name)):
            found[f"transformer.{_replaced(name, parts)}"] = weight
        elif match[2] == "q":
            three = [weights[f"{match[1]}.{side}_proj.{match[3]}"] for side in "qkv"]
            found[f"transformer.{_replaced(match[1], parts)}.in_proj_{match[3]}"] = torch.cat(three)
    return {f"{head}.model.{name}": weight for name, weight in found.items()}


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    for theirs, original in parts.items():
        name = name.replace(theirs, original)
    return name
