"""Files in kohya's naming are read back by diffusers' own conversion, and render the same."""

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors import safe_open

from safetydpo.errors import SafetyDPOError
from safetydpo.export.kohya import FILE, joined, kohya_tensors
from safetydpo.export.stage import export
from safetydpo.models.pipeline import load_pipeline

METHOD = "merged-co-merge"
# A layer of each model, as sd-scripts and ComfyUI call it.
NAMES = {
    "sd15": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "sdxl": "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
    "z-image": "lora_unet_layers_0_attention_qkv",
}


def keys_of(folder):
    with safe_open(folder / FILE, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("family", ["sd15", "sdxl", "z-image"])
def test_diffusers_own_conversion_reads_it_and_renders_the_same(run_of, tmp_path, family):
    run = run_of(family)
    export(run.config, run.folder, METHOD, "kohya", tmp_path / "out")
    pipeline = load_pipeline(run.model)
    pipeline.load_lora_weights(str(tmp_path / "out"), weight_name=FILE)
    assert abs(run.image(pipeline) - run.image()).max() <= 2
    tensors, header = keys_of(tmp_path / "out")
    name = NAMES[family]
    assert tensors[f"{name}.alpha"] == len(tensors[f"{name}.lora_down.weight"])  # alpha / rank is 1
    assert {key.split(".", 1)[1] for key in tensors} == {"alpha", "lora_down.weight", "lora_up.weight"}
    assert all(key.startswith("lora_unet_") for key in tensors)
    assert header.get("ss_base_model_version") == {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0"}.get(family)


def test_factors_of_one_weight_stand_beside_each_other():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    down, up = joined([(a, b), None, (2 * a, 5 * b)], [2, 3, 2])
    product = up @ down
    assert product[:2].equal(b @ a)
    assert not product[2:5].any()
    assert product[5:].equal(10 * b @ a)


def test_flux_as_it_was_published_is_read_back_by_diffusers_conversion():
    """The conversion knows FLUX by its published width: factors of that width, and a network without weights."""
    width, draw = 3072, torch.Generator().manual_seed(0)
    with torch.device("meta"):
        network = FluxTransformer2DModel()
    layers = [
        f"transformer_blocks.18.attn.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out")
    ]
    layers += [f"single_transformer_blocks.37.attn.{n}" for n in ("to_q", "to_v")]
    factors = {n: (torch.randn(2, width, generator=draw), torch.randn(width, 2, generator=draw)) for n in layers}
    tensors = kohya_tensors(factors, network, ["original"])
    assert {key.split(".")[0] for key in tensors} == {
        "lora_unet_double_blocks_18_img_attn_qkv",
        "lora_unet_double_blocks_18_img_attn_proj",
        "lora_unet_double_blocks_18_txt_attn_qkv",
        "lora_unet_double_blocks_18_txt_attn_proj",
        "lora_unet_single_blocks_37_linear1",
    }
    read = FluxPipeline.lora_state_dict(tensors)
    for name, (a, b) in factors.items():
        assert read[f"transformer.{name}.lora_A.weight"].equal(a)
        assert read[f"transformer.{name}.lora_B.weight"].equal(b)
    others = {key.rpartition(".lora_")[0].removeprefix("transformer.") for key in read} - set(factors)
    assert others
    assert not any(read[f"transformer.{name}.lora_B.weight"].any() for name in others)


def test_what_diffusers_would_not_read_back_is_refused(run_of, tmp_path):
    run = run_of("flux-dev")
    with pytest.raises(SafetyDPOError, match=r"kohya cannot be had of .*does not read the file back as it is meant"):
        export(run.config, run.folder, METHOD, "kohya", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SafetyDPOError, match=r"kohya cannot be had of .*, of family sd3: diffusers reads no such file"):
        export(run_of("sd3").config, run_of("sd3").folder, METHOD, "kohya", tmp_path / "out")
