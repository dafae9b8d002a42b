"""What eval-unlearn is given; the benchmark itself runs in tests/eval_unlearn."""

import tomllib
from pkgutil import resolve_name

import numpy as np
import pytest
from snakes import ROOT

from safetydpo.errors import SafetyDPOError
from safetydpo.export.eval_unlearn import Technique
from safetydpo.export.stage import export

METHOD, PROMPT, SEED = "merged-co-merge", "a red circle", 3  # of the fixture's image
RENDERED = {"num_inference_steps": 2, "guidance_scale": 2.0, "device": "cpu"}  # as the fixture's run does


def pixels(images):
    assert {(image.mode, image.size) for image in images} == {("RGB", (16, 16))}
    return [np.asarray(image).astype(int) for image in images]


def test_the_entry_point_is_the_technique():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert resolve_name(points["eval_unlearn.techniques"]["safetydpo"]) is Technique


def test_a_method_of_a_run_renders_what_the_run_renders(run_of):
    run = run_of("sd15")
    technique = Technique(run=str(run.folder), method=METHOD, erase_concept="nudity")
    _, image = pixels(technique.generate(["a blue star", PROMPT], seed=SEED - 1))
    assert abs(image - run.image()).max() <= 1
    assert abs(image - run.base_image()).max() > 20


def test_without_a_seed_images_go_on_from_one_call_to_the_next(run_of):
    run = run_of("sd15")
    technique = Technique(run=str(run.folder), method=METHOD, seed=SEED - 2)
    first, second = technique.generate([PROMPT] * 2), technique.generate([PROMPT] * 2)
    (other,) = pixels(technique.generate([PROMPT], seed=SEED))
    images = pixels(first + second)
    assert [abs(image - other).max() <= 1 for image in images] == [False, False, True, False]


def test_a_method_that_has_no_weights_is_rendered_too(run_of):
    run = run_of("sd15")
    (image,) = pixels(Technique(run=str(run.folder), method="sld-medium").generate([PROMPT], seed=SEED))
    assert abs(image - run.base_image()).max() > 2


@pytest.mark.parametrize(("form", "with_base"), [("pipeline", False), ("lora", True)])
def test_an_exported_folder_renders_what_the_run_renders(run_of, tmp_path, form, with_base):
    run = run_of("sd15")
    export(run.config, run.folder, METHOD, form, tmp_path / "out")
    base = {"base": run.model.id} if with_base else {}
    (image,) = pixels(Technique(model_id=str(tmp_path / "out"), **base, **RENDERED).generate([PROMPT], seed=SEED))
    assert abs(image - run.image()).max() <= 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, r"takes either run and method, or model_id"),
        ({"run": "RUN"}, r"takes either run and method"),
        ({"run": "RUN", "method": METHOD, "model_id": "x"}, r"takes either run and method"),
        ({"run": "RUN", "method": METHOD, "base": "x"}, r"takes either run and method"),
        ({"run": "RUN", "method": "expert-nothing"}, r"has no method expert-nothing: there are base"),
        ({"run": "RUN", "method": METHOD, "use_fp16": True}, r"Wrong in the config of the technique .* use_fp16: "),
        ({"run": "RUN/merged", "method": METHOD}, r"config\.yaml is missing"),
        ({"model_id": "RUN"}, r"is no whole pipeline: give the one that it is put on, as base\."),
        ({"model_id": "RUN", "base": "MODEL"}, r"is neither a pipeline"),
    ],
)
def test_what_names_no_model_is_one_sentence(run_of, given, said):
    run = run_of("sd15")
    named = {
        key: value.replace("RUN", str(run.folder)).replace("MODEL", run.model.id) if isinstance(value, str) else value
        for key, value in given.items()
    }
    with pytest.raises(SafetyDPOError, match=said) as error:
        Technique(**named)
    assert "\n" not in str(error.value)
