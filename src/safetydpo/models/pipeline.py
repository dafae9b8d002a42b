"""Loading the target model: one code path for every Stable Diffusion family and for the demo world's.

What a model is stands in its own `model_index.json`, scheduler and VAE configs; its name says nothing.
"""

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.adapters import fuse
from safetydpo.models.folders import folder_of, refuse_pickle, variant_of
from safetydpo.running.devices import device_of
from safetydpo.running.quiet import quiet_diffusers
from safetydpo.storage.finite import Numbers

# What the libraries raise for a folder or a file that is damaged, incomplete or of a kind they do not know.
UNREADABLE = (OSError, ValueError, TypeError, AttributeError, NotImplementedError, SafetensorError)
# Parts that no image needs: what the model draws is measured, not hidden, and prompts are texts.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
# What a pipeline is asked with here; one that takes an `image` too makes images of images.
ASKED = {"prompt", "height", "width", "num_inference_steps", "guidance_scale", "generator", "latents", "output_type"}
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}  # a model's parts are of these


class UNetParts(NamedTuple):
    """What training needs of a model: neither VAE nor text encoders are loaded for it."""

    unet: UNet2DConditionModel
    scheduler_config: dict[str, Any]
    scaling_factor: float
    shift_factor: float


def _index(config: Model) -> dict[str, Any]:
    """The model's model_index.json: part -> [library, class].

    Raises SafetyDPOError where it is missing, is no text-to-image pipeline with a UNet, or has pickled weights only.
    """
    quiet_diffusers()
    folder = folder_of(config.id)
    if folder and not (folder / "model_index.json").exists():
        raise SafetyDPOError(
            f"Model folder {config.id} has no model_index.json: set model.id to a diffusers folder or hub id."
        )
    try:
        index: Any = DiffusionPipeline.load_config(config.id)
    except UNREADABLE as error:
        raise _not_loaded(config.id, error) from None
    name = index.get("_class_name")
    if not (index.get("unet") or [None])[0]:
        raise SafetyDPOError(f"Model {config.id} has no UNet ({name}): this workflow trains UNet models.")
    kind: Any = _class_of(index)
    takes = ASKED if kind is DiffusionPipeline else set(inspect.signature(kind.__call__).parameters)
    if "image" in takes or not takes >= ASKED:
        raise SafetyDPOError(
            f"Model {config.id} is a {name}, which is not text-to-image: set model.id to one that is, such as "
            "a StableDiffusionPipeline."
        )
    if folder:
        for part in _parts(index):
            refuse_pickle(folder / part, config.id)
    return index


def _class_of(index: dict[str, Any]) -> type[DiffusionPipeline]:
    """The pipeline's class; DiffusionPipeline, which looks further, where diffusers has none of that name."""
    kind = getattr(diffusers, str(index.get("_class_name")), None)
    return kind if isinstance(kind, type) and issubclass(kind, DiffusionPipeline) else DiffusionPipeline


def _parts(index: dict[str, Any]) -> dict[str, list[str]]:
    """The parts of a pipeline that are used."""
    return {part: kind for part, kind in index.items() if isinstance(kind, list) and any(kind) and part not in UNUSED}


def _not_loaded(name: str, error: Exception) -> SafetyDPOError:
    reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
    if Path(name).is_dir():
        todo = "Its folder must be whole, as save_pretrained writes it, with safetensors weights"
    else:
        todo = f"Download it where there is a network (`hf download {name}`), or name a local folder"
    return SafetyDPOError(f"Model {name} cannot be loaded ({reason}). {todo}.")


def load_pipeline(
    config: Model,
    lora: Path | str | None = None,
    scale: float = 1.0,
    without: tuple[str, ...] = (),
    own_lora: bool = True,
) -> Any:
    """A diffusers text-to-image pipeline on its device, with a LoRA (file or folder) fused at `scale` if one is given.

    without: parts that are not needed and not loaded, such as "unet"; own_lora: whether the LoRA is one of the run.
    """
    device, index = device_of(config.device), _index(config)
    options: dict[str, Any] = {"dtype": getattr(torch, config.dtype), "use_safetensors": True}
    given: dict[str, Any] = {part: None for part in (*UNUSED, *without) if part in index}
    if "requires_safety_checker" in index:
        given["requires_safety_checker"] = False  # or it warns that there is none
    name = config.vae or config.id
    try:
        if config.vae and "vae" not in without:
            given["vae"] = load_part(AutoencoderKL, config.vae, **options)
        name, folder = config.id, folder_of(config.id)
        for part, (library, kind) in _parts(index).items():
            if folder and part not in given and library in LIBRARIES and variant_of(folder / part):
                given[part] = load_part(getattr(LIBRARIES[library], kind), name, part, **options)
        # not DiffusionPipeline's: the class itself knows which parts may be None
        pipeline = _class_of(index).from_pretrained(name, **options, **given)
    except UNREADABLE as error:
        raise _not_loaded(name, error) from None
    _check(pipeline, config.id)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if lora is not None:
        fuse(pipeline, Path(lora), scale, own_lora)
    return pipeline


