"""LoRAs put into a pipeline's weights: all that a file says is applied, or it is refused."""

from pathlib import Path
from typing import Any

import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.models.adapter_files import PEFT_HEAD, Update, adapter_files, read_adapter
from safetydpo.models.layer_names import ENCODERS, NETWORKS, Layer, Names, flat, layer_names
from safetydpo.models.lora import FILE

# How names of layers begin -> whose naming that is.
NAMINGS = {
    "base_model.model.": "PEFT's",
    "diffusion_model.": "ComfyUI's",
    "lora_unet_": "kohya's",
    "lora_te": "kohya's",
    "lora_transformer_": "OneTrainer's",
}


def fuse(pipeline: Any, path: Path, scale: float, own: bool) -> None:
    """Add scale times the updates of a LoRA (file, or folder with one) to the weights: renders as fast as before.

    Of a DoRA the sum has the trained lengths whatever the scale. own: whether the file is one of the run. Raises
    SafetyDPOError when it is missing, damaged, holds a value that is not finite, is no LoRA, or is of another model.
    """
    files = adapter_files(path)
    if not files:
        raise SafetyDPOError(f"{path} has no {FILE}.")
    names = layer_names(pipeline)
    for part, file in files.items():
        updates = read_adapter(file, own)
        places = {name: _place(names, part, name) for name in updates}
        if reason := misfit(pipeline.family.kind.component, updates, places):
            raise SafetyDPOError(f"The LoRA in {file.parent} is of another model ({reason}).")
        for name, update in updates.items():
            _add(places[name] or (), update, scale)


def _place(names: Names, part: str, name: str) -> tuple[Layer, ...] | None:
    """The layers that a name in a file is of; part: that the whole file is of, if that is known."""
    bare = flat(name.removeprefix(PEFT_HEAD))
    return names.get(f"{part}_{bare}" if part else bare)


def misfit(component: str, updates: dict[str, Update], places: dict[str, tuple[Layer, ...] | None]) -> str:
    """The first key that has no place in a pipeline with this network, and why; "" where all have.

    places: the layers that each name is of, empty where parts share it, None where there are none.
    """
    lost: list[str] = []
    seen: dict[tuple[str, str], str] = {}
    for name, update in updates.items():
        head, _, rest = name.partition(".")
        key = update.keys[0]
        if head in NETWORKS and head != component:
            return f"{key}: it is a {head}'s, the model has a {component}"
        if (layers := places[name]) is None and head in (component, *ENCODERS):
            return f"{key}: the model has no {rest}"
        if layers is None:
            lost.append(key)
        elif not layers:
            return f"{key}: several parts of the model have such a layer, put the file into a folder of its part's name"
        elif reason := _odd_shape(update, layers):
            return reason
        elif twice := next((seen[layer[:2]] for layer in layers if layer[:2] in seen), None):
            return f"{key} is of the same layer as {twice}"
        seen |= {layer[:2]: key for layer in layers or ()}
    if not lost:
        return ""
    naming = next((f" ({name} naming)" for head, name in NAMINGS.items() if lost[0].startswith(head)), "")
    return f"{len(lost)} of its {len(updates)} layers are none of the model's, first {lost[0]}{naming}"


def _odd_shape(update: Update, layers: tuple[Layer, ...]) -> str:
    """Why an update cannot be added to layers; "" where it can."""
    (down, up), weights = update.keys, [layer.module.weight for layer in layers]
    if (has := update.down[0].numel()) != (takes := weights[0][0].numel()):
        return f"{down} is for {has} inputs, the model has {takes}"
    if (has := len(update.up)) != (takes := sum(map(len, weights))):
        return f"{up} is for {has} outputs, the model has {takes}"
    if update.magnitude is None:
        return ""
    shape, ones = tuple(update.magnitude.shape), (1,) * (update.magnitude.ndim - 2)
    if shape == (1, weights[0].shape[1], *ones) and len(layers) > 1:
        return f"{up}: a DoRA has lengths of columns here, which several layers of the model share"
    if shape not in ((takes, 1, *ones), (1, weights[0].shape[1], *ones)):
        return f"{up}: lengths of a DoRA of shape {shape} are neither of its {takes} rows nor of its columns"
    return ""


@torch.no_grad()
def _add(layers: tuple[Layer, ...], update: Update, scale: float) -> None:
    """Add scale times an update to the weights of the layers that share its rows, in their own precision."""
    start = 0
    for layer in layers:
        weight = layer.module.weight.data
        rows = slice(start, start := start + len(weight))
        down, up = (tensor.to(weight).flatten(1) for tensor in (update.down, update.up[rows]))
        if weight.device.type == "cpu":  # which multiplies half precision slowly, if at all
            down, up = down.float(), up.float()
        weight += ((up @ down) * (update.scale * scale)).to(weight.dtype).reshape(weight.shape)
        if (magnitude := update.magnitude) is not None:
            magnitude = magnitude[rows] if len(magnitude) > 1 else magnitude
            weight.copy_(_of_length(weight.float(), magnitude.to(weight.device).float()))


def _of_length(weight: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Weights (out, in, ...) whose rows or columns are of these lengths, (out, 1, ...) or (1, in, ...)."""
    row = int(lengths.shape[0] == 1)  # the dimension that the lengths are along
    others = [i for i in range(weight.ndim) if i != row]
    along = [-1 if i == row else 1 for i in range(weight.ndim)]
    return weight * (lengths.reshape(along) / torch.linalg.vector_norm(weight, dim=others, keepdim=True))
