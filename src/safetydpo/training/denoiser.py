"""The model in training: noising of cached latents, predictions of the adapted and of the frozen network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.checkpoint import checkpoint

from safetydpo.config.model import Model
from safetydpo.config.training import Train
from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import Features
from safetydpo.models.compiling import compile_network
from safetydpo.models.families.family import Condition, join_conditions
from safetydpo.models.lora import Factors
from safetydpo.models.pipeline import load_network
from safetydpo.models.prediction import prediction_of
from safetydpo.models.targets import refuse_targets
from safetydpo.running.devices import device_of, sent, staged
from safetydpo.training.graphs import Graphs
from safetydpo.training.lean_layers import use_lean_layers

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Noised:
    """Inputs of a batch, roles stacked along the first dimension, and what the network should predict."""

    noisy_latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    condition: Condition

    @staticmethod
    def join(parts: "list[Noised]") -> "Noised":
        """One batch of several."""
        return Noised(
            torch.cat([p.noisy_latents for p in parts]),
            torch.cat([p.timesteps for p in parts]),
            torch.cat([p.target for p in parts]),
            join_conditions([p.condition for p in parts]),
        )


@dataclass
class Drawn:
    """What a batch is made from, on the CPU, staged for the device: scaled latents (b, c, h, w) of each role."""

    latents: list[torch.Tensor]
    noise: torch.Tensor
    timesteps: torch.Tensor
    condition: Condition


class Denoiser:
    """A network, its family and prediction type: the arithmetic between latents and predictions.

    precision (`no`, `bf16`, `fp16`) is that of the frozen weights; adapters are fp32. sampling: how timesteps are drawn
    (`train.timestep_sampling`). `add_adapter` gives it a LoRA.
    """

    def __init__(
        self, model: Model, precision: str = "no", device: torch.device | None = None, sampling: str | None = None
    ) -> None:
        self.model, self.dtype = model, DTYPES[precision]
        self.device = device or device_of(model.device)
        self.family, network, scheduler_config, self.scaling, self.shift, size = load_network(model, self.dtype)
        tokens = self.family.image_tokens(network.config, *size)
        self.prediction = prediction_of(scheduler_config, model.id, sampling, tokens)
        self.network: Any = network.to(self.device, memory_format=self.family.memory_format)
        self.network.requires_grad_(False)
        self.policy: Any = self.network  # the trainer puts accelerate's wrapping here
        self.parameters: list[torch.nn.Parameter] = []
        self._layers: list[Any] = []
        self.strength: torch.Tensor | None = None  # of a compiled network's adapters, 1 or 0
        self.graphs: Graphs | None = None

    def add_adapter(self, config: Train, seed: int) -> None:
        """Put a fresh LoRA on the target modules (gaussian A, zero B) and make it the only thing that trains."""
        torch.manual_seed(seed)
        self.rank, self.alpha = config.rank, config.alpha or config.rank
        targets = config.target_modules or list(self.family.kind.targets)
        lora = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            init_lora_weights="gaussian",
            target_modules=targets,
        )
        refuse_targets(self.network, targets, self.model.id)
        self.network.add_adapter(lora)
        if config.gradient_checkpointing:
            # nothing here is random, and a CUDA graph cannot keep a generator's state
            again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            self.network.enable_gradient_checkpointing(again)
        cast_training_params(self.network, torch.float32)
        self.network.train()
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self._layers = [m for m in self.network.modules() if isinstance(m, BaseTunerLayer)]
        self.strength = torch.ones((), device=self.device) if config.compile else None
        use_lean_layers(self.network, self.strength)
        if config.compile:
            compile_network(self.network)
        # prompts of one length make batches of one shape; DDP exchanges gradients where a replay does not call it
        alone = self.device.type == "cuda" and config.gpus == 1 and self.family.one_shape
        self.graphs = Graphs(self.parameters) if config.cuda_graphs and alone else None

    def check(self, features: Features) -> None:
        """SafetyDPOError where features cannot be those of this model: family, latent channels, width of the text."""
        family, config = self.family, self.network.config
        name = family.kind.name
        if features.family != name:
            has, wants = f"are of a model of family {features.family}", f"is of family {name}"
        else:
            numbers = features.latent_shape[0], features.text_width
            has = f"have {numbers[0]} latent channels and text embeddings of width {numbers[1]}"
            wanted = family.latent_channels(config), family.text_width(config)
            wants = "" if numbers == wanted else f"takes {wanted[0]} and {wanted[1]}"
        if wants:
            raise SafetyDPOError(
                f"Features {has}, {self.model.id} {wants}: they are of another model; delete and rerun."
            )

    def draw(
        self,
        features: Features,
        roles: Sequence[str],
        index: Sequence[int],
        keys: Sequence[int],
        captions: Sequence[str] | None = None,
        flips: Sequence[bool] | None = None,
        timestep: int | None = None,
        rendered: bool = False,
    ) -> Drawn:
        """What noising the samples `index` needs; key i seeds sample i's timestep, noise (shared by the roles) and
        posterior draws.

        captions[i]: the role whose prompt conditions sample i, "" for the empty prompt (default: the last role's);
        flips[i]: mirror all images of the sample. `timestep` fixes the timestep for all; `rendered`: the noise is that
        which a sample's images were rendered from (PNAPO, arXiv 2605.09433), mirrored with them.
        """
        captions = captions or [roles[-1]] * len(index)
        flips = flips or [False] * len(index)
        draws = [torch.Generator().manual_seed(key) for key in keys]
        timesteps = torch.stack([self.prediction.draw_timestep(g) for g in draws])
        if timestep is not None:
            timesteps = torch.full_like(timesteps, timestep)
        if rendered:
            seeds: Any = features.seeds  # there: the stage refuses features without
            own = [self.family.noise(seeds[i], features.latent_shape, self.model) for i in index]
            noise = torch.stack([n.flip(-1) if flip else n for n, flip in zip(own, flips, strict=True)])
        else:
            noise = torch.stack([torch.randn(features.latent_shape, generator=g) for g in draws])
        latents = []
        for role in roles:
            samples = []
            for sample, flip, g in zip(index, flips, draws, strict=True):
                mean, std = features.posterior(role, sample, flip)
                samples.append(mean + std * torch.randn(mean.shape, generator=g))
            latents.append(staged((torch.stack(samples) - self.shift) * self.scaling, self.device))
        condition = {k: staged(v, self.device) for k, v in features.condition(index, captions).items()}
        return Drawn(latents, staged(noise, self.device), staged(timesteps, self.device), condition)

    def noise(self, drawn: Drawn) -> Noised:
        """The batch on the device, noised."""
        timesteps, noise = sent(drawn.timesteps, self.device), sent(drawn.noise, self.device)
        condition = {k: sent(v, self.device) for k, v in drawn.condition.items()}
        parts = []
        for clean in drawn.latents:
            latents = sent(clean, self.device)
            noisy_latents = self.prediction.add_noise(latents, noise, timesteps)
            target = self.prediction.target(latents, noise, timesteps)
            parts.append(Noised(noisy_latents, timesteps, target, condition))
        return Noised.join(parts)

    def noised(self, *args: Any, **options: Any) -> Noised:
        """The batch of `draw`, noised."""
        return self.noise(self.draw(*args, **options))

    def _forward(self, network: Any, batch: Noised, kind: str) -> torch.Tensor:
        condition = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in batch.condition.items()}
        noisy_latents = batch.noisy_latents.to(self.dtype).contiguous(memory_format=self.family.memory_format)
        if self.graphs is None:
            return self.family.forward(network, noisy_latents, batch.timesteps, condition, self.model)

        def run(noisy_latents: torch.Tensor, timesteps: torch.Tensor, *texts: torch.Tensor) -> torch.Tensor:
            named = dict(zip(condition, texts, strict=True))
            return self.family.forward(network, noisy_latents, timesteps, named, self.model)

        return self.graphs(kind, run, noisy_latents, batch.timesteps, *condition.values())

    def predict(self, batch: Noised) -> torch.Tensor:
        """The adapted network's prediction, (b, c, h, w)."""
        return self._forward(self.policy, batch, "policy")

    def reference(self, batch: Noised) -> torch.Tensor:
        """The frozen model's prediction, without gradient: the same network without its adapters.

        A compiled network is asked as in training, by the same graph.
        """
        with torch.set_grad_enabled(self.compiled), self.without_adapters():
            found = self._forward(self.network, batch, "policy" if self.compiled else "frozen").detach()
            return found if self.graphs is None else found.clone()

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Adapters off inside the block, on again after it, whatever happens there.

        Sets the layers' flag alone: PEFT's own switch also walks over requires_grad of every weight, which on a small
        network costs a seventh of the forward pass. Of a compiled network that would be another graph.
        """
        self._switch(on=False)
        try:
            yield
        finally:
            self._switch(on=True)

    @property
    def compiled(self) -> bool:
        """Whether the network is compiled."""
        return self.strength is not None

    @property
    def one_shape(self) -> bool:
        """Whether a batch of another shape costs another graph."""
        return self.compiled or self.graphs is not None

    def _switch(self, on: bool) -> None:
        if self.strength is not None:
            self.strength.fill_(float(on))
            return
        for layer in self._layers:
            layer._disable_adapters = not on

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """The LoRA's weights by PEFT's names, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in get_peft_model_state_dict(self.network).items()}

    def load_adapter_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put weights of `adapter_state` back."""
        set_peft_model_state_dict(self.network, state)

    def factors(self) -> Factors:
        """The LoRA as plain factors, alpha / rank folded into lora_B."""
        state = {k: v.float() for k, v in self.adapter_state().items()}
        modules = sorted({k.rsplit(".lora_", 1)[0] for k in state})
        scale = self.alpha / self.rank
        return {m: (state[f"{m}.lora_A.weight"], state[f"{m}.lora_B.weight"] * scale) for m in modules}
