"""Safe Latent Diffusion against its formula."""

from itertools import pairwise

import pytest
import torch
from tiny import make_pipeline
from velocity import sigmas, velocity

from safetydpo.config.baselines import Baselines
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import open_method
from safetydpo.methods.sld import PRESETS, Preset, safety_guidance
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render

PROMPTS = ["a red circle", "a blue star and a brulo", "a green square"]


def test_safety_guidance_by_hand():
    """s = 10, lambda = 0.1: weight min(1, 10 |d|) where d < 0.1, else 0."""
    uncond, text, safety = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.05, 0.5, -1.0]), torch.tensor([0.0, 0.2, 1.0])
    nu = torch.tensor([1.0, 2.0, 3.0])
    guidance, momentum = safety_guidance(uncond, text, safety, nu, Preset(10, 0, 0.1, 0.5, 0.7))
    # d = 0.05, 0.3, -2: weights 0.5, 0, 1; weight * (safety - uncond) = 0, 0, 1; plus 0.5 nu
    assert guidance.tolist() == pytest.approx([0.5, 1.0, 2.5])
    assert momentum.tolist() == pytest.approx([0.7 + 0.15, 1.4 + 0.3, 2.1 + 0.75])
    # a velocity's difference of 0.3 is one of noise of 0.03 at alpha = 0.01: below the threshold
    scaled, _ = safety_guidance(uncond, text, safety, 0 * nu, Preset(10, 0, 0.1, 0.0, 0.0), unit=0.1)
    assert scaled.tolist() == pytest.approx([0.0, 0.3 * (0.2 - 1.0), 1.0])


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_sld_is_its_formula_step_by_step(tmp_path, family, monkeypatch):
    """An independent loop: three separate forward passes a step, the formula, the scheduler."""
    model = make_pipeline(tmp_path / "p", family)
    monkeypatch.setitem(PRESETS, "weak", Preset(2000, 25, 0.05, 0.5, 0.7))  # warm-up of half the steps
    model = model.model_copy(update={"num_inference_steps": 4})
    baselines = Baselines(sld_concept="a brulo")
    found = next(render(open_method("sld-weak", model, baselines), PROMPTS[1:2], [5], model))
    expected = _by_hand(model, PROMPTS[1], 5, "a brulo", PRESETS["weak"])
    assert abs(found.astype(int) - expected.astype(int)).max() <= 1
    plain = next(render(load_pipeline(model), PROMPTS[1:2], [5], model))
    assert (found != plain).any()


