"""The target model's text encoders: prompts as its network takes them, whether one fits, how near two are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from safetydpo.config.model import Model
from safetydpo.models.families.family import Condition, join_conditions, mean_of
from safetydpo.models.index import Index
from safetydpo.models.pipeline import finite_of, load_pipeline

CLIPS = (CLIPTextModel, CLIPTextModelWithProjection)
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
LONGEST = 512  # tokens of a prompt, of encoders that would take many thousands


@contextmanager
def _clips_in_float32(pipeline: Any) -> Iterator[None]:
    """The pipeline's CLIPs in float32 while the block runs: half precision can overflow in them."""
    encoders = [encoder for name in ENCODERS if isinstance(encoder := getattr(pipeline, name, None), CLIPS)]
    dtypes: list[tuple[Any, torch.dtype]] = [(encoder, encoder.dtype) for encoder in encoders]
    for encoder, _ in dtypes:
        encoder.float()
    try:
        yield
    finally:
        for encoder, dtype in dtypes:
            encoder.to(dtype)


@torch.no_grad()
def encode_prompts(pipeline: Any, prompts: Sequence[str], model: Model, batch_size: int = 64) -> Condition:
    """The condition of n prompts as the model's network takes it (see its family), on the CPU.

    Raises SafetyDPOError where a value is not finite.
    """
    parts: list[Condition] = []
    with _clips_in_float32(pipeline):
        for start in range(0, len(prompts), batch_size):
            encoded = pipeline.family.encode(pipeline, prompts[start : start + batch_size], model)
            parts.append({name: tensor.cpu() for name, tensor in encoded.items()})
    return {name: _finite(pipeline, tensor) for name, tensor in join_conditions(parts).items()}


def _finite(pipeline: Any, embeddings: torch.Tensor) -> torch.Tensor:
    return finite_of(pipeline, embeddings, f"The text embeddings of {pipeline.name_or_path} are not finite")


class TextEncoder:
    """Tokenizers and first text encoder of a model, without its network and VAE; on the CPU, in float32."""

    def __init__(self, config: Model) -> None:
        config = config.model_copy(update={"device": "cpu", "dtype": "float32"})
        self.pipeline: Any = load_pipeline(config, without=("network", "vae", *ENCODERS[1:]))
        self.windows = self.pipeline.family.windows(self.pipeline, config, Index(config).parts)

    def fits(self, prompt: str) -> bool:
        """Whether no tokenizer that must read a prompt whole would cut it."""
        return all(len(tokenizer(prompt, verbose=False).input_ids) <= length for tokenizer, length in self.windows)

    @property
    def longest(self) -> int:
        """Tokens of a prompt that fits, without those that mark its begin and end."""
        return min(length for _, length in self.windows) - 2

    @torch.inference_mode()
    def embed(self, prompts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Pooled embeddings (n, d) of the first text encoder, of unit length."""
        tokenizer, encoder, parts = self.pipeline.tokenizer, self.pipeline.text_encoder, []
        clip = isinstance(encoder, CLIPS)
        length = min(tokenizer.model_max_length, LONGEST)
        for start in range(0, len(prompts), batch_size):
            tokens = tokenizer(
                list(prompts[start : start + batch_size]),
                padding="max_length" if clip else "longest",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            output = encoder(tokens.input_ids, attention_mask=None if clip else tokens.attention_mask)
            pooled = _finite(self.pipeline, _pooled(output, tokens.attention_mask))
            parts.append(torch.nn.functional.normalize(pooled, dim=1).numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def similarity(self, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Cosine (n,) of the embeddings of first[i] and second[i]."""
        return (self.embed(first) * self.embed(second)).sum(1) if len(first) else np.zeros(0, np.float32)


def _pooled(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """One vector a prompt (n, d): CLIP's own; of a language model, which has none, the mean over the tokens."""
    for name in ("text_embeds", "pooler_output"):
        if getattr(output, name, None) is not None:
            return output[name]
    return mean_of(output.last_hidden_state, mask)
