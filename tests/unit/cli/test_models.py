"""Which base a UNet folder is rendered on."""

import json

import pytest
import torch
from original_layout import unet_file
from tiny import make_pipeline

from safetydpo.cli.models import BASES, command_model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import write_safetensors

THREE = "prompt,image\na red circle,a.png\na blue star,b.png\na green square,c.png\n"


def test_a_unet_folder_is_rendered_on_its_base(rendered, tiny, tmp_path):
    other = make_pipeline(tmp_path / "other", seed=4)
    load_pipeline(other).unet.save_pretrained(tmp_path / "published/unet")
    assert "give --base_model" in rendered(THREE, model=tmp_path / "published", folder="no")[0]
    images = rendered(THREE, "--base_model", tiny.id, model=tmp_path / "published", folder="unet")[2]
    assert set(images) == {"a.png", "b.png", "c.png"}
    assert abs(images["a.png"] - rendered(THREE, folder="tiny")[2]["a.png"]).max() > 1


def test_a_transformer_folder_is_rendered_on_its_base(rendered, tmp_path):
    model = make_pipeline(tmp_path / "whole", "sd3")
    load_pipeline(model).transformer.save_pretrained(tmp_path / "alone/transformer")
    small = ["--image_size", "16"]
    assert "Which model" in (said := rendered(THREE, *small, model=tmp_path / "alone", folder="no")[0])
    assert "is not to be seen from it: give --base_model" in said
    images = [
        rendered(THREE, *small, "--base_model", model.id, model=path, folder=name)[2]["a.png"]
        for name, path in (("alone-out", tmp_path / "alone"), ("whole-out", model.id))
    ]
    assert abs(images[0] - images[1]).max() == 0


@pytest.mark.parametrize(
    ("kind", "facts", "base"),  # the numbers of the published configs
    [
        ("SD3Transformer2DModel", {"num_layers": 24, "pos_embed_max_size": 192}, "stable-diffusion-3-medium-diffusers"),
        ("SD3Transformer2DModel", {"num_layers": 24, "pos_embed_max_size": 384}, "stable-diffusion-3.5-medium"),
        ("SD3Transformer2DModel", {"num_layers": 38, "pos_embed_max_size": 192}, "stable-diffusion-3.5-large"),
        ("FluxTransformer2DModel", {"in_channels": 64, "guidance_embeds": True}, "FLUX.1-dev"),
        ("FluxTransformer2DModel", {"in_channels": 64, "guidance_embeds": False}, "FLUX.1-schnell"),
        ("FluxTransformer2DModel", {"in_channels": 384, "guidance_embeds": True}, "give --base_model"),  # inpainting
        ("ZImageTransformer2DModel", {"n_layers": 30, "dim": 3840}, "give --base_model"),  # Turbo or not
    ],
)
def test_the_base_of_a_transformer_is_known_where_its_config_is_of_one_model(tmp_path, kind, facts, base):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind, "joint_attention_dim": 4096, **facts}))
    with pytest.raises(SafetyDPOError, match=base):  # which is not here
        command_model(str(tmp_path), None, "cpu", "float32")


@pytest.mark.parametrize(
    "key",
    [
        "unet.down_blocks.0.attn2.to_k.lora_A.weight",
        "down_blocks.0.attn2.to_k.lora_A.default.weight",
        "lora_unet_down_blocks_0_attn2_to_k.lora_down.weight",
        "unet.down_blocks.0.attn2.processor.to_k_lora.down.weight",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",  # a whole checkpoint
    ],
)
def test_the_base_of_a_lora_is_known_by_its_width_in_every_naming(tmp_path, key):
    up = key.replace("lora_A", "lora_B").replace("down.weight", "up.weight")
    write_safetensors({up: torch.ones(320, 4), key: torch.ones(4, 1024)}, tmp_path / "l.safetensors", {})
    with pytest.raises(SafetyDPOError, match=BASES[1024]):  # which is not here
        command_model(str(tmp_path / "l.safetensors"), None, "cpu", "float32")


@pytest.mark.parametrize("folder", ["", "unet"])
def test_the_base_of_a_folder_of_peft_is_known_by_its_width(tmp_path, folder):
    layer = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{layer}.lora_A.weight": torch.ones(4, 2048), f"{layer}.lora_B.weight": torch.ones(320, 4)}
    write_safetensors(tensors, tmp_path / folder / "adapter_model.safetensors", {})
    with pytest.raises(SafetyDPOError, match=BASES[2048]):  # which is not here
        command_model(str(tmp_path), None, "cpu", "float32")


def test_the_base_of_a_text_encoder_is_not_to_be_seen_from_it(tiny, tmp_path):
    """CLIP's own is in Stable Diffusion 1, XL, 3 and FLUX."""
    load_pipeline(tiny).text_encoder.save_pretrained(tmp_path)
    with pytest.raises(SafetyDPOError, match="is not to be seen from it: give --base_model"):
        command_model(str(tmp_path), None, "cpu", "float32")


def test_a_checkpoint_is_rendered_on_its_base(rendered, tiny, tmp_path):
    other = load_pipeline(make_pipeline(tmp_path / "other", seed=4))
    write_safetensors(unet_file(other.unet), tmp_path / "model.safetensors", {})
    other.unet.save_pretrained(tmp_path / "published/unet")
    paths = {"one": tmp_path / "model.safetensors", "two": tmp_path / "published"}
    one, two = (
        rendered(THREE, "--base_model", tiny.id, model=path, folder=name)[2]["a.png"] for name, path in paths.items()
    )
    assert abs(one - two).max() == 0


def test_the_base_of_a_unet_is_known_where_each_block_has_its_width(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"cross_attention_dim": [768, 768]}))
    with pytest.raises(SafetyDPOError, match=BASES[768]):
        command_model(str(tmp_path), None, "cpu", "float32")


@pytest.mark.parametrize(("name", "said"), [("config.json", "not a whole JSON"), ("l.safetensors", "not a whole safe")])
def test_a_damaged_file_is_a_sentence_that_asks_for_a_whole_one(tmp_path, name, said):
    (tmp_path / name).write_text("{")
    path = tmp_path if name == "config.json" else tmp_path / name
    with pytest.raises(SafetyDPOError, match=f"{said}.*: replace it"):
        command_model(str(path), None, "cpu", "float32")


def test_a_device_that_is_unknown_is_a_sentence(tiny):
    with pytest.raises(SafetyDPOError, match="There is no device gpu"):
        command_model(tiny.id, None, "gpu", "float32")
