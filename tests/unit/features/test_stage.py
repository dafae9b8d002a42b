"""Features as they are written: posteriors of the images, and the captions that belong to them."""

import pytest
import torch
from tiny import ROLES

from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.features.stage import write_features
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import read_parquet, read_safetensors, write_parquet
from safetydpo.storage.images import unpng


def test_features_hold_the_vae_posterior_and_end_with_the_empty_prompt(tiny, tiny_features):
    tensors, _ = read_safetensors(tiny_features / "features.safetensors")
    pipeline, pairs = load_pipeline(tiny), read_parquet(tiny_features / "pairs.parquet")
    pixels = torch.from_numpy(unpng(pairs.unsafe_image[1]).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels).latent_dist
        empty = pipeline.encode_prompt("", "cpu", 1, False)[0]
    assert torch.allclose(tensors["unsafe_mean"][1], posterior.mean[0], atol=1e-5)
    assert torch.allclose(tensors["unsafe_std"][1], posterior.std[0], atol=1e-5)
    assert torch.allclose(tensors["encoder_hidden_states"][-1], empty[0], atol=1e-5)


def test_each_pair_is_conditioned_on_its_own_prompts(tiny, tiny_features, tmp_path):
    prompts = read_parquet(tiny_features / "prompts.parquet")
    prompts.loc[2, "unsafe_prompt"] = prompts.unsafe_prompt[0]  # p0 and p2 share a caption
    write_parquet(prompts.iloc[::-1], tmp_path / "prompts.parquet")  # in another order than the images
    pairs, out = [str(tiny_features / "pairs.parquet")], tmp_path / "f.safetensors"
    write_features(pairs, tmp_path / "prompts.parquet", ROLES, tiny, out)
    features = read_features([out], tiny.id)
    assert features.ids == ["p0", "p1", "p2"]
    assert len(features.shards[0]["encoder_hidden_states"]) == 6  # 2 unsafe, 3 safe prompts and the empty one
    pipeline = load_pipeline(tiny)
    for role in ("unsafe", "safe"):
        with torch.no_grad():
            expected = torch.cat([pipeline.encode_prompt(p, "cpu", 1, False)[0] for p in prompts[f"{role}_prompt"]])
        found = features.condition([0, 1, 2], [role] * 3)["encoder_hidden_states"]
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_mirrored_features_are_those_of_the_mirrored_image(tiny, tiny_features):
    features = read_features([tiny_features / "features.safetensors"], tiny.id)
    pixels = unpng(read_parquet(tiny_features / "pairs.parquet").safe_image[2])[:, ::-1].copy()
    with torch.no_grad():
        vae = load_pipeline(tiny).vae
        posterior = vae.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1).latent_dist
    mean, std = features.posterior("safe", 2, flip=True)
    assert torch.allclose(mean, posterior.mean[0], atol=1e-5)
    assert torch.allclose(std, posterior.std[0], atol=1e-5)
    assert not torch.allclose(mean, features.posterior("safe", 2)[0], atol=1e-3)


def test_images_without_a_prompt_are_refused(tiny, tiny_features, tmp_path):
    write_parquet(read_parquet(tiny_features / "prompts.parquet").head(2), tmp_path / "p.parquet")
    with pytest.raises(SafetyDPOError, match=r"pairs\.parquet has pair_id p2, which .*p\.parquet lacks"):
        write_features([str(tiny_features / "pairs.parquet")], tmp_path / "p.parquet", ROLES, tiny, tmp_path / "f")
