"""Parts that others publish alone stand in for the base's where they fit it."""

import json

import pytest
import torch
from tiny import make_pipeline
from transformers import CLIPTextModel

from safetydpo.errors import SafetyDPOError
from safetydpo.methods.external import external_pipeline
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import write_safetensors


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A pipeline of other weights than `tiny`'s."""
    return load_pipeline(make_pipeline(tmp_path_factory.mktemp("theirs") / "p", seed=9))


def same(one, other):
    ours, others = one.state_dict(), other.state_dict()
    return ours.keys() == others.keys() and all(ours[key].equal(others[key]) for key in ours)


def save(module, folder, **changes):
    """A part's folder, with changes of its config."""
    module.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"max_shard_size": "8KB"}])
@pytest.mark.parametrize("folder", ["nudity_unlearned", "published/text_encoder"])
def test_a_text_encoder_alone_takes_the_place_of_the_bases(tiny, theirs, tmp_path, options, folder):
    theirs.text_encoder.save_pretrained(tmp_path / folder, **options)
    if "max_shard_size" in options:
        assert len(list((tmp_path / folder).glob("*.safetensors"))) > 2
    pipeline = external_pipeline(tiny, str(tmp_path / folder.removesuffix("/text_encoder")))
    base = load_pipeline(tiny)
    assert same(pipeline.text_encoder, theirs.text_encoder)
    assert not same(base.text_encoder, theirs.text_encoder)
    assert same(pipeline.unet, base.unet)


def test_a_text_encoder_saved_by_older_transformers_is_read_whole(tiny, theirs, tmp_path):
    """As published ones are: every layer in a `text_model`, and the positions beside the weights."""
    folder = save(theirs.text_encoder, tmp_path / "old")
    tensors = {f"text_model.{key}": value for key, value in theirs.text_encoder.state_dict().items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    write_safetensors(tensors, folder / "model.safetensors", {"format": "pt"})
    assert same(external_pipeline(tiny, str(folder)).text_encoder, theirs.text_encoder)


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"max_shard_size": "20KB"}])
def test_a_network_or_a_pipeline_may_be_of_a_variant_or_in_shards(tiny, theirs, tmp_path, options):
    theirs.unet.save_pretrained(tmp_path / "unet-alone", **options)
    theirs.save_pretrained(tmp_path / "whole", **options)
    files = {path.name for path in (tmp_path / "unet-alone").glob("*.safetensors")}
    assert len(files) > 2 if "max_shard_size" in options else files == {"diffusion_pytorch_model.fp16.safetensors"}
    assert same(external_pipeline(tiny, str(tmp_path / "unet-alone")).unet, theirs.unet)
    whole = external_pipeline(tiny, str(tmp_path / "whole"))
    assert all(same(getattr(whole, part), getattr(theirs, part)) for part in ("unet", "vae", "text_encoder"))


def test_several_parts_of_one_folder_are_all_taken(tiny, theirs, tmp_path):
    theirs.unet.save_pretrained(tmp_path / "unet")
    theirs.text_encoder.save_pretrained(tmp_path / "text_encoder")
    pipeline = external_pipeline(tiny, str(tmp_path))
    assert same(pipeline.unet, theirs.unet)
    assert same(pipeline.text_encoder, theirs.text_encoder)
    theirs.vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(SafetyDPOError, match=r"has text_encoder/ and vae/, but no model_index\.json: add that"):
        external_pipeline(tiny, str(tmp_path))


