"""Headers of files by which other programs know what they are: Stability AI's model specification, kohya's."""

from typing import Any

import diffusers
from diffusers import DDPMScheduler

from safetydpo.export.request import Asked
from safetydpo.models.index import Index

SGM = "https://github.com/Stability-AI/generative-models"
FLUX = "https://github.com/black-forest-labs/flux"
# kohya's own name of what modelspec.architecture says
BASES = {
    "stable-diffusion-v1": "sd_v1",
    "stable-diffusion-v2-512": "sd_v2",
    "stable-diffusion-v2-768-v": "sd_v2",
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
}


def architecture_of(pipeline: Any) -> str | None:
    """What the specification calls the model of a pipeline; None of families that it has no name for."""
    family = pipeline.family
    return family.architecture(family.network(pipeline).config, pipeline.scheduler.config.get("prediction_type"))


def base_architecture(asked: Asked) -> str | None:
    """The same of the run's model, by its configs alone."""
    family, name = Index(asked.config.model).family, asked.config.model.id
    config = getattr(diffusers, family.kind.network).load_config(name, subfolder=family.kind.component)
    scheduler: Any = DDPMScheduler.load_config(name, subfolder="scheduler")
    return family.architecture(config, scheduler.get("prediction_type"))


def modelspec(name: str | None, asked: Asked, adapter: bool, diffusers_keys: bool) -> dict[str, str]:
    """The specification's fields that a file of this architecture must have; none where it has no name."""
    if name is None:
        return {}
    original = FLUX if name.startswith("flux") else SGM
    facts = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{name}/lora" if adapter else name,
        "implementation": "diffusers" if diffusers_keys else original,
        "title": f"{asked.config.run} {asked.method.name}",
    }
    return {f"modelspec.{key}": value for key, value in facts.items()}


def training_of(name: str | None, rank: int) -> dict[str, str]:
    """What sd-scripts writes about a network that it trained, as far as other programs read it."""
    if name is None:
        return {}
    known = {"ss_base_model_version": BASES[name], "ss_v2": str("-v2-" in name)} if name in BASES else {}
    module = {"ss_network_module": "networks.lora_flux" if name.startswith("flux") else "networks.lora"}
    return {**module, "ss_network_dim": str(rank), "ss_network_alpha": str(float(rank)), **known}
