"""What a UNet is trained to predict: the arithmetic between clean latents, noise and the target.

One small class a family. A prediction type decides how a timestep is drawn, how latents are noised at it and what the
model should answer; a flow-matching family is one more class and one more entry of `PREDICTIONS`.
"""

from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler

from safetydpo.errors import SafetyDPOError


class Prediction(Protocol):
    """Noising and target of one prediction type; latents and noise are (b, c, h, w), timesteps (b,)."""

    def draw_timestep(self, generator: torch.Generator) -> torch.Tensor:
        """A uniformly drawn timestep, ()."""
        ...

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """noisy_latents, (b, c, h, w)."""
        ...

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the model should predict, (b, c, h, w)."""
        ...


class Epsilon:
    """DDPM noising, the noise as target: SD 1.x, SDXL.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (Ho et al. 2020, eq. 4).
    """

    def __init__(self, config: Any) -> None:
        # samplers differ in what they can noise; the noise schedule is the same, so training takes the plain one
        self.scheduler: Any = DDPMScheduler.from_config(config)

    def draw_timestep(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(self.scheduler.config.num_train_timesteps, (), generator=generator)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        del latents, timesteps
        return noise


class Velocity(Epsilon):
    """The same noising, the velocity as target: SD 2.1-768.

    v = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0 (Salimans and Ho 2022, section 4).
    """

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.scheduler.get_velocity(latents, noise, timesteps)


PREDICTIONS: dict[str, Any] = {"epsilon": Epsilon, "v_prediction": Velocity}


def prediction_of(config: Any, model: str) -> Prediction:
    """The prediction type that a model's scheduler config names; SafetyDPOError where training does not know it."""
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS or "beta_schedule" not in config:  # flow matching has no betas
        scheduler = config.get("_class_name", "its scheduler")
        raise SafetyDPOError(
            f"Model {model} predicts {kind} ({scheduler}): training knows {' and '.join(PREDICTIONS)}."
        )
    return PREDICTIONS[kind](config)
