"""What our training step is compared with: nothing is kept between steps but weights.

`Official` is the published step for Stable Diffusion, re-created as its launchers run it: JPEGs are decoded in workers,
4 of them, for SDXL 16; and on a GPU, SDXL's VAE, text encoders and reference UNet lie on the CPU between their uses.
For transformers nothing was published; `Script` is what one would write after diffusers' DreamBooth LoRA examples: the
same step with one network, which with its adapters disabled is the reference too, and a forward pass for each image.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from safetydpo.config.model import Model
from safetydpo.config.training import Train
from safetydpo.models.families.family import Condition
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.prediction import prediction_of
from safetydpo.training.denoiser import DTYPES, Noised
from safetydpo.training.losses import dpo_loss, squared_error
from safetydpo.training.samples import PAIR_ROLES

WORKERS, WORKERS_XL = 4, 16
ENDLESS = 10**6


class Jpegs(Dataset):
    """Pairs of pixels (2, 3, h, w) in -1 to 1, and their numbers, over and over."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pairs = folder, len(list(folder.glob("*_safe.jpg")))

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        number = place % self.pairs
        images = [np.asarray(Image.open(self.folder / f"p{number}_{role}.jpg")) for role in PAIR_ROLES]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1, number


class Official:
    """Encode decoded images with the VAE, encode the prompt, and ask a second UNet for the reference.

    The pipeline's own calls are made by its family, which knows their arguments.
    """

    def __init__(self, model: Model, config: Train, folder: Path) -> None:
        self.model, self.config, self.folder, self.turn = model, config, folder, 0
        self.pipeline = load_pipeline(model)
        self.family, self.device = self.pipeline.family, self.pipeline.device
        self.reference: Any = self.family.network(self.pipeline).requires_grad_(False)
        self.policy = self._policy()
        targets = config.target_modules or list(self.family.kind.targets)
        self.policy.add_adapter(
            LoraConfig(r=config.rank, lora_alpha=config.rank, init_lora_weights="gaussian", target_modules=targets)
        )
        cast_training_params(self.policy, torch.float32)
        self.policy.train()
        if config.gradient_checkpointing:
            self.policy.enable_gradient_checkpointing()
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate)
        self.prediction = prediction_of(self.pipeline.scheduler.config, model.id)
        self.large = isinstance(self.pipeline, StableDiffusionXLPipeline)
        self.encoders: Any = self.pipeline
        if self.large and self.device.type == "cuda":
            self.encoders = SimpleNamespace(device=self.device, encode_prompt=self.pipeline.encode_prompt)
            for part in (self.pipeline.vae, self.pipeline.text_encoder, self.pipeline.text_encoder_2, self.reference):
                cpu_offload(part, self.device)

    def _policy(self) -> Any:
        kind, dtype = UNet2DConditionModel, DTYPES[self.config.mixed_precision]
        return kind.from_pretrained(self.model.id, subfolder="unet", dtype=dtype).to(self.device).requires_grad_(False)

    @cached_property
    def _batches(self) -> Iterator[Any]:
        workers = WORKERS_XL if self.large else WORKERS
        return iter(DataLoader(Jpegs(self.folder), self.config.batch_size, num_workers=workers))

    @torch.no_grad()
    def _inputs(self) -> Noised:
        b = self.config.batch_size
        self.turn += 1
        images, numbers = next(self._batches)
        pixels = images.transpose(0, 1).flatten(0, 1).to(self.device)
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(vae.dtype)).latent_dist.sample().float()
        latents = (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
        text = self.family.encode(self.encoders, [f"a red circle and a brulo {i}" for i in numbers], self.model)
        text = {name: values.repeat(2, *[1] * (values.dim() - 1)) for name, values in text.items()}
        noise = torch.randn_like(latents[:b]).repeat(2, 1, 1, 1)
        generator = torch.Generator().manual_seed(self.turn)
        timesteps = torch.stack([self.prediction.draw_timestep(generator) for _ in range(b)]).to(self.device).repeat(2)
        noisy_latents = self.prediction.add_noise(latents, noise, timesteps)
        return Noised(noisy_latents, timesteps, self.prediction.target(latents, noise, timesteps), text)

    def _error(self, network: Any, batch: Noised) -> torch.Tensor:
        """Errors (b,) of a network."""
        text: Condition = {k: v.to(network.dtype) if v.is_floating_point() else v for k, v in batch.condition.items()}
        noisy_latents = batch.noisy_latents.to(network.dtype)
        model_pred = self.family.forward(network, noisy_latents, batch.timesteps, text, self.model)
        return squared_error(model_pred, batch.target)

    def _errors(self, batch: Noised) -> list[torch.Tensor]:
        """Errors of the policy on winners and losers, then the reference's, (b,) each."""
        policy = self._error(self.policy, batch).chunk(2)
        with torch.no_grad():
            return [*policy, *self._error(self.reference, batch).chunk(2)]

    def step(self) -> None:
        """One optimizer step."""
        batch, half = self._inputs(), self.config.mixed_precision != "no"
        with torch.autocast(self.device.type, DTYPES[self.config.mixed_precision], enabled=half):
            errors = self._errors(batch)
        dpo_loss(*errors, self.config.beta).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Script(Official):
    """The same for a pipeline of any family: the reference is the policy with its adapters disabled."""

    def _policy(self) -> Any:
        return self.reference

    def _errors(self, batch: Noised) -> list[torch.Tensor]:
        halves = [_half(batch, side) for side in (0, 1)]
        policy = [self._error(self.policy, half) for half in halves]
        self.policy.disable_adapters()
        with torch.no_grad():
            reference = [self._error(self.policy, half) for half in halves]
        self.policy.enable_adapters()
        return [*policy, *reference]


def _half(batch: Noised, side: int) -> Noised:
    """Winners (0) or losers (1)."""
    condition = {name: values.chunk(2)[side] for name, values in batch.condition.items()}
    parts = [values.chunk(2)[side] for values in (batch.noisy_latents, batch.timesteps, batch.target)]
    return Noised(*parts, condition)
