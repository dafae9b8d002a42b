"""External models are known by their files."""

import pytest
from tiny import make_pipeline

from safetydpo.config.baselines import Baselines
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import open_method
from safetydpo.models.pipeline import load_pipeline


def external(path):
    return Baselines(externals=[{"name": "x", "path": str(path)}])


def test_external_models_are_known_by_their_files(tiny, tmp_path):
    before = load_pipeline(tiny).unet.state_dict()
    other = make_pipeline(tmp_path / "other", "sd15", seed=9)
    theirs = load_pipeline(other).unet.state_dict()
    assert not before["conv_in.weight"].equal(theirs["conv_in.weight"])
    load_pipeline(other).unet.save_pretrained(tmp_path / "unet-alone")
    load_pipeline(other).unet.save_pretrained(tmp_path / "published/unet")
    load_pipeline(other).unet.save_pretrained(tmp_path / "fp16", variant="fp16")
    for path in (other.id, tmp_path / "unet-alone", tmp_path / "published", tmp_path / "fp16"):
        unet = open_method("external-x", tiny, external(path)).unet
        assert unet.state_dict()["conv_in.weight"].equal(theirs["conv_in.weight"])
    with pytest.raises(SafetyDPOError, match=r"is neither a pipeline .* nor a UNet .* nor a LoRA"):
        open_method("external-x", tiny, external(tmp_path))


def test_an_external_unet_of_another_model_is_refused(tiny, tmp_path):
    load_pipeline(make_pipeline(tmp_path / "xl", "sdxl")).unet.save_pretrained(tmp_path / "u")
    with pytest.raises(SafetyDPOError, match=r"is of another model than .*cross_attention_dim"):
        open_method("external-x", tiny, external(tmp_path / "u"))
