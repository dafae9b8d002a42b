"""Negative prompts are the pipeline's own."""

import pytest
import torch

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
