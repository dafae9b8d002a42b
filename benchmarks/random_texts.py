"""Text encoders of published shapes with random weights, and small tokenizers for them; nothing is downloaded."""

from typing import Any

from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from safetydpo.demo.making.clip import train_tokenizer

# CLIP's text half -> width, layers, heads
CLIP_L, CLIP_G = (768, 12, 12), (1280, 32, 20)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def cut(layers: int, share: float) -> int:
    """That share of a stack of layers, one at least."""
    return max(1, round(layers * share))


def clip_tokenizer() -> Any:
    """The demo world's, with CLIP's window."""
    tokenizer = train_tokenizer()
    tokenizer.model_max_length = 77
    return tokenizer


def clip_config(width: int, layers: int, heads: int, share: float = 1.0) -> CLIPTextConfig:
    """A CLIP's text half."""
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=cut(layers, share),
        num_attention_heads=heads,
        projection_dim=width,
        max_position_embeddings=77,
    )


def clip(shape: tuple[int, int, int], projected: bool, share: float = 1.0) -> Any:
    """CLIP_L or CLIP_G, with its projection or without."""
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(clip_config(*shape, share))


def t5_xxl(share: float) -> T5EncoderModel:
    """The encoder of T5 v1.1 XXL, 4.7 billion parameters."""
    return T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=cut(24, share),
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )


def t5_tokenizer() -> T5Tokenizer:
    """A Unigram of letters and spaces: the pipelines pad to their window whatever the text."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(code), -3.0) for code in range(ord("a"), ord("z") + 1)]
    return T5Tokenizer(vocab=[*pieces, *letters], extra_ids=0, model_max_length=512)


def qwen3_4b(share: float) -> Qwen3Model:
    """Z-Image's text encoder, 4 billion parameters."""
    return Qwen3Model(
        Qwen3Config(
            vocab_size=151936,
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=cut(36, share),
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
        )
    )


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A BPE of bytes with a chat template: a token a letter, where the published one has one for about four."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocab | {"<|endoftext|>": len(vocab)}, merges=[], model_max_length=512)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer
