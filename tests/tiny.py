"""Pipelines of random weights, small enough to make in a second; one of each family."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from snakes import ROOT
from tiny_transformers import make_transformer_pipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from safetydpo.config.model import Model
from safetydpo.config.training import Train
from safetydpo.storage.checkpoints import Checkpoints
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.samples import PAIR_ROLES, Samples, Share
from safetydpo.training.trainer import Objective, Trainer, make_accelerator

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]
UNETS = ("sd15", "sd21", "sdxl")
TRANSFORMERS = ("sd3", "sd3-t5", "flux-dev", "flux-schnell", "z-image")
FAMILIES = (*UNETS, *TRANSFORMERS)
SCALING, SHIFT = {"sdxl": 0.13025, "sd3": 1.5305, "sd3-t5": 1.5305, "flux-dev": 0.3611, "z-image": 0.3611}, 0.1
ROLES = {role: (f"{role}_image", f"{role}_prompt") for role in PAIR_ROLES}
WIDTH = 16
DEMO = ROOT / "resources/demo"
# Judges' sections: the demo's CLIP as every judge; its detector beside it.
Q16 = {"judge": "q16", "id": str(DEMO / "clip"), "path": str(DEMO / "q16.safetensors")}
CLIP: dict[str, Any] = {"panel": [Q16], "verdicts": [{"name": "q16"}], "clip_score": str(DEMO / "clip")}
DETECTOR = {"judge": "demo", "path": str(DEMO / "detector")}
DEMO_JUDGES: dict[str, Any] = CLIP | {"panel": [Q16, DETECTOR], "verdicts": [{"name": "demo"}]}


def demo_tokenizer() -> CLIPTokenizer:
    """The shipped one: a training of it breaks ties anew each time."""
    return CLIPTokenizer.from_pretrained(DEMO / "t2i/tokenizer")


def make_pipeline(folder: Path, family: str = "sd15", seed: int = 0) -> Model:
    """Save a pipeline of 16 x 16 images (latents 4 x 8 x 8) and return its model section.

    sd21 differs from sd15 in its prediction type; sdxl has two text encoders, pooled embeddings and time ids; for the
    transformers see tiny_transformers. sd3-t5 and flux-schnell have an odd one's: a T5, no guidance.
    """
    torch.manual_seed(seed)
    parts: dict[str, Any] = {"vae": _vae(SCALING.get(family, 0.18215)), "tokenizer": demo_tokenizer()}
    config = _text_config(parts["tokenizer"])
    if family in TRANSFORMERS:
        parts["vae"].register_to_config(shift_factor=SHIFT)
        pipeline = make_transformer_pipeline(family, parts["vae"], parts["tokenizer"], config)
    elif family == "sdxl":
        encoders = {"text_encoder": CLIPTextModel(config), "text_encoder_2": CLIPTextModelWithProjection(config)}
        parts |= encoders | {"tokenizer_2": parts["tokenizer"], "unet": _unet(2 * WIDTH, pooled=WIDTH)}
        scheduler = EulerDiscreteScheduler(**_schedule("epsilon"), timestep_spacing="leading")
        pipeline = StableDiffusionXLPipeline(**parts, scheduler=scheduler)
    else:
        scheduler = DDIMScheduler(
            **_schedule("v_prediction" if family == "sd21" else "epsilon"), clip_sample=False, set_alpha_to_one=False
        )
        parts |= {"text_encoder": CLIPTextModel(config), "unet": _unet(WIDTH), "scheduler": scheduler}
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(folder)
    size = {"height": 16, "width": 16, "num_inference_steps": 2, "batch_size": 4}
    guidance = 1.0 if family == "flux-schnell" else 2.0
    call = {"max_sequence_length": 64 if family == "z-image" else 24} if family in ("sd3-t5", *TRANSFORMERS[2:]) else {}
    return Model(id=str(folder), **size, guidance_scale=guidance, call=call, device="cpu")


def _schedule(prediction_type: str) -> dict[str, Any]:
    line = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return {**line, "prediction_type": prediction_type, "steps_offset": 1}


def _text_config(tokenizer: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=32,
        projection_dim=WIDTH,
        num_hidden_layers=2,  # SDXL takes the last but one
        num_attention_heads=2,
        max_position_embeddings=16,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _unet(cross_attention_dim: int, pooled: int = 0) -> UNet2DConditionModel:
    """`pooled`: width of pooled text embeddings, which SDXL's UNet takes with six time ids."""
    extra: dict[str, Any] = {}
    if pooled:
        extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
        extra |= {"projection_class_embeddings_input_dim": pooled + 6 * 4}
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=2,
        norm_num_groups=4,
        **extra,
    )


def _vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=scaling_factor,
    )


def train_config(**changes) -> Train:
    """A short training with the published beta."""
    return Train(**{"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "beta": 5000, "rank": 2, **changes})


def adapted(denoiser: Denoiser, config: Train) -> Denoiser:
    """The denoiser with the adapter of a config; B is not zero, so that everything has a gradient."""
    denoiser.add_adapter(config, 0)
    torch.manual_seed(1)
    for name, parameter in denoiser.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return denoiser


def samples(features, config, roles=PAIR_ROLES, batch_size=None, share=None) -> Samples:
    """Samples of seed 0."""
    return Samples(features, roles, batch_size or config.batch_size, config, 0, share or Share())


def fit(denoiser: Denoiser, pairs: Samples, retain: Samples | None, config: Train, steps: int):
    """Train without checkpoints; the log."""
    accelerator = make_accelerator(config, torch.device("cpu"))
    return Trainer(Objective(denoiser, pairs, retain, config), steps, "x", accelerator).fit()


class KilledError(Exception):
    """Stands for a kill in the middle of a step."""


def assert_goes_on(make, features, config: Train, folder: Path, steps: int, killed_in: int) -> None:
    """A training that is killed in a step and begun again by another trainer ends as an undisturbed one, bit by bit."""

    def trainer(states):
        objective = Objective(make(config), samples(features, config), None, config)
        return Trainer(objective, steps, "x", make_accelerator(config, torch.device("cpu")), states)

    whole, first, second = trainer(None), trainer(Checkpoints(folder, {})), trainer(Checkpoints(folder, {}))
    expected = whole.fit()
    step = first.step

    def killed(number):
        if number == killed_in:
            raise KilledError
        return step(number)

    first.step = killed
    with pytest.raises(KilledError):
        first.fit()
    found = second.fit()
    assert found.loss.notna().all()
    pd.testing.assert_frame_equal(found.drop(columns="pairs_per_s"), expected.drop(columns="pairs_per_s"))
    for mine, other in zip(second.denoiser.parameters, whole.denoiser.parameters, strict=True):
        assert torch.equal(mine, other)
