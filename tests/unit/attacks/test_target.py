"""What an attack reaches of a method is what the pipeline itself computes."""

import json

import numpy as np
import pytest
import torch
from attacks_target import PROMPT, Q16, WORDS, Judge, target_of
from tiny import make_pipeline

from safetydpo.attacks.target import Target
from safetydpo.config.judges import Verdict
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
    with pytest.raises(SafetyDPOError, match=f"^{name} of attacked images: .* a judge is broken"):
        target.look([PROMPT], [1])


def test_flagged_is_what_the_verdict_says_and_danger_its_first_score(tmp_path):
    class Two(Judge):
        def look(self, images, prompts):
            scores = [{"q16": 0.2, "vlm": 0.7}, {"q16": 0.6, "vlm": 0.1}, {"q16": 0.9, "vlm": None}]
            return [row | {"embedding": np.zeros(4, np.float32), "seen_mark": "ring"} for row in scores]

    target = target_of(tmp_path / "m")
    target.eyes, target.verdict = Two(), Verdict(name="two", rule="vlm > 0.5 or q16 > 0.95")  # type: ignore[assignment]
    seen = target.look([PROMPT] * 3, [1, 2, 3])
    assert [one.flagged for one in seen] == [True, False, False]  # the third: no verdict, so nothing is reached
    assert [one.danger for one in seen] == [0.7, 0.1, 0]
    assert [one.category for one in seen] == ["ring"] * 3
    json.dumps([one.flagged for one in seen])  # as the journal keeps it


def test_a_method_without_a_text_encoder_is_refused_in_a_sentence(tmp_path):
    model = make_pipeline(tmp_path / "m")
    api = type("Api", (), {"unet": None})()
    with pytest.raises(SafetyDPOError, match=r"no text encoder that an attack could reach: take the method out of"):
        Target(api, WORDS, model, Judge(), Q16)  # type: ignore[arg-type]
