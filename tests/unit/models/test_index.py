"""Which family a model is of, by its index alone, and what is refused by it."""

import json

import pytest
from tiny import FAMILIES, make_pipeline

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.index import Index

MODEL = {"height": 16, "width": 16, "num_inference_steps": 1, "guidance_scale": 1, "batch_size": 1}


def model(folder, index, **changes):
    """A model of which there is an index alone."""
    (folder / "model_index.json").write_text(json.dumps(index))
    return Model(**MODEL | changes, id=str(folder))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_stands_in_the_index(tmp_path, name):
    made = make_pipeline(tmp_path / "p", name)
    index = Index(made)
    expected = {"sd": "unet", "fl": "flux", "z-": "z-image"}[name[:2]]
    assert index.family.kind.name == ("sd3" if name.startswith("sd3") else expected)
    assert ("text_encoder_3" in index.missing) == (name == "sd3")


def test_an_unknown_family_is_named_with_what_there_is_and_how_to_add_one(tmp_path):
    index = {"_class_name": "SanaPipeline", "transformer": ["diffusers", "SanaTransformer2DModel"]}
    said = (
        r"is a SanaPipeline with SanaTransformer2DModel, of a family .*unet \(.*sd3 \(.*flux \(.*z-image \(.*models\.md"
    )
    with pytest.raises(SafetyDPOError, match=said):
        Index(model(tmp_path, index))


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("FluxControlNetPipeline", "FluxTransformer2DModel"),
        ("FluxKontextPipeline", "FluxTransformer2DModel"),
        ("StableDiffusion3Img2ImgPipeline", "SD3Transformer2DModel"),
    ],
)
def test_a_transformer_that_makes_images_of_images_is_refused(tmp_path, name, network):
    with pytest.raises(SafetyDPOError, match=f"is a {name}, which is not text-to-image"):
        Index(model(tmp_path, {"_class_name": name, "transformer": ["diffusers", network]}))


def test_an_argument_that_the_pipeline_does_not_take_is_refused(tmp_path):
    index = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    Index(model(tmp_path, index, call={"max_sequence_length": 16}))
    with pytest.raises(
        SafetyDPOError, match=r"model\.call\.true_cfg_scale: a StableDiffusion3Pipeline, which .* takes no"
    ):
        Index(model(tmp_path, index, call={"true_cfg_scale": 2, "max_sequence_length": 16}))
