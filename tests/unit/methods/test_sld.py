"""Safe Latent Diffusion against its formula."""

import pytest
import torch
from tiny import make_pipeline

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


def test_an_image_does_not_depend_on_its_batch(tiny):
    pipeline = open_method("sld-max", tiny, Baselines(sld_concept="a brulo"))
    together = list(render(pipeline, PROMPTS, [1, 2, 3], tiny))
    alone = [next(render(pipeline, [p], [s], tiny)) for p, s in zip(PROMPTS, [1, 2, 3], strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert abs(a.astype(int) - b.astype(int)).max() <= 1


def test_methods_that_need_guidance_say_so(tiny):
    flat = tiny.model_copy(update={"guidance_scale": 1.0})
    with pytest.raises(SafetyDPOError, match=r"model\.guidance_scale"):
        list(render(open_method("sld-weak", flat, Baselines()), PROMPTS, [1, 2, 3], flat))
