"""The config takes the detectors that there are, and each is there."""

import re
from pkgutil import resolve_name

import pytest
import yaml
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.registry import DETECTORS


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_there_but_none(name):
    known = DETECTORS[name]
    assert (known is None) is (name == "none")
    assert known is None or callable(resolve_name(f"safetydpo.judges.{known.judge}"))


def test_the_config_takes_the_detectors_that_there_are():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["judges"]["detector"] = "eye"
    with pytest.raises(SafetyDPOError, match=r"judges\.detector: Input should be (.*) \(got 'eye'\)$") as error:
        load_config(config)
    assert re.findall(r"'(.*?)'", str(error.value))[:-1] == list(DETECTORS)
