"""Loading the target model: one code path for every Stable Diffusion family and for the demo world's.

What a model is stands in its own `model_index.json`, scheduler and VAE configs; its name says nothing.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.lora import misfit
from safetydpo.running.devices import device_of
from safetydpo.running.quiet import quiet_diffusers

# What the libraries raise for a folder or a file that is damaged, incomplete or of a kind they do not know.
UNREADABLE = (OSError, ValueError, TypeError, AttributeError, NotImplementedError, SafetensorError)
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


class UNetParts(NamedTuple):
    """What training needs of a model: neither VAE nor text encoders are loaded for it."""

    unet: UNet2DConditionModel
    scheduler_config: dict[str, Any]
    scaling_factor: float
    shift_factor: float


def _index(config: Model) -> dict[str, Any]:
    """The model's model_index.json; SafetyDPOError where it is missing, has no UNet, or pickled weights only."""
    quiet_diffusers()
    local = Path(config.id)
    if config.id.startswith((".", "/")) and not (local / "model_index.json").exists():
        raise SafetyDPOError(
            f"Model folder {config.id} has no model_index.json: set model.id to a diffusers folder or hub id."
        )
    try:
        index: Any = DiffusionPipeline.load_config(config.id)
    except UNREADABLE as error:
        raise _not_loaded(config.id, error) from None
    if not (index.get("unet") or [None])[0]:
        raise SafetyDPOError(
            f"Model {config.id} has no UNet ({index.get('_class_name')}): this workflow trains UNet models."
        )
    for part in [name for name, value in index.items() if isinstance(value, list) and value[0]]:
        files = [path.name for path in (local / part).glob("*")] if local.is_dir() else []
        pickles = [name for name in files if name.endswith(PICKLES)]
        if pickles and not any(name.endswith(".safetensors") for name in files):
            raise SafetyDPOError(
                f"{local / part / pickles[0]} is a pickle, which can run code when it is read: only safetensors are. "
                "If you trust the file, convert it: in Python, "
                f'DiffusionPipeline.from_pretrained("{config.id}").save_pretrained("NEW_FOLDER"), then set model.id.'
            )
    return index


def _not_loaded(name: str, error: Exception) -> SafetyDPOError:
    reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
    if Path(name).is_dir():
        todo = "Its folder must be whole, as save_pretrained writes it, with safetensors weights"
    else:
        todo = f"Download it where there is a network (`hf download {name}`), or set model.id to a local folder"
    return SafetyDPOError(f"Model {name} cannot be loaded ({reason}). {todo}.")


def load_pipeline(
    config: Model, lora: Path | str | None = None, scale: float = 1.0, without: tuple[str, ...] = ()
) -> Any:
    """A diffusers text-to-image pipeline on its device, with a LoRA (file or folder) fused at `scale` if one is given.

    without: parts that are not needed and not loaded, such as "unet".
    """
    _index(config)
    options: dict[str, Any] = {"dtype": getattr(torch, config.dtype), "use_safetensors": True}
    options |= dict.fromkeys(without)
    name = config.vae or config.id
    try:
        if config.vae and "vae" not in without:
            options["vae"] = AutoencoderKL.from_pretrained(config.vae, **options)
        name = config.id
        pipeline = DiffusionPipeline.from_pretrained(config.id, **options)
    except UNREADABLE as error:
        raise _not_loaded(name, error) from None
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # what the model draws is measured, not hidden
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device_of(config.device))
    if lora is not None:
        _fuse(pipeline, Path(lora), scale)
    return pipeline


def load_unet(config: Model, dtype: torch.dtype = torch.float32) -> UNetParts:
    """The UNet, on the CPU, with the configs that noising and latents need."""
    _index(config)
    try:
        # not memory-mapped: training copies some weights (channels_last), and would keep the whole file beside them
        options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "disable_mmap": True}
        unet = UNet2DConditionModel.from_pretrained(config.id, subfolder="unet", **options)
        scheduler: Any = DDPMScheduler.load_config(config.id, subfolder="scheduler")
        vae: Any = AutoencoderKL.load_config(config.vae or config.id, subfolder=None if config.vae else "vae")
    except UNREADABLE as error:
        raise _not_loaded(config.id, error) from None
    return UNetParts(unet, scheduler, vae.get("scaling_factor", 0.18215), vae.get("shift_factor") or 0.0)


def _fuse(pipeline: Any, path: Path, scale: float) -> None:
    """Add the LoRA's updates to the weights: renders as fast as the base model."""
    file = path if path.is_file() else path / "pytorch_lora_weights.safetensors"
    if not file.exists():
        raise SafetyDPOError(f"{file.parent} has no {file.name}.")
    try:
        if reason := misfit(pipeline.unet, file):
            raise SafetyDPOError(f"The LoRA in {file.parent} is of another model ({reason}).")
        pipeline.load_lora_weights(os.fspath(file.parent), weight_name=file.name)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SafetyDPOError(f"The LoRA in {file.parent} does not fit the model ({reason}).") from None
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()
