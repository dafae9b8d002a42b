"""What LoRA files call the layers of a pipeline: names of diffusers and PEFT, of kohya, of original checkpoints.

Names are compared with every dot as an underscore, as kohya writes them: both `unet.mid_block.attentions.0.proj_in` and
`lora_unet_mid_block_attentions_0_proj_in` end up as one.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from typing import Any, NamedTuple

from torch import nn

from safetydpo.models.ldm import unet_name

NETWORKS = ("unet", "transformer")
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
# What names of a network's layers begin with: diffusers (its component, or nothing), kohya, OneTrainer, ComfyUI.
NETWORK_HEADS = ("", "lora_unet_", "lora_transformer_", "diffusion_model_")
# Of a text encoder's: kohya and OneTrainer, and ComfyUI. T5 is the third of kohya's wherever it stands in the pipeline.
ENCODER_HEADS = {
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoders_clip_l_transformer_"),
    "text_encoder_2": ("lora_te2_", "text_encoders_clip_g_transformer_"),
    "T5EncoderModel": ("lora_te3_", "text_encoders_t5xxl_transformer_"),
}
# Endings of a layer's name -> the same layer in diffusers' older names.
OLDER = {
    "to_out.0": ("to_out",),
    "q_proj": ("to_q",),
    "k_proj": ("to_k",),
    "v_proj": ("to_v",),
    "out_proj": ("to_out",),
}
QKV, ADDED = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
# A transformer's original blocks -> ours, and original layer -> the layers whose rows it has, one after the other.
# Layers whose rows diffusers has in another order (modulations of the output) are not here: a LoRA on one is refused.
Blocks = dict[str, tuple[str, dict[str, tuple[str, ...]]]]
SD3: Blocks = {
    "joint_blocks": (
        "transformer_blocks",
        {
            "x_block.attn.qkv": QKV,
            "x_block.attn.proj": ("attn.to_out.0",),
            "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
            "x_block.attn2.proj": ("attn2.to_out.0",),
            "x_block.mlp.fc1": ("ff.net.0.proj",),
            "x_block.mlp.fc2": ("ff.net.2",),
            "x_block.adaLN_modulation.1": ("norm1.linear",),
            "context_block.attn.qkv": ADDED,
            "context_block.attn.proj": ("attn.to_add_out",),
            "context_block.mlp.fc1": ("ff_context.net.0.proj",),
            "context_block.mlp.fc2": ("ff_context.net.2",),
        },
    ),
}
FLUX: Blocks = {
    "double_blocks": (
        "transformer_blocks",
        {
            "img_attn.qkv": QKV,
            "img_attn.proj": ("attn.to_out.0",),
            "img_mlp.0": ("ff.net.0.proj",),
            "img_mlp.2": ("ff.net.2",),
            "img_mod.lin": ("norm1.linear",),
            "txt_attn.qkv": ADDED,
            "txt_attn.proj": ("attn.to_add_out",),
            "txt_mlp.0": ("ff_context.net.0.proj",),
            "txt_mlp.2": ("ff_context.net.2",),
            "txt_mod.lin": ("norm1_context.linear",),
        },
    ),
    "single_blocks": (
        "single_transformer_blocks",
        {"linear1": (*QKV, "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",)},
    ),
    "": ("", {"img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",)}),
}
Z_IMAGE_ATTENTION = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
}
Z_IMAGE: Blocks = {name: (name, Z_IMAGE_ATTENTION) for name in ("layers", "noise_refiner", "context_refiner")}
Z_IMAGE[""] = "", {"x_embedder": ("all_x_embedder.2-1",), "final_layer.linear": ("all_final_layer.2-1.linear",)}
ORIGINALS = {"SD3Transformer2DModel": SD3, "FluxTransformer2DModel": FLUX, "ZImageTransformer2DModel": Z_IMAGE}


class Layer(NamedTuple):
    """A layer of a pipeline: its part (`unet`, `text_encoder`), its name there, and itself."""

    part: str
    name: str
    module: Any


# Name in a file -> the layers that it is of, whose rows it has one after the other; none where parts share the name.
Names = dict[str, tuple[Layer, ...]]


def flat(name: str) -> str:
    """A layer's name as it is compared; attention once had its LoRA in a `processor`."""
    return name.replace(".processor.", ".").replace(".", "_")


def layer_names(pipeline: Any) -> Names:
    """All that files may call the layers (linear ones and convolutions) of a pipeline's network and text encoders."""
    names: Names = {}
    component = pipeline.family.kind.component
    network = pipeline.family.network(pipeline)
    for part in (component, *ENCODERS):
        layers = layers_of(part, getattr(pipeline, part, None))
        for layer in layers.values():
            heads = NETWORK_HEADS if part == component else _encoder_heads(layer.part, getattr(pipeline, part))
            for name in _own_names(layer.name):
                for head in (f"{part}_", *heads):
                    _enter(names, head + flat(name), (layer,))
        if part == component:
            for original, own in original_names(network, layers):
                for head in NETWORK_HEADS:
                    _enter(names, head + flat(original), own)
    return names


def layers_of(part: str, module: Any) -> dict[str, Layer]:
    """The layers of a part that a LoRA can be of."""
    if module is None:
        return {}
    found = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    return {name: Layer(part, name, layer) for name, layer in found}


def _encoder_heads(part: str, encoder: Any) -> tuple[str, ...]:
    """`""`, PEFT's own, is of a text encoder too, whose layers no other part has."""
    kind = type(encoder).__name__
    return ("", *ENCODER_HEADS.get(kind if kind in ENCODER_HEADS else part, ()))


def _own_names(name: str) -> Iterator[str]:
    """A layer's name in diffusers and transformers, older ones too; CLIP had its layers in a `text_model`."""
    bare = name.removeprefix("text_model.")
    stems = {name, bare, f"text_model.{bare}"} if re.match(r"encoder\.layers\.", bare) else {name}
    for stem in sorted(stems):
        yield stem
        for end, older in OLDER.items():
            if stem.endswith(f".{end}"):
                yield from (stem.removesuffix(end) + other for other in older)


def _enter(names: Names, name: str, layers: tuple[Layer, ...]) -> None:
    known = names.setdefault(name, layers)
    if [layer[:2] for layer in known] != [layer[:2] for layer in layers]:
        names[name] = ()


def original_names(network: Any, layers: dict[str, Layer]) -> Iterator[tuple[str, tuple[Layer, ...]]]:
    """Names of a network's layers in the checkpoint that it was published in, with the layers that each is of."""
    kind = type(network).__name__
    for name, layer in layers.items() if kind == "UNet2DConditionModel" else ():
        with suppress(KeyError):
            yield unet_name(f"{name}.weight", network.config).removesuffix(".weight"), (layer,)
    for theirs, (ours, ends) in ORIGINALS.get(kind, {}).items():
        numbers = [f".{i}." for i in range(len(network.get_submodule(ours)))] if ours else [""]
        for number, (end, own) in product(numbers, ends.items()):
            found = [layers[name] for name in (f"{ours}{number}{end}" for end in own) if name in layers]
            if len(found) == len(own):  # the last block lacks some
                yield f"{theirs}{number}{end}", tuple(found)
