"""A model that cannot be used is refused before anything expensive."""

import pytest
import torch
from tiny import make_pipeline

from safetydpo.errors import SafetyDPOError
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.stage import check_model


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        ("model_index.json", '"unet": [', '"unet": null, "other": [', "has no UNet"),
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


def test_a_weight_that_is_nan_is_named(tmp_path):
    model = make_pipeline(tmp_path / "p")
    vae = load_pipeline(model).vae
    vae.decoder.conv_out.bias.data[0] = torch.nan
    vae.save_pretrained(tmp_path / "p/vae")
    with pytest.raises(SafetyDPOError, match=r"has weights .* \(decoder\.conv_out\.bias of its vae is not\)"):
        check_model(model, tmp_path / "model.json")
