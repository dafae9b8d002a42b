"""LoRA files of every naming add what they say to the weights, or are refused by name; nothing is left out unsaid."""

import copy
import json

import pytest
import torch
from peft import LoraConfig
from tiny import make_pipeline

from safetydpo.errors import SafetyDPOError
from safetydpo.models.adapters import fuse
from safetydpo.models.lora import FILE
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import write_safetensors

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
RANKS = {f"{BLOCK}.attn1.to_q": 2, f"{BLOCK}.attn2.to_k": 3}


@pytest.fixture(scope="module")
def plain(tiny):
    return load_pipeline(tiny)


@pytest.fixture(scope="module")
def weights(plain):
    """The UNet's weights of the two layers that are adapted."""
    return {name: plain.unet.get_submodule(name).weight.detach() for name in RANKS}


@pytest.fixture(scope="module")
def factors(weights):
    """lora_A (r, in) and lora_B (out, r) of two layers, of different ranks."""
    draw = torch.Generator().manual_seed(3)
    return {
        name: (torch.randn(r, w.shape[1], generator=draw), torch.randn(w.shape[0], r, generator=draw))
        for (name, r), w in zip(RANKS.items(), weights.values(), strict=True)
    }


def named(factors, naming):
    """Tensors of a file with keys such as `unet.{layer}.{side}.weight`; kohya's have no dots in layers."""
    sides = ("lora_down", "lora_up") if naming.startswith("lora_unet_") else ("lora_A", "lora_B")
    out = {}
    for layer, pair in factors.items():
        layer = layer.replace(".", "_") if naming.startswith("lora_unet_") else layer
        out |= {naming.format(layer=layer, side=side): t.clone() for side, t in zip(sides, pair, strict=True)}
    return out


def copied(pipeline):
    """A pipeline of its own weights; the family, which has none, is shared."""
    return copy.deepcopy(pipeline, {id(pipeline.family): pipeline.family})


def fused(plain, folder, tensors=None, header=None, layers=RANKS, part="unet"):
    """Weights of the adapted layers with the LoRA of a file fused; the file is written where tensors are given."""
    if tensors:
        write_safetensors(tensors, folder / FILE, header or {})
    pipeline = copied(plain)
    fuse(pipeline, folder, 1.0, own=False)
    return {name: getattr(pipeline, part).get_submodule(name).weight.detach() for name in layers}


def assert_added(found, weights, factors, scale=None):
    for name, (a, b) in factors.items():
        assert torch.allclose(found[name], weights[name] + (scale or {}).get(name, 1) * b @ a, atol=1e-5), name


UNET, BARE, KOHYA = "unet.{layer}.{side}.weight", "{layer}.{side}.weight", "lora_unet_{layer}.{side}.weight"
COMFY = "diffusion_model.{layer}.{side}.weight"


@pytest.mark.parametrize(
    "naming", [UNET, BARE, KOHYA, COMFY, "unet.{layer}.{side}.default.weight", "{layer}.{side}.x.weight"]
)
def test_a_lora_is_read_in_every_naming_of_a_unet(plain, tmp_path, weights, factors, naming):
    assert_added(fused(plain, tmp_path, named(factors, naming)), weights, factors)


@pytest.mark.parametrize("of_file", [torch.float32, torch.float16])
@pytest.mark.parametrize("of_model", [torch.float32, torch.bfloat16])
def test_file_and_model_may_differ_in_precision(plain, tmp_path, weights, factors, of_file, of_model):
    half = {name: (a.to(of_file), b.to(of_file)) for name, (a, b) in factors.items()}
    found = fused(copied(plain).to(of_model), tmp_path, named(half, UNET))
    for name, (a, b) in factors.items():
        assert found[name].dtype == of_model
        assert torch.allclose(found[name].float(), weights[name] + b @ a, rtol=2e-2, atol=5e-2)


def test_a_convolutions_lora_is_applied(plain, tmp_path):
    name, draw = "down_blocks.0.resnets.0.conv1", torch.Generator().manual_seed(2)
    weight = plain.unet.get_submodule(name).weight.detach()  # (out, in, 3, 3)
    a = torch.randn(2, *weight.shape[1:], generator=draw)
    b = torch.randn(len(weight), 2, 1, 1, generator=draw)
    found = fused(plain, tmp_path, named({name: (a, b)}, UNET), layers=[name])[name]
    assert torch.allclose(found, weight + torch.einsum("orxy,rihw->oihw", b, a), atol=1e-5)


