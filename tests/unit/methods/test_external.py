"""External models are known by their files."""

import pytest
import torch
from original_layout import unet_file
from tiny import make_pipeline

from safetydpo.config.baselines import Baselines
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import open_method
from safetydpo.methods.stage import check_external
from safetydpo.models.lora import save_factors
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.files import made_by, write_safetensors

# A layer of each network, and the part that it is in.
LAYERS = {
    "sd15": ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
    "sd3": ("transformer", "transformer_blocks.0.attn.to_q"),
    "flux-dev": ("transformer", "single_transformer_blocks.0.attn.to_q"),
    "z-image": ("transformer", "layers.0.attention.to_q"),
}


def external(path, **own):
    return Baselines(externals=[{"name": "x", "path": str(path), **own}])


def save_lora(folder, model, family):
    """A LoRA that adds 0.5 to every weight of the family's layer; the layer's weight as it was."""
    component, name = LAYERS[family]
    weight = getattr(load_pipeline(model), component).get_submodule(name).weight.detach()
    factors = torch.full((1, weight.shape[1]), 0.5), torch.ones(weight.shape[0], 1)
    save_factors({name: factors}, folder, component, made_by("train"))
    return weight


def rendered(pipeline, model):
    return next(render(pipeline, ["a red circle"], [3], model)).astype(int)


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
    with pytest.raises(SafetyDPOError, match=r"is neither a pipeline .* nor a unet .* nor a LoRA"):
        open_method("external-x", tiny, external(tmp_path))


def test_a_checkpoint_of_one_file_is_an_external_and_a_damaged_or_pickled_one_is_said(tiny, tmp_path):
    theirs, file = load_pipeline(make_pipeline(tmp_path / "other", "sd15", seed=9)).unet, tmp_path / "m.safetensors"
    write_safetensors(unet_file(theirs), file, {})
    unet = open_method("external-x", tiny, external(file)).unet
    assert all(value.equal(theirs.state_dict()[key]) for key, value in unet.state_dict().items())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SafetyDPOError, match=r"m\.safetensors is not a whole safetensors file .*: replace it"):
        open_method("external-x", tiny, external(file))
    file.rename(tmp_path / "m.ckpt")
    with pytest.raises(SafetyDPOError, match=r"m\.ckpt is a pickle"):
        open_method("external-x", tiny, external(tmp_path / "m.ckpt"))


def test_a_network_and_a_lora_in_one_folder_are_both_taken(tiny, tmp_path):
    theirs = load_pipeline(make_pipeline(tmp_path / "other", "sd15", seed=9)).unet
    theirs.save_pretrained(tmp_path / "both")
    save_lora(tmp_path / "both", tiny, "sd15")
    layer = f"{LAYERS['sd15'][1]}.weight"
    found = open_method("external-x", tiny, external(tmp_path / "both")).unet.state_dict()
    assert torch.allclose(found[layer], theirs.state_dict()[layer] + 0.5, atol=1e-6)
    assert found["conv_in.weight"].equal(theirs.state_dict()["conv_in.weight"])


def test_a_lora_that_is_pickled_is_said_to_be(tiny, tmp_path):
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(SafetyDPOError, match=r"adapter_model\.bin is a pickle"):
        open_method("external-x", tiny, external(tmp_path))


def test_an_external_unet_of_another_model_is_refused(tiny, tmp_path):
    load_pipeline(make_pipeline(tmp_path / "xl", "sdxl")).unet.save_pretrained(tmp_path / "u")
    with pytest.raises(SafetyDPOError, match=r"is of another model than .*cross_attention_dim"):
        open_method("external-x", tiny, external(tmp_path / "u"))


