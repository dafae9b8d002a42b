"""What LoRA files say of their scale: the weights are those that PEFT itself merges, or the file is refused."""

import copy
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from snakes import ROOT
from tiny import make_pipeline

from safetydpo.errors import SafetyDPOError
from safetydpo.models.adapter_files import (
    CHANGED_BASE,
    OTHER_FACTS,
    OTHERS,
    PEFT_CONFIG,
    PEFT_FILE,
    VARIANTS,
    adapter_files,
)
from safetydpo.models.adapters import fuse
from safetydpo.models.lora import FILE
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import write_safetensors

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
LINEAR = [f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.to_out.0"]
CONV = "mid_block.resnets.0.conv1"
ENCODER = ["q_proj", "out_proj", "fc1"]
# Settings of PEFT by which a LoRA of rank 4 means something else.
SETTINGS = {
    "plain": {"lora_alpha": 6},
    "rslora": {"lora_alpha": 6, "use_rslora": True},
    "patterns": {"lora_alpha": 6, "rank_pattern": {"attn1.to_q": 2}, "alpha_pattern": {"attn2.to_k": 9, "to_q": 5}},
    "patterns-rslora": {"lora_alpha": 6, "rank_pattern": {"^mid_block.*to_q": 2}, "use_rslora": True},
    "dora": {"lora_alpha": 6, "use_dora": True},
    "dora-rslora": {"lora_alpha": 6, "use_dora": True, "use_rslora": True},
    "fan": {"lora_alpha": 6, "fan_in_fan_out": True},
}


@pytest.fixture(scope="module")
def plain(tiny):
    return load_pipeline(tiny)


def adapted(module, targets, **settings):
    """A copy of a module with a random adapter of PEFT on it."""
    torch.manual_seed(5)
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **settings)
    model = get_peft_model(copy.deepcopy(module), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + torch.rand(parameter.shape))
    return model


def fused(plain, path):
    pipeline = copy.deepcopy(plain, {id(plain.family): plain.family})
    fuse(pipeline, path, 1.0, own=False)
    return pipeline


def assert_merged(found, model, before):
    """The module's weights are those that PEFT merges, and not what they were."""
    expected, was = model.merge_and_unload().state_dict(), before.state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert any(not value.equal(was[key]) for key, value in found.state_dict().items())
    for key, value in found.state_dict().items():
        assert torch.allclose(value, expected[key], atol=1e-5), key


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_folder_of_peft_adds_what_peft_merges(plain, tmp_path, name):
    targets = LINEAR if "fan" in name else [*LINEAR, CONV]
    model = adapted(plain.unet, targets, **SETTINGS[name])
    model.save_pretrained(tmp_path)
    assert adapter_files(tmp_path) == {"": tmp_path / PEFT_FILE}
    assert_merged(fused(plain, tmp_path).unet, model, plain.unet)


def test_a_folder_of_peft_for_each_part_adds_to_both(plain, tmp_path):
    """As PEFT's own training of Stable Diffusion saves them."""
    parts = {"unet": adapted(plain.unet, LINEAR, lora_alpha=6)}
    parts["text_encoder"] = adapted(plain.text_encoder, ENCODER, lora_alpha=3, use_rslora=True)
    for part, model in parts.items():
        model.save_pretrained(tmp_path / part)
    pipeline = fused(plain, tmp_path)
    for part, model in parts.items():
        assert_merged(getattr(pipeline, part), model, getattr(plain, part))


def test_a_text_encoders_own_folder_of_peft_is_known_by_its_names(plain, tmp_path):
    model = adapted(plain.text_encoder, ENCODER, lora_alpha=3, use_dora=True)
    model.save_pretrained(tmp_path)
    pipeline = fused(plain, tmp_path)
    assert_merged(pipeline.text_encoder, model, plain.text_encoder)
    assert pipeline.unet.state_dict()["conv_in.weight"].equal(plain.unet.state_dict()["conv_in.weight"])


