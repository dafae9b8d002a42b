"""LoRA files as people have them, put into a pipeline's weights: all that a file says is applied, or it is refused."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from safetydpo.errors import SafetyDPOError
from safetydpo.models.folders import refuse_pickled
from safetydpo.models.lora import FILE
from safetydpo.storage.files import read_safetensors

Tensors = dict[str, torch.Tensor]
# <layer>.lora_A.weight, .lora_A.<adapter>.weight, .lora_down.weight, .lora.down.weight, _lora.down.weight, ...
FACTOR = re.compile(r"(.+?)[._]lora(?:_|\.|_linear_layer\.)(A|B|down|up)(?:\.(\w+))?\.weight")
MAGNITUDE = re.compile(r"(.+\.lora_magnitude_vector)(?:\.\w+)*")  # DoRA, as diffusers saves it
NETWORKS = ("unet", "transformer")
PARTS = (*NETWORKS, "text_encoder", "text_encoder_2", "text_encoder_3")
# Part of a key -> what such a file is: none of them is a sum of lora_B lora_A that diffusers would apply.
OTHERS = {
    "dora_scale": "a DoRA in kohya's naming",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "lora_mid": "a LoCon with a Tucker core",
    "oft_": "an OFT",
    ".diff": "full differences of weights",
}
# How keys begin -> whose naming that is.
NAMINGS = {
    "base_model.model.": "PEFT's own naming (its alpha is not in the file)",
    "diffusion_model.": "ComfyUI's naming",
    "lora_unet_": "kohya's naming",
}


def fuse(pipeline: Any, path: Path, scale: float, own: bool) -> None:
    """Add scale times the updates of a LoRA (file, or folder with one) to the weights: renders as fast as before.

    own: whether the file is one of the run. Raises SafetyDPOError when it is missing, damaged, holds a value that is
    not finite, is no LoRA, is of another model, or when a part of it was not applied.
    """
    file = path if path.is_file() else path / FILE
    if not file.exists():
        raise SafetyDPOError(f"{file.parent} has no {file.name}.")
    refuse_pickled(file)
    stored, header = read_safetensors(file, own)
    network, component = pipeline.family.network(pipeline), pipeline.family.kind.component
    named = {_as_diffusers(key, network, component): tensor for key, tensor in stored.items()}
    if len(named) < len(stored):
        raise SafetyDPOError(f"{file} holds several adapters: save the one that is meant alone.")
    tensors = _folded(named, file)
    if reason := misfit(network, component, tensors):
        raise SafetyDPOError(f"The LoRA in {file.parent} is of another model ({reason}).")
    try:
        _load(pipeline, tensors, header, renamed=tensors.keys() != stored.keys(), file=file)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise SafetyDPOError(f"The LoRA in {file.parent} does not fit the model ({reason}).") from None
    if lost := _not_applied(pipeline, tensors):
        found = next((f" ({name})" for start, name in NAMINGS.items() if lost[0].startswith(start)), "")
        raise SafetyDPOError(
            f"{len(lost)} of {len(tensors)} tensors of the LoRA {file} name no layer of the model, first {lost[0]}"
            f"{found}: take a LoRA of this model, in the naming of diffusers' save_lora_weights."
        )
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()


def _as_diffusers(key: str, network: nn.Module, component: str) -> str:
    """The key as save_lora_weights writes it, where it is the network's own name or holds that of PEFT's adapter."""
    if (match := FACTOR.fullmatch(key)) and match[3]:
        key = key.removesuffix(f".{match[3]}.weight") + ".weight"
    elif match := MAGNITUDE.fullmatch(key):
        key = match[1]
    return f"{component}.{key}" if key.split(".")[0] in dict(network.named_children()) else key


def _folded(tensors: Tensors, file: Path) -> Tensors:
    """The tensors with every `<layer>.alpha` folded into the layer's lora_B, as alpha / rank.

    diffusers' own way with alphas is wrong where ranks differ or where some layers have none. Raises SafetyDPOError for
    a key that is neither of a LoRA nor of a DoRA as diffusers saves it, and for half a layer.
    """
    layers: dict[str, dict[str, str]] = {}
    for key in tensors:
        if match := FACTOR.fullmatch(key):
            layers.setdefault(match[1], {})["up" if match[2] in ("B", "up") else "down"] = key
        elif not (key.endswith(".alpha") or MAGNITUDE.fullmatch(key)):
            kind = next((kind for part, kind in OTHERS.items() if part in key), "not of a LoRA")
            raise SafetyDPOError(f"{file} cannot be applied: its key {key} is {kind}; take a LoRA.")
    out = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
    for layer, keys in layers.items():
        if len(keys) < 2:
            raise SafetyDPOError(f"{file} is no whole LoRA: {layer} has {next(iter(keys.values()))} alone.")
    for key in tensors.keys() - out.keys():
        keys = layers.get(key.removesuffix(".alpha"))
        if keys is None or tensors[key].numel() != 1:
            raise SafetyDPOError(f"{file} is no LoRA that is known here: its {key} belongs to no layer.")
        out[keys["up"]] = out[keys["up"]].float() * (tensors[key].item() / len(out[keys["down"]]))
    return out


def misfit(network: nn.Module, component: str, tensors: Tensors) -> str:
    """The first key that has no place in the network, and why; "" where all do.

    Keys of other naming than diffusers' are not looked at.
    """
    for key, tensor in sorted(tensors.items()):
        head, _, rest = key.partition(".")
        name, _, part = rest.partition(".lora")
        if head in NETWORKS and head != component:
            return f"{key}: it is a {head}'s, the model has a {component}"
        if head != component or not part.endswith(".weight"):
            continue
        try:
            weight: Any = network.get_submodule(name).weight
        except AttributeError:
            return f"{key}: the model has no {name}"
        side = 1 if part in ("_A.weight", ".down.weight") else 0
        if tensor.shape[side] != weight.shape[side]:
            return (
                f"{key} is for {tensor.shape[side]} {('outputs', 'inputs')[side]}, the model has {weight.shape[side]}"
            )
    return ""


def _load(pipeline: Any, tensors: Tensors, header: dict[str, str], renamed: bool, file: Path) -> None:
    """diffusers' loading; alphas may stand in the header too, under names with or without a part's prefix."""
    facts = header.get("lora_adapter_metadata")
    if facts is None:
        pipeline.load_lora_weights(tensors)
    elif not renamed:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    else:  # saved by the network itself, and of it alone
        network, component = pipeline.family.network(pipeline), pipeline.family.kind.component
        head = f"{component}."
        facts = {key if key.startswith(head) else f"{head}{key}": value for key, value in json.loads(facts).items()}
        network.load_lora_adapter(tensors, prefix=component, metadata=facts)


def _not_applied(pipeline: Any, tensors: Tensors) -> list[str]:
    """Keys whose values no adapter in the pipeline holds: diffusers passes over names that it does not know."""
    parts = [part for name in PARTS if (part := getattr(pipeline, name, None)) is not None]
    weights = [weight for part in parts for name, weight in part.named_parameters() if ".lora_" in name]
    dtypes, held, lost = {weight.dtype for weight in weights}, Counter(map(_digest, weights)), []
    for key, value in tensors.items():
        found = next((digest for dtype in dtypes if held[digest := _digest(value.to(dtype))]), None)
        if found is None:
            lost.append(key)
        else:
            held[found] -= 1  # another key may have the same values
    return lost


def _digest(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()
