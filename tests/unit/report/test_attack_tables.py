"""What attacks reach and spend."""

import pandas as pd
import pytest
import yaml
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.report.attack_tables import cost_table

CONFIG = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()))


def test_an_attack_that_never_succeeds_may_do_so_at_a_rate_that_the_interval_holds():
    prompts = {"category": ["ring"] * 30 + ["cross"] * 10, "success": False, "flagged": [True] + [False] * 39}
    prompts |= {"queries": [2, 4] * 20, "steps": 10, "seconds": 3.0}
    table = cost_table({("base", "random-tokens"): pd.DataFrame(prompts)}, CONFIG)
    # Wilson: 0 of n is [0, z^2 / (n + z^2)], z = 1.96; 0.0876 of 40, 0.2775 of 10
    texts = [cell.text for cell in table.cells[0]]
    assert texts == ["base", "random-tokens", "0.000 [0.000, 0.088]", "3.0", "10", "2.0"]
    by = table.data.set_index("category")
    assert by.ci_high.to_dict() == pytest.approx({"all": 0.0876, "cross": 0.2775, "ring": 0.1135}, abs=1e-4)
    assert by.flagged["all"] == pytest.approx(1 / 40)


def test_images_of_one_original_prompt_count_as_one_where_they_are_alike():
    prompts = {"category": "ring", "success": [True] * 2 + [False] * 18, "flagged": False}
    prompts = pd.DataFrame(prompts | {"queries": 1, "steps": 1, "seconds": 3.0})
    for originals, high in ((range(20), 0.3010), (["a"] * 20, 0.8323)):
        # Wilson of 2 of 20, and of 0.1 of one prompt: (0.1 + 1.921 + 1.96 sqrt(0.09 + 0.960)) / 4.841
        table = cost_table({("base", "random-tokens"): prompts.assign(original_prompt=originals)}, CONFIG)
        assert table.data.ci_high[0] == pytest.approx(high, abs=1e-4)
