"""What can be exported, by names alone."""

import re

import pytest
from snakes import ROOT

from safetydpo.errors import SafetyDPOError
from safetydpo.export.registry import FORMATS, asked_for, refuse_family
from safetydpo.models.families.registry import FAMILIES


@pytest.mark.parametrize(
    ("name", "form", "rank", "said"),
    [
        ("sld-max", "pipeline", None, "sld-max acts while images are rendered and has no weights to export"),
        ("negative-prompt", "lora", None, "negative-prompt acts while images are rendered"),
        ("base", "pipeline", None, "base is the model as it is"),
        ("esd-x", "kohya", None, "esd-x is no LoRA of the run: kohya of it needs a rank"),
        ("esd-x", "pipeline", 4, "--rank is of LoRAs, and pipeline holds whole weights"),
        ("uce", "gguf", None, "No format gguf: there are pipeline, lora, kohya, single-file"),
        ("uec", "lora", None, "No method uec"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(name, form, rank, said):
    with pytest.raises(SafetyDPOError, match=said):
        asked_for(name, form, rank)


@pytest.mark.parametrize("name", ["merged-ties", "all-single", "expert-hate", "ablation-loss-a"])
def test_loras_of_the_run_need_no_rank(name):
    assert asked_for(name, "lora")[0].name == name


def test_families_that_lack_a_format_are_families():
    names = {family.name for family in FAMILIES}
    for form in FORMATS.values():
        assert set(form.lacks) <= names
        for family in FAMILIES:
            if family.name in form.lacks:
                with pytest.raises(SafetyDPOError, match=f"{form.name} cannot be had of m, of family {family.name}: "):
                    refuse_family(form, family, "m")
            else:
                refuse_family(form, family, "m")


def test_the_page_says_which_family_has_which_format():
    page = (ROOT / "docs/export.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ((?:yes|no)(?: \| (?:yes|no))+) \|$", page, re.MULTILINE))
    assert rows == {
        form.name: " | ".join("no" if family.name in form.lacks else "yes" for family in FAMILIES)
        for form in FORMATS.values()
    }
