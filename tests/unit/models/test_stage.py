"""A model that cannot be used is refused before anything expensive."""

import json

import pytest
import torch
from tiny import make_pipeline

from safetydpo.errors import SafetyDPOError
from safetydpo.models import stage
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.stage import check_model


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        (
            "model_index.json",
            '"unet": [',
            '"unet": null, "other": [',
            "with no network, of a family that is not known here",
        ),
        ("model_index.json", "StableDiffusionPipeline", "NoSuchPipeline", "cannot be loaded"),
        ("model_index.json", "{", "", "cannot be loaded"),
        ("scheduler/scheduler_config.json", '"scaled_linear"', '"curved"', "cannot be loaded"),
        ("text_encoder/model.safetensors", None, None, "cannot be loaded"),
        ("unet/config.json", '"cross_attention_dim": 16', '"cross_attention_dim": 24', "cannot be loaded"),
    ],
)
def test_damaged_model_folders_end_in_one_sentence(tmp_path, path, old, new, said):
    model, file = make_pipeline(tmp_path / "p"), tmp_path / "p" / path
    if old is None:
        file.write_bytes(file.read_bytes()[:1000])
    else:
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(SafetyDPOError, match=said) as error:
        check_model(model, tmp_path / "model.json")
    assert "hf download" not in str(error.value)  # of no use for a folder


def test_guidance_that_a_distilled_model_would_ignore_is_refused(tmp_path):
    model = make_pipeline(tmp_path / "p", "flux-schnell").model_copy(update={"guidance_scale": 3.5})
    with pytest.raises(
        SafetyDPOError, match=r"^model\.guidance_scale is 3\.5, and .* would ignore it: .*Set it to 1\.$"
    ):
        check_model(model, tmp_path / "model.json")
    assert not (tmp_path / "model.json").exists()


def test_sides_of_half_a_patch_are_refused(tmp_path):
    model = make_pipeline(tmp_path / "p", "flux-dev").model_copy(update={"width": 18})  # a patch is 4 x 4 pixels
    with pytest.raises(SafetyDPOError, match=r"must be multiples of 4 with .*, not 16 and 18"):
        check_model(model, tmp_path / "model.json")


def test_a_weight_that_is_nan_is_named(tmp_path):
    model = make_pipeline(tmp_path / "p")
    vae = load_pipeline(model).vae
    vae.decoder.conv_out.bias.data[0] = torch.nan
    vae.save_pretrained(tmp_path / "p/vae")
    with pytest.raises(SafetyDPOError, match=r"has weights .* \(decoder\.conv_out\.bias of its vae is not\)"):
        check_model(model, tmp_path / "model.json")


ASKED = {"evaluate.matrix: `merged-co-merge`": "merged-*", "evaluate.matrix: `sld-weak`": "sld-*"}
ASKED |= {"attacks.methods: `uce`": "uce"}


def test_what_a_family_cannot_do_is_refused_before_a_weight_is_read(tmp_path, monkeypatch):
    model = make_pipeline(tmp_path / "p", "flux-dev")
    monkeypatch.setattr(stage, "load_pipeline", lambda *_: pytest.fail("loaded"))
    with pytest.raises(SafetyDPOError) as error:
        check_model(model, tmp_path / "model.json", (), ASKED)
    lines = str(error.value).splitlines()
    assert [line.split(" cannot be done with ")[0] for line in lines] == list(ASKED)[1:]
    assert lines[0].startswith(
        f"evaluate.matrix: `sld-weak` cannot be done with {model.id}, of family flux: its guidance"
    )
    assert lines[0].endswith("; take it out")


@pytest.mark.parametrize(
    ("family", "facts"),
    [
        ("sd21", {"pipeline": "StableDiffusionPipeline", "family": "unet", "prediction_type": "v_prediction"}),
        ("flux-dev", {"pipeline": "FluxPipeline", "family": "flux", "prediction_type": "flow", "latent_channels": 4}),
        ("sd3", {"pipeline": "StableDiffusion3Pipeline", "family": "sd3", "prediction_type": "flow"}),
        ("z-image", {"pipeline": "ZImagePipeline", "family": "z-image", "latent_channels": 4}),
    ],
)
def test_what_a_model_is_is_written(tmp_path, family, facts):
    model = make_pipeline(tmp_path / "p", family)
    check_model(model, tmp_path / "model.json", ["to_k"], dict(list(ASKED.items())[:1]))
    found = json.loads((tmp_path / "model.json").read_text())
    part = "unet" if family == "sd21" else "transformer"
    assert facts.items() <= found.items()
    assert found[f"{part}_parameters"] == load_pipeline(model).components[part].num_parameters()


def test_a_target_that_is_nowhere_is_said(tmp_path):
    model = make_pipeline(tmp_path / "p", "sd3")
    with pytest.raises(
        SafetyDPOError, match=r"train\.target_modules: no module of the network .* ends in to_x: correct"
    ):
        check_model(model, tmp_path / "model.json", ["to_x"])
