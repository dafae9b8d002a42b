"""The config takes the attacks that there are, and each is there, with its budget."""

import re
from pkgutil import resolve_name

import pytest
import yaml
from snakes import ROOT

from safetydpo.attacks.registry import ATTACKS
from safetydpo.config.attacks import Attacks
from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError

CONTROLS = ["original", "words-removed"]


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_there(name):
    assert callable(resolve_name(f"safetydpo.attacks.{ATTACKS[name].search}"))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_but_the_controls_has_a_budget_of_its_name(name):
    assert (name.replace("-", "_") in Attacks.model_fields) is (name not in CONTROLS)


def test_the_config_takes_the_attacks_that_there_are_but_the_controls():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["attacks"] = {"run": ["luck"], "forbidden": ["x"]}
    with pytest.raises(SafetyDPOError, match=r"attacks\.run\.0: Input should be (.*) \(got 'luck'\)$") as error:
        load_config(config)
    assert re.findall(r"'(.*?)'", str(error.value))[:-1] == [name for name in ATTACKS if name not in CONTROLS]
