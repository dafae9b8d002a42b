"""Each model family goes the whole way: render, features, train, merge, load in plain diffusers, render."""

import math

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from tiny import FAMILIES, ROLES, SCALING, SHIFT, TRANSFORMERS, make_pipeline, samples, train_config

from safetydpo.config.merging import Merge
from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.features.stage import write_features
from safetydpo.images.stage import render_pairs
from safetydpo.merging.stage import merge_experts, write_coactivation
from safetydpo.models.index import Index
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import images_of
from safetydpo.models.text_encoder import encode_prompts
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.storage.images import read_images
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
    absent = dict.fromkeys(Index(model).missing)  # which diffusers wants to be told
    pipeline = DiffusionPipeline.from_pretrained(model.id, **absent)
    pipeline.set_progress_bar_config(disable=True)
    before = image(pipeline, model)
    pipeline.load_lora_weights(str(tmp_path / "merged"))
    assert np.abs(image(pipeline, model) - before).max() > 1e-3


def image(pipeline, model):
    draw = torch.Generator().manual_seed(0)
    size = {"height": model.height, "width": model.width, "num_inference_steps": 2}
    return pipeline("a red circle", **size, **model.call, generator=draw, output_type="np").images


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_first_loss_is_ln_2_in_every_precision(model, features, precision):
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process, says accelerate
    config = train_config(mixed_precision=precision, loss="dpo")
    denoiser = Denoiser(model, precision)
    denoiser.add_adapter(config, 0)
    pairs = samples(read_features([features], model.id), config)
    try:
        accelerator = make_accelerator(config, torch.device("cpu"))
        denoiser.policy = accelerator.prepare(denoiser.network)
        terms = Objective(denoiser, pairs, None, config).terms(0)
        assert terms["loss"].item() == pytest.approx(math.log(2), abs=1e-6)
        accelerator.backward(terms["loss"])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    frozen = {p.dtype for p in denoiser.network.parameters() if not p.requires_grad}
    assert frozen == {{"no": torch.float32, "bf16": torch.bfloat16}[precision]}
    assert {p.dtype for p in denoiser.parameters} == {torch.float32}
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters)


def test_targets_follow_the_familys_formula(family, model, features):
    data, denoiser = read_features([features], model.id), Denoiser(model)
    for role in PAIR_ROLES:
        data.shards[0][f"{role}_std"].zero_()  # no posterior draw: x0 = scaling * (mean - shift)
    batch = denoiser.noised(data, PAIR_ROLES, [1, 0], [11, 12])
    shift = SHIFT if family in TRANSFORMERS else 0
    mean = torch.cat([data.shards[0][f"{role}_mean"][[1, 0]] for role in PAIR_ROLES])
    x0 = SCALING.get(family, 0.18215) * (mean - shift)
    if family in TRANSFORMERS:  # x_s = (1 - s) x0 + s noise, target noise - x0: so x_s = x0 + s target
        sigmas = batch.timesteps[:, None, None, None] / 1000
        assert ((sigmas > 0) & (sigmas < 1)).all()
        assert torch.allclose(batch.noisy_latents, x0 + sigmas * batch.target, atol=1e-5)
        noise = batch.target + x0
        assert torch.allclose(noise[:2], noise[2:], atol=1e-5)  # of one pair
        return
    abar = ABAR[batch.timesteps][:, None, None, None]
    if family == "sd21":  # v = sqrt(abar) noise - sqrt(1 - abar) x0, x_t = sqrt(abar) x0 + sqrt(1 - abar) noise
        noise = (batch.noisy_latents - abar.sqrt() * x0) / (1 - abar).sqrt()
        assert torch.allclose(batch.target, abar.sqrt() * noise - (1 - abar).sqrt() * x0, atol=1e-3)
    else:
        assert torch.allclose(batch.noisy_latents, abar.sqrt() * x0 + (1 - abar).sqrt() * batch.target, atol=1e-4)