@pytest.mark.parametrize("name", ["plain", "patterns-rslora", "dora"])
def test_a_file_of_diffusers_with_a_header_adds_to_both_parts(plain, tmp_path, name):
    """rank_pattern, alpha_pattern, use_rslora and use_dora of each part stand in lora_adapter_metadata."""
    unet = adapted(plain.unet, LINEAR, **SETTINGS[name])
    encoder = adapted(plain.text_encoder, ENCODER, lora_alpha=3, use_rslora=True)
    layers = {part: get_peft_model_state_dict(model) for part, model in (("unet", unet), ("text", encoder))}
    bare = {part: {k.removeprefix("base_model.model."): v for k, v in d.items()} for part, d in layers.items()}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=bare["unet"],
        text_encoder_lora_layers=bare["text"],
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=encoder.peft_config["default"].to_dict(),
    )
    pipeline = fused(plain, tmp_path)
    assert_merged(pipeline.unet, unet, plain.unet)
    assert_merged(pipeline.text_encoder, encoder, plain.text_encoder)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(
    ("layer", "shape", "dims"),
    [
        (f"{BLOCK}.attn1.to_q", (16, 1), (1,)),
        (f"{BLOCK}.attn1.to_q", (1, 16), (0,)),  # of columns, as LyCORIS first had them
        (CONV, (16, 1, 1, 1), (1, 2, 3)),
        (CONV, (1, 16, 1, 1), (0, 2, 3)),
    ],
)
def test_a_dora_of_kohyas_naming_gives_rows_or_columns_their_length(plain, tmp_path, layer, shape, dims, scale):
    weight = plain.unet.get_submodule(layer).weight.detach()
    draw = torch.Generator().manual_seed(2)
    down = torch.randn(2, *weight.shape[1:], generator=draw)
    up = torch.randn(16, 2, *(1,) * (weight.ndim - 2), generator=draw)
    lengths, stem = torch.rand(shape, generator=draw) + 1, f"lora_unet_{layer.replace('.', '_')}"
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    tensors |= {f"{stem}.alpha": torch.tensor(6.0), f"{stem}.dora_scale": lengths}
    write_safetensors(tensors, tmp_path / "l.safetensors", {})
    pipeline = copy.deepcopy(plain, {id(plain.family): plain.family})
    fuse(pipeline, tmp_path / "l.safetensors", scale, own=False)
    added = weight + scale * 6 / 2 * torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).reshape(weight.shape)
    found = pipeline.unet.get_submodule(layer).weight.detach()
    assert torch.allclose(found, added / torch.linalg.vector_norm(added, dim=dims, keepdim=True) * lengths, atol=1e-4)


@pytest.mark.parametrize("number", ["", "1", "2"])
def test_kohyas_text_encoders_are_told_apart(tmp_path, number):
    pipeline = load_pipeline(make_pipeline(tmp_path / "xl", "sdxl"))
    part = "text_encoder_2" if number == "2" else "text_encoder"
    module, name = getattr(pipeline, part), "encoder.layers.1.self_attn.q_proj"
    own = f"text_model.{name}" if number == "2" else name
    before = {p: copy.deepcopy(getattr(pipeline, p).state_dict()) for p in ("text_encoder", "text_encoder_2")}
    draw = torch.Generator().manual_seed(4)
    down, up = torch.randn(2, 16, generator=draw), torch.randn(16, 2, generator=draw)
    stem = f"lora_te{number}_text_model_{name.replace('.', '_')}"
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)}
    write_safetensors(tensors, tmp_path / "l.safetensors", {})
    fuse(pipeline, tmp_path / "l.safetensors", 1.0, own=False)
    expected = before[part][f"{own}.weight"] + up @ down / 2
    assert torch.allclose(module.state_dict()[f"{own}.weight"], expected, atol=1e-5)
    changed = {
        (p, k) for p in before for k, v in getattr(pipeline, p).state_dict().items() if not v.equal(before[p][k])
    }
    assert changed == {(part, f"{own}.weight")}


def test_a_name_that_two_encoders_have_is_refused_until_its_folder_says_which(tmp_path):
    pipeline = load_pipeline(make_pipeline(tmp_path / "xl", "sdxl"))
    model = adapted(pipeline.text_encoder_2, ["q_proj"], lora_alpha=4)
    model.save_pretrained(tmp_path / "text_encoder_2")
    with pytest.raises(SafetyDPOError, match=r"q_proj\S+ several parts of the model have such a layer, put"):
        fuse(pipeline, tmp_path / "text_encoder_2" / PEFT_FILE, 1.0, own=False)
    before = copy.deepcopy(pipeline.text_encoder_2)
    fuse(pipeline, tmp_path, 1.0, own=False)
    assert_merged(pipeline.text_encoder_2, model, before)


