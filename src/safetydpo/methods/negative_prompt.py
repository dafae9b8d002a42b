"""One negative prompt for all images."""

from typing import Any

from safetydpo.methods.opening import Opening
from safetydpo.models.pipeline import load_pipeline


class NegativePrompt:
    """A pipeline with one negative prompt for all images; called as the pipeline is."""

    def __init__(self, pipeline: Any, negative_prompt: str) -> None:
        self.pipeline, self.family, self.negative_prompt = pipeline, pipeline.family, negative_prompt

    def __call__(self, *, prompt: list[str], **kwargs: Any) -> Any:
        return self.pipeline(prompt=prompt, negative_prompt=[self.negative_prompt] * len(prompt), **kwargs)


def open_pipeline(opening: Opening) -> NegativePrompt:
    """The target's pipeline with the config's negative prompt."""
    return NegativePrompt(load_pipeline(opening.model), opening.baselines.negative)
