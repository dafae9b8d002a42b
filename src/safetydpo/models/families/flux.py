"""FLUX.1 dev and schnell: a transformer of two streams that join, on packed latents; guidance is distilled into it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FluxPipeline

from safetydpo.config.model import Model
from safetydpo.models.families.family import (
    Call,
    Condition,
    Family,
    Readers,
    max_sequence_length,
    mean_of,
    refuse_guidance,
    start_and_end,
)
from safetydpo.models.families.layouts import encoder_weights, transformer_weights
from safetydpo.models.families.ldm import vae_weights


def _image_ids(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Places of the patches, (rows x columns, 3): 0, row, column; made there: a copy would be waited for."""
    ids = torch.zeros(rows, columns, 3, device=device, dtype=dtype)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)
    return ids.flatten(0, 1)


class Flux(Family):
    """Condition: encoder_hidden_states (b, T5's tokens, d), pooled_projections (b, d) of CLIP, in the model's dtype."""

    conditions = ("encoder_hidden_states", "pooled_projections")
    distilled = True

    def encode(self, pipeline: Any, prompts: Sequence[str], model: Model) -> Condition:
        hidden, pooled, _ = pipeline.encode_prompt(
            list(prompts), device=pipeline.device, max_sequence_length=max_sequence_length(pipeline, model)
        )
        dtype = getattr(torch, model.dtype)
        return {"encoder_hidden_states": hidden.to(dtype), "pooled_projections": pooled.to(dtype)}

    def readers(self, pipeline: Any, model: Model) -> Readers:
        """T5, whose states are the text tokens; of CLIP's the network sees one vector."""
        encoder = pipeline.text_encoder_2.encoder  # itself: the model around it has embeddings that it does not call
        window, tokenizer = max_sequence_length(pipeline, model), pipeline.tokenizer_2
        return Readers([tokenizer], [encoder], window, *start_and_end(tokenizer))

    def read(self, readers: Readers, ids: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """T5 has no pooled embedding: here it is the mean over the prompt's tokens. Padding is read as the others."""
        hidden = readers.encoders[0](ids[0]).last_hidden_state
        return hidden, mean_of(hidden, ids[0] != readers.tokenizers[0].pad_token_id)

    @torch.no_grad()
    def read_rest(self, pipeline: Any, prompts: Sequence[str], model: Model) -> Condition:
        """CLIP's pooled embedding."""
        texts: Any = list(prompts)
        return {"pooled_projections": pipeline._get_clip_prompt_embeds(texts, device=pipeline.device)}

    def condition_of(self, pipeline: Any, hidden: torch.Tensor, pooled: torch.Tensor, rest: Condition) -> Condition:
        return {"encoder_hidden_states": hidden, **rest}

    def windows(self, pipeline: Any, model: Model, parts: Mapping[str, Any]) -> list[tuple[Any, int]]:
        return [(pipeline.tokenizer_2, max_sequence_length(pipeline, model))]  # CLIP gives the pooled vector alone

    def forward(
        self, network: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, condition: Condition, model: Model
    ) -> torch.Tensor:
        b, _, height, width = noisy_latents.shape
        device, dtype = noisy_latents.device, noisy_latents.dtype
        guidance = None
        if network_config(network)["guidance_embeds"]:
            guidance = torch.full((b,), model.guidance_scale, device=device, dtype=torch.float32)
        packed = network(
            hidden_states=packed_latents(noisy_latents),
            timestep=timesteps.to(dtype) / 1000,
            guidance=guidance,
            txt_ids=torch.zeros(condition["encoder_hidden_states"].shape[1], 3, device=device, dtype=dtype),
            img_ids=_image_ids(height // 2, width // 2, device, dtype),
            return_dict=False,
            **condition,
        )[0]
        return unpacked_latents(packed, height, width)

    def architecture(self, config: Any, prediction_type: str | None) -> str | None:
        return f"flux-1-{'dev' if config.get('guidance_embeds') else 'schnell'}"

    def read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        rows, columns = (int(side) for side in kwargs["img_ids"][-1, 1:] + 1)  # of patches
        noisy_latents = unpacked_latents(kwargs["hidden_states"], 2 * rows, 2 * columns)
        return Call(noisy_latents, kwargs["timestep"] * 1000, {name: kwargs[name] for name in self.conditions})

    def answer(self, model_pred: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        return super().answer(packed_latents(model_pred), kwargs)

    def latent_channels(self, config: Any) -> int:
        return config["in_channels"] // 4

    def text_width(self, config: Any) -> int:
        return config["joint_attention_dim"]

    def starting_latents(self, noise: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return packed_latents(noise.to(dtype))

    def checkpoint(self, pipeline: Any) -> dict[str, torch.Tensor]:
        found = transformer_weights(pipeline.transformer) | vae_weights(pipeline.vae, "vae.")
        for part, name in (("text_encoder", "clip_l"), ("text_encoder_2", "t5xxl")):
            found |= encoder_weights(getattr(pipeline, part), f"text_encoders.{name}")
        return found

    def check(self, config: Any, model: Model) -> None:
        if not config["guidance_embeds"]:
            refuse_guidance(model, "it was distilled to few steps without guidance")


def network_config(network: Any) -> Any:
    """The config of a network, which may be wrapped for several processes."""
    return getattr(network, "module", network).config


def packed_latents(latents: torch.Tensor) -> torch.Tensor:
    """(b, c, h, w) -> (b, h/2 w/2, 4c): a token is a patch of 2 x 2."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def unpacked_latents(packed: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(b, h/2 w/2, 4c) -> (b, c, h, w)."""
    return FluxPipeline._unpack_latents(packed, height, width, vae_scale_factor=1)
