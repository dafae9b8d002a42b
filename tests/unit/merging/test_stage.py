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
        save_factors(factors, root / name, "unet", made_by("train"))
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
    merged, cross = load_factors(tmp_path / "co-merge", "unet"), load_factors(experts["cross"], "unet")
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


@pytest.mark.parametrize("strategy", ["co-merge", "ties"])
def test_convolutions_go_from_experts_to_the_weights_that_diffusers_fuses(tiny, tiny_features, tmp_path, strategy):
    base = load_pipeline(tiny).unet
    layers = {n: m for n, m in base.named_modules() if n.endswith(("attn1.to_q", "proj_in", "conv1", "0.conv"))}
    assert {tuple(m.weight.shape[2:]) for m in layers.values()} == {(), (1, 1), (3, 3)}
    rng, experts = torch.Generator().manual_seed(0), {}
    for name in ("ring", "cross"):
        shapes = {
            n: (m.weight.shape[1:], (m.weight.shape[0], 2, *[1] * (m.weight.ndim - 2))) for n, m in layers.items()
        }
        experts[name] = {
            n: (torch.randn(2, *a, generator=rng), torch.randn(b, generator=rng)) for n, (a, b) in shapes.items()
        }
        save_factors(experts[name], tmp_path / name, "unet", made_by("train"))
    folders, paths = {n: str(tmp_path / n) for n in experts}, [str(tiny_features / "features.safetensors")]
    write_coactivation(folders, dict.fromkeys(experts, paths), tiny, CONFIG, 0, tmp_path / "wins.parquet")
    wins = read_coactivation(tmp_path / "wins.parquet", ["ring", "cross"])
    config = CONFIG.model_copy(update={"density": 1.0})
    merge_experts(strategy, folders, str(tmp_path / "wins.parquet"), tiny, config, 0, tmp_path / "merged")
    fused = load_pipeline(tiny, tmp_path / "merged").unet.state_dict()
    for module, layer in layers.items():
        one, two = (
            torch.einsum("or,r...->o...", b.flatten(1), a) for a, b in (experts[name][module] for name in experts)
        )
        if strategy == "co-merge":  # each output channel from the expert that won it
            first = (wins[module][0] >= wins[module][1]).reshape(-1, *[1] * (one.ndim - 1))
            expected = torch.where(first, one, two)
        else:  # the sign of the sum decides; the mean of what has it; SVD keeps the n * r = 4 strongest directions
            agree = torch.stack([one, two]) * (one + two).sign() > 0
            expected = _best_rank_4((torch.stack([one, two]) * agree).sum(0) / agree.sum(0).clamp(min=1))
        assert torch.allclose(fused[f"{module}.weight"], layer.weight + expected, atol=1e-4), module


def _best_rank_4(update):
    u, s, v = torch.linalg.svd(update.flatten(1), full_matrices=False)
    return (u[:, :4] @ torch.diag(s[:4]) @ v[:4]).reshape(update.shape)


def test_what_is_not_a_number_is_not_merged(tiny, experts, tmp_path):
    damaged = load_factors(experts["cross"], "unet")
    module = min(damaged)
    damaged[module][1][0, 0] = torch.nan
    save_factors(damaged, tmp_path / "damaged", "unet", made_by("train"))
    for strategy in ("mean", "ties"):
        with pytest.raises(SafetyDPOError, match=r"damaged.*NaN or infinite"):
            merge_experts(
                strategy, experts | {"cross": str(tmp_path / "damaged")}, None, tiny, CONFIG, 0, tmp_path / "out"
            )
    # each update is 2.25e38; PEFT's `linear` doubles it by its cross terms, beyond float32's 3.4e38
    large = {module: (torch.full((1, 2), 1.5e19), torch.full((2, 1), 1.5e19))}
    for name in ("one", "two"):
        save_factors(large, tmp_path / name, "unet", made_by("train"))
    folders = {name: str(tmp_path / name) for name in ("one", "two")}
    with pytest.raises(SafetyDPOError, match="The norm of what linear makes of one, two: 1 of 1 values are NaN"):
        merge_experts("linear", folders, None, tiny, CONFIG, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_statistics_that_lack_a_layer_or_a_count_are_refused(tiny, experts, tmp_path):
    module, missing = sorted(load_factors(experts["ring"], "unet"))[:2]
    rows = [{"module": module, "unit": u, "expert": e, "wins": 1, "inputs": 2} for e in experts for u in (0, 1)]
    write_parquet(pd.DataFrame(rows), tmp_path / "few.parquet")
    with pytest.raises(SafetyDPOError, match=f"few.parquet has no statistics of {missing}"):
        merge_experts("co-merge", experts, str(tmp_path / "few.parquet"), tiny, CONFIG, 0, tmp_path / "out")
    write_parquet(pd.DataFrame(rows[:-1]), tmp_path / "less.parquet")
    with pytest.raises(SafetyDPOError, match=f"less.parquet, counts of {module}: 1 of 4 values are NaN"):
        read_coactivation(tmp_path / "less.parquet", list(experts))