def test_of_two_encoders_the_class_or_the_folders_name_says_which(tmp_path):
    for family, unlike in (("sdxl", True), ("sd3", False)):  # sd3's first two are of one class
        base, other = (make_pipeline(tmp_path / family / name, family, seed) for name, seed in (("base", 0), ("o", 9)))
        theirs = load_pipeline(other)
        theirs.text_encoder_2.save_pretrained(tmp_path / family / "alone")
        if unlike:
            pipeline = external_pipeline(base, str(tmp_path / family / "alone"))
        else:
            with pytest.raises(
                SafetyDPOError, match=r"which text_encoder and text_encoder_2 of .* name the folder after"
            ):
                external_pipeline(base, str(tmp_path / family / "alone"))
            theirs.text_encoder_2.save_pretrained(tmp_path / family / "text_encoder_2")
            pipeline = external_pipeline(base, str(tmp_path / family / "text_encoder_2"))
        assert same(pipeline.text_encoder_2, theirs.text_encoder_2)
        assert same(pipeline.text_encoder, load_pipeline(base).text_encoder)


@pytest.mark.parametrize("family", ["flux-dev", "z-image"])
def test_the_encoder_that_is_a_language_model_is_taken_too(tmp_path, family):
    base, other = (make_pipeline(tmp_path / name, family, seed) for name, seed in (("base", 0), ("other", 9)))
    part, theirs = "text_encoder" if family == "z-image" else "text_encoder_2", load_pipeline(other)
    getattr(theirs, part).save_pretrained(tmp_path / "alone")
    assert same(getattr(external_pipeline(base, str(tmp_path / "alone")), part), getattr(theirs, part))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 32),
        ("vocab_size", 999),
        ("max_position_embeddings", 8),
        ("num_hidden_layers", 1),
        ("num_attention_heads", 4),
        ("hidden_act", "gelu"),
    ],
)
def test_a_text_encoder_that_does_not_fit_the_base_is_refused_by_what_differs(tiny, theirs, tmp_path, key, value):
    config = theirs.text_encoder.config.to_dict() | {key: value}
    other = CLIPTextModel(type(theirs.text_encoder.config)(**config))
    other.save_pretrained(tmp_path / "e")
    own = getattr(theirs.text_encoder.config, key)
    said = rf"The text_encoder in \S+ is of another model than \S+: {key} {value} against {own}\."
    with pytest.raises(SafetyDPOError, match=said):
        external_pipeline(tiny, str(tmp_path / "e"))


@pytest.mark.parametrize("name", ["CLIPModel", "CLIPTextModelWithProjection", "T5EncoderModel"])
def test_a_part_of_another_class_is_refused_by_name(tiny, theirs, tmp_path, name):
    folder = save(theirs.text_encoder, tmp_path / "e", architectures=[name])
    with pytest.raises(
        SafetyDPOError, match=f"has a {name}, .* is rendered with a UNet2DConditionModel, CLIPTextModel"
    ):
        external_pipeline(tiny, str(folder))
    theirs.vae.save_pretrained(tmp_path / "v")
    with pytest.raises(
        SafetyDPOError, match=r"v has a AutoencoderKL, .* is rendered with a UNet2DConditionModel, CLIP"
    ):
        external_pipeline(tiny, str(tmp_path / "v"))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_are_missing_or_left_over_are_said(tiny, theirs, tmp_path, part):
    folder, module = tmp_path / "p", getattr(theirs, part)
    module.save_pretrained(folder)
    file = next(folder.glob("*.safetensors"))
    tensors = {key: value.clone() for key, value in module.state_dict().items()}
    first = min(tensors)
    write_safetensors({k: v for k, v in tensors.items() if k != first}, file, {"format": "pt"})
    with pytest.raises(SafetyDPOError, match=rf"is not whole: of a \w+, it lacks {first}"):
        external_pipeline(tiny, str(folder))
    write_safetensors(tensors | {"more.weight": torch.ones(2)}, file, {"format": "pt"})
    with pytest.raises(SafetyDPOError, match=r"is not whole: of a \w+, it has besides more\.weight"):
        external_pipeline(tiny, str(folder))
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(SafetyDPOError, match=r"pytorch_model\.bin is a pickle"):
        external_pipeline(tiny, str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(SafetyDPOError, match=rf"The {part} in .* cannot be loaded \("):
        external_pipeline(tiny, str(folder))
