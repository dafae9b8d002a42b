"""Methods of the matrix and the files they render from."""

import pytest
import yaml
from snakes import ROOT

from safetydpo.config import load_config
from safetydpo.errors import SafetyDPOError
from safetydpo.files import write_text
from safetydpo.methods import RESEED, Method, method_of, read_scale


def test_every_method_of_a_config_is_known():
    config = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    loras = {name: method_of(name).lora for name in config.methods()}
    assert [name for name, lora in loras.items() if lora is None] == ["base", "base-reseed"]
    assert loras["expert-zigzag"] == "experts/zigzag"
    assert loras["merged-ties"] == "merged/ties"


def test_names_with_hyphens_are_read_whole():
    assert method_of("expert-illegal-activity") == Method("experts/illegal-activity", tuned=False, seed_offset=0)
    assert method_of("merged-co-merge") == Method("merged/co-merge", tuned=True, seed_offset=0)
    assert method_of("base-reseed") == Method(None, tuned=False, seed_offset=RESEED)


@pytest.mark.parametrize("name", ["", "expert-", "expert", "merged-", "base-other", "all", "esd-u"])
def test_an_unknown_method_lists_those_there_are(name):
    with pytest.raises(SafetyDPOError, match=f"^No method {name}: there are base, base-reseed, all-single"):
        method_of(name)


def test_a_method_that_is_not_tuned_has_scale_1(tmp_path):
    write_text('{"scale": 0.75}\n', tmp_path / "scale.json")
    assert (read_scale(None), read_scale(tmp_path / "scale.json")) == (1.0, 0.75)
