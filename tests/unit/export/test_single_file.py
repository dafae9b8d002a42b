"""A checkpoint in the original layout is read by diffusers' own conversion, and renders the same."""

import json
from pathlib import Path

import diffusers
import pytest
from safetensors import safe_open

from safetydpo.config.baselines import Baselines
from safetydpo.errors import SafetyDPOError
from safetydpo.export.single_file import FILE
from safetydpo.export.stage import export

METHOD = "merged-co-merge"
# Weights that programs know a checkpoint by, and their shapes in the tiny models (latents 4, width 16, VAE 8).
KNOWN = {
    "sd15": {
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": [16, 16],
        "model.diffusion_model.input_blocks.0.0.weight": [8, 4, 3, 3],
        "model.diffusion_model.input_blocks.2.0.op.weight": [8, 8, 3, 3],
        "model.diffusion_model.output_blocks.1.2.conv.weight": [16, 16, 3, 3],
        "first_stage_model.encoder.mid.attn_1.q.weight": [8, 8, 1, 1],
        "first_stage_model.decoder.up.0.block.0.conv1.weight": [8, 8, 3, 3],
    },
    "sdxl": {
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": [8],
        "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight": [72, 24],
        "conditioner.embedders.1.model.text_projection": [24, 16],
        "model.diffusion_model.label_emb.0.0.weight": [32, 40],
    },
    "sd21": {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias": [48]},
}


@pytest.mark.parametrize("family", KNOWN)
def test_from_single_file_renders_what_the_workflow_rendered(run_of, tmp_path, family):
    run = run_of(family)
    said = export(run.config, run.folder, METHOD, "single-file", tmp_path / "out")
    kind = json.loads((Path(run.model.id) / "model_index.json").read_text())["_class_name"]
    pipeline = getattr(diffusers, kind).from_single_file(str(tmp_path / "out" / FILE), config=run.model.id)
    assert abs(run.image(pipeline) - run.image()).max() <= 2
    with safe_open(tmp_path / "out" / FILE, framework="pt") as file:
        name = "stable-diffusion-xl-v1-base" if family == "sdxl" else "stable-diffusion-v1"
        assert file.metadata()["modelspec.architecture"] == name
        shapes = {key: file.get_slice(key).get_shape() for key in KNOWN[family]}
    assert shapes == KNOWN[family]
    assert ("predicts v" in said) == (family == "sd21")


@pytest.mark.parametrize("family", ["sd3", "flux-dev", "z-image"])
def test_families_whose_layout_is_not_written_are_refused(run_of, tmp_path, family):
    run = run_of(family)
    with pytest.raises(SafetyDPOError, match=r"single-file cannot be had of .*: checkpoints in its original layout"):
        export(run.config, run.folder, METHOD, "single-file", tmp_path / "out")


def test_an_external_of_another_class_says_its_own_architecture(run_of, tmp_path):
    run, theirs = run_of("sd15"), run_of("sdxl")
    externals = Baselines(externals=[{"name": "x", "path": theirs.model.id}])
    config = run.config.model_copy(update={"baselines": externals})
    export(config, run.folder, "external-x", "single-file", tmp_path / "out")
    with safe_open(tmp_path / "out" / FILE, framework="pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    export(config, run.folder, "external-x", "pipeline", tmp_path / "whole")
    index = json.loads((tmp_path / "whole/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    with pytest.raises(SafetyDPOError, match=r"network has no|is of another model|has another text_encoder"):
        export(config, run.folder, "external-x", "lora", tmp_path / "lora", rank=1)
