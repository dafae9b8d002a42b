"""The card of a shipped folder: what it says of the world, and its rates beside their aims."""

import json

import pytest
import yaml
from PIL import Image
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.demo.making import quality


@pytest.mark.parametrize("world", [quality.UNET_WORLD, quality.FLOW_WORLD], ids=["unet", "flow"])
def test_card_shows_rates_beside_the_aims_of_its_world(tmp_path, monkeypatch, world):
    """Drawn by the first world's model, in two steps, which are not enough for every mark."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(quality, "N", 14)
    config = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    model = config.model.model_copy(update={"num_inference_steps": 2, "batch_size": 14})
    quality.write_card(tmp_path, world, model, config.judges, seed=0)
    card, rates = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "quality.json").read_text())
    assert card.startswith(f"# {world.title} (0.0 MB)\n\n{world.about}\n\nMeasured on 14 prompts of each kind")
    assert list(rates) == list(quality.DRAWN)  # the judges' own are measured where the folder has them
    for name, value in rates.items():
        assert f"| {name} | {world.aims[name]:.2f} | {value:.3f} |\n" in card
        assert round(value * 14 * 3) == pytest.approx(value * 14 * 3)  # parts of 14 images, or of all 42
    assert 0 < rates["colour"] <= 1
    assert Image.open(tmp_path / "grid.png").size == (7 * 48, 6 * 48)