@pytest.mark.parametrize(("naming", "stem"), [(KOHYA, "lora_unet_{}.alpha"), (UNET, "unet.{}.alpha")])
@pytest.mark.parametrize("alphas", [(6.0, 3.0), (1.0, None)])
def test_alpha_over_rank_scales_each_layer(plain, tmp_path, weights, factors, naming, stem, alphas):
    tensors, scale = named(factors, naming), {}
    for (name, rank), alpha in zip(RANKS.items(), alphas, strict=True):
        if alpha is not None:
            layer = name.replace(".", "_") if naming == KOHYA else name
            tensors[stem.format(layer)], scale[name] = torch.tensor(alpha), alpha / rank
    assert_added(fused(plain, tmp_path, tensors), weights, factors, scale)


def test_a_kohya_lora_on_the_text_encoder_is_applied(plain, tmp_path):
    layers = [f"encoder.layers.{i}.self_attn.{x}_proj" for i in (0, 1) for x in ("q", "k", "v", "out")]
    layers += [f"encoder.layers.{i}.mlp.fc{x}" for i in (0, 1) for x in (1, 2)]
    before = {name: plain.text_encoder.get_submodule(name).weight.detach() for name in layers}
    tensors, factors, draw = {}, {}, torch.Generator().manual_seed(1)
    for name, weight in before.items():
        a, b = torch.randn(2, weight.shape[1], generator=draw), torch.randn(len(weight), 2, generator=draw)
        factors[name], stem = (a, b), f"lora_te_text_model_{name.replace('.', '_')}"
        tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(1.0)}
    found = fused(plain, tmp_path, tensors, layers=layers, part="text_encoder")
    assert_added(found, before, factors, dict.fromkeys(layers, 1 / 2))


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight"),
        ("unet.{}_lora.down.weight", "unet.{}_lora.up.weight"),
        ("unet.{}.lora_linear_layer.down.weight", "unet.{}.lora_linear_layer.up.weight"),
    ],
)
def test_older_names_of_diffusers_are_read(plain, tmp_path, down, up):
    """Attention had its LoRA in a processor, and to_out was not numbered."""
    tensors, expected, draw = {}, {}, torch.Generator().manual_seed(6)
    for end, old in (("attn1.to_v", "attn1.processor.to_v"), ("attn2.to_out.0", "attn2.processor.to_out")):
        name = f"{BLOCK}.{end}"
        weight = plain.unet.get_submodule(name).weight.detach()
        a, b = torch.randn(2, weight.shape[1], generator=draw), torch.randn(len(weight), 2, generator=draw)
        tensors |= {down.format(f"{BLOCK}.{old}"): a, up.format(f"{BLOCK}.{old}"): b}
        expected[name] = weight + b @ a
    found = fused(plain, tmp_path, tensors, layers=expected)
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_a_kohya_lora_of_sdxl_is_applied_to_the_blocks_that_it_counts_otherwise(tmp_path):
    """With one layer a block and its downsampler, input block 3 is the first layer of the second."""
    pipeline = load_pipeline(make_pipeline(tmp_path / "xl", "sdxl"))
    name, draw = f"{BLOCK}.attn2.to_k", torch.Generator().manual_seed(1)
    weight = pipeline.unet.get_submodule(name).weight.detach()
    a, b = torch.randn(4, weight.shape[1], generator=draw), torch.randn(len(weight), 4, generator=draw)
    stem = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k"
    tensors = {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(1.0)}
    found = fused(pipeline, tmp_path, tensors, layers=[name])[name]
    assert torch.allclose(found, weight + b @ a / 4, atol=1e-5)


@pytest.mark.parametrize(("naming", "prefix"), [(UNET, "unet."), (BARE, ""), (BARE, "unet."), (UNET, "")])
def test_alpha_in_diffusers_header_scales_too(plain, tmp_path, weights, factors, naming, prefix):
    facts = {"r": 2, "lora_alpha": 4, "rank_pattern": {f"{BLOCK}.attn2.to_k": 3}, "target_modules": list(RANKS)}
    header = {"lora_adapter_metadata": json.dumps({f"{prefix}{key}": value for key, value in facts.items()})}
    found = fused(plain, tmp_path, named(factors, naming), header)
    assert_added(found, weights, factors, {f"{BLOCK}.attn1.to_q": 2, f"{BLOCK}.attn2.to_k": 4 / 3})


def test_a_lora_that_the_unet_saved_itself_is_read(plain, tmp_path, weights):
    unet = copy.deepcopy(plain.unet)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=list(RANKS), init_lora_weights=False))
    unet.save_lora_adapter(tmp_path)
    layers = {name: unet.get_submodule(name) for name in RANKS}
    factors = {n: (m.lora_A["default"].weight, m.lora_B["default"].weight) for n, m in layers.items()}
    assert_added(fused(plain, tmp_path), weights, factors, dict.fromkeys(RANKS, 6 / 2))


