"""One negative prompt for all images."""

from typing import Any

from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import Opening
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


def open_pipeline(opening: Opening) -> NegativePrompt:
    """The target's pipeline with the config's negative prompt."""
    return NegativePrompt(load_pipeline(opening.model), opening.baselines.negative)