def load_part(kind: Any, name: str, part: str | None = None, **options: Any) -> Any:
    """A part of a model, from its folder or the hub's; the fp16 variant where that is all there is."""
    folder = folder_of(name)
    if folder and (variant := variant_of(folder / (part or ""))):
        options["variant"] = variant
    return kind.from_pretrained(name, subfolder=part, **options)


def _check(pipeline: Any, name: str) -> None:
    """SafetyDPOError where parts do not belong together: this is said before the first prompt that stumbles on it."""
    unet, vae = getattr(pipeline, "unet", None), getattr(pipeline, "vae", None)
    takes, made = unet and unet.config.in_channels, vae and vae.config.get("latent_channels")
    if unet and vae and takes != made:
        raise SafetyDPOError(
            f"Model {name}: its UNet takes {takes} channels, its VAE makes {made}: take a text-to-image model."
        )
    for number in ("", "_2"):
        tokenizer, encoder = (getattr(pipeline, f"{part}{number}", None) for part in ("tokenizer", "text_encoder"))
        if not tokenizer or not encoder:
            continue
        known = encoder.get_input_embeddings().num_embeddings
        if beyond := {token: i for token, i in tokenizer.get_vocab().items() if i >= known}:
            raise SafetyDPOError(
                f"Model {name}: text_encoder{number} has {known} embeddings, none for {len(beyond)} tokens of its "
                f"tokenizer, first {min(beyond, key=lambda token: beyond[token])!r}: save the text encoder whose "
                "embeddings were resized with that tokenizer."
            )
        # some tokenizers do not know the window
        tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)


def load_unet(config: Model, dtype: torch.dtype = torch.float32) -> UNetParts:
    """The UNet, on the CPU, with the configs that noising and latents need."""
    _index(config)
    try:
        # not memory-mapped: training copies some weights (channels_last), and would keep the whole file beside them
        options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "disable_mmap": True}
        unet = load_part(UNet2DConditionModel, config.id, "unet", **options)
        scheduler: Any = DDPMScheduler.load_config(config.id, subfolder="scheduler")
        vae: Any = AutoencoderKL.load_config(config.vae or config.id, subfolder=None if config.vae else "vae")
    except UNREADABLE as error:
        raise _not_loaded(config.id, error) from None
    return UNetParts(unet, scheduler, vae.get("scaling_factor", 0.18215), vae.get("shift_factor") or 0.0)


def native_size(pipeline: Any) -> tuple[int, int]:
    """Height and width in pixels that the model was made for: its UNet's, or where that does not say, its VAE's.

    Raises SafetyDPOError where neither config says.
    """
    size, unit = pipeline.unet.config.sample_size, pipeline.vae_scale_factor
    if size is None and "sample_size" not in pipeline.vae.config.get("_use_default_values", ()):
        size, unit = pipeline.vae.config.sample_size, 1
    if size is None:
        raise SafetyDPOError(
            "The model does not say its size (sample_size in unet/config.json and vae/config.json): give one."
        )
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height * unit, width * unit


def finite_of(pipeline: Any, values: Numbers, what: str) -> Numbers:
    """Values that a pipeline computed, as they are; the error of `not_finite` where one is NaN or infinite."""
    good = np.isfinite(values) if isinstance(values, np.ndarray) else values.isfinite()
    if not good.all():
        raise not_finite(pipeline, what)
    return values


def not_finite(pipeline: Any, what: str) -> SafetyDPOError:
    """The error for values of a pipeline that are NaN or infinite: whether a weight is the cause, what can be done.

    what: the values, as `X rendered values that are not finite`.
    """
    inner: Any = getattr(pipeline, "pipeline", pipeline)  # SLD and negative prompts wrap theirs
    if bad := bad_weight(inner):
        why, todo = f"{bad} is not", "its file is damaged or its training diverged, get another one"
    else:
        why, todo = "its weights are", "lower model.guidance_scale, or the strength of the LoRA where there is one"
    dtypes = {getattr(part, "dtype", None) for part in inner.components.values()}
    if dtypes & {torch.float16, torch.bfloat16}:
        todo = f"set model.dtype to float32; if that does not help, {todo}"
    return SafetyDPOError(f"{what} ({why}): {todo}.")


def bad_weight(pipeline: Any) -> str:
    """The first weight of a pipeline that is not finite: `conv_in.weight of its unet`; "" where all are."""
    for part, module in pipeline.components.items():
        for name, weight in module.named_parameters() if isinstance(module, torch.nn.Module) else ():
            if not weight.isfinite().all():
                return f"{name} of its {part}"
    return ""
