"""The model in training: noising of cached latents, predictions of the adapted and of the frozen UNet."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

from safetydpo.config.model import Model
from safetydpo.config.training import Train
from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import Features
from safetydpo.models.lora import Factors
from safetydpo.models.pipeline import load_unet
from safetydpo.models.prediction import prediction_of
from safetydpo.models.targets import refuse_targets
from safetydpo.running.devices import device_of
from safetydpo.training.lean_layers import use_lean_layers

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """A UNet, its prediction type, and the arithmetic between latents and predictions; `add_adapter` gives it a LoRA.

    precision (`no`, `bf16`, `fp16`) is that of the frozen weights; adapters are fp32.
    """

    def __init__(self, model: Model, precision: str = "no", device: torch.device | None = None) -> None:
        self.model_id, self.size = model.id, (model.height, model.width)
        self.device = device or device_of(model.device)
        unet, scheduler_config, self.scaling, self.shift = load_unet(model, DTYPES[precision])
        self.prediction = prediction_of(scheduler_config, model.id)
        self.unet: Any = unet.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.unet.requires_grad_(False)
        self.policy: Any = self.unet  # the trainer puts accelerate's wrapping here
        self.parameters: list[torch.nn.Parameter] = []
        self._layers: list[Any] = []

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
        refuse_targets(self.unet, config.target_modules, self.model_id)
        self.unet.add_adapter(lora)
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        cast_training_params(self.unet, torch.float32)
        self.unet.train()
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]
        self._layers = [m for m in self.unet.modules() if isinstance(m, BaseTunerLayer)]
        use_lean_layers(self.unet)

    def check(self, features: Features) -> None:
        """SafetyDPOError where features cannot be those of this UNet: latent channels or width of text embeddings."""
        wants = self.unet.config.in_channels, self.unet.config.cross_attention_dim
        has = features.latent_shape[0], features.shards[0]["encoder_hidden_states"].shape[-1]
        if has != wants:
            raise SafetyDPOError(
                f"Features have {has[0]} latent channels and text embeddings of width {has[1]}, the UNet of "
                f"{self.model_id} takes {wants[0]} and {wants[1]}: they are of another model; delete them and rerun."
            )

    def noised(
        self,
        features: Features,
        roles: Sequence[str],
        index: Sequence[int],
        keys: Sequence[int],
        captions: Sequence[str] | None = None,
        flips: Sequence[bool] | None = None,
        timestep: int | None = None,
    ) -> Noised:
        """Noise the samples `index`; key i seeds sample i's timestep, noise (shared by the roles) and posterior draws.

        captions[i]: the role whose prompt conditions sample i, "" for the empty prompt (default: the last role's);
        flips[i]: mirror all images of the sample. `timestep` fixes the timestep for all.
        """
        captions = captions or [roles[-1]] * len(index)
        flips = flips or [False] * len(index)
        draws = [torch.Generator().manual_seed(key) for key in keys]
        drawn = torch.stack([self.prediction.draw_timestep(g) for g in draws])
        timesteps = (drawn if timestep is None else torch.full_like(drawn, timestep)).to(self.device)
        noise = torch.stack([torch.randn(features.latent_shape, generator=g) for g in draws]).to(self.device)
        condition = {k: v.to(self.device) for k, v in features.condition(index, captions).items()}
        parts = []
        for role in roles:
            samples = []
            for sample, flip, g in zip(index, flips, draws, strict=True):
                mean, std = features.posterior(role, sample, flip)
                samples.append(mean + std * torch.randn(mean.shape, generator=g))
            latents = ((torch.stack(samples) - self.shift) * self.scaling).to(self.device)
            noisy_latents = self.prediction.add_noise(latents, noise, timesteps)
            target = self.prediction.target(latents, noise, timesteps)
            parts.append(Noised(noisy_latents, timesteps, target, condition))
        return Noised.join(parts)

    def _forward(self, unet: Any, batch: Noised) -> torch.Tensor:
        dtype = self.unet.conv_in.weight.dtype
        condition = {k: v.to(dtype) for k, v in batch.condition.items()}
        extra = None
        if "text_embeds" in condition:  # SDXL: original size, crop at (0, 0), target size
            ids = torch.tensor([*self.size, 0, 0, *self.size], device=self.device, dtype=dtype)
            extra = {"text_embeds": condition["text_embeds"], "time_ids": ids.expand(len(batch.timesteps), -1)}
        return unet(
            batch.noisy_latents.to(dtype).contiguous(memory_format=torch.channels_last),
            batch.timesteps,
            encoder_hidden_states=condition["encoder_hidden_states"],
            added_cond_kwargs=extra,
        ).sample

    def predict(self, batch: Noised) -> torch.Tensor:
        """The adapted UNet's prediction, (b, c, h, w)."""
        return self._forward(self.policy, batch)

    @torch.no_grad()
    def reference(self, batch: Noised) -> torch.Tensor:
        """The frozen model's prediction: the same UNet without its adapters."""
        with self.without_adapters():
            return self._forward(self.unet, batch)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Adapters off inside the block, on again after it, whatever happens there.

        Sets the layers' flag alone: PEFT's own switch also walks over requires_grad of every weight, which on a small
        UNet costs a seventh of the forward pass.
        """
        for layer in self._layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self._layers:
                layer._disable_adapters = False

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """The LoRA's weights by PEFT's names, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in get_peft_model_state_dict(self.unet).items()}

    def load_adapter_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put weights of `adapter_state` back."""
        set_peft_model_state_dict(self.unet, state)

    def factors(self) -> Factors:
        """The LoRA as plain factors, alpha / rank folded into lora_B."""
        state = {k: v.float() for k, v in self.adapter_state().items()}
        modules = sorted({k.rsplit(".lora_", 1)[0] for k in state})
        scale = self.alpha / self.rank
        return {m: (state[f"{m}.lora_A.weight"], state[f"{m}.lora_B.weight"] * scale) for m in modules}
