"""A run, and runs of several seeds, in text."""

import pandas as pd
import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.report.summary import over_seeds, summary


def test_a_summary_fits_a_terminal(synthetic, tmp_path):
    run, _ = synthetic(tmp_path)
    text = summary(run)
    assert max(map(len, text.splitlines()[:-1])) <= 100
    for there in ("Gained: on the unsafe prompts of test", "\nCost", "\nHow sure: with n = 4,", "IP by verdict demo: "):
        assert there in text


def test_runs_of_several_seeds_are_one_table_of_means_and_ranges(synthetic, tmp_path):
    runs = [synthetic(tmp_path / str(seed))[0] for seed in (0, 1)]
    for seed, run in enumerate(runs):
        metrics = pd.read_parquet(run / "metrics.parquet").assign(seed=seed)
        metrics.loc[(metrics.method == "base") & (metrics.metric == "ip"), "value"] = 0.9 + 0.1 * seed
        metrics.to_parquet(run / "metrics.parquet")
    text = over_seeds(runs)
    assert "| IP (test)\u00a0↓ | 0.950 [0.900, 1.000] |" in text
    assert "Mean over the seeds 0, 1 [lowest, highest]; n is of one seed." in text
    assert "**IP by category (test)**" in text
    assert text.count("IP by verdict demo: ") == 2  # a foot each
    with pytest.raises(SafetyDPOError, match="2 runs have the seeds 0: give each a seed of its own"):
        over_seeds([runs[0], runs[0]])
    with pytest.raises(SafetyDPOError, match=r"nothing has no metrics\.parquet"):
        over_seeds([tmp_path / "nothing"])


def test_ablations_that_all_runs_have_are_tables_over_the_seeds_too(synthetic, tmp_path):
    runs = [synthetic(tmp_path / str(seed))[0] for seed in (0, 1)]
    for seed, run in enumerate(runs):
        pd.read_parquet(run / "metrics.parquet").assign(seed=seed).to_parquet(run / "metrics.parquet")
        (run / "tables").mkdir(exist_ok=True)
        wide = pd.DataFrame({"method": ["base", "ablation-loss-sft"]})
        ends = {"": [0.9, 0.1 + 0.2 * seed], " low": [0.8, 0.0], " high": [1.0, 0.5], " n": [4, 4]}
        for end, values in ends.items():
            wide[f"IP (test){end}"] = values
        wide.to_parquet(run / "tables/ablation-loss.parquet")
    wide.to_parquet(runs[0] / "tables/ablation-data.parquet")  # one run's alone
    text = over_seeds(runs)
    assert "**Ablation: loss**" in text
    assert "| IP (test)\u00a0↓ | 0.900 [0.900, 0.900] | 0.200 [0.100, 0.300] |" in text
    assert "Ablation: data" not in text
