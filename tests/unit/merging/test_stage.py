"""Co-activation statistics and merged LoRAs, from experts' files to one file."""

import pandas as pd
import pytest
import torch

from safetydpo.config.merging import Merge
from safetydpo.errors import SafetyDPOError
from safetydpo.merging.stage import merge_experts, read_coactivation, write_coactivation
from safetydpo.merging.strategies import merge, winner_masks
from safetydpo.models.lora import load_factors, save_factors
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import made_by, read_parquet, write_parquet

CONFIG = Merge(calibration_prompts=2, calibration_timesteps=[100, 500, 900])


@pytest.fixture(scope="module")
def experts(tiny, tmp_path_factory):
    """Folders of two experts on all attn1.to_out.0: `ring` with zero B, `cross` with random factors."""
    rng = torch.Generator().manual_seed(0)
    layers = {n: m for n, m in load_pipeline(tiny).unet.named_modules() if n.endswith("attn1.to_out.0")}
    root, folders = tmp_path_factory.mktemp("experts"), {}
    for name, size in (("ring", 0.0), ("cross", 1.0)):
        factors = {
            n: (torch.randn(2, m.in_features, generator=rng), size * torch.randn(m.out_features, 2, generator=rng))
            for n, m in layers.items()
        }
        save_factors(factors, root / name, made_by("train"))
        folders[name] = str(root / name)
    return folders


def test_co_merge_of_a_silent_expert_and_another_is_the_other(tiny, tiny_features, experts, tmp_path):
    paths = [str(tiny_features / "features.safetensors")]
    features = {"ring": paths, "cross": paths}
    write_coactivation(experts, features, tiny, CONFIG, 0, tmp_path / "wins.parquet")
    table = read_parquet(tmp_path / "wins.parquet")
    # 2 categories x 2 prompts x 3 timesteps: each unit of each layer is judged 12 times; zero B never wins
    assert set(table.inputs) == {12}
    assert table.groupby("expert").wins.agg(["min", "max"]).T.to_dict("list") == {"cross": [12, 12], "ring": [0, 0]}
    merge_experts("co-merge", experts, str(tmp_path / "wins.parquet"), tiny, CONFIG, 0, tmp_path / "co-merge")
    merged, cross = load_factors(tmp_path / "co-merge"), load_factors(experts["cross"])
    assert merged.keys() == cross.keys()
    for module, (a, b) in merged.items():
        assert torch.allclose(b @ a, cross[module][1] @ cross[module][0], atol=1e-6)
    fused = load_pipeline(tiny, tmp_path / "co-merge").unet.state_dict()
    weights = load_pipeline(tiny, experts["cross"]).unet.state_dict()
    assert all(torch.allclose(fused[k], weights[k], atol=1e-5) for k in weights)
    assert "ring, cross" in (tmp_path / "co-merge/README.md").read_text()


def test_statistics_come_back_in_the_order_of_the_experts(tmp_path):
    counts = {("b", 0): 1, ("b", 1): 9, ("a", 0): 4, ("a", 1): 2}
    rows = [{"module": "m", "unit": u, "expert": e, "wins": n, "inputs": 0} for (e, u), n in counts.items()]
    write_parquet(pd.DataFrame(rows), tmp_path / "wins.parquet")
    assert read_coactivation(tmp_path / "wins.parquet", ["b", "a"])["m"].tolist() == [[1, 9], [4, 2]]
    assert read_coactivation(tmp_path / "wins.parquet", ["a", "b"])["m"].tolist() == [[4, 2], [1, 9]]
    with pytest.raises(SafetyDPOError, match="no statistics of expert c: delete it and rerun"):
        read_coactivation(tmp_path / "wins.parquet", ["a", "c"])


def test_a_tie_goes_to_the_first_expert_and_every_unit_to_one():
    masks = winner_masks(torch.tensor([[5, 0, 3], [5, 7, 1], [0, 7, 8]]))
    assert torch.stack(masks).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def updates(*matrices):
    """Experts whose updates are these matrices: A is the matrix, B the identity."""
    return {str(i): {"layer": (torch.tensor(m), torch.eye(len(m)))} for i, m in enumerate(matrices)}


def product(merged):
    a, b = merged["layer"]
    return b @ a


def test_co_merge_cut_to_a_rank_keeps_the_strongest_direction():
    # units 0 and 1 from the first, unit 2 from the second: singular values sqrt(1 + 4) of rows 0, 1 and 3 of row 2
    experts = updates([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    wins = {"layer": torch.tensor([[3, 2, 0], [0, 1, 3]])}
    merged = merge("co-merge", experts, wins, rank=1)
    assert merged["layer"][0].shape == (1, 2)
    assert torch.allclose(product(merged), torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 3.0]]), atol=1e-6)


def test_ties_trims_before_it_elects():
    # density 0.5 keeps the larger value of each: (4, 0) and (0, 2); each stands alone, so 4 and 2
    assert torch.allclose(
        product(merge("ties", updates([[4.0, 1.0]], [[-1.0, 2.0]]), density=0.5)), torch.tensor([[4.0, 2.0]]), atol=1e-6
    )
    # equal signs are averaged; the smaller side of a clash (-1 against 4) is left out, not averaged
    assert torch.allclose(
        product(merge("ties", updates([[4.0, 6.0]], [[-1.0, 2.0]]), density=1.0)), torch.tensor([[4.0, 4.0]]), atol=1e-6
    )


def test_dare_drops_or_rescales_and_repeats_with_its_seed():
    torch.manual_seed(1)
    update = torch.randn(8, 8)
    experts = {"0": {"layer": (update, torch.eye(8))}}
    merged = product(merge("dare-ties", experts, density=0.5, seed=3))
    ratio = merged / update  # 0 where dropped, 1 / 0.5 where kept
    kept = ratio > 1
    assert torch.allclose(ratio, 2.0 * kept, atol=1e-3)
    assert 16 <= kept.sum() <= 48  # 64 draws at 0.5: mean 32, standard deviation 4
    assert torch.equal(merged, product(merge("dare-ties", experts, density=0.5, seed=3)))
    assert not torch.equal(merged, product(merge("dare-ties", experts, density=0.5, seed=4)))
