"""What tests of the config share."""

import pytest
import yaml
from snakes import ROOT


@pytest.fixture
def with_value():
    """Dotted key, value -> the default config with that value."""

    def changed(path: str, value) -> dict:
        config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
        *sections, key = path.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[key] = value
        return config

    return changed
