"""LoRA files as people have them: what a file says of each layer, alphas and all; no LoRA is refused by its name."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key

from safetydpo.errors import SafetyDPOError
from safetydpo.models.folders import refuse_pickled
from safetydpo.models.layer_names import ENCODERS, NETWORKS
from safetydpo.models.lora import FILE
from safetydpo.storage.files import read_json, read_safetensors

PEFT_FILE, PEFT_CONFIG, PEFT_HEAD = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
# <layer>.lora_A.weight, .lora_A.<adapter>.weight, .lora_down.weight, .lora.down.weight, _lora.down.weight, ...
FACTOR = re.compile(r"(.+?)[._]lora(?:_|\.|_linear_layer\.)(A|B|down|up)(?:\.(\w+))?\.weight")
MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.\w+)*")  # DoRA of PEFT and diffusers
REST = re.compile(r"(.+)\.(alpha|dora_scale)")
# Part of a key -> what such a file is: none of them is a sum of lora_B lora_A.
OTHERS = {
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "lora_mid": "a LoCon with a Tucker core",
    "oft_": "an OFT",
    "lora_embedding_": "a LoRA on embeddings",
    "lora_B.bias": "a LoRA with biases of its own",
    ".diff": "full differences of weights",
}
# What makes a LoRA of PEFT mean something else than it does here, beside its variants.
OTHER_FACTS = ("layer_replication", "target_parameters", "use_qalora")
VARIANTS = tuple(f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("is_lora_variant"))
# Initialisations that take something off the model's own weights, which the file does not say.
CHANGED_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
Tensors = dict[str, torch.Tensor]


class Update(NamedTuple):
    """What a file says of a layer: scale * up @ down is added to its weight (out, in, ...).

    down: (r, in, ...); up: (out, r, ...); magnitude: of a DoRA, the lengths of the sum's rows (out, 1, ...) or of its
    columns (1, in, ...); keys: those of `down` and `up` in the file.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None
    keys: tuple[str, str]


def adapter_files(path: Path) -> dict[str, Path]:
    """The LoRA files at a path: the part that a file is of ("": its keys say) -> file. Empty where there is none.

    A file; a folder with diffusers' or PEFT's; or one with PEFT's in a folder for each part.
    """
    if path.is_file():
        return {"": path}
    for name in (FILE, PEFT_FILE):
        if (path / name).is_file():
            return {"": path / name}
    folders = {part: path / part / PEFT_FILE for part in (*NETWORKS, *ENCODERS)}
    return {part: file for part, file in folders.items() if file.is_file()}


def read_adapter(file: Path, own: bool) -> dict[str, Update]:
    """What a LoRA file says: name of a layer in the file -> update.

    own: whether the file is one of the run. SafetyDPOError where it is missing, damaged, holds a value that is not
    finite, is no LoRA, half a one or several, or says of its scale nothing or two things.
    """
    refuse_pickled(file)
    tensors, header = read_safetensors(file, own)
    layers = _layers(tensors, file)
    facts = _facts(file, header, layers)
    return {layer: _update(layer, roles, tensors, facts, file) for layer, roles in layers.items()}


def _layers(tensors: Tensors, file: Path) -> dict[str, dict[str, str]]:
    """Layer -> role of a tensor (down, up, alpha, dora_scale, magnitude) -> key."""
    layers: dict[str, dict[str, str]] = {}
    for key in sorted(tensors):
        if match := FACTOR.fullmatch(key):
            role = "up" if match[2] in ("B", "up") else "down"
        elif match := MAGNITUDE.fullmatch(key):
            role = "magnitude"
        elif match := REST.fullmatch(key):
            role = match[2]
        else:
            kind = next((kind for part, kind in OTHERS.items() if part in key), "not of a LoRA")
            raise SafetyDPOError(f"{file} cannot be applied: its key {key} is {kind}; take a LoRA, or a part's folder.")
        if layers.setdefault(match[1], {}).setdefault(role, key) != key:
            raise SafetyDPOError(f"{file} holds several adapters: save the one that is meant alone.")
    if not layers:
        raise SafetyDPOError(f"{file} holds nothing: take a LoRA.")
    for layer, roles in layers.items():
        if not roles.keys() & {"down", "up"}:
            raise SafetyDPOError(
                f"{file} is no LoRA that is known here: its {min(roles.values())} belongs to no layer."
            )
        if not roles.keys() >= {"down", "up"}:
            alone = roles.get("down") or roles["up"]
            raise SafetyDPOError(f"{file} is no whole LoRA: {layer} has {alone} alone.")
    return layers


