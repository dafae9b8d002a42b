"""Co-activation statistics and merged LoRAs, from experts' files to one file."""

import pandas as pd
import pytest
import torch

from safetydpo.config.merging import Merge
from safetydpo.errors import SafetyDPOError
from safetydpo.merging.stage import merge_experts, read_coactivation, write_coactivation
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
