"""Features files: joining them, on tensors written out by hand, and the captions they hold."""

import json
from pathlib import Path

import pytest
import torch
from tiny import ROLES

from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.features.stage import write_features
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import read_parquet, write_parquet, write_safetensors
from safetydpo.storage.images import unpng


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