def _facts(file: Path, header: dict[str, str], layers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """PEFT's configs of a file: what names of their layers begin with -> config."""
    if any(layer.startswith(PEFT_HEAD) for layer in layers):
        config = file.with_name(PEFT_CONFIG)
        if not config.is_file():
            raise SafetyDPOError(f"{file} is of PEFT, whose alpha is in {PEFT_CONFIG}: put that beside it.")
        found = {PEFT_HEAD: read_json(config, own=False)}
    else:
        try:
            told = json.loads(header.get("lora_adapter_metadata") or "{}")
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise SafetyDPOError(f"{file}: lora_adapter_metadata in its header is no JSON object; save the LoRA anew.")
        found = {}
        for key, value in told.items():
            part, dot, name = key.partition(".")
            head = f"{part}." if dot and part in (*NETWORKS, *ENCODERS) else ""
            found.setdefault(head, {})[name if head else key] = value
        named = {f"{layer.partition('.')[0]}." for layer in layers}
        for head in found.keys() & {f"{network}." for network in NETWORKS} - named:  # its layers have bare names
            found[""] = found.pop(head)
    for head, config in found.items():
        _refuse_other(config, file)
        dora = any("magnitude" in roles for layer, roles in layers.items() if layer.startswith(head))
        if config.get("use_dora", dora) != dora:
            raise SafetyDPOError(
                f"{file} {'has' if dora else 'lacks'} magnitudes of a DoRA, its config says otherwise."
            )
    return found


def _refuse_other(config: dict[str, Any], file: Path) -> None:
    """SafetyDPOError for a config of PEFT by which a LoRA means something that is not done here."""
    kind, init = config.get("peft_type") or "LORA", str(config.get("init_lora_weights")).lower()
    if kind != "LORA":
        raise SafetyDPOError(f"{file} is a {kind} of PEFT, which is not applied here: take a LoRA.")
    if init.startswith(CHANGED_BASE):
        raise SafetyDPOError(
            f"{file} was begun by {init}, which changes the model's own weights too: save it as a plain LoRA with "
            "PEFT's path_initial_model_for_weight_conversion."
        )
    if odd := next((name for name in (*VARIANTS, *OTHER_FACTS) if name != "use_dora" and config.get(name)), None):
        raise SafetyDPOError(f"{file} is a LoRA of PEFT with {odd}, which is not applied here: take a plain one.")


def _update(layer: str, roles: dict[str, str], tensors: Tensors, facts: dict[str, Any], file: Path) -> Update:
    down, up = (tensors[roles[role]] for role in ("down", "up"))
    rank = len(down)
    if up.ndim < 2 or up.shape[1] != rank or up[0, 0].numel() != 1:
        raise SafetyDPOError(f"{file}: {roles['up']} {tuple(up.shape)} is not for {roles['down']} {tuple(down.shape)}.")
    scales = set()
    if "alpha" in roles:
        if tensors[roles["alpha"]].numel() != 1:
            raise SafetyDPOError(f"{file}: {roles['alpha']} is not one number.")
        scales.add(tensors[roles["alpha"]].item() / rank)
    for head, config in facts.items():
        if layer.startswith(head) and "lora_alpha" in config:
            scales.add(_scale(layer.removeprefix(head), rank, config, file))
    if len(scales) > 1:
        raise SafetyDPOError(f"{file} says two alphas of {layer}, in its keys and in its config: save it with one.")
    magnitude = None
    if "magnitude" in roles:
        magnitude = tensors[roles["magnitude"]].reshape(-1, *[1] * (up.ndim - 1))
    elif "dora_scale" in roles:
        magnitude = tensors[roles["dora_scale"]]
    return Update(down, up, scales.pop() if scales else 1.0, magnitude, (roles["down"], roles["up"]))


def _scale(module: str, rank: int, config: dict[str, Any], file: Path) -> float:
    """alpha / rank, or of rsLoRA alpha / sqrt(rank), as PEFT finds them for a module."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    said = ranks.get(get_pattern_key(list(ranks), module), config.get("r", rank))
    if said != rank:
        raise SafetyDPOError(f"{file}: the config says rank {said} for {module}, whose tensors have {rank}.")
    alpha = alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
