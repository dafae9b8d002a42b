"""What the judges' section needs."""

import pytest
import yaml
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError


def test_a_detector_without_its_folder_is_one_line():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["judges"]["detector_path"] = None
    with pytest.raises(SafetyDPOError, match="detector_path"):
        load_config(config)
