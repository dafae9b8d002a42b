"""Models that others aligned: a LoRA, a UNet or a whole pipeline, known by the files that are there."""

from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import Opening
from safetydpo.models.folders import refuse_pickle
from safetydpo.models.pipeline import UNREADABLE, load_part, load_pipeline


def external_pipeline(model: Model, path: str) -> Any:
    """The pipeline of `path`: a folder with model_index.json or a hub id, a UNet folder, a LoRA folder or file.

    A folder with `unet/` alone, as the published inference command takes it, is a UNet too.
    Raises SafetyDPOError when it is none of these, or of another architecture than `model`.
    """
    local = Path(path)
    if (local / "model_index.json").is_file() or not local.exists():
        return load_pipeline(model.model_copy(update={"id": path}))
    if local.is_file() or (local / "pytorch_lora_weights.safetensors").is_file():
        return load_pipeline(model, local, own_lora=False)
    folder = local / "unet" if (local / "unet/config.json").is_file() else local
    if not (folder / "config.json").is_file():
        raise SafetyDPOError(
            f"{path} is neither a pipeline (model_index.json), nor a UNet (config.json, or unet/), nor a LoRA "
            "(pytorch_lora_weights.safetensors, or a .safetensors file)."
        )
    refuse_pickle(folder, path)
    pipeline = load_pipeline(model)
    try:
        other = load_part(UNet2DConditionModel, str(folder), use_safetensors=True, dtype=pipeline.unet.dtype)
    except UNREADABLE as error:
        raise SafetyDPOError(f"The UNet in {folder} cannot be loaded ({str(error).splitlines()[0][:200]}).") from None
    for key in ("in_channels", "cross_attention_dim", "addition_embed_type"):
        if other.config[key] != pipeline.unet.config[key]:
            raise SafetyDPOError(
                f"The UNet in {folder} is of another model than {model.id}: {key} {other.config[key]} against "
                f"{pipeline.unet.config[key]}."
            )
    pipeline.unet = other.to(pipeline.unet.device)
    return pipeline


def open_pipeline(opening: Opening) -> Any:
    """The pipeline of the external model that the variant names."""
    return external_pipeline(opening.model, opening.baselines.external(opening.variant).path)
