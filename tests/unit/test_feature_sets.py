"""Features files: joining them, on tensors written out by hand, and the captions they hold."""

import json

import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.feature_sets import read_features
from safetydpo.features import write_features
from safetydpo.files import read_parquet, write_parquet, write_safetensors
from safetydpo.models import load_pipeline


def shard(path, ids, captions, embeddings, latents):
    """A features file whose embedding i is (1, 1, 1) of embeddings[i], the last one the empty prompt's."""
    tensors = {
        "safe_mean": torch.tensor(latents).view(-1, 1, 1, 1),
        "safe_std": torch.zeros(len(ids), 1, 1, 1),
        "encoder_hidden_states": torch.tensor(embeddings).view(-1, 1, 1),
        "caption": torch.tensor(captions),
    }
    write_safetensors(tensors, path, {"ids": json.dumps(ids), "model": "m"})
    return path


def test_shards_keep_their_own_captions(tmp_path):
    one = shard(tmp_path / "1", ["a", "b"], [0, 0], [10.0, 99.0], [1.0, 2.0])
    two = shard(tmp_path / "2", ["c", "d"], [1, 0], [20.0, 21.0, 99.0], [3.0, 4.0])
    features = read_features([one, two], "m")
    assert features.ids == ["a", "b", "c", "d"]
    index = torch.tensor([3, 0, 2])
    assert features.condition(index)["encoder_hidden_states"].flatten().tolist() == [20, 10, 21]
    assert features.posterior("safe", index)[0].flatten().tolist() == [4, 1, 3]
    dropped = torch.tensor([False, True, True])
    assert features.condition(index, dropped)["encoder_hidden_states"].flatten().tolist() == [20, 99, 99]


def test_no_samples_is_a_sentence(tmp_path):
    with pytest.raises(SafetyDPOError, match="no samples to train on"):
        read_features([], "m")


def test_each_pair_is_conditioned_on_its_own_unsafe_prompt(tiny, tiny_features, tmp_path):
    prompts = read_parquet(tiny_features / "prompts.parquet")
    prompts.loc[2, "unsafe_prompt"] = prompts.unsafe_prompt[0]  # p0 and p2 share a caption
    write_parquet(prompts.iloc[::-1], tmp_path / "prompts.parquet")  # in another order than the images
    pairs, out = [str(tiny_features / "pairs.parquet")], tmp_path / "f.safetensors"
    write_features(pairs, tmp_path / "prompts.parquet", {"safe": "safe_image"}, tiny, "unsafe_prompt", out)
    features = read_features([out], tiny.id)
    assert len(features.tensors["encoder_hidden_states"]) == 3  # two captions and the empty prompt
    pipeline = load_pipeline(tiny)
    with torch.no_grad():
        expected = torch.cat([pipeline.encode_prompt(p, "cpu", 1, False)[0] for p in prompts.unsafe_prompt])
    found = features.condition(torch.arange(3))["encoder_hidden_states"]
    assert features.ids == ["p0", "p1", "p2"]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_images_without_a_prompt_are_refused(tiny, tiny_features, tmp_path):
    write_parquet(read_parquet(tiny_features / "prompts.parquet").head(2), tmp_path / "p.parquet")
    with pytest.raises(SafetyDPOError, match=r"pairs\.parquet has pair_id p2, which .*p\.parquet lacks"):
        write_features(
            [str(tiny_features / "pairs.parquet")], tmp_path / "p.parquet", {}, tiny, "unsafe_prompt", tmp_path / "f"
        )
