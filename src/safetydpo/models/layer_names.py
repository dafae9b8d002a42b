"""What LoRA files call the layers of a pipeline: names of diffusers and PEFT, of kohya, of original checkpoints.

Names are compared with every dot as an underscore, as kohya writes them: both `unet.mid_block.attentions.0.proj_in` and
`lora_unet_mid_block_attentions_0_proj_in` end up as one.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from torch import nn

from safetydpo.models.families.layouts import places, turned
from safetydpo.models.families.ldm import unet_name

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
    away = turned(network)  # a LoRA on one of them is refused
    for original, own in places(network):
        if layers.keys() >= set(own) and not away.intersection(own):
            yield original, tuple(layers[name] for name in own)
