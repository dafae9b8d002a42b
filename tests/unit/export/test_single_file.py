"""A checkpoint in the original layout is read by diffusers' own conversion, and renders the same."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from original_layout import sd3_file, z_image_file
from safetensors import safe_open

from safetydpo.config.baselines import Baselines
from safetydpo.errors import SafetyDPOError
from safetydpo.export.single_file import FILE
from safetydpo.export.stage import export
from safetydpo.models.families.layouts import transformer_weights

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
    "sd3": {
        "model.diffusion_model.joint_blocks.1.context_block.attn.qkv.weight": [48, 16],
        "model.diffusion_model.x_embedder.proj.weight": [16, 4, 2, 2],
        "model.diffusion_model.pos_embed": [1, 256, 16],
        "first_stage_model.encoder.conv_in.weight": [8, 3, 3, 3],
        "text_encoders.clip_l.transformer.text_model.embeddings.position_embedding.weight": [16, 8],
        "text_encoders.clip_g.transformer.text_model.embeddings.position_embedding.weight": [16, 24],
    },
    "sd3-t5": {"text_encoders.t5xxl.transformer.shared.weight": [160, 48]},
    "z-image": {
        "model.diffusion_model.layers.0.attention.qkv.weight": [96, 32],
        "model.diffusion_model.x_pad_token": [1, 32],
    },
    "sd21": {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias": [48]},
}


ARCHITECTURES = {
    "sd15": "stable-diffusion-v1",
    "sd21": "stable-diffusion-v1",  # the tiny one has its width
    "sdxl": "stable-diffusion-xl-v1-base",
}


@pytest.mark.parametrize("family", KNOWN)
def test_the_cards_call_renders_what_the_workflow_rendered(run_of, tmp_path, monkeypatch, family):
    run = run_of(family)
    said = export(run.config, run.folder, METHOD, "single-file", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    call = next(code for code in re.findall(r"```python\n(.+?)```", card, re.DOTALL) if "from_single_file" in code)
    monkeypatch.chdir(tmp_path / "out")
    names: dict = {}
    exec(call.replace(f'"{Path(run.model.id).name}"', repr(run.model.id)), names)  # the card says no path of ours
    assert abs(run.image(names["pipe"]) - run.image()).max() <= 2
    assert abs(run.image() - run.base_image()).max() > 2
    with safe_open(tmp_path / "out" / FILE, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in KNOWN[family]}
        assert file.metadata().get("modelspec.architecture") == ARCHITECTURES.get(family)
    assert shapes == KNOWN[family]
    assert ("predicts v" in said) == (family == "sd21")
    assert ("no text_encoder and vae" in said) == ("models/diffusion_models" in card) == (family == "z-image")
    assert ("models/checkpoints" in card) == (family != "z-image")
    assert ("models/Stable-diffusion" in card) == (family in ARCHITECTURES)


def test_every_weight_is_where_it_was_published(run_of, tmp_path):
    """Beside names by hand: halves of modulations that change places, one matrix of three."""
    for family, written in (("sd3", sd3_file), ("z-image", z_image_file)):
        network = run_of(family).network
        ours, theirs = transformer_weights(network), written(network)
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_diffusers_reads_a_flux_of_the_published_width_and_no_other(run_of, tmp_path):
    """Its reader splits by that width, so that the tiny one cannot be read: thin weights of as many rows can."""
    run = run_of("flux-dev")
    with pytest.raises(SafetyDPOError, match=r"single-file cannot be had of .*: diffusers does not read the file back"):
        export(run.config, run.folder, METHOD, "single-file", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with torch.device("meta"):
        config = {"num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8}
        network = FluxTransformer2DModel(guidance_embeds=True, **config)
    draw = torch.Generator().manual_seed(1)
    thin = {
        name: torch.randn(len(weight), *([2] * (weight.ndim - 1)), generator=draw)
        for name, weight in network.state_dict().items()
    }
    network.state_dict = lambda: thin
    written = transformer_weights(network)
    assert len(written) == len({name for name in written if not re.search(r"\.(to_[qkv]|proj_mlp|norm1)\.", name)})
    read = convert_flux_transformer_checkpoint_to_diffusers(written)
    assert read.keys() == thin.keys()
    assert all(read[name].equal(thin[name]) for name in thin)


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