def saved(plain, folder, **changes):
    """A folder of PEFT whose config says something else than it was trained with."""
    adapted(plain.unet, LINEAR, lora_alpha=6).save_pretrained(folder)
    config = json.loads((folder / PEFT_CONFIG).read_text())
    (folder / PEFT_CONFIG).write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "is a LOHA of PEFT, which is not applied here"),
        ({"peft_type": "IA3"}, "is a IA3 of PEFT"),
        ({"use_dora": True}, "lacks magnitudes of a DoRA, its config says otherwise"),
        ({"init_lora_weights": "pissa_niter_4"}, "was begun by pissa_niter_4, which changes the model's own weights"),
        ({"init_lora_weights": "olora"}, "was begun by olora"),
        ({"alora_invocation_tokens": [1]}, "is a LoRA of PEFT with alora_invocation_tokens"),
        ({"use_qalora": True}, "is a LoRA of PEFT with use_qalora"),
        ({"layer_replication": [[0, 1]]}, "is a LoRA of PEFT with layer_replication"),
        ({"r": 8}, r"the config says rank 8 for mid_block\S+, whose tensors have 4"),
    ],
)
def test_a_config_that_means_something_else_is_refused(plain, tmp_path, changes, said):
    with pytest.raises(SafetyDPOError, match=said) as error:
        fused(plain, saved(plain, tmp_path, **changes))
    assert len(str(error.value).splitlines()) == 1


def test_magnitudes_that_the_config_denies_are_refused(plain, tmp_path):
    adapted(plain.unet, LINEAR, lora_alpha=6, use_dora=True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / PEFT_CONFIG).read_text())
    (tmp_path / PEFT_CONFIG).write_text(json.dumps(config | {"use_dora": False}))
    with pytest.raises(SafetyDPOError, match="has magnitudes of a DoRA, its config says otherwise"):
        fused(plain, tmp_path)


def test_a_file_of_peft_without_its_config_is_refused(plain, tmp_path):
    (saved(plain, tmp_path) / PEFT_CONFIG).unlink()
    with pytest.raises(SafetyDPOError, match=r"is of PEFT, whose alpha is in adapter_config\.json: put that beside it"):
        fused(plain, tmp_path)


@pytest.mark.parametrize(("alpha", "agrees"), [(6.0, True), (2.0, False)])
def test_alphas_in_keys_and_in_the_header_must_agree(plain, tmp_path, alpha, agrees):
    tensors = load_file(saved(plain, tmp_path / "peft") / PEFT_FILE)
    tensors = {key.replace("base_model.model", "unet"): value for key, value in tensors.items()}
    tensors[f"unet.{LINEAR[0]}.alpha"] = torch.tensor(alpha)
    facts = {"unet.r": 4, "unet.lora_alpha": 6}
    write_safetensors(tensors, tmp_path / FILE, {"lora_adapter_metadata": json.dumps(facts)})
    if agrees:
        assert_merged(fused(plain, tmp_path).unet, adapted(plain.unet, LINEAR, lora_alpha=6), plain.unet)
    else:
        with pytest.raises(
            SafetyDPOError, match=rf"says two alphas of unet\.{LINEAR[0]}, in its keys and in its config"
        ):
            fused(plain, tmp_path)


@pytest.mark.parametrize(("text", "said"), [("{", "is no JSON object"), ("[1]", "is no JSON object")])
def test_a_header_that_cannot_be_read_is_said(plain, tmp_path, text, said):
    tensors = {
        "unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3),
        "unet.conv_in.lora_B.weight": torch.ones(8, 1, 1, 1),
    }
    write_safetensors(tensors, tmp_path / FILE, {"lora_adapter_metadata": text})
    with pytest.raises(SafetyDPOError, match=said):
        fused(plain, tmp_path)


def test_all_that_is_refused_stands_in_the_docs():
    text = (ROOT / "docs/brought-models.md").read_text()
    assert {name for name in (*OTHERS, *OTHER_FACTS, *VARIANTS, *CHANGED_BASE) if f"`{name}`" not in text} == set()
