"""ESD against its formula, on tiny models."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from tiny import make_pipeline
from velocity import SHIFTS, sigmas, velocity

from safetydpo.baselines import esd as esd_module
from safetydpo.baselines.esd import _Eraser, erasing_target, sampler_of, trains
from safetydpo.baselines.stage import erase
from safetydpo.config.baselines import Baselines, Esd
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import open_method
from safetydpo.models.families.registry import FAMILIES
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import read_safetensors

CONCEPTS = ["brulo", "odalo", "gumet"]


def test_esds_target_turns_the_guidance_round():
    assert erasing_target(torch.tensor([1.0]), torch.tensor([3.0]), eta=1.0).item() == -1.0
    assert erasing_target(torch.tensor([1.0]), torch.tensor([3.0]), eta=0.5).item() == 0.0


def test_which_parameters_esd_trains(tiny):
    names = [name for name, _ in load_pipeline(tiny).unet.named_parameters()]
    x, u = ({n for n in names if trains(n, variant, FAMILIES[0])} for variant in ("esd-x", "esd-u"))
    assert x == {n for n in names if "attn2" in n}
    assert set(names) - x - u == {n for n in names if n.startswith(("time_embedding", "conv_out"))}
    assert not x & u


# Of one block of each transformer, by their code: what reads the text for the image's attention, and all else in it.
TEXT = {f"attn.add_{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")}
BLOCK = {
    f"attn.{part}.{kind}" for part in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out") for kind in ("weight", "bias")
}
BLOCK |= {f"attn.norm_{part}.weight" for part in ("q", "k", "added_q", "added_k")}
BLOCK |= {f"{norm}.linear.{kind}" for norm in ("norm1", "norm1_context") for kind in ("weight", "bias")}
BLOCK |= {f"{ff}.net.{i}.{kind}" for ff in ("ff", "ff_context") for i in ("0.proj", "2") for kind in ("weight", "bias")}
STREAM = {f"attention.{part}.weight" for part in ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")}
STREAM |= {f"feed_forward.w{i}.weight" for i in (1, 2, 3)} | {"adaLN_modulation.0.weight", "adaLN_modulation.0.bias"}
STREAM |= {f"{norm}{i}.weight" for norm in ("attention_norm", "ffn_norm") for i in (1, 2)}


@pytest.mark.parametrize(
    ("family", "block", "text", "rest", "blocks"),
    [
        ("sd3", "transformer_blocks.0", TEXT, BLOCK, {"transformer_blocks"}),
        ("flux-dev", "transformer_blocks.0", TEXT, BLOCK, {"transformer_blocks", "single_transformer_blocks"}),
        ("z-image", "layers.0", set(), STREAM, {"layers", "noise_refiner", "context_refiner"}),
    ],
)
def test_which_parameters_of_a_transformer_esd_trains(tmp_path, family, block, text, rest, blocks):
    pipeline = load_pipeline(make_pipeline(tmp_path / "p", family))
    names, kind = [name for name, _ in pipeline.transformer.named_parameters()], pipeline.family.kind
    x, u = ({n for n in names if trains(n, variant, kind)} for variant in ("esd-x", "esd-u"))
    assert {n.removeprefix(f"{block}.") for n in x if n.startswith(f"{block}.")} == text
    assert {n.removeprefix(f"{block}.") for n in u if n.startswith(f"{block}.")} == rest
    assert {n.split(".")[0] for n in u} == blocks  # neither embeddings nor output
    assert {n.split(".")[0] for n in x} == ({"transformer_blocks"} if text else set())


def small(steps, rate=1e-3, **changes):
    return Baselines(concepts=CONCEPTS, esd=Esd(steps=steps, learning_rate=rate, num_inference_steps=4, **changes))


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("sd15", "esd-x"), ("sd21", "esd-x"), ("sdxl", "esd-x"),
        ("sd3", "esd-x"), ("sd3-t5", "esd-u"), ("flux-dev", "esd-x"), ("flux-schnell", "esd-u"), ("z-image", "esd-u"),
    ],
)  # fmt: skip
def test_esd_moves_predictions_to_its_target_and_nothing_else(tmp_path, family, variant):
    model = make_pipeline(tmp_path / "p", family)
    rate = 1e-3 if variant == "esd-x" else 1e-4  # of most weights
    erase(variant, model, small(40, rate), 0, tmp_path / "c", tmp_path / "w.safetensors")
    changed, _ = read_safetensors(tmp_path / "w.safetensors")
    before = load_pipeline(model)
    assert changed.keys() == {
        n for n, _ in before.family.network(before).named_parameters() if trains(n, variant, before.family.kind)
    }
    eraser = _Eraser(before, CONCEPTS, Esd(num_inference_steps=4), model)
    opened = open_method(variant, model, small(1), tmp_path / "w.safetensors")
    after = opened.family.network(opened)
    latents = torch.randn((1, *eraser.shape), generator=torch.Generator().manual_seed(1))
    t = torch.tensor(500)
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
    family, pipeline = pipeline.family, type(pipeline)(**parts, scheduler=kind(**LINE), requires_safety_checker=False)
    pipeline.family = family
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
    config = sampler_of(DDIMScheduler(**said, rescale_betas_zero_snr=True, thresholding=True).config).config
    assert {key: config[key] for key in said} == said
    assert (config.rescale_betas_zero_snr, config.thresholding, config.clip_sample) == (True, False, False)
    unsaid = sampler_of(LCMScheduler().config).config  # its own defaults are Stable Diffusion's line, DDIM's are not
    assert {key: unsaid[key] for key in LINE} == LINE


def test_esd_of_another_prediction_is_refused_in_a_sentence(tiny):
    pipeline = load_pipeline(tiny)
    pipeline.scheduler = DDIMScheduler(prediction_type="sample")
    with pytest.raises(SafetyDPOError, match=r"predicts sample .* training knows epsilon, v_prediction and flow"):
        _Eraser(pipeline, CONCEPTS, Esd(), tiny)


@pytest.mark.parametrize("family", SHIFTS)
def test_a_flow_models_latent_is_denoised_by_eulers_steps(tmp_path, family):
    """x + (s_next - s) v by hand, v guided by two predictions; of FLUX, whose one prediction is guided, by that."""
    model = make_pipeline(tmp_path / "p", family)
    pipeline = load_pipeline(model)
    eraser, line = _Eraser(pipeline, CONCEPTS, Esd(num_inference_steps=4, guidance_scale=2.5), model), sigmas(family, 4)
    assert eraser.scheduler.timesteps.tolist() == pytest.approx([1000 * s for s in line[:4]], rel=1e-5)
    for seed in range(6):
        draw = torch.Generator().manual_seed(seed)
        index = int(torch.randint(4, (), generator=draw))
        x = torch.randn((1, 4, 8, 8), generator=draw)
        for s, following in pairwise(line[: index + 1]):
            text = velocity(pipeline, x, 1000 * s, CONCEPTS[1], model)
            if not family.startswith("flux"):
                uncond = velocity(pipeline, x, 1000 * s, "", model)
                text = uncond + 2.5 * (text - uncond)
            x = x + (following - s) * text
        share = float(torch.rand((), generator=draw))
        latents, timestep = eraser.partly_denoised(1, torch.Generator().manual_seed(seed))
        assert torch.allclose(latents, x, atol=1e-4)
        assert timestep.item() == pytest.approx(
            1000 * (line[index] - share * (line[index] - line[index + 1])), rel=1e-5
        )


@pytest.mark.parametrize("family", ["flux-dev", "z-image"])
def test_a_latent_is_denoised_as_the_model_renders(tmp_path, family):
    """All of the steps, against the pipeline's own."""
    model = make_pipeline(tmp_path / "p", family).model_copy(update={"num_inference_steps": 3})
    pipeline = load_pipeline(model)
    eraser = _Eraser(pipeline, CONCEPTS, Esd(num_inference_steps=3, guidance_scale=model.guidance_scale), model)
    seed = next(s for s in range(99) if torch.randint(3, (), generator=torch.Generator().manual_seed(s)) == 2)
    draw, kept = torch.Generator().manual_seed(seed), []
    torch.randint(3, (), generator=draw)
    noise = pipeline.family.starting_latents(torch.randn((1, 4, 8, 8), generator=draw), torch.float32)
    pipeline(
        prompt=[CONCEPTS[0]], latents=noise, height=16, width=16, num_inference_steps=3, output_type="latent",
        callback_on_step_end=lambda pipeline, step, t, values: kept.append(values["latents"]) or values,
        **pipeline.family.render_options(model),
    )  # fmt: skip
    latents, _ = eraser.partly_denoised(0, torch.Generator().manual_seed(seed))
    assert torch.allclose(pipeline.family.starting_latents(latents, torch.float32), kept[1], atol=1e-4)


