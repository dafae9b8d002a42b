"""Fusion against an example worked out by hand, and against numpy's own least squares."""

import numpy as np
import pytest
import torch
from torch import nn

from safetydpo.config.merging import Fusion, Merge
from safetydpo.errors import SafetyDPOError
from safetydpo.merging.fusion import RETAIN, Gathering, read_covariances, save_covariances
from safetydpo.merging.stage import merge_experts, write_covariances
from safetydpo.merging.strategies import merge
from safetydpo.models.lora import load_factors, save_factors, update_of
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import made_by

# Updates B A of two experts of rank 1, 2 inputs, 3 units:
# D_1 = [[1, 0], [2, 0], [0, 0]], D_2 = [[0, 0], [0, 1], [0, 3]]
EXPERTS = {
    "one": {"layer": (torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [2.0], [0.0]]))},
    "two": {"layer": (torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0], [1.0], [3.0]]))},
}


def fused(statistics, **asked):
    """The fused update."""
    return update_of(merge("fusion", EXPERTS, {"layer": statistics}, Merge(fusion=Fusion(**asked)))["layer"])


def test_two_experts_by_hand():
    # C_1 = diag(3, 1), C_2 = diag(1, 1): A_1 C_1 = (3, 0), A_2 C_2 = (0, 1); C_r = diag(2, 0)
    own = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    found = {"own": own, "all": torch.diag(torch.tensor([4.0, 2.0])), RETAIN: torch.diag(torch.tensor([2.0, 0.0]))}
    # sum_i D_i C_i = [[3, 0], [6, 1], [0, 3]], over diag(4, 2)
    alone = torch.tensor([[0.75, 0.0], [1.5, 0.5], [0.0, 1.5]])
    assert torch.allclose(fused(found, retain_weight=0, ridge=1e-9), alone)
    # with w = 1: diag(6, 2), whose mean is 4, so a ridge of 0.5 adds 2: over diag(8, 4)
    spared = torch.tensor([[0.375, 0.0], [0.75, 0.25], [0.0, 0.75]])
    assert torch.allclose(fused(found, retain_weight=1, ridge=0.5), spared)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_it_is_the_least_squares_solution_on_the_inputs_that_the_network_saw(kind):
    torch.manual_seed(0)
    if kind == "linear":
        layer, shape_a, shape_b = nn.Linear(6, 4), (2, 6), (4, 2)
        inputs = {name: torch.randn(3, 5, 6) for name in ("one", "two", RETAIN)}
        rows = {name: x.reshape(-1, 6) for name, x in inputs.items()}
    else:
        layer, shape_a, shape_b = nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 2, 3, 3), (4, 2, 1, 1)
        inputs = {name: torch.randn(3, 2, 6, 6) for name in ("one", "two", RETAIN)}
        # each place's patch, cut out by hand: 3 x 3 places at stride 2 of the padded image
        padded = {name: nn.functional.pad(x, (1, 1, 1, 1)) for name, x in inputs.items()}
        places = [(2 * i, 2 * j) for i in range(3) for j in range(3)]
        rows = {
            n: torch.stack([x[:, :, i : i + 3, j : j + 3].flatten(1) for i, j in places], 1).flatten(0, 1)
            for n, x in padded.items()
        }
    network = nn.ModuleDict({"layer": layer})
    experts = {name: {"layer": (torch.randn(shape_a), torch.randn(shape_b))} for name in ("one", "two")}
    gathering = Gathering(network, experts, ["layer"])
    for name, x in inputs.items():
        gathering.gather(name, (layer(part[None]) for part in x))
    merged = merge("fusion", experts, gathering.found, Merge(fusion=Fusion(retain_weight=0.5, ridge=0.1)))["layer"]
    assert (merged[0].shape[0], merged[1].shape[1]) == (4, 4)  # n * r
    # every term a row: sqrt(weight / count) x -> the same of what the update should make of x
    x, y, diagonal = [], [], 0.0
    for name, weight in (("one", 1.0), ("two", 1.0), (RETAIN, 0.5)):
        scaled = rows[name].double() * (weight / len(rows[name])) ** 0.5
        target = (
            scaled @ update_of(experts[name]["layer"]).double().T if name != RETAIN else torch.zeros(len(scaled), 4)
        )
        x.append(scaled.numpy())
        y.append(target.numpy())
        diagonal += (scaled**2).sum().item() / scaled.shape[1]
    x.append(np.eye(x[0].shape[1]) * (0.1 * diagonal) ** 0.5)
    y.append(np.zeros((x[0].shape[1], 4)))
    solution = np.linalg.lstsq(np.concatenate(x), np.concatenate(y), rcond=None)[0]
    assert np.allclose(update_of(merged).numpy(), solution.T, atol=1e-5)


def test_from_experts_files_to_a_lora(tiny, tiny_features, tmp_path):
    layers = {n: m for n, m in load_pipeline(tiny).unet.named_modules() if n.endswith(("attn1.to_q", "attn2.to_k"))}
    rng, folders = torch.Generator().manual_seed(0), {}
    for name in ("ring", "cross"):
        shapes = {n: (m.in_features, m.out_features) for n, m in layers.items()}
        factors = {
            n: (torch.randn(2, i, generator=rng), torch.randn(o, 2, generator=rng)) for n, (i, o) in shapes.items()
        }
        save_factors(factors, tmp_path / name, "unet", made_by("train"))
        folders[name] = str(tmp_path / name)
    paths, out = [str(tiny_features / "features.safetensors")], tmp_path / "covariances.safetensors"
    asked = Merge(calibration_prompts=2, calibration_timesteps=[100, 500], fusion=Fusion(retain_weight=0, ridge=1e-6))
    write_covariances(folders, dict.fromkeys(folders, paths), None, tiny, asked, 0, out)
    merge_experts("fusion", folders, str(out), tiny, asked, 0, tmp_path / "fusion")
    merged = load_factors(tmp_path / "fusion", "unet")
    experts = {name: load_factors(folder, "unet") for name, folder in folders.items()}
    covariances = read_covariances(out, ["ring", "cross"])
    for module, pair in merged.items():
        found = covariances[module]
        assert found["own"].shape == (4, layers[module].in_features)
        assert torch.allclose(found["all"], found["all"].T)
        # both categories have the same features, other draws of them: near the mean of both experts there
        mean = torch.stack([update_of(expert[module]) for expert in experts.values()]).mean(0)
        assert ((update_of(pair) - mean) @ found["all"]).norm() < 0.6 * (mean @ found["all"]).norm()
    with pytest.raises(SafetyDPOError, match=r"is of the experts ring, cross in this order: delete it and rerun"):
        read_covariances(out, ["cross", "ring"])
    save_covariances({}, out, made_by("merge", experts=["ring", "cross"]))
    with pytest.raises(SafetyDPOError, match="has no statistics of down_blocks"):
        merge_experts("fusion", folders, str(out), tiny, asked, 0, tmp_path / "again")