def test_a_dora_as_diffusers_saves_it_keeps_its_magnitudes(plain, tmp_path, weights, factors):
    sizes = {name: torch.arange(1.0, len(weight) + 1) for name, weight in weights.items()}
    tensors = named(factors, UNET) | {f"unet.{name}.lora_magnitude_vector": size for name, size in sizes.items()}
    found = fused(plain, tmp_path, tensors)
    for name, size in sizes.items():  # rows of the sum, each stretched to its magnitude
        assert torch.allclose(found[name].norm(dim=1), size, atol=1e-4)
        a, b = factors[name]
        assert torch.cosine_similarity(found[name], weights[name] + b @ a).min() > 0.9999


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"lora_unet_x.dora_scale": (4, 1)}, r"lora_unet_x\.dora_scale belongs to no layer"),
        ({"lora_unet_x.hada_w1_a": (4, 2)}, r"hada_w1_a is a LoHa"),
        ({"unet.mid_block.lokr_w1": (2, 2)}, r"lokr_w1 is a LoKr"),
        ({"lora_unet_x.oft_blocks": (2, 2, 2)}, r"oft_blocks is an OFT"),
        ({"lora_unet_x.lora_mid.weight": (2, 2, 3, 3)}, r"lora_mid\.weight is a LoCon with a Tucker core"),
        ({"lora_unet_x.diff": (4, 4)}, r"x\.diff is full differences of weights"),
        ({"unet.x.lora_B.bias": (4,)}, r"lora_B\.bias is a LoRA with biases of its own"),
        ({"text_encoder.y.lora_embedding_A": (2, 4)}, r"lora_embedding_A is a LoRA on embeddings"),
        ({"unet.conv_in.weight": (4, 4)}, r"unet\.conv_in\.weight is not of a LoRA"),
        ({"unet.y.alpha": ()}, r"unet\.y\.alpha belongs to no layer"),
        ({"unet.y.lora_A.weight": (2, 4)}, r"unet\.y has unet\.y\.lora_A\.weight alone"),
        ({f"unet.{BLOCK}.attn1.to_q.lora_A.b.weight": (2, 16)}, "several adapters"),
        ({f"unet.{BLOCK}.attn1.to_q.alpha": (2,)}, r"to_q\.alpha is not one number"),
        (
            {"unet.y.lora_A.weight": (2, 4), "unet.y.lora_B.weight": (4, 3)},
            r"lora_B\.weight \(4, 3\) is not for .*\(2, 4\)",
        ),
    ],
)
def test_what_is_no_lora_is_refused_by_its_key(plain, tmp_path, factors, extra, said):
    with pytest.raises(SafetyDPOError, match=said):
        fused(plain, tmp_path, named(factors, UNET) | {key: torch.ones(shape) for key, shape in extra.items()})


@pytest.mark.parametrize(
    ("other", "naming"),
    [("model.{layer}.{side}.weight", ""), (KOHYA.replace("unet", "unet_o"), r" \(kohya's naming\)")],
)
def test_a_lora_of_which_a_part_is_not_applied_is_refused(plain, tmp_path, factors, other, naming):
    """The part has the values of one that is applied: only its name is unknown."""
    first = {BLOCK + ".attn1.to_q": factors[BLOCK + ".attn1.to_q"]}
    said = rf"another model \(1 of its 3 layers are none of the model's, first \S+{naming}\)"
    with pytest.raises(SafetyDPOError, match=said):
        fused(plain, tmp_path, named(factors, KOHYA if "lora" in other[:4] else UNET) | named(first, other))


def test_a_layer_that_a_file_holds_under_two_names_is_not_added_twice(plain, tmp_path, factors):
    both = named(factors, UNET) | named({f"{BLOCK}.attn2.to_k": factors[f"{BLOCK}.attn2.to_k"]}, KOHYA)
    with pytest.raises(SafetyDPOError, match=r"attn2\S+ is of the same layer as \S+attn2\S+"):
        fused(plain, tmp_path, both)


def test_a_lora_with_nan_is_refused_by_its_key(plain, tmp_path, factors):
    tensors = named(factors, BARE)
    tensors[f"{BLOCK}.attn1.to_q.lora_B.weight"][3, 1] = torch.nan
    with pytest.raises(SafetyDPOError, match=rf"{BLOCK}\.attn1\.to_q\.lora_B\.weight of .*: 1 of 32 values are NaN"):
        fused(plain, tmp_path, tensors)