@pytest.mark.parametrize("family", ["sd3", "flux-dev", "z-image"])
def test_esds_error_on_velocities_by_hand(tmp_path, family):
    """Mean of (v - (uncond - eta (text - uncond)))^2; at the start v is text, so the error is mean((1 + eta)^2 d^2)."""
    model = make_pipeline(tmp_path / "p", family)
    pipeline = load_pipeline(model)
    eraser = _Eraser(pipeline, CONCEPTS, Esd(num_inference_steps=4, eta=0.5), model)
    latents, timestep = eraser.partly_denoised(2, torch.Generator().manual_seed(3))
    uncond, text = (velocity(pipeline, latents, timestep.item(), prompt, model) for prompt in ("", CONCEPTS[2]))
    expected = (1.5 * (text - uncond)).square().mean().item()
    found = eraser.loss(2, torch.Generator().manual_seed(3))
    assert found.item() == pytest.approx(expected, rel=1e-3)
    found.backward()
    assert all(p.grad is None for p in eraser.frozen.parameters())


def test_what_a_family_cannot_do_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("safetydpo.baselines.stage.load_pipeline", None)
    for family, method, why in (
        ("z-image", "esd-x", "text reaches the image through attention that both share"),
        ("sd3", "uce", "it has no cross-attention"),
        ("flux-dev", "uce", "it has no cross-attention"),
    ):
        model = make_pipeline(tmp_path / family, family)
        with pytest.raises(SafetyDPOError, match=rf"^{method} cannot be done with .*, of family \S+: {why}.*; take it"):
            erase(method, model, small(1), 0, tmp_path / "c", tmp_path / "w.safetensors")


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


@pytest.mark.parametrize("family", ["sd15", "sd3", "z-image"])
def test_a_killed_esd_goes_on_bit_identical(family, tmp_path, monkeypatch):
    tiny = make_pipeline(tmp_path / "p", family)
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
