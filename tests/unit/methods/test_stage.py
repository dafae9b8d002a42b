"""External models are opened before anything is rendered or trained."""

import json

import pytest
import torch

from safetydpo.config.baselines import Baselines
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.stage import check_external
from safetydpo.models.pipeline import load_pipeline


def check(tiny, path, out):
    check_external("x", tiny, Baselines.model_validate({"externals": [{"name": "x", "path": str(path)}]}), out)


def test_an_external_that_can_be_opened_is_written_down(tiny, tmp_path):
    check(tiny.model_copy(update={"device": "cuda"}), tiny.id, tmp_path / "x.json")  # on the CPU of a login node
    assert json.loads((tmp_path / "x.json").read_text())["pipeline"] == "StableDiffusionPipeline"


def test_an_external_that_is_not_there_or_broken_is_said(tiny, tmp_path):
    for path in (tmp_path / "nowhere", "folder/of/mine", tmp_path / "lora.safetensors"):
        with pytest.raises(SafetyDPOError, match=r"There is no .*, neither a folder nor a file: correct the path"):
            check(tiny, path, tmp_path / "x.json")
    unet = load_pipeline(tiny).unet
    unet.conv_in.bias.data[0] = torch.nan
    unet.save_pretrained(tmp_path / "u")
    with pytest.raises(SafetyDPOError, match=r"External x, .*u, has weights .* \(conv_in\.bias of its unet is not\)"):
        check(tiny, tmp_path / "u", tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()
