"""Each model family goes the whole way: render, features, train, merge, load in plain diffusers, render."""

import math

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from tiny import FAMILIES, ROLES, make_pipeline, samples, train_config

from safetydpo.config.merging import Merge
from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.features.stage import write_features
from safetydpo.images.stage import render_pairs
from safetydpo.merging.stage import merge_experts, write_coactivation
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.samples import PAIR_ROLES
from safetydpo.training.stage import train_expert
from safetydpo.training.trainer import Objective, make_accelerator

# Stable Diffusion's noise schedule by hand: betas are squares of a line from sqrt(0.00085) to sqrt(0.012).
ABAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp(family) / "a-model", family)  # the name says nothing


@pytest.fixture(scope="module")
def features(model, tmp_path_factory):
    """Path of the features of two rendered pairs."""
    folder = tmp_path_factory.mktemp("features")
    rows = [
        {"pair_id": f"p{i}", "unsafe_prompt": f"a {c} circle and a brulo", "safe_prompt": f"a {c} circle"}
        for i, c in enumerate(("red", "blue"))
    ]
    write_parquet(rows, folder / "prompts.parquet")
    render_pairs(folder / "prompts.parquet", model, 0, 1, 0, folder / "pairs.parquet")
    out = folder / "features.safetensors"
    write_features([str(folder / "pairs.parquet")], folder / "prompts.parquet", ROLES, model, out)
    return out


def test_the_whole_way(model, features, tmp_path):
    folders = {}
    for name in ("ring", "cross"):
        folders[name] = str(tmp_path / name)
        where = {"out": folders[name], "checkpoints": tmp_path / "checkpoints"}
        config = train_config(learning_rate=0.3)
        train_expert([str(features)], None, model, config, steps=2, seed=0, name=name, **where)
        assert read_parquet(tmp_path / name / "training.parquet").preference_loss[0] == pytest.approx(
            math.log(2), abs=1e-6
        )
    merge_config, wins = Merge(calibration_prompts=2, calibration_timesteps=[500]), tmp_path / "wins.parquet"
    paths = {"ring": [str(features)], "cross": [str(features)]}
    write_coactivation(folders, paths, model, merge_config, 0, wins)
    merge_experts("co-merge", folders, str(wins), model, merge_config, 0, tmp_path / "merged")
    pipeline = DiffusionPipeline.from_pretrained(model.id)
    pipeline.set_progress_bar_config(disable=True)
    before = image(pipeline, model)
    pipeline.load_lora_weights(str(tmp_path / "merged"))
    assert np.abs(image(pipeline, model) - before).max() > 1e-3


def image(pipeline, model):
    draw = torch.Generator().manual_seed(0)
    size = {"height": model.height, "width": model.width, "num_inference_steps": 2}
    return pipeline("a red circle", **size, generator=draw, output_type="np").images


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_first_loss_is_ln_2_in_every_precision(model, features, precision):
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process, says accelerate
    config = train_config(mixed_precision=precision, loss="dpo")
    denoiser = Denoiser(model, precision)
    denoiser.add_adapter(config, 0)
    pairs = samples(read_features([features], model.id), config)
    try:
        accelerator = make_accelerator(config, torch.device("cpu"))
        denoiser.policy = accelerator.prepare(denoiser.unet)
        terms = Objective(denoiser, pairs, None, config).terms(0)
        assert terms["loss"].item() == pytest.approx(math.log(2), abs=1e-6)
        accelerator.backward(terms["loss"])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert denoiser.unet.conv_in.weight.dtype == {"no": torch.float32, "bf16": torch.bfloat16}[precision]
    assert {p.dtype for p in denoiser.parameters} == {torch.float32}
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters)


def test_targets_follow_the_familys_formula(family, model, features):
    data, denoiser = read_features([features], model.id), Denoiser(model)
    for role in PAIR_ROLES:
        data.shards[0][f"{role}_std"].zero_()  # no posterior draw: x0 = scaling * mean
    batch = denoiser.noised(data, PAIR_ROLES, [1, 0], [11, 12])
    scaling = {"sd15": 0.18215, "sd21": 0.18215, "sdxl": 0.13025}[family]
    x0 = scaling * torch.cat([data.shards[0][f"{role}_mean"][[1, 0]] for role in PAIR_ROLES])
    abar = ABAR[batch.timesteps][:, None, None, None]
    if family == "sd21":  # v = sqrt(abar) noise - sqrt(1 - abar) x0, x_t = sqrt(abar) x0 + sqrt(1 - abar) noise
        noise = (batch.noisy_latents - abar.sqrt() * x0) / (1 - abar).sqrt()
        assert torch.allclose(batch.target, abar.sqrt() * noise - (1 - abar).sqrt() * x0, atol=1e-3)
    else:
        assert torch.allclose(batch.noisy_latents, abar.sqrt() * x0 + (1 - abar).sqrt() * batch.target, atol=1e-4)


def test_sdxl_is_told_its_size_and_pooled_embeddings_as_its_pipeline_tells_it(tmp_path):
    model = make_pipeline(tmp_path / "p", "sdxl").model_copy(update={"height": 24, "guidance_scale": 1.0})
    pipeline, seen = load_pipeline(model), {}
    forward = pipeline.unet.forward

    def spy(sample, timestep, encoder_hidden_states, **options):
        seen.setdefault("pipeline", options["added_cond_kwargs"])
        return forward(sample, timestep, encoder_hidden_states, **options)

    pipeline.unet.forward = spy
    pipeline("a red circle", height=24, width=16, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    write_parquet([{"pair_id": "p", "unsafe_prompt": "a red circle", "safe_prompt": "a blue circle"}], tmp_path / "t")
    render_pairs(tmp_path / "t", model, 0, 1, 0, tmp_path / "pairs")
    write_features([str(tmp_path / "pairs")], tmp_path / "t", ROLES, model, tmp_path / "f")
    denoiser = Denoiser(model)
    denoiser.policy = lambda *args, added_cond_kwargs, **_: (
        seen.update(ours=added_cond_kwargs) or denoiser.unet(*args, added_cond_kwargs=added_cond_kwargs, **_)
    )
    denoiser.predict(denoiser.noised(read_features([tmp_path / "f"], model.id), ("unsafe",), [0], [1]))
    assert torch.equal(seen["ours"]["time_ids"], seen["pipeline"]["time_ids"].float())
    assert torch.allclose(seen["ours"]["text_embeds"], seen["pipeline"]["text_embeds"], atol=1e-5)


def test_features_of_another_architecture_are_refused(features, model, tmp_path):
    data, denoiser = read_features([features], model.id), Denoiser(model)
    denoiser.check(data)
    data.shards[0]["encoder_hidden_states"] = torch.zeros(3, 16, 7)
    with pytest.raises(SafetyDPOError, match=r"text embeddings of width 7, the UNet of .* takes 4 and"):
        denoiser.check(data)
