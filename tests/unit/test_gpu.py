"""On a GPU: what the CPU computes, and training in half precision. Skipped where there is none."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from snakes import ROOT
from tiny import DEMO_JUDGES, FAMILIES, NO_GPU, adapted, make_pipeline, samples, train_config

from safetydpo.config.judges import Judges
from safetydpo.demo.grammar import ALL_SCENES
from safetydpo.demo.scenes import draw
from safetydpo.features.sets import read_features
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.verdicts import verdict_of
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.running.devices import device_of
from safetydpo.training.denoiser import Denoiser, Noised
from safetydpo.training.trainer import Objective, Trainer, make_accelerator

pytestmark = NO_GPU
PROMPTS = ["a red circle on a teal field", "a blue star", "a green square and a leaf"]


def on(device, model):
    return model.model_copy(update={"device": device})


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_those_of_the_cpu(family, tmp_path):
    model = make_pipeline(tmp_path / "m", family)
    images = [
        np.stack(list(render(load_pipeline(on(d, model)), PROMPTS, [1, 2, 3], on(d, model)))) for d in ("cpu", "cuda")
    ]
    assert np.abs(images[0].astype(int) - images[1].astype(int)).max() <= 2


def trained(device, precision, tiny, tiny_features, **changes):
    """Log of four steps."""
    config = train_config(mixed_precision=precision, steps=4, **changes)
    denoiser = Denoiser(on(device, tiny), precision)
    denoiser.add_adapter(config, 0)
    pairs = samples(read_features([tiny_features / "features.safetensors"], tiny.id), config)
    AcceleratorState._reset_state(reset_partial_state=True)  # one device a process, says accelerate
    try:
        accelerator = make_accelerator(config, denoiser.device)
        return Trainer(Objective(denoiser, pairs, None, config), 4, "x", accelerator).fit()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("reference", ["exact", "cached"])
def test_losses_are_those_of_the_cpu(reference, tiny, tiny_features):
    # beta 5000 would magnify the rounding of a GPU's convolutions (TF32) to some percent
    cpu, gpu = (trained(d, "no", tiny, tiny_features, reference=reference, draws=4, beta=50) for d in ("cpu", "cuda"))
    for key in ("preference_loss", "winner_error", "loser_error"):
        assert gpu[key].to_list() == pytest.approx(cpu[key].to_list(), rel=1e-2)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_compiled_training_is_the_same_to_rounding(precision, tiny, tiny_features):
    plain, compiled = (trained("cuda", precision, tiny, tiny_features, beta=50, compile=c) for c in (False, True))
    assert compiled.preference_loss[0] == pytest.approx(math.log(2), abs=1e-6)
    for key in ("preference_loss", "winner_error", "loser_error"):
        assert compiled[key].to_list() == pytest.approx(plain[key].to_list(), rel=1e-2)


@pytest.mark.parametrize(
    ("family", "compiled"), [*((name, False) for name in FAMILIES if name != "z-image"), ("sd15", True)]
)
def test_replayed_passes_are_those_of_every_family(family, compiled, tmp_path):
    model = on("cuda", make_pipeline(tmp_path / "m", family))
    pipeline = load_pipeline(model)
    denoisers = [adapted(Denoiser(model), train_config(cuda_graphs=c, compile=c and compiled)) for c in (False, True)]
    shape = (2, denoisers[0].family.latent_channels(denoisers[0].network.config), 8, 8)
    for turn in range(3):
        with torch.no_grad():
            condition = pipeline.family.encode(pipeline, [PROMPTS[turn], PROMPTS[turn - 1]], model)
        noisy_latents = torch.randn(shape, generator=torch.Generator().manual_seed(turn)).to("cuda")
        timesteps = torch.tensor([100 + turn, 900 - turn], device="cuda")
        batch = Noised(noisy_latents, timesteps, noisy_latents, {k: v.to("cuda") for k, v in condition.items()})
        found, grads = [], []
        for denoiser in denoisers:
            reference, predicted = denoiser.reference(batch), denoiser.predict(batch)
            for parameter in denoiser.parameters:
                parameter.grad = None
            predicted.square().mean().backward()
            found.append((reference, predicted))
            grads.append(torch.cat([p.grad.ravel() for p in denoiser.parameters if p.grad is not None]))
        for mine, other in zip(*found, strict=True):
            assert (mine - other).norm() <= 1e-3 * other.norm()
        assert (grads[0] - grads[1]).norm() <= 1e-2 * grads[0].norm()


HALF = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from safetydpo.config.model import Model
from test_gpu import trained
log = trained("cuda", sys.argv[3], Model.model_validate_json(sys.argv[4]), Path(sys.argv[5]))
print(log.preference_loss[0], log.preference_loss.isna().sum(), log.winner_error.isna().sum())
"""


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_begins_at_ln_2_and_stays_finite(precision, tiny, tiny_features):
    paths = [str(ROOT / "tests"), str(ROOT / "tests/unit")]  # accelerate: one precision a process
    command = [sys.executable, "-c", HALF, *paths, precision, tiny.model_dump_json(), str(tiny_features)]
    first, *missing = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-3:]
    assert float(first) == pytest.approx(math.log(2), abs=1e-5)
    assert missing == ["0", "0"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_judges_see_what_they_see_on_the_cpu(dtype):
    config = Judges(**DEMO_JUDGES)
    images = [draw(scene, np.random.default_rng(0)) for scene in ALL_SCENES[::30]]
    prompts = ["a red circle"] * len(images)
    cpu = pd.DataFrame(Eyes(config, device_of("cpu")).look(images, prompts))
    gpu = pd.DataFrame(Eyes(config.model_copy(update={"dtype": dtype}), device_of("cuda")).look(images, prompts))
    assert verdict_of(config.headline, gpu).equals(verdict_of(config.headline, cpu))
    exact = dtype == "float32"
    assert gpu.clip_score.to_list() == pytest.approx(cpu.clip_score.to_list(), abs=0.05 if exact else 1)
    assert gpu.q16.to_list() == pytest.approx(cpu.q16.to_list(), abs=1e-3 if exact else 0.03)
