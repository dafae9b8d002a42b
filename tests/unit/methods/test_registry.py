"""Methods by their names, and that every kind of method has what it names."""

import sys
import types
from pkgutil import resolve_name

import pytest
import yaml
from snakemake.utils import update_config
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import open_method
from safetydpo.methods.registry import KINDS, RESEED, SLD_PRESETS, Kind, method_of
from safetydpo.methods.sld import PRESETS


def test_every_method_of_a_config_is_known():
    config = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    files = {name: method_of(name).weights for name in config.methods()}
    assert files["expert-zigzag"] == "experts/zigzag/pytorch_lora_weights.safetensors"
    assert files["merged-co-merge"] == "merged/co-merge/pytorch_lora_weights.safetensors"
    assert files["esd-x"] == "baselines/esd-x/weights.safetensors"
    assert {name for name, file in files.items() if file is None} == {
        "base", "base-reseed", "negative-prompt", "sld-weak", "sld-medium", "sld-strong", "sld-max",
    }  # fmt: skip


def test_names_with_hyphens_are_read_whole():
    assert method_of("expert-illegal-activity").weights == "experts/illegal-activity/pytorch_lora_weights.safetensors"
    assert method_of("merged-co-merge").kind.tuned
    assert method_of("base-reseed").kind.seed_offset == RESEED
    assert method_of("base-reseed").weights is None
    assert method_of("external-safe-sd").variant == "safe-sd"


@pytest.mark.parametrize("name", ["", "expert-", "expert", "merged-", "base-other", "all", "esd", "sld-mild", "uce-x"])
def test_an_unknown_method_lists_those_there_are(name):
    with pytest.raises(SafetyDPOError, match=rf"^No method {name}: there are base, base-reseed, .* external-<name>"):
        method_of(name)


@pytest.mark.parametrize("files", [["config.yaml"], ["config.yaml", "tables.yaml"]], ids=lambda files: files[-1])
def test_every_name_of_a_config_gives_its_method_back(files):
    values = {}
    for file in files:
        update_config(values, yaml.safe_load((ROOT / "config" / file).read_text()))
    names = load_config(values).methods()
    methods = [method_of(name) for name in names]
    assert [method.name for method in methods] == names
    order = [KINDS.index(method.kind) for method in methods]
    assert order == sorted(order)  # names come kind by kind, and none is read as one of another kind


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_opens_and_erases_by_something_that_exists(kind):
    assert callable(resolve_name(f"safetydpo.methods.{kind.opens}"))
    if kind.eraser:
        assert callable(resolve_name(f"safetydpo.baselines.{kind.eraser}"))


def test_the_presets_of_sld_are_those_of_the_registry():
    assert tuple(PRESETS) == SLD_PRESETS


def test_a_new_method_is_one_entry_and_one_file(monkeypatch, tmp_path):
    """Config, its checks, the settings that it depends on and its pipeline all follow from the entry."""
    new = Kind("mirror-*", "mirror:open_pipeline", of=("left", "right"), settings=("negative_prompt",), gradients=False)
    monkeypatch.setattr("safetydpo.methods.registry.KINDS", (*KINDS, new))
    file = types.ModuleType("safetydpo.methods.mirror")
    file.open_pipeline = lambda opening: (opening.variant, opening.baselines.negative)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "safetydpo.methods.mirror", file)
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    values["evaluate"]["matrix"] += [{"methods": ["mirror-left"], "benchmarks": ["test"]}]
    values["baselines"]["negative_prompt"] = "a brulo"
    config = load_config(values)
    assert config.methods()[-2:] == ["mirror-left", "mirror-right"]
    assert open_method("mirror-right", config.model, config.baselines) == ("right", "a brulo")
    values["attacks"] = {"run": ["unlearn-diff-atk"], "methods": ["mirror-left"], "forbidden": ["x"]}
    with pytest.raises(SafetyDPOError, match="needs gradients of the UNet, which `mirror-left` does not give"):
        load_config(values)
    with pytest.raises(SafetyDPOError, match=r"mirror-<left\|right>"):
        method_of("mirror-up")
