"""Loading the target model: one code path for every Stable Diffusion family and for the demo world's."""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from safetydpo.config import Model
from safetydpo.devices import device_of
from safetydpo.errors import SafetyDPOError
from safetydpo.files import write_text


def check_model(config: Model, out: Path | str) -> None:
    """Find the model (or download it, when the hub is in reach) and write what it is, before anything expensive.

    Raises SafetyDPOError when it is not to be had, or is of a kind that this workflow cannot train.
    """
    import json

    pipeline = load_pipeline(config.model_copy(update={"device": "cpu"}))  # this job may run on a login node
    unet = getattr(pipeline, "unet", None)
    if unet is None:
        raise SafetyDPOError(
            f"Model {config.id} has no UNet ({type(pipeline).__name__}): this workflow trains UNet models."
        )
    facts = {
        "id": config.id,
        "pipeline": type(pipeline).__name__,
        "prediction_type": pipeline.scheduler.config.prediction_type,
        "unet_parameters": unet.num_parameters(),
        "latent_channels": unet.config.in_channels,
    }
    write_text(json.dumps(facts, indent=1) + "\n", out)
    print(facts)


def load_pipeline(config: Model, lora: Path | str | None = None, scale: float = 1.0) -> Any:
    """A diffusers text-to-image pipeline on its device, with a LoRA fused at `scale` when one is given."""
    local = Path(config.id)
    if config.id.startswith((".", "/")) and not (local / "model_index.json").exists():
        raise SafetyDPOError(
            f"Model folder {config.id} has no model_index.json: set model.id to a diffusers folder or hub id."
        )
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            config.id, dtype=getattr(torch, config.dtype), use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise SafetyDPOError(
            f"Model {config.id} cannot be loaded ({reason}). "
            f"Download it where there is a network (`hf download {config.id}`), or set model.id to a local folder."
        ) from None
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # what the model draws is measured, not hidden
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device_of(config.device))
    if lora is not None:
        _fuse(pipeline, Path(lora), scale)
    return pipeline


def _fuse(pipeline: Any, folder: Path, scale: float) -> None:
    """Add the LoRA's updates to the weights: renders as fast as the base model."""
    if not (folder / "pytorch_lora_weights.safetensors").exists():
        raise SafetyDPOError(f"{folder} has no pytorch_lora_weights.safetensors.")
    try:
        pipeline.load_lora_weights(os.fspath(folder))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SafetyDPOError(f"The LoRA in {folder} does not fit the model ({reason}).") from None
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()


@torch.no_grad()
def encode_prompts(pipeline: Any, prompts: list[str], batch_size: int = 64) -> dict[str, torch.Tensor]:
    """Text embeddings as the UNet takes them: encoder_hidden_states (n, tokens, d), on SDXL also text_embeds (n, d)."""
    parts: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(prompts), batch_size):
        encoded = pipeline.encode_prompt(
            prompts[start : start + batch_size],
            device=pipeline.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        parts.setdefault("encoder_hidden_states", []).append(encoded[0].float().cpu())
        if len(encoded) == 4:
            parts.setdefault("text_embeds", []).append(encoded[2].float().cpu())
    return {name: torch.cat(tensors) for name, tensors in parts.items()}
