"""A diffusers folder renders what the workflow rendered, and is the source's in all that no method changes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from safetydpo.errors import SafetyDPOError
from safetydpo.export.stage import export
from safetydpo.models.index import Index
from safetydpo.models.lora import save_factors

METHOD = "merged-co-merge"


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux-dev", "z-image"])
def test_the_folder_renders_what_the_workflow_rendered(run_of, tmp_path, family):
    run, out = run_of(family), tmp_path / "out"
    export(run.config, run.folder, METHOD, "pipeline", out)
    pipeline = DiffusionPipeline.from_pretrained(out, **dict.fromkeys(Index(run.model).missing))
    expected = run.image()
    assert abs(run.image(pipeline) - expected).max() <= 2
    assert abs(run.base_image() - expected).max() > 20  # or nothing was shown
    source = Path(run.model.id)
    assert json.loads((out / "model_index.json").read_text()) == json.loads((source / "model_index.json").read_text())
    for name in ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert str(source) not in "".join(path.read_text() for path in out.rglob("*.json"))


def test_what_no_image_needs_comes_along_as_it_is_and_pickles_do_not(run_of, tmp_path):
    """A safety checker, which the workflow does not load; the base's licence; weights in 16 bits."""
    run, source, out = run_of("sd15"), tmp_path / "source", tmp_path / "out"
    shutil.copytree(run.model.id, source)
    index = json.loads((source / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "Checker"], "feature_extractor": ["transformers", "Extractor"]}
    (source / "model_index.json").write_text(json.dumps(index))
    (source / "safety_checker").mkdir()
    for name in ("model.safetensors", "pytorch_model.bin", "config.json"):
        (source / "safety_checker" / name).write_text("{}")
    (source / "LICENSE.md").write_text("terms")
    config = run.config.model_copy(update={"model": run.model.model_copy(update={"id": str(source)})})
    said = export(config, run.folder, METHOD, "pipeline", out, dtype="bfloat16")
    assert "Left out, since the source's files are not here: feature_extractor." in said
    assert sorted(path.name for path in (out / "safety_checker").iterdir()) == ["config.json", "model.safetensors"]
    assert (out / "LICENSE.md").read_text() == "terms"
    found = json.loads((out / "model_index.json").read_text())
    assert found == index | {"feature_extractor": [None, None]}
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (out / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}


def test_weights_that_a_precision_cannot_hold_are_refused(run_of, tmp_path):
    run = run_of("sd15")
    huge = {name: (a, 1e6 * b) for name, (a, b) in run.factors.items()}
    folder = tmp_path / "run"
    save_factors(huge, folder / "merged/co-merge", "unet", {})
    shutil.copytree(run.folder / "tuning", folder / "tuning")
    with pytest.raises(SafetyDPOError, match=r"merged-co-merge in float16 has weights that are not finite"):
        export(run.config, folder, METHOD, "pipeline", tmp_path / "out", dtype="float16")
    with pytest.raises(SafetyDPOError, match=r"A factor of .* in float16: .* NaN or infinite; take --dtype bfloat16"):
        export(run.config, folder, METHOD, "lora", tmp_path / "out", dtype="float16")
