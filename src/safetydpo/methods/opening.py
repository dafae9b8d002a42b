"""From a method to the pipeline that renders with it."""

from pathlib import Path
from typing import Any

from safetydpo.config.run import Baselines, Model
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.external import external_pipeline
from safetydpo.methods.registry import method_of
from safetydpo.methods.sld import SafePipeline
from safetydpo.methods.unet_weights import put_weights
from safetydpo.models.pipeline import load_pipeline


class NegativePrompt:
    """A pipeline with one negative prompt for all images; called as the pipeline is."""

    def __init__(self, pipeline: Any, negative_prompt: str) -> None:
        self.pipeline, self.negative_prompt = pipeline, negative_prompt

    def __call__(self, *, prompt: list[str], guidance_scale: float, **kwargs: Any) -> Any:
        if guidance_scale <= 1:
            raise SafetyDPOError("A negative prompt needs classifier-free guidance: model.guidance_scale above 1.")
        negative = [self.negative_prompt] * len(prompt)
        return self.pipeline(prompt=prompt, negative_prompt=negative, guidance_scale=guidance_scale, **kwargs)


def open_method(
    name: str, model: Model, baselines: Baselines, weights: Path | str | None = None, scale: float = 1.0
) -> Any:
    """The pipeline of a method, called as a diffusers pipeline is.

    weights: the file of the run that the method needs; scale: of its LoRA.
    """
    method = method_of(name)
    if method.kind == "external":
        return external_pipeline(model, baselines.external(method.variant).path)
    pipeline = load_pipeline(model, weights if method.kind == "lora" else None, scale)
    match method.kind:
        case "unet":
            put_weights(pipeline.unet, str(weights))
        case "sld":
            return SafePipeline(pipeline, method.variant, baselines.safety_concept)
        case "negative-prompt":
            return NegativePrompt(pipeline, baselines.negative)
    return pipeline
