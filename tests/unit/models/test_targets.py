"""Where a LoRA can sit: said by the module that is in the way."""

import re

import pytest
from tiny import make_pipeline
from torch import nn

from safetydpo.errors import SafetyDPOError
from safetydpo.models.pipeline import load_network
from safetydpo.models.stage import check_model
from safetydpo.models.targets import refuse_targets


@pytest.fixture(scope="module")
def unet(tiny):
    """With layers that Stable Diffusion's have not: an embedding, and convolutions that are not plain."""
    unet = load_network(tiny).network
    unet.class_embedding = nn.Embedding(3, 4)
    unet.grouped, unet.dilated = nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(4, 8, 3, dilation=2)
    unet.mirrored = nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")
    return unet


def test_linear_layers_and_plain_convolutions_are_taken_by_the_end_of_their_names(unet):
    linear, convolutions = ["to_q", "to_out.0", "ff.net.2", "time_emb_proj"], ["proj_in", "conv1", "conv_in"]
    refuse_targets(unet, [*linear, *convolutions, "mid_block.attentions.0.proj_out"], "X")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("to_z", "no module of the network of X has a name that ends in to_z: correct the name"),
        ("o_q", "no module of the network of X has a name that ends in o_q: correct the name"),
        (
            "attn1",
            "attn1 is down_blocks.1.attentions.0.transformer_blocks.0.attn1 in the network of X, of type Attention",
        ),
        ("to_out", "in the network of X, of type ModuleList: a LoRA sits on linear layers and plain convolutions"),
        ("conv_norm_out", "conv_norm_out is conv_norm_out in the network of X, of type GroupNorm"),
        ("class_embedding", "class_embedding is class_embedding in the network of X, of type Embedding"),
        ("grouped", "grouped is grouped in the network of X, a convolution in groups, dilated, or padded"),
        ("dilated", "dilated is dilated in the network of X, a convolution in groups, dilated, or padded"),
        ("mirrored", "mirrored is mirrored in the network of X, a convolution in groups, dilated, or padded"),
    ],
)
def test_what_a_lora_cannot_sit_on_is_named(unet, target, said):
    with pytest.raises(SafetyDPOError, match=re.escape(said)):
        refuse_targets(unet, ["to_q", target], "X")


def test_the_check_of_the_model_says_it_before_anything_is_rendered(tmp_path):
    model, out = make_pipeline(tmp_path / "p"), tmp_path / "model.json"
    with pytest.raises(SafetyDPOError, match="has a name that ends in to_z"):
        check_model(model, out, ["to_q", "to_z"])
    assert not out.exists()
    check_model(model, out, ["to_q", "proj_in"])
    assert out.exists()
