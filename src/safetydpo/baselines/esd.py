"""Erased Stable Diffusion (arXiv 2303.07345): the network is fine-tuned away from its own guidance to a concept."""

import copy
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch.nn import functional as F

from safetydpo.baselines.erasure import Erasure
from safetydpo.config.baselines import Esd
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.families.registry import Kind
from safetydpo.models.pipeline import not_finite
from safetydpo.models.prediction import prediction_of, shift_of
from safetydpo.models.text_encoder import encode_prompts
from safetydpo.running.progress import progress
from safetydpo.storage.checkpoints import Checkpoints
from safetydpo.storage.finite import finite
from safetydpo.storage.records import seed_of

CHECKPOINT_EVERY = 100


def trains(name: str, variant: str, kind: Kind) -> bool:
    """Whether a parameter trains: esd-x, the layers by which text reaches the image; esd-u, all but those and the frame
    (embeddings of time and input, output).
    """
    of_text = any(part in name for part in kind.text_layers)
    return of_text if variant == "esd-x" else not (of_text or name.startswith(kind.frame))


def erasing_target(uncond: torch.Tensor, text: torch.Tensor, eta: float) -> torch.Tensor:
    """What the new model should predict for a concept (equation 7): the old one's guidance, turned round."""
    return uncond - eta * (text - uncond)


def sampler_of(config: Any, tokens: int = 0) -> Any:
    """A plain sampler on the noise schedule of a pipeline's scheduler, whatever kind that is: Euler's steps of flow
    matching, shifted as for images of so many tokens, else DDIM's. Nothing is clipped: latents are not pixels, and of
    those DDIM's own defaults are.
    """
    # as the pipeline uses them: DDIM would put its defaults for values that the scheduler's file did not have
    values = {key: value for key, value in config.items() if key != "_use_default_values"}
    if "FlowMatch" in values.get("_class_name", ""):
        return FlowMatchEulerDiscreteScheduler(config.num_train_timesteps, shift_of(config, tokens))
    if values.get("timestep_spacing") == "linspace":
        values["timestep_spacing"] = "trailing"  # begins at noise too; a step of DDIM does not end at linspace's next
    return DDIMScheduler.from_config(values, clip_sample=False, thresholding=False)


class _Eraser:
    """The model in training, its frozen copy, and the prompts' embeddings."""

    def __init__(self, pipeline: Any, concepts: list[str], config: Esd, model: Model) -> None:
        self.family = pipeline.family
        self.config, self.network, self.model = config, self.family.network(pipeline), model
        self.frozen = copy.deepcopy(self.network).requires_grad_(False)
        self.device, latent = self.network.device, [s // pipeline.vae_scale_factor for s in (model.height, model.width)]
        self.shape = (self.family.latent_channels(self.network.config), *latent)
        tokens = self.family.image_tokens(self.network.config, *latent)
        # the sampler knows no other predictions, and does not say so
        prediction_of(pipeline.scheduler.config, model.id)
        self.scheduler = sampler_of(pipeline.scheduler.config, tokens)
        self.flow = isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler)
        self._start()
        self.states = encode_prompts(pipeline, [*concepts, ""], model)
        self.states = {name: states.to(self.device) for name, states in self.states.items()}
        if pipeline.config.get("force_zeros_for_empty_prompt"):  # SDXL's own empty prompt
            for states in self.states.values():
                states[-1] = 0

    def _start(self) -> None:
        """Before a latent is denoised: Euler's sampler counts its steps, which are even before the shift."""
        count = self.config.num_inference_steps
        even = {"sigmas": np.linspace(1, 1 / count, count)} if self.flow else {}
        self.scheduler.set_timesteps(count, **even)

    def predict(self, network: Any, latents: torch.Tensor, timestep: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Predictions (len(rows), c, h, w) for one latent under the prompts `rows` (-1 is the empty one)."""
        latents = latents.expand(len(rows), -1, -1, -1)
        timesteps = timestep.to(self.device).expand(len(rows))
        condition = {name: states[rows] for name, states in self.states.items()}
        return self.family.forward(network, latents, timesteps, condition, self.model)

    @torch.no_grad()
    def partly_denoised(self, concept: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A latent of the model in training on its way to the concept's image, and a timestep of the bin it is at."""
        timesteps, count = self.scheduler.timesteps, self.config.num_inference_steps
        index = int(torch.randint(count, (), generator=generator))
        latents = torch.randn((1, *self.shape), generator=generator).to(self.device)
        self._start()
        for timestep in timesteps[:index]:
            guided = self._guided(latents, timestep, concept)
            latents = self.scheduler.step(guided, timestep, latents).prev_sample
        return latents, self._within(index, generator).to(self.device)

    def _guided(self, latents: torch.Tensor, timestep: torch.Tensor, concept: int) -> torch.Tensor:
        """What a latent is denoised with, (1, c, h, w): of a model that guidance was distilled into, its prediction.

        Such a model is given model.guidance_scale, w, and predicts uncond + w (text - uncond). Its `erasing_target` is
        then uncond - eta w (text - uncond), to which w guides a model that learned uncond - eta (text - uncond).
        """
        if self.family.distilled:
            return self.predict(self.network, latents, timestep, [concept])
        uncond, text = self.predict(self.network, latents, timestep, [-1, concept])
        return (uncond + self.config.guidance_scale * (text - uncond))[None]

    def _within(self, index: int, generator: torch.Generator) -> torch.Tensor:
        """A timestep between the sampler's step `index` and the next, (); of flow matching any number there."""
        bounds = [*self.scheduler.timesteps.tolist(), 0 if self.flow else -1]
        high, low = bounds[index : index + 2]
        if self.flow:
            return high - (high - low) * torch.rand((), generator=generator)
        return torch.randint(int(low) + 1, int(high) + 1, (), generator=generator)

    def loss(self, concept: int, generator: torch.Generator) -> torch.Tensor:
        """Squared error of one iteration."""
        latents, timestep = self.partly_denoised(concept, generator)
        with torch.no_grad():
            uncond, text = self.predict(self.frozen, latents, timestep, [-1, concept])
        target = erasing_target(uncond, text, self.config.eta)
        return F.mse_loss(self.predict(self.network, latents, timestep, [concept])[0], target)


def erase(erasure: Erasure) -> dict[str, torch.Tensor]:
    """Train; returns the changed weights. A killed job goes on from the newest state in its checkpoints."""
    variant, concepts, config, seed = erasure.method, erasure.config.erased, erasure.config.esd, erasure.seed
    eraser, kind = _Eraser(erasure.pipeline, concepts, config, erasure.model), erasure.pipeline.family.kind
    eraser.network.requires_grad_(False)
    trained = {
        name: p.requires_grad_(True) for name, p in eraser.network.named_parameters() if trains(name, variant, kind)
    }
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