def test_the_network_is_called_as_the_familys_own_pipeline_calls_it(family, model):
    """Two prompts of different lengths in one batch, the second step, with and without guidance."""
    pipeline = load_pipeline(model)
    network, seen = pipeline.family.network(pipeline), []
    forward = network.forward

    def spy(*args, **kwargs):
        answer = forward(*args, **kwargs)
        seen.append((args, kwargs, answer))
        return answer

    prompts = ["a red circle", "a blue square and a brulo"]
    for guidance in (model.guidance_scale, 1.0):
        settings = model.model_copy(update={"guidance_scale": guidance})
        network.forward = spy
        images_of(pipeline, prompts, [1, 2], settings)
        network.forward = forward
        args, kwargs, answer = seen[-1]
        call = pipeline.family.read_call(args, kwargs)
        with torch.no_grad():
            ours = pipeline.family.forward(network, call.noisy_latents, call.timesteps, call.condition, settings)
        theirs = pipeline.family.answer(ours, {"return_dict": False})[0]
        expected = answer[0] if isinstance(answer, tuple) else answer.sample
        for one, other in zip(theirs, expected, strict=True):  # a tensor, or a list of them
            assert torch.allclose(one, other, atol=1e-5)
        condition = encode_prompts(pipeline, prompts, settings)
        text = slice(0, 2) if call.text_first or len(call.noisy_latents) == 2 else slice(2, 4)
        for name in pipeline.family.conditions:
            assert torch.allclose(call.condition[name][text].float(), condition[name].float(), atol=1e-5)
        own = next(at for at in pipeline.scheduler.timesteps[1:2])
        assert torch.allclose(call.timesteps.float(), own.float(), atol=1e-3)


def test_rendered_noise_is_the_very_noise_of_the_images(model, features, tmp_path):
    """What the pipeline begins with, against what training noises with, whatever the key; mirrored with the images."""
    prompts, pairs = features.parent / "prompts.parquet", features.parent / "pairs.parquet"
    write_features([str(pairs)], prompts, ROLES, model, tmp_path / "f", flip=True)
    data, denoiser = read_features([tmp_path / "f"], model.id), Denoiser(model)
    latents = torch.zeros(2, *data.latent_shape)
    for name in [name for name in data.shards[0] if name.endswith(("_mean", "_std"))]:
        data.shards[0][name].fill_(denoiser.shift if name.endswith("_mean") else 0)  # so that x0 is 0
    pipeline, begun = load_pipeline(model), []
    network = pipeline.family.network(pipeline)
    forward = network.forward
    network.forward = lambda *a, **k: begun.append(pipeline.family.read_call(a, k)) or forward(*a, **k)
    images_of(pipeline, ["a red circle", "a blue circle"], list(read_images(pairs).seed), model)
    started = begun[0].noisy_latents[:2]
    if getattr(pipeline.scheduler, "init_noise_sigma", 1) > 1:  # Euler's of SDXL: scaled up, and down for the network
        started = started * (pipeline.scheduler.sigmas[0] ** 2 + 1) ** 0.5 / pipeline.scheduler.init_noise_sigma
    batch = denoiser.noised(data, ("safe",), [0, 1], [5, 6], timestep=999, flips=[False, True], rendered=True)
    unit = denoiser.prediction.add_noise(latents, torch.ones_like(latents), batch.timesteps)
    noise = batch.noisy_latents / unit
    assert torch.allclose(noise[0], started[0], atol=1e-4)
    assert torch.allclose(noise[1], started[1].flip(-1), atol=1e-4)
    fresh = denoiser.noised(data, ("safe",), [0, 1], [5, 6], timestep=999).noisy_latents / unit
    assert not torch.allclose(fresh[0], started[0], atol=0.1)


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
        seen.update(ours=added_cond_kwargs) or denoiser.network(*args, added_cond_kwargs=added_cond_kwargs, **_)
    )
    denoiser.predict(denoiser.noised(read_features([tmp_path / "f"], model.id), ("unsafe",), [0], [1]))
    assert torch.equal(seen["ours"]["time_ids"], seen["pipeline"]["time_ids"].float())
    assert torch.allclose(seen["ours"]["text_embeds"], seen["pipeline"]["text_embeds"], atol=1e-5)


def test_features_of_another_architecture_are_refused(features, model, tmp_path):
    data, denoiser = read_features([features], model.id), Denoiser(model)
    denoiser.check(data)
    data.shards[0]["encoder_hidden_states"] = torch.zeros(3, 16, 7)
    with pytest.raises(SafetyDPOError, match=r"text embeddings of width 7, .* takes 4 and"):
        denoiser.check(data)
