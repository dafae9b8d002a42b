"""Stable Diffusion 1.x, 2.x and XL: a UNet with cross-attention to the text."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from safetydpo.config.model import Model
from safetydpo.models.families.family import Call, Condition, Family, Readers, start_and_end
from safetydpo.models.families.layouts import encoder_weights
from safetydpo.models.families.ldm import open_clip_weights, unet_weights, vae_weights


class Unet(Family):
    """Condition: encoder_hidden_states (b, tokens, d); of XL also text_embeds (b, d), the pooled embedding."""

    shape_keys = ("in_channels", "cross_attention_dim", "addition_embed_type")
    memory_format = torch.channels_last

    def encode(self, pipeline: Any, prompts: Sequence[str], model: Model) -> Condition:
        encoded = pipeline.encode_prompt(
            list(prompts), device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        pooled = {"text_embeds": encoded[2].float()} if len(encoded) == 4 else {}
        return {"encoder_hidden_states": encoded[0].float(), **pooled}

    def readers(self, pipeline: Any, model: Model) -> Readers:
        tokenizers, encoders = [pipeline.tokenizer], [pipeline.text_encoder]
        if getattr(pipeline, "text_encoder_2", None) is not None:
            tokenizers, encoders = [*tokenizers, pipeline.tokenizer_2], [*encoders, pipeline.text_encoder_2]
        return Readers(tokenizers, encoders, pipeline.tokenizer.model_max_length, *start_and_end(pipeline.tokenizer))

    def read(self, readers: Readers, ids: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = [e(tokens, output_hidden_states=True) for e, tokens in zip(readers.encoders, ids, strict=True)]
        last = outputs[-1]
        pooled = last.text_embeds if hasattr(last, "text_embeds") else last.pooler_output
        if len(outputs) == 1:
            return last.last_hidden_state, pooled
        return torch.cat([output.hidden_states[-2] for output in outputs], -1), pooled

    def condition_of(self, pipeline: Any, hidden: torch.Tensor, pooled: torch.Tensor, rest: Condition) -> Condition:
        return {"encoder_hidden_states": hidden, **({"text_embeds": pooled} if _is_xl(pipeline.unet.config) else {})}

    def windows(self, pipeline: Any, model: Model, parts: Mapping[str, Any]) -> list[tuple[Any, int]]:
        tokenizers = [pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None)]
        return [(tokenizer, tokenizer.model_max_length) for tokenizer in tokenizers if tokenizer is not None]

    def forward(
        self, network: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, condition: Condition, model: Model
    ) -> torch.Tensor:
        extra = None
        if "text_embeds" in condition:  # XL: original size, crop at (0, 0), target size
            ids = noisy_latents.new_zeros(len(noisy_latents), 6)  # filled there: a GPU waits for numbers of the CPU
            ids[:, 0::4], ids[:, 1::4] = model.height, model.width
            extra = {"text_embeds": condition["text_embeds"], "time_ids": ids}
        return network(
            noisy_latents,
            timesteps,
            encoder_hidden_states=condition["encoder_hidden_states"],
            added_cond_kwargs=extra,
        ).sample

    def architecture(self, config: Any, prediction_type: str | None) -> str | None:
        if _is_xl(config):
            return "stable-diffusion-xl-v1-base"
        if config.get("cross_attention_dim") != 1024:
            return "stable-diffusion-v1"
        return f"stable-diffusion-v2-{'768-v' if prediction_type == 'v_prediction' else '512'}"

    def kohya_layouts(self, config: Any) -> tuple[str, ...]:
        return ("original",) if _is_xl(config) else ("diffusers",)

    def read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        sample, timestep = args
        condition = {"encoder_hidden_states": kwargs["encoder_hidden_states"]}
        added = kwargs.get("added_cond_kwargs") or {}
        if "text_embeds" in added:
            condition["text_embeds"] = added["text_embeds"]
        return Call(sample, torch.as_tensor(timestep).flatten().expand(len(sample)), condition)

    def text_width(self, config: Any) -> int:
        return config["cross_attention_dim"]

    def patch(self, config: Any) -> int:
        return 1

    def native_size(self, pipeline: Any) -> tuple[int, int] | None:
        size, unit = pipeline.unet.config.sample_size, pipeline.vae_scale_factor
        if size is None and "sample_size" not in pipeline.vae.config.get("_use_default_values", ()):
            size, unit = pipeline.vae.config.sample_size, 1
        if size is None:
            return None
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return height * unit, width * unit

    def checkpoint(self, pipeline: Any) -> dict[str, torch.Tensor]:
        found = unet_weights(pipeline.unet) | vae_weights(pipeline.vae)
        first, second = (getattr(pipeline, part, None) for part in ("text_encoder", "text_encoder_2"))
        if first is None:
            raise KeyError("second text encoder without a first")
        if second is not None:
            heads = (f"conditioner.embedders.{i}" for i in range(2))
            return found | encoder_weights(first, next(heads)) | open_clip_weights(second, next(heads))
        # OpenAI's CLIP has an activation that only it has; SD 2's is OpenCLIP's
        weights = encoder_weights if first.config.hidden_act == "quick_gelu" else open_clip_weights
        return found | weights(first, "cond_stage_model")


def _is_xl(config: Any) -> bool:
    return config.get("addition_embed_type") == "text_time"
