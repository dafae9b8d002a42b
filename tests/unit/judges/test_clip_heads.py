"""MHSC's heads: read without running what is in them, on the embedding as CLIP gives it."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import expit
from torch import nn

from safetydpo.errors import SafetyDPOError
from safetydpo.judges.clip_heads import read_heads, tensors
from safetydpo.storage.files import write_safetensors

WIDTH = 96  # of the toy CLIP


def head(seed, width=WIDTH):
    """As Unsafe Diffusion's training leaves it: statistics of its batches, and their count."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
    for _ in range(3):
        network(3 * torch.randn(16, width))
    return network.state_dict()


@pytest.fixture
def folder(tmp_path):
    """Two heads, one of them with a prefix."""
    path = tmp_path / "heads"
    path.mkdir()
    torch.save(head(1), path / "violent.pt")
    torch.save({f"projection_head.{name}": value for name, value in head(2).items()}, path / "hateful.pt")
    (path / "README.md").write_text("heads")
    return path


def expected(state, seen):
    """The head's formula by hand: linear, ReLU, normalised by its statistics, linear, logistic."""
    w = {name: value.double().numpy() for name, value in state.items()}
    hidden = np.maximum(seen @ w["0.weight"].T + w["0.bias"], 0)
    hidden = (hidden - w["3.running_mean"]) / np.sqrt(w["3.running_var"] + 1e-5) * w["3.weight"] + w["3.bias"]
    return expit(hidden @ w["4.weight"].T + w["4.bias"])[:, 0]


def entry(toy, path, **changes):
    return {"judge": "clip-heads", "id": str(toy[0]), "path": str(path), "name": "mhsc", **changes}


def test_each_head_looks_at_the_embedding_before_it_is_normalised(toy, folder, eyes_of):
    _, images, clip, _ = toy
    with torch.no_grad():
        seen = clip.projected(images).double().numpy()
    assert not np.allclose(np.linalg.norm(seen, axis=1), 1, atol=0.1)
    eyes = eyes_of(entry(toy, folder))
    rows = eyes.look(images, ["a", "b"])
    violent, hateful = expected(head(1), seen), expected(head(2), seen)
    assert [row["mhsc[violent]"] for row in rows] == pytest.approx(violent, abs=1e-5)
    assert [row["mhsc[hateful]"] for row in rows] == pytest.approx(hateful, abs=1e-5)
    assert [row["mhsc"] for row in rows] == pytest.approx(np.maximum(violent, hateful), abs=1e-5)
    assert set(eyes.about["mhsc"]) == {"clip", "weights", "heads"}
    eyes.check()


def test_the_runs_copy_and_a_file_of_all_are_the_same_judge(toy, folder, eyes_of, tmp_path):
    write_safetensors(tensors(folder), tmp_path / "copy.safetensors", {"source": str(folder)})
    copied, read = read_heads(tmp_path / "copy.safetensors", own=True), read_heads(folder)
    assert list(copied) == list(read) == ["hateful", "violent"]
    images = toy[1]
    one, other = (
        eyes_of(entry(toy, path)).look(images, ["a", "b"]) for path in (folder, tmp_path / "copy.safetensors")
    )
    for column in ("mhsc", "mhsc[violent]", "mhsc[hateful]"):
        assert [row[column] for row in one] == [row[column] for row in other]
    (folder / "violent.pt").unlink()
    save_file(read["violent"], folder / "violent.safetensors")
    assert all(torch.equal(value, read["violent"][name]) for name, value in read_heads(folder)["violent"].items())


def test_bfloat16_changes_no_score_that_is_in_doubt(toy, folder, eyes_of):
    images = toy[1]
    exact, half = (
        eyes_of(entry(toy, folder), dtype=dtype).look(images, ["a", "b"]) for dtype in ("float32", "bfloat16")
    )
    assert all(0.026 < row["mhsc"] < 0.988 for row in exact)
    assert [row["mhsc"] for row in half] == pytest.approx([row["mhsc"] for row in exact], abs=1e-6)
    difference = np.abs(np.stack([a["embedding"] - b["embedding"] for a, b in zip(half, exact, strict=True)])).max()
    assert difference > 1e-5  # as they would have been


def test_a_pickle_with_anything_else_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"0.weight": Attack()}, tmp_path / "violent.pt")
    with pytest.raises(
        SafetyDPOError, match=r"^The head .*violent\.pt cannot be read \(not tensors alone, or damaged\)"
    ):
        read_heads(tmp_path)
    (tmp_path / "violent.pt").write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(SafetyDPOError, match=r"^The head .*violent\.pt cannot be read"):
        read_heads(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_heads_are_sentences(toy, folder, eyes_of, tmp_path):
    with pytest.raises(SafetyDPOError, match=r"^The heads .*nowhere do not exist: set the clip-heads judge's `path`"):
        read_heads(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SafetyDPOError, match=r"has no heads \(<head>\.pt or <head>\.safetensors\)"):
        read_heads(tmp_path / "empty")
    torch.save(head(1, width=7), folder / "violent.pt")
    with pytest.raises(
        SafetyDPOError,
        match=r"^The head violent of .* is of width 7, its CLIP embeds in 96: set the clip-heads judge's",
    ):
        eyes_of(entry(toy, folder))
    state = head(1)
    torch.save(state | {"4.weight": torch.ones(1, 5)}, folder / "violent.pt")
    with pytest.raises(SafetyDPOError, match=r"^The head violent of .* has tensors of other shapes \(.*size mismatch"):
        eyes_of(entry(toy, folder))
    torch.save(state | {"3.running_var": torch.full((8,), float("nan"))}, folder / "violent.pt")
    with pytest.raises(SafetyDPOError, match=r"^3\.running_var of the head violent of .*: 8 of 8 values are NaN"):
        eyes_of(entry(toy, folder))
    state.pop("3.running_mean")
    torch.save(state, folder / "violent.pt")
    with pytest.raises(SafetyDPOError, match=r"^The head violent of .* has no tensor 3\.running_mean: it must be the"):
        read_heads(folder)
    torch.save([1, 2], folder / "violent.pt")
    with pytest.raises(
        SafetyDPOError, match=r"^The head .*violent\.pt holds no tensors by name: it must be a state dict"
    ):
        read_heads(folder)
