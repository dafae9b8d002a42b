"""What a model family answers, and what families share. Without state.

Shapes: latents (b, c, h, w), scaled as the network takes them; timesteps (b,), 0 to num_train_timesteps of the
scheduler, whatever the network wants; a condition is a dict of tensors whose first dimension is b.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.families.registry import Kind

Condition = dict[str, torch.Tensor]


class Call(NamedTuple):
    """What a pipeline called its network with, in the terms of `Family.forward`.

    text_first: whether of a guided batch the first half is conditioned on the text, the second not.
    """

    noisy_latents: torch.Tensor
    timesteps: torch.Tensor
    condition: Condition
    text_first: bool = False


class Readers(NamedTuple):
    """Text encoders of one vocabulary: an attack searches for its tokens.

    window: tokens that they read at once; start, end: those of them around a prompt's own.
    """

    tokenizers: list[Any]
    encoders: list[Any]
    window: int
    start: list[int]
    end: list[int]


class Family:
    """A family; `kind` is its entry of the registry."""

    conditions: tuple[str, ...] = ("encoder_hidden_states",)  # names of a condition that every model of it has
    shape_keys: tuple[str, ...] = ("in_channels", "joint_attention_dim")  # of a config: networks of one model agree in
    memory_format: torch.memory_format = torch.contiguous_format
    one_shape = True  # whether all prompts have as many text tokens, so that batches of one size have one shape
    distilled = False  # guidance: one prediction is guided already, and not made of two

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def network(self, pipeline: Any) -> Any:
        """The part of a pipeline that trains."""
        return getattr(pipeline, self.kind.component)

    def encode(self, pipeline: Any, prompts: Sequence[str], model: Model) -> Condition:
        """The condition of prompts, on the pipeline's device."""
        raise NotImplementedError

    def encodes_alone(self, parts: Mapping[str, Any]) -> bool:
        """Whether a pipeline of these parts (of its model_index.json) encodes prompts without its network."""
        del parts
        return True

    def readers(self, pipeline: Any, model: Model) -> Readers:
        """The text encoders by which prompts mainly reach the network."""
        raise NotImplementedError

    def read(self, readers: Readers, ids: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (b, window, d) as the network takes them, and one vector a prompt (b, d), with gradients.

        ids: the tokens (b, window) of each encoder.
        """
        raise NotImplementedError

    def read_rest(self, pipeline: Any, prompts: Sequence[str], model: Model) -> Condition:
        """What the encoders beside `readers` say of prompts, which they read by other tokens; without gradients."""
        del pipeline, prompts, model
        return {}

    def condition_of(self, pipeline: Any, hidden: torch.Tensor, pooled: torch.Tensor, rest: Condition) -> Condition:
        """The condition of what `read` and `read_rest` give."""
        raise NotImplementedError

    def windows(self, pipeline: Any, model: Model, parts: Mapping[str, Any]) -> list[tuple[Any, int]]:
        """Tokenizers that must read a prompt whole, and how many tokens each reads.

        pipeline: one without network and VAE, and of its text encoders with the first alone; parts: of its
        model_index.json.
        """
        raise NotImplementedError

    def forward(
        self, network: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, condition: Condition, model: Model
    ) -> torch.Tensor:
        """model_pred, (b, c, h, w), of tensors in the network's precision."""
        raise NotImplementedError

    def read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """What the family's pipeline gave its network: the inverse of `forward`."""
        raise NotImplementedError

    def answer(self, model_pred: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        """A prediction as the pipeline expects its network's answer."""
        return _answer(model_pred, kwargs)

    def latent_channels(self, config: Any) -> int:
        """Channels of the latents that a network of this config takes."""
        return config["in_channels"]

    def text_width(self, config: Any) -> int:
        """Width of the text embeddings that a network of this config takes."""
        raise NotImplementedError

    def patch(self, config: Any) -> int:
        """Side of the square of latents that is one token: sides of latents are multiples of it."""
        del config
        return 2

    def architecture(self, config: Any, prediction_type: str | None) -> str | None:
        """What Stability AI's model specification calls a network of this config; None where it has no name for it."""
        del config, prediction_type
        return None

    def kohya_layouts(self, config: Any) -> tuple[str, ...]:
        """By whose names of layers sd-scripts trains a network of this config: `diffusers`', `original` ones; the last
        of several for layers that both name.
        """
        del config
        return ("original",)

    def image_tokens(self, config: Any, height: int, width: int) -> int:
        """Tokens of latents of this size: some schedules are shifted by it."""
        side = self.patch(config)
        return (height // side) * (width // side)

    def render_options(self, model: Model) -> dict[str, Any]:
        """What a pipeline is called with beside prompts, size and steps."""
        return {"guidance_scale": model.guidance_scale, **model.call}

    def starting_latents(self, noise: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Noise (b, c, h, w) as the pipeline takes `latents`; dtype: of its network."""
        return noise.to(dtype)

    def noise(self, seed: int, shape: Sequence[int], model: Model) -> torch.Tensor:
        """The noise (c, h, w) that an image of this seed is rendered from, float32: see `sampling`."""
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn((1, *shape), generator=generator, dtype=getattr(torch, model.dtype))[0].float()

    def native_size(self, pipeline: Any) -> tuple[int, int] | None:
        """Height and width in pixels that the model was made for; None where it does not say."""
        side = pipeline.default_sample_size * pipeline.vae_scale_factor
        return side, side

    def checkpoint(self, pipeline: Any) -> dict[str, torch.Tensor]:
        """Weights of a pipeline in the layout that such models are published in, as one file; of text encoders those
        that have a place there. KeyError with a weight that has none.
        """
        raise NotImplementedError

    def check(self, config: Any, model: Model) -> None:
        """SafetyDPOError where the settings of `model` do not suit a network of this config."""


def _answer(sample: Any, kwargs: dict[str, Any]) -> Any:
    """(sample,), or an object with `.sample` where a pipeline asked for one."""
    return type("Output", (), {"sample": sample})() if kwargs.get("return_dict", True) else (sample,)


def max_sequence_length(pipeline: Any, model: Model) -> int:
    """Text tokens that the pipeline takes: the config's, else the pipeline's own default."""
    own = signature(type(pipeline).__call__).parameters["max_sequence_length"].default
    return int(model.call.get("max_sequence_length", own))


def start_and_end(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts around a prompt: CLIP's a start and an end, T5's an end."""
    whole, letter = (tokenizer("a", add_special_tokens=added).input_ids for added in (True, False))
    at = whole.index(letter[0])
    return whole[:at], whole[at + len(letter) :]


def mean_of(hidden: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """(b, d), float32: the mean of hidden (b, tokens, d) over the tokens that own (b, tokens) says."""
    weights = own[..., None].float()
    return (hidden * weights).sum(1) / weights.sum(1)


def join_conditions(parts: Sequence[Condition]) -> Condition:
    """Conditions one after the other; sequences of text tokens (n, tokens, d) are padded to the longest."""
    joined = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        longest = max(t.shape[1] if t.ndim == 3 else 0 for t in tensors)
        joined[name] = torch.cat([F.pad(t, (0, 0, 0, longest - t.shape[1])) if t.ndim == 3 else t for t in tensors])
    return joined


def family_of(kind: Kind) -> Family:
    """The family of a registry's entry."""
    return resolve_name(f"safetydpo.models.families.{kind.opens}")(kind)


def refuse_guidance(model: Model, why: str) -> None:
    """SafetyDPOError where `model.guidance_scale` would be ignored."""
    if model.guidance_scale != 1:
        raise SafetyDPOError(
            f"model.guidance_scale is {model.guidance_scale:g}, and {model.id} would ignore it: {why}. Set it to 1."
        )
