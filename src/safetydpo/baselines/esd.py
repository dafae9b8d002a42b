"""Erased Stable Diffusion (arXiv 2303.07345): the UNet is fine-tuned away from its own guidance to a concept."""

import copy
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch.nn import functional as F

from safetydpo.baselines.erasure import Erasure
from safetydpo.config.baselines import Esd
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.pipeline import not_finite
from safetydpo.models.prediction import prediction_of
from safetydpo.models.text_encoder import encode_prompts
from safetydpo.running.progress import progress
from safetydpo.storage.checkpoints import Checkpoints
from safetydpo.storage.finite import finite
from safetydpo.storage.records import seed_of

CHECKPOINT_EVERY = 100


def trains(name: str, variant: str) -> bool:
    """Whether a UNet parameter trains: esd-x cross-attention, esd-u all but that, the time embedding and conv_out."""
    if variant == "esd-x":
        return "attn2" in name
    return not ("attn2" in name or name.startswith(("time_embedding", "add_embedding", "conv_out")))


def erasing_target(uncond: torch.Tensor, text: torch.Tensor, eta: float) -> torch.Tensor:
    """What the new model should predict for a concept (equation 7): the old one's guidance, turned round."""
    return uncond - eta * (text - uncond)


def ddim_of(config: Any) -> Any:
    """DDIM on the noise schedule of a pipeline's scheduler, whatever kind that is; nothing is clipped: latents are not
    pixels, and of those DDIM's own defaults are.
    """
    # as the pipeline uses them: DDIM would put its defaults for values that the scheduler's file did not have
    values = {key: value for key, value in config.items() if key != "_use_default_values"}
    if values.get("timestep_spacing") == "linspace":
        values["timestep_spacing"] = "trailing"  # begins at noise too; a step of DDIM does not end at linspace's next
    return DDIMScheduler.from_config(values, clip_sample=False, thresholding=False)


class _Eraser:
    """The model in training, its frozen copy, and the prompts' embeddings."""

    def __init__(self, pipeline: Any, concepts: list[str], config: Esd, model: Model) -> None:
        self.config, self.unet, self.model = config, pipeline.unet, model
        self.frozen = copy.deepcopy(pipeline.unet).requires_grad_(False)
        prediction_of(pipeline.scheduler.config, model.id)  # DDIM knows no other families, and does not say so
        self.scheduler = ddim_of(pipeline.scheduler.config)
        self.scheduler.set_timesteps(config.num_inference_steps)
        self.states = {k: v.to(self.unet.device) for k, v in encode_prompts(pipeline, [*concepts, ""]).items()}
        if pipeline.config.get("force_zeros_for_empty_prompt"):  # SDXL's own empty prompt
            for states in self.states.values():
                states[-1] = 0
        latent = (side // pipeline.vae_scale_factor for side in (model.height, model.width))
        self.shape = (self.unet.config.in_channels, *latent)

    def predict(self, unet: Any, latents: torch.Tensor, timestep: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Predictions (len(rows), c, h, w) for one latent under the prompts `rows` (-1 is the empty one)."""
        latents = latents.expand(len(rows), -1, -1, -1)
        added = None
        if "text_embeds" in self.states:
            size = (self.model.height, self.model.width)
            ids = torch.tensor([*size, 0, 0, *size], device=latents.device, dtype=latents.dtype)
            added = {"text_embeds": self.states["text_embeds"][rows], "time_ids": ids.expand(len(rows), -1)}
        states = self.states["encoder_hidden_states"][rows]
        return unet(latents, timestep, encoder_hidden_states=states, added_cond_kwargs=added).sample

    @torch.no_grad()
    def partly_denoised(self, concept: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A latent of the model in training on its way to the concept's image, and a timestep of the bin it is at."""
        timesteps, count = self.scheduler.timesteps, self.config.num_inference_steps
        index = int(torch.randint(count, (), generator=generator))
        latents = torch.randn((1, *self.shape), generator=generator).to(self.unet.device)
        for timestep in timesteps[:index]:
            uncond, text = self.predict(self.unet, latents, timestep, [-1, concept])
            guided = uncond + self.config.guidance_scale * (text - uncond)
            latents = self.scheduler.step(guided[None], timestep, latents).prev_sample
        high = int(timesteps[index])
        low = int(timesteps[index + 1]) if index + 1 < count else -1
        return latents, torch.randint(low + 1, high + 1, (), generator=generator).to(self.unet.device)

    def loss(self, concept: int, generator: torch.Generator) -> torch.Tensor:
        """Squared error of one iteration."""
        latents, timestep = self.partly_denoised(concept, generator)
        with torch.no_grad():
            uncond, text = self.predict(self.frozen, latents, timestep, [-1, concept])
        target = erasing_target(uncond, text, self.config.eta)
        return F.mse_loss(self.predict(self.unet, latents, timestep, [concept])[0], target)


def erase(erasure: Erasure) -> dict[str, torch.Tensor]:
    """Train; returns the changed weights. A killed job goes on from the newest state in its checkpoints."""
    variant, concepts, config, seed = erasure.method, erasure.config.erased, erasure.config.esd, erasure.seed
    eraser = _Eraser(erasure.pipeline, concepts, config, erasure.model)
    eraser.unet.requires_grad_(False)
    trained = {name: p.requires_grad_(True) for name, p in eraser.unet.named_parameters() if trains(name, variant)}
    optimizer = torch.optim.Adam(trained.values(), lr=config.learning_rate)
    made = {"model": erasure.model.id, "variant": variant, "concepts": str(concepts), "seed": seed}
    kept = Checkpoints(erasure.checkpoints, made | config.model_dump())
    begin = _go_on(kept, trained, optimizer)
    bar = progress(range(begin, config.steps), variant, initial=begin, total=config.steps)
    for step in bar:
        generator = torch.Generator().manual_seed(seed_of(seed, f"{variant}/{step}"))
        concept = int(torch.randint(len(concepts), (), generator=generator))
        loss = eraser.loss(concept, generator)
        if not torch.isfinite(loss):
            where = f"step {step}, concept {concepts[concept]!r}"
            if not step:  # nothing was trained yet
                raise not_finite(erasure.pipeline, f"{variant}: the predictions of {erasure.model.id} are not finite")
            raise SafetyDPOError(f"{variant}: the loss is {loss.item()} at {where}: lower esd.learning_rate.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < config.steps:
            weights = {name: p.detach().clone() for name, p in trained.items()}
            kept.save(step + 1, {"weights": weights, "optimizer": optimizer.state_dict()})
    weights = {
        name: finite(p.detach().cpu(), f"{variant}: {name}", "lower esd.learning_rate") for name, p in trained.items()
    }
    kept.clear()
    return weights


def _go_on(kept: Checkpoints, trained: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Put the newest state back; returns the step to go on from."""
    found = kept.load()
    if found is None:
        return 0
    step, state = found
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    print(f"going on from step {step}")
    return step
