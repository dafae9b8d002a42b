"""Safe Latent Diffusion (arXiv 2211.05105): guidance away from a safety concept, at render time."""

from typing import Any, NamedTuple

import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import Opening
from safetydpo.models.pipeline import load_pipeline


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


class SafeUNet:
    """Stands in for a UNet's forward: adds the safety concept to the batch, takes its guidance off the text's part.

    The pipeline then computes uncond + w * ((text - guidance) - uncond): SLD, whatever its scheduler. Everything is
    element by element, so an image does not depend on its batch.
    """

    def __init__(self, pipeline: Any, preset: Preset, concept: str) -> None:
        self.forward, self.preset = pipeline.unet.forward, preset
        encoded = pipeline.encode_prompt(
            [concept], device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        self.embeds, self.pooled = encoded[0], encoded[2] if len(encoded) == 4 else None
        self.scheduler = pipeline.scheduler
        self.start()

    def start(self, num_inference_steps: int = STEPS) -> None:
        """Before each batch of images; the preset's warm-up is the same share of fewer or more steps."""
        self.step, self.timestep, self.momentum = -1, None, None
        self.warmup = round(self.preset.warmup * num_inference_steps / STEPS)

    def _unit(self, timestep: torch.Tensor) -> float:
        if self.scheduler.config.prediction_type != "v_prediction":
            return 1.0
        return float(self.scheduler.alphas_cumprod[int(timestep)]) ** 0.5  # noise = alpha v + sigma x

    def __call__(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        count = len(sample) // 2
        moment = torch.as_tensor(timestep).flatten()[0]
        if self.timestep is None or moment != self.timestep:
            self.step, self.timestep = self.step + 1, moment
        embeds = self.embeds.to(encoder_hidden_states).expand(count, -1, -1)
        added = kwargs.pop("added_cond_kwargs", None)
        if added and self.pooled is not None:
            pooled = self.pooled.to(added["text_embeds"]).expand(count, -1)
            added = {
                "text_embeds": torch.cat([added["text_embeds"], pooled]),
                "time_ids": torch.cat([added["time_ids"], added["time_ids"][:count]]),
            }
        returns_dict = kwargs.pop("return_dict", True)
        three = self.forward(
            torch.cat([sample, sample[count:]]),
            timestep,
            encoder_hidden_states=torch.cat([encoder_hidden_states, embeds]),
            added_cond_kwargs=added,
            return_dict=False,
            **kwargs,
        )[0]
        uncond, text, safety = three.float().chunk(3)
        if self.momentum is None:
            self.momentum = torch.zeros_like(text)
        guidance, self.momentum = safety_guidance(uncond, text, safety, self.momentum, self.preset, self._unit(moment))
        if self.step >= self.warmup:
            text = text - guidance
        prediction = torch.cat([uncond, text]).to(three.dtype)
        return type("Output", (), {"sample": prediction})() if returns_dict else (prediction,)


class SafePipeline:
    """A pipeline with SLD; called as the pipeline is."""

    def __init__(self, pipeline: Any, preset: str, concept: str) -> None:
        self.pipeline = pipeline
        self.unet = SafeUNet(pipeline, PRESETS[preset], concept)
        pipeline.unet.forward = self.unet

    def __call__(self, *, guidance_scale: float, num_inference_steps: int, **kwargs: Any) -> Any:
        if guidance_scale <= 1:
            raise SafetyDPOError("SLD changes classifier-free guidance: model.guidance_scale must be above 1.")
        self.unet.start(num_inference_steps)
        return self.pipeline(guidance_scale=guidance_scale, num_inference_steps=num_inference_steps, **kwargs)


def open_pipeline(opening: Opening) -> SafePipeline:
    """The target's pipeline with SLD; the variant is the preset."""
    return SafePipeline(load_pipeline(opening.model), opening.variant, opening.baselines.safety_concept)
