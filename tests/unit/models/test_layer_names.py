"""What files call a pipeline's layers: names of original checkpoints, whose layers may be several of ours."""

import copy

import pytest
import torch
from original_layout import unet_name
from tiny import make_pipeline

from safetydpo.errors import SafetyDPOError
from safetydpo.models.adapters import fuse
from safetydpo.models.layer_names import layer_names
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import write_safetensors

# Family -> a layer of the original checkpoint -> the layers of ours whose rows it has, one after the other.
ORIGINALS = {
    "sd3": {
        "joint_blocks.0.x_block.attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
        "joint_blocks.1.context_block.attn.qkv": [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
        "joint_blocks.0.context_block.attn.proj": ["transformer_blocks.0.attn.to_add_out"],
        "joint_blocks.1.x_block.mlp.fc2": ["transformer_blocks.1.ff.net.2"],
    },
    "flux-dev": {
        "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
        "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
        "double_blocks.0.img_attn.proj": ["transformer_blocks.0.attn.to_out.0"],
        "double_blocks.0.txt_mlp.0": ["transformer_blocks.0.ff_context.net.0.proj"],
        "single_blocks.0.linear1": [
            *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"),
            "single_transformer_blocks.0.proj_mlp",
        ],
        "single_blocks.0.linear2": ["single_transformer_blocks.0.proj_out"],
    },
    "z-image": {
        "layers.0.attention.qkv": [f"layers.0.attention.to_{x}" for x in "qkv"],
        "noise_refiner.0.attention.out": ["noise_refiner.0.attention.to_out.0"],
        "layers.0.feed_forward.w2": ["layers.0.feed_forward.w2"],  # called alike
    },
}
KOHYA, COMFY = ("lora_unet_", "_", "lora_down", "lora_up"), ("diffusion_model.", ".", "lora_A", "lora_B")


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_layer_of_a_unet_has_its_original_name(tmp_path, family):
    pipeline = load_pipeline(make_pipeline(tmp_path / "p", family))
    names = layer_names(pipeline)
    layers = [n for n, m in pipeline.unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(layers) > 60
    for name in layers:
        for key in (f"lora_unet_{unet_name(name)}", f"lora_unet_{name}", f"unet.{name}"):
            assert [layer.name for layer in names[key.replace(".", "_")]] == [name], key


@pytest.mark.parametrize("family", ORIGINALS)
@pytest.mark.parametrize("naming", [KOHYA, COMFY])
def test_a_layer_that_is_several_of_ours_gives_each_its_rows(tmp_path, family, naming):
    pipeline = load_pipeline(make_pipeline(tmp_path / "p", family))
    head, dot, side_a, side_b = naming
    before, draw = copy.deepcopy(pipeline.transformer.state_dict()), torch.Generator().manual_seed(1)
    tensors, expected = {}, dict(before)
    for original, own in ORIGINALS[family].items():
        weights = [before[f"{name}.weight"] for name in own]
        down = torch.randn(4, weights[0].shape[1], generator=draw)
        up = torch.randn(sum(map(len, weights)), 4, generator=draw)
        stem = head + original.replace(".", dot)
        tensors |= {f"{stem}.{side_a}.weight": down, f"{stem}.{side_b}.weight": up}
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
        for name, rows in zip(own, (up @ down / 2).split([len(weight) for weight in weights]), strict=True):
            expected[f"{name}.weight"] = before[f"{name}.weight"] + rows
    write_safetensors(tensors, tmp_path / "l.safetensors", {})
    fuse(pipeline, tmp_path / "l.safetensors", 1.0, own=False)
    for key, value in pipeline.transformer.state_dict().items():
        assert torch.allclose(value, expected[key], atol=1e-5), key


def test_a_dora_on_several_layers_has_rows_and_no_columns(tmp_path):
    """Lengths of rows go to the layers with their rows; those of columns are of the whole, which no layer is."""
    pipeline = load_pipeline(make_pipeline(tmp_path / "p", "flux-dev"))
    stem, draw = "lora_unet_double_blocks_0_img_attn_qkv", torch.Generator().manual_seed(1)
    layers = [pipeline.transformer.get_submodule(f"transformer_blocks.0.attn.to_{x}") for x in "qkv"]
    whole = torch.cat([layer.weight.detach() for layer in layers])
    down, up = torch.randn(4, whole.shape[1], generator=draw), torch.randn(len(whole), 4, generator=draw)
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    lengths = torch.rand(len(whole), 1, generator=draw) + 1
    write_safetensors(tensors | {f"{stem}.dora_scale": lengths}, tmp_path / "l.safetensors", {})
    fuse(pipeline, tmp_path / "l.safetensors", 1.0, own=False)
    added = whole + up @ down
    found = torch.cat([layer.weight.detach() for layer in layers])
    assert torch.allclose(found, added / added.norm(dim=1, keepdim=True) * lengths, atol=1e-4)
    columns = torch.ones(1, whole.shape[1])
    write_safetensors(tensors | {f"{stem}.dora_scale": columns}, tmp_path / "c.safetensors", {})
    with pytest.raises(SafetyDPOError, match="a DoRA has lengths of columns here, which several layers of the model"):
        fuse(pipeline, tmp_path / "c.safetensors", 1.0, own=False)


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("sd3", "lora_unet_final_layer_adaLN_modulation_1"),  # diffusers has its rows in another order
        ("flux-dev", "lora_unet_double_blocks_9_img_attn_proj"),  # of a deeper model
        ("flux-dev", "double_blocks.0.processor.qkv_lora1"),  # XLabs'
    ],
)
def test_a_layer_that_is_none_of_ours_is_refused(tmp_path, family, layer):
    pipeline = load_pipeline(make_pipeline(tmp_path / "p", family))
    down, up = (".down.weight", ".up.weight") if "lora1" in layer else (".lora_down.weight", ".lora_up.weight")
    write_safetensors({layer + down: torch.ones(1, 16), layer + up: torch.ones(32, 1)}, tmp_path / "l.safetensors", {})
    with pytest.raises(SafetyDPOError, match=rf"{layer}\S+ (is not of a LoRA|.*none of)|1 of its 1 layers are none of"):
        fuse(pipeline, tmp_path / "l.safetensors", 1.0, own=False)