@pytest.mark.parametrize("family", ["sd3", "flux-dev", "z-image"])
def test_a_transformer_alone_or_a_lora_on_one_is_known_by_its_files(tmp_path, family):
    model, other = (make_pipeline(tmp_path / name, family, seed) for name, seed in (("own", 0), ("other", 9)))
    theirs = load_pipeline(other).transformer
    theirs.save_pretrained(tmp_path / "alone")
    theirs.save_pretrained(tmp_path / "published/transformer")
    expected = load_pipeline(other).transformer.state_dict()
    name = f"{LAYERS[family][1]}.weight"
    assert not load_pipeline(model).transformer.state_dict()[name].equal(expected[name])
    for path in (other.id, tmp_path / "alone", tmp_path / "published"):
        found = open_method("external-x", model, external(path)).transformer.state_dict()
        assert all(found[key].equal(expected[key]) for key in expected)
    before = save_lora(tmp_path / "lora", model, family)
    fused = open_method("external-x", model, external(tmp_path / "lora")).transformer
    assert torch.allclose(fused.state_dict()[name], before + 0.5, atol=1e-6)
    with pytest.raises(SafetyDPOError, match=r"is neither a pipeline .* nor a transformer .* nor a LoRA"):
        open_method("external-x", model, external(tmp_path))


def test_a_network_or_lora_of_another_family_is_refused_in_a_sentence(tmp_path):
    models = {family: make_pipeline(tmp_path / family, family) for family in ("sd15", "sd3", "flux-dev")}
    for family, model in models.items():
        save_lora(tmp_path / f"lora-{family}", model, family)
        pipeline = load_pipeline(model)
        pipeline.family.network(pipeline).save_pretrained(tmp_path / f"net-{family}")
    for target, other, said in (
        ("sd3", "lora-sd15", r"is of another model \(unet\S+: it is a unet's, the model has a transformer\)"),
        ("sd15", "lora-sd3", r"is of another model \(transformer\S+: it is a transformer's, the model has a unet\)"),
        ("sd3", "lora-flux-dev", r"is of another model \(transformer\.single\S+: the model has no single_transformer"),
        ("sd3", "net-sd15", r"net-sd15 has a UNet2DConditionModel, .*sd3 is rendered with a SD3Transformer2DModel"),
        ("flux-dev", "net-sd3", r"net-sd3 has a SD3Transformer2DModel, .* with a FluxTransformer2DModel"),
    ):
        with pytest.raises(SafetyDPOError, match=said):
            open_method("external-x", models[target], external(tmp_path / other))


def test_a_transformer_that_takes_no_guidance_is_not_given_one(tmp_path):
    dev, schnell = (make_pipeline(tmp_path / name, name) for name in ("flux-dev", "flux-schnell"))
    load_pipeline(schnell).transformer.save_pretrained(tmp_path / "alone")
    with pytest.raises(SafetyDPOError, match=r"guidance_scale is 2, and .* would ignore it"):
        open_method("external-x", dev, external(tmp_path / "alone"))
    open_method("external-x", dev, external(tmp_path / "alone", guidance_scale=1))


def test_a_pipeline_of_another_family_renders_as_itself(tmp_path):
    """It gets neither the arguments that another class's call takes nor its convention of guidance."""
    z_image, sd15 = (make_pipeline(tmp_path / name, name) for name in ("z-image", "sd15"))
    assert z_image.call
    for target, other in ((z_image, sd15), (sd15, z_image)):
        opened = open_method("external-x", target, external(other.id, call=other.call or None))
        expected = rendered(load_pipeline(other), other)
        assert abs(rendered(opened, target) - expected).max() <= 1
        assert (rendered(load_pipeline(target), target) != expected).any()
    check_external("x", z_image, external(sd15.id), tmp_path / "x.json")
    assert '"family": "unet"' in (tmp_path / "x.json").read_text()


def test_an_external_has_steps_and_guidance_of_its_own(tiny, tmp_path):
    other = make_pipeline(tmp_path / "other", "sd3")
    opened = open_method("external-x", tiny, external(other.id, num_inference_steps=5, guidance_scale=6.5))
    own = other.model_copy(update={"num_inference_steps": 5, "guidance_scale": 6.5})
    expected = rendered(load_pipeline(other), own)
    assert abs(rendered(opened, tiny) - expected).max() <= 1
    assert (rendered(open_method("external-x", tiny, external(other.id)), tiny) != expected).any()
