"""Pipelines of random weights of the transformers: SD3 (with and without T5), FLUX.1 dev and schnell, Z-Image."""

from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
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

WIDTH, LETTERS = 16, "abcdefghijklmnopqrstuvwxyz"
WORDS = ("moss", "fern", "dune", "kelp", "reed", "loam", "silt", "marl")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_transformer_pipeline(family: str, vae: Any, tokenizer: Any, text: CLIPTextConfig) -> Any:
    """A pipeline of `family` with this VAE, and this CLIP tokenizer and config for its CLIPs."""
    if family.startswith("sd3"):
        return _sd3(family == "sd3-t5", vae, tokenizer, text)
    return _z_image(vae) if family == "z-image" else _flux(family == "flux-dev", vae, tokenizer, text)


def _sd3(with_t5: bool, vae: Any, tokenizer: Any, text: CLIPTextConfig) -> StableDiffusion3Pipeline:
    """joint_attention_dim is wider than both CLIPs, as it is in SD3: zeros fill what they lack."""
    third = {"text_encoder_3": _t5(3 * WIDTH), "tokenizer_3": _t5_tokenizer()} if with_t5 else {}
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        **({"text_encoder_3": None, "tokenizer_3": None} | third),
    )


def _flux(dev: bool, vae: Any, tokenizer: Any, text: CLIPTextConfig) -> FluxPipeline:
    shifted = {"use_dynamic_shifting": True, "shift": 3.0} if dev else {"shift": 1.0}
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=dev,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**shifted),
        vae=vae,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=_t5(2 * WIDTH),
        tokenizer=tokenizer,
        tokenizer_2=_t5_tokenizer(),
    )


def _z_image(vae: Any) -> ZImagePipeline:
    tokenizer = _qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
    )
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[256, 32, 32],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=Qwen3Model(config),
        tokenizer=tokenizer,
    )


def _t5(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=160, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config)


def _t5_tokenizer() -> T5Tokenizer:
    """A Unigram of letters, spaces and a few words."""
    words = ((f"▁{word}", -4.0) for word in WORDS)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    extra = ((f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1))
    return T5Tokenizer(vocab=[*pieces, *words, *extra], model_max_length=24)


def _qwen_tokenizer() -> Qwen2Tokenizer:
    """A BPE of bytes, with a chat template."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocab | {"<|endoftext|>": len(vocab)}, merges=[], model_max_length=128)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer
