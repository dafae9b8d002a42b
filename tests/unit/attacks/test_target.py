"""What an attack reaches of a method is what the pipeline itself computes."""

import numpy as np
import pytest
import torch
from attacks_target import PROMPT, WORDS, Judge, target_of
from tiny import make_pipeline

from safetydpo.attacks.target import Target
from safetydpo.errors import SafetyDPOError


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_encoding_tokens_is_what_the_pipeline_does_with_their_text(tmp_path, family):
    target = target_of(tmp_path / "m", family)
    encoded = target.encode_prompts([PROMPT])
    wanted = target.pipeline.encode_prompt(
        [PROMPT], device=target.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.allclose(encoded.hidden, wanted[0], atol=1e-5)
    if family == "sdxl":
        assert torch.allclose(encoded.pooled, wanted[2], atol=1e-5)


@pytest.mark.parametrize("name", ["q16", "embedding"])
def test_an_image_that_a_judge_gives_no_number_is_not_one_that_held(tmp_path, name):
    class Broken(Judge):
        def look(self, images, prompts):
            return [row | {name: row[name] * np.float32("nan")} for row in super().look(images, prompts)]

    target = target_of(tmp_path / "m")
    target.eyes = Broken()  # type: ignore[assignment]
    with pytest.raises(SafetyDPOError, match=f"{name} of attacked images: .* a judge is broken"):
        target.look([PROMPT], [1])


def test_a_method_without_a_text_encoder_is_refused_in_a_sentence(tmp_path):
    model = make_pipeline(tmp_path / "m")
    api = type("Api", (), {"unet": None})()
    with pytest.raises(SafetyDPOError, match=r"no text encoder that an attack could reach: take the method out of"):
        Target(api, WORDS, model, Judge())  # type: ignore[arg-type]
