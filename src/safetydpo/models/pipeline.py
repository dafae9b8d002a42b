"""Loading the target model: one code path for every family and for the demo worlds.

What a model is stands in its own `model_index.json`, scheduler and VAE configs; its name says nothing.
"""

from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.adapters import fuse
from safetydpo.models.families.family import Family
from safetydpo.models.folders import folder_of, not_loaded, variant_of
from safetydpo.models.index import UNREADABLE, UNUSED, Index
from safetydpo.running.devices import device_of
from safetydpo.storage.finite import Numbers

# Pixels of the largest images that the VAE takes a batch of at once: of larger ones its activations fill a GPU.
VAE_PIXELS = 512 * 512
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}  # a model's parts are of these


class Parts(NamedTuple):
    """What training needs of a model: neither VAE nor text encoders are loaded for it."""

    family: Family
    network: Any
    scheduler_config: dict[str, Any]
    scaling_factor: float
    shift_factor: float
    latent_size: tuple[int, int]  # height and width of the latents of the config's images


def load_pipeline(
    config: Model,
    lora: Path | str | None = None,
    scale: float = 1.0,
    without: tuple[str, ...] = (),
    own_lora: bool = True,
) -> Any:
    """A diffusers text-to-image pipeline on its device, with a LoRA (file or folder) fused at `scale` if one is given.

    without: parts that are not needed and not loaded, such as "vae", or "network", whatever it is called; own_lora:
    whether the LoRA is one of the run.
    """
    device, index = device_of(config.device), Index(config)
    options: dict[str, Any] = {"dtype": getattr(torch, config.dtype), "use_safetensors": True}
    unloaded = {index.family.kind.component if part == "network" else part for part in without}
    given: dict[str, Any] = {part: None for part in (*UNUSED, *unloaded, *index.missing) if part in index.parts}
    if "requires_safety_checker" in index.parts:
        given["requires_safety_checker"] = False  # or it warns that there is none
    name = config.vae or config.id
    try:
        if config.vae and "vae" not in without:
            given["vae"] = load_part(AutoencoderKL, config.vae, **options)
        name, folder = config.id, index.folder
        for part, (library, kind) in index.used.items():
            if folder and part not in given and library in LIBRARIES and variant_of(folder / part):
                given[part] = load_part(getattr(LIBRARIES[library], kind), name, part, **options)
        # not DiffusionPipeline's: the class itself knows which parts may be None
        pipeline: Any = index.pipeline_class.from_pretrained(name, **options, **given)
    except UNREADABLE as error:
        raise not_loaded(name, error) from None
    pipeline.family = index.family
    _check(pipeline, config)
    if getattr(pipeline, "vae", None) and config.height * config.width > VAE_PIXELS:
        pipeline.vae.enable_slicing()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if lora is not None:
        fuse(pipeline, Path(lora), scale, own_lora)
    return pipeline


def load_encoders(config: Model) -> Any:
    """The pipeline without its network, where its text encoders do not ask for it: VAE and text encoders are left."""
    index = Index(config)
    return load_pipeline(config, without=("network",) if index.family.encodes_alone(index.parts) else ())


def load_part(kind: Any, name: str, part: str | None = None, **options: Any) -> Any:
    """A part of a model, from its folder or the hub's; the fp16 variant where that is all there is."""
    folder = folder_of(name)
    if folder and (variant := variant_of(folder / (part or ""))):
        options["variant"] = variant
    return kind.from_pretrained(name, subfolder=part, **options)


def _check(pipeline: Any, config: Model) -> None:
    """SafetyDPOError where parts do not belong together: this is said before the first prompt that stumbles on it."""
    family, name = pipeline.family, config.id
    network, vae = family.network(pipeline), getattr(pipeline, "vae", None)
    if network:
        family.check(network.config, config)
    if network and vae and (config.height % (unit := unit_of(pipeline)) or config.width % unit):
        raise SafetyDPOError(
            f"model.height and model.width must be multiples of {unit} with {name}, not {config.height} and "
            f"{config.width}."
        )
    if network and vae and family.latent_channels(network.config) != vae.config.get("latent_channels"):
        raise SafetyDPOError(
            f"Model {name}: its {family.kind.component} takes {family.latent_channels(network.config)} channels, its "
            f"VAE makes {vae.config.get('latent_channels')}: take a text-to-image model."
        )
    for number in ("", "_2", "_3"):
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
        longest = getattr(encoder.config, "max_position_embeddings", tokenizer.model_max_length)  # T5 has no such limit
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)


def load_network(config: Model, dtype: torch.dtype = torch.float32) -> Parts:
    """The network, on the CPU, with the configs that noising and latents need."""
    family = Index(config).family
    try:
        # not memory-mapped: training copies some weights (channels_last), and would keep the whole file beside them
        options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "disable_mmap": True}
        kind = getattr(diffusers, family.kind.network)
        network = load_part(kind, config.id, family.kind.component, **options)
        scheduler: Any = DDPMScheduler.load_config(config.id, subfolder="scheduler")
        vae: Any = AutoencoderKL.load_config(config.vae or config.id, subfolder=None if config.vae else "vae")
    except UNREADABLE as error:
        raise not_loaded(config.id, error) from None
    family.check(network.config, config)
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    size = config.height // factor, config.width // factor
    return Parts(family, network, scheduler, vae.get("scaling_factor", 0.18215), vae.get("shift_factor") or 0.0, size)


def unit_of(pipeline: Any) -> int:
    """Pixels that the sides of a pipeline's images are multiples of."""
    family = pipeline.family
    return pipeline.vae_scale_factor * family.patch(family.network(pipeline).config)


def native_size(pipeline: Any) -> tuple[int, int]:
    """Height and width in pixels that the model was made for; SafetyDPOError where its configs do not say."""
    if (size := pipeline.family.native_size(pipeline)) is None:
        raise SafetyDPOError(
            "The model does not say its size (sample_size in unet/config.json and vae/config.json): give one."
        )
    return size


def unwrapped(pipeline: Any) -> Any:
    """The diffusers pipeline itself: SLD, negative prompts and others' own settings wrap theirs."""
    return getattr(pipeline, "pipeline", pipeline)


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
    inner = unwrapped(pipeline)
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