def test_a_pickled_lora_is_refused_unread(plain, tmp_path):
    (tmp_path / "lora.bin").write_bytes(b"no")
    with pytest.raises(SafetyDPOError, match=r"lora\.bin is a pickle"):
        fuse(plain, tmp_path / "lora.bin", 1.0, own=False)


@pytest.fixture(scope="module", params=["sd3", "flux-dev", "z-image"])
def other(request, tmp_path_factory):
    """The pipeline of a transformer family."""
    return load_pipeline(make_pipeline(tmp_path_factory.mktemp(request.param) / "p", request.param))


@pytest.fixture(scope="module")
def layer(other):
    """Name and weight of a layer of it that a LoRA usually adapts."""
    target = other.family.kind.targets[0]
    return next((n, m.weight.detach()) for n, m in other.transformer.named_modules() if n.endswith(target))


@pytest.fixture(scope="module")
def pair(layer):
    name, weight = layer
    draw = torch.Generator().manual_seed(4)
    return {name: (torch.randn(2, weight.shape[1], generator=draw), torch.randn(len(weight), 2, generator=draw))}


DIT = "transformer.{layer}.{side}.weight"


@pytest.mark.parametrize("naming", [DIT, BARE, "transformer.{layer}.{side}.default.weight", "{layer}.{side}.x.weight"])
def test_a_transformers_lora_is_read_in_every_naming_of_its_own(other, layer, pair, tmp_path, naming):
    found = fused(other, tmp_path, named(pair, naming), layers=pair, part="transformer")
    assert_added(found, dict([layer]), pair)


def test_alpha_over_rank_scales_a_transformers_layer(other, layer, pair, tmp_path):
    tensors = named(pair, DIT) | {f"transformer.{layer[0]}.alpha": torch.tensor(6.0)}
    found = fused(other, tmp_path, tensors, layers=pair, part="transformer")
    assert_added(found, dict([layer]), pair, {layer[0]: 6 / 2})


@pytest.mark.parametrize(
    ("naming", "prefix", "facts", "scale"),
    [
        (DIT, "transformer.", {}, 6 / 2),
        (BARE, "", {}, 6 / 2),
        (DIT, "transformer.", {"use_rslora": True}, 6 / 2**0.5),  # rank-stabilised
    ],
)
def test_alpha_in_the_header_of_a_transformers_lora_scales_too(
    other, layer, pair, tmp_path, naming, prefix, facts, scale
):
    facts = {"r": 2, "lora_alpha": 6, "target_modules": [layer[0]], **facts}
    header = {"lora_adapter_metadata": json.dumps({f"{prefix}{key}": value for key, value in facts.items()})}
    found = fused(other, tmp_path, named(pair, naming), header, layers=pair, part="transformer")
    assert_added(found, dict([layer]), pair, {layer[0]: scale})


def test_a_lora_that_the_transformer_saved_itself_is_read(other, layer, tmp_path):
    network = copy.deepcopy(other.transformer)
    network.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=[layer[0]], init_lora_weights=False))
    network.save_lora_adapter(tmp_path)
    module = network.get_submodule(layer[0])
    pair = {layer[0]: (module.lora_A["default"].weight, module.lora_B["default"].weight)}
    found = fused(other, tmp_path, layers=pair, part="transformer")
    assert_added(found, dict([layer]), pair, {layer[0]: 6 / 2})


@pytest.mark.parametrize(
    ("naming", "said"),
    [
        (UNET, "another model .*it is a unet's, the model has a transformer"),
        (KOHYA, "is of another model .*layers are none of the model's"),
        (BARE, "is of another model .*layers are none of the model's"),
    ],
)
def test_the_lora_of_a_unet_is_refused_by_a_transformer(other, tmp_path, factors, naming, said):
    with pytest.raises(SafetyDPOError, match=said) as error:
        fused(other, tmp_path, named(factors, naming), part="transformer")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("naming", "said"),
    [
        (DIT, "another model .*it is a transformer's, the model has a unet"),
        (BARE, "is of another model .*layers are none of the model's"),
    ],
)
def test_the_lora_of_a_transformer_is_refused_by_a_unet(plain, pair, tmp_path, naming, said):
    with pytest.raises(SafetyDPOError, match=said) as error:
        fused(plain, tmp_path, named(pair, naming))
    assert len(str(error.value).splitlines()) == 1


def test_the_lora_of_another_transformer_is_refused_by_its_key(other, pair, tmp_path):
    tensors = {key.replace("transformer.", "transformer.no_", 1): t for key, t in named(pair, DIT).items()}
    with pytest.raises(SafetyDPOError, match=r"transformer\.no_.*: the model has no no_"):
        fused(other, tmp_path, tensors, part="transformer")
