"""What benchmarks of merges share: one search of the LoRA scale for all, and how a measure over runs is written."""

import tempfile
from pathlib import Path

import pandas as pd

from safetydpo.config.run import Config
from safetydpo.evaluation.stage import tune_scale
from safetydpo.storage.files import read_parquet, write_parquet

SEARCH = {"scales": [0.5, 8.0], "tries": 6}


def searched(prompts: pd.DataFrame, lora: Path | str, config: Config) -> pd.DataFrame:
    """The curve of a LoRA over the scales that SEARCH tried on these prompts; one is `chosen`."""
    search = config.tune.model_copy(update=SEARCH)
    with tempfile.TemporaryDirectory() as folder:
        given, curve, chosen = (f"{folder}/{name}" for name in ("prompts.parquet", "curve.parquet", "scale.json"))
        write_parquet(prompts, given)
        tune_scale(given, lora, config.model, config.judges, search, curve, chosen)
        return read_parquet(curve)


def span(values: pd.Series) -> str:
    """Mean over the runs [lowest, highest]."""
    return f"{values.mean():.3f} [{values.min():.3f}, {values.max():.3f}]"
