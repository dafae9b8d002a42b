"""The model in training: noising of cached latents, predictions of the adapted and of the frozen UNet."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from peft import LoraConfig, get_peft_model_state_dict

from safetydpo.config import Model, Train
from safetydpo.devices import device_of
from safetydpo.errors import SafetyDPOError
from safetydpo.feature_sets import Features
from safetydpo.lora import Factors


@dataclass
class Noised:
    """UNet inputs of a batch, roles stacked along the first dimension, and what the UNet should predict."""

    noisy_latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    condition: dict[str, torch.Tensor]

    @staticmethod
    def join(parts: "list[Noised]") -> "Noised":
        """One batch of several."""
        condition = {k: torch.cat([p.condition[k] for p in parts]) for k in parts[0].condition}
        return Noised(
            torch.cat([p.noisy_latents for p in parts]),
            torch.cat([p.timesteps for p in parts]),
            torch.cat([p.target for p in parts]),
            condition,
        )


class Denoiser:
    """A UNet, its noise schedule, and the arithmetic between latents and predictions; `add_adapter` gives it a LoRA."""

    def __init__(self, pipeline: Any, model: Model) -> None:
        self.device = device_of(model.device)
        # samplers differ in what they can noise; the noise schedule is the same, so training takes the plain one
        self.scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prediction_type = self.scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise SafetyDPOError(
                f"Model {model.id} predicts {self.prediction_type}: training knows epsilon and v_prediction."
            )
        self.scaling, self.shift = pipeline.vae.config.scaling_factor, pipeline.vae.config.shift_factor or 0.0
        self.size = (model.height, model.width)
        self.unet = pipeline.unet.to(self.device, torch.float32, memory_format=torch.channels_last)
        self.unet.requires_grad_(False)
        self.parameters: list[torch.nn.Parameter] = []

    def add_adapter(self, config: Train, seed: int) -> None:
        """Put a fresh LoRA on the target modules (gaussian A, zero B) and make it the only thing that trains."""
        torch.manual_seed(seed)
        self.rank, self.alpha = config.rank, config.alpha or config.rank
        lora = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            init_lora_weights="gaussian",
            target_modules=config.target_modules,
        )
        try:
            self.unet.add_adapter(lora)
        except ValueError as error:
            names = ", ".join(config.target_modules)
            raise SafetyDPOError(f"train.target_modules ({names}) do not fit the UNet: {error}") from None
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.unet.train()
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]

    def noised(
        self,
        features: Features,
        roles: tuple[str, ...],
        index: Sequence[int],
        keys: Sequence[int],
        dropped: torch.Tensor | None = None,
        timestep: int | None = None,
    ) -> Noised:
        """Noise the samples `index`; key i seeds sample i's timestep, noise (shared by the roles) and posterior draws.

        `timestep` fixes it for all; captions are empty where `dropped` (b,) is true.
        """
        rows = torch.as_tensor(index)
        shape = features.tensors[f"{roles[0]}_mean"].shape[1:]
        draws = [torch.Generator().manual_seed(key) for key in keys]
        count = self.scheduler.config.num_train_timesteps
        timesteps = torch.stack([torch.randint(count, (), generator=g) for g in draws]).to(self.device)
        if timestep is not None:
            timesteps = torch.full_like(timesteps, timestep)
        noise = torch.stack([torch.randn(shape, generator=g) for g in draws]).to(self.device)
        condition = {k: v.to(self.device) for k, v in features.condition(rows, dropped).items()}
        parts = []
        for role in roles:
            mean, std = features.posterior(role, rows)
            sample = mean + std * torch.stack([torch.randn(shape, generator=g) for g in draws])
            latents = ((sample - self.shift) * self.scaling).to(self.device)
            noisy_latents = self.scheduler.add_noise(latents, noise, timesteps)
            velocity = self.prediction_type == "v_prediction"
            target = self.scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
            parts.append(Noised(noisy_latents, timesteps, target, condition))
        return Noised.join(parts)

    def predict(self, batch: Noised) -> torch.Tensor:
        """The adapted UNet's prediction, (b, c, h, w)."""
        extra = {}
        if "text_embeds" in batch.condition:
            height, width = self.size
            ids = torch.tensor([height, width, 0, 0, height, width], device=self.device, dtype=torch.float32)
            extra = {"text_embeds": batch.condition["text_embeds"], "time_ids": ids.expand(len(batch.timesteps), -1)}
        return self.unet(
            batch.noisy_latents.contiguous(memory_format=torch.channels_last),
            batch.timesteps,
            encoder_hidden_states=batch.condition["encoder_hidden_states"],
            added_cond_kwargs=extra or None,
        ).sample

    @torch.no_grad()
    def reference(self, batch: Noised) -> torch.Tensor:
        """The frozen model's prediction: the same UNet without its adapters."""
        with self.without_adapters():
            return self.predict(batch)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Adapters off inside the block, on again after it, whatever happens there."""
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()

    def factors(self) -> Factors:
        """The LoRA as plain factors, alpha / rank folded into lora_B."""
        state = {k: v.detach().float().cpu() for k, v in get_peft_model_state_dict(self.unet).items()}
        modules = sorted({k.rsplit(".lora_", 1)[0] for k in state})
        scale = self.alpha / self.rank
        return {m: (state[f"{m}.lora_A.weight"], state[f"{m}.lora_B.weight"] * scale) for m in modules}
