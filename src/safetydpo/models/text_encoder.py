"""The target model's text encoders: prompts as its UNet takes them, whether one fits the window, how near two are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from safetydpo.config.model import Model
from safetydpo.models.pipeline import finite_of, load_pipeline


@contextmanager
def _in_float32(pipeline: Any) -> Iterator[None]:
    """The pipeline's text encoders in float32 while the block runs: half precision can overflow in them."""
    encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
    dtypes = [(encoder, encoder.dtype) for encoder in encoders if encoder is not None]
    for encoder, _ in dtypes:
        encoder.float()
    try:
        yield
    finally:
        for encoder, dtype in dtypes:
            encoder.to(dtype)


@torch.no_grad()
def encode_prompts(pipeline: Any, prompts: list[str], batch_size: int = 64) -> dict[str, torch.Tensor]:
    """Text embeddings as the UNet takes them: encoder_hidden_states (n, tokens, d), on SDXL also text_embeds (n, d).

    In float32. Raises SafetyDPOError where a value is not finite.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    with _in_float32(pipeline):
        for start in range(0, len(prompts), batch_size):
            encoded = pipeline.encode_prompt(
                prompts[start : start + batch_size],
                device=pipeline.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            parts.setdefault("encoder_hidden_states", []).append(encoded[0].float().cpu())
            if len(encoded) == 4:
                parts.setdefault("text_embeds", []).append(encoded[2].float().cpu())
    return {name: _finite(pipeline, torch.cat(tensors)) for name, tensors in parts.items()}


def _finite(pipeline: Any, embeddings: torch.Tensor) -> torch.Tensor:
    return finite_of(pipeline, embeddings, f"The text embeddings of {pipeline.name_or_path} are not finite")


class TextEncoder:
    """Tokenizers and text encoder of a pipeline, without its UNet and VAE; on the CPU, in float32."""

    def __init__(self, config: Model) -> None:
        config = config.model_copy(update={"device": "cpu", "dtype": "float32"})
        self.pipeline: Any = load_pipeline(config, without=("unet", "vae"))
        second = getattr(self.pipeline, "tokenizer_2", None)
        self.tokenizers = [tokenizer for tokenizer in (self.pipeline.tokenizer, second) if tokenizer is not None]

    def fits(self, prompt: str) -> bool:
        """Whether no tokenizer of the model would cut the prompt."""
        return all(len(t(prompt, verbose=False).input_ids) <= t.model_max_length for t in self.tokenizers)

    @torch.inference_mode()
    def embed(self, prompts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Pooled embeddings (n, d) of the first text encoder, of unit length."""
        tokenizer, parts = self.pipeline.tokenizer, []
        for start in range(0, len(prompts), batch_size):
            tokens = tokenizer(
                list(prompts[start : start + batch_size]),
                padding="max_length",
                truncation=True,
                max_length=tokenizer.model_max_length,
                return_tensors="pt",
            )
            pooled = _finite(self.pipeline, self.pipeline.text_encoder(tokens.input_ids).pooler_output)
            parts.append(torch.nn.functional.normalize(pooled, dim=1).numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def similarity(self, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Cosine (n,) of the embeddings of first[i] and second[i]."""
        return (self.embed(first) * self.embed(second)).sum(1) if len(first) else np.zeros(0, np.float32)
