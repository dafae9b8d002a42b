"""Which prompts a shard has, and shards that cannot be."""

import pandas as pd
import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.images.stage import render_prompts
from safetydpo.storage.files import read_parquet, write_parquet


def few_prompts(folder, n):
    rows = [
        {"prompt_id": f"x-{i}", "prompt": f"a {s} circle", "category": "c", "seed": 2**33 + i}
        for i, s in enumerate("abcde")
    ]
    write_parquet(pd.DataFrame(rows[:n]), folder / "prompts.parquet")
    return folder / "prompts.parquet"


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


def test_more_shards_than_rows_is_said(tiny, tmp_path):
    with pytest.raises(SafetyDPOError, match="has 2 rows, fewer than the 3 shards"):
        render_prompts(few_prompts(tmp_path, 2), tiny, tmp_path / "out.parquet", shards=3)
