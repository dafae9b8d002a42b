"""What an attack reaches of a method is what the pipeline itself computes."""

import json

import numpy as np
import pytest
import torch
from attacks_target import PROMPT, Q16, WORDS, Judge, target_of
from tiny import FAMILIES, UNETS, make_pipeline

from safetydpo.attacks.target import Target
from safetydpo.config.judges import Verdict
from safetydpo.errors import SafetyDPOError


def near(one, other):
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("family", UNETS)
def test_encoding_tokens_is_what_the_pipeline_does_with_their_text(tmp_path, family):
    target = target_of(tmp_path / "m", family)
    encoded = target.encode_prompts([PROMPT])
    wanted = target.pipeline.encode_prompt(
        [PROMPT], device=target.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert near(encoded.hidden, wanted[0])
    if family == "sdxl":
        assert near(encoded.pooled, wanted[2])


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd3", "sd3-t5"])
def test_of_sd3_it_is_the_clips_tokens_and_their_pooled_embeddings(tmp_path, family):
    target, prompts = target_of(tmp_path / "m", family), [PROMPT, "a fern"]
    encoded = target.encode_prompts(prompts)
    hidden, _, pooled, _ = target.pipeline.encode_prompt(prompts, prompts, prompts, do_classifier_free_guidance=False)
    assert near(encoded.hidden, hidden[:, :16, :32])  # of 16 tokens and two CLIPs' 16 numbers; zeros, and T5's, follow
    assert near(encoded.pooled, pooled)
    rest = target.family.read_rest(target.pipeline, prompts, target.model)
    condition = target.family.condition_of(target.pipeline, *encoded, rest)
    own = target.family.encode(target.pipeline, prompts, target.model)
    assert all(near(condition[name], own[name]) for name in own)


@torch.no_grad()
@pytest.mark.parametrize("length", [24, 12])
@pytest.mark.parametrize("family", ["flux-dev", "flux-schnell"])
def test_of_flux_it_is_t5s_tokens_as_many_as_the_pipeline_is_asked_for(tmp_path, family, length):
    target, prompts = target_of(tmp_path / "m", family, call={"max_sequence_length": length}), [PROMPT, "a fern"]
    encoded, pipeline = target.encode_prompts(prompts), target.pipeline
    hidden, pooled, _ = pipeline.encode_prompt(prompts, max_sequence_length=length)
    assert hidden.shape[1] == length
    assert near(encoded.hidden, hidden)
    counts = [length, 4]  # of the second: `a` is a space and a letter, `fern` one token, and the end
    assert near(encoded.pooled, torch.stack([states[:n].mean(0) for states, n in zip(hidden, counts, strict=True)]))
    rest = target.family.read_rest(pipeline, prompts, target.model)
    condition = target.family.condition_of(pipeline, *encoded, rest)
    assert near(condition["pooled_projections"], pooled)


@torch.no_grad()
def test_of_z_image_it_is_the_chat_that_its_pipeline_makes_of_the_prompt(tmp_path):
    target, prompts = target_of(tmp_path / "m", "z-image"), ["a red fern", "a fern"]
    encoded = target.encode_prompts(prompts)
    wanted, _ = target.pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False, max_sequence_length=64)
    assert encoded.hidden.shape[1] == 64
    for states, pooled, own in zip(*encoded, wanted, strict=True):
        assert near(states[: len(own)], own)
        assert not states[len(own) :].any()
        assert near(pooled, own.mean(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_soft_tokens_take_the_place_of_a_prompts_first(tmp_path, family):
    target = target_of(tmp_path / "m", family)
    ids = target.vocabulary.ids("a fern")
    one_hot = torch.nn.functional.one_hot(torch.tensor([ids[:2]]), len(target.vocabulary.tokenizer)).float()
    soft = target.encode_soft([[ids[-1], ids[-1], *ids[2:]]], one_hot)
    hard = target.encode([ids])
    assert near(soft.hidden, hard.hidden)
    assert near(soft.pooled, hard.pooled)
    assert not near(target.encode([[ids[-1], ids[-1], *ids[2:]]]).hidden, hard.hidden)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_tokenizer_loses_a_word(tmp_path, family):
    vocabulary = target_of(tmp_path / "m", family).vocabulary
    assert vocabulary.text(vocabulary.ids("red fern")) == "red fern"
    assert vocabulary.reads_back(vocabulary.ids("red fern"))
    assert len(vocabulary.padded([vocabulary.ids("a fern " * 50)])[0]) == vocabulary.room + len(
        vocabulary.start + vocabulary.end
    )


def test_a_length_that_leaves_no_token_to_a_prompt_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(
        SafetyDPOError, match=r"^model.call.max_sequence_length: 9 tokens leave none to a prompt: raise"
    ):
        target_of(tmp_path / "m", "z-image", call={"max_sequence_length": 9})


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
