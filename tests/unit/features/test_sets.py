"""Features files: joining them, on tensors written out by hand, and files that are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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
    write_safetensors(tensors, path, {"ids": json.dumps(ids), "model": "m", "family": "unet"})
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


def test_a_fingerprint_is_of_what_the_file_holds_to_the_bit(tmp_path):
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
    n, path = 1500, tmp_path / "large.safetensors"
    tensors = {"safe_mean": torch.ones(n, 4, 64, 64), "safe_std": torch.ones(n, 4, 64, 64)}  # 197 MB
    tensors |= {"safe_caption": torch.arange(n), "seeds": torch.arange(n)}
    tensors |= {"encoder_hidden_states": torch.ones(n, 77, 1024, dtype=torch.bfloat16)}  # 237 MB
    write_safetensors(tensors, path, {"ids": json.dumps([str(i) for i in range(n)]), "model": "m", "family": "unet"})
    del tensors
    before = anonymous_memory()
    features = read_features([path], "m")
    total = sum(features.posterior("safe", i)[0].sum().item() for i in range(n))
    assert total == n * 4 * 64 * 64
    texts = (features.condition([i], ["safe"])["encoder_hidden_states"] for i in range(n))
    assert sum(text[0, 0].sum().item() for text in texts) == n * 1024
    assert features.seeds == list(range(n))
    assert anonymous_memory() - before < 130_000_000


def test_texts_of_16_bits_survive_the_file_and_are_checked(tmp_path):
    values = torch.tensor([0.1, -3.0, 2e30]).bfloat16().view(-1, 1, 1)
    tensors = {"safe_mean": torch.zeros(2, 1, 1, 1), "safe_std": torch.zeros(2, 1, 1, 1)}
    tensors |= {"encoder_hidden_states": values}
    tensors |= {"safe_caption": torch.tensor([1, 0]), "lengths": torch.tensor([1, 1, 1])}
    header = {"ids": json.dumps(["a", "b"]), "model": "m", "family": "z-image"}
    write_safetensors(tensors, tmp_path / "f", header)
    features = read_features([tmp_path / "f"], "m")
    condition = features.condition([0, 1, 0], ["safe", "safe", ""])
    assert condition["encoder_hidden_states"].dtype == torch.bfloat16
    assert torch.equal(condition["encoder_hidden_states"], values[[1, 0, 2]])
    assert condition["lengths"].tolist() == [1, 1, 1]
    assert (features.family, features.seeds, features.texts) == ("z-image", None, ["encoder_hidden_states", "lengths"])
    prints = [features.fingerprint]
    values[0] = 0.1006  # the next number of bfloat16
    write_safetensors(tensors, tmp_path / "g", header)
    prints.append(read_features([tmp_path / "g"], "m").fingerprint)
    assert prints[0] != prints[1]
    values[2] = torch.inf
    write_safetensors(tensors, tmp_path / "h", header)
    with pytest.raises(SafetyDPOError, match=r"encoder_hidden_states of .*: 1 of 3 values are NaN or infinite"):
        read_features([tmp_path / "h"], "m")
    assert read_features([tmp_path / "h"], "m", check=False).ids == ["a", "b"]  # which another process checks
    save_file(tensors, tmp_path / "i", header)
    with pytest.raises(SafetyDPOError, match="i has no digest in its header"):
        read_features([tmp_path / "i"], "m", check=False)


def test_texts_of_several_lengths_are_padded_with_zeros(tmp_path):
    paths = []
    for name, tokens in (("one", 2), ("two", 3)):
        tensors = {"safe_mean": torch.zeros(1, 1, 1, 1), "safe_std": torch.zeros(1, 1, 1, 1)}
        tensors |= {"encoder_hidden_states": torch.ones(2, tokens, 4), "lengths": torch.tensor([tokens, 1])}
        tensors |= {"safe_caption": torch.tensor([0]), "seeds": torch.tensor([tokens])}
        paths.append(tmp_path / name)
        write_safetensors(tensors, paths[-1], {"ids": json.dumps([name]), "model": "m", "family": "z-image"})
    features = read_features(paths, "m")
    condition = features.condition([0, 1], ["safe", "safe"])
    assert condition["encoder_hidden_states"].sum((1, 2)).tolist() == [2 * 4, 3 * 4]
    assert condition["encoder_hidden_states"].shape == (2, 3, 4)
    assert condition["lengths"].tolist() == [2, 3]
    assert features.seeds == [2, 3]


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
