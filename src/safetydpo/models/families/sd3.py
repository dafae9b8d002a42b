"""Stable Diffusion 3 and 3.5: a transformer of two streams, with two CLIPs and, where it is loaded, a T5."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from safetydpo.config.model import Model
from safetydpo.models.families.family import Call, Condition, Family, Readers, max_sequence_length, start_and_end
from safetydpo.models.families.layouts import encoder_weights, transformer_weights
from safetydpo.models.families.ldm import vae_weights


class Sd3(Family):
    """Condition: encoder_hidden_states (b, CLIP's tokens + T5's, d), pooled_projections (b, d) of both CLIPs.

    Kept in the model's precision: of T5's 4,096 numbers a token, float32 would be twice the disk for digits that the
    network rounds away.
    """

    conditions = ("encoder_hidden_states", "pooled_projections")

    def encode(self, pipeline: Any, prompts: Sequence[str], model: Model) -> Condition:
        texts: Any = list(prompts)
        hidden, _, pooled, _ = pipeline.encode_prompt(
            texts,
            texts,
            texts,
            device=pipeline.device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipeline, model),
        )
        dtype = getattr(torch, model.dtype)
        return {"encoder_hidden_states": hidden.to(dtype), "pooled_projections": pooled.to(dtype)}

    def encodes_alone(self, parts: Mapping[str, Any]) -> bool:
        return any(parts.get("text_encoder_3") or ())  # where there is no T5, the transformer knows the width of zeros

    def readers(self, pipeline: Any, model: Model) -> Readers:
        """The CLIPs: T5, which some models are used without, has tokens of its own."""
        tokenizers, encoders = (
            [getattr(pipeline, part + n) for n in ("", "_2")] for part in ("tokenizer", "text_encoder")
        )
        return Readers(tokenizers, encoders, pipeline.tokenizer_max_length, *start_and_end(pipeline.tokenizer))

    def read(self, readers: Readers, ids: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = [e(tokens, output_hidden_states=True) for e, tokens in zip(readers.encoders, ids, strict=True)]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        return hidden, torch.cat([output.text_embeds for output in outputs], -1)

    @torch.no_grad()
    def read_rest(self, pipeline: Any, prompts: Sequence[str], model: Model) -> Condition:
        """T5's hidden states; zeros where it is not loaded."""
        texts: Any = list(prompts)
        length = max_sequence_length(pipeline, model)
        return {"t5": pipeline._get_t5_prompt_embeds(texts, max_sequence_length=length, device=pipeline.device)}

    def condition_of(self, pipeline: Any, hidden: torch.Tensor, pooled: torch.Tensor, rest: Condition) -> Condition:
        padded = F.pad(hidden, (0, rest["t5"].shape[-1] - hidden.shape[-1]))
        return {"encoder_hidden_states": torch.cat([padded, rest["t5"].to(padded)], 1), "pooled_projections": pooled}

    def windows(self, pipeline: Any, model: Model, parts: Mapping[str, Any]) -> list[tuple[Any, int]]:
        if any(parts.get("text_encoder_3") or ()):  # reads on where the CLIPs, which see the beginning, end
            return [(pipeline.tokenizer_3, max_sequence_length(pipeline, model))]
        return [(tokenizer, pipeline.tokenizer_max_length) for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)]

    def forward(
        self, network: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, condition: Condition, model: Model
    ) -> torch.Tensor:
        return network(hidden_states=noisy_latents, timestep=timesteps, return_dict=False, **condition)[0]

    def read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        condition = {name: kwargs[name] for name in self.conditions}
        return Call(kwargs["hidden_states"], kwargs["timestep"], condition)

    def text_width(self, config: Any) -> int:
        return config["joint_attention_dim"]

    def patch(self, config: Any) -> int:
        return config["patch_size"]

    def checkpoint(self, pipeline: Any) -> dict[str, torch.Tensor]:
        found = transformer_weights(pipeline.transformer) | vae_weights(pipeline.vae)
        for part, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"), ("text_encoder_3", "t5xxl")):
            found |= encoder_weights(getattr(pipeline, part), f"text_encoders.{name}")
        return found
