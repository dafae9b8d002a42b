"""The flow demo's transformer: its loss, what it learns from, and the pipeline folder that is shipped."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from snakes import ROOT
from transformers import CLIPModel, CLIPTokenizer

from safetydpo.demo.grammar import ALL_FORMS, caption
from safetydpo.demo.making import __main__ as steps
from safetydpo.demo.making import transformer
from safetydpo.demo.making.data import SceneSet, draw_set
from safetydpo.demo.making.latents import Batch, encode_set, load_latents

SHIPPED = ROOT / "resources/demo"


@pytest.fixture(scope="module")
def pipeline():
    """The flow demo's pipeline before any training."""
    torch.manual_seed(0)
    clip, tokenizer = CLIPModel.from_pretrained(SHIPPED / "clip"), CLIPTokenizer.from_pretrained(SHIPPED / "clip")
    vae = AutoencoderKL.from_pretrained(SHIPPED / "t2i/vae")
    return transformer.build_pipeline(transformer.build_transformer(), vae, clip.float(), tokenizer)


@pytest.fixture(scope="module")
def latents(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents.safetensors"
    drawn = draw_set(40, 0, workers=1)
    # marked, benign and bare ones, the same scene twice among them
    scenes = SceneSet([*drawn.scenes, drawn.scenes[3]], torch.cat([drawn.images, drawn.images[3:4]]))
    encode_set(scenes, pipeline.vae, transformer.encoder_of(pipeline), path)
    return scenes, load_latents(path)


def test_loss_is_of_the_velocity_at_noise_levels_of_the_logit_normal():
    """Two draws at the quarters of the normal, -0.67449 and 0.67449: levels 1 / (1 + exp(-(0.4 -+ 0.67449)))."""
    called = {}

    def network(noisy_latents, timestep, **text):
        called.update(text, noisy_latents=noisy_latents, timestep=timestep)
        return SimpleNamespace(sample=torch.zeros_like(noisy_latents))

    sample, noise = torch.full((2, 1, 1, 1), 2.0), torch.tensor([4.0, -1.0]).view(2, 1, 1, 1)
    text = {"pooled_projections": torch.ones(2, 3)}
    loss = transformer.flow_loss(network, Batch(sample, noise, torch.tensor([0.5, 0.5], dtype=torch.float64), text))
    assert called["timestep"].tolist() == pytest.approx([431.8052, 745.4498], abs=1e-3)
    # 2 + (4 - 2) x 0.4318052 and 2 + (-1 - 2) x 0.7454498
    assert called["noisy_latents"].flatten().tolist() == pytest.approx([2.863610, -0.236349], abs=1e-5)
    assert called["pooled_projections"] is text["pooled_projections"]
    assert loss.item() == pytest.approx((2**2 + 3**2) / 2)  # velocities 2 and -3, of which 0 was said


def test_texts_are_what_the_pipeline_encodes(pipeline, latents):
    scenes, known = latents
    for i, form in ((0, 0), (3, 2), (7, 1)):
        sentence, row = caption(scenes.scenes[i], ALL_FORMS[form]), known.rows[i, form]
        with torch.no_grad():
            alone, _, pooled, _ = pipeline.encode_prompt(
                sentence, None, None, do_classifier_free_guidance=False, max_sequence_length=1
            )
        for name, value in (("encoder_hidden_states", alone), ("pooled_projections", pooled)):
            torch.testing.assert_close(known.text[name][row].float(), value[0], atol=2e-3, rtol=1e-3)
    assert torch.equal(known.rows[3], known.rows[-1])


def test_texts_are_the_last_but_one_layer_of_the_shipped_clip_twice(latents):
    """By transformers alone, the empty caption, which stands last."""
    clip, tokenizer = CLIPModel.from_pretrained(SHIPPED / "clip"), CLIPTokenizer.from_pretrained(SHIPPED / "clip")
    tokens = tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        output = clip.float().text_model(tokens, output_hidden_states=True)
        pooled = clip.text_projection(output.pooler_output)[0]
    layer, text = output.hidden_states[-2][0], latents[1].text
    assert text["encoder_hidden_states"][-1].shape == (17, 192)
    assert not text["encoder_hidden_states"][:, 16].any()  # T5's place
    for half in (slice(0, 96), slice(96, 192)):
        torch.testing.assert_close(text["encoder_hidden_states"][-1, :16, half].float(), layer, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(text["pooled_projections"][-1, half].float(), pooled, atol=2e-3, rtol=1e-3)


def test_one_in_ten_is_drawn_without_its_caption(latents):
    _, known = latents
    empty = known.text["pooled_projections"][-1].float()
    drawn = known.draw(np.random.default_rng(0), 2000)
    share = (drawn.text["pooled_projections"] == empty).all(1).float().mean().item()
    assert share == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 2000) ** 0.5)
    assert (drawn.sample.shape, drawn.noise.std().item()) == ((2000, 8, 12, 12), pytest.approx(1, abs=0.01))
    again = known.draw(np.random.default_rng(0), 2000)
    assert torch.equal(drawn.noise, again.noise)
    assert torch.equal(drawn.sample, again.sample)


def test_shipped_folder_is_a_stable_diffusion_3_pipeline(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    pipeline.transformer.save_pretrained(tmp_path / "work/decay")
    steps.SHIPPING["flow_assemble"](tmp_path / "work", tmp_path / "out")
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in files) < 11.5e6
    for file in files:
        if file.suffix == ".json":
            assert not json.loads(file.read_text()).get("_name_or_path"), file
    # diffusers wants to hear it, though the index says null
    without_t5 = {"text_encoder_3": None, "tokenizer_3": None}
    shipped: Any = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out/t2i", **without_t5)
    assert (shipped.text_encoder.dtype, shipped.transformer.dtype) == (torch.float32, torch.float32)
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "max_sequence_length": 1, "output_type": "np"}
    images = shipped(["a red circle on a teal field"], generator=torch.Generator().manual_seed(0), **call).images
    assert images.shape == (1, 48, 48, 3)
    assert np.isfinite(images).all()
