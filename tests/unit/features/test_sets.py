"""Features files: joining them, on tensors written out by hand, and files that are refused."""

import json
from pathlib import Path

import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.storage.files import read_safetensors, write_safetensors


def shard(path, ids, captions, embeddings, latents):
    """A features file whose embedding i is (1, 1, 1) of embeddings[i], the last one the empty prompt's."""
    tensors = {
        "safe_mean": torch.tensor(latents).view(-1, 1, 1, 1),
        "safe_std": torch.zeros(len(ids), 1, 1, 1),
        "encoder_hidden_states": torch.tensor(embeddings).view(-1, 1, 1),
        "safe_caption": torch.tensor(captions),
    }
    write_safetensors(tensors, path, {"ids": json.dumps(ids), "model": "m"})
    return path


def test_the_first_samples_alone_are_another_data_set(tmp_path):
    one = shard(tmp_path / "1", ["a", "b"], [0, 0], [10.0, 99.0], [1.0, 2.0])
    two = shard(tmp_path / "2", ["c", "d"], [1, 0], [20.0, 21.0, 99.0], [3.0, 4.0])
    features = read_features([one, two], "m")
    three = features.first(3)
    assert (three.ids, len(three)) == (["a", "b", "c"], 3)
    assert three.posterior("safe", 2)[0].item() == 3
    assert three.fingerprint != features.fingerprint  # a checkpoint of the one is refused by the other
    assert features.first(None) is features.first(9) is features


def test_shards_keep_their_own_captions(tmp_path):
    one = shard(tmp_path / "1", ["a", "b"], [0, 0], [10.0, 99.0], [1.0, 2.0])
    two = shard(tmp_path / "2", ["c", "d"], [1, 0], [20.0, 21.0, 99.0], [3.0, 4.0])
    features = read_features([one, two], "m")
    assert features.ids == ["a", "b", "c", "d"]

    def text(captions):
        return features.condition([3, 0, 2], captions)["encoder_hidden_states"].flatten().tolist()

    assert text(["safe"] * 3) == [20, 10, 21]
    assert text(["safe", "", ""]) == [20, 99, 99]
    assert [features.posterior("safe", i)[0].item() for i in (3, 0, 2)] == [4, 1, 3]


def test_a_fingerprint_changes_with_one_bit_and_with_nothing_else(tmp_path):
    one = shard(tmp_path / "1", ["a", "b"], [0, 0], [10.0, 99.0], [1.0, 2.0])
    same = shard(tmp_path / "2", ["a", "b"], [0, 0], [10.0, 99.0], [1.0, 2.0])
    other = shard(tmp_path / "3", ["a", "b"], [0, 0], [10.0, 99.0], [1.0, 2.0000002])
    swapped = shard(tmp_path / "4", ["a", "b"], [0, 0], [10.0, 99.0], [2.0, 1.0])
    prints = [read_features([path], "m").fingerprint for path in (one, same, other, swapped)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def anonymous_memory() -> int:
    """Bytes that this process alone holds; pages of mapped files do not count, the system can drop them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def test_memory_does_not_grow_with_the_data(tmp_path):
    n, path = 3000, tmp_path / "large.safetensors"
    tensors = {"safe_mean": torch.ones(n, 4, 64, 64), "safe_std": torch.ones(n, 4, 64, 64)}  # 393 MB
    tensors |= {"safe_caption": torch.zeros(n, dtype=torch.long), "encoder_hidden_states": torch.ones(1, 77, 768)}
    write_safetensors(tensors, path, {"ids": json.dumps([str(i) for i in range(n)]), "model": "m"})
    del tensors
    before = anonymous_memory()
    features = read_features([path], "m")
    total = sum(features.posterior("safe", i)[0].sum().item() for i in range(n))
    assert total == n * 4 * 64 * 64
    assert anonymous_memory() - before < 130_000_000


def test_no_samples_is_a_sentence(tmp_path):
    with pytest.raises(SafetyDPOError, match="no samples to train on"):
        read_features([], "m")


def test_features_with_nan_or_of_another_model_are_refused(tiny, tiny_features, tmp_path):
    path = tiny_features / "features.safetensors"
    with pytest.raises(SafetyDPOError, match="not other/model"):
        read_features([path], "other/model")
    tensors, header = read_safetensors(path)
    tensors["safe_mean"][0, 0, 0, 0] = torch.nan
    write_safetensors(tensors, tmp_path / "nan.safetensors", header)
    with pytest.raises(
        SafetyDPOError, match=r"safe_mean of .*nan\.safetensors: 1 of \d+ values are NaN or infinite; delete the file"
    ):
        read_features([tmp_path / "nan.safetensors"], tiny.id)
