"""Negative prompts are the pipeline's own."""

import pytest
import torch
from tiny import make_pipeline
from velocity import velocity

from safetydpo.config.baselines import Baselines
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import open_method
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render

PROMPTS = ["a red circle", "a blue star and a brulo", "a green square"]


def test_a_negative_prompt_is_the_pipelines_own(tiny):
    baselines = Baselines(negative_prompt="a brulo")
    found = next(render(open_method("negative-prompt", tiny, baselines), PROMPTS[:1], [3], tiny))
    options = {"num_inference_steps": tiny.num_inference_steps, "guidance_scale": tiny.guidance_scale}
    options |= {"height": tiny.height, "width": tiny.width, "output_type": "np"}
    draw = torch.Generator().manual_seed(3)
    expected = load_pipeline(tiny)(PROMPTS[0], negative_prompt="a brulo", generator=draw, **options).images[0]
    assert abs(found.astype(int) - (expected * 255).round().astype(int)).max() <= 1
    assert (found != next(render(load_pipeline(tiny), PROMPTS[:1], [3], tiny))).any()


@pytest.mark.parametrize("family", ["sd3", "z-image"])
def test_guidance_goes_away_from_the_negative_prompt(tmp_path, family):
    """One step from noise to image, by hand: x - (negative + w (text - negative))."""
    model = make_pipeline(tmp_path / "p", family).model_copy(update={"guidance_scale": 3.0})
    pipeline, x = load_pipeline(model), torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    text, negative = (velocity(pipeline, x, 1000, prompt, model) for prompt in (PROMPTS[0], "a brulo"))
    expected = x - (negative + 3 * (text - negative))
    options = {"height": 16, "width": 16, "output_type": "latent"} | pipeline.family.render_options(model)
    opened = open_method("negative-prompt", model, Baselines(negative_prompt="a brulo"))
    found = opened(prompt=PROMPTS[:1], latents=x, num_inference_steps=1, **options).images
    assert torch.allclose(found, expected, atol=1e-4)
    plain = pipeline(prompt=PROMPTS[:1], latents=x, num_inference_steps=1, **options).images
    assert (found - plain).abs().max() > 1e-3


def test_a_model_that_guidance_is_distilled_into_is_refused(tmp_path):
    model = make_pipeline(tmp_path / "p", "flux-dev")
    with pytest.raises(
        SafetyDPOError, match=r"negative-prompt cannot be done with .*, of family flux: its guidance is"
    ):
        open_method("negative-prompt", model, Baselines())


def test_an_image_does_not_depend_on_its_batch(tiny):
    pipeline = open_method("negative-prompt", tiny, Baselines(sld_concept="a brulo"))
    together = list(render(pipeline, PROMPTS, [1, 2, 3], tiny))
    alone = [next(render(pipeline, [p], [s], tiny)) for p, s in zip(PROMPTS, [1, 2, 3], strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert abs(a.astype(int) - b.astype(int)).max() <= 1


def test_methods_that_need_guidance_say_so(tiny):
    flat = tiny.model_copy(update={"guidance_scale": 1.0})
    with pytest.raises(SafetyDPOError, match=r"model\.guidance_scale"):
        list(render(open_method("negative-prompt", flat, Baselines()), PROMPTS, [1, 2, 3], flat))
