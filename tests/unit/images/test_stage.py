"""Rendered tables: seeds, narrowing, and the layout that `datasets` opens."""

import numpy as np
import pandas as pd
import pytest
from datasets import load_dataset
from PIL.Image import Image

from safetydpo.errors import SafetyDPOError
from safetydpo.images.stage import render_prompts
from safetydpo.methods.registry import RESEED
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.storage.images import unpng
from safetydpo.storage.records import seed_of


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


def test_both_images_of_a_pair_start_from_the_pairs_seed(tiny, tiny_features):
    pairs, prompts = read_parquet(tiny_features / "pairs.parquet"), read_parquet(tiny_features / "prompts.parquet")
    assert pairs.seed.tolist() == [seed_of(0, f"p{i}") for i in range(3)]
    pipeline = load_pipeline(tiny)
    for column in ("unsafe", "safe"):
        prompt, seed = prompts[f"{column}_prompt"][1], pairs.seed[1]
        mine, other = render(pipeline, [prompt] * 2, [seed, seed + 1], tiny)
        assert difference(unpng(pairs[f"{column}_image"][1]), mine) <= 1
        assert difference(unpng(pairs[f"{column}_image"][1]), other) > 1


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Six prompts, categories a b a b a b, seed 0 for all."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.parquet"
    rows = [{"prompt_id": f"x-{i}", "prompt": "a red circle", "category": "ab"[i % 2], "seed": 0} for i in range(6)]
    write_parquet(pd.DataFrame(rows), path)
    return path


def test_category_then_n_then_shard_narrow_the_prompts(tiny, prompts, tmp_path):
    found = []
    for shard in (0, 1):  # category b is x-1 x-3 x-5, its first 2 are x-1 x-3
        out = tmp_path / f"{shard}.parquet"
        render_prompts(prompts, tiny, out, shard=shard, shards=2, n=2, category="b")
        found.append(read_parquet(out).prompt_id.tolist())
    assert found == [["x-1"], ["x-3"]]


def test_too_many_shards_and_an_empty_category_are_told_apart(tiny, prompts, tmp_path):
    with pytest.raises(SafetyDPOError, match=r"6 rows, fewer than the 7 shards"):
        render_prompts(prompts, tiny, tmp_path / "o.parquet", shard=0, shards=7)
    with pytest.raises(SafetyDPOError, match="no prompts of category c"):
        render_prompts(prompts, tiny, tmp_path / "o.parquet", category="c")
    assert not (tmp_path / "o.parquet").exists()


def test_a_seed_offset_is_added_and_recorded(tiny, prompts, tmp_path):
    render_prompts(prompts, tiny, tmp_path / "o.parquet", n=1, method="base-reseed")
    row = read_parquet(tmp_path / "o.parquet").iloc[0]
    moved, at_0 = render(load_pipeline(tiny), ["a red circle"] * 2, [RESEED, 0], tiny)
    assert row.seed == RESEED
    assert difference(unpng(row.image), moved) <= 1
    assert difference(unpng(row.image), at_0) > 1


def test_datasets_opens_the_shards_as_images(tiny, tiny_features, prompts, tmp_path):
    render_prompts(prompts, tiny, tmp_path / "out.parquet", n=2)
    pairs = tiny_features / "pairs.parquet"
    for path, columns, rows in ((tmp_path / "out.parquet", ["image"], 2), (pairs, ["unsafe_image", "safe_image"], 3)):
        data = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / path.stem))
        assert len(data) == rows
        table = read_parquet(path)
        for column in columns:
            assert isinstance(data[1][column], Image)
            assert np.array_equal(np.asarray(data[1][column]), unpng(table[column][1]))