@torch.no_grad()
def _by_hand(model, prompt, seed, concept, preset):
    pipe = load_pipeline(model)
    scheduler, unet = pipe.scheduler, pipe.unet

    def conditions(text):
        encoded = pipe.encode_prompt([text], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        if len(encoded) == 2:
            return {"encoder_hidden_states": encoded[0]}
        size = [model.height, model.width]
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)
        zeros = text == "" and pipe.config.force_zeros_for_empty_prompt
        states, pooled = (torch.zeros_like(encoded[i]) if zeros else encoded[i] for i in (0, 2))
        return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}

    kinds = [conditions(text) for text in ("", prompt, concept)]
    scheduler.set_timesteps(model.num_inference_steps)
    shape = (1, unet.config.in_channels, *(side // pipe.vae_scale_factor for side in (model.height, model.width)))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
    nu = torch.zeros(shape)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.scale_model_input(latents, t)
        uncond, text, safe = (unet(x, t, **kind).sample for kind in kinds)
        velocity = scheduler.config.prediction_type == "v_prediction"
        d = (text - safe) * (scheduler.alphas_cumprod[int(t)].sqrt() if velocity else 1)
        mu = torch.where(d >= preset.threshold, torch.zeros_like(d), torch.clamp(d.abs() * preset.scale, max=1))
        g = mu * (safe - uncond) + preset.momentum_scale * nu
        nu = preset.momentum_decay * nu + (1 - preset.momentum_decay) * g
        direction = text - uncond - (g if i >= model.num_inference_steps / 2 else 0)
        latents = scheduler.step(uncond + model.guidance_scale * direction, t, latents).prev_sample
    image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return (pipe.image_processor.postprocess(image, output_type="np")[0] * 255).round().astype("uint8")


FLOW = ["sd3", "sd3-t5", "z-image"]


@pytest.mark.parametrize("family", FLOW)
def test_sld_on_velocities_is_its_formula_step_by_step(tmp_path, family, monkeypatch):
    """Euler's steps by hand, each of three separate passes; at sigma s a difference of velocities is one of noises
    times 1 - s, since noise = x_s + (1 - s) v.
    """
    model = make_pipeline(tmp_path / "p", family).model_copy(update={"num_inference_steps": 4, "guidance_scale": 3.0})
    preset = Preset(2000, 25, 0.02, 0.5, 0.7)  # warm-up of half the steps
    monkeypatch.setitem(PRESETS, "weak", preset)
    safe = open_method("sld-weak", model, Baselines(sld_concept="a brulo"))
    plain = load_pipeline(model)
    x = noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    line, nu, judged = _line(plain, family), torch.zeros_like(x), []
    for i, (s, following) in enumerate(pairwise(line)):
        uncond, text, concept = (velocity(plain, x, 1000 * s, p, model) for p in ("", PROMPTS[1], "a brulo"))
        d = (1 - s) * (text - concept)
        mu = torch.where(d >= preset.threshold, torch.zeros_like(d), torch.clamp(d.abs() * preset.scale, max=1))
        judged.append(((d >= preset.threshold) != (text - concept >= preset.threshold)).any())
        g = mu * (concept - uncond) + preset.momentum_scale * nu
        nu = preset.momentum_decay * nu + (1 - preset.momentum_decay) * g
        x = x + (following - s) * (uncond + 3 * (text - (g if i >= 2 else 0) - uncond))
    assert any(judged[2:])  # the unit decides
    options = {"prompt": PROMPTS[1:2], "height": 16, "width": 16, "num_inference_steps": 4, "output_type": "latent"}
    options |= plain.family.render_options(model)
    found, base = (pipe(latents=noise, **options).images for pipe in (safe, plain))
    assert torch.allclose(found, x, atol=1e-4)
    assert (found - base).abs().max() > 1e-2


def _line(pipeline, family):
    """Sigmas of the pipeline's four steps: SD3's scheduler makes them even from 1 to its shifted 1 / 1000."""
    if family == "z-image":
        return sigmas(family, 4)
    low = 3 * 0.001 / (1 + 2 * 0.001)
    even = [1 - i * (1 - low) / 3 for i in range(4)]
    return [*(3 * u / (1 + 2 * u) for u in even), 0.0]


def test_guidance_of_another_make_is_refused(tmp_path):
    """Z-Image's cfg_truncation leaves guidance out of late steps, SD3's skip_guidance_layers calls for a third one."""
    skip = {"skip_layer_guidance_stop": 0.6}
    for family, more in (("z-image", {"cfg_truncation": 0.3}), ("sd3", {"skip_guidance_layers": [0], **skip})):
        model = make_pipeline(tmp_path / family, family)
        model = model.model_copy(update={"call": model.call | more, "num_inference_steps": 4})
        pipeline = open_method("sld-weak", model, Baselines(sld_concept="a brulo"))
        with pytest.raises(SafetyDPOError, match=rf"one without of each step.* model\.call .*{next(iter(more))}"):
            list(render(pipeline, PROMPTS[:2], [1, 2], model))


def test_a_model_that_guidance_is_distilled_into_is_refused(tmp_path):
    model = make_pipeline(tmp_path / "p", "flux-dev")
    with pytest.raises(
        SafetyDPOError, match=r"sld-max cannot be done with .*, of family flux: its guidance is distilled"
    ):
        open_method("sld-max", model, Baselines())


@pytest.mark.parametrize("family", ["sd15", "sd3", "z-image"])
def test_an_image_does_not_depend_on_its_batch(tmp_path, family):
    tiny = make_pipeline(tmp_path / "p", family)
    pipeline = open_method("sld-max", tiny, Baselines(sld_concept="a brulo"))
    together = list(render(pipeline, PROMPTS, [1, 2, 3], tiny))
    alone = [next(render(pipeline, [p], [s], tiny)) for p, s in zip(PROMPTS, [1, 2, 3], strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert abs(a.astype(int) - b.astype(int)).max() <= 1


def test_methods_that_need_guidance_say_so(tiny):
    flat = tiny.model_copy(update={"guidance_scale": 1.0})
    with pytest.raises(SafetyDPOError, match=r"model\.guidance_scale"):
        list(render(open_method("sld-weak", flat, Baselines()), PROMPTS, [1, 2, 3], flat))
