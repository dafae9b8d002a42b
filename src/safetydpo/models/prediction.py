"""What a network is trained to predict: the arithmetic between clean latents, noise and the target.

One small class a prediction type. It decides how a timestep is drawn, how latents are noised at it and what the model
should answer. Latents and noise are (b, c, h, w), timesteps (b,), from 0 to num_train_timesteps.
"""

import math
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler

from safetydpo.errors import SafetyDPOError

UNIFORM, LOGIT_NORMAL = "uniform", "logit-normal"


class Prediction(Protocol):
    """Noising and target of one prediction type; `sampling` is how timesteps are drawn."""

    sampling: str

    def draw_timestep(self, generator: torch.Generator) -> torch.Tensor:
        """A timestep, ()."""
        ...

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """noisy_latents, (b, c, h, w)."""
        ...

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the model should predict, (b, c, h, w)."""
        ...

    def noise_unit(self, timestep: float) -> float:
        """What a difference of two predictions at a timestep is multiplied with to be one of noises."""
        ...


def _share(sampling: str, generator: torch.Generator) -> torch.Tensor:
    """A draw in (0, 1), (): uniform, or the sigmoid of a standard normal, which dwells in the middle."""
    if sampling == LOGIT_NORMAL:
        return torch.randn((), generator=generator).sigmoid()
    return torch.rand((), generator=generator)


class Epsilon:
    """DDPM noising, the noise as target: SD 1.x, SDXL.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (Ho et al. 2020, eq. 4).
    """

    def __init__(self, config: Any, sampling: str | None = None, tokens: int = 0) -> None:
        # samplers differ in what they can noise; the noise schedule is the same, so training takes the plain one
        self.scheduler: Any = DDPMScheduler.from_config(config)
        self.steps: int = self.scheduler.config.num_train_timesteps
        self.sampling = sampling or UNIFORM

    def draw_timestep(self, generator: torch.Generator) -> torch.Tensor:
        if self.sampling == UNIFORM:
            return torch.randint(self.steps, (), generator=generator)
        return (_share(self.sampling, generator) * self.steps).long().clamp(max=self.steps - 1)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        del latents, timesteps
        return noise

    def noise_unit(self, timestep: float) -> float:
        del timestep
        return 1.0


class Velocity(Epsilon):
    """The same noising, the velocity as target: SD 2.1-768.

    v = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0 (Salimans and Ho 2022, section 4).
    """

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.scheduler.get_velocity(latents, noise, timesteps)

    def noise_unit(self, timestep: float) -> float:
        return float(self.scheduler.alphas_cumprod[int(timestep)]) ** 0.5  # noise = alpha v + sigma x


class Flow:
    """Flow matching: x_s = (1 - s) x_0 + s noise, target noise - x_0, timestep 1000 s (Esser et al. 2024, eq. 13).

    A draw u in (0, 1) is shifted to noise as the model's scheduler shifts its steps: s = k u / (1 + (k - 1) u), with
    k its `shift`; or, where it shifts by resolution, k = exp(mu), mu linear in the image's tokens.
    """

    def __init__(self, config: Any, sampling: str | None = None, tokens: int = 0) -> None:
        self.steps: int = config.get("num_train_timesteps", 1000)
        self.sampling, self.shift = sampling or LOGIT_NORMAL, shift_of(config, tokens)

    def draw_timestep(self, generator: torch.Generator) -> torch.Tensor:
        share = _share(self.sampling, generator)
        return self.steps * self.shift * share / (1 + (self.shift - 1) * share)

    def _sigmas(self, timesteps: torch.Tensor) -> torch.Tensor:
        return (timesteps.float() / self.steps)[:, None, None, None]

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        sigmas = self._sigmas(timesteps)
        return (1 - sigmas) * latents + sigmas * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        del timesteps
        return noise - latents

    def noise_unit(self, timestep: float) -> float:
        return 1 - timestep / self.steps  # noise = x_s + (1 - s) v


def shift_of(config: Any, tokens: int) -> float:
    """k of `Flow` for images of so many tokens, by a FlowMatchEulerDiscreteScheduler's config."""
    if not config.get("use_dynamic_shifting", False):
        return float(config.get("shift", 1.0))
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = least + (most - least) * (tokens - low) / (high - low)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


PREDICTIONS: dict[str, Any] = {"epsilon": Epsilon, "v_prediction": Velocity}


def prediction_of(config: Any, model: str, sampling: str | None = None, tokens: int = 0) -> Prediction:
    """The prediction type that a model's scheduler config names; SafetyDPOError where training does not know it.

    sampling: how timesteps are drawn, `uniform` or `logit-normal`; None: as is usual for the type. tokens: of an image,
    by which some schedules are shifted.
    """
    name = config.get("_class_name", "its scheduler")
    if "FlowMatch" in name:
        return Flow(config, sampling, tokens)
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS or "beta_schedule" not in config:
        raise SafetyDPOError(
            f"Model {model} predicts {kind} ({name}): training knows {', '.join(PREDICTIONS)} and flow matching."
        )
    return PREDICTIONS[kind](config, sampling, tokens)
