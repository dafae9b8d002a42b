"""The config takes the prompt sources that there are, and each is there."""

import re
from pkgutil import resolve_name

import pytest
import yaml
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.registry import SOURCES


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_there(name):
    assert callable(resolve_name(f"safetydpo.prompts.{SOURCES[name].pairs}"))


def test_the_config_takes_the_sources_that_there_are():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["prompts"]["source"] = "gpt"
    with pytest.raises(SafetyDPOError, match=r"prompts\.source: Input should be (.*) \(got 'gpt'\)$") as error:
        load_config(config)
    assert re.findall(r"'(.*?)'", str(error.value))[:-1] == list(SOURCES)
