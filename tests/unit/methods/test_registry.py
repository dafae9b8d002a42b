"""Methods of the matrix, the files they render from, and what is not a LoRA: SLD, negative prompts, external models."""

import pytest
import torch
import yaml
from snakes import ROOT
from tiny import make_pipeline

from safetydpo.config.baselines import Baselines
from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import open_method
from safetydpo.methods.registry import RESEED, Method, method_of, read_scale
from safetydpo.methods.sld import PRESETS, Preset, safety_guidance
from safetydpo.methods.unet_weights import put_weights
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.files import write_safetensors, write_text

PROMPTS = ["a red circle", "a blue star and a brulo", "a green square"]


def test_every_method_of_a_config_is_known():
    config = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    files = {name: method_of(name).weights for name in config.methods()}
    assert files["expert-zigzag"] == "experts/zigzag/pytorch_lora_weights.safetensors"
    assert files["merged-ties"] == "merged/ties/pytorch_lora_weights.safetensors"
    assert files["esd-x"] == "baselines/esd-x/unet.safetensors"
    assert {name for name, file in files.items() if file is None} == {
        "base", "base-reseed", "negative-prompt", "sld-weak", "sld-medium", "sld-strong", "sld-max",
    }  # fmt: skip


def test_names_with_hyphens_are_read_whole():
    assert method_of("expert-illegal-activity").weights == "experts/illegal-activity/pytorch_lora_weights.safetensors"
    assert method_of("merged-co-merge").tuned
    assert method_of("base-reseed") == Method("base", seed_offset=RESEED)
    assert method_of("external-safe-sd").variant == "safe-sd"


@pytest.mark.parametrize("name", ["", "expert-", "expert", "merged-", "base-other", "all", "esd", "sld-mild", "uce-x"])
def test_an_unknown_method_lists_those_there_are(name):
    with pytest.raises(SafetyDPOError, match=rf"^No method {name}: there are base, base-reseed, .* external-<name>"):
        method_of(name)


def test_a_method_that_is_not_tuned_has_scale_1(tmp_path):
    write_text('{"scale": 0.75}\n', tmp_path / "scale.json")
    assert (read_scale(None), read_scale(tmp_path / "scale.json")) == (1.0, 0.75)


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


@pytest.mark.parametrize("method", ["sld-max", "negative-prompt"])
def test_an_image_does_not_depend_on_its_batch(tiny, method):
    pipeline = open_method(method, tiny, Baselines(sld_concept="a brulo"))
    together = list(render(pipeline, PROMPTS, [1, 2, 3], tiny))
    alone = [next(render(pipeline, [p], [s], tiny)) for p, s in zip(PROMPTS, [1, 2, 3], strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert abs(a.astype(int) - b.astype(int)).max() <= 1


def test_a_negative_prompt_is_the_pipelines_own(tiny):
    baselines = Baselines(negative_prompt="a brulo")
    found = next(render(open_method("negative-prompt", tiny, baselines), PROMPTS[:1], [3], tiny))
    options = {"num_inference_steps": tiny.num_inference_steps, "guidance_scale": tiny.guidance_scale}
    options |= {"height": tiny.height, "width": tiny.width, "output_type": "np"}
    draw = torch.Generator().manual_seed(3)
    expected = load_pipeline(tiny)(PROMPTS[0], negative_prompt="a brulo", generator=draw, **options).images[0]
    assert abs(found.astype(int) - (expected * 255).round().astype(int)).max() <= 1
    assert (found != next(render(load_pipeline(tiny), PROMPTS[:1], [3], tiny))).any()


@pytest.mark.parametrize("method", ["sld-weak", "negative-prompt"])
def test_methods_that_need_guidance_say_so(tiny, method):
    flat = tiny.model_copy(update={"guidance_scale": 1.0})
    with pytest.raises(SafetyDPOError, match=r"model\.guidance_scale"):
        list(render(open_method(method, flat, Baselines()), PROMPTS, [1, 2, 3], flat))


def external(path):
    return Baselines(externals=[{"name": "x", "path": str(path)}])


def test_external_models_are_known_by_their_files(tiny, tmp_path):
    before = load_pipeline(tiny).unet.state_dict()
    other = make_pipeline(tmp_path / "other", "sd15", seed=9)
    theirs = load_pipeline(other).unet.state_dict()
    assert not before["conv_in.weight"].equal(theirs["conv_in.weight"])
    load_pipeline(other).unet.save_pretrained(tmp_path / "unet-alone")
    load_pipeline(other).unet.save_pretrained(tmp_path / "published/unet")
    for path in (other.id, tmp_path / "unet-alone", tmp_path / "published"):
        unet = open_method("external-x", tiny, external(path)).unet
        assert unet.state_dict()["conv_in.weight"].equal(theirs["conv_in.weight"])
    with pytest.raises(SafetyDPOError, match=r"is neither a pipeline .* nor a UNet .* nor a LoRA"):
        open_method("external-x", tiny, external(tmp_path))


def test_an_external_unet_of_another_model_is_refused(tiny, tmp_path):
    load_pipeline(make_pipeline(tmp_path / "xl", "sdxl")).unet.save_pretrained(tmp_path / "u")
    with pytest.raises(SafetyDPOError, match=r"is of another model than .*cross_attention_dim"):
        open_method("external-x", tiny, external(tmp_path / "u"))


def test_changed_weights_are_put_in_and_others_refused(tiny, tmp_path):
    unet = load_pipeline(tiny).unet
    name, old = "conv_in.bias", unet.conv_in.bias.detach().clone()
    write_safetensors({name: old + 1}, tmp_path / "w.safetensors", {})
    put_weights(unet, tmp_path / "w.safetensors")
    assert unet.conv_in.bias.allclose(old + 1)
    write_safetensors({name: torch.zeros(3)}, tmp_path / "w.safetensors", {})
    with pytest.raises(SafetyDPOError, match=r"of another UNet: conv_in.bias has shape \(3,\) there and is of shape"):
        put_weights(unet, tmp_path / "w.safetensors")
    write_safetensors({"nothing": torch.zeros(3)}, tmp_path / "w.safetensors", {})
    with pytest.raises(SafetyDPOError, match=r"nothing has shape .* and is missing in the model"):
        put_weights(unet, tmp_path / "w.safetensors")
