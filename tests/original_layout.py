"""Names of tiny pipelines' weights in the checkpoints that such models are published in, written down by hand."""

import re
from typing import Any

import torch

# The tiny UNet: a resnet and a downsampler, then a block with attention; two layers in each block on the way up.
UNET = {
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE = (
    (r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"decoder\.up_blocks\.0\.resnets", "decoder.up.1.block"),  # counted from the image
    (r"decoder\.up_blocks\.1\.resnets", "decoder.up.0.block"),
    (r"decoder\.up_blocks\.0\.upsamplers\.0", "decoder.up.1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_(.)", r"mid.attn_1.\1"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)


def unet_name(name: str) -> str:
    """A layer of the tiny UNet in its original checkpoint."""
    head = next(head for head in UNET if name == head or name.startswith(f"{head}."))
    rest = name.removeprefix(head).removeprefix(".")
    rest = RESNET.get(rest, rest) if ".resnets." in name else rest
    return UNET[head] + (f".{rest}" if rest else "")


def unet_file(unet: Any) -> dict[str, torch.Tensor]:
    """A UNet's weights in the original layout."""
    out = {}
    for key, tensor in unet.state_dict().items():
        layer, kind = key.rsplit(".", 1)
        out[f"model.diffusion_model.{unet_name(layer)}.{kind}"] = tensor.clone()
    return out


def vae_file(vae: Any) -> dict[str, torch.Tensor]:
    """A VAE's weights in the original layout, whose attention has convolutions of one pixel."""
    out = {}
    for key, tensor in vae.state_dict().items():
        name = key
        for ours, theirs in VAE:
            name = re.sub(ours, theirs, name)
        square = "attn_1" in name and tensor.ndim == 2
        out[f"first_stage_model.{name}"] = (tensor[:, :, None, None] if square else tensor).clone()
    return out


SD3 = (
    (r"^pos_embed\.pos_embed", "pos_embed"),
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"^proj_out", "final_layer.linear"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^transformer_blocks", "joint_blocks"),
    (r"attn\.to_q", "x_block.attn.qkv"),
    (r"attn\.add_q_proj", "context_block.attn.qkv"),
    (r"attn\.to_out\.0", "x_block.attn.proj"),
    (r"attn\.to_add_out", "context_block.attn.proj"),
    (r"attn\.norm_(q|k)", r"x_block.attn.ln_\1"),
    (r"attn\.norm_added_(q|k)", r"context_block.attn.ln_\1"),
    (r"ff\.net\.0\.proj", "x_block.mlp.fc1"),
    (r"ff\.net\.2", "x_block.mlp.fc2"),
    (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"),
    (r"ff_context\.net\.2", "context_block.mlp.fc2"),
    (r"norm1\.linear", "x_block.adaLN_modulation.1"),
    (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
)


def sd3_file(transformer: Any) -> dict[str, torch.Tensor]:
    """An SD3's weights in the original layout, where modulations of an output have their two halves the other way."""
    weights, out = transformer.state_dict(), {}
    last = f"transformer_blocks.{len(transformer.transformer_blocks) - 1}.norm1_context"
    for key, tensor in weights.items():
        if re.search(r"attn\.(to_[kv]|add_[kv]_proj)", key):
            continue  # with the queries
        name = key
        for ours, theirs in SD3:
            name = re.sub(ours, theirs, name)
        if ".qkv." in name:
            three = (re.sub(r"(to|add)_q", rf"\1_{x}", key) for x in "qkv")
            tensor = torch.cat([weights[other] for other in three])
        if key.startswith(("norm_out", last)):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        out[f"model.diffusion_model.{name}"] = tensor.clone()
    return out


def z_image_file(transformer: Any) -> dict[str, torch.Tensor]:
    """A Z-Image's weights in the original layout, queries, keys and values in one matrix."""
    weights, out = transformer.state_dict(), {}
    for key, tensor in weights.items():
        name = key.replace("all_x_embedder.2-1", "x_embedder").replace("all_final_layer.2-1", "final_layer")
        name = name.replace("to_out.0", "out").replace("norm_q", "q_norm").replace("norm_k", "k_norm")
        if "to_q" in name:
            name = name.replace("to_q", "qkv")
            tensor = torch.cat([weights[key.replace("to_q", f"to_{x}")] for x in "qkv"])
        if not re.search(r"to_[kv]", name):
            out[f"model.diffusion_model.{name}"] = tensor.clone()
    return out
