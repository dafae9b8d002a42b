"""Loading a model: what is taken from where, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny import make_pipeline

from safetydpo.errors import SafetyDPOError
from safetydpo.models import pipeline as pipelines
from safetydpo.models.pipeline import load_network, load_pipeline, native_size, not_finite
from safetydpo.models.sampling import render
from safetydpo.training.denoiser import Denoiser


@pytest.fixture
def model(tiny, tmp_path):
    """A copy of the tiny model, to change."""
    shutil.copytree(tiny.id, tmp_path / "p")
    return tiny.model_copy(update={"id": str(tmp_path / "p")})


def changed(model, file, **values):
    """Change a JSON file of the model's folder; None takes a key out."""
    path = Path(model.id) / file
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return model


def test_a_separate_vae_is_the_one_used(tmp_path):
    model = make_pipeline(tmp_path / "p", "sdxl")
    other = load_pipeline(model).vae
    other.register_to_config(scaling_factor=0.5)
    other.save_pretrained(tmp_path / "vae")
    model = model.model_copy(update={"vae": str(tmp_path / "vae")})
    assert load_pipeline(model).vae.config.scaling_factor == 0.5
    assert load_network(model).scaling_factor == 0.5
    weights = next((tmp_path / "vae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert load_pipeline(model).vae.config.scaling_factor == 0.5


def test_large_images_are_decoded_one_by_one_and_are_the_same(tiny, monkeypatch):
    batches: list[int] = []
    pictures = []
    for largest in (16 * 16, 16 * 16 - 1):
        monkeypatch.setattr(pipelines, "VAE_PIXELS", largest)
        pipeline = load_pipeline(tiny)
        pipeline.vae.decoder.register_forward_hook(lambda _, given, __: batches.append(len(given[0])))
        pictures.append(np.stack(list(render(pipeline, ["a red circle", "a blue star"], [0, 1], tiny))))
    assert batches == [2, 1, 1]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 2


def test_training_loads_neither_vae_nor_text_encoders(tmp_path):
    model = make_pipeline(tmp_path / "p", "sdxl")
    for part in ("vae", "text_encoder", "text_encoder_2"):
        for path in (tmp_path / "p" / part).glob("*.safetensors"):
            path.unlink()
    assert Denoiser(model).network.num_parameters() > 0


def test_a_model_without_a_network_or_with_pickles_is_refused(model, tmp_path):
    weights = next((tmp_path / "p/unet").glob("*.safetensors"))
    pickle = weights.rename(weights.with_suffix(".bin"))
    for load in (load_pipeline, load_network):
        with pytest.raises(SafetyDPOError, match=r"unet/diffusion_pytorch_model\.bin is a pickle.*save_pretrained"):
            load(model)
    pickle.unlink()
    with pytest.raises(SafetyDPOError, match="cannot be loaded"):
        load_network(model)
    index = tmp_path / "p/model_index.json"
    index.write_text(index.read_text().replace('"unet"', '"transformer"'))
    with pytest.raises(
        SafetyDPOError, match=r"is a StableDiffusionPipeline with UNet2DConditionModel, of a family that is not"
    ):
        load_network(model)


def test_parts_that_no_image_needs_may_be_missing_or_pickles(model, tmp_path, capfd):
    parts = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    }
    changed(model, "model_index.json", **parts, requires_safety_checker=True)
    (tmp_path / "p/safety_checker").mkdir()
    (tmp_path / "p/safety_checker/pytorch_model.bin").write_bytes(b"never read")
    pipeline = load_pipeline(model)
    assert [getattr(pipeline, part) for part in parts] == [None, None, None]
    assert "safety checker" not in capfd.readouterr().err


@pytest.mark.parametrize("parts", [("unet", "vae", "text_encoder"), ("unet",), ("text_encoder",)])
def test_weights_that_are_there_as_a_variant_alone_are_loaded(tiny, model, tmp_path, parts):
    for part in parts:
        weights = next((tmp_path / "p" / part).glob("*.safetensors"))
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    plain, loaded = load_pipeline(tiny), load_pipeline(model)
    for part in ("unet", "vae", "text_encoder"):
        theirs = getattr(loaded, part).state_dict()
        assert all(theirs[name].equal(value) for name, value in getattr(plain, part).state_dict().items())
    assert load_network(model).network.conv_in.weight.equal(plain.unet.conv_in.weight)


@pytest.mark.parametrize(
    "kind",
    [
        "StableDiffusionInpaintPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionUpscalePipeline",
        "DDPMPipeline",
    ],
)
def test_pipelines_that_are_not_text_to_image_are_refused(model, kind):
    with pytest.raises(SafetyDPOError, match=f"is a {kind}, which is not text-to-image"):
        load_pipeline(changed(model, "model_index.json", _class_name=kind))


def test_a_unet_that_takes_a_mask_too_is_refused(model, tmp_path):
    unet: Any = UNet2DConditionModel.from_config({**load_network(model).network.config, "in_channels": 9})
    unet.save_pretrained(tmp_path / "p/unet")
    with pytest.raises(SafetyDPOError, match="its unet takes 9 channels, its VAE makes 4"):
        load_pipeline(model)


def test_tokens_without_an_embedding_are_named(model):
    tokenizer = load_pipeline(model).tokenizer
    known = len(tokenizer)
    tokenizer.add_tokens(["brulo-style", "other-style"])
    tokenizer.save_pretrained(f"{model.id}/tokenizer")
    with pytest.raises(
        SafetyDPOError, match=rf"text_encoder has {known} embeddings, none for 2 tokens .*'brulo-style'"
    ):
        load_pipeline(model)


def test_a_tokenizer_that_does_not_know_the_window_gets_the_encoders(model):
    pipeline = load_pipeline(changed(model, "tokenizer/tokenizer_config.json", model_max_length=None))
    assert pipeline.tokenizer.model_max_length == 16  # tiny.py


@pytest.mark.parametrize(
    ("unet", "vae", "size"),
    [(8, 16, (16, 16)), ([8, 12], 16, (16, 24)), (None, 24, (24, 24)), (None, [24, 32], (24, 32)), (None, None, None)],
)
def test_the_native_size_is_the_unets_or_the_vaes(model, unet, vae, size):
    changed(changed(model, "unet/config.json", sample_size=unet), "vae/config.json", sample_size=vae)
    pipeline = load_pipeline(model)  # one pixel of its latents is two of an image
    if size:
        assert native_size(pipeline) == size
    else:
        with pytest.raises(SafetyDPOError, match="does not say its size"):
            native_size(pipeline)


def test_what_is_not_finite_is_explained_by_its_cause(tiny):
    pipeline = load_pipeline(tiny)
    assert str(not_finite(pipeline, "X is not finite")).startswith(
        "X is not finite (its weights are): lower model.guidance_scale"
    )
    pipeline.unet.conv_out.bias.data[1] = torch.inf
    assert "(conv_out.bias of its unet is not): its file is damaged" in str(not_finite(pipeline, "X"))
    pipeline.unet.half()
    assert "set model.dtype to float32; if that" in str(not_finite(pipeline, "X"))
