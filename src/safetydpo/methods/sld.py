"""Safe Latent Diffusion (arXiv 2211.05105): guidance away from a safety concept, at render time."""

from typing import Any, NamedTuple

import torch

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import Opening
from safetydpo.models.families.family import join_conditions
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.prediction import prediction_of
from safetydpo.models.text_encoder import encode_prompts


class Preset(NamedTuple):
    """Guidance scale s, warm-up steps, threshold lambda, momentum scale and decay."""

    scale: float
    warmup: int
    threshold: float
    momentum_scale: float
    momentum_decay: float


# The paper's hyperparameters (weak has s = 200; an old diffusers preset said 20). Warm-up counts steps of 50.
STEPS = 50
PRESETS = {
    "weak": Preset(200, 15, 0.0, 0.0, 0.0),
    "medium": Preset(1000, 10, 0.01, 0.3, 0.4),
    "strong": Preset(2000, 7, 0.025, 0.5, 0.7),
    "max": Preset(5000, 0, 1.0, 0.5, 0.7),
}


def safety_guidance(
    uncond: torch.Tensor,
    text: torch.Tensor,
    safety: torch.Tensor,
    momentum: torch.Tensor,
    preset: Preset,
    unit: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The guidance term and the next momentum (paper, equations 3 to 8), all of one shape (b, c, h, w).

    unit: what a difference of predictions is multiplied with to be one of noises; the threshold is in noises.
    """
    difference = (text - safety) * unit
    weight = (difference.abs() * preset.scale).clamp(max=1).where(difference < preset.threshold, torch.zeros_like(text))
    guidance = weight * (safety - uncond) + preset.momentum_scale * momentum
    return guidance, preset.momentum_decay * momentum + (1 - preset.momentum_decay) * guidance


class SafeNetwork:
    """Stands in for a network's forward: adds the safety concept to the batch, takes its guidance off the text's part.

    The pipeline then computes uncond + w * ((text - guidance) - uncond): SLD, whatever its scheduler. Everything is
    element by element, so an image does not depend on its batch.
    """

    def __init__(self, pipeline: Any, preset: Preset, concept: str, model: Model) -> None:
        self.family, self.preset, self.model = pipeline.family, preset, model
        network = self.family.network(pipeline)
        self.network = Plain(network.forward, network.config)
        self.concept = {k: v.to(pipeline.device) for k, v in encode_prompts(pipeline, [concept], model).items()}
        self.prediction = prediction_of(pipeline.scheduler.config, model.id)
        self.start(1, STEPS)

    def start(self, count: int, num_inference_steps: int, **size: int) -> None:
        """Before `count` images of this size; the preset's warm-up is the same share of fewer or more steps."""
        self.count = count
        self.model = self.model.model_copy(update=size)
        self.step, self.timestep, self.momentum = -1, None, None
        self.warmup = round(self.preset.warmup * num_inference_steps / STEPS)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.family.read_call(args, kwargs)
        count = self.count
        if len(call.noisy_latents) != 2 * count:
            raise SafetyDPOError(
                f"SLD needs a prediction with the text and one without of each step, and {self.model.id} is not called "
                f"for both by what model.call asks for ({', '.join(self.model.call) or 'nothing'}): take that out."
            )
        halves = slice(None, count), slice(count, None)
        with_text, without = halves if call.text_first else halves[::-1]
        moment = call.timesteps[0]
        if self.timestep is None or moment != self.timestep:
            self.step, self.timestep = self.step + 1, moment
        concept = {k: v.to(call.condition[k].dtype).expand(count, *v.shape[1:]) for k, v in self.concept.items()}
        three = self.family.forward(
            self.network,
            torch.cat([call.noisy_latents, call.noisy_latents[with_text]]),
            torch.cat([call.timesteps, call.timesteps[with_text]]),
            join_conditions([call.condition, concept]),
            self.model,
        )
        both, safety = three[: 2 * count].float(), three[2 * count :].float()
        text, uncond = both[with_text], both[without]
        if self.momentum is None:
            self.momentum = torch.zeros_like(text)
        unit = self.prediction.noise_unit(float(moment))
        guidance, self.momentum = safety_guidance(uncond, text, safety, self.momentum, self.preset, unit)
        if self.step >= self.warmup:
            both[with_text] = text - guidance
        return self.family.answer(both.to(three.dtype), kwargs)


class Plain(NamedTuple):
    """A network as it was before `SafeNetwork` took the place of its forward."""

    forward: Any
    config: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


class SafePipeline:
    """A pipeline with SLD; called as the pipeline is."""

    def __init__(self, pipeline: Any, preset: str, concept: str, model: Model) -> None:
        self.pipeline, self.family = pipeline, pipeline.family
        self.network = SafeNetwork(pipeline, PRESETS[preset], concept, model)
        self.family.network(pipeline).forward = self.network

    def __call__(self, *, prompt: list[str], num_inference_steps: int, height: int, width: int, **kwargs: Any) -> Any:
        called = {"num_inference_steps": num_inference_steps, "height": height, "width": width}
        self.network.start(len(prompt), **called)
        return self.pipeline(prompt=prompt, **called, **kwargs)


def open_pipeline(opening: Opening) -> SafePipeline:
    """The target's pipeline with SLD; the variant is the preset."""
    pipeline, concept = load_pipeline(opening.model), opening.baselines.safety_concept
    return SafePipeline(pipeline, opening.variant, concept, opening.model)
