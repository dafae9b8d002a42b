"""ESD against its formula, on tiny models."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from tiny import make_pipeline

from safetydpo.baselines import esd as esd_module
from safetydpo.baselines.esd import _Eraser, ddim_of, erasing_target, trains
from safetydpo.baselines.stage import erase
from safetydpo.config.baselines import Baselines, Esd
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import open_method
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import read_safetensors

CONCEPTS = ["brulo", "odalo", "gumet"]


def test_esds_target_turns_the_guidance_round():
    assert erasing_target(torch.tensor([1.0]), torch.tensor([3.0]), eta=1.0).item() == -1.0
    assert erasing_target(torch.tensor([1.0]), torch.tensor([3.0]), eta=0.5).item() == 0.0


def test_which_parameters_esd_trains(tiny):
    names = [name for name, _ in load_pipeline(tiny).unet.named_parameters()]
    x, u = ({n for n in names if trains(n, variant)} for variant in ("esd-x", "esd-u"))
    assert x == {n for n in names if "attn2" in n}
    assert set(names) - x - u == {n for n in names if n.startswith(("time_embedding", "conv_out"))}
    assert not x & u


def small(steps, **changes):
    return Baselines(concepts=CONCEPTS, esd=Esd(steps=steps, learning_rate=1e-3, num_inference_steps=4, **changes))


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_esd_moves_predictions_to_its_target_and_nothing_else(tmp_path, family):
    model = make_pipeline(tmp_path / "p", family)
    erase("esd-x", model, small(40), 0, tmp_path / "c", tmp_path / "w.safetensors")
    changed, _ = read_safetensors(tmp_path / "w.safetensors")
    assert all("attn2" in name for name in changed)
    before = load_pipeline(model)
    eraser = _Eraser(before, CONCEPTS, Esd(num_inference_steps=4), model)
    after = open_method("esd-x", model, small(1), tmp_path / "w.safetensors").unet
    latents, t = torch.randn((1, *eraser.shape), generator=torch.Generator().manual_seed(1)), torch.tensor(500)
    with torch.no_grad():
        uncond, text = eraser.predict(eraser.frozen, latents, t, [-1, 0])
        now = eraser.predict(after, latents, t, [0])[0]
    target = erasing_target(uncond, text, 1.0)
    assert (now - target).norm() < (text - target).norm()


LINE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


@pytest.mark.parametrize(
    "kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler, DDIMScheduler, DDPMScheduler]
)
@pytest.mark.parametrize("steps", [4, 50])
@pytest.mark.filterwarnings("ignore")  # of diffusers, about such configs
def test_esd_samples_with_ddims_formula_and_clips_nothing(tiny, kind, steps):
    """x0 = (x - sqrt(1 - abar) eps) / sqrt(abar), then the same noise at the timestep that the next step begins at.

    Schedulers made in code say nothing of clipping, or have defaults that are for pixels.
    """
    pipeline = load_pipeline(tiny)
    parts = {name: part for name, part in pipeline.components.items() if name != "scheduler"}
    pipeline = type(pipeline)(**parts, scheduler=kind(**LINE), requires_safety_checker=False)
    scheduler = _Eraser(pipeline, CONCEPTS, Esd(num_inference_steps=steps), tiny).scheduler
    x, eps = 5.0, 0.5
    for t, following in zip(scheduler.timesteps[:-1].tolist(), scheduler.timesteps[1:].tolist(), strict=True):
        x0 = (x - (1 - ABAR[t]) ** 0.5 * eps) / ABAR[t] ** 0.5
        found = scheduler.step(torch.tensor([[[[eps]]]]), t, torch.tensor([[[[x]]]]))
        assert x0 > 1.5
        assert found.pred_original_sample.item() == pytest.approx(x0, rel=1e-4)
        wanted = ABAR[following] ** 0.5 * x0 + (1 - ABAR[following]) ** 0.5 * eps
        assert found.prev_sample.item() == pytest.approx(wanted, rel=1e-4)


def test_esd_keeps_what_a_schedulers_config_says():
    said = LINE | {"prediction_type": "v_prediction", "steps_offset": 1, "timestep_spacing": "leading"}
    config = ddim_of(DDIMScheduler(**said, rescale_betas_zero_snr=True, thresholding=True).config).config
    assert {key: config[key] for key in said} == said
    assert (config.rescale_betas_zero_snr, config.thresholding, config.clip_sample) == (True, False, False)
    unsaid = ddim_of(LCMScheduler().config).config  # its own defaults are Stable Diffusion's line, DDIM's are not
    assert {key: unsaid[key] for key in LINE} == LINE


def test_esd_of_a_flow_model_is_refused_in_a_sentence(tiny):
    pipeline = load_pipeline(tiny)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(SafetyDPOError, match="training knows epsilon and v_prediction"):
        _Eraser(pipeline, CONCEPTS, Esd(), tiny)


def test_a_timestep_is_of_the_bin_that_the_latent_has_reached(tiny):
    eraser = _Eraser(load_pipeline(tiny), CONCEPTS, Esd(num_inference_steps=4), tiny)
    bins = [int(t) for t in eraser.scheduler.timesteps]
    seen = set()
    for seed in range(40):
        _, timestep = eraser.partly_denoised(0, torch.Generator().manual_seed(seed))
        index = next(i for i in range(4) if i == 3 or timestep > bins[i + 1])
        assert timestep <= bins[index]
        seen.add(index)
    assert seen == {0, 1, 2, 3}


def test_a_killed_esd_goes_on_bit_identical(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(esd_module, "CHECKPOINT_EVERY", 5)
    erase("esd-u", tiny, small(12), 0, tmp_path / "whole", tmp_path / "whole.safetensors")
    assert list((tmp_path / "whole").glob("*.pt")) == []
    loss, count = _Eraser.loss, iter(range(99))

    def dies(self, concept, generator):
        if next(count) == 8:
            raise KeyboardInterrupt
        return loss(self, concept, generator)

    monkeypatch.setattr(_Eraser, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        erase("esd-u", tiny, small(12), 0, tmp_path / "cut", tmp_path / "cut.safetensors")
    monkeypatch.setattr(_Eraser, "loss", loss)
    with pytest.raises(SafetyDPOError, match=r"was made with eta = 1\.0, this run has 2\.0"):
        erase("esd-u", tiny, small(12, eta=2.0), 0, tmp_path / "cut", tmp_path / "cut.safetensors")
    erase("esd-u", tiny, small(12), 0, tmp_path / "cut", tmp_path / "cut.safetensors")
    whole, cut = (read_safetensors(tmp_path / f"{name}.safetensors")[0] for name in ("whole", "cut"))
    assert all(whole[name].equal(cut[name]) for name in whole)


def test_weights_that_the_last_step_ruins_are_not_written(tiny, tmp_path, monkeypatch):
    """The loss of the only step is a number, what Adam makes of it is not."""
    step = torch.optim.Adam.step

    def ruins(self, *args):
        step(self, *args)
        self.param_groups[0]["params"][0].data.view(-1)[0] = torch.inf

    monkeypatch.setattr(torch.optim.Adam, "step", ruins)
    with pytest.raises(SafetyDPOError, match=r"esd-x: \S+attn2\S+: 1 of \d+ values are NaN or infinite; lower esd"):
        erase("esd-x", tiny, small(1), 0, tmp_path / "c", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_a_damaged_model_is_not_called_a_learning_rate(tiny, tmp_path, monkeypatch):
    def damaged(*args):
        pipeline = load_pipeline(*args)
        pipeline.unet.conv_out.bias.data[0] = torch.nan
        return pipeline

    monkeypatch.setattr("safetydpo.baselines.stage.load_pipeline", damaged)
    with pytest.raises(
        SafetyDPOError, match=r"esd-x: the predictions of .* not finite \(conv_out.bias of its unet is not"
    ):
        erase("esd-x", tiny, small(1), 0, tmp_path / "c", tmp_path / "w.safetensors")


def test_a_diverging_esd_stops_and_says_where(tiny, tmp_path):
    wild = Baselines(concepts=CONCEPTS, esd=Esd(steps=30, learning_rate=1e30, num_inference_steps=2))
    with pytest.raises(SafetyDPOError, match=r"esd-x: the loss is nan at step \d+, concept '\w+': lower esd"):
        erase("esd-x", tiny, wild, 0, tmp_path / "c", tmp_path / "w.safetensors")
