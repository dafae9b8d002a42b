"""Checkpoints of one file: diffusers reads back what was written in the original layout, or it is said why not."""

import pytest
import torch
from original_layout import sd3_file, unet_file, vae_file, z_image_file
from tiny import make_pipeline

from safetydpo.errors import SafetyDPOError
from safetydpo.models.families.ldm import NETWORK
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.single_file import is_single_file, load_single_file
from safetydpo.storage.files import write_safetensors


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A pipeline of other weights than `tiny`'s."""
    return load_pipeline(make_pipeline(tmp_path_factory.mktemp("theirs") / "p", seed=9))


@pytest.fixture(scope="module")
def whole(theirs):
    """Its checkpoint: UNet, VAE, text encoder, and numbers of the schedule."""
    encoder = {
        f"cond_stage_model.transformer.text_model.{key}": tensor.clone()
        for key, tensor in theirs.text_encoder.state_dict().items()
    }
    return unet_file(theirs.unet) | vae_file(theirs.vae) | encoder | {"betas": torch.ones(1000)}


def same(one, other):
    ours, others = one.state_dict(), other.state_dict()
    return ours.keys() == others.keys() and all(ours[key].equal(others[key]) for key in ours)


def read(model, folder, tensors):
    write_safetensors(tensors, folder / "model.safetensors", {})
    return load_single_file(model, folder / "model.safetensors")


def test_every_part_that_the_file_holds_is_read_from_it(tiny, theirs, whole, tmp_path):
    pipeline = read(tiny, tmp_path, whole)
    assert is_single_file(tmp_path / "model.safetensors")
    for part in ("unet", "vae", "text_encoder"):
        assert same(getattr(pipeline, part), getattr(theirs, part)), part
    assert not same(load_pipeline(tiny).unet, theirs.unet)
    assert pipeline.safety_checker is None


def test_what_the_file_has_not_is_the_bases(tiny, theirs, tmp_path):
    pipeline, base = read(tiny, tmp_path, unet_file(theirs.unet)), load_pipeline(tiny)
    assert same(pipeline.unet, theirs.unet)
    assert same(pipeline.vae, base.vae)
    assert same(pipeline.text_encoder, base.text_encoder)


@pytest.mark.parametrize(("family", "written"), [("sdxl", unet_file), ("sd3", sd3_file), ("z-image", z_image_file)])
def test_other_families_files_are_read(tmp_path, family, written):
    base, other = (make_pipeline(tmp_path / name, family, seed) for name, seed in (("base", 0), ("other", 9)))
    other = load_pipeline(other)
    network = other.family.network(other)
    tensors = written(network)
    pipeline = read(base, tmp_path, tensors)
    assert same(pipeline.family.network(pipeline), network)
    if network is not getattr(other, "unet", None):  # transformers are published alone too, without the first words
        pipeline = read(base, tmp_path, {key.removeprefix(NETWORK): tensor for key, tensor in tensors.items()})
        assert is_single_file(tmp_path / "model.safetensors")
        assert same(pipeline.transformer, network)


def test_a_t5_is_read_without_its_dropout(tmp_path):
    """diffusers leaves it in training mode."""
    base, other = (make_pipeline(tmp_path / name, "sd3-t5", seed) for name, seed in (("base", 0), ("other", 9)))
    other = load_pipeline(other)
    encoder = {
        f"text_encoders.t5xxl.transformer.{key}": tensor.clone()
        for key, tensor in other.text_encoder_3.state_dict().items()
    }
    pipeline = read(base, tmp_path, sd3_file(other.transformer) | encoder)
    assert same(pipeline.text_encoder_3, other.text_encoder_3)
    assert not pipeline.text_encoder_3.training


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model.diffusion_model.out.2.weight": None}, r"of the base [\d,]+\): name the base that it was made from"),
        (
            {"model.diffusion_model.extra.weight": (2, 3)},
            r"cannot be read as one of .* \(its network has [\d,]+ weights",
        ),
        ({"model.diffusion_model.input_blocks.0.0.weight": (8, 9, 3, 3)}, r"its network has [\d,]+ weights, that of"),
        ({"first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3)}, r"cannot be read as one of .*: name the base"),
        ({"text_encoders.qwen.embed.weight": (4, 2)}, r"with text_encoders\.qwen\.embed\.weight, for which .* no part"),
        (
            {"control_model.x.weight": (4, 2)},
            r"with control_model\.x\.weight, for which StableDiffusionPipeline has no",
        ),
        ({"v_pred": (0,)}, r"is marked v_pred: it predicts v_prediction, its base epsilon"),
    ],
)
def test_what_would_be_passed_over_or_lacks_is_said(tiny, theirs, tmp_path, changed, said):
    tensors = unet_file(theirs.unet)
    for key, shape in changed.items():
        tensors = {other: tensor for other, tensor in tensors.items() if other != key}
        tensors |= {} if shape is None else {key: torch.ones(shape)}
    with pytest.raises(SafetyDPOError, match=said) as error:
        read(tiny, tmp_path, tensors)
    assert len(str(error.value).splitlines()) == 1


def test_a_mark_that_the_bases_scheduler_agrees_with_is_none(theirs, tmp_path):
    base = make_pipeline(tmp_path / "base", "sd21")
    assert same(read(base, tmp_path, unet_file(theirs.unet) | {"v_pred": torch.ones(0)}).unet, theirs.unet)


def test_a_checkpoint_of_another_family_is_refused(tmp_path, theirs):
    base = make_pipeline(tmp_path / "base", "sd3")
    with pytest.raises(SafetyDPOError, match=r"cannot be read as one of .*base"):
        read(base, tmp_path, unet_file(theirs.unet))
