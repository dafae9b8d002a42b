"""Prompts to render."""

import pandas as pd
import pytest

from safetydpo.storage.files import write_parquet


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Six prompts, categories a b a b a b, seed 0 for all."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.parquet"
    rows = [{"prompt_id": f"x-{i}", "prompt": "a red circle", "category": "ab"[i % 2], "seed": 0} for i in range(6)]
    write_parquet(pd.DataFrame(rows), path)
    return path
